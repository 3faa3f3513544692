"""Would the tests notice? Small faults are put into batos.py, one at a time, and the tests of its section are run.

    python tests/durability/mutants.py [--mutants 300] [--seed 1] [--sections Image,Lanes] [--folder FOLDER] [--fast] [--quick]
                                      [--part 0/3]

A mutant is killed if a test fails, does not end in time, or batos.py cannot be imported; a section whose tests fail without
a mutant is left out. They are drawn by the seed from all places that the sections have, each section by its size. With
--quick the few fast files of QUICK stand for a section's tests, so that a mutant takes seconds: what survives those may be
killed by the others. The run is made in a copy of the last commit, in FOLDER; what stands there already is gone on with.
Several may be at it at once, each with a part (0/3, 1/3, 2/3) of the same mutants: most tests wait more than they work. What
was killed and what survived, of all parts in FOLDER, goes into mutants.json beside this file, with the survivors themselves.
"""

import argparse
import ast
import collections
import functools
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
import typing

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT_S = 300                                            # a mutant whose tests take longer hangs
BANNER = re.compile(r"^# ([A-Z][\w ]+?) #{20,}$", re.M)
DEFINED = re.compile(r"^(?:class |def |async def )?(\w+)(?:\(| = |:)", re.M)
NAMED = re.compile(r"\bbatos\.(\w+)")

# room -> its tests, those first that are likely to notice; without a row, those that name the most of what it defines
TESTS = {
    "Errors": ["protocol", "client"],
    "Foundations": ["foundations", "objects_model", "image"],
    "Objects": ["objects", "roles", "protection", "shapes", "objects_model", "history"],
    "Data file": ["check", "image", "pack", "faults"],
    "Image": ["image", "pack", "check", "backup", "upgrade", "faults"],
    "Ledger": ["history", "check", "roles"],
    "Care": ["check", "backup", "upgrade", "faults"],
    "Lanes": ["lanes", "history", "pack", "health"],
    "Child": ["child", "guardian"],
    "Guardian": ["audit", "guardian", "child"],
    "Processes": ["child", "guardian"],
    "Method lane": ["child", "guardian", "kernel"],
    "Model files": ["gguf", "core"], "Vocabulary": ["core"], "Tasks": ["core", "grammars"],
    "Embedder": ["vectors", "reader"], "Loaded core": ["core", "memory"], "Cognitive core": ["core", "gguf"],
    "Server replies": ["remote"], "Remote core": ["remote"],
    "Memory manager": ["memory"],
    "Words": ["ranking", "segments"], "Texts": ["catalog", "formats"], "PDF": ["formats"], "Formats": ["formats", "learning"],
    "Index": ["vectors", "segments", "ranking"], "Documents": ["catalog", "parts", "episodes"],
    "Search": ["ranking", "catalog", "vectors"],
    "Evidence": ["evidence", "reader"], "Levels": ["vectors", "episodes"], "Grounds": ["evidence"], "Summaries": ["episodes"],
    "Missions": ["mind", "episodes"], "Speakers": ["speakers"], "States": ["mind", "evidence"], "Contrapunto": ["speakers"],
    "Forgetting": ["episodes", "outcomes"], "Mission lane": ["mind"], "Inference": ["voice"], "Prototypes": ["mind", "genesis"],
    "Steps": ["synthesis"], "Intents": ["synthesis"], "Examples": ["synthesis"], "Methods": ["kernel"], "Guesses": ["kernel"],
    "Generative kernel": ["kernel", "audit"], "Mending": ["kernel", "autotelic"], "Parcels": ["parcels", "roles"],
    "Golden dataset": ["golden"], "Outcomes": ["outcomes"],
    "Protocol": ["protocol", "uvm"], "Requests": ["roles", "uvm", "lanes"], "Commands": ["roles", "uvm", "parts", "proof"],
    "Wire": ["roles", "keys", "uvm", "health"],
    "BatOS_UVM": ["roles", "uvm", "daemon", "keys", "events", "health"],
    "Offered cores": ["cores"], "Genesis": ["genesis", "voice", "upgrade"],
    "First conversation": ["conversation"],
    "Daemon": ["daemon", "faults"],
    "Client": ["client", "top"], "Shell": ["client"],
    "Without a daemon": ["client", "service"], "Command line": ["client", "settings"],
}
QUICK = {                                                # room -> the files that notice most of it in seconds
    "Errors": ["protocol"], "Settings": ["settings"], "Foundations": ["foundations", "objects"],
    "Objects": ["roles", "objects", "shapes", "objects_model", "protection"], "Image": ["history", "image", "upgrade"],
    "Ledger": ["history"], "Lanes": ["lanes", "history"], "Index": ["segments", "vectors"], "Protocol": ["protocol"],
    "Requests": ["roles", "lanes"], "Commands": ["roles", "parts"], "Wire": ["roles", "keys"], "BatOS_UVM": ["roles", "uvm"],
    "Guardian": ["audit"], "Child": ["child"], "Processes": ["child"], "Method lane": ["child"],
    "Steps": ["synthesis"], "Intents": ["synthesis"], "Examples": ["synthesis"],
}
OPPOSITE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add,
}
DROPPED = ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Delete
MERELY_TOLD = re.compile(r"log_\w+\.|log\.|say\(|tell\(|self\._?tell\(|warnings\.")


class Mutant(typing.NamedTuple):
    """A place of the source, from a position to a position (line from 1, column in bytes), and what stands there instead."""

    section: str
    kind: str
    start: tuple
    end: tuple
    instead: str

    @property
    def name(self):
        return f"{self.section}:{self.start[0]}:{self.start[1]}:{self.kind}"


def other(node, **fields):
    """Return a node's source with other fields."""
    return ast.unparse(type(node)(**{**dict(ast.iter_fields(node)), **fields}))


def mutations(node):
    """Yield (kind, the node to replace, its source instead) for what can be wrong with one node."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield "comparison", node, other(node, ops=[OPPOSITE[type(node.ops[0])]()])
    if isinstance(node, ast.BoolOp):
        yield "and or", node, f"({other(node, op=OPPOSITE[type(node.op)]())})"
    if isinstance(node, ast.BinOp) and type(node.op) in OPPOSITE and not isinstance(node.right, ast.Constant):
        yield "plus minus", node, f"({other(node, op=OPPOSITE[type(node.op)]())})"
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield "condition", node.test, f"(not ({ast.unparse(node.test)}))"
    if isinstance(node, ast.Constant) and type(node.value) is int:
        yield "off by one", node, str(node.value + 1)
    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node) != "return None":
        yield "nothing returned", node, "return None"
    if isinstance(node, DROPPED) and not MERELY_TOLD.match(ast.unparse(node)):
        yield "statement dropped", node, "pass"


def inside_functions(tree):
    """Yield the nodes of a module that run when something is called, without docstrings, annotations and f-strings' inside."""
    todo = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    seen = set()
    while todo:
        node = todo.pop()
        if node in seen or isinstance(node, (ast.JoinedStr, ast.arg)):
            continue
        seen.add(node)
        yield node
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        body = node.body if is_function else ast.iter_child_nodes(node)
        todo += [one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]


def sections_of(source):
    """Return [(first line, section)] in the file's order."""
    return [(source.count("\n", 0, found.start()) + 1, found[1]) for found in BANNER.finditer(source)]


def all_mutants(source):
    """Return {section: [Mutant]} of a file, in its order."""
    starts, found = sections_of(source), collections.defaultdict(list)
    for node in inside_functions(ast.parse(source)):
        for kind, place, instead in mutations(node):
            section = [name for line, name in starts if line <= place.lineno]
            if section:
                start, end = (place.lineno, place.col_offset), (place.end_lineno, place.end_col_offset)
                found[section[-1]].append(Mutant(section[-1], kind, start, end, instead))
    return {name: sorted(set(rows)) for name, rows in found.items()}


def drawn(source, count, seed, sections):
    """Return `count` mutants, drawn by a seed from some sections, each by its size; in an order of chance."""
    rng, places = random.Random(seed), all_mutants(source)
    unknown = set(sections) - set(places)
    if unknown:
        raise SystemExit(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(places)}")
    rows = [mutant for name in sections or places for mutant in places[name]]
    return rng.sample(rows, min(count, len(rows)))


def mutated(source, mutant):
    """Return the source with a mutant in it."""
    lines = source.encode().splitlines(keepends=True)
    (first, column), (last, end) = mutant.start, mutant.end
    before, after = lines[first - 1][:column], lines[last - 1][end:]
    return b"".join([*lines[:first - 1], before + mutant.instead.encode() + after, *lines[last:]]).decode()


def text_of(source, mutant):
    """Return what stands where a mutant is put."""
    lines = source.encode().splitlines(keepends=True)[mutant.start[0] - 1:mutant.end[0]]
    return b"".join([*lines[:-1], lines[-1][:mutant.end[1]]])[mutant.start[1]:].decode()


def tests_of(section, quick=False):
    """Return the test files of a section; with `quick` the fast ones alone."""
    names = (QUICK.get(section) if quick else None) or TESTS.get(section)
    return [f"tests/test_{name}.py" for name in names] if names else naming(section)


@functools.cache
def naming(section):
    """Return the three test files that name the most of what a section defines."""
    source = (ROOT / "batos.py").read_text("utf-8")
    lines, starts = source.splitlines(keepends=True), sections_of(source)
    [place] = [number for number, (_, name) in enumerate(starts) if name == section]
    until = starts[place + 1][0] - 1 if place + 1 < len(starts) else len(lines)
    defined = set(DEFINED.findall("".join(lines[starts[place][0] - 1:until])))
    files = sorted((ROOT / "tests").glob("test_*.py"))
    named = {file: len(defined & set(NAMED.findall(file.read_text("utf-8")))) for file in files}
    return [f"tests/{file.name}" for file in sorted(files, key=lambda file: -named[file])[:3] if named[file]]


def outcome(tree, section, fast, quick=False):
    """Run the tests of a section in a tree; returns how they ended: "killed by …" or "survived"."""
    chosen, files = "not campaign and not slow" if fast or quick else "not campaign", tests_of(section, quick)
    if not files:
        return "left out: no test names it"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", chosen, *files]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory(prefix="mutant-") as scratch:
        process = subprocess.Popen([*command, f"--basetemp={scratch}/tests"], cwd=tree, env=env, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            told, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return "killed by the clock"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", told, re.M)
    if process.returncode == 0:
        return "survived"
    return f"killed by {failed[1] if failed else 'the import'}"


def copied(folder):
    """Return a folder with the last commit's files, and that commit; one that was begun is gone on with."""
    tree, told = pathlib.Path(folder, "tree"), pathlib.Path(folder, "commit")
    if not told.exists():
        tree.mkdir(parents=True)
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True)
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x"], cwd=tree, check=True, input=archive)
        told.write_text(commit.stdout.strip())
    return tree, told.read_text()


def part_of(mutants, part):
    """Return every so-manieth of the mutants: "1/3" is the second, the fifth and so on."""
    place, parts = map(int, part.split("/"))
    return mutants[place::parts]


def all_found(folder):
    """Return what the parts of a run have found, together."""
    rows = [json.loads(path.read_text()) for path in sorted(pathlib.Path(folder).glob("part-*/found.json"))]
    return dict(collections.ChainMap(*rows))


def campaign(folder, mutants_of, fast, tell, quick=False):
    """Try the mutants that `mutants_of` returns of a source; what was found stands in FOLDER/found.json. Returns the commit."""
    tree, commit = copied(folder)
    kept, target = pathlib.Path(folder, "found.json"), tree / "batos.py"
    original = pathlib.Path(folder, "batos.py")
    if not original.exists():
        original.write_text(target.read_text("utf-8"), "utf-8")
    source = original.read_text("utf-8")
    found = json.loads(kept.read_text()) if kept.exists() else {}
    sound = {}                                           # section -> how its tests end without a mutant
    mutants = mutants_of(source)
    for mutant in mutants:
        if mutant.name in found:
            continue
        if mutant.section not in sound:
            target.write_text(source, "utf-8")
            sound[mutant.section] = outcome(tree, mutant.section, fast, quick)
            tell(f"{mutant.section}: without a mutant the tests are {sound[mutant.section]}")
        if sound[mutant.section] != "survived":
            continue
        target.write_text(mutated(source, mutant), "utf-8")
        began_s = time.monotonic()
        ended = outcome(tree, mutant.section, fast, quick)
        found[mutant.name] = {"was": text_of(source, mutant), "is": mutant.instead, "ended": ended}
        kept.write_text(json.dumps(found, indent=1))
        tell(f"{len(found)} of {len(mutants)}: {mutant.name}: {ended} ({time.monotonic() - began_s:.0f} s)")
    target.write_text(source, "utf-8")
    return commit


def report(result, count, seed):
    """Return what is committed: how many were killed, by section and kind, and each survivor."""
    rows = result["found"]
    survivors = {name: row for name, row in rows.items() if row["ended"] == "survived"}
    sections = collections.Counter(name.split(":")[0] for name in rows)
    lived = collections.Counter(name.split(":")[0] for name in survivors)
    return {"commit": result["commit"], "date": time.strftime("%Y-%m-%d"), "seed": seed, "wanted": count, "tried": len(rows),
            "killed": len(rows) - len(survivors), "survived": len(survivors),
            "sections": {name: {"tried": tried, "survived": lived[name]} for name, tried in sorted(sections.items())},
            "survivors": {name: {"was": row["was"], "is": row["is"]} for name, row in sorted(survivors.items())}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sections", default="", help="names, parted by commas; all without it")
    parser.add_argument("--folder", default=os.path.join(tempfile.gettempdir(), "batos-mutants"))
    parser.add_argument("--fast", action="store_true", help="only the tests that are not slow")
    parser.add_argument("--quick", action="store_true", help="only a few fast files a section")
    parser.add_argument("--part", default="0/1", help="K/N: of N that are at it at once, the one with number K")
    args = parser.parse_args()
    wanted = [name for name in args.sections.split(",") if name]
    own = os.path.join(args.folder, f"part-{args.part.replace('/', '-')}")
    commit = campaign(own, lambda source: part_of(drawn(source, args.mutants, args.seed, wanted), args.part), args.fast,
                      lambda line: print(line, flush=True), args.quick)
    told = report({"commit": commit, "found": all_found(args.folder)}, args.mutants, args.seed)
    HERE.joinpath("mutants.json").write_text(json.dumps(told, indent=1) + "\n")
    print({name: told[name] for name in ("tried", "killed", "survived")})
