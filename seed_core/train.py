"""Train the embedded core of BAT OS from scratch, on data that this file generates.

    python seed_core/train.py --minutes 90 [--resume] [--seed 7] [--out seed_core] [--work DIR] [--threads 2]

It writes into --out: the model quantised to nf4 with double quantisation (safetensors), its tokenizer, the router (a linear
classifier over the embedder's vectors), core.json (sizes, seed, scores, the fingerprint of CORE_TASKS) and README.md, the
model card. Checkpoints and the log go to --work, from where --resume goes on. Two processor cores and about 7 GB of memory
suffice.

The data are examples of the tasks in batos.CORE_TASKS. Missions and method requests are composed from the phrasings in
phrasings/, each written independently, and from the word lists below; evidence from questions and answers in phrasings/,
from fact sentences and from sentences of the standard library's docstrings. One word in seven, one phrasing in six and one
docstring sentence in ten, chosen by hash, are held out for the evaluation; so are missions.txt and methods.txt, which were
written by hand and committed before this data was.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import json
import pathlib
import random
import re
import shutil
import sys
import sysconfig
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import batos

HERE = pathlib.Path(__file__).resolve().parent

# Words ########################################################################

NOUNS = """pump reactor engine bridge garden library river harbour mountain village clock lantern kettle oven bakery
telescope microscope compass battery turbine windmill lighthouse tower castle museum theatre orchestra piano violin
guitar drum choir novel poem letter map atlas dictionary newspaper radio telephone computer compiler kernel network
router server database index cache queue scheduler protocol packet socket thread process filesystem archive backup
sensor motor valve gear piston axle wheel bicycle train tram ship ferry submarine aircraft glider rocket satellite
orbit planet comet moon star galaxy volcano glacier desert forest meadow swamp island coast reef valley canyon cave
waterfall lake ocean tide storm cloud rainbow thunder season winter harvest vineyard orchard greenhouse tomato potato
apple cherry bread cheese honey butter soup sauce recipe kitchen spice pepper salt sugar tea coffee wine beer barrel
bottle glass mirror window door roof wall floor ladder bucket hammer saw drill lathe loom needle thread fabric carpet
wool silk cotton leather shoe coat hat glove ring crown coin bank market auction treaty contract tax budget invoice
parliament court law jury prison school teacher student exam lesson university laboratory experiment theory theorem
proof equation triangle circle matrix vector graph algorithm pattern signal filter amplifier antenna laser magnet
crystal metal copper iron silver gold steel concrete timber brick clay sand stone marble paper ink pigment paint
canvas statue portrait photograph camera film festival holiday wedding birthday funeral hospital doctor nurse medicine
vaccine virus bacterium cell gene protein enzyme muscle bone heart lung brain nerve eye ear skin blood sleep dream
memory habit diet exercise marathon stadium football chess puzzle toy puppet kite balloon parade carnival horse cow
sheep goat pig dog cat rabbit fox wolf bear deer eagle owl falcon robin swallow bat whale dolphin shark salmon trout
spider beetle butterfly bee ant worm snail frog snake lizard turtle elephant lion tiger monkey tree leaf root seed
flower rose tulip moss fern mushroom grass canal dam reservoir aqueduct well sewer furnace boiler chimney radiator
thermostat refrigerator freezer elevator escalator crane tractor plough mill granary warehouse factory workshop
foundry mine quarry pipeline refinery generator transformer switch relay circuit resistor capacitor transistor
processor register stack heap pointer buffer parser lexer grammar token model adapter daemon client request reply
transaction snapshot journal ledger page record document chapter section paragraph sentence glossary report survey
passport visa ticket timetable platform station airport runway hangar parachute helmet shield sword armour cannon
fortress siege battle army navy soldier general emperor queen king prince duke bishop monk temple cathedral mosque
shrine ritual legend myth hero dragon giant ghost""".split()

ADJECTIVES = """old new northern southern eastern western upper lower inner outer small large tall narrow wide deep
shallow heavy light fast slow quiet loud bright dark warm cold hot frozen dry wet clean dusty rusty broken spare main
second third final early late ancient modern wooden golden silver copper iron glass stone paper electric hydraulic
magnetic solar thermal nuclear chemical digital analogue manual automatic portable public private royal local foreign
hidden lost secret famous simple complex round square flat curved hollow solid liquid red blue green yellow black
white grey purple rural urban coastal central summer winter daily weekly annual sacred common rare wild""".split()

PARTS = """roof surface edge centre base core frame cover handle shaft chamber outlet inlet pressure temperature speed
weight colour shape length width height depth age price value cost origin history purpose design structure layout
maintenance repair inspection schedule capacity limit noise smell taste sound texture cooling heating wiring supply
storage transport owner keeper builder author manual""".split()

TROUBLES = """my sister|my brother|my mother|my father|my old friend|my daughter|my son|my neighbour|my teacher|my boss
losing my job|leaving home|moving to a new city|the exam tomorrow|the end of my holiday|the long winter|my first day
the empty house|growing old|the argument with my wife|the argument with my husband|my broken promise|my mistake
the letter I never sent|the wedding|my grandmother|the news from home|the operation next week|being alone at night
the silence after the call|my new flat|the birth of my nephew|my failed project|the farewell|the concert tonight
speaking in public|the test results|my cat that died|my dog that ran away|the garden I planted|my unfinished novel
the children leaving|my retirement|the interview on Monday|the dream I had|the years that passed|our reunion
being late again|the quarrel with my colleague|my debts|the prize I won|my first concert|our little daughter
the diagnosis|my team|the people at work|the promise I made""".replace("\n", "|").split("|")

SELF_PARTS = """memory|catalog|methods|failed cycles|missions|plans|answers|index|message log|adapters|personas|pillars
queue|journal|ledger|history|cache|image|search results|quotes|prompts|heartbeat|budget|worker pool|backups
citations|chunks|summaries|decisions|habits|errors|states|slots|experts|drafts""".replace(
    "\n", "|"
).split("|")

NAMES = """Mira Tolvan|Anders Quill|Teresa Nwosu|Jonas Keller|Amina Farah|Piotr Zelny|Lucia Marchetti|Henrik Dahl
Sofia Arrow|Kenji Morita|Elena Petrova|Omar Haddad|Greta Lindholm|Paolo Ricci|Maeve Connor|Ivan Drago
Hana Sato|Felix Braun|Nora Whitlock|Samuel Osei|Clara Vance|Rafael Ortiz|Ingrid Moe|Daniel Frost""".replace(
    "\n", "|"
).split("|")

PLACES = """Porto|Lisbon|Bergen|Trieste|Valencia|Bristol|Ghent|Riga|Tampere|Krakow|Geneva|Aarhus|Dublin|Turin|Cadiz
Leiden|Hobart|Kyoto|Nairobi|Quito|Halifax|Malmo|Graz|Utrecht""".replace("\n", "|").split("|")

SYLLABLES = (
    "ba be bo da de do fa fe ga go ka ke ki ko la le li lo ma me mi mo na ne no pa pe po ra re ri ro sa se "
    "si so ta te ti to va ve vo za zu bran dor fen gal hul jor kel lum mar nor pel quin ras sol tur vel wex".split()
)

# The names of slots, by type; those of lists and tables are plural ###########

SLOT_NAMES = {
    kind: names.split()
    for kind, names in {
        "number": """price weight height width length depth age speed count level score balance amount total cost income capacity
used limit rating temperature pressure distance hours minutes seconds days points visits quantity stock volume area power
voltage mileage salary rent budget profit loss discount tax_rate offset position size radius angle year month wins losses
attempts errors retries votes pages words_read calories unit_price max_speed left_margin seats_taken tank_level energy""",
        "text": """name title label city colour owner author country street address email phone status note message motto nickname
first_name last_name surname code path language species brand model_name category comment caption headline genre currency
department host version_name description text line word sentence prefix suffix species_name keeper captain""",
        "flag": """active open locked visible enabled ready done paid empty_handed lamp_on running paused muted sealed public
hidden approved broken online charging armed dirty heated occupied verified archived favourite door_open light_on valve_closed""",
        "numbers": """scores readings prices weights ages samples amounts temperatures heights distances ratings payments grades
marks speeds counts lengths times durations measurements votes salaries deposits bids levels values rolls numbers""",
        "texts": """names titles words tags colours cities guests lines labels authors notes messages keywords languages streets
players members ingredients topics emails fruits tools instruments species brands verses lyrics countries""",
        "list": """items entries events tasks log queue stack children visitors orders boxes records steps pieces parcels books
tickets seats rooms parts cards jobs keys_given rows history waiting basket shelf crates packets""",
        "table": """phones settings stock_by_name grades_by_pupil capitals translations owners options prices_by_item registry
inventory addresses ports aliases scores_by_team birthdays weights_by_parcel contacts shelves routes table index ages_by_name""",
        "other": "parent_thing source target manager helper container",
    }.items()
}

# Phrasings ###################################################################


def lines_of(name):
    """Return the lines of a text file beside this one, without blank ones and comments."""
    text = (HERE / name).read_text("utf-8")
    return [line.strip() for line in text.split("\n") if line.strip() and not line.startswith("#")]


def columns(name):
    """Return the rows of a file whose columns are parted by bars."""
    return [[part.strip() for part in line.split("|")] for line in lines_of(name)]


LETTERS = dict(zip("TEFS", batos.ARCHETYPES, strict=True))
PHRASE_FILES = dict(
    zip(batos.ARCHETYPES, ("technical", "emotional", "factual", "systemic"), strict=True)
)
DEFAULT_PILLARS = {  # who joins where the clauses name too few pillars
    "Technical Deconstruction": ("guide_facet_", "sage_facet_"),
    "Emotional Processing": ("simple_heart_facet_", "guide_facet_"),
    "Factual Inquiry": ("tech_bat_facet_", "guide_facet_"),
    "Systemic Self-Improvement": ("pragmatist_facet_", "tech_bat_facet_"),
}
BEFORE = [
    "",
    "",
    "",
    "",
    "",
    "please ",
    "hello, ",
    "can you tell me: ",
    "I wonder, ",
    "quick question: ",
    "hey, ",
    "could you help me? ",
    "for my notes: ",
    "good morning. ",
    "dear all, ",
    "we need to know: ",
]
AFTER = [
    "",
    "",
    "",
    "",
    "",
    " please",
    " today",
    " in short",
    " if you can",
    " thank you",
    " for a friend",
    " with sources",
    " in a few words",
]
JOINTS = [", and ", " and ", "; also, ", ". Then: ", "? And ", ". ", "? ", ", but ", " - "]

# Facts: relation -> (words of a query, sentences). {Y} stands for a second thing, numbers and names likewise ###

# fmt: off
RELATIONS = {
    "built": (["built", "built by whom", "build", "constructed", "who built {X}", "builder of {X}", "when was {X} built"],
              ["{X} was built in {year} by {name}.", "In {year} {name} constructed {X} near {place}.",
               "{name} erected {X} for the people of {place}.", "The construction of {X} took {n} years."]),
    "work": (["work", "works", "how does {X} work", "operate", "mechanism of {X}", "function", "{X} working"],
             ["{X} works by pushing {Y} through a narrow gap.", "Inside {X} a {adj} spring drives the {Y}.",
              "{X} operates in {n} stages, and each feeds the next.", "The {Y} turns, and so {X} moves.",
              "{X} functions like a slow {Y}."]),
    "size": (["large", "how large is {X}", "size of {X}", "measurements of {X}", "weigh", "weight", "tall", "figures"],
             ["{X} measures {n} metres from end to end.", "{X} weighs {n} tonnes.", "At {n} metres, {X} is the tallest.",
              "The size of {X} was recorded as {n} units in {year}."]),
    "made": (["made of", "material", "what is {X} made of", "consist", "composition of {X}"],
             ["{X} is made of {Y} and {adj} {Z}.", "{X} consists of {n} layers of {Z}.",
              "Workers formed {X} from {Y}.", "The material of {X} is {adj} {Z}."]),
    "fail": (["fail", "failing", "why does {X} fail", "broken", "problem with {X}", "breaks", "failure"],
             ["{X} fails when the {Y} runs dry.", "A leaking {Y} broke {X} in {year}.",
              "Most failures of {X} begin at the {Y}.", "{X} stops if the {Y} is {adj}."]),
    "fix": (["fix", "repair", "how do we fix {X}", "repaired", "restore", "maintenance of {X}"],
            ["To repair {X}, replace the {Y} first.", "{X} is fixed by tightening the {Y}.",
             "{name} restored {X} with {n} new parts.", "The repair of {X} needs a {adj} {Y}."]),
    "cost": (["cost", "price", "what does {X} cost", "expensive", "price of {X}"],
             ["{X} costs {n} crowns.", "The price of {X} rose to {n} in {year}.", "{name} paid {n} crowns for {X}."]),
    "place": (["where is {X}", "place", "located", "location of {X}", "found", "live"],
              ["{X} stands near {place}.", "{X} was found in {place} behind the {Y}.", "{X} is located north of {place}.",
               "You can see {X} from the {Y} in {place}."]),
    "use": (["used for", "use", "purpose of {X}", "what is {X} used for", "serve"],
            ["{X} is used for cleaning the {Y}.", "People use {X} to carry {Y}.", "The purpose of {X} is to guard the {Y}.",
             "{X} serves as a {Y} in {place}."]),
    "people": (["people who use it", "feel", "mean to people", "loved", "remember"],
               ["Many people in {place} love {X}.", "{name} said that {X} felt like home.",
                "For the children of {place}, {X} means summer.", "Nobody who saw {X} forgets it."]),
}
# fmt: on


def invented(rng):
    """Return a word that no list has, so that copying, not memory, is learned."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3))))


class Words:
    """The words and phrasings of one side, training or held out, and a random generator over them."""

    def __init__(self, rng, held_words=False, held_phrases=False):
        def side(items, every, held):
            """Return the items of my side, at least one; which those are does not depend on order or seed."""
            items = list(dict.fromkeys(items))
            return [item for item in items if (_hashed(item) % every == 0) == held] or items

        self.rng = rng
        self.nouns, self.adjectives, self.parts = (
            side(items, 7, held_words) for items in (NOUNS, ADJECTIVES, PARTS)
        )
        self.troubles, self.selves = side(TROUBLES, 7, held_words), side(SELF_PARTS, 7, held_words)
        self.names, self.places = side(NAMES, 7, held_words), side(PLACES, 7, held_words)
        self.slot_names = {kind: side(names, 7, held_words) for kind, names in SLOT_NAMES.items()}
        self.missions = {
            archetype: side(lines_of(f"phrasings/{name}.txt"), 6, held_phrases)
            for archetype, name in PHRASE_FILES.items()
        }
        self.requests = {}
        for line in side(lines_of("phrasings/methods.txt"), 6, held_phrases):
            self.requests.setdefault(line.split("|")[0].strip(), []).append(line)
        self.pairs = side(lines_of("phrasings/answers.txt"), 6, held_phrases)

    def noun(self):
        """Return a noun, in three of ten cases an invented one."""
        word = invented(self.rng) if self.rng.random() < 0.25 else self.rng.choice(self.nouns)
        return word + "s" if self.rng.random() < 0.15 else word

    def thing(self):
        """Return a noun phrase of one to five words."""
        rng, noun = self.rng, self.noun
        adjective = rng.choice(self.adjectives)
        return rng.choice(
            (
                lambda: f"the {noun()}",
                lambda: f"the {adjective} {noun()}",
                lambda: f"the {noun()} {rng.choice(self.parts)}",
                lambda: f"the {rng.choice(self.parts)} of the {noun()}",
                lambda: f"{adjective} {noun()}s",
                lambda: f"a {adjective} {noun()}",
                lambda: f"the {noun()} of {rng.choice(self.places)}",
                lambda: f"{invented(rng).title()} {noun()}",
                lambda: noun(),
                lambda: f"the {noun()} {noun()}",
                lambda: f"our {noun()} {rng.choice(self.parts)}",
                lambda: invented(rng).title(),
            )
        )()

    def trouble(self):
        """Return what a feeling is about: mostly of people's lives, at times any thing."""
        return self.thing() if self.rng.random() < 0.25 else self.rng.choice(self.troubles)

    def mission(self, archetype):
        """Return (text, pillars, spans to look up, the line that it was made from)."""
        rng, line = self.rng, self.rng.choice(self.missions[archetype])
        pillars, phrase = (part.strip() for part in line.split("|", 1))
        values = {
            "X": self.thing(),
            "T": self.trouble(),
            "S": rng.choice(self.selves),
            "N": self.noun(),
            "M": self.noun(),
            "P": rng.choice(self.names),
            "L": rng.choice(self.places),
            "D": str(rng.randint(2, 900)),
        }
        marked = re.sub(r"\{(\w)\}", lambda slot: values[slot[1]], phrase)
        spans = re.findall(r"<([^>]+)>", marked) or [re.sub(r"[<>]", "", marked)]
        return (
            re.sub(r"[<>]", "", marked),
            [f"{name.strip()}_facet_" for name in pillars.split(",")],
            spans,
            line,
        )

    def name(self):
        """Return a person's name."""
        return self.rng.choice(self.names)

    def fact(self, relation, thing):
        """Return a sentence that tells `relation` of `thing`."""
        rng = self.rng
        sentence = rng.choice(RELATIONS[relation][1])
        values = {
            "X": thing,
            "Y": self.noun(),
            "Z": self.noun(),
            "adj": rng.choice(self.adjectives),
            "n": str(rng.choice((rng.randint(2, 99), rng.randint(100, 9000)))),
            "year": str(rng.randint(1500, 2040)),
            "name": self.name(),
            "place": rng.choice(self.places),
        }
        text = re.sub(r"\{(\w+)\}", lambda m: values[m.group(1)], sentence)
        return text[0].upper() + text[1:]

    def slot(self, kind, taken):
        """Return a slot name for a type, at times of two words or invented."""
        rng = self.rng
        while True:
            name = rng.choice(self.slot_names[kind])
            roll = rng.random()
            if roll < 0.12:
                name = f"{rng.choice(self.adjectives)}_{name}"
            elif roll < 0.2:
                name = invented(rng) + (
                    "s" if kind in ("numbers", "texts", "list", "table") else ""
                )
            if name not in taken:
                return name


def _hashed(text):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


# Docstrings ###################################################################


def docstring_passages():
    """Return (sentences, passages) of the docstrings of the standard library: English sentences of 5 to 36 words, sorted,
    each once; and tuples of the first three to eight sentences of one docstring."""
    found, passages = set(), set()
    for path in sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8", "ignore"))
        except (SyntaxError, ValueError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                told = list(dict.fromkeys(sentences_of(ast.get_docstring(node) or "")))
                found.update(told)
                if len(told) >= 3:
                    passages.add(tuple(told[: batos.EVIDENCE_MOST]))
    return sorted(found), sorted(passages)


def sentences_of(docstring):
    """Yield the plain sentences of a docstring."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        if ">>>" in paragraph or "::" in paragraph:
            continue
        for sentence in re.findall(r"[A-Z][^.!?\n]*(?:\n[^.!?\n]+)*[.!?](?=\s|$)", paragraph):
            line = " ".join(sentence.split())
            if 5 <= len(line.split()) <= 36 and len(line) <= 240 and re.search(r"[a-z]{3}", line):
                yield line


STOP = set(
    """a an and are as at be been but by can do does for from had has have how i if in into is it its me my not
of on or our so than that the their them then there these this those to use used using was we were what when where which
who why will with you your it's may must should would could any all each also only same such other more most some
no nor one two new return returns given""".split()
)


def content_words(sentence):
    """Return the words of `sentence` that carry meaning, in order."""
    return [w for w in re.findall(r"[A-Za-z]{3,}", sentence) if w.lower() not in STOP]


def bent(word, rng):
    """Return `word`, at times in another form: plural, -ing, -ed or without them, other case."""
    roll, low = rng.random(), word.lower()
    if roll < 0.55:
        return low
    if roll < 0.7:
        return low[:-1] if low.endswith("s") and len(low) > 4 else low + "s"
    if roll < 0.85:
        for end in ("ing", "ed", "es", "s", "ly"):
            if low.endswith(end) and len(low) > len(end) + 3:
                return low[: -len(end)]
        return low.removesuffix("e") + rng.choice(("ing", "ed"))
    return word


# Examples #####################################################################

# shares of the tasks
MIX = {"plan": 25, "facet": 28, "weave": 14, "method": 20, "tests": 8, "summary": 5}
HINTED = 0.85  # share of plans and methods that the router offers something for


BELIEVED_SHARE, BELIEVED_LEAST = 0.8, 5  # of the times that a property was told, at least so often
# idioms whose argument is a number
COUNTED = ("nth", "first_few", "last_few", "remove_at", "longer_than", "repeated")


class Maker:
    """Makes examples (task tag, fields, answer) of one side, training or held out.

    The router's offers are made for many missions and requests at once: `fill` makes a pool of both, by whose rows plans
    and methods are made until the next call.
    """

    def __init__(self, seed, sentences, passages, held_words=False, held_phrases=False):
        self.rng = random.Random(f"{seed} {held_words} {held_phrases}")
        self.words = Words(self.rng, held_words, held_phrases)
        self.sentences = [s for s in sentences if (_hashed(s) % 10 == 0) == held_words]
        self.passages = [p for p in passages if (_hashed(p[0]) % 10 == 0) == held_words]
        self.pools = {"plan": [], "method": []}

    def example(self):
        """Return one example of a random task."""
        task = self.rng.choices(list(MIX), list(MIX.values()))[0]
        return getattr(self, task)()

    # ---- missions and their plans

    def raw_plan(self):
        """Return (fields without offers, answer, what the router is asked, its label, the line): a mission and its plan."""
        rng = self.rng
        archetype = rng.choice(batos.ARCHETYPES)
        clauses = [self.words.mission(archetype) for _ in range(1 if rng.random() < 0.72 else 2)]
        clauses = clauses[:1] if sum(len(clause[0]) for clause in clauses) > 250 else clauses
        mission = self.written([clause[0] for clause in clauses])
        queries = self.queries(archetype, clauses, mission)
        lines = [
            f"{pillar}: {queries[pillar]}"
            for pillar in batos.archetype_pillars(archetype)
            if pillar in queries
        ]
        return (
            {"mission": mission},
            "\n".join([archetype, *lines]),
            mission,
            archetype,
            clauses[0][3],
        )

    def queries(self, archetype, clauses, mission):
        """Return {pillar: words of the mission}: of each clause all that is marked, then its single spans."""
        allowed = batos.archetype_pillars(archetype)
        pillars = list(
            dict.fromkeys(pillar for clause in clauses for pillar in clause[1] if pillar in allowed)
        )[:4]
        spans = self.spans(clauses, mission)
        defaults = [*DEFAULT_PILLARS[archetype], *allowed]
        while len(pillars) < max(2, min(4, spans[0])):
            pillars.append(next(pillar for pillar in defaults if pillar not in pillars))
        pillars.sort(key=batos.PILLAR_ORDER.index)
        return {pillar: spans[1][min(n, len(spans[1]) - 1)] for n, pillar in enumerate(pillars)}

    def spans(self, clauses, mission):
        """Return (how many hold all that is marked, the spans as they stand in the mission, those first)."""
        low, wide, single = mission.lower(), [], []
        for clause in clauses:
            places = [
                (at, at + len(span)) for span in clause[2] if (at := low.find(span.lower())) >= 0
            ]
            if not places:
                continue
            whole = min(start for start, _ in places), max(end for _, end in places)
            wide += [whole] if whole[1] - whole[0] <= batos.SPAN_CHARS else places
            single += places
        places = list(dict.fromkeys([*wide, *single])) or [(0, len(mission))]
        return len(wide), [
            batos.one_line(mission[start:end], batos.SPAN_CHARS).strip(" ?.!\"'")
            for start, end in places
        ]

    def written(self, clauses):
        """Return clauses as one text, as people write: with or without greeting, capital, mark; at times mistyped."""
        rng = self.rng
        text = clauses[0]
        for clause in clauses[1:]:
            bare = text.rstrip("?.! ")
            joint = rng.choice(JOINTS)
            whole = text[-1] in "?.!" or joint[0] in ".?"
            text = (
                f"{text if text[-1] in '?.!' else bare + joint[0]} {clause[0].upper()}{clause[1:]}"
                if whole
                else bare + joint + clause
            )
        before = rng.choice(BEFORE)
        text = before + (
            text[0].lower() + text[1:] if before.endswith(" ") and rng.random() < 0.6 else text
        )
        if text[-1] not in "?.!":
            text += rng.choice(AFTER) + rng.choice(("?", "?", "", ".", "!"))
        roll = rng.random()
        text = text.lower() if roll < 0.12 else text[0].upper() + text[1:] if roll < 0.8 else text
        return self.mistyped(text) if rng.random() < 0.1 else text

    def mistyped(self, text):
        """Return the text with one letter lost, doubled or swapped with its neighbour."""
        at = self.rng.randrange(1, max(2, len(text) - 2))
        if not text[at : at + 2].isalpha():
            return text
        return self.rng.choice(
            (
                text[:at] + text[at + 1 :],
                text[:at] + text[at] + text[at:],
                text[:at] + text[at + 1] + text[at] + text[at + 2 :],
            )
        )

    def plan(self):
        """One of the pool's missions with its plan."""
        return "plan", *self.rng.choice(self.pools["plan"])

    # ---- methods

    def raw_method(self):
        """Return what `raw_plan` returns, of a method request."""
        while True:
            idiom = self.rng.choice(list(self.words.requests))
            line = self.rng.choice(self.words.requests[idiom])
            made = self.requested(idiom, *[part.strip() for part in line.split("|")][1:3])
            if made:
                fields, answer = made
                return (
                    fields,
                    answer,
                    batos.routed_request(fields["selector"], fields["intent"]),
                    idiom,
                    line,
                )

    def requested(self, idiom, selector, intent):
        """Return (fields, answer) of a phrasing of a request, or None where it does not say which number it means."""
        rng, code, asked = self.rng, batos.IDIOMS[idiom], f"{selector} {intent}"
        holes = sorted(
            dict.fromkeys(re.findall(r"self\.(\w+)", code)),
            key=lambda hole: (hole == "other", hole),
        )
        slots, filled = {}, {}
        for hole in holes:
            kind = (
                slots[filled[hole[:-1]]]
                if hole[-1] == "2"
                else rng.choice(self.kinds_of(hole, idiom))
            )
            filled[hole] = self.words.slot(kind, slots)
            slots[filled[hole]] = kind
        told = [mark in asked for mark in ("{a}{A}{1}", "{b}{B}")]
        told = [
            any(mark in asked for mark in marks)
            for marks in (("{a}", "{A}", "{1}"), ("{b}", "{B}"))
        ][: len(holes)]
        number = str(rng.choice((rng.randint(2, 20), rng.randint(21, 500), 100, 1000, 60)))
        literal = (
            next((n for n in re.findall(r"\d+", asked)), None) if "{#}" not in asked else number
        )
        if "NUMBER" in code and literal is None:
            return None
        names = list(filled.values())
        marks = {"a": names[0], "b": names[-1]} if names else {"a": "", "b": ""}
        marks |= {
            "A": marks["a"].replace("_", " "),
            "B": marks["b"].replace("_", " "),
            "1": singular(marks["a"]),
            "#": number,
        }
        selector, intent = (
            re.sub(r"\{([aAbB1#])\}", lambda mark: marks[mark[1]], text)
            for text in (selector, intent)
        )
        body = re.sub(r"self\.(\w+)", lambda hole: f"self.{filled[hole[1]]}", code).replace(
            "NUMBER", literal or ""
        )
        arguments = self.arguments(idiom, code, slots, names)
        slots = self.among_others(
            slots, all(told), {kind for hole in holes for kind in batos.HOLES[hole.rstrip("2")]}
        )
        fields = {
            "selector": self.named(selector, len(arguments)),
            "intent": intent,
            "slots": slots,
            "arguments": arguments,
        }
        return (
            (fields, f"{idiom}\n{body}")
            if re.fullmatch(r"[A-Za-z_][\w:]*", fields["selector"])
            else None
        )

    def kinds_of(self, hole, idiom):
        """Return the types that a hole's slot may be made of."""
        kinds = [kind for kind in batos.HOLES[hole.rstrip("2")] if kind != "other"]
        if idiom in ("labelled", "copy_to", "swap", "equal", "is_given", "not_given"):
            kinds = ["number", "text"]
        if idiom in (
            "top",
            "sorted",
            "descending",
            "reversed",
            "unique",
            "sort_in_place",
            "count_of",
            "first",
            "last",
        ):
            kinds = (
                ["numbers", "texts"]
                if "sort" in idiom or idiom in ("descending", "unique")
                else kinds
            )
        return kinds

    def arguments(self, idiom, code, slots, names):
        """Return the types of the arguments that suit the slots."""
        count = 2 if re.search(r"\bfirst\b", code) else int(bool(re.search(r"\bvalue\b", code)))
        kind = slots[names[0]] if names else "text"
        one = {"numbers": "number", "texts": "text"}.get(
            kind,
            kind
            if kind in ("number", "text", "flag")
            else self.rng.choice(("text", "number", "text", "other")),
        )
        one = {"extend": kind if kind != "list" else "texts", "set": kind, "merge": "table"}.get(
            idiom, one
        )
        one = (
            "number" if idiom in COUNTED else "text" if kind == "table" and one != "table" else one
        )
        return (
            [one] + [self.rng.choice(("number", "text")) if kind == "table" else one] * (count - 1)
            if count
            else []
        )

    def among_others(self, slots, named, kinds):
        """Return the slots among others: of any type where the request names its own, else of types that do not fit."""
        rng, made = self.rng, dict(slots)
        others = [kind for kind in batos.SLOT_TYPES if named or kind not in kinds]
        for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 4)) if others else 0):
            kind = rng.choice(others)
            made[self.words.slot(kind, made)] = kind
        rows = list(made.items())
        if named:
            rng.shuffle(rows)
        else:  # what is not named is meant in the order in which it stands
            own = iter(slots.items())
            places = sorted(rng.sample(range(len(rows)), len(slots)))
            rest = iter(rows[len(slots) :])
            rows = [next(own) if n in places else next(rest) for n in range(len(rows))]
        return dict(rows)

    def named(self, selector, count):
        """Return a selector in one of the ways that people write it."""
        selector = re.sub(r"[^\w:]", "_", selector)
        if selector.rstrip("_:") and self.rng.random() < 0.06 and "_" in selector.strip("_"):
            first, *rest = selector.rstrip("_:").split("_")
            selector = first + "".join(part.title() for part in rest) + "_" * bool(count)
        return selector[: batos.SELECTOR_BYTES]

    def method(self):
        """One of the pool's requests with its method."""
        return "method", *self.rng.choice(self.pools["method"])

    # ---- evidence

    def asked(self):
        """Return (query, topic, relevant sentences, look-alikes): what is looked up and what speaks of it."""
        return self.rng.choice(
            (
                self.asked_of_pairs,
                self.asked_of_pairs,
                self.asked_of_facts,
                self.asked_of_docstrings,
            )
        )()

    def asked_of_pairs(self):
        """As `asked`, from questions written with their answer and what is only near; at times about another thing."""
        rng, words = self.rng, self.words
        question, answer, *near = [part.strip() for part in rng.choice(words.pairs).split("|")]
        thing = re.search(r"<([^>]+)>", question)[1]
        head = thing.split()[-1]
        texts = [re.sub(r"[<>]", "", question), thing, answer, *near]
        if rng.random() < 0.5 and head.islower() and all(head in text for text in texts[:3]):
            other = words.noun()
            texts = [re.sub(rf"\b{re.escape(head)}\b", other, text) for text in texts]
        question, thing, answer, *near = texts
        if rng.random() < 0.2:
            question = thing
        near += [words.fact(rng.choice(list(RELATIONS)), thing)] * (rng.random() < 0.3)
        strange = [
            rng.choice(words.pairs).split("|")[rng.choice((1, 2))].strip()
            for _ in range(rng.randint(0, 5))
        ]
        return question, thing, [answer], [*near, *strange]

    def asked_of_facts(self):
        """As `asked`, from composed facts: the query tells thing and relation, look-alikes share one of the two."""
        rng, words = self.rng, self.words
        thing, relation = words.thing(), rng.choice(list(RELATIONS))
        cue = rng.choice(RELATIONS[relation][0])
        query = (
            cue.replace("{X}", thing)
            if "{X}" in cue
            else rng.choice((f"{thing} {cue}", f"{thing} {cue}", thing))
        )
        right = [words.fact(relation, thing)]
        if rng.random() < 0.25:
            right.append(words.fact(relation, thing))
        others = [r for r in RELATIONS if r != relation]
        alike = [words.fact(relation, words.thing()) for _ in range(rng.randint(0, 3))]
        if query != thing:
            alike += [words.fact(rng.choice(others), thing) for _ in range(rng.randint(0, 2))]
        alike += [words.fact(rng.choice(others), words.thing()) for _ in range(rng.randint(0, 3))]
        return query, thing, right, alike

    def asked_of_docstrings(self):
        """As `asked`, from real sentences: the query is some content words of one or two, bent and reordered."""
        rng = self.rng
        right = rng.sample(self.sentences, 2 if rng.random() < 0.2 else 1)
        query = []
        for sentence in right:
            content = content_words(sentence) or sentence.split()
            picked = sorted(rng.sample(range(len(content)), min(len(content), rng.randint(2, 5))))
            if rng.random() < 0.3:
                rng.shuffle(picked)
            query += [bent(content[i], rng) for i in picked]
        alike = rng.sample(self.sentences, rng.randint(0, 7))
        topic = " ".join(query[: rng.randint(1, min(3, len(query)))])
        if rng.random() < 0.3:
            query = ["the", *query]
        return " ".join(query), topic, right, alike

    def listed(self, query, right, alike):
        """Return (sentences, their shares, numbers of the right ones); the greatest share first, as the catalog has it."""
        right = list(dict.fromkeys(right))
        pool = right + [s for s in dict.fromkeys(alike) if s not in right]
        pool = pool[: max(len(right), self.rng.choice((1, 2, 3, 4, 4, 6, 8)))]
        self.rng.shuffle(pool)
        ranked = sorted(
            zip(self.shares(query, pool, right), pool, strict=True), key=lambda pair: -pair[0]
        )
        return (
            [s for _, s in ranked],
            [share for share, _ in ranked],
            [n for n, (_, s) in enumerate(ranked, 1) if s in right],
        )

    def shares(self, query, sentences, right):
        """Return shares as the catalog has them: of the query's words, and in most cases half of it the likeness in meaning.

        Longer words count more, as rarer ones do. The likeness is drawn as the embedder's was seen: it goes with the words
        that both hold, and is higher for what answers.
        """
        rng, held = self.rng, word_shares(query, sentences)
        if rng.random() < 0.3:  # no embedder is loaded
            scale, noise = rng.choice((1.0, 1.0, 0.8, 0.6)), rng.choice((0.0, 0.05, 0.1))
            return [
                min(1.0, max(0.0, scale * share + rng.uniform(-noise, noise))) for share in held
            ]
        likeness = [
            rng.gauss(0.38 if sentence in right else 0.14, 0.1) + 0.4 * share
            for sentence, share in zip(sentences, held, strict=True)
        ]
        return [
            min(1.0, max(0.0, (share + like) / 2))
            for share, like in zip(held, likeness, strict=True)
        ]

    def facet(self, persona=None):
        """A sub-query over evidence: which sentence answers, and a frame that suits it."""
        rng = self.rng
        persona = persona or rng.choice(list(batos.PILLARS))
        pillar = rng.choice(batos.PILLARS[persona])
        query, topic, right, alike = self.asked()
        query = self.mistyped(query) if rng.random() < 0.04 else query
        sentences, shares, numbers = self.listed(query, right, alike)
        fields = {
            "persona": persona,
            "pillar": pillar,
            "sub_query": query,
            "evidence": sentences,
            "shares": shares,
        }
        near = batos.near_the_best(batos.facet_lines(fields)[2:])
        numbers = [n for n in numbers if n in near][: batos.QUOTES_MOST]
        if not numbers:  # the grammar would not let it be told
            return self.facet(persona)
        frame = framed(
            persona,
            batos.PILLARS[persona].index(pillar),
            self.topic(topic, query),
            numbers,
            sentences,
        )
        return "facet", fields, " ".join(map(str, numbers)) + "\n" + frame

    def weave(self, lead=None):
        """A mission over quotes: those that answer it, the one that holds most of it first; the rest are left out."""
        rng = self.rng
        lead = lead or rng.choice(list(batos.PILLARS))
        parts = [self.asked() for _ in range(rng.choices((1, 2, 3), (55, 33, 12))[0])]
        mission = self.written([part[0] for part in parts])
        right = [s for part in parts for s in part[2]]
        alike = [s for part in parts for s in part[3]]
        alike = rng.sample(alike, min(len(alike), rng.randint(0, 4)))
        sentences, shares, numbers = self.listed(mission, right[:8], alike)
        frame = framed(
            lead, min(len(parts), 3) - 1, self.topic(parts[0][1], mission), numbers, sentences
        )
        fields = {"lead": lead, "mission": mission, "quotes": sentences, "shares": shares}
        close = batos.VOICES[lead]["closings"][
            batos.CLOSINGS_EACH * (min(len(numbers), 3) - 1) + suited(sentences, numbers)
        ]
        return "weave", fields, " ".join(map(str, numbers)) + "\n" + frame + "\n" + close

    def topic(self, topic, text):
        """Return the topic as it stands in a text (a greeting may have changed a capital), or the text's first words."""
        at = text.lower().find(topic.lower())
        found = text[at : at + len(topic)] if at >= 0 else text
        clause = re.split(r"[.,;:?!]", found.strip(" .,;:?!"))[0].strip()
        return batos.one_line(clause or found, batos.SPAN_CHARS)

    def tried(self):
        """Return (fields, source, tries) of one of the pool's requests: its method, tried on sampled objects."""
        while True:
            fields, answer = self.rng.choice(self.pools["method"])
            source = batos.method_value(answer, fields)["source"]
            tries = batos.tries_of(
                runner(source), fields["slots"], fields["arguments"], self.rng, 16
            )
            if len(tries) >= 4:
                return fields, source, tries

    def tests(self):
        """One of the pool's requests with what holds of its method, found by trying it."""
        fields, source, tries = self.tried()
        return "tests", fields, true_tests(source, fields["slots"], tries)

    def summary(self):
        """A docstring's sentences: the first sums them up, wherever it stands."""
        passage = list(self.rng.choice(self.passages))
        first = passage[0]
        if self.rng.random() < 0.7:
            self.rng.shuffle(passage)
        return (
            "summary",
            {"passage": passage, "shares": batos.telling_shares(passage)},
            str(passage.index(first) + 1),
        )


# Properties of slots that change, of methods that change any, and what need not be told beside others.
CHANGED = (
    "gets",
    "loses",
    "keeps",
    "blank",
    "true",
    "in_order",
    "longer",
    "shorter",
    "greater",
    "smaller",
)
CHANGING = ("copies", "back", "settles")
IMPLIED = {
    "keeps": ("longer", "shorter"),
    "blank": ("shorter", "in_order", "longer", "smaller"),
    "same": ("part", "top", "bottom", "tells", "drawn", "rises", "doubles"),
    "gets": ("in_order",),
}


def runner(source):
    """Return `run` of a batos.Tried for a method's source, which was made under the grammar."""
    space = {}
    exec(source, {}, space)
    (function,) = space.values()

    def run(slots, arguments):
        receiver = argparse.Namespace(**copy.deepcopy(slots))
        return function(receiver, *copy.deepcopy(arguments)), vars(receiver)

    return run


def true_tests(source, slots, tries):
    """Return the answer that training teaches: result, changed slots, and the first properties that hold on all tries."""
    kinds = {batos.result_kind(tried.result) for tried in tries}
    changed = [name for name in slots if any(name in tried.changes for tried in tries)]
    touched = [name for name in slots if re.search(rf"self\.{name}\b", source)]
    about = {name: changed if name in CHANGED else touched for name in batos.PROPERTIES}
    rows = [
        (name, slot)
        for name, (types, *_) in batos.PROPERTIES.items()
        for slot in ([s for s in about[name] if slots[s] in types] if types else (None,))
    ]
    true = [
        row
        for row in rows
        if (changed or row[0] not in CHANGING) and all(batos.holds(*row, tried) for tried in tries)
    ]
    implied = {(name, slot) for told, slot in true for name in IMPLIED.get(told, ())}
    true = [row for row in true if row not in implied]
    for up, down in (("rises", "falls"), ("rises_given", "falls_given"), ("ascends", "descends")):
        still = {slot for name, slot in true if name == up} & {
            slot for name, slot in true if name == down
        }
        true = [row for row in true if row[0] not in (up, down) or row[1] not in still]
    told = [f"{name} {slot}" if slot else name for name, slot in true[: batos.PROPERTIES_MOST]]
    return "\n".join([kinds.pop() if len(kinds) == 1 else "any", " ".join(changed) or "-", *told])


def word_shares(query, sentences):
    """Return what share of a query's words, weighed by their length, each sentence holds."""
    asked = {word: len(word) for word in batos.words_of(query)}
    total = sum(asked.values()) or 1
    return [
        sum(asked[word] for word in asked.keys() & batos.words_of(sentence).keys()) / total
        for sentence in sentences
    ]


def singular(name):
    """Return the singular of a slot's name."""
    name = name.split("_by_")[0]
    for plural, single in (("ies", "y"), ("shes", "sh"), ("xes", "x"), ("ches", "ch"), ("s", "")):
        if name.endswith(plural) and not name.endswith("ss"):
            return name[: -len(plural)] + single
    return name


def suited(sentences, numbers):
    """Return which of four variants training teaches, by what is quoted first: so that voices vary with the matter."""
    first = sentences[numbers[0] - 1]
    return (len(first.split()) > 12) + 2 * (
        first.count(",") > 0 or first.split()[0].lower() in ("the", "a", "an")
    )


def framed(persona, group, topic, numbers, sentences):
    """Return the frame that training teaches: openings go by group, links by number and look of the quotes."""
    first = sentences[numbers[0] - 1]
    look = 1 if re.search(r"\d", first) else 2 if len(first.split()) > 15 else 0
    voice, variant = batos.VOICES[persona], suited(sentences, numbers)
    link = batos.LINKS_EACH * (look + (3 if len(numbers) > 1 else 0)) + variant // 2
    return voice["openings"][batos.OPENINGS_EACH * group + variant] + topic + voice["links"][link]


# Tokenizer ####################################################################


def train_tokenizer(maker, vocabulary):
    """Return a byte-level BPE tokenizer that cuts a word the same way wherever it stands.

    Text is split into runs of letters, single digits, single blanks and line ends, and runs of other bytes, before
    any merge; so a word never takes a blank or a mark along. Every Unicode text survives the round trip.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    cut = Regex(r"[A-Za-z]+|[0-9]|_|\n| |[^A-Za-z0-9_\n ]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(cut, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = []
    for _ in range(6000):
        task, fields, answer = maker.example()
        texts.append(batos.CORE_TASKS[task].prompt(fields)[0] + answer)
    voices = [part for voice in batos.VOICES.values() for parts in voice.values() for part in parts]
    texts += voices * 20 + [" ".join(batos.PILLAR_ORDER + batos.ARCHETYPES)] * 200 + maker.sentences
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<|pad|>", "<|bos|>", "<|eos|>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tokenizer


PAD, BOS, EOS = 0, 1, 2

# Router #######################################################################

FOLDS = 5


def fitted(vectors, labels, classes, decay):
    """Return (weight (classes, 384), bias (classes,)) of a softmax regression, by L-BFGS."""
    import torch

    weight = torch.zeros(classes, vectors.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=120, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (
            torch.nn.functional.cross_entropy(vectors @ weight.T + bias, labels)
            + decay * weight.square().sum()
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def cross_fitted(vectors, labels, folds, classes):
    """Return (weight, bias, probabilities): those of a row come from phrasings of other folds alone.

    So the offers of training are as good, and as wrong, as those for phrasings that nobody wrote here. The decay is the
    one of a few that does best so.
    """
    import torch

    best = None
    for decay in (1e-6, 1e-5, 1e-4, 1e-3):
        told = torch.zeros(len(labels), classes)
        for fold in range(FOLDS):
            weight, bias = fitted(vectors[folds != fold], labels[folds != fold], classes, decay)
            told[folds == fold] = vectors[folds == fold] @ weight.T + bias
        loss = torch.nn.functional.cross_entropy(told, labels).item()
        print(
            f"router of {classes}: decay {decay:g}, loss {loss:.3f}, right {(told.argmax(1) == labels).float().mean():.3f}",
            flush=True,
        )
        if best is None or loss < best[0]:
            best = loss, decay, told
    return *fitted(vectors, labels, classes, best[1]), best[2].softmax(1)


RAW = {"plan": ("archetype", Maker.raw_plan), "method": ("idiom", Maker.raw_method)}


def fill_pools(maker, embedder, counts, router=None):
    """Fill a maker's pools. With no router given, one is made for it: {name: tensor}, which is returned."""
    import torch

    tensors = {}
    for task, (kind, raw) in RAW.items():
        names, most = batos.ROUTED[kind]
        rows = [raw(maker) for _ in range(counts[task])]
        vectors = torch.from_numpy(embedder.embed([row[2] for row in rows]))
        if router is None:
            labels = torch.tensor([names.index(row[3]) for row in rows])
            folds = torch.tensor([_hashed(f"fold {row[4]}") % FOLDS for row in rows])
            weight, bias, shares = cross_fitted(vectors, labels, folds, len(names))
            tensors |= {f"{kind}.weight": weight, f"{kind}.bias": bias}
        else:
            shares = torch.from_numpy(router.shares(kind, vectors.numpy()))
        maker.pools[task] = [
            made
            for row, share in zip(rows, shares.numpy(), strict=True)
            if (
                made := offered(
                    maker, task, row, batos.best_offers(names, share, most, among(task, row))
                )
            )
        ]
    return tensors


def among(task, row):
    """Return the names that the router may offer for a row."""
    if task == "plan":
        return batos.ARCHETYPES
    return batos.method_choices(batos.method_lines(row[0] | {"offered": []}))


def offered(maker, task, row, offers):
    """Return (fields, answer) of a row with what is offered for it: nothing now and then, or where the right one is not."""
    fields, answer, _, label, _ = row
    if task == "plan" and label not in dict(offers) or maker.rng.random() > HINTED:
        offers = []
    return fields | {"offered": offers}, answer


# Training #####################################################################

# fmt: off
SIZES = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
         "tie_word_embeddings": True, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
         "rope_theta": 10000.0, "rms_norm_eps": 1e-5}
# fmt: on


def new_model(sizes=SIZES):
    """Return a Llama with random weights."""
    import transformers

    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, attn_implementation="sdpa")
    )


CHOICE_WEIGHT = 5.0  # of the answer's first line: archetype, or numbers; all else follows from it
PROMPT_SHARE, PROMPT_WEIGHT = 0.15, 0.3


def pieces(example):
    """Return [(text, weight of its tokens)] of an example: prompt (0), the answer's first line, the rest."""
    task, fields, answer = example
    choice, _, rest = answer.partition("\n")
    return [
        (batos.CORE_TASKS[task].prompt(fields)[0], 0.0),
        (choice, CHOICE_WEIGHT),
        ("\n" + rest, 1.0),
    ]


def encoded(tokenizer, examples):
    """Return [(token ids, weights)] of examples, each from one mark of beginning to one of end."""
    parts = [pieces(example) for example in examples]
    ids = iter(
        tokenizer.encode_batch([text for row in parts for text, _ in row], add_special_tokens=False)
    )
    rows = []
    for row in parts:
        told = [(token, weight) for _, weight in row for token in next(ids).ids]
        rows.append(
            ([BOS, *(token for token, _ in told), EOS], [0.0, *(weight for _, weight in told), 1.0])
        )
    return rows


def batches(maker, tokenizer, tokens):
    """Yield lists of encoded examples of like length, at most `tokens` padded tokens each, for ever."""
    while True:
        rows = sorted(
            encoded(tokenizer, [maker.example() for _ in range(512)]), key=lambda row: len(row[0])
        )
        rows = [row for row in rows if len(row[0]) <= 900]
        cuts, batch = [], []
        for row in rows:
            if batch and (len(batch) + 1) * len(row[0]) > tokens:
                cuts.append(batch)
                batch = []
            batch.append(row)
        maker.rng.shuffle(cuts)
        yield from cuts


def loss_of(model, rows):
    """Return the weighted mean loss of a padded batch.

    Of the tokens without a weight a random PROMPT_SHARE count PROMPT_WEIGHT each; the head skips the others.
    """
    import torch

    width = max(len(ids) for ids, _ in rows)
    ids, weight = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width)
    for i, (row, weights) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        told = torch.tensor(weights)
        weight[i, : len(row)] = torch.where(
            told > 0, told, (torch.rand(len(row)) < PROMPT_SHARE) * PROMPT_WEIGHT
        )
    weight, wanted = weight[:, 1:], ids[:, 1:]
    counted = weight > 0
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[counted])
    loss = torch.nn.functional.cross_entropy(logits.float(), wanted[counted], reduction="none")
    return (loss * weight[counted]).sum() / weight[counted].sum()


def right_choices(model, rows):
    """Return the share of choices (all tokens that weigh CHOICE_WEIGHT) that the model says right, over examples."""
    import torch

    right = asked = 0
    with torch.no_grad():
        for ids, weights in rows:
            told = model(torch.tensor([ids])).logits[0, :-1].argmax(-1).tolist()
            choices = [
                told[i - 1] == ids[i] for i, weight in enumerate(weights) if weight == CHOICE_WEIGHT
            ]
            right, asked = right + sum(choices), asked + len(choices)
    return right / asked


def optimizers_of(model):
    """Return Muon for the matrices inside, AdamW for embeddings and norms, each rate kept as `peak`.

    On one core Muon learned in a minute what AdamW alone did not in ten.
    """
    import torch

    named = list(model.named_parameters())
    inner = [p for name, p in named if p.dim() == 2 and "embed" not in name]
    outer = [p for name, p in named if p.dim() != 2 or "embed" in name]
    both = [
        torch.optim.Muon(inner, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(outer, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    for optimizer in both:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return both


def rate_at(share):
    """Return the factor of the rates when `share` of the time has gone: up at once, level, down in the last half."""
    return min(1.0, share / 0.01 + 0.02, 0.03 + 0.97 * (1 - share) / 0.5)


def has_ended(state, options):
    """Tell whether the minutes or the steps are used up."""
    return state["seconds"] >= options.minutes * 60 or state["steps"] >= options.steps


def train(model, maker, tokenizer, options, state):
    """Train until `options.minutes` or `options.steps` are used up, over all runs that resumed one another. Return the state."""
    import torch

    optimizers = optimizers_of(model)
    for optimizer, kept in zip(optimizers, state.pop("optimizers", ()), strict=False):
        optimizer.load_state_dict(kept)
    limit_s, before_s = options.minutes * 60, state["seconds"]
    start, saved, smooth = time.monotonic(), time.monotonic(), None
    watched = {task: [getattr(maker, task)() for _ in range(60)] for task in batos.CORE_TASKS}
    watched = {task: encoded(tokenizer, examples) for task, examples in watched.items()}
    model.train()
    for rows in batches(maker, tokenizer, options.batch_tokens):
        state["seconds"] = before_s + time.monotonic() - start
        share = state["seconds"] / limit_s
        if has_ended(state, options):
            break
        loss = loss_of(model, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate_at(share)
            optimizer.step()
            optimizer.zero_grad()
        state["steps"] += 1
        state["tokens"] += sum(len(ids) for ids, *_ in rows)
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if state["steps"] % 50 == 0:
            right = ", ".join(
                f"{task} {right_choices(model, kept):.2f}" for task, kept in watched.items()
            )
            print(
                f"step {state['steps']} {state['seconds']:.0f} s {state['tokens']} tokens loss {smooth:.3f} right "
                f"choices: {right}",
                flush=True,
            )
        if time.monotonic() - saved > 120:
            save_checkpoint(options.work, model, optimizers, state)
            saved = time.monotonic()
    save_checkpoint(options.work, model, optimizers, state)
    return state


def save_checkpoint(work, model, optimizers, state):
    """Write all that --resume needs, by a rename, so that a kill leaves the one before."""
    import torch

    fresh = work / "checkpoint.new"
    torch.save(
        {
            **state,
            "model": model.state_dict(),
            "optimizers": [one.state_dict() for one in optimizers],
        },
        fresh,
    )
    fresh.replace(work / "checkpoint.pt")


# Evaluation ###################################################################


def by_hand_missions():
    """Return [(mission, archetype, nouns, [sentences that answer], [sentences that are near])] of missions.txt."""
    rows = []
    for line in lines_of("missions.txt"):
        mark, text = line.split(" ", 1)
        if mark in LETTERS:
            rows.append(
                (text.replace("*", ""), LETTERS[mark], re.findall(r"\*([^*]+)\*", text), [], [])
            )
        else:
            rows[-1][3 if mark == "+" else 4].append(text)
    return rows


def by_hand_methods():
    """Return [(selector, slots, intent, [(arguments, what is returned or ..., slots afterwards)])] of methods.txt.

    Without the requests whose selector stands in the phrasings too: whoever wrote those thought of the same name.
    """
    rows, known = [], {row[1] for row in columns("phrasings/methods.txt")}
    for line in lines_of("methods.txt"):
        if not line.startswith(">"):
            selector, slots, intent = [part.strip() for part in line.split("|")]
            rows.append((selector, eval(f"dict({slots})"), intent, []))
            continue
        call, _, after = line[1:].partition(" ; ")
        arguments, _, wanted = call.partition(" -> ")
        rows[-1][3].append(
            (eval(arguments), eval(wanted) if wanted.strip() else ..., eval(f"dict({after})"))
        )
    return [row for row in rows if row[0] not in known]


def hand_plans(embedder, router):
    """Return the examples of the missions written by hand; the answer's place has archetype and nouns."""
    return [
        (
            "plan",
            {"mission": mission, "offered": router.offer("archetype", embedder.query(mission))},
            (archetype, nouns),
        )
        for mission, archetype, nouns, *_ in by_hand_missions()
    ]


def hand_facets(embedder, rng):
    """Return examples: what answers a mission among what is near and what answers others, with shares as the catalog's."""
    rows, examples = [row for row in by_hand_missions() if row[3]], []
    for mission, archetype, _, right, near in rows:
        strange = [rng.choice(rng.choice(rows)[3]) for _ in range(4)]
        pool = list(dict.fromkeys([*right, *near, *strange]))
        asked, held = embedder.query(mission), word_shares(mission, pool)
        shares = [
            (share + max(0.0, float(asked @ embedder.query(text)))) / 2
            for share, text in zip(held, pool, strict=True)
        ]
        ranked = sorted(zip(shares, pool, strict=True), key=lambda pair: -pair[0])
        persona = batos.ARCHETYPE_PERSONAS[archetype][0]
        fields = {
            "persona": persona,
            "pillar": rng.choice(batos.PILLARS[persona]),
            "sub_query": mission,
            "evidence": [text for _, text in ranked],
            "shares": [min(1.0, share) for share, _ in ranked],
        }
        numbers = [n for n, (_, text) in enumerate(ranked, 1) if text in right]
        examples.append(("facet", fields, numbers))
    return examples


def hand_methods(embedder, router):
    """Return the examples of the requests written by hand; the answer's place has slots and tests."""
    examples = []
    for selector, slots, intent, tests in by_hand_methods():
        fields = {
            "selector": selector,
            "intent": intent,
            "slots": {name: batos.slot_type(v) for name, v in slots.items()},
            "arguments": [batos.slot_type(value) for value in tests[0][0]],
            "offered": [],
        }
        known = batos.method_choices(batos.method_lines(fields))
        offers = router.offer(
            "idiom", embedder.query(batos.routed_request(selector, intent)), known
        )
        examples.append(("method", fields | {"offered": offers}, (slots, tests)))
    return examples


def hand_tests(methods):
    """Return examples of tests for the requests written by hand: the source is one of the grammar's that passes theirs."""
    examples = []
    for _, fields, (slots, tests) in methods:
        bodies = [
            body
            for bodies in batos.method_choices(batos.method_lines(fields)).values()
            for body in bodies
        ]
        sources = (batos.method_value(f"any\n{body}", fields)["source"] for body in bodies)
        right = next(
            (source for source in sources if passes(source, fields["selector"], slots, tests)), None
        )
        if (
            right
            and len(
                batos.tries_of(
                    runner(right), fields["slots"], fields["arguments"], random.Random(1), 12
                )
            )
            >= 4
        ):
            examples.append(("tests", fields, right))
    return examples


def passes(source, selector, slots, tests):
    """Return whether a method does what its tests want, on an object with those slots."""
    space = {}
    exec(source, {}, space)  # under the grammar: one line over real slots
    for arguments, wanted, after in tests:
        receiver = argparse.Namespace(**slots)
        try:
            got = space[selector.replace(":", "_")](receiver, *arguments)
        except (TypeError, ValueError, KeyError, IndexError, ZeroDivisionError, AttributeError):
            return False
        same = wanted is ... or (got == wanted and type(got) in (type(wanted), float, int))
        if not same or vars(receiver) != {**slots, **after}:
            return False
    return True


def kept(words, texts):
    """Return the share of the words that stand in the texts."""
    low = " ".join(texts).lower()
    return sum(word.lower() in low for word in words) / len(words) if words else 1.0


def judge_plan(value, wanted, fields):
    """Return {criterion: share} for one plan; `wanted` is an answer, or (archetype, nouns)."""
    if isinstance(wanted, str):
        told = batos.CORE_TASKS["plan"].value(wanted, fields)
        spans = [word for span in told["sub_queries"].values() for word in re.findall(r"\w+", span)]
        wanted = told["strategy"], dict.fromkeys(filter(batos.carries_meaning, spans))
    archetype, nouns = wanted
    useful = set(batos.archetype_pillars(archetype))
    return {
        "right archetype": value["strategy"] == archetype,
        "useful pillars": sum(p in useful for p in value["relevant_pillars"])
        / len(value["relevant_pillars"]),
        "nouns kept": kept(nouns, value["sub_queries"].values()),
    }


def topic_of(frame, voice):
    """Return what stands between opening and link of a frame."""
    opening = max((o for o in voice["openings"] if frame.startswith(o)), key=len)
    link = max((k for k in voice["links"] if frame.endswith(k)), key=len)
    return frame[len(opening) : -len(link)]


def judge_facet(value, wanted, fields):
    """Return {criterion: share} for one facet; `wanted` is an answer, or the numbers of what answers."""
    voice = batos.VOICES[fields["persona"]]
    place = batos.PILLARS[fields["persona"]].index(fields["pillar"])
    group = voice["openings"][batos.OPENINGS_EACH * place : batos.OPENINGS_EACH * (place + 1)]
    right = wanted if isinstance(wanted, list) else batos.facet_value(wanted, fields)["quotes"]
    topic = topic_of(value["frame"], voice).split()
    return {
        "right evidence first": value["quotes"][0] in right,
        "nothing else cited": set(value["quotes"]) <= set(right),
        "opening suits the pillar": any(map(value["frame"].startswith, group)),
        "topic has a telling word": any(map(batos.carries_meaning, topic)),
    }


def judge_weave(value, wanted, fields):
    """Return {criterion: share} for one weave."""
    right = batos.weave_value(wanted, fields)["order"]
    return {
        "told first is right": value["order"][0] in right,
        "all told are right": set(value["order"]) <= set(right),
        "all right are told": set(value["order"]) >= set(right),
    }


def judge_method(value, wanted, fields):
    """Return {criterion: share} for one method; `wanted` is an answer, or (slots, tests)."""
    if isinstance(wanted, str):
        return {
            "passes its tests": same_behaviour(
                value["source"], batos.method_value(wanted, fields)["source"], fields
            )
        }
    return {"passes its tests": passes(value["source"], fields["selector"], *wanted)}


def same_behaviour(source, other, fields):
    """Return whether two methods do and answer the same on sampled objects, wherever the second raises nothing."""
    run = runner(source)
    for tried in batos.tries_of(
        runner(other), fields["slots"], fields["arguments"], random.Random(source), 20
    ):
        try:
            if run(tried.slots, tried.arguments) != (tried.result, tried.after):
                return False
        except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, AttributeError):
            return False
    return True


def judge_tests(value, wanted, fields):
    """Return {criterion: share} for the tests of one method; `wanted` is the source of a right one.

    Others are what the offered idioms can become over the same slots and what does something else.
    """
    rng = random.Random(wanted)
    tries = batos.tries_of(runner(wanted), fields["slots"], fields["arguments"], rng, 12)
    bodies = batos.method_choices(batos.method_lines(fields))
    others = [
        f"{wanted.splitlines()[0]}\n    {body}\n"
        for name, _ in fields["offered"]
        for body in bodies.get(name, ())
    ]
    others = [
        other
        for other in rng.sample(others, min(12, len(others)))
        if not same_behaviour(other, wanted, fields)
    ]
    refused = []
    for other in others:
        tried = batos.tries_of(runner(other), fields["slots"], fields["arguments"], rng, 12)
        refused.append(not tried or bool(batos.unmet(value, tried)))
    return {
        "the right method passes": not batos.unmet(value, tries),
        "other methods fail": sum(refused) / len(refused) if refused else 1.0,
    }


def believed(core, examples):
    """Return the properties that the core was right about wherever it told them, or almost: BELIEVED_SHARE of the times."""
    told = {}
    for (_, fields, source), value in zip(examples, asked_core(core, examples), strict=True):
        tries = batos.tries_of(
            runner(source), fields["slots"], fields["arguments"], random.Random(source), 12
        )
        for name, slot in value["holds"]:
            told.setdefault(name, []).append(all(batos.holds(name, slot, tried) for tried in tries))
    return sorted(
        name
        for name, right in told.items()
        if len(right) >= BELIEVED_LEAST and sum(right) / len(right) >= BELIEVED_SHARE
    )


def judge_summary(value, wanted, fields):
    """Return {criterion: share} for one summary."""
    return {"the author's own first sentence": value["sentence"] == int(wanted)}


JUDGES = {
    "plan": judge_plan,
    "facet": judge_facet,
    "weave": judge_weave,
    "method": judge_method,
    "tests": judge_tests,
    "summary": judge_summary,
}


def random_answer(matcher, tokenizer, rng):
    """Return an answer of which each token is any that the grammar allows: the floor that scores are held against."""
    ids = []
    while not matcher.is_stopped():
        token = rng.choice([i for i, allowed in enumerate(matcher.compute_logit_bias()) if allowed])
        matcher.consume_token(token)
        if token != EOS:
            ids.append(token)
    return tokenizer.decode(ids)


def asked_core(core, examples):
    """Return the values that a CognitiveCore answers to examples."""
    values = []
    for at in range(0, len(examples), 16):
        requests = [batos.CoreRequest(task, fields) for task, fields, _ in examples[at : at + 16]]
        values += [answer.value for answer in core.infer(requests)]
    return values


def asked_chance(core, tokenizer, examples, rng):
    """Return the values of random answers to examples, under the same grammars."""
    values = []
    for task, fields, _ in examples:
        spec = batos.CORE_TASKS[task]
        grammar = spec.prompt(fields)[1]
        matcher = core.on_model_thread(lambda loaded, grammar=grammar: loaded.matcher(grammar))
        values.append(spec.value(random_answer(matcher, tokenizer, rng), fields))
    return values


def judged(examples, values):
    """Return {criterion: percent} over examples of one task."""
    rows = [
        JUDGES[task](value, wanted, fields)
        for (task, fields, wanted), value in zip(examples, values, strict=True)
    ]
    return {name: round(100 * sum(row[name] for row in rows) / len(rows), 1) for name in rows[0]}


SIDES = {
    "fresh": (False, False),
    "held-out words": (True, False),
    "held-out phrasings": (True, True),
}


def trials(options, sources, embedder, router):
    """Return {side: {task: examples}}, with "by hand" as the last side."""
    found = {}
    for side, held in SIDES.items():
        maker = Maker(f"{options.seed} trial", *sources, *held)
        fill_pools(
            maker, embedder, {"plan": 2 * options.trials, "method": 2 * options.trials}, router
        )
        found[side] = {
            task: [getattr(maker, task)() for _ in range(options.trials)]
            for task in batos.CORE_TASKS
        }
        found[side]["tests"] = [("tests", *maker.tried()[:2]) for _ in range(options.trials)]
    methods = hand_methods(embedder, router)[: options.by_hand]
    found["by hand"] = {
        "plan": hand_plans(embedder, router)[: options.by_hand],
        "facet": hand_facets(embedder, random.Random(options.seed))[: options.by_hand],
        "method": methods,
        "tests": hand_tests(methods),
    }
    return found


def evaluate(core, tokenizer, examples, seed):
    """Return {task: {criterion: {side: percent}}}, with random choice on the held-out phrasings and on those by hand."""
    rng, scores = random.Random(seed), {task: {} for task in batos.CORE_TASKS}
    for side, tasks in examples.items():
        for task, rows in tasks.items():
            columns = {side: asked_core(core, rows)}
            if side in ("held-out phrasings", "by hand"):
                columns[f"chance, {side}"] = asked_chance(core, tokenizer, rows, rng)
            for column, values in columns.items():
                for criterion, percent in judged(rows, values).items():
                    scores[task].setdefault(criterion, {})[column] = percent
            print(side, task, judged(rows, columns[side]), flush=True)
    return scores


# Writing the model ############################################################


def finish(model, tokenizer, sources, embedder, options, state):
    """Quantise, write, evaluate and describe the model."""
    quantise(model, tokenizer, options)
    card = {
        "name": "seed-core",
        "format": batos.CORE_FORMAT_VERSION,
        "fingerprint": batos.core_tasks_fingerprint(),
        "seed": options.seed,
        "threads": options.threads,
        "minutes": round(state["seconds"] / 60, 1),
        "steps": state["steps"],
        "tokens": state["tokens"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "sizes": SIZES,
        "trials": options.trials,
        "sample_losses": {},
        "files": {},
        "scores": {},
    }
    write_card(options.out, card)
    describe(card, tokenizer, sources, embedder, options)


def describe(card, tokenizer, sources, embedder, options):
    """Evaluate the core in --out and write its cards."""
    core = batos.CognitiveCore(lambda: options.out, threads=options.threads).start()
    core.wait_ready(300)
    card["trials"] = options.trials
    card["sample_losses"] = {
        tag: round(loss, 4) for tag, loss in core.on_model_thread(batos.sample_losses)[0].items()
    }
    examples = trials(options, sources, embedder, batos.read_router(options.out))
    card["scores"] = evaluate(core, tokenizer, examples, options.seed)
    card["believed"] = believed(core, examples["held-out phrasings"]["tests"])
    core.close()
    write_card(options.out, card)
    (options.out / "README.md").write_text(model_card(card), "utf-8")


def quantise(model, tokenizer, options):
    """Write model, tokenizer and router into --out, the model in nf4, saved before its first forward pass."""
    import torch
    import transformers

    plain = options.work / "plain"
    model.eval().save_pretrained(plain)
    packed = transformers.LlamaForCausalLM.from_pretrained(
        plain, dtype=torch.float32, quantization_config=batos.quantization(torch.float32)
    )
    options.out.mkdir(parents=True, exist_ok=True)
    packed.save_pretrained(options.out)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=SIZES["max_position_embeddings"],
    ).save_pretrained(options.out)
    shutil.copy(options.work / batos.ROUTER_FILE, options.out / batos.ROUTER_FILE)


def write_card(out, card):
    """Write core.json, with size and SHA-256 of the files beside it."""
    paths = [path for path in batos.core_files(out) if path.name != batos.CORE_CARD]
    card["files"] = {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in paths
    }
    (out / batos.CORE_CARD).write_text(json.dumps(card, indent=1) + "\n", "utf-8")


# fmt: off
GUARANTEES = (                     # task, what the grammar guarantees, what retrieval gives, what the model adds
    ("plan", "one of the archetypes offered, two to four pillars of its personas, none twice, for each words of the mission with "
     "a telling one among them; code widens them until, as far as there is room, no telling word is left out",
     "the two archetypes that the router offers", "which archetype, which pillars, which words"),
    ("facet", "one or two real numbers of the evidence whose share is at least half of the greatest, a frame of the persona's "
     "voice around the question's own words", "the sentences, and behind each its share of the question in tenths",
     "which sentences answer, which frame"),
    ("weave", "real numbers, none twice, the lead's frame and closing", "the quotes with their shares",
     "which quotes, in what order"),
    ("method", "one idiom as Python over real slots of a fitting type, of those that the request names where it names any, for "
     "the number of arguments that is given; BAT OS asks it only which of two idioms is meant that words and router hold for "
     "equally likely, and lets it write no other", "what the router offers, as a hint: it binds nothing", "which idiom"),
    ("tests", "a kind of result, or slots that change, and properties that can be true of them; BAT OS does not ask for them: "
     "what a core makes up neither confirms nor refuses a method", "what the router offers, as a hint: it binds nothing",
     "which kind, which slots, which properties"),
    ("summary", "the number of one sentence", "what share of the passage each holds", "which sentence"),
)
# fmt: on
CARD = """# The embedded core

A model of the Llama architecture with {parameters:,} weights ({layers} layers, width {width}, vocabulary {vocabulary}),
trained from scratch by `train.py` in this folder: {minutes} minutes on {threads} processor cores, {tokens:,} tokens, seed {seed}.
It is stored in four bits (nf4, double quantisation). Its data are generated by `train.py` from {missions:,} phrasings of
missions, {requests:,} of method requests and {pairs:,} questions with their answers (`phrasings/`), each written
independently, from word lists, composed facts, and sentences of the docstrings of Python's standard library.

    python seed_core/train.py --minutes 90            # trains anew; --resume goes on from the checkpoint

`core.json` holds sizes, scores, the hashes of the files, and the fingerprint of the tasks
({fingerprint}): BAT OS refuses a core whose fingerprint is not its own.

## What chooses, what guarantees

It chooses and frames; it does not know. Beside it stands the router, a linear classifier over the vectors of the catalog's
embedder; where no embedder is loaded, nothing is offered. Methods are found by code, which ranks all that one or two steps
make by words and by the router, and holds them against examples; the core is asked where two come out alike.

| task | the grammar guarantees | retrieval gives | the model adds |
|---|---|---|---|
{guarantees}

## Scores

Percent; {trials} examples a column and task, by hand 200 missions (89 of them with sentences that answer and that are near)
and {hand} method requests (of 100, those whose selector stands in no phrasing). Answers are scored as told under the grammar,
from the four-bit weights. *Fresh*: new examples from
the words and phrasings of training. *Held-out words*: nouns, names, slots and docstrings that training never saw.
*Held-out phrasings*: these, in phrasings that it never saw. *By hand*: `missions.txt` and `methods.txt`, committed before
the data were generated, never trained on. *Chance*: the same examples as in the column before it, each token drawn at
random from what the grammar allows, with the router's offers.

| task | criterion | fresh | held-out words | held-out phrasings | chance | by hand | chance |
|---|---|---|---|---|---|---|---|
{rows}

What a criterion means: *useful pillars*, they belong to the right archetype's set; *nouns kept*, of the nouns marked in a
mission (by hand) or in the spans of its phrasing, those that stand in some sub-query; *passes its tests*, by hand: does what
the tests written with the request want, else: does the same as the method that was composed, on sampled objects; *the right
method passes*, the tests that were told for it; *other methods fail*, of those that the offered idioms can become over the same
slots and that do something else. Bound by its tests are: result, changed slots, and {believed}.

## Limits

English only. It takes little more from a sentence than its rank and its share: of quotes that are offered for a weave it tells
nearly all. What it says of a method's properties is right in six of ten cases; so few of them bind. Methods are one line long;
what no idiom says it cannot write.
"""


def model_card(card):
    """Return README.md."""
    sides = (
        "fresh",
        "held-out words",
        "held-out phrasings",
        "chance, held-out phrasings",
        "by hand",
        "chance, by hand",
    )
    rows = [
        f"| {task} | {criterion} | {' | '.join(f'{told[side]:.1f}' if side in told else '–' for side in sides)} |"
        for task, criteria in card["scores"].items()
        for criterion, told in criteria.items()
    ]
    counted = {
        "missions": sum(len(lines_of(f"phrasings/{name}.txt")) for name in PHRASE_FILES.values()),
        "requests": len(lines_of("phrasings/methods.txt")),
        "pairs": len(lines_of("phrasings/answers.txt")),
    }
    counted |= {
        "hand": len(by_hand_methods()),
        "believed": ", ".join(card["believed"]) or "nothing else",
    }
    return CARD.format(
        **card | counted,
        rows="\n".join(rows),
        layers=SIZES["num_hidden_layers"],
        width=SIZES["hidden_size"],
        vocabulary=SIZES["vocab_size"],
        guarantees="\n".join(f"| {' | '.join(row)} |" for row in GUARANTEES),
    )


def main():
    """Train, quantise, evaluate, write the model card."""
    options = arguments()
    import safetensors.torch
    import torch
    from tokenizers import Tokenizer

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint, words = options.work / "checkpoint.pt", options.work / "tokenizer.json"
    state = {"seconds": 0.0, "steps": 0, "tokens": 0}
    sources, embedder = docstring_passages(), batos.Embedder("auto")
    embedder.start()
    embedder.close(600)  # waits until it is loaded
    if options.evaluate:
        tokenizer = Tokenizer.from_file(str(options.out / "tokenizer.json"))
        return describe(batos.core_card(options.out), tokenizer, sources, embedder, options)
    if options.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
    # a resumed run sees new examples, not those of its beginning once more
    maker = Maker(f"{options.seed}/{state['steps']}", *sources)
    router = fill_pools(maker, embedder, {"plan": options.pool, "method": options.pool})
    safetensors.torch.save_file(
        router, options.work / batos.ROUTER_FILE, {"embedder": embedder.name}
    )
    if options.resume and words.exists():
        tokenizer = Tokenizer.from_file(str(words))
    else:
        tokenizer = train_tokenizer(maker, SIZES["vocab_size"])
        tokenizer.save(str(words))
    model = new_model()
    if "model" in state:
        model.load_state_dict(state.pop("model"))
    print(
        f"{sum(p.numel() for p in model.parameters())} parameters, {len(sources[0])} docstring sentences",
        flush=True,
    )
    state = train(model, maker, tokenizer, options, state)
    return finish(model, tokenizer, sources, embedder, options, state)


def arguments():
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--minutes", type=float, default=90, help="length of the training, over all resumed runs"
    )
    parser.add_argument(
        "--steps", type=int, default=sys.maxsize, help="of all resumed runs, if sooner"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --work")
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="train nothing: evaluate the core in --out, write its card anew",
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument(
        "--work",
        type=pathlib.Path,
        default=pathlib.Path(tempfile.gettempdir()) / "seed_core_work",
        help="folder for checkpoints",
    )
    parser.add_argument("--threads", type=int, default=2, help="processor cores to use")
    parser.add_argument(
        "--trials", type=int, default=300, help="examples of each task and column in the evaluation"
    )
    parser.add_argument(
        "--by-hand",
        type=int,
        help="of what was written by hand, the examples of each task in the evaluation",
    )
    parser.add_argument(
        "--pool",
        type=int,
        default=24000,
        help="missions, and method requests, that the router offers for",
    )
    parser.add_argument("--batch-tokens", type=int, default=4096, help="padded tokens in one step")
    return parser.parse_args()


if __name__ == "__main__":
    main()
