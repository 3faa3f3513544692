"""Lanes: groups, failures inside them, conflicts, the ledger; and how a commit can fail."""

import concurrent.futures
import contextlib
import functools
import itertools
import os
import queue
import threading

import pytest
import transaction
import ZODB.FileStorage
import ZODB.POSException
from hypothesis import given
from hypothesis import strategies as st

import batos
from batos import Job, Refused

WAIT_S = 300


@pytest.fixture
def one(tmp_path):
    """A machine of lanes over a new image; its writing lanes start when `start` is called."""
    machine = Machine(str(tmp_path / "image.fs"))
    yield machine
    machine.close()


class Machine:
    """An image and its three lanes, without a socket."""

    def __init__(self, path):
        self.settings = batos.load_settings({}, {})
        self.image = batos.Image.open(path)
        batos.genesis(self.image)
        token, self.fatal, self.events = batos.WriteToken(), [], batos.Events()
        self.write = batos.WriteLane(self.image, token, self.settings, self.fatal.append, self.events)
        self.bulk = batos.BulkLane(self.image, token, self.settings, self.fatal.append, self.events)
        self.reads = batos.ReadLane(self.image, "read").start()
        self.token, self._running = token, [self.reads]

    def start(self):
        for lane in (self.write, self.bulk):
            if lane not in self._running:
                self._running.append(lane.start())
        return self

    def together(self, *functions, lane=None, **fields):
        """Submit all before the lane starts, so that they are one group; return their outcomes in order."""
        lane = lane or self.write
        answers = [self.submit(lane, function, **fields) for function in functions]
        self.start()
        return [answer.result(WAIT_S) for answer in answers]

    def submit(self, lane, function, **fields):
        answer = concurrent.futures.Future()
        lane.submit(Job("test", function, answer.set_result, **fields))
        return answer

    def do(self, function, **fields):
        self.start()
        return self.write.call(Job("test", function, **fields), WAIT_S)

    def read(self, function):
        return self.reads.call(Job("read", function), WAIT_S).result

    def slots(self):
        return self.read(lambda root: dict(root["genesis_obj"]._slots))

    def pages(self, name="write"):
        """Return each page of a lane as (its serial, its entries with the values of large ones)."""
        def told(root):
            return [([{**entry, "result": batos.kept_result(entry)} for entry in page.entries], page._p_serial.hex())[::-1]
                    for page in getattr(root["ledger_obj"], name).values()]
        return self.read(told)

    def close(self):
        for lane in self._running:
            lane.close()
        self.image.close()


def put(name, value):
    """A job that sets a slot of genesis_obj and answers its value."""
    def apply(root):
        root["genesis_obj"].setSlot_value_(name, value)
        return value
    return apply


def put_and_fail(name):
    def apply(root):
        root["genesis_obj"].setSlot_value_(name, 0)
        raise ZeroDivisionError(name)
    return apply


def fail(root):
    raise batos.BadRequest("checked before writing; send it otherwise")


# Groups


def test_a_group_is_one_commit_and_one_page(one):
    outcomes = one.together(*(put(f"s{n}", n) for n in range(40)))
    assert [outcome.result for outcome in outcomes] == list(range(40)) and one.write.commits == 1
    (serial, entries), = one.pages()
    assert [outcome.change for outcome in outcomes] == [f"{serial}.{n}" for n in range(40)]
    assert [entry["result"] for entry in entries] == list(range(40))
    assert one.slots().items() >= {f"s{n}": n for n in range(40)}.items()


def test_a_group_has_a_most(one):
    one.settings.group_max = 8
    one.together(*(put("n", n) for n in range(20)))
    assert one.write.commits == 3 and [len(entries) for _, entries in one.pages()] == [8, 8, 4]


def test_a_job_that_failed_before_it_wrote_leaves_its_group_alone(one):
    first, middle, last = one.together(put("a", 1), fail, put("b", 2))
    assert isinstance(middle.error, batos.BadRequest) and middle.change is None and middle.page is None
    assert one.write.commits == 1 and first.change and last.change
    assert one.slots().items() >= {"a": 1, "b": 2}.items()


def test_a_job_that_failed_after_it_wrote_leaves_no_trace_and_the_others_succeed(one):
    outcomes = one.together(put("a", 1), put_and_fail("bad"), put("b", 2))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), ZeroDivisionError, type(None)]
    assert "bad" not in one.slots() and one.slots().items() >= {"a": 1, "b": 2}.items()
    entries = [entry for _, entries in one.pages() for entry in entries]
    assert [entry["result"] for entry in entries] == [1, 2]
    assert outcomes[0].change != outcomes[2].change


def test_a_job_that_failed_after_it_changed_a_tree_leaves_no_trace(one):
    def log_and_fail(root):
        batos.append_log(root["message_log"], {"n": 1}, 10)
        raise ZeroDivisionError
    outcomes = one.together(lambda root: batos.append_log(root["message_log"], {"n": 0}, 10), log_and_fail, log_and_fail)
    assert [outcome.error is None for outcome in outcomes] == [True, False, False]
    assert one.read(lambda root: [entry["n"] for entry in root["message_log"].values()]) == [0]


@pytest.mark.parametrize("count", [1, batos._SPOILERS_MOST, batos._SPOILERS_MOST + 1, 20])
def test_any_number_of_jobs_that_spoil_a_group_are_told_each_its_own_error(one, count):
    functions = [function for n in range(count) for function in (put_and_fail(f"bad{n}"), put(f"good{n}", n))]
    outcomes = one.together(*functions)
    assert [str(outcome.error) for outcome in outcomes[::2]] == [f"bad{n}" for n in range(count)]
    assert all(outcome.error is None and outcome.change for outcome in outcomes[1::2])
    slots = one.slots()
    assert slots.items() >= {f"good{n}": n for n in range(count)}.items() and not any(name.startswith("bad") for name in slots)
    assert len({outcome.change for outcome in outcomes[1::2]}) == count


def test_only_the_jobs_that_failed_do_nothing_and_nothing_is_committed(one):
    outcomes = one.together(fail, fail)
    assert one.write.commits == 0 and one.pages() == [] and all(outcome.error for outcome in outcomes)


def test_refused_keeps_what_was_logged_and_frees_the_key(one):
    def refuse(root):
        batos.append_log(root["message_log"], {"n": 1}, 10)
        return Refused(batos.BadRequest("no"))
    refused, other = one.together(refuse, put("a", 1), key="key", digest="body")
    assert isinstance(refused.error, batos.BadRequest) and refused.change is None and refused.page is None
    assert one.read(lambda root: len(root["message_log"])) == 1
    (_, entries), = one.pages()
    assert [(entry["key"], entry["digest"]) for entry in entries] == [(None, None), ("key", "body")]
    kept = one.read(lambda root: batos.recent_keys(root["ledger_obj"], 0))
    assert [(key, row.change, row.number) for key, row in kept] == [(("UVM_INTERNAL", "key"), other.change, 1)]


def test_events_are_told_once_and_only_for_what_was_committed(one):
    heard = []
    one.events.subscribe("it", heard.append)

    def happened(n, error=None):
        def apply(root):
            put("n", n)(root)
            root._p_jar.events.append(("it", n))
            if error:
                raise error
        return apply
    one.together(happened(1), happened(2, ZeroDivisionError()), happened(3))
    assert heard == [1, 3]


# Conflicts


def test_a_conflict_is_tried_again_until_it_succeeds(one):
    tries = []

    def apply(root):
        tries.append(len(tries))
        root["genesis_obj"].setSlot_value_("n", len(tries))
        if len(tries) < 4:
            raise ZODB.POSException.ConflictError("somebody else was first")
    outcome = one.do(apply)
    assert len(tries) == 4 and outcome.error is None and one.slots()["n"] == 4 and one.write.commits == 1


def test_a_conflict_that_does_not_end_is_busy_and_nothing_is_stored(one):
    tries = []

    def apply(root):
        tries.append(1)
        root["genesis_obj"].setSlot_value_("n", 1)
        raise ZODB.POSException.ConflictError("again")
    with pytest.raises(batos.Busy, match="send it again"):
        one.do(apply)
    assert len(tries) == batos._CONFLICT_TRIES and "n" not in one.slots()


def test_a_real_conflict_with_another_connection_is_tried_again(one):
    other, tries = batos.Unit(one.image.db), []

    def apply(root):
        tries.append(root["genesis_obj"]._slots.get("n"))
        root["genesis_obj"].setSlot_value_("n", (tries[-1] or 0) + 1)
        if len(tries) == 1:                               # after this transaction began, another one commits
            other.manager.begin()
            other.root["genesis_obj"].setSlot_value_("n", 10)
            other.manager.commit()
    try:
        one.do(apply)
    finally:
        other.close()
    assert tries == [None, 10] and one.slots()["n"] == 11


def test_a_hot_slot_under_many_submitters_loses_no_update(one):
    one.do(put("n", 0))

    def add_one(root):
        me = root["genesis_obj"]
        me.setSlot_value_("n", me.n + 1)
        return me.n

    def submit_many():
        for _ in range(50):
            seen.append(one.write.call(Job("add", add_one), WAIT_S).result)
    seen = []
    threads = [threading.Thread(target=submit_many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.slots()["n"] == 400 and sorted(seen) == list(range(1, 401))


def test_the_lanes_that_write_do_not_conflict_in_the_ledger(one):
    """FACTS 33: two writers of one tree starve. The bulk lane commits amid a transaction of the write lane."""
    tries, inside, done = [], threading.Event(), threading.Event()

    def slow(root):
        tries.append(1)
        put("a", 1)(root)
        inside.set()
        assert done.wait(WAIT_S)
    slow_answer = one.submit(one.write, slow)
    one.start()
    assert inside.wait(WAIT_S)
    one.bulk.call(Job("index", lambda root: batos.index_document_(root["knowledge_catalog_obj"], "a.md", "Some text.")["chunks"]))
    done.set()
    assert slow_answer.result(WAIT_S).error is None and len(tries) == 1
    assert len(one.pages("write")) == len(one.pages("bulk")) == 1


# The token


def test_the_write_token_goes_round_in_the_order_of_asking():
    token, order, threads = batos.WriteToken(), [], []

    def hold(n):
        with token:
            order.append(n)
    with token:
        for n in range(20):
            threads.append(threading.Thread(target=hold, args=(n,)))
            threads[-1].start()
            while len(token._waiting) <= n:               # it has asked, and waits
                threads[-1].join(0.001)
    for thread in threads:
        thread.join()
    assert order == list(range(20)) and not token._held


def test_the_token_is_held_by_one_and_let_go_by_an_error():
    token, inside, most = batos.WriteToken(), [], []

    def hold():
        for _ in range(100):
            try:
                with token:
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass
    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1} and len(most) == 400 and not token._held


def test_a_bulk_job_with_the_token_keeps_the_write_lane_out_until_its_commit(one):
    inside, done, order = threading.Event(), threading.Event(), []

    def effect(root):
        inside.set()
        assert done.wait(WAIT_S)
        put("by", "bulk")(root)
        order.append("bulk")

    def after(root):
        order.append("write")
        return root["genesis_obj"].by
    bulk = one.submit(one.bulk, effect, token=True)
    one.start()
    assert inside.wait(WAIT_S)
    write = one.submit(one.write, after)
    while not one.token._waiting:                         # the write lane asked for it
        inside.wait(0.001)
    done.set()
    assert bulk.result(WAIT_S).error is None and write.result(WAIT_S).result == "bulk" and order == ["bulk", "write"]


def test_a_lane_that_ends_by_an_error_stops_the_daemon(one, monkeypatch):
    told = []
    lane = batos.WriteLane(one.image, batos.WriteToken(), batos.load_settings({}, {}), told.append)
    monkeypatch.setattr(lane, "_tell", lambda outcomes: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    lane.start().submit(Job("test", lambda root: None))
    lane._threads[0].join(WAIT_S)
    assert isinstance(told[0], ZeroDivisionError)


# The bulk lane


def test_urgent_jobs_go_before_ingest(one):
    order = []
    answers = [one.submit(one.bulk, lambda root, n=n: order.append(n), urgent=n.startswith("urgent"))
               for n in ("ingest1", "ingest2", "urgent1", "ingest3", "urgent2")]
    one.start()
    for answer in answers:
        assert answer.result(WAIT_S).error is None
    assert order == ["urgent1", "urgent2", "ingest1", "ingest2", "ingest3"]


def test_an_urgent_job_that_comes_while_company_is_sought_is_done_at_once(one, monkeypatch):
    """Its turn is taken with the company; it must not wait for the turn of another."""
    seek, late = one.bulk._next_at_once, []

    def one_comes():
        if not late:
            late.append(one.submit(one.bulk, put("late", 1), urgent=True))
        return seek()
    monkeypatch.setattr(one.bulk, "_next_at_once", one_comes)
    first = one.submit(one.bulk, put("first", 1), urgent=True)
    one.start()
    assert first.result(WAIT_S).error is None and late[0].result(WAIT_S).error is None


def test_urgent_jobs_share_a_commit_and_one_that_fails_takes_none_along(one):
    def spoil(root):
        root["genesis_obj"].spoilt = True
        raise batos.BadRequest("no")
    answers = [one.submit(one.bulk, spoil if n == 3 else put(f"urgent{n}", n), urgent=True) for n in range(8)]
    one.start()
    outcomes = [answer.result(WAIT_S) for answer in answers]
    assert [outcome.error is None for outcome in outcomes] == [n != 3 for n in range(8)] and one.bulk.commits == 1
    with batos.reading(one.image) as root:
        assert [n for n in range(8) if f"urgent{n}" in batos.own(root["genesis_obj"])] == [0, 1, 2, 4, 5, 6, 7]
        assert "spoilt" not in batos.own(root["genesis_obj"])


def test_small_jobs_that_wait_together_share_a_commit_and_keep_their_order(one):
    order = []

    def note(n):
        return lambda root: (order.append(n), batos.set_slot(root["genesis_obj"], f"note{n}", n))[0]
    sharing = {0: True, 1: True, 2: False, 3: True, 4: True}
    answers = [one.submit(one.bulk, note(n), shared=shared) for n, shared in sharing.items()]
    one.start()
    outcomes = [answer.result(WAIT_S) for answer in answers]
    assert order == [0, 1, 2, 3, 4] and [outcome.error for outcome in outcomes] == [None] * 5
    commits = [outcome.change.partition(".")[0] for outcome in outcomes]
    assert commits[0] == commits[1] and commits[3] == commits[4] and len(set(commits)) == one.bulk.commits == 3


def test_small_jobs_are_prepared_ended_and_told_each_for_itself(one):
    def fail(*_):
        raise batos.BadRequest("no")
    ended = []
    jobs = [{"before": fail}, {}, {}, {}]
    works = [put("a", 1), put("b", 2), fail, put("c", 3)]
    answers = [one.submit(one.bulk, work, shared=True, after=functools.partial(ended.append, n), **more)
               for n, (work, more) in enumerate(zip(works, jobs, strict=True))]
    one.start()
    outcomes = [answer.result(WAIT_S) for answer in answers]
    assert [outcome.error is None for outcome in outcomes] == [False, True, False, True]
    assert sorted(ended) == [0, 1, 2, 3] and one.bulk.commits == 1
    with batos.reading(one.image) as root:
        assert {"b", "c"} <= set(batos.own(root["genesis_obj"])) and "a" not in batos.own(root["genesis_obj"])


def test_no_more_small_jobs_share_a_commit_than_may(one):
    answers = [one.submit(one.bulk, put(f"n{n}", n), shared=True) for n in range(2 * batos._SHARED_MOST + 1)]
    one.start()
    assert all(answer.result(WAIT_S).error is None for answer in answers) and one.bulk.commits == 3


def test_a_bulk_job_is_prepared_outside_of_its_transaction(one):
    def prepare(run):
        one.do(put("n", 1))                               # a commit of another lane, while this one prepares
        seen.append(one.token._held)
    seen = []
    one.start()
    outcome = one.bulk.call(Job("test", lambda root: root["genesis_obj"].n, before=prepare, token=True), WAIT_S)
    assert outcome.result == 1 and seen == [False]


def test_a_job_that_cannot_be_prepared_is_not_run(one):
    def prepare(run):
        raise batos.BadRequest("no such file")
    one.start()
    ran = []
    with pytest.raises(batos.BadRequest, match="no such file"):
        one.bulk.call(Job("test", ran.append, before=prepare), WAIT_S)
    assert ran == [] and one.bulk.commits == 0
    assert one.bulk.call(Job("test", lambda root: 7), WAIT_S).result == 7


# The read lane


def test_a_read_sees_the_last_commit(one):
    for n in range(30):
        one.do(put("n", n))
        assert one.read(lambda root: batos.send(root["genesis_obj"], "n")) == n


def test_what_a_read_writes_is_dropped_and_its_errors_are_told(one):
    one.read(put("n", 1))
    assert "n" not in one.slots()
    with pytest.raises(ZeroDivisionError):
        one.read(lambda root: 1 / 0)
    assert one.read(lambda root: 7) == 7


def test_a_lane_finishes_what_was_submitted_before_it_ends(one):
    answers = [one.submit(lane, put(f"s{n}", n)) for n in range(100) for lane in (one.write, one.bulk)]
    for lane in (one.write, one.bulk):
        lane.start().close()
    assert all(answer.done() and answer.result().error is None for answer in answers)


# The ledger


def test_a_page_tells_what_changed_from_what_to_what(one):
    first = one.do(put("n", 1), who="me", why="because", cycle="0x7")
    second = one.together(put("n", 2), lambda root: batos.remove_slot(root["genesis_obj"], "n"))
    pages = one.pages()
    assert first.change == f"{pages[0][0]}.0" and second[0].change.split(".")[0] in [serial for serial, _ in pages[1:]]

    def changes(root):
        return [[(obj is root["genesis_obj"], *rest) for entry in page.entries for obj, *rest in entry["changes"]]
                for page in root["ledger_obj"].write.values()]
    rows = [row for page in one.read(changes) for row in page]
    assert rows == [(True, "n", (), (1,)), (True, "n", (1,), (2,)), (True, "n", (2,), ())]
    entry, = pages[0][1]
    assert (entry["who"], entry["why"], entry["cycle"], entry["command"]) == ("me", "because", "0x7", "test")
    assert entry["at_us"] <= batos.unix_us()


def test_the_first_value_before_and_the_last_after_count_within_a_job(one):
    def twice(root):
        for n in (1, 2, 3):
            put("n", n)(root)
    one.do(twice)
    assert one.read(lambda root: [row[1:] for page in root["ledger_obj"].write.values()
                                  for entry in page.entries for row in entry["changes"]]) == [("n", (), (3,))]


def test_a_page_keeps_the_value_before_whatever_is_done_to_the_list_later(one):
    one.do(put("n", [1, [2]]))
    one.do(put("n", [3]))
    assert one.read(lambda root: [row[1:] for page in root["ledger_obj"].write.values()
                                  for entry in page.entries for row in entry["changes"]][1]) == ("n", ([1, [2]],), ([3],))


def test_large_values_have_a_record_of_their_own(one):
    big = "x" * (batos.BIG_VALUE_BYTES + 1)
    one.do(put("n", big))
    one.do(put("n", 1))
    one.do(put("m", {"a": [big]}))

    def told(root):
        first, second, third = root["ledger_obj"].write.values()
        (_, _, before, after), = second.entries[0]["changes"]
        return (type(first.entries[0]["result"]), batos.kept_result(first.entries[0]) == big, type(before[0]),
                before[0].value == big, after, before[0]._p_oid != second._p_oid, type(third.entries[0]["changes"][0][3][0]))
    assert one.read(told) == (batos.LedgerValue, True, batos.LedgerValue, True, (1,), True, batos.LedgerValue)


def test_a_job_whose_journal_tells_has_no_changes_in_its_page(one):
    one.do(put("n", 1), journal=True)
    (_, (entry,)), = one.pages()
    assert entry["changes"] == () and entry["result"] == 1 and one.slots()["n"] == 1


def test_pages_older_than_history_days_are_dropped_a_few_a_commit(one):
    for n in range(10):
        one.do(put("n", n))
    one.settings.history_days = 0.0
    one.do(put("n", 10))
    assert len(one.pages()) == 10 + 1 - 4
    one.do(put("n", 11))
    one.do(put("n", 12))
    results = [entry["result"] for _, entries in one.pages() for entry in entries]
    assert results[-1] == 12 and len(results) <= 4


def test_pages_never_share_a_time_even_when_the_clock_goes_back(one, monkeypatch):
    one.do(put("n", 1))
    monkeypatch.setattr(batos, "unix_us", lambda: 1_000_000)
    for n in (2, 3):
        one.do(put("n", n))
    assert [entry["result"] for _, entries in one.pages() for entry in entries] == [1, 2, 3]


def test_many_new_objects_are_pickled_before_the_commit_and_all_stored(one):
    """FACTS 38: after a savepoint the storage's own marks of what changed are gone."""
    def many(root):
        batos.set_slot(root["genesis_obj"], "parts*", [batos.UvmObject(n=n) for n in range(2)])
        root["genesis_obj"].tree = batos.OOBTree({str(n): batos.UvmObject(n=n) for n in range(3 * batos._SAVEPOINT_OBJECTS)})
        for value in root["genesis_obj"].tree.values():
            root._p_jar.add(value)
    outcome = one.do(many)
    assert outcome.change == f"{one.pages()[0][0]}.0"
    assert one.read(lambda root: sorted(value.n for value in root["genesis_obj"].tree.values())) == list(range(600))


# Failing commits


def test_a_commit_that_cannot_be_written_stores_nothing_and_says_so(one, monkeypatch):
    one.do(put("n", 1))

    def full(self):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(batos.ImageStorage, "_sync_blobs", full)
        with pytest.raises(batos.ImageError, match="nothing was stored.*No space left"):
            one.do(put("n", 2))
        assert one.slots()["n"] == 1
    assert one.do(put("n", 3)).change and one.slots()["n"] == 3 and one.fatal == []


def test_a_group_that_cannot_be_written_is_run_again_one_by_one(one, monkeypatch):
    real, calls = batos.ImageStorage._sync_blobs, []

    def once(self):
        calls.append(1)
        if len(calls) in (1, 3):                          # the group, and the second of those run alone
            raise OSError(5, "Input/output error")
        real(self)
    monkeypatch.setattr(batos.ImageStorage, "_sync_blobs", once)
    outcomes = one.together(*(put(f"s{n}", n) for n in range(4)))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), batos.ImageError, type(None), type(None)]
    assert one.write.commits == 3 and sorted(name for name in one.slots() if name[0] == "s") == ["s0", "s2", "s3"]


def test_a_commit_whose_last_step_fails_is_fatal(one, monkeypatch):
    def torn(self, *args):
        raise OSError(5, "Input/output error")
    with monkeypatch.context() as patch:
        patch.setattr(ZODB.FileStorage.FileStorage, "_finish", torn)
        outcomes = one.together(put("a", 1), put("b", 2))
    assert all(isinstance(outcome.error, batos.ImageBroken) for outcome in outcomes)
    assert [type(error) for error in one.fatal] == [batos.ImageBroken] and one.write.commits == 0
    assert isinstance(one.image.storage.broken, OSError)


def test_a_failed_commit_does_not_stay_in_what_the_lane_has_loaded(one, monkeypatch):
    one.do(put("list", [1]))
    monkeypatch.setattr(batos.ImageStorage, "_sync_blobs", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one.do(put("list", [1, 2]))
    monkeypatch.undo()
    assert one.do(lambda root: list(root["genesis_obj"].list)).result == [1]


# What transactions and blobs are promised


def test_blobs_and_their_folders_are_on_the_disk_before_the_commit(one, monkeypatch, tmp_path):
    """FACTS 24: ZODB forces no blob file to the disk."""
    synced, finished = [], []
    real_sync, real_finish = batos.fsync_path, ZODB.FileStorage.FileStorage._finish
    monkeypatch.setattr(batos, "fsync_path", lambda path: (synced.append(os.path.abspath(path)), real_sync(path))[1])
    monkeypatch.setattr(ZODB.FileStorage.FileStorage, "_finish",
                        lambda self, *args: (finished.append(list(synced)), real_finish(self, *args))[1])
    source = tmp_path / "weights"
    source.write_bytes(b"w" * 1000)

    def keep(root):
        root["genesis_obj"].setSlot_value_("file", batos.blob_record(str(source), "weights"))
    one.do(keep)
    path = os.path.abspath(one.read(lambda root: batos.blob_path(root["genesis_obj"].file)))
    before, = finished
    assert path in before and os.path.dirname(path) in before and str(tmp_path / "image.fs.blob") in before


def test_who_reads_does_not_wait_for_the_disk_and_sees_nothing_that_is_not_on_it(one, monkeypatch):
    """FileStorage holds its locks while it forces a transaction to the disk; each load waited for that."""
    one.do(put("list", [1]))
    reached, go_on = threading.Event(), threading.Event()

    def slow(handle):
        reached.set()
        assert go_on.wait(60)
        os.fsync(handle)
    monkeypatch.setattr(batos.ImageStorage, "to_disk", staticmethod(slow))
    writer = threading.Thread(target=one.do, args=(put("list", [1, 2]),))
    writer.start()
    assert reached.wait(60)
    with contextlib.closing(batos.Unit(one.image.db)) as unit, unit.snapshot() as root:
        assert list(root["genesis_obj"].list) == [1]    # read from the file: nothing of it was in memory
    go_on.set()
    writer.join()
    assert one.read(lambda root: list(root["genesis_obj"].list)) == [1, 2]


@pytest.fixture
def two_units(one):
    units = [batos.Unit(one.image.db) for _ in range(2)]
    yield units
    for unit in units:
        with contextlib.suppress(transaction.interfaces.NoTransaction):
            unit.manager.abort()
        unit.close()


def test_nothing_is_changed_in_a_transaction_that_nobody_began(two_units):
    """FACTS 25: managers are explicit, or a write outside would wait for the next commit."""
    mine, other = two_units
    with mine.snapshot() as root:
        genesis = root["genesis_obj"]
        assert genesis.name
    with pytest.raises((AssertionError, transaction.interfaces.NoTransaction)):
        genesis.setSlot_value_("n", 1)


def set_method(unit, selector, primitive):
    with batos.system_writes(unit.root):
        unit.root["traits_obj"].setSlot_value_(selector, batos.method(selector, primitive))


def test_a_kept_lookup_sees_the_new_method_of_another_connection(two_units):
    """FACTS 28: misses are kept too, and both go when the snapshot moves."""
    mine, other = two_units
    mine.manager.begin()
    assert batos.lookup(mine.root["genesis_obj"], "names").value is batos.ABSENT
    for primitive, answer in (("slotNames", list), ("selectors", list), ("clone", batos.UvmObject)):
        other.manager.begin()
        set_method(other, "names", primitive)
        other.manager.commit()
        mine.manager.abort()
        mine.manager.begin()
        assert batos.lookup(mine.root["genesis_obj"], "names").value.primitive == primitive
        assert isinstance(batos.send(mine.root["genesis_obj"], "names"), answer)
    other.manager.begin()


def test_a_kept_lookup_does_not_outlive_an_abort(two_units):
    mine, other = two_units
    other.manager.begin()
    mine.manager.begin()
    set_method(mine, "names", "slotNames")
    assert batos.send(mine.root["genesis_obj"], "names")
    mine.manager.abort()
    mine.manager.begin()
    with pytest.raises(batos.MessageNotUnderstood):
        batos.send(mine.root["genesis_obj"], "names")
    mark = mine.manager.savepoint()
    set_method(mine, "names", "slotNames")
    assert batos.send(mine.root["genesis_obj"], "names")
    mark.rollback()
    with pytest.raises(batos.MessageNotUnderstood):
        batos.send(mine.root["genesis_obj"], "names")


def test_a_lookup_through_an_object_that_no_connection_knows_sees_its_changes(two_units):
    mine, other = two_units
    other.manager.begin()
    mine.manager.begin()
    fresh, genesis = batos.UvmObject(), mine.root["genesis_obj"]
    genesis.setSlot_value_("fresh*", fresh)
    assert batos.lookup(genesis, "colour").value is batos.ABSENT
    fresh.colour = "red"
    assert batos.send(genesis, "colour") == "red"
    mine.manager.commit()
    mine.manager.begin()
    fresh.colour = "green"                               # known since the commit: kept, and told
    assert batos.send(genesis, "colour") == "green"


def test_a_ghost_shows_its_slots(two_units):
    """FACTS 29: the dict of an object that is not loaded is empty."""
    mine, other = two_units
    other.manager.begin()
    mine.manager.begin()
    genesis = mine.root["genesis_obj"]
    genesis._p_deactivate()
    assert genesis._p_changed is None and "name" in batos.own(genesis)
    genesis._p_deactivate()
    assert "name" in genesis._slots


# Turns


def jobs_of(turns):
    """Return the names of the jobs that may be taken, in the order in which they come."""
    taken = []
    with contextlib.suppress(queue.Empty):
        while True:
            taken.append(turns.get_nowait())
    return [job.name for job in taken]


def waiting(names, **most):
    """Return Turns in which jobs wait, each of the account that is its name's first letter; `_` is the system's own."""
    turns = batos.Turns(**most)
    for name in names.split():
        turns.put(batos.Job(name, None, account=None if name[0] == "_" else name[0]))
    return turns


def test_those_who_have_jobs_take_turns_and_each_s_go_in_order():
    assert jobs_of(waiting("a1 a2 a3 a4 b1 c1 b2")) == "a1 b1 c1 a2 b2 a3 a4".split()
    assert jobs_of(waiting("_1 a1 _2 a2 _3")) == "_1 a1 _2 a2 _3".split()


@given(st.lists(st.sampled_from("abc_"), max_size=60))
def test_no_job_is_lost_and_nobody_waits_for_more_than_a_turn_of_each(accounts):
    names = [f"{account}{number}" for number, account in enumerate(accounts)]
    taken = jobs_of(waiting(" ".join(names)))
    assert sorted(taken) == sorted(names)
    for account in set(accounts):
        mine = [place for place, name in enumerate(taken) if name[0] == account]
        assert [taken[place] for place in mine] == [name for name in names if name[0] == account]
        assert all(later - before <= len(set(accounts)) for before, later in itertools.pairwise(mine))


def test_nobody_has_more_at_work_than_may_be_but_the_system():
    assert batos.all_but_one(3) == 2 and batos.all_but_one(1) > 100
    turns = waiting("a1 a2 a3 a4", most=2)
    first, second = turns.get_nowait(), turns.get_nowait()
    assert [first.name, second.name] == ["a1", "a2"] and jobs_of(turns) == [] and turns.qsize() == 2
    turns.put(batos.Job("b1", None, account="b"))
    assert jobs_of(turns) == ["b1"]
    turns.done(first)
    assert jobs_of(turns) == ["a3"]
    assert jobs_of(waiting("_1 _2 _3", most=2)) == ["_1", "_2", "_3"]


def test_who_waits_for_a_job_is_woken_by_one_that_comes_by_one_that_is_done_and_by_the_end():
    turns, told = batos.Turns(1), queue.Queue()

    def take():
        while (job := turns.get()) is not None:
            told.put(job.name)
        told.put(None)
    threads = [threading.Thread(target=take, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    one = batos.Job("a1", None, account="a")
    turns.put(one)
    assert told.get(timeout=30) == "a1"
    turns.put(batos.Job("a2", None, account="a"))
    turns.put(batos.Job("b1", None, account="b"))
    assert told.get(timeout=30) == "b1" and told.empty()
    turns.done(one)
    assert told.get(timeout=30) == "a2"
    turns.end()
    assert [told.get(timeout=30) for _ in threads] == [None, None]


def test_slow_reads_of_one_client_do_not_hold_up_another(one):
    lane, held = batos.ReadLane(one.image, "read", 2).start(), threading.Event()
    for _ in range(5):
        lane.submit(batos.Job("slow", lambda root: held.wait(60), account="a"))
    assert lane.call(batos.Job("quick", lambda root: 7, account="b"), 30).result == 7
    assert lane.depth == 4 and not held.is_set()
    held.set()
    lane.close()
    assert lane.depth == 0


def test_a_group_of_the_write_lane_holds_jobs_of_all(one, monkeypatch):
    groups, lane = [], batos.WriteLane(one.image, batos.WriteToken(), batos.load_settings({"group_max": 4}, {}))
    attempt = lane._attempt
    monkeypatch.setattr(lane, "_attempt", lambda unit, jobs: groups.append([job.name for job in jobs]) or attempt(unit, jobs))
    for name in [f"a{n}" for n in range(6)] + ["b0", "c0"]:
        lane.submit(batos.Job(name, lambda root: 1, account=name[0]))
    lane.start().close()
    assert groups == [["a0", "b0", "c0", "a1"], ["a2", "a3", "a4", "a5"]]
