"""Several servers that are the core: their order, their room, what one leaves undone, what they cost, whom they know."""

import contextlib
import http.server
import json
import socket
import threading
import time
import types

import habits
import pytest
import served
from habits import CHANGING, cut_up, head, lines_of

import batos
from batos import CORE_SAMPLES, CoreRequest

WAIT_S = 300
PLAN = CoreRequest("plan", CORE_SAMPLES["plan"])


@pytest.fixture
def bad(habits, monkeypatch):
    """The server with all habits, as if it had not been asked yet; tries follow at once."""
    monkeypatch.setattr(batos, "_REMOTE_TRY_S", (0.0, 0.0))
    monkeypatch.setattr(batos, "_REMOTE_START_S", 0.0)
    return habits


@contextlib.contextmanager
def core_of(*urls, **options):
    core = batos.RemoteCore(urls, **options).start()
    try:
        for server in core.servers:
            assert server.settled.wait(WAIT_S)
        yield core
    finally:
        core.close()


def until(holds):
    while not holds():
        time.sleep(0.01)


def nobody():
    """Return an address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def told_of(core):
    return {one["url"]: one for one in core.health()["servers"]}


@pytest.mark.parametrize("habit", ["reset", "500", "401", "broken off", "html", "429 for an hour", "only thinks", "400"])
def test_what_one_server_leaves_undone_the_next_does(bad, habit):
    urls = bad.url(habit), bad.url("good")
    with core_of(*urls, ask_s=WAIT_S) as core:
        assert core.infer([PLAN])[0].value["strategy"] and core.state == "ready"
        assert core.infer_("Say three words.") == "Three words here."
        first, second = (told_of(core)[url] for url in urls)
        assert second["errors"] == 0 and second["calls"] == 2 and first["calls"] >= 1


def test_one_that_failed_just_now_is_asked_last(bad):
    with core_of(bad.url("reset"), bad.url("good")) as core:
        for _ in range(3):
            core.infer([PLAN])
        assert len(bad.bodies("reset")) == 1 and len(bad.bodies("good")) == 3


def test_all_fail_and_the_last_one_s_fault_is_told(bad):
    with core_of(bad.url("reset"), bad.url("html")) as core:
        with pytest.raises(batos.CoreFailed, match="page of HTML"):
            core.infer([PLAN])


def test_one_that_says_nothing_is_given_up_where_there_are_others(bad, monkeypatch):
    monkeypatch.setattr(batos, "_SILENT_SHARE", 0.005)
    with core_of(bad.url(CHANGING), bad.url("good")) as core:
        assert core.infer([CoreRequest("plan", CORE_SAMPLES["plan"], deadline_s=WAIT_S)])[0].value["strategy"]


def test_words_that_broke_off_are_begun_again_elsewhere(bad):
    told = []
    with core_of(bad.url("broken off"), bad.url("good")) as core:
        assert core.infer_("Say three words.", on_text=told.append) == "Three words here."
    again = told.index(batos.BEGUN_AGAIN)
    assert told[:again] == ["Three w"] and "".join(told[again:]) == "Three words here."


def test_what_broke_off_is_no_part_of_what_a_mission_tells(bad):
    """The torn half of a sentence would make the next one wrong, which is then told by nobody."""
    heard = []
    words = types.SimpleNamespace(take=lambda text, is_whole: heard.append(text) or [], is_enough=False)
    lane = types.SimpleNamespace(settings=types.SimpleNamespace(core_deadline_s=WAIT_S), _check=lambda mission: None,
                                 _tell_written=lambda mission, told: None)
    mission = types.SimpleNamespace(cancel=threading.Event(), deadline_at_s=time.monotonic() + WAIT_S)
    with core_of(bad.url("broken off"), bad.url("good")) as lane.core:
        batos.MissionLane._write(lane, mission, words, "BRICK", None, "Answer a question from the passages.")
    assert len(heard) > 1 and heard[-1] == habits.TURNED and all(habits.TURNED.startswith(text) for text in heard)


# An order, and room


class Gate:
    """A reply that waits until it is let through, and counts how many wait side by side."""

    def __init__(self):
        self.opened, self._guard = threading.Event(), threading.Lock()
        self.inside = self.most = self.asked = 0

    def __call__(self, out, body, times):
        with self._guard:
            self.inside, self.asked = self.inside + 1, self.asked + 1
            self.most = max(self.most, self.inside)
        self.opened.wait(WAIT_S)
        with self._guard:
            self.inside -= 1
        habits.GOOD(out, body, times)


def gated(bad, habit):
    gate = Gate()
    bad.replies[bad._numbers[habit]] = gate
    return gate


@pytest.fixture
def gates(bad):
    kept = list(bad.replies)
    yield [gated(bad, CHANGING), gated(bad, "good")]
    bad.replies[:] = kept


def asked_aside(core, rows):
    """Ask rows in a thread. Returns it, and where its answers will be."""
    answers = []
    thread = threading.Thread(target=lambda: answers.extend(core.infer([PLAN] * rows)))
    thread.start()
    return thread, answers


def test_a_server_is_asked_so_many_rows_at_a_time_some_wait_and_more_are_busy(bad, gates):
    gate = gates[0]
    with core_of(bad.url(CHANGING), parallel=2, queued_most=3, ask_s=WAIT_S) as core:
        thread, answers = asked_aside(core, 5)
        until(lambda: gate.inside == 2 and core.health()["queued"] == 3)
        with pytest.raises(batos.Busy, match="core_parallel, core_queue"):
            core.infer_("One more?")
        gate.opened.set()
        thread.join()
        assert len(answers) == 5 and gate.most == 2 and core.health()["queued"] == 0
        assert core.infer_("One more?") == "Three words here."


def test_rows_that_find_no_room_at_the_first_go_to_the_next(bad, gates):
    first, second = gates
    with core_of(bad.url(CHANGING), bad.url("good"), parallel=2, ask_s=WAIT_S) as core:
        thread, answers = asked_aside(core, 5)
        until(lambda: first.inside == second.inside == 2)
        assert core.health()["queued"] == 1
        for gate in gates:
            gate.opened.set()
        thread.join()
        assert len(answers) == 5 and first.most == second.most == 2


# One that is off


def test_one_that_is_off_costs_nobody_anything_and_is_told_in_health_and_top(bad):
    off, told = nobody(), []
    with core_of(off, bad.url("good"), tell=told.append) as core:
        assert core.state == "ready" and off not in core.progress and core.infer([PLAN])[0].value
        assert told == [core.progress]
        health = core.health()
        assert health["state"] == "ready" and health["error"] is None and told_of(core)[off]["state"] == "away"
        assert "refused" in told_of(core)[off]["why"] and told_of(core)[off]["calls"] == 0
    shown = batos._told_servers(health)
    assert "1 of 2 servers" in shown and off in shown and "refused" in shown and batos._told_servers({"servers": [{}]}) == ""


def test_one_that_is_switched_off_is_found_out_while_nobody_asks_and_found_again(bad, monkeypatch):
    monkeypatch.setattr(batos, "_LOOKED_AT_S", 0.02)
    monkeypatch.setattr(batos, "_REMOTE_TRY_S", (0.25,))
    monkeypatch.setattr(batos, "_BREAKER_S", (0.05, 0.1))
    with core_of(bad.url("good"), bad.url("thinks")) as core:
        server, listed = core.servers[0], batos.CoreServer._listed

        def refuse(one):
            raise batos.ServerFault("is off", passing=True, away=True)
        server._listed = types.MethodType(refuse, server)
        until(lambda: server.state == "away")
        assert core.state == "ready" and core.infer([PLAN]) and bad.bodies("good") == []
        server._listed = types.MethodType(listed, server)
        until(lambda: server.state == "ready")
        assert core.infer([PLAN]) and bad.bodies("good")[-1]["max_tokens"] > batos.LEAST_ANSWER_TOKENS


def test_a_breaker_opens_behind_three_failures_in_thirty_seconds():
    now_s = [100.0]
    breaker = batos.Breaker(lambda: now_s[0])
    for wait_s in (16.0, 16.0, 16.0):                    # never three in thirty seconds
        assert not breaker.fail("it breaks off") and breaker.state == "closed" and breaker.is_suspect
        now_s[0] += wait_s
    breaker.close(answered=0)
    assert not breaker.is_suspect
    now_s[0] += 100.0
    for _ in range(9):                                   # side by side: one blow
        assert not breaker.fail("it breaks off")
    now_s[0] += 1.0
    assert not breaker.fail("it breaks off")
    now_s[0] += 1.0
    assert breaker.fail("it breaks off") and breaker.state == "open" and breaker.left_s() == 10.0
    now_s[0] += 10.0
    assert breaker.half_open() and breaker.open("it breaks off") is False and breaker.left_s() == 20.0


def test_an_answer_that_was_under_way_when_the_breaker_opened_does_not_close_it():
    breaker = batos.Breaker()
    began = breaker.opened
    breaker.open("it hangs")
    breaker.close(answered=began)
    assert breaker.state == "open"
    breaker.close(answered=breaker.opened)
    assert breaker.state == "closed"


# What it costs


def counting(asked, written):
    usage = {"choices": [], "usage": {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": None}}
    return lambda out, body, times: out(head() + lines_of([*cut_up(habits.answer(body)), usage, "[DONE]"]))


def test_tokens_are_counted_as_the_server_does_and_cost_what_was_said(bad, gates):
    bad.replies[bad._numbers[CHANGING]] = counting(1000, 200)
    with core_of(bad.url(CHANGING), bad.url("thinks"), price="2/5 0/0") as core:
        core.infer([PLAN])
        core.infer_("Say three words.")
        told, other = core.health()["servers"]
        assert (told["calls"], told["errors"], told["tokens_in"], told["tokens_out"]) == (2, 0, 2000, 400)
        assert told["cost"] == 0.006 and told["calls_without_count"] == 0 and 0 <= told["p50_s"] <= told["p95_s"]
        assert other["cost"] == 0 and other["p95_s"] is None and core.health()["tokens"] == 400


def test_a_server_that_counts_nothing_is_guessed_at(bad):
    with core_of(bad.url("good")) as core:
        core.infer_("Say three words.")
        told, = core.health()["servers"]
        assert told["tokens_in"] == 4 and told["tokens_out"] == 3 and told["calls_without_count"] == 1 and "cost" not in told


def test_a_server_that_takes_no_wish_to_count_is_asked_without(bad, gates):
    bad.replies[bad._numbers[CHANGING]] = habits.refuses("stream_options")
    with core_of(bad.url(CHANGING)) as core:
        core.infer([PLAN])
        core.infer([PLAN])
    assert ["stream_options" in body for body in bad.bodies(CHANGING)] == [True, False, False]


@pytest.mark.parametrize("text, told", [("1/2 3/4 5/6", "3 prices for 2 servers"), ("cheap", "READ/WRITTEN"), ("1/2/3", "READ"),
                                        ("-1/2", "0 or more"), ("nan/2", "0 or more")])
def test_a_price_that_is_none_is_told(text, told):
    with pytest.raises(batos.ConfigError, match=told):
        batos.RemoteCore(["http://a/v1", "http://b/v1"], price=text)


def test_keys_go_to_whom_they_belong():
    def keys(text):
        return [one.link._key for one in batos.RemoteCore(["http://a/v1", "http://b/v1"], key=text).servers]
    assert keys("") == ["", ""] and keys("k") == ["k", "k"] and keys("- k") == ["", "k"]
    with pytest.raises(batos.ConfigError, match="3 keys for 2 servers"):
        keys("a b c")


def test_which_servers_are_the_core():
    def named(core, urls=""):
        return batos._core_urls(types.SimpleNamespace(core=core, core_urls=urls))
    assert named("http://a/v1") == ["http://a/v1"] and named("auto", " http://b/v1  http://c/v1") == ["http://b/v1", "http://c/v1"]
    assert named("http://a/v1", "http://b/v1 http://a/v1") == ["http://a/v1", "http://b/v1"]
    assert named("none", "http://b/v1") == named("smollm2", "http://b/v1") == named("auto") == []


# Whom they know: doubles of what vLLM and llama.cpp tell, as their manuals show it

VLLM = {"/v1/models": {"object": "list", "data": [
    {"id": "ROBIN", "object": "model", "owned_by": "vllm", "root": "/lora/r", "parent": "meta/Llama", "max_model_len": None},
    {"id": "meta/Llama", "object": "model", "owned_by": "vllm", "root": "meta", "parent": None, "max_model_len": 8192}]}}
LLAMA_CPP = {
    "/v1/models": {"object": "list", "data": [{"id": "llama.gguf", "object": "model", "owned_by": "llamacpp",
                                               "meta": {"n_ctx": 2048, "n_ctx_train": 8192}}]},
    "/lora-adapters": [{"id": 0, "path": "my/robin.gguf", "scale": 1.0}, {"id": 1, "path": "brick-lora-f16.gguf", "scale": 1.0},
                       {"id": 2, "path": "style.gguf", "scale": 0.5}]}


@contextlib.contextmanager
def double(documents, kind=served.Handler):
    """A server that tells of itself as `documents` say. Yields its address and what it was asked."""
    class Handler(kind):
        def do_GET(self):
            found = documents.get(self.path)
            self.reply(200 if found else 404, found or {})

    served.ASKED.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", served.ASKED
    finally:
        server.shutdown()
        server.server_close()


def test_a_persona_is_a_lora_module_of_vllm_and_never_the_base():
    with double(VLLM) as (url, asked), core_of(url) as core:
        assert core.model == "meta/Llama" and core.context_tokens == 8192
        assert core.expert("ROBIN") == "ROBIN" and core.expert("BRICK") == batos.BASE
        core.infer_("Who?", persona="ROBIN")
        core.infer_("Who?", persona="BRICK")
        assert [body["model"] for body in asked] == ["ROBIN", "meta/Llama"] and not any("lora" in body for body in asked)


class Endless(served.Handler):
    """A model that says words until its limit, of a prompt of 300 tokens."""

    def stream(self, text):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.event({"choices": [{"delta": {"content": "on and on"}, "finish_reason": "length"}]})
        self.event({"choices": [], "usage": {"prompt_tokens": 300, "completion_tokens": 3}})
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")


@pytest.mark.parametrize("length", [1000, 100_000])
def test_no_longer_answer_is_asked_for_than_a_server_has_room_for(length):
    # vLLM answers 400 else: "max_tokens=3200 cannot be greater than max_model_len=2048"
    models = {"object": "list", "data": [{"id": "small", "max_model_len": length}]}
    with double({"/v1/models": models}, Endless) as (url, asked), core_of(url) as core:
        with pytest.raises(batos.CoreFailed, match="limit of tokens"):
            core.infer([PLAN])
    first, second = [body["max_tokens"] for body in asked]
    chars = sum(len(turn["content"]) for turn in asked[0]["messages"])
    is_small = length == 1000
    assert first + chars / 2.5 <= length and second == (length - 300 if is_small else 2 * first)


def test_a_persona_is_an_adapter_of_llama_cpp_and_others_stay_as_they_are():
    with double(LLAMA_CPP) as (url, asked), core_of(url) as core:
        assert core.expert("ROBIN") == "ROBIN" and core.expert("BRICK") == "BRICK" and core.expert("BABS") == batos.BASE
        assert core.context_tokens == 2048                   # of a slot, not what the model was trained for
        for persona in ("ROBIN", "BRICK", "BABS"):
            core.infer_("Who?", persona=persona)
        scales = [[row["scale"] for row in body["lora"]] for body in asked]
        assert scales == [[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 0.5]]
        assert {body["model"] for body in asked} == {"llama.gguf"}


@pytest.mark.parametrize("rows", [None, {}, [1, {}, {"id": "0", "path": 3}]])
def test_a_llama_cpp_without_adapters_is_asked_without(rows):
    with double(LLAMA_CPP | {"/lora-adapters": rows}) as (url, asked), core_of(url) as core:
        assert core.expert("ROBIN") == batos.BASE and core.infer_("Who?") and "lora" not in asked[0]


def test_a_persona_is_asked_where_it_is_known_and_goes_without_elsewhere(bad):
    with double(VLLM) as (url, asked), core_of(bad.url("reset"), url) as core:
        assert core.infer_("Who?", persona="ROBIN") and asked[-1]["model"] == "ROBIN"
        assert core.context_tokens == batos._REMOTE_CONTEXT_TOKENS  # of the one that takes the least


@pytest.mark.slow
def test_who_has_two_machines_sees_nothing_of_one_that_breaks_off(daemon, bad):
    urls = f"{bad.url('broken off')} {bad.url('good')} {nobody()}"
    one = daemon("--core-urls", urls, core="auto")
    with batos.Client(one.endpoint) as client:
        client.call("index_document", doc_id="valve.md", text="Turn the brass valve until the needle stands at zero.")
        brief = {"type": "direct_synthesis", "selector": "answer_", "args": ["How is the brass valve turned?"]}
        report = client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True, timeout_s=WAIT_S)["result"]
        assert report["state"] == "COMPLETE" and "needle stands at zero" in report["answer"] and "why_no_words" not in report
        until(lambda: client.call("health")["result"]["core"]["servers"][2]["state"] == "away")
        health = client.call("health")["result"]["core"]
        assert health["state"] == "ready" and health["servers"][1]["state"] == "ready"
        assert health["servers"][0]["errors"] >= 1 and json.dumps(health)
    assert one.stop() == 0
    assert not any("broken" in line or "away" in line for line in one.lines)
