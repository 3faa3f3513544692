"""Segments: merges keep what is alive; what is lost of them is made anew."""

import collections
import pathlib
import random
import unittest.mock

import pytest
import transaction
import ZODB
from BTrees.OOBTree import OOBTree
from hypothesis import given, settings
from hypothesis import strategies as st
from test_backup import new_image
from ZODB.MappingStorage import MappingStorage
from zope.index.keyword import KeywordIndex
from zope.index.text.lexicon import Lexicon
from zope.index.text.okapiindex import OkapiIndex

import batos

WORDS = st.lists(st.sampled_from(["valve", "brass", "Ωmega", "z", "pump" * 16]), max_size=12)
ROWS = st.dictionaries(st.integers(1, 1 << 62), WORDS, max_size=12).map(lambda rows: sorted(rows.items()))


def told(postings):
    """Return what Postings hold, as plain data."""
    found = {}
    for word in postings.vocabulary():
        rows = postings.rows_of(word)
        found[word] = {int(postings.numbers[place]): int(f) for place, f in
                       zip(postings.places[rows], postings.frequencies[rows], strict=True)}
    return found, dict(zip(postings.numbers.tolist(), postings.lengths.tolist(), strict=True))


def wanted(rows):
    found = collections.defaultdict(dict)
    for number, words in rows:
        for word, f in collections.Counter(words).items():
            found[word][number] = f
    return dict(found), {number: len(words) for number, words in rows}


@given(ROWS)
@settings(max_examples=100)
def test_postings_hold_what_was_collected_also_in_a_file(tmp_path_factory, rows):
    postings = batos.collect_postings(rows)
    assert told(postings) == wanted(rows)
    assert told(batos.Postings(**batos._arrays_in(batos.zlib.decompress(batos.in_record(postings).data)))) == wanted(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batos, "_RECORD_BYTES", 0)
        with batos.built_file(postings, tmp_path_factory.getbasetemp()) as built:
            assert told(batos.Postings(**batos._map_arrays(built.path, built.sha256))) == wanted(rows)
    assert not pathlib.Path(built.path).exists()
    for word in ("none", "", "valve", "zz"):
        assert len(range(*postings.rows_of(word).indices(1 << 40))) == len(wanted(rows)[0].get(word, ()))


@given(st.lists(ROWS, min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_a_merge_holds_what_is_alive_of_its_parts(parts, chance):
    seen, rows = set(), []
    for part in parts:                                   # numbers of two sources never overlap
        rows.append([row for row in part if row[0] not in seen])
        seen |= {number for number, _ in part}
    alive = {number for number in seen if chance.random() < 0.7}
    masked = [(batos.collect_postings(part), batos.need("numpy", "x").array([number in alive for number, _ in part], bool))
              for part in rows]
    kept = sorted(row for part in rows for row in part if row[0] in alive)
    assert told(batos.merge_postings(masked)) == wanted(kept)


def test_more_than_255_of_a_word_count_as_255():
    postings = batos.collect_postings([(1, ["valve"] * 300)])
    assert told(postings) == ({"valve": {1: 255}}, {1: 300})


@given(st.lists(st.lists(st.sampled_from(["valve", "brass", "pump", "lamp"]), min_size=1, max_size=9), min_size=2, max_size=9))
@settings(max_examples=60, deadline=None)
def test_scores_are_those_of_zope_index(texts):
    catalog, peer = batos.new_catalog(), OkapiIndex(Lexicon(*batos._PIPELINE))
    for n, words in enumerate(texts, 1):
        batos.index_document_(catalog, f"d{n}", " ".join(words))
        peer.index_doc(n, " ".join(words))
    for word in {word for words in texts for word in words}:
        with unittest.mock.patch.object(batos, "RANKING", batos.RANKING._replace(floor_words=1)):
            ours = {row["chunk"]["doc_id"]: row["score"] for row in batos.search_(catalog, word, 20)["results"]}
        theirs = {f"d{n}": score for n, score in peer.search(word).items()}
        assert ours == pytest.approx(theirs, abs=1e-5)


def rows_of(outcome):
    return [(row["chunk"]["doc_id"], row["score"], row["why"]) for row in outcome["results"]]


class Memory:
    """A catalog in an image; what it does is committed at once."""

    def __init__(self, folder):
        self.image = new_image(folder)
        self.unit = batos.Unit(self.image.db)

    def change(self, function):
        self.unit.manager.begin()
        result = function(self.unit.root["knowledge_catalog_obj"])
        self.unit.manager.commit()
        return result

    def look(self, function):
        with self.unit.snapshot() as root:
            return function(root["knowledge_catalog_obj"])

    def add(self, doc_id, text):
        return self.change(lambda catalog: batos.index_document_(catalog, doc_id, text))

    def settle(self):
        """Have what is fresh become a segment, as when it is full."""
        def settle(catalog):
            for key in [key for key, segment in catalog.text_index.items() if not segment.settled]:
                batos._settle(catalog, key)
        self.change(settle)

    def merge(self, keys=None, meanwhile=lambda: None):
        self.settle()
        held = self.keys()
        keys = held if keys is None else tuple(key for key in keys if key in held)
        if not keys:
            return
        postings = self.look(lambda catalog: batos.merged_postings(catalog, keys))
        meanwhile()
        with batos.built_file(postings, self.image.storage.temporaryDirectory()) as built:
            self.change(lambda catalog: batos.publish_words(catalog, keys, built))

    def found(self, query="brass pump", most=100):
        return rows_of(self.look(lambda catalog: batos.search_(catalog, query, most)))

    def faults(self):
        with batos.reading(self.image) as root:
            return list(batos.catalog_faults(root))

    def keys(self):
        return self.look(lambda catalog: tuple(catalog.text_index))

    def close(self):
        self.unit.close()
        self.image.close()


@pytest.fixture
def memory(tmp_path):
    made = Memory(tmp_path)
    yield made
    made.close()


def text_of(chance):
    return " ".join(chance.choices(["valve", "pump", "lamp", "brass", "wheel"], k=chance.randint(3, 12)))


def fresh_of(unit):
    """Return the Postings of what is newest, as a connection reads them."""
    (fresh,) = [segment for segment in unit.root["knowledge_catalog_obj"].text_index.values() if not segment.settled]
    return fresh.arrays


def test_of_what_is_newest_only_chunks_that_came_are_read(memory, monkeypatch):
    read, words_in = [], batos._words_in
    monkeypatch.setattr(batos, "_words_in", lambda catalog, numbers: read.append(len(numbers)) or words_in(catalog, numbers))

    def newest():
        with memory.unit.snapshot() as root:
            return fresh_of(memory.unit), root["knowledge_catalog_obj"].text_index.values()[0].numbers()
    for n in range(3):
        memory.add(f"note {n}", f"The brass valve {n}.")
        newest()
    read.clear()
    memory.add("note 1", "A lamp.")                      # in place of the one before: the words of the two others are counted
    fresh, numbers = newest()
    assert read == [2, 1] and fresh.numbers.tolist() == numbers
    expected = memory.look(lambda catalog: batos.postings_of(catalog, numbers))
    assert all((one == other).all() for one, other in zip(fresh, expected, strict=True))
    monkeypatch.setattr(batos, "FRESH_CHUNKS", 1)
    for n in range(2 * batos._FRESH_STATES_KEPT):
        memory.add(f"more {n}", "A wheel.")
        newest()
    assert len(batos._FRESH_WORDS[memory.image.db]) <= batos._FRESH_STATES_KEPT


def test_connections_share_the_words_of_what_is_newest_and_none_of_what_is_not_committed(memory):
    memory.add("one", "The brass valve.")
    other = batos.Unit(memory.image.db)
    with memory.unit.snapshot(), other.snapshot():
        assert fresh_of(memory.unit) is fresh_of(other)
    memory.unit.manager.begin()
    batos.index_document_(memory.unit.root["knowledge_catalog_obj"], "two", "The pump.")
    changed = [fresh_of(memory.unit)]
    memory.unit.manager.savepoint()                      # behind it, what is changed does not say so
    memory.unit.root["knowledge_catalog_obj"].text_index.values()[0]._v_arrays = None
    changed.append(fresh_of(memory.unit))
    with other.snapshot():
        assert "pump" not in fresh_of(other).vocabulary()
    assert all("pump" in postings.vocabulary() for postings in changed)
    memory.unit.manager.commit()
    with other.snapshot():
        assert "pump" in fresh_of(other).vocabulary()
    for n in range(2 * batos._FRESH_STATES_KEPT):
        memory.add(f"more {n}", "A lamp.")
        with memory.unit.snapshot():
            fresh_of(memory.unit)
    assert len(batos._FRESH_POSTINGS[memory.image.db]) == batos._FRESH_STATES_KEPT
    other.close()


def test_what_is_merged_is_found_as_before_and_with_what_comes_later(memory, monkeypatch):
    chance = random.Random(1)
    for n in range(40):
        memory.add(f"d{n:02}", text_of(chance))
    before = memory.found()
    memory.merge()
    assert memory.found() == before and memory.faults() == [] and len(memory.keys()) == 1
    for n in range(40, 60):
        memory.add(f"d{n}", text_of(chance))
    mixed = memory.found()
    assert len(memory.keys()) == 2                       # the words of what is new are stored nowhere yet
    monkeypatch.setattr(batos, "_RECORD_BYTES", 0)
    memory.merge()
    assert memory.found() == mixed and len(memory.keys()) == 1 and memory.faults() == []
    memory.image.pack(batos.time.time() + 1)
    assert len(list(pathlib.Path(f"{memory.image.path}.blob").glob("0x*/**/*.blob"))) == 1
    assert memory.found() == mixed


@pytest.mark.slow
def test_small_segments_are_few_however_much_comes_and_goes(memory):
    for n in range(200):
        memory.add(f"d{n % 90}", f"brass valve {n}")
    counts = memory.look(lambda catalog: [segment.count for segment in catalog.text_index.values()])
    assert sum(count < batos.SMALL_CHUNKS for count in counts) < batos._MERGED_AT_ONCE and memory.faults() == []
    kind, keys = memory.look(batos.due_merge)
    sizes = memory.look(lambda catalog: [catalog.text_index[key].count for key in keys])
    assert kind == "words" and min(sizes) >= batos.SMALL_CHUNKS
    assert {row[0] for row in memory.found("brass")} == {f"d{n}" for n in range(90)}


def test_what_came_or_went_during_a_merge_is_seen_to(memory):
    for n in range(20):
        memory.add(f"d{n}", "brass valve")

    def meanwhile():
        memory.add("later", "brass pump")
        for n in range(7):
            memory.change(lambda catalog, n=n: batos.unindex_document_(catalog, f"d{n}"))
        memory.add("d9", "another brass lamp")
    memory.merge(None, meanwhile)
    assert {row[0] for row in memory.found("brass")} == {"later", *(f"d{n}" for n in range(7, 20))}
    rows = memory.look(lambda catalog: [(row.settled, row.count, row.dead) for row in catalog.text_index.values()])
    assert memory.faults() == [] and sorted(rows) == [(False, 2, 0), (True, 20, 8)]
    assert memory.look(batos.due_merge) == ("words", memory.keys()[-1:])        # more than _DEAD_SHARE of it
    memory.merge()
    assert memory.look(lambda catalog: [(row.count, row.dead) for row in catalog.text_index.values()]) == [(14, 0)]
    assert memory.faults() == []


def test_a_merge_of_what_is_gone_meanwhile_changes_nothing(memory):
    memory.add("d", "brass valve")
    memory.add("e", "brass pump")
    memory.merge(None, lambda: memory.change(lambda catalog: batos.unindex_document_(catalog, "d")))
    assert [row[0] for row in memory.found("brass")] == ["e"] and len(memory.keys()) == 1 and memory.faults() == []


def test_a_segment_of_which_nothing_is_alive_goes(memory):
    memory.add("d", "brass valve")
    memory.merge()
    memory.change(lambda catalog: batos.unindex_document_(catalog, "d"))
    assert memory.keys() == () and memory.found("brass") == [] and memory.faults() == []


def test_a_merge_that_is_not_committed_changes_nothing(memory):
    memory.add("d", "brass valve")
    before, keys = memory.found(), memory.keys()
    with pytest.raises(RuntimeError):
        memory.merge(None, lambda: (_ for _ in ()).throw(RuntimeError("killed")))
    assert memory.found() == before and memory.keys() == keys and memory.faults() == []
    memory.merge()
    assert memory.found() == before


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")])
def test_a_segment_that_cannot_be_read_is_made_anew(memory, spoil, monkeypatch):
    monkeypatch.setattr(batos, "_RECORD_BYTES", 0)
    memory.add("d", "brass valve")
    memory.merge()
    memory.add("e", "brass pump")
    before = memory.found("brass")
    path = pathlib.Path(memory.look(lambda catalog: catalog.text_index[1].blob.committed()))
    path.chmod(0o600)
    spoil(path)
    batos._map_arrays.cache_clear()
    memory.unit.connection.cacheMinimize()
    assert [row[0] for row in memory.found("brass")] == ["e"] and "cannot be read" in memory.faults()[0]
    assert memory.look(batos.due_merge) == ("words", (1,))
    memory.merge((1,))
    assert memory.found("brass") == before and memory.faults() == []


def test_phrases_are_found_in_all_segments(memory):
    memory.add("a", "Open the brass valve slowly.")
    memory.merge()
    memory.add("b", "A valve, brass or not.")
    memory.add("c", "The brass valve again.")

    def asked(query):
        terms = batos.parse_query(query)
        return {row[0] for row in rows_of(memory.look(lambda catalog: batos.search_(catalog, terms.text, 10, terms=terms)))}
    assert asked('+"brass valve"') == {"a", "c"} and asked("brass -slowly") == {"b", "c"} and asked("valve -brass") == set()


STEPS = st.lists(st.tuples(st.sampled_from(["add", "add", "add", "remove", "few", "all"]), st.integers(0, 5),
                           st.integers(0, 99)), max_size=25)


@pytest.mark.slow
@given(STEPS)
@settings(max_examples=40, deadline=None)
def test_whatever_is_merged_when_all_and_only_what_is_alive_is_found(tmp_path_factory, steps):
    memory, model = Memory(tmp_path_factory.mktemp("memory")), {}
    for kind, n, seed in steps:
        if kind == "add":
            model[f"d{n}"] = text_of(random.Random(seed))
            memory.add(f"d{n}", model[f"d{n}"])
        elif kind == "remove" and model.pop(f"d{n}", None):
            memory.change(lambda catalog, n=n: batos.unindex_document_(catalog, f"d{n}"))
        elif kind == "few":
            memory.merge(memory.keys()[-2:])
        elif kind == "all":
            memory.merge()
        assert memory.faults() == []
        for word in ("valve", "brass"):
            assert {row[0] for row in memory.found(word)} == {name for name, text in model.items() if word in text.split()}
    memory.merge()
    fresh = batos.new_catalog()
    first = memory.look(lambda catalog: {name: document.first_chunk for name, document in catalog.documents.items()})
    for name in sorted(model, key=first.get):
        batos.index_document_(fresh, name, model[name])
    assert memory.found() == rows_of(batos.search_(fresh, "brass pump", 100))
    memory.close()


def learn_one_by_one(image, texts):
    """Have texts learnt as a daemon does it, each in a transaction of its own; returns the bytes that were written."""
    settings, before = batos.load_settings({}, {}), image.size()
    bulk = batos.BulkLane(image, batos.WriteToken(), settings).start()
    for n, text in enumerate(texts):
        command = batos.IndexDocumentCommand(command="index_document", doc_id=f"/home/notes/{n}", text=text)
        ingest = batos.Ingest(command, settings)
        job = batos.Job("index_document", ingest.apply, before=ingest.before, after=ingest.after, who="local", key=batos.uuid7(),
                        digest=batos.digest(text.encode()))
        assert bulk.call(job, 60).error is None
    bulk.close()
    return image.size() - before


def test_notes_that_come_one_by_one_write_few_bytes(tmp_path):
    beside = pathlib.Path(batos.__file__)
    whole = beside.with_name("README.md").read_text() + beside.with_name("CHANGELOG.md").read_text()
    texts = [whole[start:start + 480] for start in range(0, 48_000, 480)]
    image = new_image(tmp_path)
    assert learn_one_by_one(image, texts) < 6 * 48_000       # with all that the history keeps; settled words are among it
    with batos.reading(image) as root:
        catalog = root["knowledge_catalog_obj"]
        assert list(batos.catalog_faults(root)) == [] and [row.settled for row in catalog.text_index.values()] == [True, False]
        fresh = catalog.text_index[catalog.text_index.maxKey()]
        assert 0 < fresh.count <= batos.FRESH_CHUNKS and batos.search_(catalog, texts[-1][:99])["results"][0]["chunk"]["doc_id"]
    image.close()


@pytest.mark.slow
def test_a_daemon_merges_by_itself(daemon, tmp_path):
    running, most = daemon(), batos._MERGED_AT_ONCE + 4
    with batos.Client(running.endpoint, timeout_s=60) as client:
        for n in range(most):
            text = "\n".join(f"# Part {part}\n\n" + f"The brass valve {n} of part {part} is turned. " * 10 for part in range(90))
            client.call("index_document", doc_id=f"d{n}", text=text)
        end_s = batos.time.monotonic() + 300
        while (memory := client.call("get_full_state")["result"]["memory"])["chunks"] < most * 90 or memory["segments"] > 5:
            assert batos.time.monotonic() < end_s
            batos.time.sleep(0.05)
        assert memory["chunks"] == most * 90 and client.call("search_memory", query="brass valve 7")["results"]
    assert running.stop() == 0
    assert batos.check_image(str(tmp_path / "live_image.fs"), deep=True)["faults"] == []


class Counting(MappingStorage):
    """A storage that counts what is written."""

    written = 0

    def store(self, oid, serial, data, version, txn):
        self.written += len(data)
        return super().store(oid, serial, data, version, txn)


def file_by_runs(filed, number, value):
    filed.setdefault(value, batos.RunTree()).add(number, 1)


def file_by_keyword(filed, number, value):
    filed.setdefault("index", KeywordIndex()).index_doc(number, [value])


def written_for(file, documents=600):
    """Return how many bytes one more document writes, filed under a value that ten share and one that all do."""
    storage = Counting()
    connection = ZODB.DB(storage).open()
    root = connection.root()
    root["few"], root["all"] = OOBTree(), OOBTree()
    for number in range(documents):
        file(root["few"], number, f"conversation {number // 10}")
        file(root["all"], number, "user")
        transaction.commit()
        if number == documents // 2:
            begun = storage.written
    connection.close()
    return (storage.written - begun) / (documents - documents // 2)


def test_a_keyword_index_would_write_more_than_two_kilobytes_more_a_document():
    assert written_for(file_by_keyword) > written_for(file_by_runs) + 2000
