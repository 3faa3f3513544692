"""A daemon for benches that ask questions: served() gives a Client of one whose core and embedder are loaded."""

import contextlib
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import forks

import batos


@contextlib.contextmanager
def served(wait_s=120.0, home=None, **settings):
    """Give a Client of a daemon with the embedded core and the embedder, both loaded. settings: of BAT OS, by name.

    home: a private folder for the image, which stays; without it the image is new, and is gone afterwards.
    """
    told = {"core": "auto", "embedder": "auto", "heartbeat": "false", **settings}
    options = [word for name, value in told.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with contextlib.nullcontext(home) if home else tempfile.TemporaryDirectory() as folder:
        endpoint = f"ipc://{folder}/bat"
        words = ["batos", "--image", f"{folder}/image.fs", "--endpoint", endpoint, *options]
        daemon = forks.start(words, folder, subprocess.DEVNULL, subprocess.DEVNULL)
        try:
            with batos.Client(endpoint, wait_s) as client:
                while not loaded(client):
                    time.sleep(0.5)
                yield client
        finally:
            daemon.terminate()
            daemon.wait()


def loaded(client):
    """Return whether core and embedder are ready; a daemon that does not listen yet is not."""
    try:
        health = client.call("health", timeout_s=5)["result"]
    except batos.BatosError:
        return False
    return health["core"]["state"] == health["embedder"]["state"] == "ready"
