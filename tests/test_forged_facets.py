"""A facet that is forged: of questions that are answered worse than others for two weeks, bound where its expert is better,
gone where nobody needs it."""

import datetime
import json

import pytest
from test_forged_experts import made
from test_improving import Improver, opening

import batos

PERSONA = "BABS"
PUMPS = "Where is valve number {} of the pump?"
OTHERS = "Name the keeper of ledger number {}."


class Letters:
    """Stands for an embedder: questions are near that begin with the same letter."""

    state = "ready"

    def embed(self, texts):
        return batos.need("numpy", "tests").stack([self.query(text) for text in texts])

    def query(self, text):
        return batos.need("numpy", "tests").eye(128, dtype="float32")[ord(text[0])]


def passage(text):
    return {"headings": [], "text": text, "share": 0.7, "doc_id": "pump.md", "version": 1, "lines": [1, 1], "chunk_id": text,
            "span": None}


def ask(root, question, days, answered=True, mark=None, **more):
    """Have a question been asked some days ago."""
    brief = {"type": "direct_synthesis", "selector": "answer_", "args": [question]}
    cycle = batos.accept_cycle(root, brief, None, "me")
    told = {"answer": "x", "relevant": answered, "certainty": "sure" if answered else "none", "lead": PERSONA, **more}
    told["evidence"] = [passage("The valve is in the cellar."), passage("Flour is white.")] if answered else []
    told |= {"feedback": {"mark": mark}} if mark else {}
    batos._end_cycle(cycle, told, 7.0)
    batos.set_slot(cycle, "accepted_at", batos.now_utc() - datetime.timedelta(days=days))
    return cycle


def asked(root, pumps_answered, others_answered=30, count=30):
    """Ask of pumps and of ledgers through two weeks, the newest last: so many of each in thirty are answered."""
    for number in range(count):
        days = 13 - 13 * number / count
        mark = "right" if number % 5 < pumps_answered / 6 else None
        ask(root, PUMPS.format(number), days, number % 30 * 7 % 30 < pumps_answered, mark)
        ask(root, OTHERS.format(number), days, number % 30 * 7 % 30 < others_answered)


@pytest.fixture
def image(tmp_path):
    one = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(one)
    yield one
    one.close()


def group(root):
    rows = batos._asked_of_late(root)
    return rows, *batos._worst_group(rows, Letters().embed([row.text for row in rows]))


@pytest.mark.parametrize("pumps, others, found", [(15, 30, True), (25, 30, False), (15, 15, False)])
def test_a_group_is_found_that_is_answered_worse_in_both_weeks(image, pumps, others, found):
    with batos.writing(image) as root:
        asked(root, pumps, others)
        rows, some, vector = group(root)
        assert (some is not None) is found and batos.facets_due(root) is (pumps + others <= 56)
        if found:
            assert len(some) == 30 and all(row.text.startswith("Where") for row in some)
            assert vector @ Letters().query("Where") == 1
            told = batos._group_told(some, rows, vector)
            assert told["persona"] == PERSONA and told["words"][0] in ("pump", "valv", "valve")
            assert batos.owner_of(told["pillar"]) == PERSONA and told["target"].startswith("FACET_")


def test_a_group_that_is_small_or_bad_in_one_week_alone_is_none(image):
    with batos.writing(image) as root:
        asked(root, 15, 30, count=18)
        assert group(root)[1] is None                    # fewer than twenty
        for number in range(18, 40):
            ask(root, PUMPS.format(number), 1, True)
            ask(root, OTHERS.format(number), 1, False)
        assert group(root)[1] is None                    # this week it is the others


def test_rows_are_made_of_what_was_marked_right_once(image):
    with batos.writing(image) as root:
        right = batos.cycle_id(ask(root, PUMPS.format(1), 1, mark="right"))
        second = ask(root, PUMPS.format(2), 1, mark="wrong")
        said = second.result["feedback"] | {"correction": {"quotes": [2], "not": [1]}}
        second.result = second.result | {"feedback": said}
        unmarked = batos.cycle_id(ask(root, PUMPS.format(3), 1))
        cycles = [right, batos.cycle_id(second), unmarked, "0x999999"]
        for _ in range(2):
            batos.keep_choices(root, "FACET_PUMP", PERSONA, cycles, "me")
        rows = list(root["golden_obj"].rows.values())
        assert [row["wanted"].split("\n")[0] for row in rows] == ["1", "2"] and {row["target"] for row in rows} == {"FACET_PUMP"}
        assert [batos._judged_row(root, n, row)[0] for n, row in enumerate(rows)] == ["accepted", "accepted"]
        second.result = second.result | {"feedback": {"mark": "right"}}
        assert batos._judged_row(root, 1, rows[1])[1] == "the mark was taken back, or given anew"
        assert json.loads(batos._golden_line(1, rows[0], True))["instruction"].startswith("facet\n")


class Facets(Improver):
    """A machine whose questions about pumps are answered badly, but often enough marked right to learn from."""

    @property
    def candidate(self):
        return made(self.settled, 0.5)

    def __init__(self, path, **settings):
        self.settled = path.parent
        super().__init__(path, **settings)
        self.mind._recall = self.mind._recall._replace(embedder=Letters())

    @staticmethod
    def fill(where, count=120):
        image = batos.Image.open(where)
        batos.genesis(image)
        with batos.writing(image) as root:
            batos.index_document_(root["knowledge_catalog_obj"], "pump.md", "The valve is in the cellar.")
            asked(root, 15, count=200)
        image.close()


@pytest.fixture
def facets(tmp_path, monkeypatch):
    # that a question is held back goes by the first one like it; here each is like itself alone
    monkeypatch.setattr(batos, "_clusters_of", lambda rows, numbers, embedder: [[n, held_question(n)] for n in numbers])
    with opening(Facets, tmp_path) as start:
        yield start


def held_question(number):
    """Return a question of which every third is held back."""
    wanted, tried = number % 3 == 0, 0
    while batos._is_held_back(f"{number} {tried}") is not wanted:
        tried += 1
    return f"{number} {tried}"


def begun(one):
    return one.lanes["write"].call(batos.Job("facet", lambda root: batos.begin_facet(root, "me"), who="me")).result


def test_a_facet_is_forged_bound_and_comes_in_where_it_is_asked_for(facets):
    one = facets()
    cycle = begun(one)
    report = one.ended(cycle)
    assert report["status"] == "PROMOTED" and "is a facet now" in report["answer"], report

    def seen(root):
        pillar = report["pillar"]
        bound = batos.own(root["codex_obj"])["facet_experts"]
        made_of = root["babs_prototype_obj"].pillars[pillar]
        nearest = batos.nearest_made_facet(root, "Where is the other valve?", Letters())
        return pillar, bound[pillar], made_of.expert, nearest, list(batos.mind_of(root).lora_repository)
    pillar, bound, expert, nearest, experts = one.read(seen)
    assert bound == expert and experts == [expert] and nearest == pillar and expert.startswith("FACET_")
    assert one.read(lambda root: batos.nearest_made_facet(root, "Name it.", Letters())) is None
    assert one.minds()["current"] == 1                   # an expert more, and no other mind
    change, = one.read(lambda root: [row["change"] for row in batos.history_of(root, 50, root["codex_obj"])[0]])
    one.lanes["bulk"].call(batos.Job("undo", lambda root: len(batos.undo_change(root, change)), who="me"))
    assert one.read(lambda root: batos.pillars_of(root)) == list(batos.PILLAR_ORDER)


def test_what_is_not_better_makes_no_facet(facets):
    one = facets(wins=0)
    report = one.ended(begun(one))
    assert "No facet is made" in report["answer"] and report["status"] == "REJECTED"
    assert one.read(lambda root: [batos.own(root["codex_obj"])["facet_experts"], batos.pillars_of(root)]) == [
        {}, list(batos.PILLAR_ORDER)]


def test_where_too_few_were_marked_right_nothing_is_forged(tmp_path):
    one = Facets(tmp_path / "image.fs")
    try:
        one.lanes["bulk"].call(batos.Job("unmark", unmarked, who="me"))
        report = one.ended(begun(one))
        assert "Nothing is to be learnt yet" in report["answer"] and one.jobs() == []
    finally:
        one.close()


def unmarked(root):
    for cycle in root["missions"].values():
        cycle.result = {name: told for name, told in cycle.result.items() if name != "feedback"}


def test_a_facet_of_which_nothing_was_told_for_a_month_goes(image):
    with batos.writing(image) as root:
        for name, days in (("old", 31), ("used", 31), ("young", 2)):
            at = batos.now_utc() - datetime.timedelta(days=days)
            pillar = batos.UvmObject(name=name, intent="Say it.", about={}, expert=f"FACET_{name.upper()}", at=at)
            root["babs_prototype_obj"].pillars[f"babs_{name}_facet_"] = pillar
            batos.bind_expert(root, f"babs_{name}_facet_", f"FACET_{name.upper()}")
        by_hand = batos.UvmObject(name="hand", intent="Say it.", about={})
        root["babs_prototype_obj"].pillars["babs_hand_facet_"] = by_hand
        ask(root, "Where is it?", 3, experts=["BABS", "FACET_USED"])
        assert batos.let_facets_go(root) == ["babs_old_facet_"]
        assert sorted(batos.own(root["codex_obj"])["facet_experts"]) == ["babs_used_facet_", "babs_young_facet_"]
        assert "babs_hand_facet_" in root["babs_prototype_obj"].pillars and batos.let_facets_go(root) == []


def test_a_heartbeat_begins_to_look_once_a_day_where_the_forge_may_begin_by_itself(image):
    with batos.writing(image) as root:
        asked(root, 15, 30)
        assert batos._seen_to_facets(root, batos.load_settings({}, {})) is None
        on = batos.load_settings({"forge_auto": "on"}, {})
        told = batos._seen_to_facets(root, on)
        assert told["cycle"] is not None and "want a facet" in told["told"]
        cycle = batos.find_cycle(root, told["cycle"])
        assert cycle.mission_brief["selector"] == "forge_facet" and batos.begin_facet(root, "me") == told["cycle"]
        batos._end_cycle(cycle, {"answer": "x"}, 7.0)
        assert batos._seen_to_facets(root, on) is None
