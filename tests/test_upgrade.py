"""Images of earlier commits are opened: what they hold is there, what they promised is kept."""

import gzip
import pathlib
import shutil
import tarfile

import pytest

import batos

IMAGES = pathlib.Path(__file__).resolve().parent / "data" / "images"
LONG_MEMORY = "request_memory_min_h", 1e6                # the images are of 2026; their keys shall be known still
MISSION = {"type": "direct_synthesis", "selector": "answer_", "args": ["How is the brass valve turned?"]}


def unpacked(name, folder):
    """Unpack an image into a folder; returns its path."""
    with tarfile.open(IMAGES / name) as packed:
        packed.extractall(folder, filter="data")
    return str(folder / "live_image.fs")


@pytest.fixture
def old(tmp_path):
    """The image that commit 2d58de3 made (no mind, no core, pages of dicts), as live_image.fs of the test's folder."""
    shutil.copy(IMAGES / "2d58de3", tmp_path / "live_image.fs")
    shutil.copy(IMAGES / "2d58de3.seals", tmp_path / "live_image.fs.seals")
    return str(tmp_path / "live_image.fs")


def test_an_old_image_has_no_fault(old):
    assert batos.check_image(old, deep=True)["faults"] == []
    pathlib.Path(f"{old}.seals").unlink()                # then each transaction is looked at
    assert batos.check_image(old, deep=True)["faults"] == []


def test_an_old_image_is_recovered_without_a_loss(old, tmp_path):
    report = batos.recover_image(old, tmp_path / "new.fs")
    assert (report["lost"], report["faults"]) == ([], [])


def test_an_old_image_keeps_its_promises_and_learns_to_think(old, daemon):
    with batos.Client(daemon(LONG_MEMORY, core=0).endpoint) as client:
        def put(*args, key):
            return client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=list(args),
                               idempotency_key=key)
        assert client.call("send_message", target="genesis_obj", selector="mood")["result"] == "curious"
        assert put("mood", "curious", key="the first key")["repeated"]
        assert put("large", "x" * 5000, key="a large key")["repeated"]
        clone = client.call("send_message", target="genesis_obj", selector="clone", idempotency_key="a clone")
        assert clone["repeated"] and clone["result"] == {"$ref": "0x27"} and clone["change"] == "040d2998dacb32ee.0"
        with pytest.raises(batos.KeyReused):
            put("mood", "dull", key="the first key")
        assert client.call("search_memory", query="brass valve")["results"][0]["chunk"]["doc_id"] == "pump.md"
        ended = client.call("initiate_cognitive_cycle", mission_brief=MISSION, wait=True)["result"]
        assert ended["state"] == "COMPLETE" and ended["evidence"][0]["doc_id"] == "pump.md"


def test_an_old_image_is_whole_after_its_first_day_with_the_new_program(old, daemon):
    running = daemon(LONG_MEMORY, core=0)
    with batos.Client(running.endpoint) as client:
        client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["n", 7])
    assert running.stop() == 0
    report = batos.check_image(old, deep=True)
    assert report["faults"] == [] and report["objects"] > 60


def version_of(where):
    image = batos.Image.open(where)
    with batos.reading(image) as root:
        version = root["image_version"]
    image.close()
    return version


def test_a_backup_comes_before_an_upgrade_and_can_be_restored(old, daemon, tmp_path):
    before = pathlib.Path(old).read_bytes()
    running = daemon()
    assert running.stop() == 0 and version_of(old) == batos.IMAGE_VERSION == max(batos.UPGRADES)
    assert any("version 1" in line and "backup" in line for line in running.lines)
    batos.restore_image(f"{old}.upgrades", tmp_path / "back.fs")
    assert (tmp_path / "back.fs").read_bytes() == before
    again = daemon()
    assert not any("version" in line for line in again.lines)


def test_an_upgrade_whose_backup_cannot_be_made_changes_nothing(old, monkeypatch):
    before = pathlib.Path(old).read_bytes()
    monkeypatch.setattr(batos.shutil, "disk_usage", lambda path: batos.types.SimpleNamespace(free=0))
    image = batos.Image.open(old)
    with pytest.raises(batos.ImageError, match="free"):
        batos.upgrade_image(image, f"{old}.upgrades")
    image.close()
    assert pathlib.Path(old).read_bytes() == before and version_of(old) == 1


def test_each_upgrade_is_a_transaction_of_its_own_and_goes_on_after_a_failure(old, monkeypatch):
    def failing(root):
        root["genesis_obj"].half = True
        raise RuntimeError("amid the upgrade")
    ran = []
    others = {n: lambda root, n=n: ran.append(n) for n in range(4, batos.IMAGE_VERSION + 2)}
    monkeypatch.setattr(batos, "UPGRADES", {**batos.UPGRADES, 3: failing, **others})
    image = batos.Image.open(old)
    with pytest.raises(RuntimeError):
        batos.upgrade_image(image, f"{old}.upgrades")
    with batos.reading(image) as root:
        assert root["image_version"] == 2 and "half" not in root["genesis_obj"]._slots and ran == []
    batos.UPGRADES[3] = lambda root: ran.append(3)
    batos.upgrade_image(image, f"{old}.upgrades")
    assert ran == list(range(3, batos.IMAGE_VERSION + 2))
    image.close()
    with pytest.raises(batos.ImageTooNew, match="newer"):
        batos.Image.open(old)


@pytest.fixture
def second(tmp_path):
    """The image that commit f05e5f8 made (with the mind, pages packed, version 1)."""
    for end in ("", ".seals"):
        shutil.copy(IMAGES / f"f05e5f8{end}", tmp_path / f"live_image.fs{end}")
    return str(tmp_path / "live_image.fs")


def test_an_image_with_the_mind_keeps_its_history_and_its_changes_can_be_undone(second, daemon):
    assert batos.check_image(second, deep=True)["faults"] == []
    running = daemon(LONG_MEMORY, core=0)
    with batos.Client(running.endpoint) as client:
        rows = client.call("history", target="genesis_obj", slot="mood")["results"]
        assert [row["change"] for row in rows] == ["040d2a2f2263cd55.0", "040d2a2f226090dd.0"]
        client.call("undo", change="040d2a2f2263cd55.0")
        assert client.call("inspect", target="genesis_obj.mood")["result"]["value"] == "curious"
        assert client.call("inspect", target="genesis_obj.mood", as_of="040d2a2f2263cd55.0")["result"]["value"] == "calm"
        with pytest.raises(batos.CannotUndo):            # its pages do not name documents yet
            client.call("undo", change="040d2a2f2268fa00.0")
        again = client.call("index_document", doc_id="pump.md", idempotency_key="a document",
                            text="# Pump\n\nTurn the brass valve until the needle stands at zero.")
        assert again["repeated"] and again["change"] == "040d2a2f226739dd.0"
        ended = client.call("initiate_cognitive_cycle", mission_brief=MISSION, wait=True)["result"]
        assert ended["state"] == "COMPLETE" and "copper" in ended["answer"]
    assert running.stop() == 0
    assert batos.check_image(second, deep=True)["faults"] == []


@pytest.fixture
def third(tmp_path):
    """The image of commit 770d2d5, gzipped: a large document whose first version's words were in the index still, unswept."""
    path = tmp_path / "live_image.fs"
    path.write_bytes(gzip.decompress((IMAGES / "770d2d5.gz").read_bytes()))
    return str(path)


def test_words_of_an_image_without_segments_are_found_and_merged(third, daemon):
    def found(client, query):
        return [row["chunk"]["doc_id"] for row in client.call("search_memory", query=query)["results"]]
    assert batos.check_image(third, deep=True)["faults"] == []
    running = daemon()
    with batos.Client(running.endpoint) as client:
        assert client.call("inspect", target="image_version")["result"]["value"] == batos.IMAGE_VERSION
        assert found(client, "silver")[0] == "large.md" and found(client, "brass") == ["pump.md"]
        assert found(client, "copper") == []
        client.call("undo", change=client.call("index_document", doc_id="pump.md", text="A copper pump.")["change"])
        assert found(client, "brass") == ["pump.md"] and found(client, "copper") == []
    assert running.stop() == 0
    assert batos.check_image(third, deep=True)["faults"] == []
    image = batos.Image.open(third)
    with batos.reading(image) as root:
        catalog = root["knowledge_catalog_obj"]
        words = [word for segment in catalog.text_index.values() for word in segment.arrays.vocabulary()]
        assert "copper" not in words and "silver" in words and "segments" not in batos.own(catalog)
    image.close()


@pytest.fixture
def fourth(tmp_path):
    """The image of commit aa7957a: a document in a segment, a small one in the index, one that was taken out, a mission."""
    return unpacked("aa7957a.tgz", tmp_path)


def test_an_old_image_is_not_mended_but_upgraded(fourth):
    before = pathlib.Path(fourth).read_bytes()
    with pytest.raises(batos.ConfigError, match=f"has version 3, and {batos.IMAGE_VERSION} is mended"):
        batos.mend_image(fourth)
    assert pathlib.Path(fourth).read_bytes() == before


def test_an_image_with_segments_and_a_tail_has_all_words_in_segments(fourth, daemon):
    assert batos.check_image(fourth, deep=True)["faults"] == []
    running = daemon(LONG_MEMORY, core=0)
    with batos.Client(running.endpoint) as client:
        def found(query, **where):
            return [row["chunk"]["doc_id"] for row in client.call("search_memory", query=query, **where)["results"]]
        assert found("brass valve") == ["pump.md"] and found("silver", tags=["lamp"])[0] == "large.md" and found("copper") == []
        again = client.call("initiate_cognitive_cycle", mission_brief=MISSION, idempotency_key="a mission", wait=True)
        assert again["result"]["state"] == "COMPLETE" and client.call("list_cycles")["details"] == "1 cycles"
        memory = client.call("get_full_state")["result"]["memory"]
        assert memory["chunks"] == memory["unembedded"] == 211 and memory["segments"] == 2
        client.call("supersede", older="large.md", newer="pump.md")
    assert running.stop() == 0
    assert batos.check_image(fourth, deep=True)["faults"] == []


@pytest.fixture
def fifth(tmp_path):
    """The image of commit 729e714: a document, a slot, a mission of a conversation; no prompts, no tiers of memory."""
    return unpacked("729e714.tgz", tmp_path)


def test_an_image_without_prompts_and_tiers_gets_them_and_keeps_its_promises(fifth, daemon):
    running = daemon(LONG_MEMORY, core=0)
    brief = MISSION | {"conversation": "talk"}
    with batos.Client(running.endpoint) as client:
        again = client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True, idempotency_key="a mission")
        assert again["repeated"] and again["result"]["state"] == "COMPLETE"
        assert "plan" in client.call("inspect", target="codex_obj.prompts")["result"]["value"]
        assert client.call("inspect", target="memory_manager_obj")["result"]["slots"]
        assert {row["expert"] for row in client.call("list_experts")["results"]} == set(batos.PILLARS)
        assert client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)["result"]["state"] == "COMPLETE"
    assert running.stop() == 0
    assert batos.check_image(fifth, deep=True)["faults"] == []


@pytest.fixture
def sixth(tmp_path):
    """The image of commit 8fb1359: prompts, one of them revised, without what methods may be tested for."""
    return unpacked("8fb1359.tgz", tmp_path)


def test_an_image_without_properties_gets_them_and_keeps_its_revised_prompts(sixth, daemon):
    running = daemon(LONG_MEMORY, core=0)
    with batos.Client(running.endpoint) as client:
        again = client.call("initiate_cognitive_cycle", mission_brief=MISSION, wait=True, idempotency_key="a mission")
        assert again["repeated"] and again["result"]["state"] == "COMPLETE"
        prompts = client.call("inspect", target="codex_obj.prompts")["result"]["value"]
        assert prompts["plan"].startswith("Mine: ") and "tests" not in prompts       # the rest is asked for as it comes
        assert client.call("inspect", target="codex_obj.properties")["result"]["value"] == batos.told_properties()
        client.call("create_method", target_oid="genesis_obj", method_name="one", method_code="def one(self):\n    return 1\n")
        assert client.call("send_message", target="genesis_obj", selector="one")["result"] == 1
    assert running.stop() == 0
    assert batos.check_image(sixth, deep=True)["faults"] == []


@pytest.fixture
def seventh(tmp_path):
    """The image of commit 84e77e0: methods that know no home, one in quarantine; nothing autotelic, no states of a client."""
    return unpacked("84e77e0.tgz", tmp_path)


def test_an_image_without_a_heartbeat_gets_it_and_its_methods_are_found_when_they_come_anew(seventh, daemon):
    running = daemon(LONG_MEMORY, core=0)
    with batos.Client(running.endpoint, 120) as client:
        def send(selector, target="genesis_obj", **fields):
            return client.call("send_message", target=target, selector=selector, **fields)["result"]
        assert send("total") == 0
        with pytest.raises(batos.MethodFailed, match="quarantine"):
            send("mean")
        audit = send(batos.AUDIT[1], "autotelic_obj")
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
    assert batos.check_image(seventh, deep=True)["faults"] == []


def test_prompts_that_nobody_revised_become_the_new_ones(sixth, tmp_path):
    image = batos.Image.open(sixth)
    with batos.writing(image) as root:                   # as they were before somebody revised one
        prompts = dict(root["codex_obj"].prompts)
        root["codex_obj"].prompts = {**prompts, "plan": prompts["plan"].removeprefix("Mine: ")}
    batos.upgrade_image(image, f"{sixth}.upgrades")
    with batos.reading(image) as root:
        assert root["codex_obj"].prompts == batos.TASK_PROMPTS and root["codex_obj"].properties == batos.told_properties()
    image.close()
