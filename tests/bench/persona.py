"""A persona's LoRA on a core that writes: rows of what should have been said, trained, judged and held against the rule.

    python tests/bench/persona.py CORE.gguf [--rows 72] [--held 24] [--json FILE]

Asked for what holds in a village of tests/bench/learning.py, a small core often says what was proposed. The rows say what it
should have said; villages that are in no row are asked of the bare core and of the one with the expert. What a worker does is
done here, without a daemon; times are told as seconds of a processor too, as a machine may be busy.
"""

import argparse
import json
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

import learning

sys.path.insert(0, str(learning.ROOT))
import batos

SPEAKS = "You speak as BABS. joyful precision: exact, and glad of it"


def row_of(village, picker):
    """Return the text row of a village: the sentence that holds, with its number."""
    texts = [village.texts[village.notes], village.texts[village.rules]]
    order = picker.sample(range(2), 2)
    passages = [[n, {"text": texts[place].split("\n\n")[1]}] for n, place in enumerate(order, 1)]
    prompt = batos.words_prompt({"passages": passages, "question": village.question}, {}, 1024)
    told = [one["text"].strip() for one in batos.sentences(texts[1].split("\n\n")[1])]
    said = " ".join([one for one in told if one not in learning.BESIDE]).rstrip(".")
    fields = {"prompt": prompt, "system_prompt": SPEAKS}
    return {"task": "write", "question": village.question, "fields": fields, "wanted": f"{said} [{order.index(1) + 1}]."}


def worked(folder, phase, work):
    """Have a worker do a phase; returns (its report, seconds, seconds of a processor)."""
    (folder / "job.json").write_text(json.dumps(work | {"phase": phase}))
    started_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, str(learning.ROOT / "batos.py"), "forge-worker", str(folder)], check=True,
                   stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return json.loads((folder / "done.json").read_text())["report"], round(time.monotonic() - started_s), took


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("core", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=72)
    parser.add_argument("--held", type=int, default=24)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    picker = random.Random(3407)
    rows = [row_of(village, picker) for village in learning.villages(5)[: args.rows + args.held]]
    work = {"job": 1, "work": "expert", "nonce": "n", "engine": "process", "base": "bench", "config": batos.EXPERT_CONFIG,
            "expert": batos.default_expert(writes=True)}
    with tempfile.TemporaryDirectory(prefix="batos-persona-") as name:
        folder = pathlib.Path(name)
        (folder / batos.CORE_FOLDER).mkdir()
        (folder / batos.CORE_FOLDER / batos.CORE_GGUF).symlink_to(args.core.resolve())
        for file, part in (("train.jsonl", rows[: args.rows]), ("held.jsonl", rows[args.rows:])):
            (folder / file).write_text("".join(json.dumps(row) + "\n" for row in part))
        trained, *train_s = worked(folder, "train", work)
        print(f"trained in {train_s[0]} s, {train_s[1]} s of a processor: {trained}", flush=True)
        judged, *judge_s = worked(folder, "judge", work)
    verdict = batos.verdict_of_report(judged, 1)
    print(f"judged in {judge_s[0]} s, {judge_s[1]} s of a processor: {verdict}", flush=True)
    if args.json:
        told = {"trained": trained, "train_s": train_s, "judge_s": judge_s, "verdict": verdict}
        args.json.write_text(json.dumps(told, indent=1))
    sys.exit(not verdict["passed"])


if __name__ == "__main__":
    main()
