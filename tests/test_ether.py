"""Traces that missions leave and that draw personas into later ones, and the gate that lets one more in."""

import datetime
import math
import types

import pytest
from test_mind import BRIEF, Speaker, machine  # noqa: F401  (a fixture)
from test_speakers import BOTH, FACTUAL, TECHNICAL, journal, planning

import batos

HOUR = datetime.timedelta(hours=1)
LAMPS = {**BRIEF, "args": ["How is the lantern lit?"]}


def traces(one):
    return one.read(lambda root: [dict(batos.own(trace)) for trace in root["digital_ether"].pheromones.values()])


def write(one, apply):
    outcome = one.lanes["write"].call(batos.Job("test", apply, who="ann"))
    if outcome.error:
        raise outcome.error
    return outcome.result


def age(one, by):
    """Make all traces older."""
    def apply(root):
        for trace in root["digital_ether"].pheromones.values():
            trace.at = trace.at - by
    write(one, apply)


def deposit(one, kind="LOGICAL_INCONSISTENCY", words="giraffes", **how):
    return write(one, lambda root: batos.deposited(root, kind, words, **how))


@pytest.fixture
def thinking(machine):  # noqa: F811
    """A mind whose plans ask BABS and ALFRED, so that BRICK and ROBIN are outside."""
    def make(core=None, **settings):
        one = machine(core or planning(FACTUAL, ["tech_bat_facet_"]), **{"gate": True, "gate_noise": 0.0, **settings})
        one.learn()
        return one
    return make


def test_what_failed_at_the_gate_draws_brick_into_another_mission_by_the_figure_of_the_formula(thinking, monkeypatch):
    one = thinking()
    before = one.think(LAMPS | {"kwargs": {"n": 1}, "args": BRIEF["args"]})["routing"]
    refused = ["pump.md_chunk_0 does not say it"] * 2
    monkeypatch.setattr(batos, "gate_reasons", lambda catalog, evidence: [refused.pop()] if refused else [])
    failed = one.think({**BRIEF, "args": ["What stands at zero at the needle?"]})
    assert failed["state"] == "FAILED" and failed["reason"]["code"] == "GateRefused"
    (trace,) = traces(one)
    assert (trace["kind"], trace["by"], trace["attracts"], trace["cycle"]) == (
        "LOGICAL_INCONSISTENCY", "ALFRED", ["BRICK"], failed["cycle"])
    age(one, HOUR)
    routing = one.think({**BRIEF, "args": ["How is the filter washed?"], "kwargs": {"n": 2}})["routing"]
    by_hand = 0.15 * 0.5 ** (1 / 24) * 0.3
    assert math.isclose(routing["scores"]["BRICK"] - before["scores"]["BRICK"], by_hand, abs_tol=2e-3)
    (row,) = routing["because"]
    assert row["kind"] == "LOGICAL_INCONSISTENCY" and not row["related"] and math.isclose(row["bonus"], by_hand, abs_tol=1e-3)
    age(one, 5 * 24 * HOUR)
    later = one.think({**BRIEF, "kwargs": {"n": 3}})["routing"]
    assert later["because"] == [] and later["scores"] == before["scores"]
    assert write(one, lambda root: batos.send(root["digital_ether"], "evaporate_")) == 1 and traces(one) == []


def test_a_trace_is_left_once_also_over_a_restart(machine, monkeypatch):  # noqa: F811
    monkeypatch.setattr(batos, "gate_reasons", lambda catalog, evidence: ["no"])
    first = machine()
    first.learn()
    report = first.think()
    assert report["state"] == "FAILED"
    error = batos.GateRefused("no", reasons=[])
    first.lanes["bulk"].call(batos.Job("failed", batos._fail_cycle(report["cycle"], error, first.settings), token=True))
    first.close()
    assert [trace["kind"] for trace in traces(machine())] == ["LOGICAL_INCONSISTENCY"]


def test_a_trace_about_the_same_counts_more_and_none_for_its_own_mission(thinking):
    one = thinking()
    deposit(one, words="brass valve", cycle="0x1")
    text = "How is the brass valve turned?"
    far, near, own = one.read(lambda root: [batos.sense_ether(root, words, cycle) for words, cycle in (
        ("filter", ""), (text, ""), (text, "0x1"))])
    assert math.isclose(far["bonus"]["BRICK"], 0.045, abs_tol=1e-3) and math.isclose(near["bonus"]["BRICK"], 0.15, abs_tol=1e-3)
    assert own == {"bonus": {}, "because": []}
    for _ in range(5):
        deposit(one, words="brass valve")
    assert one.read(lambda root: batos.send(root["digital_ether"], "sense_", text))["BRICK"] == 0.3


def test_a_mission_in_which_whom_it_draws_spoke_eases_a_trace(thinking):
    one = thinking(planning(TECHNICAL, BOTH), gate=False)
    related, other = deposit(one, words="brass valve"), deposit(one, words="giraffes")
    gap = deposit(one, "KNOWLEDGE_GAP", "brass valve")
    assert one.think()["experts"] == ["ROBIN", "BRICK"]
    strengths = [trace["strength"] for trace in traces(one)]
    assert [strengths[number] for number in (related, other, gap)] == [0.5, 0.9, 1.0]


def test_what_the_end_of_a_mission_leaves(machine):  # noqa: F811
    one = machine()
    one.learn()
    for n in range(3):
        one.think({**BRIEF, "args": ["What do giraffes eat in Kenya?"], "kwargs": {"n": n}})
    gap, distress = traces(one)                              # of three like one another one is left, as strong as the three
    assert (gap["kind"], distress["kind"]) == ("KNOWLEDGE_GAP", "ARCHITECT_DISTRESS")
    assert math.isclose(gap["strength"], 3.0, abs_tol=1e-3) and gap["cycle"] == distress["cycle"]
    one.think({**BRIEF, "args": ["I am so worried about it all."]})
    assert traces(one)[-1]["kind"] == "ARCHITECT_DISTRESS"
    oid = one.think()["cycle"]
    for _ in range(2):
        one.lanes["bulk"].call(batos.Job("mark", lambda root: batos.mark_answer(root, oid, "wrong", ""), token=True))
    kinds = [trace["kind"] for trace in traces(one)]
    assert kinds[-1] == "LOGICAL_INCONSISTENCY" and kinds.count("LOGICAL_INCONSISTENCY") == 1


def test_two_wrong_marks_in_a_conversation_tell_of_distress(machine):  # noqa: F811
    one = machine()
    one.learn()
    for question in ("How is the brass valve turned?", "How is the filter washed?"):
        oid = one.think({**BRIEF, "args": [question], "conversation": "talk"})["cycle"]
        one.lanes["bulk"].call(batos.Job("mark", lambda root, oid=oid: batos.mark_answer(root, oid, "wrong", ""), token=True))
    assert [trace["kind"] for trace in traces(one)] == ["LOGICAL_INCONSISTENCY"] * 2 + ["ARCHITECT_DISTRESS"]


def test_what_takes_longer_than_95_of_100_is_bloat(machine):  # noqa: F811
    one = machine()

    def pace(root):
        root["digital_ether"].paces = b"".join([batos._PACE.pack(0.0, n / 1e4, n) for n in range(100)])
    write(one, pace)
    assert one.read(lambda root: (batos.is_slow(root, 0.0093), batos.is_slow(root, 0.0095))) == (False, True)
    one.learn()
    one.think()
    assert [trace["kind"] for trace in traces(one)] == ["PROTOCOL_BLOAT"]
    assert one.read(lambda root: len(root["digital_ether"].paces)) == 100 * batos._PACE.size


def test_traces_are_bounded_and_the_weakest_go(machine, monkeypatch):  # noqa: F811
    monkeypatch.setattr(batos, "_PHEROMONES_MOST", 20)
    one = machine()
    write(one, lambda root: [batos.deposited(root, "STAGNATION", "", strength=0.1 + (n % 7) / 10) for n in range(60)] and None)
    assert len(traces(one)) == 20 and min(trace["strength"] for trace in traces(one)) >= 0.5


def test_like_traces_of_one_transaction_become_one(machine):  # noqa: F811
    one = machine()
    write(one, lambda root: [batos.deposited(root, "KNOWLEDGE_GAP", "giraffes", cycle=f"0x{n}") for n in range(3)] and None)
    assert [(trace["cycle"], round(trace["strength"], 3)) for trace in traces(one)] == [("0x2", 3.0)]


def test_of_many_traces_a_mission_keeps_those_that_add_most(machine):  # noqa: F811
    one = machine()
    write(one, lambda root: [batos.deposited(root, "STAGNATION", f"word{n}", strength=n / 100) for n in range(10, 90)] and None)
    told = one.read(lambda root: batos.sense_ether(root, "word20"))["because"]
    assert len(told) == 20 and [row["bonus"] for row in told] == sorted([row["bonus"] for row in told], reverse=True)
    assert "word89" in traces(one)[told[0]["number"]]["words"] and told[0]["personas"] == []


def test_who_leaves_traces_by_messages_is_bounded_and_named(machine):  # noqa: F811
    one = machine()

    def leave(*args):
        return write(one, lambda root: batos.send(root["digital_ether"], "deposit_", *args))
    for wrong in (("ANGER", "x"), ("STAGNATION", " "), ("STAGNATION", "x", 2), ("STAGNATION", 7), ("STAGNATION", "x", True)):
        with pytest.raises(batos.BadRequest):
            leave(*wrong)
    for n in range(10):
        assert leave("KNOWLEDGE_GAP", "giraffes", 0.5) == n
    with pytest.raises(batos.Busy, match="ann left 10"):
        leave("KNOWLEDGE_GAP", "giraffes")
    assert {trace["by"] for trace in traces(one)} == {"ann"}
    assert one.read(lambda root: batos.is_protected(root["digital_ether"], "pheromones"))


@pytest.mark.parametrize("rows", [[], {}, {**batos.PHEROMONES, "X": {}}, {**batos.PHEROMONES, "STAGNATION": {"by": "ALFRED"}},
                                  {**batos.PHEROMONES, "STAGNATION": {"by": "ALFRED", "attracts": ["BOB"], "when": "x"}}])
def test_the_kinds_of_traces_are_data_that_is_checked(machine, rows):  # noqa: F811
    one = machine()
    with pytest.raises(batos.BadSlot):
        batos.KINDS["codex"].texts["pheromones"](rows)
    mine = {**batos.PHEROMONES, "STAGNATION": {"by": "BABS", "attracts": ["ROBIN"], "when": "often"}}
    write(one, lambda root: str(batos.send(root["codex_obj"], "setSlot_value_", "pheromones", mine)))
    deposit(one, "STAGNATION")
    assert (traces(one)[0]["by"], traces(one)[0]["attracts"]) == ("BABS", ["ROBIN"])


def test_traces_of_what_is_forgotten_are_forgotten(machine):  # noqa: F811
    one = machine()
    one.learn()
    one.think({**BRIEF, "args": ["What do giraffes eat in Kenya?"]})
    deposit(one, words="giraffes by message")
    deposit(one, words="brass valve")

    def erase(root):
        found = batos._what_to_forget(root, "matching", "giraffes")
        places = batos._found_in_places(root, "matching", "giraffes", *found)
        assert len(places["traces"]) == 2
        return batos._erase_unless_changed(root, "matching", "giraffes", *found, [])
    assert one.lanes["bulk"].call(batos.Job("forget", erase, token=True)).error is None
    assert [list(trace["words"]) for trace in traces(one)] == [["brass", "valv"]]


# The gate


def cycle_of(n):
    return types.SimpleNamespace(_p_oid=n.to_bytes(8, "big"), _p_jar=None)


def test_a_cell_is_let_in_as_often_as_the_formula_says_and_one_without_a_cell_never(monkeypatch):
    """2,000 draws on a fixed share: those of a normal distribution beyond the floor."""
    monkeypatch.setattr(batos, "root_of", lambda obj: {"image_id": "x"})
    drawn = [batos._draws(cycle_of(n), 0.08) for n in range(2000)]
    rate = 0.5 * math.erfc((0.45 - 0.30) / 0.08 / math.sqrt(2))
    count = sum(0.30 + draws["ALFRED"] >= 0.45 for draws in drawn)
    assert abs(count - 2000 * rate) < 3 * math.sqrt(2000 * rate * (1 - rate)) and 0.029 < rate < 0.032
    assert not any(0.10 + draws["BABS"] >= 0.45 for draws in drawn)
    assert batos._draws(cycle_of(7), 0.08) == drawn[7] and set(batos._draws(cycle_of(7), 0.0).values()) == {0.0}


def test_the_scores_are_those_of_the_images_matrix():
    root = {"codex_obj": types.SimpleNamespace(archetypes=batos.MATRIX)}
    plan, none = {"strategy": TECHNICAL, "relevant_pillars": ["guide_facet_"]}, dict.fromkeys(batos.PILLARS, 0.0)
    scores = batos._scores(root, plan, {TECHNICAL: 0.8, FACTUAL: 0.2}, {"ROBIN": 0.1}, none)
    assert scores == {"ROBIN": 0.4, "BRICK": 0.92, "BABS": 0.44, "ALFRED": 0.3}
    assert batos._shares_of(plan, {TECHNICAL: 0.75, FACTUAL: 0.25}) == {TECHNICAL: 0.75, FACTUAL: 0.25}
    assert batos._shares_of(plan, {}) == {TECHNICAL: 1.0}


@pytest.mark.parametrize("settings, guest", [
    ({}, None), ({"gate_floor": 0.2}, "ROBIN"), ({"gate_floor": 0.2, "gate": False}, None),
    ({"gate_noise": 0.0, "gate_floor": 0.31}, None)])
def test_one_more_is_let_in_by_the_settings(thinking, settings, guest):
    routing = thinking(**settings).think()["routing"]
    assert routing["let_in"] == guest and routing["speak"] == (["ROBIN", "BABS"] if guest else ["BABS"])


@pytest.mark.parametrize("writes", [False, True])
def test_a_guest_changes_neither_lead_nor_what_is_told_first(thinking, writes):
    one = thinking(Speaker("Turn the brass valve.") if writes else None, gate_floor=0.2)
    question = {**BRIEF, "args": ["How is the brass valve turned, and the filter washed?"]}
    report = one.think(question)
    one.mind.settings.gate = False
    one.mind._recall.settings.gate = False
    plain = one.think({**question, "kwargs": {"n": 1}})
    assert report["routing"]["let_in"] and not plain["routing"]["let_in"]
    assert report["lead"] == plain["lead"] == "BABS" and report["answer"] == plain["answer"]
    assert report["evidence"][:len(plain["evidence"])] == plain["evidence"]
    assert len(report["pillars"]) == len(plain["pillars"]) + 1


@pytest.mark.parametrize(("question", "recalls"), [
    ("How is the brass valve turned, and the filter washed?", 2),      # the mission, the guest's part of it
    ("How is the brass valve turned?", 1)])                            # its one part is the mission
def test_a_guest_costs_one_recall_more_where_it_seeks_a_part(thinking, monkeypatch, question, recalls):
    one, sought, find = thinking(gate_floor=0.2), [], batos.find_evidence
    monkeypatch.setattr(batos, "find_evidence", lambda *args: sought.append(args[1]) or find(*args))
    report = one.think({**BRIEF, "args": [question]})
    assert report["routing"]["let_in"] and len(sought) == recalls
    assert [item["also"] for item in report["evidence"] if "also" in item] in ([], [report["routing"]["let_in"]])


def test_a_full_plan_lets_nobody_in(thinking):
    pillars = ["guide_facet_", "tech_bat_facet_", "iceman_facet_", "hitchhiker_facet_"]
    routing = thinking(planning(FACTUAL, pillars), gate_floor=0.0).think()["routing"]
    assert routing["let_in"] is None


def test_a_guest_looks_for_the_part_that_weighs_most_by_the_pillar_that_is_nearest(thinking):
    one = thinking()
    mission = "How is the brass valve turned, and where are giraffes and okapis kept?"
    part = one.read(lambda root: batos._heaviest_part(root, mission))
    assert part == "How is the brass valve turned"
    off = types.SimpleNamespace(state="off")
    text = "a mission against an unjust system"
    assert one.read(lambda root: batos._nearest_pillar(root, "BRICK", text, off)) == "lego_batman_facet_"


def test_why_tells_it_in_plain_words(daemon, monkeypatch, capsys):
    started = daemon(core=0)
    monkeypatch.setenv("BATOS_ENDPOINT", started.endpoint)
    with batos.Client(started.endpoint) as client:
        client.call("index_document", doc_id="pump.md", text="Turn the brass valve until the needle stands at zero.")
        brief = {"type": "direct_synthesis", "selector": "q", "args": ["How is the brass valve turned?"]}
        oid = client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)["result"]["cycle"]
    assert batos.main(["why", oid]) == 0
    told = capsys.readouterr().out
    assert f"{oid} is Factual Inquiry" in told and "BABS led; BABS spoke, by tech_bat, iceman" in told
    assert "let in beside them: nobody (the floor is 0.45)" in told
    assert batos.main(["why", "genesis_obj"]) == 1


def test_what_why_tells_of_traces_turns_and_searches():
    routing = {"shares": {TECHNICAL: 0.9}, "archetype": TECHNICAL, "lead": "BRICK", "speak": ["BRICK"], "let_in": "BABS",
               "floor": 0.45, "scores": {"BABS": 0.5}, "bonus": {"BABS": 0.15}, "drawn": {"BABS": 0.05}, "resonance": "holds",
               "because": [{"number": 3, "kind": "KNOWLEDGE_GAP", "personas": ["BABS"], "bonus": 0.15, "related": True}],
               "retrieval": {"focus": "giraffe", "added": []},
               "contrapunto": {"BRICK": {"focus": "needle", "added": ["a_chunk_1"], "dropped": ["b_chunk_0"]}}}
    told = "\n".join(batos._told_routing("0x1", {"routing": routing, "pillars": ["guide_facet_"], "notes": ["old"]}))
    for words in ("trace 3 (KNOWLEDGE_GAP, about this) draws BABS by 0.150", "let in beside them: BABS", "ALFRED notes: old",
                  "BABS searched once more for “giraffe”: nothing new", "added a_chunk_1, would drop b_chunk_0",
                  "resonance: holds"):
        assert words in told


@pytest.mark.parametrize("question, told", [
    ("hello", "needed no search"), ("What do giraffes eat?", "is about what memory does not hold"),
    ("I feel so lost and alone.", "says how somebody feels: ROBIN answered, and claims nothing")])
def test_why_tells_also_of_what_had_no_plan(thinking, question, told):
    one = thinking()
    report = one.think({**BRIEF, "args": [question]})
    lines = one.read(lambda root: list(batos.told_why(root, batos.find_cycle(root, report["cycle"]))))
    assert told in lines[0]
    traces = [line for line in lines if line.startswith("it left trace")]
    kind = {"What do giraffes eat?": "KNOWLEDGE_GAP", "I feel so lost and alone.": "ARCHITECT_DISTRESS"}.get(question)
    assert len(traces) == bool(kind) and (not kind or f"({kind})" in traces[0] and "1.00 of it is left" in traces[0])


def test_why_tells_of_missions_that_go_by_steps_of_their_own(thinking):
    one = thinking()
    audit = {"type": "self_audit", "selector": "perform_cognitive_efficiency_audit", "args": [], "kwargs": {}}
    report = one.think(audit)
    lines = one.read(lambda root: list(batos.told_why(root, batos.find_cycle(root, report["cycle"]))))
    assert lines == [f"{report['cycle']} is no question but perform_cognitive_efficiency_audit (self_audit), which goes by "
                     "steps of its own: nobody was chosen"]


def test_why_tells_of_what_failed_and_of_what_has_not_ended():
    reason = {"reason": {"code": "DeadlineExceeded", "details": "x"}}
    assert list(batos._told_routing("0x1", reason)) == ["0x1 failed before anybody was chosen: DeadlineExceeded"]
    nearest = {"certainty": "nearest", "relevant": False, "tree": {"stands": "1", "nodes": []}}
    assert "the nearest is told" in next(batos._told_routing("0x1", nearest))


def test_the_same_cycle_draws_the_same_after_a_restart(thinking):
    one = thinking(gate_noise=0.08)
    report = one.think()
    told = journal(one, report)["who speaks"]
    drawn = one.read(lambda root: batos._draws(batos.find_cycle(root, report["cycle"]), 0.08))
    assert told["drawn"] == drawn == report["routing"]["drawn"] and any(drawn.values())
