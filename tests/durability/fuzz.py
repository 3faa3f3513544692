"""Fuzzing of the wire: malformed requests by grammar and mutation, odd frames, raw sockets; a healthy client goes on beside.

    python tests/durability/fuzz.py [--inputs 100000] [--seed N]

Each message of one or two frames is answered exactly once, whatever is in it; a well-formed one as it should be; the
daemon's memory stays flat, and what it holds is whole.
"""

import pathlib
import random
import socket as sockets
import struct
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]
import conftest
import ormsgpack
import zmq
from durability import load as loads

import batos

BATCH = 100
SEEDS = [
    {"command": "health"}, {"command": "get_full_state"}, {"command": "list_cycles", "limit": 5},
    {"command": "inspect", "target": "genesis_obj"}, {"command": "search_memory", "query": "valve", "max_results": 3},
    {"command": "send_message", "target": "genesis_obj", "selector": "setSlot:value:", "args": ["s", {"a": [1, None, b"x"]}]},
    {"command": "index_document", "doc_id": "d", "text": "The brass valve.", "metadata": {"a": 1}},
    {"command": "unindex_document", "doc_id": "d"}, {"command": "history", "target": "genesis_obj", "slot": "s"},
    {"command": "undo", "change": "0123456789abcdef.0"}, {"command": "cancel", "cycle": "0x99"},
    {"command": "unsubscribe", "topics": ["health"]},
    {"command": "initiate_cognitive_cycle", "mission_brief": {"type": "direct_synthesis", "selector": "answer_", "args": ["q"]}},
]
SPOILERS = [
    None, True, -1, 2 ** 63, -2 ** 63, 2 ** 64 - 1, 1e308, float("inf"), float("nan"), "", "x" * 5000, "\0", "é\u202e",
    b"", b"\xff" * 100,
    [], [[]], {}, {"": ""}, {"$ref": "0x0"}, {"$ref": {}}, {"$time": "never"}, {"$$x": 1}, {1: 2}, "0x1", "__class__", "_p_jar",
    "parent*", "genesis_obj.", "a" * 300, ["x"] * 300,
]
RAW = [b"", b"\xc1", b"\xdb\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x91" * 5000 + b"\xc0",
       b"\x81\xa7command" * 100, b"\xc7\xff\x01", b"\xd9\xff" + b"a" * 10, b"\x80", b"\xa0", b"\xc0", b"\x90"]


def spoiled(value, rng, depth=0):
    """Return a request with something in it changed."""
    if rng.random() < 0.25 or depth > 3:
        return rng.choice(SPOILERS)
    if isinstance(value, dict) and value:
        changed, name = dict(value), rng.choice(list(value))
        fate = rng.random()
        if fate < 0.15:
            del changed[name]
        elif fate < 0.3:
            changed[rng.choice(["extra", "Command", "_", "", "id", "v", "idempotency_key", "wait"])] = rng.choice(SPOILERS)
        else:
            changed[name] = spoiled(value[name], rng, depth + 1)
        return changed
    if isinstance(value, list) and value:
        return [spoiled(item, rng, depth + 1) if rng.random() < 0.5 else item for item in value]
    return rng.choice(SPOILERS)


def mutated(data, rng):
    """Return bytes with some flipped, cut, doubled or put in."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(data))
        rng.choice([lambda at=at: data.__setitem__(slice(at, at + 1), bytes([rng.randrange(256)])),
                    lambda at=at: data.__delitem__(slice(at, at + rng.randint(1, 20))),
                    lambda at=at: data.__setitem__(slice(at, at), data[at:at + 30]),
                    lambda at=at: data.__setitem__(slice(at, at), rng.choice(RAW)[:100])])()
    return bytes(data)


def fuzzed(rng):
    """Return (frames of one input, whether a reply is owed)."""
    seed, kind = rng.choice(SEEDS), rng.random()
    if kind < 0.45:
        payload = ormsgpack.packb(spoiled(seed, rng), option=ormsgpack.OPT_NON_STR_KEYS)
    elif kind < 0.8:
        payload = mutated(ormsgpack.packb(seed), rng)
    elif kind < 0.9:
        payload = rng.choice(RAW)
    else:
        payload = rng.randbytes(rng.randint(0, 400))
    frames = [payload] if rng.random() < 0.9 else [*([rng.choice([b"", b"x", payload])] * rng.randint(1, 4)), payload]
    return frames


def raw_oddities(endpoint, rng):
    """Connect without ZeroMQ: half-open, slow, giant lengths, other protocols; returns the sockets that stay open."""
    host, port = endpoint.removeprefix("tcp://").split(":")
    greeting = b"\xff" + b"\0" * 8 + b"\x7f\x03\0NULL" + b"\0" * 48
    left = []
    for junk in (b"", greeting[:10], greeting, greeting + b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0",
                 greeting + b"\x02" + struct.pack(">Q", 2 ** 62), b"GET / HTTP/1.1\r\n\r\n", rng.randbytes(200)):
        one = sockets.create_connection((host, int(port)), timeout=5)
        one.sendall(junk)
        left.append(one)
    return left


def identities(endpoint, count):
    """Have so many clients each ask once; returns how many were answered."""
    context, answered = zmq.Context(), 0
    for start in range(0, count, 200):
        dealers = []
        for number in range(start, min(start + 200, count)):
            dealer = context.socket(zmq.DEALER)
            dealer.linger, dealer.routing_id = 0, f"client {number}".encode()
            dealer.connect(endpoint)
            dealer.send(ormsgpack.packb({"command": "health"}))
            dealers.append(dealer)
        for dealer in dealers:
            answered += bool(dealer.poll(20_000)) and ormsgpack.unpackb(dealer.recv())["status"] == "OK"
            dealer.close()
    context.term()
    return answered


def campaign(folder, inputs, seed, tell=lambda line: None):
    """Return {"inputs", "replies", "identities", "memory_mb": [before, after], "problems"}."""
    rng, folder = random.Random(seed), pathlib.Path(folder)
    daemon = conftest.DaemonProcess(folder, ("missions_max", 50), ("log_entries_max", 100), core=0.0)
    context, replies, problems, memory = zmq.Context(), 0, [], []
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(daemon.endpoint)
    healthy, left = batos.Client(daemon.endpoint, timeout_s=30), raw_oddities(daemon.endpoint, rng)
    healthy.call("index_document", doc_id="long", text="The lamp is lit at dusk. " * 3000)     # loads what is loaded at first use
    for start in range(0, inputs, BATCH):
        batch = [fuzzed(rng) for _ in range(min(BATCH, inputs - start))]
        for frames in batch:
            dealer.send_multipart(frames)
        for number, _ in enumerate(batch):
            if not dealer.poll(30_000):
                problems.append(f"{len(batch) - number} of the inputs from {start} have no reply")
                break
            *_, payload = dealer.recv_multipart()
            reply = ormsgpack.unpackb(payload, option=ormsgpack.OPT_NON_STR_KEYS)
            replies += 1
            if reply.get("code") == "InternalError":
                problems.append(f"near input {start + number}: {reply['details']}")
        if start // BATCH % 20 == 0:
            healthy.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["healthy", start])
            if healthy.call("inspect", target="genesis_obj.healthy")["result"]["value"] != start:
                problems.append(f"a healthy client read something else at {start}")
        if start in (inputs // 5 // BATCH * BATCH, (inputs - 1) // BATCH * BATCH):
            time.sleep(1.5)                              # the figure is looked at each second
            memory.append(healthy.call("health")["result"]["memory_mb"])
        if start // BATCH % 100 == 99:
            tell(f"{start + BATCH} of {inputs}, {len(problems)} problems")
    answered = identities(daemon.endpoint, min(10_000, inputs))
    problems += [] if answered == min(10_000, inputs) else [f"only {answered} identities were answered"]
    clients = healthy.call("health")["result"]["clients"]
    problems += [f"{clients} clients are remembered"] if clients > 5 else []
    for one in left:
        one.close()
    healthy.close()
    dealer.close()
    context.term()
    problems += [] if daemon.stop() == 0 else ["the daemon did not stop well"]
    problems += batos.check_image(str(folder / "live_image.fs"), deep=True)["faults"]
    problems += [f"memory grew from {memory[0]} to {memory[1]} MB"] if memory[1] > memory[0] + 40 else []
    return {"inputs": inputs, "seed": seed, "replies": replies, "identities": answered, "memory_mb": memory,
            "problems": problems[:20]}


if __name__ == "__main__":
    loads.run("fuzz", campaign, inputs=100_000)
