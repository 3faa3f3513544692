"""Another program is taken as the bytes that were named, tried on a copy, and given the image only where it came through."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import zipfile

import pytest
import vessels
from vessels import NEWER, ROOT, before, changed, make_channel

import batos

pytestmark = pytest.mark.slow


class Trial:
    """A daemon with a document, and a channel beside it."""

    def __init__(self, folder, daemon, monkeypatch):
        self.folder, self.image, self.daemon = folder, str(folder / "live_image.fs"), daemon
        self.source = (ROOT / "batos.py").read_text("utf-8")
        self.own = batos.read_vessel(ROOT)
        self.monkeypatch = monkeypatch
        monkeypatch.chdir(folder)
        monkeypatch.setenv("BATOS_UPGRADE_CHANNEL", str(folder / "channel"))

    def start(self, **chosen):
        self.running = self.daemon(**chosen)
        with batos.Client(self.running.endpoint) as client:
            client.call("index_document", doc_id="a", text="The brass valve of the pump is turned by hand.")
        return self.running

    def offer(self, more="# another", first=""):
        """Put a program into the channel; returns its digest."""
        channel = make_channel(self.folder, changed(self.source, more, first))
        return batos.channel_vessel(channel, self.own).sha256

    def upgrade(self, *words, status=0):
        """Run the command line as a user does; returns what it told."""
        ran = subprocess.run([sys.executable, str(ROOT / "batos.py"), "upgrade", *words], capture_output=True, text=True,
                             timeout=10 * vessels.WAIT_S)
        assert ran.returncode == status, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def left(self):
        """Return the names of what there is of programs and trials."""
        home = batos.vessels_home(self.image)
        return {path.name for path in home.iterdir()} - {"supervisor.py"} if home.exists() else set()

    def is_as_before(self):
        """Whether the program that was started serves still, and no other ever did."""
        with batos.Client(self.running.endpoint) as client:
            vessel = client.call("health")["result"]["vessel"]
            found = client.call("search_memory", query="brass valve")["results"]
        return vessel["sha256"] == self.own.sha256 and bool(found) and self.left() == set()


@pytest.fixture
def trial(tmp_path, daemon, monkeypatch):
    return Trial(tmp_path, daemon, monkeypatch)


@pytest.mark.skipif(not (ROOT / "seed_core" / "core.json").exists(), reason="there is no trained core in seed_core/")
def test_a_program_is_tried_serves_and_is_gone_back_from(trial):
    running = trial.start(core="auto")
    brief = {"type": "direct_synthesis", "selector": "answer_", "args": ["How is the brass valve of the pump turned?"]}
    with batos.Client(running.endpoint, 120.0) as client:
        vessels.until(lambda: client.call("health")["result"]["core"]["state"] == "ready")
        client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)
    other = trial.offer()
    assert f"upgrade {other}" in trial.upgrade("--list")
    told = trial.upgrade(other)
    assert "1 missions of before by the same passages" in told and f"{other} serves now" in told
    assert trial.left() == {other, trial.own.sha256}
    assert re.search(f"serves +{other}", trial.upgrade()) and f"before   {trial.own.sha256}" in trial.upgrade()
    assert f"{trial.own.sha256} serves now" in trial.upgrade("--back")
    assert trial.left() == {other, trial.own.sha256} and "serves already" in trial.upgrade(trial.own.sha256, status=1)
    with batos.Client(running.endpoint) as client:
        with pytest.raises(batos.NotFound):                  # what it was tried by is not in the image
            client.call("inspect", target="genesis_obj.tried")
    assert running.stop() == 0 and batos.check_image(trial.image, deep=True)["faults"] == []


DAMAGE = """
_well = Image.close
def _close(self):
    end = self.committed()[0]
    _well(self)
    with open(self.path, "r+b") as file:
        file.seek(end // 2)
        file.write(bytes(64))
Image.close = _close
"""
UNTRIED = {
    "raises at import": ({"first": "raise RuntimeError('no')"}, "RuntimeError: no"),
    "is no Python": ({"first": "def ("}, "SyntaxError"),
    "hangs": ({"first": "import time; time.sleep(10**6)"}, "upgrade_trial_s"),
    "damages the copy": ({"more": DAMAGE}, "fault"),
    "fails in a newer version": ({"more": NEWER + before("note_vessel", "raise RuntimeError('no')")}, "RuntimeError: no"),
    "loses what is remembered": ({"more": before(
        "note_vessel", "with writing(args[0]) as root: root['knowledge_catalog_obj'].documents.clear()")}, "in its trial"),
}


@pytest.mark.parametrize("kind", UNTRIED)
def test_what_does_not_come_through_its_trial_is_refused_and_the_daemon_serves_on(trial, kind):
    how, told = UNTRIED[kind]
    if kind == "hangs":
        trial.monkeypatch.setenv("BATOS_UPGRADE_TRIAL_S", "3")
    trial.start()
    said = trial.upgrade(trial.offer(**how), status=1)
    assert told in said and "nothing was changed" in said and trial.is_as_before()


def test_what_comes_through_its_trial_and_does_not_serve_is_told_and_gone_back_from(trial):
    trial.start()
    falling = trial.offer(NEWER + before("_end_probation", "'trial-' in args[0].image.path or os._exit(3)"))
    said = trial.upgrade(falling, status=1)
    assert "does not serve" in said and "exit status 3" in said and trial.left() == {trial.own.sha256}
    assert f"failed   {falling}" in trial.upgrade()


def test_only_the_bytes_that_were_named_are_taken(trial):
    trial.start()
    named = trial.offer("# one")
    trial.offer("# and another since")
    assert "no program with the digest" in trial.upgrade(named, status=1) and trial.is_as_before()
    assert "64 hexadecimal digits" in trial.upgrade(named[:20], status=1)
    (trial.folder / "channel").chmod(0o777)
    assert "written by others" in trial.upgrade(named, status=1) and trial.is_as_before()
    assert "no other program served" in trial.upgrade("--back", status=1)
    assert "--back goes to the program before" in trial.upgrade(named, "--back", status=1)
    assert "goes to no program" in trial.upgrade(named, "--list", status=1)


def test_a_file_that_changes_while_it_is_taken_is_refused(trial):
    trial.offer()
    vessel = batos.channel_vessel(trial.folder / "channel", trial.own)
    with open(trial.folder / "channel" / "batos.py", "a") as file:
        file.write("# changed\n")
    home = trial.folder / "home"
    home.mkdir()
    with pytest.raises(batos.UpgradeRefused, match="has changed"):
        batos._take_vessel(vessel, home)
    assert list(home.iterdir()) == []


def test_a_program_may_be_only_tried_also_where_the_one_that_serves_was_started_by_a_link(trial):
    (trial.folder / "link").symlink_to(ROOT)

    def by_link(words, cwd, stdout, stderr):
        program = str(trial.folder / "link" / "batos.py")
        return subprocess.Popen([sys.executable, program, *words[1:]], cwd=cwd, stdout=stdout, stderr=stderr)
    trial.start(start=by_link)
    assert "nothing was changed" in trial.upgrade(trial.offer(), "--only-try") and trial.is_as_before()


def test_an_interrupt_in_a_trial_leaves_nothing_behind(trial):
    trial.start()
    slow = trial.offer(before("note_vessel", "open('slow', 'w').write(str(os.getpid())); time.sleep(600)"))
    process = subprocess.Popen([sys.executable, str(ROOT / "batos.py"), "upgrade", slow], stderr=subprocess.PIPE, text=True)
    while not pathlib.Path("slow").exists() or not (pid := pathlib.Path("slow").read_text()):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=vessels.WAIT_S)
    assert process.returncode == 130 and "interrupted" in said and trial.is_as_before()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_what_a_killed_trial_left_is_removed(trial):
    trial.start()
    home = batos.vessels_home(trial.image)
    gone = subprocess.Popen(["true"])
    gone.wait()
    (home / f"trial-{gone.pid}").mkdir(parents=True)
    (home / f"taking-{os.getpid()}").mkdir()
    batos.sweep_trials(trial.image)
    assert trial.left() == {f"taking-{os.getpid()}"}


def test_without_a_daemon_nothing_is_done(trial):
    assert "no daemon" in trial.upgrade(trial.offer(), status=1) and trial.left() == set()
    trial.monkeypatch.setenv("BATOS_IMAGE", "memory://")
    assert "another engine" in trial.upgrade(trial.own.sha256, status=1)


def wheel(folder, version):
    """Make a wheel of a package that nobody has."""
    name = f"bat_os_example-{version}"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as packed:
        packed.writestr("bat_os_example.py", f"version = {version!r}\n")
        packed.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: bat-os-example\nVersion: {version}\n")
        packed.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{name}.dist-info/RECORD", "")


def test_other_requirements_are_put_into_an_environment_over_the_one_that_is_there(trial, tmp_path):
    wheel(tmp_path / "wheels", "2.5")
    trial.monkeypatch.setenv("PIP_NO_INDEX", "1")
    trial.monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    running = trial.start()
    trial.offer("import bat_os_example\n")
    pins = (ROOT / "requirements.txt").read_text()
    (trial.folder / "channel" / "requirements.txt").write_text(pins + "bat-os-example==2.5\n")
    sha256 = batos.channel_vessel(trial.folder / "channel", trial.own).sha256
    told = trial.upgrade(sha256)
    assert "pip installs into it, for which it may reach out: bat-os-example==2.5" in told
    with batos.Client(running.endpoint) as client:
        vessel = client.call("health")["result"]["vessel"]
        current = client.call("inspect", target="vessel_obj.current")["result"]["value"]
    assert vessel["sha256"] == sha256 and vessel["python"].startswith(str(batos.vessels_home(trial.image) / sha256 / "venv"))
    assert current["packages"]["bat-os-example"] == "2.5" and current["packages"]["ZODB"]
    assert trial.own.sha256 in trial.upgrade("--back")       # and back to the one that was there
    with batos.Client(running.endpoint) as client:
        assert client.call("health")["result"]["vessel"]["python"] == sys.executable
    trial.offer("import bat_os_example\n# a third\n")
    (trial.folder / "channel" / "requirements.txt").write_text(pins + "bat-os-example==3\n")
    sha256 = batos.channel_vessel(trial.folder / "channel", trial.own).sha256
    assert "failed" in trial.upgrade(sha256, status=1) and sha256 not in trial.left()
