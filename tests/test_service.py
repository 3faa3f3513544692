"""BAT OS as a service: the unit, how it is written, looked at and taken away; what it starts drains and comes back."""

import configparser
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

import batos

ROOT = pathlib.Path(__file__).resolve().parents[1]


FAKE = """#!/bin/sh
echo "$@" >> {folder}/asked
case "$2" in
    show) [ -e {folder}/no-bus ] && {{ echo 'Failed to connect to bus: No medium found' >&2; exit 1; }}; cat {folder}/state ;;
    is-active) echo inactive; exit 3 ;;
    enable) [ -e {folder}/fails ] && {{ echo 'Unit is masked.' >&2; exit 1; }} ;;
esac
exit 0
"""
STATE = "ActiveState=active\nSubState=running\nMainPID=4242\nNRestarts=2\nMemoryCurrent=256000000\nResult=success\n"


class Machine:
    """A machine whose systemctl writes down what it is asked, and is a shell script."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.bin = folder / "machine", folder / "machine" / "bin"
        self.bin.mkdir(parents=True)
        (self.bin / "systemctl").write_text(FAKE.format(folder=self.folder))
        (self.bin / "systemctl").chmod(0o755)
        (self.folder / "state").write_text(STATE)
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(self.folder))    # systemd-analyze wants one
        monkeypatch.chdir(folder)

    def asked(self):
        """Return what systemctl was asked beside its state, and forget it."""
        file = self.folder / "asked"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [line.removeprefix("--user ") for line in lines if not line.startswith(("--user show", "--user is-active"))]

    def unit(self, name="batos"):
        return self.folder.parent / "config" / "systemd" / "user" / f"{name}.service"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def parsed(text):
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string(text)
    return parser


def unit():
    return parsed("\n".join(batos.help_service()))


def said(capsys, *words, status=0):
    """Run the command line; returns what it printed."""
    assert batos.main(list(words)) == status
    told = capsys.readouterr()
    return told.err if status == 1 else told.out


def test_the_unit_starts_what_is_there_and_restarts_only_after_a_failure(tmp_path, monkeypatch):
    home = tmp_path / "50% mine"
    home.mkdir()
    monkeypatch.chdir(home)
    service = unit()["Service"]
    assert shlex.split(service["ExecStart"].replace("%%", "%")) == [
        sys.executable, str(ROOT / "batos.py"), "serve", "--image", f"{home}/live_image.fs"]
    assert service["WorkingDirectory"] == f"{tmp_path}/50%% mine" and service["Restart"] == "on-failure"
    monkeypatch.setenv("BATOS_HOME", str(home))
    assert shlex.split(unit()["Service"]["Environment"]) == [f"BATOS_HOME={tmp_path}/50%% mine"]
    assert service["Type"] == "notify" and service["MemoryMax"] == "75%" and service["StandardError"] == "journal"
    assert service["RestartForceExitStatus"] == "75"
    assert float(service["TimeoutStopSec"]) > batos.SETTINGS["drain_s"].default + 10


@pytest.mark.slow
def test_run_as_a_service_manager_would_it_stops_cleanly_and_exits_by_a_failure_otherwise(tmp_path):
    def start():
        process = subprocess.Popen([sys.executable, str(ROOT / "batos.py"), "--core", "none", "--endpoint", "tcp://127.0.0.1:0"],
                                   cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, start_new_session=True)
        return process, next(line.split()[4] for line in process.stdout if "listens on" in line)
    process, endpoint = start()
    with batos.Client(endpoint) as client:
        client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["n", 1])
    process.send_signal(signal.SIGTERM)
    started_s = time.monotonic()
    assert process.wait(60) == 0 and time.monotonic() - started_s < float(unit()["Service"]["TimeoutStopSec"])
    process.stdout.close()
    process, _ = start()
    process.kill()
    assert process.wait(60) != 0                         # on-failure starts it again, and so it is
    process.stdout.close()
    process, endpoint = start()
    with batos.Client(endpoint) as client:
        assert client.call("inspect", target="genesis_obj.n")["result"]["value"] == 1
    process.terminate()
    assert process.wait(60) == 0
    process.stdout.close()


def test_installed_it_is_started_by_an_absolute_command_and_removed_it_is_gone(machine, capsys):
    told = said(capsys, "service", "install", "--image", "notes/live.fs", "--memory", "6G")
    assert str(machine.unit()) in told and "enable-linger" in told
    assert machine.asked() == ["daemon-reload", "enable --now batos.service"]
    written = parsed(machine.unit().read_text())
    command = shlex.split(written["Service"]["ExecStart"])
    assert command[-1] == f"{machine.folder.parent}/notes/live.fs" and written["Service"]["MemoryMax"] == "6G"
    assert "active (running), pid 4242, started again 2 times, 256 MB" in said(capsys, "service", "status", "--memory", "6G",
                                                                               "--image", "notes/live.fs")
    said(capsys, "service", "remove")
    assert machine.asked() == ["disable --now batos.service", "daemon-reload"] and not machine.unit().exists()
    assert "nothing was removed" in said(capsys, "service", "remove", status=1)
    assert batos.main(["service", "status"]) == 3 and "service install" in capsys.readouterr().out


def test_what_is_there_already_is_told_and_kept(machine, capsys):
    said(capsys, "service", "install")
    before = machine.unit().read_text()
    assert "as it would be written" in said(capsys, "service", "install")       # the same: nothing is to do
    told = said(capsys, "service", "install", "--image", "other.fs", status=1)
    assert "live_image.fs" in told and "other.fs" in told and "--name" in told and machine.unit().read_text() == before
    said(capsys, "service", "install", "--image", "other.fs", "--name", "other")
    assert "other.fs" in machine.unit("other").read_text() and machine.unit().read_text() == before
    said(capsys, "service", "install", "--image", "other.fs", "--replace")
    assert "other.fs" in machine.unit().read_text() and pathlib.Path(f"{machine.unit()}.before").read_text() == before


def test_a_unit_of_somebody_else_is_neither_replaced_unasked_nor_removed(machine, capsys):
    machine.unit().parent.mkdir(parents=True)
    machine.unit().write_bytes(b"[Service]\nExecStart=/bin/mine \xff\n")
    assert "--replace" in said(capsys, "service", "install", status=1)
    assert "was not written by" in said(capsys, "service", "remove", status=1)
    assert machine.unit().read_bytes() == b"[Service]\nExecStart=/bin/mine \xff\n" and machine.asked() == []


@pytest.mark.parametrize("lack, told", [("systemctl", "no systemctl on PATH"), ("bus", "No medium found")])
def test_where_there_is_no_systemd_it_says_so_and_what_to_do(machine, capsys, monkeypatch, lack, told):
    if lack == "bus":
        (machine.folder / "no-bus").touch()
    else:
        monkeypatch.setenv("PATH", str(machine.folder))
    said_instead = said(capsys, "service", "install", status=1)
    assert told in said_instead and "crontab -e" in said_instead and "nothing was written" in said_instead
    line = said_instead[said_instead.index("@reboot"):].strip()
    assert line == f"@reboot cd {machine.folder.parent} && {sys.executable} {ROOT}/batos.py serve --image " \
                   f"{machine.folder.parent}/live_image.fs"
    assert not machine.unit().parent.exists()


def test_what_fails_is_told_with_the_reason(machine, capsys, monkeypatch):
    (machine.folder / "fails").touch()
    assert "Unit is masked" in said(capsys, "service", "install", status=1)
    assert "letters" in said(capsys, "service", "status", "--name", "../x", status=1)
    assert "75%" in said(capsys, "service", "install", "--memory", "much", status=1)
    monkeypatch.setenv("BATOS_WORKERS", "3")
    (machine.folder / "fails").unlink()
    assert "BATOS_WORKERS" in said(capsys, "service", "install")


def test_an_image_that_a_daemon_serves_is_left_to_it(machine, capsys):
    pathlib.Path("live_image.fs.endpoint").write_text(f"tcp://127.0.0.1:5 {os.getpid()}")
    assert "stop it first" in said(capsys, "service", "install", status=1) and not machine.unit().exists()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
def test_systemd_itself_finds_the_unit_sound_whatever_the_folder_is_called(machine, capsys, monkeypatch):
    odd = machine.folder.parent / 'it\'s 50% "$HOME" \\n'
    odd.mkdir()
    monkeypatch.chdir(odd)
    monkeypatch.setenv("BATOS_HOME", str(odd))
    assert "is sound" in said(capsys, "service", "install")
    assert batos._verified(machine.unit()) == []
    machine.unit().write_text(machine.unit().read_text().replace("MemoryMax", "MemoryMost"))
    assert any("MemoryMost" in line for line in batos._verified(machine.unit()))


def test_a_unit_that_systemd_does_not_take_is_not_kept(machine, capsys):
    (machine.bin / "systemd-analyze").write_text('#!/bin/sh\necho "$3:7: Unknown key" >&2\n')
    (machine.bin / "systemd-analyze").chmod(0o755)
    assert "Unknown key" in said(capsys, "service", "install", status=1) and not machine.unit().exists()


def test_who_started_it_as_a_service_is_told_that_it_is_up_and_that_it_stops(tmp_path, daemon, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(120)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        running = daemon()
        assert told.recv(100) == b"READY=1"
        assert running.stop() == 0
        assert told.recv(100) == b"STOPPING=1"


@pytest.mark.slow
@pytest.mark.parametrize(("kept", "is_module"), [({}, True), ({"PYTHONDONTWRITEBYTECODE": "1"}, False)])
def test_a_daemon_keeps_no_syntax_tree_where_python_may_keep_what_it_compiled(tmp_path, kept, is_module):
    """A script's stays in memory, 90 MB, while it runs: it has itself run as a module."""
    command = [sys.executable, str(ROOT / "batos.py"), "--core", "none", "--embedder", "none", "--endpoint", "tcp://127.0.0.1:0"]
    others = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                               env={**others, "PYTHONPYCACHEPREFIX": str(tmp_path / "compiled"), **kept})
    endpoint = next(line.split()[4] for line in process.stdout if "listens on" in line)
    words = pathlib.Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
    with batos.Client(endpoint) as client:
        assert (client.call("health")["result"]["memory_mb"] < 135) == is_module
        client.call("shutdown")
    assert process.wait(60) == 0 and ("-c" in words) == is_module
    assert bool(list(tmp_path.glob("compiled/**/batos.*.pyc"))) == is_module
    process.stdout.close()


def test_an_option_of_the_interpreter_goes_with_it_and_a_command_ends_as_it_did(tmp_path):
    def run(*options):
        command = [sys.executable, *options, str(ROOT / "batos.py"), "check", "--image", "nothing.fs"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120,
                              env={**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""})
    told = run("-B")
    assert told.returncode == 1 and not list(tmp_path.glob("**/batos.*.pyc"))
    again = run("-Wignore")
    assert (again.returncode, again.stderr) == (1, told.stderr) and list(tmp_path.glob("**/batos.*.pyc"))
