"""Health and figures: what they tell is so, and what reads them can do no harm."""

import socket
import time
import urllib.error
import urllib.request

import pytest

import batos


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def read(port, method="GET", path="/metrics"):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method, data=b"x" if method == "POST" else None)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_health_tells_lanes_commits_disk_memory_and_upkeep(daemon, tmp_path):
    running = daemon()
    with batos.Client(running.endpoint) as client:
        for n in range(5):
            client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["n", n])
        client.call("backup", folder=str(tmp_path / "b"))
        time.sleep(2.2)
        told = client.call("health")["result"]
    assert set(told["oldest_waiting_s"]) == set(told["lanes"]) == {
        "write", "bulk", "read", "upkeep", "synapse", "core", "method"}
    assert told["commit"]["write"]["count"] == told["lanes"]["write"]["commits"] >= 5
    assert 0 < told["fsync"]["p50_ms"] <= told["fsync"]["p99_ms"] <= told["fsync"]["max_ms"]
    assert 20 < told["memory_mb"] < 2000 and told["disk_free_mb"] > 0 and told["upkeep"]["last"]["backup"]["ok"]


def test_the_first_in_a_queue_ages(tmp_path):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    lane = batos.ReadLane(image, "read")
    assert lane.oldest_s == 0.0
    lane.submit(batos.Job("first", lambda root: 1))
    time.sleep(0.05)
    lane.submit(batos.Job("second", lambda root: 1))
    assert 0.05 <= lane.oldest_s < 60
    lane.start()
    lane.close()
    assert lane.oldest_s == 0.0 and lane.depth == 0
    image.close()


def test_timings():
    times = batos.Timings()
    assert times.told() == {"count": 0, "p50_ms": 0.0, "p99_ms": 0.0, "max_ms": 0.0}
    for n in range(1000):
        times.add(n / 1000)
    assert times.told() == {"count": 1000, "p50_ms": 872.0, "p99_ms": 997.0, "max_ms": 999.0}


def test_a_check_is_noted(daemon, tmp_path, capsys):
    daemon().stop()
    assert batos.main(["check", "--image", str(tmp_path / "live_image.fs")]) == 0
    with batos.Client(daemon().endpoint) as client:
        assert client.call("health")["result"]["upkeep"]["last"]["check"]["details"] == "0 faults"


def test_figures_are_off_by_default_and_read_by_get_alone(daemon, tmp_path):
    port = free_port()
    running = daemon("--metrics-port", str(port))
    with batos.Client(running.endpoint) as client:
        client.call("index_document", doc_id="a secret name", text="A secret text.", client="a secret client")
        told = read(port)
        values = dict(line.rsplit(" ", 1) for line in told.splitlines() if not line.startswith("#"))
        assert float(values['batos_commits_total{of="bulk"}']) == 1 and float(values["batos_memory_bytes"]) > 2e7
        assert "secret" not in told and "# HELP batos_fsync_p99_seconds" in told
        known = {f"batos_{name}{end}" for name in batos._METRICS for end in ("", "_total")}
        assert {line.split("{")[0] for line in values} <= known
        for method in ("POST", "PUT", "DELETE"):
            with pytest.raises(urllib.error.HTTPError, match="405"):
                read(port, method)
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.send(b"GET / HT")                       # one that never ends holds up nobody
            assert "batos_up_seconds" in read(port)
        assert client.call("health")["status"] == "OK"
    assert running.stop() == 0
    assert batos.SETTINGS["metrics_port"].default == 0


def test_figures_are_of_this_machine_alone_and_a_taken_port_is_told(daemon, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(batos.ConfigError, match="metrics_port"):
            batos.serve_metrics(taken.getsockname()[1], dict)
    port = free_port()
    daemon("--metrics-port", str(port))
    with socket.socket() as other, pytest.raises(OSError):
        other.connect((socket.gethostbyname(socket.gethostname()).replace("127.0.0.1", "127.0.0.2"), port))
