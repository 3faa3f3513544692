"""The bridge at work, from outside: one reply for each request, limits, keys, slow readers, signals."""

import asyncio
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import conftest
import doubles
import ormsgpack
import pytest
import zmq

import batos

MANUAL = "# Pump\n\n## Calibrating\n\nTurn the brass valve until the needle stands at zero. Then lock the screw.\n"
MISSION = {"command": "initiate_cognitive_cycle", "wait": True,
           "mission_brief": {"type": "direct_synthesis", "selector": "answer_", "args": ["How is the brass valve turned?"]}}
WAIT_MS = 60_000


class Raw:
    """A bare socket: sends maps, takes replies, one by one."""

    def __init__(self, endpoint, kind=zmq.DEALER, **options):
        self._context = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.linger = 0
        for name, value in options.items():
            setattr(self.socket, name, value)
        self.socket.connect(endpoint)

    def send(self, **fields):
        self.socket.send(ormsgpack.packb(fields))

    def reply(self):
        assert self.socket.poll(WAIT_MS), "no reply"
        return ormsgpack.unpackb(self.socket.recv(), option=ormsgpack.OPT_NON_STR_KEYS)

    def ask(self, **fields):
        self.send(**fields)
        return self.reply()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self._context.term()


def put(number, **fields):
    return {"command": "send_message", "target": "genesis_obj", "selector": "setSlot:value:", "args": ["n", number], **fields}


# One reply for each


@pytest.mark.slow
def test_many_requests_in_flight_get_one_reply_each(daemon):
    wrong = [{"command": "helth"}, {"command": "inspect", "target": "nobody"}, {"command": "health", "surplus": 1},
             put(0, args=7), {"command": "send_message", "target": "genesis_obj", "selector": "nothing"},
             {"command": "cancel", "cycle": "0x1"}]
    with Raw(daemon("--client-pending-max", "5000", "--pending-max", "5000").endpoint) as raw:
        for number in range(2000):
            fields = wrong[number % 12] if number % 12 < len(wrong) else put(number)
            raw.send(**fields, id=number)
        replies = [raw.reply() for _ in range(2000)]
        assert sorted(reply["id"] for reply in replies) == list(range(2000))
        assert sum(reply["status"] == "OK" for reply in replies) == sum(number % 12 >= len(wrong) for number in range(2000))
        assert raw.ask(command="health", id=-1)["id"] == -1 and not raw.socket.poll(100)


def test_a_client_that_goes_away_harms_nobody(daemon):
    endpoint = daemon().endpoint
    with Raw(endpoint) as raw:
        for number in range(100):
            raw.send(**put(number))
    with Raw(endpoint) as raw:
        assert raw.ask(**put(7))["status"] == "OK"
        end_s = time.monotonic() + 300
        while raw.ask(command="health")["result"]["clients"] and time.monotonic() < end_s:
            time.sleep(0.02)
        health = raw.ask(command="health")["result"]
        assert health["pending"] == 0 and health["clients"] == 0


def test_a_message_that_is_too_large_costs_its_sender_the_connection_only(daemon):
    endpoint = daemon("--message-max-mb", "1").endpoint
    with Raw(endpoint) as large, Raw(endpoint) as other:
        large.socket.send(b"x" * 3_000_000)
        assert other.ask(command="health")["status"] == "OK"
        large.send(command="health", id=2)                # the client connects again
        assert large.reply()["id"] == 2


def test_a_document_that_is_too_large_is_refused_by_name(daemon):
    with Raw(daemon("--document-max-mb", "0.01").endpoint) as raw:
        reply = raw.ask(command="index_document", doc_id="big.md", text="word " * 4000)
        assert reply["code"] == "BadRequest" and "split" in reply["details"]
        assert raw.ask(command="search_memory", query="word")["results"] == []


def test_a_req_socket_is_served(daemon):
    with Raw(daemon().endpoint, zmq.REQ) as raw:
        for number in range(3):
            assert raw.ask(**put(number), id=number)["id"] == number


# Limits


@pytest.mark.parametrize("setting", ["pending_max", "client_pending_max"])
def test_beyond_the_bound_work_is_busy_and_control_is_answered(daemon, setting):
    endpoint = daemon((setting, "3"), core=60).endpoint
    with Raw(endpoint) as raw:
        assert raw.ask(command="index_document", doc_id="pump.md", text=MANUAL)["status"] == "OK"
        keys = [batos.uuid7() for _ in range(3)]
        cycles = [raw.ask(**{**MISSION, "wait": False}, idempotency_key=key)["result"]["cycle"] for key in keys]
        for number, key in enumerate([*keys, None, None]):
            raw.send(**MISSION, idempotency_key=key, id=number)
        refused = [raw.reply(), raw.reply()]
        assert {reply["id"] for reply in refused} == {3, 4}
        assert all(reply["code"] == "Busy" and reply["retry"] and setting in reply["details"] for reply in refused)
        assert raw.ask(command="health", id="h")["result"]["pending"] == 3
        with Raw(endpoint) as other:
            assert (other.ask(command="list_cycles")["status"] == "ERROR") == (setting == "pending_max")
        for cycle in cycles:                              # control commands free the room again
            raw.send(command="cancel", cycle=cycle, id="c")
        assert sorted(str(raw.reply()["id"]) for _ in range(6)) == ["0", "1", "2", "c", "c", "c"]
        assert raw.ask(command="list_cycles")["status"] == "OK"


def test_a_slow_reader_gets_all_that_was_accepted_and_others_do_not_wait(daemon):
    """FACTS 18: a ROUTER drops what a full pipe does not take, unless it is mandatory."""
    endpoint = daemon("--outbox-max", "1500").endpoint   # twice as many unread are the most
    with Raw(endpoint, rcvhwm=1, rcvbuf=4096) as slow, Raw(endpoint) as other:
        for number in range(2000):
            slow.send(command="get_full_state", id=number)
            if number % 100 == 0:
                assert other.ask(command="health")["status"] == "OK"
        replies = [slow.reply() for _ in range(2000)]
        assert sorted(reply["id"] for reply in replies) == list(range(2000))


def test_a_client_that_reads_nothing_is_dropped_and_nobody_else(daemon):
    endpoint = daemon("--client-stall-s", "0.2", "--outbox-max", "8").endpoint
    with Raw(endpoint, rcvhwm=1, rcvbuf=4096) as deaf, Raw(endpoint) as other:
        for number in range(20_000):
            deaf.send(command="inspect", target="traits_obj", id=number)
        end_s = time.monotonic() + 300
        while other.ask(command="health")["result"]["clients"] and time.monotonic() < end_s:
            time.sleep(0.05)
        assert other.ask(command="health")["result"]["clients"] == 0
        assert other.ask(**put(1))["status"] == "OK"


# Keys


def test_twins_take_effect_once_and_both_are_answered(daemon):
    endpoint, key = daemon().endpoint, batos.uuid7()
    with Raw(endpoint) as one, Raw(endpoint) as two:
        fields = {"command": "send_message", "target": "genesis_obj", "selector": "clone", "idempotency_key": key}
        for raw in (one, two, one, two):
            raw.send(**fields)
        replies = [raw.reply() for raw in (one, two, one, two)]
        assert len({reply["change"] for reply in replies}) == len({reply["result"]["$ref"] for reply in replies}) == 1
        assert sum("repeated" in reply for reply in replies) == 3


def test_a_key_belongs_to_one_body(daemon):
    key = batos.uuid7()
    with Raw(daemon().endpoint) as raw:
        raw.send(**put(1, idempotency_key=key))
        raw.send(**put(2, idempotency_key=key))
        replies = [raw.reply(), raw.reply()]
        assert sorted(reply.get("code", "") for reply in replies) == ["", "KeyReused"]
        assert raw.ask(**put(3, idempotency_key=key))["code"] == "KeyReused"
        assert raw.ask(**put(1, idempotency_key=key, why="again", id=9))["repeated"]


def test_a_key_older_than_the_memory_is_refused(daemon):
    with Raw(daemon().endpoint) as raw:
        old = batos.uuid7(int((time.time() - 25 * 3600) * 1000))
        reply = raw.ask(**put(1, idempotency_key=old))
        assert reply["code"] == "KeyExpired" and "inspect" in reply["details"]
        assert raw.ask(**put(1, idempotency_key="a name of my own"))["status"] == "OK"


def test_a_full_memory_of_keys_is_busy_for_keys_alone(daemon):
    with Raw(daemon("--request-memory-max", "3").endpoint) as raw:
        replies = [raw.ask(**put(number, idempotency_key=batos.uuid7())) for number in range(5)]
        assert [reply.get("code") for reply in replies] == [None, None, None, "Busy", "Busy"]
        assert raw.ask(**put(9))["status"] == "OK"


def test_a_key_of_what_failed_may_be_used_again(daemon):
    key = batos.uuid7()
    with Raw(daemon().endpoint) as raw:
        missing = {"command": "send_message", "target": "genesis_obj", "selector": "removeSlot:", "args": ["nothing"]}
        assert raw.ask(**missing, idempotency_key=key)["status"] == "ERROR"
        assert raw.ask(**put(1, idempotency_key=key))["status"] == "OK"


# What it knows


def test_the_state_is_shown_soon_after_a_change(daemon):
    with Raw(daemon().endpoint) as raw:
        raw.ask(command="send_message", target="genesis_obj", selector="setSlot:value:", args=["fresh_slot", 1])
        end_s = time.monotonic() + 300
        while time.monotonic() < end_s:
            shown = raw.ask(command="get_full_state")["result"]["objects"]
            if shown and "fresh_slot" in shown["genesis_obj"]["slots"]:
                return
            time.sleep(0.05)
        raise AssertionError(shown)


def test_a_message_that_nobody_understands_is_logged_with_its_intent(daemon):
    with Raw(daemon().endpoint) as raw:
        reply = raw.ask(command="send_message", target="genesis_obj", selector="makeTea:", args=[1], intent="to warm up")
        assert reply["code"] == "MessageNotUnderstood"
        [[_, entry]] = raw.ask(command="inspect", target="message_log")["result"]["value"]["$tree"]["entries"]
        assert (entry["selector"], entry["intent"]) == ("makeTea_", "to warm up")


# Ends


def test_what_was_accepted_before_sigterm_is_done_and_answered(daemon):
    running = daemon("--client-pending-max", "1000")
    with Raw(running.endpoint) as raw, Raw(running.endpoint) as other:
        for number in range(300):
            raw.send(command="index_document", doc_id=f"{number}.md", text=f"Word{number} and more.", id=number)
        while not other.ask(command="health")["result"]["pending"] and not raw.socket.poll(0):
            time.sleep(0.001)
        running.process.send_signal(signal.SIGTERM)
        replies = [raw.reply() for _ in range(300)]
    assert running.stop() == 0
    done = [reply["id"] for reply in replies if reply["status"] == "OK"]
    assert all(reply["code"] == "ShuttingDown" for reply in replies if reply["status"] == "ERROR") and done
    with Raw(daemon().endpoint) as raw:
        for number in (done[0], done[-1]):
            assert raw.ask(command="search_memory", query=f"word{number}")["results"]


@pytest.mark.slow
def test_a_second_signal_hurries(daemon):
    running = daemon(("drain_s", "600"), core=0)
    with Raw(running.endpoint, rcvhwm=1, rcvbuf=4096) as deaf:
        for number in range(20_000):                      # unread replies: what the drain waits for
            deaf.send(command="inspect", target="traits_obj", id=number)
        time.sleep(0.5)
        running.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(1.5)
        running.process.send_signal(signal.SIGINT)
        running.process.wait(60)
    assert running.process.returncode == 0


@pytest.mark.parametrize("attempt", range(5))
def test_stop_as_the_first_message_is_answered(daemon, attempt):
    running = daemon()
    with Raw(running.endpoint) as raw:
        assert raw.ask(command="shutdown")["status"] == "OK"
    assert running.process.wait(60) == 0


def test_a_second_daemon_says_who_has_the_image(daemon, tmp_path):
    first = daemon()
    command = [sys.executable, str(conftest.ROOT / "batos.py"), "--endpoint", "tcp://127.0.0.1:0", "--core", "none"]
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1 and str(first.process.pid) in second.stderr and "Traceback" not in second.stderr
    with Raw(first.endpoint) as raw:
        assert raw.ask(**put(1))["status"] == "OK"


def test_a_port_that_is_taken_is_told_with_its_mend(daemon, tmp_path):
    first = daemon()
    (tmp_path / "other").mkdir()
    command = [sys.executable, str(conftest.ROOT / "batos.py"), "--endpoint", first.endpoint, "--core", "none"]
    second = subprocess.run(command, cwd=tmp_path / "other", capture_output=True, text=True, timeout=60)
    assert second.returncode == 1 and "cannot listen" in second.stderr and "port 0" in second.stderr


def test_a_clock_that_jumps_ahead_has_no_key_forgotten(monkeypatch):
    keys, real = batos.KeyMemory(3600.0, 10), batos.unix_us
    keys.add(("local", "k"), batos.Remembered("digest", "write", "change", real(), 0))
    monkeypatch.setattr(batos, "unix_us", lambda: real() + 400 * 86400 * 10 ** 6)
    for n in range(3):
        request = batos.types.SimpleNamespace(key=("local", f"new {n}"), digest="other")
        assert keys.check(request) is None
    assert keys.check(batos.types.SimpleNamespace(key=("local", "k"), digest="digest")).change == "change"
    old = batos.uuid7(real() // 1000 - 2 * 3600 * 1000)
    with pytest.raises(batos.KeyExpired):
        keys.check(batos.types.SimpleNamespace(key=("local", old), digest="other"))


def test_a_search_takes_phrases_pages_neighbours_and_folds_what_is_the_same(daemon):
    with batos.Client(daemon().endpoint) as client:
        for n in range(3):
            client.call("index_document", doc_id=f"same{n}", text="The brass valve is turned.")
        client.call("index_document", doc_id="long", text="\n".join(
            f"# Part {n}\n\n" + f"The silver lamp number{n} is lit. " * 12 for n in range(4)))
        [row] = client.call("search_memory", query='"brass valve" -lamp')["results"]
        assert row["chunk"]["doc_id"] == "same0" and row["also"] == ["same1_chunk_0", "same2_chunk_0"]
        [row] = client.call("search_memory", query="number2", neighbours=1, max_results=1)["results"]
        assert [row["chunk"][side][0]["text"].split("\n")[0] for side in ("before", "after")] == ["# Part 1", "# Part 3"]
        pages = [client.call("search_memory", query="silver lamp", max_results=1, offset=n)["results"] for n in range(5)]
        assert len({page[0]["chunk"]["chunk_id"] for page in pages[:4]}) == 4 and pages[4] == []
        assert "was taken as a blank" in client.call("search_memory", query='silver "lamp')["details"]
        assert client.call("search_memory", query="silver", kind="code")["results"] == []
        with pytest.raises(batos.BadRequest, match="needs words"):
            client.call("search_memory", query="-silver")


def test_the_state_is_known_before_anybody_asks(tmp_path):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(image)
    uvm = batos.BatOS_UVM(image, batos.load_settings({"embedder": "none"}, {}), doubles.QuickCore())
    uvm.loop = asyncio.new_event_loop()
    try:
        uvm.start()
        assert "genesis_obj" in uvm.vitals.view["objects"] and "merge_due" not in uvm.vitals.view
    finally:
        uvm.close_lanes()
        uvm.loop.close()
        image.close()


# Messages beyond what the daemon takes


def test_a_message_that_is_too_large_is_refused_by_name_with_what_is_allowed(daemon):
    with Raw(daemon("--message-max-mb", "1").endpoint) as raw:
        reply = raw.ask(command="health", id=1, why="x" * (1 << 20))
        assert reply["code"] == "BadRequest"
        assert reply["fields"]["setting"] == "message_max_mb" and reply["fields"]["allowed"] == 1 << 20
        assert raw.ask(command="health", id=2)["status"] == "OK"


def test_the_client_asks_what_the_daemon_takes_before_it_sends_much(daemon):
    with batos.Client(daemon("--message-max-mb", "3").endpoint) as client:
        assert client.call("index_document", doc_id="a", text="valve " * 300_000)["status"] == "OK"
        with pytest.raises(batos.BadRequest, match=r"the message has 5.7 MB, and the daemon takes 3 MB \(message_max_mb\)"):
            client.call("index_document", doc_id="b", text="valve " * 1_000_000)
        assert client.limits()["message_max_mb"] == 3.0 and client.call("health")["status"] == "OK"


def log_lines(folder, words, seconds=300):
    """Wait for lines of the daemon's log that hold some words; returns them."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        found = [line for line in (folder / "live_image.fs.log").read_text().splitlines() if words in line]
        if found:
            return found
        time.sleep(0.05)
    return []


@pytest.mark.parametrize("where", ["tcp", "ipc"])
def test_a_connection_that_is_ended_for_its_size_is_logged_and_others_are_not(daemon, tmp_path, where):
    options = ["--endpoint", f"ipc://{tmp_path}/run/bat"] if where == "ipc" else []
    endpoint = daemon("--message-max-mb", "1", *options).endpoint
    for _ in range(5):
        with Raw(endpoint) as raw:
            assert raw.ask(command="health", id=1)["status"] == "OK"
    with Raw(endpoint, reconnect_ivl=-1) as raw:
        assert raw.ask(command="health", id=1)["status"] == "OK"
        raw.send(command="health", why="x" * (5 << 20))
        told = log_lines(tmp_path, "was ended by the daemon")
    assert len(told) == 1 and "a message of more than 2 MB (message_max_mb)" in told[0]
    with Raw(endpoint) as raw:
        assert raw.ask(command="health", id=1)["status"] == "OK"
    assert len(log_lines(tmp_path, "was ended by the daemon")) == 1


def test_a_connection_is_looked_at_before_its_first_message_is_answered(tmp_path, caplog):
    wire = batos.Wire(batos.load_settings({"image": str(tmp_path / "a.fs")}))
    endpoint = wire.bind("tcp://127.0.0.1:0")
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.connect(endpoint)
        client.send(b"a message")
        wire.socket.poll(300_000)
        frames, user = wire.take()
        wire.new_peer(frames[0], user)                   # nobody else has looked: the loop is at its messages
        client.send(bytes(batos.ENDED_AT * wire.message_most + 1))
        end_s = time.monotonic() + 300
        while not caplog.records and time.monotonic() < end_s:
            wire.connections.look()
        assert "was ended by the daemon" in caplog.text
        client.linger = 0
    wire.close()


def test_connections_that_came_and_went_before_anybody_looked_are_not_judged_by_the_next_ones(caplog):
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        connections = batos.Connections(router, 1 << 20)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        for _ in range(5):
            socket.create_connection(("127.0.0.1", port)).close()
            time.sleep(0.05)
        with socket.create_connection(("127.0.0.1", port)) as last:
            assert last.recv(1) == b"\xff"               # the greeting: it is taken in
            connections.look()
            assert not caplog.records
            last.sendall(bytes(200))                     # a message of no byte at all
            end_s = time.monotonic() + 300
            while not caplog.records and time.monotonic() < end_s:
                connections.look()
        assert "was ended by the daemon" in caplog.text and len(caplog.records) == 1
        connections.close()


def test_32_mb_of_empty_maps_are_refused_and_little_is_remembered_of_them(daemon):
    running, maps = daemon(), b"\xdd" + (31 << 20).to_bytes(4) + b"\x80" * (31 << 20)
    with Raw(running.endpoint) as raw:
        before_mb = raw.ask(command="health", id=1)["result"]["memory_mb"]
        for payload in (maps, b"\x82\xa7command\xacsend_message\xa4args" + maps):
            raw.socket.send(payload)
            assert raw.reply()["code"] == "Malformed"
        raw.socket.send(ormsgpack.packb({"command": "health", "id": 1}) * 2)
        assert "more than one value" in raw.reply()["details"]
        peak = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{running.process.pid}/status").read_text())
    assert int(peak[1]) / 1e3 < before_mb + 150, (peak[1], before_mb)


def test_an_id_of_20_mb_does_not_come_back(daemon):
    with Raw(daemon().endpoint) as raw:
        reply = raw.ask(command="health", id="x" * 20_000_000)
        assert (reply["id"], reply["code"]) == (None, "BadRequest") and len(ormsgpack.packb(reply)) < 1000


# Turns

ENDLESS = "def spin(self):\n    while True:\n        pass\n"


@pytest.mark.slow
def test_endless_methods_of_one_client_leave_another_s_its_turn(daemon):
    """12 methods without end, four seconds each on four threads, took all threads for twelve seconds."""
    endpoint = daemon("--method-deadline-s", "4").endpoint
    with batos.Client(endpoint) as client, Raw(endpoint) as greedy, Raw(endpoint) as other:
        client.call("create_method", target_oid="genesis_obj", method_name="spin", method_code=ENDLESS)
        client.call("create_method", target_oid="genesis_obj", method_name="one", method_code="def one(self):\n    return 1\n")
        receivers = [client.call("send_message", target="genesis_obj", selector="clone")["result"]["$ref"] for _ in range(13)]
        for number, receiver in enumerate(receivers[:12]):
            greedy.send(command="send_message", target=receiver, selector="spin", id=number)
        while client.call("health")["result"]["lanes"]["method"]["waiting"] < 9:
            time.sleep(0.01)
        assert other.ask(command="send_message", target=receivers[12], selector="one")["result"] == 1
        assert not greedy.socket.poll(0)                 # none of them has ended yet
        assert [greedy.reply()["status"] for _ in range(12)] == ["ERROR"] * 12


@pytest.mark.slow
def test_messages_to_one_receiver_take_turns_too(daemon):
    endpoint = daemon("--method-deadline-s", "1").endpoint
    with batos.Client(endpoint) as client, Raw(endpoint) as greedy, Raw(endpoint) as other:
        client.call("create_method", target_oid="genesis_obj", method_name="spin", method_code=ENDLESS)
        client.call("create_method", target_oid="genesis_obj", method_name="one", method_code="def one(self):\n    return 1\n")
        for number in range(6):
            greedy.send(command="send_message", target="genesis_obj", selector="spin", id=number)
        while client.call("health")["result"]["pending"] < 6:
            time.sleep(0.01)
        assert other.ask(command="send_message", target="genesis_obj", selector="one")["result"] == 1
        done = 0
        while greedy.socket.poll(0):
            done += greedy.reply()["code"] == "DeadlineExceeded"
        assert done <= 2                                 # the one at work, and one whose turn came before
