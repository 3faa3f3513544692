"""What the benches compare with: a bare ROUTER echo, and a bare ROUTER in front of a bare group commit.

    python tests/bench/peers.py echo BYTES | commit FILE
"""

import asyncio
import pathlib
import queue
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
    socket, again, waiting, done = listening(), [], queue.SimpleQueue(), []
    db = ZODB.DB(ZODB.FileStorage.FileStorage(path))

    def write():
        manager = transaction.TransactionManager(explicit=True)
        manager.begin()
        connection = db.open(manager)
        connection.root()["object"] = thing = persistent.mapping.PersistentMapping()
        manager.commit()
        while True:
            group = [waiting.get()]
            while len(group) < 64 and not waiting.empty():
                group.append(waiting.get())
            manager.begin()
            for frames in group:
                request = ormsgpack.unpackb(frames[1])
                thing[request["args"][0]] = request["args"][1]
            manager.commit()
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
    {"echo": echo, "commit": commit}[sys.argv[1]](sys.argv[2])
