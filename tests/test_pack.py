"""Packing: old states go, everything else stays, whatever moment it is interrupted at; and what is due is done."""

import json
import os
import pathlib
import random
import shutil
import threading
import time

import pytest
import ZODB.FileStorage.FileStorage
from test_backup import blob_of, new_image, put, slots, write

import batos


def filler(n):
    """3 kB of text that nothing deflates much."""
    return random.Random(n).randbytes(1500).hex()


@pytest.fixture
def image(tmp_path):
    """An image with many old states, a blob that nothing names any more, and one that is named."""
    image = new_image(tmp_path)
    for n in range(60):
        put(image, f"s{n % 3}", [n, filler(n)])
    for name in ("gone", "kept"):
        write(image, lambda root, name=name: batos.set_slot(root["genesis_obj"], "file", blob_of(tmp_path, name.encode() * 900)))
    yield image
    image.close()


def test_old_states_and_dropped_blobs_go(tmp_path, image):
    assert len(list((tmp_path / "image.fs.blob").rglob("*.blob"))) == 2
    report = image.pack(time.time() + 1)
    assert report["after_mb"] < report["before_mb"] / 5
    assert [path.read_bytes()[:4] for path in (tmp_path / "image.fs.blob").rglob("*.blob")] == [b"kept"]
    image.close()
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith("image.fs.") and path.is_file()} <= {
        "image.fs.seals", "image.fs.index", "image.fs.lock", "image.fs.tmp"}
    report = batos.check_image(str(tmp_path / "image.fs"), deep=True)
    assert report["faults"] == [] and slots(tmp_path / "image.fs")["s2"] == [59, filler(59)]


def test_what_less_history_would_free_is_told(tmp_path, image, monkeypatch):
    told = image.history_mb([7, 0])
    assert told[7] == 0 and told[0] > 57 * 0.003         # of 60 states of three slots
    monkeypatch.setattr(batos, "steady_us", lambda: batos.unix_us() + 20 * 86_400_000_000)
    assert image.history_mb([30, 7, 0]) == {30: 0, 7: told[0], 0: told[0]}
    settings = batos.load_settings({}, {"BATOS_SETTINGS": "/dev/null"})
    details = batos.pack_job(image, settings)(lambda line: None)["details"]
    assert details.endswith(f"a pack would free up to {told[0]:.1f} MB with --days 7, {told[0]:.1f} MB with --days 1, "
                            f"{told[0]:.1f} MB with --days 0")
    freed = batos.pack_job(image, settings, 0)(lambda line: None)
    assert freed["result"]["before_mb"] - freed["result"]["after_mb"] >= told[0] and "would free" not in freed["details"]


def test_an_automatic_pack_keeps_history_days_whatever_it_would_free(tmp_path, image, monkeypatch):
    settings = batos.load_settings({"history_days": 30.0}, {"BATOS_SETTINGS": "/dev/null"})
    before = pathlib.Path(image.path).read_bytes()
    monkeypatch.setattr(batos, "steady_us", lambda: batos.unix_us() + 29 * 86_400_000_000)
    batos.pack_job(image, settings)(lambda line: None)
    assert pathlib.Path(image.path).read_bytes() == before
    monkeypatch.setattr(batos, "steady_us", lambda: batos.unix_us() + 31 * 86_400_000_000)
    batos.pack_job(image, settings)(lambda line: None)
    assert image.size() < len(before) / 5


def test_files_of_blobs_that_were_never_committed_go(tmp_path, image):
    kept = max(pathlib.Path(f"{image.path}.blob").glob("0x*/**/*.blob"))
    tid = int(kept.stem, 16)
    stray, coming = (kept.with_name(f"0x{number:016x}.blob") for number in (tid - 1, tid + (1 << 40)))
    for path in (stray, coming, kept.with_name("note.blob")):
        path.write_bytes(b"left by a kill")
    image.pack(time.time() - 1e6)
    assert not stray.exists() and kept.exists() and coming.exists() and kept.with_name("note.blob").exists()


def test_the_next_start_clears_away_what_a_killed_commit_had_in_hand(tmp_path, image):
    left = pathlib.Path(f"{image.path}.blob", "tmp", "BUCleft")
    left.write_bytes(b"left by a kill")
    image.close()
    batos.Image.open(image.path).close()
    assert not left.exists()


def test_what_is_younger_stays(tmp_path, image):
    before_s = time.time()
    time.sleep(0.01)
    put(image, "n", 1)
    put(image, "n", 2)
    image.pack(before_s)
    tids = sorted(one.tid for one in image.storage.iterator())
    assert [value for tid in tids if (value := state_at(image, tid)) is not None] == [1, 2]


def state_at(image, tid):
    with batos.reading(image) as root:
        oid = root["genesis_obj"]._p_oid
    try:
        data = image.storage.loadSerial(oid, tid)
    except ZODB.POSException.POSKeyError:
        return None
    connection = image.db.open()
    try:
        return connection._reader.getState(data).get("n")
    finally:
        connection.close()


def test_a_pack_that_would_free_nothing_leaves_the_file(tmp_path, image):
    image.seal()
    before, seals = (tmp_path / "image.fs").read_bytes(), (tmp_path / "image.fs.seals").stat().st_ino
    image.pack(time.time() - 86400)
    assert (tmp_path / "image.fs").read_bytes() == before
    assert (tmp_path / "image.fs.seals").stat().st_ino == seals and image.seals.end == len(before)


def test_seals_are_short_after_a_pack(tmp_path, image):
    for n in range(30):
        write(image, lambda root, n=n: root.__setitem__(f"big{n}", batos.UvmObject(value=os.urandom(1 << 20))))
    image.pack(time.time() + 1)
    sizes = [row["end"] - row["start"] for row in image.seals.rows]
    assert len(sizes) >= 3 and max(sizes) < 12 << 20
    image.seals.check((tmp_path / "image.fs").read_bytes(), image.seals.rows)


def test_killed_at_any_step_it_opens_again(tmp_path, image, monkeypatch):
    """A copy of the folder is taken around each rename and removal; each copy opens, with all that was committed."""
    copies = []

    def copying(function):
        def call(*args, **kwargs):
            for moment in ("before", "after"):
                copies.append(tmp_path.parent / f"{tmp_path.name}-{len(copies)}-{moment}")
                shutil.copytree(tmp_path, copies[-1], ignore=shutil.ignore_patterns("*.lock"))
                if moment == "before":
                    function(*args, **kwargs)
        return call
    for name in ("rename", "remove", "unlink"):
        monkeypatch.setattr(os, name, copying(getattr(os, name)))
    with monkeypatch.context() as patch:
        patch.setattr(image.storage, "packer", packer_with_a_commit(image, copies))
        image.pack(time.time() + 1)
    monkeypatch.undo()
    early = copies[:copies.index("acknowledged")]
    copies.remove("acknowledged")
    assert len(early) >= 3 and len(copies) - len(early) > 8
    for copy in copies:
        where = copy / "image.fs"
        assert slots(where)["s2"] == [59, filler(59)] and slots(where).get("late", copy) in ("acknowledged", *early)
        assert batos.check_image(str(where), deep=True)["faults"] == []
        assert not (copy / "image.fs.old").exists() and not (copy / "image.fs.pack").exists()
        shutil.rmtree(copy)


def packer_with_a_commit(image, copies):
    def packer(*args):
        put(image, "late", "acknowledged")
        copies.append("acknowledged")
        return batos.ImageStorage.packer(*args)
    return packer


def test_the_packed_file_is_on_disk_before_it_gets_its_name_and_the_name_before_commits(tmp_path, image, monkeypatch):
    told = []

    def noting(name, function):
        def call(first, *args):
            path = first if isinstance(first, str) else os.readlink(f"/proc/self/fd/{first}")
            told.append((name, os.path.basename(path)))
            return function(first, *args)
        return call
    monkeypatch.setattr(os, "fsync", noting("fsync", os.fsync))
    monkeypatch.setattr(os, "rename", noting("rename", os.rename))
    image.pack(time.time() + 1)
    monkeypatch.undo()
    renames = [n for n, row in enumerate(told) if row[0] == "rename"]
    assert told[renames[0]] == ("rename", "image.fs") and told[renames[1]] == ("rename", "image.fs.pack")
    assert ("fsync", "image.fs.pack") in told[:renames[0]]
    assert told[renames[1] + 1] == ("fsync", tmp_path.name)


def test_commits_go_on_meanwhile(tmp_path, image):
    lane = batos.WriteLane(image, batos.WriteToken(), batos.load_settings({}, {})).start()
    told, stop = [], threading.Event()

    def load():
        while not stop.is_set():
            n = len(told)
            lane.call(batos.Job("put", lambda root, n=n: batos.set_slot(root["genesis_obj"], f"t{n % 5}", n) or n))
            told.append(n)
    thread = threading.Thread(target=load)
    thread.start()
    for _ in range(5):
        image.pack(time.time())
    stop.set()
    thread.join()
    lane.close()
    image.close()
    assert batos.check_image(str(tmp_path / "image.fs"), deep=True)["faults"] == []
    found = slots(tmp_path / "image.fs")
    assert [found[f"t{n % 5}"] for n in told[-5:]] == told[-5:]


def test_a_pack_that_is_cancelled_changes_nothing(tmp_path, image):
    def step(line):
        raise batos.Cancelled("enough")
    before = (tmp_path / "image.fs").read_bytes()
    with pytest.raises(batos.Cancelled):
        image.pack(time.time() + 1, step)
    assert (tmp_path / "image.fs").read_bytes() == before and not (tmp_path / "image.fs.pack").exists()
    put(image, "n", 1)
    assert image.pack(time.time() + 1)["after_mb"] < 0.1


def test_no_room(tmp_path, image, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: batos.types.SimpleNamespace(free=1000))
    with pytest.raises(batos.ImageError, match="Make room"):
        image.pack(time.time() + 1)
    assert image.seals.path.exists() is False or image.seals.rows == batos.Seals(tmp_path / "image.fs").rows


def test_a_disk_that_fails_amid_a_pack_leaves_the_image_in_service(tmp_path, image, monkeypatch):
    def failing(self, ipos):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(batos.SyncedPacker, "copyRest", failing)
    before_s = time.time()
    put(image, "n", 1)
    with pytest.raises(OSError, match="No space"):
        image.pack(before_s)
    put(image, "n", 2)
    image.close()
    assert slots(tmp_path / "image.fs")["n"] == 2


def test_a_pack_that_fails_between_its_renames_stops_the_daemon_and_the_next_start_has_everything(tmp_path, image, monkeypatch):
    real, count = os.rename, []

    def failing(source, target):
        if str(source).endswith(".pack"):
            raise OSError(5, "Input/output error")
        count.append(real(source, target))
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(batos.ImageBroken, match="start it again"):
        image.pack(time.time() + 1)
    monkeypatch.undo()
    image.close()
    assert slots(tmp_path / "image.fs")["s2"] == [59, filler(59)]


def upkeep(image, **given):
    return batos.Upkeep(image, batos.load_settings(given, {}))


@pytest.mark.parametrize("row, due", [
    ({}, True), ({"at_s": 0, "ok": True}, True), ({"at_s": -3600, "ok": True}, False), ({"at_s": -90000, "ok": True}, True),
    ({"at_s": 5000, "ok": True}, True), ({"at_s": -1000, "ok": False}, True), ({"at_s": -100, "ok": False}, False)])
def test_what_is_due(image, row, due):
    if row and row["at_s"]:
        row = row | {"at_s": time.time() + row["at_s"]}
    lane = upkeep(image)
    lane.report = {"pack": row} if row else {}
    assert lane._is_due("pack", 24.0) is due
    assert lane._is_due("pack", 0) is False


def test_due_work_is_done_and_written_down(tmp_path, image, monkeypatch):
    monkeypatch.setattr(batos, "_UPKEEP_LOOK_S", 0.05)
    lane = upkeep(image, backup_dir=str(tmp_path / "b"), history_days=0.0).start()
    end_s = time.monotonic() + 300
    while set(lane.report) != {"backup", "pack"} and time.monotonic() < end_s:
        time.sleep(0.02)
    lane.close()
    assert lane.report["backup"]["ok"] and lane.report["pack"]["ok"]
    assert json.loads((tmp_path / "image.fs.upkeep").read_text()) == lane.report == upkeep(image).report
    (tmp_path / "image.fs.upkeep").write_text("[1")
    assert upkeep(image).report == {}                    # what does not read is as if never done


def test_work_that_fails_is_told_and_the_lane_goes_on(image):
    lane = upkeep(image).start()

    def failing(step):
        raise OSError(30, "Read-only file system")
    with pytest.raises(batos.ImageError, match="Read-only"):
        lane.call(batos.Job("backup", failing))
    assert lane.report["backup"]["ok"] is False
    assert lane.call(batos.Job("pack", batos.pack_job(image, lane.settings, 0.0))).result["result"]["after_mb"] < 0.1
    lane.close()


@pytest.mark.slow
def test_packing_by_command_and_cancelling(daemon, tmp_path):
    one = daemon()
    with batos.Client(one.endpoint) as client:
        for n in range(30):
            client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["n", [n, "x" * 9000]])
        with pytest.raises(batos.NotFound):
            client.call("cancel", cycle="upkeep")
        reply = client.call("pack", days=0)
        assert reply["result"]["after_mb"] < reply["result"]["before_mb"]
        assert client.call("inspect", target="genesis_obj.n")["result"]["value"][0] == 29
        with pytest.raises(batos.BadRequest):
            client.call("pack", days=-1)
        assert batos.main(["pack", "--days", "0", "--endpoint", one.endpoint]) == 0
    assert one.stop() == 0
    assert batos.check_image(str(tmp_path / "live_image.fs"), deep=True)["faults"] == []


def test_a_snapshot_that_is_open_keeps_what_it_sees(tmp_path, image):
    write(image, lambda root: batos.set_slot(root["genesis_obj"], "child", batos.UvmObject(name="child", value=1)))
    unit = batos.Unit(image.db)
    with unit.snapshot() as root:
        unit.connection.cacheMinimize()
        put(image, "s0", "later")
        write(image, lambda root: batos.remove_slot(root["genesis_obj"], "child"))
        image.pack(time.time() + 1)
        assert root["genesis_obj"].s0 == [57, filler(57)] and root["genesis_obj"].child.value == 1
    with unit.snapshot() as root:
        assert root["genesis_obj"].s0 == "later"
    unit.close()
    image.pack(time.time() + 1)
    image.close()
    assert slots(tmp_path / "image.fs")["s0"] == "later"


def test_a_pack_catches_up_with_steady_writes(tmp_path, image):
    """ZODB's own copies one transaction for each that comes, and ends when the writes do."""
    before_s, stop, told, problems = time.time(), threading.Event(), [], []
    for n in range(400):
        put(image, f"t{n % 5}", n)
    lane = batos.WriteLane(image, batos.WriteToken(), batos.load_settings({}, {})).start()

    def load(number):
        end_s = time.monotonic() + 300
        while not stop.is_set():
            lane.call(batos.Job("put", lambda root: batos.set_slot(root["genesis_obj"], f"u{number}", len(told))))
            told.append(1)
            if time.monotonic() > end_s:
                problems.append("the pack did not end while others wrote")
                return
    threads = [threading.Thread(target=load, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    image.pack(before_s)
    count = len(told)
    stop.set()
    for thread in threads:
        thread.join()
    lane.close()
    image.close()
    assert problems == [] and count > 0
    assert batos.check_image(str(tmp_path / "image.fs"), deep=True)["faults"] == []
