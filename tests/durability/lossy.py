"""Exactly once over a lossy path: a proxy drops, doubles, delays and reorders messages between clients and daemon.

    python tests/durability/lossy.py [--commands 100000] [--seed N]

Each client sends its commands one after the other, each with a key, until it is answered. In the end each key stands in
the ledger once, each client's slot holds its last value, and what was sent twice was answered as repeated.
"""

import heapq
import pathlib
import random
import sys
import threading
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]
import conftest
import ormsgpack
import zmq
from durability import load as loads

import batos

CLIENTS, LOST, DOUBLED, LATE = 24, 0.05, 0.05, 0.05      # shares of messages
PATIENCE_S, LATE_S = 0.1, 0.3                            # late ones come after the client asked again


class Proxy(threading.Thread):
    """A ROUTER for the clients, and for each of them a DEALER to the daemon; what passes meets its fate."""

    def __init__(self, endpoint, seed):
        super().__init__(daemon=True)
        self.context, self.rng, self.stop = zmq.Context(), random.Random(seed), threading.Event()
        self.front = self.context.socket(zmq.ROUTER)
        self.front.linger = 0
        self.port = self.front.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint, self.backs, self.late, self.count = endpoint, {}, [], 0
        self.fates = {"lost": 0, "doubled": 0, "late": 0}

    def run(self):
        poller = zmq.Poller()
        poller.register(self.front, zmq.POLLIN)
        while not self.stop.is_set():
            for socket, _ in poller.poll(5):
                if socket is self.front:
                    client, payload = socket.recv_multipart()
                    if client not in self.backs:
                        back = self.backs[client] = self.context.socket(zmq.DEALER)
                        back.linger = 0
                        back.connect(self.endpoint)
                        poller.register(back, zmq.POLLIN)
                    self.meet_fate(self.backs[client].send, payload)
                else:
                    client = next(name for name, back in self.backs.items() if back is socket)
                    self.meet_fate(lambda frame, client=client: self.front.send_multipart([client, frame]), socket.recv())
            while self.late and self.late[0][0] < time.monotonic():
                _, _, send, payload = heapq.heappop(self.late)
                send(payload)
        for socket in (self.front, *self.backs.values()):
            socket.close()
        self.context.term()

    def meet_fate(self, send, payload):
        fate = self.rng.random()
        if fate < LOST:
            self.fates["lost"] += 1
        elif fate < LOST + LATE:
            self.fates["late"] += 1
            self.count += 1
            heapq.heappush(self.late, (time.monotonic() + self.rng.random() * LATE_S, self.count, send, payload))
        else:
            send(payload)
            if fate > 1 - DOUBLED:
                self.fates["doubled"] += 1
                send(payload)


def client(number, port, commands, told):
    """Send commands in order, each until it is answered; `told` gets (values acknowledged, repeated, problems)."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(f"tcp://127.0.0.1:{port}")
    repeated, problems, last = 0, [], None
    for value in range(commands):
        key = f"{number} {value}"
        request = ormsgpack.packb({"command": "send_message", "target": "genesis_obj", "selector": "setSlot:value:",
                                   "args": [f"c{number}", value], "id": key, "idempotency_key": key})
        reply = None
        while reply is None:
            socket.send(request)
            end_s = time.monotonic() + PATIENCE_S
            while reply is None and (left_s := end_s - time.monotonic()) > 0 and socket.poll(left_s * 1000):
                found = ormsgpack.unpackb(socket.recv())
                reply = found if found["id"] == key else None
        repeated += bool(reply.get("repeated"))
        last = value
        if reply["status"] != "OK":
            problems.append(reply)
    told.append((number, last, repeated, problems))
    socket.close()
    context.term()


def campaign(folder, commands, seed, tell=lambda line: None):
    """Return {"commands", "lost", "doubled", "late", "repeated", "problems"}."""
    daemon = conftest.DaemonProcess(pathlib.Path(folder), "--client-pending-max", "1000")
    proxy, told = Proxy(daemon.endpoint, seed), []
    proxy.start()
    share = commands // CLIENTS
    threads = [threading.Thread(target=client, args=(number, proxy.port, share, told)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(2 * LATE_S)                               # what is late still comes, and must change nothing
    proxy.stop.set()
    proxy.join()
    problems = [problem for _, _, _, found in told for problem in found]
    with batos.Client(daemon.endpoint) as asking:
        slots = asking.call("inspect", target="genesis_obj", limit=1000)["result"]["slots"]
    problems += [f"c{number} is {slots[f'c{number}']}, not {last}" for number, last, _, _ in told
                 if slots[f"c{number}"]["value"] != last]
    daemon.stop()
    counts = loads.keys_in_pages(pathlib.Path(folder, "live_image.fs"))
    wanted = {f"{number} {value}": 1 for number in range(CLIENTS) for value in range(share)}
    problems += [] if dict(counts) == wanted else [f"{len(wanted)} keys were sent, the ledger has {sum(counts.values())}"]
    return {"commands": share * CLIENTS, "seed": seed, **proxy.fates, "repeated": sum(row[2] for row in told),
            "problems": problems}


if __name__ == "__main__":
    loads.run("lossy", campaign, commands=100_000)
