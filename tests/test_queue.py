"""The forge's work by Celery and a real Redis: whatever is killed, restarted or delivered twice, one promotion comes of it."""

import json
import os
import pathlib
import signal
import sys
import time
import tomllib

import engines
import pytest
import test_forge
from test_forge import few  # noqa: F401  (a fixture)

import batos

pytest.importorskip("celery", reason="celery and redis are not installed (pip install -r tests/celery.txt)")
needs_redis = pytest.mark.skipif(engines.REDIS is None, reason="no Redis is installed (apt install redis-server)")

WAIT_S = 300.0

# a worker's process that trains by the stub, and waits amid that until a file is there
GATED = """
import pathlib, sys, time
import batos
def gated(work, folder, train=batos.train_stub):
    batos.say_step(step=1, of=3)
    while not pathlib.Path({gate!r}).exists():
        time.sleep(0.05)
    return train(work, folder)
batos.FORGE_WORKS["stub", "train", batos.READER_WORK] = gated
batos.forge_in(sys.argv[1])
"""


class Forge:
    """A daemon over a dataset, a Redis and workers; `gate` is the file that a training waits for."""

    def __init__(self, folder, redis, daemon):
        self.folder, self.redis, self._daemon = folder, redis, daemon
        self.where, self.gate, self.shared = str(folder / "live_image.fs"), folder / "gate", folder / "shared"
        self.workers = []
        test_forge.filled(self.where, test_forge.corrected())

    def daemon(self, **options):
        given = {"forge_engine": "celery stub", "forge_broker": self.redis.url, "forge_results": self.redis.url,
                 "forge_worker_dir": str(self.shared), "image": self.where, **options}
        self.running = self._daemon(*given.items(), core=0)
        self.client = batos.Client(self.running.endpoint, WAIT_S)
        return self.running

    def worker(self, gated=False, **settings):
        inside = GATED.format(gate=str(self.gate)) if gated else ""
        given = {"forge_worker_dir": str(self.shared), **settings}
        self.workers.append(engines.ForgeWorker(self.redis.url, self.folder, inside, **given))
        return self.workers[-1]

    def health(self):
        return self.client.call("health")["result"]["forge"]

    def wait_for(self, is_there, what):
        end_s = time.monotonic() + WAIT_S
        while time.monotonic() < end_s:
            if is_there(self.health()):
                return
            time.sleep(0.1)
        raise AssertionError(f"not {what}: {self.health()}")

    def begin(self):
        return self.client.call("forge", idempotency_key="one")["result"]["job"]

    def at_work(self):
        """Wait until a worker is amid the training."""
        self.wait_for(lambda health: (health["doing"] or {}).get("step") == 1, "at work")

    def promoted(self, attempts=(1,)):
        """Wait for the job's end; whatever happened, one promotion came of it, and nothing is left behind."""
        job = test_forge.judged(self.client, 1, WAIT_S)
        told = test_forge.reader(self.client)
        assert (job["status"], told["version"], len(told["lineage"])) == ("PROMOTED", 2, 1), job
        assert len(self.client.call("history", target="reader_obj")["results"]) == 1
        assert test_forge.is_cleared(pathlib.Path(f"{self.where}.forge")) and not list(self.shared.glob("*"))
        return job

    def close(self):
        for worker in self.workers:
            worker.stop(kill=True)


@pytest.fixture
def redis():
    made = []

    def make(persists=False):
        made.append(engines.Redis(persists))
        return made[-1]
    yield make
    for one in made:
        one.close()


@pytest.fixture
def forge(tmp_path, redis, daemon):
    made = []

    def make(persists=False, is_there=True):
        server = redis(persists)
        made.append(Forge(tmp_path, server.start() if is_there else server, daemon))
        return made[-1]
    yield make
    for one in made:
        one.close()


# Without a broker


def settings(**given):
    return batos.load_settings({"forge_engine": "celery", **given})


def test_what_the_extra_needs_is_pinned_in_one_way():
    root = pathlib.Path(batos.__file__).parent
    pins = (root / "tests" / "celery.txt").read_text().split()
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["celery"]
    assert pins == extra and all(pin in batos._CELERY for pin in pins)


def test_a_queue_without_a_way_for_files_is_refused(tmp_path):
    with pytest.raises(batos.ConfigError, match="forge_worker_dir.*forge_inline"):
        batos.ForgeQueue(settings())
    batos.ForgeQueue(settings(forge_inline=True))
    batos.ForgeQueue(settings(forge_worker_dir=str(tmp_path)))


def test_nothing_is_pickled_and_what_is_lost_is_had_again():
    config = batos._celery_app(settings(forge_deadline_s=5 * 3600.0)).conf
    assert config.accept_content == config.result_accept_content == ["json"]
    assert config.task_serializer == config.result_serializer == "json"
    assert config.task_acks_late and config.task_reject_on_worker_lost and config.worker_prefetch_multiplier == 1
    assert config.broker_transport_options["visibility_timeout"] == 10 * 3600
    assert batos._celery_app(settings()).conf.broker_transport_options["visibility_timeout"] == 6 * 3600


def test_a_password_of_the_broker_is_never_shown_and_its_file_is_private(tmp_path):
    url = "redis://:Quill7@example.org:6379/0"
    assert "Quill7" not in batos.shown_setting("forge_broker", url)
    path = tmp_path / "batos.toml"
    path.write_text(f'forge_broker = "{url}"\n')
    path.chmod(0o644)
    with pytest.raises(batos.ConfigError, match="can be read by others"):
        batos.read_settings_file(str(path))
    path.chmod(0o600)
    assert batos.read_settings_file(str(path)) == {"forge_broker": url}


@pytest.mark.parametrize("change, why", [
    ({"base": "f" * 64}, "another reader"), ({"work": "expert"}, "another core"),
    ({"nonce": "../etc"}, "no parcel"), ({"nonce": None}, "no parcel"),
    ({"files": {"../x": ""}}, "no parcel"), ({}, "is not there")])
def test_a_worker_refuses_what_it_is_not_for(tmp_path, change, why):
    parcel = {"nonce": "0-1", "base": batos.reader_card()["sha256"], "engine": "stub", "phase": "train", **change}
    told = batos._queued_work(None, parcel, settings(forge_worker_dir=str(tmp_path)))
    assert why in told["failed"] and "done" not in told and told["nonce"] == parcel["nonce"]


def test_an_expert_is_made_beside_the_workers_own_core(tmp_path):
    given = settings(core="auto", forge_worker_dir=str(tmp_path))
    files = batos._own_core(given)
    base = batos.core_base([(name, batos.file_hash(path, "sha256")) for name, path in files.items()])
    parcel = {"nonce": "0-1", "base": base, "work": "expert", "engine": "stub", "phase": "train"}
    (tmp_path / "0-1").mkdir()
    (tmp_path / "0-1" / "job.json").write_text(json.dumps(parcel))
    batos._check_parcel(parcel, given)
    for _ in range(2):
        batos._link_own_core(parcel, batos._parcel_place(parcel, given), given)
    assert {path.name: path.resolve() for path in (tmp_path / "0-1" / "core").iterdir()} == files
    with pytest.raises(batos.BadRequest, match="another core"):
        batos._check_parcel(parcel, settings(core="none", forge_worker_dir=str(tmp_path)))


def test_how_far_work_is_stays_told_while_a_worker_only_says_that_it_lives(tmp_path, monkeypatch):
    says = "print('{\"step\": 1, \"of\": 3}'); print('{}'); pathlib.Path(sys.argv[1], 'done.json').write_text('{}')"
    monkeypatch.setattr(batos, "_WORKER_WORDS", [sys.executable, "-c", f"import pathlib, sys; {says}"])
    told = []

    class Task:
        def update_state(self, state, meta):
            told.append(meta)
    assert batos._followed(Task(), tmp_path) is None
    assert told == [{"step": 1, "of": 3, "line": 0}, {"step": 1, "of": 3, "line": 1}]


@pytest.mark.parametrize("told, why", [
    ({"nonce": "old", "done": {"files": {}}}, "another attempt"), ({"nonce": "new", "failed": "no room"}, "no room"),
    ({"nonce": "new", "done": {"files": {"../x": "1"}}, "files": {"../x": ""}}, "names")])
def test_what_a_worker_tells_is_looked_at(tmp_path, told, why):
    assert why in batos.take_result(told, "new", tmp_path) and not list(tmp_path.iterdir())


class Queue:
    """A queue in which nobody does anything; `state` is what it tells of the task, `tasks` how many wait."""

    settings = settings(forge_inline=True)

    def __init__(self, *states, tasks=0):
        self.states, self.tasks = list(states), tasks

    def state(self, nonce):
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def waiting(self):
        return self.tasks


def given_up(queue, monkeypatch, looks, every_s):
    """Look at a task so often, with so much time between; returns what came of it."""
    clock = [0.0]
    monkeypatch.setattr(batos.time, "monotonic", lambda: clock[0])
    work = batos.QueuedWork(queue, "n", lambda told: None, lambda: "enough" if clock[0] >= looks * every_s else None)
    try:
        return work.run(lambda wait_s: clock.__setitem__(0, clock[0] + every_s))
    finally:
        monkeypatch.undo()


def test_a_task_that_nothing_is_heard_of_is_given_up(monkeypatch):
    steps = [("PROGRESS", {"line": n}) for n in range(9)]
    assert given_up(Queue(*steps), monkeypatch, 99, 25.0) == "no worker of the queue said anything for 60 s"
    assert given_up(Queue(("PENDING", None)), monkeypatch, 99, 25.0).startswith("no worker")
    assert given_up(Queue(("PENDING", None), tasks=1), monkeypatch, 99, 25.0) == "enough"        # it waits its turn
    assert "forge_deadline_s" in given_up(Queue(*[("PROGRESS", {"line": n}) for n in range(999)]), monkeypatch, 999, 25.0)
    assert given_up(Queue(("SUCCESS", {"nonce": "n"})), monkeypatch, 9, 1.0) == {"nonce": "n"}
    assert given_up(Queue(("FAILURE", ValueError("x"))), monkeypatch, 9, 1.0) == "the worker failed: x"


def test_a_broker_that_is_away_is_asked_after_longer_and_longer(tmp_path):
    url = f"redis://127.0.0.1:{engines.free_port()}/0"
    queue = batos.ForgeQueue(settings(forge_broker=url, forge_results=url, forge_inline=True))
    with pytest.raises(batos.QueueAway, match="does not answer"):
        queue.state("n")
    assert [queue.wait_s() for _ in range(10)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300] and queue.away


# With a real one


@needs_redis
@pytest.mark.slow
@pytest.mark.parametrize("way", [{}, {"forge_inline": True, "forge_worker_dir": ""}])
def test_a_job_is_forged_by_a_worker_of_the_queue(forge, way):
    one = forge()
    one.daemon(**way)
    one.worker()
    one.begin()
    assert one.promoted()["attempt"] == 1 and one.health()["engine"] == "celery stub"
    assert one.redis.asked().keys("celery-task-meta-*") == []
    assert one.running.stop() == 0 and batos.check_image(one.where, deep=True)["faults"] == []


@needs_redis
@pytest.mark.slow
def test_while_the_broker_is_away_the_job_waits_and_health_says_so(forge):
    one = forge(is_there=False)
    one.daemon()
    one.begin()
    one.wait_for(lambda health: health["engine"] == "unreachable", "unreachable")
    job, = test_forge.jobs(one.client)
    assert (job["status"], job["attempt"]) == ("TRAINING", 1) and "does not answer" in one.health()["waits"]
    one.redis.start()
    one.worker()
    assert one.promoted()["attempt"] == 1
    assert one.health()["engine"] == "celery stub" and one.health()["waits"] is None


@needs_redis
@pytest.mark.slow
def test_a_worker_that_is_killed_amid_the_training_is_followed_by_another(forge):
    one = forge()
    one.daemon()
    first = one.worker(gated=True)
    one.begin()
    one.at_work()
    first.stop(kill=True)
    one.gate.touch()
    one.worker()
    one.promoted()


@needs_redis
@pytest.mark.slow
def test_the_work_of_a_child_that_is_killed_goes_back_into_the_queue(forge):
    one = forge()
    one.daemon()
    worker = one.worker(gated=True)
    one.begin()
    one.at_work()
    for pid in worker.children():
        os.kill(pid, signal.SIGKILL)
    one.gate.touch()
    one.promoted()


@needs_redis
@pytest.mark.slow
@pytest.mark.parametrize("persists", [True, False])
@pytest.mark.parametrize("at_work", [True, False])
def test_a_broker_that_is_killed_and_comes_back_loses_nothing(forge, persists, at_work):
    one = forge(persists)
    one.daemon()
    if at_work:
        one.worker(gated=True)
    one.begin()
    if at_work:
        one.at_work()
    else:
        one.wait_for(lambda health: (health["doing"] or {}).get("waits"), "sent")
    one.redis.kill()
    one.wait_for(lambda health: health["engine"] == "unreachable", "unreachable")
    one.redis.start()
    one.gate.touch()
    if not at_work:
        one.worker()
    one.promoted()


@needs_redis
@pytest.mark.slow
def test_a_task_that_is_delivered_twice_is_promoted_once(forge):
    one = forge()
    one.daemon()
    one.begin()
    one.wait_for(lambda health: (health["doing"] or {}).get("waits"), "sent")
    asked = one.redis.asked()
    message, = asked.lrange("batos.forge", 0, -1)
    twice = json.loads(message)
    twice["properties"]["delivery_tag"] = "another"
    asked.rpush("batos.forge", json.dumps(twice))
    one.worker(gated=True)
    one.worker(gated=True)
    one.at_work()
    one.gate.touch()
    assert one.promoted()["attempt"] == 1


@needs_redis
@pytest.mark.slow
@pytest.mark.parametrize("kill", [True, False])
def test_a_daemon_that_starts_again_takes_what_the_worker_made(forge, kill):
    one = forge()
    running = one.daemon()
    one.worker(gated=True)
    one.begin()
    one.at_work()
    running.stop(kill=kill)
    one.gate.touch()
    one.daemon()
    assert one.promoted()["attempt"] == 1


@needs_redis
@pytest.mark.slow
def test_a_job_that_is_cancelled_is_ended_at_the_worker_too(forge):
    one = forge()
    one.daemon()
    one.worker(gated=True)
    one.begin()
    one.at_work()
    one.client.call("cancel", cycle="job-1")
    assert test_forge.judged(one.client, 1)["status"] == "CANCELLED"
    assert test_forge.is_cleared(pathlib.Path(f"{one.where}.forge")) and not list(one.shared.glob("*"))
    one.gate.touch()
    again = one.client.call("forge")["result"]["job"]
    assert test_forge.judged(one.client, again)["status"] == "PROMOTED"


@needs_redis
@pytest.mark.slow
def test_of_the_same_rows_and_seed_a_queue_makes_the_same_weights_to_the_byte(few, redis, tmp_path):  # noqa: F811
    work, folder = few
    here = test_forge.trained(work, folder)
    server = redis().start()
    for place in ({"forge_worker_dir": str(tmp_path / "shared")}, {"forge_inline": True}):
        there, nonce = tmp_path / next(iter(place)), batos.uuid7()
        there.mkdir()
        (there / "train.jsonl").write_bytes((folder / "train.jsonl").read_bytes())
        (there / "job.json").write_text(json.dumps(work | {"nonce": nonce}))
        queue = batos.ForgeQueue(settings(forge_broker=server.url, forge_results=server.url, **place))
        worker = engines.ForgeWorker(server.url, tmp_path, test_forge.A_FEW, **place)
        try:
            assert queue.send(nonce, there) is None
            told = batos.QueuedWork(queue, nonce, lambda told: None, lambda: None).run(time.sleep)
            assert batos.take_result(told, nonce, there) is None, told
        finally:
            worker.stop(kill=True)
        assert (there / batos.CANDIDATE_FILE).read_bytes() == here, place
