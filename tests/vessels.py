"""Programs that are copies of this batos.py with something changed, and a daemon that hands its image over, for the tests."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import batos

ROOT = pathlib.Path(batos.__file__).resolve().parent
FUTURE = "from __future__ import annotations\n"
END = "\ngc.enable()\n\nif sys.modules"
WAIT_S = 300                                            # a hang guard
# what makes an image one of a newer version
NEWER = """
IMAGE_VERSION += 1
UPGRADES[IMAGE_VERSION] = lambda root: root.__setitem__("of_a_newer_version", UvmObject(text="x" * 100_000))
"""


def changed(source, more="", first=""):
    """Return a program with code at its begin, or at its end before it runs."""
    assert FUTURE in source and END in source
    source = source.replace(FUTURE, f"{FUTURE}{first}\n", 1)
    return source.replace(END, f"\n{more}\n{END}", 1)


def before(function, code):
    """Return code that is run before a function of a program, whatever it is given; `Class.function` is one, too."""
    *owner, name = function.split(".")
    place = ".".join([*owner, name])
    where = owner[0] if owner else "sys.modules[__name__]"
    return f"""
def _changed(well):
    @functools.wraps(well)
    def changed(*args, **named):
        {code}
        return well(*args, **named)
    return changed
setattr({where}, {name!r}, _changed({place}))
"""


def make_channel(folder, source):
    """Make a channel that holds a program; returns its path."""
    channel = pathlib.Path(folder, "channel")
    shutil.rmtree(channel, ignore_errors=True)
    channel.mkdir(mode=0o755)
    (channel / "batos.py").write_text(source, "utf-8")
    (channel / "batos.py").chmod(0o644)
    return channel


def until(done, why=""):
    """Wait until done() is true; `why` is told where that does not come."""
    until_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < until_s, why
        time.sleep(0.01)


class Home:
    """An image in a folder, the programs that were taken for it, and the daemon that serves it."""

    def __init__(self, folder, daemon, *options):
        self.folder, self.image = folder, str(folder / "live_image.fs")
        self.own = batos.read_vessel(ROOT)
        self.home = batos.vessels_home(self.image)
        batos.make_folder(self.home)
        self.take(self.own)
        self.source = (ROOT / "batos.py").read_text("utf-8")
        self.daemon, self.options = daemon, options
        self.running = None

    def start(self, sha256=None):
        """Start the daemon as a user does: by this batos.py, or by one that was taken."""
        def by_hand(words, cwd, stdout, stderr):
            program = str(self.home / sha256 / "batos.py")
            return subprocess.Popen([sys.executable, program, *words[1:]], cwd=cwd, stdout=stdout, stderr=stderr)
        chosen = {"start": by_hand} if sha256 else {}
        self.running = self.daemon("--upgrade-trial-s", "60", *self.options, **chosen)
        return self.running

    def take(self, vessel):
        with batos.private_files():
            return batos._take_vessel(vessel, self.home)

    def program(self, more="", first=""):
        """Take a program that is this one with more; returns its digest."""
        channel = make_channel(self.folder, changed(self.source, more, first))
        vessel = batos.channel_vessel(channel, self.own)
        self.take(vessel)
        return vessel.sha256

    def named(self, sha256):
        return batos.told_program(sha256, self.home / sha256 / "batos.py", sys.executable)

    def marker(self):
        return batos.read_marker(f"{self.image}.vessel") or {"phase": "serving", "current": {}}

    def order(self, sha256, back=None, raises=False):
        """Have the daemon that serves give the image to a program, untried."""
        back = back or self.own.sha256
        batos.write_order(self.image, batos.Order(self.named(sha256), self.named(back), raises))
        _, pid = pathlib.Path(f"{self.image}.endpoint").read_text().split()
        os.kill(int(pid), signal.SIGUSR1)

    def await_phase(self, phase):
        """Wait until the marker is in a phase."""
        until(lambda: self.marker()["phase"] == phase, self.running.lines)

    def await_log(self, words):
        """Wait until the log says something."""
        until(lambda: words in pathlib.Path(f"{self.image}.log").read_text(), self.running.lines)

    def await_serving(self, sha256, failed=None):
        """Wait until a program serves, after one that failed where that is said; returns what health tells of it."""
        until_s = time.monotonic() + WAIT_S
        while time.monotonic() < until_s:
            with contextlib.suppress(batos.BatosError), batos.Client(self.endpoint(), 10.0) as client:
                told = client.call("health")["result"]["vessel"]
                gone_back_from = (told["failed"] or {}).get("sha256")
                if told["sha256"] == sha256 and told["phase"] == "serving" and gone_back_from == failed:
                    return told
            time.sleep(0.05)
        raise AssertionError((self.marker(), self.running.lines))

    def endpoint(self):
        return self.running.endpoint

    def call(self, command, **fields):
        """Send a command until a daemon answers it."""
        until_s = time.monotonic() + WAIT_S
        while True:
            try:
                with batos.Client(self.endpoint(), 30.0) as client:
                    return client.call(command, **fields)
            except (batos.NoReply, batos.ShuttingDown, batos.Busy):
                assert time.monotonic() < until_s, self.running.lines
            time.sleep(0.05)

    def put(self, name, value, key=None):
        """Set a slot of genesis; returns the reply."""
        fields = {"target": "genesis_obj", "selector": "setSlot_value_", "args": [name, value]}
        return self.call("send_message", **fields, idempotency_key=key or batos.uuid7())

    def value(self, name):
        return self.call("inspect", target=f"genesis_obj.{name}")["result"]["value"]

    def stop(self):
        """Stop the daemon; returns its exit status."""
        return self.running.stop()

    def faults(self):
        return batos.check_image(self.image, deep=True)["faults"]

    def left(self):
        """Return the names of what there is of programs and trials."""
        return {path.name for path in self.home.iterdir()} - {"supervisor.py"}
