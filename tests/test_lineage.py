"""The lineage of the mind: successors, which one is the mind, the swap, the way back, and the clones that stay behind."""

import pytest
from test_memory import SEED, bring_in, stage
from test_mind import machine  # noqa: F401  (a fixture)

import batos

PERSONAS = [f"{name.lower()}_prototype_obj" for name in batos.PILLARS]


@pytest.fixture
def image(tmp_path):
    one = batos.Image.open(str(tmp_path / "live_image.fs"))
    batos.genesis(one, SEED)
    yield one
    one.close()


def succeed(image, reader=None):
    """Make a successor and have it be the mind; returns its version."""
    with batos.writing(image) as root:
        number = batos.new_successor(root, "it was asked for")
        root["pLLM_lineage"].versions[number].status = "PROMOTED"
        batos.swap_minds(root, number, reader)
    return number


def parents(root, name):
    return [own["name"] for own in map(batos.own, batos.own(root[name])["parent*"])]


def test_genesis_has_one_mind(image):
    with batos.reading(image) as root:
        assert batos.mind_of(root) is root["pLLM_obj"] and batos.own(root["pLLM_obj"])["version"] == 1
        row = {"version": 1, "name": "pLLM_obj", "status": "CURRENT", "why": "genesis", "at": None, "experts": []}
        assert batos.send(root["pLLM_lineage"], "minds_") == {"current": 1, "behind": 0, "minds": [row]}
        with pytest.raises(batos.BadRequest, match="is the mind already"):
            batos.send(root["pLLM_lineage"], "back_to_", 1)


def test_a_successor_is_the_mind_wherever_it_is_named_and_stands_in_place_of_the_former(image):
    number = succeed(image)
    with batos.reading(image) as root:
        mind = batos.mind_of(root)
        assert (mind.name, mind.version, number) == ("pLLM_v2", 2, 2) and batos.resolve(root, "pLLM_obj") is mind
        assert batos.resolve(root, "pLLM_lineage.versions.1") is root["pLLM_obj"] is mind.former
        assert [parents(root, name) for name in ("genesis_obj", *PERSONAS)] == [["pLLM_v2", "traits_obj"]] * 5
        assert [one.sha256 for one in mind.model_blob] == [one.sha256 for one in root["pLLM_obj"].model_blob]
        assert batos.lacks(image) == []


def test_experts_of_a_successor_are_its_own(image, tmp_path):
    stage(tmp_path / "staged", "ONE", seed=1)
    bring_in(image, tmp_path / "staged")
    succeed(image)
    stage(tmp_path / "staged", "ONE", seed=2)
    stage(tmp_path / "staged", "TWO", seed=3)
    assert bring_in(image, tmp_path / "staged")["incarnated"] == ["ONE version 2", "TWO version 1"]
    with batos.reading(image) as root:
        former, mind = root["pLLM_obj"].lora_repository, batos.mind_of(root).lora_repository
        assert former["ONE"].version == 1 and mind["ONE"].version == 2 and "TWO" not in former
        assert batos.kind_name(former["ONE"]) == batos.kind_name(mind["ONE"]) == "expert"
        synapses = batos.SynapticMemory(image, batos.load_settings({}, {}))
        synapses.refresh()
        assert synapses.known("ONE").version == 2 and synapses.tensors("TWO")


def test_back_to_a_version_is_a_change_of_its_own_and_brings_its_reader(image):
    with batos.writing(image) as root:
        forged = batos.blob_record(__file__, "x")
    reader = {"version": 2, "forged": forged, "former": None, "job": 7, "since": 1, "lineage": [{"version": 2, "job": 7}]}
    succeed(image, reader)
    with batos.writing(image) as root:
        assert root["reader_obj"].version == 2
        assert batos.send(root["pLLM_lineage"], "back_to_", 1) == "pLLM_obj"
        assert root["reader_obj"].version == 1 and root["reader_obj"].forged is None
        assert parents(root, "genesis_obj") == ["pLLM_obj", "traits_obj"]
        batos.send(root["pLLM_obj"], "back_to_", 2)
        assert (root["reader_obj"].version, root["reader_obj"].job) == (2, 7)
        assert parents(root, "brick_prototype_obj")[0] == "pLLM_v2"


def test_a_candidate_is_not_the_mind_and_goes_where_it_is_not_proven(image):
    with batos.writing(image) as root:
        number = batos.new_successor(root, "")
        with pytest.raises(batos.BadRequest, match="not proven yet"):
            batos.send(root["pLLM_lineage"], "back_to_", number)
        with pytest.raises(batos.NotFound, match="there are 1, 2"):
            batos.send(root["pLLM_lineage"], "back_to_", 9)
        with pytest.raises(batos.BadRequest, match="version"):
            batos.send(root["pLLM_lineage"], "back_to_", "two")
        batos.drop_candidate(root, number)
        batos.drop_candidate(root, 1)
        assert list(root["pLLM_lineage"].versions) == [1]


def test_the_last_minds_are_kept_whatever_comes(image):
    for _ in range(6):
        succeed(image)
    with batos.reading(image) as root:
        assert list(root["pLLM_lineage"].versions) == [1, 4, 5, 6, 7] and batos.mind_of(root).version == 7


def test_a_clone_stays_with_its_parent_until_it_is_moved(image):
    with batos.writing(image) as root:
        for name in ("first", "second"):
            root[name] = root["genesis_obj"].clone()
        root["first"].inner = root["genesis_obj"].clone()
    succeed(image)
    with batos.writing(image) as root:
        lineage = root["pLLM_lineage"]
        assert batos.send(lineage, "minds_")["behind"] == 3 and parents(root, "first")[0] == "pLLM_obj"
        assert batos.send(lineage, "adopt_mind_", "first") == 1 and parents(root, "first") == ["pLLM_v2", "traits_obj"]
        with pytest.raises(batos.BadRequest, match="delegates to no former mind"):
            batos.send(lineage, "adopt_mind_", "first")
        assert batos.send(lineage, "adopt_mind_") == 2 and batos.send(lineage, "minds_")["behind"] == 0


def test_what_was_proven_beside_another_mind_shows(image):
    with batos.writing(image) as root:
        before = batos.what_swaps(root)
        root["genesis_obj"].description = "other words"
        assert batos.what_swaps(root) == before
        root["reader_obj"].forged = batos.blob_record(__file__, "x")
        assert batos.what_swaps(root) != before
        root["reader_obj"].forged = None
        root["genesis_obj"].clone()
        batos.set_slot(root["brick_prototype_obj"], "parent*", [root["traits_obj"], root["pLLM_obj"]])
        assert batos.what_swaps(root) != before


def test_an_image_of_before_gets_its_lineage(image):
    with batos.writing(image) as root:
        del root["pLLM_lineage"], batos.own(root["pLLM_obj"])["version"]
        root["image_version"] = 18
    with batos.writing(image) as root:
        assert batos.mind_of(root) is root["pLLM_obj"]
        batos.UPGRADES[19](root)
        assert root["pLLM_lineage"].current == 1 and root["pLLM_obj"].version == 1


# By message


def seen(client):
    told = client.call("send_message", target="pLLM_lineage", selector="minds_")["result"]
    return told["current"], [row["status"] for row in told["minds"]]


def test_by_message_the_mind_goes_back_and_undo_brings_all_of_it_again(daemon, tmp_path):
    one = batos.Image.open(str(tmp_path / "live_image.fs"))
    batos.genesis(one)
    succeed(one)
    one.close()
    running = daemon(core=0)
    with batos.Client(running.endpoint) as client:
        assert seen(client) == (2, ["FORMER", "CURRENT"])
        assert client.call("inspect", target="pLLM_obj")["result"]["slots"]["name"]["value"] == "pLLM_v2"
        told = client.call("send_message", target="genesis_obj", selector="back_to:", args=[1])
        assert told["result"] == "pLLM_obj" and seen(client) == (1, ["CURRENT", "PROMOTED"])
        client.call("undo", change=told["change"])
        assert seen(client) == (2, ["FORMER", "CURRENT"])
        rows = client.call("history", target="genesis_obj", slot="parent*")["results"]
        assert len(rows) == 2 and rows[0]["command"] == "undo"
        for target in ("pLLM_obj", "pLLM_lineage.versions.1", "pLLM_lineage"):
            with pytest.raises(batos.Protected):
                client.call("send_message", target=target, selector="setSlot_value_", args=["name", "x"])
        for slot, value in (("model_blob", "x"), ("version", 9), ("status", "x"), ("reader", {})):
            with pytest.raises(batos.Protected):
                client.call("send_message", target="pLLM_obj", selector="setSlot_value_", args=[slot, value])
        with pytest.raises(batos.Protected):
            client.call("send_message", target="pLLM_lineage", selector="setSlot_value_", args=["current", 1])
    assert running.stop() == 0
    assert batos.check_image(str(tmp_path / "live_image.fs"), deep=True)["faults"] == []


def test_a_clone_of_genesis_goes_elsewhere_whatever_mind_it_had(daemon, tmp_path):
    one = batos.Image.open(str(tmp_path / "live_image.fs"))
    batos.genesis(one)
    with batos.writing(one) as root:
        root["genesis_obj"].older = root["genesis_obj"].clone()
    succeed(one)
    with batos.writing(one) as root:
        root["genesis_obj"].newer = root["genesis_obj"].clone()
    one.close()
    with batos.Client(daemon(core=0).endpoint) as client:
        for name in ("older", "newer"):
            packed = client.call("export", target=f"genesis_obj.{name}")["result"]
            assert len(packed["parcel"]) < 1000
            client.call("import", parcel=packed["parcel"], target="genesis_obj", slot=f"{name}_again")
            slots = client.call("inspect", target=f"genesis_obj.{name}_again")["result"]["slots"]
            assert len(slots["parent*"]["value"]) == 2
        assert seen(client)[0] == 2
        told = client.call("send_message", target="pLLM_lineage", selector="minds_")["result"]
        assert told["behind"] == 1                       # what came from elsewhere has the mind that is
