"""Ask questions over manuals as people ask them, and count: right, partly, beside the point, refused, nearest.

    python tests/bench/answers.py FOLDER [--language de|fr] [--only KIND] [--show]

FOLDER holds what answers.txt names: the files of two packages of Debian, which apt-get download and dpkg -x give (the German and
French ones ask of one manual). A daemon with the embedded core and the embedder learns it and is asked each question. An answer
is *right* where the sentence that it tells holds what is expected, *partly* where only its passages do, *beside* the point
otherwise; a refusal is right where nothing answers. `nearest` are the replies that say that nothing says it outright, and quote
what is nearest; they are counted beside, and how many of them are right by that quote; so are the answers whose first passage
holds what is expected.
"""

import argparse
import collections
import pathlib
import re
import statistics
import subprocess
import sys
import time
import typing

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from ready import served

WAIT_S = 120.0
ASKED_IN = {"en": "answers.txt", "de": "answers.de.txt", "fr": "answers.fr.txt"}
UNANSWERABLE = ("near", "far")
VERDICTS = ("right", "partly", "beside", "refused wrongly", "refused rightly", "failed")


class Question(typing.NamedTuple):
    """A question with what its answer must hold: one of `expected`, or nothing is to be answered."""

    kind: str
    text: str
    expected: tuple
    follows: bool


def questions(language="en"):
    """Return the Questions that are asked in a language."""
    told = []
    for line in (HERE / ASKED_IN[language]).read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            kind, text, expected, *_ = line.split(" | ")
            wanted = () if expected == "-" else tuple(expected.split(" / "))
            told.append(Question(kind, text.lstrip("+"), wanted, text.startswith("+")))
    return told


def learn(client, folder):
    """Have the files of a folder learnt, and wait for their vectors."""
    command = [sys.executable, str(HERE.parents[1] / "batos.py"), "learn", str(folder), "--endpoint", client.endpoint]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    while client.call("health")["result"]["embedder"]["waiting"] != 0:
        time.sleep(1)


def ask(client, question, conversation):
    """Return (the report of a question's cycle, seconds)."""
    brief = {"type": "direct_synthesis", "selector": "answer_", "args": [question.text], "conversation": conversation}
    started_s = time.perf_counter()
    reply = client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True, timeout_s=WAIT_S)
    return reply["result"], time.perf_counter() - started_s


def holds(text, wanted):
    """Whether a text holds one of what is wanted, word by word."""
    plain = " ".join(re.findall(r"[\w/.-]+", text.casefold()))
    return any(" ".join(re.findall(r"[\w/.-]+", one.casefold())) in plain for one in wanted)


def verdict(question, report):
    """Return which of VERDICTS an answer is."""
    if "answer" not in report:
        return "failed"
    passages = [item["text"] for item in report["evidence"]]
    if not question.expected:
        sure = passages and report.get("certainty", "sure") == "sure"
        return "beside" if sure else "refused rightly"
    if not passages and not holds(report["answer"], question.expected):
        return "refused wrongly"
    if holds(report["answer"], question.expected):
        return "right"
    return "partly" if holds(" ".join(passages), question.expected) else "beside"


def words(report):
    """Return how many words the passages of an answer have."""
    return sum(len(item["text"].split()) for item in report.get("evidence", ()))


class Table:
    """What was counted: verdicts by kind of question, first passages, replies that told the nearest, seconds, words."""

    def __init__(self):
        self.kinds = collections.defaultdict(collections.Counter)
        self.first, self.nearest, self.nearest_right, self.seconds, self.words = 0, 0, 0, [], []

    def add(self, question, report, seconds):
        """Count an answer. Returns its verdict."""
        told = verdict(question, report)
        self.kinds[question.kind][told] += 1
        is_nearest = report.get("certainty") == "nearest"
        self.nearest += is_nearest
        self.nearest_right += is_nearest and told == "right"
        self.first += any(holds(item["text"], question.expected) for item in report.get("evidence", ())[:1])
        self.seconds.append(seconds)
        if report.get("evidence"):
            self.words.append(words(report))
        return told

    def lines(self):
        """Yield the lines that tell it."""
        for kind, told in self.kinds.items():
            yield f"{kind:10} " + ", ".join(f"{name} {count}" for name, count in told.items())
        total = sum(self.kinds.values(), collections.Counter())
        counts = ", ".join(f"{name} {total[name]}" for name in VERDICTS)
        yield (f"all        {counts} of {total.total()}; nearest {self.nearest}, of them right {self.nearest_right}, "
               f"first passage right {self.first}")
        yield f"medians    {statistics.median(self.words):.0f} words in all passages, {statistics.median(self.seconds):.1f} s"


def asked(client, only, language):
    """Yield (question, report, seconds) of each question of a kind, or of all."""
    talk = 0
    for question in questions(language):
        if only in (None, question.kind):
            talk += not question.follows
            yield question, *ask(client, question, f"bench-{talk}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--language", choices=ASKED_IN, default="en", help="of the questions")
    parser.add_argument("--only", help="a kind of question")
    parser.add_argument("--show", action="store_true", help="each answer too")
    how = parser.parse_args()
    table = Table()
    with served() as client:
        learn(client, how.folder)
        for question, report, seconds in asked(client, how.only, how.language):
            told = table.add(question, report, seconds)
            if how.show:
                answer = report.get("answer", report.get("reason"))
                sureness = report.get("certainty", "")
                print(f"{told:16} {question.kind:8} {sureness:8} {question.text}\n    {answer}", flush=True)
    print(*table.lines(), sep="\n")


if __name__ == "__main__":
    main()
