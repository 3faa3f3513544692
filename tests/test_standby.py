"""A daemon that stands by: what it tells, how it takes an image over, and that the one before can commit nothing more."""

import signal
import threading

import engines
import pytest
from durability import takeover
from test_storage import NOTE, documents_at, refused

import batos


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    running = []

    def start(name, uri, endpoint, lease_s=600.0, stands_by=True):   # nobody is taken for gone who is merely slow
        running.append(engines.Host(tmp_path, name, uri, endpoint, lease_s, stands_by))
        return running[-1]
    yield start
    for one in running:
        one.end(signal.SIGKILL)


def endpoints(count=2):
    return [f"tcp://127.0.0.1:{engines.free_port()}" for _ in range(count)]


def test_who_stands_by_tells_who_writes_and_goes_on_where_that_one_ends(host, server):
    kept, (first, second) = server(), endpoints()
    writer = host("a", kept.uri, first, stands_by=False).wait_for("listens on")
    other = host("b", kept.uri, second).wait_for("stands by on")
    with batos.Client(first) as client:
        assert client.call("index_document", doc_id="valve.md", text=NOTE)["change"]
    with batos.Client(second) as client:
        for name in ("health", "get_full_state", "no_such_command"):
            with pytest.raises(batos.NotWriter, match=first) as told:
                client.call(name)
            assert told.value.fields["endpoint"] == first
    with batos.Client([second, first]) as client:            # it goes to the one that writes by itself
        assert client.call("search_memory", query="brass valve")["results"] and client.endpoint == first
        assert writer.end() == 0                             # it says that it has ended: nothing is waited for
        other.wait_for("listens on")
        assert client.call("search_memory", query="brass valve")["results"] and client.endpoint == second
        assert client.call("health")["result"]["writer"]["epoch"] == 2
    with batos.Client(f"{first},{second}") as client:
        assert client.call("list_documents", prefix="valve")["results"]


def test_a_key_that_the_one_before_took_is_known_to_the_one_after(host, server):
    kept, (first, second) = server(), endpoints()
    writer = host("a", kept.uri, first, stands_by=False).wait_for("listens on")
    host("b", kept.uri, second).wait_for("stands by on")
    key = batos.uuid7()
    with batos.Client([first, second]) as client:
        told = client.call("index_document", doc_id="valve.md", text=NOTE, idempotency_key=key)
        writer.end(signal.SIGKILL)
        again = client.call("index_document", doc_id="valve.md", text=NOTE, idempotency_key=key)
    assert again["repeated"] and again["change"] == told["change"]


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["write", "bulk", "writer beat"])
@pytest.mark.parametrize("point", ["begun", "voted"])
def test_who_was_stopped_amid_a_commit_ends_and_its_commit_is_not_there(host, server, lane, point, tmp_path):
    kept, (first, second) = server(), endpoints()
    writer = host("a", kept.uri, first, lease_s=1.0, stands_by=False).wait_for("listens on")
    answers, key = [], batos.uuid7()

    def ask():
        asked = {"write": ("send_message", {"target": "genesis_obj", "selector": "setSlot:value:", "args": ["mine", 1]}),
                 "bulk": ("index_document", {"doc_id": "mine.md", "text": NOTE})}.get(lane)
        with batos.Client(first, timeout_s=100) as client:
            try:
                answers.append(asked and client.call(asked[0], idempotency_key=key, **asked[1]))
            except batos.NoReply:
                answers.append("none")
    asking = threading.Thread(target=ask)
    assert writer.stop_amid(lane, point, lambda: None if lane == "writer beat" else asking.start())
    other = host("b", kept.uri, second, lease_s=1.0).wait_for("listens on")
    writer.process.send_signal(signal.SIGCONT)
    assert writer.process.wait(60) == batos._EXIT_FENCED
    if lane != "writer beat":
        asking.join(60)
        assert answers == ["none"]                           # nothing was replied
    with batos.Client(second) as client:
        slots = client.call("inspect", target="genesis_obj")["result"]["slots"]
        assert "mine" not in slots and "mine.md" not in documents_at(second)
    assert other.end() == 0 and kept.stop() == 0
    assert takeover.epochs_of(tmp_path / "kept.fs") == [1, 2]


def test_a_data_file_has_no_stand_by(capsys, tmp_path):
    assert "where another engine keeps the image" in refused(["--stand-by", "--image", str(tmp_path / "one.fs")], capsys)


@pytest.mark.slow
def test_takeovers_under_load(tmp_path):
    report = takeover.campaign(tmp_path, 3, 3)
    assert report["problems"] == [] and report["acknowledged"] > 20
