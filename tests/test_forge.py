"""The forge: a dataset becomes a candidate, a candidate is judged by rule, and whatever is killed, one promotion comes of it."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import test_golden

import batos

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "bench"))
import chance

WAIT_S = 300


def filled(where, made, dataset=True):
    """Put rows, and the dataset of them, into a new image."""
    image = batos.Image.open(where)
    batos.genesis(image)
    with batos.writing(image) as root:
        root["golden_obj"].rows.update(made)
        if dataset:
            batos._store_dataset(root, "READER", sorted(made), "0x1")
    image.close()


def corrected(count=120, seed=5):
    return {n: test_golden.row(name, n) for n, name in enumerate(test_golden.named(count, random.Random(seed)))}


def jobs(client):
    return client.call("list_jobs", limit=200)["results"]


def judged(client, number, wait_s=WAIT_S):
    """Wait for a job to end; returns it."""
    end_s = time.monotonic() + wait_s
    while time.monotonic() < end_s:
        job = next(row for row in jobs(client) if row["job"] == number)
        if job["ended_at"]:
            return job
        time.sleep(0.1)
    raise AssertionError(f"job {number} has not ended: {job}")


def is_cleared(home, wait_s=20.0):
    """Whether no work lies there, soon after its last job has ended."""
    end_s = time.monotonic() + wait_s
    while list(home.glob("*")) and time.monotonic() < end_s:
        time.sleep(0.1)
    return not list(home.glob("*"))


def reader(client):
    return client.call("list_jobs")["result"]["reader"]


@pytest.fixture
def stub(tmp_path, daemon):
    """A function that starts a daemon with the engine `stub` over an image with a dataset."""
    filled(str(tmp_path / "live_image.fs"), corrected())
    return lambda **options: daemon(*{"forge_engine": "stub", **options}.items(), core=0)


# The verdict


def told(held, **suites):
    return {"held": held, "suites": suites, "suite_sha256": "x"}


def test_the_sign_test_is_exact_and_one_sided():
    assert batos._sign_test(5, 0) == 1 / 32 and batos._sign_test(0, 0) == 1 and batos._sign_test(0, 5) == 1
    assert abs(batos._sign_test(9, 1) - 11 / 1024) < 1e-12


@pytest.mark.parametrize("held, suite, tries, passed", [
    ([[0, 1]] * 5 + [[1, 1]] * 15, [[1, 1]] * 100, 1, True),
    ([[0, 1]] * 5 + [[1, 1]] * 15, [[1, 1]] * 100, 2, False),            # chance is given twice
    ([[0, 1]] * 4 + [[1, 1]] * 16, [[1, 1]] * 100, 1, False),
    ([[0, 1]] * 9 + [[1, 0]] * 1 + [[0, 0]] * 10, [[1, 1]] * 100, 1, True),
    ([[0, 1]] * 9 + [[1, 0]] * 5 + [[0, 0]] * 10, [[1, 1]] * 100, 1, False),
    ([[0, 1]] * 19, [[1, 1]] * 100, 1, False),                           # too few
    ([[0, 1]] * 20, [[1, 0]] * 2 + [[1, 1]] * 98, 1, True),
    ([[0, 1]] * 20, [[1, 0]] * 3 + [[1, 1]] * 97, 1, False),             # it forgot
    ([[0, 1]] * 20, [[1, 0]] * 3 + [[0, 1]] * 97, 1, True),
    ([[1, 1]] * 20, [[1, 1]] * 100, 1, False),                           # nothing new
])
def test_the_verdict_is_by_rule(held, suite, tries, passed):
    verdict = batos.verdict_of_report(told(held, known=suite), tries)
    assert verdict["passed"] is passed and verdict["why"], verdict


def by_labels(before, after, labels):
    """Return the verdict over answers that are right where they are the label, and a suite that stays as it was."""
    judged = batos.judged_by_labels(before, after, labels, lambda told, label: told == label)
    return batos.verdict_of_report(judged | {"suites": {"known": [[1, 1]] * 100}, "suite_sha256": "x"}, 1)


def test_who_has_learnt_the_most_frequent_label_is_refused():
    verdict = by_labels([1] * 30, [2] * 30, [2] * 23 + [1] * 7)
    assert (verdict["wins"], verdict["losses"], verdict["p_shuffled"]) == (23, 7, 1.0) and verdict["p"] < 0.01
    assert not verdict["passed"] and "dealt out by chance" in verdict["why"]
    assert "with labels shuffled 1)" in verdict["why"] and "not better" not in verdict["why"]


def test_who_tells_the_labels_apart_is_promoted_whichever_is_more_frequent():
    for often in (23, 15, 7):
        labels = [2] * often + [1] * (30 - often)
        verdict = by_labels([1] * 30, labels, labels)
        assert verdict["passed"] and verdict["p_shuffled"] < 0.001, verdict
    alike = by_labels([1] * 30, [2] * 30, [2] * 30)                           # there is nothing to shuffle
    assert alike["passed"] and alike["p_shuffled"] is None and "all labels are the same" in alike["why"]


def test_constant_answers_are_refused_where_what_stands_is_none():
    """What stands says one of four by chance, as a plan may; the candidate always says the most frequent one."""
    picker = random.Random(2)
    labels = picker.choices("abcd", (8, 1, 1, 1), k=60)
    verdict = by_labels(picker.choices("abcd", k=60), ["a"] * 60, labels)
    assert verdict["wins"] > 3 * verdict["losses"] and verdict["p"] < 0.001
    assert not verdict["passed"], verdict


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_of_labels_by_chance_no_more_are_promoted_than_the_level_has_it(share, monkeypatch):
    """What is learnt of such labels: always the second, always the first, one of them by chance, or by what stands."""
    monkeypatch.setattr(batos, "_DRAWS", 400)
    picker, promoted = random.Random(11), 0
    for _turn in range(400):
        labels = [2 if picker.random() < share else 1 for _ in range(40)]
        always = picker.choice((0.0, 0.5, 1.0, share))
        after = [2 if picker.random() < always else 1 for _ in range(40)]
        promoted += by_labels([1] * 40, after, labels)["passed"]
    assert promoted <= 20, promoted


def test_the_suite_has_enough_cases_and_nothing_of_it_is_trained_on():
    held, rest = batos.phrased_cases(True), batos.phrased_cases(False)
    assert len(held) >= 100 and not {asked for asked, _ in held} & {asked for asked, _ in rest}


def test_what_is_told_first_goes_by_worth_and_by_how_the_score_moved():
    row = {"passages": [{"share": 0.50}, {"share": 0.46}], "quotes": [2]}
    assert not batos._is_told_right(row, [1.0, 1.0], [1.0, 1.0], -1.25)
    assert batos._is_told_right(row, [-1.0, 2.0], [1.0, 1.0], -1.25)
    none = row | {"quotes": []}
    assert batos._is_told_right(none, [-3.0, -3.0], [1.0, 1.0], -1.25)
    assert not batos._is_told_right(none, [1.0, 0.0], [1.0, 1.0], -1.25)


# The saga, with the engine that learns nothing


def test_a_dataset_is_forged_judged_promoted_and_undone(stub, tmp_path):
    running = stub()
    with batos.Client(running.endpoint, WAIT_S) as client:
        number = client.call("forge")["result"]["job"]
        job = judged(client, number)
        assert job["status"] == "PROMOTED" and job["verdict"]["wins"] == job["verdict"]["held"] >= 20, job
        assert reader(client)["version"] == 2 and reader(client)["lineage"][0]["job"] == number
        assert job["stands"] and "PROMOTED  dataset 1" in batos._told_job(job)[0]
        row = client.call("history", target="reader_obj")["results"][0]
        assert row["why"].startswith(f"job {number}: held back: ") and "suites: first" in row["why"]
        with pytest.raises(batos.BadRequest, match="was judged already, by job 1: PROMOTED"):
            client.call("forge")
        client.call("undo", change=row["change"])
        assert reader(client) == {"version": 1, "job": None, "lineage": []}
        told = client.call("send_message", target="forge_obj", selector="jobs_")["result"]
        assert told[0]["status"] == "PROMOTED" and not told[0]["stands"]
        assert "PROMOTED, and stands no more" in batos._told_job(jobs(client)[0])[0]
    assert running.stop() == 0 and is_cleared(tmp_path / "live_image.fs.forge")
    assert batos.check_image(str(tmp_path / "live_image.fs"), deep=True)["faults"] == []


def test_what_cannot_be_forged_is_refused(tmp_path, daemon):
    filled(str(tmp_path / "live_image.fs"), corrected(), dataset=False)
    with batos.Client(daemon(("forge_engine", "stub"), core=0).endpoint, WAIT_S) as client:
        with pytest.raises(batos.NotFound, match="golden curate"):
            client.call("forge")
        with pytest.raises(batos.NotFound, match="no dataset yet of BRICK"):
            client.call("forge", target="BRICK")
        with pytest.raises(batos.BadRequest, match="READER serves every core"):
            client.call("forge", target="NOBODY")
        with pytest.raises(batos.NotFound):
            client.call("cancel", cycle="job-7")


def test_a_job_that_is_cancelled_leaves_no_candidate(stub, tmp_path):
    running = stub(forge_yields=True)
    with batos.Client(running.endpoint, WAIT_S) as client:
        number = client.call("forge")["result"]["job"]
        client.call("cancel", cycle=f"job-{number}")
        job = judged(client, number)
        assert job["status"] == "CANCELLED" and job["result"] is None and reader(client)["version"] == 1
        with pytest.raises(batos.BadRequest, match="CANCELLED already"):
            client.call("cancel", cycle=f"job-{number}")
        again = client.call("forge")["result"]["job"]
        assert judged(client, again)["status"] == "PROMOTED"
        assert is_cleared(tmp_path / "live_image.fs.forge")


def test_a_worker_that_fails_is_tried_again_and_then_the_job_has_failed(stub, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    running = stub(forge_deadline_s=0.0)
    with batos.Client(running.endpoint, WAIT_S) as client:
        job = judged(client, client.call("forge")["result"]["job"])
        assert (job["status"], job["attempt"]) == ("FAILED", 3) and "forge_deadline_s" in job["told"]


def worker_of(home):
    """Return the pid of the worker at work, or None."""
    for path in home.glob("*/worker.json"):
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if batos._process_name(told["pid"]) == told:
            return told["pid"]
    return None


def forged_reader(client):
    """Return the version of the reader, the length of its lineage, and how often it was changed."""
    changes = client.call("history", target="reader_obj")["results"]
    return reader(client)["version"], len(reader(client)["lineage"]), len(changes)


def killed_amid(tmp_path, daemon, picker, number, fill=lambda where: filled(where, corrected()), target="READER",
                forged=forged_reader):
    """Forge while daemon and worker are killed at some moment; returns how the one job ended, and what came of it."""
    folder = tmp_path / f"{number}"
    folder.mkdir()
    where = str(folder / "live_image.fs")
    fill(where)
    options = {"forge_engine": "stub", "image": where}
    running = daemon(*options.items(), core=0)
    with batos.Client(running.endpoint, WAIT_S) as client:
        client.call("forge", target=target, idempotency_key="one")
        time.sleep(picker.uniform(0, 3.5))
        if picker.random() < 0.5:
            pid = worker_of(pathlib.Path(f"{where}.forge"))
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
            time.sleep(picker.uniform(0, 0.5))
    running.stop(kill=True)
    running = daemon(*options.items(), core=0)
    with batos.Client(running.endpoint, WAIT_S) as client:
        client.call("forge", target=target, idempotency_key="one")
        job, = jobs(client)
        job = judged(client, job["job"])
        came = forged(client)
    running.stop()
    assert worker_of(pathlib.Path(f"{where}.forge")) is None and is_cleared(pathlib.Path(f"{where}.forge"))
    assert batos.check_image(where, deep=True)["faults"] == []
    return job["status"], *came


@pytest.mark.slow
def test_killed_at_any_moment_there_is_one_candidate_and_one_promotion(tmp_path, daemon):
    picker = random.Random(11)
    for number in range(6):
        assert killed_amid(tmp_path, daemon, picker, number) == ("PROMOTED", 2, 1, 1), number


@pytest.mark.campaign
def test_killed_two_hundred_times(tmp_path, daemon):
    picker = random.Random(int(os.environ.get("SEED", "1")))
    for number in range(int(os.environ.get("KILLS", "200"))):
        assert killed_amid(tmp_path, daemon, picker, number) == ("PROMOTED", 2, 1, 1), number


def test_what_an_attempt_brings_late_is_not_taken(tmp_path):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(image)
    with batos.writing(image) as root:
        root["golden_obj"].rows.update(corrected())
        batos._store_dataset(root, "READER", sorted(root["golden_obj"].rows), "0x1")
        number = batos.begin_forge(root, "READER", None, "me").job_number
        assert batos.arrow_begun(number, "TRAINING", 1, "first")(root)
        assert batos.arrow_begun(number, "TRAINING", 2, "second")(root)
        report = {"steps": 1, "corrected": 1, "losses": [1.0]}
        batos.arrow_trained(number, "first", __file__, report)(root)
        assert root["forge_obj"].jobs[number].status == "TRAINING"
        batos.arrow_trained(number, "second", __file__, report)(root)
        assert root["forge_obj"].jobs[number].status == "TRAINED"
        assert batos.arrow_decided(number, "second", told([[0, 1]] * 20))(root) is None
        assert batos.arrow_begun(number, "VALIDATING", 1, "third")(root)
        assert batos.arrow_decided(number, "third", told([[0, 1]] * 20))(root)["passed"]
        assert batos.arrow_decided(number, "third", told([[0, 1]] * 20))(root) is None
        assert root["reader_obj"].version == 2 and len(root["reader_obj"].lineage) == 1
        batos._demote_reader(root)
        assert root["reader_obj"].version == 1 and root["reader_obj"].forged is None
    image.close()


def test_what_was_promoted_and_is_worse_is_taken_back(tmp_path):
    wrong, right = {"answer": "x", "feedback": {"mark": "wrong"}}, {"answer": "x"}
    image = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(image)
    with batos.writing(image) as root:
        def missions(results):
            for result in results:
                brief = {"type": "direct_synthesis", "selector": "answer_", "args": ["What?"]}
                batos.accept_cycle(root, brief, None, "me").result = result
        missions([right] * 45 + [wrong] * 5)
        record = batos.blob_record(__file__, "x")
        root["reader_obj"].since, root["reader_obj"].forged = root["missions"].maxKey(), record
        missions([wrong] * 20 + [right] * 20)
        assert batos._worse_since(root) is None                          # too few to tell
        missions([right] * 20)
        assert "20 of 60 answers since were marked wrong" in batos._demote_if_worse(root)
        assert root["reader_obj"].forged is None
    image.close()


def test_corrections_begin_a_curation_once_nobody_corrects_any_more(tmp_path):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(image)
    with batos.writing(image) as root:
        rows = root["golden_obj"].rows
        rows.update(corrected(5))
        assert not batos._due_target(root)                          # just now
        for number in rows:
            rows[number] = rows[number] | {"at": batos.now_utc() - batos.datetime.timedelta(hours=1)}
        assert batos._due_target(root) == "READER"
        rows[0] = rows[0] | {"trusted": False}
        assert not batos._due_target(root)
        rows[0] = rows[0] | {"trusted": True, "quotes": [], "not": []}   # a mere wrong counts
        assert batos._due_target(root) == "READER"
        rows[0] = rows[0] | {"quotes": [1]}                              # a mere right does not
        assert not batos._due_target(root)
    image.close()


@pytest.mark.slow
def test_forgetting_cancels_the_job_that_holds_a_row_of_it_and_no_byte_stays(stub, tmp_path):
    running = stub(forge_yields=False)
    marker = next(iter(corrected().values()))["passages"][1]["text"]
    with batos.Client(running.endpoint, WAIT_S) as client:
        doc_id = next(iter(corrected().values()))["passages"][1]["doc_id"]
        name = doc_id.partition("/")[0]
        number = client.call("forge")["result"]["job"]
        told = client.call("forget", matching=f"engineer oils the pump at {name}")
        assert told["result"]["places"] == {"golden rows": 1, "forge jobs": 1}
        assert judged(client, number)["status"] == "CANCELLED"
    running.stop()
    left = [path for path in tmp_path.rglob("*") if path.is_file() and marker.encode() in path.read_bytes()]
    assert left == []


def test_a_worker_holds_itself_to_limits_and_to_its_folder(tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({"job": 1, "phase": "train", "nonce": "n", "engine": "stub", "base": "b",
                                                   "config": batos.FORGE_CONFIG}))
    words = [sys.executable, batos.__file__, "forge-worker", str(tmp_path)]
    told = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert '"step": 3' in told.stdout
    done = json.loads((tmp_path / "done.json").read_text())
    sha256 = batos.file_hash(tmp_path / "candidate.safetensors", "sha256")
    assert done["nonce"] == "n" and done["files"] == {"candidate.safetensors": sha256}
    again = tmp_path / "again"
    again.mkdir()
    assert subprocess.run([*words[:-1], str(again)], capture_output=True, check=False).returncode == 1


# The training itself


WORK = {"job": 1, "phase": "train", "nonce": "n", "engine": "process", "config": batos.FORGE_CONFIG, "in_bfloat16": True}


@pytest.fixture
def few(monkeypatch, tmp_path):
    """(work, folder) of a training of a dozen steps."""
    for name, most in (("_STEPS_LEAST", 12), ("_STEPS_MOST", 12), ("_REPLAYED_MOST", 8)):
        monkeypatch.setattr(batos, name, most)
    made = corrected(12)
    card = batos.reader_card()
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(b"".join([batos._golden_line(n, row, True) for n, row in made.items()]))
    (folder / "held.jsonl").write_bytes((folder / "train.jsonl").read_bytes())
    return WORK | {"base": card["sha256"], "threshold": card["threshold"]}, folder


A_FEW = "import sys, batos; batos._STEPS_LEAST = batos._STEPS_MOST = 20; batos._REPLAYED_MOST = 8; batos.forge_in(sys.argv[1])"


def trained(work, folder, killed_at=None):
    """Run a worker of its own, killed at a step where one is named; returns what it made."""
    (folder / "job.json").write_text(json.dumps(work))
    variables = batos._worker_environment() | {"PYTHONPATH": str(pathlib.Path(batos.__file__).parent)}
    command = [sys.executable, "-c", A_FEW, str(folder)]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as worker:
        for line in worker.stdout:
            if killed_at is not None and json.loads(line).get("step") == killed_at:
                worker.kill()
    assert worker.returncode == (0 if killed_at is None else -signal.SIGKILL)
    return (folder / batos.CANDIDATE_FILE).read_bytes() if killed_at is None else b""


@pytest.mark.slow
def test_a_training_cut_short_goes_on_to_the_same_weights(few):
    work, folder = few
    cut = folder.parent / "cut"
    cut.mkdir()
    (cut / "train.jsonl").write_bytes((folder / "train.jsonl").read_bytes())
    whole = trained(work, folder)
    report = json.loads((folder / batos.DONE_FILE).read_text())["report"]
    assert report["steps"] == 20 and report["corrected"] == 12
    trained(work, cut, killed_at=11)
    assert trained(work, cut) == whole


@pytest.mark.slow
def test_the_reader_takes_what_was_forged_and_gives_it_back(few):
    work, folder = few
    reader, passages = batos.Reader(), [("", text) for text in test_golden.texts("Harlow").values()]
    reader.load(batos.installed_embedder(), batos.installed_reader())
    question = "How is Harlow oiled?"
    before = reader.judge(question, passages)
    made, _ = batos._train(work, folder)
    reader.standing = lambda: (2, made[0])
    reader.renew()
    after = reader.judge(question, passages)
    assert reader.version == 2 and after[1][0] - after[0][0] > before[1][0] - before[0][0]
    _, told = batos._judge(work, folder)
    assert len(told["held"]) == 12 and len(told["suites"]["first"]) >= 100 and told["suite_sha256"]
    reader.standing = lambda: (1, None)
    reader.renew()
    assert reader.judge(question, passages) == before and reader.version == 1
    batos._train(work | {"base": "another"}, folder)
    reader.standing = lambda: (2, made[0])
    reader.renew()                                                       # it is of another reader
    assert reader.judge(question, passages) == before and reader.version == 1


@pytest.mark.campaign
@pytest.mark.parametrize("seed, share", [(5, 0.5), (6, 0.5), (5, 0.75)])
def test_labels_by_chance_are_refused(seed, share, monkeypatch):
    monkeypatch.setattr(batos, "ForgedReader", chance.Reader)
    verdict = chance.forged(chance.labelled(seed, share))[0]
    print(verdict["why"])
    assert not verdict["passed"] and verdict["held"] >= batos.HELD_LEAST


@pytest.mark.campaign
def test_three_forges_in_a_row_are_promoted_and_forget_nothing(monkeypatch):
    """Each is told otherwise than the one before, and begins where that stands; what was known before is known after all."""
    monkeypatch.setattr(batos, "ForgedReader", chance.Reader)
    stands, suites = None, []
    for names, by in ((5, "holds"), (6, "proposed"), (7, "holds")):
        verdict, report, stands = chance.forged(chance.labelled(5, 0.5, by, names), stands)
        print(verdict["why"], flush=True)
        assert verdict["passed"] and verdict["p_shuffled"] < 0.001, verdict["why"]
        suites.append(report["suites"])
    for name, first in suites[0].items():
        before, after = sum(one for one, _ in first), sum(one for _, one in suites[-1][name])
        assert before - after <= 0.02 * len(first), (name, before, after)
