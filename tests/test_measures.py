"""Figures of health over time: which rows are kept, and that they come back."""

import math
import struct
import types

import pytest

import batos

HEALTH = {"lanes": {"write": {"waiting": 1, "commits": 5}, "bulk": {"waiting": 2, "commits": 7}}, "memory_mb": 99.5,
          "commit": {"write": {"p99_ms": 0.7}}, "core": {"tokens": 12}}


def filled(path, minutes, begin_s=1_800_000_000):
    kept = batos.Measures(path)
    for minute in range(minutes):
        at_s = begin_s + 60 * minute
        for later_s in (0, 29):
            if kept.is_due(at_s + later_s):
                kept.note({**HEALTH, "memory_mb": minute}, at_s + later_s)
    return kept


def test_a_row_each_minute_and_one_each_hour_are_kept_for_so_long_and_no_longer():
    kept = filled(None, 49 * 60)
    minutes, hours = kept.told("minutes"), kept.told("hours")
    assert len(minutes) == 48 * 60 and len(hours) in (49, 50)
    assert minutes[-1][1:4] == [3, 12, 0.7] and minutes[-1][4] is None and minutes[-1][5] == 49 * 60 - 1
    assert [later[0] - row[0] for row, later in zip(minutes, minutes[1:], strict=False)] == [60] * (len(minutes) - 1)


def test_they_come_back_from_a_small_file(tmp_path):
    path = str(tmp_path / "measures")
    kept = filled(path, 49 * 60)
    kept.save()
    assert batos.Measures(path).told("minutes") == kept.told("minutes")
    assert batos.Measures(path).told("hours") == kept.told("hours")
    most = sum(rows for _, rows in batos._SPANS.values()) * batos._row_of(len(batos.MEASURED)).size
    assert most < 1_000_000 and (tmp_path / "measures").stat().st_size < most


def test_a_file_of_before_is_read_and_what_it_has_not_is_not_told(tmp_path):
    path, row = tmp_path / "measures", struct.pack("<d8f", 1_800_000_000.0, *range(8))
    path.write_bytes(b"BATMEASURES1" + struct.pack("<I", 1) + row + struct.pack("<I", 0))
    kept = batos.Measures(str(path))
    lacking = len(batos.MEASURED) - 8
    assert kept.told("minutes") == [[1_800_000_000, *map(float, range(8)), *[None] * lacking]] and lacking > 0
    kept.save()
    assert batos.Measures(str(path)).told("minutes") == kept.told("minutes")


@pytest.mark.parametrize("data", [
    b"", b"something else", b"BATMEASURES1", b"BATMEASURES2\xff\xff\xff\xff123", b"BATMEASURES1\xff\xff\xff\xff123"])
def test_a_damaged_file_counts_as_none(tmp_path, data):
    path = tmp_path / "measures"
    path.write_bytes(data)
    kept = batos.Measures(str(path))
    kept.note(HEALTH, 1_800_000_000)
    assert len(kept.told("minutes")) == 1


def test_what_is_not_told_is_no_figure():
    assert math.isnan(batos._measured(HEALTH, "disk_free_mb")) and batos._measured(HEALTH, "lanes.*.commits") == 12


def test_who_asks_before_the_first_round_is_told_of_this_minute():
    vitals = batos.Vitals(types.SimpleNamespace(image=types.SimpleNamespace(path=None)))
    vitals.look_at_health = lambda: HEALTH
    assert vitals.told_measures("minutes")["results"][0][1:3] == [3, 12]


def test_a_daemon_tells_them_also_after_a_stop(daemon, tmp_path):
    running = daemon()
    with batos.Client(running.endpoint) as client:
        before = client.call("measures")
        assert before["result"]["figures"] == list(batos.MEASURED) and before["results"]
    running.stop()
    with batos.Client(daemon().endpoint) as client:
        assert client.call("measures")["results"][0] == before["results"][0]
        assert len(client.call("measures", span="hours")["results"]) >= 1


def test_the_inspector_shows_what_is_measured():
    assert [spark["path"] for spark in batos._UI_SPEC["sparks"]] == list(batos.MEASURED)
