"""Recipes: states of a workflow told as data; workflows of an archetype, other leads, states that change places."""

import pytest
from test_facet_experts import ASKED, learnt
from test_forged_experts import Routed
from test_mind import machine  # noqa: F401  (a fixture)

import batos

REVIEWED = {"SYNTHESIZING": {"ask": "none", "evidence": "recall", "then": "REVIEW"},
            "REVIEW": {"ask": "weave", "then": "COMPLETE"}}


def send(one, target, selector, *args):
    def apply(root):
        return batos.send(root[target], selector, *args)
    return one.lanes["write"].call(batos.Job("test", apply, who="local", role="admin")).result


def use(one, *args):
    return send(one, "workflows_obj", "use_workflow_", *args)


def read(one, function):
    return one.read(function)


def went(one, report):
    """Return the workflow of a mission, and the states that it went through."""
    def look(root):
        cycle = batos.find_cycle(root, report["cycle"])
        return batos.own(cycle)["workflow"], [entry.state for entry in cycle.journal]
    return one.read(look)


def test_states_by_recipe_stand_in_place_of_others_and_beside_them(machine):  # noqa: F811
    one = learnt(machine(Routed()))
    before = one.think(ASKED)
    assert use(one, "", None, REVIEWED) == "workflow 1"
    report = one.think({**ASKED, "kwargs": {"n": 1}})
    assert report["state"] == "COMPLETE", report["reason"]
    assert report["evidence"] and report["evidence"][0]["text"] == before["evidence"][0]["text"]
    name, states = went(one, report)
    assert name == "workflow 1" and states[-2:] == ["SYNTHESIZING", "REVIEW"]


@pytest.mark.parametrize("test, goes", [
    (["covered", 0.0], "BESIDE"), (["covered", 1.0], "REVIEW"), (["quotes", 1], "BESIDE"), (["quotes", 9], "REVIEW"),
    (["archetype", "Factual Inquiry"], "BESIDE"), (["archetype", "Emotional Processing"], "REVIEW"),
    (["pheromone", "KNOWLEDGE_GAP"], "REVIEW")])
def test_which_state_comes_then_is_by_tests_of_a_table(machine, test, goes):  # noqa: F811
    one = learnt(machine(Routed()))
    look = REVIEWED["SYNTHESIZING"] | {"if": [[test, "BESIDE"]]}
    use(one, "", None, REVIEWED | {"SYNTHESIZING": look, "BESIDE": {"ask": "weave", "then": "COMPLETE"}})
    report = one.think(ASKED)
    assert went(one, report)[1][-1] == goes, report["evidence"]


def test_a_trace_that_is_of_what_is_asked_leads_elsewhere(machine):  # noqa: F811
    one = learnt(machine(Routed()))
    look = REVIEWED["SYNTHESIZING"] | {"if": [[["pheromone", "KNOWLEDGE_GAP"], "BESIDE"]]}
    use(one, "", None, REVIEWED | {"SYNTHESIZING": look, "BESIDE": {"ask": "weave", "then": "COMPLETE"}})
    send(one, "digital_ether", "deposit_", "KNOWLEDGE_GAP", ASKED["args"][0])
    assert went(one, one.think(ASKED))[1][-1] == "BESIDE"


def test_a_recipe_names_who_is_asked(machine):  # noqa: F811
    one = learnt(machine(Routed()))
    use(one, "", None, {"DELEGATING": {"ask": "facet", "of": ["ALFRED"], "then": "SYNTHESIZING"}})
    report = one.think(ASKED)
    assert report["state"] == "COMPLETE" and went(one, report)[0] == "workflow 1"
    assert {batos.owner_of(pillar) for pillar in report["pillars"]} == {"ALFRED"} and report["lead"] == "ALFRED"


@pytest.mark.parametrize("recipes, why", [
    ({}, "recipes are a map"), ([], "recipes are a map"), ({"idle": {"then": "X"}}, "capitals"),
    ({"IDLE": {"then": "X"}}, "stay as"),
    ({"X": {}}, "it has `then`"), ({"X": {"then": "COMPLETE"}}, "only what weaves"), ({"X": {"then": 7}}, "`then` is"),
    ({"X": {"then": "X", "ask": "eval"}}, "`ask` is"), ({"X": {"then": "X", "ask": "facet"}}, "facets are asked in"),
    ({"X": {"then": "X", "of": ["BORIS"]}}, "`of` is"),
    ({"X": {"then": "X", "evidence": "all"}}, "`evidence` is"), ({"X": {"then": "X", "code": "x"}}, "of ask, of"),
    ({"X": {"then": "X", "if": [[["covered", 3], "X"]]}}, "`if` is"),
    ({"X": {"then": "X", "if": [[["luck", 1], "X"]]}}, "`if` is"),
    ({"X": {"then": "X", "if": [["covered", "X"]]}}, "`if` is"), ({"X": {"then": "X", "if": 3}}, "`if` is"),
    ({"SYNTHESIZING": {"then": "NOWHERE"}}, "which there is not"),
    ({"SYNTHESIZING": {"then": "SYNTHESIZING"}}, "would not come to"),
    ({f"X{'Y' * n}": {"then": "X"} for n in range(13)}, "up to 12")])
def test_what_is_no_recipe_is_refused_by_name(machine, recipes, why):  # noqa: F811
    one = machine()
    for selector, args in (("use_workflow_", ("", None, recipes)), ("improve_workflow_", ("", recipes))):
        with pytest.raises(batos.BadRequest, match=why):
            send(one, "workflows_obj", selector, *args)
    assert one.read(lambda root: len(root["workflows_obj"].workflows)) == 0


def test_an_archetype_has_a_workflow_of_its_own_and_undo_takes_it_away(machine):  # noqa: F811
    one = learnt(machine(Routed()))
    use(one, "", "Factual Inquiry", REVIEWED)
    assert one.read(lambda root: root["workflows_obj"].current) == ""
    name, states = went(one, one.think(ASKED))
    assert name == "workflow 1" and states[0] == "IDLE" and states[-1] == "REVIEW"
    use(one, "workflow 1", "Emotional Processing")
    send(one, "workflows_obj", "use_workflow_", "", "Factual Inquiry")
    assert went(one, one.think({**ASKED, "kwargs": {"n": 1}}))[0] == ""

    def undo(root):
        rows, _ = batos.history_of(root, 9, root["codex_obj"], "archetypes")
        return [slot for _, slot in batos.undo_change(root, rows[0]["change"])]
    one.lanes["bulk"].call(batos.Job("undo", undo, who="me"))
    assert went(one, one.think({**ASKED, "kwargs": {"n": 2}}))[0] == "workflow 1"
    with pytest.raises(batos.BadRequest, match="is no archetype"):
        use(one, "workflow 1", "Dancing")


def test_an_archetypes_workflow_that_fails_goes_and_the_mission_is_answered_by_the_default(machine):  # noqa: F811
    one = learnt(machine(Routed()))
    use(one, "", "Factual Inquiry", REVIEWED)

    def broken(root):
        state = root["workflows_obj"].workflows["workflow 1"].REVIEW
        batos.put_slot(state, "_process_synthesis_", batos.method("no such thought"))
    one.lanes["write"].call(batos.Job("break", broken))
    report = one.think(ASKED)
    assert report["state"] == "COMPLETE" and went(one, report)[0] == ""
    assert "workflow" not in one.read(lambda root: root["codex_obj"].archetypes["Factual Inquiry"])


def test_another_lead_is_an_edit(machine):  # noqa: F811
    one = learnt(machine(Routed()))

    def stand(root):
        root["workflows_obj"].workflows["workflow 1"] = batos._edited(root, "", "ALFRED leads")
        batos.send(root["workflows_obj"], "use_workflow_", "workflow 1")
    before = one.think(ASKED)["lead"]
    one.lanes["write"].call(batos.Job("stand", stand))
    report = one.think({**ASKED, "kwargs": {"n": 1}})
    assert before != "ALFRED" and report["lead"] == "ALFRED" and report["state"] == "COMPLETE"


def test_states_change_places_where_their_thoughts_allow_it(machine):  # noqa: F811
    one = machine()

    def swapped(root):
        chain = {"SYNTHESIZING": {"then": "FIRST"}, "FIRST": {"evidence": "recall", "then": "SECOND"},
                 "SECOND": {"then": "REVIEW"}, "REVIEW": {"ask": "weave", "then": "COMPLETE"}}
        root["workflows_obj"].workflows["w"] = batos._edited(root, "", "by recipe", chain)
        flow = batos._edited(root, "w", "swap FIRST and SECOND")
        return [getattr(flow, name).recipe["then"] for name in ("SYNTHESIZING", "SECOND", "FIRST")], flow.SECOND.follows
    assert one.lanes["write"].call(batos.Job("swap", swapped)).result == (["SECOND", "FIRST", "REVIEW"], ["SECOND", "FIRST"])
    for edit, why in (("swap DELEGATING and SYNTHESIZING", "has to come to"), ("swap IDLE and DELEGATING", "is no edit")):
        with pytest.raises(batos.BadRequest, match=why):
            one.read(lambda root, edit=edit: batos._edited(root, "", edit))


def test_a_core_that_writes_proposes_the_edit_as_json(machine):  # noqa: F811
    possible = {"look wider": "", "BRICK leads": " (tried before: not shown)"}
    thought = batos._proposing_edit(possible, "", ["0x1"])
    assert "- BRICK leads (tried before: not shown)" in thought.requests[0][1]["prompt"]
    told = {'Sure: {"edit": "BRICK leads"}': "BRICK leads", '{"edit": "rm"}': "look wider", "none": "look wider",
            '{"edit": ["x"]}': "look wider", "{}": "look wider", '["edit"]': "look wider"}
    assert {said: thought.read([said]).data["edit"] for said in told} == told


def test_a_cycle_is_read_and_led_on_by_the_names_of_the_seeds(machine):  # noqa: F811
    one = machine()

    def begun(root):
        brief = {"type": "direct_synthesis", "selector": "q", "args": ["Where is the key?"]}
        cycle = batos.accept_cycle(root, brief, None, "local")
        root["it"] = cycle
        named = batos.send(cycle, "getSlot_", "current_state*"), batos.own(cycle)["synthesis_state*"]
        assert named[0] == named[1]
        with pytest.raises(batos.TransitionError, match="may not follow IDLE"):
            batos.send(cycle, "transitionTo_", "SYNTHESIZING")
        with pytest.raises(batos.BadRequest, match="`cancel` ends it"):
            batos.send(cycle, "transitionTo_", "COMPLETE")
        batos.send(cycle, "transitionTo_", root["psm_prototypes_obj"].EXPLORING)
        return batos.state_of(cycle)
    assert one.lanes["write"].call(batos.Job("begin", begun, who="local", role="admin")).result == "EXPLORING"
