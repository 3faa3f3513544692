"""What contradicts: two sentences side by side, and two papers of which one question is told both."""

import os

import planted
import pytest
from test_mind import machine  # noqa: F401  (a fixture)

import batos


@pytest.mark.parametrize("one, other, kind", [
    ("The rent for the flat in Elm Street is 900 euros.", "The rent for the flat in Elm Street is 950 euros.", "figure"),
    ("The lease of the flat ends on 31 March 2027.", "The lease of the flat ends on 30 June 2027.", "date"),
    ("The board meets on Monday in the blue room.", "The board meets on Friday in the blue room.", "date"),
    ("For all repairs of the heating call Maria Weber.", "For all repairs of the heating call Tom Reed.", "name"),
    ("Dogs are allowed in the yard of the house.", "Dogs are not allowed in the yard of the house.", "negation"),
    ("The house has three floors and a cellar.", "The house has 4 floors and a cellar.", "figure"),
    ("The pump weighs 1,200 kg without its base.", "The pump weighs 1200 kg without its base.", ""),
    ("In 2001 the town had 14,000 people.", "In 2005 the town had 15,000 people.", ""),                 # of two times
    ("Lima is the capital and largest city of Peru.", "Rome is the capital and largest city of Italy.", ""),
    ("The maxilla has six incisors and four molars.", "The mandible has six incisors and six molars.", ""),
    ("The lease of the flat ends on 31 March 2027.", "The lease of the flat ends on 31 March 2027.", ""),
    ("The valve is closed by turning it to the left.", "A pump needs oil once a year.", ""),
])
def test_sentences_side_by_side(one, other, kind):
    assert batos.gainsays(one, other) == kind == batos.gainsays(other, one)


def machine_with(machine, papers):  # noqa: F811
    one = machine()
    for name, text in papers.items():
        one.learn(text, name)
    return one


def brief(question):
    return {"type": "direct_synthesis", "selector": "q", "args": [question]}


RENT = "How much is the rent for the flat in Elm Street?"
PAPERS = {"lease.md": "The rent for the flat in Elm Street is 900 euros a month, paid on the first.\n",
          "letter.md": "The rent for the flat in Elm Street is 950 euros a month, paid on the first.\n",
          "oven.md": "The oven of the kitchen is cleaned twice a year.\n"}


def test_of_two_papers_that_contradict_both_are_told(machine):  # noqa: F811
    one = machine_with(machine, PAPERS)
    report = one.think(brief(RENT))
    assert {item["doc_id"] for item in report["evidence"][:2]} == {"lease.md", "letter.md"}
    assert report["evidence"][1]["against"] == {"kind": "figure", "is": "as old"}
    assert "900 euros" in report["answer"] and "; but also: " in report["answer"] and "950 euros" in report["answer"]


def test_whose_file_was_written_later_is_told_first_and_the_other_as_before(machine, tmp_path):  # noqa: F811
    one = machine()
    for name, at in (("letter.md", 2_000_000), ("lease.md", 1_000_000)):
        (tmp_path / name).write_text(PAPERS[name])
        os.utime(tmp_path / name, (at, at))
        one.lanes["bulk"].call(batos.Job("learn", lambda root, path=tmp_path / name: batos.index_document_(
            root["knowledge_catalog_obj"], path.name, path.read_text(), metadata={"path": str(path)})["chunks"]))
    report = one.think(brief(RENT))
    assert [item["doc_id"] for item in report["evidence"][:2]] == ["letter.md", "lease.md"]
    assert report["evidence"][1]["against"] == {"kind": "figure", "is": "older"}
    assert "950 euros" in report["answer"].partition("; before that: ")[0]


def test_what_is_superseded_is_not_told_against_what_stands(machine):  # noqa: F811
    one = machine_with(machine, PAPERS)
    one.lanes["bulk"].call(batos.Job("supersede", lambda root: batos.supersede_(
        root["knowledge_catalog_obj"], "lease.md", "letter.md")))
    report = one.think(brief(RENT))
    assert report["evidence"][0]["doc_id"] == "letter.md" and "900" not in report["answer"]


def test_what_is_said_twice_is_told_once(machine):  # noqa: F811
    one = machine_with(machine, PAPERS | {"letter.md": PAPERS["lease.md"]})
    report = one.think(brief(RENT))
    assert not any("against" in item for item in report["evidence"]) and "[2]" not in report["answer"]


# On articles: 150 sentences of which one thing was changed, and pairs that only look alike


def found_of(rows):
    return [batos.gainsays(row.sentence, row.copy) for row in rows]


@pytest.mark.slow
@pytest.mark.skipif(not planted.READING.is_dir(), reason="the articles are not here")
def test_changed_sentences_of_articles_are_found_and_others_are_left_in_peace():
    texts = planted.articles()
    changed = planted.planted(texts, 150, seed=22)
    alike = planted.pairs_alike(texts, 300, seed=22)
    found, alarms = found_of(changed), [batos.gainsays(*pair) for pair in alike]
    assert len(changed) == 150 and len(alike) == 300
    assert sum(map(bool, found)) >= 0.8 * len(found) and sum(map(bool, alarms)) <= 0.03 * len(alarms)
