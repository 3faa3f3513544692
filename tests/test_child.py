"""The child: what a method does in its process is for its own trust domain, its own message, its own time and memory."""

import os
import pathlib
import re
import threading
import time

import pytest
from stored import CORPUS_SLOTS, DOMAIN, WAIT_S, cases

import batos

OTHER = ("tester", b"\0two")                             # another connection of the same user
STRANGER = ("stranger", b"\0one")                        # another user
TOTAL = "def total(self):\n    return sum(self.prices)\n"
# The program's own module, reached through a class that stands in it.
INSIDE = """    kinds = ().__class__.__base__.__subclasses__()
    work = [kind for kind in kinds if kind.__name__ == 'Work' and kind.__module__ == '__main__'][0]
    inside = work.__init__.__globals__
"""
# Leaves a lie in all that can be reached: the program, its tables, the libraries' modules and their tables.
POISON = f"""def poison(self):
{INSIDE}
    def lie(*args, **kwargs):
        return 666
    compile = inside['builtins'].compile
    inside['_BUILTINS']['__build_class__'] = inside['builtins'].__build_class__
    class Lie(dict):
        def __contains__(self, key):
            return True
        def __getitem__(self, key):
            return compile('def total(self):\\n    return 666', '<lie>', 'exec')
    inside['_COMPILED'] = Lie()
    inside['_BUILTINS'].update(sum=lie, len=lie, sorted=lie)
    inside['_function_of'] = lambda name, code: lie
    put, modules = inside['builtins'].setattr, inside['sys'].modules
    for holder, name in ((inside['builtins'], 'sum'), (inside['string'], 'capwords'), (work, 'read'), (work, 'slots'),
                         (modules['statistics'], 'mean'), (modules['json'], 'loads'), (modules['json'], 'dumps'),
                         (modules['math'], 'floor'), (modules['decimal'], 'setcontext'), (modules['random'], 'seed')):
        put(holder, name, lie)
    modules['statistics'].LinearRegression._field_defaults['slope'] = 666
    for name in ('A', 'I', 'M'):
        modules['re'].RegexFlag._value2member_map_[getattr(modules['re'], name).value] = modules['re'].X
    return 1
"""
LOOK = """def look(self):
    import json, re, statistics
    return [sum(self.prices), len(self.prices), sorted(self.prices), statistics.mean(self.prices), json.dumps(self.prices),
            re.findall('a.b', 'a\\nb A-B', re.S), self.prices[0]]
"""
SEEN = [6, 3, [1, 2, 3], 2, "[1, 2, 3]", ["a\nb"], 1]


def children():
    """Return {pid: state} of the processes that have zygotes as parent: this process's own, others' tests have theirs."""
    parents, states, zygotes = {}, {}, set()
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
        except OSError:                                  # it has ended meanwhile
            continue
        parents[pid], states[pid] = int(re.search(r"PPid:\s+(\d+)", status)[1]), re.search(r"State:\s+(\w)", status)[1]
        if b"batos-methods" in command:
            zygotes.add(pid)
    return {pid: states[pid] for pid in zygotes if parents[pid] in zygotes and os.getpid() in ancestors(pid, parents)}


def ancestors(pid, parents):
    """Yield the processes above one, as {pid: its parent} tells them."""
    while pid := parents.get(pid):
        yield pid


# One child serves one trust domain


def test_what_is_left_in_a_process_shows_in_its_own_domain_alone(machine):
    one = machine(method_workers=1)
    one.make("bad", {}, poison=POISON)
    one.make("it", {"prices": [1, 2, 3]}, look=LOOK, total=TOTAL)
    one.make("its", {"prices": [1, 2, 3]}, author="another", look=LOOK)
    assert one.end("bad", "poison") == 1
    assert one.end("its", "look") == SEEN                # another author's source
    for domain in (OTHER, STRANGER, None):
        assert one.end("it", "look", domain=domain) == SEEN
    assert one.end("it", "total") == 666                 # the poison works


def test_a_store_in_a_process_is_found_again_in_its_own_domain_alone(machine):
    one = machine(method_workers=1)
    keep = f"def keep(self, value):\n{INSIDE}    return inside.setdefault('kept', value)\n"
    one.make("it", {}, keep=keep)
    one.make("its", {}, author="another", keep=keep)
    assert [one.end("it", "keep", n) for n in (1, 2)] == [1, 1]          # one child, as it shall be
    assert one.end("it", "keep", 3, domain=OTHER) == 3
    assert one.end("it", "keep", 4, domain=STRANGER) == 4
    assert one.end("its", "keep", 5) == 5
    assert [one.end("it", "keep", n, domain=None) for n in (6, 7)] == [6, 7]
    assert one.end("it", "keep", 8) == 1


def test_a_child_that_was_told_another_authors_source_is_ended(machine):
    one = machine(method_workers=1)
    one.make("theirs", {"prices": [1]}, author="another", total=TOTAL)
    one.make("it", {}, author="me", both="def both(self, other):\n    return other.total()\n",
             alone="def alone(self):\n    return 1\n")
    message = lambda root: batos.Message(root["it"], "both", [root["theirs"]], {}, lambda value: value)
    assert one.end("it", "alone") == 1 and len(one.lane.children._resting) == 1
    assert one.lane.call(batos.Job("send", message, domain=DOMAIN), WAIT_S).result == 1
    assert one.lane.children._resting == []
    assert one.end("it", "alone") == 1 and len(one.lane.children._resting) == 1


@pytest.mark.parametrize("author, answers", [("ann", "ann"), ("cycle 0x1f (ann)", "ann"), ("cycle 0x1f (x (y))", "x (y)"),
                                             ("import from cycle 0x1f (ann)", "import from cycle 0x1f (ann)"), (None, "")])
def test_what_the_kernel_wrote_is_his_for_whom_it_did(author, answers):
    assert batos._author_of(batos.Method(selector="f", author=author)) == answers


def test_two_connections_share_no_process_whatever_they_call_themselves(daemon):
    before = set(children())
    running = daemon()
    with batos.Client(running.endpoint, WAIT_S) as a, batos.Client(running.endpoint, WAIT_S) as b:
        a.call("send_message", target="genesis_obj", selector="setSlot_value_", args=["prices", [1, 2]])
        a.call("create_method", target_oid="genesis_obj", method_name="total", method_code=TOTAL)
        seen = []
        for client in (a, b, a, b):
            assert client.call("send_message", target="genesis_obj", selector="total", client="same")["result"] == 3
            seen.append(set(children()) - before)
    assert [len(pids) for pids in seen] == [1, 2, 2, 2] and seen[0] < seen[1] == seen[2] == seen[3]


def test_a_chosen_routing_id_shares_no_process(daemon):
    before = set(children())
    running = daemon()
    with batos.Client(running.endpoint, WAIT_S) as client:
        client.call("send_message", target="genesis_obj", selector="setSlot_value_", args=["prices", [1, 2]])
        client.call("create_method", target_oid="genesis_obj", method_name="total", method_code=TOTAL)
    dealer = batos.zmq.Context.instance().socket(batos.zmq.DEALER)
    dealer.linger, dealer.routing_id, dealer.rcvtimeo = 0, b"ann", int(WAIT_S * 1000)
    dealer.connect(running.endpoint)
    dealer.send(batos.ormsgpack.packb({"command": "send_message", "target": "genesis_obj", "selector": "total"}))
    assert batos.ormsgpack.unpackb(dealer.recv())["result"] == 3
    dealer.close()
    assert gone(set(children()) - before)


def at_rest(before):
    """Return the pids of the children that came since, once all of them are stopped, which is done behind their answers."""
    def awake():
        return {pid for pid, state in children().items() if pid not in before and state != "T"}
    end_s = time.monotonic() + WAIT_S
    while awake() and time.monotonic() < end_s:
        time.sleep(0.01)
    assert not awake()
    return set(children()) - before


def test_children_at_rest_are_stopped_and_few(machine):
    one = machine(method_workers=1)
    before = set(children())
    one.make("it", {"prices": [1, 2]}, total=TOTAL)
    for n in range(batos._RESTING_MOST + 5):
        assert one.end("it", "total", domain=("tester", b"\0%d" % n)) == 3
    assert len(one.lane.children._resting) == len(at_rest(before)) == batos._RESTING_MOST
    one.lane.children.end_resting()
    assert one.lane.children._resting == [] and one.end("it", "total") == 3


def no_room(*args):
    raise OSError("there is no room for one more")


def test_where_no_child_can_be_had_those_at_work_go_on(machine, monkeypatch):
    one = machine(method_workers=2)
    one.make("slow", {}, slow="def slow(self):\n    for _ in range(20_000_000):\n        pass\n    return 1\n")
    one.make("it", {"prices": [1, 2]}, total=TOTAL)
    ended, answers = threading.Event(), []
    one.lane.submit(one.job("slow", "slow", done=lambda outcome: (answers.append(outcome), ended.set())))
    while not one.lane._taken or not children():         # it is at work
        time.sleep(0.001)
    process = one.lane.zygote._process
    with monkeypatch.context() as patched:
        patched.setattr(batos, "_ENDING_S", 0.01)
        patched.setattr(batos.socket, "send_fds", no_room)
        assert "no process for methods can be started" in str(one.end("it", "total", domain=OTHER))
    assert ended.wait(WAIT_S) and answers[0].error is None
    assert one.lane.zygote._process is process and one.end("it", "total", domain=OTHER) == 3


def test_a_child_serves_so_many_messages(machine, monkeypatch):
    monkeypatch.setattr(batos, "_CHILD_MESSAGES", 3)
    one = machine(method_workers=1)
    one.make("it", {}, keep=f"def keep(self, value):\n{INSIDE}    return inside.setdefault('kept', value)\n")
    assert [one.end("it", "keep", n) for n in range(7)] == [0, 0, 0, 3, 3, 3, 6]


def test_a_child_that_keeps_memory_is_ended(machine):
    one = machine(method_workers=1)
    one.make("it", {}, hoard=f"def hoard(self, size):\n{INSIDE}    inside['kept'] = 'x' * size\n    return 1\n")
    assert one.end("it", "hoard", 1000) == 1 and len(one.lane.children._resting) == 1
    assert one.end("it", "hoard", 100_000_000) == 1 and one.lane.children._resting == []


def test_an_idle_child_does_nothing(machine):
    one = machine(method_workers=1)
    before = set(children())
    spin = f"""def spin(self):
{INSIDE}
    def receive_frame(end, most):
        while True:
            pass
    inside['receive_frame'] = receive_frame
    return 1
"""
    one.make("it", {"prices": [1, 2]}, spin=spin, total=TOTAL)
    assert one.end("it", "spin") == 1
    (pid,) = at_rest(before)
    used = [pathlib.Path(f"/proc/{pid}/stat").read_text().split()[13] for _ in range(1000)]
    assert used[0] == used[-1]


# Frames bear the number of their message


@pytest.mark.parametrize("when", ["before the answer", "behind the answer", "at the next message"])
def test_a_second_answer_does_not_answer_the_next_message(machine, when):
    one = machine(method_workers=1)
    forge = f"""def forge(self, when):
{INSIDE}
    work, real, send = inside['_WORK'], inside['receive_frame'], inside['send_frame']
    end, number, lie = work.end, work.number, work.pack({{'done': 666, 'writes': {{}}, 'gone': []}})
    def receive_frame(end, most):
        if when == 'behind the answer':
            send(end, number, lie)
        told = real(end, most)
        if when == 'at the next message':
            send(end, number, lie)
        return told
    if when == 'before the answer':
        send(end, number, lie)
    inside['receive_frame'] = receive_frame
    return 1
"""
    one.make("it", {"prices": [1, 2]}, forge=forge, total=TOTAL)
    one.end("it", "forge", when)                         # it may lie about itself
    assert one.end("it", "total") == 3
    with batos.reading(one.image) as root:
        assert batos.own(root["it"].total).get("failures", 0) == 0           # it is not to blame


# Time and memory are the message's own, to the end


LATER = """def later(self, times):
    def again(left):
        box = []
        def it():
            try:
                yield box
            finally:
                if left:
                    again(left - 1)
                while not left:
                    pass
        made = it()
        next(made)
        box.append(made)
    again(times)
    return 1
"""


@pytest.mark.parametrize("times", [0, 1, 3])
def test_what_runs_after_the_answer_runs_in_the_messages_own_time(machine, times):
    one = machine(method_workers=1, method_deadline_s=1.0)
    one.make("it", {"prices": [1, 2]}, later=LATER, total=TOTAL)
    assert isinstance(one.end("it", "later", times), batos.DeadlineExceeded)
    assert one.end("it", "total") == 3


def test_what_never_ceases_to_leave_something_is_ended(machine):
    one = machine(method_workers=1, method_deadline_s=5.0)
    one.make("it", {"prices": [1, 2]}, later=LATER, total=TOTAL)
    assert one.end("it", "later", 10 ** 6) == 1 and one.end("it", "total") == 3
    assert one.lane.counts == {}


@pytest.mark.slow
@pytest.mark.parametrize("source, kind", [
    ("[{}] * 7_900_000", batos.OutOfMemory), ("[None] * 7_900_000", batos.OutOfMemory), ("[()] * 105_000", batos.OutOfMemory),
    ("[[[] for _ in range(1000)] for _ in range(1000)]", batos.OutOfMemory),
    ("{str(n): n for n in range(220_000)}", batos.OutOfMemory), ("{'k' * 1_000_000: 1}", batos.MethodFailed),
    ("'x' * 8_100_000", batos.OutOfMemory), ("(tuple(range(220_000)),)", batos.OutOfMemory)])
def test_values_are_counted_before_they_are_built(machine, source, kind):
    one = machine()
    one.make("it", {"prices": [1]}, f=f"def f(self):\n    return {source}\n",
             g=f"def g(self):\n    self.kept = {source}\n    self._p_changed = True\n")
    for selector in ("f", "g"):
        assert type(one.end("it", selector)) is kind
    assert one.slots("it") == {"prices": [1]}


def test_a_list_of_many_numbers_is_no_fault(machine):
    one = machine()
    one.make("it", {}, f="def f(self):\n    return [n / 7 for n in range(150_000)]\n")
    assert one.end("it", "f") == [n / 7 for n in range(150_000)]


@pytest.mark.parametrize("value", [{"\0tuple": "a" * 7_000_000}, {"\0tuple": [1, 2]},
                                   {"\0tuple": (1, (2, {"\0tuple": ()}))}, ((),), {"a": [("b", ({}, []))]}, {"$ref": "0x1"}])
def test_a_dict_comes_back_as_it_was_whatever_it_looks_like(machine, value):
    one = machine()
    one.make("it", {"value": value}, echo="def echo(self, value):\n    return value\n",
             keep="def keep(self):\n    self.got = [self.value]\n    self._p_changed = True\n")
    assert one.end("it", "echo", value) == value
    assert one.end("it", "keep") is None and one.slots("it")["got"] == [value]


def test_clones_are_counted_as_they_are_made(machine):
    one = machine()
    one.make("it", {"text": "x" * 10_000}, f="def f(self):\n    for n in range(5000):\n        self.clone()\n    return n\n",
             g="def g(self):\n    for n in range(5000):\n        try:\n            self.clone()\n        except Exception:\n"
               "            pass\n    return n\n", h="def h(self):\n    return len([self.clone() for n in range(500)])\n")
    assert type(one.end("it", "f")) is type(one.end("it", "g")) is batos.OutOfMemory and one.end("it", "h") == 500


def test_a_slots_name_is_short(machine):
    one = machine()
    source = "def f(self, name):\n    setattr(self, name, 1)\n    self._p_changed = True\n"
    one.make("it", {}, f=source, g="def g(self, name):\n    self.setSlot_value_(name, 1)\n")
    for size in (batos.SLOT_NAME_CHARS + 1, 4000, 3_000_000):
        for selector in ("f", "g"):
            assert isinstance(one.end("it", selector, "a" * size), batos.MethodFailed | batos.ReservedName)
    assert one.end("it", "f", "a" * batos.SLOT_NAME_CHARS) is None and list(one.slots("it")) == ["a" * batos.SLOT_NAME_CHARS]


@pytest.mark.parametrize("told", [{}, {"done": 1}, {"done": 1, "writes": 7, "gone": []},
                                  {"done": 1, "writes": {0: 7}, "gone": []}, {"done": 1, "writes": {}, "gone": [1]},
                                  {"done": 1, "writes": {}, "gone": 3}])
def test_whatever_is_told_of_a_trial_is_a_failure_of_the_method(machine, told):
    send = f"inside['send_frame'](inside['_WORK'].end, inside['_WORK'].number, inside['ormsgpack'].packb({told}))"
    source = f"def f(self):\n{INSIDE}    {send}\n"
    with machine().lane.trying("f", source) as run, pytest.raises(batos.MethodFailed):
        run({}, ())


# The filter of system calls


def verdict(rows, machine, number):
    """Return what a BPF program says of a system call, as the kernel reads it."""
    words = {batos._SECCOMP_DATA_NUMBER: number, batos._SECCOMP_DATA_ARCH: machine}
    at, loaded = 0, None
    while True:
        opcode, if_true, if_false, constant = rows[at]
        if opcode == batos._BPF_RETURN:
            return constant
        assert opcode in (batos._BPF_LOAD_WORD, batos._BPF_JUMP_IF_EQUAL)
        if opcode == batos._BPF_LOAD_WORD:
            loaded = words[constant]
        else:
            at += if_true if loaded == constant else if_false
        at += 1


@pytest.mark.parametrize("name", batos.SYSTEM_CALLS)
def test_the_filter_lets_through_what_is_named_and_nothing_else(name):
    machine, allowed = batos.SYSTEM_CALLS[name]
    rows = batos._filter_rows(machine, allowed.values())
    passed = [number for number in range(1000) if verdict(rows, machine, number) == batos._SECCOMP_ALLOW]
    assert passed == sorted(allowed.values()) and len(set(allowed.values())) == len(allowed)
    others = {verdict(rows, machine, number) for number in (*range(1000), 0x40000000, 0x40000001, 2 ** 32 - 1)}
    assert others == {batos._SECCOMP_ALLOW, batos._SECCOMP_ERRNO | batos._EPERM}
    assert verdict(rows, 0x40000003, min(allowed.values())) == batos._SECCOMP_KILL_PROCESS        # calls of 32 bits


def test_the_machines_have_the_same_calls():
    tables = [set(allowed) for _, allowed in batos.SYSTEM_CALLS.values()]
    assert all(table == tables[0] for table in tables)


# In a list of processes


def test_the_command_line_of_a_child_is_short(machine):
    one = machine()
    before = set(children())
    one.make("it", {"prices": [1]}, total=TOTAL)
    assert one.end("it", "total") == 1
    (pid,) = set(children()) - before
    assert len(pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()) < 200


# Attacks on the wall, each by itself and behind the audit

# What `inside()` stands for in the corpus: a way into the program's own module, as one that the audit overlooked.
WAY_IN = """    kinds = ().__class__.__base__.__subclasses__()
    work = [kind for kind in kinds if kind.__name__ == 'Work' and kind.__module__ == '__main__'][0]
    globals_of_child = work.__init__.__globals__
    getattr_of_child, setattr_of_child = globals_of_child['builtins'].getattr, globals_of_child['builtins'].setattr
    names = ('_WORK', 'send_frame', 'receive_frame', 'ormsgpack', 'sys', 'ctypes', 'gc', 'signal', 'resource')
    WORK, send_frame, receive_frame, ormsgpack, sys, ctypes, gc, signal, resource = [globals_of_child[name] for name in names]
"""
ENEMY = ("enemy", b"\0enemy")


def wall():
    """Yield (title, source) of the corpus of attacks on the wall."""
    for title, _, source in cases("wall"):
        yield title, source.replace("    inside()\n", WAY_IN)


def is_audited(source):
    try:
        batos.PersistenceGuardian().audit_code(source, "attack")
        return True
    except batos.CodeRejected:
        return False


def attack_all(one, folder, attacks):
    """Run attacks; after each, whatever others ask is answered as if there had been none."""
    one.make("bystander", CORPUS_SLOTS)
    one.make("it", {"prices": [1, 2, 3]}, look=LOOK)
    one.make("its", {"prices": [1, 2, 3]}, author="another", look=LOOK)
    files, wrong = set(os.listdir(folder)), []
    for n, (title, source) in enumerate(attacks):
        one.make(f"case{n}", CORPUS_SLOTS, author="enemy", attack=source)
        ended = one.end(f"case{n}", "attack", domain=ENEMY)
        seen = [one.end("it", "look", domain=OTHER), one.end("its", "look", domain=ENEMY)]
        if seen != [SEEN, SEEN]:
            wrong.append((title, ended, seen))
    assert wrong == [] and one.slots("bystander") == CORPUS_SLOTS and one.slots("it") == {"prices": [1, 2, 3]}
    assert set(os.listdir(folder)) - files <= {"image.fs.seals"}
    with batos.reading(one.image) as root:
        assert batos.own(root["it"].look).get("failures", 0) == batos.own(root["its"].look).get("failures", 0) == 0


def test_the_corpus_of_attacks_on_the_wall_is_large_enough():
    assert len(list(wall())) >= 40


@pytest.mark.parametrize("first", [0, 1])
def test_a_sample_of_attacks_reaches_nobody(machine, tmp_path, first):
    attack_all(machine(method_deadline_s=1.0), tmp_path, list(wall())[first::12])


@pytest.mark.slow
def test_attacks_reach_nobody_without_the_audit(machine, tmp_path):
    before = set(children())
    one = machine(method_deadline_s=1.0)
    attack_all(one, tmp_path, wall())
    one.lane.children.end_resting()
    assert gone(set(children()) - before)


@pytest.mark.slow
def test_attacks_reach_nobody_behind_the_audit(machine, tmp_path):
    accepted = [(title, source) for title, source in wall() if is_audited(source)]
    assert len(accepted) >= 5                            # those that ask for too much, and show nothing
    attack_all(machine(method_deadline_s=1.0), tmp_path, accepted)


def gone(pids):
    """Return whether processes end soon."""
    end_s = time.monotonic() + WAIT_S
    while pids & set(children()) and time.monotonic() < end_s:
        time.sleep(0.01)
    return not pids & set(children())
