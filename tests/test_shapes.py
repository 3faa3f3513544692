"""What an image holds where BAT OS reads without looking: damage is named with its change at the start, and put back."""

import json
import pathlib

import persistent
import pytest
import ZODB

import batos

WAIT_S = 300                                            # a hang guard
HARMS = [
    ("pLLM_obj", "model_blob", "x"),
    ("pLLM_obj", "lora_repository", None),
    ("psm_prototypes_obj", "DECOMPOSING._process_synthesis_", 5),
    ("psm_prototypes_obj", "DELEGATING", "gone"),
    ("knowledge_catalog_obj", "documents", 1),
    ("knowledge_catalog_obj", "search_", "x" * 5000),
    ("ledger_obj", "bulk", 1),
    ("traits_obj", "_doesNotUnderstand_", 5),
    ("genesis_obj", "parent*", []),
    ("autotelic_obj", "pending", {}),
    ("morphic_ui_obj", "changes", 7),
]


@pytest.fixture
def path(tmp_path):
    """The path of a closed image with a document."""
    where = str(tmp_path / "image.fs")
    image = batos.Image.open(where)
    batos.genesis(image)
    lane = batos.BulkLane(image, batos.WriteToken(), batos.load_settings({}, {})).start()
    lane.call(batos.Job("index", lambda root: batos.index_document_(
        root["knowledge_catalog_obj"], "a.md", "The brass valve.")["chunks"]), WAIT_S)
    lane.close()
    image.close()
    return where


def harm(path, name, slot, *values):
    """Set a slot as a program of before let any message do it, once for each value; the ledger has it."""
    image = batos.Image.open(path)
    lane = batos.WriteLane(image, batos.WriteToken(), batos.load_settings({}, {})).start()

    def job(value):
        def apply(root):
            batos.set_slot(*batos.follow_path(root[name], slot), value)
        return batos.Job("send_message", apply, who="somebody")
    changes = [lane.call(job(value), WAIT_S).change for value in values]
    lane.close()
    image.close()
    return changes


def standing(path, name, slot):
    """Return what stands in a slot, as it is shown, with the object's oid."""
    image = batos.Image.open(path)
    with batos.reading(image) as root:
        obj, last = batos.follow_path(root[name], slot)
        value = batos.own(obj)[last]
        told = value._p_oid if isinstance(value, persistent.Persistent) else repr(value)
    image.close()
    return told


@pytest.mark.parametrize("name, slot, value", HARMS)
def test_a_slot_that_holds_something_else_is_named_and_put_back(path, tmp_path, name, slot, value):
    before = standing(path, name, slot)
    [change] = harm(path, name, slot, value)
    for deep in (False, True):
        [fault] = batos.check_image(path, deep)["faults"]
        assert f"{name}.{slot} holds" in fault and change in fault and "somebody" in fault and len(fault) < 500
    image = batos.Image.open(path)
    with pytest.raises(batos.DamagedImage, match=f"{change}.*check --mend.*restore a backup"):
        batos.check_slots(image)
    image.close()
    report = batos.recover_image(path, str(tmp_path / "new.fs"))
    assert report["lost"] == [] and change in report["faults"][0]
    [told] = batos.mend_image(path)
    assert f"before the change {change} was put back" in told
    assert standing(path, name, slot) == before
    assert batos.check_image(path, deep=True)["faults"] == [] and batos.mend_image(path) == []


def test_the_mend_is_a_change_that_tells_why(path):
    harm(path, "pLLM_obj", "model_blob", "x")
    batos.mend_image(path)
    image = batos.Image.open(path)
    with batos.reading(image) as root:
        [row] = batos.history_of(root, 1)[0]
        [(obj, slot, before, after)] = row["changes"]
        assert row["command"] == "check --mend" and "a list of stored files must stand" in row["why"]
        assert obj is root["pLLM_obj"] and slot == "model_blob" and (before, after) == (("x",), ([],))
    image.close()


def test_what_was_broken_twice_is_put_back_to_what_was_sound(path):
    changes = harm(path, "traits_obj", "_doesNotUnderstand_", 5, 6)
    assert changes[1] in batos.check_image(path)["faults"][0]
    assert f"before the change {changes[0]} was put back" in batos.mend_image(path)[0]
    assert batos.check_image(path, deep=True)["faults"] == []


def set_unseen(path, name, slot, value):
    """Set a slot that the ledger does not tell of."""
    image = batos.Image.open(path)
    with batos.writing(image) as root:
        batos.set_slot(root[name], slot, value)
    image.close()


def test_without_a_change_in_the_ledger_a_method_is_made_anew(path):
    set_unseen(path, "traits_obj", "_doesNotUnderstand_", 5)
    assert "no change in the kept history" in batos.check_image(path)["faults"][0]
    assert "genesis's own" in batos.mend_image(path)[0]
    assert batos.check_image(path, deep=True)["faults"] == []


def test_without_a_change_in_the_ledger_what_is_kept_is_not_made_up(path):
    set_unseen(path, "knowledge_catalog_obj", "documents", 1)
    [told] = batos.mend_image(path)
    assert "stands as it is: restore a backup" in told
    [fault] = batos.check_image(path, deep=True)["faults"]
    assert "knowledge_catalog_obj.documents holds 1" in fault


def test_a_slot_that_was_removed_is_put_back(path):
    image = batos.Image.open(path)
    lane = batos.WriteLane(image, batos.WriteToken(), batos.load_settings({}, {})).start()
    lane.call(batos.Job("gone", lambda root: batos.remove_slot(root["pLLM_obj"], "model_blob")), WAIT_S)
    lane.close()
    image.close()
    [fault] = batos.check_image(path)["faults"]
    assert "pLLM_obj.model_blob holds nothing" in fault
    batos.mend_image(path)
    assert batos.check_image(path, deep=True)["faults"] == []


def test_the_command_line_names_and_mends(path, capsys):
    [change] = harm(path, "pLLM_obj", "model_blob", "x")
    assert batos.main(["check", "--image", path, "--deep"]) == 1
    assert f"FAULT: slots: pLLM_obj.model_blob holds 'x', where a list of stored files must stand; the change {change}" in \
        capsys.readouterr().out
    assert batos.main(["check", "--image", path, "--mend"]) == 0
    shown = capsys.readouterr()
    assert "mended: slots: " in shown.out and "no fault was found" in shown.out and "Traceback" not in shown.err


def test_every_root_that_genesis_makes_is_sound_and_each_shape_is_of_one(path):
    image = batos.Image.open(path)
    with batos.reading(image) as root:
        assert list(batos.unsound_slots(root)) == [] and set(batos.SHAPES) <= set(root)
        for name, shapes in batos.SHAPES.items():
            for slot in shapes:
                obj, last = batos.follow_path(root[name], slot)
                assert last in batos.own(obj), (name, slot)
    image.close()


class Stranger(persistent.Persistent):
    """No class of an image."""


def put_in_slot(root):
    batos.persistent.Persistent.__setattr__(root["pLLM_obj"], "model_blob", [Stranger()])


def put_in_catalog(root):
    root["knowledge_catalog_obj"].documents["strange"] = Stranger()


def put_in_root(root):
    root["stranger"] = Stranger()


@pytest.mark.parametrize("put", [put_in_slot, put_in_catalog, put_in_root])
def test_an_image_with_a_class_of_something_else_ends_by_name(path, tmp_path, put, capsys, caplog):
    db = ZODB.DB(batos.ImageStorage(path, blob_dir=f"{path}.blob"))
    connection = db.open()
    put(connection.root())
    connection.transaction_manager.commit()
    connection.close()
    db.close()
    for words in (["check", "--deep"], ["check", "--json", "--deep"], ["check", "--mend"], ["recover", str(tmp_path / "new.fs")]):
        assert batos.main([*words, "--image", path]) in (0, 1)
        shown = capsys.readouterr()
        assert "Stranger" in shown.out + shown.err and "Traceback" not in shown.err, words
    batos.main(["check", "--image", path])
    assert "Traceback" not in capsys.readouterr().err and "Traceback" not in caplog.text


def test_errors_tell_little_of_what_is_foreign():
    one, long = batos.UvmObject(name="n" * 9000), "x" * 5_000_000
    for send in (lambda: batos.set_slot(one, f"{long}-", 1), lambda: batos.remove_slot(one, "y" * 200),
                 lambda: batos.send(one, long)):
        with pytest.raises(batos.BatosError) as told:
            send()
        assert len(str(told.value)) < 700
    assert len(repr(one)) < 200 and len(batos.mend(long, ["z" * 900])) < 150
    told = batos._told_error_fields({"name": long, "selector": long, "kind": "slot"})
    assert told == {"name": "x" * 100, "selector": "x" * 100, "kind": "slot"}


def test_a_pointer_takes_a_bounded_number_of_objects():
    one = batos.UvmObject()
    many = [one] * batos._MOST_POINTERS
    assert len(batos.own(batos.UvmObject(**{"parent*": many}))["parent*"]) == 10_000
    with pytest.raises(batos.BadSlot, match="10,000 objects at most, not 10,001"):
        batos.UvmObject(**{"parent*": [*many, one]})


@pytest.mark.slow
def test_a_daemon_names_the_damage_and_serves_what_was_mended(path, tmp_path, daemon, capsys):
    [change] = harm(path, "pLLM_obj", "model_blob", "x")
    size = pathlib.Path(path).stat().st_size
    with pytest.raises(AssertionError, match="did not start") as told:
        daemon("--image", path)
    assert change in str(told.value) and "check --mend" in str(told.value) and "Traceback" not in str(told.value)
    assert pathlib.Path(path).stat().st_size == size
    assert batos.main(["check", "--mend", "--json", "--image", path]) == 0
    assert json.loads(capsys.readouterr().out)["faults"] == []
    with batos.Client(daemon("--image", path).endpoint) as client:
        assert client.call("search_memory", query="brass valve")["results"]
