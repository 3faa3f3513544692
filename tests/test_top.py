"""The terminal's picture: by textual's pilot against a daemon, and as a program in a terminal."""

import asyncio
import errno
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import conftest
import pytest
from test_client import MANUAL, NOBODY, Double

import batos

QUESTION = "How is the brass valve turned?"
GUARD_S = 300                                            # what takes longer hangs
CORE = (conftest.ROOT / "seed_core" / "core.json").exists()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The endpoint of a daemon with a core that answers at once; its memory holds one manual."""
    running = conftest.DaemonProcess(tmp_path_factory.mktemp("served"), core=0)
    try:
        with batos.Client(running.endpoint) as client:
            client.call("index_document", doc_id="pump.md", text=MANUAL)
        yield running.endpoint
    finally:
        assert running.stop() == 0


class Person:
    """Who looks at a terminal and types: the test's hand on an App."""

    def __init__(self, app, pilot):
        self.app, self.pilot = app, pilot

    def screen(self):
        return "\n".join(strip.text for strip in self.app.screen._compositor.render_strips())

    def talk(self):
        return [str(entry.render()) for entry in self.app.query(".entry")]

    def line(self):
        return self.app.query_one("#line").value

    async def until(self, condition):
        end_s = time.monotonic() + GUARD_S
        while not condition():
            assert time.monotonic() < end_s, self.screen() + "\n".join(self.talk())
            await self.pilot.pause(0.02)

    async def online(self):
        await self.until(lambda: self.app.off is None)

    async def types(self, text, *then):
        keys = {" ": "space", "/": "slash"}
        await self.pilot.press(*(keys.get(char, char) for char in text), *then)

    async def enters(self, text):
        self.app.query_one("#line").value = text
        await self.pilot.press("enter")

    async def asks(self, text, *words):
        """Enter a line; returns its entry once that holds all the words."""
        before = len(self.talk())
        await self.enters(text)
        await self.until(lambda: self.talk()[before:] and all(word in self.talk()[-1] for word in words))
        return self.talk()[-1]


def watching(endpoint, play, size=(80, 24), keys=None):
    """Run play(person) before a picture of the daemon at an endpoint; returns the App."""
    async def run():
        app = batos._top_app(endpoint, keys)
        async with app.run_test(size=size) as pilot:
            await play(Person(app, pilot))
        return app
    return asyncio.run(run())


# What is shown


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
def test_the_picture_fits_the_terminal(served, size):
    async def play(person):
        await person.online()
        await person.until(lambda: "method" in person.screen())
        shown = person.screen()
        for words in (f"BAT OS {batos.__version__} is serving", "core ready", "documents in", "Cycles", "Experts", "Lanes",
                      "Events", "hot ", "warm", "cold", "write", "bulk", "read", "upkeep", "synapse", "method",
                      "Ctrl-C quits"):
            assert words in shown, words
        assert {len(line) for line in shown.splitlines()} == {size[0]} and len(shown.splitlines()) == size[1]
    watching(served, play, size)


def test_it_follows_a_resize(served):
    async def play(person):
        await person.online()
        for size in ((200, 60), (80, 24), (40, 10), (20, 5), (80, 24)):
            await person.pilot.resize_terminal(*size)
            await person.until(lambda size=size: len(person.screen().splitlines()) == size[1])
            assert bool(person.app.query_one("#panes").display) is (size[1] >= 20)
            assert person.app.query_one("#line").region.height == 1
        assert "Lanes" in person.screen()
    watching(served, play)


def test_a_question_is_answered_with_citations_and_each_persona_s_part(served):
    async def play(person):
        await person.online()
        told = await person.asks(QUESTION, " led, ")
        assert told.startswith(f"> {QUESTION}\n") and "[1] pump.md:5  Turn the brass valve" in told
        assert "BABS (tech_bat): " in told and "BABS (iceman): " in told and "ROBIN, BRICK, ALFRED: not asked" in told
        cycle = re.search(r"0x\w+", told)[0]
        await person.until(lambda: f"●●●● {cycle}" in person.screen() and f"{cycle} is COMPLETE" in person.screen())
        assert "nothing in memory about this" in await person.asks("What do giraffes eat in Kenya?", "0x", "giraffes", "There")
    watching(served, play)


@pytest.mark.parametrize("line, words", [
    ("/search brass valve", ["1. pump.md:", "words: ", "valve"]),
    ('/send genesis_obj setSlot:value: ["n", {"a": [1.5, null]}]', ['"status": "OK"', '"change"']),
    ("/send genesis_obj slotNames", ['"description"']),
    ("/send genesis_obj", ["BadRequest", "selector"]),
    ("/send genesis_obj setSlot:value: [1", ["ConfigError", "not JSON"]),
    ("/inspect genesis_obj", ['"oid"', '"description"']),
    ("/inspect nothing", ["NotFound", "known are"]),
    ("/cancel 0xffffff", ["NotFound", "0xffffff"]),
    ("/undo 0.0", ["> /undo 0.0", ": "]),
    ("/activate NOBODY", ["NotFound", "NOBODY"]),
    ("/health", ["state: serving", "lanes:"]),
    ("/log", ["index_document"]),
    ("/show lanes", ["synapse ░"]),
    ("/show nothing", ["no pane is named 'nothing'"]),
    ("/cancel", ["/cancel takes CYCLE"]),
    ("/helth", ["no command is named /helth; did you mean health"]),
])
def test_a_command_tells_its_outcome(served, line, words):
    async def play(person):
        await person.online()
        await person.asks(line, *words)
    watching(served, play)


def test_help_tells_all_commands_and_quit_quits(served):
    async def play(person):
        told = await person.asks("/help", "/quit")
        assert all(f"/{name} {row.arguments}" in told and row.help in told for name, row in batos._TOP_COMMANDS.items())
        await person.enters("/quit")
    assert watching(served, play).return_code == 0


def test_a_mistyped_command_leaves_the_line_and_is_recalled(served):
    async def play(person):
        await person.online()
        await person.asks("/serch valve", "no command is named /serch", "search")
        assert person.line() == ""
        await person.types("", "up")
        assert person.line() == "/serch valve"
        await person.types("", "escape", "f1")
        await person.until(lambda: "a line without / is a question" in person.talk()[-1])
    watching(served, play)


class Unended(set):
    """Cycles that do not end."""

    def discard(self, cycle):
        """It goes on."""


@pytest.mark.parametrize("key", ["ctrl+q", "ctrl+c"])
def test_who_quits_while_cycles_run_is_told_so_first(served, key):
    async def play(person):
        await person.online()
        person.app.lookout.asked = Unended({"0x1"})
        await person.types("", key)
        await person.until(lambda: person.talk() and "1 cycle is at work, 1 asked for here" in person.talk()[-1])
        assert person.app.is_running
        await person.types("", key)
    assert watching(served, play).return_code == 0


@pytest.mark.parametrize("by", ["its name", "ctrl+z"])
def test_a_change_is_made_named_and_undone(served, by):
    async def play(person):
        await person.online()
        told = await person.asks('/send genesis_obj setSlot:value: ["undone", 7]', '"change"')
        change = json.loads(told.partition("\n")[2])["change"]
        if by == "ctrl+z":
            await person.types("", by)
            assert person.line() == f"/undo {change}"    # Enter does it, and Esc does not
        await person.asks(f"/undo {change}", "is undone")
        assert "undone" not in await person.asks("/send genesis_obj slotNames", '"result"')
    watching(served, play)


def test_the_keys_are_those_of_the_inspector(served):
    async def play(person):
        await person.types("", "ctrl+z")
        await person.until(lambda: "nothing was changed from here" in person.talk()[-1])
        await person.online()
        looked = []
        person.app.lookout._look = lambda client: looked.append(client)
        await person.types("", "f5")
        await person.until(lambda: looked and not person.app.lookout.look_now.is_set())
        for key in ("ctrl+k", "f1"):
            await person.types("", key)
            await person.until(lambda: batos._TOP_KEYS_TOO in person.talk()[-1])
    watching(served, play)


def test_why_tells_who_spoke_in_a_cycle(served):
    async def play(person):
        await person.online()
        told = await person.asks(QUESTION, " led, ")
        cycle = re.search(r"0x\w+", told)[0]
        why = await person.asks(f"/why {cycle}", " led")
        with batos.Client(served) as client:
            lines = client.call("why", cycle=cycle)["results"]
        assert lines and all(" ".join(line.split()) in " ".join(why.split()) for line in lines)
    watching(served, play)


def test_the_pane_of_cycles_tells_why_one_failed():
    row = {"cycle": "0x7", "state": "FAILED", "mission": "grumble", "reason": {"code": "MessageNotUnderstood", "details": "no"}}
    told = {"health": {"missions": {"failed": 1}}, "cycles": [row]}
    assert list(batos._cycles_pane(told))[1].split()[1:] == ["0x7", "failed", "(MessageNotUnderstood)", "grumble"]


def test_who_quits_while_others_cycles_run_is_told_too(served):
    async def play(person):
        await person.online()
        person.app.lookout._look = lambda client: None   # what it told of the daemon stays
        person.app.hear_panes(person.app.drawn, 2)
        await person.types("", "ctrl+q")
        await person.until(lambda: person.talk() and "2 cycles are at work;" in person.talk()[-1])
        assert person.app.is_running
        await person.types("", "ctrl+q")
    assert watching(served, play).return_code == 0


def test_a_cycle_is_cancelled(tmp_path):
    running = conftest.DaemonProcess(tmp_path, core=60)
    try:
        with batos.Client(running.endpoint) as client:
            client.call("index_document", doc_id="pump.md", text=MANUAL)

        async def play(person):
            await person.online()
            await person.enters(QUESTION)
            await person.until(lambda: re.search(r"0x\w+ decomposing", person.screen()))
            cycle = re.search(r"(0x\w+) decomposing", person.screen())[1]
            await person.enters(f"/cancel {cycle}")
            await person.until(lambda: any("FAILED: " in told and "Cancelled" in told for told in person.talk()))
        watching(running.endpoint, play)
    finally:
        running.stop(kill=True)


# The line


def test_a_keyboard_is_enough(served):
    async def play(person):
        await person.online()
        await person.types("/se", "tab")
        assert person.line() == "/se" and "/search" in person.screen() and "/send" in person.screen()
        await person.types("a", "tab")
        assert person.line() == "/search "
        await person.types("valve", "enter")
        await person.until(lambda: person.talk() and "pump.md" in person.talk()[-1])
        await person.asks("/show lanes", "write")
        await person.types("begun", "up", "up")
        assert person.line() == "/search valve"
        await person.types("", "down")
        assert person.line() == "/show lanes"
        await person.types("", "down", "down")
        assert person.line() == "begun"
        await person.types("", "escape")
        assert person.line() == "" and person.app.focused.id == "line"
        for _ in range(3):
            await person.asks("/help", "/quit")
        talk = person.app.query_one("#talk")
        await person.until(lambda: talk.scroll_y == talk.max_scroll_y > 0)
        await person.types("", "pageup")
        await person.until(lambda: talk.scroll_y < talk.max_scroll_y)
        above = talk.scroll_y
        person.app.hear_done("/x", person.app.query(".entry").last(), "more\n" * 30, None)
        await person.pilot.pause(0.2)
        assert talk.scroll_y == above                    # what comes meanwhile takes nobody away from what is read
        await person.types("", *["pagedown"] * 30)
        await person.until(lambda: talk.scroll_y == talk.max_scroll_y)
        await person.types("", "ctrl+c")
    assert watching(served, play).return_code == 0


# What is hostile


HOSTILE = "\x1b[31m[bold red]evil[/] \x07\x9b2J \u202eback\u200b [link=x]\r\tend [@click=app.quit]"


def test_what_would_steer_the_terminal_is_shown_harmlessly(tmp_path):
    running = conftest.DaemonProcess(tmp_path, core=0)
    try:
        with batos.Client(running.endpoint) as client:
            client.call("index_document", doc_id="[red]x", text=f"The {HOSTILE} valve is brass.")
            brief = {"type": "direct_synthesis", "selector": "answer_", "args": [f"valve {HOSTILE}"]}
            client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)

        async def play(person):
            await person.online()
            await person.until(lambda: "[31m[bold red]evil[/]" in person.screen())
            await person.asks("/search brass valve", "[red]x:", "[bold red]evil[/]", "[@click=app.quit]")
            await person.asks(f"valve {HOSTILE.replace(chr(13), '')}", " led, ")
            await person.asks("/show cycles", "[link=x]")
            shown = (person.screen() + "".join(person.talk())).replace("\n", "")
            assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e\u200b]", shown)
        watching(running.endpoint, play, (200, 60))
    finally:
        running.stop(kill=True)


@pytest.mark.parametrize("line, shown", [
    ("plain", "plain"), ("a\x1b[2Jb", "a\ufffd[2Jb"), ("a\tb\r", "a b "), ("a\x9bb\x7f", "a\ufffdb\ufffd"),
    ("می\u200cخواهم", "می\u200cخواهم"), ("\u202e\u2066x", "\ufffd\ufffdx"), ("日本 é 🦇", "日本 é 🦇"),
])
def test_a_line_is_shown_without_what_steers(line, shown):
    assert batos.shown_line(line) == shown


def test_a_long_text_is_cut_and_says_so():
    shown = batos._shown_lines("x" * (batos._TOP_ENTRY_CHARS + 1234))
    assert shown.endswith("… 1,234 characters more") and len(shown) < batos._TOP_ENTRY_CHARS + 100


def test_what_is_pasted_is_one_line_that_steers_nothing():
    from textual import events

    async def play(person):
        person.app.post_message(events.Paste("one\x1b[2J\n[red]two\r\n\tthree"))
        await person.until(lambda: person.line() == "one\ufffd[2J [red]two three")
        assert "\x1b" not in person.screen()
    watching(NOBODY, play)


@pytest.mark.parametrize("reply", [{"status": "OK", "details": ""}, {"status": "OK", "result": []}, {"status": 7}, {},
                                   {"status": "ERROR", "code": "Forbidden", "details": "no\x1b[2J"}])
def test_who_does_not_speak_as_a_daemon_is_named(tmp_path, reply):
    endpoint = f"ipc://{tmp_path}/double.sock"

    async def play(person):
        await person.until(lambda: "is not understood" in person.screen())
        assert "\x1b" not in person.app.query_one("#daemon").render().plain
    with Double(endpoint, lambda request: [{"id": request["id"], **reply}]):
        watching(endpoint, play)


def test_the_pieces_of_an_answer_are_told_as_they_come_of_what_was_asked():
    told = []
    lookout = batos.Lookout(NOBODY, None, lambda *what: told.append(what))
    lookout.asked.add("0x1")
    for cycle in ("0x1", "0x2"):
        assert not lookout._heard({"event": "tokens", "cycle": cycle, "text": "1\nThe"})
    assert lookout._heard({"event": "cycle", "cycle": "0x1", "state": "DELEGATING"})
    assert not lookout._heard({"event": "tokens", "cycle": "0x1", "text": "A "})
    assert not lookout._heard({"event": "tokens", "cycle": "0x1", "text": "mast"})
    assert not lookout._heard(None) and not lookout._heard({"event": "news"})
    assert told == [("more", "0x1", "(provisional) 1 The"), ("more", "0x1", "delegating"), ("more", "0x1", "(provisional) A"),
                    ("more", "0x1", "(provisional) A mast")]
    assert [event["event"] for event in lookout.events] == ["cycle"]


# A daemon that is not there


@pytest.fixture
def impatient(monkeypatch):
    """A picture that gives a silent daemon up sooner."""
    monkeypatch.setattr(batos, "_SPOKEN_S", 3.0)
    monkeypatch.setattr(batos, "_LOOK_AGAIN_S", 0.2)


def test_an_absent_daemon_is_sent_nothing_now_or_later(tmp_path, impatient):
    first = conftest.DaemonProcess(tmp_path, core=0)
    first.stop()
    again = []

    async def play(person):
        await person.until(lambda: "nothing listens there" in person.screen())
        assert "OFFLINE" in person.screen() and first.endpoint in person.screen() and "python batos.py" in person.screen()
        await person.asks('/send genesis_obj setSlot:value: ["late", 1]', "not sent", "stays in the line")
        assert person.line().startswith("/send") and "/help" in await person.asks("/help", "/quit")
        await person.asks(QUESTION, "not sent")
        again.append(conftest.DaemonProcess(tmp_path, ("endpoint", first.endpoint), core=0))
        await person.online()
        assert person.line() == QUESTION
        assert '"late"' not in await person.asks("/send genesis_obj slotNames", '"result"')
        with batos.Client(first.endpoint) as client:
            assert client.call("list_cycles")["results"] == []
    try:
        watching(first.endpoint, play)
    finally:
        for one in again:
            one.stop(kill=True)


@pytest.mark.slow
def test_a_daemon_that_hangs_is_told_from_one_that_is_absent(tmp_path, impatient):
    running = conftest.DaemonProcess(tmp_path, core=0)

    async def play(person):
        await person.online()
        os.kill(running.process.pid, signal.SIGSTOP)
        try:
            await person.until(lambda: "hangs" in person.screen())
            await person.asks('/send genesis_obj setSlot:value: ["late", 1]', "not sent", "hangs")
        finally:
            os.kill(running.process.pid, signal.SIGCONT)
        await person.online()
        assert '"late"' not in await person.asks("/send genesis_obj slotNames", '"result"')
    try:
        watching(running.endpoint, play)
    finally:
        running.stop(kill=True)


@pytest.mark.slow
def test_a_killed_daemon_comes_back_and_its_accepted_question_is_answered(tmp_path, impatient):
    running = [conftest.DaemonProcess(tmp_path, core=5)]
    endpoint = running[0].endpoint

    async def play(person):
        await person.online()
        with batos.Client(endpoint) as client:
            client.call("index_document", doc_id="pump.md", text=MANUAL)
        await person.enters(QUESTION)
        await person.until(lambda: re.search(r"0x\w+ (decomposing|delegating)", person.screen()))     # it was accepted
        running[0].stop(kill=True)
        await person.until(lambda: "nothing listens there" in person.screen())
        running.append(conftest.DaemonProcess(tmp_path, ("endpoint", endpoint), core=0))
        await person.until(lambda: " led, " in person.talk()[-1])
        assert "[1] pump.md:5" in person.talk()[-1]
        await person.asks("/health", f"pid: {running[1].process.pid}")
        with batos.Client(endpoint) as client:           # and its events come again
            client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["n", 1])
        await person.until(lambda: "stored; " in person.screen())
    try:
        watching(endpoint, play)
    finally:
        for one in running:
            one.stop(kill=True)


def test_what_is_told_while_the_window_closes_is_nobody_s_any_more(tmp_path):
    async def play(person):
        await person.until(lambda: person.app.query("#daemon"))
    app = watching(f"ipc://{tmp_path}/absent", play)
    assert not app.query("#daemon")          # its widgets are gone; the lookout's last words may come now
    app._hear("panes", ({"Daemon": ["serving"]}, 0))
    app._hear("offline", ("nothing listens there",))
    assert app.drawn == {}


def test_keys_are_shown_where_they_are_asked_for(daemon, tmp_path, monkeypatch, impatient):
    monkeypatch.chdir(tmp_path)
    assert batos.main(["keys", "add", "ann", "--role", "read"]) == 0
    endpoint, keys = daemon("--curve", "true").endpoint, "live_image.fs.keys/ann.json"

    async def without(person):
        await person.until(lambda: "does not let a client without keys in" in person.screen())

    async def within(person):
        await person.online()
        assert "Forbidden" in await person.asks('/send genesis_obj setSlot:value: ["n", 1]', "needs the role write")
    watching(endpoint, without)
    watching(endpoint, within, keys=keys)


@pytest.mark.slow
@pytest.mark.skipif(not CORE, reason="there is no trained core in seed_core/")
def test_an_answer_is_seen_as_the_core_says_it(daemon):
    endpoint, shown = daemon(core="auto").endpoint, []

    async def play(person):
        hear = person.app.hear_more

        def hear_more(cycle, told):                      # what is provisional may stand for less than a look lasts
            hear(cycle, told)
            shown.append(person.talk()[-1])
        person.app.hear_more = hear_more
        await person.online()
        await person.until(lambda: "core ready" in person.screen())
        with batos.Client(endpoint) as client:
            client.call("index_document", doc_id="pump.md", text=MANUAL)
        await person.enters(QUESTION)
        await person.until(lambda: " led, " in person.talk()[-1])
        told = [line for line in shown if "(provisional) " in line]
        assert any("Turn the brass valve until" in line for line in told) and "(provisional)" not in person.talk()[-1]
    watching(endpoint, play)


# As a program


def test_where_there_is_no_terminal_one_picture_is_printed(served, capsys):
    with batos.Client(served) as client:
        brief = {"type": "direct_synthesis", "selector": "answer_", "args": [f"the brass valve {HOSTILE}"]}
        client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)
    assert batos.main(["top", "--endpoint", served]) == 0
    shown = capsys.readouterr().out
    assert re.match(rf"Daemon:\n  BAT OS {re.escape(batos.__version__)} is serving", shown) and "\x1b" not in shown
    assert all(words in shown for words in ("Cycles:\n", "●●●● 0x", "Experts:\n  hot  ", "Lanes:\n  write   ░", "[bold red]evil"))
    assert batos.main(["top", "--json", "--endpoint", served]) == 0
    assert {"health", "experts", "cycles"} <= set(json.loads(capsys.readouterr().out))


def test_where_there_is_no_terminal_an_absent_daemon_is_an_error(monkeypatch, capsys):
    real = batos.Client
    monkeypatch.setattr(batos, "Client", lambda endpoint, timeout_s, keys: real(endpoint, 0.1))
    assert batos.main(["top", "--endpoint", NOBODY]) == 1
    told = capsys.readouterr()
    assert told.out == "" and "nothing answers" in told.err


class Screen:
    """A program in a terminal of 80 by 24, and what it wrote there."""

    def __init__(self, *command):
        self.lead, follow = pty.openpty()
        fcntl.ioctl(follow, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.usual = termios.tcgetattr(follow)
        sized = ("COLUMNS", "LINES")                     # a runner of tests may set them; they go before the real size
        usual = {name: value for name, value in os.environ.items() if name not in sized}
        self.process = subprocess.Popen(command, stdin=follow, stdout=follow, stderr=follow, start_new_session=True,
                                        env={**usual, "TERM": "xterm-256color"})
        self.follow, self.written = follow, b""

    def read(self):
        """Take what was written; returns whether more may come."""
        if select.select([self.lead], [], [], 0.1)[0]:
            try:
                self.written += os.read(self.lead, 1 << 16)
            except OSError as error:
                assert error.errno == errno.EIO
                return False
        return self.process.poll() is None

    def text(self):
        return re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\].*?(\x07|\x1b\\)|[@-_])", "", self.written.decode("utf-8", "replace"))

    def until(self, condition):
        end_s = time.monotonic() + GUARD_S
        while not condition():
            assert self.read() and time.monotonic() < end_s, self.text()

    def types(self, text):
        os.write(self.lead, text.encode())

    def end(self):
        """Return the exit status."""
        end_s = time.monotonic() + GUARD_S
        while self.process.poll() is None:
            self.read()
            if time.monotonic() > end_s:
                self.process.kill()
        self.read()
        return self.process.returncode

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.lead)
        os.close(self.follow)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ctrl-c", "quit", signal.SIGINT, signal.SIGTERM])
def test_in_a_terminal_a_question_is_typed_and_answered(served, how):
    screen = Screen(sys.executable, batos.__file__, "top", "--endpoint", served)
    try:
        screen.until(lambda: "is serving" in screen.text() and "Ctrl-C quits" in screen.text())
        screen.types(QUESTION + "\r")
        screen.until(lambda: " led, " in screen.text())
        fcntl.ioctl(screen.lead, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 170, 0, 0))
        os.killpg(screen.process.pid, signal.SIGWINCH)
        screen.until(lambda: "─" * 165 in screen.text() and "[1] pump.md:5" in screen.text())
        if isinstance(how, signal.Signals):
            screen.process.send_signal(how)
        else:
            screen.types({"ctrl-c": "\x03", "quit": "/quit\r"}[how])
        assert screen.end() == 0 and "Traceback" not in screen.text()
        assert b"\x1b[?1049h" in screen.written and screen.written.rindex(b"\x1b[?1049l") > screen.written.rindex(b"\x1b[?1049h")
        assert termios.tcgetattr(screen.follow)[3] == screen.usual[3]
    finally:
        screen.close()


@pytest.mark.slow
def test_a_terminal_that_is_gone_ends_the_picture(served):
    screen = Screen(sys.executable, batos.__file__, "top", "--endpoint", served)
    try:
        screen.until(lambda: "is serving" in screen.text())
        os.close(screen.lead)                            # no hang-up is sent: it does not control the session
        assert screen.process.wait(GUARD_S) == 0
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(screen.follow)
