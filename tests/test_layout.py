"""The layout of the code: sections in order, nothing used before its section, nothing heavy imported, short functions."""

import ast
import collections
import itertools
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tomllib

import pytest

import batos

ROOT = pathlib.Path(batos.__file__).resolve().parent
SOURCE = pathlib.Path(batos.__file__).read_text("utf-8")
TREE = ast.parse(SOURCE)
BANNER = re.compile(r"^#{80}\n# (.+?) #+\n#{80}$", re.MULTILINE)
BANNERS = [(SOURCE.count("\n", 0, match.start()) + 1, match[1]) for match in BANNER.finditer(SOURCE)]

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "nltk", "kivy", "numpy", "textual", "rich", "asyncio", "ssl",
         "zope.index.text")
AT_THE_TOP = {"batos.py", "morphic_ui.py", "lora_adapters", "tests", "requirements.txt", "README.md", "seed_core", ".ci",
              "pyproject.toml", "CHANGELOG.md", "LICENSE", ".gitignore", ".git"}


def section(line):
    """Return the number of the section that a line belongs to; 0 is what stands before the first."""
    return sum(start <= line for start, _ in BANNERS)


def section_name(number):
    return BANNERS[number - 1][1] if number else "the head"


def bound(target):
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]


def definitions():
    """Return {name of a top-level definition -> number of the section that defines it first}."""
    found = {}
    for node in TREE.body:
        names = [node.name] if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) else \
            [name for target in node.targets for name in bound(target)] if isinstance(node, ast.Assign) else \
            bound(node.target) if isinstance(node, ast.AnnAssign) else []
        for name in names:
            found.setdefault(name, section(node.lineno))
    return found


def defined_by(node):
    """Return the names that a statement at the top defines."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    targets = [] if isinstance(node, (ast.AugAssign, ast.For)) else targets
    named = [each for target in targets for each in getattr(target, "elts", [target])]
    return [each.id for each in named if isinstance(each, ast.Name)]


def test_no_name_is_defined_twice():
    """What a section defines anew would change what an earlier one means by it."""
    counts = collections.Counter(name for node in TREE.body for name in defined_by(node))
    assert [name for name, count in counts.items() if count > 1] == []


def own_names(function):
    """Return what a function binds itself: arguments, and what it assigns."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    stored = [node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    inner = [node.name for node in ast.walk(function) if isinstance(node, ast.FunctionDef) and node is not function]
    return {argument.arg for argument in named if argument} | set(stored) | set(inner)


def used_names(node, hidden=frozenset()):
    """Yield (name, line) of every name that is read, but for those that a function around it binds itself."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        hidden = hidden | own_names(node)
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
        hidden = hidden.union(*(bound(each.target) for each in node.generators))
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in hidden:
        yield node.id, node.lineno
    for child in ast.iter_child_nodes(node):
        yield from used_names(child, hidden)


def functions():
    return [node for node in ast.walk(TREE) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def test_the_rooms_are_those_that_the_docstring_lists_in_its_order():
    told = batos.__doc__.split("The rooms", 1)[1].split("What holds everywhere", 1)[0]
    rows = re.findall(r"^    [a-z][a-z' ]+? {2,}([A-Z].*)", told, re.MULTILINE)
    listed = [name for row in rows for name in row.split(" · ")]
    assert listed == [name for _, name in BANNERS] and len(listed) == 113


def test_no_room_is_a_hall():
    starts = [start for start, _ in BANNERS] + [SOURCE.count("\n")]
    lengths = {name: after - start for (start, name), after in zip(BANNERS, starts[1:], strict=True)}
    assert {name: length for name, length in lengths.items() if length > 1150} == {}


def offers():
    """Return {room: the names that it says it offers}."""
    banner, essay, named = r"^# ([^\n]+?) #+\n#{80}\n", r"(?:#[^\n]*\n)+\n", r'# Offers:\n__all__ \+= """\n(.*?)\n"""'
    found = re.findall(banner + essay + named, SOURCE, re.MULTILINE | re.DOTALL)
    return {name: told.split() for name, told in found}


def used_by_others():
    """Return {room: names of it that another room or another file uses}, in the order in which they are defined."""
    beside = [ROOT / "morphic_ui.py", ROOT / "README.md", ROOT / "pyproject.toml", *ROOT.glob("seed_core/*.py")]
    outside = {name for path in beside for name in re.findall(r"\bbatos[.:](\w+)", path.read_text("utf-8"))}
    where, crossing = definitions(), set()
    for node in TREE.body:
        crossing |= {name for name, line in used_names(node) if section(line) != where.get(name, section(line))}
    told = {name: [] for _, name in BANNERS}
    for name, number in where.items():
        if number and name != "__all__" and name in crossing | outside:
            told[section_name(number)].append(name)
    return {room: names for room, names in told.items() if names}


def test_each_room_says_what_it_offers():
    """The list under a banner is what others use, no more and no less; `__all__` is all of them."""
    true = used_by_others()
    wrong = {room: {"says": sorted(set(said) - set(true.get(room, ()))), "lacks": sorted(set(true.get(room, ())) - set(said))}
             for room, said in offers().items()}
    assert {room: told for room, told in wrong.items() if told["says"] or told["lacks"]} == {}
    assert set(true) == set(offers())
    assert batos.__all__ == [name for said in offers().values() for name in said]


REGISTERED = {"primitive", "command", "adds_to", "image_class"}


def is_registered(node):
    """Tell whether a decorator puts a function into a table, by which it is reached."""
    return bool({ast.unparse(each).split("(")[0] for each in node.decorator_list} & REGISTERED)


def test_what_no_other_room_uses_has_an_underscore():
    plain = {node.name for node in TREE.body if isinstance(node, ast.ClassDef)}
    plain |= {node.name for node in TREE.body if isinstance(node, ast.FunctionDef) and is_registered(node)}
    within = "\n".join(node.value for node in ast.walk(TREE) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    plain |= set(batos.__all__) | set(re.findall(r"\bbatos\.(\w+)", within))
    bare = [name for name, number in definitions().items() if number and not name.startswith("_") and name not in plain]
    assert bare == [] and [name for name in batos.__all__ if name.startswith("_")] == []


def test_a_section_uses_only_those_above_it():
    where, below = definitions(), {}
    for node in TREE.body:
        for name, line in used_names(node):
            here, there = section(line), where.get(name, 0)
            if there > here:
                below[section_name(here), name] = f"line {line}: {section_name(here)} uses {name} of {section_name(there)}"
    assert not below, "\n".join(sorted(below.values()))


@pytest.mark.slow
def test_importing_loads_nothing_heavy():
    code = f"import json, sys, batos; print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == []


def test_importing_has_no_effect():
    code = "import os, sys, threading; before = set(os.listdir('.')); import batos; " \
           "print(threading.active_count(), set(os.listdir('.')) - before - {'__pycache__'})"
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "1 set()\n" and done.stderr == ""


VARIABLES = {"BATOS_HOME", "BATOS_SETTINGS", "BATOS_WORKERS"}                  # of the environment


def test_what_a_docstring_names_is_there():
    """A table that was renamed is not called by its old name in words."""
    names = {node.id for node in ast.walk(TREE) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(TREE) if isinstance(node, ast.Attribute)}
    words = {}
    for node in functions() + [node for node in ast.walk(TREE) if isinstance(node, ast.ClassDef)]:
        for word in re.findall(r"(?<![\w.])_?[A-Z]{3,}(?:_[A-Z]+)+\b", ast.get_docstring(node) or ""):
            words.setdefault(word, node.name)
    assert words and {word: where for word, where in words.items() if word not in names | VARIABLES} == {}


def test_functions_are_short():
    lengths = {f"{node.name} in line {node.lineno}": node.end_lineno - node.lineno + 1 for node in functions()}
    long = {name: length for name, length in lengths.items() if length > 40}
    assert long == {} and statistics.median(lengths.values()) <= 10


def test_every_class_has_a_docstring():
    missing = [node.name for node in ast.walk(TREE) if isinstance(node, ast.ClassDef) and not ast.get_docstring(node)]
    assert missing == []


def test_nobody_catches_everything_in_silence():
    bare = [node.lineno for node in ast.walk(TREE) if isinstance(node, ast.ExceptHandler) and node.type is None]
    assert bare == []


def test_the_top_of_the_repository_holds_what_belongs_there():
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    listed = [subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=True,
                             timeout=60).stdout.split("\0") for options in ([], ["--others", "--exclude-standard"])]
    top = {path.split("/")[0] for path in itertools.chain(*listed) if path}
    assert top <= AT_THE_TOP and {"batos.py", "tests", "README.md", "requirements.txt", "LICENSE"} <= top


def packaged():
    """Return the files that pyproject.toml has installed beside batos.py, as paths in the repository."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(setuptools["package-data"])
    found = {ROOT / f"{name}.py" for name in setuptools["py-modules"]}
    for package, patterns in setuptools["package-data"].items():
        for pattern in patterns:
            found |= set((ROOT / package).glob(pattern))
    return found


def test_an_installation_has_a_command_and_the_files_that_it_finds_beside_itself():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["batos"].partition(":")
    assert module == "batos" and callable(getattr(batos, name))
    beside = {batos._UI_STOCK, *(path for path in batos.SEED_CORE.iterdir() if path.suffix not in ("", ".py", ".pyc"))}
    for weights, config in batos._staged_files(ROOT / "lora_adapters").values():
        beside |= {weights, config}
    assert beside <= packaged()
