"""A soak: a million mixed commands and a thousand cycles; memory, threads, descriptors, disk and latency must not drift.

    python tests/durability/soak.py [--commands 1000000] [--cycles 1000] [--seed N]

The daemon keeps a minute of history and packs each half minute, so that its disk reaches a steady state; figures are
taken ten times.
"""

import json
import pathlib
import random
import statistics
import sys
import threading
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]
import conftest
import ormsgpack
import zmq
from durability import load as loads

import batos

CLIENTS, IN_FLIGHT, SAMPLES = 4, 16, 10
HISTORY_DAYS, PACK_HOURS = 1 / 1440, 1 / 120


def request_of(rng, number, client):
    """Return one request of the mix."""
    kind = rng.random()
    if kind < 0.30:
        return {"command": "health"}
    if kind < 0.50:
        return {"command": "inspect", "target": "genesis_obj.s1"}
    if kind < 0.85:
        key = {"idempotency_key": batos.uuid7()} if rng.random() < 0.5 else {}
        return {"command": "send_message", "target": "genesis_obj", "selector": "setSlot:value:",
                "args": [f"s{rng.randrange(200)}", [number, "x" * rng.randrange(60)]], **key}
    if kind < 0.95:
        return {"command": "search_memory", "query": f"valve {rng.randrange(50)}"}
    if kind < 0.98:
        return {"command": "history", "target": "genesis_obj", "slot": "s1", "limit": 3}
    return {"command": "index_document", "doc_id": f"d{client} {rng.randrange(30)}",
            "text": f"The brass valve number {number} is turned until the needle stands at {rng.randrange(50)}."}


def client(endpoint, number, commands, seed, latencies, problems):
    """Send commands, IN_FLIGHT at a time; each is answered, and its time is noted."""
    rng, context = random.Random(f"{seed} {number}"), zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(endpoint)
    sent, done = {}, 0
    for at in range(commands + IN_FLIGHT):
        if at < commands:
            sent[at] = time.monotonic()
            socket.send(ormsgpack.packb({**request_of(rng, at, number), "id": at}))
        if at >= IN_FLIGHT:
            if not socket.poll(60_000):
                problems.append(f"{len(sent)} requests of client {number} have no reply")
                break
            reply = ormsgpack.unpackb(socket.recv(), option=ormsgpack.OPT_NON_STR_KEYS)
            latencies.append(time.monotonic() - sent.pop(reply["id"]))
            done += 1
            if reply["status"] != "OK" and reply["code"] not in ("NotFound",):
                problems.append(str(reply)[:300])
    socket.close()
    context.term()


def figures(daemon, folder, latencies):
    """Return what must not drift."""
    process = pathlib.Path(f"/proc/{daemon.process.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    latest = sorted(latencies[-20_000:]) or [0.0]
    return {"memory_mb": round(int(status["VmRSS"].split()[0]) / 1024, 1), "threads": int(status["Threads"]),
            "descriptors": len(list((process / "fd").iterdir())),
            "disk_mb": round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1),
            "p50_ms": round(statistics.median(latest) * 1e3, 2), "p99_ms": round(latest[len(latest) * 99 // 100] * 1e3, 2)}


def run_cycles(endpoint, count, problems):
    """Have missions thought about, 20 at a time; returns how many ended well."""
    complete = 0
    with batos.Client(endpoint, timeout_s=120) as asking:
        for _ in range(0, count, 20):
            keys = [batos.uuid7() for _ in range(20)]
            for key in keys:
                asking.call("initiate_cognitive_cycle", mission_brief=loads.QUESTION, idempotency_key=key)
            for key in keys:
                ended = asking.call("initiate_cognitive_cycle", mission_brief=loads.QUESTION, idempotency_key=key, wait=True)
                complete += ended["result"]["state"] == "COMPLETE"
                if ended["result"]["state"] != "COMPLETE":
                    problems.append(str(ended["result"])[:300])
    return complete


def drifts(samples):
    """Return sentences on what grew from the middle of the soak to its end."""
    early, late, found = samples[len(samples) // 2 - 1], samples[-1], []
    for name, share, more in (("memory_mb", 1.15, 20), ("threads", 1.0, 0), ("descriptors", 1.0, 5), ("disk_mb", 1.5, 20)):
        if late[name] > early[name] * share + more:
            found.append(f"{name} grew from {early[name]} to {late[name]}")
    return found


def campaign(folder, commands, cycles, seed, tell=lambda line: None):
    """Return {"commands", "per_s", "cycles", "samples", "problems"}."""
    folder = pathlib.Path(folder)
    options = {"history_days": HISTORY_DAYS, "pack_hours": PACK_HOURS, "journal_days": HISTORY_DAYS,
               "request_memory_min_h": HISTORY_DAYS * 24, "missions_kept": 100, "log_entries_max": 1000}
    daemon = conftest.DaemonProcess(folder, *options.items(), core=0.0)
    latencies, problems, samples, share = [], [], [], commands // SAMPLES // CLIENTS
    started_s, complete = time.monotonic(), 0
    for sample in range(SAMPLES):
        threads = [threading.Thread(target=client, args=(daemon.endpoint, number, share, f"{seed} {sample}", latencies, problems))
                   for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        complete += run_cycles(daemon.endpoint, cycles // SAMPLES, problems)
        for thread in threads:
            thread.join()
        samples.append(figures(daemon, folder, latencies))
        del latencies[:-20_000]
        tell(json.dumps(samples[-1]))
    seconds = time.monotonic() - started_s
    with batos.Client(daemon.endpoint, timeout_s=60) as asking:
        left = asking.call("health")["result"]
    if left["pending"] or left["missions"]["waiting"]:
        problems.append(f"{left['pending']} requests and {left['missions']} are left")
    problems += [] if daemon.stop() == 0 else ["the daemon did not stop well"]
    problems += batos.check_image(str(folder / "live_image.fs"), deep=True)["faults"] + drifts(samples)
    return {"commands": share * SAMPLES * CLIENTS, "seed": seed, "per_s": round(share * SAMPLES * CLIENTS / seconds),
            "cycles": complete, "samples": samples, "problems": problems[:20]}


if __name__ == "__main__":
    loads.run("soak", campaign, commands=1_000_000, cycles=1000)
