"""The questions of questions.json, asked of a daemon that has learnt a folder: are the right sections found, are answers cited?

    python tests/bench/questions.py FOLDER [--answers]

FOLDER holds the documents that questions.json names. Each question is searched and asked; of each answer every citation is
opened: the quoted text must stand in that file at those lines. The latest report is questions.md.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]
import conftest

import batos


def is_right(row, right):
    """Whether a result is of a right file and, where one is named, under a right heading."""
    chunk = row["chunk"]
    stem, told = chunk["doc_id"].partition(".")[0], " › ".join([chunk["title"], *chunk["headings"]])
    return any(stem.endswith(name) and heading in told for name, heading in right)


def rank_of(rows, right):
    return next((place for place, row in enumerate(rows, 1) if is_right(row, right)), None)


def opens(folder, item):
    """Whether the text of a piece of evidence stands in its file, at its lines."""
    lines = (folder / item["doc_id"]).read_text("utf-8").splitlines()
    first, last = item["lines"]
    return item["text"].splitlines() == [] or item["text"] in "\n".join(lines[first - 1:last])


def wait_for_vectors(client):
    while (told := client.call("health")["result"]["embedder"])["state"] == "loading" or told["waiting"]:
        print(f"\r{told['waiting']:,} chunks wait for their vectors", end="\x1b[K", file=sys.stderr, flush=True)
        time.sleep(2)
    return told["state"]


def ask(client, question):
    start_s = time.perf_counter()
    brief = {"type": "direct_synthesis", "selector": "answer_", "args": [question]}
    report = client.call("initiate_cognitive_cycle", 300, mission_brief=brief, wait=True)["result"]
    return report, time.perf_counter() - start_s


def main():
    """Learn, ask, print a table and the answers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--answers", action="store_true", help="print the answers too")
    args = parser.parse_args()
    questions = json.loads((HERE / "questions.json").read_text())["questions"]
    with tempfile.TemporaryDirectory() as place:
        daemon = conftest.DaemonProcess(place, "--embedder", "auto", core="auto", start=conftest.start_anew)
        try:
            report(daemon.endpoint, args.folder.resolve(), questions, args.answers)
        finally:
            daemon.stop()


def report(endpoint, folder, questions, with_answers):
    start_s, told = time.perf_counter(), []
    learnt = subprocess.run([sys.executable, batos.__file__, "learn", "--endpoint", endpoint, "."], cwd=folder, text=True,
                          capture_output=True, check=True).stdout.splitlines()[-1]
    learnt_s = time.perf_counter() - start_s
    with batos.Client(endpoint, timeout_s=300) as client:
        state = wait_for_vectors(client)
        print(f"{learnt}; embedder {state} {time.perf_counter() - start_s - learnt_s:.0f} s later\n")
        print("| question | right section found | relevant | cited right | citations that open | s |\n|---|---|---|---|---|---|")
        counts = {"found": 0, "right": 0, "opened": 0, "cited": 0}
        for row in questions:
            rows = client.call("search_memory", query=row["question"], max_results=10)["results"]
            place = rank_of(rows, row["right"])
            answer, seconds = ask(client, row["question"])
            evidence = answer.get("evidence", [])
            opened = sum(opens(folder, item) for item in evidence)
            right = any(item["doc_id"].partition(".")[0].endswith(name) for item in evidence for name, _ in row["right"])
            counts["found"] += place is not None and place <= 3
            counts["right"] += right
            counts["opened"] += opened
            counts["cited"] += len(evidence)
            print(f"| {row['question']} | {place or 'not in ten'} | {'yes' if answer.get('relevant') else 'no'} | "
                  f"{'yes' if right else 'no'} | {opened}/{len(evidence)} | {seconds:.1f} |", flush=True)
            if with_answers:
                told.append((row["question"], answer))
        print(f"\n{counts['found']} of {len(questions)} in the top three; {counts['right']} answers cite a right document; "
              f"{counts['opened']} of {counts['cited']} citations open at their lines.")
        for question, answer in told:
            print(f"\n**{question}** {' '.join(answer.get('answer', str(answer)).split())}\n")
            print(*(f"- [{n}] {item['doc_id']}:{item['lines'][0]}" for n, item in enumerate(answer["evidence"], 1)), sep="\n")


if __name__ == "__main__":
    main()
