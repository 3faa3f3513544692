"""Code by four: each method says what it does in words of its request, and who took which part in it."""

import ast

import pytest

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
    assert said and set(batos.stems(said)) <= set(batos.stems(f"{batos._docstring_of(request)} {intent}"))
    assert len(function.body) == 2


@pytest.mark.parametrize("text, found", [
    ("the median of prices", ["statistics.median"]), ("the sum of prices", []), ("", []),
    ("the square root of a number, and its logarithm", ["math.sqrt", "math.log"])])
def test_babs_knows_what_the_libraries_have(text, found):
    assert batos.facades_for(text) == found
    for name in batos._LIBRARIES.values():
        module, _, function = name.partition(".")
        assert module in batos.FACADES and (not batos.FACADES[module] or function in batos.FACADES[module]), name


def test_each_of_the_four_has_a_part():
    stages = batos.code_stages(REQUEST, SOURCE, None, "total of each", 2, "it belongs here: it has prices")
    assert [(row["stage"], row["persona"]) for row in stages] == [
        ("library", "BABS"), ("body", "BRICK"), ("docstring", "ROBIN"), ("assembly", "ALFRED")]
    told = {row["persona"]: row["what"] for row in stages}
    assert told["BABS"] == "none is needed" and told["ROBIN"] == "The sum of prices." and "tried 2 times" in told["ALFRED"]
    assert told["BRICK"] == "total of each: return sum(self.prices)"
    source = "import statistics\n\n\ndef sum_prices(self):\n    return statistics.median(self.prices)\n"
    told = {row["persona"]: row["what"] for row in batos.code_stages(REQUEST, source, None, "it", 1, "x")}
    assert told["BABS"] == "statistics" and told["ROBIN"] == "it says nothing"
    assert batos.code_stages(REQUEST, SOURCE, "total of shop", "known", 1, "x")[0]["what"] == "total of shop, which the image has"


def test_a_mission_that_writes_a_method_tells_who_took_which_part(daemon):
    with batos.Client(daemon(core=0).endpoint, 300) as client:
        oid = client.call("send_message", target="genesis_obj", selector="clone")["result"]["$ref"]
        client.call("send_message", target=oid, selector="setSlot_value_", args=["prices", [1, 2]])
        brief = {"type": "unhandled_message", "selector": "sum_prices", "args": [], "kwargs": {}}
        report = client.call("initiate_cognitive_cycle", target_oid=oid, mission_brief=brief, wait=True)["result"]
        assert "stages" in report, report["reason"]
        assert [row["persona"] for row in report["stages"]] == ["BABS", "BRICK", "ROBIN", "ALFRED"], report
        assert "sum(self.prices)" in report["stages"][1]["what"] and '"""Sum prices."""' in report["source"]
