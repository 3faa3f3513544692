"""The seeds' own messages: what is understood from genesis on, the mind that is asked by message, what is never made up."""

import itertools
import random
import time

import conftest
import pytest

import batos

WAIT_S = 300
MANUAL = """# Pump

Turn the brass valve until the needle stands at zero. Then lock the screw with the small key.

## Cleaning

The filter is washed in warm water once a month. Never use soap on the felt ring.
"""
QUESTION = "How is the brass valve turned?"


def send(client, target, selector, *args, **fields):
    return client.call("send_message", target=target, selector=selector, args=list(args), **fields)


def create(client, target, name, code):
    return client.call("create_method", target_oid=target, method_name=name, method_code=code)


@pytest.fixture(scope="module")
def grounded(tmp_path_factory):
    """A client of a daemon whose core does not write, with a manual in its memory."""
    running = conftest.DaemonProcess(tmp_path_factory.mktemp("grounded"), core=0)
    with batos.Client(running.endpoint, WAIT_S) as client:
        client.call("index_document", doc_id="pump.md", text=MANUAL)
        yield client
    running.stop(kill=True)


@pytest.fixture(scope="module")
def writing(tmp_path_factory):
    """A client of a daemon whose core writes freely; it notes its prompts in the file `asked`."""
    folder = tmp_path_factory.mktemp("writing")
    running = conftest.DaemonProcess(folder, core=(0, folder / "asked"))
    with batos.Client(running.endpoint, WAIT_S) as client:
        client.asked = folder / "asked"
        yield client
    running.stop(kill=True)


@pytest.fixture
def priced(grounded):
    """The oid of a new object with prices."""
    oid = send(grounded, "genesis_obj", "clone")["result"]["$ref"]
    send(grounded, oid, "setSlot_value_", "prices", [4, 12.5, 3])
    return oid


def cycles(client):
    return [row["cycle"] for row in client.call("list_cycles", limit=1000)["results"]]


def asked_so_far(client):
    return client.asked.read_text() if client.asked.exists() else ""


# infer_


def test_a_core_that_does_not_write_answers_out_of_memory_with_citations(grounded):
    told = send(grounded, "pLLM_obj", "infer_", QUESTION)["result"]
    first, *cited = told["answer"].splitlines()
    assert "“Turn the brass valve until the needle stands at zero.” [1]" in first and cited[0] == "[1] pump.md:3"
    assert told["grounded"] is True and told["evidence"][0]["doc_id"] == "pump.md" and told["persona"] == "BABS"
    assert grounded.call("list_cycles")["results"][0]["cycle"] == told["cycle"]


@pytest.mark.parametrize("target, kwargs, lead", [
    ("pLLM_obj", {"persona": "ROBIN"}, "ROBIN"), ("pLLM_obj", {"adapter_name": "brick"}, "BRICK"),
    ("alfred_prototype_obj", {}, "ALFRED"), ("alfred_prototype_obj", {"persona": "base"}, "BABS")])
def test_who_is_named_leads(grounded, target, kwargs, lead):
    told = send(grounded, target, "infer_", QUESTION, kwargs=kwargs)["result"]
    assert told["persona"] == lead and told["answer"].startswith("\u201cTurn the brass valve")


def test_a_persona_synthesises_a_response_to_a_query(grounded):
    told = send(grounded, "robin_prototype_obj", "synthesize_response_for_", QUESTION)["result"]
    assert told["grounded"] and told["persona"] == "ROBIN" and told["evidence"]


def test_what_memory_does_not_hold_is_not_made_up(grounded):
    told = send(grounded, "genesis_obj", "infer_", "Who painted the ceiling of the chapel?")["result"]
    assert told["grounded"] and told["evidence"] == [] and told["answer"].startswith("There is nothing in memory about this")


def test_a_clone_of_genesis_can_think(grounded):
    clone = send(grounded, "genesis_obj", "clone")["result"]["$ref"]
    assert send(grounded, clone, "infer_", QUESTION)["result"]["grounded"]


def test_a_core_that_writes_answers_freely(writing):
    told = send(writing, "pLLM_obj", "infer_", "Say hello", kwargs={"persona": "ROBIN"})["result"]
    assert told["grounded"] is False and " to Say hello by __base__, told You speak as ROBIN." in told["answer"]
    told = send(writing, "pLLM_obj", "infer_", "Say hello", kwargs={"system_prompt": "Be brief."})["result"]
    assert told["answer"].endswith("told Be brief.") and cycles(writing) == []


def test_a_repeat_gives_the_same_words_also_after_a_restart(daemon, tmp_path):
    asked = {"kwargs": {"temperature": 1.5}, "idempotency_key": "once"}
    running = daemon(core=(0, tmp_path / "asked"))
    with batos.Client(running.endpoint, WAIT_S) as client:
        first = send(client, "pLLM_obj", "infer_", "Say hello", **asked)
        assert first["change"] and send(client, "pLLM_obj", "infer_", "Say hello", **asked)["repeated"]
        with pytest.raises(batos.KeyReused):
            send(client, "pLLM_obj", "infer_", "Say goodbye", **asked)
    running.stop(kill=True)
    with batos.Client(daemon(core=(0, tmp_path / "asked")).endpoint, WAIT_S) as client:
        again = send(client, "pLLM_obj", "infer_", "Say hello", **asked)
    assert again["repeated"] and again["result"] == first["result"]
    assert (tmp_path / "asked").read_text() == "Say hello\n"


@pytest.mark.parametrize("args, kwargs, words", [
    ([""], {}, "not blank"), ([5], {}, "a prompt is a text"), ([], {}, "missing a required argument: 'prompt'"),
    (["x" * 20_001], {}, "20,000 characters"), (["a"], {"temperature": -1}, "temperature is a number from 0 to 2"),
    (["a"], {"temperature": True}, "temperature"), (["a"], {"top_p": "much"}, "top_p"),
    (["a"], {"max_new_tokens": 513}, "max_new_tokens is a number from 1 to 512"), (["a"], {"max_new_tokens": 1.5}, "max_new"),
    (["a"], {"persona": 3}, "persona is a text"), (["a"], {"system_prompt": [1]}, "system_prompt is a text")])
def test_what_infer_does_not_take_is_named(writing, args, kwargs, words):
    before = asked_so_far(writing)
    with pytest.raises(batos.BadRequest, match=words):
        send(writing, "pLLM_obj", "infer_", *args, kwargs=kwargs)
    assert asked_so_far(writing) == before


def test_a_speaker_whom_nobody_knows_is_named(grounded):
    with pytest.raises(batos.BadRequest, match="BRICKK has no voice of its own"):
        send(grounded, "pLLM_obj", "infer_", QUESTION, kwargs={"persona": "BRICKK"})


def test_a_core_that_writes_knows_its_experts(writing):
    with pytest.raises(batos.NotFound, match="no expert BRICKK is served by this core"):
        send(writing, "pLLM_obj", "infer_", "Say hello", kwargs={"persona": "BRICKK"})


def test_without_a_core_it_says_so(daemon):
    with batos.Client(daemon().endpoint, WAIT_S) as client:
        with pytest.raises(batos.CoreOffline, match="start the daemon with --core"):
            send(client, "pLLM_obj", "infer_", "Say hello")


def test_neither_lane_nor_snapshot_waits_for_the_core(daemon, tmp_path):
    """Two questions think for long; a hundred messages of others are served meanwhile."""
    with batos.Client(daemon(core=(30, tmp_path / "asked")).endpoint, WAIT_S) as client:
        for number in range(2):
            client._socket.send(batos.pack_reply({"command": "send_message", "target": "pLLM_obj", "selector": "infer_",
                                                  "args": [f"question {number}"], "id": f"late {number}"}))
        while not (tmp_path / "asked").exists() or len((tmp_path / "asked").read_text().splitlines()) < 2:
            time.sleep(0.01)
        for number in range(100):
            send(client, "genesis_obj", "setSlot_value_", "number", number)
        health = client.call("health")["result"]
        assert health["pending"] == 2 and send(client, "genesis_obj", "number")["result"] == 99


def test_more_questions_than_the_queue_holds_are_busy(tmp_path):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    settings, outcomes = batos.load_settings({}, {}), []
    lane = batos.CoreLane(image, {}, batos.CognitiveCore(), None, settings)      # not started: its queue stays full
    for _ in range(batos._INFERENCES_WAITING + 1):
        lane.submit(batos.Job("infer_", lambda root: None, outcomes.append))
    assert [type(outcome.error) for outcome in outcomes] == [batos.Busy] and lane.depth == batos._INFERENCES_WAITING
    image.close()


# infer_ from inside a stored method

THINK = """def think_(self, question):
    told = self.infer_(question)
    self.told = f"{self.number}: {told}"
    self._p_changed = True
    return self.told
"""
TWICE = """def twice_(self, question):
    try:
        first = self.infer_(question)
        second = self.infer_(f"again {self.number}")
    except Exception as error:
        return str(error)
    return [first, second]
"""


def thinker(client, name, code, **slots):
    """Return the oid of a new object with a method."""
    oid = send(client, "genesis_obj", "clone")["result"]["$ref"]
    for slot, value in {"number": 0, **slots}.items():
        send(client, oid, "setSlot_value_", slot, value)
    create(client, oid, name, code)
    return oid


def post(client, **fields):
    """Send a message without waiting for its reply."""
    client._socket.send(batos.pack_reply({"command": "send_message", **fields}))


def replies(client, count):
    """Return {id: reply} of posted messages."""
    found = {}
    while len(found) < count:
        assert client._ready(WAIT_S * 1000), found
        reply = client._received()
        found[reply["id"]] = reply
    return found


def until_asked(file, count):
    while not file.exists() or len(file.read_text().splitlines()) < count:
        time.sleep(0.01)


def test_methods_that_wait_for_the_core_hold_neither_thread_nor_receiver(daemon, tmp_path):
    """Two methods wait in infer_, a hundred others are served, the receivers are changed meanwhile; the core is asked once each.

    There is one thread for methods, so that a waiting one would keep all others out.
    """
    asked = tmp_path / "asked"
    with batos.Client(daemon(("method_workers", 1), core=(3, asked)).endpoint, WAIT_S) as client, \
            batos.Client(client.endpoint, WAIT_S) as other:
        one, two = (thinker(client, "think_", THINK) for _ in range(2))
        count = thinker(client, "up", "def up(self):\n    self.number += 1\n    self._p_changed = True\n    return self.number\n")
        for oid in (one, two):
            post(client, target=oid, selector="think_", args=[f"question of {oid}"], id=oid)
        until_asked(asked, 2)
        assert [send(other, count, "up")["result"] for _ in range(100)] == list(range(1, 101))
        for number in range(1, 51):                      # the receivers too take other messages
            send(other, one, "setSlot_value_", "number", number)
        assert other.call("health")["result"]["pending"] == 2
        told = replies(client, 2)
        assert told[one]["result"].startswith("50: answer ") and told[two]["result"].startswith("0: answer ")
        assert send(client, one, "told")["result"] == told[one]["result"]
    assert sorted(asked.read_text().splitlines()) == sorted(f"question of {oid}" for oid in (one, two))


def test_what_was_answered_is_not_asked_again_after_a_kill(daemon, tmp_path):
    """Killed while its second question is asked; sent again, the message has the first answer still."""
    asked, running = tmp_path / "asked", daemon(core=(1, tmp_path / "asked"))
    with batos.Client(running.endpoint, WAIT_S) as client:
        oid = thinker(client, "twice_", TWICE)
        post(client, target=oid, selector="twice_", args=["first"], idempotency_key="once", id=1)
        until_asked(asked, 2)
    running.stop(kill=True)
    with batos.Client(daemon(core=(0, asked)).endpoint, WAIT_S) as client:
        told = send(client, oid, "twice_", "first", idempotency_key="once")["result"]
        assert told[0].startswith("answer 1 to first by") and told[1].startswith("answer 3 to again 0 by")
        assert send(client, oid, "twice_", "first", idempotency_key="once")["result"] == told
    assert asked.read_text().splitlines() == ["first", "again 0", "again 0"]


def test_a_grounded_answer_survives_a_kill_as_the_cycle_that_it_is(daemon):
    running = daemon(core=0.5)
    with batos.Client(running.endpoint, WAIT_S) as client:
        client.call("index_document", doc_id="pump.md", text=MANUAL)
        oid = thinker(client, "think_", THINK)
        post(client, target=oid, selector="think_", args=[QUESTION], idempotency_key="once", id=1)
        while not (before := cycles(client)):
            time.sleep(0.01)
    running.stop(kill=True)
    with batos.Client(daemon(core=0).endpoint, WAIT_S) as client:
        told = send(client, oid, "think_", QUESTION, idempotency_key="once")["result"]
        assert "“Turn the brass valve until the needle stands at zero.” [1]" in told and told.endswith("[1] pump.md:3")
        assert cycles(client) == before and send(client, oid, "told")["result"] == told


def test_who_waits_for_the_core_is_told_that_the_daemon_stops(daemon, tmp_path):
    asked, running = tmp_path / "asked", daemon(core=(60, tmp_path / "asked"))
    with batos.Client(running.endpoint, WAIT_S) as client:
        oid = thinker(client, "think_", THINK)
        post(client, target="pLLM_obj", selector="infer_", args=["one"], id="message")
        post(client, target=oid, selector="think_", args=["two"], id="method")
        until_asked(asked, 2)
        running.process.terminate()
        told = replies(client, 2)
    assert {reply["code"] for reply in told.values()} == {"ShuttingDown"} and running.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_one_message_is_one_cycle(daemon, seed):
    """The same keyed message is sent to one daemon after the other, each killed a moment later; the last one answers."""
    rng, told = random.Random(seed), []
    for end in range(8):
        running = daemon(core=0.1)
        with batos.Client(running.endpoint, WAIT_S) as client:
            if not told:
                client.call("index_document", doc_id="pump.md", text=MANUAL)
                told.append(thinker(client, "think_", THINK))
            if end < 7:
                post(client, target=told[0], selector="think_", args=[QUESTION], idempotency_key="once", id=1)
                time.sleep(rng.random() * 0.5)
                running.stop(kill=True)
                continue
            answer = send(client, told[0], "think_", QUESTION, idempotency_key="once")["result"]
            assert answer.endswith("[1] pump.md:3") and len(cycles(client)) == 1
            assert send(client, told[0], "told")["result"] == answer


def test_a_run_that_asks_something_else_ends_by_name(daemon, tmp_path):
    """What others change meanwhile stands in the second prompt; the method cannot hold the error."""
    asked = tmp_path / "asked"
    with batos.Client(daemon(core=(1, asked)).endpoint, WAIT_S) as client, batos.Client(client.endpoint, WAIT_S) as other:
        oid = thinker(client, "twice_", TWICE)
        post(client, target=oid, selector="twice_", args=["first"], id=1)
        until_asked(asked, 2)
        send(other, oid, "setSlot_value_", "number", 7)
        [reply] = replies(client, 1).values()
        assert reply["code"] == "PromptChanged" and "call 2 of infer_" in reply["details"] and reply["fields"] == {"call": 1}
    assert asked.read_text().splitlines() == ["first", "again 0"]


def test_a_method_whose_effect_comes_too_late_is_run_anew_without_asking_anew(daemon, tmp_path):
    slow = THINK.replace("    told =", "    seen = self.number\n    told =").replace(
        "    self.told =", "    for _ in range(2_000_000):\n        seen += 0\n    self.told =")
    with batos.Client(daemon(core=(0, tmp_path / "asked")).endpoint, WAIT_S) as client, \
            batos.Client(client.endpoint, WAIT_S) as other:
        oid = thinker(client, "think_", slow)
        for tried in itertools.count(1):                 # until the effect came too late
            send(other, oid, "setSlot_value_", "number", 0)
            post(client, target=oid, selector="think_", args=["question"], id=1)
            until_asked(tmp_path / "asked", tried)
            for number in range(1, 4):
                time.sleep(0.01 * (1 + tried % 5))           # how long the method runs hangs on the machine
                send(other, oid, "setSlot_value_", "number", number)
            [reply] = replies(client, 1).values()
            if reply["result"].startswith(f"3: answer {tried} to question"):
                break
            assert tried < 20, reply
    assert (tmp_path / "asked").read_text() == "question\n" * tried


@pytest.mark.parametrize("code, error, words", [
    ("return [self.infer_(str(n)) for n in range(9)]", batos.MethodFailed, "asks the core 4 times at most"),
    ("return self.infer_(5)", batos.MethodFailed, "a prompt is a text"),
    ("return self.infer_('a', temperature=9)", batos.MethodFailed, "temperature is a number")])
def test_what_a_method_may_not_ask_is_named(writing, code, error, words):
    oid = thinker(writing, "many", f"def many(self):\n    {code}\n")
    with pytest.raises(error, match=words):
        send(writing, oid, "many")


def test_a_method_gets_the_answer_as_text_and_may_name_who_speaks(writing):
    oid = thinker(writing, "ask_", "def ask_(self, q):\n    return self.infer_(q, persona='ROBIN', max_new_tokens=20)\n")
    assert "to hum by __base__, told You speak as ROBIN." in send(writing, oid, "ask_", "hum")["result"]
    assert send(writing, oid, "ask_", "hum", idempotency_key="hum")["result"] == send(
        writing, oid, "ask_", "hum", idempotency_key="hum")["result"]


def test_a_method_that_thinks_without_a_core_says_so_and_its_key_is_free(daemon, tmp_path):
    running = daemon()
    with batos.Client(running.endpoint, WAIT_S) as client:
        oid = thinker(client, "think_", THINK)
        with pytest.raises(batos.CoreOffline):
            send(client, oid, "think_", "why", idempotency_key="once")
    running.stop()
    with batos.Client(daemon(core=(0, tmp_path / "asked")).endpoint, WAIT_S) as client:
        assert send(client, oid, "think_", "why", idempotency_key="once")["result"].startswith("0: answer 1 to why")


def test_a_message_inside_a_method_reaches_what_answers_for_misses(grounded):
    oid = thinker(grounded, "_doesNotUnderstand_", "def _doesNotUnderstand_(self, selector, args, kwargs):\n"
                                                   "    return [selector, args, kwargs]\n")
    create(grounded, oid, "pass_on", "def pass_on(self):\n    return send(self, 'hum:', 1, loud=True)\n")
    assert send(grounded, oid, "pass_on")["result"] == ["hum_", [1], {"loud": True}]


# What is never made up


def test_what_improves_the_mind_is_understood_and_says_what_it_has_nothing_for(grounded):
    cycle = send(grounded, "genesis_obj", "improveCognition")["result"]
    while cycle in cycles(grounded) and next(
            row for row in grounded.call("list_cycles")["results"] if row["cycle"] == cycle)["state"] not in batos.ENDED:
        time.sleep(0.01)
    for selector in ("fineTuneWith_", "fineTuneWith:"):
        with pytest.raises(batos.BadRequest, match="dataset is"):
            send(grounded, "pLLM_obj", selector, "rows", wait=True, generate=True)
    with pytest.raises(batos.NotFound, match="golden curate"):
        send(grounded, "pLLM_obj", "fineTuneWith_", wait=True, generate=True)
    assert "improveCognition" not in grounded.call("inspect", target="genesis_obj")["result"]["slots"]


@pytest.mark.parametrize("selector", ["infer_", "index_document_", "fetchBlobFor_", "improveCognition"])
def test_a_selector_of_the_system_is_not_made_up_where_it_is_not_understood(grounded, selector):
    with pytest.raises(batos.MessageNotUnderstood, match="it is one of BAT OS itself, understood by"):
        send(grounded, "codex_obj", selector, "x", generate=True, wait=True)
    ended = grounded.call("initiate_cognitive_cycle", wait=True, target_oid="codex_obj", mission_brief={
        "type": "unhandled_message", "selector": selector, "args": ["x"]})["result"]
    assert ended["state"] == "FAILED" and "one of BAT OS itself" in ended["reason"]["details"]
    assert selector not in grounded.call("inspect", target="codex_obj")["result"]["slots"]


def test_display_ui_tells_how_it_is_opened(grounded):
    assert send(grounded, "genesis_obj", "display_ui")["result"]["terminal"] == "python batos.py top"


# reflectOn_ and doesNotUnderstand_


def test_a_message_is_reflected_on(grounded, priced):
    cycle = send(grounded, priced, "reflectOn_", {"selector": "sum_prices", "args": []})["result"]["cycle"]
    while grounded.call("list_cycles")["results"][0]["state"] not in batos.ENDED:
        time.sleep(0.01)
    assert cycles(grounded)[0] == cycle and send(grounded, priced, "sum_prices")["result"] == 19.5
    again = send(grounded, priced, "reflectOn_", {"selector": "sum_prices"})["result"]
    assert again["understood"] is False and "sum(self.prices)" in again["source"]        # a guess
    change = grounded.call("confirm", method=again["guess"]["$ref"])["change"]
    again = send(grounded, priced, "reflectOn_", {"selector": "sum_prices"})["result"]
    assert again == {"selector": "sum_prices", "understood": True}
    grounded.call("undo", change=change)                 # else the others take it over


def test_an_entry_of_the_log_is_reflected_on(grounded, priced):
    with pytest.raises(batos.MessageNotUnderstood):
        send(grounded, priced, "sum_prices", generate=False, intent="the sum of the prices")
    told = send(grounded, "pLLM_obj", "reflectOn_", {"$ref": f"message_log.{len(logged(grounded)) - 1}"}, wait=True)["result"]
    assert told["selector"] == "sum_prices" and told["understood"] is False and "sum(self.prices)" in told["source"]
    assert send(grounded, priced, "sum_prices")["result"] == 19.5
    assert "sum_prices" not in grounded.call("inspect", target="pLLM_obj")["result"]["slots"]


@pytest.mark.parametrize("message", ["x", None, 5, {}, {"selector": 3}, {"selector": "a", "args": None},
                                     {"selector": "a", "intent": 3}, {"selector": "a", "kwargs": []}])
def test_what_is_no_message_is_not_reflected_on(grounded, message):
    before, begun = grounded.call("inspect", target="pLLM_obj")["result"]["slots"], cycles(grounded)
    with pytest.raises(batos.BadRequest):
        send(grounded, "pLLM_obj", "reflectOn_", message, wait=True)
    assert grounded.call("inspect", target="pLLM_obj")["result"]["slots"] == before and cycles(grounded) == begun


@pytest.mark.parametrize("selector", ["doesNotUnderstand_", "_doesNotUnderstand_", "doesNotUnderstand:"])
def test_the_protocol_can_be_begun_by_hand(grounded, priced, selector):
    told = send(grounded, priced, selector, "sum_prices", [], wait=True)["result"]
    assert told["selector"] == "sum_prices" and told["understood"] is False and "sum(self.prices)" in told["source"]
    assert send(grounded, priced, "sum_prices")["result"] == 19.5


def test_an_object_that_answers_what_it_does_not_understand_does_so_in_a_child(grounded):
    clone, begun = send(grounded, "genesis_obj", "clone")["result"]["$ref"], cycles(grounded)
    create(grounded, clone, "doesNotUnderstand_",
           "def doesNotUnderstand_(self, selector, args, kwargs):\n"
           "    self.heard = [selector, args, kwargs]\n"
           "    self._p_changed = True\n"
           "    return f'{selector} of {len(args)}'\n")
    for _ in range(2):                                   # the second goes straight to the method lane
        assert send(grounded, clone, "play:with:", 1, [2], kwargs={"loud": True}, wait=True)["result"] == "play_with_ of 2"
    assert send(grounded, clone, "heard")["result"] == ["play_with_", [1, [2]], {"loud": True}]
    assert send(grounded, clone, "slotNames")["result"] and cycles(grounded) == begun
    with pytest.raises(batos.MessageNotUnderstood):      # its prototype is none the wiser
        send(grounded, "genesis_obj", "play_with_", generate=False)


# message_log


def logged(client):
    entries = client.call("inspect", target="message_log")["result"]["value"]["$tree"]["entries"]
    return [entry for _, entry in entries]


def test_the_log_keeps_arguments_within_bounds(grounded):
    for args in ([1, {"$ref": "pLLM_obj"}], ["x" * 2001]):
        with pytest.raises(batos.MessageNotUnderstood):
            send(grounded, "genesis_obj", "hum_", *args, kwargs={"loud": True}, generate=False, intent="hum it")
    small, large = logged(grounded)[-2:]
    oid = grounded.call("inspect", target="pLLM_obj")["result"]["oid"]
    assert (small["args"], small["kwargs"], small["intent"]) == ([1, {"$ref": oid}], {"loud": True}, "hum it")
    assert (large["args"], large["kwargs"], large["selector"]) == (None, None, "hum_")
    with pytest.raises(batos.BadRequest, match="were not kept"):
        send(grounded, "pLLM_obj", "reflectOn_", {"$ref": f"message_log.{len(logged(grounded)) - 1}"})


def test_what_the_log_keeps_of_a_message_is_forgotten(grounded):
    for args in (["the crimson zebra of Ada"], [["a crimson zebra"]], ["a zebra"]):
        with pytest.raises(batos.MessageNotUnderstood):
            send(grounded, "genesis_obj", "hum_", *args, generate=False)
    told = grounded.call("forget", matching="crimson zebra", preview=True)
    assert told["result"]["logged"] == 2 and "the arguments of 2 messages" in told["details"]
    grounded.call("forget", matching="crimson zebra")
    assert [entry["args"] for entry in logged(grounded)[-3:]] == [None, None, ["a zebra"]]


def test_what_a_method_was_told_of_a_document_is_forgotten_with_it(daemon):
    """In the reply that its key remembers; what the method put into a slot is the object's."""
    with batos.Client(daemon(core=0).endpoint, WAIT_S) as client:
        client.call("index_document", doc_id="pump.md", text=MANUAL)
        oid = thinker(client, "say_", "def say_(self, q):\n    told = self.infer_(q)\n    self.number += 1\n"
                                      "    self._p_changed = True\n    return told\n")
        assert "brass valve" in send(client, oid, "say_", QUESTION, idempotency_key="once")["result"]
        client.call("forget", doc_id="pump.md")
        again = send(client, oid, "say_", QUESTION, idempotency_key="once")
        assert again["repeated"] and "brass valve" not in repr(again)


# Facets


def test_a_pillar_whose_intent_is_revised_by_message_says_so_when_it_is_sent_next(grounded):
    def facet():
        return send(grounded, "alfred_prototype_obj", "butler_facet_", "the river", wait=True)["result"]["prompt"]

    def method():
        return grounded.call("inspect", target="alfred_prototype_obj.butler_facet_")["result"]["slots"]
    before = facet()
    send(grounded, "alfred_prototype_obj.pillars.butler_facet_", "setSlot_value_", "intent", "Say only what is missing.")
    while method()["version"]["value"] == 1:
        time.sleep(0.01)
    assert facet() == "Say only what is missing." != before and method()["author"]["value"].startswith("cycle ")
    create(grounded, "alfred_prototype_obj", "butler_facet_",
           "def butler_facet_(self, sub_query, evidence=()):\n    return {'prompt': 'mine'}\n")
    send(grounded, "alfred_prototype_obj.pillars.butler_facet_", "setSlot_value_", "intent", before)
    assert facet() == "mine"


# A mission's brief, and adapters


def test_a_brief_takes_an_intent(grounded, priced):
    brief = {"type": "unhandled_message", "selector": "sum_all", "intent": "the sum of the prices"}
    cycle = grounded.call("initiate_cognitive_cycle", mission_brief=brief, target_oid=priced, wait=True)["result"]["cycle"]
    assert grounded.call("inspect", target=cycle)["result"]["slots"]["mission_brief"]["value"]["intent"] == brief["intent"]


def test_a_brief_without_intent_stands_for_the_body_that_it_was():
    """Keys of older requests, whose briefs had no intent, are the same body still."""
    def body(**brief):
        return batos.body_digest(batos.parse_command({"command": "initiate_cognitive_cycle", "mission_brief": {
            "type": "direct_synthesis", "selector": "answer_", "args": ["why"], **brief}}))
    assert body() == "3531fcbbaa7da39f1f5b3a8d912e07a5"
    assert body(intent="so that") != body()


def test_a_tree_of_numbers_is_walked_by_number(grounded):
    with pytest.raises(batos.MessageNotUnderstood):
        send(grounded, "genesis_obj", "hum_", generate=False)
    assert grounded.call("inspect", target=f"message_log.{len(logged(grounded)) - 1}")["result"]["value"]["selector"] == "hum_"
    with pytest.raises(batos.NotFound):
        grounded.call("inspect", target="message_log.99999999999999999999")


# Images that lack something of this


def test_an_older_image_gets_what_it_lacks_and_loses_what_was_made_up(tmp_path):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(image)
    junk = "def infer_(self, value):\n    return self.description == value\n"
    with batos.writing(image) as root:
        for selector in ("infer_", "reflectOn_", "improveCognition"):
            del root["pLLM_obj"].__dict__[selector]
            root["pLLM_obj"]._p_changed = True
        batos._install_method(root["genesis_obj"], "infer_", junk, author="cycle 0x99 (local)")
        batos._install_method(root["pLLM_obj"], "reflectOn_", junk.replace("infer_", "reflectOn_"), author="cycle 0x99 (local)")
        batos._install_method(root["robin_prototype_obj"], "infer_", junk, author="local")
    assert set(batos.lacks(image)) >= {"pLLM_obj.infer_", "pLLM_obj.improveCognition"} and len(batos.lacks(image)) == 4
    batos.genesis(image)
    assert batos.lacks(image) == []
    with batos.reading(image) as root:
        for name in ("genesis_obj", "brick_prototype_obj"):
            assert batos.primitive_for(root[name], "infer_").name == "infer_"
        assert batos.primitive_for(root["pLLM_obj"], "reflectOn_").name == "reflectOn_"
        assert batos.primitive_for(root["robin_prototype_obj"], "infer_") is batos._STORED_METHOD      # a person wrote that
    image.close()
