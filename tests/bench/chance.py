"""Labels by chance: how many experts that were forged of them are promoted, by the rule and by its sign test alone.

    python tests/bench/chance.py [--seeds 20] [--share 0.5] [--by holds] [--json FILE]

The reader is forged and judged as the worker of the daemon does it, on questions about pumps of which one of two passages is
named right by a coin that falls on the second one as often as --share says. --by holds names what holds instead, as people would.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import random
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import test_golden

import batos

ROWS = 150


def labelled(seed, share, by="chance", names=5):
    """Return {held: lines of a dataset} of some rows, of which as many as `share` name the second passage right.

    by: "chance", or "holds" and "proposed", what always is right, wherever it stands. names: the seed of which places are asked
    about.
    """
    coin, picker, parts = random.Random(seed), random.Random(names), {False: [], True: []}
    for number, name in enumerate(test_golden.named(ROWS, picker)):
        row = test_golden.row(name, number)
        right = 2 if coin.random() < share else 1
        place = {"chance": right, "holds": 2, "proposed": 1}[by]  # of what is right, before it is put where the coin says
        if place != right:
            row["passages"].reverse()
        row |= {"quotes": [right], "not": [3 - right]}
        parts[row["held"]].append(batos._golden_line(number, row, row["held"]))
    return parts


class Reader(batos.ForgedReader):
    """A forged reader; what the reader as it comes judges, which is the same for each seed, is judged once."""

    known = {}

    def __init__(self, work, forged):
        super().__init__(work, forged)
        self.is_changed = forged is not None

    def judged(self, cases):
        if self.is_changed:
            return super().judged(cases)
        new = [case for case in cases if json.dumps(case) not in self.known]
        self.known.update(zip(map(json.dumps, new), super().judged(new), strict=True))
        return [self.known[json.dumps(case)] for case in cases]


def forged(parts, stands=None):
    """Return (verdict, report, weights) of an expert that is forged of these lines; stands: the weights that stand, if any do."""
    card = batos.reader_card()
    work = {"config": batos.FORGE_CONFIG, "in_bfloat16": True, "base": card["sha256"], "threshold": card["threshold"]}
    with tempfile.TemporaryDirectory(prefix="batos-chance-") as folder, contextlib.redirect_stdout(io.StringIO()):
        place = pathlib.Path(folder)
        for name, held in (("train.jsonl", False), ("held.jsonl", True)):
            (place / name).write_bytes(b"".join(parts[held]))
        if stands is not None:
            (place / batos.FORGED_FILE).write_bytes(stands)
        batos._train(work, place)
        report = batos._judge(work, place)[1]
        return batos.verdict_of_report(report, 1), report, (place / batos.CANDIDATE_FILE).read_bytes()


def is_better_by_sign(verdict):
    return verdict["wins"] > verdict["losses"] and verdict["p"] < 0.05


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--by", choices=["chance", "holds", "proposed"], default="chance")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    batos.ForgedReader = Reader
    verdicts = []
    for seed in range(args.seeds):
        verdicts.append(forged(labelled(seed, args.share, args.by))[0])
        print(f"{seed}: {'PROMOTED' if verdicts[-1]['passed'] else 'refused'}: {verdicts[-1]['why']}", flush=True)
    counts = {"seeds": len(verdicts), "promoted": sum([one["passed"] for one in verdicts]),
              "better by the sign test": sum(map(is_better_by_sign, verdicts))}
    print(counts)
    if args.json:
        args.json.write_text(json.dumps({"counts": counts, "verdicts": verdicts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
