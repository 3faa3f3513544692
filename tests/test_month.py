"""The replay of a month: that it runs, and says the same for a seed."""

import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "bench" / "month.py"


def replayed(days):
    return subprocess.run([sys.executable, SCRIPT, "--days", str(days)], check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_days_are_replayed_by_a_clock_of_their_own_and_the_same_each_time():
    told = replayed(2)
    assert "| 2 | 20 | 20 |" in told and "In all 40 questions" in told
    assert replayed(2) == told


def test_the_report_of_a_month_names_what_it_was_made_by():
    report = SCRIPT.with_suffix(".md").read_text("utf-8")
    assert "| 30 |" in report and "--seed 21" in report
