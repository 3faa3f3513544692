"""BAT OS as a later version might be, for the tests: three upgrades more make an image its own.

    python tests/newer.py WORDS            as batos.py
"""

import contextlib
import pathlib
import sys
import tarfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import batos

IMAGES = pathlib.Path(__file__).resolve().parent / "data" / "images"
ADDED = [batos.IMAGE_VERSION + number for number in (1, 2, 3)]       # the versions that it makes


def unpacked(name, folder):
    """Unpack an image of an earlier commit into a folder; returns its path."""
    with tarfile.open(IMAGES / f"{name}.tgz") as packed:
        packed.extractall(folder, filter="data")
    return str(pathlib.Path(folder, "live_image.fs"))


def upgraded(root):
    """Return the upgrades that an image tells of."""
    return batos.own(root["genesis_obj"]).get("upgrades", [])


def step(number):
    """Return an upgrade: it changes a slot of genesis, and adds a root object that takes some writing."""
    def change(root):
        root[f"of_version_{number}"] = batos.UvmObject(text=f"{number} " * 50_000)
        batos.set_slot(root["genesis_obj"], "upgrades", [*upgraded(root), number])
    return change


@contextlib.contextmanager
def later():
    """Have batos be the later version while inside."""
    before = batos.IMAGE_VERSION, batos.UPGRADES
    batos.IMAGE_VERSION = ADDED[-1]
    batos.UPGRADES = {**before[1], **{number: step(number) for number in ADDED}}
    try:
        yield
    finally:
        batos.IMAGE_VERSION, batos.UPGRADES = before


def main(words):
    """Run the command line of the later version. Returns the exit status."""
    with later():
        return batos.main(words)


if __name__ == "__main__":
    batos._leave(main(sys.argv[1:]))
