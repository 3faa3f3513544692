"""Large documents: stored in parts, seen with the last; what is never published is swept."""

import pathlib
import threading
import time

import pytest
from test_backup import new_image

import batos


def text_of(chapters, word="brass"):
    return "\n".join(f"# Chapter {n}\n\n" + f"The {word} valve of chapter {n} is turned until the needle stands. " * 12 + "\n"
                     for n in range(chapters))


class Machine:
    """An image with a write and a bulk lane."""

    def __init__(self, folder, where=None):
        self.image = batos.Image.open(where) if where else new_image(folder)
        if where:
            batos.genesis(self.image)
        self.settings, token = batos.load_settings({}, {}), batos.WriteToken()
        self.write = batos.WriteLane(self.image, token, self.settings).start()
        self.bulk = batos.BulkLane(self.image, token, self.settings).start()

    def ingest(self, doc_id, text, around=lambda run: run):
        command = batos.IndexDocumentCommand(command="index_document", doc_id=doc_id, text=text)
        ingest = batos.Ingest(command, self.settings)
        job = batos.Job("index_document", ingest.apply, before=lambda run: ingest.before(around(run)), after=ingest.after)
        return self.bulk.call(job, 60).result["result"]

    def look(self, function):
        with batos.reading(self.image) as root:
            return function(root["knowledge_catalog_obj"])

    def sweep(self):
        times = 1
        while self.bulk.call(batos.Job("sweep", lambda root: batos.sweep(root["knowledge_catalog_obj"]))).result:
            times += 1
        return times

    def faults(self):
        with batos.reading(self.image) as root:
            return [*batos.catalog_faults(root), *batos.ledger_faults(root)]

    def close(self):
        for lane in (self.write, self.bulk):
            lane.close()
        self.image.close()


@pytest.fixture
def one(tmp_path):
    machine = Machine(tmp_path)
    yield machine
    machine.close()


def found(catalog, query="brass valve"):
    return [row["chunk"]["doc_id"] for row in batos.search_(catalog, query)["results"]]


def test_a_large_document_is_seen_with_its_last_part(one):
    seen, sizes = [], []

    def around(run):
        def looking(function):
            result = run(function)
            seen.append(one.look(lambda catalog: (found(catalog), "large" in catalog.documents)))
            sizes.append(one.look(lambda catalog: len(catalog.chunk_storage)))
            assert one.faults() == []
            return result
        return looking
    stored = one.ingest("large", text_of(500), around)
    assert stored["chunks"] == 500 and stored["version"] == 1
    assert seen == [([], False)] * 5 and sizes == [0, 0, 200, 400, 500]
    assert one.look(found)[0] == "large" and one.faults() == []
    assert one.look(lambda catalog: batos.open_chunk(catalog, "large", 1, 499).text).startswith("# Chapter 499")


def test_in_parts_or_at_once_it_is_the_same_document(one):
    text = text_of(450)
    one.ingest("parts", text)
    one.bulk.call(batos.Job("at once", lambda root: batos.index_document_(root["knowledge_catalog_obj"], "once", text)["chunks"]))

    def chunks(catalog, doc_id):
        document = catalog.documents[doc_id]
        return [(chunk.text, chunk.headings, chunk.line_start, chunk.line_end, chunk.index)
                for chunk in map(catalog.chunk_storage.get, document.numbers)]
    assert one.look(lambda catalog: chunks(catalog, "parts") == chunks(catalog, "once"))
    assert one.ingest("parts", text)["unchanged"]


def test_a_new_version_replaces_a_large_one_at_once_and_a_merge_leaves_its_words_out(one):
    one.ingest("large", text_of(450))
    assert one.ingest("large", text_of(450, "copper"))["version"] == 2
    assert one.look(lambda catalog: found(catalog, "brass")) == [] and one.look(lambda catalog: found(catalog, "copper"))
    assert one.look(lambda catalog: [segment.dead for segment in catalog.text_index.values()]) == [0] and one.faults() == []
    batos.merge_job(one.image, one.bulk)(lambda line: None)
    assert one.look(lambda catalog: [segment.count for segment in catalog.text_index.values()]) == [450] and one.faults() == []
    assert one.look(lambda catalog: found(catalog, "copper"))
    assert one.look(lambda catalog: batos.open_chunk(catalog, "large", 1, 3).text).startswith("# Chapter 3")
    assert list(pathlib.Path(f"{one.image.path}.blob", "tmp").iterdir()) == []


@pytest.mark.parametrize("parts", [2, 3])
def test_what_fails_amid_its_parts_is_never_seen_and_swept(one, parts):
    count = []

    def around(run):
        def failing(function):
            if len(count) > parts:
                raise batos.ImageError("the disk is full")
            count.append(1)
            return run(function)
        return failing
    one.ingest("small", "brass")
    with pytest.raises(batos.ImageError):
        one.ingest("large", text_of(500), around)
    assert one.look(found) == ["small"] and one.faults() == [] and one.look(batos._leftovers) == 1
    one.sweep()
    assert one.look(batos._leftovers) == 0 and one.faults() == []
    assert one.look(batos.catalog_figures)["chunks"] == 1
    assert one.ingest("large", text_of(500))["version"] == 1 and one.faults() == []


def test_urgent_jobs_come_between_parts_and_a_drain_ends_it(one):
    ran = []

    def around(run):
        def submitting(function):
            one.bulk.submit(batos.Job("urgent", lambda root: ran.append(len(root["knowledge_catalog_obj"].chunk_storage)),
                                      urgent=True))
            if len(ran) == 3:
                one.bulk.end()
            return run(function)
        return submitting
    with pytest.raises(batos.ShuttingDown):
        one.ingest("large", text_of(700), around)
    assert ran[:3] == [0, 0, 200]


@pytest.mark.slow
def test_a_daemon_that_was_killed_amid_a_large_document_sweeps_it(daemon, tmp_path):
    running = daemon()
    text = text_of(4000)

    def send():
        with batos.Client(running.endpoint) as client, pytest.raises(batos.NoReply):
            client.call("index_document", timeout_s=5, doc_id="large", text=text, idempotency_key="k" * 20)
    thread = threading.Thread(target=send)
    thread.start()
    with batos.Client(running.endpoint) as client:
        end_s = time.monotonic() + 300
        while client.call("health")["result"]["lanes"]["bulk"]["commits"] < 3:
            assert time.monotonic() < end_s
            time.sleep(0.005)
    running.stop(kill=True)
    thread.join()
    running = daemon()
    with batos.Client(running.endpoint) as client:
        end_s = time.monotonic() + 300
        while (memory := client.call("get_full_state")["result"].get("memory", {"leftovers": 1}))["leftovers"]:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        assert memory["chunks"] == 0 and memory["documents"] == 0
        again = client.call("index_document", doc_id="large", text=text, idempotency_key="k" * 20)
        assert again["result"]["version"] == 1 and "repeated" not in again
    assert running.stop() == 0
    assert batos.check_image(str(tmp_path / "live_image.fs"), deep=True)["faults"] == []


def test_a_storage_without_blobs_takes_large_documents_too(tmp_path):
    machine = Machine(tmp_path, "memory://")
    with batos.reading(machine.image) as root:
        assert batos.blob_folder(root) is None
    assert machine.ingest("large", text_of(450))["chunks"] == 450
    assert machine.look(found)[0] == "large" and machine.faults() == []
    with batos.reading(machine.image) as root:
        assert not batos.state_view(root)["merge_due"]
    machine.close()
