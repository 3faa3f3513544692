"""A year with a clock that runs fast: it asks, learns, forgets, writes methods, packs, backs up, restarts and meets a full disk.

    python tests/durability/months.py [--days 365] [--minutes 120] [--seed N] [--folder FOLDER]

What a daemon takes of the machine must not grow without end: memory, threads, open files, processes under it, and the disk,
with the memory's documents kept at about as many. The children of methods that rest, 16 at most and 30 s each, come and go
with who sent messages last: they are counted by themselves, and what they hold is left out of the rest. What is asked is
remembered until somebody forgets it, here the talk of a week after two months; each version of a method is kept, and by these
the image grows. The last half of the samples is looked at: a line through them may rise by 5 %. A folder that was used before
is gone on with. The table stands in months.md beside this file.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import random
import resource
import statistics
import sys
import tempfile
import time
import typing

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]
import conftest
import forks
from durability import load as loads

import batos

HERE = pathlib.Path(__file__).resolve().parent
DAY_S = 86_400
TALK_WEEKS = 9                                          # that what was asked is kept
DOCUMENTS = 150                                          # about so many are remembered at a time
SAMPLES = 40                                             # of a run
GROWTH = 0.05                                            # of the line through the last half of the samples, end against begin
CHILD_DESCRIPTORS = 3                                    # of a child of methods: its handle, its memory's figures, its socket
FIGURES = "memory_mb", "threads", "descriptors", "processes", "disk_mb"
LANE_CHILDREN = 8                                        # that may be at work while a sample is taken
SENT_MOST = 20                                          # times, where a day passes on the way each time
SLACK = {"memory_mb": 10.0, "threads": 2, "descriptors": 5, "processes": 2, "disk_mb": 1.0}        # less is noise
TOPICS = "valve", "pump", "mast", "lantern", "gauge", "bellows", "rudder", "anchor", "boiler", "compass"
OPTIONS = {"log_entries_max": 1000, "missions_kept": 500, "backup_keep_days": 30.0, "heartbeat_s": 20.0}


class Clock(typing.NamedTuple):
    """A clock that shows `shown_s` at `real_s`, unix times in seconds, and from then on passes `rate` times as fast."""

    rate: float
    real_s: float
    shown_s: float

    def now_s(self):
        return self.shown_s + (time.time() - self.real_s) * self.rate


class World(typing.NamedTuple):
    """A daemon that ages, a client of it, and chance for one day."""

    clock: Clock
    daemon: conftest.DaemonProcess
    client: batos.Client
    rng: random.Random
    folder: pathlib.Path

    def call(self, command, **fields):
        return self.client.call(command, **fields)

    def send(self, selector, *args):
        for left in reversed(range(SENT_MOST)):
            try:
                return self.call("send_message", target="genesis_obj", selector=selector, args=list(args),
                                 idempotency_key=batos.uuid7(int(self.clock.now_s() * 1000)))["result"]
            except batos.KeyExpired:                     # on a busy machine a day may pass on the way: it was not done
                if not left:
                    raise


def names(world):
    """Return the documents that are remembered of what was learnt here, the oldest first."""
    rows = world.call("list_documents", limit=1000)["results"]
    return sorted(row["doc_id"] for row in rows if row["doc_id"].startswith("note "))


def learn(world, day):
    """Learn some notes, and have some that are known changed."""
    known = names(world)
    for number in range(world.rng.randrange(2, 8)):
        world.call("index_document", doc_id=f"note {day:05} {number}", text=note(world.rng, day, number))
    for doc_id in world.rng.sample(known, min(2, len(known))):
        world.call("index_document", doc_id=doc_id, text=note(world.rng, day, world.rng.randrange(99)))


def note(rng, day, number):
    """Return the text of a note."""
    lines = [f"The {rng.choice(TOPICS)} number {rng.randrange(999)} is turned until the {rng.choice(TOPICS)} stands at "
             f"{rng.randrange(99)}." for _ in range(rng.randrange(3, 12))]
    return f"# Day {day}, {number}\n\n" + " ".join(lines)


def forget(world, day):
    """Take out the oldest documents, and on some days leave no byte of one."""
    known = names(world)
    for doc_id in known[:max(0, len(known) - DOCUMENTS)]:
        world.call("unindex_document", doc_id=doc_id)
    if known and not day % 7:
        world.call("forget", doc_id=known[0])


def ask(world, day):
    """Have some questions thought about; each ends."""
    for _ in range(world.rng.randrange(1, 4)):
        question = f"Where does the {world.rng.choice(TOPICS)} number {world.rng.randrange(999)} stand?"
        brief = {"type": "direct_synthesis", "selector": "answer_", "args": [question], "conversation": talk_of(day // 7)}
        told = world.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)["result"]
        assert told["state"] in ("COMPLETE", "FAILED"), told


def talk_of(week):
    """Return the name of the conversation of a week."""
    return f"week {week}"


def forget_talk(world, day):
    """Once a week: leave no byte of what was asked two months ago."""
    if day % 7 == 3 and day // 7 >= TALK_WEEKS:
        told = world.call("forget", conversation=talk_of(day // 7 - TALK_WEEKS))["result"]
        assert told["documents"], told


def write(world, day):
    """Set slots, undo one of it, look at what was."""
    for _ in range(world.rng.randrange(5, 30)):
        world.send("setSlot_value_", f"s{world.rng.randrange(50)}", [day, "x" * world.rng.randrange(60)])
    change = world.call("send_message", target="genesis_obj", selector="setSlot_value_", args=["mood", day])["change"]
    world.call("undo", change=change)
    world.call("history", target="genesis_obj", slot="s1", limit=3)


def write_methods(world, day):
    """Give an object a method or a new version of one, and send it."""
    factor, name = world.rng.randrange(9), f"times_{world.rng.randrange(6)}"
    source = f"def {name}(self, x):\n    return {factor} * x\n"
    world.call("create_method", target_oid="genesis_obj", method_name=name, method_code=source)
    assert world.send(name, 7) == 7 * factor


def back_up(world, day):
    """Pack and back up by hand, beside what the daemon does of itself each day."""
    if not day % 10:
        world.call("pack")
        world.call("backup", folder=str(world.folder / "by hand"))


@contextlib.contextmanager
def full_disk(process, path):
    """Have no file of a process grow while inside, as on a full disk."""
    limit = os.path.getsize(path) + 100
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)


def fill_the_disk(world, day):
    """Once a month: reads are served, writes answer by name, and all goes on when there is room."""
    if day % 30 != 15:
        return
    with full_disk(world.daemon.process, world.folder / "live_image.fs"):
        for _ in range(3):
            try:
                world.send("setSlot_value_", "during", world.rng.randbytes(20_000))
                raise AssertionError("a write on a full disk was acknowledged")
            except batos.ImageError as error:
                assert "nothing was stored" in str(error), error
        assert world.call("health")["status"] == "OK" and "s1" in world.call("inspect", target="genesis_obj")["result"]["slots"]
    world.send("setSlot_value_", "after", day)


EACH_DAY = learn, forget, ask, forget_talk, write, write_methods, back_up, fill_the_disk


def figures(daemon, folder, day):
    """Return what must not grow: what the process and those under it take, and the image's files."""
    status = pathlib.Path(f"/proc/{daemon.process.pid}/status").read_text()
    told = dict(line.split(":", 1) for line in status.splitlines())
    image = [path for path in folder.rglob("live_image.fs*") if path.is_file() and ".log" not in path.name]
    image += [path for path in (folder / "live_image.fs.blob").rglob("*") if path.is_file()]
    descriptors, children = opened(daemon.process.pid)
    return {"day": day, "memory_mb": round(int(told["VmRSS"].split()[0]) / 1024, 1), "threads": int(told["Threads"]),
            "descriptors": descriptors - CHILD_DESCRIPTORS * children, "children": children,
            "processes": len(below(daemon.process.pid)) - children,
            "disk_mb": round(sum(path.stat().st_size for path in set(image)) / 1e6, 2)}


def opened(pid):
    """Return how many files a process has open, and how many children of methods rest or work for it, by their handles."""
    links = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return len(links), sum("pidfd" in link for link in links)


def below(pid):
    """Return the processes under one."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            found += map(int, pathlib.Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    deeper = []
    for child in found:
        with contextlib.suppress(OSError):
            deeper += below(child)
    return found + deeper


def rises(samples):
    """Return {figure: (how much a line through the last half of the samples rises, what it starts at)}."""
    late = samples[min(len(samples) // 2, len(samples) - 2):]
    lines = {name: statistics.linear_regression(range(len(late)), [row[name] for row in late]) for name in FIGURES}
    return {name: (slope * (len(late) - 1), start) for name, (slope, start) in lines.items()}


def growths(samples):
    """Return {figure: the share by which a line through the last half of the samples rises}; less than SLACK is 0."""
    return {name: round(rise / start, 3) if abs(rise) >= SLACK[name] else 0.0 for name, (rise, start) in rises(samples).items()}


def started(folder, clock):
    """Start a daemon that ages."""
    start = lambda words, *rest: forks.start(["ageing", json.dumps(clock._asdict()), *words], *rest)
    return conftest.DaemonProcess(folder, *{**OPTIONS, "backup_dir": str(folder / "b")}.items(), core=0.0, start=start)


def live(world, day):
    """Have one day pass in a world, its chores in an order of chance."""
    for chore in world.rng.sample(EACH_DAY, len(EACH_DAY)):
        chore(world, day)


def run_until(folder, days, clock, told, tell):
    """Go on with a run from what is `told` of it; samples are added to it, and it is kept in FOLDER/told.json."""
    daemon, every, first = started(folder, clock), max(1, days // SAMPLES), told["day"]
    try:
        for day in range(first, days):
            time.sleep(max(0.0, clock.real_s + (day - first) * DAY_S / clock.rate - time.time()))
            with batos.Client(daemon.endpoint, 120) as client:
                live(World(clock, daemon, client, random.Random(f"{told['seed']} {day}"), folder), day)
            if day % every == every - 1:
                told["samples"].append(figures(daemon, folder, day))
                tell(json.dumps(told["samples"][-1]))
            if day % 30 == 29:                           # a month ends with a restart, each other one with a kill
                daemon.stop(kill=bool(day // 30 % 2))
                daemon = started(folder, clock)
            told.update(day=day + 1, shown_s=clock.now_s())
            (folder / "told.json").write_text(json.dumps(told))
    finally:
        status = daemon.stop()
    return status


def campaign(folder, days, minutes, seed, tell=lambda line: None):
    """Return {"days", "seed", "samples", "growth", "problems"} of a run that may be gone on with in the same folder."""
    folder, kept = pathlib.Path(folder), pathlib.Path(folder, "told.json")
    told = json.loads(kept.read_text()) if kept.exists() else {"day": 0, "seed": seed, "samples": [], "shown_s": time.time()}
    clock = Clock(days * DAY_S / (minutes * 60), time.time(), told["shown_s"])
    status = run_until(folder, days, clock, told, tell)
    problems = [] if status == 0 else ["the daemon did not stop well"]
    problems += batos.check_image(str(folder / "live_image.fs"), deep=True)["faults"]
    growth = growths(told["samples"])
    if max(row["children"] for row in told["samples"]) > batos._RESTING_MOST + LANE_CHILDREN:
        problems.append("more children of methods rest than may")
    problems += [f"{name} grew by {share:.1%} in the last half" for name, share in growth.items() if share > GROWTH]
    return {"days": days, "minutes": minutes, "seed": seed, "samples": told["samples"], "growth": growth, "problems": problems}


def table(result, commit):
    """Return the run as Markdown."""
    lines = [f"A run of `tests/durability/months.py`: {result['days']} days in {result['minutes']} minutes, seed "
             f"{result['seed']}, commit {commit}. Problems: {len(result['problems'])}.", "",
             "| day | " + " | ".join(name.replace("_", " ") for name in FIGURES) + " | children |",
             "|---" * (len(FIGURES) + 2) + "|"]
    lines += ["| " + " | ".join(f"{row[name]:g}" for name in ("day", *FIGURES, "children")) + " |" for row in result["samples"]]
    shares = {name: rise / start if start else 0.0 for name, (rise, start) in rises(result["samples"]).items()}
    for what, row in (("the line through the last half rises by", shares), ("of it more than noise", result["growth"])):
        lines.append(f"| {what} | " + " | ".join(f"{row[name]:.1%}" for name in FIGURES) + " | |")
    lines.append("")
    return "\n".join([*lines, *(f"- {problem}" for problem in result["problems"])]).rstrip() + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", default=os.path.join(tempfile.gettempdir(), "batos-months"))
    args = parser.parse_args()
    os.makedirs(args.folder, exist_ok=True)
    found = campaign(args.folder, args.days, args.minutes, args.seed, functools.partial(print, flush=True))
    failed = loads.note_report("months", found)
    commit = json.loads(HERE.joinpath("report.json").read_text())["months"]["commit"]
    HERE.joinpath("months.md").write_text(table(found, commit))
    raise SystemExit(failed)
