"""What one image can hold: chunks, objects, and a month of missions, each in three sizes. Prints the table of sizes.md.

    python tests/bench/sizes.py --folder DISK [--chunks 10000 100000 1000000] [--objects …] [--missions …] [--report sizes.md]

Times are the processor's, of this process or of the daemon, unless a row says that they are the clock's. Behind each stands its
exponent: log of how many times as long by log of how many times as much, against the size before. 1 is as much longer as there is
more; nothing should be above 1.1. Texts are drawn by a seed, by how often words of a language occur; their vectors are noise
around real ones (`--vectors FILE.npy`, which `--real 50000` makes), handed over where the embedder would; without, around vectors
of chance. The core is a double. Each phase is a process of its own and writes down what it found: a run cut short goes on.
"""

import argparse
import collections
import contextlib
import datetime
import functools
import itertools
import json
import math
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
import zlib

import numpy

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE.parent), str(HERE)]
import conftest
import doubles
from bench import add_objects
from month import BEGIN, Clock
from test_autotelic import Kept
from test_parts import Machine

import batos

SIZES = {"chunks": (10_000, 100_000, 1_000_000), "objects": (10_000, 100_000, 1_000_000), "missions": (1000, 10_000, 100_000)}
CHUNKS_A_DOCUMENT, DOCUMENTS_A_MERGE = 100, 25
WORDS_A_SENTENCE, SENTENCES_A_CHUNK = 12, 6
VOCABULARY, TOPIC_WORDS = 200_000, 20
WIDTH, NOISE = 384, 0.45                                 # of a vector; of the noise, as long as the vector were it 1
SEARCHES, QUESTIONS, ASKED = 200, 40, 20
DAYS, MISSIONS_AT_ONCE, MISSIONS_A_MERGE = 30, 32, 64
STEEP = 1.1                                              # an exponent above it is a fault
LEAST_S = 0.05                                           # of what is shorter the exponent says nothing
IMAGE = "live_image.fs"


class Writer:
    """Draws documents by a seed: words by Zipf's and Mandelbrot's law, each document with some of its own."""

    def __init__(self):
        self.chance = numpy.random.default_rng(7)
        letters = self.chance.integers(97, 123, (VOCABULARY, 10), numpy.uint8)
        self.words = [bytes(row[:4 + rank % 7]).decode() for rank, row in enumerate(letters)]
        weights = 1 / (numpy.arange(VOCABULARY) + 11.0) ** 1.05
        self.reach = numpy.cumsum(weights / weights.sum())

    def ranks(self, chance, count):
        return numpy.minimum(numpy.searchsorted(self.reach, chance.random(count)), VOCABULARY - 1)

    def document(self, number):
        """Return the text of a document, the same each time; a tenth of its words are its topic's."""
        chance = numpy.random.default_rng([7, number])
        topic = self.ranks(chance, TOPIC_WORDS)
        ranks = self.ranks(chance, CHUNKS_A_DOCUMENT * SENTENCES_A_CHUNK * WORDS_A_SENTENCE)
        places = chance.random(len(ranks)) < 0.1
        ranks[places] = chance.choice(topic, places.sum())
        words = [self.words[rank] for rank in ranks.tolist()]
        lines = [f"{' '.join(words[at:at + WORDS_A_SENTENCE])}." for at in range(0, len(words), WORDS_A_SENTENCE)]
        chunks = [" ".join(lines[at:at + SENTENCES_A_CHUNK]) for at in range(0, len(lines), SENTENCES_A_CHUNK)]
        return "\n\n".join(f"# Part {at}\n\n{text}" for at, text in enumerate(chunks))


class NoisyEmbedder(doubles.QuickEmbedder):
    """Stands for the embedder: a text's vector is one of some known ones, by its digest, with noise."""

    def __init__(self, known):
        super().__init__("noise")
        self.known, self.asked = known, {}

    def _one(self, text):
        seed = zlib.crc32(text.encode())
        return self.known[seed % len(self.known)], seed

    def embed(self, texts, patient=False, stopped=lambda: False):
        known, seeds = zip(*map(self._one, texts), strict=True)
        noise = numpy.random.default_rng(list(seeds)).standard_normal((len(texts), WIDTH), numpy.float32)
        return batos.unit_rows(numpy.array(known) + noise * (NOISE / math.sqrt(WIDTH))).astype(numpy.float32)

    def query(self, text):
        """Return the vector that a query was given, else one that is near that of its text."""
        return self.asked[text] if text in self.asked else self.embed([text])[0]

    def about(self, texts):
        return self.embed(texts)


def known_vectors(path):
    """Return the vectors of a file that `real_vectors` wrote, or as many of chance as are in most."""
    if path:
        return numpy.load(path)
    return batos.unit_rows(numpy.random.default_rng(5).standard_normal((2000, WIDTH), numpy.float32))


def real_vectors(path, count):
    """Write what the real embedder makes of so many sentences of this machine's Python library and this program's texts."""
    files = (*pathlib.Path(os.__file__).parent.rglob("*.py"), *ROOT.rglob("*.md"))
    texts = [file.read_text("utf-8", "replace") for file in files]
    lines = dict.fromkeys(line.strip(" #\"'") for text in texts for line in text.splitlines())
    told = [line for line in lines if len(line.split()) > 7 and sum(char.isalpha() for char in line) > 0.7 * len(line)][:count]
    embedder = batos.Embedder("auto")
    embedder.start()
    embedder.close(300)
    numpy.save(path, embedder.embed(told))
    return len(told)


# What is measured, each in a process of its own: function(folder, count, options) to {what: figure}


class Opened(Machine):
    """An image in a folder, made where there is none, with its writing lanes."""

    def __init__(self, folder):
        super().__init__(None, f"{folder}/{IMAGE}")

    def merge(self):
        batos.merge_job(self.image, self.bulk)(lambda line: None)


def learn(folder, count, options):
    """Documents by the bulk lane until there are so many chunks, with the merges that fall due; then their vectors."""
    if count > options.put_from:
        return put(folder, count, options)
    writer, one, spent = Writer(), Opened(folder), Spent(folder)
    while (known := one.look(lambda catalog: len(catalog.documents))) * CHUNKS_A_DOCUMENT < count:
        numbers = range(known, min(known + DOCUMENTS_A_MERGE, count // CHUNKS_A_DOCUMENT))
        texts = {f"d{number:06}": writer.document(number) for number in numbers}
        with spent.on("learn"):
            for name, text in texts.items():
                one.ingest(name, text)
            one.merge()
    embed(one, spent, known_vectors(options.vectors))
    spent.on_disk["chunks"] = one.look(lambda catalog: sum(document.chunk_count for document in catalog.documents.values()))
    spent.on_disk["segments"] = one.look(lambda catalog: len(catalog.text_index))
    one.close()
    return spent.on_disk


def put(folder, count, options):
    """Documents as they would be stored, cut and stemmed already, each commit a segment and a pack of vectors."""
    writer, one, spent, known = Writer(), Opened(folder), Spent(folder), known_vectors(options.vectors)
    stems = stems_of(writer.words)
    folder_of_blobs = one.look(lambda catalog: batos.blob_folder(catalog._p_jar.root()))
    while (first := one.look(lambda catalog: catalog.chunk_numbers.last) + 1) <= count:
        with spent.on("put"):
            batch = Batch(writer, stems, known, first)
            with batos.built_file(batch.postings, folder_of_blobs) as words, \
                    batos.built_file(batch.vectors, folder_of_blobs) as vectors:
                one.bulk.call(batos.Job("put", functools.partial(batch.store, words=words, vectors=vectors)))
            one.merge()
    spent.on_disk["chunks"] = one.look(lambda catalog: len(catalog.chunk_storage))
    one.close()
    return spent.on_disk


def stems_of(words):
    """Return (the stems of words, ascending, for each word which of them is its)."""
    made = [(batos.stems(word, "en") or [word])[0] for word in words]
    known = sorted(set(made))
    places = {stem: place for place, stem in enumerate(known)}
    return known, numpy.array([places[stem] for stem in made])


class Batch:
    """So many chunks, their postings and vectors."""

    COUNT = 16_384

    def __init__(self, writer, stems, known, first):
        chance, words_each = numpy.random.default_rng([8, first]), SENTENCES_A_CHUNK * WORDS_A_SENTENCE
        self.first, ranks = first, writer.ranks(chance, self.COUNT * words_each)
        self.texts = [" ".join(map(writer.words.__getitem__, row)) + "." for row in ranks.reshape(self.COUNT, -1).tolist()]
        numbers = numpy.arange(first, first + self.COUNT)
        stemmed = stems[1][ranks]
        codes, frequencies = numpy.unique(numpy.repeat(numpy.arange(self.COUNT), words_each) * (len(stems[0]) + 1) + stemmed,
                                          return_counts=True)
        places, which = numpy.divmod(codes, len(stems[0]) + 1)
        used, which = numpy.unique(which, return_inverse=True)
        self.postings = batos._sorted_postings([stems[0][n] for n in used.tolist()], which, places, frequencies, numbers,
                                               numpy.full(self.COUNT, words_each))
        rows = known[chance.integers(len(known), size=self.COUNT)]
        noise = chance.standard_normal(rows.shape, numpy.float32) * (NOISE / math.sqrt(WIDTH))
        self.vectors = batos.Vectors(numbers, batos.unit_rows(rows + noise).astype(numpy.float32))

    def store(self, root, words, vectors):
        catalog = root["knowledge_catalog_obj"]
        assert catalog.chunk_numbers.take(self.COUNT).start == self.first
        for start in range(0, self.COUNT, 1024):
            name, texts = f"p{self.first + start:08}", self.texts[start:start + 1024]
            drafts = [batos.Draft(text, (), line, line) for line, text in enumerate(texts, 1)]
            batos._store_chunks(catalog, name, 1, self.first + start, 0, drafts)
            fields = batos.document_fields(name, "put as it would be stored", None)
            batos._publish(catalog, 1, self.first + start, len(drafts), {**fields, "title": ""})
        batos.add_mapped(catalog, catalog.text_index, batos.Segment, words)
        batos.publish_vectors(catalog, vectors, "noise")


def embed(one, spent, known):
    """Have all vectors made that chunks wait for, part by part as the daemon does, with the merges that fall due."""
    lane = batos.EmbeddingLane(one.image, one.bulk, NoisyEmbedder(known))
    lane._take_embedder()
    while one.look(batos.count_waiting):
        with spent.on("vectors stored"):
            for _ in range(32):
                lane._one_part()
            lane._store(every=not one.look(lambda catalog: batos.waiting_chunks(catalog, 1)))
            one.merge()


class Spent:
    """Seconds that a phase has taken in all, also before it was interrupted."""

    def __init__(self, folder):
        self.path, self.on_disk = pathlib.Path(folder) / "spent.json", collections.defaultdict(float)
        if self.path.exists():
            self.on_disk.update(json.loads(self.path.read_text()))

    @contextlib.contextmanager
    def on(self, what):
        start_s, start_clock_s = time.process_time(), time.perf_counter()
        yield
        self.on_disk[f"{what}, s"] += time.process_time() - start_s
        self.on_disk[f"{what}, by the clock, s"] += time.perf_counter() - start_clock_s
        self.path.write_text(json.dumps(self.on_disk))


def asked_of(one, count, embedder):
    """Return texts that are sought: some words of a chunk each, whose vector lies near that chunk's."""
    chance, texts = numpy.random.default_rng(3), []
    def chunk_at(catalog, number):
        keys = catalog.chunk_storage.keys(number)
        chunk = catalog.chunk_storage[next(iter(keys))]
        return batos.searchable(catalog.documents[chunk.doc_id].title, chunk), chunk.text
    last = one.look(lambda catalog: catalog.chunk_storage.maxKey())
    for _ in range(count):
        whole, text = one.look(functools.partial(chunk_at, number=int(chance.integers(1, last))))
        words = [word.strip(".").lower() for word in text.split()]
        query = " ".join(chance.choice(words, int(chance.integers(2, 10)), replace=False))
        embedder.asked[query] = embedder.embed([whole, query]).sum(0) / 2
        texts.append(query)
    return texts


def percentiles(times_ms):
    """Return (p50, p95) of some times."""
    ranked = sorted(times_ms)
    return statistics.median(ranked), ranked[len(ranked) * 95 // 100]


def each_ms(function, values, clock=time.perf_counter):
    """Return what each call takes by a clock."""
    times = []
    for value in values:
        start_s = clock()
        function(value)
        times.append((clock() - start_s) * 1e3)
    return times


def processor_s(function):
    """Return the seconds of the processor that a call takes in this process."""
    start_s = time.process_time()
    function()
    return time.process_time() - start_s


def taken_by(pid):
    """Return the seconds of the processor that another process has taken."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def search(folder, count, options):
    """Searches by words and meaning, and what a question recalls, over a warm image."""
    one, embedder = Opened(folder), NoisyEmbedder(known_vectors(options.vectors))
    texts = asked_of(one, options.searches, embedder)
    def find(text):
        vector = embedder.query(text)
        return one.look(lambda catalog: batos.search_(catalog, text, 5, vector=vector, embedder=embedder.name))
    def recall(text):
        how = batos.Recall(embedder=embedder)
        return one.look(lambda catalog: batos.find_evidence(catalog, text, how))
    first_s = processor_s(lambda: find(texts[0]))
    for text in texts[:10]:
        find(text)
    told = {"first search, s": first_s}
    by_words = functools.partial(batos.search_, max_results=5)
    works = {"search": (find, texts), "by words alone": (lambda text: one.look(lambda catalog: by_words(catalog, text)), texts),
             "ask's retrieval": (recall, texts[:QUESTIONS])}
    for what, (work, values) in works.items():
        for clock, how in ((time.process_time, ""), (time.perf_counter, ", by the clock")):
            p50, p95 = percentiles(each_ms(work, values, clock))
            told |= {f"{what} p50{how}, ms": p50, f"{what} p95{how}, ms": p95}
    told |= {
            "found again, %": 100 * statistics.fmean(agreement(one, embedder, text) for text in texts[:20]),
            "memory after searching, MB": batos.resident_mb()}
    one.close()
    return told


def agreement(one, embedder, text):
    """Return what share of the ten nearest chunks, all compared, a search by meaning has among its nearest."""
    vector = embedder.query(text)
    def nearest(catalog):
        packs = [pack.arrays for pack in catalog.vectors.values()]
        numbers = numpy.concatenate([arrays.numbers for arrays in packs])
        cosines = numpy.concatenate([arrays.vectors[:] @ vector for arrays in packs])
        return set(numbers[numpy.argsort(-cosines)[:10]].tolist())
    def found(catalog):
        seeking = batos._Seeking(catalog, batos.prepared(catalog, text), batos.Where(), None, 5)
        seeking.find(vector, embedder.name)
        return set(seeking.by_meaning)
    return one.look(lambda catalog: len(nearest(catalog) & found(catalog))) / 10


def serve(folder, count, options):
    """A daemon's start, and what it answers over its socket: medians by the clock, longer work by its processor."""
    process = conftest.DaemonProcess(folder, "--embedder", "none", start=conftest.start_anew)
    def work_s(function):
        start_s = taken_by(process.process.pid)
        function()
        return taken_by(process.process.pid) - start_s
    try:
        with batos.Client(process.endpoint, 1200) as client:
            told = {"start to listening, s": taken_by(process.process.pid)}
            told["first state, s"] = work_s(lambda: client.call("get_full_state"))
            named = "active_cycles" if options.kind == "missions" else "knowledge_catalog_obj"
            calls = {"inspect": {"target": named}, "history": {"limit": 50}, "list_cycles": {"limit": 50},
                     "list_documents": {"limit": 50}, "list_objects": {"limit": 50}}
            for name, fields in calls.items():
                times = each_ms(lambda _, name=name, fields=fields: client.call(name, **fields), range(ASKED))
                told[f"{name}, median by the clock, ms"] = statistics.median(times)
            write = {"target": "genesis_obj", "selector": "setSlot:value:"}
            times = each_ms(lambda n: client.call("send_message", args=["n", n], **write), range(ASKED))
            told["a durable change, median by the clock, ms"] = statistics.median(times)
            told["memory of the daemon, MB"] = client.call("health")["result"]["memory_mb"]
            told["backup, s"] = work_s(lambda: client.call("backup", folder=f"{folder}/backups"))
            shutil.rmtree(f"{folder}/backups")
            told["pack, s"] = work_s(lambda: client.call("pack", days=0.0))
    finally:
        process.stop()
    told["disk, MB"] = batos_disk_mb(folder)
    return told


def batos_disk_mb(folder):
    return sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file()) / 1e6


def check(folder, count, options):
    """The quick and the deep check of a file that nobody has open."""
    return {f"check, {name}, s": processor_s(functools.partial(batos.check_image, f"{folder}/{IMAGE}", deep))
            for name, deep in (("quick", False), ("deep", True))}


def add(folder, count, options):
    """So many objects."""
    image = batos.Image.open(path := f"{folder}/{IMAGE}")
    batos.genesis(image)
    image.close()
    return {"made, s": processor_s(lambda: add_objects(path, count))}


def think(folder, count, options):
    """A month of missions by a clock of its own: so many, of which as many as a batch wait at a time; three heartbeats a day."""
    clock, kept = Clock(), Kept(folder, doubles.QuickCore(), workers=2, missions_max=10 * MISSIONS_AT_ONCE)
    run = Missions(kept, count)
    times = []
    for day in range(DAYS):
        clock.now = BEGIN + datetime.timedelta(days=day)
        times.append(processor_s(functools.partial(run.one_day, day, clock)))
    kept.close()
    os.rename(f"{folder}/image.fs", f"{folder}/{IMAGE}")
    for left in pathlib.Path(folder).glob("image.fs*"):
        left.rename(left.with_name(left.name.replace("image.fs", IMAGE)))
    return {"thought, s": sum(times), "the last three days by the first three": sum(times[-3:]) / sum(times[:3])}


class Missions:
    """A mind that learns a few notes and is asked about them."""

    def __init__(self, kept, count):
        self.kept, self.count, self.asked, self.chance = kept, count, 0, numpy.random.default_rng(11)
        self.slots = threading.Semaphore(MISSIONS_AT_ONCE)
        kept.uvm.mind._ended_hook = lambda oid, report: self.slots.release()
        for number in range(100):
            self.write("bulk", lambda root, number=number: batos.index_document_(
                root["knowledge_catalog_obj"], f"note-{number}.md",
                f"The gauge {number} is read each {number + 2} hours.")["chunks"])

    def write(self, lane, apply):
        outcome = self.kept.uvm.lanes[lane].call(batos.Job("sizes", apply, who="local"))
        if outcome.error:
            raise outcome.error
        return outcome.result

    def merge(self):
        """Merge what is due, which a daemon does each second."""
        batos.merge_job(self.kept.image, self.kept.uvm.lanes["bulk"])(lambda line: None)

    def one_day(self, day, clock):
        until = self.count * (day + 1) // DAYS
        while self.asked < until:
            self.slots.acquire()
            self.ask()
            if self.asked % MISSIONS_A_MERGE == 0:
                self.merge()
            clock.pass_s(86_400 // (self.count // DAYS + 1))
        for _ in range(MISSIONS_AT_ONCE):
            self.slots.acquire()
        self.slots.release(MISSIONS_AT_ONCE)
        with batos.reading(self.kept.image) as root:
            looked = batos.look_at_outcomes(root)
        self.write("write", batos.beat(self.kept.settings, looked))

    def ask(self):
        number, self.asked = int(self.chance.integers(100)), self.asked + 1
        question = f"How often is the gauge {number} read, {self.asked}?"
        brief = {"type": "direct_synthesis", "selector": "answer_", "args": [question]}
        self.write("write", lambda root: batos.cycle_id(
            batos.send(root["orchestrator_obj"], "start_cognitive_cycle_for_", brief)))


PHASES = {"chunks": (learn, search, serve, check), "objects": (add, serve, check), "missions": (think, serve, check)}


# Each phase in its process, and the report


def measured(kind, count, phase, options):
    """Return what a phase told, from its file where it has ended already."""
    folder = options.folder / f"{kind}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    told = options.folder / f"{kind}-{count}-{phase}.json"
    if not told.exists():
        given = {"phase": phase, "kind": kind, "size": count, "folder": options.folder, "searches": options.searches,
                 "put-from": options.put_from, **({"vectors": options.vectors} if options.vectors else {})}
        words = [f"--{name}={value}" for name, value in given.items()]
        subprocess.run([sys.executable, __file__, *words], check=True)
    return json.loads(told.read_text())


def run_phase(options):
    phase = next(phase for phase in PHASES[options.kind] if phase.__name__ == options.phase)
    told = phase(options.folder / f"{options.kind}-{options.size}", options.size, options)
    peak_mb = int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1e3
    told = {**told, f"memory, most, of {options.phase}, MB": peak_mb}
    (options.folder / f"{options.kind}-{options.size}-{options.phase}.json").write_text(json.dumps(told))


def figures(options):
    """Return {kind: {size: {what: figure}}}."""
    found = collections.defaultdict(dict)
    for kind in PHASES:
        for count in getattr(options, kind):
            row = found[kind][count] = {}
            for phase in PHASES[kind]:
                row.update(measured(kind, count, phase.__name__, options))
                print(f"{kind} {count:,}: {phase.__name__}", file=sys.stderr, flush=True)
            shutil.rmtree(options.folder / f"{kind}-{count}", ignore_errors=True) if options.clear else None
    return found


def exponent(what, before, after, sizes):
    """Return log of how many times as long by log of how many times as much; None where that says nothing."""
    is_time = what.endswith((", s", ", ms")) and "by the clock" not in what
    if not is_time or before is None or after is None or before / (1e3 if what.endswith(", ms") else 1) < LEAST_S:
        return None
    return math.log(after / before) / math.log(sizes[1] / sizes[0])


def shown(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rows_of(kind, by_size):
    """Yield a row of the table for each figure: what, then for each size the figure and its exponent."""
    sizes = sorted(by_size)
    for what in dict.fromkeys(itertools.chain(*by_size.values())):
        found = [by_size[size].get(what) for size in sizes]
        steps = zip(itertools.pairwise(found), itertools.pairwise(sizes), strict=True)
        powers = [None, *[exponent(what, *pair, of) for pair, of in steps]]
        yield f"| {what} | {' | '.join(map(cell, found, powers))} |"


def cell(value, power):
    """Return a figure, and behind it its exponent; empty where it was not measured."""
    told = "" if power is None else f" ({power:.2f}{' steep' * (power > STEEP)})"
    return "" if value is None else shown(value) + told


def as_markdown(found):
    for kind, by_size in found.items():
        if by_size:
            heads = [f"{size:,} {kind}" for size in sorted(by_size)]
            yield from (f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}", *rows_of(kind, by_size), "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    for kind, sizes in SIZES.items():
        parser.add_argument(f"--{kind}", type=int, nargs="*", default=sizes)
    parser.add_argument("--vectors", type=pathlib.Path)
    parser.add_argument("--real", type=int, help="write so many real vectors into --vectors first")
    parser.add_argument("--searches", type=int, default=SEARCHES)
    parser.add_argument("--put-from", type=int, default=10 ** 9, help="more chunks than that are put in cut and stemmed")
    parser.add_argument("--clear", action="store_true", help="remove each image once it is measured")
    parser.add_argument("--report", type=pathlib.Path)
    for name in ("--phase", "--kind"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.real and not options.vectors.exists():
        print(f"{real_vectors(options.vectors, options.real):,} real vectors")
    if options.phase:
        return run_phase(options)
    text = "\n".join(as_markdown(figures(options)))
    print(text)
    if options.report:
        where = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        options.report.write_text(f"BAT OS {batos.__version__}, {where}.\n\n{text}", "utf-8")


if __name__ == "__main__":
    main()
