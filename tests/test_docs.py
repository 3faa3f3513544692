"""The README is true: its commands run, what it prints is what is printed; help tells what the code's tables hold."""

import doctest
import pathlib
import re
import shlex
import subprocess
import sys
import time

import ormsgpack  # noqa: F401  (the README's script imports it)
import pytest
import test_service
import test_trial
from durability import load
from test_remote import Served

import batos

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
CORE = (ROOT / "seed_core" / "core.json").exists()


def shell_blocks():
    return [text for kind, text in BLOCKS if not kind]


def helped(capsys, topic):
    """Return what `help TOPIC` prints."""
    assert batos.main(["help", topic]) == 0
    return capsys.readouterr().out


def test_help_tells_all_that_the_tables_hold(capsys):
    tables = {"commands": ("serve", *batos._SUBCOMMANDS, *batos._LOCAL_COMMANDS), "settings": batos.SETTINGS,
              "wire": (*batos.COMMANDS, "NotFound", "ShuttingDown", f"topics: {', '.join(batos.TOPICS)}")}
    for topic, names in tables.items():
        told = helped(capsys, topic)
        assert [name for name in names if not re.search(rf"^{name}\b", told, re.M)] == [], topic
    row = batos.SETTINGS["workers"]
    assert re.search(rf"^workers +{row.help} \({row.unit}; 2\)$", helped(capsys, "settings"), re.M)
    assert "\nsend_message  (write)  target*, selector*, args, kwargs" in helped(capsys, "wire")
    assert all(ending in helped(capsys, "formats").split() for ending in batos.FORMATS)
    assert "  8. Corruption is named as such" in helped(capsys, "durability")


def test_help_lists_its_topics_and_knows_commands_and_slips(capsys):
    assert batos.main(["help"]) == 0
    told = capsys.readouterr().out
    assert all(re.search(rf"^{topic} +\S", told, re.M) for topic in batos.HELP)
    with pytest.raises(SystemExit) as ended:
        batos.main(["help", "learn"])
    assert ended.value.code == 0 and "--vanished" in capsys.readouterr().out
    assert batos.main(["help", "setings"]) == 1 and "did you mean settings?" in capsys.readouterr().err


def command_lines():
    """Return the arguments of all commands of batos.py that the README has, in blocks and in its text."""
    blocks = [line for kind, text in BLOCKS if kind in ("", "sh") for line in text.splitlines()]
    parts = [part for line in blocks for part in re.split(r" && |; | > ", line)]
    inline = re.findall(r"`(\.venv/bin/python batos\.py[^`]*)`", README)
    return [shlex.split(line)[2:] for line in (*parts, *inline) if line.startswith(".venv/bin/python batos.py")]


def test_every_command_of_the_readme_is_one():
    lines = command_lines()
    assert len(lines) > 15
    for words in lines:
        batos._command_line().parse_args(words)           # ends the process where one is none
    topics = re.findall(r"`(?:\.venv/bin/python batos\.py )?help (\w+)`", README)
    assert len(topics) > 5 and set(topics) <= batos.HELP.keys()


def test_the_answer_and_its_limits_come_before_the_contents():
    first, contents, _ = README.partition("**Contents:**")
    assert contents and len(first.splitlines()) <= 80
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.*)$", README, re.M)}
    assert set(re.findall(r"\]\(#([^)]*)\)", README)) <= anchors
    files = re.findall(r"\]\(((?!#|https?:)[^)]*)\)", README)
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_figures_that_come_first_are_those_of_the_last_row_of_answers():
    answers = README.partition("\n## Answers\n")[2].partition("\n## ")[0]
    row = [line for line in answers.splitlines() if line.startswith("| now")][-1]
    right, partly, beside, wrongly, rightly = re.findall(r"\d+", row)[:5]
    first = " ".join(README.partition("**Contents:**")[0].split())
    told = re.search(r"held the answer for (\d+), one of the passages for (\d+); (\d+) (?:was|were) answered beside the point, "
                     r"(\w+) (?:was|were) refused wrongly, and (\d+)", first)
    assert told.groups() == (right, partly, beside, wrongly if wrongly != "0" else "none", rightly)


@pytest.mark.slow
def test_the_servers_of_the_readme_are_those_of_help_and_answer(daemon, capsys):
    lines = [words for words in command_lines() if "--core" in words and words[1].startswith("http")]
    assert [f"    python batos.py {' '.join(words)}" for words in lines] == re.findall(
        r"^ {4}python batos\.py --core http.*$", helped(capsys, "cores"), re.M)
    server = Served()
    try:
        with batos.Client(daemon(*lines[0][2:], core=server.url).endpoint) as client:
            while client.call("health")["result"]["core"]["state"] != "ready":
                time.sleep(0.1)
            assert client.call("health")["result"]["core"]["model"] == lines[0][-1]
    finally:
        server.stop()


def test_removing_leaves_nothing(tmp_path):
    (tmp_path / ".venv").mkdir()
    for name in ("", *(name.removeprefix(".fs") for name in batos._FILES_BESIDE if name.startswith(".fs"))):
        (tmp_path / f"live_image.fs{name}").touch()
    line, = [text for kind, block in BLOCKS if kind == "sh" for text in block.splitlines() if "rm -r" in text]
    subprocess.run(["bash", "-c", line.partition("; ")[2]], cwd=tmp_path, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_the_campaigns_are_told_as_they_were_reported():
    assert load.report_table() in (ROOT / "tests" / "durability" / "report.md").read_text("utf-8")


def test_upgrading_installs_as_setting_up_does():
    line, = [text for kind, block in BLOCKS if kind == "sh" for text in block.splitlines() if "git pull" in text]
    assert line.split(" && ")[1] == shell_blocks()[0].split(" && ")[1]


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    setting_up, testing = shell_blocks()[0].strip(), shell_blocks()[-1].strip()
    assert testing.split(" && ")[:3] == ["tests/packages", *setting_up.split(" && ")[:2]]
    assert 'readme_command "Set up and pass the tests"' in script


@pytest.mark.slow
@pytest.mark.skipif(not CORE, reason="there is no trained core in seed_core/")
def test_the_first_exchange_is_what_is_printed(daemon, monkeypatch):
    monkeypatch.setenv("BATOS_EMBEDDER", "auto")          # as who follows the README has it
    running = daemon(core="auto")
    monkeypatch.setenv("BATOS_ENDPOINT", running.endpoint)
    with batos.Client(running.endpoint) as client:
        while {client.call("health")["result"][part]["state"] for part in ("core", "embedder")} != {"ready"}:
            time.sleep(0.2)
    commands = [line for line in shell_blocks()[1].splitlines() if line]
    printed = [subprocess.run([sys.executable, *line.removeprefix(".venv/bin/python ").replace('"', "\0").split("\0")[0].split(),
                               *line.split('"')[1:2]], cwd=ROOT, capture_output=True, text=True, timeout=120).stdout
               for line in commands]
    assert [text.strip() for text in printed] == [text.strip() for text in shell_blocks()[2:5]]


@pytest.mark.slow
@pytest.mark.skipif(not CORE, reason="there is no trained core in seed_core/")
def test_the_scripts_run(daemon, tmp_path, monkeypatch):
    endpoint = daemon(core="auto").endpoint
    monkeypatch.setenv("BATOS_ENDPOINT", endpoint)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    outputs = []
    for kind, text in BLOCKS:
        if kind == "python":
            script = text.replace("tcp://127.0.0.1:5555", endpoint)
            outputs.append(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120,
                                          cwd=tmp_path, check=True).stdout)
    assert "note [1, 1]" in outputs[0] and "note" in outputs[1] and "5555" in outputs[1]
    assert outputs[2].strip() in batos.TOPICS


@pytest.mark.slow
def test_the_exchange_about_a_guess_is_what_is_printed(daemon):
    exchange, = [text for kind, text in BLOCKS if kind == "pycon"]
    with batos.Client(daemon(core=0).endpoint) as client:
        shop = client.call("send_message", target="traits_obj", selector="clone")["result"]["$ref"]
        for slot, value in (("total", 120.0), ("paid", 45.0)):
            client.call("send_message", target=shop, selector="setSlot_value_", args=[slot, value])
        test = doctest.DocTestParser().get_doctest(exchange, {"client": client, "shop": shop}, "README", "README.md", 0)
        told = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
        runner.run(test, out=told.append)
    assert runner.summarize(verbose=False).attempted == 6 and not told, "".join(told)


def test_the_send_examples_run(daemon, monkeypatch, capsys):
    """In words and as JSON; those that begin something are understood, whatever comes of it."""
    monkeypatch.setenv("BATOS_ENDPOINT", daemon(core=0).endpoint)
    told = [shlex.split(one) for one in re.findall(r"`(?:[./\w]*python )?(?:batos\.py )?send (\w.*?|'\{.*?\}')`", README)]
    assert len(told) >= 6
    for words in told:
        status = batos.main(["send", *words])
        out, err = capsys.readouterr()
        assert status == 0 or "does not understand" not in err and "JSON" not in err, err
        assert "description" in out or "slotNames" not in str(words)


def sh_lines(word):
    """Return the arguments of the README's `sh` lines that hold a word."""
    lines = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if word in line]
    assert lines
    return [shlex.split(line.removeprefix(".venv/bin/python batos.py ")) for line in lines]


def test_the_commands_of_backups_run(daemon, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BATOS_ENDPOINT", daemon().endpoint)
    monkeypatch.chdir(tmp_path)
    for words in sh_lines("/mnt/disk/bat"):
        words = [str(tmp_path / "bat") if word == "/mnt/disk/bat" else "2100-01-01" if word.startswith("2026") else word
                 for word in words]
        assert batos.main(words) == 0, words
    assert (tmp_path / "restored.fs").exists() and "every byte as written" in capsys.readouterr().out


def test_the_commands_of_the_service_run(tmp_path, monkeypatch, capsys):
    machine = test_service.Machine(tmp_path, monkeypatch)
    install, status, remove = sh_lines("service install --image") + sh_lines("service status") + sh_lines("service remove")
    for words in (install, status):
        assert batos.main([word.replace("/srv/notes", str(tmp_path)) for word in words]) == 0, words
    assert f"{tmp_path}/live_image.fs" in machine.unit("notes").read_text()
    assert batos.main(remove) == 0 and not machine.unit("notes").exists()


@pytest.mark.slow
def test_the_commands_of_the_upgrade_run(tmp_path, daemon, monkeypatch):
    trial = test_trial.Trial(tmp_path, daemon, monkeypatch)
    trial.start()
    sha256 = trial.offer()
    lines = sh_lines("upgrade --list") + sh_lines("upgrade SHA256") + sh_lines("upgrade --back")
    tell, go, back = (words[1:] for words in lines)
    assert f"upgrade {sha256}" in trial.upgrade(*tell)
    assert f"{sha256} serves now" in trial.upgrade(*(word.replace("SHA256", sha256) for word in go))
    assert f"{trial.own.sha256} serves now" in trial.upgrade(*back)


def test_the_commands_of_keys_run(daemon, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    add, serve, status = sh_lines("keys add") + sh_lines("0.0.0.0") + sh_lines("192.0.2.1")
    assert batos.main(add) == 0
    running = daemon(serve[0], serve[1].replace("5555", "0"))
    there = {"tcp://192.0.2.1:5555": running.endpoint.replace("0.0.0.0", "127.0.0.1"), "ann.json": "live_image.fs.keys/ann.json"}
    assert batos.main([there.get(word, word) for word in status]) == 0
    assert "serving" in capsys.readouterr().out


@pytest.mark.slow
def test_the_change_of_the_inspector_runs(daemon, monkeypatch, capsys):
    running = daemon(core=0)
    monkeypatch.setenv("BATOS_ENDPOINT", running.endpoint)
    arguments, page = sh_lines("morphic_ui_obj")
    assert batos.main(arguments) == 0 and batos.main(page) == 0
    back, = re.findall(r"`send '(\{\"target\": \"morphic_ui_obj\".*?\})'`", README)
    assert batos.main(["display"]) == 0 and "your changes: 1 taken" in capsys.readouterr().out
    assert batos.main(["send", back]) == 1 and "before this one" in capsys.readouterr().err      # there is one alone


def test_the_audit_on_request_runs(daemon, monkeypatch, capsys):
    monkeypatch.setenv("BATOS_ENDPOINT", daemon(core=0).endpoint)
    message, = re.findall(r"`send '(\{\"target\": \"autotelic_obj\".*?\})'`", README, re.DOTALL)
    assert batos.main(["send", message]) == 0 and "0x" in capsys.readouterr().out
