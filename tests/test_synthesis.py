"""Which methods a message can mean: examples as people write them, words, steps, and what decides between them."""

import collections
import pathlib
import random
import re
import sys

import pytest

import batos

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "bench"))
import asked
import unseen


def read(intent, selector="f", arguments=(), **slots):
    """Return the ExampleReader of an intent."""
    kinds = {name: batos.value_kind(value) for name, value in slots.items()}
    return batos.ExampleReader(intent, selector, kinds, [batos.value_kind(value) for value in arguments])


@pytest.mark.parametrize("intent, words, given, slots, result, after", [
    ("sum it: f() -> 3", "sum it", (), {}, 3, {}),
    ("f(2, n=[(2)]) => [3]. Then more", "Then more", (2,), {"n": [2]}, [3], {}),
    ("f('a)', 1) == {'k': -1.5}", "", ("a)", 1), {}, {"k": -1.5}, {}),
    ("f(1) \u2192 n=[1]", "", (1,), {}, batos.ABSENT, {"n": [1]}),
    ("f(xs=[3, 1]) returns 1", "", (), {"xs": [3, 1]}, 1, {}),
    ("f(xs=[3, 1]) = 1", "", (), {"xs": [3, 1]}, 1, {}),
    ("f(xs=[3, 1]) gives 1", "", (), {"xs": [3, 1]}, 1, {}),
    ("the least: f(xs=[3, 1]) should be 1", "the least", (), {"xs": [3, 1]}, 1, {}),
    ("the least, e.g. [3, 1] -> 1", "the least", (), {"xs": [3, 1]}, 1, {}),
    ("the least, for example xs=[3, 1] gives 1", "the least", (), {"xs": [3, 1]}, 1, {}),
    ("what is left: {total: 120, paid: 45} -> 75", "what is left", (), {"total": 120, "paid": 45}, 75, {}),
    ("what is left. total=120, paid=45 returns 75", "what is left", (), {"total": 120, "paid": 45}, 75, {}),
    ("what is left; with total 120 and paid 45 it gives 75", "what is left; with", (), {"total": 120, "paid": 45}, 75, {}),
    ("the least\n>>> shop.xs = [3, 1]\n>>> shop.f()\n1", "the least", (), {"xs": [3, 1]}, 1, {}),
    (">>> shop.f(4)\n>>> shop.xs\n[3, 4]", "", (4,), {}, batos.ABSENT, {"xs": [3, 4]}),
    ("add: f(5, xs=[1]) -> 2, xs=[1, 5]", "add", (5,), {"xs": [1]}, 2, {"xs": [1, 5]}),
    ("add: f(5, xs=[1]) returns 2 and xs becomes [1, 5]", "add", (5,), {"xs": [1]}, 2, {"xs": [1, 5]}),
    ("f(flag=true) -> false", "", (), {"flag": True}, False, {}),
    ("self.f('x') -> None", "", ("x",), {}, None, {})])
def test_how_an_example_is_written(intent, words, given, slots, result, after):
    of = {"n": [1], "xs": [1], "total": 1, "paid": 2, "flag": True}
    of = {name: value for name, value in of.items() if name in {*slots, *after}} or {"xs": [1]}
    reader = read(intent, arguments=given, **of)
    (_, _, example), = reader.examples
    assert example[1:5] == (given, slots, result, after) and reader.unread == []
    assert words in batos.without_examples(reader)


def test_several_examples_are_read_in_their_order():
    reader = read("the sum, e.g. f(xs=[1, 2]) -> 3, f(xs=[]) = 0 and [4, 5] gives 9", xs=[1])
    assert [example.result for *_, example in reader.examples] == [3, 0, 9]


@pytest.mark.parametrize("intent", ["", "f(x) -> 3", "f(1) -> ", "g(1) -> 2", "f(1 -> 2", "f(__import__('os')) -> 1",
                                    "f(1) -> a + b", "f(" * 3000 + ")" * 3000 + " -> 1",
                                    "f(1) -> " + "[" * 900, "f() -> 9" + "9" * 9000, "f()->[" * 5000,
                                    "f(" + "1," * 9000 + ") -> 1", "x" + " " * 200_000 + "x", "f(1) -> {1}", "f(" * 90_000,
                                    "f(25) -> 15511210043330985984000000", "f(1) -> {1.5: 2}"])
def test_what_is_no_example_is_words(intent):
    reader = read(intent)
    assert reader.examples == [] and isinstance(batos.without_examples(reader), str)


@pytest.mark.parametrize("intent, told", [
    ("sum it: f(xs=XS) -> Y", "f(xs=XS) -> Y"), ("e.g. [1, 2] -> something", "e.g. [1, 2]"), (">>> shop.f(", ">>> shop.f("),
    ("it => 7", "it => 7"), ("f([1, 2], 3) -> 4", "f([1, 2], 3)")])
def test_what_looks_like_an_example_and_is_none_is_told(intent, told):
    reader = read(intent, total=1, count=2)
    assert told in reader.unread[0] and reader.examples == []


def test_prose_is_no_example():
    reader = read("the price of what is above 10, as a number: 3 decimals is fine", price=1, count=2)
    assert reader.examples == [] and reader.unread == []


@pytest.mark.parametrize("piece", ["f(", "[", "{", "'", '"', "a=", "-> ", "f() -> ", ">>> x.f()\n", "1 and ", "xs 1, ",
                                   "(1, ", "\\"])
def test_examples_are_read_in_work_that_grows_with_their_text_alone(piece):
    def calls(count):
        seen = []
        sys.setprofile(lambda frame, event, arg: seen.append(1))
        try:
            read(piece * count, xs=[1])
        finally:
            sys.setprofile(None)
        return len(seen)
    calls(100)                                           # what is cached is there
    assert calls(2000) < 5 * calls(500) + 1000           # 4 times the text


def of_request(selector, intent, arguments=(), shares=None, **slots):
    """Return the rows of a request, the best first."""
    world = batos.world_of(batos.routed_request(selector, intent), slots, arguments)
    said = batos.what_is_said(selector, intent, world, shares or {})
    return sorted((row for rows in batos.enumerated(world, said) for row in rows), key=lambda row: -row[0])


@pytest.mark.parametrize("selector, intent, arguments, slots, body", [
    ("balance_due", "what is still to be paid: total minus paid", (), {"total": 1, "paid": 2}, "return self.total - self.paid"),
    ("f", "subtract paid from total", (), {"paid": 1, "total": 2}, "return self.total - self.paid"),
    ("is_open", "", (), {"open": True}, "return self.open"),
    ("last_three", "the last three of log", (), {"log": ["a"]}, "return self.log[-3:]"),
    ("pop_front", "remove the first of queue", (), {"queue": [1]}, "self.queue = self.queue[1:]"),
    ("add_", "append to tags", ("x",), {"tags": ["y"]}, "self.tags = [*self.tags, value]"),
    ("newest_first", "the log turned round", (), {"log": ["a", "b"]}, "return self.log[::-1]"),
    ("shortest_name", "the name with the fewest characters", (), {"names": ["a", "bc"], "size": 3},
     "return min(self.names, key=len)"),
    ("win_share", "wins as a share of games", (), {"games": 3, "wins": 1}, "return self.wins / self.games"),
    ("email_domain", "what stands behind the @", (), {"email": "a@b.c"}, "return self.email.split('@')[-1]"),
    ("total_salary", "what all of the staff earn together", (), {"staff": [{"name": "a", "salary": 1}]},
     "return sum(each['salary'] for each in self.staff)"),
    ("done_count", "number of tasks already done", (), {"tasks": [{"title": "a", "done": True}]},
     "return sum(bool(each['done']) for each in self.tasks)"),
    ("order_total", "price times quantity plus shipping", (), {"price": 3, "quantity": 4, "shipping": 5},
     "return (self.price * self.quantity) + self.shipping"),
    ("bmi", "weight divided by the square of the height", (), {"weight": 80, "height": 1.8, "name": "n"},
     "return self.weight / (self.height ** 2)"),
    ("profit_margin", "profit as a share of revenue", (), {"costs": 150, "revenue": 200, "name": "p"},
     "return (self.revenue - self.costs) / self.revenue"),
    ("pending_amount", "the total of what is not paid", (), {"invoices": [{"paid": True, "amount": 3}]},
     "return sum(each['amount'] for each in self.invoices if not each['paid'])"),
    ("best_seller", "the product that sold most", (), {"sales": {"a": 3, "b": 4}, "shop": "s"},
     "return max(self.sales, key=self.sales.get)"),
    ("common_items", "what is in both lists", (), {"mine": ["a"], "yours": ["b"]},
     "return [each for each in self.mine if each in self.yours]"),
    ("use_one", "one is used up", (), {"remaining": 3, "product": "milk"}, "self.remaining = self.remaining - 1"),
    ("rename_", "", ("new",), {"size": 4, "name": "old"}, "self.name = value"),
    ("names_of_all", "the name of every item", (), {"items": [{"name": "a", "size": 1}]},
     "return [each['name'] for each in self.items]")])
def test_words_say_which_method_is_meant(selector, intent, arguments, slots, body):
    assert of_request(selector, intent, arguments, **slots)[0][1].body == body


@pytest.mark.parametrize("cue, selector, intent, arguments, slots", [
    ("sort", "by_length", "words sorted by their length", (), {"words": ["bb", "a"]}),
    ("max", "second_highest", "the second highest of bids", (), {"bids": [3, 9]}),
    ("max", "clamp_", "the speed, at most the limit", (5,), {"speed": 9}),
    ("plus", "with_tax", "price plus tax rate", (), {"price": 9, "tax_rate": 0.2})])
def test_a_word_with_an_opposite_speaks_against_no_method_that_does_what_is_meant(cue, selector, intent, arguments, slots):
    row = found(selector, intent, arguments, **slots)[0]
    kinds = {name: batos.slot_type(value) for name, value in slots.items()}
    request = {"selector": selector, "intent": "", "arguments": [batos.slot_type(value) for value in arguments]}
    source = batos.method_source(row["lines"], request).replace(f"def {selector}", "def probe")
    run = lambda slots, arguments: (asked.run(source, slots, arguments), slots)
    tries = batos.tries_of(run, kinds, request["arguments"], random.Random(1), 20)
    said = batos.what_is_said(selector, intent, batos.world_of(intent, slots, arguments), {})
    assert tries and cue in said.cues and batos.against_words(said.cues, tries, slots) == [], row


def test_the_router_is_heard():
    words = {"price": 3, "quantity": 2}
    plain = of_request("f", "the price and the quantity", **words)[0][1].steps
    routed = of_request("f", "the price and the quantity", shares={"minus": 0.99, "times": 0.01}, **words)[0][1].steps
    assert routed == ("minus",) != plain


def test_each_step_has_a_row_and_cues_that_are_known():
    assert set(batos.IDIOMS) <= set(batos.known_steps())
    assert {cue for step in batos.known_steps().values() for cue in step.cues} <= {*batos.CUES, "flag", "get"}
    said = {cue for step in batos.known_steps().values() for cue in step.cues}
    assert set(batos.CUES) - said <= {"unit"}


def test_every_candidate_is_code_that_the_audit_takes():
    slots = {"prices": [1, 2], "names": ["a"], "count": 3, "label": "x", "open": True, "table": {"a": 1},
             "rows": [{"name": "a", "size": 1, "done": True}]}
    rows = of_request("f_", "the first 3 with ', '", ("x",), **slots)
    for _, candidate in random.Random(3).sample(rows, 300):
        request = {"selector": "f_", "intent": "it is", "arguments": ["text"]}
        source = batos.method_source(batos._method_bodies(candidate), request)
        batos.PersistenceGuardian().audit_code(source, "f_")


def test_a_source_tells_its_intent_where_that_is_plain_and_else_the_words_of_its_selector():
    plain, quoted = ({"selector": "f", "intent": intent, "arguments": []} for intent in ("what it costs", 'a " in it'))
    assert batos.method_source(["return 1"], plain) == 'def f(self):\n    """what it costs"""\n    return 1\n'
    assert batos.method_source(["return 1"], quoted) == 'def f(self):\n    """F."""\n    return 1\n'


def found(selector, intent, arguments=(), **slots):
    """Return the rows of find_methods for a message whose intent may hold examples."""
    reader = read(intent, selector, arguments, **slots)
    world = batos.world_of(batos.routed_request(selector, batos.without_examples(reader)), slots, arguments)
    said = batos.what_is_said(selector, batos.without_examples(reader), world, {})
    return batos.find_methods(asked.run, world, said, slots, arguments, [example for *_, example in reader.examples])


# What an example says yes to, half of all methods do that say yes or no: it decides only where words mean the same.
@pytest.mark.parametrize("selector, intent, arguments, slots, is_sure", [
    ("holds_", "does label hold the word, no matter how it is spelt? label='Tea', holds_('TEA') -> True", ("x",),
     {"label": "Tin"}, False),
    ("is_it", "whether open is not so. open=True, is_it() -> True", (), {"open": True, "label": "x"}, False),
    ("is_open", "whether it is open: open=True, is_open() -> True", (), {"open": True, "label": "x"}, True),
    ("year", "the year of date: date='March', year() -> 'March'", (), {"date": "2024-02-03"}, False),
    ("pills_in_a_week", "number of pills taken over seven days. e.g. pills=[{'per_day': 1}] gives 7", (),
     {"pills": [{"per_day": 2}]}, False),                                    # which is also "how many are over 7", plus 7
    ("due", "total minus paid: total=9, paid=2 returns 7", (), {"total": 3, "paid": 1}, True)])
def test_an_example_that_tells_little_confirms_nothing_against_the_words(selector, intent, arguments, slots, is_sure):
    first = found(selector, intent, arguments, **slots)[0]
    assert first["sure"] is is_sure, first


def test_what_is_tried_takes_no_power_without_end():
    assert batos._with_bounded_powers("self.a ** (self.b ** value)") == "power(self.a, power(self.b, value))"
    row = found("f_", "people to the power of it: people=2, f_(3) -> 8", (83_000_000,), people=357_000)[0]
    assert row["lines"] == ["return self.people ** value"]


def test_texts_are_varied_in_their_shape():
    made = {batos._varied("ann@Bo.x7", random.Random(seed)) for seed in range(40)}
    assert any(re.fullmatch(r"[a-z]+@[A-Z][a-z]+\.[a-z]+[0-9]", text) for text in made) and len(made) > 20


@pytest.mark.parametrize("selector, intent, arguments, slots, body", [
    ("unpaid_bills", "bills not paid", (), {"bills": [{"to": "a", "paid": True}]},
     "return [each for each in self.bills if not each['paid']]"),
    ("unpaid", "which bills are unpaid", (), {"bills": [{"to": "a", "paid": True}]},
     "return [each for each in self.bills if not each['paid']]"),
    ("champion", "who has the most points", (), {"table": [{"player": "a", "points": 1}]},
     "return max(self.table, key=lambda each: each['points'])['player']"),
    ("late", "flights with a delay over 10 minutes", (), {"flights": [{"to": "a", "delay": 1}], "gate": 4},
     "return [each for each in self.flights if each['delay'] > 10]"),
    ("in_hours", "the minutes as hours", (), {"minutes": 90}, "return self.minutes / 60"),
    ("set_limit_", "set the limit of a heading", ("rent", 5), {"limits": {"food": 3}},
     "self.limits = {**self.limits, first: second}"),
    ("tools_out", "tools that nobody has lent", (), {"tools": ["a"], "lent": ["b"]},
     "return [each for each in self.tools if each not in self.lent]")])
def test_a_request_is_read_as_what_is_asked_for_of_which_and_with_what(selector, intent, arguments, slots, body):
    assert of_request(selector, intent, arguments, **slots)[0][1].body == body


DAYS = {"readings": [{"date": "2026-03-01", "value": 12.5}, {"date": "2026-03-04", "value": 9}]}
SPENT = {"expenses": [{"category": "food", "amount": 12}, {"category": "rent", "amount": 700}]}


@pytest.mark.parametrize("selector, intent, arguments, slots, body", [
    ("latest_value", "the value of the most recent reading by date", (), DAYS,
     "return max(self.readings, key=lambda each: each['date'])['value']"),
    ("readings_after_", "readings after a given date", ("2026-03-02",), DAYS,
     "return [each for each in self.readings if each['date'] > value]"),
    ("total_by_category", "sum of the amounts per category", (), SPENT,
     "return {it['category']: sum(one['amount'] for one in self.expenses if one['category'] == it['category'])"
     " for it in self.expenses}"),
    ("spent_on_", "total amount spent in the category", ("food",), SPENT,
     "return sum(each['amount'] for each in self.expenses if each['category'] == value)"),
    ("finish_all", "mark every task as done", (), {"tasks": [{"title": "a", "done": False}]},
     "self.tasks = [{**each, 'done': True} for each in self.tasks]"),
    ("slug", "title with dashes instead of spaces", (), {"title": "A b"}, "return self.title.replace(' ', '-')"),
    ("move_", "move a seat from free to taken", ("a1",), {"free": ["a1"], "taken": ["b1"]},
     "self.free, self.taken = [each for each in self.free if each != value], [*self.taken, value]"),
    ("fill", "set the level to the capacity", (), {"level": 3, "capacity": 10}, "self.level = self.capacity")])
def test_quantity_condition_key_and_date_are_read(selector, intent, arguments, slots, body):
    assert of_request(selector, intent, arguments, **slots)[0][1].body == body


def test_a_method_of_two_slots_shifts_no_other_that_is_tried_with_it():
    slots = {"a": 1, "b": 2}
    codes = ["self.b, self.a", "self.a + self.b"]
    noted = dict(batos._probing(asked.run, codes, (), batos._NOTE_VALUE, slots, ()))
    assert noted == {0: hash("(2, 1)"), 1: hash("3")}


@pytest.mark.parametrize("text, is_one", [("2026-03-01", True), ("2026-03", True), ("2026-03-01T10:20", True), ("March", False),
                                          ("20260301", False), (20260301, False)])
def test_what_is_a_date(text, is_one):
    assert batos.is_day(text) is is_one


def test_a_guess_that_leaves_words_unexplained_is_not_sure_by_a_yes():
    row = found("is_weekend", "whether day is sat or sun: day='sun', is_weekend() -> False", day="mon", open=True)
    assert not row or not row[0]["sure"]


@pytest.mark.parametrize("selector, intent, arguments, slots, body", [
    ("louder", "turn the volume up by one, though never past 10", (), {"volume": 6, "station": "R3"},
     "self.volume = min(self.volume + 1, 10)"),
    ("hush", "mute the radio", (), {"volume": 6, "muted": False}, "self.muted = True"),
    ("start_over", "throw everything out of the contents, so that nothing is left", (), {"contents": ["a"], "cart": "c"},
     "self.contents = []"),
    ("edge", "the perimeter of the field", (), {"width": 2, "length": 3, "name": "f"}, "return 2 * (self.width + self.length)"),
    ("hotter_", "turn up the oven by that many degrees", (20,), {"oven": 180, "dish": "pie"}, "self.oven = self.oven + value"),
    ("end_of_card", "the last four letters of the card", (), {"card": "49291234", "holder": "D"}, "return self.card[-4:]"),
    ("scored", "the side has won another point", (), {"points": 2, "side": "L"}, "self.points = self.points + 1"),
    ("tripled_", "the amounts multiplied by the factor", (3,), {"amounts": {"a": 1}, "dish": "pie"},
     "return {key: each * value for key, each in self.amounts.items()}"),
    ("range_", "the highest of the points minus the lowest", (), {"points": [3, 9], "exam": "e"},
     "return max(self.points) - min(self.points)")])
def test_verbs_bounds_and_what_has_happened_are_read(selector, intent, arguments, slots, body):
    assert of_request(selector, intent, arguments, **slots)[0][1].body == body


def test_a_request_speaks_of_what_can_be_done_here():
    world = batos.world_of("", {"oven": 180}, (20,))
    said = batos.what_is_said("f_", "raise the oven by it in May", world, {})
    cues = frozenset().union(*(piece for piece, _ in said.readings))
    assert "grow" in cues and not cues & {"by", "group", "month"}  # there are no rows to be grouped


def test_what_the_selector_alone_says_counts_less_than_the_intent():
    world = batos.world_of("", {"sizes": [3, 1]}, ())
    counts = {counts for piece, counts in batos.what_is_said("sorted_sizes", "their sum", world, {}).readings}
    assert len(counts) == 2 and max(counts) == 1
    assert {counts for _, counts in batos.what_is_said("sorted_sizes", "", world, {}).readings} == {1}


def test_words_that_overlap_say_one_thing():
    pieces = [piece for piece, _ in batos._readings_of("readings over the limit", frozenset(batos.CUES))]
    assert any({"above", "ratio"} <= piece for piece in pieces)
    said = batos.what_is_said("f", "readings over it", batos.world_of("", {"readings": [1], "n": 2}, ()), {})
    step = batos.known_steps()["some_numbers_above_slot"]
    one = batos.Candidate(("some_numbers_above_slot",), None, "1", step.result, ("readings", "n"), frozenset(), ())
    two = one._replace(steps=("some_numbers_above_slot", "ratio"))
    assert batos._features(one, said)["said once"] == 0 < batos._features(two, said)["said once"]


# Requests that nobody fitted anything to are drawn by a seed; here without the router, which makes a few more right.
@pytest.mark.slow
def test_of_phrased_requests_most_are_right_and_few_are_wrong():
    counts = collections.Counter()
    for request in asked.requests("check", "phrased")[::2]:
        rows = asked.found_for(request, {})
        counts[asked.judged(request, rows)[0]] += 1
    assert counts["right"] >= 15 and counts["wrong"] <= 8, counts


# With the embedded core


@pytest.mark.slow
def test_of_unseen_messages_none_is_wrong_without_a_mark():
    sample = {row["id"] for row in unseen.rows_of("example.jsonl")[::3]}
    with unseen.served(methods_per_hour=unseen.METHODS_PER_HOUR) as client:
        ended = unseen.run(client, "example.jsonl", True, sample)
    kinds = [(kind, marked) for _, kind, marked, *_ in ended]
    assert ("wrong", False) not in kinds and sum(kind == "right" for kind, _ in kinds) >= len(sample) / 2
