"""A question thought along several ways, and what they come to questioned before it is told."""

import json
import os
import pathlib

import planted
import pytest
from test_contradictions import PAPERS, RENT, machine_with
from test_mind import Noting, killed_at, machine  # noqa: F401  (a fixture)

import batos

SMALL = json.loads((pathlib.Path(__file__).parent / "data" / "papers.json").read_text("utf-8"))
MANAGER = SMALL["two_hops"][0][0]


def brief(question, **kwargs):
    return {"type": "direct_synthesis", "selector": "q", "args": [question], "kwargs": kwargs}


def answered(one, question, wanted, **kwargs):
    """Return whether the first passage that is told for sure holds what is wanted."""
    report = one.think(brief(question, **kwargs))
    return report["relevant"] and wanted in report["evidence"][0]["text"]


def names_of(one, report):
    return one.read(lambda root: [entry.name for entry in batos.find_cycle(root, report["cycle"]).journal])


@pytest.mark.parametrize("question, sentence, wanted", [
    (MANAGER, "The lease is signed by Tom Reed.", "Who is the manager of Tom Reed?"),
    ("What is my landlord's number?", "Your landlord Maria Weber is here.", "What is Maria Weber's number?"),
    ("When was the man who signs the lease born?", "Tom Reed signs the lease.", "When was Tom Reed born?"),
    ("Where is the office of the owner of Elm Street?", "Maria Weber is the owner of Elm Street.",
     "Where is the office of Maria Weber?"),
])
def test_a_name_is_put_in_place_of_what_a_question_says_of_it(question, sentence, wanted):
    hop = batos._hops_of(question, [{"text": sentence}])[0]
    assert hop.question == wanted and sentence[slice(*hop.mark)] == sentence


@pytest.mark.parametrize("question, sentence", [
    ("Who signs the lease?", "The lease is signed by Tom Reed."),         # nothing would be left to ask
    ("How is the valve of the pump turned?", "the valve of the pump is of brass"),      # no name
    ("How tall is the mast?", "Ann Bell likes tea."),
    ("Where do I put a program that is not from Debian?", "The programs of Maria Weber stand here."),
])
def test_where_nothing_is_told_of_there_is_no_hop(question, sentence):
    assert batos._hops_of(question, [{"text": sentence}]) == []


@pytest.mark.parametrize("question, part", [
    (MANAGER, "signs the lease"), ("Where is the office of the firm that built the roof?", "built the roof"),
    ("When was the town in which the mill stands founded?", "the mill stands founded"),
    ("Who signs the lease?", ""), ("How do I turn the valve?", ""), ("What does that mean?", ""),
])
def test_a_clause_tells_of_what_is_not_named(question, part):
    assert batos.told_part(question) == part


def test_what_one_paper_names_and_another_tells_is_found_in_two_steps(machine):  # noqa: F811
    one = machine_with(machine, SMALL["papers"])
    report = one.think(brief(MANAGER))
    assert report["answer"] == ("“Ann Bell is the manager of Tom Reed.” [1]; as “The lease of the flat in Elm Street is "
                                "signed by Tom Reed for the company.” [2]")
    assert [item["doc_id"] for item in report["evidence"][:2]] == ["staff.md", "lease.md"]
    assert report["evidence"][1]["via"] == "Tom Reed"
    tree = report["tree"]
    assert tree["kind"] == "retrieval" and "." in tree["stands"] and len(tree["nodes"]) <= 12
    assert [row["question"] for row in report["verified"]] == [
        "Does memory say otherwise?", "Does it still hold?", "Is it what was asked?", "Is it from more than one source?"]
    assert standing(one.think(brief(MANAGER))["tree"]) == standing(tree)


def standing(tree):
    """Return what a tree came to: which way stands, and what each way asked."""
    return tree["stands"], [(row["node"], row["question"]) for row in tree["nodes"]]


@pytest.mark.slow
@pytest.mark.parametrize("number, is_stored", [(0, True), (1, False), (1, True), (2, False)])
def test_ways_that_are_cut_short_by_a_kill_come_to_the_same(tmp_path, machine, number, is_stored):  # noqa: F811
    papers = list(SMALL["papers"].items())
    assert os.WTERMSIG(killed_at(tmp_path, number, is_stored, brief(MANAGER), papers)[1]) == 9
    one = machine(Noting(tmp_path / "asked"))
    (oid,) = one.read(lambda root: [batos.cycle_id(cycle) for cycle in root["missions"].values()])
    assert standing(one.ended(oid)["tree"]) == standing(one.think(brief(MANAGER))["tree"])


def test_two_steps_answer_more_than_none_and_lose_nothing(machine):  # noqa: F811
    one = machine_with(machine, SMALL["papers"])
    asked = SMALL["two_hops"] + SMALL["plain"]
    before, after = ([answered(one, *row, depth=depth) for row in asked] for depth in (0, 2))
    two_hops = len(SMALL["two_hops"])
    assert sum(after[:two_hops]) >= max(5, 2 * sum(before[:two_hops]))
    assert not any(was and not now for was, now in zip(before, after, strict=True))


def test_what_is_not_of_the_kind_that_is_asked_for_falls_behind_what_is_nearly_as_good(machine, monkeypatch):  # noqa: F811
    one = machine_with(machine, SMALL["papers"])
    judge = batos._verdict_on

    def judged(catalog, node, recall):
        falls_by = 0.3 if node["node"] == "1" else 0.0
        return judge(catalog, node, recall) | {"holds": True, "against": [], "falls_by": falls_by}
    monkeypatch.setattr(batos, "_verdict_on", judged)
    monkeypatch.setattr(batos, "answer_score", lambda question, evidence, recall: 1.0)
    monkeypatch.setattr(batos, "_hop_due", lambda *given: None)
    report = one.think(brief(MANAGER))
    assert report["tree"]["stands"] == "2" and report["tree"]["pruned"] == []
    assert "verdict 1" in names_of(one, report)


@pytest.mark.parametrize("said, falls_by", [("The rent of the flat is high.", 0.3), ("The rent of the flat is 900 euros.", 0.0)])
def test_what_is_not_of_the_kind_that_is_asked_for_loses_of_its_score(machine, said, falls_by):  # noqa: F811
    one = machine()
    one.learn(f"{said}\n", "lease.md")
    catalog = "knowledge_catalog_obj"
    item = one.read(lambda root: batos.passage_around(batos.search_(root[catalog], "rent flat", 1)["results"][0], 0))
    node = {"node": "1", "question": "How much is the rent?", "evidence": [item], "certainty": "sure", "score": 1.0}
    verdict = one.read(lambda root: batos._verdict_on(root[catalog], node, batos.Recall()))
    assert verdict["holds"] and verdict["falls_by"] == falls_by


def test_what_falls_behind_by_a_verdict_stands_where_the_rest_is_worse():
    nodes = [{"node": "1", "certainty": "sure", "score": 1.0, "evidence": [1]},
             {"node": "2", "certainty": "sure", "score": 0.8, "evidence": [1]}]
    first = [batos._best_first(nodes, {"1": {"falls_by": falls}})[0]["node"] for falls in (0.1, 0.3)]
    assert first == ["1", "2"] and batos._best_first(nodes)[0]["node"] == "1"


def test_a_hop_that_ends_where_it_began_is_not_ahead_of_what_it_came_from():
    told = {"text": "Ann signs the lease. Tom is her clerk.", "mark": [0, 20]}
    base = {"node": "1", "certainty": "sure", "score": 0.5, "evidence": [told]}
    back = {"node": "1.1", "certainty": "sure", "score": 0.4, "evidence": [told], "via": told}
    on = {"node": "1.2", "certainty": "sure", "score": 0.3, "evidence": [{**told, "mark": [21, 38]}], "via": told}
    assert [node["node"] for node in batos._best_first([base, back])] == ["1", "1.1"]
    assert [node["node"] for node in batos._best_first([base, back, on])] == ["1.2", "1", "1.1"]
    assert batos._best_first([{**back, "evidence": []}, base])[0] is base


@pytest.mark.parametrize("sentence, names", [
    ("The heating is serviced by Brenner & Sons each autumn.", ["Brenner & Sons"]),
    ("Ann Bell is the manager of Tom Reed.", ["Ann Bell", "Tom Reed"])])
def test_the_names_of_a_sentence(sentence, names):
    assert batos._names_beside(sentence, "Who is it?") == names


def test_a_mission_that_is_to_improve_is_thought_along_several_ways(machine):  # noqa: F811
    one = machine_with(machine, SMALL["papers"])
    plain = "Who signs the lease of the flat?"
    assert "tree" not in one.think(brief(plain))
    improving = {**brief(plain), "type": "systemic_self_improvement", "selector": "improve"}
    assert "tree" in one.think(improving)
    assert "tree" not in one.think({**improving, "kwargs": {"depth": 0}})


@pytest.mark.parametrize("question, settings, kwargs, explored", [
    (MANAGER, {}, {}, True), (MANAGER, {"branches": False}, {}, False), (MANAGER, {}, {"depth": 0}, False),
    (MANAGER, {"branches": False}, {"depth": 1}, True), ("Who signs the lease of the flat?", {}, {}, False),
    ("Who is the person who signs the lease of the flat?", {}, {}, False),          # the first passage has all of its words
])
def test_when_a_question_is_thought_along_several_ways(machine, question, settings, kwargs, explored):  # noqa: F811
    one = machine(**settings)
    for name, text in SMALL["papers"].items():
        one.learn(text, name)
    report = one.think(brief(question, **kwargs))
    assert ("explored" in names_of(one, report)) == explored == ("tree" in report)


def test_what_is_superseded_is_pruned_and_what_stands_for_it_follows(machine):  # noqa: F811
    one = machine_with(machine, PAPERS)
    one.lanes["bulk"].call(batos.Job("supersede", lambda root: batos.supersede_(
        root["knowledge_catalog_obj"], "lease.md", "letter.md")))
    catalog = "knowledge_catalog_obj"
    old = one.read(lambda root: batos.passage_around(next(
        row for row in batos.search_(root[catalog], "rent flat Elm Street", 5)["results"]
        if row["chunk"]["doc_id"] == "lease.md"), 0))
    node = {"node": "1", "question": RENT, "evidence": [old], "certainty": "sure", "score": 1.0}
    verdict = one.read(lambda root: batos._verdict_on(root[catalog], node, batos.Recall()))
    assert not verdict["holds"] and verdict["why"] == "superseded by letter.md"
    after = batos._successor([node], {"1": verdict})
    assert after["node"] == "1.0" and [item["doc_id"] for item in after["evidence"]] == ["letter.md", "lease.md"]
    verdict = one.read(lambda root: batos._verdict_on(root[catalog], after, batos.Recall()))
    assert verdict["holds"] and [item["against"] for item in verdict["against"]] == [{"kind": "figure", "is": "superseded"}]


def test_a_pruned_way_leaves_a_trace_and_its_successor_stands(machine, monkeypatch):  # noqa: F811
    one = machine_with(machine, PAPERS)
    monkeypatch.setattr(batos, "is_newer", lambda row, other: row["chunk"]["doc_id"] == "letter.md")
    monkeypatch.setattr(batos, "_newer_first", lambda asked, kept: sorted(
        kept, key=lambda each: each.window.row["chunk"]["doc_id"]))
    report = one.think(brief(RENT, depth=1))
    assert report["tree"]["stands"] == "1.0" and [row["node"] for row in report["tree"]["pruned"]] == ["1"]
    names = names_of(one, report)
    assert names.index("verdict 1") < names.index("node 1.0")
    assert report["evidence"][0]["doc_id"] == "letter.md" and "; before that: “The rent" in report["answer"]
    kinds = one.read(lambda root: [trace.kind for trace in root["digital_ether"].pheromones.values()])
    assert "LOGICAL_INCONSISTENCY" in kinds


def test_where_each_paper_contradicts_another_there_is_an_end(machine, monkeypatch):  # noqa: F811
    one = machine_with(machine, PAPERS)
    monkeypatch.setattr(batos, "_verdict_on", lambda catalog, node, recall: {
        "node": node["node"], "holds": False, "why": "planted", "verified": [], "against": node["evidence"][:1]})
    report = one.think(brief(RENT, depth=1))
    assert len(report["tree"]["nodes"]) == len(report["tree"]["pruned"]) == batos._WAYS_MOST


# On articles: whether memory says otherwise is found by a search


def memory_of(sentences_of):
    """Return a catalog of {doc_id: text}."""
    catalog = batos.new_catalog()
    for doc_id, text in sentences_of.items():
        batos.index_document_(catalog, doc_id, text)
    return catalog


def against(catalog, doc_id):
    """Return what is found against the sentence of a document."""
    number = catalog.documents[doc_id].first_chunk
    item = batos.passage_around(batos.hit_of_chunk(catalog, number, 0.0, {}), 0)
    return batos._found_against(catalog, item, batos.Recall())


@pytest.mark.slow
@pytest.mark.skipif(not planted.READING.is_dir(), reason="the articles are not here")
def test_contradictions_with_articles_are_found_superseded_ones_too_and_others_are_left_in_peace():
    texts = planted.articles()
    changed, alike = planted.planted(texts, 150, seed=22), planted.pairs_alike(texts, 300, seed=22)
    catalog = memory_of({f"{n}.md": row.sentence for n, row in enumerate(changed)}
                        | {f"copy {n}.md": row.copy for n, row in enumerate(changed)})
    for n in range(50):
        batos.supersede_(catalog, f"copy {n}.md", f"{n}.md")
    found = [against(catalog, f"{n}.md") for n in range(150)]
    told = [bool(each) and each[0]["doc_id"] == f"copy {n}.md" for n, each in enumerate(found)]
    assert sum(told) >= 0.8 * 150 and {each[0]["against"]["is"] for each in found[:50] if each} == {"superseded"}
    catalog = memory_of({f"{side} {n}.md": pair[side] for n, pair in enumerate(alike) for side in (0, 1)})
    alarms = [n for n in range(300) if any(item["doc_id"] == f"1 {n}.md" for item in against(catalog, f"0 {n}.md"))]
    print(f"found {sum(told)} of 150, alarms {len(alarms)} of 300")
    assert len(alarms) <= 0.03 * 300
