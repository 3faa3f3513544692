"""Train the embedded core of BAT OS from scratch, on data that this file generates.

    python seed_core/train.py --minutes 20 [--resume] [--seed 7] [--out seed_core] [--work DIR] [--threads 1]

It writes into --out: the model quantised to nf4 with double quantisation (safetensors), its tokenizer, core.json
(sizes, seed, scores, the fingerprint of CORE_TASKS) and README.md, the model card. Checkpoints and the log go to
--work, from where --resume goes on. One processor core and about 2 GB of memory suffice.

The data are examples of the tasks in batos.CORE_TASKS. Missions are composed from phrasings and word lists below;
evidence from fact sentences about the same words and from sentences of the standard library's docstrings. One
word in seven, one phrasing in six and one docstring sentence in ten are held out for the evaluation.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import pathlib
import random
import re
import sys
import sysconfig
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import batos

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
citations|chunks|summaries|decisions|habits|errors|states|slots|experts|drafts""".replace("\n", "|").split("|")

NAMES = """Mira Tolvan|Anders Quill|Teresa Nwosu|Jonas Keller|Amina Farah|Piotr Zelny|Lucia Marchetti|Henrik Dahl
Sofia Arrow|Kenji Morita|Elena Petrova|Omar Haddad|Greta Lindholm|Paolo Ricci|Maeve Connor|Ivan Drago
Hana Sato|Felix Braun|Nora Whitlock|Samuel Osei|Clara Vance|Rafael Ortiz|Ingrid Moe|Daniel Frost""".replace(
    "\n", "|").split("|")

PLACES = """Porto|Lisbon|Bergen|Trieste|Valencia|Bristol|Ghent|Riga|Tampere|Krakow|Geneva|Aarhus|Dublin|Turin|Cadiz
Leiden|Hobart|Kyoto|Nairobi|Quito|Halifax|Malmo|Graz|Utrecht""".replace("\n", "|").split("|")

SYLLABLES = "ba be bo da de do fa fe ga go ka ke ki ko la le li lo ma me mi mo na ne no pa pe po ra re ri ro sa se "\
            "si so ta te ti to va ve vo za zu bran dor fen gal hul jor kel lum mar nor pel quin ras sol tur vel wex".split()

# Missions: (archetype, pillar) -> phrasings. {X} is what it is about; <…> are the words to look up ##############

PHRASES = {
    ("Technical Deconstruction", "tamland_facet_"): """how does <{X} work>|what are the parts of <{X}>
take <{X}> apart step by step|walk me through <{X}> one step at a time|describe what happens inside <{X}>
how is <{X} put together>|which components make up <{X}>|break <{X}> down into its pieces
what does <{X} do>, literally|how do the pieces of <{X}> fit together|what is inside <{X}>
show me the mechanism of <{X}>|how does <{X} turn {N} into {M}>|what steps does <{X} go through>
list the components of <{X}>|deconstruct <{X}>|how does <{X} keep {N} moving>|how exactly does <{X} handle {N}>
what happens when <{X} meets {N}>|how does <{X} stay stable>|how does <{X} operate>|dissect <{X}> for me""",
    ("Technical Deconstruction", "lego_batman_facet_"): """how do we fix <{X}>|how can I repair <{X}>
what would it take to build <{X}>|how do I stop <{X} from failing>|design a plan to protect <{X}>
how should I construct <{X}>|what breaks <{X}> and how do we prevent it|how do I install <{X}>
make a plan to restore <{X}>|how do we defend <{X}> against <{N}>|what is the way to assemble <{X}>
how do I set up <{X}>|how can we make <{X} stronger>|how do I debug <{X}>|plan the repair of <{X}>
how would you rebuild <{X}>|solve the problem with <{X}>|what do I need to replace <{X}>""",
    ("Technical Deconstruction", "guide_facet_"): """explain <{X}>|explain how <{X}> came to work this way
what is the principle behind <{X}>|why does <{X} behave this way>|why does <{X} need {N}>
give me an overview of how <{X}> functions|what is the theory behind <{X}>|why is <{X} built like that>
compare <{X}> with <{N}>|what is the difference between <{X} and {N}>|why does <{X} affect {N}>
how is <{X} related to {N}>|what rules govern <{X}>|teach me the basics of <{X}>|why does <{X} fail>
help me understand <{X}>|explain why <{X} depends on {N}>|what causes <{X}> to change""",
    ("Technical Deconstruction", "sage_facet_"): """what does <{X}> mean for the people who use it
how does <{X}> feel to live with|what should we be mindful of with <{X}>|is it wise to rely on <{X}>
what is the deeper purpose of <{X}>|how does it serve people|who is helped by <{X}>""",
    ("Emotional Processing", "sage_facet_"): """how can I make peace with <{T}>|I can not let go of <{T}>
help me accept <{T}>|I keep thinking about <{T}>|how do I find calm about <{T}>|I need wisdom about <{T}>
what can I learn from <{T}>|I struggle with <{T}>|<{T}> weighs on me|how do I forgive myself for <{T}>
I do not know how to live with <{T}>|I am torn about <{T}>|I am anxious about <{T}>|<{T}> keeps me awake""",
    ("Emotional Processing", "simple_heart_facet_"): """I feel sad about <{T}>|I feel lonely since <{T}>|I miss <{T}>
<{T}> hurts so much|I feel so alone with <{T}>|I am crying about <{T}>|please comfort me about <{T}>
I am worried about <{T}>|I am afraid of <{T}>|I am scared of <{T}>|I feel guilty about <{T}>|my heart aches over <{T}>
I feel hurt by <{T}>|nobody understands <{T}>|I am grieving over <{T}>|<{T}> makes me sad|I feel down because of <{T}>""",
    ("Emotional Processing", "joyful_spark_facet_"): """I am so happy about <{T}>|I want to celebrate <{T}>
cheer me up about <{T}>|I am excited about <{T}>|<{T}> makes me smile|I am grateful for <{T}>|I am proud of <{T}>
I want to laugh again about <{T}>|I feel joy because of <{T}>|help me enjoy <{T}>|I love <{T}>
I can hardly wait for <{T}>|let us be playful about <{T}>|I feel delighted by <{T}>""",
    ("Emotional Processing", "guide_facet_"): """why do I feel this way about <{T}>|why does <{T}> trouble me so
where does this feeling about <{T}> come from|is it normal to feel like this about <{T}>
explain my feelings about <{T}>|what is behind my mood about <{T}>""",
    ("Emotional Processing", "lego_batman_facet_"): """what can I do against my fear of <{T}>
how do I get through <{T}>|I need a plan to cope with <{T}>|how do I face <{T}>|how do I stay strong with <{T}>
how can I overcome my grief about <{T}>""",
    ("Factual Inquiry", "tech_bat_facet_"): """what data is there on <{X}>|list the sources on <{X}>|how large is <{X}>
how many {N} does <{X} have>|how much does <{X} weigh>|what are the figures for <{X}>|how long is <{X}>
how high is <{X}>|what numbers are recorded for <{X}>|how much {N} does <{X} use>|give me statistics on <{X}>
what does <{X} cost>|which records mention <{X}>|how old is <{X}>|how far is it to <{X}>|count the <{N} of {X}>
what do the documents say about <{X}>|find the measurements of <{X}>""",
    ("Factual Inquiry", "iceman_facet_"): """when was <{X} built>|who built <{X}>|where is <{X}>|who invented <{X}>
in which year did <{X} open>|who owns <{X}>|where was <{X} found>|when did <{X} begin>|who wrote about <{X}>
what is the exact date of <{X}>|which city has <{X}>|who discovered <{X}>|when does <{X} close>|who runs <{X}>
where does <{X} come from>|who designed <{X}>|what is the name of <{X}>|which country made <{X}>|who is <{P}>
when was <{P}> born|where did <{P}> live|when was <{X} repaired>""",
    ("Factual Inquiry", "hitchhiker_facet_"): """what is <{X}>|tell me about <{X}>|what is known about <{X}>
tell me something odd about <{X}>|what is <{X} made of>|is there anything surprising about <{X}>|what colour is <{X}>
what is the story of <{X}>|any curious facts about <{X}>|what kind of {N} is <{X}>|what is <{X} used for>
do you know anything about <{X}>|what was <{X}>|tell me who <{P}> was|what else is there on <{X}>
what is <{X} famous for>|what does <{X}> look like""",
    ("Factual Inquiry", "guide_facet_"): """what is the background of <{X}>|put <{X}> in context
what does the term <{X}> mean|define <{X}>|give the definition of <{X}>|summarise what is written on <{X}>""",
    ("Systemic Self-Improvement", "pragmatist_facet_"): """how could you answer faster about <{X}>
which of your <{S}> are too slow|what do your <{S}> cost|how can you use your <{S}> better|make your <{S}> leaner
what is the cheapest way to improve your <{S}>|which of your <{S}> do you really need|make yourself more efficient
optimise your own <{S}>|reduce the size of your <{S}>|how could your <{S} be simpler>|speed up your <{S}>
how can BAT OS improve its <{S}>|where do you waste time in your <{S}>""",
    ("Systemic Self-Improvement", "disruptor_facet_"): """what should you change in your own <{S}>
which of your <{S}> should go|question your own <{S}>|what is wrong with your <{S}>|why do your <{S} keep failing>
how would you reinvent your <{S}>|challenge the way your <{S} work>|why did your <{S} fail>
what would you throw away from your <{S}>|rethink your <{S}>|what is the weakness of your <{S}>
criticise your own <{S}>|where are you wrong in your <{S}>""",
    ("Systemic Self-Improvement", "butler_facet_"): """tidy up your own <{S}>|check your <{S} for {X}>|audit your <{S}>
review your own <{S}>|put your <{S}> in order|clean up your <{S}>|keep your <{S}> in good repair
inspect the health of your <{S}>|look after your <{S}>|maintain your own <{S}>|sort out your <{S}>
perform a self audit of your <{S}>|analyse your <{S}> and resolve them""",
    ("Systemic Self-Improvement", "lego_batman_facet_"): """write yourself a tool for <{X}>
build a new method that handles <{X}>|forge a tool to check your <{S}>|give yourself a method for <{X}>
create a better tool for your <{S}>""",
    ("Systemic Self-Improvement", "tech_bat_facet_"): """measure your own <{S}>|gather statistics on your <{S}>
what do your metrics say about your <{S}>|how many of your <{S}> failed|collect data on your own <{S}>""",
}
PHRASES = {key: [p.strip() for line in text.split("\n") for p in line.split("|")] for key, text in PHRASES.items()}

DEFAULT_PILLARS = {                                      # who joins where the clauses name too few pillars
    "Technical Deconstruction": ("guide_facet_", "sage_facet_"),
    "Emotional Processing": ("simple_heart_facet_", "guide_facet_"),
    "Factual Inquiry": ("tech_bat_facet_", "guide_facet_"),
    "Systemic Self-Improvement": ("pragmatist_facet_", "tech_bat_facet_"),
}
BEFORE = ["", "", "", "", "", "please ", "hello, ", "can you tell me: ", "I wonder, ", "quick question: ", "hey, ",
          "could you help me? ", "for my notes: ", "good morning. ", "dear all, ", "we need to know: "]
AFTER = ["", "", "", "", "", " please", " today", " in short", " if you can", " thank you", " for a friend",
         " with sources", " in a few words"]
JOINTS = [", and ", " and ", "; also, ", ". Then: ", "? And ", ". ", "? ", ", but ", " - "]

# Facts: relation -> (words of a query, sentences). {Y} stands for a second thing, numbers and names likewise ###

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


def invented(rng):
    """Return a word that no list has, so that copying, not memory, is learned."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3))))


class Words:
    """The words and phrasings of one side, training or held out, and a random generator over them."""

    def __init__(self, rng, held_out):
        def side(items, every):
            """Return the items of my side; which those are does not depend on order or seed."""
            return [x for x in dict.fromkeys(items) if (sum(map(ord, x)) % every == 0) == held_out]

        self.rng = rng
        self.nouns, self.adjectives, self.parts = side(NOUNS, 7), side(ADJECTIVES, 7), side(PARTS, 7)
        self.troubles, self.selves = side(TROUBLES, 7), side(SELF_PARTS, 7)
        self.names, self.places = side(NAMES, 7) or NAMES, side(PLACES, 7) or PLACES
        self.phrases = {key: side(phrases, 6) or phrases[:1] for key, phrases in PHRASES.items()}

    def noun(self):
        """Return a noun, in three of ten cases an invented one."""
        word = invented(self.rng) if self.rng.random() < 0.25 else self.rng.choice(self.nouns)
        return word + "s" if self.rng.random() < 0.15 else word

    def thing(self):
        """Return a noun phrase of one to five words."""
        rng, noun = self.rng, self.noun
        adjective = rng.choice(self.adjectives)
        return rng.choice((
            lambda: f"the {noun()}", lambda: f"the {adjective} {noun()}", lambda: f"the {noun()} {rng.choice(self.parts)}",
            lambda: f"the {rng.choice(self.parts)} of the {noun()}", lambda: f"{adjective} {noun()}s",
            lambda: f"a {adjective} {noun()}", lambda: f"the {noun()} of {rng.choice(self.places)}",
            lambda: f"{invented(rng).title()} {noun()}", lambda: noun(), lambda: f"the {noun()} {noun()}",
            lambda: f"our {noun()} {rng.choice(self.parts)}", lambda: invented(rng).title()))()

    def trouble(self):
        """Return what a feeling is about: mostly of people's lives, at times any thing."""
        return self.thing() if self.rng.random() < 0.25 else self.rng.choice(self.troubles)

    def fill(self, phrase):
        """Return (clause, words to look up, topic) of one phrasing."""
        rng = self.rng
        values = {"X": self.thing(), "T": self.trouble(), "S": rng.choice(self.selves), "N": self.noun(),
                  "M": self.noun(), "P": rng.choice(self.names)}
        topic = next(values[slot] for slot in "XTSP" if "{" + slot + "}" in phrase or slot == "P")
        marked = re.sub(r"\{(\w)\}", lambda m: values[m.group(1)], phrase)
        spans = re.findall(r"<([^>]+)>", marked)
        return re.sub(r"[<>]", "", marked), spans[0] if spans else None, topic

    def name(self):
        """Return a person's name."""
        return self.rng.choice(self.names)

    def fact(self, relation, thing):
        """Return a sentence that tells `relation` of `thing`."""
        rng = self.rng
        sentence = rng.choice(RELATIONS[relation][1])
        values = {"X": thing, "Y": self.noun(), "Z": self.noun(), "adj": rng.choice(self.adjectives),
                  "n": str(rng.choice((rng.randint(2, 99), rng.randint(100, 9000)))), "year": str(rng.randint(1500, 2040)),
                  "name": self.name(), "place": rng.choice(self.places)}
        text = re.sub(r"\{(\w+)\}", lambda m: values[m.group(1)], sentence)
        return text[0].upper() + text[1:]


# Docstrings ###################################################################

def docstring_sentences():
    """Return English sentences of 5 to 36 words from the docstrings of the standard library, sorted, each once."""
    found = set()
    for path in sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8", "ignore"))
        except (SyntaxError, ValueError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.update(sentences_of(ast.get_docstring(node) or ""))
    return sorted(found)


def sentences_of(docstring):
    """Yield the plain sentences of a docstring."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        if ">>>" in paragraph or "::" in paragraph:
            continue
        for sentence in re.findall(r"[A-Z][^.!?\n]*(?:\n[^.!?\n]+)*[.!?](?=\s|$)", paragraph):
            line = " ".join(sentence.split())
            if 5 <= len(line.split()) <= 36 and len(line) <= 240 and re.search(r"[a-z]{3}", line):
                yield line


STOP = set("""a an and are as at be been but by can do does for from had has have how i if in into is it its me my not
of on or our so than that the their them then there these this those to use used using was we were what when where which
who why will with you your it's may must should would could any all each also only same such other more most some
no nor one two new return returns given""".split())


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
                return low[:-len(end)]
        return low.removesuffix("e") + rng.choice(("ing", "ed"))
    return word


# Examples #####################################################################

class Maker:
    """Makes examples (task tag, fields, answer) of one side, training or held out."""

    def __init__(self, seed, held_out, sentences):
        self.rng = random.Random(f"{seed} {held_out}")
        self.words = Words(self.rng, held_out)
        self.sentences = [s for s in sentences if (sum(map(ord, s)) % 10 == 0) == held_out]

    def example(self):
        """Return one example of a random task."""
        task = self.rng.choices(("plan", "facet", "weave"), (30, 45, 25))[0]
        return getattr(self, task)()

    def clauses(self):
        """Return (archetype, [(clause, pillar, span or None, topic)]): one to three clauses of one mission."""
        rng = self.rng
        archetype = rng.choice(batos.ARCHETYPES)
        lead = batos.ARCHETYPE_PERSONAS[archetype][0]
        keys = [key for key in PHRASES if key[0] == archetype]
        leading = [key for key in keys if key[1] in batos.PILLARS[lead]]
        picked = [rng.choice(leading)]
        picked += [rng.choice(keys) for _ in range(rng.choices((0, 1, 2), (55, 33, 12))[0])]
        out = []
        for key in picked:
            clause, span, topic = self.words.fill(rng.choice(self.words.phrases[key]))
            out.append((clause, key[1], span, topic))
        return archetype, out

    def mission(self, clauses):
        """Return the clauses as one text, as people write: with or without capital, greeting, mark."""
        rng = self.rng
        text = clauses[0][0]
        for clause, *_ in clauses[1:]:
            joint = rng.choice(JOINTS)
            text += joint + (clause[0].upper() + clause[1:] if joint[0] in ".?" and rng.random() < 0.8 else clause)
        text = rng.choice(BEFORE) + text + rng.choice(AFTER)
        if rng.random() < 0.75:
            text = text[0].upper() + text[1:]
        return text + rng.choice(("?", "?", "", ".", "!"))

    def plan(self):
        """A mission and its plan: each clause goes to its pillar, the archetype's defaults fill up to two."""
        archetype, clauses = self.clauses()
        mission = self.mission(clauses)
        queries = {}
        for clause, pillar, span, _ in clauses:
            queries.setdefault(pillar, span or clause.rstrip("?"))
        spare = [p for p in DEFAULT_PILLARS[archetype] if p not in queries]
        first = clauses[0][3] if clauses[0][3] in mission else next(iter(queries.values()))
        while len(queries) < 2:
            queries[spare.pop(0)] = first
        lines = [f"{p}: {self.copied(queries[p], mission)}" for p in batos.PILLAR_ORDER if p in queries]
        return "plan", {"mission": mission}, "\n".join([archetype, *lines])

    def copied(self, span, mission):
        """Return `span` as it stands in `mission` (a greeting may have changed a capital)."""
        at = mission.lower().find(span.lower())
        return mission[at:at + len(span)] if at >= 0 else mission.rstrip("?.! ")

    def asked(self):
        """Return (query, topic, relevant sentences, look-alikes): what is looked up and what speaks of it."""
        if self.rng.random() < 0.5:
            return self.asked_of_facts()
        return self.asked_of_docstrings()

    def asked_of_facts(self):
        """As `asked`, from composed facts: the query tells thing and relation, look-alikes share one of the two."""
        rng, words = self.rng, self.words
        thing, relation = words.thing(), rng.choice(list(RELATIONS))
        cue = rng.choice(RELATIONS[relation][0])
        query = cue.replace("{X}", thing) if "{X}" in cue else rng.choice((f"{thing} {cue}", f"{thing} {cue}", thing))
        right = [words.fact(relation, thing)]
        if rng.random() < 0.3:
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
        right = rng.sample(self.sentences, 2 if rng.random() < 0.25 else 1)
        query = []
        for sentence in right:
            content = content_words(sentence) or sentence.split()
            picked = sorted(rng.sample(range(len(content)), min(len(content), rng.randint(2, 5))))
            if rng.random() < 0.3:
                rng.shuffle(picked)
            query += [bent(content[i], rng) for i in picked]
        alike = rng.sample(self.sentences, rng.randint(0, 7))
        topic = " ".join(query[:rng.randint(1, min(3, len(query)))])
        if rng.random() < 0.3:
            query = ["the", *query]
        return " ".join(query), topic, right, alike

    def listed(self, query, right, alike):
        """Return (sentences, their shares, numbers of the right ones); the greatest share first, as the catalog has it."""
        right = list(dict.fromkeys(right))
        pool = right + [s for s in dict.fromkeys(alike) if s not in right]
        pool = pool[:max(len(right), self.rng.choice((1, 2, 3, 4, 4, 6, 8)))]
        self.rng.shuffle(pool)
        ranked = sorted(zip(self.shares(query, pool), pool, strict=True), key=lambda pair: -pair[0])
        return [s for _, s in ranked], [share for share, _ in ranked], [n for n, (_, s) in enumerate(ranked, 1) if s in right]

    def shares(self, query, sentences):
        """Return what share of the query's words each sentence holds; longer words count more, as rarer ones do.

        What else the catalog weighs (headings, words of the mission outside the sub-query) is noise here.
        """
        def weights(text):
            return {word: len(word) for word in batos.words_of(text)}

        asked = weights(query)
        total = sum(asked.values()) or 1
        held = [sum(asked[word] for word in asked.keys() & weights(sentence).keys()) / total for sentence in sentences]
        scale, noise = self.rng.choice((1.0, 1.0, 0.8, 0.6)), self.rng.choice((0.0, 0.05, 0.1))
        return [min(1.0, max(0.0, scale * share + self.rng.uniform(-noise, noise))) for share in held]

    def facet(self):
        """A sub-query over evidence: which sentence answers, and a frame that suits it."""
        rng = self.rng
        persona = rng.choice(list(batos.PILLARS))
        pillar = rng.choice(batos.PILLARS[persona])
        query, topic, right, alike = self.asked()
        sentences, shares, numbers = self.listed(query, right, alike)
        numbers = numbers[:batos.QUOTES_MOST]
        opening = 2 * batos.PILLARS[persona].index(pillar) + (len(query.split()) > 3)
        frame = framed(persona, opening, topic, len(numbers), sentences[numbers[0] - 1])
        fields = {"persona": persona, "pillar": pillar, "sub_query": query, "evidence": sentences,
                  "shares": shares}
        return "facet", fields, " ".join(map(str, numbers)) + "\n" + frame

    def weave(self):
        """A mission over quotes: those that answer it, the one that holds most of it first; the rest are left out."""
        rng = self.rng
        lead = rng.choice(list(batos.PILLARS))
        parts = [self.asked() for _ in range(rng.choices((1, 2, 3), (45, 40, 15))[0])]
        mission = rng.choice(BEFORE) + rng.choice(JOINTS).join(part[0] for part in parts)
        question = rng.random() < 0.5
        mission = mission[0].upper() + mission[1:] + ("?" if question else "")
        right = [s for part in parts for s in part[2]]
        alike = [s for part in parts for s in part[3]]
        alike = rng.sample(alike, min(len(alike), rng.randint(0, 3)))
        sentences, shares, numbers = self.listed(mission, right[:8], alike)
        opening = 2 * (len(parts) - 1) + (not question)
        frame = framed(lead, opening, self.copied(parts[0][1], mission), len(numbers), sentences[numbers[0] - 1])
        close = batos.VOICES[lead]["closings"][2 * (min(len(numbers), 3) - 1) + (not question)]
        fields = {"lead": lead, "mission": mission, "quotes": sentences, "shares": shares}
        return "weave", fields, " ".join(map(str, numbers)) + "\n" + frame + "\n" + close


def framed(persona, opening, topic, quotes, first):
    """Return the frame that training teaches: links go by the number of quotes and the look of the first."""
    look = 1 if re.search(r"\d", first) else 2 if len(first.split()) > 15 else 0
    voice = batos.VOICES[persona]
    return voice["openings"][opening] + topic + voice["links"][look + (3 if quotes > 1 else 0)]


# Tokenizer ####################################################################

def train_tokenizer(maker, vocabulary):
    """Return a byte-level BPE tokenizer that cuts a word the same way wherever it stands.

    Text is split into runs of letters, single digits, single blanks and line ends, and runs of other bytes, before
    any merge; so a word never takes a blank or a mark along. Every Unicode text survives the round trip.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    cut = Regex(r"[A-Za-z]+|[0-9]|_|\n| |[^A-Za-z0-9_\n ]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(cut, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    texts = []
    for _ in range(6000):
        task, fields, answer = maker.example()
        texts.append(batos.CORE_TASKS[task].prompt(fields)[0] + answer)
    voices = [part for voice in batos.VOICES.values() for parts in voice.values() for part in parts]
    texts += voices * 40 + [" ".join(batos.PILLAR_ORDER + batos.ARCHETYPES)] * 200 + maker.sentences
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<|pad|>", "<|bos|>", "<|eos|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


PAD, BOS, EOS = 0, 1, 2

# Training #####################################################################

SIZES = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
         "tie_word_embeddings": True, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
         "rope_theta": 10000.0, "rms_norm_eps": 1e-5}


def new_model(sizes=SIZES):
    """Return a Llama with random weights."""
    import transformers

    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, attn_implementation="sdpa"))


CHOICE_WEIGHT = 5.0                # of the answer's first line: archetype, or numbers; all else follows from it
PROMPT_SHARE, PROMPT_WEIGHT = 0.15, 0.3


def pieces(example):
    """Return [(text, weight of its tokens)] of an example: prompt (0), the answer's first line, the rest."""
    task, fields, answer = example
    choice, _, rest = answer.partition("\n")
    return [(batos.CORE_TASKS[task].prompt(fields)[0], 0.0), (choice, CHOICE_WEIGHT), ("\n" + rest, 1.0)]


def encoded(tokenizer, examples):
    """Return [(token ids, weights)] of examples, each from one mark of beginning to one of end."""
    parts = [pieces(example) for example in examples]
    ids = iter(tokenizer.encode_batch([text for row in parts for text, _ in row], add_special_tokens=False))
    rows = []
    for row in parts:
        told = [(token, weight) for _, weight in row for token in next(ids).ids]
        rows.append(([BOS, *(token for token, _ in told), EOS], [0.0, *(weight for _, weight in told), 1.0]))
    return rows


def batches(maker, tokenizer, tokens):
    """Yield lists of encoded examples of like length, at most `tokens` padded tokens each, for ever."""
    while True:
        rows = sorted(encoded(tokenizer, [maker.example() for _ in range(512)]), key=lambda row: len(row[0]))
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
        ids[i, :len(row)] = torch.tensor(row)
        told = torch.tensor(weights)
        weight[i, :len(row)] = torch.where(told > 0, told, (torch.rand(len(row)) < PROMPT_SHARE) * PROMPT_WEIGHT)
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
            choices = [told[i - 1] == ids[i] for i, weight in enumerate(weights) if weight == CHOICE_WEIGHT]
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
    both = [torch.optim.Muon(inner, lr=0.02, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(outer, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]
    for optimizer in both:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return both


def rate_at(share):
    """Return the factor of the rates when `share` of the time has gone: up at once, level, down in the last half."""
    return min(1.0, share / 0.01 + 0.02, 0.03 + 0.97 * (1 - share) / 0.5)


def train(model, maker, tokenizer, options, state):
    """Train until `options.minutes` are used up, over all runs that resumed one another. Return the state."""
    import torch

    optimizers = optimizers_of(model)
    for optimizer, kept in zip(optimizers, state.pop("optimizers", ()), strict=False):
        optimizer.load_state_dict(kept)
    limit_s, before_s = options.minutes * 60, state["seconds"]
    start, saved, smooth = time.monotonic(), time.monotonic(), None
    trial = Maker("watch", False, maker.sentences)
    watched = {task: [getattr(trial, task)() for _ in range(60)] for task in batos.CORE_TASKS}
    watched = {task: encoded(tokenizer, examples) for task, examples in watched.items()}
    model.train()
    for rows in batches(maker, tokenizer, options.batch_tokens):
        state["seconds"] = before_s + time.monotonic() - start
        share = state["seconds"] / limit_s
        if share >= 1:
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
            right = ", ".join(f"{task} {right_choices(model, kept):.2f}" for task, kept in watched.items())
            print(f"step {state['steps']} {state['seconds']:.0f} s {state['tokens']} tokens loss {smooth:.3f} right "
                  f"choices: {right}", flush=True)
        if time.monotonic() - saved > 120:
            save_checkpoint(options.work, model, optimizers, state)
            saved = time.monotonic()
    save_checkpoint(options.work, model, optimizers, state)
    return state


def save_checkpoint(work, model, optimizers, state):
    """Write all that --resume needs, by a rename, so that a kill leaves the one before."""
    import torch

    fresh = work / "checkpoint.new"
    torch.save({**state, "model": model.state_dict(), "optimizers": [one.state_dict() for one in optimizers]}, fresh)
    fresh.replace(work / "checkpoint.pt")


# Evaluation ###################################################################

# Missions that nobody composed: written by hand, never trained on.
BY_HAND = [
    ("How does a lock on a canal lift a boat without any engine?", "Technical Deconstruction"),
    ("Explain how the write-ahead log protects the database.", "Technical Deconstruction"),
    ("What are the steps to bleed the brakes on my bicycle?", "Technical Deconstruction"),
    ("Why does bread dough collapse when it is left too long?", "Technical Deconstruction"),
    ("How can I repair a dripping tap in the kitchen?", "Technical Deconstruction"),
    ("Break down how a jet engine produces thrust.", "Technical Deconstruction"),
    ("What happens inside the router when a packet arrives?", "Technical Deconstruction"),
    ("How would you build a shed that survives storms?", "Technical Deconstruction"),
    ("I feel lost since my best friend moved to another country.", "Emotional Processing"),
    ("My father is ill and I am afraid of losing him.", "Emotional Processing"),
    ("I am so proud of my daughter, she passed her exam!", "Emotional Processing"),
    ("I can't sleep because I keep worrying about money.", "Emotional Processing"),
    ("I had a fight with my brother and I feel terrible.", "Emotional Processing"),
    ("I miss the house where I grew up.", "Emotional Processing"),
    ("I'm nervous about my speech tomorrow, please calm me down.", "Emotional Processing"),
    ("Everything at work makes me sad lately.", "Emotional Processing"),
    ("When was the lighthouse on the northern cape built?", "Factual Inquiry"),
    ("Who wrote the first manual of the mill?", "Factual Inquiry"),
    ("What is the boiling point of ethanol?", "Factual Inquiry"),
    ("How many people live in the valley?", "Factual Inquiry"),
    ("Where did Lena Hoffmann study medicine?", "Factual Inquiry"),
    ("Which company bought the old shipyard?", "Factual Inquiry"),
    ("Tell me about the history of the museum.", "Factual Inquiry"),
    ("What does the contract say about the delivery date?", "Factual Inquiry"),
    ("Audit your failed cycles of last week and improve.", "Systemic Self-Improvement"),
    ("How could BAT OS make its own search faster?", "Systemic Self-Improvement"),
    ("Review your memory and clean up duplicates.", "Systemic Self-Improvement"),
    ("Which of your methods should be rewritten?", "Systemic Self-Improvement"),
    ("Improve the way you plan your answers.", "Systemic Self-Improvement"),
    ("Why do your missions fail so often, and what will you change?", "Systemic Self-Improvement"),
    ("Optimise your own index.", "Systemic Self-Improvement"),
    ("Check yourself for slow queries and wasted space.", "Systemic Self-Improvement"),
]


def f1(got, wanted):
    """Return the F1 of the words of two texts."""
    a, b = set(got.lower().split()), set(wanted.lower().split())
    both = len(a & b)
    return 2 * both / (len(a) + len(b)) if both else 0.0


def judge_plan(value, wanted, fields):
    """Return {criterion: share} for one plan."""
    useful = {p for persona in batos.ARCHETYPE_PERSONAS[wanted["strategy"]] for p in batos.PILLARS[persona]}
    spans = list(wanted["sub_queries"].values())
    sensible = [max(f1(span, best) for best in spans) >= 0.5 for span in value["sub_queries"].values()]
    return {"right archetype": value["strategy"] == wanted["strategy"],
            "useful pillars": sum(p in useful for p in value["relevant_pillars"]) / len(value["relevant_pillars"]),
            "same pillars": value["relevant_pillars"] == wanted["relevant_pillars"],
            "sensible spans": sum(sensible) / len(sensible), "same plan": value == wanted}


def topic_of(frame, voice):
    """Return what stands between opening and link of a frame."""
    opening = max((o for o in voice["openings"] if frame.startswith(o)), key=len)
    link = max((k for k in voice["links"] if frame.endswith(k)), key=len)
    return frame[len(opening):-len(link)]


def judge_facet(value, wanted, fields):
    """Return {criterion: share} for one facet."""
    voice = batos.VOICES[fields["persona"]]
    place = batos.PILLARS[fields["persona"]].index(fields["pillar"])
    return {"first quote right": value["quotes"][0] in wanted["quotes"], "same quotes": value["quotes"] == wanted["quotes"],
            "opening suits the pillar": any(map(value["frame"].startswith, voice["openings"][2 * place:2 * place + 2])),
            "sensible topic": f1(topic_of(value["frame"], voice), topic_of(wanted["frame"], voice)) >= 0.5}


def judge_weave(value, wanted, fields):
    """Return {criterion: share} for one weave."""
    voice = batos.VOICES[fields["lead"]]
    return {"all told are right": set(value["order"]) <= set(wanted["order"]),
            "all right are told": set(value["order"]) >= set(wanted["order"]), "same order": value["order"] == wanted["order"],
            "sensible topic": f1(topic_of(value["open"], voice), topic_of(wanted["open"], voice)) >= 0.5}


JUDGES = {"plan": judge_plan, "facet": judge_facet, "weave": judge_weave}


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
        requests = [batos.CoreRequest(task, fields) for task, fields, _ in examples[at:at + 16]]
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
    rows = []
    for (task, fields, answer), value in zip(examples, values, strict=True):
        rows.append(JUDGES[task](value, batos.CORE_TASKS[task].value(answer, fields), fields))
    return {name: round(100 * sum(row[name] for row in rows) / len(rows), 1) for name in rows[0]}


def trials(seed, sentences, held_out, count):
    """Return {name of a trial: examples}; evidence is tried once with composed facts, once with docstrings."""
    maker = Maker(f"{seed} trial", held_out, sentences)
    found = {"plan": [maker.plan() for _ in range(count)]}
    for kind in ("facts", "docstrings"):
        maker.asked = getattr(maker, f"asked_of_{kind}")
        found[f"facet, {kind}"] = [maker.facet() for _ in range(count)]
        found[f"weave, {kind}"] = [maker.weave() for _ in range(count)]
    return found


def evaluate(core, tokenizer, sentences, options):
    """Return {trial: {criterion: [held out, fresh, chance]}} in percent."""
    rng, scores = random.Random(options.seed), {}
    held = trials(options.seed, sentences, True, options.trials)
    fresh = trials(options.seed, sentences, False, options.trials)
    for name, examples in held.items():
        columns = [judged(examples, asked_core(core, examples)),
                   judged(fresh[name], asked_core(core, fresh[name])),
                   judged(examples, asked_chance(core, tokenizer, examples, rng))]
        scores[name] = {criterion: [column[criterion] for column in columns] for criterion in columns[0]}
        print(name, scores[name], flush=True)
    scores["plan, by hand"] = by_hand(core)
    print(scores["plan, by hand"], flush=True)
    return scores


def by_hand(core):
    """Return the scores of the missions written by hand; chance is one archetype in four."""
    values = asked_core(core, [("plan", {"mission": mission}, None) for mission, _ in BY_HAND])
    right = sum(value["strategy"] == wanted for value, (_, wanted) in zip(values, BY_HAND, strict=True))
    return {"right archetype": [round(100 * right / len(BY_HAND), 1), None, 25.0]}


# Writing the model ############################################################

def finish(model, tokenizer, sentences, options, state):
    """Quantise, write, evaluate and describe the model."""
    quantise(model, tokenizer, options)
    card = {"name": "seed-core", "format": batos.CORE_FORMAT_VERSION, "fingerprint": batos.core_tasks_fingerprint(),
            "seed": options.seed, "threads": options.threads, "minutes": round(state["seconds"] / 60, 1), "steps": state["steps"],
            "tokens": state["tokens"], "parameters": sum(p.numel() for p in model.parameters()), "sizes": SIZES,
            "trials": options.trials, "sample_losses": {}, "files": {}, "scores": {}}
    write_card(options.out, card)
    core = batos.CognitiveCore(lambda: options.out, threads=options.threads).start()
    core.wait_ready(300)
    card["sample_losses"] = {tag: round(loss, 4) for tag, loss in core.on_model_thread(batos.sample_losses)[0].items()}
    card["scores"] = evaluate(core, tokenizer, sentences, options)
    core.close()
    write_card(options.out, card)
    (options.out / "README.md").write_text(model_card(card), "utf-8")


def quantise(model, tokenizer, options):
    """Write model and tokenizer into --out, the model in nf4, saved before its first forward pass."""
    import torch
    import transformers

    plain = options.work / "plain"
    model.eval().save_pretrained(plain)
    packed = transformers.LlamaForCausalLM.from_pretrained(
        plain, dtype=torch.float32, quantization_config=batos.quantization(torch.float32))
    options.out.mkdir(parents=True, exist_ok=True)
    packed.save_pretrained(options.out)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>",
        padding_side="left", clean_up_tokenization_spaces=False,
        model_max_length=SIZES["max_position_embeddings"]).save_pretrained(options.out)


def write_card(out, card):
    """Write core.json, with size and SHA-256 of the files beside it."""
    paths = [path for path in batos.core_files(out) if path.name != batos.CORE_CARD]
    card["files"] = {path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                     for path in paths}
    (out / batos.CORE_CARD).write_text(json.dumps(card, indent=1) + "\n", "utf-8")


CARD = """# The embedded core

A model of the Llama architecture with {parameters:,} weights ({layers} layers, width {width}, vocabulary {vocabulary}),
trained from scratch by `train.py` in this folder: {minutes} minutes on {threads} processor cores, {tokens:,} tokens, seed {seed}.
It is stored in four bits (nf4, double quantisation). Its data are generated by `train.py`: composed missions and facts,
and sentences of the docstrings of Python's standard library.

It chooses and frames; it does not know. For a mission it chooses the archetype, the pillars and which words of the
mission each of them looks up; for a facet which sentences of the evidence to quote, and the frame around them; for the
answer which quotes to tell in what order, the frame and the closing. Behind each sentence stands what share of the
question's words it holds, counted by the catalog, and the greatest share comes first: so the model need not find words
again, which takes a larger one, but weighs rank, share and text. A grammar guarantees that plans are valid, pillars
real and not repeated, words of the mission verbatim, and numbers of quotes real and not repeated.

    python seed_core/train.py --minutes 20            # trains anew; --resume goes on from the checkpoint

`core.json` holds sizes, scores, the hashes of the files, and the fingerprint of the tasks
({fingerprint}): BAT OS refuses a core whose fingerprint is not its own.

## Scores

Percent, {trials} examples a row and column. Answers are scored as told under the grammar, from the four-bit weights.
*Held out*: words, phrasings and docstrings that training never saw (the
sentence patterns of composed facts are the same). *Fresh*: new examples from the words and phrasings of training.
*Chance*: the same held-out examples, each token drawn at random from what the grammar allows. *By hand*: {hand} missions
written freely, by no pattern of `train.py`.

| trial | criterion | held out | fresh | chance |
|---|---|---|---|---|
{rows}

What a criterion means: *useful pillars*, they belong to the lead or the support of the archetype; *sensible spans* and
*sensible topic*, the words are those of the composed answer (F1 at least one half); *same …*, equal to the composed
answer, where often others would be as good.

## Limits

English only. It takes little more from a sentence than its rank and its share: one that answers in other words
altogether is passed over, and one that repeats the question's words wins. Missions unlike all phrasings in `train.py`
may get a wrong archetype; they still get a valid plan.
"""


def model_card(card):
    """Return README.md."""
    def told(number):
        return "–" if number is None else f"{number:.1f}"

    rows = [f"| {trial} | {criterion} | {' | '.join(map(told, numbers))} |"
            for trial, criteria in card["scores"].items() for criterion, numbers in criteria.items()]
    return CARD.format(**card | {"rows": "\n".join(rows), "layers": SIZES["num_hidden_layers"], "hand": len(BY_HAND),
                                 "width": SIZES["hidden_size"], "vocabulary": SIZES["vocab_size"]})


def main():
    """Train, quantise, evaluate, write the model card."""
    options = arguments()
    import torch
    from tokenizers import Tokenizer

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint, words = options.work / "checkpoint.pt", options.work / "tokenizer.json"
    state = {"seconds": 0.0, "steps": 0, "tokens": 0}
    sentences = docstring_sentences()
    if options.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
    # a resumed run sees new examples, not those of its beginning once more
    maker = Maker(f"{options.seed}/{state['steps']}", False, sentences)
    if options.resume and words.exists():
        tokenizer = Tokenizer.from_file(str(words))
    else:
        tokenizer = train_tokenizer(maker, SIZES["vocab_size"])
        tokenizer.save(str(words))
    model = new_model()
    if "model" in state:
        model.load_state_dict(state.pop("model"))
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(sentences)} docstring sentences", flush=True)
    state = train(model, maker, tokenizer, options, state)
    finish(model, tokenizer, sentences, options, state)


def arguments():
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=20, help="length of the training, over all resumed runs")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --work")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "seed_core_work",
                        help="folder for checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="processor cores to use")
    parser.add_argument("--trials", type=int, default=200, help="examples of each trial in the evaluation")
    parser.add_argument("--batch-tokens", type=int, default=3072, help="padded tokens in one step")
    return parser.parse_args()


if __name__ == "__main__":
    main()
