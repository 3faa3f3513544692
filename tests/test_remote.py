"""A core by URL: tasks as JSON, personas by model name, and a server that is slow, wrong or away. The server is a process."""

import contextlib
import itertools
import json
import pathlib
import re
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from habits import ANSWERED, ANSWERED_TASKS, CHANGING, NOBODY, TOLD, UNLISTED
from hypothesis import given
from hypothesis import strategies as st

import batos
from batos import CORE_SAMPLES, CORE_TASKS, CoreRequest

ROOT = pathlib.Path(__file__).resolve().parents[1]
WAIT_S = 300


class Served:
    """The server's process."""

    def __init__(self):
        self.port = 0
        self.start()

    def start(self):
        self.process = subprocess.Popen([sys.executable, str(ROOT / "tests" / "served.py"), str(self.port)],
                                        stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def behave(self, mode, times=1):
        self._post("/behave", {"mode": mode, "times": times})

    def asked(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/asked") as reply:
            return json.load(reply)

    def _post(self, path, body):
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(),
                                                      {"Content-Type": "application/json"})).close()


@pytest.fixture
def served():
    one = Served()
    yield one
    one.stop()


@pytest.fixture
def core(served):
    one = batos.RemoteCore(served.url).start()
    one.wait_ready(WAIT_S)
    yield one
    one.close()


def every_task(**fields):
    return [CoreRequest(task, CORE_SAMPLES[task], **fields) for task in CORE_TASKS]


def assert_sound(answers):
    plan, facet, weave, method, tests, summary = (answer.value for answer in answers)
    assert plan["strategy"] in dict(CORE_SAMPLES["plan"]["offered"]) and 2 <= len(plan["relevant_pillars"]) <= 4
    assert set(plan["relevant_pillars"]) <= set(batos.archetype_pillars(plan["strategy"]))
    assert all(span in CORE_SAMPLES["plan"]["mission"] for span in plan["sub_queries"].values())
    voice, frame = batos.VOICES["BRICK"], facet["frame"]
    opening = next(text for text in voice["openings"] if frame.startswith(text))
    link = next(text for text in voice["links"] if frame.endswith(text))
    assert frame[len(opening):-len(link)] in CORE_SAMPLES["facet"]["sub_query"]
    assert facet["quotes"] == [1] and weave["order"] == [1] and weave["close"] in batos.VOICES["BRICK"]["closings"]
    assert method["idiom"] == batos.FREE and "self.price" in method["source"] and summary == {"sentence": 1}
    assert tests["result"] in batos.RESULT_KINDS and isinstance(tests["holds"], list)


def test_every_task_is_answered_as_the_grammar_would_have_it(core, served):
    assert core.state == "ready" and core.model == "big" and core.writes
    assert_sound(core.infer(every_task()))
    bodies = served.asked()
    assert {body["response_format"]["type"] for body in bodies} == {"json_schema"} and len(bodies) == 6
    assert all(body["messages"][0]["role"] == "system" for body in bodies)


def test_a_persona_that_is_a_model_of_the_server_is_asked_by_its_name(core, served):
    assert core.expert("ROBIN") == "ROBIN" and core.expert("BRICK") == core.expert(None) == batos.BASE
    core.infer([CoreRequest("facet", CORE_SAMPLES["facet"], adapter="ROBIN"), CoreRequest("facet", CORE_SAMPLES["facet"])])
    assert sorted(body["model"] for body in served.asked()) == ["ROBIN", "big"]
    heard = []
    assert core.infer_("Who is there?", persona="ROBIN", on_text=heard.append) == "ROBIN heard: Who is there?" == "".join(heard)


def test_a_server_without_schemas_is_asked_in_other_ways(core, served):
    served.behave("400", 2)
    assert_sound(core.infer(every_task()[:1]) + core.infer(every_task()[1:]))
    forms = [(body.get("response_format") or {}).get("type") for body in served.asked()]
    assert forms[:3] == ["json_schema", "json_object", None] and set(forms[3:]) == {None}


def test_one_wrong_answer_is_asked_again_and_two_are_an_error(core, served):
    served.behave("garbage", 1)
    assert core.infer(every_task()[:1])[0].value["strategy"]
    served.behave("garbage", 2)
    with pytest.raises(batos.CoreFailed, match="asked twice, answers with what is no JSON"):
        core.infer(every_task()[:1])


@pytest.mark.parametrize("mode", ["500", "drop"])
def test_a_server_that_fails_for_a_while_is_tried_again(core, served, mode):
    served.behave(mode, 2)
    assert_sound(core.infer(every_task()))


def test_a_deadline_and_a_cancel_do_not_wait_for_the_server(core, served):
    served.behave("hang", 2)
    started_s = time.monotonic()
    with pytest.raises(batos.DeadlineExceeded, match="allow more time"):
        core.infer(every_task(deadline_s=0.4)[:1])
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    with pytest.raises(batos.Cancelled):
        core.infer(every_task(cancel=cancel)[:1])
    assert time.monotonic() - started_s < 20             # the server sleeps for 30
    assert_sound(core.infer(every_task()))


def test_a_server_that_is_started_anew_is_found_again(core, served):
    served.stop()
    threading.Timer(1.0, served.start).start()
    assert_sound(core.infer(every_task()))
    served.stop()
    with pytest.raises(batos.DeadlineExceeded):
        core.infer(every_task(deadline_s=1.0))


def test_who_comes_before_the_server_waits_for_it(served):
    served.stop()
    one = batos.RemoteCore(served.url).start()
    try:
        with pytest.raises(batos.DeadlineExceeded, match="asked again"):
            one.wait_ready(0.6)
        with pytest.raises(batos.CoreOffline):
            one.infer(every_task())
        served.start()
        one.wait_ready(WAIT_S)
        assert one.health()["state"] == "ready" and one.health()["model"] == "big"
    finally:
        one.close()
    assert one.state == "offline"


def test_a_wrong_key_is_told_and_no_password_is_shown(served):
    one = batos.RemoteCore(served.url, key="wrong").start()
    with pytest.raises(batos.CoreOffline, match="BATOS_CORE_KEY"):
        one.wait_ready(WAIT_S)
    assert one.state == "away" and one.health()["breaker"]["state"] == "open"
    one.close()
    one = batos.RemoteCore(served.url.replace("//", "//user:hush@")).start()
    one.wait_ready(WAIT_S)
    assert "127.0.0.1" in one.progress and "hush" not in json.dumps(one.health()) + one.progress
    one.close()


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=30),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
                        st.sampled_from(["strategy", "looks", "quotes", "order", "opening", "topic", "link", "closing", "idiom",
                                         "code", "sentence", "pillar", "words"]), inner, max_size=6), max_leaves=20)


@given(st.sampled_from(list(CORE_TASKS)), st.dictionaries(st.sampled_from(
    ["strategy", "looks", "quotes", "order", "opening", "topic", "link", "closing", "idiom", "code", "sentence"]), JSON))
def test_whatever_a_model_says_becomes_a_sound_answer_or_an_error_that_is_caught(task, told):
    prompt = CORE_TASKS[task].prompt(CORE_SAMPLES[task])[0]
    lines = prompt.split("\n")[1:-2]
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        value = batos.FREE_VALUES.get(task, CORE_TASKS[task].value)
        value(batos.JSON_FORMS[task][1](told, lines), CORE_SAMPLES[task])


@pytest.mark.slow
def test_a_daemon_answers_by_a_server(daemon, served):
    one = daemon(core=served.url)
    with batos.Client(one.endpoint) as client:
        client.call("index_document", doc_id="vesper.md", text=(ROOT / "tests" / "data" / "vesper.md").read_text())
        brief = {"type": "direct_synthesis", "selector": "answer_", "args": ["How long does the mast run in full darkness?"]}
        report = client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True, timeout_s=WAIT_S)["result"]
        assert report["state"] == "COMPLETE" and "twelve days" in report["answer"]
        assert client.call("health")["result"]["core"]["model"] == "big"
        systems = [body["messages"][0]["content"] for body in served.asked()]
        assert any("You speak as" in text for text in systems)
    assert one.stop() == 0


# Bad habits of servers, see tests/habits.py


@pytest.fixture
def hasty(monkeypatch):
    """Tries of a server follow at once."""
    monkeypatch.setattr(batos, "_REMOTE_TRY_S", (0.0, 0.0))
    monkeypatch.setattr(batos, "_REMOTE_START_S", 0.0)


@contextlib.contextmanager
def core_at(url, **options):
    one = batos.RemoteCore(url, **options).start()
    try:
        one.settled(WAIT_S)
        yield one
    finally:
        one.close()


PLAN = CoreRequest("plan", CORE_SAMPLES["plan"])


def heard_from(core):
    """Return what the core answers to a task, or the sentence that tells why it does not."""
    try:
        return core.infer([PLAN])[0].value
    except batos.BatosError as error:
        return str(error)


@pytest.mark.parametrize("habit", ANSWERED | ANSWERED_TASKS)
def test_a_habit_that_leaves_an_answer_is_read_past(habits, hasty, habit):
    with core_at(habits.url(habit)) as core:
        value = core.infer([PLAN])[0].value
        assert len(value["relevant_pillars"]) >= 2 and value["strategy"] in dict(CORE_SAMPLES["plan"]["offered"])
        assert core.breaker.state == "closed"
        numbers = core.infer([CoreRequest("weave", CORE_SAMPLES["weave"]), CoreRequest("summary", CORE_SAMPLES["summary"])])
        assert [answer.value.get("order") or answer.value["sentence"] for answer in numbers] == [[1], 1]
        habits.asked.clear()                             # what goes wrong once does so again
        if habit in ANSWERED:
            text = core.infer_("Say three words.", system_prompt="Be short.")
            assert "Three words here." in text and text.encode()


@pytest.mark.parametrize("habit", TOLD)
def test_a_habit_that_leaves_no_answer_is_told_by_name(habits, hasty, habit):
    limit_s = 0.3 if "0.3 s" in TOLD[habit][1] else WAIT_S
    with core_at(habits.url(habit), key="s3cret", ask_s=limit_s) as core:
        told = heard_from(core)
        assert re.search(TOLD[habit][1], told) and "s3cret" not in told + core.progress
        with pytest.raises(batos.BatosError):
            core.infer_("Say three words.")


@pytest.mark.parametrize("habit", UNLISTED)
def test_a_server_that_tells_of_no_models_is_told_by_name(habits, hasty, monkeypatch, habit):
    monkeypatch.setattr(batos, "_REMOTE_CONNECT_S", 0.2)
    monkeypatch.setattr(batos, "_READ_BEHIND_S", 0.1)
    with core_at(habits.url(habit)) as core:
        assert core.state == "away" and re.search(UNLISTED[habit][1], core.progress) and "tried again in" in heard_from(core)


def test_a_wish_to_be_left_alone_is_met_once(habits, hasty):
    with core_at(habits.url("429 again")) as core:
        heard_from(core)
    assert len(questions_of(habits.bodies("429 again"))) == 2


@pytest.mark.parametrize("url, told", NOBODY.values(), ids=NOBODY)
def test_who_is_not_there_is_told_by_name(hasty, url, told):
    with core_at(url) as core:
        assert core.state == "away" and re.search(told, heard_from(core)) and "tried again in" in heard_from(core)


def test_what_a_server_does_not_take_is_not_asked_for_again(habits, hasty):
    with core_at(habits.url("400 for any form")) as core:
        core.infer([PLAN])
        before = len(habits.bodies("400 for any form"))
        core.infer([PLAN])
    later = habits.bodies("400 for any form")[before:]
    assert len(later) == 1 and "response_format" not in later[0]
    with core_at(habits.url("400 for max_tokens")) as core:
        core.infer([PLAN])
    last = habits.bodies("400 for max_tokens")[-1]
    assert "max_completion_tokens" in last and last["response_format"]["type"] == "json_schema"


def test_a_request_that_is_too_long_for_a_server_costs_no_later_one_its_schema(habits, hasty):
    with core_at(habits.url("400")) as core:
        heard_from(core)
        heard_from(core)
        assert core.state == "ready"                     # it is this request that it does not take
    forms = [body.get("response_format", {}).get("type") for body in habits.bodies("400")]
    assert forms[-3:] == ["json_schema", "json_object", None]


@pytest.mark.parametrize("status", [404, 500])           # `transformers serve` says 500 where nothing was ever downloaded
def test_a_server_without_a_list_of_models_is_taken_at_its_word(monkeypatch, status):
    fault = batos.status_fault(status, {}, "no such page")

    def refuse(core):
        raise fault
    monkeypatch.setattr(batos.CoreServer, "_listed", refuse)
    with core_at("http://127.0.0.1:1/v1", model="mine") as core:
        assert core.state == "ready" and core.model == "mine"


def test_an_address_that_is_not_whole_is_told(habits, hasty):
    with core_at(habits.url("good").removesuffix("/v1")) as core:
        assert core.state == "away" and "answers 404" in core.progress and "ends in /v1" in core.progress


def test_a_server_that_comes_back_with_another_model_is_asked_for_that(habits, hasty, monkeypatch):
    monkeypatch.setattr(batos, "_BREAKER_S", (0.01, 0.01))
    offered = [["small"]]
    monkeypatch.setattr(batos.CoreServer, "_listed", lambda core: batos.Offered(offered[0], offered[0], {}, {}))
    with core_at(habits.url(CHANGING), ask_s=0.3) as core:
        assert core.model == "small" and "had no answer" in heard_from(core)
        offered[0] = ["large", "ROBIN"]
        habits.change("good")
        while core.state != "ready":
            time.sleep(0.02)
        assert core.model == "large" and core.expert("ROBIN") == "ROBIN"
        heard_from(core)
    assert habits.bodies(CHANGING)[-1]["model"] == "large"


def test_a_breaker_opens_for_longer_each_time_and_an_answer_forgets_it():
    now_s = [100.0]
    breaker = batos.Breaker(lambda: now_s[0])
    first_s, most_s = batos._BREAKER_S
    pauses = []
    for _ in range(8):
        assert breaker.open("it hangs") == (not pauses) and not breaker.open("so do others that were under way")
        pauses.append(breaker.left_s())
        assert not breaker.half_open() and f"it hangs; it is tried again in {pauses[-1]:.0f} s" == breaker.told()
        now_s[0] += pauses[-1]
        assert breaker.half_open() and not breaker.half_open() and breaker.state == "half-open"
    assert pauses[:3] == [first_s, 2 * first_s, 4 * first_s] and pauses[-1] == most_s
    breaker.close()
    assert breaker.state == "closed" and breaker.health()["opened"] == 8
    breaker.open("again")
    assert breaker.left_s() == most_s                    # a probe alone is no proof
    breaker.close(answered=breaker.opened - 1)
    assert breaker.state == "open"                       # what was under way before
    now_s[0] += most_s
    assert breaker.half_open()
    breaker.close()
    breaker.open("once more", after_s=90.0)
    assert breaker.left_s() == 90.0


def questions_of(bodies):
    """Return those that are no probes."""
    return [body for body in bodies if body["max_tokens"] > batos.LEAST_ANSWER_TOKENS]


def test_a_server_that_hangs_is_waited_for_once_until_a_probe_is_answered(habits, hasty, monkeypatch):
    monkeypatch.setattr(batos, "_BREAKER_S", (0.05, 0.1))
    with core_at(habits.url(CHANGING), ask_s=0.3) as core:
        assert "had no answer within 0.3 s" in heard_from(core)
        assert core.state == "away" and "tried again" in heard_from(core)
        while core.health()["breaker"]["opened"] < 2:    # the probe hangs too
            time.sleep(0.02)
        assert "tried again" in heard_from(core) and len(questions_of(habits.bodies(CHANGING))) == 1
        habits.change("good")
        while core.state != "ready":
            time.sleep(0.02)
        assert isinstance(heard_from(core), dict)
        assert core.health()["breaker"]["why"] is None and core.health()["error"] is None


@given(st.sampled_from(["comments and CRLF", "split events", "good", "CR"]), st.integers(1, 40))
def test_a_stream_may_be_cut_into_pieces_anywhere(habit, size):
    data, body = [], {"messages": [{"content": f"schema:\n{json.dumps({'type': 'integer'})}"}]}
    ANSWERED[habit](data.append, body, 0)
    stream = b"".join(data).partition(b"\r\n\r\n")[2]
    reader, heard = batos.ReplyReader(), batos.Heard()
    pieces = [stream[at:at + size] for at in range(0, len(stream), size)]
    events = [event for piece in pieces for event in reader.take(piece)] + reader.finish()
    for event in events:
        heard.hear(event)
    assert heard.of("text") == "1" and reader.ended


KEYS = ["choices", "delta", "message", "content", "error", "object", "text", "type", "tool_calls", "function", "arguments",
        "reasoning", "refusal", "finish_reason", "strategy"]
REPLIES = st.recursive(st.none() | st.integers() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3) |
                       st.dictionaries(st.sampled_from(KEYS), inner, max_size=4), max_leaves=15)
REPLY_LINES = st.binary(max_size=20) | REPLIES.map(lambda told: f"data: {json.dumps(told)}\n".encode()) | st.sampled_from(
    [b"", b"data: [DONE]", b": x", b"event: error", b"<html>", b"data:", b"\r"])


def judged(reply):
    """Return what a reply, in pieces, comes to: the JSON of a task, or the fault that is told of it."""
    reader, heard = batos.ReplyReader(), batos.Heard()
    try:
        events = [event for piece in reply for event in reader.take(piece)] + reader.finish()
        for event in events:
            heard.hear(event)
        return heard.task({"strategy"})
    except batos.ServerFault as fault:
        return fault.told


@given(st.lists(REPLY_LINES, max_size=6), st.integers(1, 30))
def test_whatever_bytes_a_server_sends_come_to_an_answer_or_a_fault(lines, size):
    reply = b"\n".join(lines)
    assert judged([reply[at:at + size] for at in range(0, len(reply), size)])


@pytest.mark.parametrize("reply", [
    b'{"choices": [{"message": {"content": ' + b"[" * 900 + b"]" * 900 + b"}}]}", b'{"error": ' * 900 + b"1" + b"}" * 900,
    b"[" * 900 + b"]" * 900, b"data: x\n" * 200_000, b"<" * 2_000_000, b'{"choices": [{"text": "' + b"{" * 900_000 + b'"}]}',
], ids=["content", "error", "list", "lines", "tags", "braces"])
def test_a_reply_that_would_cost_much_to_read_is_told_at_once(reply):
    assert isinstance(judged([reply]), str)


def test_thoughts_are_left_out_and_nothing_else():
    for text, left in (("<think>a</think>b", "b"), ("a</think>b", "b"), ("b<think>a", "b"), ("a <b> c", "a <b> c"),
                       ("<THINK>a<think>b</think>c", "c"), ("b<reasoning>a</reasoning>c", "bc")):
        assert batos.without_thoughts(text) == left


@pytest.mark.slow
def test_a_daemon_answers_with_passages_while_its_server_hangs(daemon, habits):
    one = daemon("--core-deadline-s", "1", core=habits.url(CHANGING))
    with batos.Client(one.endpoint) as client:
        client.call("index_document", doc_id="vesper.md", text=(ROOT / "tests" / "data" / "vesper.md").read_text())

        def ask(key):
            brief = {"type": "direct_synthesis", "selector": "answer_", "args": ["How long does the mast run in full darkness?"]}
            return client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True, timeout_s=WAIT_S,
                               idempotency_key=key)["result"]
        hung, again, spared = ask("a" * 8), ask("a" * 8), ask("b" * 8)
        assert hung == again and hung["why_no_words"]["code"] == "DeadlineExceeded"
        assert spared["why_no_words"]["code"] == "CoreOffline"
        for report in (hung, spared):
            assert report["state"] == "COMPLETE" and report["words"] is False and "twelve days" in report["answer"]
        assert "tried again in" in spared["why_no_words"]["details"]
        with pytest.raises(batos.CoreOffline, match="cannot be asked now: .* had no answer within 1 s"):
            client.call("send_message", target="pLLM_obj", selector="infer_", args=["Who is there?"])
        health = client.call("health")["result"]["core"]
        assert health["state"] == "away" and health["breaker"]["state"] in ("open", "half-open")
        habits.change("good")
        while client.call("health")["result"]["core"]["state"] != "ready":
            time.sleep(0.1)
        falsehoods = ("The mast runs for thirty days in full darkness.", "In full darkness the mast never runs.")
        habits.say(f"In full darkness the mast runs for 12 days [2]. {falsehoods[0]} {falsehoods[1]} ")
        with batos.Client(one.endpoint) as other:
            events = other.events(*batos.TOPICS)
            next(events)
            report = ask("c" * 8)
            heard = list(itertools.takewhile(lambda event: event, events))
        assert report["words"] is True and report["answer"].endswith("\nIn full darkness the mast runs for 12 days [1].")
        tokens = [event["text"] for event in heard if event["event"] == "tokens"]
        assert " ".join(tokens).split() == report["answer"].split() and ask("c" * 8) == report
    assert one.stop() == 0
    told = json.dumps([heard, report], default=str).encode()
    stored = b"".join([path.read_bytes() for path in one.folder.rglob("*") if path.is_file()])
    assert not any(one_false[4:-1].encode() in told + stored for one_false in falsehoods)
