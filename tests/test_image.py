"""Image: what opens, what is cut, what is refused."""

import os
import random
import shutil
import subprocess
import sys
import time

import persistent
import pytest

import batos


@pytest.fixture
def image_path(tmp_path):
    """An image with genesis and three commits; no seals, as after a crash."""
    path = str(tmp_path / "live.fs")
    image = batos.Image.open(path)
    batos.genesis(image)
    unit = batos.Unit(image.db)
    for n in range(3):
        unit.manager.begin()
        unit.root["genesis_obj"].setSlot_value_("n", n)
        unit.manager.commit()
    unit.close()
    image.db.close()
    return path


def value_of(path):
    image = batos.Image.open(path)
    unit = batos.Unit(image.db)
    with unit.snapshot() as root:
        value = root["genesis_obj"].n
    unit.close()
    image.db.close()
    return value


def header_positions(data):
    found, at = [], 4
    while at < len(data):
        found.append(at)
        at += int.from_bytes(data[at + 8:at + 16]) + 8
    return found


@pytest.mark.slow
def test_cut_at_every_byte_of_the_last_transaction_gives_before_or_after(image_path, tmp_path):
    data = open(image_path, "rb").read()
    last = header_positions(data)[-1]
    for cut in range(last, len(data)):
        path = str(tmp_path / "cut.fs")
        open(path, "wb").write(data[:cut])
        shutil.copytree(f"{image_path}.blob", f"{path}.blob", dirs_exist_ok=True)
        batos.examine(path)
        assert open(path, "rb").read() == data[:last]
    assert value_of(path) == 1
    assert any(".tail." in name for name in os.listdir(tmp_path))


def test_a_flipped_byte_in_a_header_is_refused_and_nothing_is_cut(image_path):
    data = open(image_path, "rb").read()
    for start in header_positions(data):
        for offset in range(8, 16):                      # the length
            bad = bytearray(data)
            bad[start + offset] ^= 0x55
            open(image_path, "wb").write(bad)
            with pytest.raises(batos.DamagedImage):
                batos.examine(image_path)
            assert open(image_path, "rb").read() == bytes(bad)


def test_a_flip_in_a_sealed_range_is_refused(image_path):
    batos.Image.open(image_path).close()
    data = bytearray(open(image_path, "rb").read())
    data[len(data) // 2] ^= 1
    open(image_path, "wb").write(data)
    with pytest.raises(batos.DamagedImage, match="sealed|header"):
        batos.Image.open(image_path)


def test_a_missing_data_file_with_seals_is_no_empty_image(image_path):
    batos.Image.open(image_path).close()
    os.remove(image_path)
    with pytest.raises(batos.DamagedImage, match="missing"):
        batos.Image.open(image_path)


def test_two_owners_are_refused(image_path):
    image = batos.Image.open(image_path)
    with pytest.raises(batos.ImageLocked, match=str(os.getpid())):
        batos.Image.open(image_path)
    image.close()


# One file is one image, whatever it is called


def linked(image_path, how):
    """Return another name of the data file."""
    name = f"{os.path.dirname(image_path)}/other.fs"
    if how == "folder":
        os.symlink(os.path.dirname(image_path), f"{os.path.dirname(image_path)}/there")
        return f"{os.path.dirname(image_path)}/there/live.fs"
    {"symbolic": os.symlink, "hard": os.link}[how](image_path, name)
    return name


@pytest.mark.parametrize("how", ["symbolic", "hard", "folder"])
def test_an_open_image_is_refused_under_any_other_name(image_path, how):
    image = batos.Image.open(image_path)
    other = linked(image_path, how)
    before = open(image_path, "rb").read()
    for opening in (batos.Image.open, batos.check_image, lambda path: batos.recover_image(path, f"{path}.new")):
        with pytest.raises(batos.ImageLocked, match="in use by another process"):
            opening(other)
    assert open(image_path, "rb").read() == before
    with batos.writing(image) as root:
        root["genesis_obj"].n = 7
    image.close()
    if how == "hard":
        os.unlink(other)
    assert value_of(image_path) == 7


@pytest.mark.parametrize("how", ["symbolic", "folder"])
def test_an_image_by_a_link_is_the_image_itself(image_path, how):
    other = linked(image_path, how)
    image = batos.Image.open(other)
    assert image.path == image_path
    with batos.writing(image) as root:
        root["genesis_obj"].n = 7
    image.close()
    assert value_of(image_path) == value_of(other) == 7
    assert not [name for name in os.listdir(os.path.dirname(image_path)) if name.startswith("other.fs.")]


def test_a_data_file_with_a_second_name_is_refused_by_name_and_opens_once_that_is_gone(image_path):
    other = linked(image_path, "hard")
    for path in (image_path, other):
        with pytest.raises(batos.ImageError, match=f"{path} has 2 names"):
            batos.Image.open(path)
    os.unlink(other)
    assert value_of(image_path) == 2


def test_a_link_with_an_image_s_files_beside_it_says_where_they_belong(image_path, tmp_path):
    (tmp_path / "far").mkdir()
    os.rename(image_path, tmp_path / "far/live.fs")
    os.symlink(tmp_path / "far/live.fs", image_path)
    with pytest.raises(batos.ConfigError, match=f"mv {image_path}.blob {tmp_path}/far/live.fs.blob"):
        batos.Image.open(image_path)


def test_a_moved_data_file_stays_held_by_who_opened_it(image_path):
    image = batos.Image.open(image_path)
    os.rename(image_path, f"{image_path}.moved")
    with pytest.raises(batos.ImageLocked):
        batos.Image.open(f"{image_path}.moved")
    os.rename(f"{image_path}.moved", image_path)
    image.close()


def test_what_a_pack_puts_in_the_place_of_the_file_is_held_too(image_path, tmp_path):
    image = batos.Image.open(image_path)
    image.pack(time.time() + 1)
    os.link(image_path, tmp_path / "other.fs")
    with pytest.raises(batos.ImageLocked):
        batos.Image.open(str(tmp_path / "other.fs"))
    os.unlink(tmp_path / "other.fs")
    image.close()
    assert value_of(image_path) == 2


def test_an_image_that_could_not_be_opened_is_held_by_nobody(image_path):
    image = batos.Image.open(image_path)
    with batos.writing(image) as root:
        root["image_version"] = batos.IMAGE_VERSION + 1
    image.close()
    for _ in range(2):
        with pytest.raises(batos.ImageTooNew):
            batos.Image.open(image_path)


@pytest.mark.slow
def test_a_second_daemon_does_not_serve_the_file_of_a_first(daemon, tmp_path):
    first = daemon()
    os.link(tmp_path / "live_image.fs", tmp_path / "hard.fs")
    os.symlink(tmp_path / "live_image.fs", tmp_path / "symbolic.fs")
    for name in ("hard.fs", "symbolic.fs"):
        command = [sys.executable, batos.__file__, "--core", "none", "--image", str(tmp_path / name), "--endpoint",
                   "tcp://127.0.0.1:0"]
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert second.returncode == 1 and f"in use by another process (pid {first.process.pid})" in second.stderr
    with batos.Client(first.endpoint) as client:
        client.call("send_message", target="genesis_obj", selector="setSlot_value_", args=["n", 7])
    assert first.stop() == 0
    assert batos.check_image(str(tmp_path / "live_image.fs"), deep=True)["faults"] == []


class Stranger(persistent.Persistent):
    pass


def test_a_foreign_class_is_refused(image_path):
    image = batos.Image.open(image_path)
    unit = batos.Unit(image.db)
    unit.manager.begin()
    unit.root["stranger"] = Stranger()
    unit.manager.commit()
    unit.connection.cacheMinimize()
    with pytest.raises(batos.ForeignClass, match="Stranger"), unit.snapshot() as root:
        _ = root["stranger"]
    unit.close()
    image.db.close()


# The last transaction: unfinished, or damaged

@pytest.fixture
def unsealed(tmp_path):
    """A data file whose last two transactions are not sealed; the path, and where they begin and end."""
    path = tmp_path / "live.fs"
    image = batos.Image.open(str(path))
    batos.genesis(image)
    image.seal()
    ends = [image.committed()[0]]
    for n in range(2):
        with batos.writing(image) as root:
            root["genesis_obj"].n = [n, random.Random(n).randbytes(10_000).replace(b"\0", b"\1")]      # nothing deflates it
        ends.append(image.committed()[0])
    image.db.close()                                     # as a kill would leave it: without a seal
    return path, ends


def n_of(path):
    image = batos.Image.open(str(path))
    with batos.reading(image) as root:
        found = root["genesis_obj"].n[0]
    image.close()
    return found


def with_bytes(path, at, data):
    whole = bytearray(path.read_bytes())
    whole[at:at + len(data)] = data
    path.write_bytes(whole)


def test_a_flipped_byte_in_the_last_transaction_is_named_and_nothing_cut(unsealed):
    path, (_, start, end) = unsealed
    whole = path.read_bytes()
    for at in range(start + 40, end - 8, 97):
        with_bytes(path, at, bytes([whole[at] ^ 1]))
        with pytest.raises(batos.DamagedImage, match="damaged"):
            batos.Image.open(str(path))
        assert len(path.read_bytes()) == len(whole)
        path.write_bytes(whole)
    assert n_of(path) == 1


def test_a_sector_that_never_reached_the_disk_tells_an_unfinished_transaction(unsealed):
    path, (_, start, end) = unsealed
    whole = path.read_bytes()
    cuts = [start, *range((start // 512 + 1) * 512, end, 512), end]
    for count, (at, stop) in enumerate(zip(cuts, cuts[1:], strict=False), 1):
        with_bytes(path, at, bytes(stop - at))
        assert n_of(path) == 0
        aside = list(path.parent.glob("live.fs.tail.*"))
        assert len(aside) == count and max(aside).stat().st_size == end - start
        path.write_bytes(whole)
        for left in ("live.fs.seals", "live.fs.index"):
            (path.parent / left).unlink(missing_ok=True)
    assert n_of(path) == 1


def test_a_hole_before_the_last_transaction_is_damage(unsealed):
    path, (start, end, _) = unsealed
    at = (start // 512 + 1) * 512
    with_bytes(path, at, bytes(512))
    faults = batos.check_image(str(path), deep=True)["faults"]
    assert faults and f"the transaction at byte {start}" in faults[0] and at < end
    with_bytes(path, start, bytes(512))
    with pytest.raises(batos.DamagedImage, match="damaged header"):
        batos.Image.open(str(path))


def test_a_hole_from_one_small_transaction_into_the_next_is_told_by_a_check_and_not_by_a_traceback(tmp_path):
    path = tmp_path / "live.fs"
    image = batos.Image.open(str(path))
    batos.genesis(image)
    image.seal()
    for n in range(2):
        with batos.writing(image) as root:
            root["genesis_obj"].n = [n, random.Random(n).randbytes(300)]
        end = image.committed()[0]
    image.db.close()
    with_bytes(path, end - 800, bytes(512))
    assert any("cannot be opened" in fault or "damaged" in fault for fault in batos.check_image(str(path), deep=True)["faults"])


# Records on the disk


def test_large_records_are_deflated_and_read_the_same_everywhere(image_path, tmp_path):
    rows = [{"name": f"row {n}", "amount": n} for n in range(2000)]
    image = batos.Image.open(str(image_path))
    before = image.size()
    with batos.writing(image) as root:
        root["genesis_obj"].rows = rows
    with batos.reading(image) as root:
        assert root["genesis_obj"].rows == rows
        oid = root._p_jar.big[root["genesis_obj"]]["rows"][0]._p_oid
    assert image.size() - before < 30_000                # its pickle has some 60 kB
    first = image.committed()[1]
    data, tid = image.storage.load(oid)
    assert data == image.storage.loadSerial(oid, tid) == image.storage.loadBefore(oid, first[:-1] + b"\xff")[0]
    assert data == image.storage.record_iternext(oid)[2] and b"row 1999" in data
    with batos.writing(image) as root:
        root["genesis_obj"].rows = []
    image.pack(time.time() + 1)
    with batos.writing(image) as root:
        root["genesis_obj"].rows = rows
    image.close()
    assert batos.check_image(str(image_path), deep=True)["faults"] == []
    report = batos.recover_image(str(image_path), tmp_path / "new.fs")
    assert (report["lost"], report["faults"]) == ([], [])
    copy = batos.Image.open(str(tmp_path / "new.fs"))
    with batos.reading(copy) as root:
        assert root["genesis_obj"].rows == rows
    copy.close()


def test_what_refers_to_others_from_a_deflated_record_keeps_them_through_a_pack(image_path):
    image = batos.Image.open(str(image_path))
    with batos.writing(image) as root:
        root["genesis_obj"].many = [batos.UvmObject(name=f"child {n}") for n in range(100)]
    image.pack(time.time() + 1)
    with batos.reading(image) as root:
        assert [child.name for child in root["genesis_obj"].many] == [f"child {n}" for n in range(100)]
    image.close()


def test_conflicts_are_resolved_in_deflated_records(image_path):
    image = batos.Image.open(str(image_path))
    with batos.writing(image) as root:
        root["genesis_obj"].tree = batos.OOBTree({f"key {n:03}" * 5: n for n in range(0, 20)})
    units = [batos.Unit(image.db), batos.Unit(image.db)]
    for n, unit in enumerate(units):
        unit.manager.begin()
        unit.root["genesis_obj"].tree[f"other key {n}"] = n
    for unit in units:
        unit.manager.commit()
        unit.close()
    with batos.reading(image) as root:
        assert {"other key 0", "other key 1"} <= set(root["genesis_obj"].tree)
    image.close()


@pytest.mark.parametrize(("times", "mark"), [(4, batos._PRIMED), (100, batos._PRIMED), (300, batos._DEFLATED)])
def test_a_record_that_does_not_inflate_is_damage(times, mark):
    whole = batos.deflated(b"the same again! " * times)
    assert whole.startswith(mark) and batos.inflated(whole) == b"the same again! " * times
    for torn in (whole[:-1], whole[:9], whole[:2] + b"?" * 40):
        with pytest.raises(batos.DamagedImage, match="does not inflate"):
            batos.inflated(torn)


def test_what_gains_nothing_or_is_written_by_each_message_is_not_deflated():
    noise, small = random.Random(1).randbytes(999), batos._UNPRIMED + b"x" * 300
    assert batos.deflated(noise) == noise and batos.deflated(small) == small and batos.deflated(b"x" * 39) == b"x" * 39
    assert len(batos.deflated(small + b"x" * 200)) < 60


def test_the_primer_is_that_of_all_images():
    assert batos.digest(batos._PRIMER) == "15cd025cf57a8536193073fa116f763f"


def test_a_layout_that_never_reached_the_disk_is_written_again(unsealed):
    path, _ = unsealed
    marker = path.parent / "live.fs.blob" / ".layout"
    for spoil in (lambda: marker.write_bytes(b""), lambda: marker.write_bytes(bytes(5)), marker.unlink):
        spoil()
        assert any("layout" in fault for fault in batos.check_image(str(path))["faults"])
        assert n_of(path) == 1 and marker.read_bytes() == b"bushy"


def test_digests_hold_whatever_a_pack_moves(unsealed):
    path, _ = unsealed
    image = batos.Image.open(str(path))
    before_s = batos.time.time()
    for n in range(5):
        with batos.writing(image) as root:
            root["genesis_obj"].n = [n]
    image.pack(before_s)
    image.close()
    (path.parent / "live.fs.seals").unlink()
    assert batos.check_image(str(path), deep=True)["faults"] == []
    data = path.read_bytes()
    state = batos.walk_transactions(data)
    assert batos.transaction_fault(data, state.last) is None
    with_bytes(path, state.end - 20, bytes([data[-20] ^ 1]))
    assert "digest" in batos.transaction_fault(path.read_bytes(), state.last)
