"""The First Conversation: the specification, the compiler, the states, and what comes of them outside of the image."""

import ast
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import types

import doubles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batos

WAIT_S = 300
STOCK = batos._UI_STOCK.read_text("utf-8")


def literals(source):
    """Return {name: value} of a client's literals."""
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in ("SPEC", "COMMANDS")}


def test_the_committed_client_is_the_canonical_incarnation_byte_for_byte():
    assert batos._compile_ui(batos._UI_SPEC, {}, STOCK) == STOCK
    assert literals(STOCK) == {"SPEC": batos._UI_SPEC, "COMMANDS": batos._ui_commands()}


def test_a_new_message_is_in_the_next_incarnation(monkeypatch):
    class SingCommand(batos.Command):
        """Sing a song."""

        title: str
        loudness: int = 3
    monkeypatch.setattr(batos, "COMMANDS", dict(batos.COMMANDS))
    batos.command(SingCommand, "read", "write", effect=True)(lambda request, root: {"details": "la"})
    told = literals(batos._compile_ui(batos._UI_SPEC, {}, STOCK))["COMMANDS"]["sing"]
    assert told == {"help": "Sing a song.", "effect": True, "role": "write",
                    "fields": {"title": {"type": "text", "required": True}, "loudness": {"type": "integer", "default": 3}}}


def test_pages_may_be_left_out_and_reordered_and_the_header_says_whence():
    spec = {**batos._UI_SPEC, "pages": [batos._UI_SPEC["pages"][3], batos._UI_SPEC["pages"][0]]}
    source = batos._compile_ui(spec, {"generate_kv_layout": "the core's proposal"}, STOCK)
    assert "class SearchPage" in source and "class MessagesPage" in source and "class LifePage" not in source
    assert [page["name"] for page in literals(source)["SPEC"]["pages"]] == ["messages", "search"]
    assert "# generate_kv_layout     ROBIN   the core's proposal\n" in source
    compile(source, "morphic_ui.py", "exec")


PLAIN = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=4)
                     | st.dictionaries(st.text(max_size=9), inner, max_size=4), max_leaves=20)


@given(PLAIN)
def test_literals_are_the_data(value):
    text = batos._as_literal(value)
    assert ast.literal_eval(text) == value


def test_literals_fit_the_line():
    value = {"long": "word " * 200, "list": [{"a": "b" * 60, "c": "d" * 60}] * 3, "short": [1, None, True]}
    assert max(map(len, batos._as_literal(value).splitlines())) <= 130
    assert ast.literal_eval(batos._as_literal(value)) == value


@pytest.mark.parametrize("path, value, why", [
    ("accent", "red", "colour"), ("accent", 7, "a str is wanted"), ("title", "", "1 to 1000"), ("title", "x" * 1001, "1 to 1000"),
    ("title", "a\nb", "cannot be shown"), ("texts.slow", "still {what}", "{names}"), ("nothing", 1, "has nothing at"),
    ("pages.search.colour", 1, "has nothing at"), ("pages.nowhere.title", "x", "has nothing at"), ("pages", [], "any order"),
    ("pages", [batos._UI_SPEC["pages"][0]] * 2, "any order"), ("pages", 3, "any order"),
    ("pages.life.columns", ["x"], "any order"), ("pages.search.name", "life2", "any order"),
    ("sparks", [{"title": "x"}], "is like none"), ("tiers", 1, "a list is wanted"),
    ("palette.ground", "#12", "colour"), ("", 1, "has nothing"), ("pages.search", "x", "any order")])
def test_what_is_not_right_about_a_specification_is_named(path, value, why):
    with pytest.raises(batos.BadRequest, match=why):
        batos._check_spec(batos._with_part(batos._UI_SPEC, path, value))


def test_a_users_changes_are_taken_and_those_that_do_not_hold_are_told():
    changes = {"accent": "#88ccff", "pages.search.title": "Find", "pages.x.title": "no", "title": 3}
    spec, left_out = batos._with_changes(batos._UI_SPEC, changes)
    assert spec["accent"] == "#88ccff" and spec["pages"][0]["title"] == "Find" and len(left_out) == 2
    assert batos._UI_SPEC["accent"] != "#88ccff" and batos._with_changes(batos._UI_SPEC, 7) == (batos._UI_SPEC, [])


ORDER = ["ask", "search", "objects", "messages", "experts", "life", "pages"]


@pytest.mark.parametrize("text, whence", [
    ('Sure: {"pages": ["ask", "search", "objects", "messages", "experts", "life", "pages"]}', "the core's proposal"),
    ('{"pages": ["ask"]}', "did not hold: 1 of 7"), ('{"pages": ["ask", "x"]}', "did not hold"), ("no", "did not hold"),
    ('{"pages": 3}', "did not hold"), ('{"title": "x"}', "did not hold"), ("{", "did not hold")])
def test_a_proposal_that_does_not_hold_leaves_the_canonical_one(text, whence):
    spec, told = batos._proposed(batos._UI_SPEC, ["pages"], text)
    assert whence in told
    assert [page["name"] for page in spec["pages"]] == (ORDER if told == "the core's proposal" else
                                                        [page["name"] for page in batos._UI_SPEC["pages"]])


@pytest.mark.slow
def test_a_client_that_fails_replaces_nothing():
    with pytest.raises(batos.CodeRejected, match="no Python"):
        batos._try_ui("def (")
    broken = STOCK.replace("class LifePage", "raise SystemError('broken page')\nclass LifePage")
    with pytest.raises(batos.CodeRejected, match="broken page"):
        batos._try_ui(broken)
    fails_when_shown = STOCK.replace("PAGE_CLASSES[name](self)", "PAGE_CLASSES[name](self) if name != 'life' else 1 / 0")
    assert fails_when_shown != STOCK
    with pytest.raises(batos.CodeRejected, match="ZeroDivisionError|division"):
        batos._try_ui(fails_when_shown)


def test_a_machine_without_kivy_is_told_so(monkeypatch, tmp_path):
    (tmp_path / "kivy.py").write_text("raise ImportError('no kivy here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert batos._try_ui(STOCK) == "it compiles; it was not shown here (no kivy here)"


def test_a_stock_that_is_none_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(batos, "_UI_STOCK", tmp_path / "morphic_ui.py")
    with pytest.raises(batos.ConfigError, match="cannot be read"):
        batos._ui_stock()
    with pytest.raises(batos.ConfigError, match="lacks the parts made by BAT OS, .*page: search"):
        batos._compile_ui(batos._UI_SPEC, {}, "print('hello')\n")


# The file and the window


def test_where_a_client_goes(tmp_path):
    settings = batos.load_settings({"image": str(tmp_path / "image.fs")}, {})
    assert batos._ui_path(settings) == tmp_path.resolve() / "morphic_ui.py"
    (tmp_path / ".git").mkdir()
    assert batos._ui_path(settings) == tmp_path.resolve() / "image.fs.ui" / "morphic_ui.py"
    settings.ui = str(tmp_path / "other.py")
    assert batos._ui_path(settings) == tmp_path.resolve() / "other.py"


def test_a_strangers_file_is_kept_aside(tmp_path):
    path = tmp_path / "folder" / "morphic_ui.py"
    assert "is written" in batos._write_ui(path, "one", set())
    assert batos._write_ui(path, "one", set()) == f"{path} stands"
    known = {hashlib.sha256(b"one").hexdigest()}
    assert "none of mine" not in batos._write_ui(path, "two", known) and path.read_text() == "two"
    path.write_text("mine own")
    assert "none of mine" in batos._write_ui(path, "three", known)
    assert path.read_text() == "three" and [p.read_text() for p in path.parent.glob("morphic_ui.py.*")] == ["mine own"]


def test_why_no_window_opens(monkeypatch):
    monkeypatch.setenv("DISPLAY", "")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    process, text = batos.open_window(pathlib.Path("/nowhere.py"), "tcp://127.0.0.1:1", "me.key")
    assert process is None and text == "there is no display here: python /nowhere.py --endpoint tcp://127.0.0.1:1 --keys me.key"


def test_a_daemon_that_asks_for_keys_opens_none(monkeypatch):
    uvm = types.SimpleNamespace(events=batos.Events(), wire=types.SimpleNamespace(keyring=object()))
    told = batos.Display(uvm, "tcp://127.0.0.1:1")._opened(pathlib.Path("/nowhere.py"))
    assert "asks for keys" in told and "--keys FILE" in told


def test_a_window_is_a_process_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("DISPLAY", ":99")
    client = tmp_path / "client.py"
    client.write_text("import os, pathlib, sys\n"
                      "pathlib.Path(sys.argv[0] + '.told').write_text(f'{os.getsid(0)} {sys.argv[1:]}')\n")
    process, told = batos.open_window(client, "tcp://127.0.0.1:7")
    assert process.wait(WAIT_S) == 0 and f"process {process.pid}" in told
    assert (tmp_path / "client.py.told").read_text() == f"{process.pid} ['--endpoint', 'tcp://127.0.0.1:7']"


# The whole, with a daemon


@pytest.fixture
def client(daemon, tmp_path):
    (tmp_path / ".git").mkdir()                          # as in a checkout
    with batos.Client(daemon(("image", "i.fs"), ("self_knowledge", False), core=0).endpoint, WAIT_S) as client:
        yield client


def slots(client, target):
    return {name: slot["value"] for name, slot in client.call("inspect", target=target)["result"]["slots"].items()}


@pytest.mark.slow
def test_the_first_conversation(client, tmp_path):
    assert "display_yourself" not in slots(client, "genesis_obj")
    reply = client.call("ingest_and_display_yourself")["result"]
    path = pathlib.Path(reply["path"])
    assert path == tmp_path.resolve() / "i.fs.ui" / "morphic_ui.py" and reply["version"] == 1
    assert reply["tried"] == "each page was shown once, where nobody sees it"
    assert set(reply["stages"]) == set(batos._UI_STAGES)
    source = path.read_text("utf-8")
    assert literals(source) == literals(STOCK) and "read off this installation" in source
    assert source.split("# ---- specification")[1] == STOCK.split("# ---- specification")[1]
    assert {row["doc_id"] for row in client.call("list_documents")["results"]} >= {"batos/README.md", "batos/batos.py"}
    cycle, = client.call("list_cycles")["results"]
    states = [entry["state"] for entry in journal(client, cycle["cycle"])]
    assert cycle["state"] == "COMPLETE" and states == ["IDLE", *batos._UI_STATES]
    assert "display_yourself" in slots(client, "genesis_obj")
    kept = slots(client, "morphic_ui_obj.incarnation")
    assert kept["source"] == source and kept["specification"] == batos._UI_SPEC
    again = client.call("display_yourself")["result"]
    assert again["version"] == 1 and len(client.call("list_cycles")["results"]) == 1


def journal(client, cycle):
    steps = client.call("inspect", target=cycle)["result"]["slots"]["journal"]["value"]
    return [slots(client, step["$ref"]) for step in steps]


def test_it_is_a_message_that_nobody_understands_at_first(client):
    reply = client.call("send_message", target="genesis_obj", selector="display_yourself", wait=True)
    assert reply["result"]["version"] == 1
    entries = client.call("inspect", target="message_log")["result"]["value"]["$tree"]
    assert entries["size"] == 1 and entries["entries"][0][1]["selector"] == "display_yourself"


@pytest.mark.slow
def test_changes_are_objects_versions_follow_and_one_goes_back(client):
    first = client.call("display_yourself")["result"]
    client.call("send_message", target="morphic_ui_obj", selector="setSlot_value_",
                args=["changes", {"accent": "#88ccff", "title": 3}])
    second = client.call("display_yourself")["result"]
    source = pathlib.Path(second["path"]).read_text("utf-8")
    assert second["version"] == 2 and literals(source)["SPEC"]["accent"] == "#88ccff"
    assert "1 taken, left out" in second["stages"]["assemble_and_execute"]
    client.call("send_message", target="morphic_ui_obj", selector="restore_incarnation_")
    back = client.call("display_yourself")["result"]
    assert back["version"] == 1 and literals(pathlib.Path(first["path"]).read_text("utf-8"))["SPEC"] == batos._UI_SPEC
    with pytest.raises(batos.NotFound, match="there are 2, 1"):
        client.call("send_message", target="morphic_ui_obj", selector="restore_incarnation_", args=[7])


@pytest.mark.slow
def test_what_stands_in_the_image_is_never_run(client, tmp_path):
    reply = client.call("display_yourself")["result"]
    for slot, value in (("source", "raise SystemExit"), ("former", {"$ref": "morphic_ui_obj.incarnation"}),
                        ("specification", {})):
        with pytest.raises(batos.BadRequest, match="ClientIncarnation, and those are not changed"):
            client.call("send_message", target="morphic_ui_obj.incarnation", selector="setSlot_value_", args=[slot, value])
    forged = client.call("send_message", target="morphic_ui_obj.incarnation", selector="clone")["result"]
    client.call("send_message", target=forged["$ref"], selector="setSlot_value_", args=["specification", {"title": "x"}])
    for value in (forged, None):
        with pytest.raises(batos.Protected, match="display_yourself"):
            client.call("send_message", target="morphic_ui_obj", selector="setSlot_value_", args=["incarnation", value])
    assert client.call("display_yourself")["result"]["version"] == 1
    assert literals(pathlib.Path(reply["path"]).read_text("utf-8")) == literals(STOCK)


def test_only_genesis_shows_itself(client):
    with pytest.raises(batos.MethodUnwritten, match="send it there"):
        client.call("send_message", target="traits_obj", selector="display_yourself", wait=True)


@pytest.mark.parametrize("name", batos.UI_MESSAGES)
def test_windows_are_for_admins(name):
    """The commands; their messages and missions are in test_protection.py."""
    request = batos.Request(None, None, [], command=batos.parse_command({"command": name}), role="write")
    with pytest.raises(batos.Forbidden):
        batos.check_role(request, batos.COMMANDS[name].role)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), b"x", batos.now_utc(), batos.UvmObject()])
def test_a_specification_is_plain_data(value):
    with pytest.raises(batos.BadRequest):
        batos._as_literal({"a": [value]})
    spec, left_out = batos._with_changes(batos._UI_SPEC, {"tiers": [{**batos._UI_SPEC["tiers"][2], "room": value}]})
    assert spec == batos._UI_SPEC and len(left_out) == 1


def test_one_window_is_open_at_a_time(monkeypatch, tmp_path):
    client = tmp_path / "client.py"
    client.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("DISPLAY", ":99")
    uvm = batos.BatOS_UVM.__new__(batos.BatOS_UVM)
    uvm.events, uvm.wire = batos.Events(), batos.Wire(batos.load_settings({}, {"BATOS_SETTINGS": "/dev/null"}))
    display = batos.Display(uvm, "tcp://127.0.0.1:7")
    assert "its window opens" in display._opened(client)
    first = display.process
    try:
        assert f"is open (process {first.pid})" in display._opened(client) and display.process is first
    finally:
        first.kill()
    first.wait(WAIT_S)
    assert "its window opens" in display._opened(client) and display.process is not first
    display.process.kill()
    display.process.wait(WAIT_S)


def test_without_a_core_it_says_so(daemon):
    with batos.Client(daemon().endpoint, WAIT_S) as client, pytest.raises(batos.CoreOffline):
        client.call("display_yourself")


def test_the_personas_tell_their_part(client):
    needs = client.call("send_message", target="babs_prototype_obj", selector="generate_requirements")["result"]
    assert set(needs["packages"]) == set(batos._UI_PACKAGES) and needs["commands"] == len(batos.COMMANDS)
    for name, stage in (("brick", "generate_kivy_classes"), ("robin", "generate_kv_layout")):
        request = client.call("send_message", target=f"{name}_prototype_obj", selector=stage)["result"]
        assert "JSON alone" in request["prompt"] and request["parts"]
    assert client.call("send_message", target="alfred_prototype_obj", selector="assemble_and_execute")["result"] is None


@pytest.mark.slow
def test_a_restored_incarnation_is_the_file_at_once_and_each_knows_the_others(client):
    path = pathlib.Path(client.call("display_yourself", show=False)["result"]["path"])
    for title in ("Second", "Third"):
        client.call("send_message", target="morphic_ui_obj", selector="setSlot_value_", args=["changes", {"title": title}])
        client.call("display_yourself", show=False)
    for version, title in ((2, "Second"), (1, batos._UI_SPEC["title"]), (3, "Third"), (None, "Second")):
        args = [version] if version else []
        client.call("send_message", target="morphic_ui_obj", selector="restore_incarnation_", args=args)
        windowed_until(lambda title=title: literals(path.read_text("utf-8"))["SPEC"]["title"] == title)
    assert [one.name for one in path.parent.iterdir()] == [path.name]    # none was taken for a stranger's
    client.call("send_message", target="morphic_ui_obj", selector="setSlot_value_", args=["changes", {"title": "Fourth"}])
    assert client.call("display_yourself", show=False)["result"]["version"] == 4


@pytest.mark.parametrize("change, title, help_is", [
    ({"pages.search.title": "Find"}, "Find", True), ({"pages.search": {"title": "Find"}}, "Find", True),
    ({"pages": {"search": {"title": "Find"}}}, "Find", True), ({"pages.search": {"titel": "Find"}}, "Search", True),
    ({"pages": {"serch": {"title": "Find"}}}, "Search", True), ({"pages.search": 3}, "Search", True)])
def test_a_change_of_one_field_of_a_page_needs_that_field_alone(change, title, help_is):
    spec, left_out = batos._with_changes(batos._UI_SPEC, change)
    page = {one["name"]: one for one in spec["pages"]}["search"]
    assert page["title"] == title and (page["help"] == batos._UI_SPEC["pages"][0]["help"]) is help_is
    assert bool(left_out) is (title == "Search") and len(spec["pages"]) == len(batos._UI_SPEC["pages"])
    assert batos._UI_SPEC["pages"][0]["title"] == "Search"


@pytest.mark.parametrize("answers, whence", [
    (['{"pages": ["ask", "search", "objects", "messages", "experts", "life", "pages"]}',
      '{"title": "Bat mind", "accent": "#88ccff"}'],
     ["the core's proposal", "the core's proposal"]),
    (['{"pages": ["ask"]}', "I would rather not."], ["did not hold: 1 of 7", "did not hold"])])
def test_a_larger_model_proposes_and_is_checked(tmp_path, answers, whence):
    class Writer(doubles.QuickCore):
        writes = True

        def infer_(self, prompt, **fields):
            return answers.pop(0)
    image = batos.Image.open(f"{tmp_path}/image.fs")
    batos.genesis(image)
    uvm = batos.BatOS_UVM(image, batos.load_settings({"image": f"{tmp_path}/image.fs"}, {}), Writer())
    ended, done = [], threading.Event()
    uvm.mind._ended_hook = lambda oid, report: (ended.append(report), done.set())
    for lane in uvm.lanes.values():
        lane.start()
    uvm.mind.start(uvm.events)

    def begin(root):
        brief = {"type": "unhandled_message", "selector": "display_yourself", "args": [], "kwargs": {}}
        return batos.cycle_id(batos.send(root["orchestrator_obj"], "start_cognitive_cycle_for_", brief,
                                         batos.oid_text(root["genesis_obj"]._p_oid)))
    try:
        uvm.lanes["write"].call(batos.Job("begin", begin))
        assert done.wait(WAIT_S)
        told = ended[0]["stages"]
        assert whence[0] in told["generate_kivy_classes"] and whence[1] in told["generate_kv_layout"]
        with batos.reading(image) as root:
            spec = root["morphic_ui_obj"].incarnation.specification
        taken = whence[0] == "the core's proposal"
        assert spec["title"] == ("Bat mind" if taken else batos._UI_SPEC["title"])
        assert spec["pages"][0]["name"] == ("ask" if taken else "search")
    finally:
        uvm.close_lanes()
        image.close()


@pytest.mark.slow
def test_the_command_line_displays_where_it_is_typed(client, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert batos.main(["display", "--endpoint", client.endpoint]) == 0
    said = capsys.readouterr().out
    path, = (tmp_path / "cache").rglob("morphic_ui.py")
    assert "incarnation 1" in said and f"there is no display here: python {path} --endpoint {client.endpoint}" in said
    assert literals(path.read_text("utf-8"))["SPEC"] == batos._UI_SPEC
    for name, value in (("DISPLAY", ":99"), ("SDL_VIDEODRIVER", "offscreen"), ("KIVY_HOME", str(tmp_path)),
                        ("KIVY_NO_FILELOG", "1"), ("XDG_CONFIG_HOME", str(tmp_path)), ("LIBGL_ALWAYS_SOFTWARE", "1")):
        monkeypatch.setenv(name, value)
    before = client.call("health")["result"]["subscribers"]
    assert batos.main(["display", "--endpoint", client.endpoint]) == 0
    said = capsys.readouterr().out
    window = int(re.search(r"its window opens \(process (\d+)\)", said)[1])
    try:
        windowed_until(lambda: client.call("health")["result"]["subscribers"] > before)
    finally:
        os.kill(window, signal.SIGKILL)
        os.waitpid(window, 0)


def windowed_until(done):
    """Wait until something is so; what never comes fails."""
    end_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < end_s, "the window did not come"
        time.sleep(0.05)


def test_nothing_of_kivy_is_loaded_by_the_daemon():
    ran = subprocess.run([sys.executable, "-c", "import batos, sys; print([name for name in sys.modules if 'kivy' in name])"],
                         cwd=batos._UI_STOCK.parent, env={**os.environ}, capture_output=True, text=True, timeout=WAIT_S)
    assert json.loads(ran.stdout.replace("'", '"')) == []
