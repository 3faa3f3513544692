"""A daemon process for the tests: a real one, on a port that the system chooses, in a folder that is removed."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


class DaemonProcess:
    """A running `python batos.py`; `endpoint` is where it listens."""

    def __init__(self, folder, *options):
        self.folder = folder
        command = [sys.executable, str(ROOT / "batos.py"), "--endpoint", "tcp://127.0.0.1:0", *options]
        self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if "listens on" in line:
                self.endpoint = line.split()[4]
                return
        raise AssertionError("the daemon did not start: " + "".join(self.lines))

    def stop(self, kill=False):
        if self.process.poll() is None:
            self.process.kill() if kill else self.process.terminate()
        self.process.communicate(timeout=60)
        return self.process.returncode


@pytest.fixture
def daemon(tmp_path):
    running = []

    def start(*options):
        running.append(DaemonProcess(tmp_path, *options))
        return running[-1]
    yield start
    for one in running:
        one.stop(kill=True)
