"""The service file that `help service` prints: its command runs, a stop drains within its time, a crash is started again."""

import configparser
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

import batos

ROOT = pathlib.Path(__file__).resolve().parents[1]


def unit():
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string("\n".join(batos.help_service()))
    return parser


def test_the_unit_starts_what_is_there_and_restarts_only_after_a_failure(tmp_path, monkeypatch):
    home = tmp_path / "50% mine"
    home.mkdir()
    monkeypatch.chdir(home)
    service = unit()["Service"]
    assert shlex.split(service["ExecStart"]) == [sys.executable, str(ROOT / "batos.py")]
    assert service["WorkingDirectory"] == f"{tmp_path}/50%% mine" and service["Restart"] == "on-failure"
    monkeypatch.setenv("BATOS_HOME", str(home))
    assert shlex.split(unit()["Service"]["Environment"]) == [f"BATOS_HOME={tmp_path}/50%% mine"]
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
