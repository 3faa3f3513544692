"""Parcels: an object with its methods and adapters from one image into another."""

import os
import pathlib
import random
import tracemalloc

import ormsgpack
import pytest

import batos

WAIT_S = 300
ADAPTERS = pathlib.Path(batos.__file__).parent / "lora_adapters"
TOTAL = "def total(self):\n    return sum(self.prices)\n"


@pytest.fixture
def two(daemon):
    """Clients of two daemons, with an image each."""
    clients = [batos.Client(daemon("--image", f"{name}.fs").endpoint, WAIT_S) for name in ("one", "other")]
    yield clients
    for client in clients:
        client.close()


def send(client, target, selector, *args):
    return client.call("send_message", target=target, selector=selector, args=list(args))["result"]


def shelf(client):
    """Make a shelf of a kind, with a book and a method; returns its name."""
    kind, shelf, book = (send(client, "traits_obj", "clone") for _ in range(3))
    send(client, "genesis_obj", "setSlot_value_", "shelf", shelf)
    send(client, "genesis_obj.shelf", "setSlot_value_", "parent*", [kind])
    for name, value in {"prices": [1, 2.5], "book": book, "told": {"a": [None, True], "when": {"$time": "2026-01-02T03:04:05Z"}},
                        "data": b"\0\xff"}.items():
        send(client, "genesis_obj.shelf", "setSlot_value_", name, value)
    send(client, kind["$ref"], "setSlot_value_", "name", "kind of shelf")
    send(client, book["$ref"], "setSlot_value_", "on", shelf)
    client.call("create_method", target_oid=kind["$ref"], method_name="total", method_code=TOTAL, intent="what it costs")
    return "genesis_obj.shelf"


def slots(client, target):
    return {name: slot["value"] for name, slot in client.call("inspect", target=target)["result"]["slots"].items()}


def test_an_object_goes_from_one_image_into_another_and_back_out(two):
    one, other = two
    parcel = one.call("export", target=shelf(one))["result"]
    assert parcel["objects"] == 3
    reply = other.call("import", parcel=parcel["parcel"], target="genesis_obj", slot="stand")
    assert reply["result"]["methods"] == ["total"] and reply["change"]
    mine, theirs = slots(one, "genesis_obj.shelf"), slots(other, "genesis_obj.stand")
    assert [mine[name] for name in ("prices", "told", "data")] == [theirs[name] for name in ("prices", "told", "data")]
    assert slots(other, theirs["book"]["$ref"])["on"] == reply["result"]["object"]
    assert send(other, "genesis_obj.stand", "total") == 3.5
    kind = theirs["parent*"][0]["$ref"]
    made = slots(other, f"{kind}.total")
    assert made["status"] == "trial" and made["version"] == 1 and made["intent"] == "what it costs"
    assert made["author"].startswith("import from ") and made["author"].endswith("(of local)")
    other.call("undo", change=reply["change"])
    assert "stand" not in slots(other, "genesis_obj")


def test_nothing_is_replaced_and_a_preview_changes_nothing(two):
    one, other = two
    parcel = one.call("export", target=shelf(one))["result"]["parcel"]
    before = slots(other, "genesis_obj")
    reply = other.call("import", parcel=parcel, target="genesis_obj", slot="stand", preview=True)
    assert "would come" in reply["details"] and "change" not in reply and slots(other, "genesis_obj") == before
    with pytest.raises(batos.BadRequest, match="nothing is replaced"):
        other.call("import", parcel=parcel, target="genesis_obj", slot="name")
    with pytest.raises(batos.ReservedName):
        other.call("import", parcel=parcel, target="genesis_obj", slot="clone")
    with pytest.raises(batos.NotFound):
        other.call("import", parcel=parcel, target="nobody", slot="stand")
    assert slots(other, "genesis_obj") == before


def test_a_persona_goes_with_its_adapter(two, tmp_path):
    one, other = two
    one.call("incarnate")
    parcel = one.call("export", target="robin_prototype_obj")["result"]
    assert parcel["adapters"] == ["ROBIN"]
    reply = other.call("import", parcel=parcel["parcel"], target="genesis_obj", slot="robin_two")
    assert reply["result"]["adapters"] == ["ROBIN"]
    shown, pillars = slots(other, "genesis_obj.robin_two"), slots(other, "robin_prototype_obj")["pillars"]["$tree"]["size"]
    assert shown["name"] == "ROBIN" and shown["pillars"]["$tree"]["size"] == pillars
    experts = {row["expert"]: row for row in other.call("list_experts")["results"]}
    assert "ROBIN" in experts
    again = other.call("import", parcel=parcel["parcel"], target="genesis_obj", slot="robin_three")
    assert again["result"]["incarnated"] == []           # the same adapter is here


def test_another_adapter_of_that_name_is_not_replaced(two):
    one, other = two
    one.call("incarnate")
    other.call("incarnate")
    parcel = one.call("export", target="robin_prototype_obj")["result"]["parcel"]
    told = ormsgpack.unpackb(parcel)
    brick = (ADAPTERS / "BRICK" / batos.ADAPTER_WEIGHTS)
    told["parts"]["adapter ROBIN"] = brick.read_bytes()
    told["manifest"] = batos._manifest_of(told["parts"])
    with pytest.raises(batos.BadRequest, match="another expert ROBIN is here"):
        other.call("import", parcel=ormsgpack.packb(told), target="genesis_obj", slot="robin_two")
    reply = other.call("import", parcel=ormsgpack.packb(told), target="genesis_obj", slot="robin_two", adapters=False)
    assert reply["result"]["incarnated"] == [] and reply["result"]["adapters"] == []


@pytest.fixture
def image(tmp_path):
    image = batos.Image.open(f"{tmp_path}/image.fs")
    batos.genesis(image)
    yield image
    image.close()


def packed(image, **slots):
    with batos.writing(image) as root:
        obj = root["it"] = batos.UvmObject(**{"parent*": [root["traits_obj"]], **slots})
        root._p_jar.add(obj)
        del root["it"]
        return batos.pack_parcel(root, obj, 1 << 20)[0]


def bring(image, parcel, slot="new"):
    one = batos.Parcel(parcel, "genesis_obj", slot, 16)
    try:
        one.before()
        with batos.writing(image) as root:
            return one.apply(root)
    finally:
        one.after()


def repacked(parcel, change):
    """Return a parcel whose rows were changed by change(rows), with right hashes."""
    told = ormsgpack.unpackb(parcel)
    rows = ormsgpack.unpackb(told["parts"]["objects"])
    told["parts"]["objects"] = ormsgpack.packb(change(rows) or rows)
    return ormsgpack.packb(told | {"manifest": batos._manifest_of(told["parts"])})


def test_values_come_back_as_they_were(image):
    values = {"number": 3, "share": 0.5, "text": "\u00e9", "pair": (1, (2, [3])), "map": {1: "a", "b": {"c": None}}, "none": None,
              "when": batos.now_utc(), "empty": [], "data": b"\xff"}
    tree = batos.OOBTree({"a": batos.OOBTree({"b": (1, 2)}), "c": 7})
    bring(image, packed(image, tree=tree, numbers=batos.LLTreeSet([3, 1]), **values))
    with batos.reading(image) as root:
        obj = root["genesis_obj"].new
        assert {name: batos.own(obj)[name] for name in values} == values
        assert obj.tree["a"]["b"] == (1, 2) and obj.tree["c"] == 7 and list(obj.numbers) == [1, 3]
        assert batos.own(obj)["parent*"] == (root["traits_obj"],)


def test_what_no_parcel_takes_is_named(image):
    with batos.writing(image) as root:
        catalog = root["knowledge_catalog_obj"]
        with pytest.raises(batos.BadRequest, match="slot .* holds a .*backup"):
            batos.pack_parcel(root, catalog, 1 << 20)
        chain = batos.UvmObject()
        for _ in range(batos._PARCEL_OBJECTS):
            chain = batos.UvmObject(next=chain)
        with pytest.raises(batos.BadRequest, match="more than 10000"):
            batos.pack_parcel(root, chain, 1 << 30)
        with pytest.raises(batos.BadRequest, match="entries"):
            batos.pack_parcel(root, batos.UvmObject(tree=batos.LLTreeSet(range(batos._PARCEL_ENTRIES + 1))), 1 << 30)
        with pytest.raises(batos.BadRequest, match="message_max_mb"):
            batos.pack_parcel(root, batos.UvmObject(text="x" * 5000), 4000)


@pytest.mark.parametrize("source, error", [
    ("def total(self):\n    return open('x')\n", batos.CodeRejected), ("def other(self):\n    return 1\n", batos.CodeRejected),
    ("def total(self):\n    self.n = 1\n", batos.CovenantViolationError), (7, batos.BadRequest), (None, batos.BadRequest)])
def test_methods_of_a_parcel_pass_the_audit(image, source, error):
    def change(rows):
        row = ormsgpack.unpackb(rows[0], ext_hook=ormsgpack.Ext)
        row["methods"]["total"] = {"source": source}
        return [ormsgpack.packb(row), *rows[1:]]
    parcel = repacked(packed(image), change)
    with pytest.raises(error):
        bring(image, parcel)
    with batos.reading(image) as root:
        assert "new" not in batos.own(root["genesis_obj"])


@pytest.mark.parametrize("field, value", [("intent", 7), ("intent", {}), ("intent", "x" * 2001), ("why", []), ("author", 3)])
def test_what_a_method_of_a_parcel_tells_of_itself_is_checked(image, field, value):
    def change(rows):
        row = ormsgpack.unpackb(rows[0], ext_hook=ormsgpack.Ext)
        row["methods"]["total"] = {"source": TOTAL, field: value}
        return [ormsgpack.packb(row), *rows[1:]]
    with pytest.raises(batos.BadRequest, match="no text of up to"):
        bring(image, repacked(packed(image), change))


def test_no_parcel_makes_a_method_ours(image):
    def change(rows):
        row = ormsgpack.unpackb(rows[0], ext_hook=ormsgpack.Ext)
        row["methods"]["total"] = {"source": TOTAL, "author": "cycle 0x1 (local)", "asked": "x", "wanted": 3}
        return [ormsgpack.packb(row), *rows[1:]]
    bring(image, repacked(packed(image), change))
    with batos.reading(image) as root:
        made = batos.own_method(root["genesis_obj"].new, "total")
        assert made.author.startswith("import from ") and not {"asked", "wanted"} & batos.own(made).keys()


def with_slot(name, value):
    """Return a change of rows that gives the first one a slot, packed as it is."""
    def change(rows):
        row = ormsgpack.unpackb(rows[0], ext_hook=ormsgpack.Ext)
        row["slots"].append([name, value])
        return [ormsgpack.packb(row), *rows[1:]]
    return change


DEEP = ormsgpack.packb(["OOBTree", []])
for _ in range(60):
    DEEP = ormsgpack.packb(["OOBTree", [["a", ormsgpack.Ext(batos._TREE_COPY, DEEP)]]])


@pytest.mark.parametrize("name, value", [
    ("clone", 1), ("_p_jar", 1), ("a b", 1), ("a", ormsgpack.Ext(batos._IN_PARCEL, b"\xff\0\0\0")), ("a", ormsgpack.Ext(99, b"")),
    ("a", ormsgpack.Ext(batos._ROOT_OBJECT, b"nobody")), ("a", ormsgpack.Ext(batos._WHEN, b"never")),
    ("a", ormsgpack.Ext(batos._TREE_COPY, b"\xc1")), ("a", ormsgpack.Ext(batos._TREE_COPY, ormsgpack.packb(["dict", []]))),
    ("a", ormsgpack.Ext(batos._TREE_COPY, DEEP)), ("parent*", 7), ("a", ormsgpack.Ext(batos._EXPERT, b"\xff"))])
def test_a_hostile_parcel_is_refused_by_name(image, name, value):
    parcel = repacked(packed(image), with_slot(name, value))
    with pytest.raises(batos.BatosError):
        bring(image, parcel)
    with batos.reading(image) as root:
        assert "new" not in batos.own(root["genesis_obj"])


MAPS = batos._PARCEL_VALUES + 1                           # of one byte each, and 64 in memory


@pytest.mark.parametrize("value", [
    [{}] * MAPS, ormsgpack.Ext(batos._TREE_COPY, ormsgpack.packb(["OOBTree", [["a", [{}] * MAPS]]])),
    ormsgpack.Ext(batos._TREE_COPY, b"\x92\xa7OOBTree\xdd\xff\xff\xff\xff"), [[0]] * (MAPS // 2)])
def test_a_parcel_of_too_many_values_is_refused_before_they_are_built(image, value):
    parcel = repacked(packed(image), with_slot("many", value))
    tracemalloc.start()
    try:
        with pytest.raises(batos.BadRequest, match="values or more.*500,000 values at most"):
            bring(image, parcel)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(parcel) + 2_000_000
    finally:
        tracemalloc.stop()


def test_the_values_of_all_objects_are_counted_together(image):
    row = ormsgpack.packb({"slots": [["many", [{}] * 60_000]], "methods": {}})
    parcel = repacked(packed(image), lambda rows: [*rows, *[row] * 10])
    with pytest.raises(batos.BadRequest, match="values at most"):
        bring(image, parcel)


def test_what_would_be_refused_is_not_exported(image):
    with batos.reading(image) as root, pytest.raises(batos.BadRequest, match="values at most"):
        batos.pack_parcel(root, batos.UvmObject(many=[0] * batos._PARCEL_VALUES), 1 << 30)


def test_a_parcel_holds_what_slots_hold_at_their_deepest(image):
    deep = ()
    for _ in range(batos.MAX_DEPTH - 1):
        deep = (deep,)
    bring(image, packed(image, deep=deep))
    with batos.reading(image) as root:
        assert root["genesis_obj"].new.deep == deep


def test_whatever_is_altered_is_refused(image):
    parcel, rng = packed(image, text="x" * 300, prices=[1, 2]), random.Random(7)
    for _ in range(300):
        place = rng.randrange(len(parcel))
        broken = bytearray(parcel)
        broken[place] ^= 1 << rng.randrange(8)
        try:
            bring(image, bytes(broken), f"slot_{place}_{rng.randrange(1 << 30)}")
        except batos.BatosError:
            continue
        assert b"from" in parcel[max(0, place - 60):place + 6]       # whence it came is all that no hash holds


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xc1", b"x" * 100, ormsgpack.packb({"batos_parcel": 2}), ormsgpack.packb([1]),
                                  ormsgpack.packb({"batos_parcel": 1, "parts": {"objects": 1}}), os.urandom(1000)])
def test_what_is_no_parcel_is_said_to_be_none(image, data):
    with pytest.raises(batos.BadRequest, match="parcel"):
        bring(image, data)


def test_the_command_line_exports_and_imports(two, tmp_path, capsys):
    one, other = two
    shelf(one)
    file = str(tmp_path / "shelf.parcel")
    assert batos.main(["export", "genesis_obj.shelf", file, "--endpoint", one.endpoint]) == 0
    assert batos.main(["export", "genesis_obj.shelf", file, "--endpoint", one.endpoint]) != 0
    assert "is there already" in capsys.readouterr().err
    assert batos.main(["import", file, "genesis_obj", "stand", "--endpoint", other.endpoint]) == 0
    assert "came into stand" in capsys.readouterr().out
    assert send(other, "genesis_obj.stand", "total") == 3.5
