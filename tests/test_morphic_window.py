"""The Inspector from outside: a real window under Xvfb, typed at by xdotool, looked at by screenshots, judged by the daemon."""

import os
import pathlib
import signal
import subprocess
import sys

import conftest
import pytest
import windowed
from beholder import Beholder
from windowed import until

import batos

ROOT = pathlib.Path(windowed.ui.__file__).parent
WIDTH, HEIGHT = 1366, 820
CARET_PIXELS = 500                                       # a caret that blinks differs by less, a page by more


class Screen:
    """A display of its own with one Inspector on it."""

    def __init__(self, folder, endpoint, width=WIDTH, height=HEIGHT):
        windowed.need_gl()
        windowed.need_programs("Xvfb", "xdotool", "import", "convert")
        self.folder = folder
        reading, writing = os.pipe()                     # without -noreset it begins anew each time that xdotool leaves it
        self.server = subprocess.Popen(["Xvfb", "-noreset", "-displayfd", str(writing), "-screen", "0", f"{width}x{height}x24"],
                                       pass_fds=[writing], stderr=subprocess.DEVNULL)
        os.close(writing)
        with os.fdopen(reading) as told:
            display = told.readline().strip()
        assert display, "Xvfb did not start"
        self.env = {**os.environ, "DISPLAY": f":{display}", "SDL_VIDEODRIVER": "x11", "SDL_VIDEO_X11_WMCLASS": "inspector",
                    "KIVY_HOME": str(folder / "kivy"), "KIVY_CLIPBOARD": "sdl2"}
        del self.env["KIVY_LOG_MODE"]
        (folder / "kivy").mkdir(exist_ok=True)
        self.window = subprocess.Popen([sys.executable, "morphic_ui.py", "--endpoint", endpoint], cwd=ROOT, env=self.env)
        try:
            until(lambda: self.tool("search", "--class", "inspector"), what="a window")
        except AssertionError:
            self.close()                                 # nothing is left behind
            raise

    def tool(self, *words):
        return subprocess.run(["xdotool", *words], env=self.env, capture_output=True, text=True, timeout=60).stdout.strip()

    def keys(self, *names):
        self.tool("key", "--delay", "40", *names)
        self.steady()

    def type(self, text):
        self.tool("type", "--delay", "25", text)
        self.steady()

    def steady(self):
        """Wait until what came of the last keys is shown, as a person does: one look is as the next."""
        until(lambda: self.difference(self.shot("look"), self.shot("next look")) <= CARET_PIXELS, what="a steady screen")

    def shot(self, name):
        """Take a screenshot; returns its path."""
        path = self.folder / f"{name}.ppm"               # packed it would take several times as long
        subprocess.run(["import", "-window", "root", str(path)], env=self.env, check=True, timeout=60)
        return path

    def colours(self, name="look"):
        """Return how many colours the screen shows; an empty one shows few."""
        told = subprocess.run(["convert", str(self.shot(name)), "-format", "%k", "info:"], capture_output=True, text=True,
                              timeout=60, check=True)
        return int(told.stdout)

    def changed(self, before, what):
        """Wait until the screen is not what it was before."""
        until(lambda: self.difference(before, self.shot("now")) > CARET_PIXELS, what=what)

    @staticmethod
    def difference(one, other):
        """Return how many pixels differ."""
        told = subprocess.run(["compare", "-metric", "AE", str(one), str(other), "null:"], text=True, capture_output=True,
                              timeout=60)
        return float(told.stderr.split()[0])

    def close(self):
        for one in (self.window, self.server):
            if one.poll() is None:
                one.kill()
            one.wait(60)


@pytest.fixture
def screen(tmp_path, daemon):
    running = daemon(core=0.2)
    with batos.Client(running.endpoint) as client:
        for name in ("vesper.md", "marrow.md"):
            client.call("index_document", doc_id=name, text=(ROOT / "tests" / "data" / name).read_text("utf-8"))
        made = Screen(tmp_path, running.endpoint)
        made.client = client
        yield made
        made.close()


def subscribed(client):
    return client.call("health")["result"]["subscribers"]


@pytest.mark.slow
def test_a_person_at_the_keyboard(screen):
    client = screen.client
    until(lambda: subscribed(client), what="the Inspector is online")
    until(lambda: screen.colours() > 100, what="a page")

    before = screen.shot("documents")                    # search by the palette, and open a result
    screen.keys("ctrl+k")
    screen.type("full darkness")
    screen.keys("Return")
    screen.changed(before, "results")
    before = screen.shot("results")
    screen.keys("Down", "Return")
    screen.changed(before, "the document")
    screen.shot("document")
    screen.keys("Escape")

    screen.keys("ctrl+2")                                # ask
    screen.type("How long does the mast run in full darkness?")
    screen.keys("Return")

    def complete():
        return [row for row in client.call("list_cycles")["results"] if row["state"] == "COMPLETE"]
    answered = until(complete, what="an answer")
    assert "twelve" in answered[0]["answer"]
    screen.shot("answer")

    screen.keys("ctrl+4")                                # send a message, and undo what it changed
    screen.type("genesis_obj")
    screen.keys("Tab")
    screen.type("setSlot_value_")
    screen.keys("Tab")
    screen.type('["lamps", 7]')
    screen.keys("ctrl+Return")
    until(lambda: "lamps" in client.call("inspect", target="genesis_obj")["result"]["slots"], what="the slot")
    screen.shot("message")
    before = screen.shot("sent")
    screen.keys("Escape", "Escape", "ctrl+z")
    screen.changed(before, "the question whether to undo")
    screen.shot("undo")
    screen.keys("ctrl+Return")
    until(lambda: "lamps" not in client.call("inspect", target="genesis_obj")["result"]["slots"], what="the slot is gone")

    for number, name in enumerate(windowed.ui.PAGES, 1):
        screen.keys(f"ctrl+{number}")
        until(lambda name=name: screen.colours(name) > 100, what=name)

    screen.keys("ctrl+q")
    assert screen.window.wait(60) == 0
    until(lambda: not subscribed(client) or client.call("health")["result"]["subscribers"] <= 1, what="it is gone")


@pytest.mark.slow
def test_closing_the_window_ends_the_process_also_without_a_daemon(screen, daemon):
    until(lambda: screen.colours() > 100, what="a page")
    threads = len(os.listdir(f"/proc/{screen.window.pid}/task"))
    assert threads > 1
    until(lambda: subscribed(screen.client), what="the Inspector is online")
    before = screen.shot("online")
    os.kill(screen.client.call("health")["result"]["pid"], signal.SIGKILL)
    screen.changed(before, "the banner")
    screen.keys("Escape")
    assert screen.window.poll() is None
    identity = screen.tool("search", "--class", "inspector").split()[0]
    screen.tool("windowclose", identity)
    screen.window.wait(60)


@pytest.mark.slow
def test_the_first_window_fits_a_small_screen(tmp_path, daemon):
    running = daemon()
    screen = Screen(tmp_path, running.endpoint, 1024, 700)
    try:
        until(lambda: screen.colours() > 100, what="a page")
        identity = screen.tool("search", "--class", "inspector").split()[0]

        def geometry():
            told = screen.tool("getwindowgeometry", "--shell", identity)
            return {name: int(value) for name, value in (line.split("=") for line in told.split()) if value.isdigit()}
        until(lambda: geometry()["WIDTH"] <= 1024 and geometry()["HEIGHT"] <= 700, what="it fits")
    finally:
        screen.close()


@pytest.mark.slow
def test_what_is_changed_in_one_window_is_seen_in_the_other(daemon):
    windowed.need_gl()
    running = daemon()
    with batos.Client(running.endpoint) as client:
        oid = client.call("send_message", target="genesis_obj", selector="clone")["result"]["$ref"]
        client.call("send_message", target=oid, selector="setSlot_value_", args=["price", 4])
    one, other = windows = [Beholder(running.endpoint, oid) for _ in range(2)]
    try:
        for window in windows:
            window.heard()
        for doer, seer, price in ((one, other, "12.5"), (other, one, "17.25")):
            seer.say(f"see price {price}")
            doer.say(f"edit price {price}")
            doer.heard()
            seer.heard()                                 # how soon: tests/bench/window.py
    finally:
        for window in windows:
            window.close()


def test_what_is_missing_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(windowed.shutil, "which", lambda name: None)
    with pytest.raises(AssertionError, match="apt-get install") as told:
        windowed.need_programs("Xvfb")
    assert "\n" not in str(told.value).split("\nassert")[0] and conftest.ROOT == ROOT
