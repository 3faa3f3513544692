"""Power cuts: the file operations of a workload are recorded, and replayed to what a disk may hold after a cut.

What was written to a file since its last fsync may be there in any part, in any order, torn at sectors; names that were
made, changed or removed since the last fsync of their folder may be there up to any of them. Each replayed folder must
open, pass the deep check, and hold all that was acknowledged before the cut.

    python tests/durability/powercut.py [--seed N] [--cuts N] [--work serving|copies|stock]

"copies" are upgrade, backup, restore and recover; "stock" serves with ZODB's own FileStorage, for comparison.
"""

import argparse
import builtins
import contextlib
import dataclasses
import io
import os
import pathlib
import random
import shutil
import sys
import tempfile
import threading
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]
import conftest
import newer
from durability import load as loads

import batos

SECTOR = 512


@dataclasses.dataclass
class Op:
    """One operation. kind: write (path, inode, at, data), truncate (inode, at), names (folders, before -> after), sync, ack."""

    kind: str
    inode: int = 0
    at: int = 0
    data: bytes = b""
    names: tuple = ()                                    # ((path, inode or None), …): what the names stand for afterwards
    value: object = None


class RecordedFile(io.FileIO):
    """A raw file that tells a recorder what is written."""

    recorder = None

    def write(self, data):
        at = os.fstat(self.fileno()).st_size if "a" in self.mode else self.tell()
        count = io.FileIO.write(self, data)
        self.recorder.note(Op("write", self.recorder.file(os.fstat(self.fileno()).st_ino), at, bytes(data)[:count]))
        return count

    def truncate(self, size=None):
        size = self.tell() if size is None else size
        result = super().truncate(size)
        self.recorder.note(Op("truncate", self.recorder.file(os.fstat(self.fileno()).st_ino), size))
        return result


class Recorder:
    """Records the file operations of this process below a folder."""

    def __init__(self, folder):
        self.folder, self.ops, self._lock = os.path.realpath(folder), [], threading.RLock()
        self._real = {name: getattr(os, name) for name in
                      ("open", "fsync", "fdatasync", "rename", "replace", "remove", "unlink", "mkdir", "rmdir", "link", "symlink",
                       "truncate")}
        self._builtin, self._ids, self._next_id, self.folders = builtins.open, {}, 0, set()

    def note(self, op):
        with self._lock:
            self.ops.append(op)

    def file(self, number, new=False):
        """Return a file's own number; the system gives an inode's number again once it is free."""
        with self._lock:
            if new or number not in self._ids:
                self._next_id += 1
                self._ids[number] = self._next_id
            return self._ids[number]

    def ack(self, value):
        """Note that something was acknowledged."""
        self.note(Op("ack", value=value))

    def _ours(self, path):
        if not isinstance(path, (str, os.PathLike)):
            return False
        return os.path.realpath(os.path.dirname(os.path.abspath(path))).startswith(self.folder)

    def open(self, path, mode="r", buffering=-1, *args, **kwargs):
        """Stand for the builtin: files below the folder are opened so that what is written is recorded."""
        if not self._ours(path) or not set(mode) & set("wax+") or "opener" in kwargs:
            return self._builtin(path, mode, buffering, *args, **kwargs)
        with self._lock:
            new = not os.path.exists(path)
            raw = RecordedFile(path, mode.replace("b", "").replace("t", ""))
            raw.recorder = self
            inode = self.file(os.fstat(raw.fileno()).st_ino, new)
            if new:
                self.note(Op("names", names=((os.path.abspath(path), inode),)))
            elif "w" in mode:
                self.note(Op("truncate", inode, 0))
        if buffering == 0:
            return raw
        kind = io.BufferedRandom if "+" in mode else io.BufferedWriter
        buffered = kind(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **kwargs)

    @contextlib.contextmanager
    def recording(self):
        """Record all that is done inside."""
        patches = {name: getattr(self, f"_{name}", None) or self._names_after(name) for name in self._real}
        io_open, storage, shutil._USE_CP_SENDFILE = io.open, sys.modules["ZODB.FileStorage.FileStorage"], False
        storage.fsync = self._fsync                      # it keeps a name of its own
        blob_file = batos.ZODB.blob.BlobFile
        blob_write, blob_file.recorder = blob_file.write, self
        blob_file.write = RecordedFile.write
        for name, function in patches.items():
            setattr(os, name, function)
        builtins.open = io.open = self.open
        try:
            yield self
        finally:
            shutil._USE_CP_SENDFILE = True
            storage.fsync, blob_file.write = self._real["fsync"], blob_write
            for name, function in self._real.items():
                setattr(os, name, function)
            builtins.open, io.open = self._builtin, io_open

    def _open_os(self, path, flags, *args, **kwargs):
        new = flags & os.O_CREAT and self._ours(path) and not os.path.exists(path)
        handle = self._real["open"](path, flags, *args, **kwargs)
        if new:
            self.note(Op("names", names=((os.path.abspath(path), self.file(os.fstat(handle).st_ino, True)),)))
        return handle

    def _fsync(self, handle):
        self._real["fsync"](handle)
        number = handle if isinstance(handle, int) else handle.fileno()
        self.note(Op("sync", self.file(os.fstat(number).st_ino), value=os.readlink(f"/proc/self/fd/{number}")))

    _fdatasync = _fsync

    def _truncate(self, path, size):
        self._real["truncate"](path, size)
        if self._ours(path):
            self.note(Op("truncate", self.file(os.stat(path).st_ino), size))

    def _names_after(self, name):
        if name == "open":
            return self._open_os

        def call(*paths, **kwargs):
            with self._lock:
                result = self._real[name](*paths, **kwargs)
                ours = [os.path.abspath(path) for path in paths[:2] if self._ours(path)]
                if ours:
                    new = name in ("mkdir", "symlink")
                    self.note(Op("names", names=tuple((path, self.file(os.lstat(path).st_ino, new) if os.path.lexists(path)
                                                       else None) for path in ours)))
                if ours and name == "mkdir":
                    self.folders.add(self.file(os.lstat(ours[0]).st_ino))
            return result
        return call


@dataclasses.dataclass
class Inode:
    """A file's bytes on the disk, and the operations on it since its last fsync."""

    durable: bytearray = dataclasses.field(default_factory=bytearray)
    pending: list = dataclasses.field(default_factory=list)

    def sync(self):
        for op in self.pending:
            apply_data(self.durable, op)
        self.pending.clear()

    def after_cut(self, rng):
        """Return what the disk may hold: each sector as it was after some of the pending operations, the size too."""
        ops, style = self.pending, rng.choice(("none", "all", "prefix", "sectors", "sectors"))
        if style != "sectors":
            return self._after(ops[:{"none": 0, "all": len(ops), "prefix": rng.randint(0, len(ops))}[style]])
        states = [self._after(ops[:count]) for count in range(len(ops) + 1)]
        size = len(rng.choice(states))
        pieces = (rng.choice(states)[at:at + SECTOR].ljust(SECTOR, b"\0") for at in range(0, size, SECTOR))
        return b"".join(pieces)[:size]

    def _after(self, ops):
        data = bytearray(self.durable)
        for op in ops:
            apply_data(data, op)
        return bytes(data)


def apply_data(data, op):
    end = op.at + len(op.data)
    if op.kind == "truncate":
        del data[op.at:]
        data.extend(bytes(op.at - len(data)))
        return
    data.extend(bytes(max(0, end - len(data))))
    data[op.at:end] = op.data


class Disk:
    """What a disk knows of a folder while operations come: durable names and bytes, and what is pending."""

    def __init__(self, folder):
        self.folder, self.inodes, self.names, self.pending, self.acknowledged = folder, {}, {}, [], []

    def apply(self, op):
        if op.kind in ("write", "truncate"):
            self.inodes.setdefault(op.inode, Inode()).pending.append(op)
        elif op.kind == "names":
            for _, inode in op.names:
                if inode is not None:
                    self.inodes.setdefault(inode, Inode())
            self.pending.append(op)
        elif op.kind == "ack":
            self.acknowledged.append(op.value)
        elif op.kind == "sync":
            self._sync(op)

    def _sync(self, op):
        if op.inode in self.inodes and not os.path.isdir(op.value):
            self.inodes[op.inode].sync()
            return
        left = []
        for one in self.pending:                         # the names in that folder, each for itself
            mine = tuple(row for row in one.names if os.path.dirname(row[0]) == op.value)
            others = tuple(row for row in one.names if os.path.dirname(row[0]) != op.value)
            self._apply_names(self.names, mine)
            left += [dataclasses.replace(one, names=others)] if others else []
        self.pending = left

    @staticmethod
    def _apply_names(names, rows):
        for path, inode in rows:
            if inode is None:
                names.pop(path, None)
            else:
                names[path] = inode

    def write_after_cut(self, target, rng):
        """Write what may be there after a cut into the folder `target`."""
        names = dict(self.names)
        for op in self.pending[:rng.choice((0, len(self.pending), rng.randint(0, len(self.pending))))]:
            self._apply_names(names, op.names)
        for path, inode in sorted(names.items()):
            there = os.path.join(target, os.path.relpath(path, self.folder))
            if inode in self.folders:
                os.makedirs(there, exist_ok=True)
        for path, inode in sorted(names.items()):
            there = os.path.join(target, os.path.relpath(path, self.folder))
            if inode not in self.folders and os.path.isdir(os.path.dirname(there)):
                with open(there, "wb") as file:
                    file.write(self.inodes[inode].after_cut(rng))



class StockStorage(batos.ZODB.FileStorage.FileStorage):
    """ZODB's FileStorage as it comes, for comparison."""

    broken = pack_step = None

    def in_place(self):
        return True

    def check_place(self):
        """Look at nothing."""

    def keep(self, hold):
        """Let others have the data file."""
        hold.close()


def serving(folder, recorder, rng):
    """Slots, blobs, documents, seals, packs, closing and opening again; what is acknowledged is told to the recorder."""
    settings, count = batos.load_settings({"seal_mb": 0.002}, {"BATOS_SETTINGS": "/dev/null"}), 0
    for session in range(3):
        with recorder.recording():
            image = batos.Image.open(os.path.join(folder, "image.fs"))
            if image.empty():
                batos.genesis(image)
            token = batos.WriteToken()
            write, bulk = batos.WriteLane(image, token, settings).start(), batos.BulkLane(image, token, settings).start()
            for _ in range(8):
                count += 1
                one_command(write, bulk, count, rng, folder, recorder)
            if session:
                image.pack(time.time() - rng.choice((0, 1e6)))
                recorder.ack(("pack", None, None))
            for _ in range(4):
                count += 1
                one_command(write, bulk, count, rng, folder, recorder)
            for lane in (write, bulk):
                lane.close()
            image.close()


def copies(folder, recorder, rng):
    """An image of an earlier version upgraded with its backup, backed up amid commands, restored, recovered."""
    settings = batos.load_settings({"seal_mb": 0.002}, {"BATOS_SETTINGS": "/dev/null"})
    where, backups = os.path.join(folder, "image.fs"), os.path.join(folder, "backups")
    with tempfile.TemporaryDirectory(prefix="powercut-", dir=conftest.in_memory()) as packed:
        newer.unpacked("856fea4", packed)
        old = {path.name: path.read_bytes() for path in pathlib.Path(packed).iterdir() if path.is_file()}
    with recorder.recording():
        for end in ("", ".seals"):
            batos.write_whole(pathlib.Path(f"{where}{end}"), old[f"live_image.fs{end}"])
        recorder.ack(("mood", "mood", "curious"))
        image = batos.Image.open(where)
        batos.upgrade_image(image, backups)
        recorder.ack(("version", "image_version", batos.IMAGE_VERSION))
        token = batos.WriteToken()
        write, bulk = batos.WriteLane(image, token, settings).start(), batos.BulkLane(image, token, settings).start()
        for count in range(1, 9):
            one_command(write, bulk, count, rng, folder, recorder)
            if count % 3 == 0:
                recorder.ack(("backup", batos.make_backup(image, backups).name, None))
        for lane in (write, bulk):
            lane.close()
        recorder.ack(("backup", batos.make_backup(image, backups).name, None))
        image.close()
        batos.restore_image(backups, f"{where}.restored")
        recorder.ack(("copy", "image.fs.restored", None))
        batos.recover_image(where, f"{where}.recovered")
        recorder.ack(("copy", "image.fs.recovered", None))


WORKLOADS = {"serving": (serving, batos.ImageStorage), "copies": (copies, batos.ImageStorage), "stock": (serving, StockStorage)}
REPORTED = {"serving": "powercut", "copies": "powercut of copies", "stock": "powercut of plain ZODB"}


def one_command(write, bulk, count, rng, folder, recorder):
    kind, value = rng.choice(("slot", "slot", "blob", "document")), f"{count} {'x' * rng.choice((1, 700, 5000))}"
    if kind == "slot":
        lane, name = write, f"s{count % 3}"

        def apply(root):
            batos.set_slot(root["genesis_obj"], name, value)
    elif kind == "blob":
        name, source = f"f{count % 2}", pathlib.Path(tempfile.gettempdir(), f"powercut-{os.getpid()}")
        source.write_bytes(value.encode() * 3)
        lane = write

        def apply(root):
            batos.set_slot(root["genesis_obj"], name, batos.blob_record(str(source), "f"))
    else:
        lane, name = bulk, f"d{count % 3}"

        def apply(root):
            batos.index_document_(root["knowledge_catalog_obj"], name, value)
    lane.call(batos.Job(kind, apply), 60)
    if kind == "blob":
        value = batos.hashlib.sha256(source.read_bytes()).hexdigest()
        source.unlink()
    recorder.ack((kind, name, value))


def found_after(target, acknowledged):
    """Return sentences on what is wrong with a folder after a cut: it does not open, a check fails, something is lost."""
    wanted = {(kind, name): value for kind, name, value in acknowledged if name}
    image, backups, restored, recovered = (os.path.join(target, name) for name in
                                           ("image.fs", "backups", "image.fs.restored", "image.fs.recovered"))
    try:
        faults = [f"{os.path.basename(where)}: {fault}" for where in (image, *filter(os.path.exists, (restored, recovered)))
                  for fault in image_faults(where, wanted)]
        faults += backup_faults(backups, {name for kind, name in wanted if kind == "backup"})
        faults += [f"{name} is lost" for kind, name in wanted
                   if kind == "copy" and not os.path.exists(os.path.join(target, name))]
        if os.path.exists(f"{restored}.part"):           # the next one clears it away
            faults += batos.restore_image(backups, restored)["faults"]
        return faults
    except batos.BatosError as error:
        return [f"{type(error).__name__}: {error}"]
    except Exception as error:                           # whatever a fault makes of the program
        where = error.__traceback__
        while where.tb_next:
            where = where.tb_next
        return [f"{error!r} in {where.tb_frame.f_code.co_qualname}"]


def image_faults(where, wanted):
    """Open an image as the next start does, and return what is wrong with it."""
    if not wanted and not os.path.exists(where):
        return []
    image = batos.Image.open(where)
    try:
        batos.upgrade_image(image, os.path.join(os.path.dirname(where), "backups"))
        with batos.reading(image) as root:
            faults = [f"{kind} {name} is lost" for (kind, name), value in wanted.items()
                      if kind in HOLDS and not (len(root) and HOLDS[kind](root, name, value))]
            empty = not len(root)
    finally:
        image.close()
    return faults + ([] if empty else batos.check_image(where, deep=True)["faults"])


def backup_faults(folder, wanted):
    """Return what is wrong with the backups in a folder, all of which count, and which were acknowledged and are not there."""
    if not os.path.isdir(folder):
        return [f"the backups {wanted} are lost"] if wanted else []
    backups, faults = batos.read_backups(folder)
    faults += [fault for backup in backups for fault in batos.verify_backup(folder, backup)]
    return faults + [f"the backup {name} is lost" for name in wanted - {backup.name for backup in backups}]


def slot_holds(root, name, value):
    found = batos.own(root["genesis_obj"]).get(name)
    return found is not None and int(found.split()[0]) >= int(value.split()[0])


def blob_holds(root, name, value):
    found = batos.own(root["genesis_obj"]).get(name)
    return found is not None and bool(batos.blob_path(found)) and (found.sha256 == value or found._p_serial > bytes(8))


def document_holds(root, name, value):
    catalog = root["knowledge_catalog_obj"]
    document = catalog.documents.get(name)
    return document is not None and int(catalog.chunk_storage[document.first_chunk].text.split()[0]) >= int(value.split()[0])


HOLDS = {                                                # kind -> whether what was acknowledged, or something newer, stands
    "slot": slot_holds, "blob": blob_holds, "document": document_holds,
    "mood": lambda root, name, value: batos.own(root["genesis_obj"]).get(name) == value,
    "version": lambda root, name, value: root[name] == value,
}


@newer.later()
def campaign(seed, cuts, work="serving", tell=lambda line: None):
    """Return {"seed", "operations", "cuts", "problems": [(cut, operation, sentences)]}."""
    problems, batos_storage = [], batos.ImageStorage
    workload, storage = WORKLOADS[work]
    with tempfile.TemporaryDirectory(prefix="powercut-", dir=conftest.in_memory()) as folder:
        recorder = Recorder(os.path.join(folder, "disk"))
        os.mkdir(recorder.folder)
        try:
            batos.ImageStorage = storage
            workload(recorder.folder, recorder, random.Random(seed))
        finally:
            batos.ImageStorage = batos_storage
        disk, done, target = Disk(recorder.folder), 0, os.path.join(folder, "after")
        disk.folders = frozenset(recorder.folders)
        for number, at in enumerate(sorted(random.Random(seed).choices(range(len(recorder.ops)), k=cuts))):
            for op in recorder.ops[done:at]:
                disk.apply(op)
            done = at
            os.mkdir(target)
            disk.write_after_cut(target, random.Random(f"{seed} {number}"))
            if faults := found_after(target, disk.acknowledged):
                problems.append((number, at, faults[:3]))
            shutil.rmtree(target)
            if number % 100 == 99:
                tell(f"{number + 1} of {cuts} cuts, {len(problems)} with problems")
    return {"seed": seed, "operations": len(recorder.ops), "cuts": cuts, "problems": problems}


if __name__ == "__main__":
    batos.logging.disable(batos.logging.CRITICAL)        # each cut is logged by who opens the image
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cuts", type=int, default=1000)
    parser.add_argument("--work", choices=WORKLOADS, default="serving")
    args = parser.parse_args()
    result = campaign(args.seed, args.cuts, args.work, lambda line: print(line, flush=True))
    for row in result["problems"][:20]:
        print(row)
    raise SystemExit(loads.note_report(REPORTED[args.work], result | {"problems": len(result["problems"])}))
