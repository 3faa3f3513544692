"""Images of earlier commits are opened: what they hold is there, what they promised is kept."""

import pathlib

import doubles
import newer
import pytest

import batos

MISSION = {"type": "direct_synthesis", "selector": "answer_", "args": ["How is the brass valve turned?"]}
ALWAYS = ("request_memory_min_h", 1e6)                   # keys of an image that lies in the tests grow old


@pytest.fixture
def old(tmp_path):
    """The image of commit 856fea4 (version 6): a slot set twice, a document twice, a method, a mission, all with keys."""
    return newer.unpacked("856fea4", tmp_path)


def test_an_old_image_has_no_fault(old):
    assert batos.check_image(old, deep=True)["faults"] == []
    pathlib.Path(f"{old}.seals").unlink()                # then each transaction is looked at
    assert batos.check_image(old, deep=True)["faults"] == []


def test_an_old_image_is_recovered_without_a_loss(old, tmp_path):
    report = batos.recover_image(old, tmp_path / "new.fs")
    assert (report["lost"], report["faults"]) == ([], [])


def test_an_image_of_the_version_before_is_read_and_what_is_written_from_now_on_takes_less(tmp_path):
    where = newer.unpacked("0d3322b", tmp_path)          # version 8: a slot set thrice, two documents, one of them twice
    assert version_of(where) == 8 and upgrade(where) == [] and version_of(where) == batos.IMAGE_VERSION
    image = batos.Image.open(where)
    before = image.size()
    with batos.writing(image) as root:
        batos.index_document_(root["knowledge_catalog_obj"], "pump 2", "The brass pump is oiled.")
    assert image.size() - before < 2500
    with batos.reading(image) as root:
        catalog = root["knowledge_catalog_obj"]
        assert root["genesis_obj"].mood == "mood 2" and [document.version for document in catalog.documents.values()] == [2, 1, 1]
        found = batos.search_(catalog, "sings")["results"]
        assert {row["chunk"]["text"] for row in found} == {f"The brass pump {n} is turned slowly until it sings." for n in (1, 2)}
    image.close()
    assert batos.check_image(where, deep=True)["faults"] == []


def test_what_is_found_in_an_image_that_files_each_number_is_found_when_it_files_runs(tmp_path):
    where = newer.unpacked("6abc517", tmp_path)          # version 9: pumps with tags, one twice, and a lamp that waits
    assert version_of(where) == 9 and upgrade(where) == [] and version_of(where) == batos.IMAGE_VERSION
    assert batos.check_image(where, deep=True)["faults"] == []
    image = batos.Image.open(where)
    with batos.reading(image) as root:
        catalog = root["knowledge_catalog_obj"]
        filed = lambda field, value: list(batos.numbers_filed(catalog, field, value))
        assert [filed("tag", tag) for tag in ("pumps", "brass", "none")] == [[2, 3], [3], []]
        assert filed("scope", "world") == [2, 3, 4]
        assert batos.count_waiting(catalog) == 1 and list(catalog.unembedded.numbers()) == [4]
        for tag, names in (("pumps", {"pump 1", "pump 2"}), ("brass", {"pump 1"})):
            rows = batos.search_(catalog, "sings", tags=[tag], vector=doubles.QuickEmbedder().query("alloy"))["results"]
            assert {row["chunk"]["doc_id"] for row in rows} == names
    image.close()


@pytest.mark.slow
def test_an_old_image_keeps_its_promises(old, daemon):
    running = daemon(ALWAYS, core=0)
    with batos.Client(running.endpoint) as client:
        def put(value, key):
            return client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["mood", value],
                               idempotency_key=key)
        again = put("calm", "the first key")
        assert again["repeated"] and again["change"] == "040d5326035f61aa.0"
        with pytest.raises(batos.KeyReused):
            put("dull", "the first key")
        rows = client.call("history", target="genesis_obj", slot="mood")["results"]
        assert [row["change"] for row in rows] == ["040d532603665fdd.0", "040d5326035f61aa.0"]
        client.call("undo", change=rows[0]["change"])
        assert client.call("inspect", target="genesis_obj.mood")["result"]["value"] == "calm"
        assert client.call("inspect", target="genesis_obj.mood", as_of=rows[0]["change"])["result"]["value"] == "curious"
        assert client.call("send_message", target="genesis_obj", selector="twice", args=[21])["result"] == 42
        found = client.call("search_memory", query="slowly")["results"]
        assert found[0]["chunk"]["doc_id"] == "pump.md"
        mission = client.call("initiate_cognitive_cycle", mission_brief=MISSION, wait=True, idempotency_key="a mission")
        assert mission["repeated"] and mission["result"]["state"] == "COMPLETE"
    assert running.stop() == 0
    assert batos.check_image(old, deep=True)["faults"] == []


def version_of(where):
    image = batos.Image.open(where)
    with batos.reading(image) as root:
        version = root["image_version"]
    image.close()
    return version


def made_of(where, version):
    """Have an image say that it is of a version."""
    image = batos.Image.open(where)
    with batos.writing(image) as root:
        root["image_version"] = version
    image.close()


def upgrade(where, tell=lambda line: None):
    """Open an image and upgrade it; returns the upgrades that it tells of."""
    image = batos.Image.open(where)
    try:
        batos.upgrade_image(image, f"{where}.upgrades", tell)
        with batos.reading(image) as root:
            return newer.upgraded(root)
    finally:
        image.close()


def test_an_image_of_before_the_first_release_is_refused_and_not_touched(old):
    made_of(old, 5)
    before = pathlib.Path(old).read_bytes()
    with pytest.raises(batos.ImageTooOld, match="has version 5, of before the first release.*Learn its documents"):
        batos.Image.open(old)
    assert any("has version 5" in fault for fault in batos.check_image(old)["faults"])
    assert pathlib.Path(old).read_bytes() == before


def test_each_upgrade_makes_an_image_of_the_version_before_one_of_the_next():
    assert set(batos.UPGRADES) == set(range(batos._OLDEST_VERSION + 1, batos.IMAGE_VERSION + 1))


def test_a_backup_comes_before_an_upgrade_and_can_be_restored(old, tmp_path):
    before, told = pathlib.Path(old).read_bytes(), []
    with newer.later():
        assert upgrade(old, told.append) == newer.ADDED and version_of(old) == newer.ADDED[-1]
        assert "version 6" in told[0] and "backup" in told[0] and len(told) == 1 + newer.ADDED[-1] - 6
        again = []
        assert upgrade(old, again.append) == newer.ADDED and again == []
    batos.restore_image(f"{old}.upgrades", tmp_path / "back.fs")
    assert (tmp_path / "back.fs").read_bytes() == before


def test_an_upgrade_whose_backup_cannot_be_made_changes_nothing(old, monkeypatch):
    before = pathlib.Path(old).read_bytes()
    monkeypatch.setattr(batos.shutil, "disk_usage", lambda path: batos.types.SimpleNamespace(free=0))
    with newer.later(), pytest.raises(batos.ImageError, match="free"):
        upgrade(old)
    assert pathlib.Path(old).read_bytes() == before and version_of(old) == 6


def test_each_upgrade_is_a_transaction_of_its_own_and_goes_on_after_a_failure(old, monkeypatch):
    def failing(root):
        root["genesis_obj"].half = True
        raise RuntimeError("amid the upgrade")
    with newer.later():
        one, second, _ = newer.ADDED
        with monkeypatch.context() as amid:
            amid.setitem(batos.UPGRADES, second, failing)
            with pytest.raises(RuntimeError):
                upgrade(old)
        image = batos.Image.open(old)
        with batos.reading(image) as root:
            assert root["image_version"] == one and "half" not in batos.own(root["genesis_obj"])
            assert newer.upgraded(root) == [one]
        image.close()
        assert upgrade(old) == newer.ADDED
    with pytest.raises(batos.ImageTooNew, match="newer"):
        batos.Image.open(old)


def test_an_image_that_waits_for_its_upgrade_is_not_mended(old):
    before = pathlib.Path(old).read_bytes()
    with newer.later(), pytest.raises(batos.ConfigError, match=f"has version 6, and {newer.ADDED[-1]} is mended"):
        batos.mend_image(old)
    assert pathlib.Path(old).read_bytes() == before


@pytest.fixture
def without_heartbeat(tmp_path):
    """The image of commit 84e77e0: methods that know no home, one in quarantine; nothing autotelic, no states of a client."""
    return newer.unpacked("84e77e0", tmp_path)


@pytest.mark.slow
def test_an_image_without_a_heartbeat_gets_it_and_its_methods_are_found_when_they_come_anew(without_heartbeat, daemon):
    running = daemon(core=0)
    with batos.Client(running.endpoint, 120) as client:
        def send(selector, target="genesis_obj", **fields):
            return client.call("send_message", target=target, selector=selector, **fields)["result"]
        assert send("total") == 0
        with pytest.raises(batos.MethodFailed, match="quarantine"):
            send("mean")
        audit = send(batos._AUDIT[1], "autotelic_obj")
        assert client.call("inspect", target=audit)["result"]["slots"]
        assert client.call("display_yourself")["result"]["version"] == 1
        source = "def mean(self):\n    return sum(self.prices) / max(1, len(self.prices))\n"
        client.call("create_method", target_oid="genesis_obj", method_name="mean", method_code=source)
        assert send("mean") == 0
        client.call("rollback", target_oid="genesis_obj", method_name="mean")
        assert client.call("search_memory", query="mean", scope="self", kind="method")["results"]
        send("setSlot_value_", args=["prices", [2, 4]])
        mission = {"type": batos.MEND[0], "selector": batos.MEND[1], "args": ["mean"]}
        told = client.call("initiate_cognitive_cycle", mission_brief=mission, target_oid="genesis_obj", wait=True)["result"]
        assert told["state"] == "COMPLETE" and "works now" in told["answer"] and send("mean") == 3, told
    assert running.stop() == 0
    assert batos.check_image(without_heartbeat, deep=True)["faults"] == []


@pytest.fixture
def spelt(tmp_path):
    """An image of commit 856fea4: a file learnt by five spellings, names that are the system's own, one file given by hand."""
    return newer.unpacked("856fea4-spelt", tmp_path)


def test_the_spellings_of_a_file_become_one_document_with_all_texts_as_its_versions(spelt, daemon, monkeypatch):
    monkeypatch.setattr(batos, "_JOINED_AT_ONCE", 1)      # as where there are many
    upgrade(spelt)
    running, pump, lamp = daemon(), "/tmp/spelt/sub/pump.md", "/tmp/spelt/lamp.md"
    with batos.Client(running.endpoint) as client:
        rows = {row["doc_id"]: row["version"] for row in client.call("list_documents")["results"]}
        assert rows.keys() == {pump, lamp, "by hand", "my-said/-/forged", "/tmp/spelt/batos/README.md"}
        versions = [client.call("show_document", doc_id=pump, version=version) for version in range(1, rows[pump] + 1)
                    if version != 1]
        assert [word for told in versions for word in METALS if word in told["results"][0]["text"]] == METALS[:2] + METALS[3:]
        assert "silver" in client.call("show_document", doc_id=pump, version=1)["results"][0]["text"]    # it had this name
        for spelling, version, word in (("sub/pump.md", 1, "bronze"), ("pump.md", 1, "golden"), ("link/pump.md", 1, "leaden")):
            assert word in client.call("show_document", doc_id=spelling, version=version)["results"][0]["text"]
        assert client.call("show_document", doc_id="sub/pump.md")["result"]["doc_id"] == pump
        found = client.call("search_memory", query="which needle")["results"]
        assert [row["chunk"]["doc_id"] for row in found] == [pump] and "leaden" in found[0]["chunk"]["text"]
        assert client.call("search_memory", query="lamp stands")["results"][0]["superseded_by"] == pump
        preview = client.call("forget", doc_id="sub/pump.md", preview=True)["result"]
        assert preview["documents"] == [pump]
    assert running.stop() == 0
    assert batos.check_image(spelt, deep=True)["faults"] == []


METALS = ["bronze", "brass", "silver", "copper", "golden", "leaden"]
