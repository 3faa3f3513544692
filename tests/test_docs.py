"""The README is true: its commands run, its table is the code's, what it prints is what is printed."""

import doctest
import pathlib
import re
import shlex
import subprocess
import sys
import time

import ormsgpack  # noqa: F401  (the README's script imports it)
import pytest
from durability import load

import batos

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
CORE = (ROOT / "seed_core" / "core.json").exists()


def shell_blocks():
    return [text for kind, text in BLOCKS if not kind]


def settings_table():
    """Return the README's table of settings."""
    rows = [f"| `{row.name}` | {row.default!r} | {row.unit} | {row.help} |" for row in batos.SETTINGS.values()]
    return "\n".join(["| setting | default | unit | meaning |", "|---|---|---|---|", *rows])


def test_the_settings_are_told():
    assert settings_table() in README


def test_every_subcommand_and_every_command_of_the_wire_is_told():
    for name in ("serve", *batos.SUBCOMMANDS, *batos.LOCAL_COMMANDS):
        assert re.search(rf"^\| `{name}\b", README, re.M), name
    for name in batos.COMMANDS:
        assert f"`{name}`" in README, name


def test_the_campaigns_are_told_as_they_were_reported():
    assert load.report_table() in README


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


def test_the_send_example_runs(daemon, monkeypatch, capsys):
    monkeypatch.setenv("BATOS_ENDPOINT", daemon().endpoint)
    message = re.search(r"batos\.py send '(.*?)'`", README)[1]
    assert batos.main(["send", message]) == 0
    assert "description" in capsys.readouterr().out


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
    (arguments,) = sh_lines("morphic_ui_obj")
    assert batos.main(arguments) == 0
    back, = re.findall(r"`send '(\{\"target\": \"morphic_ui_obj\".*?\})'`", README)
    assert batos.main(["display"]) == 0 and "your changes: 1 taken" in capsys.readouterr().out
    assert batos.main(["send", back]) == 1 and "before this one" in capsys.readouterr().err      # there is one alone


def test_the_audit_on_request_runs(daemon, monkeypatch, capsys):
    monkeypatch.setenv("BATOS_ENDPOINT", daemon(core=0).endpoint)
    message, = re.findall(r"`send '(\{\"target\": \"autotelic_obj\".*?\})'`", README, re.DOTALL)
    assert batos.main(["send", message]) == 0 and "0x" in capsys.readouterr().out
