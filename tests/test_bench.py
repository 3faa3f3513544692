"""The benches run: every one, shortly, with a row for each thing that they measure. No figure is judged here."""

import json
import math
import pathlib
import sys

import pytest
from doubles import QuickEmbedder

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "bench"))
import answers
import bench
import foreign
import quality
import weigh
import window
import windowed

import batos

# at least so many; more where there is a core
ROWS = {"health": 4, "writes": 9, "send": 3, "cycles": 2, "start": 4, "check": 2, "waits": 3, "sizes": 4, "search": 6,
        "mind": 5, "graph": 3, "experts": 7, "methods": 5}


def test_every_bench_is_run_here():
    assert set(ROWS) == set(bench.BENCHES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_bench_yields_its_rows(name):
    rows = list(bench.BENCHES[name](0.05))
    assert len(rows) >= ROWS[name] and len({(what, other) for what, _, other, _ in rows}) == len(rows)
    for what, ours, other, ratio in rows:
        assert what and ours and (ratio is None or ratio > 0) and isinstance(other, str)


@pytest.mark.slow
def test_a_window_is_measured_beside_what_it_shall_cost():
    windowed.need_gl()
    windowed.need_programs("Xvfb")
    rows = list(window.report(1, 0.2))
    assert len(rows) == len(window.FIGURES) and all(ratio > 0 for *_, ratio in rows)
    assert [line.count("|") for line in window.as_markdown(rows)] == [5] * len(rows)


def test_quality_is_measured_on_any_collection(tmp_path):
    rows = {"docs.jsonl": [{"id": 1, "title": "Valves", "text": "The brass valve."}, {"id": "2", "text": "A lantern."},
                           {"id": "3", "text": "Nothing else."}, {"id": "4", "title": " ", "text": ""}],
            "queries.jsonl": [{"id": "a", "text": "brass valve"}, {"id": "b", "text": "lamp"}, {"id": "c", "text": "not judged"}]}
    for name, lines in rows.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "qrels.tsv").write_text("query\tdocument\tgrade\na\t1\t2\nb\t2\t1\nb\t3\t0\n")
    collection = quality.read_collection(tmp_path)
    assert collection.queries == {"a": "brass valve", "b": "lamp"} and set(collection.documents) == {"1", "2", "3"}
    assert collection.judged == {"a": {"1": 2}, "b": {"2": 1}}
    rows = list(quality.report({"small": collection}, QuickEmbedder(), 10))
    told = {ranking: values for _, ranking, *values, _ in rows}
    assert told["words"] == [0.5, 0.5, 0.5] and told["FTS5"] == [0.5, 0.5, 0.5] and told["vectors"] == told["both"] == [1, 1, 1]


def test_turns_are_sought_in_their_own_conversation_and_runs_are_logged(tmp_path, monkeypatch):
    collection = quality.Collection(
        {"1": "The brass valve.", "2": "The brass valve is shut."}, {"a": "brass valve"}, {"a": {"2": 1}},
        conversations={"1": "ana", "2": "bo", ("a", "asked"): "bo"})
    rows = list(quality.report({"talk": collection}, QuickEmbedder(), 10, peers=False))
    assert [row[:4] for row in rows] == [("talk", which, 1.0, 1.0) for which in ("words", "vectors", "both")]
    monkeypatch.setattr(quality, "LOG", tmp_path / "log.md")
    quality.log(rows, "nothing yet")
    assert "| nothing yet | talk | 1.000 / 1.000 | 1.000 / 1.000 | 1.000 / 1.000 | " in (tmp_path / "log.md").read_text()


def test_vectors_are_kept_from_run_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "ready_embedder", QuickEmbedder)
    first = quality.KeptVectors(tmp_path)
    made = first.query("brass valve")
    first.save()
    monkeypatch.setattr(quality, "ready_embedder", None)         # it is not needed again
    assert (quality.KeptVectors(tmp_path).query("brass valve") == made).all()


def test_collections_of_others_are_read(tmp_path):
    (tmp_path / "cran.all").write_text(".I 1\n.T\nvalves\n.W\nthe brass\nvalve\n.I 2\n.T\n\n.W\n\n")
    (tmp_path / "cran.qry").write_text(".I 004\n.W\nbrass valve ?\n")
    (tmp_path / "cranqrel").write_text("1 1 2\n1 2 5\n\n")
    docs, asked, judged = foreign.smart(tmp_path / "cran.all", tmp_path / "cran.qry", tmp_path / "cranqrel")
    assert docs[0] == {"id": "1", "title": "valves", "text": "the brass valve"} and len(docs) == 2
    assert asked == [{"id": "1", "text": "brass valve ?"}] and judged == [("1", "1")]
    talk = [{"sample_id": "t", "conversation": {"session_1": [{"speaker": "Ana", "dia_id": "D1:1", "text": "Hello."}]},
             "qa": [{"question": "Who greets?", "evidence": ["D1:1; D9:9"]}, {"question": "Why?", "evidence": []}]}]
    (tmp_path / "talk.json").write_text(json.dumps(talk))
    docs, asked, judged = foreign.locomo(tmp_path / "talk.json")
    assert docs == [{"id": "t/D1:1", "conversation": "t", "text": "Ana: Hello."}] and judged == [("t/q0", "t/D1:1")]
    row = {"title": "Oil", "paragraph": 3, "context": "Oil rose. Cars queued.",
           "questions": [{"question": "What queued?", "answers": ["Cars"]}]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    assert foreign.turns(tmp_path / "x.jsonl")[2] == [("Oil_3_q0", "Oil_3_s1")]
    assert foreign.xquad(tmp_path / "x.jsonl")[2] == [("Oil_3_q0", "Oil_3")]


def test_the_measures_of_quality():
    assert quality.measures(["x", "a"], {"a": 1}) == (1 / math.log2(3), 1.0, 0.5)
    assert quality.measures(["x"], {"a": 1}) == (0.0, 0.0, 0.0) and quality.measures(["b", "a"], {"a": 1, "b": 2})[0] == 1.0


@pytest.mark.slow
def test_the_collections_of_our_own_making():
    for documents, queries, judged, *_ in (quality.talk(), quality.talk(same_words=True), quality.python_library(300)):
        assert len(documents) >= 300 and len(queries) >= 100 and set(queries) <= set(judged)
        assert all(set(wanted) <= set(documents) for wanted in judged.values())


@pytest.mark.slow
def test_cuts_by_words_are_better_than_by_chance():
    even = quality.boundary_measures(quality.BY_SIZE)
    words, topics = (quality.boundary_measures(batos.BY_WORDS, level=level) for level in ("chunks", "topics"))
    assert all(0 < value < 1 for value in (*even, *words)) and topics[0] > words[0] > 3 * even[0]


ANSWERED = {"answer": "“It is kept for twelve days.” [1]", "evidence": [{"text": "It is kept for twelve days. Then it goes."}]}
VERDICTS = (
    (("twelve days",), ANSWERED, "right"), (("then it",), ANSWERED, "partly"), (("a year",), ANSWERED, "beside"),
    (("twelve",), {"answer": "There is nothing in memory about this.", "evidence": []}, "refused wrongly"),
    ((), {"answer": "There is nothing in memory about this.", "evidence": []}, "refused rightly"),
    ((), ANSWERED | {"certainty": "nearest"}, "refused rightly"), ((), ANSWERED | {"certainty": "sure"}, "beside"),
    (("twelve",), {"reason": {"code": "CoreOffline"}}, "failed"))


@pytest.mark.parametrize(("expected", "report", "told"), VERDICTS)
def test_an_answer_over_manuals_is_judged_by_what_it_must_hold(expected, report, told):
    assert answers.verdict(answers.Question("how", "How long?", expected, False), report) == told


def test_the_questions_over_manuals_say_what_their_answers_must_hold():
    asked = answers.questions()
    assert len(asked) >= 60 and all(question.text and "" not in question.expected for question in asked)
    assert not any(question.expected for question in asked if question.kind in answers.UNANSWERABLE)
    assert sum(question.follows for question in asked) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("way", ["folder", "alone"])
def test_what_notes_take_on_the_disk_is_told_by_kind_of_record(way):
    size, kinds, _ = weigh.measured(weigh.notes(40), way)
    assert 40 * 300 < size <= 40 * weigh.NOTE_BYTES and {"Chunk", "Document", "headers of records"} <= set(kinds)
    assert kinds["Document"][0] == 40


def test_what_is_right_by_the_nearest_alone_is_counted_apart():
    table, question = answers.Table(), answers.Question("how", "How long?", ("twelve",), False)
    for certainty in ("sure", "nearest", "nearest"):
        table.add(question, ANSWERED | {"certainty": certainty}, 1.0)
    assert any("right 3," in line and "nearest 2, of them right 2," in line for line in table.lines())
