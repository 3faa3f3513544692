"""Ask questions of two daemons that differ in who speaks, in turns, and hold the answers against each other: lost, won, cost.

    python tests/bench/paired.py MANUALS [--sources FOLDER] [--depth N] [--most N] [--show]

MANUALS holds what answers.txt names, FOLDER the sources of Python's documentation that questions.json names. One daemon lets
nobody in and explores nothing (gate, contrapunto and branches off), the other is as it comes; with --depth the second is asked
at that depth too. Each question is asked of both, the first one in turns, so that what else the machine does meets both alike.

Told are: of how many questions the answer was right before and is not now (lost), or the other way (won); whose first passage
is another; and the cost of an answer at median and p95: seconds on the clock, processor time of the daemon, and the seconds
until the first passage was there; by whether branches, contrapunto or neither came in, and of factual questions without
either.

Of the 64 questions over the manuals 47 were right before and 48 now: none lost, one won, two first passages others (16
guests, one answer with `also`). At --depth 2 two were lost and three won. In processor time, which what else the machine does
changes little: 54 answers with neither contrapunto nor branches took 0.70 s before and 0.79 now at median, 1.51 and 1.54 at
p95, and in half of the pairs nothing more; 8 with contrapunto 1.17 and 1.50 s; 2 with branches 0.9 and 2.9 s; of 52 that
--depth 2 had thought along several ways 1.07 and 1.39 s, 1.68 and 2.82 s at p95.
"""

import argparse
import collections
import contextlib
import json
import math
import os
import pathlib
import statistics
import time

import answers
from ready import served

HERE = pathlib.Path(__file__).resolve().parent
OFF = {"gate": "false", "contrapunto": "false", "branches": "false"}
TICKS = os.sysconf("SC_CLK_TCK")


def sources_asked():
    """Return the Questions of questions.json: right is what is of a right file."""
    rows = json.loads((HERE / "questions.json").read_text("utf-8"))["questions"]
    return [answers.Question("sources", row["question"], tuple(name for name, _ in row["right"]), False) for row in rows]


def is_right(question, report):
    """Whether an answer is right, or rightly refused; of the sources, whether its first passage is of a right file."""
    if question.kind != "sources":
        return answers.verdict(question, report) in ("right", "refused rightly")
    first = [item["doc_id"].partition(".")[0] for item in report.get("evidence", ())[:1]]
    return any(name.endswith(question.expected) for name in first)


def processor_s(pid):
    """Return how many seconds of processor time a process took."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Side:
    """A daemon, and what was asked of it."""

    def __init__(self, client, depth):
        self.client, self.depth = client, depth
        self.pid = client.call("health")["result"]["pid"]

    def ask(self, question, conversation):
        """Return (report, seconds, seconds of processor time)."""
        brief = {"type": "direct_synthesis", "selector": "answer_", "args": [question.text], "conversation": conversation}
        if self.depth is not None:
            brief["kwargs"] = {"depth": self.depth}
        used_s, started_s = processor_s(self.pid), time.perf_counter()
        reply = self.client.call("initiate_cognitive_cycle", answers.WAIT_S, mission_brief=brief, wait=True)
        took_s = time.perf_counter() - started_s
        used_s = processor_s(self.pid) - used_s
        return reply["result"], took_s, used_s, self.first_passage_s(reply["result"]["cycle"])

    def first_passage_s(self, cycle):
        """Return how long the first step of a cycle's journal took, by which the first passage is found."""
        slots = self.client.call("inspect", target=cycle)["result"]["slots"]
        first = slots["journal"]["value"][0]
        return self.client.call("inspect", target=first["$ref"])["result"]["slots"]["seconds"]["value"]


def way_of(report):
    """Return what came in when an answer was made."""
    if "tree" in report:
        return "branches"
    if "contrapunto" in report.get("routing", {}):
        return "contrapunto"
    return "factual" if report.get("archetype") == "Factual Inquiry" else "other"


def p95(values):
    return sorted(values)[math.ceil(0.95 * (len(values) - 1))]


class Pairs:
    """What came of the questions of one kind, asked of both."""

    def __init__(self):
        self.lost, self.won, self.other_first = [], [], []
        self.right = collections.Counter()
        self.costs = collections.defaultdict(list)
        self.shown = collections.Counter()

    def add(self, question, before, now):
        """Count the (report, seconds, processor seconds) of a question before and now."""
        was, is_now = (is_right(question, told[0]) for told in (before, now))
        self.right.update({"before": was, "now": is_now})
        if was != is_now:
            (self.lost if was else self.won).append(question.text)
        firsts = [[item["chunk_id"] for item in told[0].get("evidence", ())[:1]] for told in (before, now)]
        if firsts[0] != firsts[1]:
            self.other_first.append(question.text)
        self.shown["also"] += any("also" in item for item in now[0].get("evidence", ()))
        self.shown["guests"] += bool(now[0].get("routing", {}).get("let_in"))
        self.costs[way_of(now[0])].append((before[1:], now[1:]))

    def lines(self):
        """Yield the lines that tell it."""
        total = sum(map(len, self.costs.values()))
        yield (f"{total} questions: right {self.right['before']} before, {self.right['now']} now; lost {len(self.lost)}, "
               f"won {len(self.won)}; another first passage {len(self.other_first)}; guests {self.shown['guests']}, "
               f"answers with `also` {self.shown['also']}")
        for what in ("lost", "won", "other_first"):
            yield from (f"    {what}: {text}" for text in getattr(self, what))
        for way, rows in sorted(self.costs.items()):
            for place, unit in enumerate(("s on the clock", "s of processor", "s to a passage")):
                before, now = ([row[side][place] for row in rows] for side in (0, 1))
                more = statistics.median([b - a for a, b in zip(before, now, strict=True)])
                yield (f"    {way:11} {len(rows):4}  {unit:14}  median {statistics.median(before):.2f} -> "
                       f"{statistics.median(now):.2f}, p95 {p95(before):.2f} -> {p95(now):.2f}; of a pair {more:+.3f}")


def compared(sides, questions, show):
    """Print what came of questions."""
    pairs = Pairs()
    talk = 0
    for number, question in enumerate(questions):
        talk += not question.follows
        told = {}
        for place in ((0, 1), (1, 0))[number % 2]:
            told[place] = sides[place].ask(question, f"bench-{talk}")
        pairs.add(question, told[0], told[1])
        if show:
            said = [told[place][0].get("answer") for place in (0, 1)]
            print(f"{way_of(told[1][0]):12} {question.text}", *said, sep="\n    ", flush=True)
    print(*pairs.lines(), sep="\n", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--sources", type=pathlib.Path)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--only", help="a kind of question of the manuals")
    parser.add_argument("--most", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=1, help="how often each is asked")
    parser.add_argument("--show", action="store_true")
    how = parser.parse_args()
    manual = [question for question in answers.questions() if how.only in (None, question.kind)]
    sets = [(how.folder, manual * how.repeat)]
    if how.sources:
        sets.append((how.sources, sources_asked() * how.repeat))
    for folder, asked in sets:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(served(**settings)) for settings in (OFF, {})]
            for client in clients:
                answers.learn(client, folder)
            sides = [Side(clients[0], None), Side(clients[1], how.depth)]
            print(f"{folder.name}:", end=" ")
            compared(sides, asked[:how.most], how.show)


if __name__ == "__main__":
    main()
