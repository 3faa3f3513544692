"""An image that is read beside its writer: never torn, never ahead of the disk, through packs and kills; and never changed."""

import contextlib
import hashlib
import os
import pathlib
import threading

import pytest
import transaction
import ZODB.POSException

import batos


def until(holds):
    while not holds():
        threading.Event().wait(0.01)


@pytest.fixture
def written(tmp_path):
    """An open image with a root object, its writer."""
    image = batos.Image.open(str(tmp_path / "live_image.fs"))
    with batos.writing(image) as root:
        root["image_version"], root["image_id"] = batos.IMAGE_VERSION, "1"
        root["pair_obj"] = batos.UvmObject(left=0, right=0)
    yield image
    image.close()


def put(image, value):
    """Write one value into both slots, in one transaction."""
    with batos.writing(image) as root:
        root["pair_obj"].left = value
        root["pair_obj"].right = value


@contextlib.contextmanager
def following(image):
    with contextlib.closing(batos.FollowedImage(image.path)) as reader:
        yield reader


def pair(reader):
    return reader.read(lambda root: (root["pair_obj"].left, root["pair_obj"].right))[1]


def files_of(folder):
    """Return {path: SHA-256} of all files, and all folders."""
    found = sorted(pathlib.Path(folder).rglob("*"))
    return {str(path): path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_what_is_written_is_read_and_each_answer_says_as_of_when(written):
    with following(written) as reader:
        assert pair(reader) == (0, 0)
        before, _ = reader.read(lambda root: None)
        put(written, 1)
        after, told = reader.read(lambda root: root["pair_obj"].left)
        assert told == 1 and after > before and bytes.fromhex(after) == written.committed()[1]


def test_a_snapshot_stands_still_while_the_writer_goes_on(written):
    with following(written) as reader, reader.snapshot() as (_, root):
        assert root["pair_obj"].left == 0
        root["pair_obj"]._p_deactivate()
        put(written, 1)
        assert pair(reader) == (1, 1) and root["pair_obj"].left == 0


def test_what_is_not_finished_is_not_read_nor_what_was_taken_back(written):
    """The writer stands between its vote and its finish; then the transaction is taken back, and another comes to its place."""
    storage = written.storage
    with following(written) as reader:
        unit = batos.Unit(written.db)
        unit.manager.begin()
        unit.root["pair_obj"].left = 7
        txn = unit.manager.get()
        txn.join(Taker())
        with pytest.raises(ZeroDivisionError):
            unit.manager.commit()
        unit.manager.abort()
        unit.close()
        assert pair(reader) == (0, 0) and storage is written.storage
        put(written, 2)
        assert pair(reader) == (2, 2)


class Taker:
    """A data manager that votes last, and against it."""

    transaction_manager = transaction.manager

    def sortKey(self):
        return "~~~"

    def tpc_begin(self, txn):
        pass

    commit = abort = tpc_abort = tpc_finish = tpc_begin

    def tpc_vote(self, txn):
        raise ZeroDivisionError


def test_a_tail_that_is_not_whole_is_never_read(written):
    """A copy of the file is cut at every byte of its last transaction: what stood before it is read, and no error is told."""
    put(written, 1)
    whole = pathlib.Path(written.path).read_bytes()
    begins = batos.walk_transactions(whole).last
    copy = pathlib.Path(written.path).with_name("copy.fs")
    for end in (*range(begins, len(whole), 7), len(whole) - 1):
        copy.write_bytes(whole[:end])
        with contextlib.closing(batos.FollowedImage(str(copy))) as reader:
            assert pair(reader) == (0, 0)
            copy.write_bytes(whole)                      # the same file grows
            assert pair(reader) == (1, 1)


def test_a_flipped_byte_is_no_part_of_any_answer_and_is_named(written, monkeypatch):
    put(written, 1)
    whole = bytearray(pathlib.Path(written.path).read_bytes())
    whole[-20] ^= 1
    copy = pathlib.Path(written.path).with_name("copy.fs")
    copy.write_bytes(whole)
    with contextlib.closing(batos.FollowedImage(str(copy))) as reader:
        assert pair(reader) == (0, 0)
        monkeypatch.setattr(batos, "_DOUBT_S", 0.0)
        with pytest.raises(batos.DamagedImage, match="is not what was written"):
            until(lambda: pair(reader) and False)


def test_a_pack_puts_another_file_there_and_the_reader_goes_on_with_it(written):
    for value in range(1, 5):
        put(written, value)
    with following(written) as reader, reader.snapshot() as (_, root):
        opened = os.fstat(reader.storage._file.fileno()).st_ino
        written.pack(batos.time.time() + 1)
        put(written, 5)
        assert pair(reader) == (5, 5) and os.fstat(reader.storage._file.fileno()).st_ino != opened
        root["pair_obj"]._p_deactivate()
        assert root["pair_obj"].left == 4                # of the file that was opened, by the handle that it has
        former = reader._former[0].storage
        former._files.empty()
        root["pair_obj"]._p_deactivate()
        with pytest.raises(batos._Replaced):             # never bytes of another file
            str(root["pair_obj"].left)
        assert len(reader._former) == 1
    assert reader._former == []


def test_a_reader_finds_no_file_amid_a_pack_and_stays_with_what_it_has(written):
    with following(written) as reader:
        os.rename(written.path, f"{written.path}.old")
        assert pair(reader) == (0, 0)
        os.rename(f"{written.path}.old", written.path)
        put(written, 1)
        assert pair(reader) == (1, 1)


def test_a_reader_changes_nothing_and_keeps_nobody_out(written):
    put(written, 1)
    written.close()
    folder = pathlib.Path(written.path).parent
    before = files_of(folder)
    with contextlib.closing(batos.FollowedImage(written.path)) as reader:
        assert pair(reader) == (1, 1)
        with pytest.raises(ZODB.POSException.ReadOnlyError):
            with reader.snapshot() as (_, root):
                root["pair_obj"].left = 9
                root._p_jar.transaction_manager.commit()
        assert files_of(folder) == before
        again = batos.Image.open(written.path)           # the writer comes back beside it
        put(again, 2)
        assert pair(reader) == (2, 2)
        again.close()


def test_who_wants_a_change_waits_for_it_or_is_told_that_it_is_not_here(written):
    with following(written) as reader:
        last = written.committed()[1].hex()
        reader.wait_for(f"{last}.0", 0.0)
        later = f"{int(last, 16) + 1:016x}.0"
        with pytest.raises(batos.Behind) as told:
            reader.wait_for(later, 0.0)
        assert told.value.fields["as_of"] == last
        thread = threading.Thread(target=put, args=(written, 1))
        thread.start()
        reader.wait_for(later, 60)
        thread.join()
        with pytest.raises(batos.BadRequest, match="tid.n"):
            reader.wait_for("soon", 0)


def test_without_an_image_it_is_said_so_and_none_is_made(tmp_path):
    with pytest.raises(batos.ImageError, match="there is no image"):
        batos.FollowedImage(str(tmp_path / "live_image.fs"))
    assert list(tmp_path.iterdir()) == []


def test_many_snapshots_beside_writes_and_packs_are_all_of_one_moment(written):
    """Both slots are written together, and each reading has them alike, none older than what was read before."""
    done, faults, seen = threading.Event(), [], []

    def read():
        with following(written) as reader:
            while not done.is_set():
                left, right = pair(reader)
                if left != right or seen and left < seen[-1]:
                    faults.append((left, right, seen[-1:]))
                seen.append(left)
    thread = threading.Thread(target=read)
    thread.start()
    for value in range(1, 101):
        put(written, value)
        if value % 25 == 0:
            written.pack(batos.time.time() + 1)
            until(lambda value=value: faults or seen and seen[-1] == value)
    done.set()
    thread.join()
    assert faults == [] and seen[-1] == 100
