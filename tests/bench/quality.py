"""Quality of search: words, vectors and both, beside bm25s and SQLite's FTS5, on collections with judgements.

    python tests/bench/quality.py [FOLDER …] [--queries N] [--embedder NAME] [--keep FOLDER] [--ours] [--log "WHAT CHANGED"]

A FOLDER holds docs.jsonl ({"id", "text", "title"?, "conversation"?}), queries.jsonl ({"id", "text", "conversation"?}) and
qrels.tsv (query, document, grade); foreign.py makes such folders of others' collections. What names a conversation is indexed as
said there, and is sought in it. Without a folder, collections of our own making: the docstrings of Python's library, each to be
found by its summary, which is taken out of it; and short turns of talk, each to be found by a question in other words, or in
the same, and the boundaries of topics and chunks. bm25s is left out where it is not installed.

The product's own code ranks, in this process and without a daemon. --keep names a folder in which vectors are kept for the next
run; --ours leaves the peers and the boundaries out; --log adds a row for each collection to quality.md, with what had changed.
"""

import argparse
import ast
import collections
import datetime
import functools
import importlib.util
import itertools
import json
import math
import pathlib
import random
import re
import sqlite3
import statistics
import sys
import sysconfig
import tempfile
import time
import typing

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]
import batos

MOST = 100                         # documents of a ranking that are judged
PASSAGES = 200                     # that are asked for, since several may be of one document


class Collection(typing.NamedTuple):
    """Documents and queries with their texts, and for each query {document: grade}."""

    documents: dict
    queries: dict
    judged: dict
    titles: dict = {}
    conversations: dict = {}      # of documents and of queries, whose names differ


def read_lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def read_collection(folder):
    """Return the Collection in a folder. Documents without a letter are left out, and queries that nothing is judged for."""
    folder, documents, titles, conversations, queries, judged = pathlib.Path(folder), {}, {}, {}, {}, {}
    for row in read_lines(folder / "docs.jsonl"):
        name, title = str(row["id"]), row.get("title") or ""
        text = row["text"] if row["text"].strip() else title
        if text.strip():
            documents[name], titles[name] = text, title
            conversations[name] = row.get("conversation")
    for line in (folder / "qrels.tsv").read_text().splitlines():
        query, document, grade = line.split("\t")[:3]
        if grade.lstrip("-").isdigit() and int(grade) > 0:
            judged.setdefault(query, {})[document] = int(grade)
    for row in read_lines(folder / "queries.jsonl"):
        if str(row["id"]) in judged:
            queries[str(row["id"])] = row["text"]
            conversations[str(row["id"]), "asked"] = row.get("conversation")
    return Collection(documents, queries, judged, titles, conversations)


def docstrings(path):
    """Yield (name, docstring) of what a module of Python defines."""
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef, ast.Module)):
            text = ast.get_docstring(node)
            if text:
                yield f"{path.stem}.{getattr(node, 'name', '')}", text


def python_library(most=2500):
    """Docstrings without their first sentence, each to be found by that."""
    documents, queries = {}, {}
    for path in sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for name, text in docstrings(path):
            summary, _, rest = text.partition("\n\n")
            if 4 <= len(summary.split()) <= 25 and 12 <= len(rest.split()) <= 300 and name not in documents:
                documents[name], queries[name] = rest, " ".join(summary.split())
    kept = sorted(documents, key=lambda name: batos.digest(name.encode()))[:most]
    return Collection({name: documents[name] for name in kept}, {name: queries[name] for name in kept[:400]},
                      {name: {name: 1} for name in kept[:400]})


PEOPLE = ("Ana", "Bogdan", "Chidi", "Dilek", "Emeka", "Freya", "Goran", "Hana", "Imre", "Jonas", "Kavya", "Luisa")
FACTS = (                        # what somebody says; what somebody asks later, in other words and in the same; values
    ("I moved into a flat in {} last spring", "Where does {} live now?",
     "Which city is the flat in that {} moved into last spring?", ("Lisbon", "Oslo", "Tirana", "Graz", "Porto")),
    ("my sister is getting married on the {}", "When is the wedding of {}'s sibling?",
     "When is {}'s sister getting married?", ("3rd of May", "12th of June")),
    ("the doctor says I must not eat {} any more", "Which food is {} allergic to?",
     "What must {} not eat according to the doctor?", ("peanuts", "shellfish", "eggs", "wheat")),
    ("we called the puppy {}", "What is the name of {}'s dog?",
     "What did {} call the puppy?", ("Biscuit", "Pepper", "Waffle", "Moss")),
    ("I have started to play the {}", "Which instrument is {} learning?",
     "What did {} start to play?", ("cello", "banjo", "oboe", "harp")),
    ("they made me head of {} today", "What job did {} get promoted to?",
     "Of what was {} made head?", ("sales", "research", "logistics", "design")),
    ("I ran the marathon in {} hours", "How fast did {} finish the race?",
     "In how many hours did {} run the marathon?", ("three", "four", "five")),
    ("my car broke down near {}", "Where did {} have trouble with the vehicle?",
     "Near which place did the car of {} break down?", ("Ghent", "Lyon", "Bari", "Split")),
    ("I am reading a novel about {}", "What kind of book does {} have at hand?",
     "What is the novel about that {} is reading?", ("whalers", "bees", "a siege", "a lighthouse")),
    ("we are painting the kitchen {}", "Which colour will {}'s walls have?",
     "In which colour is {} painting the kitchen?", ("yellow", "teal", "grey", "coral")),
    ("my flight leaves at {} in the morning", "At what time does {} travel?",
     "When does the flight of {} leave in the morning?", ("five", "six", "seven", "eight")),
    ("I gave up {} for good", "Which habit did {} stop?",
     "What did {} give up for good?", ("smoking", "coffee", "sugar", "gambling")),
    ("my boy wants to become a {}", "What does {}'s son dream of being?",
     "What does the boy of {} want to become?", ("diver", "baker", "pilot", "judge")),
    ("I lent my drill to {}", "Who borrowed a tool from {}?",
     "To whom did {} lend the drill?", ("the neighbour", "my cousin", "a colleague")),
    ("our roof leaks since the {}", "Since when does it rain into {}'s house?",
     "Since what does the roof of {} leak?", ("storm", "hail", "thaw")),
    ("I left my keys at the {}", "Where did {} forget something?",
     "Where did {} leave the keys?", ("gym", "library", "bakery", "station")),
)
CHATTER = ("ok, see you then", "haha, good one", "I am not sure about that", "what a day it was",
           "let me know how it goes", "sounds good to me", "thanks a lot for yesterday", "sorry, I was asleep already",
           "did you see the news", "same here",
           "well, it depends", "call me when you are free", "no idea, ask somebody else", "that was so long ago",
           "I will think of it")


def talk(same_words=False):
    """Short turns by several people, each fact to be found by a question in other words, or in the same."""
    chance, documents, queries, judged = random.Random(7), {}, {}, {}
    for (said, asked, near, values), who in itertools.product(FACTS, PEOPLE):
        name, opening = f"t{len(documents)}", chance.choice(("", "you know, ", "by the way, ", "guess what: "))
        documents[name] = f"{who}: {opening}{said.format(chance.choice(values))}"
        queries[name], judged[name] = (near if same_words else asked).format(who), {name: 1}
    for n in range(600):
        documents[f"c{n}"] = f"{chance.choice(PEOPLE)}: {chance.choice(CHATTER)}, {chance.choice(CHATTER)}"
    return Collection(documents, queries, judged)


class KeptVectors:
    """An embedder that keeps what it has made in a file, and loads its model only for what is new."""

    def __init__(self, folder, wanted="auto"):
        self.name, self.path = wanted, pathlib.Path(folder, "vectors.npz")
        self.vectors, self._model, self._new = {}, None, False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            held = batos.need("numpy", "vectors").load(self.path)
            self.vectors = dict(zip(held["names"].tolist(), held["vectors"], strict=True))

    def embed(self, texts):
        """Return the vectors of texts, a row each."""
        numpy, names = batos.need("numpy", "vectors"), [batos.digest(text.encode()) for text in texts]
        new = {name: text for name, text in zip(names, texts, strict=True) if name not in self.vectors}
        if new:
            self._model, self._new = self._model or ready_embedder(self.name), True
            self.vectors |= zip(new, self._model.embed(list(new.values())), strict=True)
        return numpy.array([self.vectors[name] for name in names], numpy.float32)

    def query(self, text):
        """Return the vector of a query."""
        return self.embed([text])[0]

    def save(self):
        """Keep what is new."""
        if self._new:
            numpy = batos.need("numpy", "vectors")
            numpy.savez(self.path, names=numpy.array(list(self.vectors)), vectors=numpy.array(list(self.vectors.values())))
            self._new = False


# Rankings: query -> [document, best first]

def first_of_each(names):
    return list(dict.fromkeys(names))[:MOST]


class OurCatalog:
    """A Collection in a catalog of an image, with the vectors of its documents."""

    def __init__(self, folder, collection, embedder):
        self.image, self.embedder = batos.Image.open(str(pathlib.Path(folder, "image.fs"))), embedder
        self.collection, self.asked_in = collection, {}
        for name, text in collection.queries.items():
            conversation = collection.conversations.get((name, "asked"))
            self.asked_in.setdefault(text, {"conversation": conversation} if conversation else {})
        batos.genesis(self.image)
        names = list(collection.documents)
        for start in range(0, len(names), 500):
            self._change(lambda catalog, start=start: [self._index(catalog, name) for name in names[start:start + 500]])
        while waiting := self.look(lambda catalog: batos.waiting_chunks(catalog, 1024)):
            numbers, texts = zip(*waiting, strict=True)
            vectors = batos.Vectors(batos.need("numpy", "vectors").array(numbers), embedder.embed(texts))
            with batos.built_file(vectors, self.image.storage.temporaryDirectory()) as built:
                self._change(lambda catalog, built=built: batos.publish_vectors(catalog, built, embedder.name))
        if isinstance(embedder, KeptVectors):
            embedder.save()
        while due := self.look(batos.due_merge):
            self._merge(*due)

    def _merge(self, kind, keys):
        merged = batos.MERGED[kind]
        arrays = self.look(lambda catalog: merged.arrays(catalog, keys))
        with batos.built_file(arrays, self.image.storage.temporaryDirectory()) as built:
            self._change(lambda catalog: merged.publish(catalog, keys, built))

    def _index(self, catalog, name):
        text, title = self.collection.documents[name], self.collection.titles.get(name)
        conversation = self.collection.conversations.get(name)
        metadata = {"title": title} if title else {}
        if conversation:
            batos.store_document(catalog, name, text, metadata | {"conversation": conversation}, "said", kind="episode")
        else:
            batos.index_document_(catalog, name, text, metadata, kind="text")

    def _change(self, function):
        with batos.writing(self.image) as root:
            function(root["knowledge_catalog_obj"])

    def look(self, function):
        with batos.reading(self.image) as root:
            return function(root["knowledge_catalog_obj"])

    def _found(self, query, vector=None):
        terms, where = batos.parse_query(query), self.asked_in.get(query, {})

        def look(catalog):
            outcome = batos.search_(catalog, terms.text, PASSAGES, vector, terms, **where)
            return first_of_each(row["chunk"]["doc_id"] for row in outcome["results"])
        return self.look(look)

    def words(self, query):
        return self._found(query)

    def vectors(self, query):
        def look(catalog):
            near = batos.Nearness(catalog, self.embedder.query(query))
            best = near.best(*batos._chosen(catalog, batos.Where(**self.asked_in.get(query, {}))), PASSAGES)
            return first_of_each(catalog.chunk_storage[number].doc_id for number in best)
        return self.look(look)

    def both(self, query):
        return self._found(query, self.embedder.query(query))


def by_fts5(documents):
    """Return the ranking of SQLite's FTS5: any of the words, stemmed."""
    table = sqlite3.connect(":memory:")
    table.execute("create virtual table d using fts5(name unindexed, text, tokenize='porter unicode61')")
    table.executemany("insert into d values (?, ?)", documents.items())

    def ranking(query):
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", query))
        return [name for name, in table.execute("select name from d where d match ? order by rank limit ?", (words, MOST))]
    return ranking


def by_bm25s(documents):
    """Return the ranking of bm25s, with its English stop words and Snowball's stemmer; None where it is not installed."""
    if importlib.util.find_spec("bm25s") is None:
        return None
    import bm25s
    import Stemmer
    stemmer, names = Stemmer.Stemmer("english"), list(documents)

    def split(texts):
        return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)
    index = bm25s.BM25()
    index.index(split(list(documents.values())), show_progress=False)

    def ranking(query):
        found, scores = index.retrieve(split([query]), k=min(MOST, len(names)), show_progress=False)
        return [names[at] for at, score in zip(found[0], scores[0], strict=True) if score > 0]
    return ranking


def by_reciprocal_rank(*rankings, k=60):
    """Return the ranking by the sum of 1 / (k + rank) over others, as fusing is done where nothing else is known."""
    def ranking(query):
        sums = collections.Counter()
        for found in (each(query) for each in rankings):
            sums.update({name: 1 / (k + place) for place, name in enumerate(found, 1)})
        return [name for name, _ in sums.most_common(MOST)]
    return ranking


# Measures

def measures(ranked, wanted):
    """Return (nDCG@10, Recall@100, reciprocal rank) of one query."""
    gains = [wanted.get(name, 0) / math.log2(place + 1) for place, name in enumerate(ranked[:10], 1)]
    ideal = [grade / math.log2(place + 1) for place, grade in enumerate(sorted(wanted.values(), reverse=True)[:10], 1)]
    first = next((place for place, name in enumerate(ranked, 1) if name in wanted), None)
    return sum(gains) / sum(ideal), sum(name in wanted for name in ranked[:MOST]) / len(wanted), 1 / first if first else 0.0


def judged(ranking, queries, judgements):
    """Return the means of measures over all queries, and the median of the milliseconds that one took."""
    found, took_ms = [], []
    for name, text in queries.items():
        began = time.perf_counter()
        ranked = ranking(text)
        took_ms.append(1000 * (time.perf_counter() - began))
        found.append(measures(ranked, judgements[name]))
    return *(sum(column) / len(found) for column in zip(*found, strict=True)), statistics.median(took_ms)


def rankings(folder, collection, embedder, peers=True):
    """Return {name: ranking} of all that are compared."""
    ours = OurCatalog(folder, collection, embedder)
    every = {"words": ours.words, "vectors": ours.vectors, "both": ours.both}
    if peers:
        texts = {name: f"{collection.titles.get(name, '')}\n{text}" for name, text in collection.documents.items()}
        every |= {"bm25s": by_bm25s(texts), "FTS5": by_fts5(texts)}
    if every.get("bm25s"):
        every["bm25s and vectors"] = by_reciprocal_rank(every["bm25s"], ours.vectors)
    return {name: ranking for name, ranking in every.items() if ranking}


def ready_embedder(wanted="auto"):
    """Return the real embedder of a name or folder, loaded."""
    embedder = batos.Embedder(wanted)
    embedder.start()
    embedder.close(300)
    if embedder.state != "ready":
        raise SystemExit(embedder.progress)
    return embedder


def report(collections, embedder, most, peers=True):
    """Yield (collection, ranking, nDCG@10, Recall@100, MRR, ms a query, the query's vector not counted)."""
    for name, collection in collections.items():
        queries = dict(itertools.islice(collection.queries.items(), most))
        embedder.embed(list(queries.values()))
        with tempfile.TemporaryDirectory(prefix="quality-") as folder:
            for ranking, function in rankings(folder, collection, embedder, peers).items():
                yield name, ranking, *judged(function, queries, collection.judged)


LOG = HERE / "quality.md"


def log(rows, change):
    """Add what was measured to the log: a row for each collection, nDCG@10 / Recall@100 of each of our rankings."""
    today = datetime.date.today().isoformat()
    with LOG.open("a") as file:
        for name, group in itertools.groupby(rows, lambda row: row[0]):
            told = {ranking: (f"{ndcg:.3f} / {recall:.3f}", ms) for _, ranking, ndcg, recall, _, ms in group}
            figures = " | ".join(told[ranking][0] for ranking in ("words", "vectors", "both"))
            file.write(f"| {today} | {change} | {name} | {figures} | {told['both'][1]:.1f} |\n")


# Boundaries: texts put together of parts about different things; is a text cut where they meet?

@functools.cache
def docstring_parts():
    """Return the docstrings of Python's library that are parts of mixed texts: of some paragraphs, neither short nor long."""
    found = {text: None for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))
             for _, text in docstrings(path) if 60 <= len(text.split()) <= 190 and text.count("\n\n") >= 2}
    return list(found)


def mixed_texts(count=60, parts=8):
    """Yield (text, the lines on which its parts begin but the first) of docstrings put together."""
    chance = random.Random(5)
    for _ in range(count):
        chosen, begins, line = chance.sample(docstring_parts(), parts), [], 1
        for part in chosen[:-1]:
            line += part.count("\n") + 2
            begins.append(line)
        yield "\n\n".join(chosen), begins


def headed_texts():
    """Yield (text, the lines on which its sections begin but the first) of our manuals without their headings."""
    for path in (*sorted((HERE.parent / "data").glob("*.md")), HERE.parents[1] / "README.md"):
        kept, begins = [], []
        for line in path.read_text().splitlines():
            if line.startswith("#"):
                begins.append(len(kept) + 1)
            else:
                kept += [line] if line or (kept and kept[-1]) else []
        yield "\n".join(kept), [line for line in dict.fromkeys(begins) if line > 3]


def boundary_measures(sense, texts=mixed_texts, level="chunks"):
    """Return (F1, precision, recall) of the cuts."""
    right = made = wanted = 0
    for text, begins in texts():
        cuts = {draft.line_start for draft in batos.cut_text(text, "text", sense, level)[1:]}
        right, made, wanted = right + len(cuts & set(begins)), made + len(cuts), wanted + len(begins)
    return 2 * right / (made + wanted), right / made, right / wanted


def nothing(texts):
    """Return vectors of texts that tell none from another."""
    return batos.need("numpy", "the bench").zeros((len(texts), 1))


BY_SIZE = batos.Sense(nothing, batos.BY_WORDS.topic_costs)


def report_boundaries(embedder):
    by_meaning = batos.Sense(embedder.about, batos.MEANING_TOPIC_COSTS)
    senses = {"size alone": BY_SIZE, "words": batos.BY_WORDS, "meaning": by_meaning}
    kinds = {"put together": mixed_texts, "manuals without their headings": headed_texts}
    print("\n| texts | cut into | by | boundary F1 | precision | recall |\n|---|---|---|---|---|---|")
    for (what, texts), level, (name, sense) in itertools.product(kinds.items(), ("chunks", "topics"), senses.items()):
        if level == "topics" and sense is BY_SIZE:
            continue
        values = boundary_measures(sense, texts, level)
        print(f"| {what} | {level} | {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--keep", help="a folder for vectors")
    parser.add_argument("--embedder", default="auto", help="its name or folder; what --keep names is of one embedder")
    parser.add_argument("--ours", action="store_true", help="neither peers nor boundaries")
    parser.add_argument("--log", metavar="WHAT CHANGED", help="add rows to quality.md")
    args = parser.parse_args()
    judged_sets = {pathlib.Path(folder).name: read_collection(folder) for folder in args.folders} or {
        "Python's library": python_library(), "talk, in other words": talk(), "talk, in its words": talk(same_words=True)}
    embedder, rows = KeptVectors(args.keep, args.embedder) if args.keep else ready_embedder(args.embedder), []
    print("| collection | ranking | nDCG@10 | Recall@100 | MRR | ms |\n|---|---|---|---|---|---|")
    for name, ranking, *values, ms in report(judged_sets, embedder, args.queries, peers=not args.ours):
        print(f"| {name} | {ranking} | " + " | ".join(f"{value:.3f}" for value in values) + f" | {ms:.1f} |", flush=True)
        rows.append((name, ranking, *values, ms))
    if args.keep:
        embedder.save()
    if args.log:
        log(rows, args.log)
    if not args.ours and not args.folders:
        report_boundaries(embedder if not args.keep else ready_embedder(args.embedder))


if __name__ == "__main__":
    main()
