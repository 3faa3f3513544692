"""Who speaks: the matrix of the image's codex, BRICK and ROBIN in contrapunto, BABS and ALFRED where they are called."""

import types

import doubles
import pytest
from test_mind import BRIEF, Speaker, machine  # noqa: F401  (a fixture)

import batos

BOTH = ["sage_facet_", "guide_facet_"]                   # of ROBIN, of BRICK
TECHNICAL, FACTUAL, EMOTIONAL = "Technical Deconstruction", "Factual Inquiry", "Emotional Processing"
FEELING = {**BRIEF, "args": ["I am so worried about everything."]}


def planning(strategy, pillars, words=None):
    """Return a core's double that plans so."""
    def plan(fields):
        queries = dict.fromkeys(pillars, words or fields["mission"])
        return {"strategy": strategy, "relevant_pillars": pillars, "sub_queries": queries}
    return doubles.QuickCore(plan=plan)


def set_row(one, archetype, row):
    return one.lanes["write"].call(batos.Job("row", lambda root: batos.send(
        root["codex_obj"], "setArchetype_to_", archetype, row)))


def journal(one, report):
    return one.read(lambda root: {e.name: e.answer for e in batos.find_cycle(root, report["cycle"]).journal})


def test_a_changed_row_changes_who_is_asked_next_and_undo_restores_it(daemon):
    with batos.Client(daemon(core=0).endpoint) as client:
        client.call("index_document", doc_id="pump.md", text="Turn the brass valve until the needle stands at zero.")

        def ask():
            brief = {"type": "direct_synthesis", "selector": "q", "args": ["How is the brass valve turned?"]}
            told = client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)["result"]
            return told["experts"], told["pillars"]
        assert ask() == (["BABS"], ["tech_bat_facet_", "iceman_facet_"])
        row = {"support": {"ALFRED": "doubts"}}
        change = client.call("send_message", target="codex_obj", selector="setArchetype:to:", args=[FACTUAL, row])["change"]
        assert ask() == (["BABS", "ALFRED"], ["tech_bat_facet_", "iceman_facet_", "pragmatist_facet_"])
        client.call("undo", change=change)
        assert ask()[0] == ["BABS"]


def test_in_place_of_who_is_not_named_the_others_are_asked(machine):  # noqa: F811
    one = machine(planning(TECHNICAL, BOTH))
    one.learn()
    assert one.think()["experts"] == ["ROBIN", "BRICK"]
    set_row(one, TECHNICAL, {"support": {"BABS": "data"}})
    report = one.think()
    assert report["experts"] == ["BRICK", "BABS"] and report["lead"] == "BRICK"
    set_row(one, TECHNICAL, {"lead": "ALFRED", "support": {}})
    report = one.think()
    assert report["experts"] == ["ALFRED"] and report["lead"] == "ALFRED" and report["evidence"]


@pytest.mark.parametrize("archetype, row", [
    ("Poetry", {}), (TECHNICAL, []), (TECHNICAL, {"lead": "NOBODY"}), (TECHNICAL, {"support": {"NOBODY": "x"}}),
    (TECHNICAL, {"BABS": ""}), (TECHNICAL, {"guest": "x"})])
def test_a_row_is_checked_when_it_is_set(machine, archetype, row):  # noqa: F811
    one = machine()
    with pytest.raises(batos.BadSlot):
        set_row(one, archetype, row)
    assert one.read(lambda root: dict(root["codex_obj"].archetypes)) == batos.MATRIX


@pytest.mark.parametrize("core", ["plain", "writes"])
def test_a_mission_about_a_persona_is_led_by_it(machine, core):  # noqa: F811
    one = machine(Speaker("Turn the brass valve.") if core == "writes" else None)
    one.learn()
    oid = one.lanes["write"].call(batos.Job("accept", lambda root: batos.cycle_id(batos.send(
        root["orchestrator_obj"], "start_cognitive_cycle_for_", BRIEF, "robin_prototype_obj")))).result
    report = one.ended(oid)
    assert report["lead"] == "ROBIN" and report["evidence"] and report["routing"]["lead"] == "ROBIN"


def test_personas_say_in_a_line_what_they_are_like(machine):  # noqa: F811
    told = machine().read(lambda root: [root[f"{name.lower()}_prototype_obj"].archetype for name in batos.PILLARS])
    assert told == list(batos.PERSONA_ARCHETYPES.values())


# Contrapunto


@pytest.mark.parametrize("on", [True, False])
def test_brick_and_robin_answer_each_other_where_both_spoke(machine, on):  # noqa: F811
    one = machine(planning(TECHNICAL, BOTH), contrapunto=on)
    one.learn()
    one.learn("The brass needle of the gauge rests at zero while the pump is idle.\n", "gauge.md")
    report = one.think()
    turns = journal(one, report).get("contrapunto")
    assert (turns is not None) == on
    if on:
        assert set(turns) == {"BRICK", "ROBIN"} and all(set(turn) == {"focus", "added", "dropped"} for turn in turns.values())
        assert "needle" in turns["BRICK"]["focus"]
    added = [item["also"] for item in report["evidence"] if "also" in item]
    assert len(added) <= 1 and "also" not in report["evidence"][0]


def test_what_contrapunto_adds_is_told_as_also_behind_what_stands(machine, monkeypatch):  # noqa: F811
    one = machine(planning(TECHNICAL, BOTH))
    one.learn()
    one.learn("The felt ring of the other pump is greased twice a year.\n", "ring.md")
    find, other = batos.find_evidence, []

    def finding(catalog, query, recall, focus="", places=({},), before=""):
        found = find(catalog, query if not focus else "felt ring greased", recall, "", places, before)
        other.append(focus)
        return found
    plain = one.think()["evidence"]
    monkeypatch.setattr(batos, "find_evidence", finding)
    report = one.think({**BRIEF, "kwargs": {"n": 1}})
    assert [item["text"] for item in report["evidence"][:-1]] == [item["text"] for item in plain]
    assert report["evidence"][-1]["doc_id"] == "ring.md" and report["evidence"][-1]["also"] == "BRICK" and any(other)
    told = "\n".join(batos.told_answer(report))
    assert "ring.md:1 (also, by BRICK)" in told


@pytest.mark.parametrize("strategy, pillars, brief, due", [
    (FACTUAL, BOTH, {}, False), (FACTUAL, BOTH, {"kwargs": {"depth": 1}}, True), (EMOTIONAL, BOTH, {}, True),
    (TECHNICAL, ["guide_facet_", "tamland_facet_"], {}, False)])
def test_when_they_answer_each_other(machine, strategy, pillars, brief, due):  # noqa: F811
    one = machine(planning(strategy, pillars))
    one.learn()
    assert ("contrapunto" in journal(one, one.think({**BRIEF, **brief}))) == due


def test_they_answer_each_other_where_what_they_chose_contradicts():
    said = {BOTH[0]: "The pump has two valves.", BOTH[1]: "The pump has three valves."}
    parts = {pillar: {"quotes": [{"text": text}]} for pillar, text in said.items()}
    state = batos.UvmObject(follows=["CONTRAPUNTO"])
    cycle = batos.UvmObject(**{"synthesis_state*": state, "mission_brief": {},
                               "_tmp_synthesis_data": {"plan": {"strategy": FACTUAL}}})
    assert batos._is_contrapunto_due(cycle, parts, batos.Recall())
    parts[BOTH[1]] = parts[BOTH[0]]
    assert not batos._is_contrapunto_due(cycle, parts, batos.Recall())


# Contrapunto in words


PUMP = ("Turn the brass valve until the needle stands at zero. The felt ring of the pump is greased twice a year. "
        "The filter is washed in spring.\n")


def writing_two(start, second, **settings):
    """Return a mind whose core writes a sentence, then another one; and that core."""
    core = Speaker("Turn the brass valve until the needle stands at zero [1].", second, strategy=TECHNICAL)
    core.said_first = core.said[0]
    one = start(core, **settings)
    one.learn(PUMP, "pump.md")
    return one, core


@pytest.mark.parametrize("on", [True, False])
def test_robin_answers_in_words_what_brick_wrote(machine, on):  # noqa: F811
    one, core = writing_two(machine, "The felt ring of the pump is greased twice a year [1].", contrapunto=on)
    report = one.think({**BRIEF, "args": ["How is the brass valve of the pump turned?"]})
    turns = journal(one, report).get("contrapunto")
    assert report["experts"] == (["ROBIN", "BRICK"] if on else ["BRICK"]) and report["lead"] == "BRICK"
    assert len(core.prompts) == (2 if on else 1) and (turns is not None) == on
    assert "Turn the brass valve until the needle stands at zero [1]." in report["answer"]
    if on:
        assert "BRICK answered: Turn the brass valve" in core.prompts[1] and "missing" in core.prompts[1]
        assert turns == {"ROBIN": {"answers": "BRICK", "said": ["The felt ring of the pump is greased twice a year [1]."],
                                   "why": ""}}
        assert report["answer"].endswith("zero [1]. The felt ring of the pump is greased twice a year [1].")
        parts = one.read(lambda root: batos.find_cycle(root, report["cycle"])._tmp_synthesis_data["partial_responses"])
        assert [part["frame"] for part in parts.values()] == [core.said_first, turns["ROBIN"]["said"][0]]
        lines = "\n".join(batos._told_routing(report["cycle"], report))
        assert "ROBIN answered BRICK: “The felt ring of the pump is greased twice a year [1].”" in lines


@pytest.mark.parametrize("second", ["It weighs 900 tons [1].", "Turn the brass valve until the needle stands at zero [1]."])
def test_what_is_not_borne_out_or_said_already_is_no_answer_in_words(machine, second):  # noqa: F811
    one, core = writing_two(machine, second)
    report = one.think({**BRIEF, "args": ["How is the brass valve of the pump turned?"]})
    assert journal(one, report)["contrapunto"]["ROBIN"]["said"] == []
    assert "ROBIN answered BRICK: nothing to add" in "\n".join(batos._told_routing(report["cycle"], report))
    assert report["answer"].count("needle stands at zero [1]") == 1 and "900" not in report["answer"]


def test_a_core_that_is_slow_is_not_asked_twice(machine, monkeypatch):  # noqa: F811
    monkeypatch.setattr(batos, "REWORDED_WITHIN_S", -1.0)
    one, core = writing_two(machine, "The felt ring of the pump is greased twice a year [1].")
    report = one.think({**BRIEF, "args": ["How is the brass valve of the pump turned?"]})
    assert len(core.prompts) == 1 and journal(one, report)["contrapunto"]["ROBIN"]["why"] == "the core is slow"


def test_where_it_may_have_been_asked_with_feeling_robin_writes_once_more(machine):  # noqa: F811
    one, core = writing_two(machine, "The felt ring of the pump is greased twice a year [1].")
    core.offers = lambda kind, text, embedder, among=None: [(TECHNICAL, 0.6), (EMOTIONAL, 0.35)]
    report = one.think({**BRIEF, "args": ["How is the brass valve of the pump turned?"]})
    assert "with feeling" in report["routing"]["resonance"] and "may be moved" in core.prompts[1]
    assert "felt ring" in report["answer"]


# BABS and ALFRED, where they are called


def test_babs_searches_once_more_where_little_was_found(machine):  # noqa: F811
    brief = {**BRIEF, "args": ["How is the brass valve turned and the giraffe greased?"]}
    one = machine(planning(TECHNICAL, ["guide_facet_", "tamland_facet_"]))
    one.learn()
    told = journal(one, one.think(brief))["retrieval by BABS"]
    assert "giraffe" in told["focus"] and told["added"] == []
    set_row(one, TECHNICAL, {"BABS": "silent"})
    assert "retrieval by BABS" not in journal(one, one.think({**brief, "kwargs": {"n": 1}}))


def test_babs_does_not_come_where_she_speaks_or_enough_is_said(machine):  # noqa: F811
    one = machine()
    one.learn()
    assert "retrieval by BABS" not in journal(one, one.think())
    plan = {"strategy": TECHNICAL, "relevant_pillars": BOTH}
    evidence = [{"text": "the brass valve"}, {"text": "is turned"}]
    mission = "Is the brass valve turned gladly?"
    assert one.read(lambda root: batos.brings_data(root, plan, mission, evidence)) == ""
    assert one.read(lambda root: batos.brings_data(root, plan, mission, evidence[:1])) == "turned gladly"


def test_a_superseded_source_is_named_in_the_notes(machine):  # noqa: F811
    one = machine()
    one.learn()
    one.learn("Something else entirely about lamps.\n", "newer.md")
    assert "notes" not in one.think()
    one.lanes["bulk"].call(batos.Job("supersede", lambda root: str(batos.send(
        root["knowledge_catalog_obj"], "supersede_", "pump.md", "newer.md")), token=True))
    report = one.think({**BRIEF, "kwargs": {"n": 1}})
    assert report["notes"] == ["[1] is of pump.md, for which newer.md stands"]
    assert "stands" not in report["answer"].partition("]")[2]
    assert "([1] is of pump.md, for which newer.md stands)" in batos.told_answer(report)


def test_an_old_source_and_a_single_one_for_a_figure_are_noted():
    old = types.SimpleNamespace(added_at=batos.now_utc() - batos.datetime.timedelta(days=400))
    catalog = types.SimpleNamespace(superseded={}, documents={"a.md": old})
    root = {"codex_obj": types.SimpleNamespace(archetypes=batos.MATRIX), "knowledge_catalog_obj": catalog}
    one = {"doc_id": "a.md", "text": "It weighs 12 kg.", "span": [10, 15]}
    notes = batos.notes_on(root, FACTUAL, [one])
    assert notes[0].startswith("[1] was learnt on 20") and notes[1] == "the figure in [1] is from one source, a.md"
    assert batos.notes_on(root, FACTUAL, [one, {**one, "doc_id": "b.md"}])[1:] == []
    assert len(batos.notes_on(root, TECHNICAL, [one])) == 1


def test_robin_says_whether_it_resonates(machine):  # noqa: F811
    core = planning(TECHNICAL, BOTH)
    core.offers = lambda kind, text, embedder, among=None: [(TECHNICAL, 0.6), (EMOTIONAL, 0.35)] if kind == "archetype" else []
    one = machine(core)
    one.learn()
    assert "with feeling" in one.think()["routing"]["resonance"]
    core.offers = lambda kind, text, embedder, among=None: [(TECHNICAL, 0.9)]
    assert one.think({**BRIEF, "kwargs": {"n": 1}})["routing"]["resonance"] == "holds"
    set_row(one, TECHNICAL, {"support": {"ROBIN": "context"}})
    assert "resonance" not in one.think({**BRIEF, "kwargs": {"n": 2}})["routing"]


# Comfort


@pytest.mark.parametrize("said, is_told", [
    ("That sounds heavy. I am here, and I listen.", True), ("It has 12 reasons.", False), ("Ask Doctor Miller about it.", False),
    ("well " * 61, False), ("", False)])
def test_where_memory_has_nothing_robin_comforts_and_states_no_fact(machine, said, is_told):  # noqa: F811
    one = machine(Speaker("x"))
    one.core.infer_ = lambda prompt, persona=None, system_prompt=None, **how: said
    one.learn()
    report = one.think(FEELING)
    assert report["state"] == "COMPLETE" and report["grounded"] is False and report["lead"] == "ROBIN"
    assert report["answer"] == (said if is_told else "Thank you for telling me. I am listening.")


def test_a_core_that_fails_costs_no_comfort(machine):  # noqa: F811
    def broken(*asked, **how):
        raise batos.CoreFailed("it broke")
    one = machine(Speaker("x"))
    one.core.infer_ = broken
    report = one.think(FEELING)
    assert report["state"] == "COMPLETE" and "I am listening" in report["answer"] and report["grounded"] is False


def test_without_a_writing_core_robin_listens_and_offers_what_is_near_where_the_matrix_says(machine):  # noqa: F811
    one = machine()
    report = one.think(FEELING)
    assert report["grounded"] is False and report["answer"] == "Thank you for telling me. I am listening."
    found = {"evidence": [{"text": "A walk helps who is worried."}], "certainty": "nearest", "unknown": []}
    assert "kept near it" in batos.unsure_answer(FEELING["args"][0], found)["answer"]
    one.learn("Who is worried about everything takes a walk.\n", "walk.md")
    assert one.think(FEELING)["evidence"]
    set_row(one, EMOTIONAL, {"BABS": "silent"})
    assert one.think({**FEELING, "kwargs": {"n": 1}})["evidence"] == []
