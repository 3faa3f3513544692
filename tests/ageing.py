"""A program of the tests in a world where time passes faster: its wall clock runs, its timers do not.

    python tests/ageing.py '{"rate": 4380, "real_s": 1796000000, "shown_s": 1796000000}' PROGRAM WORDS

At `real_s` it shows `shown_s`, and from then on a second is `rate` seconds: who starts again finds the clock where it would be.
"""

import datetime
import json
import pathlib
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]
import batos

REAL_NS = time.time_ns


def quicken(rate, real_s, shown_s):
    """Have the wall clock of this process pass `rate` times as fast, as if it had since a moment; unix times in seconds."""
    real_ns, shown_ns = int(real_s * 1e9), int(shown_s * 1e9)

    def time_ns():
        return shown_ns + int((REAL_NS() - real_ns) * rate)
    time.time_ns, time.time = time_ns, lambda: time_ns() / 1e9
    batos.steady_us = batos.unix_us                      # which keeps to the machine's uptime, else
    batos.now_utc = lambda: datetime.datetime.fromtimestamp(time.time(), datetime.UTC)


def main(words):
    """Run a program's main with a clock that is set by JSON. Returns the exit status."""
    clock, program, *rest = words
    quicken(**json.loads(clock))
    return __import__(program).main(rest)


if __name__ == "__main__":
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent)]
    batos._leave(main(sys.argv[1:]))
