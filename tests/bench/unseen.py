"""Judge methods that were written for messages nobody has seen (tests/data/unseen): right, wrong or refused, marked or not.

    python tests/bench/unseen.py [--only ID,ID,…] [--report tests/data/unseen/report.md]

A daemon with the embedded core is asked each message on an object of its own. A method is right where it does what the
message and both of its checks want: results, and slots that change, and no other slot. It is marked where the reply says
`guess: true` or Unconfirmed. A method that would change something is judged by what it says that it would change.
"""

import argparse
import collections
import json
import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from ready import ROOT, served

import batos

DATA = ROOT / "tests" / "data" / "unseen"
WAIT_S = 120.0
METHODS_PER_HOUR = 1_000_000        # each message wants one
RUNS = (("intent.jsonl", False), ("example.jsonl", False), ("example.jsonl", True), ("more.jsonl", False), ("more.jsonl", True))
KINDS = ("right", "wrong", "refused")


def rows_of(name):
    """Return the messages of a file."""
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


def same(one, other):
    """Return whether two values are the same; numbers compare by value."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def send(client, target, selector, *args, **fields):
    return client.call("send_message", target=target, selector=selector, args=list(args), timeout_s=WAIT_S, **fields)


class Asked:
    """One message as it is asked of an object of its own, and of the same object with the slots of its checks."""

    def __init__(self, client, row, with_example):
        self.client, self.row = client, row
        self.intent = f"{row['intent']} For example: {row['example']}" if with_example else row["intent"]
        self.target = send(client, "traits_obj", "clone")["result"]["$ref"]
        self.marked, self.source, self.why = None, None, None

    def judged(self):
        """Return "right", "wrong" or "refused"."""
        for case in (self.row, *self.row["checks"]):
            try:
                if not self.right(case):
                    return "wrong"
            except batos.MethodFailed as error:
                self.why = error.message
                return "wrong"
            except batos.BatosError as error:
                self.why = error.message
                return "refused" if case is self.row else "wrong"
        return "right"

    def right(self, case):
        """Return whether the object answers a case, and changes, as it is wanted."""
        for slot, value in case["slots"].items():
            send(self.client, self.target, "setSlot_value_", slot, value)
        result, changed = self.answer(case)
        wanted = {**case["slots"], **case["after"]}
        held = case["result"] is None or same(result, case["result"])
        return held and all(same(changed.get(slot, case["slots"].get(slot)), value) for slot, value in wanted.items())

    def answer(self, case):
        """Return (result, {slot: value afterwards})."""
        try:
            reply = send(self.client, self.target, self.row["selector"], *case["args"], intent=self.intent, wait=True)
        except batos.Unconfirmed as error:
            self.note(True, error.fields)
            return error.fields["would_return"], error.fields["would_change"]
        self.note(bool(reply.get("guess")), reply)
        slots = self.client.call("inspect", target=self.target)["result"]["slots"]
        return reply["result"], {name: slots[name]["value"] for name in case["slots"]}

    def note(self, marked, told):
        if self.marked is None:
            self.marked, self.source, self.why = marked, told.get("source"), told.get("why")


def run(client, name, with_example, only):
    """Return [(row, kind, marked, source, why)] of a file."""
    ended = []
    for row in rows_of(name):
        if not only or row["id"] in only:
            asked = Asked(client, row, with_example)
            ended.append((row, asked.judged(), bool(asked.marked), asked.source, asked.why))
    return ended


def table(title, ended):
    """Return the counts of a run as rows of Markdown."""
    counts = collections.Counter((kind, marked) for _, kind, marked, *_ in ended)
    cells = [f"{counts[kind, True]} / {counts[kind, False]}" for kind in KINDS[:2]] + [str(counts["refused", False])]
    right = sum(counts["right", marked] for marked in (True, False))
    return f"| {title} | {len(ended)} | {right} | {' | '.join(cells)} |"


def told(results):
    """Return the report of all runs, as Markdown."""
    lines = ["# What came of the unseen messages", "",
             f"BAT OS {batos.__version__}, embedded core and router; made by `python tests/bench/unseen.py --report …`.", "",
             "| messages | count | right | right: marked / unmarked | wrong: marked / unmarked | refused |",
             "|---|---|---|---|---|---|"]
    unmarked = collections.Counter()
    for (name, with_example), ended in results.items():
        by = "one example" if with_example else "intent only"
        lines.append(table(f"{name}, {by}", ended))
        if with_example:
            few = [each for each in ended if each[0]["steps"] <= 2]
            lines.append(table(f"{name}, {by}, one or two steps", few))
        unmarked.update(kind for _, kind, marked, *_ in ended if not marked and kind != "refused")
    lines += ["", f"Unmarked in all runs: {unmarked['right']} right, {unmarked['wrong']} wrong.", ""]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="ids, with commas between")
    parser.add_argument("--report", help="the file that the tables are written into")
    parser.add_argument("--show", action="store_true", help="tell what came of each message (whoever tunes does not look)")
    args = parser.parse_args()
    only, results = set(filter(None, args.only.split(","))), {}
    with served(methods_per_hour=METHODS_PER_HOUR) as client:
        for name, with_example in RUNS:
            results[name, with_example] = run(client, name, with_example, only)
            print(told(results), flush=True)
            for row, kind, marked, source, why in results[name, with_example] if args.show else ():
                print(row["id"], kind, "marked" if marked else "unmarked", source, why, sep=" | ", flush=True)
    if args.report:
        pathlib.Path(args.report).write_text(told(results), "utf-8")


if __name__ == "__main__":
    main()
