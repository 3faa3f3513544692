"""Servers with bad habits: one server that speaks OpenAI's protocol, whose address says how badly.

`Habits().url("html")` is the address of one that answers with pages of HTML, CHANGING that of one that changes. ANSWERED are
habits behind which there is an answer, TOLD those that have none: name -> (how it replies, what is told of it). A reply takes
what it writes to, the request, and how often this habit was asked before.
"""

import contextlib
import functools
import gzip
import json
import re
import socket
import socketserver
import struct
import threading
import time

import served

WORDS = "nothing of the sort"
HANG_S = 20.0
TURNED = "Turn the brass valve until the needle stands at zero [1]."
WRITTEN = [TURNED]                 # what a question is answered with


def answer(body):
    """Return the JSON that a request wants, or what is written to a question, or words."""
    asked = body["messages"][-1]["content"]
    if "Answer a question from" in asked:
        return WRITTEN[0]
    if "schema:\n" not in asked:
        return "Three words here."
    return json.dumps(served.filled(json.loads(asked.rsplit("schema:\n", 1)[1]), WORDS))


def head(status=200, kind="text/event-stream", **fields):
    lines = [f"HTTP/1.1 {status} -", f"Content-Type: {kind}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def event(**delta):
    return {"choices": [{"index": 0, "delta": delta}]}


def lines_of(events, end="\n"):
    return "".join([f"data: {one if isinstance(one, str) else json.dumps(one)}{end}{end}" for one in events]).encode()


def cut_up(text):
    return [event(content=text[at:at + 7]) for at in range(0, len(text), 7)]


LENGTH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def streams(events_of, ending=("[DONE]",), end="\n", kind="text/event-stream"):
    """A stream of what events_of(the answer) returns, then how it ends."""
    return lambda out, body, times: out(head(kind=kind) + lines_of([*events_of(answer(body)), *ending], end))


def says(wrap):
    """A stream of what wrap makes of the answer."""
    return streams(lambda text: cut_up(wrap(text)))


def whole(message_of, kind="application/json", finish="stop"):
    """No stream: one document with the message."""
    def reply(out, body, times):
        choice = {"index": 0, "message": {"role": "assistant"} | message_of(answer(body)), "finish_reason": finish}
        out(head(kind=kind) + json.dumps({"choices": [choice]}).encode())
    return reply


def errs(status, told, **fields):
    """An error of HTTP."""
    def reply(out, body, times):
        kind = "application/json" if isinstance(told, dict) else "text/html"
        out(head(status, kind, **fields) + (json.dumps(told) if isinstance(told, dict) else told).encode())
    return reply


def first(bad, times_bad=1):
    """A bad reply to the first request or so, then good ones."""
    return lambda out, body, times: (bad if times < times_bad else GOOD)(out, body, times)


def refuses(*names):
    """400 for a request that has one of the fields."""
    def reply(out, body, times):
        found = [name for name in names if name in body or body.get("response_format", {}).get("type") == name]
        refusal = errs(400, {"error": {"message": f"{found} is not supported here, use max_completion_tokens"}})
        return (refusal if found else GOOD)(out, body, times)
    return reply


def no_system(out, body, times):
    if body["messages"][0]["role"] == "system":
        return errs(400, {"error": {"message": "System role not supported"}})(out, body, times)
    return GOOD(out, body, times)


def numbers_as_texts(text):
    return re.sub(r"\b(\d+)\b", r'"\1"', text)


def gzipped(out, body, times):
    out(head(Content_Encoding="gzip") + gzip.compress(lines_of([*cut_up(answer(body)), "[DONE]"])))


def latin(out, body, times):
    out(head() + lines_of(cut_up(answer(body))) + b'data: {"choices": [{"delta": {"content": " caf\xe9"}}]}\n\ndata: [DONE]\n\n')


def chatty(out, body, times):
    out(b"".join([head(), b"\xef\xbb\xbf: hello\r\n\r\nevent: message\r\nid: 1\r\nretry: 100\r\n",
                  b": keep-alive\r\n".join(lines_of([one], "\r\n") for one in [*cut_up(answer(body)), "[DONE]"])]))


def split_events(out, body, times):
    """Each event in two data lines, as the form of streams allows."""
    told = [json.dumps(one).replace('"choices"', '\ndata: "choices"', 1) for one in cut_up(answer(body))]
    out(head() + lines_of([*told, "[DONE]"]))


def open_behind_done(out, body, times):
    out(head() + lines_of([*cut_up(answer(body)), "[DONE]"]))
    time.sleep(HANG_S)


def hang(out, body, times):
    time.sleep(HANG_S)


def drip(out, body, times, status=200):
    out(head(status))
    until_s = time.monotonic() + HANG_S
    while time.monotonic() < until_s:
        out(b": keep-alive\n")
        time.sleep(0.02)


def drip_bytes(out, body, times):
    out(head() + b"data: {")
    until_s = time.monotonic() + HANG_S
    while time.monotonic() < until_s:
        out(b" ")
        time.sleep(0.02)


def drip_header(out, body, times):
    out(b"HTTP/1.1 200 -\r\nX-Slow: ")
    until_s = time.monotonic() + HANG_S
    while time.monotonic() < until_s:
        out(b"x")
        time.sleep(0.02)


def cut_line(out, body, times):
    out(head() + lines_of(cut_up(answer(body))[:1]) + b'data: {"choices": [{"delta": {"con\n\ndata: [DONE]\n\n')


def broken_off(out, body, times):
    out(head(Content_Length="100000") + lines_of(cut_up(answer(body))[:1]))


def reset(out, body, times):
    out(None)


def huge(out, body, times):
    out(head())
    for _ in range(200):
        out(b"data: " + b" " * 60_000)


def unpacked(out, body, times):
    out(head(Content_Encoding="gzip") + b"this is not packed at all")


GOOD = streams(cut_up)
CALL = {"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": {"name": "answer", "arguments": ""}}]}
LATER = "Wed, 21 Oct 2048 07:28:00 GMT"
FULL = {"error": {"message": "too many requests", "type": "rate"}}

ANSWERED = {
    "good": GOOD,
    "thinks": says(lambda text: f"<think>It wants {{\"strategy\": \"no\"}} of me</think>\n{text}"),
    "thought in the prompt": says(lambda text: f"so {{that}} it is\n</think>{text}"),
    "fences": says(lambda text: f"```json\n{text}\n```"),
    "prose and braces": says(lambda text: f"As {{you}} asked: {{}} {text} I hope that {{this}} helps}}"),
    "in a list": says(lambda text: f"[{text}]"),
    "parts": whole(lambda text: {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}]}),
    "parts in a stream": streams(lambda text: [event(content=[{"type": "text", "text": text}])]),
    "no stream": whole(lambda text: {"content": text}),
    "no stream, wrong type": whole(lambda text: {"content": text}, kind="text/plain"),
    "stream, wrong type": streams(cut_up, kind="application/json"),
    "lines of JSON": lambda out, body, times: out(head() + b"\n".join(
        json.dumps(one).encode() for one in [*cut_up(answer(body)), STOP])),
    "half characters": streams(lambda text: [*cut_up(text), event(content=" \ud83d"), event(content="\ude00 \ud83d")]),
    "legacy text": streams(lambda text: [{"choices": [{"text": text}]}]),
    "no DONE": streams(cut_up, ending=(STOP,)),
    "nothing but pieces": streams(lambda text: [*cut_up(text), {"choices": []}, {"choices": None, "usage": {}}]),
    "roles again and again": streams(lambda text: [{"choices": [{"delta": {"role": "assistant"} | one["choices"][0]["delta"]}]}
                                                   for one in [event(content=None), *cut_up(text)]]),
    "numbers as texts": says(numbers_as_texts),
    "gzip": gzipped,
    "latin-1": latin,
    "comments and CRLF": chatty,
    "CR": streams(cut_up, end="\r"),
    "split events": split_events,
    "open behind DONE": open_behind_done,
    "400 for a schema": refuses("json_schema"),
    "400 for any form": refuses("response_format"),
    "400 for max_tokens": refuses("max_tokens"),
    "400 for a system role": no_system,
    "500 once": first(errs(500, "oh")),
    "429 once": first(errs(429, FULL, Retry_After="0")),
    "503 once, with a date": first(errs(503, FULL, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")),
    "reset once": first(reset),
    "cut line once": first(cut_line),
    "broken off once": first(broken_off),
    "error amid the stream, once": first(streams(lambda text: [*cut_up(text)[:2], {"error": {"message": "out of memory"}}])),
    "empty once": first(streams(lambda text: [])),
}
# Of tasks only: a free prompt has no JSON that could be found there, and no form; what is cut off is its answer.
ANSWERED_TASKS = {
    "422 for a form": first(errs(422, {"detail": [{"msg": "extra fields"}]}), 2),
    "length once": first(streams(lambda text: cut_up(text)[:1], ending=(LENGTH,))),
    "reasoning_content": whole(lambda text: {"content": "", "reasoning_content": text}),
    "tool call": whole(lambda text: {"content": None, "tool_calls": [{"function": {"name": "answer", "arguments": text}}]}),
    "no mark at its end": streams(cut_up, ending=()),
}

TOLD = {
    "empty": (streams(lambda text: [event(content="")]), "empty text"),
    "only thinks": (says(lambda text: "<think>hm, what could it be"), "only thought"),
    "only reasoning_content": (whole(lambda text: {"content": "", "reasoning_content": "hm"}), "only thought"),
    "tool call of nothing": (whole(lambda text: {"content": None} | CALL | {"tool_calls": [{"function": {"arguments": "x"}}]}),
                             "call tools"),
    "refusal": (whole(lambda text: {"content": None, "refusal": "I cannot do that"}), "refuses to answer: I cannot"),
    "filter": (whole(lambda text: {"content": ""}, finish="content_filter"), "content_filter"),
    "length": (whole(lambda text: {"content": "<think>"}, finish="length"), "limit of tokens"),
    "no choices": (lambda out, body, times: out(head(kind="application/json") + b'{"id": "1"}'), "without `choices`"),
    "nothing": (lambda out, body, times: out(head()), "answers with nothing"),
    "no object": (lambda out, body, times: out(head(kind="application/json") + b'[[1], 2]'), "JSON that is no object"),
    "html": (lambda out, body, times: out(head(kind="text/html") + b"<html><b>Welcome to the proxy</b></html>"),
             "page of HTML.*Welcome to the proxy"),
    "error amid the stream": (streams(lambda text: [event(content="{"), {"error": {"message": "out of memory"}}]),
                              "reports an error: out of memory"),
    "error by name of its event": (lambda out, body, times: out(head() + b'event: error\ndata: {"message": "worn out"}\n\n'),
                                   "reports an error: worn out"),
    "cut line": (cut_line, "cuts a line of its stream"),
    "broken off": (broken_off, "breaks off"),
    "middle": (streams(lambda text: cut_up(text)[:1], ending=()), "ends in the middle"),
    "reset": (reset, "breaks off"),
    "huge": (huge, "more than 4,194,304 bytes"),
    "not packed": (unpacked, "not packed as it says"),
    "400": (errs(400, {"error": {"message": "maximum context length is 8 tokens"}}), "answers 400.*maximum context length"),
    "401": (errs(401, {"error": "no key"}), "answers 401.*BATOS_CORE_KEY.*no key"),
    "key repeated": (errs(401, {"error": {"message": "Incorrect API key provided: s3cret"}}), "key provided: …"),
    "403": (errs(403, {"detail": "not yours"}), "answers 403.*BATOS_CORE_KEY.*not yours"),
    "404": (errs(404, {"error": {"message": "The model `big` does not exist"}}),
            "does not exist.*it offers big, ROBIN.*core_model"),
    "405": (errs(405, "<h1>Not allowed</h1>"), "answers 405.*another protocol"),
    "429": (errs(429, FULL), "answers 429.*too many requests"),
    "429 again": (errs(429, FULL, Retry_After="0"), "answers 429.*too many requests"),
    "429 for an hour": (errs(429, FULL, Retry_After="3600"), "answers 429.*left alone for 3600 s"),
    "503 for years": (errs(503, FULL, Retry_After=LATER), r"answers 503.*left alone for \d{9} s"),
    "500": (errs(500, "<pre>Traceback</pre>"), "answers 500.*look at its log.*Traceback"),
    "502": (errs(502, "<h1>Bad Gateway</h1>"), "answers 502.*Bad Gateway"),
    "redirect": (errs(307, "", Location="http://elsewhere/v1"), "points elsewhere to http://elsewhere/v1, which is not followed"),
    "hang": (hang, "had no answer within 0.3 s"),
    "drip": (drip, "had no answer within 0.3 s"),
    "drip of an error": (functools.partial(drip, status=500), "had no answer within 0.3 s"),
    "drip of bytes": (drip_bytes, "had no answer within 0.3 s"),
    "drip of a header": (drip_header, "had no answer within 0.3 s"),
}
# Of the list of models, which is asked for first.
UNLISTED = {
    "models as HTML": (lambda out, body, times: out(head(kind="text/html") + b"<html><b>Welcome</b></html>"), "HTML.*Welcome"),
    "no models": (lambda out, body, times: out(head(kind="application/json") + b'{"data": []}'), "tells of no models"),
    "models of another kind": (lambda out, body, times: out(head(kind="application/json") + b'{"data": {"id": 1}}'),
                               "tells of no models"),
    "error with 200": (lambda out, body, times: out(head(kind="application/json") + b'{"error": "no endpoint"}'),
                       "reports an error: no endpoint"),
    "models behind a key": (errs(401, {"error": "no key"}), "answers 401.*BATOS_CORE_KEY"),
    "models elsewhere": (errs(302, "", Location="https://me:pw@elsewhere/v1"), "points elsewhere to https://elsewhere/v1"),
    "models that drip": (drip, "in time"),
    "models behind a header that drips": (drip_header, "in time"),
    "models that hang": (hang, "in time"),
}
CHANGING = "changing"              # begins as one that hangs
# No server at all.
NOBODY = {
    "refused": ("http://127.0.0.1:1/v1", "cannot be reached.*refused"),
    "no such name": ("http://nowhere.invalid/v1", "cannot be reached"),
    "no address": ("http://[::1/v1", "cannot be asked"),
}


class _Handler(socketserver.StreamRequestHandler):
    def handle(self):
        with contextlib.suppress(OSError):               # who asked has left
            self._reply(*self._request())

    def _request(self):
        method, path, _ = self.rfile.readline().decode().split(" ")
        lengths = [int(line.partition(b":")[2]) for line in iter(self.rfile.readline, b"\r\n")
                   if line.lower().startswith(b"content-length")]
        return method, path, json.loads(self.rfile.read(sum(lengths)) or "null")

    def _reply(self, method, path, body):
        if "/v1/" not in path:
            return errs(404, "404 page not found")(self._out, body, 0)
        number = int(path.split("/")[1])
        if method == "GET" and number not in self.server.unlisted:
            models = {"data": [{"id": "big"}, {"id": "ROBIN"}]}
            return self._out(head(kind="application/json") + json.dumps(models).encode())
        self.server.asked.append((number, body))
        times = sum(1 for asked, _ in self.server.asked if asked == number) - 1
        return self.server.replies[number](self._out, body, times)

    def _out(self, data):
        if data is None:                                 # a reset: closed with what was not read
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return self.connection.close()
        return self.wfile.write(data)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads, allow_reuse_address, block_on_close = True, True, False

    def handle_error(self, request, address):
        """Who asked has left; nothing is told."""


class Habits:
    """The server, in a thread. `asked` is [(number of a habit, body)]; `replies` may be changed while it runs."""

    def __init__(self):
        WRITTEN[0] = TURNED
        self._server = _Server(("127.0.0.1", 0), _Handler)
        told = {name: reply for name, (reply, _) in (TOLD | UNLISTED).items()}
        every = ANSWERED | ANSWERED_TASKS | told | {CHANGING: hang}
        self._numbers = {name: number for number, name in enumerate(every)}
        self.asked, self.replies = [], list(every.values())
        self._server.asked, self._server.replies = self.asked, self.replies
        self._server.unlisted = [self._numbers[name] for name in UNLISTED]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, name):
        """Return the address of a server with a habit."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{self._numbers[name]}/v1"

    def bodies(self, name):
        """Return what a habit was asked."""
        return [body for number, body in self.asked if number == self._numbers[name]]

    @staticmethod
    def say(text):
        """Have questions answered with a text from now on."""
        WRITTEN[0] = text

    def change(self, habit):
        """Have the address of CHANGING behave so from now on."""
        self.replies[self._numbers[CHANGING]] = self.replies[self._numbers[habit]]

    def close(self):
        self._server.shutdown()
        self._server.server_close()
