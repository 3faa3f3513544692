"""A daemon for the tests of takeovers, which stops itself (SIGSTOP) amid a commit of a lane once a file names lane and point.

    python tests/stopping.py '{"image": "zeo://…", "endpoint": "tcp://…", "stands_by": true}' FILE

FILE holds `LANE POINT`: a lane's name (write, bulk, writer beat), and `begun` (before the vote) or `voted` (before the finish).
"""

import json
import os
import pathlib
import signal
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import doubles

import batos

STOPS_WITHIN_S = 3.0
POINTS = {"begun": "tpc_vote", "voted": "tpc_finish"}


def stop_where(file):
    """Have this process stop at the point that the file names, once."""
    for point, name in POINTS.items():
        setattr(batos.ImageConnection, name, stopping(getattr(batos.ImageConnection, name), point, pathlib.Path(file)))


def stopping(commit_step, point, file):
    def step(self, transaction):
        lane = threading.current_thread().name.rpartition("-")[0] or threading.current_thread().name
        if file.exists() and file.read_text() == f"{lane} {point}":
            file.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(STOPS_WITHIN_S)                   # else this thread may go on a little, until the others have stopped
        return commit_step(self, transaction)
    return step


def main(words):
    asked = json.loads(words[0])
    stop_where(words[1])
    stands_by = asked.pop("stands_by")
    settings = batos.load_settings({"core": "none", **asked})
    return batos.serve(settings, make_core=lambda image, settings: doubles.QuickCore(0.02), stands_by=stands_by)


if __name__ == "__main__":
    batos._leave(main(sys.argv[1:]))
