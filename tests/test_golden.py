"""The golden dataset: what people correct becomes rows, rows are curated, and what is forgotten leaves no byte of them."""

import collections
import json
import pathlib
import random

import conftest
import pytest

import batos

WAIT_S = 300
ACCEPTED, CONTRADICTED, WRONG = 30, 6, 4                 # corrections, by what becomes of them
NAMES = ("Harlow Belton Cordale Dunwick Elmere Fenford Garstead Holgate Ingby Jorham Kelley Lammoor Morton Norwick Ostham "
         "Pelgate Quinby Rosford Selmoor Torley Ulwick Venstead Weston Yarby Zelham Tarnow Brimley Crowdale Durnford Estwick "
         "Farnby Grimstead Hexley Ivelton Juxham Kirdale").split()


def texts(name):
    return {f"{name}/notes.md": f"# Notes\n\nIt was proposed that the pump at {name} be oiled every two weeks.",
            f"{name}/rules.md": f"# Rules\n\nEvery nine weeks the engineer oils the pump at {name}."}


def ask(client, question):
    brief = {"type": "direct_synthesis", "selector": "answer_", "args": [question]}
    return client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)["result"]


def oil(client, name):
    for doc_id, text in texts(name).items():
        client.call("index_document", doc_id=doc_id, text=text)
    return ask(client, f"How often is the pump at {name} oiled?")


def mark(client, cycle, mark="wrong", **fields):
    return client.call("feedback", cycle=cycle, mark=mark, **fields)["result"]


def rows(client, **fields):
    return {row["row"]: row for row in client.call("list_golden", limit=1000, **fields)["results"]}


def curate(client):
    told = batos._curated(client)[1]
    return told, rows(client)


@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    """(client, {row: what becomes of it}) of forty corrections of a daemon."""
    running = conftest.DaemonProcess(tmp_path_factory.mktemp("corrected"), core=0)
    with batos.Client(running.endpoint, WAIT_S) as client:
        expected = {}
        for name in NAMES:
            said = len(expected)
            cycle = oil(client, name)
            assert len(cycle["evidence"]) >= 2, name
            if said < ACCEPTED:
                expected[mark(client, cycle["cycle"], note="2 is right, 1 is not")["row"]] = "accepted"
        for name in NAMES[:CONTRADICTED]:                # of these the earlier ones are refused now
            cycle = ask(client, f"How often is the pump at {name} oiled?")["cycle"]
            expected[mark(client, cycle, correction={"quotes": [1], "not": [2]})["row"]] = "accepted"
        for name in NAMES[-WRONG:]:
            cycle = ask(client, f"How often is the pump at {name} oiled?")["cycle"]
            quotes = [9] if name < "G" else ["It is oiled by nobody at all."]
            expected[mark(client, cycle, correction={"quotes": quotes})["row"]] = "refused"
        for row in list(expected)[:CONTRADICTED]:
            expected[row] = "refused"
        yield client, expected, running
    running.stop(kill=True)


def test_words_say_which_passages_are_right():
    assert batos.correction_of("2 is right, 1 is not") == {"quotes": [2], "not": [1]}
    assert batos.correction_of("1 and 3 are right; 2 isn't") == {"quotes": [1, 3], "not": [2]}
    assert batos.correction_of("1, 2 are wrong") == {"quotes": [], "not": [1, 2]}
    assert batos.correction_of("no, it has 2 valves") is None


def test_exactly_the_sound_rows_are_accepted_and_each_refusal_has_its_reason(corrected):
    client, expected, _ = corrected
    told, found = curate(client)
    assert {row: found[row]["state"] for row in expected} == expected and len(expected) == ACCEPTED + CONTRADICTED + WRONG
    reasons = collections.Counter(row["why"].split(" ", 2)[-1] for row in found.values() if row["state"] == "refused")
    assert all(row["why"] for row in found.values() if row["state"] == "refused"), reasons
    assert reasons["says otherwise, and is later"] == CONTRADICTED
    assert f"{ACCEPTED} rows are accepted, {CONTRADICTED + WRONG} refused" in told and "wants 20 rows that are held back" in told


def test_a_mere_right_is_a_row_and_a_mere_wrong_is_one_that_teaches_nothing(corrected):
    client, _, _ = corrected
    cycle = ask(client, "How often is the pump at Harlow oiled?")["cycle"]
    number = mark(client, cycle)["row"]
    found = curate(client)[1][number]
    assert found["state"] == "refused" and "mark it again, such as with" in found["why"] and batos.teaches_nothing(found)
    row = mark(client, cycle, "right")["row"]
    assert rows(client)[row]["quotes"] == [1] and not batos.is_correction(rows(client)[row])
    assert "row" not in mark(client, ask(client, "Who is the king of the giraffes?")["cycle"], "right")


@pytest.mark.parametrize("fields, why", [
    ({}, "says that this was wrong, and not what is right; mark it again"), ({"note": "9 is right"}, "9 names no passage"),
    ({"correction": {"lead": "NOBODY"}}, "no kind of mission"), ({"note": "2 is right, 1 is not"}, None)])
def test_who_marks_is_told_at_once_why_nothing_is_learnt_of_it(corrected, fields, why):
    client, _, _ = corrected
    cycle = ask(client, "How often is the pump at Harlow oiled?")["cycle"]
    told = client.call("feedback", cycle=cycle, mark="wrong", **fields)["details"]
    assert ("nothing is learnt of it" in told) is bool(why) and (why or "golden dataset") in told


def test_a_text_of_a_document_may_stand_for_a_passage(corrected):
    client, _, _ = corrected
    client.call("index_document", doc_id="lamp.md", text="# Lamp\n\nThe lamp is cleaned by the keeper on Mondays. It is tall.")
    cycle = ask(client, "How often is the pump at Belton oiled?")["cycle"]
    number = mark(client, cycle, correction={"quotes": ["The lamp is cleaned by the keeper on Mondays."]})["row"]
    row = rows(client)[number]
    assert row["passages"][row["quotes"][0] - 1]["doc_id"] == "lamp.md"


def test_a_mark_that_is_taken_back_teaches_nothing(corrected):
    client, _, _ = corrected
    cycle = ask(client, "How often is the pump at Weston oiled?")["cycle"]
    reply = client.call("feedback", cycle=cycle, mark="wrong", note="2 is right")
    client.call("undo", change=reply["change"])
    _, found = curate(client)
    assert found[reply["result"]["row"]]["why"] == "the mark was taken back, or given anew"


def test_rows_can_be_refused_and_accepted_by_hand(corrected):
    client, expected, _ = corrected
    row = [row for row, state in expected.items() if state == "accepted"][-1]
    client.call("judge_golden", rows=[row], accept=False)
    assert curate(client)[1][row]["why"] == "by hand"
    client.call("judge_golden", rows=[row], accept=True)
    assert curate(client)[1][row]["state"] == "accepted"
    with pytest.raises(batos.NotFound):
        client.call("judge_golden", rows=[10 ** 6], accept=True)


# Without a daemon: rows and datasets by themselves


def row(name, number=1, by="local", trusted=True, question=None):
    oid = f"0x{0xfffff + number:x}"
    passages = [{"heading": "", "text": text, "share": 0.5, "doc_id": doc_id, "version": 1, "lines": [1, 1]}
                for doc_id, text in texts(name).items()]
    made = {"target": "READER", "task": "read", "question": question or f"How is {name} oiled?", "passages": passages,
            "quotes": [2], "not": [1], "first": 1, "cycle": oid, "by": by, "at": batos.now_utc(), "trusted": trusted,
            "state": "raw", "why": ""}
    return made | {"held": batos._is_held_back(batos._source_of(made))}


def named(count, picker):
    return [f"{picker.choice(NAMES)}{picker.randrange(10 ** 6)}" for _ in range(count)]


def test_nothing_of_a_held_document_is_ever_trained_on():
    picker = random.Random(7)
    for _ in range(1000):
        made = {n: row(name, n) for n, name in enumerate(named(12, picker))}
        order = picker.sample(sorted(made), len(made))
        train = [n for n in order if not made[n]["held"]]
        held = [n for n in order if made[n]["held"]]
        trained = batos._rows_file(made, train, False).decode()
        for one in made.values():
            for passage in one["passages"]:
                assert not batos._is_held_back(passage["doc_id"]) or passage["text"] not in trained
        judged = [json.loads(line) for line in batos._rows_file(made, held, True).splitlines()]
        assert all(len(one["passages"]) == 2 for one in judged)
        assert not {one["row"] for one in judged} & set(train)


@pytest.fixture
def image(tmp_path):
    opened = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(opened)
    yield opened
    opened.close()


def stored(image, made):
    with batos.writing(image) as root:
        root["golden_obj"].rows.update(made)
        return batos._store_dataset(root, "READER", sorted(made), "0x1")


def test_a_dataset_is_the_same_to_the_byte_when_it_is_curated_twice(image):
    made = {n: row(name, n) for n, name in enumerate(named(40, random.Random(3)))}
    assert stored(image, made) == 1 == stored(image, made)
    with batos.reading(image) as root:
        one = root["golden_obj"].datasets[1]
        kept = pathlib.Path(batos.blob_path(one.training)).read_bytes(), pathlib.Path(batos.blob_path(one.held)).read_bytes()
        assert sorted([*one.rows, *one.held_rows]) == sorted(made)
    assert kept == (batos._rows_file(made, one_of(made, False), False), batos._rows_file(made, one_of(made, True), True))
    made[40] = row("Another", 40)
    assert stored(image, made) == 2


def one_of(made, held):
    return [n for n in sorted(made) if made[n]["held"] is held]


def test_a_line_of_a_dataset_has_instruction_response_and_both_as_text():
    told = json.loads(batos._golden_line(7, row("Harlow"), True))
    assert told["text"] == f"### Instruction:\n{told['instruction']}\n\n### Response:\n{told['response']}"
    assert (told["task"], told["persona"], told["row"]) == ("read", "BABS", 7)


def test_what_a_dataset_lacks_is_told():
    many = [row(name, n) for n, name in enumerate(named(120, random.Random(5)))]
    assert batos._lacking(many) == []
    assert batos._lacking(many[:17])[0] == "wants 24 accepted rows, has 17"
    assert "wants 12 cycles, has 1" in batos._lacking([one | {"cycle": "0x1"} for one in many])
    same = [one | {"passages": many[0]["passages"]} for one in many]
    assert batos._lacking(same)[-1] == "120 of 120 are about one document or question"


def test_rows_of_others_wait_until_somebody_trusts_them(image):
    with batos.reading(image) as root:
        assert batos._judged_row(root, 3, row("Harlow", by="eve", trusted=False))[0] == "raw"
        assert "golden accept 3" in batos._judged_row(root, 3, row("Harlow", by="eve", trusted=False))[1]


def test_rows_are_bounded(image, monkeypatch):
    monkeypatch.setattr(batos, "_ROWS_MOST", 5)
    with batos.writing(image) as root:
        for n in range(9):
            batos.append_log(root["golden_obj"].rows, row("Harlow", n), batos._ROWS_MOST)
        assert len(root["golden_obj"].rows) == 5


def test_an_image_of_the_version_before_learns_from_now_on(tmp_path):
    import newer
    where = newer.unpacked("0d3322b", tmp_path)
    image = batos.Image.open(where)
    batos.upgrade_image(image, f"{where}.upgrades", lambda line: None)
    with batos.reading(image) as root:
        assert len(root["golden_obj"].rows) == 0 and batos.kind_name(root["golden_obj"]) == "golden dataset"
    image.close()


@pytest.mark.slow
def test_forgetting_leaves_no_byte_of_rows_and_datasets(tmp_path):
    marker = "quillonbrassmarker"
    running = conftest.DaemonProcess(tmp_path, core=0)
    with batos.Client(running.endpoint, WAIT_S) as client:
        text = f"# Pump\n\nThe pump at Harlow is oiled with {marker} by the engineer."
        client.call("index_document", doc_id="secret.md", text=text)
        cycle = oil(client, "Harlow")
        assert any(marker in one["text"] for one in cycle["evidence"])
        assert mark(client, cycle["cycle"], note="2 is right, 1 is not")["row"] == 0
        shown = client.call("forget", doc_id="secret.md", preview=True)
        assert shown["result"]["places"]["golden rows"] == 1
        client.call("forget", doc_id="secret.md", timeout_s=WAIT_S)
        assert rows(client) == {}
    running.stop()
    left = [path for path in tmp_path.rglob("*") if path.is_file() and marker.encode() in path.read_bytes()]
    assert left == []
