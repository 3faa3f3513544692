"""kill -9 at random moments, in every phase; then everything acknowledged must be there, once, and the deep check good.

    python tests/durability/kills.py [--kills 500] [--seed N] [--folder FOLDER]

Under load: 6 clients write, 2 learn, 2 ask, one has large documents stored, packs and backs up. A folder that was used
before is gone on with, from the last check: image and what its clients were told were saved there.
"""

import argparse
import os
import pathlib
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]
import conftest
import forks
import newer
from durability import load as loads

import batos

CHECK_EVERY = 25
LARGE = "\n".join(f"# Chapter {n}\n\n" + f"The brass valve of chapter {n} is turned until the needle stands. " * 12
                  for n in range(250))


def chores(endpoint, stop, seed, folder):
    """Have the daemon pack, back up and store a large document, one after the other, until it is gone."""
    rng = random.Random(seed)
    with batos.Client(endpoint, timeout_s=1.0) as client:
        while not stop.is_set():
            command, fields = rng.choice([("pack", {"days": 0.0}), ("backup", {"folder": str(folder / "backups")}),
                                          ("index_document", {"doc_id": "large", "text": f"{rng.random()}\n{LARGE}"})])
            try:
                client.call(command, **fields)
            except batos.BatosError:
                time.sleep(0.05)


def under_load(folder, kills, seed, tell=lambda line: None):
    """Kill a daemon under mixed load so many times. Returns {"kills", "acknowledged", "problems"}."""
    folder = pathlib.Path(folder)
    image, (done, told) = str(folder / "live_image.fs"), taken_up(folder)
    load, rng = loads.Load(), random.Random(f"{seed} {done}")
    vars(load).update(told)
    while done < kills:
        one_kill(folder, load, rng)
        if rng.random() < 0.3:
            kill_amid_start(folder, rng.uniform(0.0, 0.4))
        done += 1
        if done % CHECK_EVERY == 0 or done == kills:
            check(folder, image, load)
            save(folder, done, {name: vars(load)[name] for name in ("acknowledged", "sent", "values", "open")})
            tell(f"{done} of {kills} kills, {len(load.acknowledged)} acknowledged, none lost")
    return {"kills": done, "acknowledged": len(load.acknowledged), "problems": load.problems}


def one_kill(folder, load, rng):
    """Start, settle what the last kill left open, load, and kill at a random moment."""
    daemon, stop = conftest.DaemonProcess(folder, core=0.02), threading.Event()
    try:
        loads.settle(load, daemon.endpoint)
        threads = load.run(1, daemon.endpoint)
        chore = threading.Thread(target=chores, args=(daemon.endpoint, stop, rng.random(), folder))
        chore.start()
        time.sleep(rng.uniform(0.05, 0.8))
    finally:
        daemon.stop(kill=True)
        stop.set()
    loads.finish([*threads, chore], load)


def save(folder, done, told):
    """Save the image and what its clients were told, for a campaign that is interrupted."""
    saved = folder / "saved"
    shutil.rmtree(saved, ignore_errors=True)
    shutil.copytree(folder, saved, ignore=shutil.ignore_patterns("saved", "*.lock", "*.log*", "*.tail.*"))
    (saved / "told.pickle").write_bytes(pickle.dumps((done, told)))


def taken_up(folder):
    """Return (kills done, what clients were told) of an earlier run, with its image as it was saved; (0, {}) at first."""
    saved = folder / "saved"
    if not (saved / "told.pickle").exists():
        return 0, {}
    for path in folder.iterdir():
        if path != saved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    return pickle.loads((saved / "told.pickle").read_bytes())


def check(folder, image, load):
    """Start, settle, let missions end, stop; then the deep check, every key once, and the newest backup restored."""
    daemon = conftest.DaemonProcess(folder, core=0.0)
    loads.settle(load, daemon.endpoint)
    loads.missions_end(daemon.endpoint, sum(load.sent[key][0] == "initiate_cognitive_cycle" for key in load.acknowledged))
    assert daemon.stop() == 0
    assert batos.check_image(image, deep=True)["faults"] == []
    counts = loads.keys_in_pages(image)
    assert {key: counts[key] for key in load.acknowledged} == dict.fromkeys(load.acknowledged, 1)
    if (folder / "backups").exists() and batos.read_backups(folder / "backups")[0]:
        assert batos.restore_image(folder / "backups", folder / "restored.fs")["faults"] == []
        for left in folder.glob("restored.fs*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    packed = batos.Image.open(image)                     # else it grows with each kill, and the campaign gets slow
    packed.pack(time.time())
    packed.close()


def command_line(folder, *words, program="batos"):
    return forks.start([program, *words], folder, subprocess.DEVNULL, subprocess.DEVNULL)


def killed_after(process, seconds):
    """Kill a process after some seconds; returns whether it was still at work."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(60)
        return True
    return False


def kill_amid_start(folder, seconds, program="batos"):
    words = "--core", "none", "--endpoint", "tcp://127.0.0.1:0"
    return killed_after(command_line(folder, *words, program=program), seconds)


def genesis(folder, kills, seed):
    """Kill the first start, with the embedded core being stored; the next start has everything."""
    rng, problems = random.Random(seed), []
    for number in range(kills):
        one = pathlib.Path(folder, f"genesis{number}")
        one.mkdir()
        killed_after(command_line(one, "--core", "auto", "--endpoint", "tcp://127.0.0.1:0"), rng.uniform(0.0, 0.8))
        daemon = conftest.DaemonProcess(one)
        with batos.Client(daemon.endpoint) as client:
            client.call("send_message", target="genesis_obj", selector="setSlot:value:", args=["n", number])
        daemon.stop()
        problems += batos.check_image(str(one / "live_image.fs"), deep=True)["faults"]
        shutil.rmtree(one)
    return {"kills": kills, "problems": problems}


def upgrade(folder, kills, seed):
    """Kill the upgrade of an old image; the next start finishes it, and what was in there is there."""
    rng, problems = random.Random(seed), []
    for number in range(kills):
        one = pathlib.Path(folder, f"upgrade{number}")
        one.mkdir()
        newer.unpacked("856fea4", one)
        kill_amid_start(one, rng.uniform(0.0, 0.5), "newer")
        daemon = conftest.DaemonProcess(one, program="newer")
        with batos.Client(daemon.endpoint) as client:
            mood = client.call("inspect", target="genesis_obj.mood")["result"]["value"]
            done = client.call("inspect", target="genesis_obj.upgrades")["result"]["value"]
        daemon.stop()
        problems += [f"{mood} {done}"] if (mood, done) != ("curious", newer.ADDED) else []
        with newer.later():
            problems += batos.check_image(str(one / "live_image.fs"), deep=True)["faults"]
        shutil.rmtree(one)
    return {"kills": kills, "problems": problems}


def _image_with_backup(folder):
    where = str(pathlib.Path(folder, "live_image.fs"))
    image = batos.Image.open(where)
    batos.genesis(image, batos.SEED_CORE)
    for n in range(30):
        with batos.writing(image) as root:
            root["genesis_obj"].n = [n, "x" * 100_000]
    batos.make_backup(image, pathlib.Path(folder, "b"))
    image.close()
    return where


def whole_or_none(path):
    """Return the faults of a new image where it has its name; then it is removed, so that another can be made there."""
    if not path.exists():
        return []
    faults = batos.check_image(str(path), deep=True)["faults"]
    shutil.rmtree(f"{path}.blob")
    for end in ("", ".seals", ".index", ".lock"):
        pathlib.Path(f"{path}{end}").unlink(missing_ok=True)
    return faults


def recover(folder, kills, seed):
    """Kill `recover`: the original stands as it was, and the next one, at the same place, has everything."""
    rng, where = random.Random(seed), _image_with_backup(folder)
    before, problems = pathlib.Path(where).read_bytes(), []
    for _ in range(kills):
        killed_after(command_line(folder, "recover", "new.fs", "--image", where), rng.uniform(0.0, 0.5))
        problems += ["the original was changed"] if pathlib.Path(where).read_bytes() != before else []
        problems += whole_or_none(pathlib.Path(folder, "new.fs"))
    report = batos.recover_image(where, pathlib.Path(folder, "new.fs"))
    return {"kills": kills, "problems": problems + report["lost"] + report["faults"]}


def restore(folder, kills, seed):
    """Kill `restore`: what has the image's name is whole, and the next restore there has everything."""
    rng, where, problems = random.Random(seed), _image_with_backup(folder), []
    for _ in range(kills):
        killed_after(command_line(folder, "restore", "b", "--image", "new.fs"), rng.uniform(0.0, 0.4))
        problems += whole_or_none(pathlib.Path(folder, "new.fs"))
    problems += batos.restore_image(pathlib.Path(folder, "b"), pathlib.Path(folder, "new.fs"))["faults"]
    same = pathlib.Path(folder, "new.fs").read_bytes() == pathlib.Path(where).read_bytes()
    return {"kills": kills, "problems": problems + ([] if same else ["the restored image is another"])}


PHASES = {"genesis": genesis, "upgrade": upgrade, "recover": recover, "restore": restore}


def campaign(folder, kills, seed, tell=lambda line: None):
    """Run all: four fifths of the kills under load, the rest in the phases. Returns {phase: report}."""
    share = kills // 20
    reports = {"load": under_load(folder, kills - share * len(PHASES), seed, tell)}
    for name, run in PHASES.items():
        with tempfile.TemporaryDirectory(prefix=f"kills-{name}-") as one:
            reports[name] = run(one, share, seed)
        tell(f"{name}: {reports[name]}")
    return reports


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", default=os.path.join(tempfile.gettempdir(), "batos-kills"))
    args = parser.parse_args()
    os.makedirs(args.folder, exist_ok=True)
    found = campaign(args.folder, args.kills, args.seed, lambda line: print(line, flush=True))
    problems = [problem for report in found.values() for problem in report["problems"]]
    raise SystemExit(loads.note_report("kills", {"kills": args.kills, "seed": args.seed, **found, "problems": problems}))
