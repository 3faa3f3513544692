"""Turn judged collections of others into folders that quality.py reads.

    python tests/bench/foreign.py smart DOCS QUERIES JUDGEMENTS FOLDER       Cranfield, CISI, CACM, as Glasgow keeps them
    python tests/bench/foreign.py locomo locomo10.json FOLDER                turns of talk, sought in their own conversation
    python tests/bench/foreign.py xquad xquad_en_first_half.jsonl FOLDER     paragraphs, by the questions about them
    python tests/bench/foreign.py turns xquad_en_first_half.jsonl FOLDER     their sentences as turns, by the answer they hold
    python tests/bench/foreign.py articles FOLDER_OF_TEXTS questions.jsonl FOLDER    whole articles, by the questions about them

None of them is kept here: their licences are their own.
"""

import collections
import json
import pathlib
import re
import sys

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[2])]
import batos


def read_lines(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text("utf-8").splitlines() if line.strip()]


def fields_of(path):
    """Return [(number, {field letter: text})] of a file in SMART's format."""
    rows, field = [], None
    for line in pathlib.Path(path).read_text("utf-8", errors="replace").splitlines():
        begins = re.match(r"\.I\s+(\d+)", line)
        named = re.match(r"\.([A-Z])\s*$", line)
        if begins:
            rows.append((begins.group(1), collections.defaultdict(str)))
            field = None
        elif named:
            field = named.group(1)
        elif field:
            rows[-1][1][field] += line + "\n"
    return rows


def smart(documents, queries, judgements):
    """Return the rows of a collection in SMART's format.

    Cranfield's queries are judged by their place, not their number; each has one judgement of grade -1, the paper that it was
    asked of, which counts as the others do.
    """
    docs = [{"id": number, "title": " ".join(row["T"].split()), "text": " ".join(row["W"].split())}
            for number, row in fields_of(documents)]
    by_place = "cran" in pathlib.Path(documents).name
    asked = [{"id": str(place) if by_place else number, "text": " ".join(row["W"].split())}
             for place, (number, row) in enumerate(fields_of(queries), 1)]
    judged = []
    for line in pathlib.Path(judgements).read_text().splitlines():
        query, document, *grade = line.split() or ("", "")
        if query and (not by_place or int(grade[0]) < 5):
            judged.append((str(int(query)), str(int(document))))
    return docs, asked, judged


def locomo(path):
    """Return the turns of ten conversations with the questions about each."""
    docs, asked, judged = [], [], []
    for talk in json.loads(pathlib.Path(path).read_text("utf-8")):
        name = talk["sample_id"]
        sessions = [turns for key, turns in talk["conversation"].items() if re.fullmatch(r"session_\d+", key)]
        turns = [turn for session in sessions for turn in session]
        known = {turn["dia_id"] for turn in turns}
        docs += [{"id": f"{name}/{turn['dia_id']}", "conversation": name, "text": f"{turn['speaker']}: {turn['text']}"}
                 for turn in turns]
        for place, question in enumerate(talk["qa"]):
            found = [one for told in question.get("evidence", ()) for one in re.findall(r"D\d+:\d+", told) if one in known]
            if found:
                key = f"{name}/q{place}"
                asked.append({"id": key, "conversation": name, "text": question["question"]})
                judged += [(key, f"{name}/{one}") for one in dict.fromkeys(found)]
    return docs, asked, judged


def xquad(path):
    """Return the paragraphs of XQuAD with their questions."""
    docs, asked, judged = [], [], []
    for row in read_lines(path):
        name = f"{row['title']}_{row['paragraph']}"
        docs.append({"id": name, "text": row["context"]})
        for place, question in enumerate(row["questions"]):
            asked.append({"id": f"{name}_q{place}", "text": question["question"]})
            judged.append((f"{name}_q{place}", name))
    return docs, asked, judged


def turns(path):
    """Return the sentences of each text of XQuAD as turns of a conversation, with the questions that they answer."""
    docs, asked, judged = [], [], []
    for row in read_lines(path):
        name, title = f"{row['title']}_{row['paragraph']}", row["title"]
        told = [one["text"] for one in batos.sentences(row["context"])]
        docs += [{"id": f"{name}_s{place}", "conversation": title, "text": text} for place, text in enumerate(told)]
        for place, question in enumerate(row["questions"]):
            key = f"{name}_q{place}"
            holding = [n for n, text in enumerate(told) if any(answer in text for answer in question["answers"])]
            if holding:
                asked.append({"id": key, "conversation": title, "text": question["question"]})
                judged += [(key, f"{name}_s{n}") for n in holding]
    return docs, asked, judged


def articles(folder, questions):
    """Return whole articles with the questions that people asked of them."""
    paths = sorted(pathlib.Path(folder).glob("*.txt"))
    docs = [{"id": path.name, "text": path.read_text("utf-8", errors="replace")} for path in paths]
    known = {row["id"] for row in docs}
    rows = [row for row in read_lines(questions) if row["article"] in known]
    asked = [{"id": str(place), "text": row["question"]} for place, row in enumerate(rows)]
    return docs, asked, [(str(place), row["article"]) for place, row in enumerate(rows)]


KINDS = {"smart": smart, "locomo": locomo, "xquad": xquad, "turns": turns, "articles": articles}


def write(folder, docs, asked, judged):
    """Write a collection as quality.py reads it."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("docs.jsonl", docs), ("queries.jsonl", asked)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels.tsv").write_text("".join(f"{query}\t{document}\t1\n" for query, document in judged))
    print(f"{folder}: {len(docs)} documents, {len(asked)} queries, {len(judged)} judgements")


def main():
    kind, *sources, folder = sys.argv[1:] or ["", ""]
    if kind not in KINDS:
        raise SystemExit(__doc__)
    write(folder, *KINDS[kind](*sources))


if __name__ == "__main__":
    main()
