"""Clients that write, learn and ask, with keys; what was acknowledged must be there, whatever happens to the daemon."""

import argparse
import collections
import contextlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
import batos

QUESTION = {"type": "direct_synthesis", "selector": "answer_", "args": ["Which note speaks of the brass valve?"]}
WRITERS, THINKERS, LEARNERS = 6, 2, 2


class Load:
    """Clients that write, learn and ask with keys, each its own thread; what was acknowledged is kept.

    A request without a reply is sent again with its key, to the next daemon, before anything else.
    """

    def __init__(self):
        self.endpoint, self.stop = None, threading.Event()
        self.acknowledged = {}                           # key -> reply
        self.sent = {}                                   # key -> (command, fields)
        self.values, self.problems = {}, []              # slot -> last acknowledged value
        self.open = {}                                   # client -> key that waits for its reply

    def run(self, seconds, endpoint):
        """Load a daemon until it dies, or for some seconds."""
        self.endpoint = endpoint
        self.stop.clear()
        threads = [threading.Thread(target=self._client, args=(kind, number)) for kind, count in
                   (("write", WRITERS), ("learn", LEARNERS), ("ask", THINKERS)) for number in range(count)]
        for thread in threads:
            thread.start()
        return threads

    def _client(self, kind, number):
        name, rng = f"{kind}{number}", random.Random(f"{kind}{number}{time.time()}")
        with batos.Client(self.endpoint, timeout_s=0.5) as client:
            while not self.stop.is_set():
                key = self.open.get(name) or self._next(kind, name, rng)
                self.open[name] = key
                command, fields = self.sent[key]
                try:
                    reply = client.call(command, idempotency_key=key, **fields)
                except (batos.NoReply, batos.ShuttingDown, batos.Busy, batos.NotWriter, batos.StorageOffline):
                    continue
                except batos.BatosError as error:
                    self.problems.append(f"{command}: {error!r}")
                    return
                self._acknowledge(name, key, reply)

    def _next(self, kind, name, rng):
        key, number = batos.uuid7(), len(self.sent)
        self.sent[key] = {
            "write": lambda: ("send_message", {"target": "genesis_obj", "selector": "setSlot:value:",
                                               "args": [name, f"{number} {'x' * rng.choice((1, 1, 9000))}"]}),
            "learn": lambda: ("index_document", {"doc_id": name, "text": f"Note {number} speaks of the brass valve."}),
            "ask": lambda: ("initiate_cognitive_cycle", {"target_oid": "genesis_obj", "mission_brief": {
                **QUESTION, **rng.choice(({}, {"conversation": name},
                                          {"conversation": name, "args": [f"Note {number} is old."]}))}}),
        }[kind]()
        return key

    def _acknowledge(self, name, key, reply):
        self.acknowledged[key] = reply
        command, fields = self.sent[key]
        if command == "send_message":
            self.values[name] = fields["args"][1]
        self.open[name] = None


def finish(threads, load):
    load.stop.set()
    for thread in threads:
        thread.join(60)
    assert load.problems == [] and not any(thread.is_alive() for thread in threads)


def settle(load, endpoint):
    """Send again what waits for its reply; then every acknowledged change must be there."""
    with batos.Client(endpoint, timeout_s=30) as client:
        for name, key in load.open.items():
            if key:
                command, fields = load.sent[key]
                load._acknowledge(name, key, client.call(command, idempotency_key=key, **fields))
        slots = client.call("inspect", target="genesis_obj")["result"]["slots"]
        for name, value in load.values.items():
            assert slots[name]["value"] == value
        for key in random.sample(list(load.acknowledged), min(40, len(load.acknowledged))):
            command, fields = load.sent[key]
            again = client.call(command, idempotency_key=key, **fields)
            assert again["repeated"] and again["change"] == load.acknowledged[key]["change"]
            assert again["result"] == load.acknowledged[key]["result"]


def missions_end(endpoint, count):
    """Wait until all missions have ended well; there is one for each acknowledged key."""
    with batos.Client(endpoint, timeout_s=30) as client:
        deadline_s, states = time.monotonic() + 120, None
        while time.monotonic() < deadline_s:
            rows = client.call("list_cycles", limit=1000)["results"]
            states = collections.Counter(row["state"] for row in rows)
            if set(states) <= {"COMPLETE"}:
                assert len(rows) == min(count, 1000)
                return
            time.sleep(0.1)
        raise AssertionError([row for row in rows if row["state"] not in ("COMPLETE", "IDLE")][:3] or states)


def keys_in_pages(path):
    """Return how often each key stands in the ledger."""
    image = batos.Image.open(str(path))
    with batos.reading(image) as root:
        found = collections.Counter(entry["key"] for lane in ("write", "bulk")
                                    for page in getattr(root["ledger_obj"], lane).values() for entry in page.entries)
    image.close()
    del found[None]
    return found


def run(name, campaign, **sizes):
    """Run a campaign in a temporary folder, with sizes and a seed from the command line, and report it."""
    parser = argparse.ArgumentParser(description=f"the campaign {name}")
    for size, default in {**sizes, "seed": 1}.items():
        parser.add_argument(f"--{size}", type=int, default=default)
    chosen = vars(parser.parse_args()).values()
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as where, contextlib.chdir(where):
        result = campaign(where, *chosen, lambda line: print(line, flush=True))
    raise SystemExit(note_report(name, result))


def _git(*words):
    return subprocess.run(["git", *words], cwd=pathlib.Path(__file__).parent, capture_output=True, text=True).stdout


def note_report(name, result):
    """Print a campaign's result, and write it into report.json with the commit that it was run on."""
    path = pathlib.Path(__file__).with_name("report.json")
    commit = _git("describe", "--always").strip() + ("-dirty" if _git("status", "--porcelain", ":/", f":!{path.name}") else "")
    rows = json.loads(path.read_text()) if path.exists() else {}
    rows[name] = {"commit": commit, "date": time.strftime("%Y-%m-%d"), **result}
    path.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
    print(json.dumps(result))
    return int(bool(result.get("problems")))


def _drift(row):
    early, late = row["samples"][len(row["samples"]) // 2 - 1], row["samples"][-1]
    return ", ".join(f"{name.replace('_', ' ')} {early[name]:g} → {late[name]:g}" for name in
                     ("memory_mb", "threads", "descriptors", "disk_mb", "p50_ms", "p99_ms"))


TOLD = {                                                 # campaign -> (what it is, what was tried, what held)
    "powercut": (
        "power cut",
        lambda row: f"{row['cuts']:,} cuts among {row['operations']} recorded file operations",
        lambda row: f"{row['problems']} with anything acknowledged lost, a blob torn, or an image that does not open"),
    "powercut of copies": (
        "power cut amid upgrade, backup, restore and recover",
        lambda row: f"{row['cuts']:,} cuts among {row['operations']} recorded file operations",
        lambda row: f"{row['problems']} with anything lost, a backup that does not verify, or a copy that is not whole"),
    "powercut of plain ZODB": (
        "the same with ZODB as it comes",
        lambda row: f"{row['cuts']:,} cuts",
        lambda row: f"{row['problems']} with something lost or torn"),
    "kills": (
        "`kill -9`",
        lambda row: f"{row['kills']:,} kills: {row['load']['kills']:,} under mixed load with packs, backups and large documents, "
                    "the rest in genesis, upgrade, recover and restore",
        lambda row: f"{row['load']['acknowledged']:,} acknowledged, {len(row['problems'])} lost or doubled; deep checks good"),
    "takeover": (
        "takeover by a stand-by",
        lambda row: f"{row['turns']} takeovers under mixed load, {row['hosts']}: the writer killed, cut off, or stopped amid a "
                    "commit of each lane and continued",
        lambda row: f"{row['acknowledged']:,} acknowledged, {len(row['problems'])} lost, doubled or committed by one that was "
                    "replaced; deep check good"),
    "upgrades": (
        "another program takes the image over, and back",
        lambda row: f"{row['turns']} upgrades while {row['clients']} clients changed and one read, on a machine with a load of "
                    f"{row['load']}; six kinds of broken programs",
        lambda row: f"{row['changes']:,} acknowledged, {row['lost']} lost, {row['doubled']} doubled; the longest gap of a client "
                    f"{row['gap_reads_s']:.0f} s for reads, {row['gap_changes_s']:.0f} s for changes; each broken one was gone "
                    "back from"),
    "forgings": (
        "the forge is killed",
        lambda row: f"{row['turns']} forgings of the base's expert (engine stub; {row['wanted']} were wanted): the daemon killed "
                    "at some moment, in half of them the worker before",
        lambda row: f"each one candidate and one promotion, {len(row['problems'])} torn, none left at work; deep checks good"),
    "lossy": (
        "lossy path",
        lambda row: f"{row['commands']:,} commands; of their messages {row['lost']:,} lost, {row['doubled']:,} doubled, "
                    f"{row['late']:,} late",
        lambda row: f"{len(row['problems'])} lost or doubled; {row['repeated']:,} answered as repeated"),
    "fuzz": (
        "fuzzing of the wire",
        lambda row: f"{row['inputs']:,} malformed inputs, {row['identities']:,} identities, half-open and foreign connections",
        lambda row: f"{row['replies']:,} replies, memory {row['memory_mb'][0]:g} → {row['memory_mb'][1]:g} MB, "
                    f"{len(row['problems'])} problems"),
    "soak": (
        "soak",
        lambda row: f"{row['commands']:,} mixed commands ({row['per_s']:,}/s) and {row['cycles']:,} cycles",
        lambda row: f"from the middle to the end: {_drift(row)}; {len(row['problems'])} problems"),
}


def report_table():
    """Return report.md's table of the campaigns, as report.json tells them."""
    told = json.loads(pathlib.Path(__file__).with_name("report.json").read_text())
    rows = ["| campaign | tried | what held | commit, seed |", "|---|---|---|---|"]
    return "\n".join(rows + [f"| {what} | {tried(told[name])} | {held(told[name])} | {told[name]['commit']}, "
                             f"{told[name]['seed']} |" for name, (what, tried, held) in TOLD.items() if name in told])
