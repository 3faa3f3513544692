"""Workflows: a clone with one edit is tried on missions that were answered, shadowed, and adopted or dropped."""

import time
import types

import pytest
from test_evidence import Scores
from test_mind import machine  # noqa: F401  (a fixture)

import batos

KEYS = 100
QUESTION = {"type": "direct_synthesis", "selector": "q", "args": ["Where is the key of the chest?"]}


def question(n):
    return {"type": "direct_synthesis", "selector": "q", "args": [f"Where is the key {n}abc of the chest?"]}


def with_keys(machine, width):  # noqa: F811
    """Return a machine whose default workflow looks in `width` chunks, and whose reader knows which passage answers."""
    one = machine()
    one.mind._recall.embedder.reader = Scores({"drawer": 2.0, "": -2.0})
    for n in range(KEYS):
        one.learn(f"The key {n}abc of the chest, the key {n}abc, is of iron.\n", f"iron {n}.md")
        one.learn(f"The key {n}abc of the chest hangs in the third drawer of the long green room upstairs.\n", f"place {n}.md")
    one.lanes["write"].call(batos.Job("plant", lambda root: batos._look_in(root["psm_prototypes_obj"], width)))
    return one


def improve(one, edit):
    """Try an edit; return the mission's report."""
    def begin(root):
        return batos.cycle_id(batos.send(root["workflows_obj"], "improve_workflow_", edit))
    return one.ended(one.lanes["write"].call(batos.Job("improve", begin, who="local")).result)


def held(one, name):
    return one.read(lambda root: getattr(root["workflows_obj"], name))


def flow(one, edit="drop CONTRAPUNTO"):
    return one.read(lambda root: batos._what_it_says(batos._edited(root, "", edit)))


def test_an_edit_makes_a_clone_and_leaves_the_default(machine):  # noqa: F811
    one = machine()
    before = one.read(lambda root: batos._what_it_says(root["psm_prototypes_obj"]))
    width, follows = flow(one, "look wider")
    assert (width, follows) == (2 * before[0], before[1])
    assert "CONTRAPUNTO" not in str([follows for name, follows in flow(one)[1].items() if name != "CONTRAPUNTO"])
    assert one.read(lambda root: batos._what_it_says(root["psm_prototypes_obj"])) == before


@pytest.mark.parametrize("edit, why", [("dance", "is no edit"), ("add CONTRAPUNTO", "changes nothing")])
def test_what_is_no_edit_is_refused(machine, edit, why):  # noqa: F811
    with pytest.raises(batos.BadRequest, match=why):
        flow(machine(), edit)


def test_a_workflow_without_an_end_is_refused(machine):  # noqa: F811
    def lost(root):
        clone = batos._clone_of(root, "")
        batos.put_slot(clone.DELEGATING, "follows", ["DELEGATING"])
        return batos._without_an_end(clone)
    assert machine().read(lost) == ["DELEGATING"]


@pytest.mark.parametrize("pairs, shown", [
    ([([0.0, 2.0], 0)] * 10 + [([0.0, 0.1], 0)] * 90, True), ([([0.0, 0.1], 0)] * 100, False), ([([2.0, 0.0], 0)] * 100, False),
    ([([2.0, 0.0], 1)] * 100, True), ([([0.0, 2.0], -1)] * 100, False),                  # a mark decides before the reader
    ([([0.0, 2.0], 0), ([2.0, 0.0], 0)] * 50, False),
])
def test_what_replayed_pairs_show(pairs, shown):
    told = batos._verdict_on_pairs([{"scores": scores, "marked": marked} for scores, marked in pairs])
    assert told["shown"] == shown and told["replayed"] == 100 and told["why"].startswith("not shown: ") != shown


@pytest.mark.parametrize("mark, first, second, wanted", [
    ("right", "a", "b", -1), ("right", "b", "a", 1), ("wrong", "a", "b", 1), ("wrong", "a", "a", 0), (None, "a", "b", 0)])
def test_which_of_two_answers_a_stored_mark_prefers(mark, first, second, wanted):
    result = {"evidence": [{"text": "a"}], "feedback": {"mark": mark}}
    assert batos._preferred(result, [[{"text": first}], [{"text": second}]]) == wanted


def test_on_few_missions_nothing_is_shown(machine):  # noqa: F811
    one = machine()
    report = improve(one, "look narrower")
    assert "not shown: 0 missions can be replayed, 100 are wanted" in report["answer"] and held(one, "trial") is None


@pytest.mark.parametrize("new, old, more", [(20, 5, True), (8, 5, False), (0, 0, False)])
def test_what_happens_more_often(new, old, more):
    assert batos._is_more_often({"missions": 40, "wrong": new}, {"missions": 40, "wrong": old}, "wrong") == more


@pytest.mark.slow
def test_a_bad_default_is_bettered_in_shadow_and_the_former_can_be_had_again(machine):  # noqa: F811
    one = with_keys(machine, 1)
    for n in range(KEYS):
        one.think(question(n))
    report = improve(one, "look wider")
    assert report["verdict"]["shown"] and report["verdict"]["replayed"] == KEYS
    assert held(one, "trial")["workflow"] == "workflow 1" and held(one, "current") == ""
    asked = 0
    while held(one, "current") == "":
        one.think(question(asked % KEYS))
        asked += 1
        assert asked < 130, held(one, "trial")
    assert held(one, "trial") is None and len(held(one, "outcomes")) == 2
    sides = held(one, "outcomes")[-1]["counts"]
    assert min(count["missions"] for count in sides.values()) >= 40
    report = one.think(question(3))
    assert "drawer" in report["evidence"][0]["text"]
    assert one.read(lambda root: batos.own(batos.find_cycle(root, report["cycle"]))["workflow"]) == "workflow 1"
    report = improve(one, "look narrower")                   # back: worse
    assert not report["verdict"]["shown"] and held(one, "trial") is None and held(one, "current") == "workflow 1"
    one.lanes["write"].call(batos.Job("back", lambda root: batos.send(root["workflows_obj"], "use_workflow_", "")))
    assert "iron" in one.think(question(3))["evidence"][0]["text"]


@pytest.mark.slow
def test_an_edit_that_makes_it_worse_is_dropped(machine):  # noqa: F811
    one = with_keys(machine, 2)
    for n in range(KEYS):
        one.think(question(n))
    report = improve(one, "look narrower")
    assert not report["verdict"]["shown"] and report["verdict"]["worse"] > 50 and held(one, "current") == ""
    assert "It is dropped." in report["answer"] and held(one, "trial") is None


def broken(root, break_it):
    """Have a workflow be tried that fails its missions."""
    held, flow = root["workflows_obj"], batos._edited(root, "", "look wider")
    held.workflows["workflow 1"] = flow
    break_it(flow)
    sides = {"old": (), "new": ()}
    batos.put_slot(held, "trial", {"workflow": "workflow 1", "against": "", "edit": "look wider", "sides": sides})


def never_on(flow):
    batos.put_slot(flow.IDLE, "follows", [])


def raising(flow):
    batos.put_slot(flow.IDLE, "_process_synthesis_", batos.method("no such thought"))


@pytest.mark.parametrize("break_it, why", [(never_on, "may not follow IDLE"), (raising, "it failed a mission")])
def test_a_mission_that_a_workflow_fails_begins_again_by_the_default_and_the_trial_ends(machine, break_it, why):  # noqa: F811
    one = machine()
    one.learn("The key of the chest hangs in the third drawer of the long green room upstairs.\n", "place.md")
    one.lanes["write"].call(batos.Job("break", lambda root: broken(root, break_it)))
    for _ in range(3):                                       # the last of them goes by what is tried
        report = one.think(QUESTION)
        assert report["state"] == "COMPLETE", report["reason"]
        assert "third drawer" in report["evidence"][0]["text"]
        assert one.read(lambda root, oid=report["cycle"]: batos.own(batos.find_cycle(root, oid))["workflow"]) == ""
    outcome, = held(one, "outcomes")
    assert held(one, "trial") is None and not outcome["adopted"] and why in outcome["why"]


def test_what_stands_and_fails_stands_no_more(machine):  # noqa: F811
    one = machine()
    one.learn("The key of the chest hangs in the third drawer of the long green room upstairs.\n", "place.md")

    def stand(root):
        broken(root, never_on)
        batos.send(root["workflows_obj"], "use_workflow_", "workflow 1")
    one.lanes["write"].call(batos.Job("stand", stand))
    assert one.think(QUESTION)["state"] == "COMPLETE"
    assert held(one, "current") == "" and len(held(one, "outcomes")) == 1


def test_an_adoption_is_one_change_and_can_be_undone(machine, monkeypatch):  # noqa: F811
    monkeypatch.setattr(batos, "_SHADOWED_LEAST", 1)
    one = machine()
    one.learn("The key of the chest hangs in the third drawer of the long green room upstairs.\n", "place.md")
    one.lanes["write"].call(batos.Job("try", lambda root: broken(root, lambda flow: None)))
    for _ in range(8):
        one.think(QUESTION)
        if held(one, "current"):
            break
    assert held(one, "current") == "workflow 1" and held(one, "outcomes")[-1]["adopted"]

    def undo(root):
        rows, _ = batos.history_of(root, 9, root["workflows_obj"], "current")
        return [slot for _, slot in batos.undo_change(root, rows[0]["change"])]
    assert one.lanes["bulk"].call(batos.Job("undo", undo, who="me")).result == ["current"]
    assert held(one, "current") == "" and held(one, "trial") is None
    report = one.think(QUESTION)
    assert one.read(lambda root: batos.own(batos.find_cycle(root, report["cycle"]))["workflow"]) == ""


def counted(client):
    """Return how much there is of what a trial must not leave, but for its own mission."""
    told = client.call("send_message", target="workflows_obj", selector="workflows_")["result"]
    missions = len(client.call("list_cycles", limit=1000)["results"])
    traces = client.call("send_message", target="digital_ether", selector="sense_", args=["key"])["result"]
    documents = client.call("list_documents", limit=1000)["results"]
    return len(told["outcomes"]), told["trial"], missions, traces, len(documents)


@pytest.mark.slow
def test_a_kill_amid_a_trial_leaves_one_verdict_and_no_trace(daemon):
    running = daemon(core=0)
    with batos.Client(running.endpoint, 300) as client:
        for n in range(KEYS):
            client.call("index_document", doc_id=f"{n}.md", text=f"The key {n}abc of the chest hangs in the drawer {n}def.\n")
            client.call("initiate_cognitive_cycle", mission_brief=question(n), wait=True)
        before = counted(client)
        sent = client.call("send_message", target="workflows_obj", selector="improve_workflow_", args=["look narrower"])
        oid = sent["result"]["$ref"]
        while not [row for row in client.call("list_cycles", limit=1)["results"] if row["state"] in ("DELEGATING", "COMPLETE")]:
            pass
    running.stop(kill=True)
    with batos.Client(daemon(core=0).endpoint, 300) as client:
        while next(row["state"] for row in client.call("list_cycles", limit=9)["results"] if row["cycle"] == oid) != "COMPLETE":
            time.sleep(0.1)
        assert counted(client) == (before[0] + 1, before[1], before[2] + 1, *before[3:])


def test_a_mission_that_goes_round_and_round_is_ended(machine, monkeypatch):  # noqa: F811
    monkeypatch.setattr(batos, "_STEPS_OF_A_WORKFLOW", 1)
    one = machine()
    one.learn("The key of the chest hangs in the third drawer of the long green room upstairs.\n", "place.md")
    one.lanes["write"].call(batos.Job("break", lambda root: broken(root, lambda flow: None)))
    assert {one.think(QUESTION)["state"] for _ in range(3)} == {"COMPLETE"}
    assert "came to no end in 2 steps" in held(one, "outcomes")[0]["why"]


def test_what_was_tried_on_too_few_missions_counts_among_no_trials(machine):  # noqa: F811
    one = machine()
    for _ in range(batos._TRIALS_A_WEEK + 1):
        assert "100 are wanted" in improve(one, "look wider")["answer"]
    one.lanes["write"].call(batos.Job("tried", lambda root: batos.set_slot(
        root["workflows_obj"], "outcomes", tuple({**told, "replayed": 100} for told in root["workflows_obj"].outcomes))))
    with pytest.raises(batos.Busy, match="within a week"):
        improve(one, "look wider")


def test_a_workflow_has_sixteen_steps_beside_those_that_are_bounded_by_themselves():
    def ends(names):
        entries = tuple(types.SimpleNamespace(name=name) for name in names)
        batos._check_it_ends(batos.of_checked({"workflow": ("w",), "journal": entries}))
    tree = [*["node 1.1"] * 12, *["verdict 1"] * 12, *["sentence"] * 8]
    ends(["facets"] * 16 + tree)
    with pytest.raises(batos.TransitionError, match="in 17 steps"):
        ends(["facets"] * 17 + tree)


def test_a_workflow_that_nobody_made_cannot_stand(machine):  # noqa: F811
    one = machine()
    with pytest.raises(batos.NotFound):
        one.lanes["write"].call(batos.Job("use", lambda root: batos.send(root["workflows_obj"], "use_workflow_", "workflow 9")))
    assert one.read(lambda root: batos.send(root["workflows_obj"], "workflows_")) == {
        "current": "", "trial": None, "workflows": {}, "outcomes": []}


@pytest.mark.parametrize("sent", [[], {"a": 1}, 7])
def test_what_is_no_name_is_no_workflow(machine, sent):  # noqa: F811
    one = machine()
    for selector in ("use_workflow_", "improve_workflow_"):
        with pytest.raises(batos.BadRequest, match="is a text"):
            one.lanes["write"].call(batos.Job("use", lambda root, name=selector: batos.send(root["workflows_obj"], name, sent)))
    assert one.read(lambda root: root["workflows_obj"].current) == ""
