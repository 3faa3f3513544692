"""What small notes take on the disk, a byte of their text, all history kept: by kind of record, and by the tree it stands in.

    python tests/bench/weigh.py [--notes 5000] [--way folder|alone|both]

folder  they wait together, as `learn FOLDER` sends them, and share transactions; vectors are made of many at a time
alone   each comes seconds after the one before it: a transaction each, and each its vector as soon as the daemon makes it

The notes are docstrings of Python's library, cut at 500 bytes; their vectors are of chance, which no compression makes smaller.
"""

import argparse
import ast
import collections
import hashlib
import os
import pathlib
import pickletools
import sys
import tempfile
import time

import numpy

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[2])]
import batos

NOTE_BYTES = 500
AT_ONCE = 32                                             # notes that wait together, as `learn` sends them
DIMENSIONS = 384
WAIT_S = 600
LEAVES = "LOBucket", "OOBucket", "LLBucket", "LLSet"
TREES = batos.LOBTree, batos.OOBTree, batos.LLBTree, batos.LLTreeSet


class ChanceEmbedder:
    """Stands for Embedder: a text's vector is of chance, always the same one."""

    name, state, progress, reader = "chance", "ready", "a double", batos.Reader()

    def start(self, ready=lambda: None):
        ready()

    def close(self):
        """Nothing is open."""

    def embed(self, texts, patient=False, stopped=lambda: False):
        rows = [numpy.random.default_rng(number_of(text)).standard_normal(DIMENSIONS, numpy.float32) for text in texts]
        return numpy.array(rows) / numpy.linalg.norm(rows, axis=1, keepdims=True)


def number_of(text):
    """Return a number that stands for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def notes(count):
    """Return so many texts of about NOTE_BYTES: docstrings of Python's own library, no two the same."""
    found = {}
    for path in sorted(pathlib.Path(os.__file__).parent.rglob("*.py")):
        for text in docstrings(path):
            found.setdefault(text[:NOTE_BYTES].strip())
            if len(found) == count:
                return list(found)
    raise SystemExit(f"Python's library here has {len(found)} docstrings of {NOTE_BYTES} bytes, not {count}")


def docstrings(path):
    """Yield pieces of NOTE_BYTES of the docstrings of a file."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    nodes = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
    for node in nodes:
        text = ast.get_docstring(node) or ""
        for start in range(0, len(text) - NOTE_BYTES // 2, NOTE_BYTES):
            yield text[start:start + NOTE_BYTES]


class Memory:
    """An image with the lanes of a daemon that learn, embed and merge."""

    def __init__(self, folder):
        self.image = batos.Image.open(f"{folder}/live_image.fs")
        batos.genesis(self.image)
        self.settings = batos.load_settings({}, {})
        self.bulk = batos.BulkLane(self.image, batos.WriteToken(), self.settings).start()
        self.embedding = batos.EmbeddingLane(self.image, self.bulk, ChanceEmbedder())
        self.merge = batos.merge_job(self.image, self.bulk)

    def job(self, name, text, done):
        command = batos.IndexDocumentCommand(command="index_document", doc_id=name, text=text)
        ingest = batos.Ingest(command, self.settings)
        return batos.Job("index_document", ingest.apply, done, before=ingest.before, after=ingest.after, who="local",
                         key=batos.uuid7(), digest=batos.digest(text.encode()), shared=ingest.is_small)

    def learn(self, texts, first, at_once):
        """Have texts learnt that come together, and what they bring done."""
        for start in range(0, len(texts), at_once):
            waiting = []
            for number, text in enumerate(texts[start:start + at_once], first + start):
                waiting.append(self.job(f"/home/notes/{number:05}.md", text, lambda outcome: None))
            self.hand_over(waiting)
            self.embed()
        self.merge(lambda line: None)

    def hand_over(self, jobs):
        for job in jobs[:-1]:
            self.bulk.submit(job)
        outcome = self.bulk.call(jobs[-1], WAIT_S)
        assert outcome.error is None, outcome.error

    def embed(self):
        """Do what the lane does when it wakes."""
        while self.embedding._one_part():
            continue

    def close(self):
        self.bulk.close()
        self.image.close()


def trees_of(root):
    """Return {oid: what it stands in} of what the memory and the ledger hold."""
    catalog, ledger = root["knowledge_catalog_obj"], root["ledger_obj"]
    names = {}
    for name in ("chunk_storage", "documents", "text_index", "vectors", "unembedded", "retired", "staged"):
        note_tree(getattr(catalog, name), name, names)
    for field, values in catalog.metadata_index.items():
        note_tree(values, f"filter {field}", names)
        for numbers in values.values():
            note_tree(numbers, f"filter {field}", names)
    for lane in batos.LEDGER_LANES:
        note_tree(getattr(ledger, lane), f"ledger {lane}", names)
    return names


def note_tree(tree, name, names):
    """Note the nodes and leaves of a tree."""
    names[tree._p_oid] = name
    state = tree.__getstate__()
    inner = state[0] if state else ()
    for node in inner if isinstance(inner, tuple) else ():
        if type(node).__name__ in LEAVES and node._p_oid:
            names[node._p_oid] = f"{name}, leaves"
        elif isinstance(node, TREES) and node._p_oid:
            note_tree(node, name, names)


def class_of(data):
    """Return the name of the class of a record."""
    strings = [arg for op, arg, _ in pickletools.genops(data) if op.name == "GLOBAL"][:1]
    return strings[0].split()[-1] if strings else "?"


def weighed(image, since):
    """Return {kind of record: (how many, their bytes)} of what was written behind a position of the file."""
    with batos.reading(image) as root:
        names = trees_of(root)
    path, found = pathlib.Path(image.path), collections.defaultdict(lambda: [0, 0])
    data, at = path.read_bytes(), since
    while at < len(data):
        _, length, _, *told = batos.TXN_HEADER.unpack_from(data, at)
        begin, stop = at + batos.TXN_HEADER.size + sum(told), at + length
        count_in(found, "headers of transactions", batos.TXN_HEADER.size + sum(told) + 8)
        for oid, *_, pickled in batos.records_of(data, begin, stop):
            kind = class_of(batos.inflated(pickled))
            count_in(found, f"{kind} ({names[oid]})" if oid in names else kind, len(pickled))
            count_in(found, "headers of records", batos.RECORD_HEADER.size)
        at = stop + 8
    return found


def count_in(found, kind, size):
    found[kind][0] += 1
    found[kind][1] += size


def blob_bytes(image):
    """Return the bytes of the blobs beside an image, former ones too."""
    folder = pathlib.Path(f"{image.path}.blob")
    return sum(path.stat().st_size for path in folder.rglob("*.blob"))


def measured(texts, way):
    """Have texts learnt in a way; returns (bytes of text, rows of what was written, seconds of the processor)."""
    with tempfile.TemporaryDirectory(prefix="weigh-") as folder:
        memory = Memory(folder)
        since, began_s = memory.image.size(), time.process_time()
        blobs = blob_bytes(memory.image)
        group, at_once = (256, AT_ONCE) if way == "folder" else (32, 1)
        for start in range(0, len(texts), group):
            memory.learn(texts[start:start + group], start, at_once)
        spent_s = time.process_time() - began_s
        found = weighed(memory.image, since)
        found["blobs of words and vectors"] = [0, blob_bytes(memory.image) - blobs]
        memory.close()
    return sum(len(text.encode()) for text in texts), found, spent_s


def told(texts, way):
    size, found, spent_s = measured(texts, way)
    total = sum(held for _, held in found.values())
    print(f"{way}: {len(texts):,} notes of {size / len(texts):.0f} bytes, {total / size:.2f} bytes a byte of text, "
          f"{spent_s / len(texts) * 1e3:.2f} ms of the processor a note")
    for kind, (count, held) in sorted(found.items(), key=lambda row: -row[1][1]):
        if held > size / 200:
            print(f"  {held / size:6.2f}  {count:7,} {kind}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notes", type=int, default=5000)
    parser.add_argument("--way", choices=("folder", "alone", "both"), default="both")
    args = parser.parse_args()
    for way in ("folder", "alone") if args.way == "both" else (args.way,):
        told(notes(args.notes), way)
