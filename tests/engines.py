"""Engines that keep an image in a process of their own, for the tests: our storage server, and a foreign ZEO server."""

import os
import re
import socket
import subprocess
import sys
import threading

import forks

FOREIGN = """
import sys, ZODB.FileStorage, ZEO.StorageServer
storage = ZODB.FileStorage.FileStorage(sys.argv[1], blob_dir=sys.argv[1] + ".blob")
server = ZEO.StorageServer.StorageServer(("127.0.0.1", int(sys.argv[2])), {"1": storage})
print(f"the storage server listens on zeo://127.0.0.1:{server.addr[1]}", flush=True)
server.loop()
"""


def start_foreign(words, cwd, stdout, stderr):
    """Start a ZEO server of ZEO's own over ZODB's own storage; words: its data file, its port."""
    return subprocess.Popen([sys.executable, "-c", FOREIGN, *words], cwd=cwd, stdout=stdout, stderr=stderr)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class StorageProcess:
    """A running storage server; `uri` is what a daemon names its image by, `lines` what it said."""

    def __init__(self, folder, words, start=forks.start):
        reading, writing = os.pipe()
        self.process = start(words, folder, writing, writing)
        os.close(writing)
        self._told = os.fdopen(reading, encoding="utf-8")
        self.lines = []
        for line in self._told:
            self.lines.append(line)
            if found := re.search(r"listens on (zeo://\S+)", line):
                self.uri = found[1]
                self._reader = threading.Thread(target=self.lines.extend, args=(self._told,))
                self._reader.start()
                return
        raise AssertionError("the storage server did not start: " + "".join(self.lines))

    def stop(self, kill=False):
        if self.process.poll() is None:
            self.process.kill() if kill else self.process.terminate()
        self.process.wait(timeout=60)
        self._reader.join(60)
        self._told.close()
        return self.process.returncode


def serving(folder, file="kept.fs", listen="127.0.0.1:0", *options):
    """Return our own storage server over a file of a folder."""
    return StorageProcess(folder, ["batos", "storage", file, "--listen", listen, *options])


def foreign(folder, file="foreign.fs", port=0):
    """Return a ZEO server that is none of ours."""
    return StorageProcess(folder, [file, str(port)], start_foreign)
