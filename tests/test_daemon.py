"""The daemon, from outside: commands, keys, garbage, kill -9."""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time

import conftest
import ormsgpack
import pytest
import zmq

import batos

MANUAL = "# Pump\n\n## Calibrating\n\nTurn the brass valve until the needle stands at zero. Then lock the screw.\n"


def test_a_first_exchange(daemon):
    with batos.Client(daemon().endpoint) as client:
        assert client.call("health")["result"]["state"] == "serving"
        stored = client.call("index_document", doc_id="pump.md", text=MANUAL, idempotency_key=batos.uuid7())
        assert stored["change"] and stored["result"]["chunks"] == 1
        found = client.call("search_memory", query="how is the brass valve turned?")["results"][0]
        assert found["chunk"]["doc_id"] == "pump.md" and "valve" in found["why"]["words"]
        client.call("unindex_document", doc_id="pump.md")
        assert client.call("search_memory", query="brass valve")["results"] == []
        reply = client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["n", {"$$a": 1}])
        assert reply["change"]
        shown = client.call("inspect", target="genesis_obj")["result"]
        assert shown["slots"]["n"]["value"] == {"$$a": 1}
        assert client.call("send_message", target="genesis_obj", selector="name")["result"] == "Genesis Object"


def test_errors_name_the_nearest(daemon):
    with batos.Client(daemon().endpoint) as client:
        for fields, code, near in (
                ({"command": "helth"}, batos.UnknownCommand, "health"),
                ({"command": "inspect", "target": "genesis_ob"}, batos.NotFound, "genesis_obj"),
                ({"command": "inspect", "targt": "x"}, batos.BadRequest, "target"),
                ({"command": "send_message", "target": "genesis_obj", "selector": "clon"},
                 batos.MessageNotUnderstood, "clone")):
            with pytest.raises(code, match=near):
                client.request(fields)


def test_a_key_takes_effect_once_also_after_kill_minus_9(daemon):
    key, fields = batos.uuid7(), {"target": "genesis_obj", "selector": "clone"}
    first = daemon()
    with batos.Client(first.endpoint) as client:
        one = client.call("send_message", idempotency_key=key, **fields)
        two = client.call("send_message", idempotency_key=key, **fields)
        assert two["repeated"] and two["result"] == one["result"] and two["change"] == one["change"]
    first.stop(kill=True)
    with batos.Client(daemon().endpoint) as client:
        again = client.call("send_message", idempotency_key=key, **fields)
        assert again["repeated"] and again["result"] == one["result"]
        with pytest.raises(batos.KeyReused):
            client.call("send_message", idempotency_key=key, target="genesis_obj", selector="_clone_persistent_")


def test_garbage_is_answered_and_the_next_client_is_served(daemon):
    endpoint = daemon().endpoint
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(endpoint)
    for frames in ([b"\xc1"], [b""], [b"\x93\x01"], [b"a", b"b", b"c"], [b"\x81\xa1a" * 5000 + b"\xc0"]):
        socket.send_multipart(frames)
        assert socket.poll(10_000), frames
        assert ormsgpack.unpackb(socket.recv())["code"] in ("Malformed", "UnknownCommand")
    req = context.socket(zmq.REQ)
    req.linger = 0
    req.connect(endpoint)
    req.send(ormsgpack.packb({"command": "health", "id": 7}))
    assert req.poll(10_000) and ormsgpack.unpackb(req.recv())["id"] == 7
    socket.close()
    req.close()
    context.term()


@pytest.mark.slow
def test_kill_minus_9_under_load_loses_nothing_acknowledged(daemon):
    last = {}
    for _ in range(3):
        running = daemon()

        def write(n, endpoint=running.endpoint):
            with batos.Client(endpoint, 2.0) as client:
                for value in range(last.get(n, 0) + 1, 1_000_000):
                    try:
                        client.call("send_message", target="genesis_obj", selector="setSlot_value_",
                                    args=[f"slot{n}", value], timeout_s=2.0)
                    except batos.NoReply:
                        return
                    last[n] = value

        threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        threads[0].join(0.7)
        running.stop(kill=True)
        for thread in threads:
            thread.join()
        check = daemon()
        with batos.Client(check.endpoint) as client:
            slots = client.call("inspect", target="genesis_obj")["result"]["slots"]
        assert check.stop() == 0
        for n, value in last.items():
            assert slots[f"slot{n}"]["value"] in (value, value + 1)


@pytest.mark.slow
def test_the_first_start_tells_its_phases_and_a_restart_keeps_the_index(daemon, tmp_path):
    first = daemon(core="auto")
    told = "".join(first.lines)
    assert re.search(r"Prototypal Awakening: the first objects and the core are in the image \(\d+\.\d s\)", told)
    assert "incarnated: ALFRED version 1, BABS version 1, BRICK version 1, ROBIN version 1\n" in told
    assert re.search(r"BAT OS listens on tcp://127\.0\.0\.1:\d+ \(Ctrl-C stops it\)\n", told)
    with batos.Client(first.endpoint) as client:
        client.call("index_document", doc_id="pump.md", text=MANUAL)
        while client.call("health")["result"]["core"]["state"] == "loading":
            time.sleep(0.05)
    assert first.stop() == 0
    told = "".join(first.lines)
    phases = re.findall(r"^the core is (?:loading: (.*)|(ready): .*)$", told, re.MULTILINE)
    assert [one or other for one, other in phases] == ["import torch", "import transformers", "import bitsandbytes", "find files",
                                                      "weights and self-test", "experts", "ready"]
    lines = set(told.splitlines())                       # nothing but what the daemon itself says: the libraries are quiet
    known = re.compile(r"Prototypal|incarnated|image: |BAT OS listens|the core is|stopped; everything")
    assert [line for line in lines if not known.match(line)] == []
    saved = batos.ZODB.fsIndex.fsIndex.load(str(tmp_path / "live_image.fs.index"))
    assert saved["pos"] == (tmp_path / "live_image.fs").stat().st_size and len(saved["index"]) > 30
    again = daemon(core="none")
    assert "Awakening" not in "".join(again.lines) and "Ignoring index" not in "".join(again.lines)


@pytest.mark.slow
def test_a_daemon_whose_output_nobody_reads_any_more_goes_on(tmp_path):
    """As `python batos.py | head -1` leaves it, when the core has yet to load."""
    command = [sys.executable, str(conftest.ROOT / "batos.py"), "--endpoint", "tcp://127.0.0.1:0"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        if "listens on" in line:
            break
    process.stdout.close()
    with batos.Client(line.split()[4]) as client:
        while client.call("health")["result"]["core"]["state"] == "loading":
            time.sleep(0.05)
        assert client.call("health")["result"]["core"]["state"] == "ready"
        client.call("shutdown")
    assert process.wait(60) == 0


def test_the_log_tells_what_was_done_but_no_content_and_is_rotated(daemon, tmp_path):
    running = daemon("--debug", "--log-file-mb", "0.02")
    with batos.Client(running.endpoint) as client:
        for number in range(400):
            client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["n", f"a secret {number}"])
    assert running.stop() == 0
    logs = sorted(path.name for path in tmp_path.glob("live_image.fs.log*"))
    text = "".join(path.read_text() for path in tmp_path.glob("live_image.fs.log*"))
    assert "live_image.fs.log.1" in logs and len(logs) <= 4 and "send_message" in text and "secret" not in text
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.glob("live_image.fs*"))


def test_documents_are_read_by_path_under_learn_roots_alone(daemon, tmp_path):
    inside, outside = tmp_path / "shelf", tmp_path / "elsewhere"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "pump.md").write_text(MANUAL)
    (inside / "link.md").symlink_to(outside / "pump.md")
    with batos.Client(daemon("--learn-roots", str(inside)).endpoint) as client:
        assert client.call("index_document", doc_id="pump.md", path=str(inside / "pump.md"))["result"]["chunks"] == 1
        for path in (outside / "pump.md", inside / "link.md", inside / ".." / "elsewhere" / "pump.md", inside, inside / "none",
                     tmp_path / "live_image.fs"):
            with pytest.raises(batos.BadRequest, match="learn_roots"):
                client.call("index_document", doc_id="x", path=str(path))
        for fields in ({}, {"text": "x", "path": str(inside / "pump.md")}):
            with pytest.raises(batos.BadRequest, match="either"):
                client.call("index_document", doc_id="x", **fields)


@pytest.mark.parametrize("endpoint, local", [
    ("tcp://0.0.0.0:5555", False), ("tcp://*:5555", False), ("tcp://10.0.0.1:1", False), ("tcp://127.0.0.1:0", True),
    ("tcp://localhost:1", True), ("tcp://[::1]:1", True), ("tcp://[::]:1", False), ("ipc:///tmp/x/bat", True),
    ("tcp://127.0.0.1.evil.org:1", False)])
def test_which_endpoints_are_of_this_machine_alone(endpoint, local):
    assert batos.is_local(endpoint) is local


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://127.0.0.1", "ipc://relative", "inproc://x", "tcp://1:2:3"])
def test_endpoints_that_are_none(endpoint):
    with pytest.raises(batos.ConfigError, match="allowed are"):
        batos.is_local(endpoint)


# Missions, with a core that answers at once

QUESTION = {"type": "direct_synthesis", "selector": "answer_", "args": ["How is the brass valve turned?"]}


def test_a_mission_replies_at_once_or_when_it_has_ended(daemon):
    with batos.Client(daemon(core=0).endpoint) as client:
        client.call("index_document", doc_id="pump.md", text=MANUAL)
        key = batos.uuid7()
        first = client.call("initiate_cognitive_cycle", mission_brief=QUESTION, idempotency_key=key)
        assert first["change"] and first["result"]["state"] == "IDLE"
        ended = client.call("initiate_cognitive_cycle", mission_brief=QUESTION, idempotency_key=key, wait=True)
        assert ended["repeated"] and ended["change"] == first["change"]
        assert ended["result"]["cycle"] == first["result"]["cycle"] and ended["result"]["state"] == "COMPLETE"
        assert ended["result"]["evidence"][0]["lines"] == [5, 5]
        assert [row["cycle"] for row in client.call("list_cycles", state="COMPLETE")["results"]] == [first["result"]["cycle"]]
        assert client.call("list_cycles", state="FAILED")["results"] == []
        with pytest.raises(batos.TooLate):
            client.call("cancel", cycle=first["result"]["cycle"])
        for cycle, error in (("0x1", batos.NotFound), ("me", batos.NotFound), ("0xffffffff", batos.NotFound)):
            with pytest.raises(error):
                client.call("cancel", cycle=cycle)
        with pytest.raises(batos.BadRequest, match="type"):
            client.call("initiate_cognitive_cycle", mission_brief={**QUESTION, "type": "poem"})
        with pytest.raises(batos.NotFound, match="genesis_obj"):
            client.call("initiate_cognitive_cycle", mission_brief=QUESTION, target_oid="genesis_ob")


def test_a_failed_mission_is_an_ok_reply_with_its_reason(daemon):
    with batos.Client(daemon(core=60).endpoint) as client, batos.Client(client.endpoint) as other:
        client.call("index_document", doc_id="pump.md", text=MANUAL)
        key, replies = batos.uuid7(), []
        fields = {"mission_brief": QUESTION, "idempotency_key": key}
        cycle = client.call("initiate_cognitive_cycle", **fields)["result"]["cycle"]
        waiting = threading.Thread(target=lambda: replies.append(
            other.call("initiate_cognitive_cycle", wait=True, **fields)))
        waiting.start()
        assert "cancelled" in client.call("cancel", cycle=cycle)["details"]
        waiting.join(60)
        assert replies[0]["status"] == "OK" and replies[0]["result"]["state"] == "FAILED"
        assert replies[0]["result"]["reason"]["code"] == "Cancelled"


def test_a_slow_cycle_delays_nobody(daemon):
    with batos.Client(daemon(core=60).endpoint) as client:
        client.call("index_document", doc_id="pump.md", text=MANUAL)
        for _ in range(4):                                # two at work, two behind them
            client.call("initiate_cognitive_cycle", mission_brief=QUESTION)
        for number in range(200):
            client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["n", number])
        client.call("index_document", doc_id="more.md", text=MANUAL + "\nMore.")
        missions = client.call("health")["result"]["missions"]
        assert missions["running"] == 2 and missions["waiting"] == 2


def test_missions_finish_after_kill_minus_9_and_after_a_stop(daemon):
    running = daemon(core=60)
    with batos.Client(running.endpoint) as client:
        client.call("index_document", doc_id="pump.md", text=MANUAL)
        cycles = [client.call("initiate_cognitive_cycle", mission_brief=QUESTION)["result"]["cycle"] for _ in range(3)]
    running.stop(kill=True)
    running = daemon(core=60)
    with batos.Client(running.endpoint) as client:
        assert sum(client.call("health")["result"]["missions"][phase] for phase in ("waiting", "running")) == 3
    assert running.stop() == 0
    with batos.Client(daemon(core=0).endpoint) as client:
        deadline_s = time.monotonic() + 300
        while time.monotonic() < deadline_s:
            states = {row["cycle"]: row["state"] for row in client.call("list_cycles")["results"]}
            if states == dict.fromkeys(cycles, "COMPLETE"):
                return
            time.sleep(0.05)
        raise AssertionError(states)


def test_who_waits_is_told_when_the_daemon_stops(daemon):
    running, replies = daemon(core=60), []
    with batos.Client(running.endpoint) as client:
        client.call("index_document", doc_id="pump.md", text=MANUAL)
        waiting = threading.Thread(target=lambda: replies.append(
            client.call("initiate_cognitive_cycle", mission_brief=QUESTION, wait=True)))
        waiting.start()
        with batos.Client(running.endpoint) as other:
            while not other.call("health")["result"]["missions"]["running"]:
                time.sleep(0.01)
            other.call("shutdown")
        waiting.join(60)
    assert replies[0]["status"] == "OK" and "goes on" in replies[0]["result"]["state"]


def test_without_a_core_missions_are_refused_and_memory_works(daemon):
    with batos.Client(daemon().endpoint) as client:
        with pytest.raises(batos.CoreOffline, match="--core"):
            client.call("initiate_cognitive_cycle", mission_brief=QUESTION)
        client.call("index_document", doc_id="pump.md", text=MANUAL)
        assert client.call("search_memory", query="valve")["results"]


def test_an_image_of_an_earlier_version_gets_what_it_lacks(daemon, tmp_path):
    image = batos.Image.open(str(tmp_path / "live_image.fs"))
    batos.genesis(image)
    unit = batos.Unit(image.db)
    unit.manager.begin()
    for name in ("orchestrator_obj", "missions", "codex_obj"):
        del unit.root[name]
    unit.manager.commit()
    unit.close()
    image.close()
    with batos.Client(daemon(core=0).endpoint) as client:
        assert client.call("initiate_cognitive_cycle", mission_brief=QUESTION, wait=True)["result"]["state"] == "COMPLETE"


# What nobody foresaw

PATCHED = """
import sys
sys.path.insert(0, {root!r})
import batos

class Panic(BaseException):
    pass

{patch}
batos._leave(batos.main(["--core", "none", "--endpoint", "tcp://127.0.0.1:0"]))
"""
PANICS = """
parse = batos.parse_command

def panicking(request):
    if request.get("client") == "panic":
        raise Panic("index out of bounds")
    return parse(request)

def panics(request, root):
    raise Panic("in a lane")

batos.parse_command = panicking
batos.COMMANDS["list_cycles"] = batos.COMMANDS["list_cycles"]._replace(function=panics)
"""
BREAKS = """
def breaks(uvm):
    raise RuntimeError("nobody foresaw this")

batos.Vitals._look_at_place = breaks
"""


@contextlib.contextmanager
def patched(folder, patch):
    """A daemon with some of its functions replaced; yields its process and endpoint."""
    program = PATCHED.format(root=str(conftest.ROOT), patch=patch)
    with subprocess.Popen([sys.executable, "-c", program], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        endpoint = next(line.split()[4] for line in process.stdout if "listens on" in line)
        try:
            yield process, endpoint
        finally:
            process.kill()


def test_what_a_library_raises_in_a_panic_is_an_error_of_that_request_alone(tmp_path):
    with patched(tmp_path, PANICS) as (process, endpoint), batos.Client(endpoint, timeout_s=30) as client:
        for name, fields in (("health", {"client": "panic"}), ("list_cycles", {}), ("list_cycles", {})):
            with pytest.raises(batos.BatosError, match="unexpected Panic"):
                client.call(name, **fields)
        assert client.call("inspect", target="genesis_obj")["status"] == "OK"
        process.terminate()
        assert process.wait(60) == 0


def test_an_end_that_nobody_asked_for_has_a_status_of_its_own(tmp_path):
    with patched(tmp_path, BREAKS) as (process, _):
        assert process.wait(60) == batos._EXIT_UNASKED == 70
        assert "nobody foresaw this" in process.stdout.read()
    assert batos.check_image(str(tmp_path / "live_image.fs"), deep=True)["faults"] == []


MANY_THREADS = """
import ctypes, os, re, tempfile, threading
import batos
batos._tune_libraries()
assert os.environ.items() >= batos._OF_LIBRARIES.items()
library = ctypes.CDLL(None)
library.malloc.restype = library.fopen.restype = ctypes.c_void_p
meet = threading.Barrier(12)
def allocate():
    meet.wait()
    library.malloc(1000)
threads = [threading.Thread(target=allocate) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with tempfile.NamedTemporaryFile() as told:
    stream = ctypes.c_void_p(library.fopen(told.name.encode(), b"w"))
    library.malloc_info(0, stream)
    library.fclose(stream)
    print(len(re.findall("<heap nr", open(told.name).read())))
"""


@pytest.mark.slow
def test_the_allocator_keeps_few_arenas_unless_the_environment_says_how_many():
    def heaps(**more):
        done = subprocess.run([sys.executable, "-c", MANY_THREADS], cwd=conftest.ROOT, env={**os.environ, **more},
                              capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)
    assert heaps() <= batos._ALLOCATOR["MALLOC_ARENA_MAX"][1] < heaps(MALLOC_ARENA_MAX="6") <= 6


WAITS = 'import batos; batos._tune_libraries(); batos.need("torch", "a test").ones(9)'


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["passive", "active"])
def test_threads_of_pytorch_sleep_while_they_wait_unless_the_environment_says_else(policy):
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    asked = {} if policy == "passive" else {"OMP_WAIT_POLICY": policy}
    done = subprocess.run([sys.executable, "-c", WAITS], cwd=conftest.ROOT, env={**env, **asked, "OMP_DISPLAY_ENV": "true"},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and f"OMP_WAIT_POLICY = '{policy.upper()}'" in done.stderr, done.stderr


MAPPED = """
import ctypes
import batos
batos._tune_libraries()
class Told(ctypes.Structure):
    _fields_ = [(str(n), ctypes.c_size_t) for n in range(10)]
library = ctypes.CDLL(None)
library.mallinfo2.restype, library.malloc.restype, library.free.argtypes = Told, ctypes.c_void_p, [ctypes.c_void_p]
library.malloc.argtypes = [ctypes.c_size_t]
for piece in [library.malloc(24 << 20) for _ in range(20)]:
    library.free(piece)                                  # upon which glibc would keep all that is not larger
before = getattr(library.mallinfo2(), "3")
for _ in range(20):                                      # the first may find room where something was freed
    library.malloc(16 << 20)
print(getattr(library.mallinfo2(), "3") - before)        # the pieces that go back when they are freed
"""


@pytest.mark.slow
def test_a_large_piece_goes_back_when_it_is_freed_unless_the_environment_says_otherwise():
    def mapped(**more):
        done = subprocess.run([sys.executable, "-c", MAPPED], cwd=conftest.ROOT, env={**os.environ, **more},
                              capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)
    assert mapped() >= 10 and mapped(MALLOC_MMAP_THRESHOLD_="33554432") == 0


COMPILED = """
import pathlib
import batos
source = pathlib.Path(batos.__file__).read_text()
code = compile(source, "batos.py", "exec")
del source, code
before = batos.resident_mb()
batos._give_back_memory()
print(before - batos.resident_mb())
"""


@pytest.mark.slow
def test_memory_that_was_freed_is_given_back():
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=conftest.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and float(done.stdout) > 10, done


def test_a_daemon_is_at_home_and_who_has_the_same_home_finds_it(daemon, tmp_path, monkeypatch, capsys):
    home = tmp_path / "some" / "home"
    monkeypatch.setenv("BATOS_HOME", str(home))
    monkeypatch.delenv("BATOS_ENDPOINT", raising=False)
    running = daemon()
    assert f"image: {home}/live_image.fs\n" in running.lines and home.stat().st_mode & 0o777 == 0o700
    assert batos.main(["status"]) == 0 and running.endpoint == batos.Client().endpoint
    monkeypatch.delenv("BATOS_HOME")
    assert batos.Client().endpoint == batos.SETTINGS["endpoint"].default             # another home has another daemon
    monkeypatch.chdir(home)
    assert batos.Client().endpoint == running.endpoint
    left = home / "live_image.fs.endpoint"
    told = left.read_text()
    assert running.stop() == 0 and not left.exists()
    left.write_text(told)                                                            # as one leaves it that was killed
    assert batos.Client().endpoint == batos.SETTINGS["endpoint"].default
    assert {path.name.partition(".")[0] for path in home.iterdir()} == {"live_image"}
    assert not list(tmp_path.glob("*.fs*")) and "serving" in capsys.readouterr().out


@pytest.mark.parametrize("words, told", [
    (["--core-urls", "http://127.0.0.1:9 nonsense"], "core_urls: 'nonsense' is no address of a server; one is http"),
    (["--core", "ftp://x"], "core: 'ftp://x' is no address"), (["--core", "http://"], "core: 'http://' is no address"),
    (["--core", "no/such/folder/at/all"], "is no folder and no file; allowed are"),
    (["--core", "http://127.0.0.1:9/v1", "--core-price", "cheap"], "a price is READ/WRITTEN for a million tokens"),
    (["--core", "http://127.0.0.1:9/v1", "--core-parallel", "0"], "allowed is 1 or more"),
])
def test_a_core_that_cannot_be_leaves_no_image_behind(tmp_path, capsys, words, told):
    path = tmp_path / "image.fs"
    assert batos.main(["--image", str(path), "--endpoint", f"ipc://{tmp_path}/s", *words]) == 1
    assert told in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "https://a.example/v1", "http://[::1]:80/v1", "http://me:word@host:1/"])
def test_an_address_of_a_server_is_taken(url):
    settings = batos.load_settings({"core": "auto", "core_urls": url})
    assert batos._core_urls(settings) == [url]
