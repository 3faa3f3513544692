"""A reader's process beside a daemon: what it answers, what it refuses, and that nothing of the image is changed by it."""

import concurrent.futures
import json
import pathlib

import doubles
import engines
import ormsgpack
import pytest
from test_autotelic import Kept
from test_following import files_of

import batos

NOTE = "Turn the brass valve until the needle stands at zero."


def reader_beside(daemon, one):
    return daemon("--read-only", "--image", str(one.folder / "live_image.fs"))


def test_it_answers_what_the_writer_stored_and_says_as_of_when(daemon):
    one = daemon()
    other = reader_beside(daemon, one)
    with batos.Client(one.endpoint) as writer, batos.Client(other.endpoint) as reader:
        change = writer.call("index_document", doc_id="valve.md", text=NOTE)["change"]
        found = reader.call("search_memory", query="brass valve", after=change)
        assert "brass valve" in found["results"][0]["chunk"]["text"] and found["as_of"] >= change[:16]
        rows = reader.call("list_documents", prefix="valve", after_change=change)["results"]
        assert [row["doc_id"] for row in rows] == ["valve.md"]
        assert reader.call("inspect", target="genesis_obj")["result"] == writer.call("inspect", target="genesis_obj")["result"]
        assert reader.call("history")["results"][0]["change"] == writer.call("history")["results"][0]["change"]
        assert reader.call("list_cycles")["results"] == []
        health = reader.call("health")["result"]
        assert health["state"] == "reading" and health["writer"] == one.endpoint


def test_what_changes_or_thinks_is_told_where_to_go(daemon):
    one = daemon()
    other = reader_beside(daemon, one)
    with batos.Client(other.endpoint) as reader:
        for name, fields in (("index_document", {"doc_id": "a", "text": NOTE}), ("shutdown", {}), ("subscribe", {}),
                             ("send_message", {"target": "genesis_obj", "selector": "infer_", "args": ["How?"]})):
            with pytest.raises(batos.ReadOnly, match=one.endpoint) as told:
                reader.call(name, **fields)
            assert told.value.fields["writer"] == one.endpoint
        with pytest.raises(batos.Behind):
            reader.call("health", after="f" * 16)
        with pytest.raises(batos.NotFound):
            reader.call("inspect", target="nowhere_obj")
        assert one.stop() == 0
        with pytest.raises(batos.ReadOnly, match="no daemon writes"):
            reader.call("shutdown")
    assert other.stop() == 0


@pytest.mark.parametrize("words", [["stop"], ["undo", "0400000000000000.0"]])
def test_on_the_command_line_it_is_said_of_what_was_typed(daemon, capsys, words):
    one = daemon()
    other = reader_beside(daemon, one)
    assert batos.main([*words, "--endpoint", other.endpoint]) == 1
    assert f"{words[0]} is not answered by a reader" in capsys.readouterr().err


@pytest.mark.slow
def test_it_goes_on_through_a_pack_a_kill_and_a_restart_of_the_writer(daemon):
    one = daemon()
    other = reader_beside(daemon, one)
    with batos.Client(other.endpoint) as reader:
        with batos.Client(one.endpoint) as writer:
            for number in range(5):
                change = writer.call("index_document", doc_id=f"{number}.md", text=f"{NOTE} Number {number}.")["change"]
            writer.call("pack", days=0)
            assert len(reader.call("list_documents", after_change=change)["results"]) >= 5
        one.stop(kill=True)
        assert reader.call("search_memory", query="brass valve")["results"]
        again = daemon()
        with batos.Client(again.endpoint) as writer:
            change = writer.call("index_document", doc_id="later.md", text="The later one is of copper.")["change"]
        assert reader.call("search_memory", query="copper", after=change)["results"]


def test_nothing_of_the_image_is_changed_by_it(daemon, tmp_path):
    one = daemon()
    with batos.Client(one.endpoint) as writer:
        writer.call("index_document", doc_id="valve.md", text=NOTE)
    assert one.stop() == 0
    image = files_of(tmp_path)
    other = reader_beside(daemon, one)
    with batos.Client(other.endpoint) as reader:
        assert reader.call("search_memory", query="brass valve")["results"] and reader.call("history")["results"]
    assert other.stop() == 0
    assert files_of(tmp_path) == image and pathlib.Path(tmp_path / "live_image.fs").exists()


@pytest.mark.parametrize("data, told", [
    (None, "there is no image at"), (b"", "there is no image at"),
    (b"nothing that we wrote" * 9, "does not begin as a data file"),
])
def test_what_is_no_image_is_refused_by_what_it_is(tmp_path, capsys, data, told):
    path = tmp_path / "other.fs"
    if data is not None:
        path.write_bytes(data)
    endpoint = f"ipc://{tmp_path}/s"
    assert batos.main(["--read-only", "--image", str(path), "--endpoint", endpoint]) == 1
    said = capsys.readouterr().err
    assert told in said and str(path) in said


# Questions, thought in memory

QUESTION = "How is the brass valve turned?"


class Beside:
    """A mind with a double of a core, and a reader of its image in the same process."""

    def __init__(self, folder, core=None, **settings):
        self.kept = Kept(folder, doubles.QuickCore())
        self.image = batos.FollowedImage(f"{folder}/image.fs")
        self.reader = batos.ImageReader(self.image, batos.load_settings({"embedder": "none", **settings}, {}))
        self.core = core or doubles.QuickCore()
        self.reader.core._mind = batos.PassingMind(self.image, self.core, self.reader.settings, self.reader.embedder)
        self.reader.core._folder = self

    def cleanup(self):
        """There is no folder."""

    def learn(self, name="valve.md", text=NOTE):
        outcome = self.kept.uvm.lanes["bulk"].call(batos.Job("learn", lambda root: batos.index_document_(
            root["knowledge_catalog_obj"], name, text)["chunks"]))
        return outcome.change

    def ask(self, text=QUESTION, **more):
        brief = {"type": "direct_synthesis", "selector": "answer_", "args": [text], **more.pop("brief", {})}
        fields = {"command": "initiate_cognitive_cycle", "id": 1, "mission_brief": brief, **more}
        return ormsgpack.unpackb(self.reader.answer(ormsgpack.packb(fields)))

    def close(self):
        self.reader.close()
        self.image.close()
        self.kept.close()


@pytest.fixture
def beside(tmp_path):
    made = []

    def make(*given, **settings):
        made.append(Beside(tmp_path, *given, **settings))
        return made[-1]
    yield make
    for one in made:
        one.close()


def test_a_question_is_answered_as_the_writer_would_and_nothing_is_kept(beside, tmp_path):
    one = beside()
    change = one.learn()
    before = files_of(tmp_path)
    told = one.ask(wait=True, idempotency_key=batos.uuid7(), after=change)
    assert told["status"] == "OK", told
    assert told["as_of"] >= change[:16]
    report = told["result"]
    assert report["state"] == "COMPLETE" and report["remembered"] is False and "cycle" not in report
    assert report["evidence"][0]["doc_id"] == "valve.md" and "brass valve" in report["answer"]
    assert files_of(tmp_path) == before
    with batos.reading(one.kept.image) as root:
        assert len(root["missions"]) == len(root["journals"]) == 0
        assert list(root["knowledge_catalog_obj"].documents) == ["valve.md"]
    brief = {"type": "direct_synthesis", "selector": "answer_", "args": [QUESTION]}
    one.kept.write(lambda root: batos.cycle_id(batos.send(root["orchestrator_obj"], "start_cognitive_cycle_for_", brief)))
    own = one.kept.reports(1)[0]
    assert (own["answer"], own["relevant"]) == (report["answer"], report["relevant"])
    assert [item["text"] for item in own["evidence"]] == [item["text"] for item in report["evidence"]]


def test_what_memory_does_not_hold_is_refused_as_everywhere(beside):
    one = beside()
    one.learn()
    report = one.ask("What do giraffes eat?")["result"]
    assert report["relevant"] is False and "giraffes" in report["answer"]


@pytest.mark.parametrize("brief", [
    {"type": "unhandled_message", "selector": "mean_"}, {"type": "self_audit", "selector": "analyze_and_resolve_cycle_failures"},
    {"type": "systemic_self_improvement", "selector": "perform_cognitive_efficiency_audit"},
])
def test_a_miss_or_what_changes_something_is_for_the_writer(beside, brief):
    told = beside().ask(brief=brief)
    assert told["status"] == "ERROR" and told["code"] == "ReadOnly" and told["fields"]["writer"] is None


def test_where_the_core_fails_its_passages_are_told(beside):
    class Failing(doubles.QuickCore):
        def infer(self, requests):
            raise batos.CoreFailed("it fails")
    one = beside(Failing())
    one.learn()
    report = one.ask()["result"]
    assert report["words"] is False and report["evidence"] and report["why_no_words"]["code"] == "CoreFailed"


def test_questions_of_one_moment_are_each_answered(beside):
    one, things = beside(), ("boiler", "lantern", "anchor", "compass", "bellows", "ladle")
    for thing in things:
        one.learn(f"{thing}.md", f"The {thing} is cleaned by the cook.")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda thing: one.ask(f"Who cleans the {thing}?"), things))
    assert [reply["result"]["evidence"][0]["doc_id"] for reply in told] == [f"{thing}.md" for thing in things]


def test_too_many_questions_are_busy_and_reads_go_on(beside):
    class Slow:
        settings = batos.load_settings({"workers": 1}, {})

        def __init__(self):
            self.go = batos.threading.Event()

        def answer(self, payload):
            if b"initiate" in payload:
                self.go.wait(60)
            return payload

        def refusal(self, payload, error):
            return type(error).__name__.encode()
    slow = Slow()
    answering = batos._Answering(slow, slow.settings)
    for _ in range(batos._ASKED_MOST + 1):
        answering.take([b"a"], ormsgpack.packb({"command": "initiate_cognitive_cycle"}))
    told = list(answering.replies())
    assert told == [[b"a", b"Busy"]]
    answering.take([b"b"], b"health")
    while not (told := list(answering.replies())):
        continue
    assert told == [[b"b", b"health"]]
    slow.go.set()
    answering.close()


def test_without_a_core_a_question_says_so_and_health_how_it_is(daemon):
    one = daemon()
    other = reader_beside(daemon, one)
    with batos.Client(other.endpoint) as reader:
        assert reader.call("health")["result"]["core"]["state"] == "asleep"
        brief = {"type": "direct_synthesis", "selector": "answer_", "args": [QUESTION]}
        with pytest.raises(batos.CoreOffline):
            reader.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)


@pytest.mark.slow
def test_the_real_core_answers_at_a_reader_on_the_command_line(daemon, capsys):
    one = daemon(core="auto")
    other = daemon("--read-only", "--image", str(one.folder / "live_image.fs"), core="auto")
    with batos.Client(one.endpoint) as writer:
        writer.call("index_document", doc_id="valve.md", text=NOTE)
    assert batos.main(["ask", QUESTION, "--endpoint", other.endpoint]) == 0
    assert "brass valve" in capsys.readouterr().out
    assert batos.main(["ask", QUESTION, "--endpoint", other.endpoint, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["remembered"] is False
    with batos.Client(other.endpoint) as reader:
        assert reader.call("health")["result"]["core"]["state"] == "ready"
        assert reader.call("list_cycles")["results"] == []


# Images that an engine keeps

def beside_an_engine(daemon, uri):
    one = daemon("--image", uri, "--lease-s", "2")
    other = daemon("--read-only", "--image", uri)
    with batos.Client(one.endpoint) as writer, batos.Client(other.endpoint) as reader:
        change = writer.call("index_document", doc_id="valve.md", text=NOTE)["change"]
        found = reader.call("search_memory", query="brass valve", after=change)
        assert "brass valve" in found["results"][0]["chunk"]["text"] and found["as_of"] >= change[:16]
        later = writer.call("index_document", doc_id="pump.md", text="The pump is of copper.")["change"]
        assert reader.call("search_memory", query="copper", after=later)["results"]
        assert reader.call("history", after=later)["results"][0]["change"] == later
        with pytest.raises(batos.Behind):
            reader.call("health", after="f" * 16)
        with pytest.raises(batos.ReadOnly, match=one.endpoint):
            reader.call("unindex_document", doc_id="valve.md")
        assert reader.call("health")["result"]["writer"] == one.endpoint
    assert one.stop() == 0
    with batos.Client(other.endpoint) as reader:
        assert reader.call("health")["result"]["writer"] is None
    assert other.stop() == 0


def test_a_reader_reads_what_a_storage_server_keeps(daemon, server):
    beside_an_engine(daemon, server().uri)


@pytest.mark.skipif(engines.INITDB is None, reason="no PostgreSQL server is installed (apt install postgresql)")
def test_a_reader_reads_what_postgresql_keeps(daemon):
    cluster = engines.Cluster()
    try:
        beside_an_engine(daemon, cluster.database("read"))
    finally:
        cluster.close()


def test_where_an_engine_keeps_no_image_yet_that_is_said(server, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert batos.main(["--read-only", "--image", server().uri, "--endpoint", f"ipc://{tmp_path}/s"]) == 1
    assert "there is no image at zeo://" in capsys.readouterr().err
