"""Vectors: every chunk has one or waits for it, whatever comes between; found by meaning; words alone where there is none."""

import pathlib
import shutil
import subprocess
import sys
import threading
import time

import doubles
import numpy
import pytest
from doubles import QuickEmbedder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_parts import Machine
from test_segments import Memory

import batos

DOUBLE = QuickEmbedder()
TEXTS = ["The brass valve.", "A copper tap of the boiler.", "The lamp is lit.", "A pump with bellows.", "Nothing of the kind."]


@pytest.fixture
def memory(tmp_path):
    made = Memory(tmp_path)
    yield made
    made.close()


def embed(memory, most=100, embedder=DOUBLE, meanwhile=lambda: None):
    """Embed the chunks that wait, as EmbeddingLane does; returns how many."""
    rows = memory.look(lambda catalog: batos.waiting_chunks(catalog, most))
    if rows:
        numbers, texts = zip(*rows, strict=True)
        vectors = batos.Vectors(batos.need("numpy", "x").array(numbers), embedder.embed(texts))
        meanwhile()
        with batos.built_file(vectors, memory.image.storage.temporaryDirectory()) as built:
            memory.change(lambda catalog: batos.publish_vectors(catalog, built, embedder.name))
    return len(rows)


def hold(memory, most=100):
    """Embed the chunks that wait, and have what they mean held, as EmbeddingLane does; returns how many."""
    rows = memory.look(lambda catalog: batos.waiting_chunks(catalog, most))
    if rows:
        numbers, texts = zip(*rows, strict=True)
        vectors = batos.Vectors(numpy.array(numbers), DOUBLE.embed(texts))
        memory.look(lambda catalog: batos.hold_vectors(catalog, vectors, DOUBLE.name))
    return len(rows)


def store(memory, every=True):
    """Store what is held, as EmbeddingLane does; returns how many."""
    held = memory.look(lambda catalog: batos.vectors_to_store(catalog, DOUBLE.name, every))
    if held is not None:
        with batos.built_file(held, memory.image.storage.temporaryDirectory()) as built:
            memory.change(lambda catalog: batos.publish_vectors(catalog, built, DOUBLE.name))
    return len(held.numbers) if held else 0


def merge_vectors(memory, keys=None):
    keys = keys or memory.look(lambda catalog: tuple(catalog.vectors))
    arrays = memory.look(lambda catalog: batos._merged_vectors(catalog, keys))
    with batos.built_file(arrays, memory.image.storage.temporaryDirectory()) as built:
        memory.change(lambda catalog: batos._publish_vector_merge(catalog, keys, built))


def found(memory, query, **more):
    rows = memory.look(lambda catalog: batos.search_(catalog, query, 10, vector=DOUBLE.query(query), **more))["results"]
    return [row["chunk"]["doc_id"] for row in rows]


def fill(memory):
    for n, text in enumerate(TEXTS):
        memory.add(f"d{n}", text)


def waiting(memory):
    return memory.look(batos.count_waiting)


def test_what_has_other_words_is_found_by_meaning_and_says_so(memory):
    fill(memory)
    assert waiting(memory) == 5 and found(memory, "alloy cock") == []
    assert embed(memory) == 5 and waiting(memory) == 0 and memory.faults() == []
    assert set(found(memory, "alloy cock")[:2]) == {"d0", "d1"}
    row = memory.look(lambda catalog: batos.search_(catalog, "brass tap", 10, vector=DOUBLE.query("brass tap")))["results"][0]
    assert row["why"]["rank_by_meaning"] in (1, 2) and row["why"]["similarity"] > 0.9 and 0 <= row["score"] <= 1
    assert row["why"]["rank_by_words"] and row["why"]["mass"]
    words = memory.look(lambda catalog: batos.search_(catalog, "brass", 10))["results"][0]
    assert words["why"]["rank_by_meaning"] is None and words["why"]["rank_by_words"] == 1 and words["why"]["similarity"] is None
    assert found(memory, "alloy cock", doc_id="d2") == ["d2"]
    assert found(memory, "alloy cock", scope="self") == []


def test_a_chunk_that_waits_for_its_vector_is_found_by_its_words_as_well_as_others(memory):
    fill(memory)
    embed(memory)
    memory.add("new", "The valve of brass is new.")
    assert found(memory, "new valve of brass")[0] == "new"
    embed(memory)
    assert found(memory, "new valve of brass")[0] == "new"


def test_what_is_held_is_found_among_all_that_wait_without_a_look_at_these(memory, monkeypatch):
    fill(memory)
    assert hold(memory, 3) == 3
    monkeypatch.setattr(batos.RunTree, "numbers", None)                  # of a million that wait, a million
    assert waiting(memory) == 2 and store(memory) == 3 and waiting(memory) == 2


def test_stop_words_alone_find_by_meaning_only(memory):
    fill(memory)
    embed(memory)
    outcome = memory.look(lambda catalog: batos.search_(catalog, "does not", 9, vector=DOUBLE.query("tap")))
    assert outcome["results"][0]["why"]["words"] == {} and outcome["results"][0]["why"]["rank_by_words"] is None
    assert outcome["mass"] == 0.0 and outcome["query_words"] == 0
    found = memory.look(lambda catalog: batos.find_evidence(catalog, "the tap", batos.Recall(embedder=DOUBLE), "does not"))
    assert found["evidence"]


def test_a_chunk_waits_until_its_vector_is_there_and_one_that_is_gone_does_not(memory):
    fill(memory)
    assert embed(memory, 2) == 2 and waiting(memory) == 3

    def meanwhile():
        memory.change(lambda catalog: batos.unindex_document_(catalog, "d2"))
        memory.add("d3", "Another lantern.")
        memory.change(lambda catalog: batos.unindex_document_(catalog, "d0"))
    assert embed(memory, 2, meanwhile=meanwhile) == 2
    assert memory.faults() == [] and waiting(memory) == 2
    assert embed(memory) == 2 and memory.faults() == []
    assert found(memory, "lantern")[0] == "d3" and "d2" not in found(memory, "lamp") and "d0" not in found(memory, "valve")
    merge_vectors(memory)
    [pack] = memory.look(lambda catalog: list(catalog.vectors.values()))
    assert memory.faults() == [] and (pack.count, pack.dead) == (3, 0)
    assert found(memory, "lantern")[0] == "d3"


def test_a_large_document_is_embedded_part_by_part(memory):
    text = "\n".join(f"# Part {n}\n\n" + f"The brass valve of part {n} is turned. " * 12 for n in range(30))
    memory.add("large", text)
    assert [embed(memory, 12) for _ in range(4)] == [12, 12, 6, 0] and memory.faults() == [] and waiting(memory) == 0


OTHER = QuickEmbedder("other")


def take(memory, name):
    memory.unit.connection.activation = batos.SYSTEM     # as a lane's is
    memory.change(lambda catalog: batos.take_embedder(catalog, name))
    return memory.look(lambda catalog: (batos.count_waiting(catalog), batos.count_former_vectors(catalog)))


def made_by(memory):
    return sorted(memory.look(lambda catalog: [(pack.embedder, pack.count) for pack in catalog.vectors.values()]))


def test_another_embedder_makes_all_vectors_anew_and_what_was_there_is_kept_until_then(memory):
    fill(memory)
    assert take(memory, "double") == (5, 0)
    embed(memory, 3)
    assert take(memory, "double") == (2, 0)
    embed(memory)
    assert take(memory, "other") == (5, 5) and memory.faults() == []
    embed(memory, 2, OTHER)
    memory.add("d0", "Another valve of brass.")
    memory.change(lambda catalog: batos.unindex_document_(catalog, "d4"))
    assert memory.faults() == [] and made_by(memory) == [("double", 2), ("double", 3), ("other", 2)]
    assert take(memory, "double") == (1, 2)                                             # d0 is new to both
    assert take(memory, "other") == (3, 5) and memory.faults() == []
    assert embed(memory, embedder=OTHER) == 3 and memory.faults() == []
    assert {name for name, _ in made_by(memory)} == {"other"} and found(memory, "alloy cock", embedder="other")
    assert take(memory, "double") == (4, 5) and embed(memory) == 4 and {name for name, _ in made_by(memory)} == {"double"}


def test_no_search_and_no_merge_mixes_the_vectors_of_two_embedders(memory):
    fill(memory)
    take(memory, "double")
    embed(memory)
    take(memory, "other")
    assert embed(memory, 2, OTHER) == 2
    memory.add("lamp", "A lantern.")

    def seen(name):
        rows = memory.look(lambda catalog: batos.search_(catalog, "brass", 10, vector=DOUBLE.query("brass"), embedder=name))
        return {row["chunk"]["doc_id"] for row in rows["results"] if row["why"]["rank_by_meaning"]}
    assert seen("other") == {"d0", "d1"} and seen("double") == {f"d{n}" for n in range(5)} and seen("third") == set()
    assert found(memory, "lantern", embedder="other")[0] == "lamp"                     # by its words
    for n in range(batos._PACKS_MERGED_AT_ONCE - 1):
        memory.add(f"more{n}", "A valve.")
        embed(memory, 1, OTHER)
    assert memory.look(batos._due_vectors) is not None
    while keys := memory.look(batos._due_vectors):
        assert len({memory.look(lambda catalog, key=key: catalog.vectors[key].embedder) for key in keys}) == 1
        merge_vectors(memory, keys)
    assert memory.faults() == [] and ("double", 5) in made_by(memory)


@pytest.mark.parametrize("mend", [lambda memory: take(memory, "double"), lambda memory: merge_vectors(memory)])
def test_vectors_that_cannot_be_read_are_made_anew(memory, mend, monkeypatch):
    monkeypatch.setattr(batos, "_RECORD_BYTES", 0)
    fill(memory)
    embed(memory, 3)
    embed(memory)
    before = found(memory, "alloy cock")
    path = pathlib.Path(memory.look(lambda catalog: catalog.vectors[1].blob.committed()))
    path.chmod(0o600)
    path.write_bytes(b"nothing")
    batos._map_arrays.cache_clear()
    memory.unit.connection.cacheMinimize()
    assert found(memory, "brass")[0] == "d0" and "cannot be read" in memory.faults()[0]
    mend(memory)
    assert waiting(memory) == 3 and memory.faults() == []
    embed(memory)
    assert found(memory, "alloy cock") == before and memory.faults() == []


def test_a_vector_takes_a_byte_a_number_and_is_the_same_however_often_it_is_merged(tmp_path):
    rows = numpy.random.default_rng(1).standard_normal((300, 384)).astype(numpy.float32)
    rows[7] = 0
    rows[8:] /= numpy.linalg.norm(rows[8:], axis=1, keepdims=True)
    numbers, held = numpy.arange(300), rows
    for _ in range(3):
        with batos.built_file(batos.Vectors(numbers, held), str(tmp_path)) as built:
            arrays = batos._map_arrays(built.path, built.sha256)
            assert pathlib.Path(built.path).stat().st_size < 300 * (384 + 8 + 2) + 1000
            assert set(arrays) == {"numbers", "vectors"} and arrays["vectors"].dtype == numpy.float32
            assert held is rows or (arrays["vectors"] == held).all()
            held = numpy.array(arrays["vectors"])
    assert not held[7].any() and numpy.abs(held[8:] @ rows[8:].T - rows[8:] @ rows[8:].T).max() < 0.002


def test_what_is_held_is_found_and_nothing_of_it_is_written(memory):
    fill(memory)
    size = memory.image.size()
    assert hold(memory) == 5 and waiting(memory) == 0 and memory.look(lambda catalog: len(catalog.vectors)) == 0
    before = found(memory, "alloy cock")
    assert memory.image.size() == size and {"d0", "d1"} <= set(before) and hold(memory) == 0
    assert store(memory, every=False) == 0
    assert store(memory) == 5 and store(memory) == 0 and memory.look(lambda catalog: len(catalog.vectors)) == 1
    assert found(memory, "alloy cock") == before and waiting(memory) == 0 and memory.faults() == []


def test_what_is_held_of_a_document_that_goes_is_held_no_more(memory):
    fill(memory)
    hold(memory)
    memory.change(lambda catalog: batos.unindex_document_(catalog, "d0"))
    assert "d0" not in found(memory, "alloy cock") and waiting(memory) == 0
    memory.add("d5", "A tap.")
    assert waiting(memory) == 1 and hold(memory) == 1
    with batos.reading(memory.image) as root:
        assert len(batos._HELD[root._p_jar.db()].rows) == 5
    assert store(memory) == 5 and memory.faults() == []


def test_as_many_as_fill_a_pack_are_stored(memory, monkeypatch):
    monkeypatch.setattr(batos, "_HELD_MOST", 5)
    fill(memory)
    assert hold(memory, 4) == 4 and store(memory, every=False) == 0
    assert hold(memory, 4) == 1 and store(memory, every=False) == 5


def test_what_is_held_ends_the_time_of_another_embedder(memory):
    fill(memory)
    embed(memory, embedder=QuickEmbedder("former"))
    assert take(memory, DOUBLE.name) == (5, 5)
    assert hold(memory, 3) == 3 and store(memory, every=False) == 0
    assert hold(memory, 3) == 2 and store(memory, every=False) == 5 and made_by(memory) == [(DOUBLE.name, 5)]


def test_an_older_snapshot_is_searched_with_what_is_held(memory):
    fill(memory)
    vector = DOUBLE.query("alloy cock")
    with batos.reading(memory.image) as root:
        hold(memory)
        assert batos.held_vectors(root["knowledge_catalog_obj"], None).numbers.tolist()
        store(memory)
        rows = batos.search_(root["knowledge_catalog_obj"], "alloy cock", 10, vector=vector)["results"]
    assert [row["chunk"]["doc_id"] for row in rows] == found(memory, "alloy cock")


def test_a_lane_that_ends_stores_what_it_holds(tmp_path):
    machine = Machine(tmp_path)
    machine.ingest("small", "The brass valve is turned.")
    lane = batos.EmbeddingLane(machine.image, machine.bulk, DOUBLE)
    lane.start()
    end_s = time.monotonic() + 300
    while machine.look(batos.count_waiting):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    assert machine.look(lambda catalog: (len(catalog.vectors), sum(catalog.unembedded.values()))) == (0, 1)
    lane.close()
    assert machine.look(lambda catalog: (len(catalog.vectors), sum(catalog.unembedded.values()))) == (1, 0)
    machine.close()


STEPS = st.lists(st.tuples(st.sampled_from(["add", "add", "remove", "embed", "hold", "store", "merge", "words"]),
                           st.integers(0, 4), st.integers(0, 4)), max_size=20)


@pytest.mark.slow
@given(STEPS)
@settings(max_examples=40, deadline=None)
def test_whatever_comes_each_chunk_has_one_vector_or_waits(tmp_path_factory, steps):
    memory, model = Memory(tmp_path_factory.mktemp("memory")), {}
    for kind, n, m in steps:
        if kind == "add":
            model[f"d{n}"] = TEXTS[m]
            memory.add(f"d{n}", TEXTS[m])
        elif kind == "remove" and model.pop(f"d{n}", None):
            memory.change(lambda catalog, n=n: batos.unindex_document_(catalog, f"d{n}"))
        elif kind == "embed":
            embed(memory, m + 1)
        elif kind == "hold":
            hold(memory, m + 1)
        elif kind == "store":
            store(memory)
        elif kind == "merge" and memory.look(lambda catalog: len(catalog.vectors)):
            merge_vectors(memory)
        elif kind == "words":
            memory.merge()
        assert memory.faults() == []
    while hold(memory):
        assert memory.faults() == []
    assert set(found(memory, "alloy cock")) == set(model)
    memory.close()


class SlowEmbedder(QuickEmbedder):
    """Tells how many texts it was given, and closes a lane amid them."""

    lane, given = None, 0

    def embed(self, texts, patient=False, stopped=lambda: False):
        for start in range(0, len(texts), batos._EMBEDDED_AT_ONCE):
            if stopped():
                raise batos.CoreOffline("stopped")
            self.given += len(texts[start:start + batos._EMBEDDED_AT_ONCE])
            if self.lane and self.given >= 2 * batos._EMBEDDED_AT_ONCE:
                self.lane._closing.set()
        return super().embed(texts)


def test_the_lane_embeds_what_waits_and_stops_soon(tmp_path):
    machine, embedder = Machine(tmp_path), SlowEmbedder()
    machine.ingest("large", "\n".join(f"# Part {n}\n\n" + f"The brass valve of part {n} is turned. " * 12 for n in range(150)))
    embedder.lane = lane = batos.EmbeddingLane(machine.image, machine.bulk, embedder)
    lane.start()
    lane._thread.join(60)
    assert not lane._thread.is_alive() and embedder.given == 2 * batos._EMBEDDED_AT_ONCE
    assert machine.look(batos.count_waiting) == 150 and machine.faults() == []
    embedder.lane = None
    lane = batos.EmbeddingLane(machine.image, machine.bulk, embedder)
    lane.start()
    end_s = batos.time.monotonic() + 300
    while machine.look(batos.count_waiting):
        assert batos.time.monotonic() < end_s
        batos.time.sleep(0.02)
    lane.close()
    assert machine.faults() == []
    machine.close()


def test_small_documents_are_cut_by_meaning_and_again_on_request(tmp_path):
    """QuickEmbedder knows that a valve is a tap; words alone do not."""
    machine = Machine(tmp_path)
    paragraph = {"a": "The tap of the boiler stands beside the door of the room where nobody goes at night. ",
                 "b": "A lantern of the tower burns above the stairs of the house that everybody sees at dusk. "}
    text = "\n\n".join(paragraph[topic] * 2 for topic in "aaabbb")

    def learn(embedder=None, **more):
        command = batos.IndexDocumentCommand(command="index_document", doc_id="d", text=text, **more)
        ingest = batos.Ingest(command, batos.load_settings({}, {}), embedder)
        outcome = machine.bulk.call(batos.Job("index_document", ingest.apply, before=ingest.before, after=ingest.after))
        return outcome.result["result"]
    asked = []

    class Watched(QuickEmbedder):
        def about(self, texts):
            asked.append(len(texts))
            return super().about(texts)
    assert learn(Watched())["version"] == 1 and asked == [12]    # sentences
    assert learn(Watched())["unchanged"] and asked == [12]
    again = learn(Watched(), rechunk=True)
    assert again["version"] == 2 and not again["unchanged"] and asked == [12, 12]
    assert learn(rechunk=True)["version"] == 3 and asked == [12, 12]
    starts = machine.look(lambda catalog: [chunk.line_start for chunk in catalog.chunk_storage.values()])
    assert starts == [1, 7] and machine.faults() == []
    assert machine.look(lambda catalog: batos.open_chunk(catalog, "d", 1, 0).text.startswith("The tap"))
    machine.close()


# Summaries


class Writer:
    """Stands for a core that writes freely."""

    writes, state = True, "ready"

    def __init__(self):
        self.asked = []

    def infer_(self, prompt, **how):
        self.asked.append(prompt)
        if "poison" in prompt:
            raise batos.CoreFailed("the core failed")
        return " It is about a valve. "


def test_a_core_that_writes_sums_up_what_was_shown_once(tmp_path):
    machine, core = Machine(tmp_path), Writer()
    lane = batos.SummaryLane(machine.image, machine.bulk, core)
    lane.start()
    machine.ingest("poison", "The poison of the tap.")
    machine.ingest("d", "The brass valve is turned until the needle stands at zero.")

    def shown():
        rows = machine.look(lambda catalog: batos.LEVELS["document"].rows(
            catalog, batos.fold(batos.search_(catalog, "valve poison", 9)["results"]), "valve poison"))
        lane.want(rows)
        return {row["chunk"]["doc_id"]: row["document"]["written"] for row in rows}
    assert shown() == {"d": "", "poison": ""}
    end_s = time.monotonic() + 300
    while shown() != {"d": "It is about a valve.", "poison": ""}:
        assert time.monotonic() < end_s
        time.sleep(0.02)
    lane.close()
    assert sum("needle" in prompt for prompt in core.asked) <= 2 and machine.faults() == []
    machine.ingest("d", "The valve is gone.")
    assert shown()["d"] == ""
    machine.close()


def test_a_summary_keeps_what_its_source_bears_out():
    source = "The pump of Mara Quill lifts 40 litres. It was never oiled."
    cases = {"The pump lifts 40 litres.": True, "The pump lifts 50 litres.": False, "The pump of Bob lifts.": False,
             "The pump lifts 40": False, "Whales sing in oceans of milk.": False}
    for told, kept in cases.items():
        assert batos.borne_out(told, source) == told * kept, told
    assert batos.borne_out("The pump lifts. The pump lifts. The pump lif", source) == "The pump lifts."


def test_the_embedded_core_names_the_sentence_that_tells_most(tmp_path):
    machine, core = Machine(tmp_path), doubles.QuickCore()
    asked, core.values = [], {"summary": lambda fields: (asked.append(fields), {"sentence": 2})[1]}
    lane = batos.SummaryLane(machine.image, machine.bulk, core)
    lane.start()
    telling = "The thin needle of the valve moves slowly behind clear glass."
    machine.ingest("d", f"The brass valve is turned until the needle stands at zero. {telling}")
    machine.ingest("empty", "Short.")
    for doc_id in ("empty", "d"):
        lane.want([{"document": {"written": ""}, "chunk": {"doc_id": doc_id, "version": 1}}])
    end_s = time.monotonic() + 300
    while not machine.look(lambda catalog: catalog.documents["d"].summary):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    lane.close()
    assert machine.look(lambda catalog: catalog.documents["d"].summary) == telling
    assert machine.look(lambda catalog: catalog.documents["empty"].summary) in ("", None) and len(asked) == 1
    assert len(asked[0]["passage"]) == len(asked[0]["shares"]) == 2
    core.state = "loading"
    lane.want([{"document": {"written": ""}, "chunk": {"doc_id": "d", "version": 1}}])
    assert lane._wanted.empty()
    machine.close()


def test_telling_shares_are_of_the_words_that_sentences_hold_together():
    shares = batos.telling_shares(["The old pump lifts water.", "The pump is old.", "Bread needs flour."])
    assert shares[0] > shares[1] > shares[2] > 0 and batos.telling_shares([]) == []


# The real model

def test_the_installed_embedder_is_the_one_we_know():
    assert batos._embedder_fingerprint(batos.installed_embedder()) == batos._EMBEDDER


def test_altered_files_are_not_run_and_words_alone_serve(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(batos.installed_embedder(), folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    monkeypatch.setattr(batos, "installed_embedder", lambda: folder)
    embedder = batos.Embedder("auto")
    embedder.start()
    embedder.close(60)
    assert embedder.state == "failed" and "words alone" in embedder.progress and "not those of" in embedder.progress
    assert embedder.query("valve") is None
    with pytest.raises(batos.CoreOffline, match="failed"):
        embedder.embed(["valve"])
    assert batos._embedder_fingerprint(folder) not in (None, batos._EMBEDDER)      # by its folder it may be named
    (folder / "model.safetensors").unlink()
    with pytest.raises(batos.ConfigError, match="model.safetensors"):
        batos._embedder_fingerprint(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The folder of a real model of sentence-transformers that knows nothing: two layers, 64 numbers, and words said first."""
    sentence_transformers, transformers = pytest.importorskip("sentence_transformers"), pytest.importorskip("transformers")
    model, known = tmp_path_factory.mktemp("model") / "tiny-bert", batos.installed_embedder()
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.BertModel(transformers.BertConfig(vocab_size=30522, **shape)).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (known / name).is_file():
            shutil.copy(known / name, model / name)
    made = sentence_transformers.SentenceTransformer(str(model), device="cpu")
    made.prompts = {"query": "asked: ", "document": "told: "}
    made.save(str(model))
    return model


def loaded(wanted):
    embedder = batos.Embedder(str(wanted))
    embedder.start()
    embedder.close(60)
    return embedder


ENCODED = """
import sys
import batos, numpy
own = batos.PlainEncoder(batos.installed_embedder())
heavy = {"sklearn", "scipy", "sentence_transformers", "torch._dynamo"}
assert heavy.isdisjoint(sys.modules), "what it need not import"
import sentence_transformers
other = sentence_transformers.SentenceTransformer(str(batos.installed_embedder()), device="cpu", local_files_only=True)
texts = ["How long does the mast run?", "  The brass valve. ", "x" * 3000, "word " * 600, "\u00e9 \u65e5\u672c", ""]
for least in (1 - 1e-6, 1 - 1e-3):
    mine, its = own.encode(texts), other.encode(texts, prompt="", show_progress_bar=False).astype("float32")
    assert mine.dtype == numpy.float32 and ((mine * batos.unit_rows(its)).sum(1) > least).all()
    own.bfloat16(), other.bfloat16()
assert own.dtype == other.dtype
"""


@pytest.mark.slow
def test_the_embedder_encodes_as_sentence_transformers_does_without_it():
    pytest.importorskip("sentence_transformers")
    done = subprocess.run([sys.executable, "-c", ENCODED], cwd=pathlib.Path(batos.__file__).parent, capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_embedder_is_named_by_its_folder_its_package_or_its_name(tiny_model, tmp_path, monkeypatch):
    embedder = loaded(tiny_model)
    assert embedder.state == "ready" and embedder.progress == "the embedder tiny-bert is ready"
    assert embedder.name != batos._EMBEDDER
    asked, told = embedder.query("a valve"), embedder.embed(["a valve", "asked: a valve"])
    assert asked.shape == (64,) and abs(asked @ told[0]) < 0.9999
    embedder.before_text = ""
    numpy.testing.assert_allclose(embedder.embed(["asked: a valve"])[0], asked, atol=1e-2)
    shutil.copytree(tiny_model, tmp_path / "gt_tiny_bert" / "model")
    (tmp_path / "gt_tiny_bert" / "__init__.py").write_text("raise SystemExit('it is not imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("tiny-bert", "gt-tiny-bert", "makers/tiny-bert"):
        assert batos._embedder_folder(name) == tmp_path / "gt_tiny_bert" / "model"
    assert batos._embedder_fingerprint(batos._embedder_folder("tiny-bert")) == embedder.name
    (tmp_path / "gt_tiny_bert" / "model" / "config_sentence_transformers.json").write_text("{}")
    assert batos._embedder_fingerprint(batos._embedder_folder("tiny-bert")) != embedder.name       # its prompts count
    assert batos._embedder_folder("all-MiniLM-L6-v2") == batos._embedder_folder("auto") == batos.installed_embedder()
    missing = loaded("no/such model")
    assert missing.state == "failed" and "no embedder no/such model" in missing.progress and "hub's cache" in missing.progress


def embedded(client, name):
    """Wait until every chunk has its vector of another embedder than `name`; returns how health told of it meanwhile."""
    end_s, told = batos.time.monotonic() + 300, []
    while not told or told[-1]["state"] != "ready" or told[-1]["waiting"] != 0 or told[-1]["name"] == name:
        told.append(client.call("health")["result"]["embedder"])
        assert batos.time.monotonic() < end_s and told[-1]["state"] != "failed", told[-1]
        batos.time.sleep(0.05)
    return told


@pytest.mark.slow
def test_a_daemon_goes_over_to_another_embedder_through_a_kill_and_back(daemon, tmp_path, tiny_model):
    """Search answers all the while; the vectors that are there at the end are all of the one embedder."""
    text = "The brass valve number {} stands beside the lamp of the room where nobody goes at night. " + "It is old. " * 30
    running = daemon("--embedder", str(tiny_model))
    with batos.Client(running.endpoint, timeout_s=60) as client:
        for n in range(batos._EMBEDDED_A_PART + 90):
            client.call("index_document", doc_id=f"d{n}", text=text.format(n))
        first = embedded(client, None)[-1]["name"]
    assert running.stop() == 0 and embedders_in(tmp_path) == {first}
    running = daemon("--embedder", "auto")
    with batos.Client(running.endpoint, timeout_s=60) as client:
        end_s = batos.time.monotonic() + 300
        while "passages anew" not in client.call("health")["result"]["embedder"]["progress"]:
            assert client.call("search_memory", query="number 77")["results"][0]["chunk"]["doc_id"] == "d77"
            assert batos.time.monotonic() < end_s
    running.process.kill()
    running.process.wait()
    running = daemon("--embedder", "all-MiniLM-L6-v2")
    with batos.Client(running.endpoint, timeout_s=60) as client:
        assert embedded(client, first)[-1]["name"] == batos._EMBEDDER
        assert "anew" not in client.call("health")["result"]["embedder"]["progress"]
        assert client.call("search_memory", query="number 77")["results"][0]["why"]["rank_by_meaning"]
    assert running.stop() == 0 and embedders_in(tmp_path) == {batos._EMBEDDER}
    running = daemon("--embedder", str(tiny_model))
    with batos.Client(running.endpoint, timeout_s=60) as client:
        embedded(client, batos._EMBEDDER)
    assert running.stop() == 0 and embedders_in(tmp_path) == {first}


def embedders_in(folder):
    """Return the names of those whose vectors an image holds, which has no fault."""
    path = str(folder / "live_image.fs")
    assert batos.check_image(path, deep=True)["faults"] == []
    image = batos.Image.open(path)
    with batos.reading(image) as root:
        names = {pack.embedder for pack in root["knowledge_catalog_obj"].vectors.values()}
    image.close()
    return names


@pytest.mark.slow
def test_who_asks_goes_before_what_waits():
    embedder, done = batos.Embedder("auto"), threading.Event()
    embedder.start()
    embedder.close(60)
    rows = [f"The valve number {n} is turned until the needle stands at zero. " * 4 for n in range(320)]
    order = []

    def embed_all():
        embedder.embed(rows, patient=True)
        order.append("all")
        done.set()
    threading.Thread(target=embed_all).start()
    vectors = embedder.queries(["What is turned?", "What is turned?", "Who turns it?"])
    order.append("asked")
    assert done.wait(120) and order == ["asked", "all"] and len(vectors) == 2
    embedder.state = "off"
    assert embedder.queries(["What is turned?"]) == {} and embedder.query("What is turned?") is None


@pytest.mark.slow
def test_the_core_and_the_embedder_may_be_loaded_at_once():
    done = threading.Event()

    def load_embedders():
        while not done.is_set():
            embedder = batos.Embedder("auto")
            embedder.start()
            embedder.close(60)

    loading = threading.Thread(target=load_embedders)
    loading.start()
    try:
        for _ in range(3):                               # each raises DamagedImage where two loads mix
            batos.load_core(batos.SEED_CORE)
    finally:
        done.set()
        loading.join()


@pytest.mark.slow
def test_a_daemon_finds_by_meaning(daemon, tmp_path):
    running = daemon("--embedder", "auto")
    with batos.Client(running.endpoint, timeout_s=60) as client:
        for n, text in enumerate(["The cat sat on the mat.", "Turn the brass valve until the needle stands at zero.",
                                  "Invoices are paid within thirty days."]):
            client.call("index_document", doc_id=f"d{n}", text=text)
        end_s = batos.time.monotonic() + 300
        while (told := client.call("health")["result"]["embedder"])["state"] == "loading" or told["waiting"] != 0:
            assert batos.time.monotonic() < end_s and told["state"] != "failed", told
            batos.time.sleep(0.1)
        rows = client.call("search_memory", query="when must a bill be settled")["results"]
        assert rows[0]["chunk"]["doc_id"] == "d2" and rows[0]["why"]["rank_by_meaning"] == 1
    assert running.stop() == 0
    assert batos.check_image(str(tmp_path / "live_image.fs"), deep=True)["faults"] == []


def test_what_the_user_taught_is_embedded_before_what_the_system_says_of_itself(memory):
    memory.change(lambda catalog: batos.store_document(catalog, "batos/README.md", "A pump.", scope="self"))
    fill(memory)
    order = memory.look(lambda catalog: [number for number, _ in batos.waiting_chunks(catalog, 100)])
    assert order == [2, 3, 4, 5, 6, 1]
    assert embed(memory, 3) == 3 and waiting(memory) == 3 and memory.faults() == []
    assert embed(memory, 2) == 2 and embed(memory) == 1 and waiting(memory) == 0 and memory.faults() == []


def test_texts_of_one_length_are_embedded_together_and_come_back_in_their_order():
    embedder, batches = batos.Embedder(), []

    def encoded(texts):
        batches.append([len(text) for text in texts])
        return numpy.array([[len(text), 1.0] for text in texts], numpy.float32)
    embedder.state, embedder._encoded = "ready", encoded
    lengths = [(7 * n) % 50 + 1 for n in range(40)]
    rows = embedder.embed(["x" * length for length in lengths])
    assert rows[:, 0].tolist() == lengths and list(map(len, batches)) == [16, 16, 8]
    assert [length for batch in batches for length in batch] == sorted(lengths)
    with pytest.raises(batos.CoreOffline, match="stopped"):
        embedder.embed(["x"], stopped=lambda: True)


@pytest.mark.slow
def test_no_bars_of_progress_are_drawn_where_models_are_loaded(capfd):
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.enable_progress_bar()
    folder = batos.installed_embedder()
    for load in (batos.PlainEncoder, batos.new_reader_model):
        load(folder)
        assert "Loading" not in capfd.readouterr().err
