"""What one image can hold: that the bench runs in small, and what its report says."""

import pathlib
import re
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "bench" / "sizes.py"
sys.path.insert(0, str(SCRIPT.parent))
import sizes


@pytest.mark.slow
def test_a_small_run_measures_each_thing_and_goes_on_where_it_was(tmp_path):
    words = [sys.executable, SCRIPT, f"--folder={tmp_path}", "--searches=4", f"--report={tmp_path}/sizes.md",
             "--chunks", "200", "400", "--objects", "200", "400", "--missions", "30", "60"]
    subprocess.run(words, check=True, capture_output=True)
    told = (tmp_path / "sizes.md").read_text()
    for what in ("learn, s", "vectors stored, s", "search p95", "ask's retrieval p95", "inspect", "history", "start to listening",
                 "check, deep", "pack, s", "backup, s", "memory of the daemon", "disk, MB", "thought, s"):
        assert re.search(rf"\n\| {what}", told), what
    assert "| found again, % | 100 | 100 |" in told
    known = sorted(tmp_path.glob("*.json"))
    before = [path.stat().st_mtime_ns for path in known]
    subprocess.run(words, check=True, capture_output=True)
    assert [path.stat().st_mtime_ns for path in known] == before and len(known) == 20


def test_an_exponent_is_told_of_times_that_say_something():
    assert sizes.exponent("pack, s", 1.0, 10.0, (100, 1000)) == pytest.approx(1.0)
    assert sizes.exponent("pack, s", 1.0, 100.0, (100, 1000)) == pytest.approx(2.0)
    assert sizes.exponent("disk, MB", 1.0, 10.0, (100, 1000)) is None and sizes.exponent("inspect, ms", 1.0, 9.0, (1, 10)) is None
    rows = list(sizes.rows_of("chunks", {10: {"pack, s": 1.0}, 100: {"pack, s": 20.0}}))
    assert rows == ["| pack, s | 1 | 20 (1.30 steep) |"]
