"""Genesis: one transaction. Killed at any of its steps it leaves nothing or everything."""

import multiprocessing
import os
import pathlib
import signal

import pytest

import batos

STEPS = [*batos.PRIMORDIAL, "store_core", "blob_record", "tpc_begin", "store", "tpc_vote", "_sync_blobs", "synced", "tpc_finish",
         "finished"]


def small_core(folder):
    """A model directory without a card: two files, never loaded."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(100_000))
    return folder


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def genesis_that_dies_at(step, path, core):
    """Run genesis in this process and kill it at a step: before a method of the storage, or after the last two."""
    batos.Image.open(path).close()                       # the very first opening writes an empty root
    storage, after = batos.ImageStorage, {"synced": "_sync_blobs", "finished": "tpc_finish"}
    if step in batos.PRIMORDIAL:
        batos.PRIMORDIAL[step] = die
    elif step in ("store_core", "blob_record"):
        setattr(batos, step, die)
    elif step in after:
        real = getattr(storage, after[step])
        setattr(storage, after[step], lambda *args, **kwargs: (real(*args, **kwargs), die()))
    else:
        setattr(storage, step, die)
    batos.genesis(batos.Image.open(path), core)


@pytest.mark.parametrize("step", STEPS)
def test_genesis_killed_at_each_step_leaves_nothing_or_everything(tmp_path, step):
    path, core = str(tmp_path / "image.fs"), small_core(tmp_path / "core")
    child = multiprocessing.get_context("fork").Process(target=genesis_that_dies_at, args=(step, path, core))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    image = batos.Image.open(path)
    assert image.empty() == (step != "finished")
    if image.empty():
        assert batos.lacks(image) == list(batos.PRIMORDIAL)
        batos.genesis(image, core)
    assert batos.lacks(image) == []
    with batos.reading(image) as root:
        for record in root["pLLM_obj"].model_blob:
            assert pathlib.Path(batos.blob_path(record)).read_bytes() == (core / record.name).read_bytes()
    image.close()


def test_what_is_cloned_from_genesis_can_think(tmp_path):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(image)
    with batos.reading(image) as root:
        parents = list(batos.ancestry(root["genesis_obj"].clone()))
        assert parents[1:3] == [root["pLLM_obj"], root["traits_obj"]]
    image.close()


def test_the_core_is_copied_and_served_as_links_to_checked_blobs(tmp_path):
    core = small_core(tmp_path / "core")
    image = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(image, core)
    folder = batos.core_directory(image)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    blob = (folder / "model.safetensors").resolve()
    assert ".blob" in str(blob) and blob.read_bytes() == (core / "model.safetensors").read_bytes()
    with batos.core_folder(image, str(core)) as folder:
        assert folder is None                            # nothing to copy again
    blob.chmod(0o600)
    blob.write_bytes(b"x" * 100_000)
    with pytest.raises(batos.DamagedImage, match="model.safetensors"):
        batos.core_directory(image)
    image.close()


def test_another_core_replaces_the_first_and_a_wrong_one_is_refused(tmp_path):
    image = batos.Image.open(str(tmp_path / "image.fs"))
    batos.genesis(image, small_core(tmp_path / "one"))
    two = small_core(tmp_path / "two")
    (two / "config.json").write_text('{"a": 1}')
    with batos.core_folder(image, str(two)) as folder:
        assert folder == two
    batos.genesis(image, two)
    with batos.reading(image) as root:
        assert root["pLLM_obj"].model_id == str(two)
    with pytest.raises(batos.ConfigError, match="no folder"):
        with batos.core_folder(image, str(tmp_path / "nowhere")):
            raise AssertionError
    (two / "config.json").unlink()
    with pytest.raises(batos.ConfigError, match="config.json"):
        batos.genesis(image, two)
    image.close()
