"""Conversations: what was said becomes episodes, is found in its conversation, is marked, superseded; filters."""

import argparse
import ast
import contextlib
import datetime
import functools
import inspect
import io
import pathlib
import re
import sys
import zlib

import doubles
import pytest
import test_parts
from test_mind import BRIEF, MANUAL, Machine
from test_vectors import DOUBLE

import batos

CHAT = {**BRIEF, "conversation": "home"}


@pytest.fixture
def one(tmp_path):
    made = Machine(tmp_path / "image.fs", doubles.QuickCore(), {})
    yield made
    made.close()


def say(one, text, conversation="home"):
    return one.think({**BRIEF, "args": [text], **({"conversation": conversation} if conversation else {})})


def found(one, query, **where):
    rows = one.read(lambda root: batos.search_(root["knowledge_catalog_obj"], query, 20, **where))["results"]
    return [row["chunk"]["text"] for row in rows]


def faults(one):
    return one.read(lambda root: list(batos.catalog_faults(root)))


@pytest.mark.parametrize("text, states", [
    ("The printer stands in room 12.", True), ("where is the printer", False), ("Is it warm?", False),
    ("Explain the valve.", False), ("...", False),
    ("Remember that Anna likes tea.", True), ("the valve, what does it do?", False), ("Hello!", False),
    ("I’ve moved to Graz.", True), ("What’s new", False)])
def test_a_statement_is_no_question_request_or_greeting(text, states):
    assert batos.is_statement(text) is states


@pytest.mark.parametrize("text, states", [
    ("garage door code", False), ("rex tablet dose", False), ("run a command once at boot with cron", False),
    ("largest number of columns in a table", False), ("garage code 9038", True), ("the key hangs in the shed", True),
    ("Rex hates thunder", True), ("Dentist 3 May 14:30", True), ("wifi password: apricot", True), ("buy milk", True),
    ("der Schlüssel hängt im Schuppen", True), ("la clé est dans le tiroir", True), ("Lena moved to Bern", True),
    ("我的名字是李雷", True)])
def test_words_as_for_a_search_engine_state_nothing(text, states):
    assert batos.is_statement(text) is states


@pytest.mark.slow
def test_words_as_for_a_search_engine_are_looked_up(one):
    one.learn("The code of the garage door is 9038.", "doors.md")
    assert "9038" in say(one, "garage door code")["answer"]
    assert "nothing in memory" in say(one, "rex tablet dose")["answer"]
    assert "9038" in say(one, "I stand at the garage door and need the code")["answer"]


@pytest.mark.slow
def test_what_was_said_is_remembered_in_its_conversation(one):
    report = say(one, "The printer stands in room 12.")
    assert report["state"] == "COMPLETE" and "I will remember" in report["answer"] and "room 12" in report["answer"]
    report = say(one, "In which room does the printer stand?")
    assert report["relevant"] and "The printer stands in room 12." in report["answer"]
    assert report["evidence"][0]["doc_id"] == batos.episode_id("The printer stands in room 12.", "home")
    assert not say(one, "In which room does the printer stand?", "office")["relevant"]
    assert not say(one, "In which room does the printer stand?", None)["relevant"]
    assert faults(one) == []


def test_what_is_stated_is_answered_where_documents_speak_of_it(one):
    one.learn()
    report = say(one, "The brass valve turns, but the needle stands.")
    assert report["relevant"] and {item["doc_id"] for item in report["evidence"]} == {"pump.md"}
    assert "I will remember" in say(one, "The printer stands in room 12.")["answer"]
    assert "I will remember" in say(one, "The printer of room 12 is old.")["answer"]       # it asks for nothing
    assert found(one, "needle brass", conversation="home") == ["The brass valve turns, but the needle stands."]


def test_a_question_is_never_the_answer_to_itself(one):
    one.learn()
    first = say(one, "How is the brass valve turned?")
    again = say(one, "How is the brass valve turned?")
    assert first["evidence"][0]["doc_id"] == again["evidence"][0]["doc_id"] == "pump.md"
    say(one, "Explain the purple gasket to me.")
    again = say(one, "Explain the purple gasket to me.")
    assert not again["relevant"] and "none of these words: explain, purple, gasket" in again["answer"]


def test_a_question_takes_its_subject_from_the_turn_before(one):
    one.learn("# Bread\n\nThe loaf rises for two hours. It is baked for forty minutes at 230 degrees.\n\n"
              "# Soup\n\nThe soup is cooked for twenty minutes. It serves four.\n", "kitchen.md")
    assert "rises for two hours" in say(one, "How is the loaf made to rise?")["answer"]
    assert "forty minutes" in say(one, "And how long is it baked?")["answer"]
    assert "230" in say(one, "At how many degrees?")["answer"]
    assert say(one, "And how long is it?", "other")["answer"] != say(one, "And how long is it?")["answer"]


def test_of_two_statements_the_newer_is_told_first(one):
    say(one, "I like coffee in the morning.")
    say(one, "I do not like coffee any more, I drink tea now.")
    told = say(one, "Do I like coffee?")
    assert told["answer"] == ("“I do not like coffee any more, I drink tea now.” [1]; before that: "
                              "“I like coffee in the morning.” [2]")
    assert "drink tea" in say(one, "What did I tell you about coffee?", None)["answer"]


def test_who_says_how_she_feels_is_answered_gently(one):
    one.learn("Max the dog came to us in spring. He loved the lake and every stick in it.\n", "max.md")
    told = say(one, "my dog died on tuesday and I miss him", None)
    assert told["lead"] == "ROBIN" and "none of these words" not in told["answer"] and "Max the dog" in told["answer"]
    alone = say(one, "I am so sad about my parrot today")
    assert alone["lead"] == "ROBIN" and alone["answer"] == "Thank you for telling me. I am listening." and not alone["evidence"]


def test_what_was_answered_is_kept_and_not_found_as_knowledge(one):
    one.learn()
    report = say(one, "How is the brass valve turned?")
    episode = one.read(lambda root: root["knowledge_catalog_obj"].documents[episode_of(CHAT)].metadata)
    assert episode["answered"] == report["answer"] and episode["cycle"] == report["cycle"] and episode["who"] == "local"
    assert episode["cited"][0]["doc_id"] == "pump.md" and episode["cited"][0]["lines"] == [5, 5]
    assert found(one, "brass needle zero")[0] in MANUAL and found(one, "needle zero", conversation="home") == []
    assert found(one, "brass valve", conversation="home") == ["How is the brass valve turned?"]


def episode_of(brief):
    return batos.episode_id(batos.mission_text(brief), brief.get("conversation"))


def test_what_is_said_again_is_one(one):
    for _ in range(3):
        say(one, "The printer stands in room 12.")
    say(one, "The printer stands in room 12.", "office")
    assert len(found(one, "printer", scope="said")) == 2 and len(found(one, "printer", conversation="home")) == 1


def test_a_question_that_is_asked_again_is_the_same_episode_with_its_last_answer(one):
    """Outside of a conversation, where nothing hangs on which turn came last."""
    def episode(conversation):
        doc_id = batos.episode_id("Where is it?", conversation)
        return one.read(lambda root: dict(own_fields(root["knowledge_catalog_obj"].documents[doc_id])))

    def own_fields(document):
        document._p_activate()
        return document.__dict__
    first = say(one, "Where is it?", None)
    before, commits = episode(None), one.read(lambda root: len(root["knowledge_catalog_obj"].retired))
    again = say(one, "Where is it?", None)
    after = episode(None)
    assert before["metadata"]["cycle"] == first["cycle"] and after["metadata"]["cycle"] == again["cycle"]
    assert after["version"] == before["version"] == 1 and after["first_chunk"] == before["first_chunk"]
    assert after["added_at"] > before["added_at"]
    assert one.read(lambda root: len(root["knowledge_catalog_obj"].retired)) == commits
    say(one, "Where is it?"), say(one, "Where is it?")
    assert episode("home")["version"] == 2 and faults(one) == []                # where it is the latest turn again


def test_one_conversation_is_not_drowned_by_the_others(one):
    catalog = batos.new_catalog()
    for n in range(300):
        batos.remember_episode(catalog, f"The printer of house {n} stands in room {n}.", f"c{n % 30}")
    rows = batos.search_(catalog, "printer room", 20, conversation="c7")["results"]
    assert len(rows) == 10 and {row["chunk"]["metadata"]["conversation"] for row in rows} == {"c7"}


# Marks


def test_a_mark_is_kept_with_the_answer_and_its_episode(one):
    one.learn()
    oid = one.think(CHAT)["cycle"]

    def mark(oid):
        marked = functools.partial(batos.mark_answer, oid=oid, mark="wrong", note="it is turned left")
        return one.lanes["bulk"].call(batos.Job("feedback", marked)).result
    assert mark(oid)["result"] == {"cycle": oid, "mark": "wrong"}
    report = one.read(lambda root: batos.cycle_report(batos.find_cycle(root, oid)))
    assert report["feedback"]["note"] == "it is turned left" and report["answer"]
    episode = one.read(lambda root: root["knowledge_catalog_obj"].documents[episode_of(CHAT)].metadata)
    assert episode["feedback"] == report["feedback"]
    with pytest.raises(batos.NotFound):
        mark("0xffff")


# Superseding


def test_what_is_superseded_stays_says_so_and_ranks_below(one):
    catalog = batos.new_catalog()
    batos.index_document_(catalog, "old", "The rent is due on the first. Rent, rent, rent.")
    batos.index_document_(catalog, "new", "The rent is due on the tenth of each month, says the landlord.")

    def rows(vector=None):
        results = batos.search_(catalog, "rent due", vector=vector)["results"]
        return [(row["chunk"]["doc_id"], row["superseded_by"]) for row in results]
    assert rows() == [("old", None), ("new", None)]
    batos.supersede_(catalog, "old", "new")
    assert rows() == rows(DOUBLE.query("rent due")) == [("new", None), ("old", "new")]
    evidence = batos.find_evidence(catalog, "When is the rent due?", batos.Recall())["evidence"]
    assert evidence[0]["doc_id"] == "new"
    with pytest.raises(batos.BadRequest, match="already"):
        batos.supersede_(catalog, "new", "old")
    with pytest.raises(batos.NotFound):
        batos.supersede_(catalog, "old", "newer")
    batos.unindex_document_(catalog, "new")
    assert rows() == [("old", None)]


# Filters


def test_filters_of_tags_and_time():
    catalog = batos.new_catalog()
    batos.index_document_(catalog, "a", "brass valve", {"tags": ["pump", "metal"]})
    between = batos.now_utc()
    batos.index_document_(catalog, "b", "brass lamp", {"tags": ["lamp", "metal", 7]})
    batos.index_document_(catalog, "c", "brass", {"tags": "metal"})

    def names(**where):
        return {row["chunk"]["doc_id"] for row in batos.search_(catalog, "brass", **where)["results"]}
    assert names(tags=["metal"]) == {"a", "b"} and names(tags=["metal", "lamp"]) == {"b"} and names(tags=["none"]) == set()
    assert names(since=between) == {"b", "c"} and names(until=between) == {"a"}
    assert names(since=between, tags=["metal"]) == {"b"} and names(doc_id="a", tags=["lamp"]) == set()
    batos.index_document_(catalog, "a", "brass valve", {"tags": ["wood"]})
    assert names(tags=["metal"]) == {"b"} and names(tags=["wood"]) == {"a"}
    for name in "abc":
        batos.unindex_document_(catalog, name)
    assert all(len(values) == 0 for values in catalog.metadata_index.values())


@pytest.mark.parametrize("given", ["2026-01-31", "2026-01-31T00:00:00Z", {"$time": "2026-01-31T01:00:00+01:00"}])
def test_a_time_is_text_or_what_the_wire_tells(given):
    command = batos.SearchMemoryCommand(command="search_memory", query="x", since=given)
    assert command.since == datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC)


@pytest.mark.parametrize("given", ["soon", 7, {"$ref": "0x1"}, "9999-13-01"])
def test_what_is_no_time_is_refused(given):
    with pytest.raises(ValueError, match="ISO 8601"):
        batos.SearchMemoryCommand(command="search_memory", query="x", since=given)


# What the system says of itself


def test_docstrings_keep_their_lines():
    source = pathlib.Path(batos.__file__).read_text()
    told, lines = batos._docstrings_of(source).split("\n"), source.splitlines()
    assert len(told) == len(lines) and all(one in ("", line) for one, line in zip(told, lines, strict=True))
    assert any(line.startswith("class Segment") for line in told) and "import zmq" not in told


ODD = '''# a note
"""Of the module,
on two lines."""
X = "no docstring"
@decorated("here")
class A(
    B,
):
    # a comment
    """Of A."""
    "not another"

    def f(self): return 1

    def g(self):

        \'\'\'Of g.\'\'\'
        def inner():
            """Of inner."""
    def h(self):
        """no """ + "docstring"
if X:
    """not one"""
'''


@pytest.mark.parametrize("source", [ODD, inspect.getsource(argparse), "x = 1\n", '"""One."""'])
def test_docstrings_are_those_that_a_syntax_tree_has(source):
    wanted, lines = set(), source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            wanted |= {getattr(node, "lineno", 1), *range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    told = [line if n in wanted or line.startswith("# ") else "" for n, line in enumerate(lines, 1)]
    assert batos._docstrings_of(source).split("\n") == told


@pytest.mark.slow
def test_the_system_is_asked_about_itself(daemon, tmp_path):
    def ask(client, question):
        return client.call("initiate_cognitive_cycle", wait=True, mission_brief={**BRIEF, "args": [question]})["result"]

    def known(client):
        return {row["doc_id"]: row["version"] for row in client.call("list_documents")["results"] if row["scope"] == "self"}
    for _ in range(2):                                   # at the second start it is known
        running = daemon(("self_knowledge", "true"), core=0)
        with batos.Client(running.endpoint) as client:
            end_s = batos.time.monotonic() + 300
            while len(known(client)) < 2:
                assert batos.time.monotonic() < end_s
                batos.time.sleep(0.05)
            assert set(known(client).values()) == {1}
            report = ask(client, "What does the forget command of BAT OS leave in the image?")
            assert report["relevant"] and report["evidence"][0]["doc_id"].startswith("batos/")
            item = report["evidence"][0]
            path = pathlib.Path(batos.__file__).with_name(item["doc_id"].removeprefix("batos/"))
            first, last = item["lines"]
            said = item["text"].removeprefix(item.get("header", "")).strip()
            assert said in "\n".join(path.read_text().splitlines()[first - 1:last])
            assert not ask(client, "What does the forget command leave in the image?")["relevant"]
            assert client.call("search_memory", query="forget command image")["results"] == []
            assert client.call("search_memory", query="forget command image", scope="self")["results"]
        assert running.stop() == 0
    assert batos.check_image(str(tmp_path / "live_image.fs"), deep=True)["faults"] == []


# Forgetting


def inflated(data):
    """Yield what begins like something deflated in some bytes, inflated."""
    for match in re.finditer(rb"\x78\x01", data):
        with contextlib.suppress(zlib.error):
            yield zlib.decompressobj().decompress(data[match.start():], 1 << 20)
    for match in re.finditer(re.escape(batos._PRIMED), data):
        with contextlib.suppress(zlib.error):
            yield zlib.decompressobj(-12, batos._PRIMER).decompress(data[match.end():], 1 << 20)


def bytes_with(folder, word):
    """Return the files of an image that hold a word, also where they are deflated."""
    paths = (*folder.rglob("live_image.fs*"), *folder.rglob("*.blob"))
    found = {path.name: path.read_bytes() for path in paths if path.is_file()}
    return [name for name, data in sorted(found.items()) if any(word in part.lower() for part in (data, *inflated(data)))]


SECRET = "The xylograph of Mr Quimby hangs in the pantry."


def tell_a_secret(client):
    client.call("index_document", doc_id="house", text=SECRET + " An older word.", idempotency_key="a key")
    client.call("index_document", doc_id="house", text=SECRET)
    client.call("index_document", doc_id="other", text="The pantry is painted blue. " * 20)
    for conversation in ({}, {"conversation": "home"}):
        ended = client.call("initiate_cognitive_cycle", wait=True, mission_brief={
            **BRIEF, "args": ["Where does the xylograph of Mr Quimby hang?"], **conversation})["result"]
        assert "Quimby" in ended["answer"]
        client.call("feedback", cycle=ended["cycle"], mark="right", note="the xylograph indeed")
    client.call("initiate_cognitive_cycle", wait=True, mission_brief={**BRIEF, "args": ["My xylograph is old."],
                                                                      "conversation": "home"})


def test_what_is_forgotten_leaves_no_byte_behind(daemon, tmp_path, capsys):
    running = daemon(("backup_dir", str(tmp_path / "backups")), core=0)
    with batos.Client(running.endpoint, timeout_s=60) as client:
        tell_a_secret(client)
        kept = client.call("backup")["result"]
        assert bytes_with(tmp_path, b"xylograph") and bytes_with(tmp_path, b"quimby")
        assert batos.main(["forget", "--matching", "xylograph", "--endpoint", running.endpoint]) == 0
        told = capsys.readouterr().out
        assert "house\n" in told and "would be forgotten" in told and "other" not in told
        assert client.call("search_memory", query="xylograph")["results"]
        assert batos.main(["forget", "--matching", "xylograph", "--yes", "--endpoint", running.endpoint]) == 0
        assert "these backups may hold it still" in capsys.readouterr().out and kept
        for scope in batos.SCOPES:
            assert client.call("search_memory", query="xylograph Quimby", scope=scope)["results"] == []
        assert client.call("search_memory", query="pantry")["results"][0]["chunk"]["doc_id"] == "other"
        again = client.call("index_document", doc_id="house", text=SECRET + " An older word.", idempotency_key="a key")
        assert again["repeated"]
        assert batos._FORGOTTEN in str(client.call("list_cycles")["results"])
    assert running.stop() == 0
    for word in (b"xylograph", b"quimbi", b"quimby"):
        assert bytes_with(tmp_path, word) == [], word
    assert batos.check_image(str(tmp_path / "live_image.fs"), deep=True)["faults"] == []
    running = daemon(("backup_dir", str(tmp_path / "backups")), core=0)
    with batos.Client(running.endpoint) as client:
        changes = client.call("history", limit=1000)["results"]
        assert len(changes) > 15 and client.call("history", before=changes[-2]["change"])["results"] == changes[-1:]
    assert running.stop() == 0


def test_the_name_of_a_conversation_that_is_forgotten_leaves_no_byte_behind(daemon, tmp_path):
    running, name = daemon(core=0), "zugzwang-talk"
    with batos.Client(running.endpoint, timeout_s=60) as client:
        client.call("index_document", doc_id="other", text="The pantry is painted blue.")
        for text in ("What colour is the pantry painted?", "The pantry is cold.", "What do giraffes eat?", "What colour is it?"):
            ended = client.call("initiate_cognitive_cycle", wait=True, mission_brief={
                **BRIEF, "args": [text], "conversation": name, "intent": f"asked in {name}"})["result"]
            client.call("feedback", cycle=ended["cycle"], mark="wrong", note="it is red")
        client.call("initiate_cognitive_cycle", wait=True, mission_brief={**BRIEF, "args": ["What is cold?"]})
        assert bytes_with(tmp_path, name.encode())
        client.call("forget", conversation=name)
        assert client.call("list_cycles", conversation=name)["results"] == []
        assert len(client.call("history", limit=1000)["results"]) > 8
    assert running.stop() == 0
    assert bytes_with(tmp_path, name.encode()) == []
    assert batos.check_image(str(tmp_path / "live_image.fs"), deep=True)["faults"] == []


def test_a_forgetting_that_was_cut_short_is_ended_by_the_next_start(daemon, tmp_path):
    one = Machine(tmp_path / "live_image.fs", doubles.QuickCore(), {})
    one.learn("The xylograph hangs in the pantry.", "house")
    one.learn("The pantry is blue.", "other")

    def step(line):
        if "of what is gone" in line or "pack" in line:
            raise batos.Cancelled(line)
    with pytest.raises(batos.Cancelled):
        batos.forget_job(one.image, one.lanes["bulk"], one.settings, "doc_id", "house", False)(step)
    assert found(one, "xylograph") == []
    one.close()
    assert bytes_with(tmp_path, b"xylograph")
    running = daemon()
    end_s = batos.time.monotonic() + 300
    while bytes_with(tmp_path, b"xylograph"):
        assert batos.time.monotonic() < end_s
        batos.time.sleep(0.1)
    assert running.stop() == 0


def forget_house(one):
    return batos.forget_job(one.image, one.lanes["bulk"], one.settings, "doc_id", "house", False)(lambda line: None)


@pytest.mark.slow
def test_who_forgets_is_told_what_the_disk_got_back_and_no_file_that_is_gone_is_held(tmp_path):
    one = test_parts.Machine(tmp_path)
    one.ingest("house", test_parts.text_of(1500, "xylograph"))
    one.ingest("other", "The pantry is blue.")
    assert one.look(lambda catalog: len(batos.search_(catalog, "xylograph chapter 7", 9)["results"])) == 9
    blobs = list(pathlib.Path(f"{one.image.path}.blob").rglob("*.blob"))
    told = batos.forget_job(one.image, one.bulk, one.settings, "doc_id", "house", False)(lambda line: None)
    result, held = told["result"], pathlib.Path("/proc/self/maps").read_text()
    assert blobs and not any(blob.exists() for blob in blobs) and not any(str(blob) in held for blob in blobs)
    assert 0 < result["after_mb"] < result["before_mb"] / 2 and result["after_mb"] == pytest.approx(one.image.disk_mb(), abs=0.05)
    assert f"{result['after_mb']:,.1f} MB on the disk" in told["details"] and "as_of" in told["details"]
    assert one.look(lambda catalog: len(batos.search_(catalog, "pantry", 9)["results"])) == 1 and one.faults() == []
    one.close()


def test_what_somebody_reads_still_is_left_for_then_and_told(one, monkeypatch):
    monkeypatch.setattr(batos, "_READERS_WAIT_S", 0.1)
    one.learn("The xylograph hangs in the pantry.", "house")
    with batos.reading(one.image) as root:
        assert root["knowledge_catalog_obj"].documents["house"]
        told = forget_house(one)
    assert "somebody has read" in told["result"]["left"] and "in the image still" in told["details"]
    left = lambda root: batos.catalog_figures(root["knowledge_catalog_obj"])["forgetting"]
    assert one.read(left) and found(one, "xylograph") == []
    batos.leave_no_byte(one.image, one.lanes["bulk"], lambda line: None)
    assert b"xylograph" not in pathlib.Path(one.image.path).read_bytes()
    assert not one.read(left)


def test_a_disk_without_room_for_a_pack_is_told(one, monkeypatch):
    def full(*args):
        raise batos.ImageError("no room")
    one.learn("The xylograph hangs in the pantry.", "house")
    monkeypatch.setattr(one.image, "pack", full)
    told = forget_house(one)
    assert told["result"]["left"] == "no room" and "tried again in 10 minutes" in told["details"]
    assert found(one, "xylograph") == []


class Keeper(batos.Housekeeping):
    """Tells what it would have done."""

    def __init__(self, **settings):
        self.asked, self.settings, self._forget_at_s = [], batos.load_settings(settings, {}), batos.time.monotonic() + 1000

    def _ask(self, lane, name, *rest, **how):
        self.asked.append((lane, name))


def test_the_daemon_goes_after_what_is_left():
    keeper, day_us = Keeper(history_days=3.0), 86_400_000_000
    memory = {"leftovers": 0, "unembedded": 0, "forgetting": True, "oldest_retired_us": batos.steady_us() - 2 * day_us}
    keeper.look(memory, False)
    assert keeper.asked == []                            # whoever forgets is at it
    keeper._forget_at_s = batos.time.monotonic()
    keeper.look(memory, False)
    keeper.look(memory, False)
    assert keeper.asked == [("upkeep", "forget")]
    keeper.look({**memory, "forgetting": False, "oldest_retired_us": batos.steady_us() - 4 * day_us}, False)
    assert keeper.asked == [("upkeep", "forget"), ("bulk", "prune")]


def test_status_tells_what_is_left_on_the_disk(daemon):
    running = daemon(core=0)
    with batos.Client(running.endpoint) as client:
        client.call("index_document", doc_id="house", text="The xylograph hangs in the pantry.")
        told = client.call("unindex_document", doc_id="house")
        assert "30 days" in told["details"] and "`forget`" in told["details"]
        end_s = batos.time.monotonic() + 300
        while "left_on_disk" not in (health := client.call("health")["result"]):
            assert batos.time.monotonic() < end_s
            batos.time.sleep(0.05)
        assert "1 former versions of documents" in health["left_on_disk"]["retired"] and len(health["left_on_disk"]) == 1


def test_what_is_told_of_meanwhile_is_seen(one):
    one.learn()
    job = batos.forget_job(one.image, one.lanes["bulk"], one.settings, "doc_id", "pump.md", False)
    found_first = batos._what_to_forget
    calls = []

    def slow(*args):
        calls.append(found_first(*args))
        if len(calls) == 1:
            one.think(CHAT)                              # between the look and the erasing
        return calls[-1]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(batos.Busy, match="send it again"):
        patch.setattr(batos, "_what_to_forget", slow)
        job(lambda line: None)
    assert found(one, "valve") != []
    assert "1 cycles" in job(lambda line: None)["details"] and found(one, "valve") == []


def test_a_document_is_forgotten_and_what_was_asked_about_it_stays(one):
    one.learn()
    oid = one.think(CHAT)["cycle"]
    job = batos.forget_job(one.image, one.lanes["bulk"], one.settings, "doc_id", "pump.md", False)
    assert "1 documents and what 1 cycles" in job(lambda line: None)["details"]
    report = one.read(lambda root: batos.cycle_report(batos.find_cycle(root, oid)))
    assert report["answer"] == batos._FORGOTTEN and report["evidence"] == [] and "valve" in report["mission"]
    episode = one.read(lambda root: root["knowledge_catalog_obj"].documents[episode_of(CHAT)].metadata)
    assert episode["answered"] == batos._FORGOTTEN and episode["cited"] == []
    assert found(one, "valve") == [] and found(one, "valve", conversation="home") == [batos.mission_text(CHAT)]
    assert faults(one) == []
    with pytest.raises(batos.NotFound):
        batos.forget_job(one.image, one.lanes["bulk"], one.settings, "doc_id", "pump.md", True)(lambda line: None)


def test_a_conversation_is_forgotten_and_no_other(one):
    say(one, "The printer stands in room 12.")
    say(one, "The printer stands in room 12.", "office")
    batos.forget_job(one.image, one.lanes["bulk"], one.settings, "conversation", "home", False)(lambda line: None)
    assert found(one, "printer", conversation="home") == [] and len(found(one, "printer", conversation="office")) == 1
    missions = one.read(lambda root: [batos.mission_text(cycle.mission_brief) for cycle in root["missions"].values()])
    assert missions == [batos._FORGOTTEN, "The printer stands in room 12."] and faults(one) == []


@pytest.mark.parametrize("fields", [{}, {"doc_id": "a", "matching": "b"}, {"matching": ""}])
def test_one_thing_at_a_time_is_forgotten(fields):
    with pytest.raises(ValueError):
        batos.ForgetCommand(command="forget", **fields)


def test_stop_words_forget_nothing():
    with pytest.raises(batos.BadRequest, match="stop words"):
        batos.documents_matching(batos.new_catalog(), "the of and")


# By hand


def test_a_conversation_in_the_terminal(daemon, monkeypatch, capsys):
    running = daemon(core=0)
    lines = "The printer stands in room 12.\n\nIn which room does the printer stand?\n/right thank you\nWhat do giraffes eat?\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert batos.main(["chat", "--endpoint", running.endpoint]) == 0
    told = capsys.readouterr().out
    assert "I will remember" in told and "“The printer stands in room 12.” [1]" in told and "is marked right" in told
    assert "nothing in memory" in told and told.endswith("3 turns of chat\n")
    with batos.Client(running.endpoint) as client:
        rows = client.call("search_memory", query="printer room", conversation="chat")["results"]
        marks = {row["chunk"]["text"]: row["chunk"]["metadata"].get("feedback", {}).get("mark") for row in rows}
        assert marks == {"The printer stands in room 12.": None, "In which room does the printer stand?": "right"}
        assert client.call("search_memory", query="printer room")["results"] == []
        client.call("index_document", doc_id="a", text="Blue paint.", metadata={"tags": ["shed"]})
        client.call("index_document", doc_id="b", text="Green paint.")
        client.call("supersede", older="a", newer="b")
        with pytest.raises(batos.BadRequest, match="conversation"):
            client.call("initiate_cognitive_cycle", mission_brief={**BRIEF, "conversation": "a/b"})
    assert batos.main(["search", "paint", "--tag", "shed", "--endpoint", running.endpoint]) == 0
    assert "superseded by b" in capsys.readouterr().out
    assert running.stop() == 0
