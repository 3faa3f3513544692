"""Benches: BAT OS beside a peer or a ceiling, measured in the same run. Prints the README's table.

    python tests/bench/bench.py [NAME …] [--seconds 2]

Each bench yields rows (what, ours, the other, ratio). Pairs are measured in turns, three times; the median counts.
"""

import argparse
import collections
import contextlib
import gc
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import timeit

import numpy
import persistent
import transaction
import zmq
import ZODB
import ZODB.FileStorage

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE.parent)]
import conftest
import doubles
import test_memory
from test_parts import Machine

import batos

MANUAL = (ROOT / "tests" / "data" / "vesper.md").read_text()
QUESTIONS = ["How long does the mast run in full darkness?", "How many mast can one station accept?",
             "What does the anemometer have?", "How often should the shield be washed?"]
BRIEF = {"type": "direct_synthesis", "selector": "answer_", "args": QUESTIONS[:1]}


@contextlib.contextmanager
def daemon(*options, core="none", folder=None, start=conftest.start_anew):
    """A daemon process in a folder that is removed, started as a user does: one that the tests fork has its replies checked."""
    with contextlib.ExitStack() as stack:
        folder = folder or stack.enter_context(tempfile.TemporaryDirectory())
        process = conftest.DaemonProcess(folder, *options, core=core, start=start)
        try:
            yield process
        finally:
            process.stop()


@contextlib.contextmanager
def peer(*command):
    """A peer of `peers.py`; yields its endpoint."""
    process = subprocess.Popen([sys.executable, str(HERE / "peers.py"), *map(str, command)], stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[4]
    finally:
        process.kill()
        process.communicate()


def rate(endpoint, message, in_flight, seconds, connections=1):
    """Return (replies per second, [latency in s]) with so many requests in flight; message(n) makes the n-th.

    They go over so many connections in turns; the answer to one has the next one sent there.
    """
    context, poller, sent = zmq.Context(), zmq.Poller(), {}
    for _ in range(connections):
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(endpoint)
        poller.register(socket, zmq.POLLIN)
        sent[socket] = collections.deque()
    numbers, latencies = itertools.count(), []
    for socket, _ in zip(itertools.cycle(sent), range(in_flight)):
        sent[socket].append(time.perf_counter())
        socket.send(message(next(numbers)))
    start_s, end_s = time.perf_counter(), time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        readable = poller.poll(30_000)
        if not readable:
            raise SystemExit("no reply for 30 s")
        for socket, _ in readable:
            latencies += drained_replies(socket, sent[socket], lambda: message(next(numbers)))
    result = len(latencies) / (time.perf_counter() - start_s)
    for socket in sent:
        socket.close()
    context.term()
    return result, latencies


def drained_replies(socket, sent, another):
    """Take the replies that are there, and send another request for each; returns their latencies in s."""
    latencies = []
    with contextlib.suppress(zmq.Again):
        while True:
            socket.recv(zmq.NOBLOCK)
            now_s = time.perf_counter()
            latencies.append(now_s - sent.popleft())
            sent.append(now_s)
            socket.send(another())
    return latencies


def sized(seconds, measured, tried):
    """Return the size of a bench that is measured, or of one that is tried only: that runs for less than a second."""
    return measured if seconds >= 1 else tried


def in_turns(rounds, *functions):
    """Return the median of each function's results, measured in turns."""
    results = [[function() for function in functions] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*results, strict=True)]


def p99_ms(latencies):
    return 1000 * sorted(latencies)[int(0.99 * (len(latencies) - 1))]


def bench_health(seconds):
    """`health` beside a bare ROUTER echo of the same bytes, drained the same way."""
    request = batos.pack_reply({"command": "health", "id": 1})
    with daemon(core=0.05) as ours:
        with batos.Client(ours.endpoint) as client:
            size = len(batos.pack_reply(client.call("health")))
        with peer("echo", size) as echo:
            for in_flight in (1, 16, 64):
                mine, other = in_turns(3, lambda n=in_flight: rate(ours.endpoint, lambda _: request, n, seconds)[0],
                                       lambda n=in_flight: rate(echo, lambda _: request, n, seconds)[0])
                yield f"health, {in_flight} in flight", f"{mine:,.0f}/s", f"bare ROUTER echo {other:,.0f}/s", mine / other
        idle = p99_ms(rate(ours.endpoint, lambda _: request, 1, seconds)[1])
        with batos.Client(ours.endpoint) as client, busy_with_cycles(client):
            busy = p99_ms(rate(ours.endpoint, lambda _: request, 1, seconds)[1])
        yield "health, p99, two cycles running (double)", f"{busy:.2f} ms", f"idle {idle:.2f} ms", busy / idle
    if (ROOT / "seed_core" / "model.safetensors").exists():
        with daemon(core="auto") as ours, batos.Client(ours.endpoint) as client:
            wait_for_core(client)
            idle = p99_ms(rate(ours.endpoint, lambda _: request, 1, seconds)[1])
            with busy_with_cycles(client):
                busy = p99_ms(rate(ours.endpoint, lambda _: request, 1, seconds)[1])
        yield "health, p99, two cycles running (embedded core)", f"{busy:.2f} ms", f"idle {idle:.2f} ms", busy / idle


@contextlib.contextmanager
def busy_with_cycles(client):
    """Keep missions coming while inside."""
    client.call("index_document", doc_id="vesper.md", text=MANUAL)
    stop = threading.Event()

    def ask():
        with batos.Client(client.endpoint, 300) as own:
            while not stop.is_set():
                own.call("initiate_cognitive_cycle", mission_brief=BRIEF, wait=True)
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def wait_for_core(client):
    while client.call("health")["result"]["core"]["state"] == "loading":
        time.sleep(0.05)


def set_slot(number):
    """Return a request that sets a slot to a value it never had."""
    return batos.pack_reply({"command": "send_message", "id": number, "target": "genesis_obj", "selector": "setSlot:value:",
                             "args": [f"slot{number % 50}", number]})


def bench_writes(seconds):
    """Durable `setSlot_value_` beside one transaction a command, and beside a bare ROUTER with a bare group commit."""
    with tempfile.TemporaryDirectory() as folder, daemon() as ours, daemon("--group-max", "1") as single, \
            peer("commit", f"{folder}/peer.fs") as bare, peer("sqlite", f"{folder}/peer.sqlite") as table:
        beside = {"a transaction each": single.endpoint, "bare group commit": bare, "bare ROUTER and SQLite in groups": table}
        for in_flight in (1, 16, 64):
            mine, *others = in_turns(3, *(lambda where=where, n=in_flight: rate(where, set_slot, n, seconds)[0]
                                          for where in (ours.endpoint, *beside.values())))
            for name, other in zip(beside, others, strict=True):
                yield f"durable setSlot, {in_flight} in flight", f"{mine:,.0f}/s", f"{name} {other:,.0f}/s", mine / other


class Plain(persistent.Persistent):
    """What `send` is compared with."""

    def __init__(self):
        self.value = 1

    def answer(self):
        return self.value


def call_s(statement, **names):
    """Return the seconds that a statement takes, the best of seven rounds."""
    return min(timeit.repeat(statement, globals=names, number=20_000, repeat=7)) / 20_000


@batos.primitive("bench_answer_", reads=True)
def bench_answer_(receiver):
    """Return a slot of the receiver."""
    return receiver.value


def bench_send(seconds):
    """`send` through eight parents beside a plain method call; and the first one after a commit elsewhere."""
    batos.image_class(Plain)
    with tempfile.TemporaryDirectory() as folder:
        image = batos.Image.open(f"{folder}/image.fs")
        unit, other = batos.Unit(image.db), batos.Unit(image.db)
        unit.manager.begin()
        holder = batos.UvmObject(answer=batos.method("answer", "bench_answer_"))
        for _ in range(8):
            holder = batos.UvmObject(**{"parent*": [holder], "value": 1})
        unit.root.update(obj=holder, plain=Plain(), else_=batos.UvmObject())
        unit.manager.commit()
        unit.manager.begin()
        obj, plain = unit.root["obj"], unit.root["plain"]
        mine, call = in_turns(3, lambda: call_s("send(obj, 'answer')", send=batos.send, obj=obj),
                              lambda: call_s("plain.answer()", plain=plain))
        yield "send through 8 parents, warm", f"{mine * 1e9:.0f} ns", f"plain method {call * 1e9:.0f} ns", mine / call

        def after(event, function):
            event()
            start_s = time.perf_counter()
            function()
            return time.perf_counter() - start_s
        for name, event in (("a commit elsewhere", lambda: committed_elsewhere(unit, other)),
                            ("an abort", lambda: (unit.manager.abort(), unit.manager.begin()))):
            mine, read = in_turns(200, lambda e=event: after(e, lambda: batos.send(obj, "answer")),
                                  lambda e=event: after(e, lambda: plain.value))
            yield (f"first send through 8 parents after {name}", f"{mine * 1e6:.1f} µs",
                   f"plain attribute read {read * 1e6:.1f} µs", mine / read)
        unit.manager.abort()
        unit.close()
        other.close()
        image.close()


METHODS = {"total": "def total(self):\n    return sum(self.prices)\n",
           "bump": "def bump(self):\n    self.count += 1\n    self._p_changed = True\n    return self.count\n",
           "loop": "def loop(self):\n    while True:\n        pass\n"}


CROWD = 8, 4                       # connections, and authors of the methods


def bench_methods(seconds):
    """Stored methods in their children over the bridge: reading and changing, beside a primitive; from one connection, and from
    several to methods of several authors, interleaved; and with an endless one beside."""
    with tempfile.TemporaryDirectory() as folder:
        shops = shops_of_authors(folder)
        with daemon("--method-deadline-s", "1000", folder=folder) as ours, batos.Client(ours.endpoint, 60) as client:
            yield from method_rows(ours.endpoint, shops, seconds)
            with contextlib.suppress(batos.NoReply):
                client.call("send_message", target=shops[0], selector="loop", timeout_s=0.2)
            mine = rate(ours.endpoint, lambda n: message_to(shops[1 + n % 63], n, "total"), 32, seconds)[0]
            yield "stored method `total`, 32 in flight, while another loops", f"{mine:,.0f}/s", "", None


def shops_of_authors(folder):
    """Make 64 objects with METHODS in an image in a folder, their authors in turns; returns their ids."""
    with daemon(folder=folder) as ours, batos.Client(ours.endpoint, 60) as client:
        shops = [client.call("send_message", target="genesis_obj", selector="clone")["result"]["$ref"] for _ in range(64)]
        for shop in shops:
            for slot, value in (("prices", [4, 12.5, 3]), ("count", 0)):
                client.call("send_message", target=shop, selector="setSlot_value_", args=[slot, value])
            for name, code in METHODS.items():
                client.call("create_method", target_oid=shop, method_name=name, method_code=code)
    with contextlib.closing(batos.Image.open(f"{folder}/live_image.fs")) as image, batos.writing(image) as root:
        for number, shop in enumerate(shops):
            for name in METHODS:
                batos.put_slot(batos.own(batos.resolve(root, shop))[name], "author", f"author {number % CROWD[1]}")
    return shops


def message_to(shop, number, selector, *args):
    return batos.pack_reply({"command": "send_message", "id": number, "target": shop, "selector": selector, "args": list(args)})


def method_rows(endpoint, shops, seconds):
    def rated(connections, in_flight, *words):
        return rate(endpoint, lambda n: message_to(shops[n % 64], n, *words), in_flight, seconds, connections)[0]
    for selector, beside in (("total", ("getSlot_", "prices")), ("bump", ("setSlot_value_", "count", 1))):
        for connections, in_flight in ((1, 1), (1, 32), (CROWD[0], 32)):
            mine, other = in_turns(3, lambda s=selector, how=(connections, in_flight): rated(*how, s),
                                   lambda b=beside, how=(connections, in_flight): rated(*how, *b))
            more_us = 1e6 / mine - 1e6 / other
            crowd = f" from {connections} connections" if connections > 1 else ""
            what = f"stored method `{selector}` of {CROWD[1]} authors, {in_flight} in flight{crowd} ({more_us:+.0f} µs each)"
            yield what, f"{mine:,.0f}/s", f"primitive {beside[0]} {other:,.0f}/s", mine / other


def committed_elsewhere(unit, other):
    unit.manager.abort()
    other.manager.begin()
    other.root["else_"].value = time.perf_counter()
    other.manager.commit()
    unit.manager.begin()


@contextlib.contextmanager
def counted_fsyncs():
    """Count the fsyncs of the data file."""
    counts = [0]

    def counting(handle):
        counts[0] += 1
        os.fsync(handle)
    forcing = vars(batos.ImageStorage)["to_disk"]
    batos.ImageStorage.to_disk = staticmethod(counting)
    try:
        yield counts
    finally:
        batos.ImageStorage.to_disk = forcing


def bench_cycles(seconds):
    """The daemon's own cost of a durable cycle, with a core that answers at once, beside as many bare commits."""
    for at_once, how, asked in ((1, "", the_same), (32, "", the_same), (32, ", each of another question", another)):
        with tempfile.TemporaryDirectory() as folder, counted_fsyncs() as fsyncs:
            mine, commits = cycles_per_s(folder, at_once, seconds, asked)
            each, forced = commits / mine[1], fsyncs[0] / mine[1]
            bare = bare_commits_per_s(folder, seconds)
        other = bare / each
        yield (f"durable cycles, {at_once} at a time{how} ({each:.1f} commits, {forced:.1f} fsyncs a cycle)", f"{mine[0]:.0f}/s",
               f"as many bare commits {other:.0f}/s", mine[0] / other)


def bench_mind(seconds):
    """Whole missions with the embedded core, by how many at a time; its tokens beside plain generate() of the same model."""
    for at_once in sized(seconds, (1, 8, 32), (1, 2, 3)):
        with daemon("--workers", str(at_once), core="auto") as ours, batos.Client(ours.endpoint, 600) as client:
            wait_for_core(client)
            client.call("index_document", doc_id="vesper.md", text=MANUAL)
            ask_all(ours.endpoint, 1, 1)                 # whatever the first one loads
            count = max(at_once, round(10 * seconds))
            took_s = timed_s(lambda count=count, ours=ours, at_once=at_once: ask_all(ours.endpoint, count, at_once))
        yield f"missions with the embedded core, {at_once} at a time", f"{60 * count / took_s:.0f}/min", "", None
    yield from token_rows(sized(seconds, 5, 1))


def ask_all(endpoint, count, at_once):
    """Have so many missions answered, each client asking one after the other."""
    def ask(number):
        with batos.Client(endpoint, 600) as client:
            for n in range(number, count, at_once):
                brief = {**BRIEF, "args": [QUESTIONS[n % len(QUESTIONS)]]}
                client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def token_rows(rounds):
    """Rows of tokens a second: a facet under its grammar through the model thread, beside generate() alone, as many tokens."""
    core = batos.CognitiveCore(lambda: ROOT / "seed_core", threads=1).start()
    core.wait_ready(300)
    asked = batos.CoreRequest("facet", batos.CORE_SAMPLES["facet"])
    for count in (1, 16):
        told = core.infer([asked] * count)[0].tokens

        def plain(loaded, count=count, told=told):
            torch, transformers = batos.need("torch", "the bench"), batos.need("transformers", "the bench")
            ids = torch.tensor([loaded.encode(batos.CORE_TASKS["facet"].prompt(asked.fields)[0])] * count)
            settings = transformers.GenerationConfig(max_new_tokens=told, min_new_tokens=told, do_sample=False,
                                                     pad_token_id=loaded.pad_id, eos_token_id=loaded.eos_ids)
            with torch.inference_mode():
                loaded.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        ours, theirs = in_turns(rounds, lambda count=count: timed_s(lambda: core.infer([asked] * count)),
                                lambda plain=plain: timed_s(lambda: core.on_model_thread(plain)))
        yield (f"tokens of the embedded core, {count} rows under a grammar, against plain generate()",
               f"{count * told / ours:.0f}/s", f"{count * told / theirs:.0f}/s", theirs / ours)
    core.close()


GRAPH = ("langgraph==1.2.22", "langgraph-checkpoint-sqlite==3.1.2")      # the peer, in an environment of its own


def bench_graph(seconds):
    """Durable cycles with a core that answers at once, as many workers as missions at a time, beside LangGraph's of the same
    states with its SQLite saver, every step durable."""
    with tempfile.TemporaryDirectory() as environment:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        install = ["pip", "--python", environment, "install", "-q", "--no-compile"]
        subprocess.run([sys.executable, "-m", *install, *GRAPH], check=True)
        for at_once in (1, 8, 32):
            rounds = [graph_round(environment, at_once, seconds) for _ in range(3)]
            rates, told = [[row[side] for row in rounds] for side in (0, 1)], rounds[0][2]
            mine, theirs = map(statistics.median, rates)
            yield (f"durable cycles, {at_once} at a time ({told[0]} a cycle)", f"{mine:.0f}/s",
                   f"LangGraph {theirs:.0f}/s ({told[1]} a cycle)", mine / theirs)


def graph_round(environment, at_once, seconds):
    """Return (our cycles per second, LangGraph's, (what each stores a cycle)), measured one after the other."""
    with tempfile.TemporaryDirectory() as folder, counted_fsyncs() as fsyncs:
        (mine, count), commits = cycles_per_s(folder, at_once, seconds)
        entries, size = journal_entries(f"{folder}/image.fs")
        ours = (f"{commits / count:.1f} commits, {fsyncs[0] / count:.1f} fsyncs, {entries:.0f} journal entries, "
                f"{size / 1000:.0f} kB")
    with tempfile.TemporaryDirectory() as folder:
        command = [f"{environment}/bin/python", str(HERE / "graph.py"), folder, str(at_once), str(seconds)]
        peer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    each = {name: peer[name] / peer["cycles"] for name in ("commits", "rows", "bytes")}
    theirs = f"{each['commits']:.1f} commits, as many fsyncs, {each['rows']:.0f} rows, {each['bytes'] / 1000:.0f} kB"
    return mine, peer["cycles"] / peer["seconds"], (ours, theirs)


def journal_entries(path):
    """Return (entries of the journal, bytes of the data file) a mission of an image."""
    with contextlib.closing(batos.Image.open(path)) as image, batos.reading(image) as root:
        lengths = [len(cycle.journal) for cycle in root["missions"].values()]
    return statistics.mean(lengths), os.path.getsize(path) / len(lengths)


def the_same(number):
    return BRIEF


def another(number):
    """Return a mission of the same words which is, to the memory, another one than those before."""
    return {**BRIEF, "args": [QUESTIONS[0] + "?" * (number % 900)]}


def cycles_per_s(folder, at_once, seconds, asked=the_same):
    """Return ((cycles per second, cycles), commits) of missions accepted and thought through, `at_once` at a time.

    asked: number -> the brief of that mission.
    """
    settings = batos.load_settings({"workers": at_once}, {})
    image = batos.Image.open(f"{folder}/image.fs")
    batos.genesis(image)
    uvm = batos.BatOS_UVM(image, settings, doubles.QuickCore())
    ended, slots, numbers = [0], threading.Semaphore(at_once), itertools.count()
    uvm.mind._ended_hook = lambda oid, report: (ended.__setitem__(0, ended[0] + 1), slots.release())
    for lane in uvm.lanes.values():
        lane.start()
    uvm.mind.start(uvm.events)
    uvm.lanes["bulk"].call(batos.Job("learn", lambda root: batos.index_document_(
        root["knowledge_catalog_obj"], "vesper.md", MANUAL)["chunks"]))
    batos._settle_interpreter()                           # as the daemon does

    def accept():
        slots.acquire()
        brief = asked(next(numbers))
        uvm.lanes["write"].submit(batos.Job("accept", lambda root: batos.cycle_id(batos.send(
            root["orchestrator_obj"], "start_cognitive_cycle_for_", brief))))
    accept()                                             # imports what the first one needs
    while not ended[0]:
        time.sleep(0.01)
    ended[0], before, start_s = 0, commits_of(uvm), time.perf_counter()
    while time.perf_counter() - start_s < seconds:
        accept()
    for _ in range(at_once):
        slots.acquire()
    took_s, commits = time.perf_counter() - start_s, commits_of(uvm) - before
    uvm.close_lanes()
    image.close()
    gc.unfreeze()
    return (ended[0] / took_s, ended[0]), commits


def commits_of(uvm):
    return uvm.lanes["write"].commits + uvm.lanes["bulk"].commits


def bare_commits_per_s(folder, seconds):
    """Return how many one-object transactions a plain FileStorage commits each second, one after the other."""
    db = ZODB.DB(ZODB.FileStorage.FileStorage(f"{folder}/bare.fs"))
    manager = transaction.TransactionManager(explicit=True)
    manager.begin()
    root = db.open(manager).root()
    manager.abort()
    start_s, count = time.perf_counter(), 0
    while time.perf_counter() - start_s < seconds:
        manager.begin()
        root["value"] = count
        manager.commit()
        count += 1
    manager.begin()
    manager.abort()
    return count / (time.perf_counter() - start_s)


def run_s(*command):
    """Return the seconds that a command takes; what it imports is compiled once, and kept apart."""
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{tempfile.gettempdir()}/batos-bench-compiled"}
    start_s = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=os.environ | kept)
    return time.perf_counter() - start_s


def started(folder, core):
    """Return seconds from the start of a daemon: until it listens, its first reply, its first thought (with a core)."""
    start_s = time.perf_counter()
    with daemon(core=core, folder=folder) as process, batos.Client(process.endpoint, 300) as client:
        times = [time.perf_counter() - start_s]
        client.call("health")
        times.append(time.perf_counter() - start_s)
        if core == "auto":
            client.call("index_document", doc_id="vesper.md", text=MANUAL)
            client.call("initiate_cognitive_cycle", mission_brief=BRIEF, wait=True)
            times.append(time.perf_counter() - start_s)
    return times


OBJECTS_A_COMMIT = 10_000


def add_objects(path, count):
    """Put so many objects into an image that nobody else has open."""
    image = batos.Image.open(path)
    for start in range(0, count, OBJECTS_A_COMMIT):
        with batos.writing(image) as root:
            many = root.setdefault("many", batos.LOBTree())
            many.update({n: batos.UvmObject(name=f"object {n}", n=n) for n in range(start, min(start + OBJECTS_A_COMMIT, count))})
    image.close()


COMPILED = "compile(open('batos.py').read(), 'batos.py', 'exec')"


def bench_start(seconds):
    """Imports, help, first start and restart. Python compiles a program that it is given as a file anew at each start."""
    commands = (["-c", "pass"], ["-c", "import ZODB, zmq, pydantic"], ["-c", "import batos"], ["-c", COMPILED],
                ["-c", "import batos; batos.run()", "--help"], ["batos.py", "--help"])
    bare, packages, own, compiled, entered, shown = in_turns(
        sized(seconds, 5, 1), *(lambda command=command: run_s(*command) for command in commands))
    own, packages, compiled = own - bare, packages - bare, compiled - bare
    yield "import batos", f"{own:.2f} s", f"ZODB, zmq and pydantic alone {packages:.2f} s", own / packages
    yield "batos --help, by the entry point", f"{entered:.2f} s", f"bare Python {bare:.2f} s", entered / bare
    yield f"batos.py --help, of it {compiled:.2f} s to compile", f"{shown:.2f} s", f"bare Python {bare:.2f} s", shown / bare
    core = "auto" if (ROOT / "seed_core" / "model.safetensors").exists() else "none"
    with tempfile.TemporaryDirectory() as folder:
        names = ("listening", "first reply", "first thought")
        first = dict(zip(names, started(folder, core), strict=False))
        add_objects(f"{folder}/live_image.fs", 10_000)
        again = dict(zip(names, started(folder, core), strict=False))
    for name, value in again.items():
        yield f"restart with 10,000 objects: {name}", f"{value:.2f} s", f"first start {first[name]:.2f} s", value / first[name]


def bench_check(seconds):
    """`check` of many objects beside ZODB's own walk over the records of the same file."""
    count = sized(seconds, 100_000, 5_000)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/live_image.fs"
        batos.genesis(image := batos.Image.open(path))
        image.close()
        add_objects(path, count)

        def walked_s():
            start_s = time.perf_counter()
            for transaction_record in ZODB.FileStorage.FileIterator(path):
                for _ in transaction_record:
                    continue
            return time.perf_counter() - start_s
        for deep, name in ((False, "quick"), (True, "deep")):
            mine, other = in_turns(3, lambda deep=deep: batos.check_image(path, deep)["seconds"], walked_s)
            what = f"{name} check of {count:,} objects"
            yield what, f"{mine:.2f} s", f"ZODB's walk over the records {other:.2f} s", mine / other


def longest_wait_ms(endpoint, work):
    """Return the longest wait in ms of a writer that sends every 5 ms while work() runs in a thread of its own."""
    thread, longest, number = threading.Thread(target=work), 0.0, 0
    with batos.Client(endpoint, 120) as client:
        thread.start()
        while thread.is_alive():
            start_s = time.perf_counter()
            client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["waits", number])
            number, took_s = number + 1, time.perf_counter() - start_s
            longest = max(longest, took_s)
            time.sleep(max(0.0, 0.005 - took_s))
    thread.join()
    return longest * 1e3


def bench_waits(seconds):
    """The longest wait of a small writer while the image is packed, backed up, or takes in a large document; beside idle."""
    count = sized(seconds, 50_000, 2_000)
    with tempfile.TemporaryDirectory() as folder:
        image = batos.Image.open(path := f"{folder}/live_image.fs")
        batos.genesis(image)
        image.close()
        add_objects(path, count)
        with daemon(folder=pathlib.Path(folder)) as process:
            def call(command, **fields):
                with batos.Client(process.endpoint, 600) as client:
                    client.call(command, **fields)
            text = "\n\n".join(f"# Part {n}\n\nThe valve {n} is turned until the needle {n % 97} stands at {n % 89}." * 3
                               for n in range(count // 10))
            idle = longest_wait_ms(process.endpoint, lambda: time.sleep(seconds))
            works = {"pack": lambda: call("pack", days=0.0), "backup": lambda: call("backup", folder=f"{folder}/b"),
                     f"ingest of a document of {len(text) / 1e6:.1f} MB": lambda: call("index_document", doc_id="d", text=text)}
            for name, work in works.items():
                found = longest_wait_ms(process.endpoint, work)
                yield f"longest wait of a writer every 5 ms, {name}", f"{found:.0f} ms", f"idle {idle:.0f} ms", found / idle


def bench_sizes(seconds):
    """What many objects cost: a restart, a backup beside a copy, a pack, memory."""
    for count in sized(seconds, (100_000, 1_000_000), (5_000,)):
        with tempfile.TemporaryDirectory() as folder:
            image = batos.Image.open(path := f"{folder}/live_image.fs")
            batos.genesis(image)
            image.close()
            add_objects(path, count)
            _, listening_s, first_s = 0, *started(folder, "none")
            with daemon(folder=pathlib.Path(folder)) as process, \
                    batos.Client(process.endpoint, 3000) as client:
                memory_mb = client.call("health")["result"]["memory_mb"]
                backup_s = timed_s(lambda: client.call("backup", folder=f"{folder}/b"))
                pack_s = timed_s(lambda: client.call("pack", days=0.0))
            copy_s = timed_s(lambda: subprocess.run(["cp", path, f"{folder}/copy"], check=True))
            checks_s = [batos.check_image(path, deep)["seconds"] for deep in (False, True)]
            what, size = f"{count:,} objects", f"{os.path.getsize(path) / 1e6:.0f} MB"
            yield f"{what} ({size}): restart to first reply", f"{first_s:.2f} s", f"listening {listening_s:.2f} s", None
            yield f"{what}: memory after the start", f"{memory_mb:.0f} MB", "", None
            yield f"{what}: backup, read back", f"{backup_s:.2f} s", f"cp {copy_s:.2f} s", backup_s / copy_s
            yield f"{what}: pack", f"{pack_s:.1f} s", f"quick check {checks_s[0]:.1f} s, deep {checks_s[1]:.1f} s", None


class Vocabulary:
    """Words that are as unlike in frequency as those of a language; texts and queries of them."""

    def __init__(self, size=60_000):
        self.chance = numpy.random.default_rng(1)
        letters = self.chance.integers(97, 123, (size, 9), numpy.uint8)
        self.words = [bytes(row[:3 + n % 7]).decode() for n, row in enumerate(letters)]

    def some(self, count):
        """Return words by Zipf's law."""
        return [self.words[rank] for rank in numpy.minimum(self.chance.zipf(1.2, count) - 1, len(self.words) - 1)]

    def text(self, chunks):
        """Return a text that is cut into so many chunks."""
        return "\n\n".join(" ".join(self.some(110)) + "." for _ in range(chunks))


def p95_ms(function, queries):
    """Return the 95th percentile of how long each query takes."""
    return sorted(timed_s(lambda query=query: function(query)) for query in queries)[len(queries) * 95 // 100] * 1e3


def fts5(path):
    """Return a new table of SQLite's FTS5 on the disk, stemmed, and its search: the five best for any of the words."""
    table = sqlite3.connect(path)
    table.execute("pragma synchronous = full")
    table.execute("create virtual table d using fts5(text, tokenize='porter unicode61')")
    return table, lambda query: table.execute("select text from d where d match ? order by rank limit 5",
                                              (" OR ".join(query.split()),)).fetchall()


def tantivy_index(folder):
    """Return (learn(rows), search) of a tantivy index in a folder, stemmed; None where tantivy is not installed."""
    if importlib.util.find_spec("tantivy") is None:
        return None
    import tantivy
    folder.mkdir()
    schema = tantivy.SchemaBuilder().add_text_field("text", stored=True, tokenizer_name="en_stem").build()
    index = tantivy.Index(schema, path=str(folder))
    writer = index.writer(num_threads=1)

    def learn(rows):
        for text in rows:
            writer.add_document(tantivy.Document(text=[text]))
        writer.commit()

    def search(query):
        index.reload()
        searcher = index.searcher()
        found = searcher.search(index.parse_query(query, ["text"]), 5).hits
        return [searcher.doc(address)["text"] for _, address in found]
    return learn, search


def stored_bytes(folder):
    return sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())


def bench_search(seconds):
    """Documents of 1,000 chunks learnt by the bulk lane, then searched, beside SQLite's FTS5 with the same chunks."""
    for chunks in sized(seconds, (1000, 10_000, 100_000), (300,)):
        with tempfile.TemporaryDirectory() as folder:
            yield from search_rows(pathlib.Path(folder), chunks, sized(seconds, 200, 5))


def search_rows(folder, chunks, count):
    vocabulary, memory = Vocabulary(), Machine(folder)
    table, ask_table = fts5(str(folder / "fts5.db"))
    others = {"FTS5": (lambda rows: (table.executemany("insert into d values (?)", [(row,) for row in rows]), table.commit()),
                       ask_table, lambda: os.path.getsize(folder / "fts5.db")),
              **({"tantivy": (*index, lambda: stored_bytes(folder / "tantivy"))}
                 if (index := tantivy_index(folder / "tantivy")) else {})}

    def sizes():
        beside = {name: size() for name, (_, _, size) in others.items()}
        return stored_bytes(folder) - sum(beside.values()), beside
    ours_s, others_s, size = 0, dict.fromkeys(others, 0), 0
    for number in range(max(1, chunks // 1000)):
        text = vocabulary.text(min(chunks, 1000))
        size += len(text)
        ours_s += timed_s(lambda number=number, text=text: memory.ingest(f"d{number}", text))
        for name, (learn, _, _) in others.items():
            others_s[name] += timed_s(lambda learn=learn, text=text: learn(text.split("\n\n")))
    for name, other_s in others_s.items():
        yield (f"{chunks:,} chunks learnt, by words", f"{chunks / ours_s:,.0f}/s", f"{name} {chunks / other_s:,.0f}/s",
               other_s / ours_s)
    peak, _ = sizes()
    batos.merge_job(memory.image, memory.bulk)(lambda line: None)
    memory.image.pack(time.time())
    ours, beside = sizes()
    for name, other in beside.items():
        yield (f"bytes stored a byte of text, {chunks:,} chunks", f"{ours / size:.2f} (before the merge {peak / size:.2f})",
               f"{name} {other / size:.2f}", ours / other)
    asked = {"a rare word": [vocabulary.words[5000 + n] for n in range(count)],
             "a common word": vocabulary.words[:3] * (count // 3 + 1),
             "nine words": [" ".join(vocabulary.some(9)) for _ in range(count)]}
    for what, queries in asked.items():
        ours = p95_ms(lambda query: memory.look(lambda catalog: batos.search_(catalog, query, 5)), queries)
        for name, (_, ask, _) in others.items():
            other = p95_ms(ask, queries)
            yield f"search for {what}, {chunks:,} chunks, p95", f"{ours:.2f} ms", f"{name} {other:.2f} ms", ours / other
    yield from fused_rows(memory, vocabulary, chunks, asked["nine words"])
    memory.close()


def fused_rows(memory, vocabulary, chunks, queries):
    """Search by meaning too, with vectors of chance: what it takes does not depend on what they mean."""
    def vectors_of(count):
        rows = vocabulary.chance.standard_normal((count, 384), numpy.float32)
        return rows / numpy.linalg.norm(rows, axis=1, keepdims=True)
    while numbers := memory.look(lambda catalog: [number for number, _ in batos.waiting_chunks(catalog, 20_000)]):
        arrays = batos.Vectors(numpy.array(numbers), vectors_of(len(numbers)))
        with batos.built_file(arrays, memory.image.storage.temporaryDirectory()) as built:
            memory.bulk.call(batos.Job("embed", lambda root, built=built: batos.publish_vectors(
                root["knowledge_catalog_obj"], built, "by chance")))
    vector = vectors_of(1)[0]
    words, both = (p95_ms(lambda query, how=how: memory.look(lambda catalog: batos.search_(catalog, query, 5, **how)), queries)
                   for how in ({}, {"vector": vector}))
    yield f"search by both, nine words, {chunks:,} chunks, p95", f"{both:.2f} ms", f"by words {words:.2f} ms", both / words


def timed_s(function):
    start_s = time.perf_counter()
    function()
    return time.perf_counter() - start_s


EXPERTS = 24
FEW = 4                            # rows of a small batch, one a persona


def bench_experts(seconds):
    """Moving LoRA experts beside PEFT's own means on a second copy of the same core; mixed batches beside one by one."""
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        names = [*batos.PILLARS, *(f"E{n}" for n in range(EXPERTS - len(batos.PILLARS)))]
        for n, name in enumerate(names):
            test_memory.stage(folder / "staged", name, seed=n, rank=8, targets=("q_proj", "v_proj"))
        core, synapses = stack.enter_context(test_memory.memory_of(folder, folder / "staged"))
        yield from core.on_model_thread(lambda loaded: list(switch_rows(loaded, synapses, folder / "staged", names)))
        yield from batch_rows(core, *sized(seconds, (3, (FEW, 16)), (1, (2, FEW))))
        tiers, base_mb = synapses.health(), core.on_model_thread(lambda loaded: loaded.model.get_memory_footprint()) / 1e6
        warm, cold = tiers["warm"], tiers["cold"]["mb"]
        yield (f"memory of {len(names)} experts, cold in blobs", f"{cold:.2f} MB", f"the core {base_mb:.1f} MB", cold / base_mb)
        yield (f"memory of {warm['experts']} experts, warm in RAM", f"{warm['mb']:.2f} MB", f"the core {base_mb:.1f} MB, of it "
               f"{tiers['hot']['slots']} slots of rank {core.on_model_thread(lambda loaded: loaded.slots.rank)}",
               warm["mb"] / base_mb)


def switch_rows(loaded, synapses, staged, names):
    """Rows of how long it takes until an expert can be used, by tier; PEFT reads its folder each time."""
    peft, other = batos.need("peft", "the bench"), batos.load_core(test_memory.SEED)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=sorted(synapses.slots.targets), inference_mode=True)
    model = peft.PeftModel(other.model, config, adapter_name="first")
    others = names[len(batos.PILLARS):]

    def theirs(name):
        model.load_adapter(str(staged / name), adapter_name=name)
        model.set_adapter(name)

    def ours(name):
        synapses.hold(loaded.slots, name)
        loaded.slots.in_use.clear()
    loading = [timed_ms(theirs, name) for name in others]
    setting = [timed_ms(model.set_adapter, name) for name in others * 3]
    cold = [timed_ms(ours, name) for name in others]
    warm = [timed_ms(ours, name) for name in others * 3]
    hot = [timed_ms(ours, name) for name in list(batos.PILLARS) * 20]
    assert synapses.counts["cold"] >= len(others) and synapses.counts["warm"] >= len(others)
    peer = statistics.median(loading)
    for what, times in (("cold (from its blob, SHA-256 checked)", cold), ("warm (from RAM into a slot)", warm)):
        mine = statistics.median(times)
        yield f"an expert made ready, {what}, against PEFT's load_adapter", f"{mine:.2f} ms", f"{peer:.1f} ms", peer / mine
    mine, peer = statistics.median(hot), statistics.median(setting)
    yield "a hot expert named, against PEFT's set_adapter", f"{mine * 1e3:.1f} µs", f"{peer:.2f} ms", peer / mine


def timed_ms(function, *args):
    started_s = time.perf_counter()
    function(*args)
    return (time.perf_counter() - started_s) * 1e3


def batch_rows(core, rounds, counts):
    """Rows of facets by different experts in one batch, beside the same one by one; each of so many."""
    fields = batos.CORE_SAMPLES["facet"]
    for count in counts:
        personas = list(batos.PILLARS)
        asked = [batos.CoreRequest("facet", fields | {"persona": name, "pillar": batos.PILLARS[name][0]}, name)
                 for name in (personas * 4)[:count]]
        together, alone = in_turns(rounds, lambda asked=asked: timed_s(lambda: core.infer(asked)),
                                   lambda asked=asked: timed_s(lambda: [core.infer([one]) for one in asked]))
        what = f"{count} facets by {min(count, FEW)} experts in one batch, against one by one"
        yield what, f"{together:.2f} s", f"{alone:.2f} s", alone / together


BENCHES = {name[6:]: function for name, function in globals().items() if name.startswith("bench_") and name != "bench_answer_"}


def main():
    """Run the benches that are named, or all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement")
    args = parser.parse_args()
    print(f"Read on {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ZODB on "
          f"{json.dumps(tempfile.gettempdir())}.\n\n| what | BAT OS | beside | ratio |\n|---|---|---|---|")
    for name in args.names or BENCHES:
        for what, ours, other, ratio in BENCHES[name](args.seconds):
            print(f"| {what} | {ours} | {other} | {'' if ratio is None else f'{ratio:.2f}'} |", flush=True)


if __name__ == "__main__":
    main()
