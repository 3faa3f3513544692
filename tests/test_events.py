"""Events: told after the commit they tell of, to who subscribed, and the slow are told what they missed."""

import asyncio
import collections
import threading
import time
import types

import ormsgpack
import pytest
import zmq

import batos

BRIEF = {"type": "direct_synthesis", "selector": "answer_", "args": ["Which valve is the one?"]}


def events_until(client, topics, done, most_s=60):
    """Collect events until done(them)."""
    found, end_s = [], time.monotonic() + most_s
    for event in client.events(*topics):
        found += [event] if event else []
        assert time.monotonic() < end_s, found
        if done(found):
            return found


@pytest.mark.slow
def test_a_cycle_is_followed_and_each_state_is_in_the_image_when_it_is_told(daemon):
    running, told, seen = daemon(core=0.2), [], []
    ready = threading.Event()

    def watch():
        with batos.Client(running.endpoint) as watching, batos.Client(running.endpoint) as looking:
            for event in watching.events("cycle"):
                ready.set()
                if event:
                    told.append(event["state"])
                    rows = looking.call("list_cycles")["results"]
                    seen.append([row["state"] for row in rows if row["cycle"] == event["cycle"]][0])
                    if event["state"] == "COMPLETE":
                        return
    with batos.Client(running.endpoint) as client:
        client.call("index_document", doc_id="a", text="The brass valve is the one.")
        thread = threading.Thread(target=watch)
        thread.start()
        assert ready.wait(60)
        client.call("initiate_cognitive_cycle", mission_brief=BRIEF, wait=True)
    thread.join(60)
    assert told == ["DECOMPOSING", "DELEGATING", "SYNTHESIZING", "COMPLETE"]
    order = ["IDLE", *told]
    assert all(order.index(now) >= order.index(state) for state, now in zip(told, seen, strict=True))


def test_state_and_health_are_told(daemon):
    running = daemon()
    with batos.Client(running.endpoint) as client, batos.Client(running.endpoint) as writer:
        writer.call("index_document", doc_id="a", text="The brass valve.")
        found = events_until(client, (), lambda found: {"uvm_state_update", "health"} <= {event["event"] for event in found}
                             and any(event.get("state", {}).get("memory", {}).get("documents") for event in found))
        by_kind = {event["event"]: event for event in found}
        assert by_kind["health"]["health"]["state"] == "serving" and by_kind["health"]["at"]["$time"]
        assert by_kind["uvm_state_update"]["state"]["image_version"] == batos.IMAGE_VERSION
        assert client.call("health")["status"] == "OK"   # calls go on between events


def test_errors_are_told(daemon, tmp_path):
    running = daemon()
    (tmp_path / "file").write_text("no folder")
    with batos.Client(running.endpoint) as client, batos.Client(running.endpoint) as other:
        client.call("subscribe", topics=["error"])
        with pytest.raises(batos.BatosError):
            other.call("backup", folder=str(tmp_path / "file"))
        event = next(event for event in client.events("error") if event)
        assert event["command"] == "backup" and event["details"]


def test_only_what_was_subscribed_and_nothing_after_unsubscribe(daemon):
    running = daemon()
    with batos.Client(running.endpoint) as client:
        assert client.call("subscribe", topics=["health"])["result"]["topics"] == ["health"]
        assert client.call("subscribe", topics=["error", "health"])["result"]["topics"] == ["error", "health"]
        assert client.call("unsubscribe", topics=["health"])["result"]["topics"] == ["error"]
        assert client.call("health")["result"]["clients"] == 1
        assert client.call("unsubscribe")["result"]["topics"] == []
        until_s = time.monotonic() + 300                  # a client is known until it has read what it was sent
        while client.call("health")["result"]["clients"]:
            assert time.monotonic() < until_s
        for bad in ({"topics": []}, {"topics": ["nonsense"]}, {"topics": "health"}):
            with pytest.raises(batos.BadRequest):
                client.call("subscribe", **bad)


def test_a_req_client_and_one_too_many_are_refused(daemon):
    running = daemon("--subscribers-max", "2")
    context = zmq.Context()
    req = context.socket(zmq.REQ)
    req.linger = 0
    req.connect(running.endpoint)
    req.send(ormsgpack.packb({"command": "subscribe"}))
    assert ormsgpack.unpackb(req.recv())["code"] == "BadRequest"
    req.close()
    context.term()
    clients = [batos.Client(running.endpoint) for _ in range(3)]
    for client in clients[:2]:
        client.call("subscribe")
    with pytest.raises(batos.Busy, match="subscribers_max"):
        clients[2].call("subscribe")
    clients[0].close()                                   # who went away gives its place back with the next event
    end_s = time.monotonic() + 300
    while True:
        try:
            clients[2].call("subscribe")
            break
        except batos.Busy:
            assert time.monotonic() < end_s
            time.sleep(0.2)
    for client in clients[1:]:
        client.close()


class Pipe:
    """Stands for a ROUTER socket that takes `room` messages and then none."""

    def __init__(self, room):
        self.room, self.sent = room, []

    def send(self, frame, flags=0):
        if self.room <= 0:
            raise zmq.Again
        if not flags & zmq.SNDMORE:
            self.room -= 1
            self.sent.append(ormsgpack.unpackb(frame))

    def getsockopt(self, option):
        return 0


def test_the_slow_are_told_once_how_many_they_missed():
    wire = batos.Wire(batos.load_settings({"outbox_max": 5}, {}))
    wire._loop = batos.types.SimpleNamespace(call_later=lambda seconds, function: None, call_soon=lambda function: None)
    wire.socket, peer = Pipe(3), batos.Peer(b"slow")
    wire.subscribe(peer, [b"slow"], ["error"])
    for n in range(20):
        wire.publish("error", {"n": n})
    wire.publish("health", {})
    assert [event["n"] for event in wire.socket.sent] == [0, 1, 2] and len(peer.outbox) == 5 and peer.missed == 12
    wire.socket.room = 100
    wire._flush()
    assert [event.get("n", event.get("missed")) for event in wire.socket.sent] == [*range(8), 12]
    assert wire.socket.sent[-1]["event"] == "lagged"
    wire.publish("error", {"n": 20})
    assert wire.socket.sent[-1]["n"] == 20 and collections.Counter(e["event"] for e in wire.socket.sent)["lagged"] == 1
    peer.stalled_s = time.monotonic() - 1000
    wire.socket.room = 0
    wire.publish("error", {"n": 21})
    wire._flush()
    assert wire.subscribers == {} and wire.peers == {}


def test_messages_that_came_while_health_was_told_are_looked_for(monkeypatch):
    """Sending takes the edge by which the descriptor tells of what came; a message lay unread until the next one. It needed a
    subscriber that asks while health is told, seen as a daemon that hung after a pause."""
    class Recorder(types.SimpleNamespace):
        def __getattr__(self, name):
            return lambda *_: told.append(name)
    told, lane = [], types.SimpleNamespace(commits=0, children=types.SimpleNamespace(end_resting=int))
    wire = Recorder(subscribers={b"one": None})
    uvm = types.SimpleNamespace(wire=wire, lanes={"write": lane, "bulk": lane, "method": lane},
                                heartbeat=types.SimpleNamespace(look=dict), image=types.SimpleNamespace(path=None))
    vitals = batos.Vitals(uvm)
    for name in ("_look_at_place", "_look_at_slow", "look_at_health", "_read_view_if_stale", "_measure"):
        setattr(vitals, name, dict)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(vitals.look_after(), 0.1))
    assert told[told.index("publish") + 1] == "drain_again_if_readable"
