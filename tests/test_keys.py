"""Keys: who has none gets not a byte, who has one gets what its role may, and nobody gets another's."""

import contextlib
import inspect
import json
import os
import socket
import subprocess
import sys
import threading
import time

import ormsgpack
import pytest
import zmq
from durability import takeover

import batos

READS = {"health": {}, "get_full_state": {}, "list_cycles": {}, "inspect": {"target": "genesis_obj"},
         "search_memory": {"query": "valve"}, "history": {}}
WRITES = {"send_message": {"target": "genesis_obj", "selector": "slotNames"}, "index_document": {"doc_id": "a", "text": "valve"},
          "unindex_document": {"doc_id": "a"}, "cancel": {"cycle": "0x99"}, "undo": {"change": "0" * 16 + ".0"},
          "initiate_cognitive_cycle": {"mission_brief": {"type": "direct_synthesis", "selector": "answer_", "args": ["why"]}}}
ADMINS = {"backup": {"folder": "relative"}, "pack": {"days": 0.0}, "index_document": {"doc_id": "a", "path": "/etc/passwd"}}
BRIEF = {"type": "direct_synthesis", "selector": "answer_", "args": ["Which valve?"]}


@pytest.fixture
def ring(tmp_path):
    """A key ring with a client of each role, before the daemon starts; `ring.files` are their key files."""
    ring = batos.KeyRing(str(tmp_path / "live_image.fs"))
    ring.files = {role: ring.add(role, role) for role in batos.ROLES}
    return ring


@pytest.fixture
def locked(ring, daemon):
    return daemon("--curve", "true")


def allowed(client, command, fields):
    try:
        client.call(command, **fields)
    except batos.Forbidden as error:
        assert "ask whoever" in str(error)
        return False
    except batos.BatosError:                             # allowed, and refused for another reason
        return True
    return True


def test_each_role_may_what_it_may_and_the_default_is_admin(ring, locked):
    for role, may in (("read", [READS]), ("write", [READS, WRITES]), ("admin", [READS, WRITES, ADMINS])):
        with batos.Client(locked.endpoint, 20, ring.files[role]) as client:
            for table in (READS, WRITES, ADMINS):
                for command, fields in table.items():
                    assert allowed(client, command, fields) is (table in may), (role, command)
    assert inspect.signature(batos.command).parameters["role"].default == "admin"
    with batos.Client(locked.endpoint, 20, ring.files["write"]) as client, pytest.raises(batos.Forbidden):
        client.call("shutdown")
    with batos.Client(locked.endpoint, 20, ring.files["admin"]) as client:
        client.call("shutdown")
    assert locked.process.wait(60) == 0


@pytest.mark.slow
def test_strangers_get_nothing(ring, locked, tmp_path):
    stranger = batos.KeyRing(str(tmp_path / "other.fs")).add("eve", "admin")
    keys = json.loads(stranger.read_text()) | {"server": ring.server()[0].decode()}
    stranger.write_text(json.dumps(keys))                # the right server, an unknown client
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(json.loads(ring.files["admin"].read_text()) | {"server": keys["public"]}))
    wrong.chmod(0o600)
    for path in (None, stranger, wrong):
        with batos.Client(locked.endpoint, 0.7, path) as client, pytest.raises(batos.NoReply):
            client.call("health")
    host, port = locked.endpoint.removeprefix("tcp://").split(":")
    for junk in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(500), b"\xff" + b"\0" * 8 + b"\x7f\x03\0NULL" + b"\0" * 48):
        with socket.create_connection((host, int(port)), timeout=1) as raw:
            raw.sendall(junk)
            raw.settimeout(0.3)
            try:
                told = raw.recv(1000)
            except (TimeoutError, ConnectionResetError):
                told = b""
            assert len(told) <= 64 and b"BAT" not in told        # the greeting of ZMTP at most
    with batos.Client(locked.endpoint, 20, ring.files["read"]) as client:
        assert client.call("health")["result"]["state"] == "serving"


def test_another_interface_needs_keys(daemon, tmp_path, capsys):
    assert batos.main(["--endpoint", "tcp://0.0.0.0:0", "--core", "none", "--image", str(tmp_path / "x.fs")]) == 1
    assert "keys add" in capsys.readouterr().err and not (tmp_path / "x.fs").exists()
    path = batos.KeyRing(str(tmp_path / "live_image.fs")).add("ann", "read")
    running = daemon("--endpoint", "tcp://0.0.0.0:0")
    endpoint = running.endpoint.replace("0.0.0.0", "127.0.0.1")
    with batos.Client(endpoint, 0.7) as client, pytest.raises(batos.NoReply, match="without keys"):
        client.call("health")
    with batos.Client(endpoint, 20, path) as client:
        assert client.call("health")["result"]["state"] == "serving"


def test_who_did_it_is_the_name_of_the_key_and_idempotency_keys_belong_to_it(ring, locked):
    def put(client, value):
        return client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["s", value],
                           idempotency_key="the same key")
    with batos.Client(locked.endpoint, 20, ring.files["write"]) as ann, \
            batos.Client(locked.endpoint, 20, ring.files["admin"]) as bob:
        put(ann, 1)
        assert put(ann, 1)["repeated"] and "repeated" not in put(bob, 2)
        assert [row["who"] for row in ann.call("history", target="genesis_obj", slot="s")["results"]] == ["admin", "write"]


def test_a_cycle_is_cancelled_by_whose_it_is_or_an_admin(ring, daemon, tmp_path):
    running = daemon("--curve", "true", core="none")
    ring.add("other", "write")
    running.stop()
    running = daemon(("curve", True), core=30.0)
    with batos.Client(running.endpoint, 20, ring.files["write"]) as ann, \
            batos.Client(running.endpoint, 20, ring.folder / "other.json") as eve, \
            batos.Client(running.endpoint, 20, ring.files["admin"]) as admin:
        ann.call("index_document", doc_id="a", text="The brass valve is the one.")
        cycles = [ann.call("initiate_cognitive_cycle", mission_brief=BRIEF)["result"]["cycle"] for _ in range(2)]
        for cycle in cycles:
            with pytest.raises(batos.Forbidden, match="of write"):
                eve.call("cancel", cycle=cycle)
        ann.call("cancel", cycle=cycles[0])
        admin.call("cancel", cycle=cycles[1])


def test_revoking_ends_the_session(ring, locked):
    with batos.Client(locked.endpoint, 20, ring.files["write"]) as client:
        client.call("health")
        ring.revoke("write")
        client.timeout_s = 0.7
        with pytest.raises(batos.NoReply):
            client.call("health")
    with batos.Client(locked.endpoint, 20, ring.files["read"]) as client:
        assert client.call("health")["result"]["clients"] <= 1
    with pytest.raises(batos.NotFound, match="clients are admin, read"):
        ring.revoke("nobody")


@pytest.mark.slow
def test_a_reply_that_is_ready_after_its_key_was_revoked_is_not_sent(ring, daemon):
    running = daemon(("curve", True), core=3.0)
    with batos.Client(running.endpoint, 20, ring.files["write"]) as client:
        client.call("index_document", doc_id="a", text="The brass valve is the one.")
        told = []

        def ask():
            try:
                told.append(client.call("initiate_cognitive_cycle", 8, mission_brief=BRIEF, wait=True))
            except batos.NoReply as error:
                told.append(error)
        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(1)
        ring.revoke("write")
        thread.join()
    assert isinstance(told[0], batos.NoReply)


def test_a_chosen_routing_id_is_not_answered(ring, locked):
    """Who takes the routing id of a client that just went would get its replies."""
    keys = json.loads(ring.files["admin"].read_text())
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger, dealer.routing_id = 0, b"ann"
    dealer.curve_serverkey, dealer.curve_publickey, dealer.curve_secretkey = (
        keys[name].encode() for name in ("server", "public", "secret"))
    dealer.connect(locked.endpoint)
    dealer.send(ormsgpack.packb({"command": "health"}))
    assert not dealer.poll(700)
    dealer.close()
    context.term()


@pytest.mark.parametrize("name", ["", "server", "../x", "a b", "-x", "x" * 41, "ä"])
def test_names_that_are_refused(ring, name):
    with pytest.raises(batos.ConfigError):
        ring.add(name, "read")


def test_a_name_or_public_key_that_will_not_do(ring):
    with pytest.raises(batos.ConfigError, match="already"):
        ring.add("read", "read")
    with pytest.raises(batos.ConfigError, match="z85"):
        ring.add("new", "read", "too short")
    public, _ = zmq.curve_keypair()
    assert ring.add("new", "read", public.decode()) is None and public.decode() in ring.clients


def test_everything_is_private_and_what_is_not_is_refused(ring, locked):
    assert all(path.stat().st_mode & 0o077 == 0 for path in (ring.folder, *ring.folder.iterdir()))
    ring.files["read"].chmod(0o644)
    with pytest.raises(batos.ConfigError, match="chmod"):
        batos.Client(locked.endpoint, 5, ring.files["read"])
    (ring.folder / "server.json").chmod(0o640)
    with pytest.raises(batos.ConfigError, match="chmod"):
        ring.server()


def test_a_damaged_client_file_lets_nobody_in_and_service_comes_back(ring, locked):
    path = ring.folder / "clients.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    with batos.Client(locked.endpoint, 0.7, ring.files["read"]) as client, pytest.raises(batos.NoReply):
        client.call("health")
    path.write_bytes(whole)
    with batos.Client(locked.endpoint, 20, ring.files["read"]) as client:
        assert client.call("health")["result"]["state"] == "serving"


def test_the_command_line_takes_keys(ring, locked, tmp_path, capsys):
    def run(*words):
        status = batos.main(list(words))
        return status, capsys.readouterr()
    image = ["--image", str(tmp_path / "live_image.fs")]
    assert run("keys", "add", "zoe", "--role", "read", *image)[0] == 0
    assert "zoe" in run("keys", *image)[1].out
    there = ["--endpoint", locked.endpoint, "--keys", str(ring.folder / "zoe.json")]
    assert "serving" in run("status", *there)[1].out
    status, told = run("stop", *there)
    assert status == 1 and "needs the role admin" in told.err
    assert run("keys", "revoke", "zoe", *image)[0] == 0 and "zoe" not in run("keys", *image)[1].out
    assert run("status", "--endpoint", locked.endpoint, "--keys", str(tmp_path / "live_image.fs.seals"))[0] == 1


def test_a_client_that_asks_too_often_is_told_busy(daemon):
    running = daemon("--client-rate", "50")
    with batos.Client(running.endpoint) as fast, batos.Client(running.endpoint) as other:
        told = []
        for _ in range(80):
            try:
                told.append(fast.call("health")["status"])
            except batos.Busy as error:
                told.append("client_rate" in str(error))
        assert told[:50] == ["OK"] * 50 and True in told[50:]
        assert other.call("health")["status"] == "OK"
        time.sleep(1.1)
        assert fast.call("health")["status"] == "OK"


def test_a_key_has_one_allowance_however_many_connections(ring, daemon):
    running, told = daemon("--curve", "true", "--client-rate", "50"), []
    with contextlib.ExitStack() as open_clients:
        one, two, other = (open_clients.enter_context(batos.Client(running.endpoint, 20, ring.files[role]))
                           for role in ("read", "read", "write"))
        for client in (one, two) * 40:                   # 40 each
            try:
                told.append(client.call("health")["status"])
            except batos.Busy:
                told.append("Busy")
        assert told[:50] == ["OK"] * 50 and "Busy" in told[50:]
        assert other.call("health")["status"] == "OK"


def test_a_key_has_so_many_subscribed_connections_and_leaves_room_for_others(ring, daemon):
    running = daemon("--curve", "true", "--client-subscribers-max", "2")
    with contextlib.ExitStack() as open_clients:
        one, two, three, other = (open_clients.enter_context(batos.Client(running.endpoint, 20, ring.files[role]))
                                  for role in ("read", "read", "read", "write"))
        for client in (one, two, other, one):            # again is no more
            client.call("subscribe", topics=["error"])
        with pytest.raises(batos.Busy, match="client_subscribers_max"):
            three.call("subscribe")
        one.call("unsubscribe")
        three.call("subscribe")


def test_a_socket_file_in_a_private_folder(daemon, tmp_path):
    running = daemon("--endpoint", f"ipc://{tmp_path}/run/bat")
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    with batos.Client(running.endpoint) as client:
        assert client.call("health")["result"]["state"] == "serving"
        with pytest.raises(batos.ConfigError, match="another daemon"):
            batos._private_socket(running.endpoint)
        assert client.call("health")["result"]["state"] == "serving"
    running.stop()
    batos._private_socket(running.endpoint).close()
    (tmp_path / "run").chmod(0o755)
    with pytest.raises(AssertionError, match="chmod"):
        daemon("--endpoint", f"ipc://{tmp_path}/run/bat")


MARKER = "brass-valve-of-the-second-machine"


class Listened:
    """What goes by the bridge between two machines, as somebody in between hears it: all frames, in a file."""

    TEXT = """
import socket, sys
heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
with open(sys.argv[1], "wb", buffering=0) as file:
    print("hears", flush=True)
    while True:
        file.write(heard.recv(65_535))
"""

    def __init__(self, network, path):
        self.path = path
        words = [*network.within("h"), sys.executable, "-c", self.TEXT, str(path)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "hears\n"

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        return self.path.read_bytes()


@pytest.fixture
def two_machines():
    if not takeover.has_namespaces():
        pytest.skip("network namespaces cannot be made here")
    network = takeover.Network({"one": "10.78.0.1", "two": "10.78.0.2"})
    yield network
    network.close()


@pytest.mark.slow
def test_a_second_machine_learns_and_asks_by_its_key_and_nobody_in_between_hears_what(ring, daemon, two_machines, tmp_path):
    one = daemon("--endpoint", "tcp://10.78.0.1:0", start=two_machines.starter("one"))
    note, heard = tmp_path / "note.md", Listened(two_machines, tmp_path / "heard")
    note.write_text(f"The {MARKER} closes at nine bar.")

    def by_hand(*words, key="write"):
        keys = ["--keys", str(ring.files[key])] if key else []
        command = [sys.executable, batos.__file__, *words, "--endpoint", one.endpoint, *keys]
        return subprocess.run([*two_machines.within("two"), *command], cwd=tmp_path, capture_output=True, text=True)
    assert by_hand("status", key=None).returncode != 0
    assert by_hand("learn", str(note)).returncode == 0
    assert by_hand("learn", str(note), key="read").returncode != 0
    told = by_hand("search", MARKER, key="read")
    assert told.returncode == 0 and "nine bar" in told.stdout
    # cut off amid a change that has a key: it is sent again once the cable is in again, and there once
    two_machines.cut("two", True)
    command = [*two_machines.within("two"), sys.executable, "-c", SENT_AGAIN, one.endpoint, str(ring.files["write"])]
    with subprocess.Popen(command, cwd=os.path.dirname(batos.__file__), stdout=subprocess.PIPE, text=True) as sending:
        assert sending.stdout.readline() == "sends\n"
        two_machines.cut("two", False)
        assert sending.stdout.read() == "1\n" and sending.wait() == 0
    all_heard = heard.close()
    assert len(all_heard) > 2000
    assert not [word for word in (MARKER, "nine bar", "search_memory") if word.encode() in all_heard]


# what a client on the second machine does while it is cut off
SENT_AGAIN = """
import sys, batos
with batos.Client(sys.argv[1], 300, sys.argv[2]) as client:
    print("sends", flush=True)
    key = batos.uuid7()
    ask = {"target": "genesis_obj", "selector": "setSlot:value:", "args": ["sent", 1], "idempotency_key": key}
    told = client.call("send_message", **ask)
    again = client.call("send_message", **ask)
    assert again["repeated"] and again["change"] == told["change"]
    print(client.call("inspect", target="genesis_obj.sent")["result"]["value"])
"""
