"""The Composite Entropy Metric, its history, and what is done where it stays low."""

import math
import random

import numpy
import pytest
from test_autotelic import Kept, kept  # noqa: F401  (a fixture)
from test_outcomes import GIRAFFES, TOPICS, ask, begin

import batos

SETTINGS = batos.load_settings({}, {})
DAY_US = int(86400e6)
ONE = ("BABS",)
ALL = [("BABS", "BRICK"), ("BRICK", "ROBIN"), ("ALFRED", "BABS"), ("ROBIN", "ALFRED")]


def answer(n, text, personas=ONE, question=None, end="answered"):
    asked = question or f"question {n}"
    return batos.Ended(f"0x{n:x}", "Factual Inquiry", 1.0, end, False, False, personas, asked, text, personas)


def words_of(n, seed=0):
    return " ".join(random.Random(f"{seed} {n}").choices([f"{topic}{k}" for topic in TOPICS for k in range(40)], k=12))


class Root(dict):
    """What the figure is read of: a history, no growth."""

    def __init__(self, grown=()):
        super().__init__(autotelic_obj=batos.UvmObject(cem_history=batos.LOBTree(), stagnations=batos.LOBTree()),
                         pLLM_obj=batos.UvmObject(lora_repository={}))
        if grown:
            self["it"] = batos.UvmObject(**grown)


def method_of(status, days=0):
    return batos.Method(selector="x", source="", status=status, at=batos.now_utc() - batos.datetime.timedelta(days=days))


# The figure


def test_who_speaks_by_hand():
    assert batos._h_cog([answer(n, "x", ("BABS",)) for n in range(9)])[0] == 0.0
    spoken = ["BABS"] * 16 + ["BRICK"] * 4 + ["ROBIN"] * 3 + ["ALFRED"] * 3
    rows = [answer(n, "x", (name,)) for n, name in enumerate(spoken)]
    h_cog, spoke = batos._h_cog(rows)
    assert round(h_cog, 2) == 0.78 and spoke["BABS"] == 16
    random.Random(1).shuffle(rows)
    assert batos._h_cog(rows)[0] == pytest.approx(h_cog)


def test_a_lead_and_each_facet_count_once():
    """BABS leads and speaks by two facets, BRICK by one: 3 to 1."""
    rows = [answer(1, "x", ("BABS", "BABS", "BABS", "BRICK"))]
    by_hand = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    h_cog, spoke = batos._h_cog(rows)
    assert h_cog == pytest.approx(by_hand) and spoke == {"BABS": 3, "BRICK": 1}
    assert f"{batos._h_cog([answer(1, 'x', ONE)])[0]:.2f}" == "0.00"           # and not -0.00


def test_eight_answers_by_hand():
    """By meaning: three answers of the window lie .286, 1 and .6 from the nearest before; by words: shares of words."""
    def unit(angle):
        return [math.cos(angle), math.sin(angle)]
    vectors = numpy.array([unit(math.acos(0.7)), unit(0.0), unit(math.acos(0.4) + math.pi / 2), unit(math.pi / 2)])
    far = [batos._by_meaning(vectors, number) for number in range(3)]
    assert [round(distance, 3) for distance in far] == [0.286, 1.0, 0.6]
    assert round(batos._h_sol(["x"] * 4, vectors)[0], 3) == round(0.6 / 0.75, 3)
    told = ["brass valve", "brass pump", "felt ring", "felt ring", "lamp oil", "lamp", "stone", "brass valve"]
    h_sol, by = batos._h_sol(told, None)
    far = [0.0, 2 / 3, 0.0, 1.0, 0.5, 1.0, 1.0]
    assert by == "words" and h_sol == pytest.approx(sorted(far)[3] / 0.9)


def test_what_grew_within_a_week_counts_and_what_failed_is_taken_off():
    grown = {"a": method_of("trusted"), "b": method_of("trusted"), "c": method_of("trial"), "d": method_of("trusted", 8),
             "e": method_of("quarantined")}
    assert batos._came_in_a_week(Root(grown), batos.unix_us() / 1e6) == 1
    assert batos._came_in_a_week(Root({"e": method_of("quarantined")}), batos.unix_us() / 1e6) == 0
    back = method_of("trusted", 30)
    back.back_at = batos.now_utc()                          # rolled back to: the one that came after it was no good
    assert batos._came_in_a_week(Root(grown | {"f": method_of("trusted"), "g": back}), batos.unix_us() / 1e6) == 1


def test_clients_that_were_made_within_a_week_count():
    root, week_s = Root(), 7 * 86400
    old = batos.UvmObject(at=batos.now_utc() - batos.datetime.timedelta(seconds=week_s + 60), former=None)
    newest = batos.UvmObject(at=batos.now_utc(), former=batos.UvmObject(at=batos.now_utc(), former=old))
    root["morphic_ui_obj"] = batos.UvmObject(newest=newest, incarnation=old)
    assert batos._came_in_a_week(root, batos.unix_us() / 1e6) == 2


def test_a_method_that_was_rolled_back_to_says_when(kept):  # noqa: F811
    one = kept()

    def apply(root):
        obj = root["genesis_obj"]
        for number in (1, 2):
            batos.bring_in(obj, "price_", f"def price_(self):\n    return {number}\n", author="ann", intent="a price")
        found = batos.roll_back(obj, "price_")
        return found.version, found.back_at is not None, batos._worth_of_growth(batos.own(found), "price_", batos.unix_us() / 1e6)
    assert one.write(apply) == (1, True, -1)


def test_too_few_answers_have_no_figure_and_one_question_counts_once():
    rows = [answer(n, words_of(n)) for n in range(11)]
    assert batos.entropy_of(Root(), rows, SETTINGS) is None
    again = [answer(99, words_of(5), question="question 5")] * 100
    assert batos.entropy_of(Root(), again + rows, SETTINGS) is None
    refused = [answer(50, "x", end="unanswered")]
    assert batos.entropy_of(Root(), refused + rows, SETTINGS) is None
    parts = batos.entropy_of(Root(), [answer(12, words_of(12)), *rows], SETTINGS)
    assert parts.n == 12 and parts.cem == pytest.approx(0.4 * parts.h_sol, abs=1e-3)


def test_a_repeated_answer_never_raises_it_and_a_farther_one_never_lowers_it():
    rows = [answer(n, words_of(n // 2)) for n in range(60)]
    before = batos.entropy_of(Root(), rows, SETTINGS).h_sol
    for n in (0, 7, 30):
        repeated = [answer(100, rows[n].answer), *rows]
        assert batos.entropy_of(Root(), repeated, SETTINGS).h_sol <= before
        farther = [*rows[:n], rows[n]._replace(answer=f"entirely other words {n} beside"), *rows[n + 1:]]
        assert batos.entropy_of(Root(), farther, SETTINGS).h_sol >= before


def test_the_weakest_part_is_the_one_by_which_most_is_lost():
    assert batos.weakest_part({"h_cog": 0.1, "h_sol": 0.2, "h_struc": 0.0}, SETTINGS) == "h_cog"
    assert batos.weakest_part({"h_cog": 0.9, "h_sol": 0.2, "h_struc": 0.0}, SETTINGS) == "h_sol"
    assert batos.weakest_part({"h_cog": 0.9, "h_sol": 0.9, "h_struc": 0.0}, SETTINGS) == "h_struc"


def test_fixed_parts_give_a_figure_of_twelve_hundredths(monkeypatch):
    monkeypatch.setattr(batos, "_h_cog", lambda rows: (0.10, {}))
    monkeypatch.setattr(batos, "_h_sol", lambda answers, vectors: (0.20, "words"))
    rows = [answer(n, words_of(n)) for n in range(12)]
    assert batos.entropy_of(Root(), rows, SETTINGS).cem == pytest.approx(0.12)
    assert batos.entropy_of(Root(), rows, batos.load_settings({"cem_cog": 1.0}, {})).cem == pytest.approx(0.18)


def test_as_many_low_beats_in_a_row_as_the_settings_say_are_seen_to(clock):
    root, settings = Root(), batos.load_settings({"stagnation_beats": 5}, {})
    seen = []
    for _ in range(6):
        batos.stored_entropy(root, batos.EntropyParts(0.1, 0.1, 0.1, 0.0, 12, "words", {}), settings)
        seen.append(batos.is_stagnant(root, [], settings))
    assert seen == [False] * 4 + [True] * 2


# Its history, with a clock of the test's own


@pytest.fixture
def clock(monkeypatch):
    now = [1_800_000_000_000_000]
    monkeypatch.setattr(batos, "steady_us", lambda: now[0])
    monkeypatch.setattr(batos, "unix_us", lambda: now[0])
    return now


def week(clock, root, rows_at, beats=24 * 7):
    """Beat hourly; returns the beats at which stagnation is seen to. rows_at: of a beat's number, the newest first."""
    seen = []
    for hour in range(beats):
        clock[0] += int(3600e6)
        rows = rows_at(hour)
        parts = batos.entropy_of(root, rows, SETTINGS)
        row = parts and batos.stored_entropy(root, parts, SETTINGS, rows[0].cycle)
        if row and batos.is_stagnant(root, rows, SETTINGS):
            seen.append(hour)
            note(root, row, clock)
    return seen


def note(root, row, clock):
    """Keep that it is seen to, as _begin_inquiry does."""
    accepted, batos.accept_cycle = batos.accept_cycle, lambda *args: None
    name, batos.oid_text = batos.oid_text, lambda oid: ""
    try:
        batos._begin_inquiry(root, row)
    finally:
        batos.accept_cycle, batos.oid_text = accepted, name


def test_a_week_of_one_subject_by_one_persona_is_seen_to_at_the_third_low_beat_and_once_a_day(clock):
    asked = [answer(n, f"the valve is of brass, number {n % 2}") for n in range(400)]

    def rows_at(hour):
        return asked[: 40 + hour * 2][::-1]
    seen = week(clock, Root(), rows_at, beats=60)
    assert seen == [2, 26, 50]


def test_who_is_on_holiday_gets_no_mission_a_day(clock):
    rows = [answer(n, "the valve is of brass") for n in range(20)]
    seen = week(clock, Root(), lambda hour: rows, beats=24 * 40)
    assert [hour // 24 for hour in seen] == [0, 2, 6, 14, 30]


def test_a_varied_week_is_left_alone(clock):
    rows = [answer(n, words_of(n), ALL[n % 4]) for n in range(300)]
    assert week(clock, Root(), lambda hour: rows[: 30 + hour][::-1]) == []


def test_one_question_a_hundred_times_is_no_stagnation(clock):
    rows = [answer(n, "the valve is of brass", question="How?") for n in range(100)]
    assert week(clock, Root(), lambda hour: rows, beats=10) == []


def test_far_below_the_median_of_a_month_is_low(clock):
    root = Root()
    for _ in range(50):
        clock[0] += int(3600e6)
        batos.stored_entropy(root, batos.EntropyParts(0.8, 1.0, 1.0, 0.0, 50, "words", {}), SETTINGS)
    assert batos.stored_entropy(root, batos.EntropyParts(0.63, 1.0, 0.6, 0.0, 50, "words", {}), SETTINGS)["low"]
    assert not batos.stored_entropy(root, batos.EntropyParts(0.65, 1.0, 0.6, 0.0, 50, "words", {}), SETTINGS)["low"]
    clock[0] = 0                                          # a clock that goes back keeps the order
    batos.stored_entropy(root, batos.EntropyParts(0.7, 1.0, 0.6, 0.0, 50, "words", {}), SETTINGS)
    history = root["autotelic_obj"].cem_history
    assert history[history.maxKey()]["cem"] == 0.7


def test_the_history_is_bounded(clock, monkeypatch):
    monkeypatch.setattr(batos, "_CEM_ROWS_MOST", 5)
    root = Root()
    for n in range(9):
        batos.stored_entropy(root, batos.EntropyParts(n / 10, 0.0, 0.0, 0.0, 12, "words", {}), SETTINGS)
    assert [row["cem"] for row in root["autotelic_obj"].cem_history.values()] == [0.4, 0.5, 0.6, 0.7, 0.8]


# In a mind


def stagnate(one, **parts):
    """Give a mind three low rows."""
    figures = {"cem": 0.12, "h_cog": 0.1, "h_sol": 0.2, "h_struc": 0.0, "n": 50, "by": "words", "spoke": {"BABS": 50}, **parts}

    def apply(root):
        for _ in range(3):
            batos.stored_entropy(root, batos.EntropyParts(**figures), SETTINGS, "0x1")
    one.write(apply)


@pytest.mark.parametrize("parts, part", [({}, "h_cog"), ({"h_cog": 0.9}, "h_sol"), ({"h_cog": 0.9, "h_sol": 0.95}, "h_struc")])
def test_an_inquiry_names_the_weakest_part_and_begins_one_thing(kept, parts, part):  # noqa: F811
    one = kept()
    stagnate(one, **parts)
    begin(one, "systemic_self_improvement", "characterological_inquiry")
    report, = one.reports(1)
    assert f"{part} " in report["answer"] and "weakest" in report["answer"]
    line, = one.write(lambda root: batos.send(root["autotelic_obj"], "audit_report_"))
    assert line["kind"] == "stagnation" and part in line["what"]
    traces = one.write(lambda root: [(t.kind, t.attracts) for t in root["digital_ether"].pheromones.values()])
    assert traces == ([("STAGNATION", ["ROBIN"])] if part == "h_cog" else [])


def test_what_is_asked_in_vain_is_told_where_answers_resemble_those_before(kept):  # noqa: F811
    one = kept()
    ask(one, *GIRAFFES)
    one.reports(3)
    stagnate(one, h_cog=0.9)
    begin(one, "systemic_self_improvement", "characterological_inquiry")
    told = one.reports(4)[3]["answer"]
    assert "asked 3 times about giraffes, unanswered: no document holds it: learn what answers that" in told


def test_a_beat_that_finds_it_low_three_times_asks_why_once_a_day(kept):  # noqa: F811
    one = kept()
    stagnate(one)
    rows = [answer(n, "the valve is of brass") for n in range(20)]

    def look():
        return one.write(batos.beat(one.settings, batos.Looked(0, rows)))
    told = look()
    assert "dissonance of stagnation: CEM" in told["told"] and told["cycle"] and told["cem"]["low"]
    assert one.reports(1)[0]["who"] == "UVM_AUTOTELIC"
    assert look()["cycle"] is None and look()["told"].startswith("nothing went wrong")


def test_an_inquiry_without_a_figure_says_so(kept):  # noqa: F811
    one = kept()
    begin(one, "systemic_self_improvement", "characterological_inquiry")
    assert "too few answers" in one.reports(1)[0]["answer"]


def test_the_figure_is_told_by_message_in_health_and_in_top(kept):  # noqa: F811
    one = kept()
    assert one.write(lambda root: batos.send(root["autotelic_obj"], "composite_entropy_"))["row"] is None
    stagnate(one)
    told = one.write(lambda root: batos.to_wire(batos.send(root["autotelic_obj"], "composite_entropy_")))
    assert told["row"]["cem"] == 0.12 and set(told["counted"]) == {"h_cog", "h_sol", "h_struc"}
    rows = one.write(lambda root: batos.to_wire(batos.send(root["autotelic_obj"], "entropy_history_", 2)))
    assert len(rows) == 2 and rows[0]["low"]
    one.uvm.heartbeat.last = {"told": "", "cycle": None, "cem": {"cem": 0.12, "h_cog": 0.1, "low": True}}
    health = one.uvm.vitals.health()
    assert health["heartbeat"]["cem"]["cem"] == 0.12 and batos._told_entropy(health) == "; CEM 0.12, low"
    assert batos._told_entropy(health, [{"cem": 0.12}, {"cem": 0.99}, {"cem": 0.5}]) == "; CEM 0.12, low ▅█▁"
    assert batos._told_entropy({}) == ""
    assert batos._METRICS["cem"][2](health) == {"cem": 0.12, "h_cog": 0.1}


def test_answers_are_embedded_once(kept):  # noqa: F811
    one, asked = kept(), []

    class Counting:
        state, name = "ready", "double"

        def embed(self, texts, patient=False):
            asked.append(texts)
            return numpy.ones((len(texts), 2), numpy.float32)
    real, one.uvm.embedder = one.uvm.embedder, Counting()
    assert one.uvm.heartbeat._vectors_of(["a", "b"]).shape == (2, 2)
    assert one.uvm.heartbeat._vectors_of(["c", "a"]).shape == (2, 2) and asked == [["a", "b"], ["c"]]
    one.uvm.embedder = real
    assert one.uvm.heartbeat._vectors_of(["a"]) is None and isinstance(one, Kept)
