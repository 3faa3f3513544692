"""History and undo: what changed, from what to what, put back unless it was changed again; and how it was then."""

import datetime
import itertools
import time

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule
from test_parts import Machine, text_of

import batos


class Historian(Machine):
    """A machine that sets slots, indexes and undoes, each by a job; every call returns the change."""

    def do(self, lane, function, name="test", **given):
        return lane.call(batos.Job(name, lambda root: function(root) and None, **given), 60).change

    def put(self, slot, value, **given):
        return self.do(self.write, lambda root: batos.set_slot(root["genesis_obj"], slot, value), **given)

    def drop(self, slot):
        return self.do(self.write, lambda root: batos.remove_slot(root["genesis_obj"], slot))

    def index(self, doc_id, text):
        return self.do(self.bulk, lambda root: batos.index_document_(root["knowledge_catalog_obj"], doc_id, text))

    def unindex(self, doc_id):
        return self.do(self.bulk, lambda root: batos.unindex_document_(root["knowledge_catalog_obj"], doc_id))

    def undo(self, change):
        return self.do(self.bulk, lambda root: batos.undo_change(root, change), token=True)

    def slots(self):
        with batos.reading(self.image) as root:
            return {name: value for name, value in root["genesis_obj"]._slots.items() if name.startswith("s")}

    def texts(self):
        def read(catalog):
            return {doc_id: catalog.chunk_storage[document.first_chunk].text for doc_id, document in catalog.documents.items()}
        return self.look(read)

    def rows(self, slot=None, limit=50, before=None):
        with batos.reading(self.image) as root:
            rows, more = batos.history_of(root, limit, root["genesis_obj"] if slot else None, slot, before)
            return [row["change"] for row in rows], more


@pytest.fixture
def one(tmp_path):
    machine = Historian(tmp_path)
    yield machine
    machine.close()


def test_what_is_set_beside_a_big_value_does_not_write_it_again(one):
    rows = [{"name": f"row {n}", "amount": n} for n in range(2000)]
    big = one.put("s1", rows)
    before = one.image.size()
    for n in range(10):
        one.put("s2", n)
    assert one.image.size() - before < 20_000            # 22,000 for each where it stands in the object's own record
    moment = one.put("s3", "then")
    one.put("s1", rows[:1000])
    with batos.reading_as_of(one.image, moment) as root:
        assert root["genesis_obj"].s1 == rows and root["genesis_obj"].s3 == "then"
    one.do(one.write, lambda root: root.update(copy_obj=root["genesis_obj"].clone()))
    one.undo(one.rows("s1")[0][0])
    assert one.slots() == {"s1": rows, "s2": 9, "s3": "then"} and one.rows("s1")[0][-1] == big
    one.image.db.cacheMinimize()
    one.image.pack(time.time() + 1)
    with batos.reading(one.image) as root:
        assert root["copy_obj"].s1 == rows[:1000] and root["genesis_obj"].s1 == rows
    assert one.faults() == []


def test_a_big_value_of_a_change_that_failed_is_not_taken_for_stored(one):
    def failing(root):
        root["genesis_obj"].s1 = "x" * 9000
        root._p_jar.transaction_manager.savepoint()
        raise batos.BadRequest("amid it")
    with pytest.raises(batos.BadRequest, match="amid it"):
        one.write.call(batos.Job("test", failing), 60)
    one.put("s1", "x" * 9000)
    one.put("s2", 1)
    one.image.db.cacheMinimize()
    assert one.slots() == {"s1": "x" * 9000, "s2": 1} and one.faults() == []


def test_a_slot_is_put_back_and_the_undo_undone(one):
    one.put("s", 1)
    change = one.put("s", [2, {"deep": "x" * 9000}])
    undone = one.undo(change)
    assert one.slots() == {"s": 1}
    one.undo(undone)
    assert one.slots() == {"s": [2, {"deep": "x" * 9000}]} and one.faults() == []


def test_a_slot_that_was_new_goes_and_one_that_went_comes_back(one):
    new = one.put("s", 1)
    gone = one.drop("s")
    with pytest.raises(batos.CannotUndo, match=gone):
        one.undo(new)
    one.undo(gone)
    assert one.slots() == {"s": 1}
    with pytest.raises(batos.CannotUndo):
        one.undo(gone)


def test_what_was_changed_again_is_refused_and_the_later_change_named(one):
    first = one.put("s", 1)
    later = one.put("s", 2)
    one.put("other", 3)
    with pytest.raises(batos.CannotUndo, match=later) as caught:
        one.undo(first)
    assert caught.value.fields["change"] == later and one.slots() == {"s": 2}
    one.undo(later)
    one.undo(first)
    assert one.slots() == {}


def test_a_value_that_came_back_by_itself_counts_as_standing(one):
    change = one.put("s", 1)
    one.put("s", 2)
    one.put("s", 1)
    one.undo(change)
    assert one.slots() == {}


def test_pointers_are_put_back_in_their_order(one):
    def parents(root):
        return [parent.name for parent in getattr(root["genesis_obj"], "parent*")]
    change = one.do(one.write, lambda root: batos.set_slot(root["genesis_obj"], "parent*", root["traits_obj"]))
    one.undo(change)
    with batos.reading(one.image) as root:
        assert parents(root) == ["pLLM_obj", "traits_obj"]


def test_only_the_asked_change_of_a_shared_commit_is_undone(one):
    jobs = [batos.Job("set", lambda root, n=n: batos.set_slot(root["genesis_obj"], f"s{n}", n)) for n in range(10)]
    answers = batos.queue.SimpleQueue()
    with one.write.token:
        for job in jobs:
            job.done = answers.put
            one.write.submit(job)
    changes = {outcome.job: outcome.change for outcome in [answers.get(timeout=60) for _ in jobs]}
    assert len({change.split(".")[0] for change in changes.values()}) < 10
    one.undo(changes[jobs[4]])
    assert one.slots() == {f"s{n}": n for n in range(10) if n != 4}


def test_documents_are_put_back(one):
    first = one.index("pump", "The brass valve.")
    second = one.index("pump", "The copper valve.")
    with pytest.raises(batos.CannotUndo, match=second):
        one.undo(first)
    undone = one.undo(second)
    assert one.texts() == {"pump": "The brass valve."}
    one.undo(undone)
    assert one.texts() == {"pump": "The copper valve."}
    gone = one.unindex("pump")
    assert one.texts() == {}
    one.undo(gone)
    assert one.texts() == {"pump": "The copper valve."} and one.faults() == []
    only = one.index("other", "Another text.")
    one.undo(only)
    assert set(one.texts()) == {"pump"} and one.faults() == []


def test_a_large_document_is_put_back(one):
    one.ingest("large", text_of(300))
    one.ingest("large", text_of(300, "copper"))
    with batos.reading(one.image) as root:
        rows, _ = batos.history_of(root, 9, root["knowledge_catalog_obj"], "documents[large]")
    assert len(rows) == 2
    one.undo(rows[0]["change"])
    assert one.look(lambda catalog: batos.search_(catalog, "brass")["results"]) and one.faults() == []


@pytest.mark.parametrize("change, error", [
    ("nonsense", batos.BadRequest), ("", batos.BadRequest), ("03e1a2b3c4d5e6f7.0", batos.NotFound),
    ("ffffffffffffffff.0", batos.NotFound), ("0000000000000000.0", batos.NotFound)])
def test_changes_that_are_none(one, change, error):
    with pytest.raises(error):
        one.undo(change)
    for n in range(3):
        made = one.put("s", n)
    with pytest.raises(error):
        one.undo(change)
    with pytest.raises(batos.NotFound):
        one.undo(made.replace(".0", ".7"))


def test_a_change_without_slots_cannot_be_undone(one):
    change = one.do(one.write, lambda root: root["message_log"].__setitem__(1, {}))
    with pytest.raises(batos.CannotUndo, match="nothing to put back"):
        one.undo(change)


def test_history_tells_the_newest_first_and_goes_on(one):
    changes = [one.put(f"s{n % 2}", n, who="ann", why="because") for n in range(9)][::-1]
    assert one.rows() == (changes, None)
    assert one.rows("s1") == ([change for change, n in zip(changes, range(8, -1, -1), strict=True) if n % 2], None)
    first, more = one.rows(limit=4)
    assert first == changes[:4] and more == changes[3]
    assert one.rows(before=more) == (changes[4:], None)
    with batos.reading(one.image) as root:
        row = batos.history_of(root, 1)[0][0]
        assert (row["who"], row["why"]) == ("ann", "because")
        assert [(slot, batos.page_value(before), batos.page_value(after)) for _, slot, before, after in row["changes"]] == [
            ("s0", 6, 8)]


def test_pages_are_found_among_many_whatever_the_clock_did(one, monkeypatch):
    changes, at_us = [], itertools.chain(range(10 ** 15, 10 ** 15 + 10), [5] * 5, range(10 ** 16, 10 ** 16 + 10))
    for n in range(24):
        at = next(at_us)
        with monkeypatch.context() as patch:
            patch.setattr(batos, "unix_us", lambda at=at: at)
            patch.setattr(one.settings, "history_days", 1e6)
            changes.append(one.put("s", n))
    with batos.reading(one.image) as root:
        for n, change in enumerate(changes):
            (_, _, _, after), = batos._find_change(root, change)[0]["changes"]
            assert batos.page_value(after) == n
    assert one.rows(limit=100)[0] == changes[::-1]


def test_as_of_a_change_and_a_time(one):
    unread = one.put("s", "before")
    changes = [one.put("s", n) for n in range(3)]
    time.sleep(0.01)
    between = batos.now_utc().isoformat()
    time.sleep(0.01)
    one.put("s", "later")
    for n, change in enumerate(changes):
        with batos.reading_as_of(one.image, change) as root:
            assert root["genesis_obj"].s == n and batos.send(root["genesis_obj"], "s") == n
    with batos.reading_as_of(one.image, between) as root:
        assert root["genesis_obj"].s == 2
    with pytest.raises(batos.NotFound, match="not kept"), batos.reading_as_of(one.image, "1999-01-01") as root:
        root["genesis_obj"]
    one.image.pack(time.time() + 1)
    with pytest.raises(batos.NotFound, match="packed"), batos.reading_as_of(one.image, unread) as root:
        assert root["genesis_obj"].s
    with pytest.raises(batos.BadRequest), batos.reading_as_of(one.image, "soon"):
        raise AssertionError


class UndoMachine(RuleBasedStateMachine):
    """Slots set, removed and undone at random, beside a plain model: all states, and what each change made of what."""

    changes = Bundle("changes")

    def __init__(self):
        super().__init__()
        import tempfile
        self.folder = tempfile.TemporaryDirectory()
        import pathlib
        self.one = Historian(pathlib.Path(self.folder.name))
        self.model, self.told = {}, {}

    def _made(self, change, slot, before):
        self.told[change] = slot, before, self.model.get(slot, ...)
        return change

    @rule(target=changes, slot=st.sampled_from(["s1", "s2", "s3"]), value=st.integers(0, 3))
    def put(self, slot, value):
        before = self.model.get(slot, ...)
        change = self.one.put(slot, value)
        self.model[slot] = value
        return self._made(change, slot, before)

    @rule(target=changes, change=consumes(changes))
    def undo(self, change):
        slot, before, after = self.told[change]
        now = self.model.get(slot, ...)
        if now is not after and now != after:
            with pytest.raises(batos.CannotUndo):
                self.one.undo(change)
            return change
        undone = self.one.undo(change)
        if before is ...:
            self.model.pop(slot, None)
        else:
            self.model[slot] = before
        return self._made(undone, slot, after)

    def teardown(self):
        assert self.one.slots() == self.model and self.one.faults() == []
        self.one.close()
        self.folder.cleanup()


TestUndoMachine = UndoMachine.TestCase
TestUndoMachine.settings = hypothesis_settings(max_examples=15, stateful_step_count=25, deadline=None)


@pytest.mark.slow
def test_by_the_wire_and_the_command_line(daemon, capsys):
    running = daemon()
    with batos.Client(running.endpoint) as client:
        first = client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["mood", "calm"], why="a trial")
        second = client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["mood", "x" * 5000])
        client.call("index_document", doc_id="pump", text="The brass valve.")
        rows = client.call("history", target="genesis_obj", slot="mood")["results"]
        assert [row["change"] for row in rows] == [second["change"], first["change"]] and rows[1]["why"] == "a trial"
        assert rows[0]["changes"][0]["before"] == "calm" and rows[0]["changes"][0]["after"] == {"$large": "str"}
        assert client.call("inspect", target="genesis_obj", as_of=first["change"])["result"]["slots"]["mood"]["value"] == "calm"
        key = batos.uuid7()
        undone = client.call("undo", change=second["change"], idempotency_key=key)
        again = client.call("undo", change=second["change"], idempotency_key=key)
        assert again["repeated"] and again["change"] == undone["change"]
        assert client.call("inspect", target="genesis_obj.mood")["result"]["value"] == "calm"
        with pytest.raises(batos.BadRequest, match="target"):
            client.call("history", slot="mood")

        def run(*words):
            assert batos.main([*words, "--endpoint", running.endpoint]) == 0
            return capsys.readouterr().out
        told = run("history", "pump", "--document")
        assert "documents[pump]" in told and "nothing -> 1" in told
        assert "undo" in run("log") and "is undone" in run("undo", undone["change"])
        assert "more: --before" in run("log", "--limit", "2")
    until = datetime.datetime.now().isoformat()
    with batos.Client(running.endpoint) as client:
        assert client.call("inspect", target="genesis_obj.mood", as_of=until)["result"]["value"] == "x" * 5000


@pytest.mark.parametrize("before, after, told", [
    ({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 2, "d": 4}}, "b › d: 3 -> 4"),
    ({"a": 1}, {"a": 1, "e": 5}, "e: nothing -> 5"), ({"a": 1, "b": 2}, {"a": 2, "b": 1}, "{'a': 1, 'b': 2} -> {'a': 2, 'b': 1}"),
    (1, {"a": 1}, "1 -> {'a': 1}"), ("x" * 99, "y", f"'{'x' * 59} -> 'y'")])
def test_a_line_of_history_tells_of_maps_where_they_differ(before, after, told):
    assert batos._told_sides({"before": before, "after": after}) == told
    assert batos._told_sides({"after": after}).startswith("nothing -> ")
