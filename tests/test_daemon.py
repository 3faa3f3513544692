"""The daemon, from outside: commands, keys, garbage, kill -9."""

import threading

import ormsgpack
import pytest
import zmq

import batos

MANUAL = "# Pump\n\n## Calibrating\n\nTurn the brass valve until the needle stands at zero. Then lock the screw.\n"


def test_a_first_exchange(daemon):
    with batos.Client(daemon().endpoint) as client:
        assert client.call("health")["result"]["state"] == "serving"
        stored = client.call("index_document", doc_id="pump.md", text=MANUAL, idempotency_key=batos.uuid7())
        assert stored["change"] and stored["result"]["chunks"] == 1
        found = client.call("search_memory", query="how is the brass valve turned?")["results"][0]
        assert found["chunk"]["doc_id"] == "pump.md" and "valve" in found["why"]["words"]
        client.call("unindex_document", doc_id="pump.md")
        assert client.call("search_memory", query="brass valve")["results"] == []
        reply = client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["n", {"$$a": 1}])
        assert reply["change"]
        shown = client.call("inspect", target="genesis_obj")["result"]
        assert shown["slots"]["n"]["value"] == {"$$a": 1}
        assert client.call("send_message", target="genesis_obj", selector="name")["result"] == "Genesis Object"


def test_errors_name_the_nearest(daemon):
    with batos.Client(daemon().endpoint) as client:
        for fields, code, near in (
                ({"command": "helth"}, batos.UnknownCommand, "health"),
                ({"command": "inspect", "target": "genesis_ob"}, batos.NotFound, "genesis_obj"),
                ({"command": "inspect", "targt": "x"}, batos.BadRequest, "target"),
                ({"command": "send_message", "target": "genesis_obj", "selector": "clon"},
                 batos.MessageNotUnderstood, "clone")):
            with pytest.raises(code, match=near):
                client.call(**fields)


def test_a_key_takes_effect_once_also_after_kill_minus_9(daemon):
    key, fields = batos.uuid7(), {"target": "genesis_obj", "selector": "clone"}
    first = daemon()
    with batos.Client(first.endpoint) as client:
        one = client.call("send_message", idempotency_key=key, **fields)
        two = client.call("send_message", idempotency_key=key, **fields)
        assert two["repeated"] and two["result"] == one["result"] and two["change"] == one["change"]
    first.stop(kill=True)
    with batos.Client(daemon().endpoint) as client:
        again = client.call("send_message", idempotency_key=key, **fields)
        assert again["repeated"] and again["result"] == one["result"]
        with pytest.raises(batos.KeyReused):
            client.call("send_message", idempotency_key=key, target="genesis_obj", selector="_clone_persistent_")


def test_garbage_is_answered_and_the_next_client_is_served(daemon):
    endpoint = daemon().endpoint
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(endpoint)
    for frames in ([b"\xc1"], [b""], [b"\x93\x01"], [b"a", b"b", b"c"], [b"\x81\xa1a" * 5000 + b"\xc0"]):
        socket.send_multipart(frames)
        assert socket.poll(10_000), frames
        assert ormsgpack.unpackb(socket.recv())["code"] in ("Malformed", "UnknownCommand")
    req = context.socket(zmq.REQ)
    req.linger = 0
    req.connect(endpoint)
    req.send(ormsgpack.packb({"command": "health", "id": 7}))
    assert req.poll(10_000) and ormsgpack.unpackb(req.recv())["id"] == 7
    socket.close()
    req.close()
    context.term()


def test_kill_minus_9_under_load_loses_nothing_acknowledged(daemon):
    last = {}
    for _ in range(3):
        running = daemon()

        def write(n, endpoint=running.endpoint):
            with batos.Client(endpoint, 2.0) as client:
                for value in range(last.get(n, 0) + 1, 1_000_000):
                    try:
                        client.call("send_message", target="genesis_obj", selector="setSlot_value_",
                                    args=[f"slot{n}", value], timeout_s=2.0)
                    except batos.NoReply:
                        return
                    last[n] = value

        threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        threads[0].join(0.7)
        running.stop(kill=True)
        for thread in threads:
            thread.join()
        check = daemon()
        with batos.Client(check.endpoint) as client:
            slots = client.call("inspect", target="genesis_obj")["result"]["slots"]
        assert check.stop() == 0
        for n, value in last.items():
            assert slots[f"slot{n}"]["value"] in (value, value + 1)


def test_another_interface_is_refused():
    for endpoint in ("tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://10.0.0.1:1", "nonsense"):
        with pytest.raises(batos.ConfigError):
            batos.check_loopback(endpoint)
