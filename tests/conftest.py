"""A daemon process for the tests: a real one, on a port that the system chooses, in a folder that is removed."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import forks
import hypothesis
import pytest
import told

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the tests in the background ignores it for all
os.environ.setdefault("BATOS_SELF_KNOWLEDGE", "false")   # what each daemon would index at its first start
os.environ.setdefault("BATOS_EMBEDDER", "none")          # it takes seconds to load; the tests that are of it ask for it
os.environ.setdefault("BATOS_GATE", "false")             # draws, which let one in now and then; tests of it say so
os.environ.setdefault("OMP_NUM_THREADS", "1")            # on busy cores threads that wait for one another lose much


# The same tree is judged the same each time; what chance finds is looked for by hand: --hypothesis-profile search.
# How long a thing takes is no test's matter.
hypothesis.settings.register_profile("search", deadline=None, print_blob=True)
hypothesis.settings.register_profile("batos", deadline=None, derandomize=True)
hypothesis.settings.load_profile("batos")


MEMORY = pathlib.Path("/dev/shm")
MEMORY_LEAST_BYTES = 6 << 30


def in_memory():
    """Return a folder whose files are in memory, where there is one with room, else None.

    A commit waits for its disk, which tells nothing where what a disk keeps is replayed (tests/durability/powercut.py).
    """
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_LEAST_BYTES
    return MEMORY if roomy else None


def pytest_collection_modifyitems(config, items):
    """Leave campaigns out, which run by hand: where a mark expression names them."""
    if "campaign" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("campaign")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def start_anew(words, cwd, stdout, stderr):
    """Start a program as a user does (`python batos.py …`), where that itself is looked at; arguments as for forks.start."""
    program, *rest = words
    return subprocess.Popen([sys.executable, str(forks.PROGRAMS[program]), *rest], cwd=cwd, stdout=stdout, stderr=stderr)


def daemon_words(options, core, program):
    """Return the words that start a daemon on a port that the system chooses; arguments as DaemonProcess takes them."""
    anywhere = "tcp://127.0.0.1:0"
    if isinstance(core, str):
        return [program, "--endpoint", anywhere, "--core", core, *options]
    double = core if isinstance(core, tuple) else (core,)
    return ["doubles", json.dumps({"endpoint": anywhere, **dict(options)}), *map(str, double)]


class DaemonProcess(forks.Running):
    """A running daemon; `endpoint` is where it listens. `core` is "none", a core for --core, or seconds of a double; with a
    file behind them, of one that writes freely."""

    def __init__(self, folder, *options, core="none", start=forks.start, program="batos"):
        self.folder = folder
        super().__init__(daemon_words(options, core, program), folder, r"BAT OS listens on (\S+)", start)
        self.endpoint = self.told[1]

    def stop(self, kill=False):
        status = super().stop(kill)
        told.check(self.folder)
        return status


@pytest.fixture
def daemon(tmp_path):
    running = []

    forks.channel()                                      # so that no test takes it for what it has started

    def start(*options, **chosen):
        running.append(DaemonProcess(tmp_path, *options, **chosen))
        return running[-1]
    yield start
    for one in running:
        one.stop(kill=True)


@pytest.fixture
def machine(tmp_path):
    import stored  # which imports batos: for the tests that ask for it
    made = []

    def make(**given):
        made.append(stored.Machine(tmp_path, **given))
        return made[-1]
    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def one_server():
    from habits import Habits
    one = Habits()
    yield one
    one.close()


@pytest.fixture
def habits(one_server):
    """The server with all habits, see tests/habits.py, as if it had not been asked yet."""
    one_server.asked.clear()
    one_server.change("hang")
    return one_server


@pytest.fixture
def server(tmp_path):
    """Start storage servers, ours or by `make`, in the test's folder."""
    import engines
    running = []

    def start(*words, make=None):
        running.append((make or engines.serving)(tmp_path, *words))
        return running[-1]
    yield start
    for one in running:
        one.stop(kill=True)
