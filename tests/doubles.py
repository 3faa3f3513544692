"""A core that answers at once, for tests and benches of everything but the model; and a daemon that has it.

    python tests/doubles.py '{"image": "x.fs", "endpoint": "tcp://127.0.0.1:0"}' [DELAY_S [FILE]]

With a FILE it is one that writes freely, and appends there what it is asked, a line a prompt.
"""

import json
import pathlib
import sys
import threading
import time

import numpy

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import batos


def plan_value(fields):
    """Factual Inquiry by two pillars, each with the whole mission as its words."""
    pillars = ["tech_bat_facet_", "iceman_facet_"]
    words = batos.one_line(fields["mission"], batos.MISSION_BYTES)
    return {"strategy": "Factual Inquiry", "relevant_pillars": pillars, "sub_queries": dict.fromkeys(pillars, words)}


def facet_value(fields):
    """The first piece of evidence, framed with the persona's first opening and link."""
    voice = batos.VOICES[fields["persona"]]
    return {"frame": voice["openings"][0] + fields["sub_query"] + voice["links"][0], "quotes": [1]}


def weave_value(fields):
    """All quotes in their order."""
    voice = batos.VOICES[fields["lead"]]
    topic = batos.one_line(fields["mission"], batos.MISSION_BYTES)
    return {"open": voice["openings"][0] + topic + voice["links"][0],
            "order": list(range(1, len(fields["quotes"]) + 1)), "close": voice["closings"][0]}


def method_value(fields):
    """The first idiom that the selector names, or the first that fits, over the first slots."""
    choices = batos.method_choices(batos.method_lines(fields))
    named = (name for name in choices if name in fields["selector"].split("_"))
    name = next(named, next(iter(choices)))
    return batos.method_value(f"{name}\n{choices[name][0]}", fields)


def tests_value(fields):
    """Nothing but that nothing changes, or the count where it goes up."""
    return {"result": "any", "changes": ["count"] if fields["selector"].startswith("up_") else [], "holds": []}


def summary_value(fields):
    """The first sentence."""
    return {"sentence": 1}


class QuickEmbedder:
    """Stands for Embedder: a text's vector tells which of some meanings its words have."""

    MEANINGS = ({"valve", "tap", "cock"}, {"brass", "copper", "alloy"}, {"pump", "bellows"}, {"lamp", "lantern"})
    state, progress = "ready", "a double"
    reader = batos.Reader()

    def __init__(self, name="double"):
        self.name = name

    def start(self, ready=lambda: None):
        ready()

    def close(self):
        """Nothing is open."""

    def embed(self, texts, patient=False, stopped=lambda: False):
        rows = numpy.array([[0.1 + len(words & set(text.lower().replace(".", "").split())) for words in self.MEANINGS]
                            for text in texts], numpy.float32)
        return rows / numpy.linalg.norm(rows, axis=1, keepdims=True)

    def query(self, text):
        return self.embed([text])[0]

    def queries(self, texts):
        return {text: self.query(text) for text in texts}

    def about(self, texts):
        return self.embed(texts)

    def health(self):
        return {"state": self.state, "progress": self.progress, "name": self.name}


class QuickCore:
    """Stands for CognitiveCore: the first choice of everything, after `delay_s`."""

    writes, is_quick, synapses = False, False, None
    state, progress, context_tokens = "ready", "a double", 4096
    values = {"plan": plan_value, "facet": facet_value, "weave": weave_value, "method": method_value, "tests": tests_value,
              "summary": summary_value}

    def __init__(self, delay_s=0.0, **values):
        self.delay_s, self.values, self.batches = delay_s, {**self.values, **values}, []
        self._closing, self.prompted = threading.Event(), []

    def start(self):
        return self

    def settled(self, timeout_s):
        return True

    def expert(self, name):
        return batos.BASE

    def offers(self, kind, text, embedder, among=None):
        return []

    def health(self):
        return {"state": self.state, "progress": "", "error": None, "model": None, "tokens": 0, "batches": len(self.batches)}

    def infer(self, requests):
        self.batches.append([request.task for request in requests])
        end_s = time.monotonic() + self.delay_s
        while time.monotonic() < end_s:
            if self._closing.wait(0.01) or any(request.cancel.is_set() for request in requests):
                raise batos.Cancelled("cancelled")
        for request in requests:                         # as the real one does
            assert set(request.fields) == set(batos.CORE_TASKS[request.task].fields), (request.task, sorted(request.fields))
        self.prompted += [request.system_prompt for request in requests]
        return [batos.CoreAnswer("", self.values[request.task](request.fields), 1, 0.0) for request in requests]

    def close(self, timeout_s=10):
        self._closing.set()


class WritingCore(QuickCore):
    """Stands for a core that writes freely: it answers a prompt after `delay_s` with how often it was asked, and notes it.

    Where a file FILE.says is beside the one where it notes, it writes that, a sentence a line, and waits behind each until
    FILE.go holds a line more.
    """

    writes = True

    def __init__(self, asked, delay_s=0.0, **values):
        super().__init__(delay_s, **values)
        self.asked = pathlib.Path(asked)

    def infer_(self, prompt, persona=None, system_prompt=None, temperature=0.6, top_p=0.9, max_new_tokens=512, deadline_s=None,
               cancel=None, on_text=None):
        with self.asked.open("a") as file:
            file.write(f"{prompt}\n")
        end_s = time.monotonic() + self.delay_s
        while time.monotonic() < end_s:
            if self._closing.wait(0.01) or cancel and cancel.is_set():
                raise batos.Cancelled("cancelled")
        says = self.asked.with_suffix(".says")
        if says.exists():
            return self._written(says.read_text(), cancel, on_text)
        return f"answer {len(self.asked.read_text().splitlines())} to {prompt} by {persona}, told {system_prompt}"

    def _written(self, text, cancel, on_text):
        go = self.asked.with_suffix(".go")
        for number, line in enumerate(text.splitlines(keepends=True), 1):
            on_text(line)
            while not go.exists() or len(go.read_text().splitlines()) < number:
                if self._closing.wait(0.01) or cancel and cancel.is_set():
                    raise batos.Cancelled("cancelled")
        return text


def main(words):
    """Serve with a core that answers at once; words: settings as JSON, and seconds that it takes; then the file of one that
    writes freely. Returns the exit status."""
    delay_s = float(words[1]) if len(words) > 1 else 0.0
    core = WritingCore(words[2], delay_s) if len(words) > 2 else QuickCore(delay_s)
    settings = batos.load_settings({"core": "none", **json.loads(words[0])})
    return batos.serve(settings, make_core=lambda image, settings: core)


if __name__ == "__main__":
    batos._leave(main(sys.argv[1:]))
