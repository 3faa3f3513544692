"""The benches run: every one, shortly, with a row for each thing that they measure. No figure is judged here."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "bench"))
import bench

# at least so many; more where there is a core
ROWS = {"health": 4, "writes": 6, "send": 3, "cycles": 2, "start": 4, "check": 2, "waits": 3, "sizes": 4}


def test_every_bench_is_run_here():
    assert set(ROWS) == set(bench.BENCHES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_bench_yields_its_rows(name):
    rows = list(bench.BENCHES[name](0.05))
    assert len(rows) >= ROWS[name] and len({(what, other) for what, _, other, _ in rows}) == len(rows)
    for what, ours, other, ratio in rows:
        assert what and ours and (ratio is None or ratio > 0) and isinstance(other, str)
