"""The benches run: every one, shortly, with a row for each thing that they measure. No figure is judged here."""

import json
import math
import pathlib
import sys

import pytest
from doubles import QuickEmbedder

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "bench"))
import bench
import quality

import batos

# at least so many; more where there is a core
ROWS = {"health": 4, "writes": 6, "send": 3, "cycles": 2, "start": 4, "check": 2, "waits": 3, "sizes": 4, "search": 6,
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


def test_quality_is_measured_on_any_collection(tmp_path):
    rows = {"docs.jsonl": [{"id": 1, "title": "Valves", "text": "The brass valve."}, {"id": "2", "text": "A lantern."},
                           {"id": "3", "text": "Nothing else."}],
            "queries.jsonl": [{"id": "a", "text": "brass valve"}, {"id": "b", "text": "lamp"}, {"id": "c", "text": "not judged"}]}
    for name, lines in rows.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "qrels.tsv").write_text("query\tdocument\tgrade\na\t1\t2\nb\t2\t1\nb\t3\t0\n")
    collection = quality.read_collection(tmp_path)
    assert collection[1] == {"a": "brass valve", "b": "lamp"} and collection[2] == {"a": {"1": 2}, "b": {"2": 1}}
    told = {ranking: values for _, ranking, *values in quality.report({"small": collection}, QuickEmbedder(), 10)}
    assert told["words"] == [0.5, 0.5, 0.5] and told["FTS5"] == [0.5, 0.5, 0.5] and told["vectors"] == told["both"] == [1, 1, 1]


def test_the_measures_of_quality():
    assert quality.measures(["x", "a"], {"a": 1}) == (1 / math.log2(3), 1.0, 0.5)
    assert quality.measures(["x"], {"a": 1}) == (0.0, 0.0, 0.0) and quality.measures(["b", "a"], {"a": 1, "b": 2})[0] == 1.0


@pytest.mark.slow
def test_the_collections_of_our_own_making():
    for documents, queries, judged in (quality.talk(), quality.talk(same_words=True), quality.python_library(300)):
        assert len(documents) >= 300 and len(queries) >= 100 and set(queries) <= set(judged)
        assert all(set(wanted) <= set(documents) for wanted in judged.values())


@pytest.mark.slow
def test_cuts_by_words_are_better_than_by_chance():
    even = quality.boundary_measures(lambda pairs: [0.5] * len(pairs))
    words = quality.boundary_measures(batos.lexical_likeness)
    assert all(0 < value < 1 for value in (*even, *words)) and words[0] > 2 * even[0]
