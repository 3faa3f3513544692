"""Judge which method the section Synthesis takes for requests by hand (tests/data/asked.txt), without a daemon and a core.

    python tests/bench/asked.py [--set asked|phrased|wanted|shaped|closing|docstrings] [--half look|check] [--examples 0] [--show]
    python tests/bench/asked.py --table             all sets and halves, with intent only and with one example

A method is right where it does on sampled objects what is meant. Of the half "check" only the counts are told.
"""

import argparse
import ast
import builtins
import collections
import functools
import itertools
import math
import pathlib
import random
import re
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import batos

DATA = ROOT / "tests" / "data"
MODULES = {"math": math, "collections": collections, "itertools": itertools, "statistics": statistics}
# by which the lines of a set are drawn for its halves; None where all were looked at, or are to judge once
SEEDS = {"asked": None, "phrased": 417, "wanted": 926, "shaped": None, "closing": None, "docstrings": None}
TRIED = 12                                               # objects on which a method is held against what is meant


class Held:
    """An object with the slots of a request."""

    def __init__(self, slots):
        self.__dict__.update(slots)


class Request:
    """A line of asked.txt. `meant` is a row of (slots that change or None, code)."""

    def __init__(self, line):
        self.selector, slots, given, self.intent, meant = (part.strip() for part in re.split(r" \|(?= )", line))
        self.slots = {each.arg: ast.literal_eval(each.value) for each in ast.parse(f"f({slots})").body[0].value.keywords}
        self.arguments = ast.literal_eval(given)
        self.names = ((), ("value",), ("first", "second"))[len(self.arguments)]
        self.meant = split_code(meant)
        rng = random.Random(self.selector)
        likes = batos._varied_inputs(self.slots, self.arguments, rng, 4 * TRIED)
        self.inputs = [(self.slots, self.arguments), *(each for each in likes if self.outcome(self.meant, *each) is not None)]

    def outcome(self, method, slots, arguments):
        """Return (what a method answers, slots that it changes), or None where it fails."""
        target, code = method
        try:
            made = evaluated(code, slots, dict(zip(self.names, arguments, strict=True)))
        except Exception:
            return None
        if target is None:
            return made, {}
        names = target.split()
        return None, {names[0]: made} if len(names) == 1 else dict(zip(names, made, strict=True))

    def examples(self, count):
        """Return examples of what is meant, over objects other than the request's own."""
        rows = []
        for slots, arguments in self.inputs[1:count + 1]:
            result, after = self.outcome(self.meant, slots, arguments)
            rows.append(self.example(slots, arguments, result, after))
        return rows

    def example(self, slots, arguments, result, after):
        used = {name: value for name, value in slots.items() if name in batos._slots_used(self.source())}
        return batos.Example("f()", arguments, used, batos.ABSENT if after else result, after)

    def source(self):
        target, code = self.meant
        changed = "".join(f"self.{name}, " for name in (target or "").split())
        return f"def f(self, {', '.join(self.names)}):\n return [{changed} {code}]\n"

    def is_right(self, method):
        """Return whether a method does what is meant on every object that is tried."""
        tried = self.inputs[:TRIED + 1]
        return all(same(self.outcome(method, *each), self.outcome(self.meant, *each)) for each in tried)


def same(one, other):
    """Return whether two outcomes are the same; a probe knows when values are."""
    return one is not None and SAME(one[0], other[0]) and same_slots(one[1], other[1])


def evaluated(code, slots, given):
    return eval(compiled(code), {**MODULES, "self": Held(slots), **given})


@functools.lru_cache(maxsize=4096)
def compiled(code, mode="eval"):
    return compile(code, "asked", mode)


def split_code(line):
    """Return (slots that change or None, code) of an expression or a change."""
    node = ast.parse(line.removeprefix("return ")).body[0]
    if not isinstance(node, ast.Assign):
        return None, line.removeprefix("return ")
    targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
    return " ".join(target.attr for target in targets), ast.unparse(node.value)


def run(source, slots, arguments):
    """Run a method named probe here, as a child does for the daemon."""
    names = {**MODULES, "__builtins__": builtins}
    exec(compiled(source, "exec"), names)
    return names["probe"](Held(slots), *arguments)


def taken_same():
    """Return the comparison of values that probes have."""
    head = batos._PROBE_HEAD.partition("    found = []")[0].format(names="self")
    names = dict(MODULES)
    exec(head + "    return same\n", names)
    return names["probe"](None)


SAME = taken_same()


def same_slots(one, other):
    return one.keys() == other.keys() and all(SAME(one[key], other[key]) for key in one)


class Shares:
    """The router's shares of a request, by the embedder's vectors."""

    def __init__(self):
        self.embedder, self.router = batos.Embedder("auto"), batos.read_router(ROOT / "seed_core")
        self.embedder.start()
        self.embedder.close(600)                         # waits until it is loaded

    def of(self, request, world):
        fits = {one.steps[0] for one in batos.one_steps(world) if one.given == world.given.keys()}
        vector = self.embedder.query(batos.routed_request(request.selector, request.intent))
        return dict(self.router.offer("idiom", vector, fits))


def found_for(request, shares, count=0):
    """Return the rows of find_methods for a request, with `count` examples."""
    text = batos.routed_request(request.selector, request.intent)
    world = batos.world_of(text, request.slots, request.arguments)
    said = batos.what_is_said(request.selector, request.intent, world, shares)
    return batos.find_methods(run, world, said, request.slots, request.arguments, request.examples(count))


def is_undecided(rows, with_examples):
    """Return whether nothing is guessed, as words alone may as well mean the second of the rows."""
    return not with_examples and len(rows) > 1 and rows[0]["worth"] - rows[1]["worth"] < batos.LEAD_LEAST


def judged(request, rows, with_examples=False):
    """Return (kind, whether marked)."""
    if not rows or is_undecided(rows, with_examples):
        return "refused", False
    right = request.is_right(split_code(rows[0]["lines"][0]))
    return ("right" if right else "wrong"), not rows[0]["sure"]


def requests(half, name="asked"):
    """Return the Requests of a half of a set: "look", "check", or of both."""
    lines = [line for line in (DATA / f"{name}.txt").read_text("utf-8").splitlines() if line and line[0] != "#"]
    seed = SEEDS[name]
    if seed is not None:
        random.Random(seed).shuffle(lines)
    start, step = {"look": (0, 2), "check": (1, 2)}.get(half, (0, 1))
    return [Request(line) for line in itertools.islice(lines, start, None, step)]


def ended(name, half, count, known):
    """Yield (request, rows of find_methods, kind, whether marked) of a half of a set, with `count` examples."""
    for request in requests(half, name):
        text = batos.routed_request(request.selector, request.intent)
        world = batos.world_of(text, request.slots, request.arguments)
        rows = found_for(request, known.of(request, world), count)
        yield request, rows, *judged(request, rows, bool(count))


def table_row(name, half, count, known):
    """Return the counts of a half of a set as a row of Markdown."""
    counts = collections.Counter((kind, marked) for _, _, kind, marked in ended(name, half, count, known))
    right, wrong = ((counts[kind, True], counts[kind, False]) for kind in ("right", "wrong"))
    by = "one example" if count else "intent only"
    cells = (f"{name}.txt, {half}, {by}", sum(counts.values()), sum(right), "{} / {}".format(*right),
             "{} / {}".format(*wrong), counts["refused", False])
    return f"| {' | '.join(map(str, cells))} |"


def print_table(known):
    print("| requests | count | right | right: marked / unmarked | wrong: marked / unmarked | refused |")
    print("|---|---|---|---|---|---|")
    for name, half, count in itertools.product(SEEDS, ("look", "check"), (0, 1)):
        print(table_row(name, half, count, known), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SEEDS, default="asked")
    parser.add_argument("--half", choices=("look", "check", "all"), default="look")
    parser.add_argument("--examples", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="tell what came of each request of the half \"look\"")
    parser.add_argument("--table", action="store_true", help="tell the counts of all sets and halves")
    args = parser.parse_args()
    known, counts, leads = Shares(), collections.Counter(), []
    if args.table:
        return print_table(known)
    for request, rows, kind, marked in ended(args.set, args.half, args.examples, known):
        counts[kind, marked] += 1
        if rows:
            lead = rows[0]["worth"] - rows[1]["worth"] if len(rows) > 1 else math.inf
            leads.append((kind, rows[0]["worth"], lead))
        if args.show and kind != "right" and (args.half == "look" or SEEDS[args.set] is None):
            told = [(row["worth"], row["lines"][0]) for row in rows[:2]]
            print(kind, "marked" if marked else "unmarked", request.selector, request.intent, request.meant, *told, sep=" | ")
    print(args.set, args.half, args.examples, dict(counts))
    for kind, worth, lead in sorted(leads, key=lambda row: row[1]) if args.show else ():
        print(kind, worth, round(lead, 2))


if __name__ == "__main__":
    main()
