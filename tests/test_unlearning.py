"""Forgetting tells what has learnt from what is forgotten, and puts it back where somebody asks for that."""

import pytest
import test_forge
from test_forge import stub  # noqa: F401  (a fixture)

import batos


def words_of_trained():
    """Return words that each of the rows hold which the first dataset is trained on, in their order."""
    rows = [row for row in test_forge.corrected().values() if not row["held"]]
    return [f"engineer oils the pump at {row['passages'][1]['doc_id'].partition('/')[0]}" for row in rows]


@pytest.mark.slow
def test_what_learnt_from_the_forgotten_is_told_and_put_back_when_asked(stub):  # noqa: F811
    first, second, *_ = words_of_trained()
    with batos.Client(stub(forge_yields=False).endpoint, test_forge.WAIT_S) as client:
        assert client.call("forget", matching=first, preview=True)["result"].get("learnt") is None
        assert test_forge.judged(client, client.call("forge")["result"]["job"])["status"] == "PROMOTED"
        shown = client.call("forget", matching=first, preview=True)
        assert shown["result"]["learnt"] == ["READER"] and "READER learnt from it" in shown["details"]
        assert client.call("forget", matching=first)["result"]["learnt"] == ["READER"]
        assert test_forge.reader(client)["version"] == 2
        told = client.call("forget", matching=second, experts=True)
        assert told["result"]["learnt"] == ["READER"] and "put back to before" in told["details"]
        assert test_forge.reader(client) == {"version": 1, "job": None, "lineage": []}
        row = client.call("forget", matching="nobody ever said this", preview=True)
        assert "learnt" not in row["result"]


def test_an_expert_is_what_it_was_before_the_first_job_that_was_taught_it(tmp_path):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(image)
    with batos.writing(image) as root:
        mind, record = batos.mind_of(root), batos.blob_record(__file__, "x")
        before = {"model_blob": record, "version": 1, "lineage": []}
        lineage = [{"version": 2, "sha256": "x", "job": 7, "rows": [3]}, {"version": 3, "sha256": "y", "job": 8, "rows": [3, 4]}]
        slots = {"parent*": [root["traits_obj"]], "adapter_name": "ROBIN_LORA", "lineage": lineage, "version": 3}
        batos.set_slot(mind, "lora_repository", batos.OOBTree({"ROBIN_LORA": batos.UvmObject(**slots, model_blob=record)}))
        root["forge_obj"].jobs[7] = batos.UvmObject(job_number=7, target="ROBIN", before=before)
        assert batos._first_taught(lineage, {4}) == 8 and batos._first_taught(lineage, {3}) == 7
        assert batos._first_taught(lineage, {5}) is None
        batos._unlearn(root, [("ROBIN_LORA", 7)])
        assert (mind.lora_repository["ROBIN_LORA"].version, mind.lora_repository["ROBIN_LORA"].lineage) == (1, [])
        root["forge_obj"].jobs[7].before = None
        batos._unlearn(root, [("ROBIN_LORA", 7)])
        assert "ROBIN_LORA" not in mind.lora_repository
    image.close()
