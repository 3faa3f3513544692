"""Replay a month of missions with a clock of our own; print what the drive made of it, day by day, as Markdown.

    python tests/bench/month.py [--days 30] [--seed 21] [--report tests/bench/month.md]

Twenty questions a day over documents that grow in number; from the tenth day to the sixteenth three a day ask of giraffes, which
no document names; from the twentieth to the twenty-second each third answer is marked wrong; the last week asks the same five
questions again and again. Heartbeats come three times a day, and what they begin is waited for. The core is a double and the
embedder off: personas, gate, ether, audits and the metric do not need them, and the report is the same for a seed. A mission
takes no time by this clock.
"""

import argparse
import collections
import datetime
import pathlib
import random
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import doubles
from test_autotelic import Kept

import batos

DAY_S = 86_400
BEGIN = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
TOPICS = "valve pump mast lantern gauge bellows rudder anchor boiler compass hinge ladle".split()
KINDS = "brass copper iron oak tin lead glass cork felt slate".split()
QUESTIONS_A_DAY, BEATS_A_DAY = 20, 3
GIRAFFES, MARKED, DULL = range(10, 17), range(20, 23), range(24, 31)


class Clock:
    """A clock that passes when it is told to, in place of the machine's."""

    def __init__(self):
        self.now, self.count = BEGIN, 0
        batos.now_utc = lambda: self.now
        batos.unix_us = batos.steady_us = self.us

    def us(self):
        self.count += 1                                             # no two things are at once
        return int(self.now.timestamp() * 1e6) + self.count

    def pass_s(self, seconds):
        self.now, self.count = self.now + datetime.timedelta(seconds=seconds), 0


class Month:
    """A mind that is asked for a month, and what came of each day."""

    def __init__(self, folder, seed):
        self.rng, self.clock, self.days = random.Random(seed), Clock(), []
        self.kept = Kept(folder, doubles.QuickCore(), workers=1)
        self.learnt = []
        self.write(lambda root: root.update(image_id=f"month {seed}"))          # by it and the cycle's name the gate draws

    def run(self, days):
        for day in range(1, days + 1):
            self.days.append(self.one_day(day))
        return self.days

    def one_day(self, day):
        """Ask a day's questions, with a heartbeat now and then; return its figures."""
        counts, began = collections.Counter(), len(self.kept.ended)
        self.learn(day)
        for number in range(QUESTIONS_A_DAY):
            self.ask(self.question(day, number), day, number)
            self.clock.pass_s(DAY_S / QUESTIONS_A_DAY - 60)
            if number % (QUESTIONS_A_DAY // BEATS_A_DAY) == 5:
                counts["beats"] += 1
                counts["begun"] += self.beat()
        for report in self.kept.ended[began:]:
            counts.update(told_of(report))
        return {"day": day, **counts, **self.figures()}

    def learn(self, day):
        """Learn two documents a day until the metric's week would be still."""
        for _ in range(2 if day < DULL[0] else 0):
            topic, kind = self.rng.choice(TOPICS), self.rng.choice(KINDS)
            text = f"The {kind} {topic} is cleaned {self.rng.randint(2, 30)} times a year by hand {self.rng.randint(1, 9)}.\n"
            self.index(f"{kind}-{topic}.md", text)
            self.learnt.append((kind, topic))

    def index(self, name, text):
        self.kept.uvm.lanes["bulk"].call(batos.Job("learn", lambda root: batos.index_document_(
            root["knowledge_catalog_obj"], name, text)["chunks"]))

    def question(self, day, number):
        if day in GIRAFFES and number % 7 == 3:
            return "What do giraffes eat in Kenya?"
        pool = self.learnt[:5] if day in DULL else self.learnt
        kind, topic = self.rng.choice(pool)
        return f"How often is the {kind} {topic} cleaned in a year?"

    def ask(self, text, day, number):
        brief = {"type": "direct_synthesis", "selector": "answer_", "args": [text]}
        oid = self.write(lambda root: batos.cycle_id(
            batos.send(root["orchestrator_obj"], "start_cognitive_cycle_for_", brief)))
        self.wait()
        report = next(each for each in reversed(self.kept.ended) if each["cycle"] == oid)
        if day in MARKED and number % 3 == 0 and report.get("evidence"):
            self.write(lambda root: batos.mark_answer(root, oid, "wrong", ""))

    def write(self, apply):
        return self.kept.uvm.lanes["write"].call(batos.Job("month", apply, who="local")).result

    def wait(self):
        """Wait until no mission is at work."""
        with self.kept._more:
            assert self.kept._more.wait_for(lambda: not self.kept.uvm.mind.missions, 120)

    def beat(self):
        """Let the heart beat once; return whether a mission was begun."""
        with batos.reading(self.kept.image) as root:
            looked = batos.look_at_outcomes(root)
        told = self.write(batos.beat(self.kept.settings, looked))
        self.wait()
        return told["cycle"] is not None

    def figures(self):
        with batos.reading(self.kept.image) as root:
            history, autotelic = root["autotelic_obj"].cem_history, root["autotelic_obj"]
            row = history[history.maxKey()] if len(history) else {}
            traces = collections.Counter(trace.kind for trace in root["digital_ether"].pheromones.values())
            return {"cem": row.get("cem"), "low": row.get("low"), "h_cog": row.get("h_cog"), "h_sol": row.get("h_sol"),
                    "h_struc": row.get("h_struc"), "traces": dict(traces), "lines": len(autotelic.report)}

    def report_lines(self):
        """Return what the report of audits says, oldest first."""
        with batos.reading(self.kept.image) as root:
            return [(row["at"], row["kind"], row["what"]) for row in root["autotelic_obj"].report.values()]


def told_of(report):
    """Yield what a report of a mission counts for."""
    if report["type"] != "direct_synthesis":
        yield "audits"
        return
    yield "questions"
    yield "told" if report.get("relevant") else "not told"
    if (report.get("routing") or {}).get("let_in"):
        yield "guests"


def as_markdown(days, lines, seed):
    """Return the report."""
    rows = ["# A month of missions", "",
            f"BAT OS {batos.__version__}; by `python tests/bench/month.py --seed {seed} --report tests/bench/month.md`.",
            "What is asked when stands in the head of that script; `begun` are missions that heartbeats began, `lines` those of",
            "the audits' report by then. CEM and its parts are those of the day's last heartbeat.", "",
            "| day | questions | told | guests | begun | CEM | H_cog | H_sol | H_struc | low | traces | lines |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for day in days:
        figures = [f"{day[name]:.2f}" if day[name] is not None else "" for name in ("cem", "h_cog", "h_sol", "h_struc")]
        traces = ", ".join(f"{kind.lower()} {count}" for kind, count in sorted(day["traces"].items()))
        counts = [str(day.get(name, 0)) for name in ("day", "questions", "told", "guests", "begun")]
        rows.append(f"| {' | '.join([*counts, *figures])} | {'yes' if day['low'] else ''} | {traces} | {day['lines']} |")
    total = collections.Counter()
    for day in days:
        total.update({name: day.get(name, 0) for name in ("questions", "told", "guests", "begun")})
    rows += ["", f"In all {total['questions']} questions, {total['told']} told for sure, {total['guests']} guests let in, "
                 f"{total['begun']} missions begun by heartbeats.", "", "What the report of the audits says:", ""]
    rows += [f"- day {(at - BEGIN).days + 1}: {kind}: {what}" for at, kind, what in lines]
    return "\n".join(rows) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--report", type=pathlib.Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        month = Month(folder, args.seed)
        text = as_markdown(month.run(args.days), month.report_lines(), args.seed)
        month.kept.close()
    if args.report:
        args.report.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
