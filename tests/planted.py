"""Sentences with one thing changed, and pairs of sentences that only look alike, made from texts by a script and a seed.

A sentence of an article is copied with one figure, date, name or negation changed; the copy is to be found to contradict it.
Pairs of unaltered sentences which share at least half of their stems are to be left in peace.
"""

import itertools
import json
import pathlib
import random
import re
import typing

import batos

READING = next((each for above in pathlib.Path(__file__).resolve().parents
                if (each := above / "shared" / "data" / "reading").is_dir()), None) or pathlib.Path("shared/data/reading")
MONTHS = ("January February March April May June July August September October November December").split()
DAYS = {*MONTHS, *"Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()}
WORDS = range(9, 41)                # of a sentence that is taken
COMMON = 0.5                        # of the stems of a pair that only looks alike
_YEAR = re.compile(r"\b1[0-9]{3}\b|\b20[0-2][0-9]\b")
_DAY = re.compile(rf"\b(?:{'|'.join(MONTHS)})\b")
_FIGURE = re.compile(r"(?<![\w.,$])\d+(?:[.,]\d+)*(?![\w])")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}(?: [A-Z][a-z]+)*\b")
_DENIED = re.compile(r"\b(is|are|was|were|has been|had been|can|could|would|will|must|may) (?=[a-z])(?!not\b)")
KINDS = ("figure", "date", "name", "negation")


class Planted(typing.NamedTuple):
    """A sentence, its copy with one thing changed, and what was changed."""

    sentence: str
    copy: str
    kind: str
    article: str


def articles():
    """Return {name: text} of the articles, each subject once."""
    found = {}
    for path in sorted((READING / "articles").glob("*.txt")):
        found[path.stem.split("-", 1)[1].casefold()] = path.read_text("utf-8", "replace")
    for line in (READING / "xquad_en_first_half.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        name = row["title"].casefold()
        found[name] = f"{found.get(name, '')}\n\n{row['context']}".strip()
    return found


def plain_sentences(text):
    """Return the sentences of a text that stand for themselves."""
    told = [" ".join(one["text"].split()) for one in batos.sentences(text)]
    return [one for one in told if len(one.split()) in WORDS and re.match(r"[A-Z]", one) and one.endswith(".")]


def figure_changed(sentence, rng, names):
    """Return the sentence with another figure, or None."""
    places = [found for found in _FIGURE.finditer(sentence) if not _YEAR.fullmatch(found[0])]
    if not places:
        return None
    found = rng.choice(places)
    digit = rng.choice([at for at, each in enumerate(found[0]) if each.isdigit()])
    other = rng.choice([each for each in "123456789" if each != found[0][digit]])
    return sentence[:found.start() + digit] + other + sentence[found.start() + digit + 1:]


def date_changed(sentence, rng, names):
    """Return the sentence with another year or month, or None."""
    places = [*_YEAR.finditer(sentence), *_DAY.finditer(sentence)]
    if not places:
        return None
    found = rng.choice(places)
    other = rng.choice([each for each in MONTHS if each != found[0]])
    if found[0].isdigit():
        other = str(int(found[0]) + rng.choice([-30, -11, -3, -1, 1, 2, 7, 12]))
    return sentence[:found.start()] + other + sentence[found.end():]


def name_changed(sentence, rng, names):
    """Return the sentence with another name, everywhere in it, or None."""
    places = [found[0] for found in _NAME.finditer(sentence) if found[0] not in DAYS]
    if not places:
        return None
    former = rng.choice(places)
    words = len(former.split())
    other = rng.choice([each for each in names if len(each.split()) == words and each != former])
    return re.sub(rf"\b{re.escape(former)}\b", other, sentence)


def negation_changed(sentence, rng, names):
    """Return the sentence denied, or None."""
    if batos.SAYS_NO.search(sentence):
        return None
    places = list(_DENIED.finditer(sentence))
    if not places:
        return None
    found = places[0]
    return f"{sentence[:found.end()]}not {sentence[found.end():]}"


CHANGES = dict(zip(KINDS, (figure_changed, date_changed, name_changed, negation_changed), strict=True))


def names_in(texts):
    """Return the names that stand amid sentences of texts."""
    return sorted({found[0] for text in texts for found in _NAME.finditer(text)} - DAYS)


def planted(texts, most, seed):
    """Return `most` Planted of {name: text}, of each kind as many; sentences are taken by chance, each once."""
    rng, names = random.Random(seed), names_in(texts.values())
    pool = [(name, one) for name, text in sorted(texts.items()) for one in plain_sentences(text)]
    rng.shuffle(pool)
    found, kinds = [], itertools.cycle(KINDS)
    kind = next(kinds)
    for name, one in pool:
        if len(found) == most:
            break
        changed = CHANGES[kind](one, rng, names)
        if changed and changed != one:
            found.append(Planted(one, changed, kind, name))
            kind = next(kinds)
    return found


def pairs_alike(texts, most, seed):
    """Return `most` pairs of different unaltered sentences that share at least half of the stems of each, by chance."""
    rng = random.Random(seed)
    told = sorted({one for text in texts.values() for one in plain_sentences(text)})
    stems = {one: frozenset(batos.stems(one)) for one in told}
    holding = {}
    for one in told:
        for stem in stems[one]:
            holding.setdefault(stem, []).append(one)
    found = set()
    for one in told:
        near = {other for stem in stems[one] if len(holding[stem]) <= 400 for other in holding[stem] if other > one}
        found |= {(one, other) for other in near
                  if len(stems[one] & stems[other]) >= COMMON * (len(stems[one]) + len(stems[other])) / 2}
    return rng.sample(sorted(found), min(most, len(found)))


# Two hops: what a question names in one article is told only by what another article says of it

_CLAUSE_WORDS = range(5, 19)
_PREPOSITIONS = "in|to|from|by|with|of|for|at|on|against|into|under"
_SUBJECTS = {"He", "She", "It", "They"}


class TwoHops(typing.NamedTuple):
    """A question that wants two steps: a name is told in it by a clause of one article, the answer stands in another."""

    question: str
    answers: list
    name: str
    first: str          # the article that names it
    second: str         # the article that answers
    direct: str         # the question as somebody asked it, with the name


def questions_asked():
    """Yield (article, question, answers) that people asked of the articles, whose answer is more than yes or no."""
    for line in (READING / "questions.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if any(each.strip(" .").casefold() not in ("yes", "no") for each in row["answers"]):
            yield row["article"].split("-", 1)[1].removesuffix(".txt").casefold(), row["question"], row["answers"]
    for line in (READING / "xquad_en_first_half.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        for asked in row["questions"]:
            yield row["title"].casefold(), asked["question"], asked["answers"]


def told_by(name, sentence, article):
    """Return a name as a sentence of an article tells of it, "the one in which …", without naming it; or None."""
    plain = re.escape(name)
    subject = article.replace("_", " ").title()
    behind = re.match(rf"({plain}) ((?:is|are|was|were|has|had|did|became|[a-z]+ed|[a-z]+s) [^,;:.()]+)", sentence)
    if behind and len(behind[2].split()) in _CLAUSE_WORDS and name not in behind[2]:
        return f"the one that {behind[2]}"
    ahead = re.match(rf"([^,;:()]+?) ({_PREPOSITIONS}) (?:the )?{plain}\b(?=[.,;]|$)", sentence)
    if not ahead or len(ahead[1].split()) not in _CLAUSE_WORDS or name in ahead[1]:
        return None
    first, _, rest = ahead[1].partition(" ")
    first = subject if first in _SUBJECTS else first if first in subject else first[0].lower() + first[1:]
    return f"the one {ahead[2]} which {first} {rest}"


def stands_alone(name, question):
    """Return whether a question names something once, and not as a part of another name or what belongs to it."""
    behind = question.partition(name)[2].lstrip()
    following = re.match(r"[a-z]+", behind)
    plain = behind[:1] in "?,." or following and (following[0] in batos.STOP_WORDS or following[0].endswith(("ed", "s")))
    return question.count(name) == 1 and name not in DAYS and bool(plain)


def two_hops(texts, seed, most=200):
    """Return TwoHops of questions that name something of which another article tells too, each question once."""
    rng = random.Random(seed)
    told = {name: plain_sentences(text) for name, text in sorted(texts.items())}
    found = []
    for second, question, answers in questions_asked():
        answer = next((each.strip(" .") for each in answers if each.strip(" .").casefold() in texts[second].casefold()), None)
        names = [name for name in dict.fromkeys(_NAME.findall(question)) if stands_alone(name, question)]
        if answer is None or len(answer) > 60:
            continue
        ways = [(name, first, way) for name in names for first, each in told.items() if first != second
                for one in each if name in one and (way := told_by(name, one, first))]
        if ways:
            name, first, way = rng.choice(ways)
            asked = re.sub(rf"(?:[Tt]he )?\b{re.escape(name)}\b", way, question)
            found.append(TwoHops(asked, [answer], name, first, second, question))
    rng.shuffle(found)
    return found[:most]
