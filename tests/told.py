"""What daemons tell their clients, held against the models that `batos.py schema` prints: see conftest and forks."""

import functools
import pathlib
import traceback

import pydantic

FAULTS = "told.faults"             # in a daemon's folder: what it told that is of no model


def watch(batos, folder):
    """Have each message of this process that goes to a client checked; what is of no model is written down in the folder."""
    pack, faults = batos.pack_reply, pathlib.Path(folder) / FAULTS

    @functools.wraps(pack)
    def checked(message):
        try:
            batos._model_of_message(message).model_validate(message)
        except (pydantic.ValidationError, KeyError, TypeError):
            with faults.open("a") as file:
                file.write(f"{str(message)[:500]}\n{traceback.format_exc(limit=1)}\n")
        return pack(message)
    batos.pack_reply = checked


def check(folder):
    """Raise AssertionError for what a daemon of the folder told that is of no model."""
    faults = pathlib.Path(folder) / FAULTS
    assert not faults.exists(), faults.read_text()[:4000]
