"""Ask questions of two daemons that differ in who speaks, in turns, and hold the answers against each other: lost, won, cost.

    python tests/bench/paired.py [MANUALS] [--sources FOLDER] [--reading FOLDER] [--missions] [OPTIONS]

MANUALS holds what answers.txt names, --sources the sources of Python's documentation that questions.json names; --reading holds
articles and questions of others, of which 150 are drawn whose answer is more than yes or no; --missions are the
200 written by hand in seed_core/missions.txt, over a memory of the sentences that stand below some of them. One daemon lets
nobody in and explores nothing (gate, contrapunto and branches off, or what --off names), the other is as it comes; with --depth
the second is asked at that depth too. Each question is asked of both, the first one in turns, so that what else the machine does
meets both alike.

Told are: of how many questions the answer was right before and is not now (lost), or the other way (won); whose first passage
or lead is another; how evenly the personas were heard (H_cog); and the cost of an answer at median and p95: seconds on the clock,
processor time of the daemon, and the seconds until the first passage was there; by whether branches, contrapunto or neither came
in, and of factual questions without either.

Of the 64 questions over the manuals 55 are right before and 55 now, none lost or won, no other lead or first passage; 26
factual answers took 1.34 and 1.28 s of a processor at median, 1.96 and 1.95 at p95, beside other work. On a quiet machine 26
factual answers with neither contrapunto nor branches took 1.19 s before and now at median, 1.90 and 1.93 at p95, .48 and .47
until the first passage; 8 with contrapunto 1.29 and 1.84 s; 2 with branches 1.1 and 3.2 s. (While a guest of a mission of one
part sought it a second time, the factual ones took .90 and 1.12 s.) Of 110 questions of others over 75 articles 74 had a right
passage first, before and now, none lost or won; 79 factual ones took 1.09 and 1.13 s, 1.59 and 1.67 at p95; H_cog .48 and .65.
At --depth 2 two of the 64 were lost and three won, earlier. Of the 200 missions, with the gate alone off and on, 70 of the 89
that a sentence answers had it first, with and without; no lead and no first passage was another; 32 guests; H_cog .65 and .84.
"""

import argparse
import collections
import contextlib
import json
import math
import os
import pathlib
import random
import shutil
import statistics
import tempfile
import time

import answers
from ready import ROOT, served

import batos

HERE = pathlib.Path(__file__).resolve().parent
MISSIONS = ROOT / "seed_core" / "missions.txt"
YES_OR_NO = {"yes", "Yes", "Yes.", "no", "No", "No."}
OFF = ("gate", "contrapunto", "branches")
TICKS = os.sysconf("SC_CLK_TCK")


def sources_asked():
    """Return the Questions of questions.json: right is what is of a right file."""
    rows = json.loads((HERE / "questions.json").read_text("utf-8"))["questions"]
    return [answers.Question("sources", row["question"], tuple(name for name, _ in row["right"]), False) for row in rows]


def missions_asked():
    """Return (the Questions of missions.txt, each sentence below them as a text to learn)."""
    asked, sentences = [], []
    for line in MISSIONS.read_text("utf-8").splitlines():
        mark, _, text = line.partition(" ")
        if mark in "+-":
            sentences.append(text)
        if mark == "+":
            asked[-1] = asked[-1]._replace(expected=(*asked[-1].expected, text))
        elif mark in tuple("TEFS"):
            asked.append(answers.Question("missions", text.replace("*", ""), (), False))
    return asked, sentences


def reading_asked(folder):
    """Return Questions of others over the articles of a folder, drawn by a seed."""
    rows = map(json.loads, (folder / "questions.jsonl").read_text("utf-8").splitlines())
    told = [row for row in rows if row["answers"] and YES_OR_NO.isdisjoint(row["answers"])]
    drawn = random.Random(21).sample(told, 150)
    return [answers.Question("reading", row["question"], tuple(row["answers"]), False) for row in drawn]


def first_of(report, name):
    """Return a field of the first passage of an answer, in a list; an empty one where there is none."""
    return [item[name] for item in report.get("evidence", ())[:1]]


def is_right(question, report):
    """Whether an answer is right, or rightly refused; of the others, whether its first passage is a right one."""
    if question.kind == "sources":
        first = [name.partition(".")[0] for name in first_of(report, "doc_id")]
        return any(name.endswith(question.expected) for name in first)
    if question.kind in ("reading", "missions"):
        return any(answers.holds(text, question.expected) for text in first_of(report, "text"))
    return answers.verdict(question, report) in ("right", "refused rightly")


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


def evenness(heard):
    """Return H_cog, the entropy of who was heard as a share of the greatest; heard: {persona: how often}."""
    shares = [count / sum(heard.values()) for count in heard.values()]
    return -sum(share * math.log(share) for share in shares) / math.log(len(batos.PILLARS))


def p95(values):
    return sorted(values)[math.ceil(0.95 * (len(values) - 1))]


class Pairs:
    """What came of the questions of one kind, asked of both."""

    def __init__(self):
        self.lost, self.won, self.other_first, self.other_lead = [], [], [], []
        self.right, self.heard = collections.Counter(), (collections.Counter(), collections.Counter())
        self.costs = collections.defaultdict(list)
        self.shown = collections.Counter()

    def add(self, question, before, now):
        """Count the (report, seconds, processor seconds) of a question before and now."""
        was, is_now = (is_right(question, told[0]) for told in (before, now))
        self.right.update({"before": was, "now": is_now})
        if was != is_now:
            (self.lost if was else self.won).append(question.text)
        if first_of(before[0], "chunk_id") != first_of(now[0], "chunk_id"):
            self.other_first.append(question.text)
        if before[0].get("lead") != now[0].get("lead"):
            self.other_lead.append(question.text)
        for heard, told in zip(self.heard, (before, now), strict=True):
            heard.update(batos._heard_in(told[0]))
        self.shown["also"] += any("also" in item for item in now[0].get("evidence", ()))
        self.shown["guests"] += bool(now[0].get("routing", {}).get("let_in"))
        self.costs[way_of(now[0])].append((before[1:], now[1:]))

    def lines(self):
        """Yield the lines that tell it."""
        total = sum(map(len, self.costs.values()))
        yield (f"{total} questions: right {self.right['before']} before, {self.right['now']} now; lost {len(self.lost)}, "
               f"won {len(self.won)}; another first passage {len(self.other_first)}, another lead {len(self.other_lead)}; "
               f"guests {self.shown['guests']}, answers with `also` {self.shown['also']}; "
               f"H_cog {evenness(self.heard[0]):.3f} -> {evenness(self.heard[1]):.3f}")
        for what in ("lost", "won", "other_first", "other_lead"):
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


def sets_asked(how, folder):
    """Yield (what is to be learnt, the Questions of it) of each set that is asked for; folder: for the missions' sentences."""
    if how.folder:
        yield how.folder, [question for question in answers.questions() if how.only in (None, question.kind)]
    if how.sources:
        yield how.sources, sources_asked()
    if how.reading:
        yield how.reading / "articles", reading_asked(how.reading)
    if how.missions:
        asked, sentences = missions_asked()
        memory = folder / "missions"
        memory.mkdir()
        for number, text in enumerate(sentences):
            (memory / f"{number:03}.txt").write_text(text, "utf-8")
        yield memory, asked


def sides_of(source, folder, off):
    """Have a daemon learn what is to be learnt; return what the two of a pair are served with: each a copy of that image."""
    homes = [pathlib.Path(f"{folder}-{name}") for name in ("before", "now")]
    homes[0].mkdir(mode=0o700)
    with served(home=homes[0]) as client:
        answers.learn(client, source)
    shutil.copytree(*homes, ignore=shutil.ignore_patterns("bat"))          # its socket
    return [{"home": homes[0], **off}, {"home": homes[1]}]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, nargs="?")
    parser.add_argument("--sources", type=pathlib.Path)
    parser.add_argument("--reading", type=pathlib.Path)
    parser.add_argument("--missions", action="store_true", help="ask the missions written by hand as well")
    parser.add_argument("--off", default=",".join(OFF), help="what the first daemon has off")
    parser.add_argument("--depth", type=int)
    parser.add_argument("--only", help="a kind of question of the manuals")
    parser.add_argument("--most", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=1, help="how often each is asked")
    parser.add_argument("--show", action="store_true")
    how = parser.parse_args()
    off = dict.fromkeys(how.off.split(","), "false")
    with tempfile.TemporaryDirectory() as folder:
        for number, (source, asked) in enumerate(sets_asked(how, pathlib.Path(folder))):
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(served(**side)) for side in sides_of(source, f"{folder}/{number}", off)]
                sides = [Side(clients[0], None), Side(clients[1], how.depth)]
                print(f"{source.name}:", end=" ")
                compared(sides, (asked * how.repeat)[:how.most], how.show)


if __name__ == "__main__":
    main()
