"""Image: what opens, what is cut, what is refused."""

import os
import shutil

import persistent
import pytest

import batos


@pytest.fixture
def image_path(tmp_path):
    """An image with genesis and three commits; no seals, as after a crash."""
    path = str(tmp_path / "live.fs")
    image = batos.Image.open(path)
    batos.genesis(image)
    unit = batos.Unit(image.db)
    for n in range(3):
        unit.manager.begin()
        unit.root["genesis_obj"].setSlot_value_("n", n)
        unit.manager.commit()
    unit.close()
    image.db.close()
    return path


def value_of(path):
    image = batos.Image.open(path)
    unit = batos.Unit(image.db)
    with unit.snapshot() as root:
        value = root["genesis_obj"].n
    unit.close()
    image.db.close()
    return value


def header_positions(data):
    found, at = [], 4
    while at < len(data):
        found.append(at)
        at += int.from_bytes(data[at + 8:at + 16]) + 8
    return found


def test_cut_at_every_byte_of_the_last_transaction_gives_before_or_after(image_path, tmp_path):
    data = open(image_path, "rb").read()
    last = header_positions(data)[-1]
    for cut in range(last, len(data)):
        path = str(tmp_path / "cut.fs")
        open(path, "wb").write(data[:cut])
        shutil.copytree(f"{image_path}.blob", f"{path}.blob", dirs_exist_ok=True)
        batos.examine(path)
        assert open(path, "rb").read() == data[:last]
    assert value_of(path) == 1
    assert any(".tail." in name for name in os.listdir(tmp_path))


def test_a_flipped_byte_in_a_header_is_refused_and_nothing_is_cut(image_path):
    data = open(image_path, "rb").read()
    for start in header_positions(data):
        for offset in range(8, 16):                      # the length
            bad = bytearray(data)
            bad[start + offset] ^= 0x55
            open(image_path, "wb").write(bad)
            with pytest.raises(batos.DamagedImage):
                batos.examine(image_path)
            assert open(image_path, "rb").read() == bytes(bad)


def test_a_flip_in_a_sealed_range_is_refused(image_path):
    batos.Image.open(image_path).close()
    data = bytearray(open(image_path, "rb").read())
    data[len(data) // 2] ^= 1
    open(image_path, "wb").write(data)
    with pytest.raises(batos.DamagedImage, match="sealed|header"):
        batos.Image.open(image_path)


def test_a_missing_data_file_with_seals_is_no_empty_image(image_path):
    batos.Image.open(image_path).close()
    os.remove(image_path)
    with pytest.raises(batos.DamagedImage, match="missing"):
        batos.Image.open(image_path)


def test_two_owners_are_refused(image_path):
    image = batos.Image.open(image_path)
    with pytest.raises(batos.ImageLocked, match=str(os.getpid())):
        batos.Image.open(image_path)
    image.close()


class Stranger(persistent.Persistent):
    pass


def test_a_foreign_class_is_refused(image_path):
    image = batos.Image.open(image_path)
    unit = batos.Unit(image.db)
    unit.manager.begin()
    unit.root["stranger"] = Stranger()
    unit.manager.commit()
    unit.connection.cacheMinimize()
    with pytest.raises(batos.ForeignClass, match="Stranger"), unit.snapshot() as root:
        _ = root["stranger"]
    unit.close()
    image.db.close()
