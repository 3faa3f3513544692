"""Train the reader of BAT OS: which passage answers a question, and which span of it does.

    python seed_core/train_reader.py --minutes 40 --data DIR [--more DIR] [--resume] [--work DIR] [--out DIR] [--threads 1]

It begins with the catalog's embedder (all-MiniLM-L6-v2), whose embeddings stay as they are, and writes into --out
reader.safetensors (eight bits a weight, a scale a row) and its card, reader.json (figures, SHA-256). Checkpoints and the log
go to --work, from where --resume goes on; --start takes the weights of another checkpoint. One processor core suffices. What came
of it, and of which data, stands in README.md beside it.

--data is a folder of articles/, questions.jsonl and xquad_en_first_half.jsonl: questions that people asked of texts. An
article whose name's SHA-256 modulo 5 is 0 is held out, with all its questions; where it is 1, they are left for choosing
thresholds. --more is a folder of what others have published (MORE names the files). The other data are phrasings/answers.txt,
docstrings and topics of Python's standard library, and questions made of sentences by leaving out what they tell. What
does not answer is what our own search finds beside it, and the passage itself without its answering sentence.
"""

from __future__ import annotations

import argparse
import ast
import collections
import functools
import hashlib
import json
import math
import pathlib
import random
import re
import sys
import sysconfig
import time
import typing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import batos

HERE = pathlib.Path(__file__).resolve().parent

WINDOW_WORDS = 70  # of a passage, as the reader is given it
TOKENS_MOST = 160
CANDIDATES = 10  # passages that search offers for a question
GROUP = 4  # passages of a question in one step: what answers, and what does not
GROUPS_A_STEP = 8
RATE, WARM_STEPS = 1e-4, 40
MADE_SHARE = 0.45  # of the minutes in which made questions are mixed in
SPAN_WEIGHT = 0.5


class Passage(typing.NamedTuple):
    """Some sentences of a text that stand together, under the names of what they stand in."""

    heading: str
    sentences: tuple

    @property
    def text(self):
        return " ".join(self.sentences)

    def without(self, n):
        """Return me without the sentence of that number."""
        return Passage(self.heading, self.sentences[:n] + self.sentences[n + 1 :])


class Asked(typing.NamedTuple):
    """A question with a passage that answers it: by the text `answer`, which its sentence `n` holds (None: all of that)."""

    question: str
    passage: Passage
    n: int
    answer: str | None
    others: tuple  # passages that do not answer it


# Texts ########################################################################


# parts of five: for the evaluation alone; for the choice of weights and thresholds
HELD, CHOOSING = 0, 1


def part_of(name):
    """Return which of five parts an article belongs to."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 5


def clean(sentence):
    """Return a sentence as one line."""
    return " ".join(sentence.split())


def passages_of(heading, text):
    """Return the Passages of a text: sentences up to WINDOW_WORDS."""
    told = [clean(row["text"]) for row in batos.sentences(text)]
    told = [one for one in told if len(one.split()) > 3]
    windows, start = [], 0
    while start < len(told):
        end, words = start, 0
        while end < len(told) and (end == start or words + len(told[end].split()) <= WINDOW_WORDS):
            words += len(told[end].split())
            end += 1
        windows.append(Passage(heading, tuple(told[start:end])))
        if end == len(told):
            break
        start = end
    return windows


def plain(text):
    """Return a text as answers are compared: words and figures in lower case."""
    return " ".join(re.findall(r"\w+", text.lower()))


@functools.lru_cache(maxsize=100_000)
def stems_of(sentence):
    return tuple(batos.stems(sentence))


def holds(text, answer):
    """Whether a text holds an answer, word by word."""
    return f" {plain(answer)} " in f" {plain(text)} "


# What search offers ###########################################################


class Offers:
    """The best passages for a question, as our search ranks them: words and meaning, each standardised."""

    def __init__(self, passages, embedder=None):
        import numpy

        self.passages, self.embedder, self.numpy = passages, embedder, numpy
        self.words = [
            collections.Counter(batos.stems(f"{one.heading} {one.text}")) for one in passages
        ]
        counts = collections.Counter(word for words in self.words for word in words)
        self.weights = {word: math.log(1 + len(passages) / count) for word, count in counts.items()}
        self.mean = sum(sum(words.values()) for words in self.words) / max(1, len(self.words))
        self.holders = collections.defaultdict(list)
        for number, words in enumerate(self.words):
            for word in words:
                self.holders[word].append(number)
        self.vectors = (
            embedder.embed([one.text for one in passages]) if embedder is not None else None
        )

    def _by_words(self, question):
        scores = self.numpy.zeros(len(self.passages), dtype="float32")
        for word in batos.words_of(question):
            for number in self.holders.get(word, ()):
                words = self.words[number]
                long = 0.25 + 0.75 * sum(words.values()) / self.mean
                scores[number] += (
                    self.weights[word] * words[word] * 2.2 / (words[word] + 1.2 * long)
                )
        return scores

    def best(self, question, most):
        """Return the numbers of the best passages."""
        score = self.scores(question)
        return [int(number) for number in self.numpy.argsort(-score)[:most]]

    def scores(self, question):
        """Return how well each passage fits a question: words and meaning, or words alone, standardised."""
        words = self._by_words(question)
        words = words / (words.std() or 1)
        if self.vectors is None:
            return words
        near = self.vectors @ self.embedder.query(question)
        return 0.4 * words + 0.6 * near / (near.std() or 1)


# Data #########################################################################


def asked_of_articles(data):
    """Return (rows [{"article", "question", "answers"}], {article: Passages}) of both collections."""
    rows, texts = [], {}
    for path in sorted((data / "articles").glob("*.txt")):
        title = re.sub(r"^S\d+-", "", path.stem).replace("_", " ")
        texts[path.name] = passages_of(title, path.read_text(encoding="utf-8", errors="replace"))
    for line in (data / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        rows.append(json.loads(line))
    for line in (data / "xquad_en_first_half.jsonl").read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        name, title = f"xquad-{told['title']}", told["title"].replace("_", " ")
        texts.setdefault(name, []).extend(passages_of(title, told["context"]))
        rows += [
            {"article": name, "paragraph": told["context"], **each} for each in told["questions"]
        ]
    return rows, texts


def is_yes_or_no(answers):
    """Whether answers begin with yes or no."""
    return any(re.match(r"(?i)\W*(yes|no)\b", answer) for answer in answers)


def places_of(row, passages):
    """Return [(passage's number, sentence's number, answer)]: where the passages of its article hold a row's answer."""
    found = []
    for number, passage in enumerate(passages):
        if "paragraph" in row and passage.sentences[0] not in clean(row["paragraph"]):
            continue
        for n, sentence in enumerate(passage.sentences):
            answer = next(
                (one for one in row["answers"] if plain(one) and holds(sentence, one)), None
            )
            if answer is not None:
                found.append((number, n, answer))
    return found


def likeliest_place(row, passages, places):
    """Return the place whose sentence shares most words with the question, and the share: nobody says where it was read."""
    asked = set(batos.stems(row["question"]))
    shares = [
        len(asked & set(stems_of(passages[number].sentences[n]))) / max(1, len(asked))
        for number, n, _ in places
    ]
    best = max(range(len(places)), key=shares.__getitem__)
    return places[best], shares[best]


def located(row, passages):
    """Return an Asked of a row without others, or None where it is not found who answers it."""
    if is_yes_or_no(row["answers"]):
        places = [
            (number, n, None)
            for number, passage in enumerate(passages)
            for n in range(len(passage.sentences))
        ]
        least = 0.7
    else:
        places, least = places_of(row, passages), 0.3
    if not places:
        return None
    (number, n, answer), share = likeliest_place(row, passages, places)
    return Asked(row["question"], passages[number], n, answer, ()) if share >= least else None


def with_others(asked, offers, answers):
    """Return an Asked with what search finds beside it that holds none of its answers nor its answering sentence."""
    wanted = [asked.passage.sentences[asked.n], *answers]
    found = [offers.passages[number] for number in offers.best(asked.question, CANDIDATES)]
    others = [one for one in found if not any(holds(one.text, each) for each in wanted)]
    return asked._replace(others=tuple(others[:6]))


def from_people(data, parts, embedder=None):
    """Return (the Askeds of the articles of some parts of five; their Offers; their rows)."""
    rows, texts = asked_of_articles(data)
    texts = {name: told for name, told in texts.items() if part_of(name) in parts}
    offers = Offers([one for told in texts.values() for one in told], embedder)
    asked, kept = [], []
    for row in rows:
        one = located(row, texts[row["article"]]) if row["article"] in texts else None
        if one is not None:
            answers = [] if one.answer is None else [each for each in row["answers"] if plain(each)]
            asked.append(with_others(one, offers, answers))
            kept.append(row)
    return asked, offers, kept


def loosened(text):
    """Return a text without the blanks that tokenizing put before its marks."""
    text = re.sub(r" ([,.;:?!)\]%]|'s\b|n't\b)", r"\1", text)
    return re.sub(r"([(\[]) ", r"\1", text)


def of_selqa(path):
    """Yield (heading, text, question, answer, answering sentences) of SelQA: sections of Wikipedia."""
    for row in json.loads(path.read_text(encoding="utf-8")):
        heading = f"{row['article']} > {row['section']}"
        told = [clean(one) for one in row["candidates"]]
        yield heading, " ".join(told), row["question"], None, [told[n] for n in row["answers"]]


def of_qed(path):
    """Yield the same of QED: what people typed, and paragraphs of Wikipedia."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        answers = row["original_nq_answers"]
        if answers and len(answers[0]) == 1:
            answer = loosened(answers[0][0]["string"])
            yield (
                row["title_text"],
                loosened(row["paragraph_text"]),
                row["question_text"],
                answer,
                (),
            )


def of_squad(path):
    """Yield the same of a collection in SQuAD's format."""
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                if asked["answers"] and len(asked["answers"][0]["text"].split()) <= 25:
                    heading = article.get("title", "")
                    yield (
                        heading,
                        paragraph["context"],
                        asked["question"],
                        clean(asked["answers"][0]["text"]),
                        (),
                    )


MORE = {
    "selqa-ass-dev.json": of_selqa,
    "selqa-ass-test.json": of_selqa,
    "qed-dev.jsonlines": of_qed,
    "policyqa-dev.json": of_squad,
    "policyqa-test.json": of_squad,
    "covidqa.json": of_squad,
}
MORE_OF_EACH = 1700  # questions of a file
PLACES_MOST = 3  # what more sentences hold is not answered by one of them


def from_more(folder, picker):
    """Return the Askeds of the collections of MORE that a folder holds."""
    asked = []
    for name, read in MORE.items():
        if folder is not None and (folder / name).is_file():
            rows = list(read(folder / name))
            picker.shuffle(rows)
            asked += _asked_in(rows[:MORE_OF_EACH])
    return asked


def _asked_in(rows):
    windows = {}
    for heading, text, *_ in rows:
        if (heading, text) not in windows:
            windows[heading, text] = passages_of(heading, text)
    offers = Offers(list({one: None for told in windows.values() for one in told}))
    asked = []
    for heading, text, question, answer, sentences in rows:
        told = windows[heading, text]
        wanted = [answer] if answer else list(sentences)
        places = [(one, n) for one in told for n in _holding(one, wanted)]
        if 0 < len({one.sentences[n] for one, n in places}) <= PLACES_MOST:
            passage, n = _likeliest_of(question, places)
            asked.append(with_others(Asked(question, passage, n, answer, ()), offers, wanted))
    return asked


def _holding(passage, wanted):
    """Return the numbers of a passage's sentences that hold one of what is wanted."""
    return [
        n
        for n, sentence in enumerate(passage.sentences)
        if any(holds(sentence, one) for one in wanted)
    ]


def _likeliest_of(question, places):
    """Return the (passage, sentence's number) that shares most words with a question."""
    asked = set(batos.stems(question))
    return max(places, key=lambda place: len(asked & set(stems_of(place[0].sentences[place[1]]))))


def from_phrasings(picker):
    """Return the Askeds of phrasings/answers.txt: a question, the sentence that answers it, others about the same."""
    rows = [
        line.split(" | ")
        for line in (HERE / "phrasings" / "answers.txt").read_text(encoding="utf-8").splitlines()
        if line.count(" | ") >= 2
    ]
    asked = []
    for question, answer, *beside in rows:
        question = question.replace("<", "").replace(">", "")
        strangers = [picker.choice(rows)[1] for _ in range(2)]
        told = [answer, *beside, *strangers]
        picker.shuffle(told)
        passage = Passage("", tuple(told))
        n = told.index(answer)
        foreign = Passage("", tuple(picker.choice(picker.choice(rows)[1:]) for _ in range(4)))
        asked.append(
            Asked(
                question,
                passage,
                n,
                None,
                (passage.without(n), Passage("", tuple(beside)), foreign),
            )
        )
    return asked


DOCSTRING_ASKS = (
    "what does {0} do",
    "how do I {1}",
    "which function is there to {1}?",
    "what is {0} for?",
    "{1}",
)


def docstrings():
    """Yield (module, name, docstring) of the standard library's functions and classes."""
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (
                told := ast.get_docstring(node)
            ):
                yield path.stem, node.name, told


def from_docstrings(picker):
    """Return the Askeds of docstrings that have more than one sentence: their first one answers for what they are."""
    told = [
        (module, name, passages_of(f"{module} > {name}", text))
        for module, name, text in docstrings()
        if not name.startswith("_") and 15 < len(text.split()) < 300
    ]
    told = [row for row in told if row[2]]
    asked = []
    for module, name, passages in told:
        passage = passages[0]
        words = passage.sentences[0].rstrip(".")
        form = picker.choice(DOCSTRING_ASKS)
        question = form.format(name, words[:1].lower() + words[1:])
        near = [row[2][0] for row in picker.sample(told, 3)]
        beside = [row[2][0] for row in told if row[0] == module and row[1] != name]
        if beside:
            near += picker.sample(beside, min(2, len(beside)))
        asked.append(Asked(thinned(question, picker, 0.25), passage, 0, None, tuple(near)))
    return asked


def topics():
    """Return the Passages of the standard library's manual."""
    from pydoc_data import topics as manual

    return [
        one
        for name, text in sorted(manual.topics.items())
        for one in passages_of(name.replace("-", " "), text)
    ]


# fmt: off
TOLD = (                                                 # what a sentence may tell -> how one asks for it
    (re.compile(r"\b(?:in|on|since|by|until) ((?:[A-Z][a-z]+ )?(?:\d{1,2},? )?[12]\d{3})\b"), ("When", "In what year", "when")),
    (re.compile(r"(?<![\w.])(\d[\d,.]*(?: (?:percent|million|billion|%))?)(?![\w])"), ("How many", "How much", "how many")),
    (re.compile(r"\b(?:in|at|near|from) ((?:[A-Z][\w'-]+ ?){1,3})(?<! )"), ("Where", "In which place", "where")),
    (re.compile(r"\bby ((?:[A-Z][\w'.-]+ ?){1,3})(?<! )"), ("Who", "By whom", "who")),
    (re.compile(r"(?<=\w )((?:[A-Z][\w'.-]+ ?){1,4})(?<! )"), ("Who", "What", "Which", "what")),
    (re.compile(r"\bbecause (?:of )?([^,.;]{12,80})"), ("Why", "why")),
    (re.compile(r"\b(?:called|known as|named) ([^,.;()]{4,40})"), ("What is the name of", "what is", "How does one call")),
    (re.compile(r"[\"`“]([^\"`”]{3,40})[\"`”]"), ("What", "Which", "what")),
    (re.compile(r"\b(?:is|are|was|were) ((?:an?|the) [a-z][^,.;()]{6,50})"), ("What", "What kind of thing", "what is")),
)
# fmt: on


def thinned(words, picker, share):
    """Return words without some of them, the order of the rest kept."""
    kept = [word for word in words.split() if picker.random() > share]
    return " ".join(kept) or words


def cloze(sentence, picker):
    """Return (question, answer) by leaving out of a sentence what it tells, or None."""
    found = [(match, asks) for pattern, asks in TOLD for match in pattern.finditer(sentence)]
    if not found:
        return None
    match, asks = picker.choice(found)
    start, end = match.span()
    before, after = sentence[:start], sentence[end:]
    if picker.random() < 0.6:  # its own clause is enough
        before, after = re.split(r"[,;:(] ", before)[-1], re.split(r"[,;:)]", after)[0]
    rest = [after, before] if picker.random() < 0.5 else [before, after]
    words = " ".join(" ".join(rest).split()).rstrip(".")
    if not 3 < len(words.split()) < 25:
        return None
    question = f"{picker.choice(asks)} {thinned(words, picker, 0.2)}"
    return question + picker.choice(("?", "?", "")), match[1].strip()


def made(passages, picker, most):
    """Return Askeds made of passages, without others but themselves and their neighbours."""
    asked = []
    while len(asked) < most:
        at = picker.randrange(len(passages))
        passage = passages[at]
        n = picker.randrange(len(passage.sentences))
        told = cloze(passage.sentences[n], picker) if len(passage.sentences) > 1 else None
        if told is None:
            continue
        question, answer = told
        near = passages[max(0, at - 3) : at] + passages[at + 1 : at + 4]
        others = [one for one in near if passage.sentences[n] not in one.sentences]
        asked.append(Asked(question, passage, n, answer, tuple(others)))
    return asked


# The model ####################################################################


def encoded(tokenizer, pairs):
    """Return the tokens of (question, passage) pairs, with the characters of the passage that each stands for."""
    questions = [question for question, _ in pairs]
    texts = [batos.reader_text(passage.heading, passage.text) for _, passage in pairs]
    return tokenizer(
        questions,
        texts,
        truncation="longest_first",
        max_length=TOKENS_MOST,
        padding=True,
        return_offsets_mapping=True,
        return_tensors="pt",
    )


def span_masks(tokens, row, asked):
    """Return (start, end) masks over the tokens of a row: where the answer may begin and end. None where it is cut off."""
    import torch

    text = batos.reader_text(asked.passage.heading, asked.passage.text)
    first = (
        len(text)
        - len(asked.passage.text)
        + sum(len(one) + 1 for one in asked.passage.sentences[: asked.n])
    )
    sentence = asked.passage.sentences[asked.n]
    places = [(first, first + len(sentence))]
    exact = asked.answer is not None
    if exact:
        places = [
            (first + found.start(), first + found.end())
            for found in re.finditer(re.escape(asked.answer), sentence, re.IGNORECASE)
        ] or places
        exact = places[0][1] - places[0][0] < len(sentence)
    offsets = tokens["offset_mapping"][row].tolist()
    second = tokens["token_type_ids"][row].tolist()
    start, end = (torch.zeros(len(offsets), dtype=torch.bool) for _ in range(2))
    for at, (left, right) in enumerate(offsets):
        if not second[at] or left == right:
            continue
        for opens, closes in places:
            inside = opens <= left and right <= closes
            start[at] |= inside and (not exact or left == opens)
            end[at] |= inside and (not exact or right == closes)
    return (start, end) if start.any() and end.any() else None


def group_of(asked, picker):
    """Return the passages of a question for one step: what answers first, then what does not."""
    others = [one for one in asked.others[:5] if one.sentences]
    picker.shuffle(others)
    if len(asked.passage.sentences) > 1:
        others.insert(0, asked.passage.without(asked.n))
    return [asked.passage, *others[: GROUP - 1]]


def loss_of(model, tokenizer, group, picker):
    """Return the loss over some Askeds: of what answers, against what does not, and of its span."""
    import torch

    passages = [group_of(asked, picker) for asked in group]
    pairs = [
        (asked.question, one) for asked, told in zip(group, passages, strict=True) for one in told
    ]
    tokens = encoded(tokenizer, pairs)
    answers, starts, ends = model(tokens)
    first, losses = 0, []
    for asked, told in zip(group, passages, strict=True):
        losses += chosen(answers[first : first + len(told)])
        masks = span_masks(tokens, first, asked)
        if masks is not None:
            losses += [
                SPAN_WEIGHT * marginal(scores[first], mask)
                for scores, mask in zip((starts, ends), masks, strict=True)
            ]
        first += len(told)
    return torch.stack(losses).sum() / len(group)


def chosen(scores):
    """Return the losses over a question's passages, what answers first: it is chosen, and without it none is.

    "None" scores 0 for every question, so that a score is as good as a probability between questions too.
    """
    import torch

    none = torch.zeros(1)
    losses = [torch.nn.functional.cross_entropy(torch.cat([none, scores])[None], torch.tensor([1]))]
    if len(scores) > 1:
        losses.append(
            torch.nn.functional.cross_entropy(
                torch.cat([none, scores[1:]])[None], torch.tensor([0])
            )
        )
    return losses


def marginal(scores, mask):
    """Return the loss of a distribution over tokens: what of it is outside the mask."""
    import torch

    return torch.logsumexp(scores, 0) - torch.logsumexp(scores[mask], 0)


# Evaluation ###################################################################


def evaluate(model, tokenizer, people, most=250):
    """Return figures over articles that were held out: {"first by search", "first by reader", "echo", …} in percent."""
    import torch

    asked, offers, rows = people
    exact = [(one, row) for one, row in zip(asked, rows, strict=True) if one.answer is not None]
    random.Random(5).shuffle(exact)
    counts, answered, near, far = collections.Counter(), [], [], []
    model.eval()
    with torch.no_grad():
        for n, (one, row) in enumerate(exact[:most]):
            found = [offers.passages[number] for number in offers.best(one.question, CANDIDATES)]
            scores, spans = judged(model, tokenizer, one.question, found)
            best = max(range(len(found)), key=scores.__getitem__)
            told = [sentence_of(passage, span) for passage, span in zip(found, spans, strict=True)]
            echo = echoed(offers, one.question, found[:4])
            counts["search: first passage holds it"] += any(
                holds(found[0].text, each) for each in row["answers"]
            )
            counts["reader: first passage holds it"] += any(
                holds(found[best].text, each) for each in row["answers"]
            )
            counts["any of ten holds it"] += any(
                holds(p.text, each) for p in found for each in row["answers"]
            )
            counts["echo: sentence holds it"] += any(holds(echo, each) for each in row["answers"])
            counts["reader: sentence holds it"] += any(
                holds(told[best], each) for each in row["answers"]
            )
            span = reader_span(found[best], spans[best])
            counts["reader: span and answer share words"] += any(
                set(plain(each).split()) & set(plain(span).split()) for each in row["answers"]
            )
            answered.append(max(scores))
            gone = [robbed(passage, row["answers"], one) for passage in found]
            near.append(
                max(judged(model, tokenizer, one.question, [p for p in gone if p.sentences])[0])
            )
            stranger = exact[(n + 37) % len(exact)][0]
            others = [p for p in found if p.heading != stranger.passage.heading][:CANDIDATES]
            far.append(
                max(judged(model, tokenizer, stranger.question, others)[0]) if others else -9
            )
    model.train()
    figures = {name: round(100 * count / len(answered), 1) for name, count in counts.items()}
    threshold = sorted(answered)[len(answered) // 10]
    figures["threshold with 10 % refused"] = round(threshold, 2)
    figures["near answered there"] = round(
        100 * sum(score >= threshold for score in near) / len(near), 1
    )
    figures["far answered there"] = round(
        100 * sum(score >= threshold for score in far) / len(far), 1
    )
    return figures | {"questions": len(answered)}


def robbed(passage, answers, asked):
    """Return a passage without the sentences that hold an answer, or are the answering one."""
    gone = asked.passage.sentences[asked.n]
    return Passage(
        passage.heading,
        tuple(
            one
            for one in passage.sentences
            if one != gone and not any(holds(one, each) for each in answers)
        ),
    )


def judged(model, tokenizer, question, passages):
    """Return (the score of each passage, its best span as characters of its text)."""
    tokens = encoded(tokenizer, [(question, one) for one in passages])
    answers, starts, ends = model(tokens)
    spans = []
    for row, passage in enumerate(passages):
        ahead = len(batos.reader_text(passage.heading, passage.text)) - len(passage.text)
        spans.append(
            batos.best_span(
                starts[row].tolist(),
                ends[row].tolist(),
                tokens["offset_mapping"][row].tolist(),
                ahead,
            )
        )
    return answers.tolist(), spans


def reader_span(passage, span):
    return passage.text[span[0] : span[1]]


def sentence_of(passage, span):
    """Return the sentence of a passage in which a span begins."""
    at = 0
    for sentence in passage.sentences:
        at += len(sentence) + 1
        if span[0] < at:
            return sentence
    return passage.sentences[-1]


def echoed(offers, question, passages):
    """Return the sentence that holds most of the question's words and is nearest to it: how it was chosen before."""
    asked, vector = batos.words_of(question), offers.embedder.query(question)
    total = sum(offers.weights.get(word, 1) for word in asked) or 1
    told = list(dict.fromkeys(one for passage in passages for one in passage.sentences))
    near = offers.embedder.embed(told) @ vector
    shares = [
        sum(offers.weights.get(word, 1) for word in asked if word in batos.words_of(one)) / total
        for one in told
    ]
    return max(zip(shares, near, told, strict=True), key=lambda row: row[0] + row[1])[2]


# Training #####################################################################


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=40, help="that steps take in all")
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--more", type=pathlib.Path, help="a folder with files of MORE")
    parser.add_argument(
        "--start", type=pathlib.Path, help="a checkpoint whose weights are the first"
    )
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("reader_work"))
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "reader")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


class Training:
    """Where a training stands: the model, its optimiser, and how many seconds of the processor were used."""

    def __init__(self, how, model, tokenizer):
        import torch

        self.how, self.model, self.tokenizer = how, model, tokenizer
        self.used_s, self.steps = 0.0, 0
        self.optimiser = torch.optim.AdamW(model.trained(), lr=RATE, weight_decay=0.01)
        self.file = how.work / "checkpoint.pt"
        if how.start is not None:
            model.load_state_dict(torch.load(how.start)["model"], strict=False)
        if how.resume and self.file.is_file():
            stood = torch.load(self.file)
            self.used_s, self.steps = stood["used_s"], stood["steps"]
            model.load_state_dict(stood["model"])
            self.optimiser.load_state_dict(stood["optimiser"])

    def keep(self):
        """Write a checkpoint."""
        import torch

        torch.save(
            {
                "used_s": self.used_s,
                "steps": self.steps,
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
            },
            self.file.with_suffix(".new"),
        )
        self.file.with_suffix(".new").replace(self.file)

    def done_share(self):
        return self.used_s / (60 * self.how.minutes)

    def step(self, group, picker):
        """Learn from some Askeds; returns the loss."""
        import torch

        started_s = time.monotonic()
        rate = RATE * max(0.02, 1 - self.done_share()) * min(1, (self.steps + 1) / WARM_STEPS)
        for each in self.optimiser.param_groups:
            each["lr"] = rate
        loss = loss_of(self.model, self.tokenizer, group, picker)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.trained(), 1.0)
        self.optimiser.step()
        self.steps += 1
        self.used_s += time.monotonic() - started_s
        return loss.item()


def log(how, *told):
    line = " ".join(map(str, told))
    print(line, flush=True)
    with open(how.work / "log.txt", "a") as file:
        print(line, file=file)


def all_data(how, picker):
    """Return (what people asked and answered, what was made, what people asked of articles that are held out)."""
    people, offers, _ = from_people(how.data, {2, 3, 4})
    more = from_more(how.more, picker)
    log(how, len(people), "by people", len(more), "more")
    phrasings, documented = from_phrasings(picker), from_docstrings(picker)
    invented = made([one for one in offers.passages if len(one.sentences) > 1], picker, 2500)
    invented += made([one for one in topics() if len(one.sentences) > 1], picker, 800)
    log(
        how,
        len(people),
        "by people,",
        len(phrasings),
        "phrasings,",
        len(documented),
        "docstrings,",
        len(invented),
        "made",
    )
    return people + more, phrasings + documented[:1000], invented


def train(how, training, data):
    """Learn until the minutes are over: made questions among the others at first, then people's and phrasings alone."""
    people, written, invented = data
    picker, losses, told_s, kept_s = (
        random.Random(how.seed + training.steps),
        [],
        time.time(),
        time.time(),
    )
    pools = {"people": [], "written": [], "made": []}
    sources = {"people": people, "written": written, "made": invented}
    while training.done_share() < 1:
        shares = (
            {"people": 6, "written": 1, "made": 1}
            if training.done_share() < MADE_SHARE
            else {"people": 7, "written": 1}
        )
        group = []
        for name, count in shares.items():
            if len(pools[name]) < count:
                pools[name] = picker.sample(sources[name], len(sources[name]))
            group += [pools[name].pop() for _ in range(count)]
        losses.append(training.step(group, picker))
        if time.time() - told_s > 60:
            log(
                how,
                f"{training.used_s / 60:.1f} min, step {training.steps}: loss {sum(losses) / len(losses):.3f}",
            )
            losses, told_s = [], time.time()
        if time.time() - kept_s > 480:
            training.keep()
            kept_s = time.time()
    training.keep()


def main():
    import torch

    how = read_arguments()
    how.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(how.threads)
    torch.manual_seed(how.seed)
    embedder = batos.Embedder("auto")
    embedder.start()
    embedder._thread.join()
    embedder._model.bfloat16()  # on a busy machine it may not have seen that this is faster
    picker = random.Random(how.seed)
    model, tokenizer = batos.new_reader_model(batos.installed_embedder())
    data = all_data(how, picker)
    training = Training(how, model, tokenizer)
    train(how, training, data)
    figures = evaluate(model, tokenizer, from_people(how.data, {HELD}, embedder))
    log(how, json.dumps(figures, indent=1))
    card = {
        "threshold": figures["threshold with 10 % refused"],
        "minutes": round(training.used_s / 60, 1),
        "steps": training.steps,
        "figures": figures,
        "threads": how.threads,
        "seed": how.seed,
    }
    batos.write_reader(model, how.out, card)


if __name__ == "__main__":
    main()
