"""What the tests of the Inspector share: where Kivy keeps its files, what a window needs, and a hand that types and clicks."""

import atexit
import ctypes
import os
import shutil
import tempfile
import time

HOME = tempfile.mkdtemp(prefix="batos-kivy-")
atexit.register(shutil.rmtree, HOME, True)
os.environ.update(KIVY_HOME=HOME, KIVY_NO_ARGS="1", KIVY_NO_FILELOG="1", KIVY_LOG_MODE="PYTHON", KIVY_CLIPBOARD="dummy",
                  SDL_VIDEODRIVER="offscreen", LIBGL_ALWAYS_SOFTWARE="1")

import morphic_ui as ui

APT = "apt-get install -y --no-install-recommends libgl1 libegl1 xvfb xauth xdotool imagemagick"
GUARD_S = 120                                            # longer than anything takes; what hangs fails
ENTER, ESCAPE, DOWN, END, F1, F5 = 13, 27, 274, 279, 282, 286


def need_gl():
    """Fail in one line where no window can be drawn."""
    try:
        for name in ("libGL.so.1", "libEGL.so.1"):
            ctypes.CDLL(name)
    except OSError as error:
        raise AssertionError(f"a window cannot be drawn here ({error}); run: {APT}") from None


def need_programs(*names):
    """Fail in one line where a program is missing."""
    missing = [name for name in names if shutil.which(name) is None]
    assert not missing, f"{', '.join(missing)} is not installed; run: {APT}"


def until(done, step=lambda: time.sleep(0.01), what=""):
    """Step until done() is true; returns what it answered."""
    end_s = time.monotonic() + GUARD_S
    while not (found := done()):
        assert time.monotonic() < end_s, f"it did not come to pass: {what or done}"
        step()
    return found


class Hand:
    """An Inspector in this process, and a hand at its keys and mouse."""

    def __init__(self, endpoint):
        need_gl()
        from kivy.base import EventLoop, runTouchApp
        from kivy.core.window import Window
        self.window, self.loop = Window, EventLoop
        self.app = ui.MorphicUIApp(endpoint)
        self.app._run_prepare()
        runTouchApp(embedded=True)
        self.store = self.app.store

    @property
    def root(self):
        """The Inspector, which is made anew for another look."""
        return self.app.inspector

    def close(self):
        self.app.stop()
        self.loop.idle()

    def until(self, done, what=""):
        return until(done, self.loop.idle, what)

    def settle(self):
        """Wait until nothing is asked any more, and all is drawn."""
        self.until(lambda: not self.store._asked, "answers")
        for _ in range(4):
            self.loop.idle()

    def online(self):
        self.until(lambda: self.store.line == "online" and self.store.state, "online")
        self.settle()

    def page(self, name):
        self.root.open(name)
        self.settle()
        return self.root.page

    def key(self, code, *modifiers):
        self.window.dispatch("on_key_down", code, 0, None, list(modifiers))
        self.window.dispatch("on_key_up", code, 0)
        self.loop.idle()

    def type(self, text):
        self.loop.idle()
        for char in text:
            self.window.dispatch("on_textinput", char)
        self.loop.idle()

    def click(self, widget, x=None, y=None):
        """Touch a widget's middle, or a place of the window."""
        from kivy.tests.common import UnitTestTouch
        x, y = (x, y) if x is not None else widget.to_window(*widget.center)
        touch = UnitTestTouch(x, y)
        touch.touch_down()
        touch.touch_up()
        self.loop.idle()

    def press(self, text, within=None):
        """Press the button that says a text."""
        import re
        for one in ui._all_below(within or self.window):
            if isinstance(one, ui.Push) and re.sub(r"\[.*?\]", "", one.text).strip() == text:
                one.dispatch("on_release")
                self.loop.idle()
                return
        raise AssertionError(f"no button says {text!r}")

    def dialog(self):
        return self.until(lambda: next((one for one in self.window.children if isinstance(one, ui.Dialog)), None), "a dialog")

    def shown(self, widget=None):
        """Return all text of a widget and what is below it, with its markup."""
        return "\n".join(one.text for one in ui._all_below(widget or self.root) if getattr(one, "text", ""))
