"""What the system does for itself: audits of what failed, one remedy at a time, and the heartbeat that begins them."""

import threading

import doubles
import pytest

import batos

WAIT_S = 300
MEAN = "def mean(self):\n    return sum(self.prices) / len(self.prices)\n"
OURS = "cycle 0x1 (local)"


class Kept:
    """A mind with a method lane, a core's double and no socket."""

    def __init__(self, folder, core, **settings):
        self.image = batos.Image.open(f"{folder}/image.fs")
        batos.genesis(self.image)
        self.settings = batos.load_settings({"workers": 1, **settings}, {})
        self.uvm = batos.BatOS_UVM(self.image, self.settings, core)
        self.ended, self._more = [], threading.Condition()
        self.uvm.mind._ended_hook = self._note
        for lane in self.uvm.lanes.values():
            lane.start()
        self.uvm.mind.start(self.uvm.events)

    def _note(self, oid, report):
        with self._more:
            self.ended.append(report)
            self._more.notify_all()

    def reports(self, count):
        """Wait for so many ended cycles in all; returns their reports."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.ended) >= count, WAIT_S), self.ended
            return self.ended

    def write(self, apply):
        outcome = self.uvm.lanes["write"].call(batos.Job("test", apply), WAIT_S)
        if outcome.error:
            raise outcome.error
        return outcome.result

    def audit(self):
        return self.write(lambda root: batos.send(root["autotelic_obj"], batos._AUDIT[1]))

    def shelf(self, source, author=OURS, name="mean", failing=3, args=(), **slots):
        """Make an object with a method that has failed so often; returns the object's oid."""
        def apply(root):
            obj = root["it"] = batos.UvmObject(**{"parent*": [root["traits_obj"]], **slots})
            root._p_jar.add(obj)
            made = batos._install_method(obj, name, source, author=author, intent="",
                                        asked={"slots": {"prices": "numbers"}, "arguments": ["number"] * len(args)})
            failure = {"details": "ZeroDivisionError: division by zero", "receiver": obj._p_oid, "args": list(args)}
            if failing:
                batos._count_method(made, [failure] * failing)
            return batos.oid_text(obj._p_oid)
        return self.write(apply)

    def method(self, name="mean"):
        with batos.reading(self.image) as root:
            found = batos.own_method(root["it"], name)
            return {field: batos.own(found).get(field) for field in ("status", "version", "source", "failures_in_a_row")}

    def close(self):
        self.uvm.close_lanes()
        self.image.close()


@pytest.fixture
def kept(tmp_path):
    made = []

    def make(settings=None, **values):
        core = doubles.QuickCore(**values)
        writing(core)
        made.append(Kept(tmp_path, core, **(settings or {})))
        return made[-1]
    yield make
    for one in made:
        one.close()


def bodies(*lines):
    """Return what a core that writes answers: one body after the other."""
    left = list(lines)
    return lambda fields: batos.method_value(f"n\n{left.pop(0)}", fields) | {"idiom": batos.FREE}


def writing(core):
    """Let a core be one that writes, and makes up no examples."""
    core.writes, core.infer_ = True, lambda *asked, **fields: ""


def test_an_audit_of_a_sound_image_says_so(kept):
    one = kept()
    one.audit()
    report, = one.reports(1)
    assert report["state"] == "COMPLETE" and report["who"] == "ALFRED_AUDITOR" and "Nothing has failed" in report["answer"]


def test_a_method_that_works_by_now_is_on_trial_again(kept):
    one = kept()
    one.shelf(MEAN, prices=[1, 2])                       # it failed while the list was empty
    assert one.method()["status"] == "quarantined"
    one.audit()
    audit, remedy = one.reports(2)
    assert "mean of" in audit["answer"] and "quarantine" in audit["answer"] and "I begin" in audit["answer"]
    assert remedy["who"] == "UVM_AUTOTELIC" and remedy["type"] == "systemic_self_improvement"
    assert "version 1 of it works now" in remedy["answer"]
    assert one.method() == {"status": "trial", "version": 2, "source": MEAN, "failures_in_a_row": 0}


def test_a_method_that_fails_still_is_written_anew_and_does_the_rest_as_before(kept):
    guarded = "return sum(self.prices) / len(self.prices) if self.prices else 0"
    one = kept(method=bodies("return len(self.prices)", guarded))
    one.shelf(MEAN, prices=[])
    one.audit()
    _, remedy = one.reports(2)
    assert remedy["state"] == "COMPLETE" and remedy["attempts"] == 2, remedy     # the first did otherwise than before
    made = one.method()
    assert made["version"] == 2 and made["status"] == "trial" and "if self.prices" in made["source"]
    with batos.reading(one.image) as root:
        assert not root["autotelic_obj"].pending
        assert not list(batos._methods_in_quarantine(root))


def test_a_method_that_a_person_wrote_is_left_to_the_person_and_told_once(kept):
    one = kept()
    one.shelf(MEAN, author="ann", prices=[])
    one.audit()
    report, = one.reports(1)
    assert "ann wrote it" in report["answer"] and "nothing that I may see to" in report["answer"]
    with batos.reading(one.image) as root:
        assert batos._something_wrong(root) is None
    assert one.method()["status"] == "quarantined"


def test_one_thing_at_a_time_and_the_rest_waits(kept):
    guarded = "return 0 if not self.prices else sum(self.prices) / len(self.prices)"
    one = kept(method=bodies(guarded, guarded))

    def second(root):
        made = batos._install_method(root["it"], "other", MEAN.replace("mean", "other"), author=OURS, intent="",
                                    asked={"slots": {"prices": "numbers"}, "arguments": []})
        batos._count_method(made, [{"details": "x", "receiver": root["it"]._p_oid, "args": []}] * 3)
    one.shelf(MEAN, prices=[])
    one.write(second)
    one.audit()
    one.reports(2)
    with batos.reading(one.image) as root:
        assert len(root["autotelic_obj"].pending) == 1 and "1 finding waits" in batos._something_wrong(root)
    one.audit()
    reports = one.reports(4)
    assert [report["state"] for report in reports] == ["COMPLETE"] * 4, reports
    assert one.method()["status"] == one.method("other")["status"] == "trial"


def test_what_failed_of_the_moment_is_begun_again_once(kept):
    calls, write = [], bodies("return sum(self.prices)")

    def method(fields):
        calls.append(fields["selector"])
        if len(calls) == 1:
            raise batos.DeadlineExceeded("the core had no answer")
        return write(fields)
    one = kept(method=method)

    def miss(root):
        obj = root["it"] = batos.UvmObject(**{"parent*": [root["traits_obj"]], "prices": [1, 2]})
        root._p_jar.add(obj)
        brief = {"type": "unhandled_message", "selector": "sum_up", "args": [], "kwargs": {}}
        batos.send(root["orchestrator_obj"], "start_cognitive_cycle_for_", brief, batos.oid_text(obj._p_oid))
    one.write(miss)
    one.reports(1)
    one.audit()
    failed, audit, again = one.reports(3)
    assert failed["state"] == "FAILED" and "by DeadlineExceeded" in audit["answer"] and "begun again" in audit["answer"]
    assert again["state"] == "COMPLETE" and "sum(self.prices)" in again["source"] and again["guess"]


def test_failures_of_questions_are_told_and_not_repeated(kept):
    def breaks(*asked, **fields):
        raise batos.CoreFailed("the core broke")
    one = kept()
    one.uvm.core.infer_ = breaks

    def ask(root):
        batos.index_document_(root["knowledge_catalog_obj"], "a", "A canal lock has two gates.")
        for _ in range(3):
            batos.send(root["orchestrator_obj"], "start_cognitive_cycle_for_",
                       {"type": "direct_synthesis", "selector": "q", "args": ["canal lock gates"], "kwargs": {}})
    one.uvm.lanes["bulk"].call(batos.Job("ask", ask, token=True), WAIT_S)
    one.reports(3)
    one.audit()
    report = one.reports(4)[3]
    assert "3 missions (direct_synthesis) failed again and again by CoreFailed" in report["answer"]
    one.audit()
    assert "Nothing has failed" in one.reports(5)[4]["answer"]


def test_failures_of_its_own_are_no_reason_for_another_audit(kept):
    one = kept(method=bodies("return 1", "return 2", "return 3"))
    one.shelf(MEAN, prices=[])
    one.audit()
    audit, remedy = one.reports(2)
    assert remedy["state"] == "FAILED" and remedy["reason"]["code"] == "MethodUnwritten"
    assert "the version before answered" in remedy["reason"]["details"]
    with batos.reading(one.image) as root:
        assert batos._something_wrong(root) is None
    assert one.method()["status"] == "quarantined"


def test_a_mission_may_mend_a_method_on_request_and_names_what_there_is(kept):
    one = kept()

    def ask(selector):
        def apply(root):
            brief = {"type": batos.MEND[0], "selector": batos.MEND[1], "args": [selector], "kwargs": {}}
            batos.send(root["orchestrator_obj"], "start_cognitive_cycle_for_", brief, batos.oid_text(root["it"]._p_oid))
        one.write(apply)
    one.shelf("def add_(self, price):\n    return self.prices[0] + price\n", author="ann", name="add_", args=[2], prices=[1])
    for selector in ("add_", "ad_", 7):
        ask(selector)
    right, wrong, odd = one.reports(3)
    assert right["state"] == "COMPLETE" and "version 1 of it works now" in right["answer"], right
    assert wrong["reason"]["code"] == "NotFound" and "add_" in wrong["reason"]["details"] and odd["state"] == "FAILED"


def test_what_somebody_put_among_the_findings_is_left_out(kept):
    one = kept()
    forged = {"what": "x", "times": 1, "of": "y", "why": "z"}
    rows = ["x", 7, {"what": "x"}, {**forged, "remedy": None}, {**forged, "remedy": [{"type": "direct_synthesis"}, "0x1"]},
            {**forged, "remedy": ["again", 7]}]
    one.write(lambda root: str(root["autotelic_obj"].setSlot_value_("pending", rows)))
    with batos.reading(one.image) as root:
        assert batos._something_wrong(root) is None
    one.audit()
    assert "Nothing has failed" in one.reports(1)[0]["answer"]


def test_an_audit_begins_no_second_one(kept):
    held, write = threading.Event(), bodies("return 0 if not self.prices else sum(self.prices) / len(self.prices)")

    def method(fields):
        held.wait(WAIT_S)
        return write(fields)
    one = kept(method=method)
    one.shelf(MEAN, prices=[])
    first = one.audit()
    one.reports(1)                                       # its remedy is at work now
    remedy = one.audit()
    assert remedy != first and one.audit() == remedy
    held.set()
    assert [report["cycle"] for report in one.reports(2)] == [first, remedy]


def test_the_day_has_a_budget(kept):
    one = kept()
    one.shelf(MEAN, author="ann", prices=[])
    assert one.write(batos._begin_due_audit(0))["cycle"] is None
    told = one.write(batos._begin_due_audit(1))
    assert told["cycle"] and "1 method is in quarantine" in told["told"]
    one.reports(1)
    assert one.write(batos._begin_due_audit(1))["told"] == "nothing went wrong since the last audit"


def test_it_beats_when_due_and_idle_and_tells_why(kept):
    one = kept({"heartbeat_first_s": 0.0, "heartbeat_s": 1000.0})
    one.shelf(MEAN, author="ann", prices=[])
    one.uvm.pending = 1
    one.uvm.heartbeat.look()
    assert one.uvm.heartbeat.last is None                # somebody wants something
    one.uvm.pending = 0
    one.uvm.heartbeat.look()
    one.reports(1)
    health = one.uvm.heartbeat.health()
    assert "ALFRED looks at it" in health["last"]["told"] and health["next_s"] > 900 and health["on"]
    one.uvm.heartbeat.look()
    assert len(one.ended) == 1


def test_it_can_be_switched_off(kept):
    one = kept({"heartbeat": False, "heartbeat_first_s": 0.0})
    one.shelf(MEAN, author="ann", prices=[])
    one.uvm.heartbeat.look()
    assert one.uvm.heartbeat.last is None
    assert one.uvm.heartbeat.health() == {"on": False, "next_s": None, "last": None, "cem": None}
