"""The reader: its weights, what it judges, and the data that its trainer makes."""

import importlib.util
import json
import pathlib
import random

import pytest

import batos

PATH = pathlib.Path(__file__).resolve().parents[1] / "seed_core" / "train_reader.py"
QUESTION, ANSWER = "How long does the mast run?", "twelve days"
PASSAGES = [("Mast", "In full darkness the mast runs for twelve days. It is grey."), ("", "A lamp stands there.")]


@pytest.fixture(scope="module")
def trainer():
    spec = importlib.util.spec_from_file_location("train_reader", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_before_its_weights_are_read_nothing_is_judged():
    assert batos.Reader().judge(QUESTION, PASSAGES) == []


@pytest.mark.slow
def test_loading_says_nothing(capfd):
    loaded = batos.Reader()
    loaded.load(batos.installed_embedder(), batos.installed_reader())
    told = capfd.readouterr()
    assert loaded.state == "ready" and "REPORT" not in told.out + told.err


@pytest.fixture(scope="module")
def reader():
    reader = batos.Reader()
    reader.load(batos.installed_embedder(), batos.installed_reader())
    return reader


@pytest.mark.slow
def test_the_reader_that_is_installed_points_to_what_answers(reader):
    (score, (first, last)), (other, _) = reader.judge(QUESTION, PASSAGES)
    assert score > reader.threshold > other
    assert "twelve days" in PASSAGES[0][1][first:last]
    assert len(reader.judge("mast " * 400, PASSAGES)) == 2               # the longer of the two is cut off
    plain = batos.Reader()
    plain.load(batos.installed_embedder(), batos.installed_reader(), in_bfloat16=False)
    (alike, span), _ = plain.judge(QUESTION, PASSAGES)
    assert span == (first, last) and abs(alike - score) < 0.3


@pytest.mark.slow
def test_what_the_reader_points_to_is_marked_unless_it_answers_nothing(reader):
    told = "See the sheet on masts. The mast runs for twelve days. It is grey."
    catalog, recall = batos.new_catalog(), batos.Recall()
    recall.embedder.reader = reader
    batos.index_document_(catalog, "mast.md", told)
    try:
        found = batos.find_evidence(catalog, QUESTION, recall)
        window = batos.Window(None, batos._telling_of_line(told, 1, ()), 0, 3)
        judged = batos.Judged(window, 0.5, 2, worths=(0.5, 0.5, 0.6))
        asked = batos.Asked(QUESTION, {}, {}, None, {})
        assert batos._pointed(asked, judged, (0, 5)).marked == 2                # that one only says where to look
        assert batos._pointed(asked, judged, (30, 40)).marked == 1
        assert batos._pointed(asked, judged._replace(worths=(0.5, 0.5, 0.8)), (30, 40)).marked == 2         # worth far more
        assert found["certainty"] == "sure" and batos.marked_text(found["evidence"][0]) == "The mast runs for twelve days."
        assert batos.find_evidence(catalog, "Who is the captain of the mast?", recall)["certainty"] != "sure"
    finally:
        recall.embedder.reader = batos.Reader()


def test_a_span_ends_behind_its_beginning_and_lies_in_the_passage():
    offsets, shut = [(0, 0), (0, 4), (6, 8), (9, 15), (16, 20)], -1e4
    starts, ends = [shut, shut, 0.0, 20.0, 1.0], [shut, shut, 9.0, 1.0, 2.0]
    assert batos.best_span(starts, ends, offsets, 6) == (3, 14)          # not from "9" back to the greatest end


@pytest.mark.slow
def test_a_reader_learns_is_written_and_judges_as_before(trainer, tmp_path):
    folder = batos.installed_embedder()
    model, tokenizer = batos.new_reader_model(folder)
    asked = trainer.Asked(QUESTION, trainer.Passage("Mast", ("It is grey.", f"It runs for {ANSWER}.")), 1, ANSWER,
                          (trainer.Passage("", ("A lamp stands there.",)),))

    class How:
        work, minutes, resume, start = tmp_path, 10.0, False, None
    training = trainer.Training(How, model, tokenizer)
    losses = [training.step([asked], random.Random(n)) for n in range(25)]
    assert losses[-1] < losses[0] / 2
    model.eval()
    batos.write_reader(model, tmp_path, {"threshold": 0.5})
    reader = batos.Reader()
    reader.load(folder, tmp_path)
    (worth, (first, last)), (other, _) = reader.judge(QUESTION, [("Mast", asked.passage.text), PASSAGES[1]])
    assert reader.state == "ready" and worth > 0.5 > other and asked.passage.text[first:last] == ANSWER
    path = tmp_path / batos.READER_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    damaged = batos.Reader()
    damaged.load(folder, tmp_path)
    assert damaged.state == "failed" and damaged.judge(QUESTION, PASSAGES) == []


def test_collections_of_others_become_questions_with_what_answers_and_what_does_not(trainer, tmp_path):
    told = ["The mast is grey and tall.", "It runs for twelve days in full darkness."]
    lamps = [{"article": f"Lamp {n}", "section": "Use", "question": "Where do lamps of ships stand?", "answers": [0],
              "candidates": [f"Lamps of ships number {n} stand on the deck.", "They are lit at night."]} for n in range(3)]
    rows = [{"article": "Mast", "section": "Power", "question": QUESTION, "candidates": told, "answers": [1]}, *lamps]
    (tmp_path / "selqa-ass-dev.json").write_text(json.dumps(rows))
    found = {one.question: one for one in trainer.from_more(tmp_path, random.Random(1))}
    assert found[QUESTION].passage.sentences[found[QUESTION].n] == told[1] and found[QUESTION].answer is None
    assert not any(told[1] in other.sentences for other in found[QUESTION].others)
    assert trainer.from_more(None, random.Random(1)) == []
