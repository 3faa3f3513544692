"""The client and the command line, against a daemon and against a double of one."""

import ast
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time

import conftest
import ormsgpack
import pytest
import zmq
from hypothesis import example, given
from hypothesis import strategies as st

import batos

MANUAL = "# Pump\n\n## Calibrating\n\nTurn the brass valve until the needle stands at zero. Then lock the screw.\n"
NOBODY = "ipc:///nonexistent/batos.sock"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The endpoint of a daemon with a core that answers at once; its memory holds one manual."""
    folder = tmp_path_factory.mktemp("served")
    running = conftest.DaemonProcess(folder, core=0)
    manual = folder / "pump.md"
    manual.write_text(MANUAL)
    try:
        assert batos.main(["learn", "--endpoint", running.endpoint, str(manual)]) == 0
        yield running.endpoint
    finally:
        assert running.stop() == 0


@pytest.fixture
def line(served, capsys):
    """A function that runs a command line; it answers (exit status, standard output, standard error)."""
    def run(name, *arguments):
        capsys.readouterr()
        status = batos.main([name, "--endpoint", served, *map(str, arguments)])
        return (status, *capsys.readouterr())
    return run


# Help and arguments


@pytest.mark.parametrize("name", ["serve", *batos._SUBCOMMANDS])
def test_every_subcommand_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        batos.main([name, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and f"batos.py {name}" in shown and "--endpoint" in shown
    assert name == "serve" or batos._SUBCOMMANDS[name][1] in " ".join(shown.split())


def test_the_help_lists_all_subcommands(capsys):
    with pytest.raises(SystemExit):
        batos.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f" {name} {text}" in shown for name, (_, text) in batos._SUBCOMMANDS.items())


def test_every_argument_belongs_to_a_subcommand():
    assert set(batos._ARGUMENTS) <= set(batos._SUBCOMMANDS | batos._LOCAL_COMMANDS)


NO_COMMANDS = [["sing"], ["ask"], ["learn", "--tag"], ["cancel"], ["--nothing", "1"], ["cycles", "--limit", "x"]]


@pytest.mark.parametrize("arguments", NO_COMMANDS)
def test_a_command_line_that_is_none_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        batos.main(arguments)
    assert ended.value.code == 2 and "usage" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--pending-max", "many"], ["serve", "--drain-s", "-1"], ["--endpoint", "tcp://0.0.0.0:1"],
                                       ["--endpoint", "tcp://127.0.0.1:0", "--image", "/nowhere/at/all.fs"]])
def test_a_setting_that_is_none_is_refused_before_anything_starts(arguments, capsys):
    assert batos.main(arguments) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("batos: ")


def test_as_a_program_it_tells_errors_and_no_traceback():
    done = subprocess.run([sys.executable, batos.__file__, "status"], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "BATOS_ENDPONT": "x"})
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "batos: unknown setting BATOS_ENDPONT; did you mean endpoint?\n"


def test_replies_come_in_the_order_of_requests_each_with_its_own_error(served):
    names = ["genesis_obj", "nobody_obj", "traits_obj", "pLLM_obj", "nothing_obj"] * 9
    requests = [{"command": "inspect", "target": name} for name in names]
    with batos.Client(served, 20) as client:
        told = list(client.replies(iter(requests), at_once=7))
        assert [request for request, _ in told] == requests
        assert [isinstance(reply, batos.NotFound) for _, reply in told] == [name.startswith("no") for name in names]
        assert told[2][1]["details"].endswith(client.call("inspect", target="traits_obj")["details"][-30:])
        assert client._early == {}


def test_what_cannot_be_sent_any_more_is_an_error_of_its_request():
    with batos.Client(NOBODY, 0.2) as client, pytest.raises(batos.NoReply):
        list(client.replies([{"command": "health"}]))


def test_small_documents_that_are_learnt_together_write_few_times_their_size(daemon, tmp_path):
    texts = [f"Note {n}: the {n * 7919 % 1000}th heron stands at weir {n % 37}. " * 8 for n in range(256)]
    running = daemon()
    with batos.Client(running.endpoint, 60) as client:
        before_mb = client.call("health")["result"]["image_mb"]
        requests = ({"command": "index_document", "doc_id": f"notes/{n}", "text": text, "idempotency_key": batos.uuid7()}
                    for n, text in enumerate(texts))
        assert {reply["status"] for _, reply in client.replies(requests)} == {"OK"}
        grown_mb = client.call("health")["result"]["image_mb"] - before_mb
    assert grown_mb * 1e6 < 6 * sum(map(len, texts))     # one by one it is over 15 times


# Subcommands


def test_learn_takes_the_text_files_of_a_folder_and_leaves_others_out(line, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "one.md").write_text("# One\n\nThe first aardvark sleeps.\n")
    (tmp_path / "sub" / "two.txt").write_text("The second aardvark digs.\n")
    (tmp_path / "binary.txt").write_bytes(b"aardvark\0\1\2")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "latin.rst").write_bytes(b"The third aardvark drinks caf\xe9.\n")
    status, out, err = line("learn", tmp_path)
    assert status == 0 and re.search(r"\[1/4\] .*binary.txt: left out: .* is not text", err) and "png" not in out
    assert len(re.findall(r"is remembered in 1 chunks", out)) == 3
    status, out, _ = line("search", "aardvark", "--max-results", 9)
    assert status == 0 and {name for name in ("one.md", "two.txt", "latin.rst", "binary.txt") if name in out} == \
        {"one.md", "two.txt", "latin.rst"}
    assert "was already known" in line("learn", tmp_path / "one.md")[1]


def test_learn_of_a_path_that_is_not_there_is_an_error(line, tmp_path):
    status, out, err = line("learn", tmp_path / "nothing")
    assert status == 1 and out == "" and err.startswith("batos: there is no ") and "nothing" in err


def test_search_shows_where_and_why(line):
    status, out, _ = line("search", "how is the brass valve turned?")
    first, *rest = out.splitlines()
    assert status == 0 and re.fullmatch(r"1\. .*pump\.md:1-5  score \d+\.\d\d  words: .*valve.*", first)
    assert any(text.startswith("   Turn the brass valve") for text in rest)
    assert line("search", "zyzzyva")[1] == "nothing in memory matches\n"
    told = line("search", "brass valfe")[1]
    assert "pump.md:1-5" in told and told.endswith("(memory does not hold valfe, valve was sought)\n")


def test_search_takes_an_expression(line):
    assert "pump.md:1-5" in line("search", "--query", "valve AND (brass OR zyzzyva) NOT lamp")[1]
    assert line("search", "--query", "valve NOT brass*")[1] == "nothing in memory matches\n"
    for wrong in (("--query", "valve AND"), (), ("valve", "--query", "valve")):
        status, _, err = line("search", *wrong)
        assert status == 1 and "such as" in err and "Traceback" not in err


@pytest.mark.parametrize("level", batos.LEVELS)
def test_search_shows_what_is_found_at_a_level(line, level):
    status, out, _ = line("search", "how is the brass valve turned?", "--level", level)
    assert status == 0 and "Turn the brass valve" in out and ("lock the screw" in out) is (level in ("chunk", "section"))


def test_documents_are_listed_page_by_page(line, served, tmp_path):
    with batos.Client(served) as client:
        for name in ("one", "two"):
            client.call("index_document", doc_id=f"listed/{name}", text="The pump has a valve.")
    assert "listed/one  text, version 1, 1 chunks" in line("documents")[1]
    assert line("documents", "--limit", 1, "--after", "listed/one")[1].startswith("listed/two ")
    told = line("documents", "--limit", 1, "--after", "listed")[1]
    assert told.endswith("more: --after listed/one\n")


def test_a_reader_that_goes_away_is_no_error(served):
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run([sys.executable, batos.__file__, "state", "--endpoint", served], timeout=60,
                         stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_ask_shows_the_evidence_then_the_answer(line):
    status, out, _ = line("ask", "How is the brass valve turned?")
    first, *rest = out.splitlines()
    assert status == 0 and re.fullmatch(r"\[1\] .*pump\.md:5  Turn the brass valve until the needle stands at zero\..*", first)
    assert "" in rest and "“Turn the brass valve until the needle stands at zero.” [1]" in "\n".join(rest[rest.index(""):])


@pytest.mark.slow
def test_an_interrupted_question_is_cancelled(tmp_path):
    running = conftest.DaemonProcess(tmp_path, core=60)
    try:
        with batos.Client(running.endpoint) as client:
            client.call("index_document", doc_id="pump.md", text=MANUAL)
            command = [sys.executable, str(conftest.ROOT / "batos.py"), "ask", "--endpoint", running.endpoint]
            asking = subprocess.Popen([*command, "How is the brass valve turned?"], stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, text=True)
            while not client.call("health")["result"]["missions"]["running"]:
                pass
            asking.send_signal(signal.SIGINT)
            _, told = asking.communicate(timeout=60)
            assert asking.returncode == 1 and "is being cancelled" in told and "Traceback" not in told
            while (rows := client.call("list_cycles")["results"])[0]["state"] != "FAILED":
                pass
            assert rows[0]["reason"]["code"] == "Cancelled"
    finally:
        running.stop(kill=True)


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_core_writes_slowly_is_printed_sentence_by_sentence(tmp_path, terminal):
    """The core goes on only when the test has read what it knows by then: so nothing can come at the end alone."""
    core = tmp_path / "core.txt"
    said = ["Turn the brass valve until the needle stands at zero.", "The needle stands at ninety.", "Then lock the screw."]
    core.with_suffix(".says").write_text("\n".join([*said, ""]))
    running = conftest.DaemonProcess(tmp_path, core=(0, core))
    try:
        with batos.Client(running.endpoint) as client:
            client.call("index_document", doc_id="pump.md", text=MANUAL)
        reading, writing = pty.openpty() if terminal else os.pipe()
        command = [sys.executable, str(conftest.ROOT / "batos.py"), "ask", "--endpoint", running.endpoint]
        asking = subprocess.Popen([*command, "How is the brass valve turned?"], stdin=subprocess.DEVNULL, stdout=writing,
                                  stderr=subprocess.DEVNULL)
        os.close(writing)
        told = ""
        for number, awaited in enumerate(("zero.\u201d [1]", "zero [1]", "screw [1]"), 1):
            while awaited not in told:
                piece = os.read(reading, 4096)
                assert piece, told
                told += piece.decode()
            core.with_suffix(".go").write_text("more\n" * (2 * number - 1))
        assert asking.wait(60) == 0 and "ninety" not in told
        os.close(reading)
    finally:
        running.stop(kill=True)


def test_a_client_waits_in_short_turns(monkeypatch):
    """An interrupt that comes between the last look at signals and the poll waits for the poll's end."""
    turns = []

    class Deaf:
        def poll(self, timeout, events=zmq.POLLIN):
            turns.append(timeout)
            time.sleep(timeout / 1000)
            return 0

        def send(self, *_):
            raise zmq.Again

        def close(self):
            """Nothing is open."""
    with batos.Client("tcp://127.0.0.1:1", timeout_s=1.2) as client:
        client._socket.close()
        client._socket = Deaf()
        monkeypatch.setattr(batos, "is_listened_to", lambda endpoint: True)
        with pytest.raises(batos.NoReply):
            client.call("health")
    assert max(turns) <= 500 and 1100 <= sum(turns) <= 1800


def test_ask_says_that_nothing_is_in_memory(line):
    status, out, _ = line("ask", "What do giraffes eat in Kenya?")
    assert status == 0 and out.startswith("There is nothing in memory about this.") and "giraffes" in out


def test_cycles_and_cancel(line):
    status, out, _ = line("ask", "How is the brass valve turned?", "--json")
    cycle = json.loads(out)["result"]["cycle"]
    status, out, _ = line("cycles", "--limit", 1)
    told = rf"{cycle}  COMPLETE +\d{{4}}-\d\d-\d\dT[\d:]+ +\d+\.\d\d s  How is the brass .*"
    assert status == 0 and re.fullmatch(told, out.strip())
    assert line("cycles", "--state", "FAILED")[1] == "no cycles yet\n"
    status, out, err = line("cycles", "--state", "DONE")
    assert status == 1 and "COMPLETE" in err
    status, out, err = line("cancel", cycle)
    assert status == 1 and "COMPLETE already" in err
    status, out, err = line("cancel", "0xffffff")
    assert status == 1 and "0xffffff" in err


def test_of_a_cycle_that_failed_it_says_why():
    row = {"cycle": "0x1", "state": "FAILED", "accepted_at": {"$time": "2026-01-31T12:00:00.5Z"}, "seconds": 0.25,
           "mission": "What burns?", "reason": {"code": "TooLate", "details": "its deadline is over; ask again"}}
    told = batos._told_cycle(row)
    assert told == ["0x1  FAILED       2026-01-31T12:00:00     0.25 s  What burns?",
                    "    its deadline is over; ask again (TooLate)"]
    del row["reason"]
    assert len(batos._told_cycle(row)) == 1


def test_inspect_shows_an_object_and_a_value(line):
    line("send", '{"target": "genesis_obj", "selector": "setSlot:value:", "args": ["long", "brass valve "]}')
    status, out, _ = line("inspect", "genesis_obj")
    assert status == 0 and re.match(r"0x\w+  <UvmObject 0x\w+ 'Genesis Object'", out)
    assert '\n    long  str  "brass valve "\n' in out and re.search(r"\ndelegates to 0x\w+", out)
    assert re.search(r"\nunderstands .*\bclone\b", out)
    assert line("inspect", "genesis_obj.long")[1] == 'genesis_obj.long  str  "brass valve "\n'
    status, _, err = line("inspect", "nothing_of_it")
    assert status == 1 and "known are" in err
    assert line("inspect", "genesis_obj", "--as-of", "2000-01-01T00:00:00Z")[0] == 1
    value = "x" * 500
    line("send", json.dumps({"target": "genesis_obj", "selector": "setSlot:value:", "args": ["long", value]}))
    assert line("inspect", "genesis_obj.long")[1].endswith("xxx…\n")


def test_send_sends_json(line):
    status, out, _ = line("send", '{"target": "genesis_obj", "selector": "setSlot:value:", "args": ["n", {"a": [1.5, null]}]}')
    assert status == 0 and json.loads(out)["change"]
    shown = json.loads(line("send", '{"command": "inspect", "target": "genesis_obj"}')[1])
    assert shown["result"]["slots"]["n"]["value"] == {"a": [1.5, None]}


@pytest.mark.parametrize("action", ["accept", "refuse"])
def test_rows_that_are_judged_by_hand_are_named(line, action):
    status, out, err = line("golden", action)
    assert (status, out) == (1, "") and f"say which rows: `golden {action} 3 4`" in err


def test_send_sends_words(line):
    """As the first page and what audits advise have it: an argument is JSON, or a text."""
    for name, told, value in (("m", '{"a": [1.5]}', {"a": [1.5]}), ("m", "brass valve", "brass valve"), ("m", "7", 7)):
        assert line("send", "genesis_obj", "setSlot:value:", name, told)[0] == 0
        assert json.loads(line("inspect", "genesis_obj", "--json")[1])["result"]["slots"][name]["value"] == value
    assert json.loads(line("send", "genesis_obj", "slotNames")[1])["result"]
    assert "no dataset 3" in line("send", "pLLM_obj", "fineTuneWith:", "3")[2]


@pytest.mark.parametrize("message, words", [
    ("{", "not JSON"), ("[1]", "JSON map"), ("7", "JSON map"), ('{"target": "genesis_obj"}', "selector"),
    ('{"command": "helth"}', "did you mean health"),
    ('{"target": "genesis_obj", "selector": "nothing", "generate": false}', "does not understand"),
])
def test_send_of_what_is_no_message_is_an_error(line, message, words):
    status, out, err = line("send", message)
    assert status == 1 and out == "" and err.startswith("batos: ") and words in err


@pytest.mark.parametrize("message", ['{"command": "health", "self": 1}', '{"command": "health", "timeout_s": "x"}'])
def test_a_field_that_is_named_like_an_argument_is_a_bad_request(line, message):
    assert line("send", message)[0] == 1


def test_status_and_state(line):
    status, out, _ = line("status")
    assert status == 0 and "state: serving\n" in out and f"version: {batos.__version__}\n" in out
    status, out, _ = line("state")
    told = json.loads(out)
    assert status == 0 and "genesis_obj" in told["objects"] and told["settings"]["pending_max"] == 1024
    assert told["health"]["state"] == "serving" and set(told["settings"]) == set(batos.SETTINGS)


@pytest.mark.parametrize("arguments", [
    ["status"], ["state"], ["cycles"], ["search", "valve"], ["ask", "How is the brass valve turned?"], ["ask", "Giraffes?"],
    ["send", '{"target": "genesis_obj", "selector": "slotNames"}'], ["send", '{"command": "inspect", "target": "pLLM_obj"}'],
])
def test_json_output_is_the_reply(line, arguments):
    status, out, _ = line(*arguments, "--json")
    reply = json.loads(out)
    assert status == 0 and reply["status"] == "OK" and reply["details"] and ("result" in reply or "results" in reply)


def test_learn_prints_json_too(line, tmp_path):
    (tmp_path / "one.md").write_text("One.\n")
    status, out, _ = line("learn", tmp_path, "--json")
    assert status == 0 and [reply["status"] for reply in json.loads(out)] == ["OK"]


def test_learn_prints_nothing_but_json(line, tmp_path):
    (tmp_path / "one.md").write_text("One.\n")
    (tmp_path / "two.md").write_bytes(b"\0")
    json.loads(line("learn", tmp_path, "--json")[1])


def test_the_endpoint_comes_from_the_environment(served, monkeypatch, capsys):
    monkeypatch.setenv("BATOS_ENDPOINT", served)
    assert batos.main(["status"]) == 0 and "serving" in capsys.readouterr().out
    with batos.Client() as client:
        assert client.endpoint == served and client.call("health")["status"] == "OK"


def test_debug_shows_the_traceback(served):
    with pytest.raises(batos.NotFound):
        batos.main(["--debug", "cancel", "--endpoint", served, "0xfffffe"])


# What comes from others


FOREIGN = "brass\x1b]0;x\x07\x1b[2J\r\n[1] forged\u202e\x7f\x9b"
STEERING = re.compile("[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u200b\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def prints():
    """Return {the function: the lines} that print, or take a stream to write to, in the section Client."""
    source = open(batos.__file__, encoding="utf-8").read()
    start, found = source[:source.index("# Client ####")].count("\n"), {}
    for top in ast.parse(source).body:
        for node in ast.walk(top):
            is_print = isinstance(node, ast.Name) and node.id == "print"
            is_write = isinstance(node, ast.Attribute) and node.attr in ("write", "writelines") and "std" in ast.unparse(node)
            if top.lineno > start and (is_print or is_write):
                found.setdefault(getattr(top, "name", ""), []).append(node.lineno)
    return found


def test_all_that_the_command_line_prints_goes_through_one_function():
    assert list(prints()) == ["print_lines"] and len(prints()["print_lines"]) == 1


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """The endpoint of a daemon whose documents, reasons, clients, objects and missions have texts that would steer a terminal."""
    folder = tmp_path_factory.mktemp("foreign")
    running = conftest.DaemonProcess(folder, core=0)
    try:
        with batos.Client(running.endpoint, 30) as client:
            text = f"The valve is made of {FOREIGN} and it holds.\n[1] forged.md:1  The valve\n\tis closed.\n"
            client.call("index_document", doc_id="valve.md", text=text, metadata={"names": [FOREIGN]}, why=FOREIGN)
            fields = {"target": "genesis_obj", "why": FOREIGN, "client": FOREIGN}
            client.call("send_message", selector="setSlot:value:", args=["told", FOREIGN], **fields)
            client.call("send_message", selector="setSlot:value:", args=["name", FOREIGN], **fields)
        yield running.endpoint
    finally:
        assert running.stop() == 0


@pytest.fixture
def told(foreign, capsys):
    """A function that runs a command line; it answers all that was printed, in which nothing steers."""
    def run(name, *arguments, status=0):
        capsys.readouterr()
        assert batos.main([name, "--endpoint", foreign, *map(str, arguments)]) == status
        out, err = capsys.readouterr()
        assert not STEERING.search(out + err)
        assert not re.search(r"^ ?\[1\] forged", out + err, re.MULTILINE)
        return out + err
    return run


@pytest.mark.parametrize("words, holds", [
    (["search", "valve brass holds"], "   [1] forged.md:1"), (["search", "valve", "--level", "section"], "    is closed."),
    (["documents", "--all"], "also named brass\ufffd]0;x\ufffd\ufffd[2J  [1] forged"),
    (["ask", "What is the valve made of?"], "[2J\n    [1] forged"), (["ask", FOREIGN], "forged"), (["cycles"], ""),
    (["log"], "brass\ufffd]0;x"), (["history", "genesis_obj"], "brass\ufffd]0;x"),
    (["history", "valve.md", "--document"], "valve.md"),
    (["send", '{"command": "inspect", "target": "genesis_obj"}'], "brass\\u001b]0;x\\u0007"),
    (["send", '{"target": "genesis_obj", "selector": "told"}'], "\\u007f\\u009b"),
    (["state"], "genesis_obj"), (["status"], "serving"), (["experts"], ""), (["top"], "Cycles:"),
    (["documents", "--json"], "\\u202e"),
    (["log", "--json"], "\\u007f\\u009b"),
])
def test_what_comes_from_others_is_printed_so_that_it_steers_nothing(told, words, holds):
    assert holds in told(*words)


@pytest.mark.parametrize("words", [["cancel", FOREIGN], ["history", FOREIGN], ["undo", FOREIGN], ["activate", FOREIGN],
                                   ["send", FOREIGN], ["learn", f"/nowhere/{FOREIGN}"], ["method", FOREIGN, "/nowhere/\x1b[2J"]])
def test_an_error_is_one_line_whatever_it_names(told, words):
    assert told(*words, status=1).count("\n") == 1


def test_a_file_is_learnt_and_told_in_one_line_whatever_its_name_and_text(told, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))          # so that names are told whole
    name = FOREIGN.replace("/", "")
    (tmp_path / f"{name}.md").write_text("A gasket.\n")
    (tmp_path / "sound.md").write_text("A flange of \u202etin.\n[1] forged.md:1  A flange\n")
    for path in sorted(tmp_path.iterdir()):
        lines = told("learn", path, status=int(path.name != "sound.md")).splitlines()
        assert all(re.match(r"\[1/1\] /|batos: /|no file, 1 failed", line) for line in lines)
    told("learn", tmp_path, status=1)
    assert "   A flange of \ufffdtin.\n   [1] forged.md:1" in told("search", "flange tin")


def test_lines_that_were_written_one_by_one_are_printed_so():
    log = "2024-03-28  brake pads in front new\n2024-11-02  new battery (Varta 60 Ah)\n2025-07-15  air conditioning refilled"
    evidence = [{"doc_id": "car.txt", "lines": [1, 3], "text": log}]
    lines = batos.told_answer({"answer": "So.", "evidence": evidence})
    assert lines == ["[1] car.txt:1-3", *[f"    {line}" for line in log.splitlines()], "", "So."]


@given(st.text("ab:-|# 1.\n\t", max_size=60))
@example("Teacher: Ann, Lindenallee 3. 27 euros.\nMila practises scales.\n\n2025-09-02: the left hand is too loud.")
def test_a_passage_of_any_lines_is_printed(text):
    evidence = [{"doc_id": "a", "lines": [1, 3], "text": text}]
    words = " ".join(batos.told_answer({"answer": "So.", "evidence": evidence})).split()
    assert words == ["[1]", "a:1-3", *text.split(), "So."]


def test_what_an_answer_quotes_makes_no_line_of_evidence():
    evidence = [{"doc_id": "a.md\n[2] b.md", "lines": [1, 1], "text": "One\n[2] two."}]
    lines = batos.printable(batos.told_answer({"answer": "So: “One\n[2] two.” [1]", "evidence": evidence})).splitlines()
    assert lines == ["[1] a.md [2] b.md:1  One [2] two.", "", "So: “One", "   [2] two.” [1]"]


def test_events_are_printed_as_json_that_steers_nothing(monkeypatch, capsys):
    class Heard:
        def events(self, *topics):
            yield {"event": "error", "details": FOREIGN}
    batos.watch_command(batos.types.SimpleNamespace(topics=[]), Heard())
    out = capsys.readouterr().out
    assert not STEERING.search(out) and out.count("\n") == 1 and json.loads(out)["details"] == FOREIGN


def test_a_chat_prints_what_a_turn_came_to_and_nothing_steers(told, monkeypatch):
    lines = iter(["What is the valve made of?", f"/wrong {FOREIGN}", FOREIGN])
    monkeypatch.setattr(batos, "_next_line", lambda: next(lines, None))
    assert "turns of chat" in told("chat")


def test_a_chat_knows_its_commands_and_ends_by_one(told, monkeypatch):
    lines = iter(["/right", "/help", "/quit", "What is the valve made of?"])
    monkeypatch.setattr(batos, "_next_line", lambda: next(lines, None))
    out = told("chat").splitlines()
    assert out == ["there is no answer yet that could be marked",
                   "there is no /help; there are /right, /wrong (with what would be right), /quit; anything else is a question",
                   "0 turns of chat"]
    assert batos._no_turn("/etc/fstab is what?", None) == "" and next(lines) == "What is the valve made of?"


# The client


def test_nobody_listens(monkeypatch, capsys):
    with batos.Client(NOBODY, timeout_s=0.1) as client, pytest.raises(batos.NoReply, match="nothing answers.*start it"):
        client.call("health")
    real = batos.Client
    monkeypatch.setattr(batos, "Client", lambda endpoint, timeout_s, keys: real(endpoint, 0.1))
    assert batos.main(["status", "--endpoint", NOBODY]) == 1
    assert "nothing answers" in capsys.readouterr().err


def test_what_was_sent_to_nobody_is_not_delivered_later(tmp_path):
    """FACTS 19: IMMEDIATE, or a request waits in the client for a daemon that comes later."""
    endpoint = f"ipc://{tmp_path}/late.sock"
    with batos.Client(endpoint, timeout_s=0.1) as client:
        with pytest.raises(batos.NoReply):
            client.call("health")
        with Double(endpoint, lambda request: [{"id": request["id"], "status": "OK", "details": ""}]) as double:
            client.call("inspect", timeout_s=60.0)
        assert [request["command"] for request in double.requests] == ["inspect"]


class Optimist:
    """A socket that says it can send, as one does whose peer goes away the moment after."""

    def __init__(self, socket):
        self._socket = socket

    def poll(self, timeout, flags):
        return flags

    def __getattr__(self, name):
        return getattr(self._socket, name)


def test_a_daemon_that_goes_away_amid_a_call_does_not_hang_the_client():
    with batos.Client(NOBODY, timeout_s=0.1) as client:
        client._socket = Optimist(client._socket)
        with pytest.raises(batos.NoReply, match="nothing answers"):
            client.call("health")


class Double:
    """A ROUTER in a thread that answers each request with the replies that `answer(request)` gives."""

    def __init__(self, endpoint, answer):
        self.answer, self.requests, self._endpoint = answer, [], endpoint
        self._context, self._stop, self._bound = zmq.Context(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._main)

    def _main(self):
        socket = self._context.socket(zmq.ROUTER)
        socket.linger = 0
        socket.bind(self._endpoint)
        self._bound.set()
        while not self._stop.is_set():
            if socket.poll(10):
                identity, payload = socket.recv_multipart()
                self.requests.append(ormsgpack.unpackb(payload))
                for reply in self.answer(self.requests[-1]):
                    socket.send_multipart([identity, ormsgpack.packb(reply)])
        socket.close()

    def __enter__(self):
        self._thread.start()
        assert self._bound.wait(60)
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._context.term()


@pytest.fixture
def answered(tmp_path):
    """A function that asks a double once, which answers with given replies; the call's reply, or its error."""
    def ask(*replies):
        endpoint = f"ipc://{tmp_path}/double.sock"
        with Double(endpoint, lambda request: [{"id": request["id"], **reply} for reply in replies]), \
                batos.Client(endpoint) as client:
            return client.call("health")
    return ask


def test_late_replies_to_earlier_calls_are_ignored(tmp_path):
    endpoint = f"ipc://{tmp_path}/double.sock"

    def answer(request):
        number = request["id"]
        if number == 1:
            return []                                     # too late; its reply comes with the next one
        late = [{"id": earlier, "status": "OK", "details": "late"} for earlier in range(1, number)]
        return [*late, {"id": number, "status": "OK", "details": "mine"}]
    with Double(endpoint, answer), batos.Client(endpoint) as client:
        with pytest.raises(batos.NoReply, match="unknown.*idempotency_key"):
            client.call("health", timeout_s=0.1)
        for _ in range(3):
            assert client.call("health")["details"] == "mine"


def all_errors(kind=batos.BatosError):
    return [kind, *(one for sub in kind.__subclasses__() for one in all_errors(sub))]


def test_error_codes_become_their_classes(answered):
    for kind in all_errors():
        with pytest.raises(kind) as caught:
            answered({"status": "ERROR", "code": kind.__name__, "details": "words; do that"})
        assert type(caught.value) is kind and str(caught.value) == "words; do that"


@pytest.mark.parametrize("code", ["InternalError", "Exotic", "Client", "main", "os", ""])
def test_a_code_that_names_no_error_is_the_root_of_all(answered, code):
    with pytest.raises(batos.BatosError, match="words") as caught:
        answered({"status": "ERROR", "code": code, "details": "words"})
    assert type(caught.value) is batos.BatosError


class Loading:
    """Stands for a client of a daemon whose core loads for some looks; the cycle ends at the look `ended`, or later."""

    def __init__(self, *progress, ended=None):
        self.progress, self.looks, self.ended = list(progress), 0, ended

    def call(self, command, **fields):
        if command == "inspect":
            assert fields == {"target": "0x99"}
            return {"result": {"slots": {"result": {"value": {"answer": "so"} if self.looks == self.ended else None}}}}
        self.looks += 1
        state = "loading" if self.progress else "ready"
        return {"result": {"core": {"state": state, "progress": self.progress.pop(0) if self.progress else "ready"}}}


def test_who_asks_while_the_core_loads_is_told_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(batos, "_LOADING_LOOK_S", 0)
    batos._tell_loading(Loading("loading: import torch", "loading: import torch", "loading: weights"), "0x99")
    out, told = capsys.readouterr()
    assert out == "" and told.splitlines() == ["loading: import torch; the answer follows once it is ready",
                                               "loading: weights; the answer follows once it is ready"]


def test_what_needs_no_core_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(batos, "_LOADING_LOOK_S", 0)
    client = Loading(*["loading"] * 100, ended=2)
    batos._tell_loading(client, "0x99")
    assert client.looks == 2


@pytest.mark.parametrize("before", [2, 3, 4])                        # the first two accept nothing
def test_a_question_that_is_interrupted_at_any_call_cancels_its_cycle(monkeypatch, before):
    class Interrupted:
        """Stands for a client that is interrupted in its n-th call."""

        def __init__(self):
            self.told, self.left = [], before

        def call(self, command, timeout_s=None, **fields):
            self.told.append((command, fields.get("idempotency_key"), fields.get("cycle")))
            self.left -= 1
            if self.left == -1:
                raise KeyboardInterrupt
            result = {"state": "serving", "cycle": "0x99", "core": {"state": "ready"}}
            return {"result": result, "details": "cycle 0x99 is being cancelled"}
    client = Interrupted()
    with pytest.raises(batos.Cancelled, match="0x99"):
        batos.ask_command(batos.types.SimpleNamespace(question="why", json=False, voices=False, conversation=None,
                                                      depth=None), client)
    keys = {key for command, key, _ in client.told if command == "initiate_cognitive_cycle"}
    assert len(keys) == 1 and client.told[-1] == ("cancel", None, "0x99")


def told_ahead(text, evidence=(), cycle="0x99"):
    return {"event": "tokens", "cycle": cycle, "text": text, "provisional": True, **({"evidence": evidence} if evidence else {})}


class Ahead:
    """Stands for a client that hears events amid its calls: what is given for a command's n-th call."""

    def __init__(self, amid):
        self.amid, self.hear = {command: list(events) for command, events in amid.items()}, None

    def call(self, command, timeout_s=None, **fields):
        for event in self.amid.get(command, [[]]).pop(0) if self.amid.get(command) else ():
            self.hear(event)
        return {"result": {}, "results": []}


PASSAGE = {"doc_id": "pump.md", "lines": [5, 6], "text": "Turn the brass valve. It is stiff."}


def aloud_after(capsys, amid, report):
    """Return (what is printed as events come amid some calls, what is printed at last)."""
    client = Ahead(amid)
    with batos.Aloud(client) as aloud:
        aloud.follow("0x99")
        client.call("health")
        ahead = capsys.readouterr().out
        batos.print_lines(aloud.rest(report))
        return ahead, capsys.readouterr().out


def test_an_answer_is_printed_as_it_comes_and_each_part_once(capsys):
    """Events come before the cycle is known, amid a call, and amid the call that an event leads to; some are of other cycles."""
    first, *written = (told_ahead("\u201cTurn the brass valve.\u201d [1]", [PASSAGE]), told_ahead(" It is stiff [1]."),
                       told_ahead(" Two turns do [1]."))
    amid = {"subscribe": [[told_ahead("other", [PASSAGE], "0x1"), first]], "list_documents": [[written[0]]],
            "health": [[written[1]]]}
    report = {"evidence": [PASSAGE], "answer": "\u201cTurn the brass valve.\u201d [1]\nIt is stiff [1]. Two turns do [1]."}
    ahead, last = aloud_after(capsys, amid, report)
    assert ahead == ("[1] pump.md:5-6  Turn the brass valve. It is stiff.\n\n\u201cTurn the brass valve.\u201d [1]\n"
                     "   It is stiff [1]. Two turns do [1].")
    assert last == "\n"


def test_an_answer_that_ends_otherwise_than_it_was_told_ahead_is_told_whole(capsys):
    amid = {"subscribe": [[told_ahead("It is open.", [PASSAGE])]]}
    ahead, last = aloud_after(capsys, amid, {"evidence": [PASSAGE], "answer": "It is shut."})
    assert ahead.endswith("It is open.") and last.startswith("\n\n[1] pump.md") and last.endswith("It is shut.\n")


def test_what_is_told_ahead_forges_no_line(capsys):
    forged = PASSAGE | {"doc_id": "pump.md\n[2] forged.md:1  no"}
    amid = {"subscribe": [[told_ahead("It is open.", [forged])]]}
    ahead, last = aloud_after(capsys, amid, {"evidence": [forged], "answer": "It is open."})
    assert not [line for line in ahead.splitlines() if line.startswith("[2]")] and last == "\n"


def test_a_failure_amid_an_answer_ends_its_line(capsys):
    client = Ahead({"subscribe": [[told_ahead("It is open.", [PASSAGE])]]})
    with pytest.raises(batos.NoReply), batos.Aloud(client) as aloud:
        aloud.follow("0x99")
        raise batos.NoReply("gone")
    assert capsys.readouterr().out.endswith("It is open.\n")


HOSTILE = "kiln\x1b]0;owned\x07\x1b[2J\x9b31m\r\n03f0 forged line\u2028and more\u202e"


def test_what_is_foreign_steers_no_terminal_and_forges_no_line(line, served):
    """Text of documents, `why`, who says that it is a client, a slot's name and value, a mission, an error."""
    with batos.Client(served, 60.0) as client:
        client.call("index_document", doc_id="kiln.txt", text=f"The {HOSTILE} burns hot.\n")
        it = client.call("send_message", target="genesis_obj", selector="clone")["result"]["$ref"]
        for slot in ("name", "note"):
            client.call("send_message", target=it, selector="setSlot_value_", args=[slot, HOSTILE], client=HOSTILE, why=HOSTILE)
        client.call("initiate_cognitive_cycle", wait=True, mission_brief={
            "type": "direct_synthesis", "selector": "answer_", "args": [f"Does the {HOSTILE} burn?"]})
    for arguments in (["search", "kiln"], ["log"], ["history", it], ["cycles"], ["ask", f"How hot does the {HOSTILE} burn?"],
                      ["send", json.dumps({"target": "genesis_obj", "selector": HOSTILE[:100], "generate": False})],
                      ["activate", HOSTILE]):
        _, out, err = line(*arguments)
        told = out + err
        assert told and all(char.isprintable() or char == "\n" or char in batos.JOINERS for char in told), arguments
        assert not any(row.startswith("03f0 forged") for row in told.splitlines()), arguments


def test_a_client_that_cannot_begin_leaves_nothing_open(tmp_path, monkeypatch):
    made, context = [], zmq.Context

    def noted():
        made.append(context())
        return made[-1]

    monkeypatch.setattr(batos.zmq, "Context", noted)
    (tmp_path / "no.json").write_text("nonsense")
    (tmp_path / "no.json").chmod(0o600)
    with pytest.raises(batos.ConfigError, match="is no key file"):
        batos.Client(f"ipc://{tmp_path}/s", keys=tmp_path / "no.json")
    assert [one.closed for one in made] == [True]


def test_a_python_without_the_packages_is_told_what_to_do():
    bare = [sys.executable, "-S", "-E", str(conftest.ROOT / "batos.py"), "status"]
    told = subprocess.run(bare, capture_output=True, text=True)
    assert told.returncode == 1 and "Traceback" not in told.stderr
    assert "zmq" in told.stderr and "pip install -r requirements.txt" in told.stderr
