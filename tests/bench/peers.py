"""What the benches compare with: a bare ROUTER echo, and a bare ROUTER in front of a bare group commit, of ZODB and of SQLite.

    python tests/bench/peers.py echo BYTES | commit FILE | sqlite FILE
"""

import asyncio
import pathlib
import queue
import sqlite3
import sys
import threading

import ormsgpack
import persistent.mapping
import transaction
import zmq
import ZODB
import ZODB.FileStorage

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
import batos


def listening():
    """Return a ROUTER on a port that the system chose, which is printed as the daemon prints it."""
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.bind("tcp://127.0.0.1:*")
    print(f"BAT OS listens on {socket.getsockopt_string(zmq.LAST_ENDPOINT)}", flush=True)
    return socket


def send(socket, frames):
    """Send identity and payload, as the daemon does."""
    socket.send(frames[0], batos.SNDMORE)
    socket.send(frames[1], batos.NOBLOCK)


async def drained(socket, receive, again):
    """Call receive(frames) for every message, drained as the daemon drains; `again` is given the function to call."""
    loop = asyncio.get_running_loop()

    def drain():
        for _ in range(256):
            try:
                frames = socket.recv_multipart(batos.NOBLOCK)
            except zmq.Again:
                return
            receive(frames)
        loop.call_soon(drain)
    loop.add_reader(socket.FD, drain)
    again.append(lambda: socket.getsockopt(batos.EVENTS) & batos.POLLIN and loop.call_soon(drain))
    loop.call_soon(drain)
    await asyncio.Event().wait()


def echo(size):
    """Answer every message with the same bytes."""
    socket, payload, again = listening(), b"x" * int(size), []

    def receive(frames):
        send(socket, [frames[0], payload])
        again[0]()
    asyncio.run(drained(socket, receive, again))


def commit(path):
    """Set an attribute for each message, up to 64 a commit, then answer."""
    db = ZODB.DB(ZODB.FileStorage.FileStorage(path))

    def groups():
        manager = transaction.TransactionManager(explicit=True)
        manager.begin()
        connection = db.open(manager)
        connection.root()["object"] = thing = persistent.mapping.PersistentMapping()
        manager.commit()
        while True:
            group = yield
            manager.begin()
            for name, value in group:
                thing[name] = value
            manager.commit()
    answer_in_groups(groups)


def commit_sqlite(path):
    """Set a row of an SQLite table for each message, up to 64 a transaction, then answer; what is answered is on the disk."""

    def groups():
        table = sqlite3.connect(path, isolation_level=None)
        table.execute("PRAGMA journal_mode = WAL")
        table.execute("PRAGMA synchronous = FULL")
        table.execute("CREATE TABLE slots (name TEXT PRIMARY KEY, value)")
        while True:
            group = yield
            table.execute("BEGIN")
            table.executemany("INSERT OR REPLACE INTO slots VALUES (?, ?)", group)
            table.execute("COMMIT")
    answer_in_groups(groups)


def answer_in_groups(groups):
    """Have the messages that wait, up to 64, stored by one turn of the generator groups(), in a thread; then answer them."""
    socket, again, waiting, done = listening(), [], queue.SimpleQueue(), []

    def write():
        store = groups()
        next(store)
        while True:
            group = [waiting.get()]
            while len(group) < 64 and not waiting.empty():
                group.append(waiting.get())
            store.send([ormsgpack.unpackb(frames[1])["args"] for frames in group])
            done.append([(frames[0], ormsgpack.packb({"id": None, "status": "OK"})) for frames in group])
            loops[0].call_soon_threadsafe(answer)

    def answer():
        while done:
            for frames in done.pop(0):
                send(socket, frames)
        again[0]()

    async def serve():
        loops.append(asyncio.get_running_loop())
        threading.Thread(target=write, daemon=True).start()
        await drained(socket, waiting.put, again)
    loops = []
    asyncio.run(serve())


if __name__ == "__main__":
    {"echo": echo, "commit": commit, "sqlite": commit_sqlite}[sys.argv[1]](sys.argv[2])
