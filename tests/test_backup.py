"""Backups: whole and added, made while others write, read back, let go in time; and images put together from them."""

import datetime
import errno
import functools
import json
import pathlib
import shutil
import threading
import time

import pytest

import batos


def new_image(folder, name="image.fs"):
    image = batos.Image.open(str(folder / name))
    batos.genesis(image)
    return image


def write(image, function):
    unit = batos.Unit(image.db)
    unit.manager.begin()
    function(unit.root)
    unit.manager.commit()
    unit.close()


def put(image, name, value):
    write(image, lambda root: batos.set_slot(root["genesis_obj"], name, value))


def slots(where):
    image = batos.Image.open(str(where))
    with batos.reading(image) as root:
        found = {name: value for name, value in root["genesis_obj"]._slots.items() if not name.endswith("*")}
    image.close()
    return found


def blob_of(folder, content):
    source = folder / "source.bin"
    source.write_bytes(content)
    return batos.blob_record(str(source), "weights")


@pytest.fixture
def image(tmp_path):
    image = new_image(tmp_path)
    yield image
    image.close()


def test_a_chain_is_restored_as_of_any_backup(tmp_path, image):
    backups = []
    for n in range(4):
        put(image, "n", n)
        write(image, lambda root, n=n: batos.set_slot(root["genesis_obj"], "file", blob_of(tmp_path, b"%d" % n * 5000)))
        backups.append(batos.make_backup(image, tmp_path / "b"))
    assert [backup.after for backup in backups] == [None, *(backup.name for backup in backups[:-1])]
    assert [len(backup.blobs) for backup in backups] == [1, 1, 1, 1]
    for n, backup in enumerate(backups):
        where = tmp_path / f"r{n}" / "new.fs"
        where.parent.mkdir()
        report = batos.restore_image(tmp_path / "b", where, backup.name)
        assert report["faults"] == [] and report["change"] == backup.tid and slots(where)["n"] == n
        restored = batos.Image.open(str(where))
        with batos.reading(restored) as root:
            assert pathlib.Path(batos.blob_path(root["genesis_obj"].file)).read_bytes() == b"%d" % n * 5000
        restored.close()


def test_a_restored_image_is_the_same_bytes(tmp_path, image):
    put(image, "a", 1)
    batos.make_backup(image, tmp_path / "b")
    put(image, "a", 2)
    batos.make_backup(image, tmp_path / "b")
    batos.restore_image(tmp_path / "b", tmp_path / "new.fs")
    assert (tmp_path / "new.fs").read_bytes() == (tmp_path / "image.fs").read_bytes()
    made = [*tmp_path.glob("new.fs*"), tmp_path / "b"]
    assert len(made) > 4 and [path for path in made if path.stat().st_mode & 0o077 and path.suffix != ".lock"] == []


def test_nothing_new_is_an_empty_backup(tmp_path, image):
    first = batos.make_backup(image, tmp_path / "b")
    second = batos.make_backup(image, tmp_path / "b")
    assert second.after == first.name and second.size == 0 and second.tid == first.tid
    assert batos.restore_image(tmp_path / "b", tmp_path / "new.fs")["faults"] == []


@pytest.mark.parametrize("why", ["full", "pack", "old", "clock", "lost"])
def test_a_whole_backup_begins_a_new_chain(tmp_path, image, why):
    for n in range(20):
        put(image, "n", "x" * 1000 * n)
    first = batos.make_backup(image, tmp_path / "b")
    if why == "pack":
        image.pack(time.time() + 1)
    if why in ("old", "clock"):
        days = -8 if why == "old" else 8
        first.made_at = (batos.now_utc() + datetime.timedelta(days=days)).isoformat()
        batos._write_manifest(tmp_path / "b", first)
    if why == "lost":
        (tmp_path / "b" / f"{first.name}.json").write_text("{")
    put(image, "n", 1)
    second = batos.make_backup(image, tmp_path / "b", full=why == "full")
    assert second.after is None and second.chain == second.name != first.chain
    assert batos.restore_image(tmp_path / "b", tmp_path / "new.fs")["faults"] == [] and slots(tmp_path / "new.fs")["n"] == 1


def test_a_backup_under_load_holds_what_was_acknowledged_before_it(tmp_path, image):
    settings, stop, told, problems = batos.load_settings({}, {}), threading.Event(), [], []
    lane = batos.WriteLane(image, batos.WriteToken(), settings).start()

    def load():
        n = 0
        while not stop.is_set():
            n += 1
            try:
                lane.call(batos.Job("put", lambda root, n=n: batos.set_slot(root["genesis_obj"], f"s{n % 7}", n) or n))
                told.append(n)
            except batos.BatosError as error:
                problems.append(error)
    thread = threading.Thread(target=load)
    thread.start()
    befores = []
    for _ in range(5):
        time.sleep(0.05)
        befores.append(len(told))
        batos.make_backup(image, tmp_path / "b")
    stop.set()
    thread.join()
    lane.close()
    backups, faults = batos.read_backups(tmp_path / "b")
    assert not problems and not faults and len(backups) == 5
    for backup, before in zip(backups, befores, strict=True):
        batos.restore_image(tmp_path / "b", tmp_path / f"{backup.name}.fs", backup.name)
        found = slots(tmp_path / f"{backup.name}.fs")
        last = max(value for name, value in found.items() if name[1:].isdigit())
        assert before <= last
        assert all(found[f"s{n % 7}"] == n for n in range(max(1, last - 6), last + 1))


def test_what_was_altered_is_not_restored(tmp_path, image):
    put(image, "file", None)
    write(image, lambda root: batos.set_slot(root["genesis_obj"], "file", blob_of(tmp_path, b"f" * 3000)))
    backup = batos.make_backup(image, tmp_path / "b")
    for path in (tmp_path / "b" / f"{backup.name}.data", tmp_path / "b" / "blobs" / backup.blobs[0][2]):
        whole = path.read_bytes()
        for bad in (whole[:-1], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:], None):
            path.unlink() if bad is None else path.write_bytes(bad)
            assert list(batos.verify_backup(tmp_path / "b", backup))
            with pytest.raises(batos.DamagedImage, match="nothing was restored"):
                batos.restore_image(tmp_path / "b", tmp_path / "new.fs")
            assert not (tmp_path / "new.fs").exists() and not (tmp_path / "new.fs.blob").exists()
        path.write_bytes(whole)
    assert not list(batos.verify_backup(tmp_path / "b", backup))
    assert batos.restore_image(tmp_path / "b", tmp_path / "new.fs")["faults"] == []


def test_an_altered_manifest_is_named_and_the_chain_behind_it_refused(tmp_path, image):
    backups = [batos.make_backup(image, tmp_path / "b") for _ in range(3)]
    path = tmp_path / "b" / f"{backups[1].name}.json"
    fields = json.loads(path.read_text()) | {"end": 5}
    path.write_text(json.dumps(fields))
    found, faults = batos.read_backups(tmp_path / "b")
    assert [backup.name for backup in found] == [backups[0].name, backups[2].name] and "seal" in faults[0]
    with pytest.raises(batos.DamagedImage, match=backups[1].name):
        batos.restore_image(tmp_path / "b", tmp_path / "new.fs")
    assert batos.restore_image(tmp_path / "b", tmp_path / "new.fs", backups[0].name)["faults"] == []


def test_restore_refuses_a_place_that_is_taken_and_a_live_image(tmp_path, image):
    batos.make_backup(image, tmp_path / "b")
    with pytest.raises(batos.ImageLocked):
        batos.restore_image(tmp_path / "b", tmp_path / "image.fs")
    for end in ("", ".blob", ".seals"):
        taken = tmp_path / f"other.fs{end}"
        taken.write_text("mine")
        with pytest.raises(batos.ConfigError, match="exists already"):
            batos.restore_image(tmp_path / "b", tmp_path / "other.fs")
        assert taken.read_text() == "mine"
        taken.unlink()


@pytest.mark.parametrize("as_of", ["yesterday-ish", "1999-01-01", "20200101T000000.000000Z"])
def test_a_backup_that_is_not_there(tmp_path, image, as_of):
    batos.make_backup(image, tmp_path / "b")
    with pytest.raises((batos.NotFound, batos.BadRequest)) as caught:
        batos.restore_image(tmp_path / "b", tmp_path / "new.fs", as_of)
    assert "2026" in str(caught.value) or "backup" in str(caught.value)
    with pytest.raises(batos.ConfigError, match="no folder"):
        batos.read_backups(tmp_path / "none")


def test_as_of_a_time(tmp_path, image):
    put(image, "n", 1)
    first = batos.make_backup(image, tmp_path / "b")
    between = batos.now_utc().isoformat()
    put(image, "n", 2)
    batos.make_backup(image, tmp_path / "b")
    assert batos.restore_image(tmp_path / "b", tmp_path / "new.fs", between)["backup"] == first.name


def test_old_chains_go_and_the_newest_stays(tmp_path, image):
    folder = tmp_path / "b"
    chains = []
    for n in range(3):
        write(image, lambda root, n=n: batos.set_slot(root["genesis_obj"], "file", blob_of(tmp_path, b"%d" % n * 3000)))
        chains.append([batos.make_backup(image, folder, full=True), batos.make_backup(image, folder)])
    for chain, age in zip(chains, (40, 31, 31), strict=True):
        for backup in chain:
            backup.made_at = (batos.now_utc() - datetime.timedelta(days=age)).isoformat()
            batos._write_manifest(folder, backup)
    last = batos.make_backup(image, folder, full_days=100.0)
    found, _ = batos.read_backups(folder)
    assert [backup.name for backup in found] == [*(backup.name for backup in chains[2]), last.name]
    assert {path.stem for path in folder.glob("*.data")} == {backup.name for backup in found}
    assert batos.restore_image(folder, tmp_path / "new.fs")["faults"] == []
    named = {blob[2] for backup in found for blob in backup.blobs}
    assert {path.name for path in (folder / "blobs").iterdir()} == named and len(named) == 3


def test_what_an_interrupted_backup_left_goes(tmp_path, image):
    def interrupt(line):
        raise batos.Cancelled("enough")
    put(image, "n", 1)
    with pytest.raises(batos.Cancelled):
        batos.make_backup(image, tmp_path / "b", step=interrupt)
    assert batos.read_backups(tmp_path / "b") == ([], [])
    backup = batos.make_backup(image, tmp_path / "b")
    assert {path.name for path in (tmp_path / "b").glob("*.*")} == {f"{backup.name}.data", f"{backup.name}.json"} | (
        {"backups.lock"} if (tmp_path / "b" / "backups.lock").exists() else set())


def test_folders_of_another_image_or_daemon(tmp_path, image):
    other = new_image(tmp_path, "other.fs")
    batos.make_backup(image, tmp_path / "b")
    with pytest.raises(batos.ConfigError, match="another image"):
        batos.make_backup(other, tmp_path / "b")
    other.close()
    with batos.lock_file(tmp_path / "b" / "backups"), pytest.raises(batos.ImageLocked):
        batos.make_backup(image, tmp_path / "b")


def test_a_missing_blob_is_told_and_the_rest_backed_up(tmp_path, image):
    write(image, lambda root: batos.set_slot(root["genesis_obj"], "file", blob_of(tmp_path, b"f" * 3000)))
    path, = (tmp_path / "image.fs.blob").rglob("*.blob")
    path.unlink()
    backup = batos.make_backup(image, tmp_path / "b")
    assert len(backup.faults) == 1 and "no file" in backup.faults[0]
    assert batos.restore_image(tmp_path / "b", tmp_path / "new.fs")["faults"]


def test_no_room_is_told_before_anything_is_written(tmp_path, image, monkeypatch):
    monkeypatch.setattr(batos.shutil, "disk_usage", lambda path: batos.types.SimpleNamespace(free=1000))
    with pytest.raises(batos.ImageError, match="free"):
        batos.make_backup(image, tmp_path / "b")
    assert not list((tmp_path / "b").glob("*.data"))


@pytest.mark.slow
def test_the_daemon_backs_up_by_command_and_by_setting(daemon, tmp_path, monkeypatch):
    one = daemon("--backup-dir", str(tmp_path / "set"))
    with batos.Client(one.endpoint) as client:
        client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["n", 5])
        reply = client.call("backup", folder=str(tmp_path / "asked"))
        assert reply["result"]["transactions"] > 1 and "read back" in reply["details"]
        again = client.call("backup", folder=str(tmp_path / "asked"))
        assert again["result"]["after"] == reply["result"]["name"]
        assert client.call("backup")["result"]["folder"] == str(tmp_path / "set")
        with pytest.raises(batos.BadRequest, match="root"):
            client.call("backup", folder="here")
        last = client.call("health")["result"]["upkeep"]["last"]["backup"]
        assert last["ok"] and abs(last["at_s"] - time.time()) < 60
    assert one.stop() == 0
    assert batos.restore_image(tmp_path / "asked", tmp_path / "new.fs")["faults"] == []
    assert slots(tmp_path / "new.fs")["n"] == 5


def test_the_command_line_backs_up_lists_and_restores(daemon, tmp_path, capsys):
    one = daemon()

    def run(*words):
        assert batos.main(list(words)) == 0
        return capsys.readouterr().out
    assert "read back" in run("backup", str(tmp_path / "b"), "--endpoint", one.endpoint)
    assert "whole" in run("backups", str(tmp_path / "b"), "--verify")
    assert "checked deep" in run("restore", str(tmp_path / "b"), "--image", str(tmp_path / "new.fs"))
    assert batos.main(["restore", str(tmp_path / "b"), "--image", str(tmp_path / "live_image.fs")]) == 1
    assert "in use" in capsys.readouterr().err


@pytest.mark.slow
def test_the_drill(daemon, tmp_path):
    """Back up under load, lose the machine's disk, restore, go on: all that was acknowledged before the backup is there."""
    running, stop, told = daemon(), threading.Event(), {}

    def load(number):
        with batos.Client(running.endpoint) as client:
            n = 0
            while not stop.is_set():
                n += 1
                client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=[f"s{number}", n],
                            idempotency_key=f"{number} {n}")
                told[number] = n
    threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    with batos.Client(running.endpoint) as client:
        client.call("index_document", doc_id="pump", text="Turn the brass valve.")
        for _ in range(3):
            time.sleep(0.3)
            before = dict(told)
            change = client.call("backup", folder=str(tmp_path / "b"))["result"]["tid"]
        at_backup = {name: row["value"] for name, row in client.call(
            "inspect", target="genesis_obj", as_of=f"{change}.0")["result"]["slots"].items() if name[1:].isdigit()}
    stop.set()
    for thread in threads:
        thread.join()
    running.stop(kill=True)
    for path in tmp_path.glob("live_image.fs*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert batos.main(["restore", str(tmp_path / "b"), "--image", str(tmp_path / "live_image.fs")]) == 0
    with batos.Client(daemon().endpoint) as client:
        found = client.call("inspect", target="genesis_obj")["result"]["slots"]
        assert {name: found[name]["value"] for name in at_backup} == at_backup
        for number, n in before.items():
            assert found[f"s{number}"]["value"] >= n
            again = client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=[f"s{number}", n],
                                idempotency_key=f"{number} {n}")
            assert again["repeated"]
        assert client.call("search_memory", query="brass valve")["results"]


def test_what_a_killed_restore_or_recover_left_is_made_anew(tmp_path, image):
    write(image, lambda root: batos.set_slot(root["genesis_obj"], "file", blob_of(tmp_path, b"w" * 5000)))
    batos.make_backup(image, tmp_path / "b")
    image.close()
    for make in (functools.partial(batos.restore_image, tmp_path / "b"), functools.partial(batos.recover_image, image.path)):
        new = tmp_path / f"{make.func.__name__}.fs"
        pathlib.Path(f"{new}.part").write_bytes(b"a part")
        pathlib.Path(f"{new}.blob", "left").mkdir(parents=True)
        assert make(new)["faults"] == [] and "file" in slots(new)
        assert not list(tmp_path.glob("*.part*")) and not pathlib.Path(f"{new}.blob", "left").exists()


def test_an_error_amid_a_restore_leaves_nothing_at_its_place(tmp_path, image, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
    batos.make_backup(image, tmp_path / "b")
    monkeypatch.setattr(batos, "_put_data", full)
    with pytest.raises(OSError, match="No space"):
        batos.restore_image(tmp_path / "b", tmp_path / "new.fs")
    assert [path.name for path in tmp_path.glob("new.fs*")] == ["new.fs.lock"]
