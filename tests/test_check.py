"""`check` and `recover`: each kind of damage is named, what can be read is saved, and the original is never changed."""

import json
import pathlib
import random
import struct

import persistent
import pytest
import ZODB

import batos

TEXT = "# Pump\n\nTurn the brass valve until the needle stands at zero. Then lock the screw.\n"


@pytest.fixture
def path(tmp_path):
    """The path of a closed image with slots, pages, two documents (one retired) and a blob."""
    where = str(tmp_path / "image.fs")
    source = tmp_path / "weights"
    source.write_bytes(b"w" * 5000)
    image = batos.Image.open(where)
    batos.genesis(image)
    settings, token = batos.load_settings({}, {}), batos.WriteToken()
    write, bulk = batos.WriteLane(image, token, settings).start(), batos.BulkLane(image, token, settings).start()
    for n in range(20):
        write.call(batos.Job("set", lambda root, n=n: root["genesis_obj"].setSlot_value_(f"s{n % 5}", [n, "x" * 500 * n]) and n))
    write.call(batos.Job("gone", lambda root: batos.remove_slot(root["genesis_obj"], "s1")))
    write.call(batos.Job("blob", lambda root: batos.set_slot(root["genesis_obj"], "file",
                                                             batos.blob_record(str(source), "weights"))))
    for name, text in (("a.md", TEXT), ("b.md", TEXT + "More."), ("a.md", TEXT + "Changed.")):
        bulk.call(batos.Job("index", lambda root, name=name, text=text: batos.index_document_(
            root["knowledge_catalog_obj"], name, text)["chunks"]))
    for lane in (write, bulk):
        lane.close()
    image.close()
    return where


def changed(path, function):
    """Change an image behind the back of lanes and ledger, and seal it."""
    image = batos.Image.open(path)
    unit = batos.Unit(image.db)
    unit.manager.begin()
    unit.connection.activation = batos.SYSTEM
    function(unit.root)
    unit.manager.commit()
    unit.close()
    image.close()


def contents(path):
    folder = pathlib.Path(path).parent
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and not file.name.endswith(".lock")}


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_image_has_no_fault_and_is_not_changed(path, deep):
    before, told = contents(path), []
    report = batos.check_image(path, deep, told.append)
    assert report["faults"] == [] and report["tail"] == 0 and report["blobs"] == 1
    assert report["objects"] > 30 and report["transactions"] > 20 and told and contents(path) == before


def test_an_image_that_is_in_use_is_not_checked(path):
    image = batos.Image.open(path)
    with pytest.raises(batos.ImageLocked):
        batos.check_image(path)
    image.close()
    assert batos.check_image(path)["faults"] == []


def test_an_image_that_is_not_there(tmp_path):
    with pytest.raises(batos.ConfigError, match="--image"):
        batos.check_image(str(tmp_path / "nothing.fs"))
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_tail_is_told_and_left(path):
    whole = pathlib.Path(path).read_bytes()
    last = whole[-8 - int.from_bytes(whole[-8:]):]
    with open(path, "ab") as file:                        # the next transaction, of which a crash left the first half
        file.write((int.from_bytes(last[:8]) + 1).to_bytes(8) + last[8:16] + b"c" + last[17:len(last) // 2])
    before = contents(path)
    report = batos.check_image(path, deep=True)
    assert report["faults"] == [] and report["tail"] == len(last) // 2 and contents(path) == before


def test_a_flipped_byte_is_a_fault(path):
    data = bytearray(pathlib.Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    pathlib.Path(path).write_bytes(data)
    [fault] = batos.check_image(path)["faults"]
    assert "not those that were sealed" in fault or "damaged header" in fault


def blob_file(path):
    [file] = pathlib.Path(f"{path}.blob").rglob("*.blob")
    return file


def test_a_blob_that_is_gone_is_a_fault_at_once(path):
    blob_file(path).unlink()
    [fault] = batos.check_image(path)["faults"]
    assert "has no file" in fault


def test_a_blob_that_was_altered_is_a_fault_to_a_deep_check(path):
    file = blob_file(path)
    file.chmod(0o600)
    file.write_bytes(b"v" + file.read_bytes()[1:])
    assert batos.check_image(path)["faults"] == []
    [fault] = batos.check_image(path, deep=True)["faults"]
    assert "altered" in fault and "weights" in fault


def dangling(root):
    lost = batos.UvmObject(name="never stored")
    lost._p_oid, lost._p_jar = b"\0\0\0\0\0\x0f\xff\xff", root._p_jar
    with batos.system_writes(root["traits_obj"]):
        root["traits_obj"].lost = lost


class Stranger(persistent.Persistent):
    """No class of an image."""


def test_a_class_of_something_else_is_a_fault(path):
    db = ZODB.DB(batos.ImageStorage(path, blob_dir=f"{path}.blob"))
    connection = db.open()
    connection.root()["stranger"] = Stranger()
    connection.transaction_manager.commit()
    connection.close()
    db.close()
    faults = batos.check_image(path, deep=True)["faults"]
    assert any("Stranger" in fault for fault in faults)


def other_words(root):
    catalog = root["knowledge_catalog_obj"]
    batos._settle(catalog, catalog.text_index.maxKey())
    segment = catalog.text_index[catalog.text_index.maxKey()]
    segment.data = batos.zlib.compress(batos.zlib.decompress(segment.data).replace(b"valv", b"velv"))


def page_without_a_part(root):
    page = next(iter(root["ledger_obj"].write.values()))
    page._p_activate()
    del page.large


@pytest.mark.parametrize("harm, words", [
    (dangling, "0xfffff, which does not exist"),
    (lambda root: root["genesis_obj"].setSlot_value_("s2", 7), "ledger: s2 of 0x3 is not what the change"),
    (lambda root: batos.remove_slot(root["genesis_obj"], "s3"), "ledger: s3 of"),
    (lambda root: root["genesis_obj"].setSlot_value_("s1", 7), "ledger: s1 of"),
    (lambda root: root["knowledge_catalog_obj"].chunk_storage.pop(root["knowledge_catalog_obj"].documents["b.md"].first_chunk),
     "catalog: b.md lacks 1 of its"),
    (lambda root: root["knowledge_catalog_obj"].documents.pop("b.md"), "belong to no document"),
    (lambda root: root["knowledge_catalog_obj"].text_index.clear(), "chunks are in no segment"),
    (other_words, "the words of the segment . are not those of its chunks"),
    (lambda root: root["knowledge_catalog_obj"].metadata_index["scope"]["world"].clear(), "the filter scope"),
    (lambda root: root["knowledge_catalog_obj"].retired_order.clear(), "1 retired documents"),
    (page_without_a_part, "ledger: the check broke off"),
    (lambda root: root.update(image_version=99), "99"),
])
def test_what_does_not_agree_is_named(path, harm, words):
    try:
        changed(path, harm)
    except batos.ImageTooNew:
        raise AssertionError("the harm came too early") from None
    faults = batos.check_image(path, deep=True)["faults"]
    assert faults and any(batos.re.search(words, fault) for fault in faults), faults


def test_the_command_line_checks(path, capsys):
    assert batos.main(["check", "--image", path, "--deep"]) == 0
    shown = capsys.readouterr()
    assert "no fault was found" in shown.out and "deep check" in shown.out and "checking catalog" in shown.err
    blob_file(path).unlink()
    assert batos.main(["check", "--image", path]) == 1
    assert "FAULT: the blob" in capsys.readouterr().out
    assert batos.main(["check", "--image", path, "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["faults"]) == 1


# Recover


def slots(path):
    """The slots of genesis_obj in an image, where that can be read."""
    image = batos.Image.open(path)
    with batos.reading(image) as root:
        found = {name: value for name, value in batos.own(root["genesis_obj"]).items() if name.startswith("s")}
    image.close()
    return found


def transactions(path):
    data = pathlib.Path(path).read_bytes()
    return [(start, end) for start, end, whole in batos._pieces(data) if whole]


def test_a_whole_image_is_recovered_byte_by_byte(path, tmp_path):
    before, new = contents(path), str(tmp_path / "new" / "image.fs")
    (tmp_path / "new").mkdir()
    report = batos.recover_image(path, new)
    assert report["lost"] == report["faults"] == [] and report["transactions"] == len(transactions(path))
    assert {file: data for file, data in contents(path).items() if "new" not in file.parts} == before
    assert pathlib.Path(new).read_bytes() == pathlib.Path(path).read_bytes() and slots(new) == slots(path)


@pytest.mark.parametrize("field", range(23))
def test_a_damaged_header_costs_its_transaction_alone(path, tmp_path, field):
    """Every byte of the header of a transaction in the middle, flipped."""
    parts = transactions(path)
    start, end = parts[len(parts) // 2]
    data = bytearray(pathlib.Path(path).read_bytes())
    data[start + field] ^= 0xFF
    pathlib.Path(path).write_bytes(data)
    report = batos.recover_image(path, str(tmp_path / "new.fs"))
    if report["lost"]:
        assert report["transactions"] == len(parts) - 1 and report["lost"][0].startswith(f"bytes {start} to {end}")
    else:                                                # a byte that nothing is read from
        assert report["transactions"] == len(parts)
    assert bytes(data) == pathlib.Path(path).read_bytes()


@pytest.mark.parametrize("first", [b"\x80", b"."])      # of what is a pickle, and of what is deflated
def test_a_record_that_leads_out_of_the_file_costs_its_transaction_alone(path, tmp_path, first):
    """Where a record's length is gone, its first bytes are taken for the place of the one before it."""
    parts, data = transactions(path), bytearray(pathlib.Path(path).read_bytes())
    start, end = parts[len(parts) // 2]
    record = start + 23 + sum(struct.unpack(">HHH", data[start + 17:start + 23]))
    data[record + 34:record + 50] = bytes(8) + first * 8
    pathlib.Path(path).write_bytes(data)
    report = batos.recover_image(path, str(tmp_path / "new.fs"))
    assert report["transactions"] == len(parts) - 1
    assert report["lost"][0].startswith(f"bytes {start} to {end}: its records cannot")
    assert batos.check_image(path, deep=True)["faults"]


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_flipped_the_rest_is_saved(path, tmp_path, seed):
    rng, data, parts = random.Random(seed), bytearray(pathlib.Path(path).read_bytes()), transactions(path)
    for _ in range(rng.choice((1, 1, 2, 5))):
        data[rng.randrange(8, len(data))] ^= 1 << rng.randrange(8)
    pathlib.Path(path).write_bytes(data)
    report = batos.recover_image(path, str(tmp_path / "new.fs"))
    assert report["transactions"] >= len(parts) - 5 and bytes(data) == pathlib.Path(path).read_bytes()
    if report["transactions"] < len(parts):
        assert report["lost"]


def with_root(path, record):
    """Store a record as that of an image's root, behind the back of all checks."""
    storage, transaction = ZODB.FileStorage.FileStorage(path), ZODB.Connection.TransactionMetaData()
    root = bytes(8)
    storage.tpc_begin(transaction)
    storage.store(root, storage.load(root)[1], record, "", transaction)
    storage.tpc_vote(transaction)
    storage.tpc_finish(transaction)
    storage.close()


ROOT_CLASS = b"\x80\x03cpersistent.mapping\nPersistentMapping\nq\x00."


@pytest.mark.parametrize("record", [
    ROOT_CLASS + b"\x80\x03C\x01xq\x01.",              # its state is bytes
    ROOT_CLASS + b"\x80\x03}q\x01X\x01\x00\x00\x00dq\x02Ns.",       # a map of something else
    ROOT_CLASS[:4] + b"\xff" + ROOT_CLASS[4:],          # its class is no text: `recover` leaves that one out
])
def test_a_root_that_does_not_load_is_damage_by_name_wherever_it_is_met(path, tmp_path, record):
    with_root(path, record)
    assert "does not load" in batos.check_image(path, deep=True)["faults"][-1]
    report = batos.recover_image(path, str(tmp_path / "new.fs"))
    assert report["lost"] or "does not load" in report["faults"][-1]
    with pytest.raises(batos.DamagedImage, match="does not load"):
        batos.Image.open(path)


@pytest.mark.parametrize("change, told", [
    (lambda root: root.pop("knowledge_catalog_obj"), "the root has no knowledge_catalog_obj"),
    (lambda root: root.update(image_version="nine"), "the image's version is 'nine'"),
])
def test_a_root_that_lacks_what_all_images_have_is_damage_and_never_begun_anew(path, change, told):
    changed(path, change)
    assert told in " ".join(batos.check_image(path, deep=True)["faults"])
    with pytest.raises(batos.DamagedImage, match=told):
        image = batos.Image.open(path)
        try:
            batos.check_slots(image)
        finally:
            image.close()


def test_a_hole_in_the_middle_and_a_cut_end(path, tmp_path):
    parts = transactions(path)
    data = bytearray(pathlib.Path(path).read_bytes())
    first, last = parts[8][0] + 5, parts[11][1] - 5
    data[first:last] = bytes(last - first)
    pathlib.Path(path).write_bytes(data[:-20])
    report = batos.recover_image(path, str(tmp_path / "new.fs"))
    assert report["transactions"] == len(parts) - 5 and len(report["lost"]) == 2


def test_a_blob_without_its_file_is_told(path, tmp_path):
    blob_file(path).unlink()
    report = batos.recover_image(path, str(tmp_path / "new.fs"))
    assert len(report["lost"]) == 1 and "no file" in report["lost"][0] and report["faults"]


def test_recover_keeps_off_what_exists_and_what_is_in_use(path, tmp_path):
    with pytest.raises(batos.ConfigError, match="where no image is"):
        batos.recover_image(path, path)
    with pytest.raises(batos.ConfigError, match="--image"):
        batos.recover_image(str(tmp_path / "nothing.fs"), str(tmp_path / "new.fs"))
    image = batos.Image.open(path)
    with pytest.raises(batos.ImageLocked):
        batos.recover_image(path, str(tmp_path / "new.fs"))
    image.close()
    assert not (tmp_path / "new.fs").exists()


@pytest.mark.slow
def test_a_recovered_image_serves(path, tmp_path, daemon, capsys):
    new = str(tmp_path / "new.fs")
    assert batos.main(["recover", new, "--image", path]) == 0
    assert "nothing was lost" in capsys.readouterr().out
    with batos.Client(daemon("--image", new).endpoint) as client:
        assert client.call("search_memory", query="brass valve")["results"]
        assert client.call("send_message", target="genesis_obj", selector="s2")["result"][0] == 17


@pytest.mark.slow
def test_a_flip_anywhere_in_the_header_of_a_record_is_found_and_told_by_recover(path, tmp_path):
    data = pathlib.Path(path).read_bytes()
    starts = [start for start, _, _ in batos._pieces(data)]
    start = starts[len(starts) // 2]
    records = batos.recover_image(path, tmp_path / "whole.fs")["records"]
    _, _, _, user, described, extra = batos.TXN_HEADER.unpack_from(data, start)
    at = start + batos.TXN_HEADER.size + user + described + extra
    pathlib.Path(f"{path}.seals").unlink()
    for offset in range(batos.RECORD_HEADER.size):
        bad = bytearray(data)
        bad[at + offset] ^= 1
        pathlib.Path(path).write_bytes(bad)
        pathlib.Path(f"{path}.index").unlink(missing_ok=True)
        assert batos.transaction_fault(bytes(bad), start, links=True), offset
        report = batos.recover_image(path, tmp_path / f"new{offset}.fs")
        assert report["lost"] or report["records"] == records and 16 <= offset < 24, offset


# The memory's health


@pytest.mark.parametrize("harm, done", [
    (lambda catalog: catalog.text_index.clear(), "words of all chunks"),
    (lambda catalog: catalog.unembedded.clear(), "wait for their vectors"),
    (lambda catalog: catalog.metadata_index["scope"]["world"].clear(), "filters were made anew"),
    (lambda catalog: catalog.chunk_storage.update({99: catalog.chunk_storage[catalog.documents["b.md"].first_chunk]}),
     "1 chunks of no document"),
])
def test_what_is_derived_and_does_not_agree_is_mended(path, harm, done):
    changed(path, lambda root: harm(root["knowledge_catalog_obj"]))
    assert batos.check_image(path, deep=True)["faults"]
    told = batos.mend_image(path)
    assert len(told) == 1 and done in told[0] and batos.check_image(path, deep=True)["faults"] == []
    assert batos.mend_image(path) == []


@pytest.mark.slow
def test_a_deep_check_tells_how_the_memory_is(path, tmp_path, capsys):
    file = tmp_path / "learnt.txt"
    file.write_text("A lamp.")

    def learn(root):
        catalog = root["knowledge_catalog_obj"]
        batos.index_document_(catalog, "one", "The valve.", {"path": str(file)})
        batos.index_document_(catalog, "two", "The valve.")
        batos.remember_episode(catalog, "Which valve?", cited=[{"doc_id": "two"}])
    changed(path, learn)
    memory = batos.check_image(path, deep=True)["memory"]
    assert memory["duplicated"] == {"count": 1, "documents": ["two"]} and memory["stale"]["documents"] == []
    assert "one" in memory["never recalled"]["documents"] and "two" not in memory["never recalled"]["documents"]
    assert memory["kinds"]["episode"] == {"documents": 1, "chunks": 1, "bytes": 12}
    file.unlink()
    assert batos.main(["check", "--deep", "--mend", "--image", str(path)]) == 0
    told = capsys.readouterr().out
    assert "1 documents stale: one" in told and "no fault was found" in told and "mended" not in told
    assert "memory" not in batos.check_image(path)


def test_a_slot_of_a_user_named_sha256_is_no_blob(tmp_path):
    """What was seen: a deep check took such an object for a file's record."""
    image = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(image)
    with batos.writing(image) as root:
        batos.set_slot(root["genesis_obj"], "sha256", "mine")
        batos.set_slot(root["genesis_obj"], "blob", "mine too")
    image.close()
    assert batos.check_image(str(tmp_path / "image.fs"), deep=True)["faults"] == []
