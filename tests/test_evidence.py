"""Evidence: which passages are told, what is marked in them, and how sure memory is; by words alone."""

import collections
import pathlib

import pytest

import batos

BOAT = """# Sea

## Moving

There are two ways to move the boat:

- Row with both oars in calm water.
- Set the small sail when a wind blows.

## Crew

The captain is Mira Tolvan. She was born in 1961 in Porto. She has sailed since she was nine.

| Name | Duty |
|---|---|
| Ann | cook |
| Bob | helmsman |
"""
MAST = """Table of Contents 4.1. How tall is the mast? 4.2. How is the mast set up?

## 4.1. How tall is the mast?
    The mast is eleven metres tall and stands on the deck of the old boat in the
    harbour. Yes. It is made of pine (really!), as masts are.

To see which lamps of the mast burn at night and at noon, look at

    lampctl --list

| | | Back to the harbour | | Chapter 5. The rigging of masts |
"""
CRANE = """Basic crane commands: start, stop
~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~

As an example, suppose that the crane lifts a load of the harbour. Whoever steers the crane wears a helmet.

lift [-q|--quiet] [<load>]::

	Take a load from the quay and hold it above the ship.

lower [-q|--quiet] [<load>]::

	Like `lift` of a load, but towards the quay. Unlike `lift`, it asks for no load.

But the crane has disadvantages:

- The motor is loud at night in the whole harbour.
- It needs much more electricity than any ship.

Careful sailors never ask whether or not the brake is locked by default. (See the sheet on the brake of the crane.)
The brake is locked by default.

The horn stands beside the wheel. The horn is disabled at first.
The motor is enabled by a key.

    colour  = green
    port    = 9418
    server  = /usr/bin/crane-server
"""
LEVER = """'lever' apply [-q | --quiet] [<load>]
'lever' pop [--slow] [-q | --quiet] [<load>] ...

Whoever wants to apply the lever holds it down with both hands.

What is a lever?Can I lend the lever to a friend?Who oils the lever?
"""
TEA = "Tea is brewed for three minutes. Coffee is brewed for five minutes.\n"
LEASE = """3. Rent
The monthly rent of the flat is 940 euros without heating, and is due on the third working day of each month.

4. Deposit
It is kept in a savings account, together with its interest, and is paid back within six months after the end.

9 March 2025
The flat was painted by Tom and his two sons, who needed three days for it and left no trace behind them.
"""
LOG = """Log of the car (K-TV 408)

2023-05-04  42,310 km  summer tyres on, oil change, 189 euros at Becker
2024-03-28  55,120 km  summer tyres, brake pads in front new, 312 euros
2024-11-02  63,450 km  winter tyres, new battery (Varta 60 Ah),
            and a new bulb for the lamp on the left
2025-07-15  72,300 km  air conditioning refilled, was losing gas at the seal
The spare key is with my brother Aron. The radio code is 4471.
Tyre pressure: 2.2 bar in front.
"""
NETWORK = """The printer of the house has the fixed address 192.168.178.40. It needs driver 3.7.5. Before that, driver 3.7.4.

Printing 4.1. Paper 4.2. Ink 4.2.1. Nozzles of the printer 4.3.
"""


@pytest.fixture(scope="module")
def papers():
    catalog = batos.new_catalog()
    for name, text in (("lease.txt", LEASE), ("log.txt", LOG), ("network.txt", NETWORK)):
        batos.index_document_(catalog, name, text, kind="text")
    return catalog


@pytest.fixture(scope="module")
def catalog():
    catalog = batos.new_catalog()
    batos.index_document_(catalog, "boat.md", BOAT)
    batos.index_document_(catalog, "boat-copy.md", BOAT.replace("# Sea", "# Lake"))
    batos.index_document_(catalog, "mast.md", MAST)
    batos.index_document_(catalog, "tea.md", TEA)
    batos.index_document_(catalog, "crane.txt", CRANE, kind="text")
    batos.index_document_(catalog, "coal.md", "Coal burns slowly in the black stove of the hut.\n")
    return catalog


def found(catalog, query):
    return batos.find_evidence(catalog, query, batos.Recall())


def best(catalog, query):
    return found(catalog, query)["evidence"][0]


def test_what_announces_is_told_with_what_it_announces(catalog):
    for query in ("What two ways are there to move the boat?", "When is the small sail set?"):
        text = best(catalog, query)["text"]
        assert text.startswith("There are two ways") and "both oars" in text and "small sail" in text


def test_the_sentence_that_answers_is_marked_amid_its_neighbours(catalog):
    item = best(catalog, "Where was she born in 1961?")
    assert batos.marked_text(item) == "The captain is Mira Tolvan. She was born in 1961 in Porto."
    first, last = item["lines"]
    assert item["text"] in "\n".join(BOAT.splitlines()[first - 1:last])


@pytest.mark.parametrize("query, marked, held", [
    ("How tall is the mast?",
     "The mast is eleven metres tall and stands on the deck of the old boat in the\n    harbour.", "pine"),
    ("What is the mast made of?", "Yes. It is made of pine (really!), as masts are.", "eleven"),
    ("Which lamps of the mast burn at night?",
     "To see which lamps of the mast burn at night and at noon, look at", "lampctl --list"),
])
def test_titles_and_bars_of_navigation_are_not_told_and_indented_prose_is_no_code(catalog, query, marked, held):
    item = best(catalog, query)
    assert batos.marked_text(item) == marked and held in item["text"]
    assert "Contents" not in item["text"] and "harbour |" not in item["text"] and "rigging" not in item["text"]


@pytest.mark.parametrize("query, marked", [
    ("As an example, what does the crane lift?", "As an example, suppose that the crane lifts a load of the harbour."),
    ("What does lift do?", "lift [-q|--quiet] [<load>]::\n\n\tTake a load from the quay and hold it above the ship."),
    ("Which port does the crane server listen on?", "port    = 9418"),
    ("Is the brake of the crane locked by default?", "The brake is locked by default."),
    ("Is the horn enabled?", "The horn is disabled at first."),
])
def test_what_stands_under_a_title_a_term_or_an_announcement_answers_for_it(catalog, query, marked):
    assert marked in batos.marked_text(best(catalog, query))


@pytest.mark.parametrize("query, marked", [
    ("When was the battery new?",
     "2024-11-02  63,450 km  winter tyres, new battery (Varta 60 Ah),\n            and a new bulb for the lamp on the left"),
    ("Who has the spare key?", "The spare key is with my brother Aron."),
    ("What is the tyre pressure?", "Tyre pressure: 2.2 bar in front."),
])
def test_a_line_that_was_written_by_itself_is_told_by_itself(papers, query, marked):
    assert batos.marked_text(best(papers, query)) == marked


@pytest.mark.parametrize("query, marked", [
    ("When is the deposit paid back?",
     "4. Deposit\nIt is kept in a savings account, together with its interest, and is paid back within six months"),
    ("When was the flat painted?", "9 March 2025\nThe flat was painted by Tom and his two sons, who needed three days"),
])
def test_a_line_over_a_paragraph_belongs_to_what_stands_below_it_and_to_nothing_else(papers, query, marked):
    item = best(papers, query)
    assert batos.marked_text(item).startswith(marked) and item["text"].startswith(marked)
    others = [said["text"] for said in batos.sentences(LEASE) if said.get("heads") and said["text"] not in marked]
    assert len(others) == 2 and not any(head in item["text"] for head in others)


def test_a_number_that_ends_a_sentence_makes_no_title_of_it(papers):
    assert "192.168.178.40" in batos.marked_text(best(papers, "What is the address of the printer?"))
    assert "driver 3.7.5" in batos.marked_text(best(papers, "Which driver does the printer need?"))
    assert "Nozzles" not in str(found(papers, "Where are the nozzles of the printer?")["evidence"])


def test_a_number_is_sought_in_the_unit_that_was_asked_for():
    catalog = batos.new_catalog()
    batos.index_document_(catalog, "peas.md", "| bed | crop | day |\n|---|---|---|\n| 1 | peas | 14 |\n\n"
                          "Of the peas came 6.4 kg from one bed.\n")
    assert batos.marked_text(best(catalog, "How many kilos of peas came?")) == "Of the peas came 6.4 kg from one bed."


def test_a_row_of_a_table_gainsays_nothing():
    catalog = batos.new_catalog()
    batos.index_document_(catalog, "no.md", "We said no to Hamburg.\n")
    batos.index_document_(catalog, "paid.md", "| what | euros |\n|---|---|\n| ticket Hamburg | 59 |\n")
    query = "What of Hamburg?"
    told = batos.plain_answer(query, batos.find_evidence(catalog, query, batos.Recall())["evidence"])
    assert told.startswith("\u201cWe said no to Hamburg.") and "before that" not in told


def test_a_synopsis_and_a_list_of_links_answer_nothing():
    catalog = batos.new_catalog()
    batos.index_document_(catalog, "lever.txt", LEVER, kind="text")
    assert batos.marked_text(best(catalog, "How do I apply the lever?")) .startswith("Whoever wants to apply the lever")
    assert "Can I lend" not in str(found(catalog, "Can I lend the lever to a friend?")["evidence"])


class Scores(batos.Reader):
    """A reader that scores a passage by a word in it."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def judge(self, question, passages):
        """Return the score of each, and its beginning as the span."""
        return [(next(score for word, score in self.scores.items() if word in text), (0, 5)) for _, text in passages]


@pytest.mark.parametrize("scores, certainty", [
    ({"minutes": -2.0, "slowly": 1.0}, "nearest"), ({"minutes": 1.0, "slowly": -2.0}, "sure"),
    ({"minutes": -2.0, "slowly": 2.0}, "sure"),                          # which is far above the threshold
])
def test_memory_is_as_sure_as_the_reader_is_of_what_is_told_first(scores, certainty):
    catalog, recall = batos.new_catalog(), batos.Recall(embedder=batos.Embedder())
    recall.embedder.reader = Scores(scores)
    batos.index_document_(catalog, "tea.md", "Tea is brewed in the black pot for three minutes.\n")
    batos.index_document_(catalog, "pot.md", "The black pot warms up slowly.\n")
    told = batos.find_evidence(catalog, "Is tea brewed in the black pot?", recall)
    assert "minutes" in told["evidence"][0]["text"] and told["certainty"] == certainty


def test_a_list_is_quoted_with_what_announces_it(catalog):
    told = batos.plain_answer("?", [best(catalog, "What are the disadvantages of the crane?")])
    assert "disadvantages: - The motor is loud at night" in told and "much more electricity" in told


def test_when_one_should_is_no_question_that_a_time_alone_answers():
    moment = batos._expected_in("When should I not use it?")
    assert not moment.needed and moment.holds.search("before it is wet") and not moment.holds.search("2 spoons of it")
    assert batos._expected_in("When was it built?").needed and batos._expected_in("What is a port?").holds.search("a port is one")


@pytest.mark.parametrize("text, defines", [
    ("port (integer)\nThe one it listens on.", True), ("Port  A place for ships.", True), ("port\nA place.", True),
    ("Ports of the north\nare cold.", False), ("port (integer)\n", False),
])
def test_what_stands_behind_its_term_defines_it(text, defines):
    assert bool(batos._expected_in("What is port?").holds.search(text)) == defines


@pytest.mark.parametrize("text, tells", [
    ("To tag all messages, use the <tag-pattern> function.", True), ("You can reload it with pg_restore.", True),
    ("Press t.", True), ("It is saved by pressing s.", True), ("The file can be read with any editor.", True),
    ("If there are no tagged messages, it ends.", False), ("Access is necessary when a dump is restored.", False),
    ("-t pattern\nTags what matches.", True), ("Tagsomething.", False),
    ("Tag them all.", True), ("-t pattern  Tag what matches.", True), ("It tags messages, instead of others.", False),
])
def test_how_to_do_something_is_told_by_a_step(text, tells):
    expected = batos._expected_in("How do I tag messages?")
    assert bool(expected.holds.search(text)) == tells and not expected.settles and not expected.needed


class Refusing:
    """A reader that says of everything that it answers nothing."""

    threshold = 0.0

    def judge(self, query, passages):
        """Judge as a Reader does."""
        return [(-5.0, (0, 1)) for _ in passages]


@pytest.mark.parametrize("query, sure", [("What is the duty of Bob?", True), ("What does the captain sail?", False)])
def test_a_reader_of_sentences_says_nothing_against_a_row(catalog, query, sure):
    recall = batos.Recall()
    recall.embedder.reader, before = Refusing(), recall.embedder.reader
    try:
        assert batos.find_evidence(catalog, query, recall)["relevant"] == sure
    finally:
        recall.embedder.reader = before


def test_what_goes_on_in_a_command_is_quoted_with_it(catalog):
    told = batos.plain_answer("lamps?", [best(catalog, "Which lamps of the mast burn at night?")])
    assert told.endswith("at noon, look at lampctl --list” [1]")


def test_a_row_is_told_alone_under_its_header(catalog):
    item = best(catalog, "What is the duty of Bob?")
    assert item["text"] == "| Name | Duty |\n| Bob | helmsman |" and batos.marked_text(item) == "| Bob | helmsman |"
    assert batos.gate_reasons(catalog, [item]) == []


def test_what_two_documents_say_alike_is_told_once_and_at_most_three_passages(catalog):
    told = found(catalog, "the captain and the boat")["evidence"]
    assert len(told) <= batos._PASSAGES_MOST and len({item["text"] for item in told}) == len(told)


@pytest.mark.parametrize("query, certainty", [
    ("Who is the captain?", "sure"),
    ("Who is the captain on Wednesday?", "sure"),            # a day is no reason to refuse
    ("Where was the captain knighted?", "nearest"),                       # nor is one word that nothing holds
    ("How tall is the mast?", "sure"),
    ("How hot is the black stove?", "sure"),
    ("How heavy is the black stove?", "nearest"),            # nothing that is near holds a number
    ("Who set the mast of the boat?", "nearest"),            # nor a name
    ("What do giraffes eat in Kenya?", "none"),
    ("How do giraffes, zebras and antelopes burn?", "none"),
])
def test_how_sure_memory_is(catalog, query, certainty):
    told = found(catalog, query)
    assert told["certainty"] == certainty and told["relevant"] == (certainty == "sure")
    assert bool(told["evidence"]) == (certainty != "none")


def test_of_two_things_that_are_compared_both_are_told(catalog):
    assert batos.things_compared("Compare tea and coal.") == ("tea", "coal")
    assert batos.things_compared("How is tea brewed and when?") == ()
    told = found(catalog, "What is the difference between the sail and the stove?")
    texts = " ".join(item["text"] for item in told["evidence"])
    assert "sail" in texts and "stove" in texts


@pytest.mark.parametrize("text, leads", [
    ("There are advantages and disadvantages to using it instead of a journal.", True), ("There are two ways to move it.", True),
    ("There are two ways to move it:", False), ("There are ways, such as rowing.", False), ("There are two boats.", False),
])
def test_that_there_are_ways_says_none_of_them(text, leads):
    assert batos._telling_of_line(text, 1, ())[0].leads_elsewhere == leads


@pytest.mark.parametrize("text, empty", [
    ("Description: You want all requests to go elsewhere.", True), ("You want it quiet, so turn the wheel.", False),
    ("Here's the basics of oiling a pump.", True), ("Here is how: turn the wheel.", False),
    ("This section describes the pump.", True), ("The following chapter shows it.", True), ("This pump shows the time.", False),
])
def test_what_is_to_come_is_no_answer(text, empty):
    assert batos._telling_of_line(text, 1, ())[0].only_says_what_comes == empty


PUMPS = """# Pumps

A valve lets water back into the pipe before the pump stands still. This is called backwash. It is bad.

## Wait switch

- Description: How long the pump waits for water from the pipe
- Default: 5 s
- Unit: s

Setting the wait switch of the pump to a high value costs water. The wait switch uses the long notation.

## Care

Oil for a pump: oiled by Ann every October. Last oiled on 14 May 2025.

Here's the basics of cleaning a pump. First, empty the pump.

The default differs from pump to pump. The north pump is of brass. The south pump is of steel.
"""


@pytest.mark.parametrize("query, told", [
    ("What is backwash?", "A valve lets water back into the pipe before the pump stands still. This is called backwash."),
    ("What is the default of the wait switch?", "- Default: 5 s"),
    ("What does the wait switch do?", "- Description: How long the pump waits for water from the pipe"),
    ("When was the pump last oiled?", "Last oiled on 14 May 2025."),
    ("How do I empty the pump?", "First, empty the pump."),
    ("What is the difference between the north pump and the south pump?", "The north pump is of brass."),
])
def test_a_manual_answers_by_the_sentence_that_says_it(query, told):
    catalog = batos.new_catalog()
    batos.index_document_(catalog, "pumps.md", PUMPS)
    assert batos.marked_text(best(catalog, query)) == told


MINUTES = """# Minutes

## Tournament

The tournament will be held on 21 June in the hall. Yusuf organises it. We expect forty players.

It was asked whether to rent a second room. We decided against it because last year it stood empty.

## Questions

(13) May I use the clocks in my shop without paying?

Yes. They are free for all. Bring them back.

(14) How do I wind one?

-w  Wind the clock by its key.

When too much mail is sent back, all boxes are full. This is called backscatter mail.
There is one kind of backscatter mail that remains, and that is bad.

## Bread

For two loaves take 600 g rye flour and 20 g salt.
"""


@pytest.mark.parametrize("query, told", [
    ("Who organises the tournament?", "\u201cYusuf organises it.\u201d [1]"),
    ("Why did we not rent a second room?", "\u201cWe decided against it because last year it stood empty.\u201d [1]"),
    ("May I use the clocks in a shop without paying?", "Yes: \u201cYes. They are free for all.\u201d [1]"),
    ("How do I wind the clock?", "\u201c-w Wind the clock by its key.\u201d [1]"),
    ("What is backscatter mail?",
     "\u201cWhen too much mail is sent back, all boxes are full. This is called backscatter mail.\u201d [1]"),
])
def test_minutes_answer_by_the_sentence_that_says_it(query, told):
    catalog = batos.new_catalog()
    batos.index_document_(catalog, "minutes.md", MINUTES)
    assert batos.plain_answer(query, found(catalog, query)["evidence"]) == told


@pytest.mark.parametrize("question, answer, other", [
    ("Who wrote the pump?", "Ann wrote it.", "It was written on 3 May in March."),
    ("And who gave it to me?", "Nina gave it to me.", "Snow fell."),
    ("Who is Ann?", "A friend of Nina.", "It fell on Friday."),
    ("Which command shows the queue?", "This option implements the mailq command.", "The message enters the queue."),
    ("What tool empties it?", "Run postsuper to empty it.", "It is emptied each night."),
    ("What is a checkpoint in SQLite?", "Moving it back is called a\n\u201ccheckpoint\u201d.", "Use of X_CHECKPOINT is rare."),
    ("What is forged mail?", "Forged mail is mail of others.", "There is forged mail that remains, which is bad."),
    ("Where is the key kept?", "It hangs behind the stove.", "It was kept in May 1951 at noon."),
    ("Where does it write its log?", "The log is /var/log/pump.", "It writes a log."),
    ("Which option is it?", "With --delete it is.", "A well-known one."),
])
def test_what_a_question_wants_is_known(question, answer, other):
    asked = batos.Asked(question, {}, {}, batos._expected_in(question), {})
    assert asked.is_answered_by(answer) and not asked.is_answered_by(other)


@pytest.mark.parametrize("query, certainty", [
    ("How many eggs go into the bread?", "nearest"), ("How many grams of salt go into the bread?", "sure"),
    ("How many loaves are in the bread?", "sure"),
])
def test_how_many_of_what_a_passage_does_not_name_is_not_told_by_it(query, certainty):
    catalog = batos.new_catalog()
    batos.index_document_(catalog, "minutes.md", MINUTES)
    assert batos.find_evidence(catalog, query, batos.Recall(mass=0.1))["certainty"] == certainty


@pytest.mark.parametrize("question, words, others", [
    ("Wie viele Eier braucht der Teig?", "Mehl und Salz", True), ("Wie viele Eier braucht der Teig?", "drei Eier", False),
    ("Combien d'\u0153ufs faut-il ?", "la farine", True), ("Combien de pompes y a-t-il ?", "trois pompes", False),
    ("Combien de jours faut-il ?", "la farine", False), ("How many eggs?", "two loaves", True),
    ("How large is it?", "two", False),
])
def test_what_is_counted_is_known_in_three_languages(question, words, others):
    language = batos.language_of(question)
    asked = batos.Asked(question, {}, {}, batos._expected_in(question), {}, language)
    assert asked.counts_others(frozenset(batos.words_of(words, language))) == others


def test_what_tells_of_the_contrary_is_no_answer():
    catalog = batos.new_catalog()
    batos.index_document_(catalog, "wal.md", "The second advantage of this mode is speed.\n\nReaders wait for nobody.\n\n"
                          "It is a disadvantage of the mode that all must be on one machine.\n")
    told = batos.find_evidence(catalog, "What is the disadvantage of this mode?", batos.Recall())["evidence"][0]
    assert "one machine" in batos.marked_text(told)
    asked, both = (batos.asked_of(catalog, query, "", "") for query in ("its drawbacks", "its benefits and drawbacks"))
    one, two = (set(batos.words_of(text)) for text in ("a benefit", "a benefit and a drawback"))
    assert asked.is_of_contrary(one) and not asked.is_of_contrary(two) and not both.is_of_contrary(one)


def test_two_things_that_are_compared_are_each_told_by_what_defines_them():
    catalog = batos.new_catalog()
    other = "".join(f"Another matter, number {number}, is told here. " for number in range(14))
    batos.index_document_(catalog, "needs.md", "The package depends on what it recommends.\n\nDepends\nThis is absolute.\n\n"
                          f"{other}\n\nRecommends\nThis is strong, but not absolute.\n\nThe depends field is read by the tool.\n")
    query = "What is the difference between Depends and Recommends?"
    assert batos.things_compared(query) == ("Depends", "Recommends")
    told = batos.plain_answer(query, batos.find_evidence(catalog, query, batos.Recall())["evidence"])
    assert told == "\u201cDepends This is absolute.\u201d [1]; \u201cRecommends This is strong, but not absolute.\u201d [2]"
    assert batos._best_about([], "C") is None


@pytest.mark.parametrize("text, feels", [
    ("my dog died on tuesday and I miss him", True), ("I am so happy today!", True), ("I feel lost", True),
    ("What is a feeling?", False), ("The cat died.", False), ("Do I feel warm?", False),
])
def test_who_says_how_she_feels(text, feels):
    assert batos.is_feeling(text) == feels


def test_a_long_sentence_is_quoted_around_its_span():
    words = [f"word{n}" for n in range(100)]
    text = " ".join(words)
    at = text.index("word60")
    told = batos.quoted_sentence({"text": text, "mark": [0, len(text)], "span": [at, at + 6]})
    assert len(told.split()) == batos.QUOTE_WORDS + 2 and "word60" in told and told.startswith("… ") and told.endswith(" …")
    assert told.strip("… ") in text


@pytest.mark.parametrize("text, quote", [
    ("- Slugs: traps do not work.", "Slugs: traps do not work."), ("2. Ruth\nresigns.", "Ruth resigns."),
    ("3.5 bar is too much.", "3.5 bar is too much."), ("-f file", "-f file"), ("- -f file", "-f file"),
])
def test_an_item_is_quoted_without_its_mark(text, quote):
    assert batos.quoted_sentence({"text": text}) == quote


def test_the_marks_round_a_listing_are_not_quoted():
    text = "$ git bisect skip\n------------"
    assert batos.quoted_sentence({"text": text, "mark": [0, len(text)]}) == "$ git bisect skip"


@pytest.mark.parametrize("mission, text, told", [
    ("Can I go back?", "No, it is a one way process.", "No: “No, it is a one way process.” [1]"),
    ("How can I go back?", "No, it is a one way process.", "“No, it is a one way process.” [1]"),
    ("Kann ich zurück?", "Nein, es ist eine Einbahnstraße.", "Nein: “Nein, es ist eine Einbahnstraße.” [1]"),
    ("Faut-il garder les archives ?", "Non, vous pouvez les supprimer.", "Non: “Non, vous pouvez les supprimer.” [1]"),
    ("Comment faire ?", "Non, vous pouvez les supprimer.", "“Non, vous pouvez les supprimer.” [1]"),
    ("Is it open?", "It is open on Monday.", "“It is open on Monday.” [1]"),
])
def test_yes_and_no_are_told_where_the_text_says_so(mission, text, told):
    assert batos.plain_answer(mission, [{"text": text}]) == told


@pytest.mark.parametrize("mission, headings, told", [
    ("Can I row back?", ["Can I row back at night?"], "Yes: “Yes, but slowly.” [1]"),
    ("Can I sail back?", ["May a guest cook on board?"], "“Yes, but slowly.” [1]"),      # that was said to another question
])
def test_yes_is_told_only_to_what_was_asked(mission, headings, told):
    assert batos.plain_answer(mission, [{"text": "Yes, but slowly.", "headings": headings}]) == told


@pytest.mark.parametrize("one, other, against", [
    ("I like coffee in the morning.", "I do not like coffee any more, I drink tea now.", True),
    ("The meeting is on Monday at ten.", "Correction: the meeting is on Thursday at four.", True),
    ("The gate code is 1234.", "Since May the gate code is 9876.", True),
    ("The meeting is on Monday at ten.", "The meeting on Monday at ten is in the blue room.", False),
    ("Tea is brewed for three minutes.", "The valve turns.", False),
])
def test_statements_that_contradict_each_other(one, other, against):
    assert batos.contradict(one, other) == against == batos.contradict(other, one)


@pytest.mark.parametrize("mission, subject", [
    ("Summarise boat.md", "boat.md"), ("What is boat.md about?", "boat.md"), ("Give me an overview of the crew.", "the crew"),
    ("what do you know about tea?", "tea"), ("What did I tell you about my dog?", "my dog"), ("How is tea brewed?", None),
])
def test_what_is_to_be_told_about(mission, subject):
    assert batos.subject_asked(mission) == subject


@pytest.mark.parametrize("mission", ["What is boat.md about?", "summarise the document boat", "overview of BOAT.md"])
def test_a_document_is_told_by_its_sections(catalog, mission):
    told = batos.answer_aside(catalog, mission)
    assert told["answer"] == "boat.md is about: Moving; Crew" and len(told["evidence"]) == 2
    assert batos.gate_reasons(catalog, told["evidence"]) == []


@pytest.mark.parametrize("mission, answer", [
    ("hello", "Hello."), ("Good morning!", "Hello."), ("thanks a lot", "You are welcome."),
    ("What documents do you have?", "I have learnt boat-copy.md, boat.md, coal.md, crane.txt, mast.md, tea.md."),
    ("hello world in C", None), ("Thank the captain how?", None), ("What documents are needed for the harbour?", None),
])
def test_what_needs_no_search(catalog, mission, answer):
    told = batos.answer_aside(catalog, mission)
    assert told["answer"].startswith(answer) if answer else told is None


@pytest.mark.parametrize("mission, follows", [
    ("and how long does it take?", True), ("Why?", True), ("Where does she live?", True), ("What about the sail?", True),
    ("At how many degrees?", True), ("What is Linux?", False), ("In what year was she born?", True), ("Do I like coffee?", False),
    ("Which package converts between package formats?", False),
    ("How do I install a package and remove it with one command?", False),
])
def test_a_question_that_goes_on(mission, follows):
    assert batos.follows_on(mission) == follows


ANSWERED_ELSEWHERE = (
    ("Wie oft wird die Pumpe geölt?", "Sie wird zweimal im Jahr geölt.", "Sie wird von Hand geölt."),
    ("Wann öffnet das Museum?", "Es öffnet im Januar.", "Es öffnet die Türen."),
    ("Wer baute das Ventil?", "Das Ventil baute Anna Maria Weber.", "Das Ventil ist aus Messing."),
    ("Warum ist es geschlossen?", "Es ist wegen Frost geschlossen.", "Es ist geschlossen."),
    ("Was ist ein Ventil?", "Ein Ventil ist ein Teil, das sperrt.", "Das Ventil öffnet sich."),
    ("Wie entferne ich das Ventil?", "Daher können Sie es mit diesem Befehl entfernen: rm", "Das Ventil sitzt fest."),
    ("Comment faire pour ouvrir la vanne ?", "Il suffit de tourner la vanne.", "La vanne est bleue."),
    ("Combien de pompes y a-t-il ?", "Il y a trois ou quatre pompes.", "Il y a des pompes."),
    ("Quand ouvre le musée ?", "Il ouvre en février.", "Il ouvre ses portes."),
    ("Pourquoi est-il fermé ?", "Il est fermé parce qu'il gèle.", "Il est fermé."),
    ("Qu'est-ce qu'une vanne ?", "Une vanne est une pièce qui ferme.", "La vanne s'ouvre."),
    ("C'est quoi, la vanne ?", "La vanne est une pièce.", "Il ouvre la vanne."),
)


@pytest.mark.parametrize(("question", "answer", "other"), ANSWERED_ELSEWHERE)
def test_what_a_german_or_french_question_wants_is_known(question, answer, other):
    asked = batos.Asked(question, {}, {}, batos._expected_in(question), {})
    assert asked.is_answered_by(answer) and not asked.is_answered_by(other)


def test_what_leads_elsewhere_in_german_or_french_answers_nothing():
    catalog = batos.new_catalog()
    german = ("# Pumpen\n\nSiehe Abschnitt 7, \u201eWie viele Pumpen gibt es?\u201c. In der Anlage gibt es vier Pumpen, die aus "
              "Messing sind und nicht rosten.")
    french = ("# Vannes\n\nReportez-vous \u00e0 la section \u00ab Combien de vannes y a-t-il ? \u00bb Il y a quatre vannes dans "
              "l'usine, qui sont en laiton.")
    for name, text in (("de.md", german), ("fr.md", french)):
        batos.index_document_(catalog, name, text)
    for question, answer in (("Wie viele Pumpen gibt es?", "vier Pumpen"), ("Combien de vannes y a-t-il ?", "quatre vannes")):
        found = batos.find_evidence(catalog, question, batos.Recall())
        assert answer in batos.marked_text(found["evidence"][0]) and found["certainty"] == "sure", question
    assert batos.find_evidence(catalog, "Wie viele Giraffen fressen Heu?", batos.Recall())["certainty"] == "none"


# What is written, checked against what it cites

PLANTED = pathlib.Path(__file__).resolve().parent / "data" / "planted.txt"
KINDS = ("figure", "name", "negation", "turned")


def planted():
    """Yield (kind, or "true"; sentence; passage; title) of the sentences over real passages."""
    for block in PLANTED.read_text().split("\n= ")[1:]:
        named, quoted, *lines = block.strip().splitlines()
        title, passage = named.partition(": ")[2], quoted.removeprefix("> ")
        for line in lines:
            kind, said = ("true", line[2:]) if line.startswith("+ ") else line.split(": ", 1)
            yield kind, said, passage, title


def test_planted_falsehoods_are_not_told_and_paraphrases_are():
    """Of 340 falsehoods, 85 of each kind: none of the first three, eight that are turned round; 93 % of 340 paraphrases.

    Of the last ten passages, as they were first judged: none and two of ten each, 80 % of forty.
    """
    counts, told = collections.Counter(), collections.Counter()
    for kind, said, passage, title in planted():
        counts[kind] += 1
        told[kind] += not batos.why_not_borne_out(said, passage, title)
    assert counts == {"true": 340} | dict.fromkeys(KINDS, 85)
    assert [told[kind] for kind in KINDS[:3]] == [0, 0, 0] and told["turned"] <= 8 and told["true"] >= 317, told


@pytest.mark.parametrize("said, why", [
    ("The lamp runs for 15 days.", ""), ("The lamp runs for fifteen days.", ""),
    ("The lamp of Ann runs for 5 days.", "not tell 5"),
    ("The lamp of Bob runs for 15 days.", "not name bob"), ("It weighs at most 20 kilograms.", "other side"),
    ("On 4 May 2021 it was built by Ann.", ""), ("It was built on 2021-04-04 by Ann.", "not name 2021"),
    ("It was built on 5 May 2021.", "not tell 5"),
    ("It was not built by Ann.", "contrary"), ("Ann was built by the lamp.", "other way round"), ("Ann built it.", ""),
    ("The lamp is blue.", "not say: blue"), ("Whales sing.", "nothing of it")])
def test_why_a_sentence_is_not_told(said, why):
    passage = "The lamp was built by Ann on 4 May 2021. It weighs at least 20 kilograms, and runs for fifteen days."
    found = batos.why_not_borne_out(said, passage)
    assert why in found and bool(why) == bool(found)


def test_a_sentence_of_the_words_of_several_is_not_told():
    """As SmolLM2 put one together."""
    passage = "Keep the oiled paper from the box. Remove the red transport pin from the left side of the case before winding."
    assert "no sentence" in batos.why_not_borne_out("The oiled paper is removed from the case.", passage)


# Kinds of question, and what of a passage answers them

CLUB = """# Rowing club

The repair of the Heron is quoted at \u20ac 640 by the yard. Decision: repair Heron, sell Otter.

The four Otter will be sold next year.

Ann has taken over the beginners' course from Paul. It runs for eight evenings, \u20ac 95 with the loan of a boat.

## Opening

| Day | Boathouse | Gym |
|---|---|---|
| Monday | closed | 17 to 21 |
| Thursday | 16 to 21 | closed |

On Fridays the boathouse is open for the masters, 7 to 9.

## On the water

- Keep to the starboard side, as trams do.
- Motor vessels have right of way, always.

## Boats

| name | type | colour |
|---|---|---|
| Heron | double scull | white |
| Otter | coxed four | red |
| Kestrel | double scull | blue |
| Swift | single scull | yellow |
"""
MAIL = b"""From: Joan Reed <joan@club.example>
To: Petra Voss <petra@club.example>
Subject: bus for the camp
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8

Hello Petra,

the bus company Weiss wants 890 euros. I have told them yes.

Could you ask Paul to transfer the deposit to the hostel? They said by 8 May at the latest.

Joan
"""


@pytest.fixture(scope="module")
def club():
    made = batos.new_catalog()
    batos.index_document_(made, "club.md", CLUB)
    batos.index_document_(made, "bus.eml", batos._read_mail(MAIL, "bus.eml").text)
    return made


@pytest.mark.parametrize("query, told", [
    ("How much does the repair of Heron cost?", "quoted at \u20ac 640"),            # not by what holds no figure
    ("What does the beginners' course cost?", "\u20ac 95"),
    ("When is the boathouse open on Thursday?", "| Thursday | 16 to 21"),           # not by what holds for Fridays
    ("By when must the deposit be paid?", "Could you ask Paul to transfer the deposit to the hostel? They said by 8 May"),
    ("Which bus company did Joan choose?", "company Weiss"),                        # not by the mail's head
    ("Who has right of way?", "Motor vessels"),
])
def test_what_is_marked_is_of_the_kind_that_is_asked_for(club, query, told):
    assert told in batos.plain_answer(query, found(club, query)["evidence"])


def test_what_a_text_says_word_for_word_is_sure_though_the_reader_does_not_see_it(club):
    recall = batos.Recall(embedder=batos.Embedder())
    recall.embedder.reader = Refusing()
    assert batos.find_evidence(club, "Who has right of way?", recall)["certainty"] == "sure"
    assert batos.find_evidence(club, "Who has keys of the gym?", recall)["certainty"] != "sure"


def test_the_head_of_a_mail_answers_who_sent_it(club):
    assert "From: Joan Reed" in batos.plain_answer("?", found(club, "Who wrote the mail about the bus?")["evidence"])


def test_of_a_table_all_rows_are_told_that_hold_what_is_asked(club):
    query = "Which boats are double sculls?"
    told = batos.plain_answer(query, found(club, query)["evidence"])
    assert told == "\u201c| Heron | double scull | white |\u201d [1]; \u201c| Kestrel | double scull | blue |\u201d [2]"
    assert batos.plain_answer("?", found(club, "What colour is Swift?")["evidence"]).count("[") == 1


def test_of_many_rows_so_many_are_told():
    made, rows = batos.new_catalog(), "\n".join(f"| {n}. 5. | bread | {n} |" for n in range(1, 30))
    batos.index_document_(made, "spent.md", f"| day | what | euro |\n|---|---|---|\n{rows}\n")
    assert len(found(made, "What did we pay for bread?")["evidence"]) == batos._ROWS_TOLD_MOST


@pytest.mark.parametrize("question, amount", [
    ("What does the course cost?", True), ("What was Otter sold for?", True), ("What is the fee?", True),
    ("How much is the rent of the flat?", True), ("What is the deposit for?", False), ("What is a fee note?", False),
    ("What is the fee for juniors?", True),
])
def test_what_is_asked_for_is_an_amount(question, amount):
    expected = batos._expected_in(question)
    assert bool(expected and expected.holds is batos._AMOUNT_TOLD) == amount


def test_what_asks_for_an_amount_is_known_by_the_other_words(club):
    assert batos.asked_of(club, "What does the beginners' course cost?", "", "").telling().keys() == {"beginn", "cours", "cost"}


@pytest.mark.parametrize("words, others", [
    ("on friday at nine", True), ("on thursday and friday", False), ("at nine", False),
])
def test_another_day_than_the_one_that_is_asked_for_answers_nothing(club, words, others):
    asked = batos.asked_of(club, "When is the boathouse open on Thursday?", "", "")
    assert asked.names_another_time(frozenset(batos.words_of(words))) == others


@pytest.mark.parametrize("question, defines", [
    ("What is a port?", True), ("What does HEAD mean?", True), ("What does the -v option do?", True),
    ("What does it sail?", False), ("What was it made of?", False),
])
def test_what_asks_for_a_definition(question, defines):
    expected = batos._expected_in(question)
    assert bool(expected and expected.asks is batos._DEFINES) == defines


def test_a_word_that_nothing_holds_is_sought_as_one_of_its_root():
    made = batos.new_catalog()
    batos.index_document_(made, "a.md", "The hostel needs the list of allergies.\n\nHypothermia: bring her inside.\n")
    lexicon = batos.Lexicon.of(made)
    for spelling, held in (("allergic", "allergi"), ("hypothermic", "hypothermia"), ("allegiance", "allegi")):
        assert list(batos.sought(lexicon, spelling)) == [held]


def test_the_line_that_names_a_command_tells_which_one():
    assert batos._expected_in("Which command finds a bug?").holds.search("git-bisect - Use binary search to find it")


def test_what_happens_is_known_by_the_other_words(club):
    asked = batos.asked_of(club, "What happens if it is closed?", "", "")
    assert asked.telling().keys() == {"close"} and asked.expected is None


def test_what_is_said_of_another_thing_than_the_one_that_is_asked_for_contradicts_nothing():
    made = batos.new_catalog()
    for name, weeks in (("Harlow", "two"), ("Belton", "nine")):
        batos.index_document_(made, f"{name}.md", f"It was decided that the pump at {name} is oiled every two weeks.\n")
        batos.index_document_(made, f"{name}/new.md", f"It was decided that the pump at {name} is oiled every {weeks} weeks.\n")
    for name, others in (("Harlow", []), ("Belton", ["figure"])):
        told = found(made, f"How often is the pump at {name} oiled?")["evidence"]
        assert name in told[0]["text"] and [item["against"]["kind"] for item in told if "against" in item] == others


GATE = """# Contents

1. Can the gate cache parcels?
2. The gate does not open
3. The colours of the gate

D1. I have set the gate up, and no parcel comes.
D2. My parcels disappear after the gate was shut.

# 1. Can the gate cache parcels?

No, it does not have this ability at all. And, yes, before you ask, the gate can stand beside other gates that cache parcels.

# 2. The gate does not open

FIRST AID AT THE GATE

When the belt is loose the gate locks and shows F.22. Tighten the belt by hand.

Specifies: The address and port on which the gate listens for parcels. Effect if unset: it takes 127.0.0.1, port 8118.

~U, ~upper
Opens the upper wing.

~N, ~near
Opens the near wing.

lifttime threshold [limit]
Normally the gate lifts by and by. Behind the threshold it is forced up at once. The lifttime directive is rarely wanted.

# 3. The colours of the gate

The gate was fitted by Marlow & Sons on 12 March 2021. 4. Bicycle shed. Postponed until spring.

# D. Parcels

## D1. I have set the gate up, and no parcel comes.

Wait a day.

## D2. My parcels disappear after the gate was shut.

They lie in the basket below, from where whoever has the key may take them; each is kept there for a week, and then goes back to
whoever sent it, with a note on which the day and the hour stand at which it came, in ink that does not run in the rain.
"""


@pytest.fixture(scope="module")
def gate():
    made = batos.new_catalog()
    batos.index_document_(made, "gate.md", GATE)
    return made


@pytest.mark.parametrize("query, told", [
    ("Can the gate cache parcels?", "No: \u201cNo, it does not have this ability at all.\u201d"),
    ("What does F.22 mean?", "the gate locks and shows F.22"),
    ("Which port does the gate listen on?", "port 8118"),
    ("What does ~U match?", "Opens the upper wing."),
    ("What does ~N match?", "Opens the near wing."),
    ("What does the lifttime directive do?", "Normally the gate lifts by and by."),
    ("My parcels disappear, why?", "They lie in the basket below"),         # not the table of contents
])
def test_a_page_of_questions_answers_by_what_stands_under_them(gate, query, told):
    assert told in batos.plain_answer(query, found(gate, query)["evidence"])


def test_a_table_of_contents_is_no_passage(gate):
    for query in ("D1. I have set the gate up", "Can the gate cache parcels? The gate does not open. The colours of the gate"):
        assert all("3. The colours" not in item["text"] and "D1." not in item["text"] for item in found(gate, query)["evidence"])


class Believing(Refusing):
    """A reader that says of everything that it answers."""

    def judge(self, question, passages):
        return [(self.threshold + 1.0, (0, 1)) for _ in passages]


@pytest.mark.parametrize("query, certainty", [
    ("What is the phone number of Marlow & Sons?", "nearest"),             # nothing here looks like one
    ("What colour is the bicycle shed?", "nearest"),
    ("What is the fit of the gate of Marlow & Sons?", "sure"),
    ("What is the guarantee of the gate of Marlow & Sons?", "nearest"),    # of that thing something else is told
])
def test_a_reader_that_believes_everything_makes_nothing_sure_that_lacks_what_is_asked_for(gate, query, certainty):
    recall = batos.Recall(embedder=batos.Embedder())
    recall.embedder.reader = Believing()
    assert batos.find_evidence(gate, query, recall)["certainty"] == certainty


def test_a_sentence_that_only_repeats_the_question_is_marked_where_it_settles_it_alone():
    made = batos.new_catalog()
    batos.index_document_(made, "shed.md", "Bicycle shed. It stays shut until spring.\n\nThe horn is loud.\n")
    assert "shut" in batos.plain_answer("What about the bicycle shed?", found(made, "What about the bicycle shed?")["evidence"])
    assert "The horn is loud." in batos.plain_answer("Is the horn loud?", found(made, "Is the horn loud?")["evidence"])


@pytest.mark.parametrize("question, several", [
    ("Which boats are double sculls?", True), ("What old boats have a crack?", True), ("Which bus is late?", False),
    ("What is it?", False), ("Which boat is a double scull?", False),
])
def test_who_asks_for_all_that_are_so_is_told_rows_of_a_table(question, several):
    asked = batos.Asked(question, {}, {}, None, {})
    assert asked.asks_for_several() == several


@pytest.mark.parametrize("question, reason", [
    ("I pulled the plug and nothing happened, why?", True), ("How come it is shut?", True), ("Why is it shut?", True),
    ("Whyever not?", False), ("What must I do when it is shut?", False),
])
def test_what_asks_for_a_reason_or_a_time_is_known_wherever_it_stands(question, reason):
    expected = batos._expected_in(question)
    assert (expected is not None and expected.holds is batos._REASON_TOLD) == reason
    assert expected is None or expected.holds is not batos.TIME_TOLD


FERRY = """# ferry

## OPTIONS

-c, --crew
The crew of the ferry is listed.

--keep-rope=METRES
The rope is laid out on the deck and is coiled again by the crew when the ferry has left the quay.

{more}

Parcels without an address are thrown overboard by the mate before the ferry lands.

--quiet
No horn is blown.

Passengers who sleep are not woken.

-H hh:mm
The ferry leaves at that hour.

-P page-list
Specifies which pages of the logbook are printed by the purser.
The list can have numbers and ranges.

### Marks on the deck

The red line marks where nobody may stand.
"""
LONG = "\n\n".join(
    f"Rope number {n} lies beside the {colour} bollard, where it is kept dry under a sheet of canvas until the winter ends. "
    f"It is {n + 3} metres long and was spun in the {colour} yard on the other side of the river by three old men."
    for n, colour in enumerate(("red", "blue", "green", "white", "black"))
)


@pytest.mark.parametrize("query, told", [
    ("Which option of the ferry lists the crew?", "\u201c-c, --crew The crew of the ferry is listed.\u201d [1]"),
    ("Which option throws parcels overboard?", "--keep-rope=METRES: \u201cParcels without an address"),
    ("What option lets passengers sleep?", "--quiet: \u201cPassengers who sleep are not woken.\u201d [1]"),
    ("Which option chooses the pages of the logbook?", "\u201c-P page-list Specifies"),
    ("Where are parcels thrown?", "\u201cParcels without an address"),
    ("Which option marks where nobody may stand?", "\u201cThe red line marks where nobody may stand.\u201d [1]"),
])
@pytest.mark.parametrize("more", ["", LONG], ids=["one chunk", "several"])
def test_which_option_does_something_is_told_by_its_name(query, told, more):
    made = batos.new_catalog()
    batos.index_document_(made, "ferry.md", FERRY.format(more=more))
    assert batos.plain_answer(query, found(made, query)["evidence"]).startswith(told)
    parted = [chunk for chunk in made.chunk_storage.values() if "address" in chunk.text and "keep-rope" not in chunk.text]
    assert bool(parted) == bool(more)


@pytest.mark.parametrize("line, names", [
    ("--delete", True), ("-P page-list", True), ("`--`", False), ("`-x`, `--exact`", True), ("- an item", False), ("-", False),
    ("2026-11-02", False), ("rsync --delete", False), ("--delete is dangerous.", False), ("--delete    also deletes it", False),
])
def test_what_names_an_option(line, names):
    assert batos.is_option(line) == names


HOUSE = """# Ann Harding

Ann Harding of Harlow was painted by her sister. Her letters are kept in the museum.

## The bicycle

- In spring: new chain and cassette, 92 euros.
- In summer: the bottom bracket creaked and was greased.

## The concert in December

- Programme: Bach, arranged by Hanna Weiss.
- Soloists: Irene Vogel (soprano). The bass is still missing.

## The fence

The carpenter comes in November. Larch lasts about twenty years without paint, spruce perhaps eight.

## The boiler

pressure_low (bar)
Sets from which pressure on the boiler locks out.
The default is 0.8 bar, but less for old ones.

-d name
Sets the user who is called first.

    $ boiler lock --password
    enter the password of the boiler: the password was taken

The password of the boiler is changed by the plumber.
"""


class Scoring(Refusing):
    """A reader whose score of everything is so much above its threshold."""

    def __init__(self, above):
        self.above = above

    def judge(self, question, passages):
        return [(self.threshold + self.above, (0, 1)) for _ in passages]


@pytest.mark.parametrize("query, above, certainty", [
    ("Where was Ann Harding of Harlow born?", 1.0, "nearest"),     # her name alone is much of it, and says nothing of that
    ("Where was Ann Harding of Harlow born?", 2.0, "sure"),        # but a reader may know better
    ("Was Ann Harding painted by her sister?", 1.0, "sure"),
    ("How much did the bottom bracket cost?", 5.0, "nearest"),     # the amount is another item's
    ("How much did the new chain cost?", 5.0, "sure"),
    ("How long does the carpenter need for the work?", 5.0, "nearest"),     # eight years are of something else
    ("How long does larch last?", 5.0, "sure"),
])
def test_what_is_told_for_sure_says_of_what_is_named_what_was_asked(query, above, certainty):
    made = batos.new_catalog()
    batos.index_document_(made, "house.md", HOUSE)
    recall = batos.Recall(embedder=batos.Embedder())
    recall.embedder.reader = Scoring(above)
    assert batos.find_evidence(made, query, recall)["certainty"] == certainty


def test_what_comes_nearest_is_quoted_as_that():
    made = batos.new_catalog()
    batos.index_document_(made, "house.md", HOUSE)
    near = found(made, "What about the bottom bracket?") | {"certainty": "nearest"}
    told = batos.unsure_answer("How heavy is the bottom bracket?", near)
    assert told["answer"].startswith("Nothing here says it outright; nearest: \u201cIn summer: the bottom bracket creaked")
    assert all(told["answer"].count(f"[{n}]") == 1 for n in range(1, len(near["evidence"]) + 1))
    batos.index_document_(made, "ferry.md", FERRY.format(more=""))
    query = "Which option throws parcels overboard?"
    told = batos.unsure_answer(query, found(made, query) | {"certainty": "nearest"})
    assert "nearest: --keep-rope=METRES: \u201cParcels without an address" in told["answer"]


@pytest.mark.parametrize("query, told", [
    ("Who is the bass at the concert in December?", "The bass is still missing"),
    ("What is the default of pressure_low?", "The default is 0.8 bar"),
    ("Can I change the password of the boiler?", "The password of the boiler is changed by the plumber."),
    ("How do I set the user who is called first?", "-d name\nSets the user"),
])
@pytest.mark.parametrize("points", [False, True], ids=["by words", "read"])
def test_the_sentence_that_names_what_is_asked_for_is_told(query, told, points):
    made, recall = batos.new_catalog(), batos.Recall(embedder=batos.Embedder())
    batos.index_document_(made, "house.md", HOUSE)
    recall.embedder.reader = Scoring(2.0) if points else recall.embedder.reader     # which points to what stands first
    item = batos.find_evidence(made, query, recall)["evidence"][0]
    assert told in batos.marked_text(item)


@pytest.mark.parametrize("query, said, other", [
    ("What is the default of pressure_low?", "They also set pressure_low.", "The default of it is 0.8 bar."),
    ("Who is the bass at the concert?", "Irene Vogel sings at the concert.", "The bass is Paul."),
    ("Can I change the password?", "$ boiler change password", "The plumber changes the password."),
])
def test_what_is_said_of_something_else_is_not_marked_in_place_of_what_answers(query, said, other):
    made = batos.new_catalog()
    batos.index_document_(made, "house.md", HOUSE)
    asked = batos.asked_of(made, query, "", "")
    tellings = [batos._telling_of_line(text, 1, ())[0] for text in (said, other)]
    assert [batos._is_of_others(asked, told) for told in tellings] == [True, False]


@pytest.mark.parametrize("query, said, sure", [
    ("How long does the carpenter need for the work?", "Larch lasts about twenty years.", False),
    ("How long does larch last?", "Larch lasts about twenty years.", True),
    ("What do I do when the carpenter comes?", "Larch lasts about twenty years.", True),      # the reader says so
])
def test_a_figure_is_told_for_sure_of_nothing_but_what_was_asked(query, said, sure):
    made = batos.new_catalog()
    batos.index_document_(made, "house.md", HOUSE)
    window = batos.Window(None, batos._telling_of_line(said, 1, ()), 0, 1)
    judged = batos.Judged(window, 1.0, 0, sure=True, above=5.0)
    assert batos._is_told_or_read(batos.asked_of(made, query, "", ""), judged) == sure


CLUBS = """Ann asked how many rowers have joined the club. One of the reasons why rowers join the club is the old boathouse.

The road to the club is 12 km long.
"""


def test_a_figure_that_another_sentence_holds_is_none_of_what_was_asked():
    made, recall = batos.new_catalog(), batos.Recall(embedder=batos.Embedder())
    batos.index_document_(made, "clubs.md", CLUBS)
    recall.embedder.reader = Scoring(3.0)
    for query, certainty in (("How many rowers join the club?", "nearest"), ("How long is the road to the club?", "sure")):
        assert batos.find_evidence(made, query, recall)["certainty"] == certainty
