"""The audit: sources as programmers write them, names that lead inside, the covenant, and what an audit may cost.

Corpora in data/methods: modules (accepted, with what they do), names (refused, or failed in the child), changes (the covenant).
"""

import ast

import pytest
from stored import CORPUS_SLOTS, WAIT_S, audit, cases

import batos


def method_name(source):
    return batos.method_in(ast.parse(source)).name


# Sources as programmers write them


@pytest.mark.parametrize("title, head, source", [pytest.param(*case, id=case[0]) for case in cases("modules")])
def test_modules_are_accepted(title, head, source):
    assert audit(source, method_name(source)) is None


def test_modules_do_what_they_shall(machine):
    one, wrong = machine(), []
    for n, (title, head, source) in enumerate(cases("modules")):
        selector, slots = method_name(source), ast.literal_eval(head["slots"])
        one.make(f"case{n}", slots, **{selector: source})
        result = one.end(f"case{n}", selector, *ast.literal_eval(head["args"]))
        after = {**slots, **ast.literal_eval(head["after"])}
        if repr(result) != repr(ast.literal_eval(head["result"])) or one.slots(f"case{n}") != after:
            wrong.append((title, result))
    assert wrong == []


def test_nothing_of_a_module_is_left_for_the_next_message(machine):
    one = machine(method_workers=1)
    keep = "SEEN = []\nclass Log:\n    lines = []\n    def __init__(self):\n        self.n = 0\n\ndef keep(self):\n" \
           "    SEEN.append(1)\n    Log.lines.append(1)\n    return [len(SEEN), len(Log.lines)]\n"
    one.make("it", {}, keep=keep)
    assert [one.send("it", "keep").result for _ in range(3)] == [[1, 1]] * 3


def test_the_corpora_are_large_enough():
    counts = {name: len(list(cases(name))) for name in ("modules", "names", "changes")}
    assert counts["modules"] >= 60 and counts["names"] >= 160 and counts["changes"] >= 100


ANY = "def f(self):\n    return 1\n"


@pytest.mark.parametrize("source, rule, mend", [
    ("async def f(self):\n    return 1\n", "async", "write def f(self, …):"),
    (ANY + "async def g(x):\n    return 1\n", "async", "write def"),
    ("def f(self):\n    return await self.g()\n", "async", "answered at once"),
    ("class Shop:\n    def f(self):\n        return 1\n", "class", "outside of it"),
    ("f = lambda self: 1\n", "one function", "def f(self, …):"),
    ("def g(self):\n    return 1\n", "name", "name it f"),
    (ANY + "def g(self):\n    return 2\n", "one function", "_g"),
    (ANY + "if __name__ == '__main__':\n    f(1)\n", "module", "NAME = value"),
    (ANY + "print(f)\n", "module", "put it into the method"),
    (ANY + "f.x = 1\n", "module", "NAME = value"),
    ("import os\n" + ANY, "import", "no files"), ("from enum import Enum\n" + ANY, "import", "constants"),
    ("import requests\n" + ANY, "import", "no network"), ("from json import load\n" + ANY, "import", "loads, dumps"),
    ("def f(self):\n    return open('a')\n", "builtin", "slots"), ("class A(object):\n    x = 1\n" + ANY, "class", "name one"),
    ("def f(self):\n    return self.__class__\n", "inner name", "type(x)"),
    ("class A:\n    def __init__(self):\n        self.__x = 1\n" + ANY, "inner name", "one underscore"),
    ("class A:\n    def __call__(self):\n        return 1\n" + ANY, "inner name", "__init__"),
    ("def f(self):\n    class A:\n        x = 1\n    return A.x\n", "class", "at the top"),
    ("def f(self):\n    match self.x:\n        case A(b):\n            return b\n", "pattern", "case A(NAME=…)"),
    ("N = 0\ndef f(self):\n    global N\n    N = 1\n", "global", "slots")])
def test_what_is_refused_says_what_to_write_instead(source, rule, mend):
    error = audit(source, "f")
    assert error.fields["rule"] == rule and mend in error.fields["mend"] and error.fields["mend"] in str(error)


def test_what_is_no_plain_value_says_what_to_make_of_it(machine):
    one = machine()
    line = "from dataclasses import dataclass\n@dataclass\nclass Line:\n    x: int\n\n"
    one.make("it", {}, f=line + "def f(self):\n    return Line(1)\n",
             g=line + "def g(self):\n    self.line = Line(1)\n    self._p_changed = True\n")
    for selector in ("f", "g"):
        error = one.end("it", selector)
        assert isinstance(error, batos.MethodFailed) and "asdict" in error.message
    assert one.slots("it") == {}


# What works with a source


MODULE = '''"""A shelf."""
import math

RATE = 2

def twice(x):
    return x * RATE

def total(self, extra=0):
    """What all costs."""
    return twice(sum(self.prices)) + extra
'''


def test_the_parts_of_a_source_are_found_beside_what_stands_with_it():
    tree = ast.parse(MODULE)
    assert batos.method_in(tree, "total").name == batos.method_in(tree).name == batos._method_name(MODULE) == "total"
    assert batos._slots_used(MODULE) == {"prices"}
    renamed = batos._renamed(MODULE, "total", "sum_up")
    assert "def sum_up(self, extra=0):" in renamed and "def twice(x):" in renamed and audit(renamed, "sum_up") is None
    assert batos.shape_of(MODULE, "total") == batos.shape_of(renamed, "sum_up")
    assert batos.shape_of(MODULE, "total") != batos.shape_of(MODULE.replace("RATE = 2", "RATE = 3"), "total")
    assert batos._flagged(MODULE, {"intent": "x", "selector": "total"}) == MODULE.replace("What all costs.", "x")


def test_the_method_of_a_file_is_named_whatever_is_wrong_with_it():
    assert [batos._method_name(text) for text in ("x = 1", "def f(", "def f(x): pass", "a." * 9000)] == ["method"] * 4


def test_what_a_larger_core_writes_may_have_imports_and_helpers_beside_it():
    fields = {"selector": "root:", "arguments": ["number"], "slots": {}}
    head = batos.method_head(fields)
    code = f"import math\n\n{head}\n    return math.sqrt(value)\n"
    assert batos._free_method_value(f"```python\n{code}```", fields) == {"idiom": batos.FREE, "source": code}
    with pytest.raises(ValueError, match="begin"):
        batos._free_method_value(f"import math\n    {head}\n    return 1\n", fields)


def test_a_module_is_stored_shown_found_and_taken_into_another_image(daemon):
    with batos.Client(daemon("--image", "one.fs").endpoint, WAIT_S) as client:
        client.call("send_message", target="genesis_obj", selector="setSlot_value_", args=["prices", [1, 2.5]])
        made = client.call("create_method", target_oid="genesis_obj", method_name="total", method_code=MODULE, intent="the cost")
        assert made["result"]["status"] == "trial"
        assert client.call("send_message", target="genesis_obj", selector="total", args=[1])["result"] == 8.0
        shown = client.call("inspect", target="genesis_obj.total")["result"]["slots"]
        assert shown["source"]["value"] == MODULE
        again = client.call("create_method", target_oid="genesis_obj", method_name="sum_up",
                            method_code=batos._renamed(MODULE, "total", "sum_up"))
        assert again["result"]["alike"] == ["total"]
        found = client.call("search_memory", query="What all costs", scope="self")["results"]
        assert any(row["chunk"]["metadata"].get("selector") == "total" for row in found)
        parcel = client.call("export", target="genesis_obj")["result"]["parcel"]
    with batos.Client(daemon("--image", "other.fs").endpoint, WAIT_S) as other:
        taken = other.call("import", parcel=parcel, target="genesis_obj", slot="shelf")["result"]
        assert set(taken["methods"]) >= {"total", "sum_up"}
        assert other.call("send_message", target="genesis_obj.shelf", selector="total")["result"] == 7.0


# Names that lead inside


@pytest.mark.parametrize("title, head, source", [pytest.param(*case, id=case[0]) for case in cases("names")])
def test_names_that_lead_inside_are_seen_where_they_show(title, head, source):
    assert (audit(source, "attack") is not None) == (head["expect"] == "refused")


def test_names_that_do_not_show_fail_in_the_child(machine):
    one, wrong = machine(), []
    slots = {**CORPUS_SLOTS, "word": "__class__"}
    for n, (title, head, source) in enumerate(cases("names")):
        if head["expect"] == "failed":
            one.make(f"case{n}", slots, attack=source)
            ended = one.end(f"case{n}", "attack")
            failed = isinstance(ended, batos.MethodFailed | batos.CovenantViolationError)
            if not failed or one.slots(f"case{n}") != slots:
                wrong.append((title, ended))
    assert wrong == []


def test_the_type_of_what_is_not_plain_is_a_name_only(machine):
    one = machine()
    one.make("it", {}, f="def f(self):\n    return [type(each).__name__ for each in (self, len, f, self.f, math, None, 1.5)]\n")
    assert one.send("it", "f").result == ["object", "builtin_function_or_method", "function", "Bound", "module math", "NoneType",
                                          "float"]


def test_every_name_that_python_may_call_is_refused_in_a_class_but_for_a_few():
    names = {name for kind in (object, type, int, str, list, dict, float, set, BaseException, type(audit), property, memoryview)
             for name in dir(kind) if name.startswith("__")}
    names |= {"__instancecheck__", "__subclasscheck__", "__match_args__", "__set_name__", "__del__", "__get__", "__mro_entries__"}
    taken = {name for name in names if audit(f"class A:\n    def {name}(self):\n        return 1\n" + ANY, "f") is None}
    assert taken == batos._CLASS_METHODS & names
    assert not taken & {"__getattribute__", "__instancecheck__", "__del__", "__format__"}


# The covenant


@pytest.mark.parametrize("title, head, source", [pytest.param(*case, id=case[0]) for case in cases("changes")])
def test_changes_are_seen_where_they_show(title, head, source):
    error = audit(source, "change")
    assert isinstance(error, batos.CovenantViolationError) if head["expect"] == "refused" else error is None


def test_changes_that_do_not_show_are_rolled_back_and_named(machine):
    one, wrong = machine(), []
    for n, (title, head, source) in enumerate(cases("changes")):
        if head["expect"] == "refused":
            continue
        slots = ast.literal_eval(head["slots"])
        one.make(f"case{n}", slots, change=source)
        ended = one.end(f"case{n}", "change", *ast.literal_eval(head["args"]))
        broken = isinstance(ended, batos.CovenantViolationError)
        named = broken and any(f"changed {slot}," in ended.message for slot in slots)
        if (broken or isinstance(ended, batos.BatosError)) and not (head["expect"] == "rolled back" and named):
            wrong.append((title, ended))
        if broken != (head["expect"] == "rolled back") or (broken and one.slots(f"case{n}") != slots):
            wrong.append((title, ended))
    assert wrong == []


def test_who_changed_a_slot_must_flag_it_whatever_others_flag(machine):
    one = machine()
    hide = "def hide(self):\n    box = [self.items]\n    box[0].append(9)\n    self.note_()\n"
    note = "def note_(self):\n    self.count = 1\n    self._p_changed = True\n"
    one.make("it", {"items": [1], "count": 0}, hide=hide, note_=note)
    error = one.end("it", "hide")
    assert isinstance(error, batos.CovenantViolationError) and "hide changed items" in error.message
    assert one.slots("it") == {"items": [1], "count": 0}


def test_who_is_asked_amid_a_change_is_not_blamed_for_it(machine):
    one = machine()
    grow = "def grow(self):\n    self.items.append(2)\n    n = self.total()\n    self._p_changed = True\n    return n\n"
    one.make("it", {"items": [1]}, grow=grow, total="def total(self):\n    return sum(self.items)\n")
    assert one.send("it", "grow").result == 3 and one.slots("it") == {"items": [1, 2]}


def test_a_change_inside_a_tuple_is_kept_with_the_flag(machine):
    one = machine()
    one.make("it", {"pair": ([1], 2)}, f="def f(self):\n    self.pair[0].append(5)\n    self._p_changed = True\n")
    assert one.send("it", "f").change and one.slots("it") == {"pair": ([1, 5], 2)}


@pytest.mark.parametrize("read", ["self.tree['a']", "self.tree.get('a')", "self.tree.values()[0]",
                                  "dict(self.tree.items())['a']"])
def test_a_change_of_what_a_tree_holds_is_not_lost_in_silence(machine, read):
    one = machine()
    one.make("it", {"tree": batos.OOBTree({"a": [1]})}, f=f"def f(self):\n    {read}.append(2)\n    self._p_changed = True\n",
             g=f"def g(self):\n    found = list({read})\n    found.append(2)\n    return found\n")
    assert "tree" in str(one.end("it", "f")) and one.send("it", "g").result == [1, 2]


def test_what_runs_after_a_method_changes_nothing(machine):
    one = machine()
    late = "def late(self):\n    box = [self.items]\n    def hold():\n        try:\n            yield box\n        finally:\n" \
           "            box[0].append(9)\n            self.count = 9\n            self._p_changed = True\n    it = hold()\n" \
           "    next(it)\n    box.append(it)\n    return [[n] for n in range(3000)]\n"
    one.make("it", {"items": [1], "count": 0}, late=late)
    for _ in range(3):
        one.end("it", "late")
        after = one.slots("it")                          # what ran before the end was flagged, and is whole
        assert (after["items"] == [1]) == (after["count"] == 0)


# What an audit may cost


def filled(make):
    """Return the longest text of make(n) that a source may be."""
    n = 1
    while len(make(2 * n)) <= batos._SOURCE_CHARS:
        n *= 2
    for step in (n // 2 ** k for k in range(1, n.bit_length())):
        if len(make(n + step)) <= batos._SOURCE_CHARS:
            n += step
    return make(n)


def body(*lines):
    return "def f(self, x):\n" + "".join(f" {line}\n" for line in lines)


def nested(depth, head, inner="pass", tail=()):
    """Return blocks in blocks, each begun by head(n); behind the innermost stand the tails, from inside out."""
    lines = [" " * n + head(n) for n in range(1, depth + 1)] + [" " * (depth + 1) + inner]
    lines += [" " * n + line for n in range(depth, 0, -1) for line in tail]
    return "def f(self, x):\n" + "\n".join(lines) + "\n"


def aliases_in_loops(count):
    lines = ["def f(self, y):"]
    for n in range(1, 13):
        lines += [" " * n + "while y:"] + [f"{' ' * (n + 1)}a{n}_{m} = a{n + 1}_{m}" for m in range(count)]
    lines += [" " * n + f"a{n}_0 = self.x" for n in range(12, 1, -1)]
    return "\n".join(lines) + "\n"


BOMBS = {
    "aliases in twelve loops": filled(aliases_in_loops),
    "elif": filled(lambda n: body("if x: pass", *["elif x: pass"] * n)),
    "seven hundred elif": body("if x == 0: pass", *[f"elif x == {n}: pass" for n in range(700)]),
    "functions in functions": nested(18, lambda n: f"def g{n}():", "self.x = 1"),
    "functions beside one another": filled(lambda n: body(*[f"def g{k}(): g{k - 1}()" for k in range(n)])),
    "helpers, the last of which changes": filled(
        lambda n: "".join(f"def _g{k}(self): _g{k + 1}(self)\n" for k in range(n)) + f"def _g{n}(self): self.x = 1\n" + ANY),
    "comprehensions in comprehensions": filled(lambda n: body(*[f"x = {'[' * 38}x{' for a in x]' * 38}"] * n)),
    "comprehension of many loops": body(f"return [x{' for x in x' * 1700}]"),
    "or": body(f"return x{' or x' * 3000}"), "or over slots": body("return (" + "self.a or\\\n" * 1500 + "self.a).append(1)"),
    "comparisons": filled(lambda n: body("return x" + "<x" * n)), "sum": filled(lambda n: body("return 1" + "+1" * n)),
    "sums": filled(lambda n: body(*["x = 1" + "+1" * 190] * n)),
    "finally in finally": nested(18, lambda n: f"try: g()\n{' ' * n}finally:"),
    "returns before finally in finally": nested(18, lambda n: f"try: return g()\n{' ' * n}finally:"),
    "try in try": nested(17, lambda n: "try:", "return 1", ("finally:\n if x: return 2".replace("\n", "\n" + " " * 18),)),
    "a try with many statements": filled(
        lambda n: nested(17, lambda n: "try:", ";".join(["a = self.x"] * n), ("except ValueError: pass",))),
    "finally beside finally": filled(lambda n: body(*["try: g()", "finally: pass"] * n)),
    "cases": filled(lambda n: body("match self.x:", *[f" case [a{k}, *_]: pass" for k in range(n)])),
    "alternatives": filled(lambda n: body("match x:", f" case 1{'|2' * n}: pass")),
    "alternatives of many names": filled(
        lambda n: body("match x:", f" case {'|'.join(['[' + ','.join(f'a{k}' for k in range(150)) + ']'] * n)}: pass")),
    "aliases": filled(lambda n: body("a = self.x", *[f"a{k} = a" for k in range(n)])),
    "unpacking": filled(lambda n: body(",".join(f"a{k}" for k in range(n)) + " = self.x")),
    "calls of calls": filled(lambda n: body("return self.x" + ".get(1)" * n)),
    "calls of slots": body(*["self.x" + ".get(1)" * 60 + ".append(1)"] * 40),
    "subscripts": filled(lambda n: body("return self.x" + "[1]" * n)),
    "lambdas": body("return " + "lambda: " * 2000 + "1"), "not": body("return " + "not " * 4000 + "1"),
    "text that is filled": filled(lambda n: body("return f'" + "{x}" * n + "'")),
    "format in format": body("return '" + "{a:" * 4500 + "}" * 4500 + "'.format(a=1)"),
    "a path of attributes": filled(lambda n: body("return getattr(x, '" + "a." * n + "')")),
    "classes of classes": filled(
        lambda n: ANY + "class A0: x = 1\n" + "".join(f"class A{k + 1}(A{k}): x = 1\n" for k in range(n))),
    "wide characters": body("return [" + "é," * 9000 + "]"), "a number": body("return " + "9" * 19000),
    "powers": filled(lambda n: body("return [" + "9**9**9," * n + "]")), "continued lines": body("return 1" + "\\\n" * 9000),
    "warnings": filled(lambda n: body("return [" + "1 is 1," * n + "]")),
    "arguments": filled(lambda n: body("return g(" + ",".join(f"a{k}=1" for k in range(n)) + ")")),
    "imports": filled(lambda n: "import math\n" * n + ANY)}


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize("name", BOMBS)
def test_any_source_is_accepted_or_refused_by_name_within_the_budget(name):
    assert len(BOMBS[name]) <= batos._SOURCE_CHARS
    budget = batos.Budget()
    try:
        batos.PersistenceGuardian().audit_code(BOMBS[name], "f", budget)
        assert 0 <= budget.left < batos._AUDIT_STEPS
    except batos.CodeRejected as error:                  # once it is spent, nothing more is looked at
        assert error.fields["rule"] in ("size", "covenant", "syntax") and error.fields["mend"]


@pytest.mark.parametrize("name, rule", [
    ("seven hundred elif", "size"), ("returns before finally in finally", "size"), ("finally in finally", "size"),
    ("aliases", "size"), ("helpers, the last of which changes", "size"), ("subscripts", "size"), ("a number", "syntax"),
    ("calls of slots", "covenant")])
def test_what_is_too_much_to_check_is_told_so(name, rule):
    assert audit(BOMBS[name], "f").fields["rule"] == rule


def test_all_parts_of_an_audit_spend_from_one_budget():
    source = body(*["while x:", "  a = self.x", "  for b in a: b.append(1)"] * 20, "self._p_changed = True")
    spent = batos.Budget()
    batos.PersistenceGuardian().audit_code(source, "f", spent)
    used = batos._AUDIT_STEPS - spent.left
    for steps in range(1, used, used // 7):
        with pytest.raises(batos.CodeRejected, match="too much to check"):
            batos.PersistenceGuardian().audit_code(source, "f", batos.Budget(steps))
    batos.PersistenceGuardian().audit_code(source, "f", batos.Budget(used))


def test_what_the_audit_takes_the_child_compiles(machine):
    one = machine()
    chain = body("if x == 0: return 0", *[f"elif x == {n}: return {n}" for n in range(1, 180)])
    terms = body("return " + "+".join(["(1)"] * 180))
    dots = body("return x" + ".real" * 150)
    for name, source in {"chain": chain, "terms": terms, "dots": dots}.items():
        assert audit(source, "f") is None
        one.make(name, {}, f=source)
    assert one.send("chain", "f", 175).result == 175 and one.send("terms", "f", 0).result == 180
    assert one.send("dots", "f", 7).result == 7
