"""The composite mind, with a core that answers at once: states, journal, effect, cancel, restart."""

import itertools
import os
import re
import threading
import time
import types

import doubles
import pytest
from habits import ANSWERED, NOBODY, TOLD, TURNED, Habits

import batos

MANUAL = """# Pump

## Calibrating

Turn the brass valve until the needle stands at zero. Then lock the screw with the small key.

## Cleaning

The filter is washed in warm water once a month. Never use soap on the felt ring.
"""
BRIEF = {"type": "direct_synthesis", "selector": "answer_", "args": ["How is the brass valve turned?"]}


@pytest.fixture
def machine(tmp_path):
    """A function that opens lanes and a mission lane over one image in this process."""
    opened = []

    def start(core=None, **settings):
        one = Machine(tmp_path / "image.fs", core or doubles.QuickCore(), settings)
        opened.append(one)
        return one
    yield start
    for one in opened:
        one.close()


class Machine:
    """Image, lanes and missions without a socket."""

    def __init__(self, path, core, settings):
        self.settings, self.core = batos.load_settings({"gate": False, **settings}, {}), core
        self.image = batos.Image.open(str(path))
        if batos.lacks(self.image):
            batos.genesis(self.image)
        events, token = batos.Events(), batos.WriteToken()
        self.lanes = {"write": batos.WriteLane(self.image, token, self.settings, events=events),
                      "bulk": batos.BulkLane(self.image, token, self.settings, events=events),
                      "read": batos.ReadLane(self.image, "read")}
        self.lanes["method"] = batos.MethodLane(self.image, self.lanes["write"], self.settings, batos.count_uses)
        for lane in self.lanes.values():
            lane.start()
        self.reports, self._ended = {}, threading.Condition()
        self.mind = batos.MissionLane(self.image, self.lanes, core, self.settings, self._report)
        self.mind.start(events)
        self._open = True

    def _report(self, oid, report):
        with self._ended:
            self.reports[oid] = report
            self._ended.notify_all()

    def learn(self, text=MANUAL, doc_id="pump.md"):
        self.lanes["bulk"].call(batos.Job("learn", lambda root: batos.index_document_(
            root["knowledge_catalog_obj"], doc_id, text)["chunks"]))

    def accept(self, brief=BRIEF):
        return self.lanes["write"].call(batos.Job("accept", lambda root: batos.cycle_id(batos.send(
            root["orchestrator_obj"], "start_cognitive_cycle_for_", brief)), who="local")).result

    def ended(self, oid):
        with self._ended:
            assert self._ended.wait_for(lambda: oid in self.reports, 60), self.mind.health()
        return self.reports[oid]

    def think(self, brief=BRIEF):
        return self.ended(self.accept(brief))

    def read(self, function):
        return self.lanes["read"].call(batos.Job("read", function)).result

    def close(self):
        if self._open:
            self._open = False
            self.mind.stop_taking()
            self.core.close()
            self.mind.close()
            for lane in self.lanes.values():
                lane.close()
            self.image.close()


class Speaker(doubles.QuickCore):
    """A core that writes: `said` are its answers, the last one again and again; `prompts` is what it was asked."""

    writes = True

    def __init__(self, *said, strategy="Factual Inquiry"):
        super().__init__()
        self.said, self.strategy, self.prompts = list(said) or [""], strategy, []

    def offers(self, kind, text, embedder, among=None):
        return [(self.strategy, 1.0)]

    def infer_(self, prompt, persona=None, system_prompt=None, on_text=None, **how):
        self.prompts.append(prompt)
        self.prompted.append(system_prompt)
        said = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if isinstance(said, BaseException):
            raise said
        for piece in re.findall(r"\S+\s*", said):
            on_text(piece)
        return said


@pytest.mark.slow
def test_the_experts_of_who_speaks_are_fetched_ahead(machine):
    """As soon as it is seen who speaks: who leads first; plans are asked of nobody."""
    core, ahead, asked = doubles.QuickCore(), [], []
    core.expert = lambda name: name or batos.BASE
    infer = core.infer
    core.infer = lambda requests: (asked.extend((row.task, row.adapter) for row in requests), infer(requests))[1]
    one = machine(core)
    one.mind._ahead = lambda names: ahead.append((list(names), list(asked)))
    one.learn()
    assert one.think()["state"] == "COMPLETE"
    assert ahead == [(["BABS"], [("plan", batos.BASE_EXPERT)])]
    assert asked == [("plan", batos.BASE_EXPERT)]


def test_the_plan_is_made_among_what_the_router_offers(machine):
    fields = []

    def plan_value(given):
        fields.append(given)
        return doubles.plan_value(given)
    core = doubles.QuickCore(plan=plan_value)
    core.offers = lambda kind, text, embedder, among=None: [("Factual Inquiry", 0.8)] if kind == "archetype" else []
    one = machine(core)
    one.learn()
    assert one.think()["state"] == "COMPLETE"
    assert fields[0]["offered"] == [("Factual Inquiry", 0.8)] and fields[0]["mission"] == BRIEF["args"][0]


def test_a_model_that_was_not_trained_for_the_tasks_is_told_by_the_codex_who_speaks(machine):
    core = Speaker()
    one = machine(core)
    one.learn()
    one.lanes["write"].call(batos.Job("prompts", lambda root: batos.set_slot(
        root["codex_obj"], "prompts", {**batos.TASK_PROMPTS, "write": "Mine: {passages} {question}"})))
    assert one.think()["state"] == "COMPLETE"
    assert core.prompts == ["Mine: [1] Turn the brass valve until the needle stands at zero. Then lock the screw with the small "
                            f"key. {BRIEF['args'][0]}"]
    assert core.prompted[0].startswith("You speak as BABS. To map what is recorded")
    assert batos.CODEX["BABS"][1]["tech_bat_facet_"] in core.prompted[0]


def test_an_answer_quotes_and_cites(machine):
    one = machine()
    one.learn()
    report = one.think()
    assert report["state"] == "COMPLETE" and report["relevant"]
    assert "\u201cTurn the brass valve until the needle stands at zero.\u201d [1]" in report["answer"]
    first = report["evidence"][0]
    assert (first["doc_id"], first["version"], first["lines"]) == ("pump.md", 1, [5, 5])
    assert report["lead"] == "BABS" and report["archetype"] == "Factual Inquiry"


def test_a_facet_is_what_the_reader_chose_for_it_and_no_core_is_asked(machine):
    one = machine()
    one.learn()
    report = one.think()
    assert one.core.batches == [["plan"]] and report["experts"] == ["BABS"]
    data = one.read(lambda root: batos.find_cycle(root, report["cycle"])._tmp_synthesis_data)
    parts, took_s = data["partial_responses"], data["facet_seconds"]
    assert list(took_s) == report["pillars"] and all(each >= 0 for each in took_s.values())
    assert list(parts) == ["tech_bat_facet_", "iceman_facet_"] == report["pillars"]
    assert all(part["quotes"] == report["evidence"] and part["focus"] == BRIEF["args"][0] for part in parts.values())


def test_nothing_in_memory_is_said_at_once_and_without_the_core(machine):
    one = machine()
    one.learn()
    report = one.think({**BRIEF, "args": ["What do giraffes eat in Kenya?"]})
    assert report["state"] == "COMPLETE" and not report["relevant"] and report["evidence"] == []
    assert "nothing in memory" in report["answer"] and "giraffes" in report["answer"]
    assert one.core.batches == []


def test_every_step_is_in_the_journal_before_the_next_and_says_what_was_asked(machine):
    one = machine()
    one.learn()
    oid = one.accept()
    one.ended(oid)

    def told(root):
        cycle = batos.find_cycle(root, oid)
        return [(entry.name, entry.state, entry.next_state) for entry in cycle.journal], \
            [entry.digest for entry in cycle.journal], oid in root["active_cycles"]
    steps, digests, active = one.read(told)
    assert steps == [("recall", "IDLE", "DECOMPOSING"), ("plan", "DECOMPOSING", "DELEGATING"),
                     ("who speaks", "DELEGATING", "DELEGATING"),
                     ("recall for facets", "DELEGATING", "DELEGATING"), ("facets", "DELEGATING", "SYNTHESIZING"),
                     ("gate", "SYNTHESIZING", "COMPLETE")]
    assert all(len(digest) == 32 for digest in digests) and not active


def test_a_mission_goes_on_from_its_journal_after_a_restart(machine):
    stuck = threading.Event()

    def never(fields):
        stuck.set()
        raise batos.Abandoned
    first = machine(doubles.QuickCore(plan=never))
    first.learn()
    oid = first.accept()
    assert stuck.wait(30)
    first.close()
    second = machine()
    assert second.ended(oid)["state"] == "COMPLETE" and second.core.batches == [["plan"]]
    journal = second.read(lambda root: [e.name for e in batos.find_cycle(root, oid).journal])
    assert journal.count("recall") == 1                   # what was sought is not sought again


@pytest.mark.parametrize("core, state", [("plain", "DECOMPOSING"), ("writes", "DELEGATING")])
def test_a_core_that_fails_never_costs_the_answer(machine, core, state):
    """Any exception of it: the passages are told, with one entry of the log."""
    def broken(fields):
        raise ZeroDivisionError
    one = machine(Speaker(ZeroDivisionError()) if core == "writes" else doubles.QuickCore(plan=broken))
    one.learn()
    oid = one.accept()
    report = one.ended(oid)
    assert report["state"] == "COMPLETE" and report["words"] is False and report["why_no_words"]["code"] == "InternalError"
    assert "Turn the brass valve" in report["answer"] and report["evidence"] and "reason" not in report
    log, active = one.read(lambda root: (list(root["failed_cycle_log"].values()), list(root["active_cycles"])))
    assert [entry["cycle"] for entry in log] == [oid] and log[0]["state"] == state and active == []


def test_whatever_a_server_does_the_passages_are_told(machine, monkeypatch):
    """Every habit of a server that leaves no answer, and no server at all: one image, a core after the other."""
    monkeypatch.setattr(batos, "_REMOTE_TRY_S", (0.0,))
    monkeypatch.setattr(batos, "_REMOTE_START_S", 0.0)
    server, one = Habits(), machine(Speaker())
    one.learn()
    cases = [(server.url(name), told) for name, (_, told) in TOLD.items()] + list(NOBODY.values())
    for count, (url, told) in enumerate(cases, 1):
        deadline_s = 0.3 if "0.3 s" in told else 60.0
        one.mind.settings = batos.load_settings({"core_deadline_s": deadline_s}, {})
        one.mind.core = batos.RemoteCore(url, key="s3cret", ask_s=deadline_s).start()
        oid = one.accept()
        report = one.ended(oid)
        one.mind.core.close()
        assert report["state"] == "COMPLETE" and report["words"] is False and "Turn the brass valve" in report["answer"]
        assert re.search(told, report["why_no_words"]["details"])
        log = one.read(lambda root: list(root["failed_cycle_log"].values()))
        assert len(log) == count and log[-1]["cycle"] == oid and log[-1]["details"] == report["why_no_words"]["details"]
    server.close()


@pytest.mark.slow
def test_behind_every_habit_that_leaves_an_answer_the_words_are_told(machine, monkeypatch):
    monkeypatch.setattr(batos, "_REMOTE_TRY_S", (0.0, 0.0))
    server, one = Habits(), machine(Speaker())
    one.learn()
    for name in ANSWERED.keys() - {"prose and braces", "in a list", "numbers as texts"}:      # those are of JSON
        one.mind.core = batos.RemoteCore(server.url(name)).start()
        report = one.think()
        one.mind.core.close()
        assert report["words"] is True and report["answer"].endswith(f"\n{TURNED}"), (name, report)
    server.close()


def test_any_exception_is_failed_with_one_log_entry(machine, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError
    monkeypatch.setattr(batos, "find_evidence", broken)
    one = machine()
    oid = one.accept()
    report = one.ended(oid)
    assert report["state"] == "FAILED" and report["reason"]["code"] == "InternalError"
    log, active = one.read(lambda root: (list(root["failed_cycle_log"].values()), list(root["active_cycles"])))
    assert [entry["cycle"] for entry in log] == [oid] and log[0]["state"] == "IDLE" and active == []


@pytest.mark.parametrize("refusals, steps, state", [(1, ["gate", "gate"], "COMPLETE"), (2, ["facets", "gate"], "FAILED")])
def test_the_gate_has_it_recalled_anew_once(machine, monkeypatch, refusals, steps, state):
    reasons = [["pump.md_chunk_0 does not say it"]] * refusals
    monkeypatch.setattr(batos, "gate_reasons", lambda catalog, evidence: reasons.pop() if reasons else [])
    one = machine()
    one.learn()
    report = one.think()
    assert report["state"] == state and (state == "COMPLETE") != ("reason" in report)
    journal = one.read(lambda root: [e.name for e in batos.find_cycle(root, report["cycle"]).journal])
    assert journal[-2:] == steps


def test_what_was_thought_is_stored_before_the_core_is_asked_and_at_the_end(machine):
    one, stored = machine(), []
    one.learn()
    ask = one.mind._ask

    def seen(mission, requests, spoken):
        if requests:
            stored.append(one.read(lambda root: [e.name for e in batos.find_cycle(root, mission.oid).journal]))
        return ask(mission, requests, spoken)
    one.mind._ask = seen
    before = one.lanes["write"].commits + one.lanes["bulk"].commits
    one.think()
    assert stored == [["recall"]]
    assert one.lanes["write"].commits + one.lanes["bulk"].commits - before == 3      # with acceptance and effect


@pytest.mark.parametrize("spoil, reason", [
    (lambda told: told.clear(), "nothing is quoted"),
    (lambda told: told[0].update(text="It never said this."), "does not say"),
    (lambda told: told[0].update(lines=[90, 90]), "does not say"),
    (lambda told: told[0].update(version=7), "does not say"),
])
def test_what_the_gate_refuses(machine, spoil, reason):
    one = machine()
    one.learn()

    def judged(root):
        catalog = root["knowledge_catalog_obj"]
        told = batos.find_evidence(catalog, "How is the brass valve turned?", batos.Recall(mass=0.5))["evidence"]
        assert batos.gate_reasons(catalog, told) == []
        spoil(told)
        return batos.gate_reasons(catalog, told)
    assert any(reason in one_reason for one_reason in one.read(judged))


def test_what_two_documents_say_alike_is_quoted_once(machine):
    one = machine()
    one.learn(doc_id="one.md")
    one.learn(doc_id="two.md")
    found = one.read(lambda root: batos.find_evidence(root["knowledge_catalog_obj"], "How is the brass valve turned?",
                                                      batos.Recall(mass=0.5)))
    texts = [item["text"] for item in found["evidence"]]
    assert texts and len(texts) == len(set(texts))


def test_cancel_while_thinking_and_while_waiting(machine):
    one = machine(doubles.QuickCore(delay_s=30), workers=1)
    one.learn()
    running, waiting = one.accept(), one.accept()
    while one.mind.health()["running"] != 1:
        time.sleep(0.01)
    assert one.mind.cancel(waiting) == "cancelling" and one.mind.cancel(running) == "cancelling"
    for oid in (waiting, running):
        report = one.ended(oid)
        assert report["state"] == "FAILED" and report["reason"]["code"] == "Cancelled"
    assert one.mind.cancel(running) is None


def test_a_mission_has_a_deadline(machine):
    def slow(fields):
        time.sleep(0.3)
        return doubles.plan_value(fields)
    one = machine(doubles.QuickCore(plan=slow), mission_deadline_s=0.1)
    one.learn()
    report = one.think()
    assert report["why_no_words"]["code"] == "DeadlineExceeded" and "Turn the brass valve" in report["answer"]


def test_a_full_disk_delays_a_mission_and_loses_nothing(machine, monkeypatch):
    monkeypatch.setattr(batos, "_RETRY_COMMIT_S", 0.01)
    one = machine()
    one.learn()
    real, number = one.image.storage._sync_blobs, itertools.count()

    def full():
        if next(number) in (1, 2, 4, 5):                  # the first is the acceptance
            raise OSError(28, "No space left on device")
        real()
    monkeypatch.setattr(one.image.storage, "_sync_blobs", full)
    assert one.think()["state"] == "COMPLETE"
    assert next(number) > 6


def test_what_a_thought_keeps_is_named_by_a_record():
    assert {"plan", "sent_back", "request", "failures", "findings", "assembled"} <= batos.THOUGHTS_KEEP
    step = batos.Step("DECOMPOSING", [], {"plan": {}, "plna": {}})
    with pytest.raises(TypeError, match=r"recall keeps \['plna'\]"):
        batos._step_taken(batos.Thought("recall", None), step, 0.0)


def test_only_what_a_state_names_may_follow_it(machine):
    one = machine(doubles.QuickCore(delay_s=30))
    one.learn()
    oid = one.accept()

    def leap(root):
        taken = batos._step_taken(batos.Thought("x", None), batos.Step("SYNTHESIZING", []), 0.0)
        batos._enter(batos.find_cycle(root, oid), taken)
    while one.read(lambda root: batos.state_of(batos.find_cycle(root, oid))) != "DECOMPOSING":
        time.sleep(0.01)
    with pytest.raises(batos.TransitionError, match="DELEGATING, COMPLETE may"):
        one.lanes["write"].call(batos.Job("leap", leap))


def test_old_missions_and_journals_are_dropped(machine):
    one = machine(missions_kept=5, journal_days=0.0)
    one.learn()
    for _ in range(12):
        one.lanes["write"].call(batos.Job("accept", lambda root: batos.cycle_id(batos.send(
            root["orchestrator_obj"], "start_cognitive_cycle_for_", BRIEF))))
        while one.mind.health()["waiting"] or one.mind.health()["running"]:
            time.sleep(0.005)
    missions, journals = one.read(lambda root: (len(root["missions"]), [len(c.journal) for c in root["missions"].values()]))
    assert missions <= 6 and journals[:-1] == [0] * (missions - 1)


def test_a_brief_without_words_or_type_is_refused(machine):
    one = machine()
    for brief in ({"type": "direct_synthesis", "selector": "", "args": [" "]}, {"type": "poem", "selector": "x"}, {}):
        with pytest.raises(batos.BadRequest):
            one.accept(brief)
    one.settings.missions_max = 0
    with pytest.raises(batos.Busy):
        one.accept()


def test_codex_and_states_are_objects_of_the_image(machine):
    def told(root):
        sage = batos.resolve(root, "robin_prototype_obj.pillars.sage_facet_")
        states = root["psm_prototypes_obj"]
        return (sage.intent, root["codex_obj"].archetypes["Emotional Processing"]["lead"], list(states.IDLE.follows),
                {name: set(root[f"{name.lower()}_prototype_obj"].pillars) for name in batos.PILLARS})
    intent, lead, follows, pillars = machine().read(told)
    assert intent and lead == "ROBIN" and "DECOMPOSING" in follows
    assert pillars == {name: set(known) for name, known in batos.PILLARS.items()}


def test_the_codex_in_the_image_decides_who_leads(machine):
    one = machine()
    one.learn()

    def revise(root):
        matrix = {name: dict(row) for name, row in root["codex_obj"].archetypes.items()}
        matrix["Factual Inquiry"]["lead"] = "ALFRED"
        root["codex_obj"].archetypes = matrix
    one.lanes["write"].call(batos.Job("revise", revise))
    assert one.think()["lead"] == "ALFRED"


# Words: a core that writes

TRUE = ("The brass valve is turned until the needle stands at zero [1].", "The screw is locked with the small key [1].")
FALSE = ("The needle stands at ninety.", "Bob turns the brass valve.", "The brass valve is not turned.",
         "The needle turns the brass valve.", "The screw is locked with the large hammer.")
SAID = ("<think>The valve, hm.</think>Here it is:\n- The answer is: The brass valve is turned until the needle stands at zero. "
        f"[7]\n- {FALSE[0]} [1]\n{FALSE[1]} The screw is locked with the small key. {FALSE[2]} The screw is locked with "
        f"the small key [1]. {FALSE[3]} {FALSE[4]} And then the needle")


def stored_bytes(tmp_path):
    return b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_core_that_writes_is_told_sentence_by_sentence_as_far_as_passages_bear_it_out(machine, tmp_path):
    """Each is in the journal before it is told; what is false is asked for once more, and is in no event and no byte."""
    one, heard = machine(Speaker(SAID, FALSE[3])), []
    one.learn()

    def listener(oid):
        def hear(text, evidence):
            journal = one.read(lambda root: [entry.answer for entry in batos.find_cycle(root, oid).journal])
            heard.append((text, any(isinstance(answer, dict) and answer.get("told") == text.strip() for answer in journal)))
        return hear
    one.mind._listener = listener
    report = one.think()
    quote = "\u201cTurn the brass valve until the needle stands at zero.\u201d [1]"
    assert heard == [(quote, True), (f" {TRUE[0]}", True), (f" {TRUE[1]}", True)]
    assert report["answer"] == f"{quote}\n{' '.join(TRUE)}" and report["words"] is True and report["lead"] == "BABS"
    assert len(one.core.prompts) == 2 and all(FALSE[number] in one.core.prompts[1] for number in (0, 1, 4))
    assert "- The needle stands at ninety. (the passage does not tell ninety of it)" in one.core.prompts[1]
    one.close()
    stored = stored_bytes(tmp_path)
    assert all(true.encode() in stored for true in TRUE) and not any(false.rstrip(".").encode() in stored for false in FALSE)


class Noting(doubles.QuickCore):
    """A core that writes into a file what it is asked, a task a line."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def infer(self, requests):
        with self.path.open("a") as file:
            file.write(f"{requests[0].task}\n")
        return super().infer(requests)


def killed_at(folder, number, is_stored, brief=BRIEF, learnt=(("pump.md", MANUAL),)):
    """Think a mission in a process of its own, which is killed at the commit of that number: once it is stored, or before.
    Where there are not so many commits it ends with 1."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)
    one = Machine(folder / "image.fs", Noting(folder / "asked"), {})
    numbers, commit = itertools.count(), batos.WritingLane._commit
    for doc_id, text in learnt:
        one.learn(text, doc_id)

    def ending(lane, unit, outcomes, entries):
        of_mission = outcomes[0][0].job.name in ("accept", "journal", "effect")
        at = next(numbers) if of_mission else None
        if at == number and not is_stored:
            os.kill(os.getpid(), 9)
        told = commit(lane, unit, outcomes, entries)
        if at == number:
            os.kill(os.getpid(), 9)
        return told
    batos.WritingLane._commit = ending
    try:
        one.think(brief)
    finally:
        os._exit(1)


@pytest.mark.slow
@pytest.mark.parametrize("number, is_stored, journal, asked", [
    (0, True, [], ["plan"]),
    (1, False, [], ["plan"]), (1, True, ["recall"], ["plan"]),
    (2, False, ["recall"], ["plan", "plan"]),
    (2, True, ["recall", "plan", "who speaks", "recall for facets", "facets", "gate"], ["plan"])])
def test_a_mission_that_is_killed_at_any_commit_goes_on_and_no_stored_answer_is_asked_again(
        tmp_path, machine, number, is_stored, journal, asked):
    assert os.WTERMSIG(killed_at(tmp_path, number, is_stored)[1]) == 9
    with_image = batos.Image.open(str(tmp_path / "image.fs"))
    with batos.reading(with_image) as root:
        (cycle,) = root["missions"].values()
        assert [entry.name for entry in cycle.journal] == journal
        oid, has_ended = batos.cycle_id(cycle), cycle.result is not None
    with_image.close()
    one = machine(Noting(tmp_path / "asked"))
    if not has_ended:
        one.ended(oid)
    report = one.read(lambda root: batos.cycle_report(batos.find_cycle(root, oid)))
    assert report["state"] == "COMPLETE" and report["evidence"] and has_ended == (journal[-1:] == ["gate"])
    assert (tmp_path / "asked").read_text().split() == asked
    assert one.read(lambda root: list(root["active_cycles"])) == []


def test_a_mission_thinks_in_memory_and_each_step_is_entered_once(machine, monkeypatch):
    """The image is asked for its cycle once to begin, and once by each lane that stores."""
    entered, found, enter, find = [], [], batos._enter, batos.find_cycle

    def noting(cycle, taken):
        entered.append(taken.name)
        return enter(cycle, taken)

    def finding(root, oid):
        found.append(threading.current_thread().name.split("-")[0])
        return find(root, oid)
    monkeypatch.setattr(batos, "_enter", noting)
    monkeypatch.setattr(batos, "find_cycle", finding)
    one = machine()
    one.learn()
    one.think()
    assert entered == ["recall", "plan", "who speaks", "recall for facets", "facets", "gate"]
    assert found == ["mission", "write", "bulk"]


def test_a_ledger_page_does_not_tell_again_what_a_journal_tells(machine):
    one = machine()
    one.learn()
    report = one.think()

    def changed(root):
        pages = [*root["ledger_obj"].write.values(), *root["ledger_obj"].bulk.values()]
        entries = [entry for page in pages for entry in page.entries]
        mine = [entry for entry in entries if entry["cycle"] == report["cycle"]]
        changes = [slot for entry in mine for _, slot, *_ in entry["changes"]]
        return [entry["command"] for entry in mine], changes
    names, changes = one.read(changed)
    assert names == ["journal", "effect"]
    assert changes and not {"journal", "result", "_tmp_synthesis_data", "synthesis_state*"}.intersection(changes)
    data = one.read(lambda root: batos.find_cycle(root, report["cycle"])._tmp_synthesis_data)
    assert "final_response" not in data and "partial_responses" in data and report["answer"]


def test_what_the_journal_has_of_evidence_it_has_once(machine):
    """The passages stand in what was recalled; what facets were asked over names them by their place."""
    one = machine()
    one.learn()
    report = one.think()
    entries = one.read(lambda root: {e.name: e.answer for e in batos.find_cycle(root, report["cycle"]).journal})
    assert entries["recall"]["evidence"] == report["evidence"]
    assert [request["evidence"] for request in entries["recall for facets"]["asked"].values()] == [[0], [0]]
    other = {"text": "It never was recalled."}
    request = {"sub_query": "valve", "evidence": [other, report["evidence"][0]]}
    placed = batos._with_its_places(request, report["evidence"])
    assert placed["evidence"] == [other, 0] and batos._with_passages(placed, report["evidence"]) == request


def test_what_was_told_before_a_crash_is_told_again_and_once(machine):
    first = machine(Speaker(f"{TRUE[0]} ", batos.Abandoned()))
    infer = first.core.infer_

    def dies(*args, on_text, **how):
        infer(*args, on_text=on_text, **how)
        on_text("Then it ")                              # so that the sentence before is whole
        raise batos.Abandoned
    first.core.infer_ = dies
    first.learn()
    oid = first.accept()
    while not first.read(lambda root: batos.words_told(batos.find_cycle(root, oid))):
        time.sleep(0.01)
    first.close()
    second = machine(Speaker(" ".join(TRUE)))
    assert second.ended(oid)["answer"].splitlines()[1] == " ".join(TRUE)
    assert second.read(lambda root: batos.words_told(batos.find_cycle(root, oid))) == list(TRUE)


@pytest.mark.parametrize("said, told", [("Nobody knows. ", 0), (f"{TRUE[1]} ", 1)])
def test_a_core_that_says_the_same_again_and_again_is_stopped(machine, said, told):
    one, written = machine(Speaker(f"{said} x")), []

    def loops(*args, on_text, cancel, **how):
        while not cancel.is_set():
            on_text(said)
            written.append(said)
            time.sleep(0.005)
        raise batos.Cancelled("as was wished")
    one.core.infer_ = loops
    one.learn()
    report = one.think()
    assert report["state"] == "COMPLETE" and len(report["answer"].splitlines()) == 1 + told and len(written) >= batos._LOOP
    assert report["words"] is bool(told)


@pytest.mark.parametrize("said, words, code", [
    ([batos.CoreFailed("worn out")], [], "CoreFailed"), (["Nobody knows."], [], "NotBorneOut"), ([""], [], "NotBorneOut"),
    ([f"{TRUE[1]} {FALSE[0]}", batos.CoreFailed("worn out")], [TRUE[1]], "CoreFailed")])
def test_where_no_words_are_left_the_passages_are_the_answer(machine, said, words, code):
    one = machine(Speaker(*said))
    one.learn()
    report = one.think()
    assert report["state"] == "COMPLETE" and report["words"] is False and report["why_no_words"]["code"] == code
    assert report["answer"].splitlines()[1:] == words and report["evidence"]
    assert report["answer"].startswith("\u201cTurn the brass")


def test_the_prompt_has_as_many_passages_as_the_core_has_room_for():
    items = [[number, {"text": f"{number} " + "word " * 200}] for number in (1, 2, 3)]
    fields = {"passages": items, "question": "Why?"}
    told = [batos.words_prompt(fields, {}, tokens) for tokens in (900, 1100, 8192)]
    assert [sum(f"[{number}] {number} word" in one for number in (1, 2, 3)) for one in told] == [1, 2, 3]
    assert all(one.endswith("\n\nWhy?") for one in told)


def test_a_cycle_that_recalled_other_passages_for_another_core_is_written_over_those_that_were_told():
    told = {"text": "The bell is of brass."}
    journal = [types.SimpleNamespace(name="recall", answer={"evidence": [told]})]
    asked = {"sub_query": "x", "evidence": [{"text": "Others."}]}
    cycle = types.SimpleNamespace(journal=journal, _tmp_synthesis_data={})
    thought = batos.words_wanted(cycle, PILLAR, asked)
    assert thought.requests[0][1]["passages"] == [[1, told]]


@pytest.mark.parametrize("said, given, cited", [
    ("The lamp burns for nine hours.", (), (2,)), ("The lamp burns for nine hours.", (1,), (2,)),
    ("The bell is of brass.", (9,), (1,)), ("The bell is of brass, and the lamp burns for nine hours.", (1, 2), (1, 2)),
    ("The lamp is of brass.", (2,), ()), ("A lamp of tin is heavy.", (1,), (3,))])
def test_code_sets_the_number_of_the_passage_that_bears_a_sentence_out(said, given, cited):
    texts = ("The bell is of brass.", "The lamp burns for nine hours.", "Each lamp of tin is heavy. A lamp of tin is heavy.")
    passages = {number: {"text": text, "doc_id": "a.md"} for number, text in enumerate(texts, 1)}
    assert batos._borne_out_by(said, passages, given)[0] == cited


# Words of a core that is quick: it reads more, is asked where nothing is sure, and each point of view has a voice

SHED = ("The shed key hangs behind the blue door. The shed is painted every second spring with linseed oil. "
        "The roof of the shed was mended in 1998 by Harlow. ")
ABOUT_SHED = {"type": "direct_synthesis", "selector": "answer_", "args": ["Where does the shed key hang?"]}


class Quick(Speaker):
    """A Speaker that answers in moments. `voices`: what each persona says where it is asked for its point of view."""

    is_quick = True

    def __init__(self, *said, voices=None, **how):
        super().__init__(*said, **how)
        self.voices, self.heard = voices or {}, []

    def infer_(self, prompt, persona=None, system_prompt=None, on_text=None, **how):
        if on_text is not None:
            return super().infer_(prompt, persona, system_prompt, on_text, **how)
        self.heard.append((persona, system_prompt, prompt))
        said = self.voices.get(persona, "")
        if isinstance(said, BaseException):
            raise said
        return said


def learn_sheds(one):
    """Learn one passage that answers, and four of other documents that a core reads besides."""
    one.learn(SHED, "shed.md")
    for number, tree in enumerate(("oak", "elm", "ash", "yew")):
        one.learn(f"The key of the {tree} gate hangs on nail {number + 20}. The {tree} gate creaks in winter.", f"{tree}.md")


def test_what_a_quick_core_read_besides_is_told_with_the_sentence_that_it_bears_out(machine):
    one, heard = machine(Quick("The shed key hangs behind the blue door. The yew gate creaks in winter when a key turns. "
                               "The yew gate creaks in winter. The key of the yew gate hangs on nail 23.")), []
    one.mind._listener = lambda oid: lambda text, evidence: heard.append((text, [item["doc_id"] for item in evidence]))
    learn_sheds(one)
    report = one.think(ABOUT_SHED)
    told = [item["doc_id"] for item in report["evidence"]]
    number = told.index("yew.md") + 1
    first = [item["doc_id"] for item in one.read(
        lambda root: batos.journalled(batos.find_cycle(root, report["cycle"]), "recall")["evidence"])]
    assert told == [*first, "yew.md"] and "yew.md" not in first         # it was told by the words alone, and once
    assert report["answer"].splitlines()[1] == ("The shed key hangs behind the blue door [1]. "
                                                f"The key of the yew gate hangs on nail 23 [{number}].")
    assert heard[-1] == (f" The key of the yew gate hangs on nail 23 [{number}].", ["yew.md"])
    assert all(f"[{n}] The key of the" in one.core.prompts[0] for n in range(len(first) + 1, 5))
    assert report["certainty"] == "sure" and report["words"] is True
    assert report["evidence"][number - 1]["also"] == report["lead"]     # so it is told behind the answer
    printed = batos.told_answer(report)
    assert printed[-1].startswith(f"[{number}] yew.md:1 (also, by {report['lead']})")
    assert [line[:3] for line in printed[:len(first)]] == [f"[{n}]" for n in range(1, len(first) + 1)]


def test_passages_that_were_brought_before_a_crash_keep_their_numbers(machine):
    first = machine(Quick("The key of the yew gate hangs on nail 23. ", batos.Abandoned()))
    infer = first.core.infer_

    def dies(*args, on_text, **how):
        infer(*args, on_text=on_text, **how)
        on_text("Then it ")
        raise batos.Abandoned
    first.core.infer_ = dies
    learn_sheds(first)
    oid = first.accept(ABOUT_SHED)
    while not first.read(lambda root: batos.words_told(batos.find_cycle(root, oid))):
        time.sleep(0.01)
    told = first.read(lambda root: batos.words_told(batos.find_cycle(root, oid)))
    first.close()
    second = machine(Quick("The key of the oak gate hangs on nail 20. The key of the yew gate hangs on nail 23."))
    report = second.ended(oid)
    words = report["answer"].splitlines()[1]
    assert words.startswith(told[0]) and words.count("yew") == 1
    cited = [int(number) for number in re.findall(r"\[(\d+)\]", words)]
    assert [report["evidence"][number - 1]["doc_id"] for number in cited] == ["yew.md", "oak.md"]


NEAR = {"type": "direct_synthesis", "selector": "answer_", "args": ["How many windows does the shed have?"]}


@pytest.mark.parametrize("is_quick", [True, False])
def test_a_quick_core_is_asked_what_comes_near_and_that_stays_named_so(machine, is_quick):
    one = machine(Quick("The roof of the shed was mended in 1998 by Harlow."))
    one.core.is_quick = is_quick
    one.learn(SHED, "shed.md")
    report = one.think(NEAR)
    assert report["certainty"] == "nearest" and report["relevant"] is False and report["evidence"]
    assert report["answer"].startswith("Nothing here says it outright; nearest:")
    assert len(one.core.prompts) == is_quick
    assert report.get("words", False) is is_quick
    assert ("\nThe roof of the shed was mended in 1998 by Harlow [1]." in report["answer"]) is is_quick


@pytest.mark.parametrize("said", [batos.CoreFailed("worn out"), "Nobody knows."])
def test_where_a_core_says_nothing_of_what_comes_near_it_is_told_as_ever(machine, said):
    one = machine(Quick(said))
    one.learn(SHED, "shed.md")
    report = one.think(NEAR)
    assert report["state"] == "COMPLETE" and report["certainty"] == "nearest" and report["words"] is False
    assert report["answer"].startswith("Nothing here says it outright; nearest:") and "\n" not in report["answer"]


VOICES = {"BRICK": "The needle is set by the brass valve [1]. The valve costs ninety pounds [1].",
          "ROBIN": "Turn the brass valve until the needle stands at zero [1].", "ALFRED": batos.CoreFailed("worn out")}


def test_each_point_of_view_says_what_it_sees_and_the_lead_gathers_it(machine):
    core = Quick("Turn the brass valve until the needle stands at zero.", "", voices=VOICES, strategy="Technical Deconstruction")
    one = machine(core)
    one.learn()
    report = one.think()
    asked = [persona for persona, *_ in core.heard]
    wanted = batos.personas_of(report["pillars"])
    assert sorted(asked) == sorted(wanted) and len(asked) > 1
    assert all(f"You speak as {persona}." in told for persona, told, _ in core.heard)
    parts = one.read(lambda root: batos.find_cycle(root, report["cycle"])._tmp_synthesis_data["partial_responses"])
    frames = {batos.owner_of(pillar): part["frame"] for pillar, part in parts.items()}
    others = {name for name in wanted if isinstance(VOICES.get(name), str)} - {report["lead"]}
    assert others and all(name in frames for name in others)
    assert not any("ninety" in frame for frame in frames.values())       # no passage bears it out
    assert all(f"- {name}: {frames[name]}" in core.prompts[0] for name in others)
    assert report["words"] is True and frames[report["lead"]] == report["answer"].splitlines()[1]


@pytest.mark.parametrize("asked, how, read", [
    (ABOUT_SHED, {}, "\n[4] The key"), (None, {"voices": VOICES, "strategy": "Technical Deconstruction"}, "\n- BRICK: ")])
def test_what_a_core_that_writes_learns_from_is_what_it_was_asked(machine, asked, how, read):
    """With what it read besides, and what the others said of it."""
    core = Quick("The shed key hangs behind the blue door. Turn the brass valve until the needle stands at zero.", "", **how)
    one = machine(core)
    learn_sheds(one)
    one.learn()
    report = one.think(asked) if asked else one.think()
    learnt = one.read(lambda root: batos.words_asked(batos.find_cycle(root, report["cycle"])))
    assert learnt["prompt"] == core.prompts[0] and learnt["lead"] == report["lead"]
    assert read in learnt["prompt"]


@pytest.mark.parametrize("how", [{"core_voices": False}, {"strategy": "Factual Inquiry"}, {"is_quick": False}])
def test_a_question_of_fact_a_slow_core_and_who_wants_none_hear_no_voices(machine, how):
    core = Quick("Turn the brass valve until the needle stands at zero.", voices=VOICES,
                 strategy=how.get("strategy", "Technical Deconstruction"))
    core.is_quick = how.get("is_quick", True)
    one = machine(core, core_voices=how.get("core_voices", True))
    one.learn()
    report = one.think()
    assert core.heard == [] and report["state"] == "COMPLETE" and report["words"] is True


def test_a_server_is_quick_until_its_answers_take_long(monkeypatch):
    core = batos.RemoteCore("http://127.0.0.1:9/v1")
    assert core.is_quick is False                        # nobody is there
    monkeypatch.setattr(core._turns, "ready", lambda: core.servers)
    took_s = core.servers[0].tally._took_s
    assert core.is_quick is True                         # it was not asked yet
    took_s.extend([batos._QUICK_S, 1.0, 90.0])
    assert core.is_quick is True
    took_s.append(90.0)
    assert core.is_quick is False


# Facets as methods

PILLAR = "tamland_facet_"


def facet_asked(machine, source=None):
    """Have a question thought through one pillar whose method is `source`; returns (machine, the facet's fields, report)."""
    asked = []
    one = machine(Speaker(strategy="Technical Deconstruction"))
    words, one.mind._words = one.mind._words, lambda mission, fields, *how: asked.append(fields) or words(mission, fields, *how)
    one.learn()
    if source:
        one.lanes["bulk"].call(batos.Job("give", lambda root: str(batos.bring_in(
            root["brick_prototype_obj"], PILLAR, source, author="ann", intent="")), token=True))
    return one, asked, one.think()


def facet_method(one):
    def told(root):
        method = batos.own(root["brick_prototype_obj"]).get(PILLAR)
        return method and {name: batos.own(method).get(name) for name in ("source", "author", "intent", "status", "version")}
    return one.read(told)


def test_a_pillars_intent_becomes_its_method_the_first_time_it_is_asked_for(machine):
    one, asked, report = facet_asked(machine)
    made = facet_method(one)
    assert report["state"] == "COMPLETE" and made["author"] == f"cycle {report['cycle']} (local)" and made["version"] == 1
    intent = one.read(lambda root: root["brick_prototype_obj"].pillars[PILLAR].intent)
    assert made["intent"] == intent and intent in made["source"]
    assert [prompt.endswith(intent) for prompt in one.core.prompted if prompt] == [True]
    again = one.think()
    assert again["state"] == "COMPLETE" and facet_method(one) == made
    assert asked[1]["passages"] == asked[0]["passages"]          # by the stored method, in a child, as before


def test_what_the_intents_own_method_says_is_taken_for_said(machine):
    """It is known, so no child is asked; a child that is says the same."""
    one, asked, _ = facet_asked(machine)
    evidence = [{"text": f"{asked[0]['passages'][0]} {number}"} for number in range(99)]
    facet = one.read(lambda root: batos._facet_of(root, PILLAR, "the brass valve", evidence))
    taken = batos._facet_asked(None, facet)
    assert taken == batos._facet_asked(one.lanes["method"], facet._replace(prompt=None))
    assert len(taken["evidence"]) <= batos.EVIDENCE_MOST and "failed" not in taken


def revise(one, intent):
    one.lanes["write"].call(batos.Job("revise", lambda root: batos.set_slot(
        root["brick_prototype_obj"].pillars[PILLAR], "intent", intent)))


@pytest.mark.parametrize("older", [False, True])
def test_a_revised_intent_renews_the_method_that_it_became(machine, older):
    one, _, _ = facet_asked(machine)
    if older:                                            # images of before have no digest of the intent
        one.lanes["write"].call(batos.Job("age", lambda root: batos.remove_slot(
            root["brick_prototype_obj"].tamland_facet_, "intent_digest")))
    revise(one, "Say it in one word.")
    report, made = one.think(), facet_method(one)
    assert report["state"] == "COMPLETE" and made["version"] == 2 and made["intent"] == "Say it in one word."
    assert made["source"] == batos.facet_source(PILLAR, "Say it in one word.")
    assert [prompt for prompt in one.core.prompted if prompt][-1].endswith("Say it in one word.")
    assert one.think()["state"] == "COMPLETE" and facet_method(one) == made


def test_a_facet_that_a_person_wrote_stays_when_its_intent_is_revised(machine):
    source = batos.facet_source(PILLAR, "Say what it is.").replace("list(evidence)", "list(evidence)[::-1]")
    one, _, _ = facet_asked(machine, source)
    revise(one, "Say it in one word.")
    assert one.think()["state"] == "COMPLETE" and facet_method(one)["source"] == source


def test_a_revised_facet_says_what_is_asked(machine):
    source = (f"def {PILLAR}(self, sub_query, evidence=()):\n"
              "    return {'sub_query': 'valve', 'evidence': evidence[-1:], 'prompt': 'Be brief, ' + self.name}\n")
    one, asked, report = facet_asked(machine, source)
    assert report["state"] == "COMPLETE" and asked[0]["question"] == "valve"
    assert any(prompt.endswith("Be brief, BRICK") for prompt in one.core.prompted if prompt)
    assert len(asked[0]["passages"]) == 1
    assert len(report["evidence"]) == 1


@pytest.mark.parametrize("body, why", [
    ("return 1 / 0", "ZeroDivisionError"), ("return {'sub_query': '', 'evidence': [], 'prompt': ''}", "no request"),
    ("return {'sub_query': 'a', 'evidence': [{'text': 'The moon is of cheese.'}], 'prompt': 'b'}", "no request")])
def test_a_facet_that_fails_is_asked_as_its_pillar_says(machine, body, why):
    one, asked, report = facet_asked(machine, f"def {PILLAR}(self, sub_query, evidence=()):\n    {body}\n")
    assert report["state"] == "COMPLETE" and asked[0]["question"] == BRIEF["args"][0]
    entry = one.read(lambda root: next(entry for entry in batos.find_cycle(root, report["cycle"]).journal
                                       if entry.name == "recall for facets").answer)
    assert why in entry["asked"][PILLAR]["failed"]


def test_what_memory_holds_is_not_noted_with_a_facet_that_fails(machine):
    one, _, report = facet_asked(machine, f"def {PILLAR}(self, sub_query, evidence=()):\n    raise NameError(evidence)\n")
    assert report["state"] == "COMPLETE"

    def failed(root):
        return batos.own(root["brick_prototype_obj"])[PILLAR].failed
    noted = one.read(failed)
    assert noted["details"] == "NameError" and noted["args"] is None


def test_a_cycle_of_the_version_before_goes_on_from_its_journal(machine):
    first = machine(Speaker(batos.Abandoned()))
    first.learn()
    oid = first.accept()
    while not first.core.prompts:
        time.sleep(0.01)

    def as_it_was(root):
        entry = next(entry for entry in batos.find_cycle(root, oid).journal if entry.name == "recall for facets")
        entry.answer = {pillar: facet["evidence"] for pillar, facet in entry.answer["asked"].items()}
        cycle = batos.find_cycle(root, oid)
        cycle.journal = tuple(entry for entry in cycle.journal if entry.name != "who speaks")
    first.lanes["write"].call(batos.Job("as it was", as_it_was))
    first.close()
    assert machine().ended(oid)["state"] == "COMPLETE"


@pytest.mark.parametrize("mission, about_self", [
    ("What is genesis_obj made of?", True), ("what does failed_cycle_log hold", True), ("Is genesis_object here?", False),
    ("x" * 400_000, False), ("x_" * 200_000, False), ("genesis_obj" * 40_000, False)])
def test_a_mission_that_names_a_root_object_looks_into_what_the_system_says_of_itself(mission, about_self):
    cycle = types.SimpleNamespace(mission_brief={}, _tmp_synthesis_data={})
    places = batos._places(cycle, mission, {"genesis_obj": 1, "failed_cycle_log": 2})
    assert ({"scope": "self"} in places) == about_self
