"""Faults of the machine: a clear error, nothing acknowledged lost, and service again when the cause is gone."""

import contextlib
import errno
import functools
import io
import logging
import os
import pathlib
import random
import resource
import shutil
import socket
import subprocess
import sys
import time

import pytest
from test_backup import new_image, put, slots

import batos

ROOT = pathlib.Path(__file__).resolve().parents[1]


def set_slot(client, name, value):
    return client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=[name, value])


def limited(process, which, limit):
    """Set a limit of a running process; returns what it was."""
    return resource.prlimit(process.pid, which, (limit, resource.prlimit(process.pid, which)[1]))


# Files that cannot grow: a full disk, as far as the daemon can tell


@pytest.mark.slow
def test_a_first_start_on_a_full_disk_is_refused_by_name_and_the_next_one_goes_on(tmp_path):
    path = tmp_path / "live.fs"
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    words = [sys.executable, batos.__file__, "--image", path, "--core", "none", "--endpoint", "tcp://127.0.0.1:0"]
    done = subprocess.run(words, preexec_fn=limit, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and f"batos: nothing was stored: the disk of {path} does not take it" in done.stderr
    assert "Traceback" not in done.stderr
    image = batos.Image.open(str(path))
    batos.genesis(image)
    image.close()
    assert batos.check_image(str(path), deep=True)["faults"] == []


@pytest.mark.slow
def test_a_full_disk(daemon, tmp_path):
    running = daemon()
    with batos.Client(running.endpoint) as client:
        set_slot(client, "before", 1)
        client.call("index_document", doc_id="a", text="The brass valve.")
        before = limited(running.process, resource.RLIMIT_FSIZE, (tmp_path / "live_image.fs").stat().st_size + 100)
        for _ in range(3):
            with pytest.raises(batos.ImageError, match="nothing was stored"):
                set_slot(client, "during", "x" * 5000)
            with pytest.raises(batos.ImageError, match="nothing was stored"):
                client.call("index_document", doc_id="b", text="Another valve. " * 500)
        assert client.call("search_memory", query="valve")["results"] and client.call("health")["status"] == "OK"
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, before)
        set_slot(client, "after", 2)
        client.call("index_document", doc_id="b", text="Another valve.")
        client.call("backup", folder=str(tmp_path / "b"))
        found = client.call("inspect", target="genesis_obj")["result"]["slots"]
        assert found["before"]["value"] == 1 and found["after"]["value"] == 2 and "during" not in found
    assert running.stop() == 0
    assert batos.check_image(str(tmp_path / "live_image.fs"), deep=True)["faults"] == []


@pytest.mark.slow
def test_with_every_descriptor_taken_what_needs_one_is_busy_and_the_rest_is_served(daemon, tmp_path):
    running = daemon("--embedder", "none")
    with batos.Client(running.endpoint, timeout_s=60) as client:
        client.call("create_method", target_oid="genesis_obj", method_name="twice_",
                    method_code="def twice_(self, n): return 2 * n")
        large = "\n\n".join(f"Valve {n} is made of brass number {n * 7} and opens at {n} bar." for n in range(3000))
        client.call("index_document", doc_id="large", text=large)
        used = len(os.listdir(f"/proc/{running.process.pid}/fd"))
        before = limited(running.process, resource.RLIMIT_NOFILE, used)
        wants = [("search_memory", {"query": "valve 2999"}), ("backup", {"folder": str(tmp_path / "b")}), ("pack", {}),
                 ("send_message", {"target": "genesis_obj", "selector": "twice_", "args": [4]}), ("incarnate", {}),
                 ("index_document", {"doc_id": "other", "text": large.replace("brass", "steel")})]
        for name, fields in wants:
            with pytest.raises(batos.Busy, match="every file descriptor is taken") as caught:
                client.call(name, **fields)
            assert caught.value.fields["resource"] == "descriptors"
        set_slot(client, "n", 2)
        assert client.call("inspect", target="genesis_obj.n")["result"]["value"] == 2
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, before)
        assert client.call("search_memory", query="valve 2999")["results"]
        for name, fields in wants:
            assert client.call(name, **fields)["status"] == "OK"
    assert running.stop() == 0
    assert "Traceback" not in (tmp_path / "live_image.fs.log").read_text()


def test_the_daemon_takes_as_many_descriptors_as_it_may(daemon):
    soft, hard = resource.prlimit(daemon().process.pid, resource.RLIMIT_NOFILE)
    assert soft == hard


def test_no_descriptors_left(daemon):
    running = daemon()
    with batos.Client(running.endpoint) as client:
        set_slot(client, "n", 1)
        used = len(os.listdir(f"/proc/{running.process.pid}/fd"))
        before = limited(running.process, resource.RLIMIT_NOFILE, used + 3)
        strangers = []
        for _ in range(20):                              # these take what is left
            one = socket.create_connection(running.endpoint.removeprefix("tcp://").split(":"), timeout=5)
            strangers.append(one)
        time.sleep(0.3)
        set_slot(client, "n", 2)                         # who is connected is served
        assert client.call("health")["status"] == "OK"
        for one in strangers:
            one.close()
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, before)
        with batos.Client(running.endpoint) as other:
            assert other.call("inspect", target="genesis_obj.n")["result"]["value"] == 2
    assert running.stop() == 0


# Errors of the disk, where the storage calls it

@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_write_that_fails_stores_nothing_and_the_next_one_does(tmp_path, monkeypatch, number):
    image = new_image(tmp_path)
    lane = batos.WriteLane(image, batos.WriteToken(), batos.load_settings({}, {})).start()

    def job(value):
        return batos.Job("set", lambda root: batos.set_slot(root["genesis_obj"], "s", value) or value)

    def failing(*args):
        raise OSError(number, os.strerror(number))
    lane.call(job(1))
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["ZODB.FileStorage.FileStorage"], "cp", failing)
        with pytest.raises(batos.ImageError, match="nothing was stored"):
            lane.call(job(2))
    assert lane.call(job(3)).change
    lane.close()
    image.close()
    assert slots(tmp_path / "image.fs")["s"] == 3
    assert batos.check_image(str(tmp_path / "image.fs"), deep=True)["faults"] == []


def test_an_fsync_that_fails_stops_the_daemon_and_nothing_acknowledged_is_lost(tmp_path, monkeypatch):
    image, told = new_image(tmp_path), []
    lane = batos.WriteLane(image, batos.WriteToken(), batos.load_settings({}, {}), told.append).start()

    def job(value):
        return batos.Job("set", lambda root: batos.set_slot(root["genesis_obj"], "s", value) or value)

    def failing(*args):
        raise OSError(errno.EIO, "Input/output error")
    lane.call(job(1))
    with monkeypatch.context() as patch:
        patch.setattr(batos.ImageStorage, "to_disk", failing)
        with pytest.raises(batos.ImageBroken, match="start it again"):
            lane.call(job(2))
    assert isinstance(told[0], batos.ImageBroken)
    lane.close()
    image.close()
    assert slots(tmp_path / "image.fs")["s"] in (1, 2)


def test_a_blob_that_cannot_be_forced_to_the_disk_is_not_committed(tmp_path, monkeypatch):
    image = new_image(tmp_path)
    (tmp_path / "f").write_bytes(b"f" * 3000)

    def failing(path):
        raise OSError(errno.EIO, "Input/output error")
    with monkeypatch.context() as patch:
        patch.setattr(batos, "fsync_path", failing)
        with pytest.raises(OSError, match="Input/output"), batos.writing(image) as root:
            root["genesis_obj"].file = batos.blob_record(str(tmp_path / "f"), "f")
    put(image, "n", 1)
    image.close()
    assert "file" not in slots(tmp_path / "image.fs") and slots(tmp_path / "image.fs")["n"] == 1


# Real file systems, where this process may mount one

@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def remount(disk, option):
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


@contextlib.contextmanager
def full(disk):
    """Nothing fits on the disk inside."""
    with open(disk / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"b" * 4096):
            continue
    yield
    (disk / "ballast").unlink()


@contextlib.contextmanager
def read_only(disk):
    """Nothing can be written on the disk inside, on which no file may be open for writing."""
    remount(disk, "ro")
    yield
    remount(disk, "rw")


def test_a_full_file_system(daemon, small_disk):
    words = " ".join(random.Random(1).randbytes(4).hex() for _ in range(9000))       # what is deflated stays large
    running = daemon("--image", str(small_disk / "image.fs"))
    with batos.Client(running.endpoint, timeout_s=60) as client:
        set_slot(client, "before", 1)
        with full(small_disk):
            for _ in range(3):
                with pytest.raises(batos.ImageError, match="nothing was stored"):
                    set_slot(client, "during", random.Random(1).randbytes(9000))
            with pytest.raises(batos.ImageError):
                client.call("index_document", doc_id="b", text=words)
            with pytest.raises(batos.ImageError, match="No space|room"):
                client.call("backup", folder=str(small_disk / "b"))
            assert client.call("health")["status"] == "OK"
            assert client.call("inspect", target="genesis_obj.before")["result"]["value"] == 1
        set_slot(client, "after", 2)
        client.call("index_document", doc_id="b", text="Another valve.")
    assert running.stop() == 0
    assert batos.check_image(str(small_disk / "image.fs"), deep=True)["faults"] == []
    assert {"before", "after"} <= set(slots(small_disk / "image.fs"))


def test_nothing_of_what_a_full_disk_did_not_take_is_written_behind_the_next_change(small_disk):
    image, path = new_image(small_disk), small_disk / "image.fs"
    put(image, "before", 1)
    for size in (3000, 300_000):                         # in the buffer of the file, and on its way past it
        with full(small_disk), pytest.raises(OSError, match="No space"):
            put(image, "during", random.Random(1).randbytes(size))
        assert path.stat().st_size == image.committed()[0]
        put(image, "after", size)
        assert path.stat().st_size == image.committed()[0]
        with batos.reading(image) as root:
            assert root["genesis_obj"]._slots["after"] == size
    image.close()
    assert batos.check_image(str(path), deep=True)["faults"] == []


@pytest.mark.slow
@pytest.mark.parametrize("left", ["killed", "stopped", "no index", "torn"])
def test_a_start_on_a_full_file_system_serves_what_can_be_read(daemon, small_disk, left):
    image = small_disk / "image.fs"
    options = ("--image", str(image), "--embedder", "none")
    running = daemon(*options)
    with batos.Client(running.endpoint) as client:
        set_slot(client, "before", "x" * 9000)
        client.call("index_document", doc_id="a", text="The brass valve.")
        set_slot(client, "last", "y" * 20_000)           # by the write lane, which nobody shares here
    running.stop(kill=left != "stopped")
    if left == "no index":
        (small_disk / "image.fs.index").unlink()
        (small_disk / "image.fs.tmp").unlink()           # whose room an index would have
    if left == "torn":
        os.truncate(image, image.stat().st_size - 50)
    with full(small_disk):
        running = daemon(*options)
        with batos.Client(running.endpoint, timeout_s=60) as client:
            assert client.call("inspect", target="genesis_obj.before")["result"]["value"] == "x" * 9000
            assert len(client.call("search_memory", query="valve")["results"]) == 1
            for _ in range(2):
                with pytest.raises(batos.ImageError, match=f"the disk of {image} .*No space.*make room") as caught:
                    set_slot(client, "during", random.Random(1).randbytes(500_000).hex())    # deflated it stays large
                assert caught.value.fields["path"] == str(image)
            (small_disk / "ballast").unlink()
            set_slot(client, "after", 2)
            client.call("index_document", doc_id="b", text="Another valve.")
        assert running.stop() == 0
        (small_disk / "ballast").touch()
    assert "Logging error" not in "".join(running.lines)
    assert batos.check_image(str(image), deep=True)["faults"] == []
    assert {"before", "after"} <= set(slots(image)) and "during" not in slots(image)


@pytest.mark.slow
def test_a_stop_on_a_full_file_system_loses_nothing(daemon, small_disk):
    image = small_disk / "image.fs"
    running = daemon("--image", str(image))
    with batos.Client(running.endpoint) as client:
        set_slot(client, "before", 1)
        with full(small_disk):
            assert running.stop() == 0
    assert batos.check_image(str(image), deep=True)["faults"] == [] and slots(image)["before"] == 1


@pytest.mark.slow
def test_what_a_full_disk_does_not_take_of_a_core_is_told_and_the_rest_is_served(daemon, small_disk):
    image = small_disk / "image.fs"
    running = daemon("--image", str(image), "--adapters", "none")
    running.stop()
    with full(small_disk):
        running = daemon("--image", str(image), core="auto")
        with batos.Client(running.endpoint, timeout_s=60) as client:
            assert client.call("inspect", target="genesis_obj")["status"] == "OK"
        assert running.stop() == 0
    told = "".join(running.lines)
    assert f"not in the image: nothing was stored: the disk of {image}" in told
    assert "an adapter stays outside: all of them" in told


@pytest.mark.parametrize("taken", [0, 1, 40])
def test_a_seal_that_the_disk_takes_in_part_leaves_no_part_of_a_line(closed, monkeypatch, taken):
    class FullDisk(io.FileIO):
        def write(self, data):
            if super().write(data[:taken]) < len(data):
                raise OSError(errno.ENOSPC, "No space left on device")
    image, before = batos.Image.open(str(closed)), pathlib.Path(f"{closed}.seals").read_bytes()
    put(image, "n", 1)
    with monkeypatch.context() as patch:
        patch.setattr(batos, "open", lambda path, mode, **_: FullDisk(path, mode) if mode == "ab" else open(path, mode),
                      raising=False)
        image.seal()
    assert pathlib.Path(f"{closed}.seals").read_bytes() == before
    put(image, "n", 2)
    image.close()
    assert pathlib.Path(f"{closed}.seals").read_bytes() > before and slots(closed)["n"] == 2


def test_a_log_that_the_disk_does_not_take_is_told_once(capsys):
    log = batos.LogFile("/dev/full", delay=True)
    for line in ("one", "two"):
        log.handle(logging.LogRecord("batos", logging.INFO, "", 0, line, (), None))
    told = capsys.readouterr().err
    assert told.count("the log /dev/full takes no line") == 1 and "Traceback" not in told
    with contextlib.suppress(OSError):
        log.close()


@pytest.mark.slow
def test_a_start_on_a_read_only_file_system(daemon, small_disk):
    running = daemon("--image", str(small_disk / "image.fs"))
    with batos.Client(running.endpoint) as client:
        set_slot(client, "before", 1)
    running.stop()
    with read_only(small_disk):
        assert "Read-only file system" in start_refused(small_disk)
    assert slots(small_disk / "image.fs")["before"] == 1


def start_refused(disk):
    """Start a daemon that serves the image of a disk and stop it; returns what it said where it did not start."""
    command = [sys.executable, str(ROOT / "batos.py"), "--core", "none", "--image", str(disk / "image.fs"),
               "--endpoint", "tcp://127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "listens on" in line:
                process.terminate()
        if process.wait(60) == 0:
            return None
    assert "Traceback" not in "".join(lines), lines
    return "".join(lines)


def test_a_folder_that_takes_no_files(tmp_path):
    """As on a read-only disk: said before anything is made."""
    with pytest.raises(batos.ConfigError, match="no folder"):
        batos.Image.open(str(tmp_path / "none" / "image.fs"))
    (tmp_path / "file").write_text("")
    with pytest.raises(batos.ConfigError, match="no folder"):
        batos.Image.open(str(tmp_path / "file" / "image.fs"))
    told = subprocess.run([sys.executable, str(ROOT / "batos.py"), "--core", "none", "--image", "/proc/image.fs", "--endpoint",
                           "tcp://127.0.0.1:0"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert told.returncode == 1 and told.stderr.startswith("batos: ") and "Traceback" not in told.stderr


# What is beside the data file

@pytest.fixture
def closed(tmp_path):
    image = new_image(tmp_path)
    (tmp_path / "f").write_bytes(b"f" * 3000)
    with batos.writing(image) as root:
        root["genesis_obj"].file = batos.blob_record(str(tmp_path / "f"), "f")
    for n in range(30):
        put(image, f"s{n % 7}", n)
    image.close()
    return tmp_path / "image.fs"


@pytest.mark.parametrize("spoil", [
    lambda path: path.unlink(), lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"junk" * 100),
    lambda path: path.write_bytes(path.read_bytes()[:-20]), lambda path: path.write_bytes(bytes(path.stat().st_size))])
def test_a_missing_or_damaged_index_is_made_anew(closed, spoil):
    spoil(pathlib.Path(f"{closed}.index"))
    assert slots(closed)["s1"] == 29
    assert batos.check_image(str(closed), deep=True)["faults"] == []


def test_an_index_of_another_time_is_not_believed(closed, tmp_path):
    old = pathlib.Path(f"{closed}.index").read_bytes()
    image = batos.Image.open(str(closed))
    for n in range(5):
        put(image, "s1", f"later {n}")
    image.pack(time.time() + 1)
    image.close()
    pathlib.Path(f"{closed}.index").write_bytes(old)
    assert slots(closed)["s1"] == "later 4"


def test_a_stale_lock_does_not_keep_the_image_shut(closed):
    pathlib.Path(f"{closed}.lock").write_text(" 999999\n")
    assert slots(closed)["s1"] == 29


def test_a_missing_or_altered_blob_is_named_and_the_rest_serves(closed):
    path, = pathlib.Path(f"{closed}.blob").rglob("*.blob")
    whole = path.read_bytes()
    image = batos.Image.open(str(closed))
    path.chmod(0o600)
    for spoil, told in ((lambda: path.write_bytes(b"g" * 3000), "altered"), (path.unlink, "missing")):
        spoil()
        with batos.reading(image) as root:
            root["genesis_obj"].file.blob._p_deactivate()
            with pytest.raises(batos.DamagedImage, match=told):
                batos.blob_path(root["genesis_obj"].file)
            assert root["genesis_obj"].s1 == 29
        put(image, "s1", 29)
    image.close()
    assert batos.check_image(str(closed), deep=True)["faults"]
    path.write_bytes(whole)
    assert batos.check_image(str(closed), deep=True)["faults"] == []


def test_a_missing_folder_of_blobs_is_damage_in_a_check(closed):
    shutil.rmtree(f"{closed}.blob")
    assert batos.check_image(str(closed))["faults"]


# A clock that jumps

def test_a_clock_that_jumps_loses_and_doubles_nothing(tmp_path, monkeypatch):
    image = new_image(tmp_path)
    lane = batos.WriteLane(image, batos.WriteToken(), batos.load_settings({}, {})).start()
    real, changes = time.time, []
    for n, days in enumerate((0, 400, 0, -400, 0, 3, -3, 0)):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda days=days: real() + days * 86400)
            patch.setattr(time, "time_ns", lambda days=days: int((real() + days * 86400) * 1e9))
            changes.append(lane.call(batos.Job("set", lambda root, n=n: batos.set_slot(root["genesis_obj"], "s", n) or n)).change)
    assert changes == sorted(changes) and len(set(changes)) == len(changes)
    lane.close()
    image.close()
    assert slots(tmp_path / "image.fs")["s"] == 7
    assert batos.check_image(str(tmp_path / "image.fs"), deep=True)["faults"] == []
    image = batos.Image.open(str(tmp_path / "image.fs"))
    with batos.reading(image) as root:
        assert [row["change"] for row in batos.history_of(root, 20)[0]] == changes[::-1]
    image.close()


def test_keys_are_remembered_through_a_jump(daemon, tmp_path):
    """Keys from a time that has not come yet, as a clock that was put right leaves them, are still known."""
    image = batos.Image.open(str(tmp_path / "live_image.fs"))
    batos.genesis(image)
    lane = batos.WriteLane(image, batos.WriteToken(), batos.load_settings({}, {})).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batos, "unix_us", lambda: time.time_ns() // 1000 + 400 * 86400 * 10 ** 6)
        command = batos.parse_command({"command": "send_message", "target": "genesis_obj", "selector": "setSlot:value:",
                                       "args": ["s", 1], "idempotency_key": "from the future"})
        request = batos.Request(None, None, [], command=command, lane="write")
        lane.call(batos.Job("send_message", functools.partial(batos._send_to_object, request), who="local",
                            key="from the future", digest=batos.body_digest(command)))
    lane.close()
    image.close()
    with batos.Client(daemon().endpoint) as client:
        again = client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["s", 1],
                            idempotency_key="from the future")
        assert again["repeated"]
        assert "repeated" not in client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["s", 2],
                                             idempotency_key="of today")


# The data file goes away under the daemon

@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_data_file_that_goes_away_stops_the_daemon_and_what_stands_there_is_not_touched(daemon, tmp_path, how):
    path, aside = tmp_path / "live_image.fs", tmp_path / "aside"
    running = daemon()
    with batos.Client(running.endpoint) as client:
        set_slot(client, "n", 1)
        client.call("backup", folder=str(tmp_path / "b"))
        aside.mkdir()
        for one in tmp_path.glob("live_image.fs*"):
            one.rename(aside / one.name)
        if how == "removed":
            shutil.rmtree(aside)
        if how == "replaced":
            batos.restore_image(tmp_path / "b", path)
        stands = {one: one.read_bytes() for one in tmp_path.glob("live_image.fs*") if one.is_file() and one.suffix != ".lock"}
        with pytest.raises((batos.ImageBroken, batos.NoReply, batos.ShuttingDown)):
            for n in range(100):
                set_slot(client, "n", n)
        assert running.process.wait(60) == batos._EXIT_UNASKED
    for one, content in stands.items():
        assert one.read_bytes() == content, one
    if how == "replaced":
        assert slots(path)["n"] == 1


def test_an_idle_daemon_whose_data_file_goes_away_stops_too(daemon, tmp_path):
    running = daemon()
    (tmp_path / "live_image.fs").unlink()
    assert running.process.wait(60) == batos._EXIT_UNASKED
    running.stop()
    assert any("removed" in line for line in running.lines)
