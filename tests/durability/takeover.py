"""Takeovers under load: the writer killed, or stopped amid a commit of each lane and continued once another has taken over.

    python tests/durability/takeover.py [--turns 20] [--seed N]

Where network namespaces can be had (root of Linux), storage server and daemons are hosts of their own, reached by TLS and
CURVE, and the writer is cut off as well; else they are processes of one machine, and that is told.
"""

import contextlib
import functools
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]
import engines
import forks
import ZODB.FileStorage
from durability import load as loads

import batos

LEASE_S = 6.0                                            # a writer that is merely slow must not be taken for gone
STOPS = [(lane, point) for lane in ("write", "bulk", "writer beat") for point in ("begun", "voted")]
WAYS = [("kill",), *(("stop", *stop) for stop in STOPS)]


def epochs_of(path):
    """Return the epochs of an image's transactions in their order, each once where it stays the same."""
    found = []
    with contextlib.closing(ZODB.FileStorage.FileIterator(str(path))) as rows:
        for one in rows:
            epoch = one.extension.get("epoch")
            if epoch is not None and found[-1:] != [epoch]:
                found.append(epoch)
    return found


class Processes:
    """Storage server and daemons as processes of this machine."""

    told, ways = "processes of one machine", WAYS

    def __init__(self, folder):
        self.folder, self.server = folder, engines.serving(folder)
        self.endpoints = {name: f"tcp://127.0.0.1:{engines.free_port()}" for name in "ab"}

    def start(self, name, stands_by=True):
        return engines.Host(self.folder, name, self.server.uri, self.endpoints[name], LEASE_S, stands_by)

    def close(self):
        self.server.stop()


class Network:
    """Hosts in network namespaces of their own, {name: address}, on one bridge."""

    def __init__(self, hosts):
        self.hosts, self._of = hosts, f"batos{os.getpid()}"
        hub = f"{self._of}h"
        ip("netns", "add", hub)
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for name, address in hosts.items():
            own = f"{self._of}{name}"
            ip("netns", "add", own)
            ip("-n", hub, "link", "add", f"to{name}", "type", "veth", "peer", "name", "eth0", "netns", own)
            ip("-n", hub, "link", "set", f"to{name}", "master", "bridge", "up")
            ip("-n", own, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", own, "link", "set", "eth0", "up")
            ip("-n", own, "link", "set", "lo", "up")

    def within(self, name):
        """Return the words that have a command run on a host; "h" is the bridge itself, by which all goes."""
        return ["ip", "netns", "exec", f"{self._of}{name}"]

    def starter(self, name):
        """Return what starts a program of this repository on a host, as engines.started does here."""
        def start(words, cwd, stdout, stderr):
            program, *rest = map(str, words)
            within = [*self.within(name), sys.executable, str(forks.PROGRAMS[program])]
            return subprocess.Popen([*within, *rest], cwd=cwd, stdout=stdout, stderr=stderr)
        return start

    def cut(self, name, off):
        """Cut a host off, or join it again."""
        ip("-n", f"{self._of}h", "link", "set", f"to{name}", "down" if off else "up")

    def close(self):
        for name in ("h", *self.hosts):
            ip("netns", "del", f"{self._of}{name}")


class Namespaces:
    """Storage server and daemons as hosts of their own, in network namespaces on one bridge, with TLS between them.

    Their clients reach them by sockets of the file system, which no namespace hides.
    """

    told, ways = "hosts in network namespaces, TLS between them", [*WAYS, ("cut",)]
    hosts = {"s": "10.77.0.1", "a": "10.77.0.2", "b": "10.77.0.3"}

    def __init__(self, folder):
        self.folder, self._network = folder, Network(self.hosts)
        self.endpoints = {name: f"ipc://{folder}/{name}/socket" for name in "ab"}
        for name in "ab":
            (folder / name).mkdir(mode=0o700)
        engines.certificates(folder, *self.hosts)
        peers = folder / "daemons.pem"
        peers.write_text((folder / "a.pem").read_text() + (folder / "b.pem").read_text())
        words = ["batos", "storage", "kept.fs", "--listen", f"{self.hosts['s']}:9991", "--tls-cert", "s.own"]
        self.server = engines.StorageProcess(folder, [*words, "--tls-peers", peers], self._network.starter("s"))

    def start(self, name, stands_by=True):
        uri = f"{self.server.uri}?tls_cert={self.folder}/{name}.own&tls_peers={self.folder}/s.pem"
        starter = self._network.starter(name)
        return engines.Host(self.folder, name, uri, self.endpoints[name], LEASE_S, stands_by, starter)

    def cut(self, name, off):
        """Cut a host off, or join it again."""
        self._network.cut(name, off)

    def close(self):
        self.server.stop()
        self._network.close()


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def has_namespaces():
    """Whether network namespaces can be had here."""
    if not shutil.which("ip") or os.getuid() != 0:
        return False
    done = subprocess.run(["ip", "netns", "add", f"batos{os.getpid()}try"], capture_output=True).returncode == 0
    if done:
        ip("netns", "del", f"batos{os.getpid()}try")
    return done


def part_with(hosts, writer, way):
    """Have the writer go by a way; returns whether it is to be continued."""
    if way[0] == "cut":
        hosts.cut(writer.name, True)
        return True
    if way[0] == "kill":
        writer.end(signal.SIGKILL)
        return False
    if not writer.stop_amid(*way[1:]):
        writer.process.send_signal(signal.SIGSTOP)           # nothing was committed there just now
    return True


def one_turn(hosts, writer, other, way, load, rng):
    """Part with the writer under load, and have the other take over. Returns (the new writer, the new stand-by)."""
    threads = load.run(1, ",".join(hosts.endpoints.values()))
    time.sleep(rng.uniform(0.2, 0.8))
    continued = part_with(hosts, writer, way)
    other.wait_for("listens on")
    if continued:
        if way[0] == "cut":
            hosts.cut(writer.name, False)
        writer.process.send_signal(signal.SIGCONT)
        status = writer.process.wait(120)
        if status != batos._EXIT_FENCED:
            load.problems.append(f"{way}: the one before ended with {status}: {writer.lines[-3:]}")
        writer.end()
    again = hosts.start(writer.name).wait_for("stands by on")
    time.sleep(rng.uniform(0.1, 0.4))
    loads.finish(threads, load)
    return other, again


def campaign(folder, turns, seed, tell=lambda line: None, make_hosts=Processes):
    """Have so many takeovers under load. Returns {"turns", "hosts", "acknowledged", "takeover_s", "problems"}."""
    hosts, rng, load, took = make_hosts(pathlib.Path(folder)), random.Random(seed), loads.Load(), []
    running = [hosts.start("a", stands_by=False).wait_for("listens on"), hosts.start("b").wait_for("stands by on")]
    try:
        for number in range(turns):
            way, started_s = hosts.ways[number % len(hosts.ways)], time.monotonic()
            running = list(one_turn(hosts, *running, way, load, rng))
            took.append(round(time.monotonic() - started_s, 1))
            loads.settle(load, running[0].endpoint)
            tell(f"{number + 1} of {turns}: {' '.join(way)}, {len(load.acknowledged)} acknowledged")
        missions = sum(load.sent[key][0] == "initiate_cognitive_cycle" for key in load.acknowledged)
        loads.missions_end(running[0].endpoint, missions)
    finally:
        for one in reversed(running):                        # the stand-by first, or it would take over
            one.end()
        hosts.close()
    load.problems += faults_after(hosts, load)
    return {"turns": turns, "seed": seed, "hosts": hosts.told, "acknowledged": len(load.acknowledged), "turn_s": took,
            "problems": load.problems}


def faults_after(hosts, load):
    """Yield what a deep check finds, keys that are lost or doubled, and commits by one who was replaced."""
    path = hosts.folder / "kept.fs"
    yield from batos.check_image(path, deep=True)["faults"]
    counts = loads.keys_in_pages(path)
    yield from [f"the key {key} stands in {counts[key]} pages" for key in load.acknowledged if counts[key] != 1]
    epochs = epochs_of(path)
    if epochs != sorted(set(epochs)):
        yield f"somebody who was replaced committed: epochs {epochs}"


if __name__ == "__main__":
    chosen = Namespaces if has_namespaces() else Processes
    loads.run("takeover", functools.partial(campaign, make_hosts=chosen), turns=20)
