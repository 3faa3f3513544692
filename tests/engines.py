"""Engines that keep an image in a process of their own, for the tests: our storage server, a foreign ZEO server, PostgreSQL."""

import contextlib
import glob
import json
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

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


class StorageProcess(forks.Running):
    """A running storage server; `uri` is what a daemon names its image by."""

    def __init__(self, folder, words, start=forks.start):
        super().__init__(words, folder, r"listens on (zeo://\S+)", start)
        self.uri = self.told[1]


def serving(folder, file="kept.fs", listen="127.0.0.1:0", *options):
    """Return our own storage server over a file of a folder."""
    return StorageProcess(folder, ["batos", "storage", file, "--listen", listen, *options])


def foreign(folder, file="foreign.fs", port=0):
    """Return a ZEO server that is none of ours."""
    return StorageProcess(folder, [file, str(port)], start_foreign)


# PostgreSQL

INITDB = max(glob.glob("/usr/lib/postgresql/*/bin/initdb"), default=shutil.which("initdb"))


class Cluster:
    """A PostgreSQL server of the tests' own, in a folder of its own, reached by a socket there; it belongs to no root."""

    def __init__(self, where="/tmp"):
        self._programs = pathlib.Path(INITDB).resolve().parent
        self.folder = tempfile.mkdtemp(prefix="batos-pg-", dir=where)   # a socket's path has 107 bytes at most
        self._as = []
        if os.getuid() == 0:                             # whom the server refuses to be started by
            user = "postgres" if any(row.pw_name == "postgres" for row in pwd.getpwall()) else "nobody"
            shutil.chown(self.folder, user)
            self._as = ["setpriv", f"--reuid={pwd.getpwnam(user).pw_uid}", "--clear-groups"]
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", "batos", "-E", "UTF8", "--no-sync")
        self.start()

    @property
    def _data(self):
        return f"{self.folder}/data"

    def _run(self, program, *words):
        done = subprocess.run([*self._as, str(self._programs / program), *words], cwd=self.folder, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout

    def start(self, *settings):
        given = " ".join(f"-c {one}" for one in ("listen_addresses=''", *settings))
        self._run("pg_ctl", "-D", self._data, "-l", f"{self.folder}/log", "-o", f"-k {self.folder} {given}", "-w", "start")

    def stop(self, how="fast"):
        """Stop the server; `immediate` is what a kill is."""
        self._run("pg_ctl", "-D", self._data, "-m", how, "-w", "stop")

    def kill(self):
        """Kill the server's main process by SIGKILL, and wait until its children have gone with it."""
        pid = int(pathlib.Path(self._data, "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        while subprocess.run(["pgrep", "-s", str(pid)], capture_output=True).returncode == 0:
            time.sleep(0.05)

    def database(self, name):
        """Make a database; returns its address."""
        self._run("createdb", "-h", self.folder, "-U", "batos", name)
        return f"postgres://batos@/{name}?host={self.folder}"

    def sql(self, name, text):
        self._run("psql", "-h", self.folder, "-U", "batos", "-d", name, "-c", text)

    def read(self, name, told):
        """Have a database read what `dump` told."""
        words = ["-q", "-v", "ON_ERROR_STOP=1", "-h", self.folder, "-U", "batos", "-d", name]
        subprocess.run([str(self._programs / "psql"), *words], input=told, check=True, capture_output=True)

    def dump(self, name):
        return subprocess.run([str(self._programs / "pg_dump"), "-h", self.folder, "-U", "batos", name], check=True,
                              capture_output=True).stdout

    def close(self):
        with contextlib.suppress(AssertionError):
            self.stop("immediate")
        shutil.rmtree(self.folder)


def certificates(folder, *names):
    """Make for each name NAME.pem, its certificate, and NAME.own, that and its key."""
    for name in names:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=batos",
                        "-keyout", f"{name}.key", "-out", f"{name}.pem"], cwd=folder, check=True, capture_output=True)
        own = folder / f"{name}.own"
        own.touch(mode=0o600)
        own.write_text((folder / f"{name}.key").read_text() + (folder / f"{name}.pem").read_text())


# Daemons that stand by


class Host:
    """A daemon that writes or stands by, which may stop amid a commit; `wait_for` waits until it has said something."""

    def __init__(self, folder, name, uri, endpoint, lease_s, stands_by=True, start=forks.start):
        self.name, self.endpoint, self.file = name, endpoint, pathlib.Path(folder, f"{name}.stop")
        asked = {"image": uri, "endpoint": endpoint, "lease_s": lease_s, "stands_by": stands_by}
        reading, writing = os.pipe()
        self.process = start(["stopping", json.dumps(asked), str(self.file)], folder, writing, writing)
        os.close(writing)
        self.lines, self._said = [], threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(os.fdopen(reading, encoding="utf-8"),))
        self._reader.start()

    def _read(self, told):
        with told:
            for line in told:
                self._note(line)
        self._note(None)

    def _note(self, line):
        with self._said:
            self.lines.append(line)
            self._said.notify_all()

    def wait_for(self, text):
        """Wait until a line holds a text. Raises AssertionError where the process ends before."""
        with self._said:
            while not any(line and text in line for line in self.lines):
                assert None not in self.lines, (self.name, text, self.lines)
                self._said.wait()
        return self

    def stop_amid(self, lane, point, then=lambda: None):
        """Have it stop amid the next commit of a lane, and wait until it has; returns whether it came to that in time.

        then: called once it is to stop there.
        """
        part = self.file.with_suffix(".part")
        part.write_text(f"{lane} {point}")
        part.rename(self.file)
        then()
        for _ in range(600):
            if "T" in pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]:
                return True
            time.sleep(0.05)
        return False

    def end(self, number=signal.SIGTERM):
        """Send a signal, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(timeout=120)
        self._reader.join(60)
        self.file.unlink(missing_ok=True)
        return self.process.returncode


# Redis, and workers of Celery

REDIS = shutil.which("redis-server")


class Redis:
    """A Redis of the tests' own, in a folder of its own; `url` is where, from before it is started on."""

    def __init__(self, persists=False):
        self.folder, self.port = tempfile.mkdtemp(prefix="batos-redis-"), free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._persists, self.process = persists, None

    def start(self):
        kept = ["--appendonly", "yes", "--appendfsync", "always"] if self._persists else ["--appendonly", "no"]
        words = [REDIS, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder, "--save", "", *kept]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        while not self._is_there():
            assert self.process.poll() is None, "redis-server did not start"
            time.sleep(0.05)
        return self

    def _is_there(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as one:
            one.sendall(b"PING\r\n")
            return one.recv(7) == b"+PONG\r\n"
        return False

    def asked(self):
        """Return a client of it."""
        import redis
        return redis.Redis(port=self.port)

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def close(self):
        self.kill()
        shutil.rmtree(self.folder)


class ForgeWorker(forks.Running):
    """A worker of Celery, as `batos.py forge-worker --celery` is one, with its children in a session of its own.

    inside: a program that each of the processes runs that do the work, in place of `batos.py forge-worker FOLDER`.
    """

    SERVES = "import sys, batos\nif sys.argv[1]: batos._WORKER_WORDS = [sys.executable, '-c', sys.argv[1]]\n" \
             "batos.serve_queue(batos.load_settings())"

    def __init__(self, url, folder, inside="", **settings):
        self._variables = {"BATOS_FORGE_BROKER": url, "BATOS_FORGE_RESULTS": url, "PYTHONPATH": str(forks.ROOT)}
        self._variables |= {f"BATOS_{name.upper()}": str(value) for name, value in settings.items()}
        super().__init__([inside], folder, r"forge-\d+@\S+ ready", self._start)

    def _start(self, words, cwd, stdout, stderr):
        return subprocess.Popen([sys.executable, "-c", self.SERVES, *words], cwd=cwd, stdout=stdout, stderr=stderr,
                                env={**os.environ, **self._variables}, start_new_session=True)

    def children(self):
        """Return the pids of the pool's processes."""
        told = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True)
        return list(map(int, told.stdout.split()))

    def stop(self, kill=False):
        """End it; killed, its pool goes with it."""
        children = self.children() if kill else ()
        status = super().stop(kill)
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return status
