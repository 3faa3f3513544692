"""What is acknowledged stays, and takes effect once: samples of the campaigns in tests/durability/."""

import ast

import pytest
from durability import fuzz, kills, lossy, months, mutants, powercut, soak


@pytest.mark.slow
def test_kill_minus_9_under_mixed_load(tmp_path):
    assert kills.under_load(tmp_path, 20, 20)["problems"] == []


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["genesis", "upgrade", "recover", "restore"])
def test_kill_minus_9_in_each_phase(tmp_path, phase):
    assert kills.PHASES[phase](tmp_path, 15, 15)["problems"] == []


@pytest.mark.slow
@pytest.mark.parametrize("work", ["serving", "copies"])
def test_power_cuts(work):
    assert powercut.campaign(300, 300, work)["problems"] == []


@pytest.mark.slow
def test_zodb_as_it_comes_does_not_stand_power_cuts():
    assert len(powercut.campaign(2, 60, "stock")["problems"]) > 10


@pytest.mark.slow
def test_exactly_once_over_a_lossy_path(tmp_path):
    report = lossy.campaign(tmp_path, 15_000, 15_000)
    assert report["problems"] == [] and report["lost"] > 50 and report["repeated"] > 50


@pytest.mark.slow
def test_fuzzing_of_the_wire(tmp_path):
    report = fuzz.campaign(tmp_path, 10_000, 10_000)
    assert report["problems"] == [] and report["replies"] == 10_000


@pytest.mark.slow
def test_a_soak(tmp_path):
    report = soak.campaign(tmp_path, 20_000, 100, 1)
    assert [problem for problem in report["problems"] if "grew" not in problem] == [] and report["cycles"] >= 100


@pytest.mark.slow
def test_six_weeks_in_a_minute(tmp_path):
    report = months.campaign(tmp_path, 45, 1.0, 3)
    assert report["problems"] == [] and len(report["samples"]) == 45


@pytest.mark.slow
def test_a_run_of_months_is_gone_on_with_where_it_was_left(tmp_path):
    first = months.campaign(tmp_path, 2, 0.02, 5)
    assert [row["day"] for row in first["samples"]] == [0, 1] and first["problems"] == []
    again = months.campaign(tmp_path, 3, 0.02, 5)
    assert [row["day"] for row in again["samples"]] == [0, 1, 2] and again["problems"] == []
    assert "| 2 |" in months.table(again, "a commit")


def test_growth_is_of_the_last_half_and_noise_is_none():
    rows = [dict.fromkeys(months.FIGURES, 100.0) for _ in range(8)]
    for n, row in enumerate(rows[4:]):
        row["memory_mb"] += 10 * n
        row["disk_mb"] += 0.1 * n
    assert months.growths(rows) == {**dict.fromkeys(months.FIGURES, 0.0), "memory_mb": 0.3}
    assert months.growths(rows[:4]) == dict.fromkeys(months.FIGURES, 0.0)


# Mutants

SOURCE = """
# One ########################################################################


def first(a, b):
    \"\"\"Tell which.\"\"\"
    if a < b and b is not None:
        a = a + b
        log_one.info("seen")
    return f"{a}", 3


# Two ########################################################################


def second(ä):
    raise ValueError("ä" + ä)
"""


def test_each_mutant_is_one_fault_in_a_text_that_parses():
    rows = mutants.all_mutants(SOURCE)
    assert {name: sorted(mutant.kind for mutant in found) for name, found in rows.items()} == {
        "One": ["and or", "comparison", "comparison", "condition", "nothing returned", "off by one", "plus minus",
                "statement dropped"],
        "Two": ["plus minus", "statement dropped"]}
    whole = ast.dump(ast.parse(SOURCE))
    for mutant in (mutant for found in rows.values() for mutant in found):
        text = mutants.mutated(SOURCE, mutant)
        assert ast.dump(ast.parse(text)) != whole and text.count("\n") == SOURCE.count("\n")


def test_each_room_has_tests_that_are_there():
    root = mutants.ROOT
    rooms = [name for _, name in mutants.sections_of((root / "batos.py").read_text())]
    assert set(mutants.TESTS) | set(mutants.QUICK) <= set(rooms)
    files = {file for room in rooms for quick in (False, True) for file in mutants.tests_of(room, quick)}
    assert [file for file in files if not (root / file).exists()] == []


def test_mutants_are_drawn_by_the_seed():
    one = mutants.drawn(SOURCE, 4, 7, [])
    assert one == mutants.drawn(SOURCE, 4, 7, []) and len(set(one)) == 4
    assert {mutant.section for mutant in mutants.drawn(SOURCE, 99, 7, ["Two"])} == {"Two"}
