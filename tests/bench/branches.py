"""Ask questions that want two steps, and the same in the name of what they tell of, at depth 0 and 2; count and time them.

    python tests/bench/branches.py [--most N] [--endpoint ENDPOINT]

The questions are made by `tests/planted.py` from pairs of articles (shared/data/reading) that share a name. A daemon learns the
articles; with an endpoint one is asked that has learnt them. An answer is right where it is told for sure, and its first passage
holds what people answered.

Of 61 of these questions 3 are right at depth 0 and 30 at depth 2, none is lost (sign test p = 7e-9); in the name of what they
tell of 42 are right without branches and 43 with them. (When less was asked of what is told for sure it were 4, 42 and 48 of 61;
of 43 of them, by which nothing was chosen, 3 and 28.) On one thread a question took 1.7 s at depth 0 and 5.9 s at depth 2; one
that tells of nothing takes 0.1 % more than before.
"""

import argparse
import contextlib
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from ready import ROOT, served

sys.path.insert(0, str(ROOT / "tests"))
import planted

import batos

WAIT_S = 300.0


def learnt(client, texts):
    """Have a daemon learn texts, and wait for their vectors."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            (pathlib.Path(folder) / f"{name}.txt").write_text(text, "utf-8")
        command = [sys.executable, str(ROOT / "batos.py"), "learn", folder, "--endpoint", client.endpoint]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    while client.call("health")["result"]["embedder"]["waiting"] != 0:
        time.sleep(1)


def asked(client, question, depth):
    """Return (report, seconds) of a question."""
    started_s = time.monotonic()
    brief = {"type": "direct_synthesis", "selector": "answer_", "args": [question], "kwargs": {"depth": depth}}
    reply = client.call("initiate_cognitive_cycle", WAIT_S, mission_brief=brief, wait=True)
    return reply["result"], time.monotonic() - started_s


def is_right(report, answers):
    """Return whether the first passage holds an answer, and is told for sure."""
    if not report.get("relevant"):
        return False
    told = " ".join(report["evidence"][0]["text"].split()).casefold()
    return any(answer.casefold() in told for answer in answers)


def sign_test(wins, losses):
    """Return how likely so many wins of all that differ would be by chance, one-sided."""
    total = wins + losses
    return sum(math.comb(total, k) for k in range(wins, total + 1)) / 2 ** total


def compared(client, rows):
    """Print what came of [(question, answers)] at depth 0 and 2."""
    right, seconds = {0: [], 2: []}, {0: [], 2: []}
    for question, answers in rows:
        for depth in (0, 2):
            report, took_s = asked(client, question, depth)
            right[depth].append(is_right(report, answers))
            seconds[depth].append(took_s)
    pairs = list(zip(right[0], right[2], strict=True))
    wins, losses = sum(not was and now for was, now in pairs), sum(was and not now for was, now in pairs)
    medians = " and ".join(f"{statistics.median(seconds[depth]):.2f} s" for depth in (0, 2))
    print(f"{len(rows)} questions: right {sum(right[0])} at depth 0, {sum(right[2])} at depth 2; gained {wins}, lost {losses}, "
          f"p = {sign_test(wins, losses):.2g}; median {medians}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--most", type=int, default=200)
    parser.add_argument("--endpoint")
    args = parser.parse_args()
    texts = planted.articles()
    rows = planted.two_hops(texts, seed=22)[:args.most]
    daemon = contextlib.nullcontext(batos.Client(args.endpoint)) if args.endpoint else served()
    with daemon as client:
        if not args.endpoint:
            learnt(client, texts)
        print("what a clause tells of:", end=" ")
        compared(client, [(row.question, row.answers) for row in rows])
        print("the same by its name:", end=" ")
        compared(client, [(row.direct, row.answers) for row in rows])


if __name__ == "__main__":
    main()
