"""An image goes from one program to another and back; what does not come to serve is gone back from; kills at each step."""

import functools
import itertools
import json
import pathlib
import subprocess
import sys
import threading
import time

import pytest
import vessels
from durability.load import keys_in_pages
from vessels import NEWER, ROOT, before

import batos

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path, daemon):
    return vessels.Home(tmp_path, daemon)


def test_the_image_goes_to_another_program_and_back_and_nothing_is_lost(home):
    home.start()
    first = home.put("n", 1, key="first")
    pid = home.running.process.pid
    other = home.program("# another")
    home.order(other)
    told = home.await_serving(other)
    assert told["former"] == home.own.sha256 and home.value("n") == 1
    again = home.put("n", 1, key="first")
    assert again["repeated"] and again["change"] == first["change"]
    home.put("n", 2)
    home.order(home.own.sha256, back=other)
    assert home.await_serving(home.own.sha256)["former"] == other and home.value("n") == 2
    assert home.running.process.pid == pid and home.running.process.poll() is None       # who started it sees no change
    history = home.call("inspect", target="vessel_obj.history")["result"]["value"]
    assert [row["sha256"] for row in history] == [home.own.sha256, other, home.own.sha256]
    assert home.stop() == 0 and home.faults() == []


def test_a_start_by_hand_leads_to_the_program_that_owns_the_image_unless_it_is_a_new_one(home, tmp_path, daemon):
    home.start()
    other = home.program("# another")
    home.order(other)
    home.await_serving(other)
    assert home.stop() == 0
    home.start()                                         # the one from which it went on
    assert home.await_serving(other) and home.stop() == 0
    newer = tmp_path / "newer"
    newer.mkdir()
    for name, file in home.own.files.items():
        (newer / name).parent.mkdir(exist_ok=True, parents=True)
        (newer / name).write_bytes(file.path.read_bytes())
    (newer / "batos.py").write_text(vessels.changed(home.source, "# put there by hand"))
    words = ["serve", "--core", "none", "--endpoint", "tcp://127.0.0.1:0", "--image", home.image]
    process = subprocess.Popen([sys.executable, str(newer / "batos.py"), *words], stdout=subprocess.PIPE, text=True)
    try:
        endpoint = next(line.split()[4] for line in process.stdout if "listens on" in line)
        with batos.Client(endpoint) as client:
            assert client.call("health")["result"]["vessel"]["program"] == str(newer / "batos.py")
        assert not pathlib.Path(f"{home.image}.vessel").exists()
    finally:
        process.terminate()
        process.communicate(timeout=vessels.WAIT_S)


BROKEN = {
    "raises at import": {"first": "raise RuntimeError('no')"},
    "is no Python": {"first": "def ("},
    "hangs": {"first": "import time; time.sleep(10**6)"},
    "damages what it opens": {
        "more": before("check_slots", "file = open(args[0].path, 'ab'); file.write(b'x' * 5000); file.close(); 1/0")},
    "fails in a newer version": {"more": NEWER + before("note_vessel", "raise RuntimeError('no')"), "raises": True},
    "ends within its probation": {"more": NEWER + before("_end_probation", "os._exit(3)"), "raises": True},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_program_is_gone_back_from_and_the_image_is_what_it_was(home, kind):
    how = dict(BROKEN[kind])
    home.options = ("--upgrade-trial-s", "3") if kind == "hangs" else ()
    home.start()
    home.put("n", 1, key="first")
    raises = how.pop("raises", False)
    broken = home.program(**how)
    home.order(broken, raises=raises)
    told = home.await_serving(home.own.sha256, failed=broken)
    assert told["failed"]["why"] and home.value("n") == 1 and home.put("n", 1, key="first")["repeated"]
    assert home.call("get_full_state")["result"]["image_version"] == batos.IMAGE_VERSION
    assert any("was gone back from" in line for line in batos._daemon_pane(home.call("get_full_state")["result"]))
    home.put("n", 2)
    assert home.stop() == 0 and home.faults() == []
    assert home.start() and home.value("n") == 2         # and goes on


def test_a_program_of_a_newer_version_takes_changes_once_its_probation_is_over(home, monkeypatch):
    monkeypatch.setenv("BATOS_UPGRADE_PROBATION_S", "4")
    home.start()
    home.put("n", 1)
    newer = home.program(NEWER)
    home.order(newer, raises=True)
    home.await_phase("probation")
    with batos.Client(home.endpoint()) as client:
        assert client.call("inspect", target="genesis_obj.n")["result"]["value"] == 1
        for command, fields in (("pack", {}), ("send_message", {"target": "genesis_obj", "selector": "setSlot_value_",
                                                                  "args": ["n", 5]})):
            with pytest.raises(batos.Busy, match="upgrade_probation_s"):
                client.call(command, **fields)
        assert client.call("health")["result"]["vessel"]["phase"] == "probation"
    assert home.put("n", 2)["status"] == "OK"            # sent again until it is taken
    assert home.marker()["current"]["sha256"] == newer and "mark" not in home.marker()
    assert home.call("get_full_state")["result"]["image_version"] == batos.IMAGE_VERSION + 1
    assert home.stop() == 0


def test_who_is_told_to_stop_in_its_probation_stops_and_the_program_before_serves_at_the_next_start(home):
    home.start()
    home.put("n", 1)
    newer = home.program(NEWER)
    home.order(newer, raises=True)
    home.await_phase("probation")
    home.call("shutdown")
    assert home.running.process.wait(vessels.WAIT_S) == 0 and home.marker()["phase"] == "back"
    home.start()
    assert "asked to end" in home.await_serving(home.own.sha256, failed=newer)["failed"]["why"] and home.value("n") == 1
    assert home.stop() == 0 and home.faults() == []


def test_a_program_that_took_over_is_started_again_three_times_and_then_no_more(home):
    home.start()
    falling = home.program(before("Vitals.health", "os._exit(9)"))
    home.order(falling)
    vessels.until(lambda: home.marker()["current"].get("sha256") == falling)
    for _ in range(4):
        vessels.until(lambda: home.running.process.poll() or batos.told_endpoint(home.image) is not None)
        with pytest.raises(batos.NoReply), batos.Client(home.endpoint(), 60.0) as client:
            client.call("health")
    assert home.running.process.wait(vessels.WAIT_S) == 9
    assert home.marker()["current"]["sha256"] == falling and home.faults() == []
    assert "is not started again" in "".join(home.running.lines)


KILL_ME = "os.kill(os.getpid(), signal.SIGKILL)"
KILL_SUPERVISOR = "os.kill(os.getppid(), signal.SIGKILL)"
AND_STAY = KILL_SUPERVISOR + "; time.sleep(300)"         # so that it comes no further until it ends with it
# (who is changed, before which of its functions, who is killed there, who serves then)
KILLS = [
    ("own", "HandOver.hand_over", KILL_ME, "own"), ("own", "_become_supervisor", KILL_ME, "other"),
    ("own", "become", KILL_ME, "other"), ("own supervised", "HandOver.hand_over", KILL_ME, "own"),
    ("own supervised", "HandOver._write", KILL_ME, "own"), ("own supervised", "HandOver.hand_over", AND_STAY, "own"),
    ("other", "whose_turn", AND_STAY, "own"), ("other", "note_vessel", AND_STAY, "own"),
    ("other", "HandOver.note_ready", AND_STAY, "own"), ("other", "HandOver.note_serving", AND_STAY, "own"),
    ("other", "_settle_interpreter", KILL_SUPERVISOR, "other"), ("other", "whose_turn", KILL_ME, "own"),
    ("other", "HandOver.note_ready", KILL_ME, "own"), ("other", "HandOver.note_serving", KILL_ME, "own"),
    ("other", "_settle_interpreter", KILL_ME, "other"), ("other", "awaited_turn", KILL_ME, "other"),
]


@pytest.mark.parametrize("who, step, kill, then", KILLS)
def test_a_kill_at_any_step_leaves_one_program_that_owns_the_image(home, who, step, kill, then):
    """Whoever is killed, what the next start by the same command serves is all that was acknowledged."""
    killed = home.folder / "killed"
    at_once = "True" if who == "other" else f"os.path.exists({str(home.folder / 'armed')!r})"
    once = f"if {at_once} and not os.path.exists({str(killed)!r}): open({str(killed)!r}, 'x').close(); {kill}"
    changed = home.program(before(step, once))
    own, other = (home.own.sha256, changed) if who == "other" else (changed, home.program("# another"))
    home.start(None if who != "own" else own)
    if who == "own supervised":
        home.order(own)
        home.await_serving(own)
    home.put("n", 1, key="first")
    (home.folder / "armed").touch()
    home.order(other, back=own)
    vessels.until(killed.exists)
    if who == "own" or kill != KILL_ME:          # else there is somebody who goes on
        home.running.process.wait(vessels.WAIT_S)
        home.start(None if who != "own" else own)
    gone_back = who == "other" and then == "own"
    home.await_serving({"own": own, "other": other}[then], failed=other if gone_back else None)
    assert home.value("n") == 1 and home.put("n", 1, key="first")["repeated"]
    assert home.stop() == 0 and home.faults() == []


def test_an_order_for_what_is_not_there_or_not_those_bytes_is_not_carried_out(home):
    home.start()
    other = home.program("# another")
    with open(home.home / other / "batos.py", "a") as file:
        file.write("# and changed since\n")
    home.order(other)
    home.await_log("is not carried out")
    (home.home / "order").write_text(json.dumps({"next": 1}))
    (home.home / "order").chmod(0o666)
    _, pid = pathlib.Path(f"{home.image}.endpoint").read_text().split()
    batos.os.kill(int(pid), batos.signal.SIGUSR1)
    home.await_log("can be written by others")
    assert home.put("n", 1)["status"] == "OK" and home.stop() == 0


def test_a_marker_that_does_not_read_is_named_and_nothing_is_opened(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("", "[]", "{", '{"phase": 1}', "\0"):
        pathlib.Path("live_image.fs.vessel").write_text(text)
        assert batos.main(["serve"]) == 1 and "live_image.fs.vessel" in capsys.readouterr().err
    assert not pathlib.Path("live_image.fs").exists()


def test_the_supervisor_needs_nothing_but_its_own_text(tmp_path):
    text = (ROOT / "batos.py").read_text()
    start, end = (text.index(f"\n# {name} #") for name in ("Supervisor", "Hand-over"))
    (tmp_path / "alone.py").write_text(f"{batos.SUPERVISOR_IMPORTS}{text[start:end]}")
    code = "import sys; sys.path.insert(0, '.'); import alone; print(alone.read_marker('none'))"
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("None\n", "")


def held_while_it_loads(home):
    """Return (digest, note(name), free()) of a program that notes the pid by which it loads, and goes on once it is freed."""
    noted, freed = home.folder / "loads", home.folder / "freed"
    code = (f"import os, pathlib, time\npathlib.Path({str(noted)!r}).write_text(str(os.getpid()))\n"
            f"while not os.path.exists({str(freed)!r}): time.sleep(0.01)")
    def pid():
        vessels.until(lambda: noted.exists() and noted.read_text(), home.running.lines)
        return int(noted.read_text())
    return home.program(before("awaited_turn", code.replace("\n", "\n        "))), pid, freed.touch


def is_gone(pid):
    """Whether a process has ended; one that nobody has asked about is."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_the_program_that_is_next_loads_itself_while_the_one_before_answers(home):
    home.start()
    for back in (home.own.sha256, home.program("# between")):            # once by the daemon, once below its supervisor
        if back != home.own.sha256:
            home.order(back, back=home.marker()["current"]["sha256"])
            home.await_serving(back)
        (home.folder / "loads").unlink(missing_ok=True)
        (home.folder / "freed").unlink(missing_ok=True)
        other, pid, free = held_while_it_loads(home)
        home.order(other, back=back)
        loading = pid()
        assert home.put("n", 1)["status"] == "OK" and home.marker()["phase"] == "serving"
        free()
        home.await_serving(other)
        assert int(pathlib.Path(f"{home.image}.endpoint").read_text().split()[1]) == loading
        assert not {"loaded", "runs"} & home.marker().keys()
    assert home.stop() == 0 and is_gone(loading) and home.faults() == []


def test_who_is_told_to_stop_while_the_next_program_loads_stops_and_hands_nothing_over(home):
    home.start()
    home.put("n", 1)
    other, pid, free = held_while_it_loads(home)
    home.order(other)
    loading = pid()
    home.running.process.terminate()
    assert home.running.process.wait(vessels.WAIT_S) == 0 and home.marker()["phase"] == "serving"
    free()
    vessels.until(lambda: is_gone(loading))
    home.start()
    assert home.await_serving(home.own.sha256) and home.value("n") == 1
    assert home.stop() == 0 and home.faults() == []


def test_a_kill_while_the_next_program_loads_leaves_the_one_before_and_nothing_else(home):
    home.start()
    home.put("n", 1)
    other, pid, free = held_while_it_loads(home)
    home.order(other)
    loading = pid()
    home.running.process.kill()
    home.running.process.wait(vessels.WAIT_S)
    free()
    vessels.until(lambda: is_gone(loading))
    home.start()
    assert home.await_serving(home.own.sha256) and home.value("n") == 1
    assert home.stop() == 0 and home.faults() == []


def test_a_program_from_before_that_waits_for_no_turn_is_started_at_its_turn(home):
    home.start()
    home.put("n", 1)
    source, home.source = home.source, home.source.replace(f'"{batos.AWAIT_TURN}"', '"--of-another-time"')
    older = home.program()
    home.source = source
    home.order(older)
    home.await_serving(older)
    assert home.value("n") == 1
    home.order(home.own.sha256, back=older)              # which itself loads nothing ahead that it does not know
    home.await_serving(home.own.sha256)
    assert home.value("n") == 1 and home.stop() == 0 and home.faults() == []


CLIENTS = 8


class Load:
    """Clients that change and read without a pause, and send what has a key again until it is acknowledged."""

    def __init__(self, home):
        self.home, self.end = home, threading.Event()
        self.acknowledged = [[] for _ in range(CLIENTS)]     # (key, value) of each, in its order
        self.gaps = {"changes": 0.0, "reads": 0.0}           # the longest between two answers of one client
        self.faults = []
        works = [functools.partial(self._change, number) for number in range(CLIENTS)] + [self._read]
        self.threads = [threading.Thread(target=self._work, args=(work,)) for work in works]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.end.set()
        for thread in self.threads:
            thread.join(vessels.WAIT_S)

    def _work(self, work):
        try:
            work()
        except BaseException as error:                       # told by the test
            self.faults.append(repr(error))

    def _asked(self, kind, request):
        """Yield after each answer to what request() gives, sent again until there is one; notes the longest gap."""
        client, last_s = None, time.monotonic()
        while not self.end.is_set():
            fields = request()
            reply = None
            while reply is None:
                try:
                    client = client or batos.Client(self.home.endpoint(), 10.0)
                    reply = client.request(fields)
                except (batos.NoReply, batos.ShuttingDown, batos.Busy):
                    assert time.monotonic() < last_s + vessels.WAIT_S, "nobody answers any more"
                    if client:
                        client.close()
                    client = None
                    time.sleep(0.01)
            now_s = time.monotonic()
            self.gaps[kind], last_s = max(self.gaps[kind], now_s - last_s), now_s
            yield fields, reply
        if client:
            client.close()

    def _change(self, number):
        values = itertools.count(1)

        def request():
            return {"command": "send_message", "target": "genesis_obj", "selector": "setSlot_value_",
                    "args": [f"n{number}", next(values)], "idempotency_key": batos.uuid7()}
        for fields, _ in self._asked("changes", request):
            self.acknowledged[number].append((fields["idempotency_key"], fields["args"][1]))

    def _read(self):
        for _ in self._asked("reads", lambda: {"command": "inspect", "target": "genesis_obj.name"}):
            time.sleep(0.002)

    def count(self):
        return sum(map(len, self.acknowledged))


def upgrades_under_load(home, times, between):
    """Go over to another program and back while clients change and read, so much between; nothing is lost or doubled."""
    home.start()
    other, own, begun_s = home.program("# another"), home.own.sha256, time.monotonic()
    with Load(home) as load:
        for serving, following in itertools.islice(itertools.cycle([(own, other), (other, own)]), times):
            before = load.count()
            home.order(following, back=serving)
            home.await_serving(following)
            vessels.until(lambda wanted=before + between: load.count() >= wanted or load.faults)
    seconds = time.monotonic() - begun_s
    assert load.faults == []
    last = [rows[-1][1] for rows in load.acknowledged]
    assert [home.value(f"n{number}") for number in range(CLIENTS)] == last
    assert home.stop() == 0 and home.faults() == []
    stored = keys_in_pages(home.image)
    keys = [key for rows in load.acknowledged for key, _ in rows]
    lost, doubled = [key for key in keys if not stored[key]], [key for key in keys if stored[key] > 1]
    print(f"\n{times} upgrades under {CLIENTS} clients: {len(keys):,} changes ({len(keys) / seconds:.0f}/s), {len(lost)} lost, "
          f"{len(doubled)} doubled; longest gap {load.gaps['reads']:.2f} s for reads, {load.gaps['changes']:.2f} s for changes")
    assert lost == [] and doubled == [] and len(keys) == len(set(keys))


def test_two_upgrades_under_load_lose_nothing_and_double_nothing(home):
    upgrades_under_load(home, 2, 4 * CLIENTS)


@pytest.mark.campaign
def test_twenty_upgrades_under_load_lose_nothing_and_double_nothing(home):
    upgrades_under_load(home, 20, 100 * CLIENTS)
