"""Code by four: each method says what it does in words of its request, and who took which part in it."""

import ast

import pytest
from test_kernel import kernel  # noqa: F401  (a fixture)

import batos

REQUEST = {"selector": "sum_prices", "intent": "", "slots": {"prices": "numbers"}, "arguments": []}
SOURCE = 'def sum_prices(self):\n    """The sum of prices."""\n    return sum(self.prices)\n'


@pytest.mark.parametrize("selector, intent", [
    ("sum_prices", ""), ("add_to_", "Add a price to a shop."), ("countOfThings", 'what is "counted"'), ("x", ""),
    ("a_b_c_", " \n ")])
def test_each_method_says_what_it_does_in_words_of_its_request(selector, intent):
    request = {"selector": selector, "intent": intent, "arguments": [], "named": []}
    function = ast.parse(batos.method_source(["return 1"], request)).body[0]
    said = ast.get_docstring(function)
    assert said and set(batos.stems(said)) <= set(batos.stems(f"{batos.docstring_of(request)} {intent}"))
    assert len(function.body) == 2


@pytest.mark.parametrize("text, found", [
    ("the median of prices", ["statistics.median"]), ("the sum of prices", []), ("", []),
    ("the square root of a number, and its logarithm", ["math.sqrt", "math.log"])])
def test_babs_knows_what_the_libraries_have(text, found):
    assert batos._facades_for(text) == found
    for name in batos._LIBRARIES.values():
        module, _, function = name.partition(".")
        assert module in batos.FACADES and (not batos.FACADES[module] or function in batos.FACADES[module]), name


def test_each_of_the_four_has_a_part():
    stages = batos.code_stages(REQUEST, SOURCE, None, "total of each", 2, "it belongs here: it has prices")
    assert [(row["stage"], row["persona"]) for row in stages] == [
        ("library", "BABS"), ("body", "BRICK"), ("docstring", "ROBIN"), ("assembly", "ALFRED")]
    told = {row["persona"]: row["what"] for row in stages}
    assert told["BABS"] == "none is needed" and told["ROBIN"] == "The sum of prices." and "tried twice" in told["ALFRED"]
    assert told["BRICK"] == "total of each: return sum(self.prices)"
    source = "import statistics\n\n\ndef sum_prices(self):\n    return statistics.median(self.prices)\n"
    told = {row["persona"]: row["what"] for row in batos.code_stages(REQUEST, source, None, "it", 1, "x")}
    assert told["BABS"] == "statistics" and told["ROBIN"] == "it says nothing"
    assert batos.code_stages(REQUEST, SOURCE, "total of shop", "known", 1, "x")[0]["what"] == "total of shop, which the image has"


def test_what_would_be_there_and_is_not_used_is_told_as_such():
    request = REQUEST | {"selector": "medianOf", "intent": "the middle"}
    stages = batos.code_stages(request, SOURCE.replace("sum_prices", "medianOf"), None, "it", 1, "x")
    assert stages[0]["what"] == "statistics.median would be there; none is needed"


@pytest.mark.parametrize("source, said", [
    ("def sum_prices(self):\n    total = 0\n    return total\n", "Sum prices."),
    ('def sum_prices(self):\n    """The prices, summed."""\n    return 0\n', "The prices, summed."),
    ('def sum_prices(self):\n    """Sure! Here\n    it is."""\n    return 0\n', "Sum prices."),
    ('def sum_prices(self):\n    """prices ' + "x" * 200 + '"""\n    return 0\n', "Sum prices."),
    ("import math\n\n\ndef sum_prices(self):\n  for each in self.prices:\n    return math.sqrt(each)\n", "Sum prices."),
    ("def sum_prices(self): return 0\n", None), ("def sum_prices(self:\n", ...)])
def test_what_a_larger_core_writes_says_what_it_does_in_words_of_its_request(source, said):
    told = batos.said_of_itself(source, REQUEST)
    if said is ... or said is None:
        assert told == source
        return
    function = batos.method_in(ast.parse(told), "sum_prices")
    assert ast.get_docstring(function) == said
    bodies = [[ast.dump(node) for node in one.body if not batos._is_docstring(node)]
              for one in (function, batos.method_in(ast.parse(source), "sum_prices"))]
    assert bodies[0] == bodies[1]
    assert batos.said_of_itself(told, REQUEST) == told


@pytest.mark.parametrize("intent, arguments, named, head", [
    ("add a price to them", 1, (), "f(self, price)"), ("add a price to an offer", 1, (), "f(self, value)"),
    ("from a start to an end", 2, (), "f(self, start, end)"), ("above the given limit", 1, (), "f(self, limit)"),
    ("add a list", 1, (), "f(self, value)"), ("add a class", 1, (), "f(self, value)"), ("add a total", 1, (), "f(self, value)"),
    ("add a price", 1, ("by",), "f(self, by)"), ("add a price", 2, ("by",), "f(self, price, by)"), ("add it", 0, (), "f(self)")])
def test_arguments_are_called_by_the_nouns_of_the_intent(intent, arguments, named, head):
    request = {"selector": "f", "intent": intent, "arguments": ["number"] * arguments, "named": named, "slots": {}}
    names = batos.argument_names(arguments, named)
    source = f"def f({', '.join(['self', *names])}):\n    total = {' + '.join(['0', *names])}\n    return total\n"
    told = batos.with_arguments_called(source, request)
    assert told.startswith(f"def {head}:")
    values = list(range(3, 3 + arguments))
    done = []
    for each in (source, told):
        space = {}
        exec(compile(each, "f", "exec"), space)
        done.append(space["f"](None, *values))
    assert done[0] == done[1] == sum(values)


def test_a_larger_core_writes_methods_of_three_arguments(kernel):  # noqa: F811
    source = "def between_and_(self, first, second, third):\n    low = first + second\n    return low + third\n"
    one = kernel(method=lambda fields: {"idiom": batos.FREE, "source": source})
    one.uvm.core.writes, one.uvm.core.infer_ = True, lambda prompt, **fields: "nothing"
    report = one.mission("between_and_", 1, 2, 3, prices=[3, 9])
    assert report["state"] == "COMPLETE" and '"""Between and."""' in report["source"], report
    assert report["source"].startswith("def between_and_(self, first, second, third):")
    assert [row["what"] for row in report["stages"]][2] == "Between and."


def test_without_a_larger_core_two_arguments_are_the_most(kernel):  # noqa: F811
    report = kernel().mission("between_and_", 1, 2, 3, prices=[3, 9])
    assert report["state"] == "FAILED" and "up to 2" in report["reason"]["details"]
    for count in range(batos.FREE_ARGUMENTS_MOST + 1):
        assert len(set(batos.argument_names(count))) == count


def test_a_mission_that_writes_a_method_tells_who_took_which_part(daemon):
    with batos.Client(daemon(core=0).endpoint, 300) as client:
        oid = client.call("send_message", target="genesis_obj", selector="clone")["result"]["$ref"]
        client.call("send_message", target=oid, selector="setSlot_value_", args=["prices", [1, 2]])
        brief = {"type": "unhandled_message", "selector": "sum_prices", "args": [], "kwargs": {}}
        report = client.call("initiate_cognitive_cycle", target_oid=oid, mission_brief=brief, wait=True)["result"]
        assert "stages" in report, report["reason"]
        assert [row["persona"] for row in report["stages"]] == ["BABS", "BRICK", "ROBIN", "ALFRED"], report
        assert "sum(self.prices)" in report["stages"][1]["what"] and '"""Sum prices."""' in report["source"]
        reply = client.call("send_message", target=oid, selector="sum_prices", wait=True)
        client.call("confirm", method=reply["method"]["$ref"])
        shown = client.call("inspect", target=f"{oid}.sum_prices")["result"]
        assert [row["persona"] for row in shown["slots"]["stages"]["value"]] == ["BABS", "BRICK", "ROBIN", "ALFRED"]
        assert report["stages"][3]["what"].startswith("tried once; it belongs to 0x")
