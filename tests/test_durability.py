"""What is acknowledged stays, and takes effect once: samples of the campaigns in tests/durability/."""

import pytest
from durability import fuzz, kills, lossy, powercut, soak


@pytest.mark.parametrize("count", [8, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_minus_9_under_mixed_load(tmp_path, count):
    assert kills.under_load(tmp_path, count, count)["problems"] == []


@pytest.mark.parametrize("count", [3, pytest.param(15, marks=pytest.mark.slow)])
@pytest.mark.parametrize("phase", ["genesis", "upgrade", "recover", "restore"])
def test_kill_minus_9_in_each_phase(tmp_path, phase, count):
    assert kills.PHASES[phase](tmp_path, count, count)["problems"] == []


@pytest.mark.parametrize("cuts", [60, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("work", ["serving", "copies"])
def test_power_cuts(work, cuts):
    assert powercut.campaign(cuts, cuts, work)["problems"] == []


def test_zodb_as_it_comes_does_not_stand_power_cuts():
    assert len(powercut.campaign(2, 60, "stock")["problems"]) > 10


@pytest.mark.parametrize("commands", [1500, pytest.param(15_000, marks=pytest.mark.slow)])
def test_exactly_once_over_a_lossy_path(tmp_path, commands):
    report = lossy.campaign(tmp_path, commands, commands)
    assert report["problems"] == [] and report["lost"] > 50 and report["repeated"] > 50


@pytest.mark.parametrize("inputs", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzzing_of_the_wire(tmp_path, inputs):
    report = fuzz.campaign(tmp_path, inputs, inputs)
    assert report["problems"] == [] and report["replies"] == inputs


@pytest.mark.slow
def test_a_soak(tmp_path):
    report = soak.campaign(tmp_path, 20_000, 100, 1)
    assert [problem for problem in report["problems"] if "grew" not in problem] == [] and report["cycles"] >= 100
