"""A core by URL: tasks as JSON, personas by model name, and a server that is slow, wrong or away. The server is a process."""

import contextlib
import json
import pathlib
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st

import batos
from batos import CORE_SAMPLES, CORE_TASKS, CoreRequest

ROOT = pathlib.Path(__file__).resolve().parents[1]
WAIT_S = 60


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
    with pytest.raises(batos.CoreFailed, match="twice with what is no JSON"):
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
    assert one.state == "failed"
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
