"""The Inspector without a window: the bridge, the store, values as text. What is shown is tested in test_morphic_ui.py."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading

import conftest
import pytest
import windowed
import zmq
from hypothesis import given
from hypothesis import strategies as st
from windowed import until

import batos

ui = windowed.ui
ROOT = pathlib.Path(ui.__file__).parent


class Line:
    """A bridge and a store, pumped by hand."""

    def __init__(self, endpoint, keys=None):
        self.lines = []
        self.bridge = ui.Bridge(endpoint, keys)
        self.store = ui.Store(self.bridge)
        self.store.on("line", lambda: self.lines.append(self.store.line))

    def until(self, done, what=""):
        return until(lambda: not self.store.drain() and done(), what=what)

    def reply(self, command, **fields):
        got = []
        self.store.ask(command, got.append, fields=fields)
        self.until(lambda: got, command)
        return got[0]

    def online(self):
        self.until(lambda: self.store.line == "online" and self.store.state, f"online {self.lines} {vars(self.bridge)}")
        return self


@pytest.fixture
def line():
    made = []

    def make(endpoint, keys=None):
        made.append(Line(endpoint, keys))
        return made[-1]
    yield make
    for one in made:
        one.bridge.close()
        assert not one.bridge._thread.is_alive()


def free_endpoint():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{one.getsockname()[1]}"


# The file


def test_importing_it_opens_no_window_and_loads_nothing_of_the_daemon():
    script = "import sys, morphic_ui; print([m for m in ('kivy.core.window', 'batos', 'ZODB', 'torch') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "DISPLAY": ""}, capture_output=True,
                          text=True, timeout=60, check=True)
    assert told.stdout.strip() == "[]"


def test_its_commands_are_the_daemons():
    for name, row in batos.COMMANDS.items():
        told, model = ui.COMMANDS[name], row.model
        assert told["help"] == " ".join(model.__doc__.split()) and told["effect"] == row.effect and told["role"] == row.role
        assert list(told["fields"]) == [field for field in model.model_fields if field not in batos.Command.model_fields]
        assert [field for field, how in told["fields"].items() if how.get("required")] == \
            [field for field, how in model.model_fields.items() if how.is_required() and field != "command"]
    assert set(ui.COMMANDS) == set(batos.COMMANDS)


def test_its_specification_is_plain_data_of_what_is_there():
    assert json.loads(json.dumps(ui.SPEC)) == ui.SPEC and json.loads(json.dumps(ui.COMMANDS)) == ui.COMMANDS
    assert set(ui.PAGES) == set(ui.PAGE_CLASSES)
    assert set(ui.SPEC["states"]) == set(ui.COMMANDS["list_cycles"]["fields"]["state"]["choices"])
    text = pathlib.Path(ui.__file__).read_text("utf-8")
    marks = [text.index(f"# ---- page: {name}\n") for name in ui.PAGES]
    begin, end = (text.index(f"# ---- {what}\n") for what in ("specification", "end of specification"))
    assert marks == sorted(marks) and begin < end < marks[0]


@pytest.mark.parametrize("name", ui.PAGES)
def test_a_page_can_be_left_out(name, tmp_path):
    text = pathlib.Path(ui.__file__).read_text("utf-8")
    parts = re.split(r"^(?=# ---- )", text, flags=re.MULTILINE)
    others = "".join(part for part in parts if not re.match(rf"# ---- page: {name}\b", part))
    spec = {**ui.SPEC, "pages": [page for page in ui.SPEC["pages"] if page["name"] != name]}
    head, _, tail = others.partition("SPEC = {")
    (tmp_path / "fewer.py").write_text(f"{head}SPEC = {spec!r}\n\nCOMMANDS = {tail.partition('COMMANDS = ')[2]}", "utf-8")
    told = subprocess.run([sys.executable, "-c", "import fewer; print(*fewer.PAGE_CLASSES)"], cwd=tmp_path, capture_output=True,
                          text=True, timeout=60, check=True)
    assert told.stdout.split() == [page["name"] for page in spec["pages"]]
    check = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "fewer.py"]
    undefined = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert undefined.returncode == 0, undefined.stdout


# The line


def test_it_comes_online_asks_for_the_state_and_is_told_events(daemon, line):
    one = line(daemon().endpoint).online()
    assert "genesis_obj" in one.store.state["objects"] and one.store.health["state"] == "serving"
    assert one.reply("inspect", target="genesis_obj")["result"]["oid"] == one.store.state["objects"]["genesis_obj"]["oid"]
    assert one.reply("index_document", doc_id="a", text="The valve is of brass.")["status"] == "OK"
    one.until(lambda: any(event["event"] == "uvm_state_update" for event in one.store.events), "an event")


def test_what_is_asked_while_no_daemon_is_there_fails_at_once_and_is_never_sent(tmp_path, line):
    endpoint = free_endpoint()
    one = line(endpoint)
    one.until(lambda: one.store.line == "absent", "absent")
    reply = one.reply("index_document", doc_id="late", text="This was asked too early.")
    assert reply["code"] == "Offline" and "not sent" in reply["details"] and not one.store.waiting()
    running = conftest.DaemonProcess(tmp_path, "--endpoint", endpoint)
    try:
        one.online()
        assert one.reply("list_documents")["results"] == []
    finally:
        running.stop(kill=True)


def test_a_daemon_that_is_killed_and_comes_back_is_asked_anew(tmp_path, line):
    endpoint = free_endpoint()
    running = conftest.DaemonProcess(tmp_path, "--endpoint", endpoint)
    one = line(endpoint).online()
    lost = []
    os.kill(running.process.pid, signal.SIGSTOP)         # so that it takes the request and never answers it
    one.store.ask("send_message", lost.append, slot="x", target="genesis_obj", selector="clone")
    one.store.drain()
    until(lambda: one.bridge._waiting, what="it was sent")
    running.stop(kill=True)
    one.until(lambda: one.store.line == "absent" and lost, "absent")
    assert lost[0]["code"] == "Lost" and "not known" in lost[0]["details"]
    one.store.state = {}
    running = conftest.DaemonProcess(tmp_path, "--endpoint", endpoint)
    try:
        one.online()
        one.store.events.clear()
        one.reply("index_document", doc_id="a", text="The valve is of brass.")
        one.until(lambda: any(event["event"] == "uvm_state_update" for event in one.store.events), "subscribed again")
    finally:
        running.stop(kill=True)
    assert one.lines[:3] == ["online", "absent", "online"]


def test_a_daemon_that_hangs_is_told_from_one_that_is_absent(daemon, line, monkeypatch):
    monkeypatch.setattr(ui, "HUNG_S", 1.0)
    monkeypatch.setattr(ui, "PING_S", 0.2)
    running = daemon()
    one = line(running.endpoint).online()
    os.kill(running.process.pid, signal.SIGSTOP)
    try:
        one.until(lambda: one.store.line == "hung", "hung")
        assert one.reply("health")["code"] == "Offline"
    finally:
        os.kill(running.process.pid, signal.SIGCONT)
    one.online()
    assert one.reply("health")["status"] == "OK" and "absent" not in one.lines


def test_a_socket_that_accepts_and_says_nothing_hangs(line, monkeypatch):
    monkeypatch.setattr(ui, "HUNG_S", 0.5)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        one = line(f"tcp://127.0.0.1:{mute.getsockname()[1]}")
        one.until(lambda: one.store.line == "hung", "hung")


def test_a_daemon_that_asks_for_keys_lets_in_who_has_one(daemon, tmp_path, line):
    assert batos.main(["keys", "add", "ann", "--image", str(tmp_path / "live_image.fs")]) == 0
    endpoint = daemon("--curve", "true").endpoint
    without = line(endpoint)
    without.until(lambda: without.store.line == "refused", "refused")
    assert "asks for a key" in without.store.why
    key = tmp_path / "live_image.fs.keys" / "ann.json"
    assert line(endpoint, str(key)).online().reply("health")["status"] == "OK"
    stranger = tmp_path / "stranger.json"
    pair = [part.decode() for part in zmq.curve_keypair()]
    stranger.write_text(json.dumps({"server": json.loads(key.read_text())["server"], "public": pair[0], "secret": pair[1]}))
    stranger.chmod(0o600)
    other = line(endpoint, str(stranger))
    other.until(lambda: other.store.line == "refused", "refused")
    assert "does not know this key" in other.store.why


@pytest.mark.parametrize("content, mode, word", [("{}", 0o600, "server"), ("{}", 0o644, "chmod 600"), ("no", 0o600, "keys add")])
def test_a_bad_key_file_is_told_of(tmp_path, content, mode, word):
    path = tmp_path / "key.json"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(ValueError, match=word):
        ui.read_keys(str(path))


# The store


class Deaf:
    """Stands for a bridge: what is sent is kept, what comes is put in by hand."""

    def __init__(self):
        import collections
        self.sent, self.arrived = [], collections.deque()

    def send(self, number, request):
        self.sent.append((number, request))


def test_only_the_newest_question_of_a_slot_is_answered():
    bridge = Deaf()
    store, got = ui.Store(bridge), []
    for word in ("first", "second"):
        store.ask("search_memory", lambda reply, word=word: got.append((word, reply["results"])), slot="search", query=word)
    for number, _ in reversed(bridge.sent):
        bridge.arrived.append(("reply", number, {"status": "OK", "results": [number]}))
    store.drain()
    assert got == [("second", [2])] and not store.waiting()


def test_effects_have_keys_and_their_changes_can_be_undone():
    bridge = Deaf()
    store = ui.Store(bridge)
    store.ask("send_message", fields={"target": "genesis_obj", "selector": "clone"})
    store.ask("inspect", target="genesis_obj")
    effect, read = (request for _, request in bridge.sent)
    assert len(effect["idempotency_key"]) == 36 and effect["client"] == "inspector"
    assert batos.uuid7_unix_s(effect["idempotency_key"]) and "idempotency_key" not in read
    bridge.arrived.append(("reply", 1, {"status": "OK", "change": "00.0"}))
    store.drain()
    assert store.changes == ["00.0"]


def test_an_answer_that_nobody_foresaw_is_told_and_ends_nothing(capfd):
    bridge, faults = Deaf(), []
    store = ui.Store(bridge)
    store.on("fault", faults.append)
    store.ask("inspect", lambda reply: reply["result"]["slots"], target="x")
    bridge.arrived += [("reply", 1, {"status": "OK"}), ("event", {"event": "cycle", "cycle": "0x1", "state": "IDLE"})]
    while store.drain():
        continue
    assert isinstance(faults[0], KeyError) and "0x1" in store.cycles and "KeyError" in capfd.readouterr().err


def test_many_threads_may_ask(daemon, line):
    one = line(daemon().endpoint).online()
    got, numbers = [], range(1000, 1400)
    one.store._asked.update({number: ui.Sent(number, "health", {}, got.append, None, "", 0.0) for number in numbers})
    threads = [threading.Thread(target=lambda part: [one.bridge.send(number, {"command": "health"}) for number in part],
                                args=(numbers[at::4],)) for at in range(4)]
    for thread in threads:
        thread.start()
    one.until(lambda: len(got) == len(numbers), "all replies")
    assert all(reply["status"] == "OK" for reply in got)


# Words


def test_a_script_does_what_the_message_did(daemon):
    endpoint = daemon().endpoint
    script = ui.script_for(endpoint, None, "send_message", {"target": "genesis_obj", "selector": "slotNames"})
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "'parent*'" in told.stdout
    effect = ui.script_for(ui.DEFAULT_ENDPOINT, "ann.json", "index_document", {"doc_id": "a", "text": "x"})
    assert "uuid7" in effect and "keys='ann.json'" in effect and ui.DEFAULT_ENDPOINT not in effect


@given(st.text(), st.integers(8, 40))
def test_wrapped_lines_hold_all_that_the_line_held(text, columns):
    pieces = ui.wrapped(text, columns)
    assert "".join(pieces) == text
    assert all(sum(map(ui.width_of, piece)) <= columns for piece in pieces)


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=4)
                      | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=30)


@given(VALUES, st.integers(10, 90))
def test_pretty_values_are_the_values(value, width):
    assert json.loads(ui.pretty(value, width)) == value


@given(VALUES)
def test_trees_and_short_texts_take_any_value(value):
    rows = ui.tree_rows({"result": value, "ref": {"$ref": "0x1"}}, {(), (0,)})
    assert rows[0]["key"] == "" and ui.short(value, 40) is not None and len(ui.short(value, 40)) <= 40
    assert ui.refs_in({"a": value, "ref": {"$ref": "0x7"}}, 10 ** 6)[-1] == "0x7" or "$ref" in ui.to_json(value)


def test_differences_are_told_by_tone():
    assert [line for tone, line in ui.difference("a\nb", "a\nc") if tone in ("good", "bad")][2:] == ["-b", "+c"]
    assert ui.difference("a", "a") == []


@pytest.mark.parametrize("text, words, lit", [("Valves and a valve", ["valve", "valves"], ["Valves", "valve"]),
                                              ("a filled file", ["file"], ["file"]), ("caf\u00e9", ["cafe"], ["caf\u00e9"]),
                                              ("\u6771\u4eac\u90fd", ["\u4eac\u90fd"], ["\u4eac\u90fd"]),
                                              ("a.b(c)", ["("], []), ("", ["x"], [])])
def test_words_are_lit_as_they_are_spelt(text, words, lit):
    assert [text[start:end] for start, end in ui.hits_in(text, words)] == lit


def test_a_document_that_is_named_by_a_path_is_shown_by_its_name():
    assert (ui.name_of("/a/b/c.md"), ui.folder_of("/a/b/c.md")) == ("c.md", "/a/b") and ui.name_of("b/c.md") == "b/c.md"
    assert [ui.name_of(path) for path in ("/a/apt/copyright", "/a/apt/README.md", "/copyright")] == [
        "apt/copyright", "apt/README.md", "copyright"]
    assert ui.place_of({"doc_id": "/a/c.md", "lines": [3, 3]}) == "c.md:3"
    assert ui.place_of({"doc_id": "c.pdf", "lines": [3, 4], "pages": [1, 2]}) == "c.pdf:page 1-2"


def test_text_from_outside_is_shown_as_it_is():
    said = ui.marked("[b]bold[/b] \x00\x1b[31m \ud800 & [ref=x]y[/ref]")
    assert "[b]" not in said and "[ref" not in said and "\x00" not in said and "&bl;b&br;" in said


def test_fonts_know_what_they_have(tmp_path):
    fonts = ui.Fonts()
    assert fonts.font_for("a") is None and "DejaVu" in fonts.font_for("\u2588") and ui.coverage(fonts.base)
    (tmp_path / "broken.ttf").write_bytes(b"\0\1\0\0" + b"\xff" * 20)
    assert ui.coverage(tmp_path / "broken.ttf") == [] == ui.coverage(tmp_path / "none.ttf")
    fonts._paths, fonts._searched = fonts._paths[:2], True
    assert fonts.font_for("\u4e2d") is None and "cjk" in fonts.note()


@pytest.mark.parametrize("kept", ["", "[]", "{", '{"width": "wide", "page": 7, "splits": {"a": 9}}', '{"page": "gone"}'])
def test_a_damaged_layout_counts_as_none(kept, monkeypatch, tmp_path):
    monkeypatch.setenv("KIVY_HOME", str(tmp_path))
    ui.layout_path().write_text(kept)
    assert ui.read_layout() == {**ui.LAYOUT, "splits": {}}


def test_a_layout_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("KIVY_HOME", str(tmp_path / "new"))
    layout = {**ui.LAYOUT, "page": "life", "splits": {"search": 0.3}}
    ui.write_layout(layout)
    assert ui.read_layout() == layout and [path.name for path in (tmp_path / "new").iterdir()] == ["inspector.json"]


def test_a_file_is_read_for_a_field_of_bytes(tmp_path):
    (tmp_path / "shelf.parcel").write_bytes(b"\x81\xa1")
    assert ui.read_file("parcel", str(tmp_path / "shelf.parcel")) == b"\x81\xa1"
    with pytest.raises(ValueError, match="parcel takes the path of a file here"):
        ui.read_file("parcel", str(tmp_path / "none"))


@pytest.mark.parametrize("text", ["[" * 1100, "[" * 100_000, "[" * 60 + "]" * 60, "{", "nan x"])
def test_what_cannot_be_sent_as_json_is_said(text):
    with pytest.raises(ValueError, match="args is not JSON"):
        ui.from_json(text, "args")


@pytest.mark.parametrize("value", [1 << 70, "\ud800"])
def test_what_cannot_be_packed_is_not_said_to_be_offline(daemon, line, value):
    one = line(daemon().endpoint).online()
    reply = one.reply("send_message", target="genesis_obj", selector="slotNames", args=[value])
    assert reply["code"] == "BadRequest" and "cannot be sent" in reply["details"]
    assert one.reply("health")["status"] == "OK"


def test_the_window_looks_for_the_daemon_of_the_same_home(tmp_path, monkeypatch):
    monkeypatch.delenv("BATOS_ENDPOINT", raising=False)
    monkeypatch.setenv("BATOS_HOME", str(tmp_path))
    assert ui.usual_endpoint() == ui.DEFAULT_ENDPOINT == batos.SETTINGS["endpoint"].default
    with batos._telling_endpoint(str(tmp_path / "live_image.fs"), "tcp://127.0.0.1:7"):
        assert ui.usual_endpoint() == batos.Client().endpoint == "tcp://127.0.0.1:7"
    monkeypatch.setenv("BATOS_ENDPOINT", "tcp://127.0.0.1:8")
    assert ui.usual_endpoint() == "tcp://127.0.0.1:8"


READ = """# A *title*

Some words that are long enough that the next line goes on with them
and end `here`, with **weight**.

- an item that goes
  on
- [a link](x) to follow

    indented code

```python
x = 1
```
| a | b |
"""


def test_markdown_is_read_as_it_is_meant():
    blocks = ui.blocks_of("markdown", [(number, line, 0) for number, line in enumerate(READ.split("\n"), 1)])
    assert [(one.kind, one.text) for one in blocks if one.kind != "space"] == [
        ("heading", "A *title*"), ("text", "Some words that are long enough that the next line goes on with them and end `here`, "
         "with **weight**."), ("item", "an item that goes on"), ("item", "[a link](x) to follow"), ("code", "    indented code"),
        ("code", "x = 1"), ("code", "| a | b |")]
    assert ui.styled("a `b c` **d** [e](f) *g* 2*3*4 snake_case") == (
        "a b c d e g 2*3*4 snake_case", ["", ""] + ["code"] * 3 + ["", "bold", "", "link", "", "lean"] + [""] * 17)


def test_a_sentence_is_found_whatever_stands_between_its_words():
    text = "First. The mast, once **raised**, stands. Last."
    (start, end), = ui.quoted_in(text, ["The mast, once\nraised, stands."])
    assert text[start:end] == "The mast, once **raised**, stands."
    assert ui.quoted_in(text, ["nothing of it", ""]) == []
    lines = ("They are", "therefore both said to provide it.")           # of one sentence, the first of which is said anywhere
    assert ui.quoted_in("They are there. Others are not.", lines) == []
    whole = "They are therefore both said to provide it. They are there."
    assert ui.quoted_in(whole, lines) == [(0, whole.index(" They are there"))]
    assert [ui.quoted_in(one, lines) for one in lines] == [[], [(0, len(lines[1]))]]


def test_a_gap_in_a_long_line_makes_no_table_of_it_and_code_is_lit_over_its_line_ends():
    long = "He was born in a cabin on the    Sinking Spring Farm, in the county of Hardin, " + "far from any town " * 6
    lines = [(1, long, 0), (2, "stable    tested    old", 0)]
    prose, table = ui.blocks_of("text", lines)
    assert prose.kind == "text" and "on the Sinking Spring" in prose.text and table == ui.Block("code", lines[1][1], (2, 0), 1)
    quote = "tested by many people and"
    rows = ui.block_rows(ui.Block("code", f"it is {quote} old", (1, 0), 1), ui.dp(300), (), [quote])
    assert len(rows) > 1 and "".join(one["copy"] for one in rows) == f"it is {quote} old"
    assert [one["lit"] for one in rows] == [True] * len(rows)
    assert ui._spans_within([(2, 7)], 0, 5) == [(2, 5)] and ui._spans_within([(2, 7)], 5, 9) == [(0, 2)]
    assert ui._spans_within([(2, 7)], 7, 9) == []


def test_a_page_of_the_web_is_read_with_its_headings_its_code_and_its_contents():
    told = ["## 1.1. What is it?", "", "    $ git tag v2.5   # so",
            "1.4. A line of contents that is as long as a line of prose is here",
            "1.5. Another of them", "It is a line of prose that goes on in the next one, as pages", "of the web have it."]
    blocks = ui.blocks_of(ui.kind_by_name("faq.HTML"), [(number, line, 0) for number, line in enumerate(told, 1)])
    assert [(one.kind, one.text) for one in blocks if one.kind != "space"] == [
        ("heading", "1.1. What is it?"), ("code", told[2]), ("text", told[3]), ("text", told[4]), ("text", " ".join(told[5:]))]
    kinds = {name: ui.kind_by_name(name) for name in ("a.md", "b.epub", "c.odt", "d.txt", "e")}
    assert list(kinds.values()) == ["markdown", "html", "markdown", "text", "text"]


def test_versions_stand_side_by_side():
    before, after = "def f(self):\n    a = 1\n    return a", "def f(self):\n    return 1\n    # all"
    changed = [("    a = 1", "    return 1"), ("    return a", "    # all")]
    assert ui.beside(before, after) == [("def f(self):", "def f(self):"), *changed]
    assert ui.beside("", "x\ny") == [(None, "x"), (None, "y")] and ui.beside("x", "") == [("x", None)]
    first, *others = ui.ShowsMethods._pair_rows("a = 'something long'", "b = 1", 200, 10)
    assert ui.unmarked(first["lead"]).startswith("- a = ") and ui.unmarked(first["text"]) == "+ b = 1"
    for one in others:
        assert one["text"] == "" and ui.unmarked(one["lead"]).startswith("- ") and "+" not in one["copy"]
    same, = ui.ShowsMethods._pair_rows("x", "x", 200, 10)
    assert same["copy"].strip() == "x" and "color" not in same["text"]


def test_lines_are_numbered_where_they_are_those_of_the_file():
    assert ui.has_lines({"lines": [3, 5]}) and ui.has_lines({"lines": [3, 5], "file_lines": [3, 5]})
    assert not ui.has_lines({"lines": [284, 288], "file_lines": [260, 264]})


@pytest.mark.parametrize("seconds, said", [(None, ""), (0, "<1 ms"), (0.0004, "<1 ms"), (0.0124, "12 ms"), (0.9996, "1.00 s"),
                                           (1.234, "1.23 s"), (12, "12 s"), (90, "1.5 min"), (172800, "2.0 d")])
def test_spans_of_time_are_told_as_people_say_them(seconds, said):
    assert ui.seconds_text(seconds) == said


def test_a_text_is_set_no_wider_than_one_reads():
    blocks = ui.blocks_of("text", [(1, "the mast runs in full darkness for twelve days " * 12, 0)])
    rows = [one for block in blocks for one in ui.block_rows(block, 3000)]
    assert len(rows) > 4 and max(ui.width_in(one["copy"], ui.READ) for one in rows) <= ui.COLUMN


def test_facts_are_told_as_what_they_are():
    def told(name, value):
        return " ".join(ui.unmarked(one["text"]) for one in ui.fact_rows(name, value, 500))
    assert "2026" in told("at_s", 1796028032.0) or ":" in told("at_s", 1796028032.0)
    assert told("bytes", 350216) == "350,216" and told("always_hot", True) == "true"
    prose, code = ui.fact_rows("answer", "word " * 40, 500), ui.fact_rows("source", "x = 1\n" * 40, 500)
    assert {one["font"] for one in prose[1:]} == {ui.NOBODY} and {one["font"] for one in code[1:]} == {ui.FONTS.mono}


@pytest.mark.parametrize("whole, most", [(1.37, 4), (0.007, 3), (3600, 9), (0, 2)])
def test_ticks_are_few_and_round(whole, most):
    told = ui.ticks(whole, most)
    assert told[0] == 0 and len(told) <= most + 1 and told[-1] <= whole + 1e-9


def test_what_a_cycle_waits_for_is_told():
    mine = {"state": "IDLE", "accepted_at": {"$time": "2026-01-02T00:00:00Z"}}
    other = {"state": "DELEGATING", "accepted_at": {"$time": "2026-01-01T00:00:00Z"}}
    assert "1 mission was" in ui.waits_for(mine, {"core": {"state": "ready"}}, [mine, other])
    assert ui.waits_for(mine, {"core": {"state": "loading", "progress": "weights"}}, []).endswith("loading: weights")
    assert ui.waits_for({**mine, "state": "DELEGATING"}, {"core": {"state": "ready"}}, [other]) == ""


def test_the_icon_is_a_picture():
    data = ui.icon_png(16)
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND" and len(data) > 100


def test_markup_is_taken_off_as_it_was_put_on():
    for text in ("[b]x[/b] & [ref=1]", "a [1] b", "plain"):
        assert ui.unmarked(ui.marked(text, "good", [(0, 2)], bold=True)) == text


def test_markup_is_cut_where_it_does_not_fit_and_closed():
    said = f"{ui.marked('a name', 'soft', bold=True)}  {ui.marked('[what] it says & more ' * 9, 'good')}"
    assert ui.cut_markup(said, 10_000) == said
    cut = ui.cut_markup(said, 200)
    assert cut.endswith("\u2026[/color]") and cut.count("[/") * 2 == cut.count("[") and len(ui.unmarked(cut)) < 40
