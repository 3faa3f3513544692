"""Workflows: a clone with one edit is tried on missions that were answered, shadowed, and adopted or dropped."""

import pytest
from test_evidence import Scores
from test_mind import machine  # noqa: F401  (a fixture)

import batos

KEYS = 100


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
