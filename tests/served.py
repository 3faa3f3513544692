"""A server that speaks OpenAI's protocol, for the tests: it fills what a JSON schema wants, or misbehaves as it is told.

    python tests/served.py [PORT]          prints the port that it listens on

POST /behave {"mode", "times"} has the next requests go wrong: "500", "400" (no response_format), "garbage", "hang", "drop".
"""

import http.server
import json
import sys
import threading
import time

BEHAVIOUR = {"mode": "", "times": 0}
ASKED = []                         # bodies of chat completions
GUARD = threading.Lock()


def filled(schema, words):
    """Return a value that fits a schema; texts are the words."""
    if "enum" in schema:
        return schema["enum"][-1]
    if "code" in schema.get("properties", ()):
        return {"code": "def total_price(self):\n    return self.price * self.quantity\n"}
    if schema["type"] == "object":
        return {name: filled(inner, words) for name, inner in schema["properties"].items()}
    if schema["type"] == "array":
        items = schema["items"]
        each = items.get("properties", {}).get("pillar", {}).get("enum")
        if each:
            return [filled(items, words) | {"pillar": pillar} for pillar in each[3:6]]
        return [filled(items, words)]
    return 1 if schema["type"] == "integer" else words


def answer(body):
    """Return the text that a request is answered with."""
    form = body.get("response_format") or {}
    words = body["messages"][-1]["content"]
    if form.get("type") == "json_schema":
        return json.dumps(filled(form["json_schema"]["schema"], "nothing of the sort"))
    if "schema:\n" in words:
        schema = json.loads(words.rsplit("schema:\n", 1)[1])
        return f"Here it is:\n```json\n{json.dumps(filled(schema, 'nothing of the sort'))}\n```"
    return f"{body['model']} heard: {words[:40]}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Nothing is told."""

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/v1/models":
            if self.headers.get("Authorization") == "Bearer wrong":
                return self.reply(401, {"error": {"message": "no"}})
            return self.reply(200, {"object": "list", "data": [{"id": "big"}, {"id": "ROBIN"}]})
        return self.reply(200, ASKED)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/behave":
            BEHAVIOUR.update(body)
            return self.reply(200, {})
        with GUARD:
            ASKED.append(body)
            mode = BEHAVIOUR["mode"] if BEHAVIOUR["times"] > 0 else ""
            if mode and not (mode == "400" and "response_format" not in body):
                BEHAVIOUR["times"] -= 1
        return self.misbehave(mode, body) if mode else self.stream(answer(body))

    def misbehave(self, mode, body):
        if mode == "500" or mode == "400" and body.get("response_format"):
            return self.reply(int(mode), {"error": {"message": "as told"}})
        if mode == "drop":
            self.close_connection = True
            return self.connection.close()
        if mode == "hang":
            time.sleep(30)
        return self.stream("no JSON at all" if mode == "garbage" else answer(body))

    def stream(self, text):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(text), 7):
            self.event({"choices": [{"delta": {"content": text[at:at + 7]}}]})
        self.event({"choices": [], "usage": {}})
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, body):
        self.chunk(b"data: " + json.dumps(body).encode() + b"\n\n")

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
