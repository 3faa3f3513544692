"""A second window on a daemon, in a process of its own: it shows an object and does what stdin says, a line each.

    python beholder.py ENDPOINT OBJECT

    see WORDS         waits until they are drawn
    edit SLOT JSON    edits a slot by the keys of this window

Each is answered with the second of the machine's clock at which it was done; so is the begin.
"""

import pathlib
import queue
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import windowed
from windowed import ENTER, until

ui = windowed.ui
ui.LOOKED_AT_S = 0.0                                     # this hand is quick


class Beholder:
    """A second window as a test has it: say(line) has it do something, heard() waits for the second at which that was done."""

    def __init__(self, endpoint, oid):
        words = [sys.executable, __file__, endpoint, oid]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._told = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stdout:
            self._told.put(float(line))

    def say(self, line):
        print(line, file=self.process.stdin, flush=True)

    def heard(self, step=lambda: time.sleep(0.01)):
        until(lambda: not self._told.empty() or self.process.poll() is not None, step, "the other window")
        return self._told.get(timeout=1)

    def close(self):
        self.process.stdin.close()
        self.process.wait(windowed.GUARD_S)


# In the process of the window


def main(endpoint, oid):
    hand, lines = windowed.Hand(endpoint), queue.Queue()
    hand.online()
    page = hand.page("objects")
    page.open(oid)
    hand.until(lambda: page.oid == oid, "the object")
    hand.settle()
    print(time.monotonic(), flush=True)
    threading.Thread(target=read, args=(lines,), daemon=True).start()
    while line := next_line(hand, lines):
        verb, _, what = line.strip().partition(" ")
        DOES[verb](hand, page, what)
        print(time.monotonic(), flush=True)
    hand.close()


def read(lines):
    for line in sys.stdin:
        lines.put(line)
    lines.put("")                                        # that was all


def next_line(hand, lines):
    """Go on drawing until something is asked for."""
    while lines.empty():
        hand.loop.idle()
    return lines.get()


def see(hand, page, words):
    def shown():
        return " ".join(ui.unmarked(f"{one.get('lead', '')} {one['text']}") for one in page.rows.data)
    hand.until(lambda: words in shown(), words)


def edit(hand, page, what):
    name, _, value = what.partition(" ")
    page.edit_slot(name, page.value(name))
    code = next(one for one in ui._all_below(hand.dialog()) if type(one).__name__ == "Code")
    code.text = value
    for _ in range(2):                                   # the difference, then it is sent
        hand.key(ENTER, "ctrl")
        hand.settle()


DOES = {"see": see, "edit": edit}

if __name__ == "__main__":
    main(*sys.argv[1:])
