"""The bridge against a model: commands with keys, repeated, reused, refused, and the daemon killed between them; and floods."""

import pathlib
import tempfile
import threading
import time

import conftest
import ormsgpack
import pytest
import zmq
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule

import batos

SLOTS = st.sampled_from(["a", "b", "c"])
BRIEF = {"type": "direct_synthesis", "selector": "answer_", "args": ["Which valve is the one?"]}


class BridgeMachine(RuleBasedStateMachine):
    """Slots and their last values; keys with the body and reply that belong to them."""

    keys = Bundle("keys")

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.slots, self.told, self.count = {}, {}, 0
        self._start()

    def _start(self):
        self.daemon = conftest.DaemonProcess(pathlib.Path(self.folder.name))
        self.client = batos.Client(self.daemon.endpoint, timeout_s=30)

    def _put(self, slot, value, key):
        return self.client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=[slot, value],
                                idempotency_key=key)

    @rule(target=keys, slot=SLOTS, value=st.integers(0, 9))
    def put(self, slot, value):
        self.count += 1
        key = f"key {self.count}"
        reply = self._put(slot, value, key)
        assert "repeated" not in reply
        self.slots[slot], self.told[key] = value, (slot, value, reply)
        return key

    @rule(key=keys)
    def ask_again(self, key):
        slot, value, reply = self.told[key]
        again = self._put(slot, value, key)
        assert again["repeated"] and (again["change"], again["result"]) == (reply["change"], reply["result"])

    @rule(key=keys, slot=SLOTS)
    def reuse(self, key, slot):
        with pytest.raises(batos.KeyReused):
            self._put(slot, "other", key)

    @rule(slot=SLOTS)
    def fail_and_free_the_key(self, slot):
        self.count += 1
        key = f"key {self.count}"
        with pytest.raises(batos.BatosError):
            self.client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["no slot name", 1],
                             idempotency_key=key)
        reply = self._put(slot, "freed", key)
        assert "repeated" not in reply
        self.slots[slot] = "freed"

    @rule(key=keys)
    def undo(self, key):
        slot, value, reply = self.told[key]
        try:
            self.client.call("undo", change=reply["change"])
        except batos.CannotUndo:
            return
        found = self.client.call("inspect", target="genesis_obj")["result"]["slots"]
        assert self.slots[slot] == value                 # else it had been refused
        self.slots.pop(slot)
        if slot in found:
            self.slots[slot] = found[slot]["value"]

    @rule()
    def read(self):
        found = self.client.call("inspect", target="genesis_obj")["result"]["slots"]
        assert {name: row["value"] for name, row in found.items() if name in ("a", "b", "c")} == self.slots

    @rule(pack=st.booleans())
    def kill_and_start(self, pack):
        if pack:
            self.client.call("pack", days=0.0)
        self.client.close()
        self.daemon.stop(kill=True)
        self._start()
        self.read()

    def teardown(self):
        self.client.close()
        assert self.daemon.stop() == 0
        assert batos.check_image(f"{self.folder.name}/live_image.fs", deep=True)["faults"] == []
        self.folder.cleanup()


TestBridge = pytest.mark.slow(BridgeMachine.TestCase)
TestBridge.settings = hypothesis_settings(max_examples=6, stateful_step_count=20, deadline=None,
                                          suppress_health_check=list(HealthCheck))


def flood(endpoint, stop, counts):
    """Set slots, 64 in flight, until told to stop."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(endpoint)
    request = {"command": "send_message", "target": "genesis_obj", "selector": "setSlot:value:"}
    for n in range(64):
        socket.send(ormsgpack.packb({**request, "args": ["flood", n]}))
    while not stop.is_set():
        assert socket.poll(60_000)
        socket.recv()
        counts.append(1)
        socket.send(ormsgpack.packb({**request, "args": ["flood", len(counts)]}))
    socket.close()
    context.term()


@pytest.mark.slow
def test_a_flood_of_writes_starves_no_cycle_and_cycles_no_write(daemon):
    running, stop, counts = daemon(core=0.01), threading.Event(), []
    with batos.Client(running.endpoint, timeout_s=60) as client:
        client.call("index_document", doc_id="a", text="The brass valve is the one.")
        threads = [threading.Thread(target=flood, args=(running.endpoint, stop, counts)) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        for _ in range(5):
            before = len(counts)
            ended = client.call("initiate_cognitive_cycle", mission_brief=BRIEF, wait=True)["result"]
            assert ended["state"] == "COMPLETE" and len(counts) > before
            client.call("index_document", doc_id="b", text=f"Another valve, {before}.")
        stop.set()
        for thread in threads:
            thread.join(60)
        assert client.call("inspect", target="genesis_obj.flood")["result"]["value"] <= len(counts)
