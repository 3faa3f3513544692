"""The Guardian: the audit, the covenant, the child, the method lane; with corpora that were fixed before the code."""

import ast
import contextlib
import os
import pathlib
import re
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import CORPUS_SLOTS, WAIT_S, Machine, audit, cases

import batos

# The audit


@pytest.mark.parametrize("source, rule", [
    ("", "one function"), ("x = 1", "one function"), ("def f(self): pass\ndef g(self): pass", "one function"),
    ("def g(self): pass", "name"), ("def f(): pass", "self"), ("def f(this): pass", "self"),
    ("@print\ndef f(self): pass", "decorator"), ("def f(self): yield 1", "yield"), ("async def f(self): pass", "async"),
    ("def f(self):\n    class A: pass", "class"), ("def f(self):\n    global x", "global"),
    ("def f(self): return eval", "builtin"),
    ("def f(self): return self.__class__", "inner name"), ("def f(self): return self._slots", "inner name"),
    ("def f(self):\n    try: pass\n    except: pass", "bare except"), ("def f(self): import os", "import"),
    ("def f(self): from math import *", "import"), ("def f(self): from . import math", "import"),
    ("def f(self): return type('A', (), {})", "type"), ("def f(self", "syntax"), ("def f(self):\n  nonlocal x", "syntax"),
    ("def f(self): return 1 +", "syntax"), ("def f(self): break", "syntax"), ("def f(self):\x00 pass", "syntax"),
    (f"def f(self): return {'(' * 60}1{')' * 60}", "size"), ("def f(self): return " + "-" * 5000 + "1", "size"),
    ("def f(self): return " + "not " * 4000 + "1", "size"), ("def f(self): return 1" + " " * 20_000, "size"),
    ("def f(self):\n    self._p_changed = 1", "inner name"), ("def f(self):\n    self._p_changed = False", "inner name"),
    ("def f(self, other):\n    other._p_changed = True", "inner name"), ("def f(self): self.x = 1", "covenant"),
])
def test_what_the_audit_refuses_is_told_with_rule_place_and_mend(source, rule):
    error = audit(source, "f")
    assert error is not None and error.fields["rule"] == rule and error.fields["mend"]
    assert error.fields["line"] >= 1 and error.fields["column"] >= 1


def test_the_audit_tells_the_place():
    error = audit("def f(self):\n    x = 1\n    return x.__class__\n", "f")
    assert (error.fields["line"], error.fields["column"]) == (3, 12) and "__class__" in str(error)


@pytest.mark.parametrize("title, head, source", [pytest.param(*case, id=case[0]) for case in cases("ordinary")])
def test_ordinary_methods_are_accepted(title, head, source):
    assert audit(source, re.search(r"def (\w+)", source)[1]) is None


def test_attacks_that_show_are_refused():
    wanted = [(title, source) for title, head, source in cases("attacks") if head["expect"] == "refused"]
    missed = [title for title, source in wanted if audit(source, "attack") is None]
    assert missed == []


def test_the_corpora_are_large_enough():
    counts = {name: len(list(cases(name))) for name in ("attacks", "ordinary", "covenant")}
    assert counts["attacks"] >= 150 and counts["ordinary"] >= 80 and counts["covenant"] >= 60


@pytest.mark.parametrize("title, head, source", [pytest.param(*case, id=case[0]) for case in cases("covenant")])
def test_the_covenant_is_seen(title, head, source):
    error = audit(source, "change")
    if head["expect"] == "refused":
        assert error is not None
    elif head["expect"] == "accepted":
        assert error is None
    else:                                                # it may see more than it must; the child sees the rest
        assert error is None or isinstance(error, batos.CovenantViolationError)


@given(st.text(max_size=200) | st.text("()[]{}:\n \t\"'\\#=+-*.self,def return", max_size=400))
def test_any_text_is_answered(text):
    assert isinstance(audit(text, "f"), batos.CodeRejected)


@pytest.mark.parametrize("text", ["(" * 19_000, "[" * 9_000 + "]" * 9_000, "def f(self): return " + "lambda: " * 2_000 + "1",
                                  "def f(self): return " + "a." * 9_000 + "b", "def f(self): return " + "1+" * 9_000 + "1",
                                  "def f(self): return f'" + "{" * 5_000 + "}" * 5_000 + "'", "\n" * 19_999,
                                  "def f(self):\n" + "".join(" " * n + "if 1:\n" for n in range(1, 150)), "\\\n" * 9_000,
                                  "def f(self): return " + "x if y else " * 1_500 + "z", "'''" + "a" * 15_000])
def test_hostile_texts_do_not_hold_the_audit(text):
    assert audit(text, "f") is None or isinstance(audit(text, "f"), batos.CodeRejected)


# The child


def test_ordinary_methods_do_what_they_shall(machine):
    one, wrong = machine(), []
    for n, (title, head, source) in enumerate(cases("ordinary")):
        name, selector, slots = f"case{n}", re.search(r"def (\w+)", source)[1], ast.literal_eval(head["slots"])
        one.make(name, slots, **{selector: source})
        result = one.end(name, selector, *eval(head["args"]))
        after = {slot: value for slot, value in {**slots, **eval(head["after"])}.items() if value != "DELETED"}
        if repr(result) != repr(eval(head["result"])) or one.slots(name) != after:
            wrong.append((title, result))
    assert wrong == []


def test_what_the_audit_cannot_know_the_child_sees(machine):
    one, wrong = machine(), []
    for n, (title, head, source) in enumerate(cases("covenant")):
        if head["expect"] == "refused" or audit(source, "change") is not None:
            continue
        slots = ast.literal_eval(head["slots"])
        one.make(f"case{n}", slots, change=source)
        ended = one.end(f"case{n}", "change", *ast.literal_eval(head["args"]))
        broken = isinstance(ended, batos.CovenantViolationError)
        if broken != (head["expect"] == "rolled back") or (broken and one.slots(f"case{n}") != slots):
            wrong.append((title, ended))
    assert wrong == []


ENDS = {"deadline": ("DeadlineExceeded", "MethodFailed", "OutOfMemory"),
        "memory": ("OutOfMemory", "MethodFailed", "DeadlineExceeded"), "harmless": None,
        "error": ("MethodFailed", "OutOfMemory", "DeadlineExceeded", "CovenantViolationError", "BadSlot", "ReservedName")}


def hold(machine, tmp_path, attacks, deadline_s=1.0):
    """Run attacks, and look for what they left."""
    one, wrong = machine(method_deadline_s=deadline_s, method_output_mb=1.0), []
    one.make("bystander", CORPUS_SLOTS)
    files, threads = sorted(os.listdir(tmp_path)), threading.active_count()
    for n, (title, head, source) in enumerate(attacks):
        one.make(f"case{n}", CORPUS_SLOTS, attack=source)
        started_s = time.monotonic()
        ended = one.end(f"case{n}", "attack")
        wanted = ENDS[head.get("run", "harmless")]
        if (wanted and type(ended).__name__ not in wanted) or time.monotonic() - started_s > WAIT_S / 2:
            wrong.append((title, ended))
    assert wrong == [] and one.slots("bystander") == CORPUS_SLOTS
    assert threading.active_count() == threads and set(os.listdir(tmp_path)) - set(files) <= {"image.fs.seals"}


@pytest.mark.slow
def test_a_sample_of_attacks_is_held(machine, tmp_path):
    hold(machine, tmp_path, [case for case in cases("attacks") if audit(case[2], "attack") is None][::23])


def endless(case):
    """Whether an attack goes on until its deadline: however short that is, it is the same attack."""
    return case[1].get("run") == "deadline"


@pytest.mark.slow
@pytest.mark.parametrize("which, deadline_s", [(endless, 0.2), (lambda case: not endless(case), 1.0)], ids=["endless", "others"])
def test_attacks_that_do_not_show_are_held(machine, tmp_path, which, deadline_s):
    attacks = [case for case in cases("attacks") if audit(case[2], "attack") is None]
    hold(machine, tmp_path, list(filter(which, attacks)), deadline_s)


@pytest.mark.slow
def test_without_the_audit_the_child_alone_holds(machine, tmp_path):
    refused = [case for name in ("attacks", "names") for case in cases(name) if case[1]["expect"] == "refused"]
    hold(machine, tmp_path, [(title, {"run": "harmless"}, source) for title, head, source in refused if "def attack" in source])


ESCAPE = """def attack(self, call, *args):
    kinds = ().__class__.__base__.__subclasses__()
    importer = [kind for kind in kinds if kind.__name__ == 'BuiltinImporter'][0]
    posix = importer.load_module('posix')
    return repr(getattr_of(posix, call)(*args))
""".replace("getattr_of(posix, call)", "posix.__dict__[call]")


@pytest.mark.parametrize("call, args", [
    ("open", ["/etc/passwd", 0]), ("open", ["made", 0o101]), ("fork", []), ("execv", ["/bin/true", ["true"]]), ("kill", [1, 9]),
    ("mkdir", ["made"]), ("unlink", ["image.fs"]), ("listdir", ["/"]), ("setuid", [0]), ("pipe", []), ("chdir", ["/"]),
    ("system", ["true"])])
def test_a_method_that_is_out_of_the_language_is_still_in_its_process(machine, tmp_path, call, args):
    one = machine()
    one.make("it", {}, attack=ESCAPE)
    ended = one.end("it", "attack", call, *args)
    refused = isinstance(ended, batos.MethodFailed) and "PermissionError" in str(ended)
    assert refused or (call == "system" and ended in ("-1", "32512"))       # the shell that could not be started
    assert "made" not in os.listdir(tmp_path)


def test_a_socket_cannot_be_had(machine):
    one = machine()
    one.make("it", {}, attack="""def attack(self):
    kinds = ().__class__.__base__.__subclasses__()
    sock = [kind for kind in kinds if kind.__module__ == '_socket' and kind.__name__ == 'socket'][0]
    return repr(sock(2, 1))
""")
    assert "PermissionError" in str(one.end("it", "attack"))


LOOP = "def loop(self):\n    while True:\n        pass\n"
TOTAL = "def total(self):\n    return sum(self.prices)\n"
ADD = "def add_(self, price):\n    self.prices.append(price)\n    self._p_changed = True\n    return len(self.prices)\n"


@pytest.mark.slow
def test_a_loop_without_end_costs_others_one_child_only(machine):
    one = machine(method_deadline_s=3.0, method_workers=2)
    one.make("it", {"prices": [1, 2]}, loop=LOOP)
    one.make("other", {"prices": [1, 2]}, total=TOTAL)
    ended = threading.Event()
    answers = []
    one.lane.submit(one.job("it", "loop", done=lambda outcome: (answers.append(outcome.error), ended.set())))
    for _ in range(50):
        assert one.send("other", "total").result == 3
    assert not ended.is_set()                            # none of them waited for it
    assert ended.wait(WAIT_S) and isinstance(answers[0], batos.DeadlineExceeded)
    assert one.send("other", "total").result == 3


@pytest.mark.parametrize("source, kind", [
    ("def f(self):\n    return 'x' * 10 ** 9\n", "OutOfMemory"), ("def f(self):\n    return 'x' * (9 << 20)\n", "OutOfMemory"),
    ("def f(self):\n    return [0] * 10 ** 9\n", "OutOfMemory"), ("def f(self):\n    return 1 / 0\n", "MethodFailed"),
    ("def f(self):\n    def g(n):\n        return g(n + 1)\n    return g(0)\n", "MethodFailed"),
    ("def f(self):\n    return object_that_is_not()\n", "MethodFailed"), ("def f(self):\n    return {1, 2}\n", "MethodFailed"),
    ("def f(self):\n    return lambda: 1\n", "MethodFailed"), ("def f(self):\n    return 2 ** 70\n", "MethodFailed"),
    ("def f(self):\n    self.prices = {1, 2}\n    self._p_changed = True\n", "MethodFailed"),
    ("def f(self):\n    self.prices = [{1.5: 2}]\n    self._p_changed = True\n", "BadSlot"),
    ("def f(self):\n    self.clone = 2\n    self._p_changed = True\n", "ReservedName")])
def test_limits_and_failures_are_named_and_change_nothing(machine, source, kind):
    one = machine()
    one.make("it", {"prices": [1]}, f=source, total=TOTAL)
    assert type(one.end("it", "f")).__name__ == kind
    assert one.slots("it") == {"prices": [1]} and one.send("it", "total").result == 1


def test_an_error_tells_the_methods_own_lines(machine):
    one = machine()
    one.make("it", {}, f="def f(self):\n    x = 1\n    return self.g(x - 1)\n", g="def g(self, n):\n    return 5 // n\n")
    error = one.end("it", "f")
    assert "ZeroDivisionError" in str(error) and error.fields["lines"] == [["f", 3], ["g", 2]]


def test_a_flag_set_before_the_last_change_does_not_count(machine):
    one = machine()
    one.make("it", {"items": [1]}, f="def f(self):\n    a = [self.items]\n    self._p_changed = True\n    a[0].append(2)\n")
    assert isinstance(one.end("it", "f"), batos.CovenantViolationError) and one.slots("it") == {"items": [1]}


def test_what_a_sent_method_leaves_open_its_sender_must_flag(machine):
    one = machine()
    spoil = "def spoil(self):\n    self.count = 9\n    raise ValueError('no')\n"
    try_it = "def try_it(self):\n    try:\n        self.spoil()\n    except ValueError:\n        pass\n    return 1\n"
    one.make("it", {"count": 0}, spoil=spoil, try_it=try_it)
    assert isinstance(one.end("it", "try_it"), batos.CovenantViolationError) and one.slots("it") == {"count": 0}


# The bridge


def test_a_method_reads_and_sends_to_others_and_to_itself(machine):
    one = machine()
    one.make("friend", {"name": "Ada", "prices": [5]}, total=TOTAL, add_=ADD)
    source = """def both(self):
    self.friend.add_(6)
    other = self.friend
    return [self.total(), other.total(), other.name, send(other, 'getSlot:', 'name'), self.friend is other, other.slotNames()[:1]]
"""
    one.make("it", {"prices": [1, 2]}, both=source, total=TOTAL)
    one.write.call(batos.Job("link", lambda root: batos.set_slot(root["it"], "friend", root["friend"])), WAIT_S)
    outcome = one.send("it", "both")
    assert outcome.result == [3, 11, "Ada", "Ada", True, ["name"]] and outcome.change
    assert one.slots("friend")["prices"] == [5, 6]


def test_a_slot_is_found_through_the_delegation_and_written_to_the_receiver(machine):
    one = machine()
    grow = "def grow(self):\n    self.items.append(self.rate)\n    self._p_changed = True\n"
    one.make("kind", {"items": [1], "rate": 2}, grow=grow)
    child = lambda root: root.__setitem__("it", batos.UvmObject(**{"parent*": [root["kind"]]}))
    one.write.call(batos.Job("clone", child), WAIT_S)
    one.send("it", "grow")
    assert one.slots("it")["items"] == [1, 2] and one.slots("kind")["items"] == [1]


def test_new_objects_are_made_with_the_message_or_not_at_all(machine):
    one = machine()
    twin = ("def twin(self):\n    other = self.clone()\n    other.name = 'twin'\n    self.last = other\n"
            "    self._p_changed = True\n    return {'made': [other]}\n")
    one.make("it", {"name": "me"}, twin=twin, fail=twin.replace("def twin", "def fail").replace("return", "return 1 / 0,"))
    made = one.lane.call(one.job("it", "twin"), WAIT_S).result["made"][0]["$ref"]
    with batos.reading(one.image) as root:
        assert root["it"].last is batos.resolve(root, made) and root["it"].last.name == "twin" and root["it"].name == "me"
    assert isinstance(one.end("it", "fail"), batos.MethodFailed)


def test_all_kinds_of_values_go_and_come_back(machine):
    one = machine()
    values = [None, True, 0, -1, 2 ** 63 - 1, 1.5, float("inf"), "té\U0001f600", b"\0\xff", (1, (2, [3])), {"a": {1: (2,)}}, [],
              batos.now_utc()]
    give = "def give_(self, more):\n    self.got = [self.values, more]\n    self._p_changed = True\n    return self.got\n"
    one.make("it", {"values": values}, give_=give)
    assert one.send("it", "give_", (1, 2)).result == [values, (1, 2)] and one.slots("it")["got"] == [values, (1, 2)]


def test_a_tree_is_read_from_inside(machine):
    one = machine()
    source = "def look(self):\n    t = self.tree\n    return [len(t), t['a'], t.get('z', 7), 'b' in t, sorted(t), t.items()]\n"
    one.make("it", {"tree": batos.OOBTree({"a": 1, "b": 2})}, look=source)
    assert one.send("it", "look").result == [2, 1, 7, True, ["a", "b"], [["a", 1], ["b", 2]]]


def test_what_changes_more_than_slots_is_not_sent_from_inside(machine):
    one = machine()
    one.make("it", {}, f="def f(self, catalog):\n    return catalog.index_document_('a', 'text')\n")
    message = lambda root: batos.Message(root["it"], "f", [root["knowledge_catalog_obj"]], {}, lambda value: value)
    with pytest.raises(batos.MethodFailed, match="by a message of its own"):
        one.lane.call(batos.Job("send", message), WAIT_S)


def test_a_miss_inside_is_an_attribute_error_that_says_what_there_is(machine):
    one = machine()
    get = "def g(self):\n    return getattr(self, 'nix', 5)\n"
    one.make("it", {"price": 1}, f="def f(self):\n    return self.prise\n", g=get)
    assert "price" in str(one.end("it", "f")) and one.send("it", "g").result == 5


def test_endless_sends_are_ended(machine):
    one = machine()
    one.make("it", {}, f="def f(self):\n    return self.f()\n", g="def g(self):\n    while True:\n        self.getSlot_('x')\n")
    for selector in ("f", "g"):
        assert isinstance(one.end("it", selector), batos.MethodFailed)


def test_messages_to_one_receiver_lose_no_change(machine):
    one = machine()
    one.make("it", {"prices": []}, add_=ADD)
    answers, done = [], threading.Semaphore(0)
    for n in range(60):
        one.lane.submit(one.job("it", "add_", n, done=lambda outcome: (answers.append(outcome), done.release())))
    for _ in range(60):
        assert done.acquire(timeout=WAIT_S)
    assert all(answer.error is None for answer in answers) and sorted(one.slots("it")["prices"]) == list(range(60))
    assert len({answer.change for answer in answers}) == 60


def test_a_message_whose_receiver_has_gone_meanwhile_holds_up_no_other(machine):
    one = machine()
    one.make("it", {"prices": [1]}, add_=ADD, loop="def loop(self):\n    for _ in range(10 ** 7):\n        pass\n")
    answers, done = [], threading.Semaphore(0)

    def told(outcome):
        answers.append(outcome.error)
        done.release()
    one.lane.submit(one.job("it", "loop", done=told))
    while one.lane._taken == {}:                         # it is at work
        time.sleep(0.001)
    one.lane.submit(batos.Job("send", fickle(one, "it"), told))
    one.lane.submit(one.job("it", "add_", 2, done=told))
    for _ in range(3):
        assert done.acquire(timeout=WAIT_S)
    first, *others = [type(error).__name__ for error in answers]
    assert first == "NoneType" and sorted(others) == ["NoneType", "NotFound"]      # of the others each may end first
    assert one.lane._taken == {}


def fickle(one, name):
    """Return the apply of a message that finds its receiver the first time only."""
    finds = iter([one.job(name, "add_", 1).apply])

    def apply(root):
        found = next(finds, None)
        if found is None:
            raise batos.NotFound("it has gone", kind="object", name=name)
        return found(root)
    return apply


def test_two_receivers_that_read_one_another_see_what_the_other_committed(machine):
    one = machine()
    step = "def step(self):\n    self.n = self.other.n + 1\n    self._p_changed = True\n    return self.n\n"
    one.make("a", {"n": 0}, step=step)
    one.make("b", {"n": 0}, step=step)
    one.write.call(batos.Job("link", lambda root: (batos.set_slot(root["a"], "other", root["b"]),
                                                   batos.set_slot(root["b"], "other", root["a"])) and None), WAIT_S)
    seen, done = [], threading.Semaphore(0)
    for n in range(40):
        one.lane.submit(one.job("ab"[n % 2], "step", done=lambda outcome: (seen.append(outcome), done.release())))
    for _ in range(40):
        assert done.acquire(timeout=WAIT_S)
    results = [outcome.result for outcome in seen if outcome.error is None]
    assert len(results) + sum(isinstance(outcome.error, batos.Busy) for outcome in seen) == 40
    assert abs(one.slots("a")["n"] - one.slots("b")["n"]) == 1            # each step was made of what the other had committed


def test_a_change_meanwhile_runs_the_message_again(machine):
    one = machine()
    one.make("it", {"count": 0}, slow="def slow(self):\n    n = self.count\n    for _ in range(3000000):\n        pass\n"
             "    self.count = n + 1\n    self._p_changed = True\n    return self.count\n")
    answers, ended = [], threading.Event()
    one.lane.submit(one.job("it", "slow", done=lambda outcome: (answers.append(outcome), ended.set())))
    while one.lane._taken == {}:                         # it is at work
        time.sleep(0.001)
    one.write.call(batos.Job("set", lambda root: batos.set_slot(root["it"], "count", 100)), WAIT_S)
    assert ended.wait(WAIT_S) and answers[0].error is None and one.slots("it")["count"] in (100, 101)


@settings(max_examples=25, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers(-2 ** 63, 2 ** 63 - 1) | st.floats(allow_nan=False) | st.text()
                    | st.binary(), lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 99), inner)
                    | st.tuples(inner, inner), max_leaves=12))
def test_values_survive_the_bridge(echo, value):
    assert echo.send("it", "echo_", value).result == value


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    one = Machine(tmp_path_factory.mktemp("echo"))
    one.make("it", {}, echo_="def echo_(self, value):\n    return value\n")
    yield one
    one.close()


class Dripping:
    """A child that tells one byte now and then, for ever."""

    known, messages = set(), 0

    def __init__(self):
        self.end, self.bytes = self, iter(b"\xff\0\0\0" + b"\0" * 263)

    def settimeout(self, seconds):
        """What it tells is always there in time."""

    def recv(self, size):
        time.sleep(0.02)
        return bytes([next(self.bytes)])

    def sendall(self, data):
        """It listens to nothing."""


def test_a_child_that_drips_is_ended_at_the_deadline():
    bridge = batos.TrialBridge(Dripping(), time.monotonic() + 0.3, batos.load_settings({}, {}))
    with pytest.raises(batos.DeadlineExceeded):
        bridge.heard()


def said(**message):
    return batos.ormsgpack.packb(message, option=batos.PACKING)


@pytest.mark.parametrize("told", [
    b"", b"\xc1", b"\x01", b"\x90", b"\x80", b"\x91" * 5000, said(done=1), said(op="close"), said(op=["slots"]),
    said(op="slots", of=10 ** 6), said(op="send"), said(done=1, writes={0: {"a": 1}}, gone=3), said(done=1, writes=7, gone=[]),
    said(raised=1, text=[], lines=5), said(done=batos.ormsgpack.Ext(batos.REF, b"\xff\xff\0\0")),
    said(done=batos.ormsgpack.Ext(9, b"")), said(done=batos.ormsgpack.Ext(batos.TIME, b"soon"))])
def test_whatever_a_child_tells_is_a_failure_of_the_method(machine, monkeypatch, told):
    one = machine(method_workers=1)
    one.make("it", {"prices": [1]}, total=TOTAL)
    real = batos.receive_frame
    answers = iter([told])

    def told_by(end, most):
        return (end.message_number, next(answers, b"\xc1")) if isinstance(end, batos.Bridge) else real(end, most)
    monkeypatch.setattr(batos, "receive_frame", told_by)
    assert isinstance(one.end("it", "total"), batos.MethodFailed)
    monkeypatch.setattr(batos, "receive_frame", real)
    assert one.slots("it") == {"prices": [1]} and one.send("it", "total").result == 1


# Found by a review that attacked it


def test_nested_tuples_do_not_end_the_daemon(machine):
    one = machine()
    f = "def f(self):\n    x = 1\n    for _ in range(100):\n        for _ in range(240):\n            x = [x]\n" \
        "        x = (x,)\n    return x\n"
    one.make("it", {}, f=f, g="def g(self):\n    x = 1\n    for _ in range(60):\n        x = [(x,)]\n    return x\n")
    for selector in ("f", "g"):
        assert isinstance(one.end("it", selector), batos.BatosError)


def test_a_commit_larger_than_the_cache_is_told(machine):
    one = machine(method_output_mb=500.0)
    one.write.call(batos.Job("small", lambda root: root._p_jar.cacheMinimize()), WAIT_S)
    with one.image.db._lock:
        one.image.db.setCacheSizeBytes(1_000_000)

    def large(root):
        root["large"] = batos.UvmObject(parts=[batos.UvmObject(text="x" * 1_000_000 + str(n)) for n in range(20)])
    outcome = one.write.call(batos.Job("large", large), WAIT_S)
    after = one.write.call(batos.Job("after", lambda root: batos.set_slot(root["large"], "n", 1)), WAIT_S)
    assert outcome.change and after.change


def test_what_a_message_writes_is_bounded(machine):
    one = machine(method_output_mb=1.0)
    grow = "def grow(self):\n    self.kept = [self.clone() for _ in range(60)]\n    self._p_changed = True\n"
    tell = "def tell(self):\n    text = 'x' * 300000\n    for n in range(60):\n        setattr(self, 'slot%d' % n, text)\n" \
           "        self.slotNames()\n    self._p_changed = True\n"
    one.make("it", {"big": "x" * 100_000}, grow=grow, tell=tell)
    for selector in ("grow", "tell"):
        assert isinstance(one.end("it", selector), batos.OutOfMemory)
    assert set(one.slots("it")) == {"big"}


def test_nothing_of_a_message_is_left_for_the_next(machine):
    one = machine(method_workers=1)
    spoil = """def spoil(self):
    box = []
    def later():
        try:
            yield box
        finally:
            self.balance = 0
            self._p_changed = True
    it = later()
    next(it)
    box.append(it)
    decimal.getcontext().traps[decimal.DivisionByZero] = False
    random.seed(1)
    return random.random()
"""
    look = """def look(self):
    made = [[n] for n in range(5000)]
    return [self.balance, decimal.getcontext().traps[decimal.DivisionByZero], random.random(), len(made)]
"""
    keep = "def keep(self, kept=[]):\n    kept.append(1)\n    return len(kept)\n"
    one.make("bad", {"balance": 7}, spoil=spoil)
    one.make("good", {"balance": 100}, look=look, keep=keep)
    first = one.send("bad", "spoil").result
    balance, trapped, number, _ = one.send("good", "look").result
    assert balance == 100 and trapped is True and number != first and one.slots("good") == {"balance": 100}
    assert [one.send("good", "keep").result for _ in range(2)] == [1, 1]


def test_blame_goes_to_the_method_that_was_sent(machine):
    one = machine()
    one.make("victim", {}, total="def total(self):\n    return 42\n")
    one.make("bad", {}, f="def f(self, victim):\n    victim.total()\n    return not_there\n")
    blame = lambda root: batos.Message(root["bad"], "f", [root["victim"]], {}, lambda value: value)
    for _ in range(batos.FAILURES_MOST + 1):
        with pytest.raises(batos.MethodFailed):
            one.lane.call(batos.Job("send", blame), WAIT_S)
    assert one.send("victim", "total").result == 42
    with batos.reading(one.image) as root:
        assert root["bad"].f.status == "quarantined" and batos.own(root["victim"].total).get("failures", 0) == 0


def test_a_failure_is_told_whenever_the_counts_were_stored_last(machine, monkeypatch):
    monkeypatch.setattr(batos, "_USES_TOLD_S", 0.0)
    one = machine()
    one.make("it", {}, f="def f(self):\n    return 1 / 0\n")
    assert isinstance(one.end("it", "f"), batos.MethodFailed)


def test_a_method_that_is_met_first_too_deep_is_met_again(machine):
    one = machine(method_workers=1)
    one.make("victim", {}, total="def total(self):\n    return 42\n")
    deep = "def deep(self, victim, n=1):\n    if n < 50:\n        return self.deep(victim, n + 1)\n    try:\n" \
           "        return victim.total()\n    except TypeError:\n        return 'too deep'\n"
    one.make("bad", {}, deep=deep)
    message = lambda root: batos.Message(root["bad"], "deep", [root["victim"]], {}, lambda value: value)
    assert one.lane.call(batos.Job("send", message), WAIT_S).result == "too deep"
    assert one.send("victim", "total").result == 42


def test_busy_asking_does_not_outlive_the_deadline(machine):
    one = machine(method_deadline_s=1.0)
    one.make("it", {"tree": batos.OOBTree({str(n): n for n in range(9000)})},
             f="def f(self):\n    for _ in range(9000):\n        self.tree.items()\n")
    started_s = time.monotonic()
    assert isinstance(one.end("it", "f"), batos.DeadlineExceeded) and time.monotonic() - started_s < WAIT_S / 3


@pytest.mark.parametrize("text", [
    "def f(self, y):\n" + "".join(" " * n + f" a{n} = b{n} = 1\n" + " " * n + " for x in y:\n" for n in range(1, 14)) + " " * 14
    + " pass\n" + "".join(" " * n + f" b{n} = a{n}\n" + " " * n + f" a{n} = self.x\n" for n in range(14, 1, -1)),
    "def f(self, x):\n" + "".join(" " * n + "try:\n" for n in range(1, 18)) + " " * 18 + "return 1\n"
    + "".join(" " * n + "finally:\n" + " " * n + " if x: return 2\n" for n in range(17, 0, -1))])
def test_the_ways_through_a_method_are_not_followed_without_end(text):
    started_s = time.monotonic()
    assert audit(text, "f") is None or isinstance(audit(text, "f"), batos.CodeRejected)
    assert time.monotonic() - started_s < WAIT_S / 3


def test_a_slot_that_was_handed_out_is_watched_over_a_send(machine):
    one = machine()
    keep = "def keep(self):\n    items = self.items\n    self.clone()\n    items.append(3)\n    self._p_changed = True\n" \
           "    return items\n"
    hide = "def hide(self):\n    box = [self.items]\n    box[0].append(5)\n    self.setSlot_value_('x', 1)\n    return 1\n"
    read = "def read(self):\n    self.setSlot_value_('items', [9])\n    return self.items\n"
    one.make("it", {"items": [1]}, keep=keep, hide=hide, read=read)
    assert one.send("it", "keep").result == [1, 3] and one.slots("it")["items"] == [1, 3]
    assert isinstance(one.end("it", "hide"), batos.CovenantViolationError) and one.slots("it") == {"items": [1, 3]}
    assert one.send("it", "read").result == [9] and one.slots("it")["items"] == [9]


def test_a_new_object_that_is_only_answered_is_stored(machine):
    one = machine()
    one.make("it", {"name": "me"}, twin="def twin(self):\n    return self.clone()\n",
             tree="def tree(self):\n    self.last = self._clone_persistent_()\n    self._p_changed = True\n")
    outcome = one.lane.call(one.job("it", "twin"), WAIT_S)
    with batos.reading(one.image) as root:
        assert outcome.change and batos.resolve(root, outcome.result["$ref"]).name == "me"
    one.write.call(batos.Job("tree", lambda root: batos.set_slot(root["it"], "index", batos.OOBTree())), WAIT_S)
    assert "by a message of its own" in str(one.end("it", "tree"))


def test_a_pattern_does_not_take_format():
    source = "def f(self, x):\n    match x:\n        case str(format=fmt):\n            return fmt(self)\n"
    assert audit(source, "f").fields["rule"] == "inner name"


# Life of processes


def living_children():
    """Return the processes under this one."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            found.append((int(pid), int(re.search(r"PPid:\s+(\d+)", status)[1]), "State:\tZ" in status))
    mine, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, parent, dead in found if parent in mine and not dead} - mine
        mine, grown = mine | more, bool(more)
    return mine - {os.getpid()}


def gone(before):
    end_s = time.monotonic() + WAIT_S
    while living_children() - before and time.monotonic() < end_s:
        time.sleep(0.01)
    return living_children() <= before


def test_no_process_is_left_behind(tmp_path):
    before = living_children()
    one = Machine(tmp_path, method_deadline_s=0.3)
    one.make("it", {"prices": [1]}, loop=LOOP, total=TOTAL)
    assert one.send("it", "total").result == 1 and isinstance(one.end("it", "loop"), batos.DeadlineExceeded)
    one.close()
    assert gone(before)


@pytest.mark.slow
def test_a_daemon_does_not_wait_for_a_method_without_end(daemon):
    running = daemon("--method-deadline-s", "1000", "--drain-s", "0.2")
    with batos.Client(running.endpoint, WAIT_S) as client:
        client.call("create_method", target_oid="genesis_obj", method_name="loop", method_code=LOOP)
        with pytest.raises(batos.NoReply):
            client.call("send_message", target="genesis_obj", selector="loop", timeout_s=0.5)
    assert running.stop() == 0


def test_a_dead_zygote_and_a_dead_child_are_replaced(machine):
    one = machine(method_workers=1)
    one.make("it", {"prices": [1]}, total=TOTAL)
    for _ in range(2):
        assert one.send("it", "total").result == 1
        one.lane.zygote._process.kill()
        one.lane.zygote._process.wait()
        first = one.end("it", "total")                   # its child died with the zygote: that is told, or was not noticed yet
        assert first == 1 or isinstance(first, batos.MethodFailed)
        assert one.send("it", "total").result == 1


def test_children_end_with_a_killed_daemon(daemon):
    before = living_children()
    running = daemon()
    with batos.Client(running.endpoint, WAIT_S) as client:
        client.call("send_message", target="genesis_obj", selector="setSlot_value_", args=["prices", [1, 2]])
        client.call("create_method", target_oid="genesis_obj", method_name="total", method_code=TOTAL)
        client.call("create_method", target_oid="genesis_obj", method_name="loop", method_code=LOOP)
        assert client.call("send_message", target="genesis_obj", selector="total")["result"] == 3
        assert len(living_children() - before) >= 3      # daemon, zygote, child
        with pytest.raises(batos.NoReply):
            client.call("send_message", target="genesis_obj", selector="loop", timeout_s=0.5)
    running.stop(kill=True)
    assert gone(before)
