"""The mind improves itself: the gap, the dataset, the successor, the verdict, the swap; and whatever is killed, one mind."""

import contextlib
import itertools
import os
import shutil
import signal
import threading
import time

import doubles
import pytest
from test_forge import corrected, filled, reader
from test_lineage import parents
from test_mind import Machine

import batos

WAIT_S = 300


def taught(where, rows):
    """Have an image hold the documents that rows are about."""
    image = batos.Image.open(where)
    with batos.writing(image) as root:
        for row in rows.values():
            for one in row["passages"]:
                batos.index_document_(root["knowledge_catalog_obj"], one["doc_id"], one["text"])
    image.close()


class Improver(Machine):
    """Image, lanes and missions, and a forge that does nothing but what the arrows of a job are: `wins` of its held rows."""

    candidate = __file__                                 # what it makes of the reader

    def __init__(self, path, wins=20, count=120, **settings):
        self.wins, self.is_held = wins, False
        if not path.exists():
            self.fill(str(path), count)
        super().__init__(path, doubles.QuickCore(), settings)
        self._ending = threading.Event()
        self._forger = threading.Thread(target=self._forge, daemon=True)
        self._forger.start()

    @staticmethod
    def fill(where, count=120):
        """Make an image with rows."""
        filled(where, corrected(count), dataset=False)
        taught(where, corrected(count))

    def became(self):
        """Return the version of what was forged, and how many versions it had."""
        return self.read(lambda root: (root["reader_obj"].version, len(root["reader_obj"].lineage)))

    def _forge(self):
        while not self._ending.wait(0.01):
            with batos.reading(self.image) as root:
                work = batos._next_work(root)
            if work is not None and not self.is_held:
                self._carry(work)

    def _carry(self, work):
        number, nonce = work.number, f"{work.phase} {batos.uuid7()}"

        def done(apply):
            return self.lanes["bulk"].call(batos.Job("forge", apply, who="UVM_FORGE", why="an arrow")).result
        done(batos.arrow_begun(number, work.at_work, 1, nonce))
        if work.phase == "train":
            done(batos.arrow_trained(number, nonce, self.candidate, {"steps": 1, "corrected": 1, "losses": [1.0]}))
            return
        held, suites = [[0, 1]] * self.wins + [[1, 1]] * (30 - self.wins), {"first": [[1, 1]] * 100}
        done(batos.arrow_decided(number, nonce, {"held": held, "suites": suites, "suite_sha256": "x"}))

    def close(self):
        self._ending.set()
        self._forger.join()
        super().close()

    def send(self, target, selector, *args):
        return self.lanes["write"].call(batos.Job("send", lambda root: batos.send(
            batos.resolve(root, target), selector, *args), who="me")).result

    def jobs(self):
        return self.read(lambda root: [batos.job_told(job) for job in root["forge_obj"].jobs.values()])

    def minds(self):
        return self.read(lambda root: batos.send(root["pLLM_lineage"], "minds_"))


@contextlib.contextmanager
def opening(kind, folder):
    """Give a function that opens machines of a kind over the image of a folder; all are closed afterwards."""
    with contextlib.ExitStack() as stack:
        def start(**how):
            return stack.enter_context(contextlib.closing(kind(folder / "image.fs", **how)))
        yield start


@pytest.fixture
def improver(tmp_path):
    with opening(Improver, tmp_path) as start:
        yield start


def until(done, wait_s=WAIT_S):
    """Wait until something holds; returns it."""
    end_s = time.monotonic() + wait_s
    while not (told := done()):
        assert time.monotonic() < end_s
        time.sleep(0.01)
    return told


def test_by_message_the_mind_learns_and_becomes_another(improver):
    one = improver()
    cycle = one.send("genesis_obj", "improveCognition")
    report = one.ended(cycle)
    assert report["status"] == "PROMOTED" and report["version"] == 2 and report["gap"]["target"] == "READER", report
    assert "pLLM_v2 is the mind now" in report["answer"]
    assert report["why"].startswith("pLLM_v2 succeeds, job 1: held back: 20 won")
    told = one.minds()
    assert told["current"] == 2 and [row["status"] for row in told["minds"]] == ["FORMER", "CURRENT"]
    assert one.read(lambda root: [root["reader_obj"].version, *parents(root, "genesis_obj")]) == [2, "pLLM_v2", "traits_obj"]
    job, = one.jobs()
    assert (job["status"], job["successor"]) == ("PROMOTED", 2)
    names = one.read(lambda root: [step.name for step in batos.find_cycle(root, cycle).journal])
    assert names == ["gap", "curation", "dataset", "fineTuneWith_", "forge", "verdict"]


def test_one_at_a_time_and_a_worker_is_free_meanwhile(improver):
    one = improver(workers=1)
    one.is_held = True
    cycle = one.send("pLLM_obj", "improveCognition")
    until(one.jobs)
    until(lambda: not one.mind.is_at_work())             # so the forge does not yield to whom it works for
    assert one.mind.health()["waiting"] == 1
    assert one.send("genesis_obj", "improveCognition") == one.send("pLLM_obj", "fineTuneWith_") == cycle
    one.learn()
    assert one.think()["evidence"]                       # by the one worker that there is
    one.is_held = False
    assert one.ended(cycle)["status"] == "PROMOTED"


def test_a_dataset_by_its_number_is_what_a_successor_learns_from(improver):
    one = improver()
    with pytest.raises(batos.NotFound, match="golden curate"):
        one.send("pLLM_obj", "fineTuneWith_")
    with pytest.raises(batos.BadRequest, match="dataset is"):
        one.send("pLLM_obj", "fineTuneWith_", "one")
    one.ended(one.send("golden_obj", "curate_"))
    report = one.ended(one.send("pLLM_obj", "fineTuneWith:", 1))
    assert report["status"] == "PROMOTED" and "fineTuneWith_ named dataset 1" in report["answer"]
    report = one.ended(one.send("genesis_obj", "fineTuneWith_"))
    assert "was judged already" in report["answer"] and one.minds()["current"] == 2


def test_with_nothing_to_learn_nothing_is_begun(improver):
    one = improver(count=9, improve_per_day=1)
    report = one.ended(one.send("genesis_obj", "improveCognition"))
    assert "Nothing is to be learnt: 0 answers that were marked wrong" in report["answer"]
    assert "wants 24 rows and has 9" in report["answer"]
    assert one.jobs() == [] and len(one.minds()["minds"]) == 1
    with pytest.raises(batos.Busy, match="improve_per_day"):
        one.send("genesis_obj", "improveCognition")


def test_what_is_not_better_is_refused_and_the_mind_is_untouched(improver):
    one = improver(wins=0)
    report = one.ended(one.send("pLLM_obj", "improveCognition"))
    assert report["status"] == "REJECTED" and "the mind stays" in report["answer"], report
    told, (job,) = one.minds(), one.jobs()
    assert told["current"] == 1 and len(told["minds"]) == 1 and job["verdict"]["wins"] == 0 and job["successor"] == 2
    assert one.read(lambda root: [root["reader_obj"].version, *parents(root, "genesis_obj")]) == [1, "pLLM_obj", "traits_obj"]


@pytest.mark.parametrize("cancelled", ["the job", "the mission"])
def test_a_job_that_is_cancelled_ends_its_mission_and_the_other_way_round(improver, cancelled):
    one = improver()
    one.is_held = True
    cycle = one.send("genesis_obj", "improveCognition")
    until(one.jobs)
    if cancelled == "the mission":
        until(lambda: one.mind.cancel(cycle) == "cancelling")
    else:
        one.send("forge_obj", "cancel_", 1)
    report = one.ended(cycle)
    assert report["state"] == ("FAILED" if cancelled == "the mission" else "COMPLETE")
    assert one.jobs()[0]["status"] == "CANCELLED" and len(one.minds()["minds"]) == 1


def test_what_changes_under_a_proof_has_it_judged_again(improver):
    """The job is proven, and before its mission looks at it a parent is another: it is judged beside what stands by now."""
    one = improver()
    weigh, times = batos.MISSION_KINDS[batos._IMPROVEMENT].states["SYNTHESIZING"], []

    def changed(root):
        with batos.system_writes(root):
            batos.set_slot(root["babs_prototype_obj"], "parent*", [root["traits_obj"], root["pLLM_obj"]])

    def weighing(cycle, recall):
        times.append(1)
        if len(times) > 1:
            return weigh(cycle, recall)
        one.lanes["write"].call(batos.Job("change", changed))
        one.mind._awake()                                # so that it is asked anew, of a snapshot that has the change
        return batos.Thought("verdict", None, waits=True)
    batos.MISSION_KINDS[batos._IMPROVEMENT].states["SYNTHESIZING"] = weighing
    try:
        report = one.ended(one.send("genesis_obj", "improveCognition"))
    finally:
        batos.MISSION_KINDS[batos._IMPROVEMENT].states["SYNTHESIZING"] = weigh
    assert report["status"] == "PROMOTED" and one.jobs()[0]["status"] == "PROMOTED"
    assert one.read(lambda root: parents(root, "babs_prototype_obj")) == ["traits_obj", "pLLM_v2"]


# Killed at each step


OF_MISSION = ("send", "journal", "curate", "fineTuneWith_", "forge", "effect")


def killed_at(path, number, is_stored, kind):
    """Improve the mind in a process of its own, which is killed at the commit of that number, before or behind it.

    Returns False where there were not so many.
    """
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1] == signal.SIGKILL
    numbers, commit = itertools.count(), batos.WritingLane._commit

    def ending(lane, unit, outcomes, entries):
        at = next(numbers) if outcomes[0][0].job.name in OF_MISSION else None
        if at == number and not is_stored:
            os.kill(os.getpid(), signal.SIGKILL)
        told = commit(lane, unit, outcomes, entries)
        if at == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return told
    try:
        batos.WritingLane._commit = ending
        one = kind(path)
        one.ended(one.send("genesis_obj", "improveCognition"))
    finally:
        os._exit(1)


def ends_as_one_mind(path, kind, became):
    """Whether what was cut short comes to one job, one successor, one change of the parents, and nothing torn."""
    one = kind(path)
    try:
        begun = [cycle["cycle"] for cycle in one.read(lambda root: [batos.cycle_report(c) for c in root["missions"].values()])
                 if cycle["mission"].startswith("improve")]
        cycle = begun[0] if begun else one.send("genesis_obj", "improveCognition")
        until(lambda: one.read(lambda root: batos.state_of(batos.find_cycle(root, cycle)) in batos.ENDED))
        report = one.read(lambda root: batos.cycle_report(batos.find_cycle(root, cycle)))
        told, (job,) = one.minds(), one.jobs()
        where = one.read(lambda root: [parents(root, name)[0] for name in ("genesis_obj", "brick_prototype_obj")])
        came = one.became()
    finally:
        one.close()
    whole = batos.check_image(str(path), deep=True)["faults"] == []
    return whole and (report["status"], job["status"], told["current"], len(told["minds"]), *where, came) == (
        "PROMOTED", "PROMOTED", 2, 2, "pLLM_v2", "pLLM_v2", became)


def kills(tmp_path, numbers, kind=Improver, became=(2, 1)):
    """Kill at each of some commits, before and behind; returns how many times it was killed."""
    kind.fill(str(tmp_path / "first.fs"))
    times = 0
    for number in numbers:
        for is_stored in (False, True):
            path = tmp_path / f"{number}-{is_stored}.fs"
            shutil.copy(tmp_path / "first.fs", path)
            if not killed_at(path, number, is_stored, kind):
                return times
            times += 1
            assert ends_as_one_mind(path, kind, became), (number, is_stored)
    return times


def test_killed_at_the_swap_there_is_one_mind(tmp_path):
    assert kills(tmp_path, [9]) == 2


@pytest.mark.slow
def test_killed_at_each_step_there_is_one_mind(tmp_path):
    assert kills(tmp_path, itertools.count()) >= 20


# With the daemon and a worker of its own


@pytest.mark.slow
def test_a_daemon_improves_its_mind_and_undo_brings_the_one_before(daemon, tmp_path):
    where = str(tmp_path / "live_image.fs")
    filled(where, corrected(), dataset=False)
    taught(where, corrected())
    running = daemon(("forge_engine", "stub"), core=0)
    with batos.Client(running.endpoint, WAIT_S) as client, batos.Client(running.endpoint) as listener:
        events = listener.events("mind")
        next(events)
        cycle = client.call("send_message", target="genesis_obj", selector="improveCognition")["result"]

        def reported():
            rows = client.call("list_cycles", limit=50)["results"]
            return next((row for row in rows if row["cycle"] == cycle and row["state"] in batos.ENDED), None)
        assert until(reported)["status"] == "PROMOTED"
        assert until(lambda: next(events))["version"] == 2
        change = client.call("history", target="genesis_obj", slot="parent*")["results"][0]
        assert change["why"].startswith("pLLM_v2 succeeds, job 1: held back: ") and change["cycle"] == cycle
        assert len(client.call("undo", change=change["change"])["result"]["changes"]) >= 12
        assert reader(client)["version"] == 1
        told = client.call("send_message", target="pLLM_lineage", selector="minds_")["result"]
        assert told["current"] == 1
    assert running.stop() == 0 and batos.check_image(where, deep=True)["faults"] == []


# In one process: each way that things can change under a proof


@pytest.fixture
def image(tmp_path):
    one = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(one)
    with batos.writing(one) as root:
        root["golden_obj"].rows.update(corrected())
        batos._store_dataset(root, "READER", sorted(root["golden_obj"].rows), "0x1")
    yield one
    one.close()


def proven(root, oid="0x77"):
    """Have a successor proven; returns its job."""
    number = batos._successor_begun(oid, "me", 1, {"why": "why", "target": "READER"})(root)
    job = root["forge_obj"].jobs[number]
    batos.arrow_begun(number, "TRAINING", 1, "one")(root)
    batos.arrow_trained(number, "one", __file__, {"steps": 1, "corrected": 1, "losses": [1.0]})(root)
    batos.arrow_begun(number, "VALIDATING", 1, "two")(root)
    suites = {"first": [[1, 1]] * 100}
    batos.arrow_decided(number, "two", {"held": [[0, 1]] * 20, "suites": suites, "suite_sha256": "x"})(root)
    return job


def test_a_successor_is_begun_once_for_a_mission(image):
    with batos.writing(image) as root:
        begin = batos._successor_begun("0x77", "me", 1, {"why": "why", "target": "READER"})
        assert begin(root) == begin(root) == 1 and list(root["pLLM_lineage"].versions) == [1, 2]
        assert root["pLLM_lineage"].versions[2].status == "CANDIDATE"
        batos.cancel_job(root, 1)
        assert list(root["pLLM_lineage"].versions) == [1]


def ending(root, job):
    """Return the result of the effect of a mission that a job was proven for."""
    cycle = batos.UvmObject(result={"answer": "x"}, _tmp_synthesis_data={"succeeds": True, "forged_by": job.job_number})
    root._p_jar.add(cycle)
    batos._end_improvement(root, cycle)
    return cycle.result


@pytest.mark.parametrize("what", ["nothing", "the reader", "the mind", "a parent"])
def test_what_was_proven_beside_something_else_does_not_succeed(image, what):
    changes = {
        "nothing": lambda root: None,
        "the reader": lambda root: batos.set_slot(root["reader_obj"], "forged", batos.blob_record(__file__, "x")),
        "the mind": lambda root: batos.swap_minds(root, batos.new_successor(root, "")),
        "a parent": lambda root: batos.set_slot(root["babs_prototype_obj"], "parent*", [root["traits_obj"], root["pLLM_obj"]])}
    with batos.writing(image) as root:
        job = proven(root)
        assert job.status == "PROVEN"
        changes[what](root)
        stands = root["pLLM_lineage"].current
        result = ending(root, job)
        if what == "nothing":
            assert result["status"] == job.status == "PROMOTED" and root["pLLM_lineage"].current == 2
            assert batos.mind_of(root).report["wins"] == 20
        else:
            assert job.status == "FAILED" and root["pLLM_lineage"].current == stands and "changed" in result["answer"]


def test_what_was_proven_beside_another_is_judged_again(image):
    with batos.writing(image) as root:
        job = proven(root)
        root["reader_obj"].forged = batos.blob_record(__file__, "x")
        batos.judge_again(root, job)
        assert job.status == "TRAINED" and job.ended_at is None and job.job_number in root["forge_obj"].outbox
        assert job.proves == batos.what_swaps(root)
    with batos.reading(image) as root:
        assert batos._next_work(root).phase == "judge"


def test_a_successor_that_is_worse_goes_and_the_mind_before_comes_back(image):
    wrong, right = {"answer": "x", "feedback": {"mark": "wrong"}}, {"answer": "x"}
    with batos.writing(image) as root:
        def missions(results):
            for result in results:
                brief = {"type": "direct_synthesis", "selector": "answer_", "args": ["What?"]}
                batos.accept_cycle(root, brief, None, "me").result = result
        missions([right] * 50)
        ending(root, proven(root))
        assert parents(root, "genesis_obj")[0] == "pLLM_v2" and root["reader_obj"].version == 2
        missions([wrong] * 30 + [right] * 30)
        assert "30 of 60 answers since were marked wrong" in batos._demote_if_worse(root)
        assert parents(root, "genesis_obj")[0] == "pLLM_obj" and root["pLLM_lineage"].current == 1
        assert root["reader_obj"].version == 1 and root["reader_obj"].forged is None and batos._worse_since(root) is None


def test_stagnation_whose_weakest_part_is_old_answers_begins_an_improvement(image):
    with batos.writing(image) as root:
        row = {"cem": 0.2, "h_cog": 1.0, "h_sol": 0.0, "h_struc": 1.0, "spoke": {"BABS": 1}}
        root["autotelic_obj"].cem_history[1] = row
        cycle = batos.UvmObject(_tmp_synthesis_data={"weakest": "h_sol"})
        root._p_jar.add(cycle)
        batos._see_to_stagnation(root, cycle)
        assert not root["active_cycles"]                 # who keeps it is asked first
        settings = batos.load_settings({"forge_auto": "on"}, {})
        root._p_jar.activation = root._p_jar.activation._replace(settings=settings)
        batos._see_to_stagnation(root, cycle)
        begun, = root["active_cycles"].values()
        assert begun.mission_brief["selector"] == batos._IMPROVEMENT[1] and begun.who == batos.AUTOTELIC
        report = root["autotelic_obj"].report
        assert batos.cycle_id(begun) in report[report.maxKey()]["why"]
