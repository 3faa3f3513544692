"""Evidence: which passages are told, what is marked in them, and how sure memory is; by words alone."""

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
TEA = "Tea is brewed for three minutes. Coffee is brewed for five minutes.\n"


@pytest.fixture(scope="module")
def catalog():
    catalog = batos.new_catalog()
    batos.index_document_(catalog, "boat.md", BOAT)
    batos.index_document_(catalog, "boat-copy.md", BOAT.replace("# Sea", "# Lake"))
    batos.index_document_(catalog, "mast.md", MAST)
    batos.index_document_(catalog, "tea.md", TEA)
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
    assert batos.marked_text(item) == "She was born in 1961 in Porto." and item["text"].startswith("The captain is Mira")
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


def test_what_goes_on_in_a_command_is_quoted_with_it(catalog):
    told = batos.plain_answer("lamps?", [best(catalog, "Which lamps of the mast burn at night?")])
    assert told.endswith("at noon, look at lampctl --list” [1]")


def test_a_row_is_told_alone_under_its_header(catalog):
    item = best(catalog, "What is the duty of Bob?")
    assert item["text"] == "| Name | Duty |\n| Bob | helmsman |" and batos.marked_text(item) == "| Bob | helmsman |"
    assert batos.gate_reasons(catalog, [item]) == []


def test_what_two_documents_say_alike_is_told_once_and_at_most_three_passages(catalog):
    told = found(catalog, "the captain and the boat")["evidence"]
    assert len(told) <= batos.PASSAGES_MOST and len({item["text"] for item in told}) == len(told)


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


@pytest.mark.parametrize("mission, text, told", [
    ("Can I go back?", "No, it is a one way process.", "No: “No, it is a one way process.” [1]"),
    ("How can I go back?", "No, it is a one way process.", "“No, it is a one way process.” [1]"),
    ("Is it open?", "It is open on Monday.", "“It is open on Monday.” [1]"),
])
def test_yes_and_no_are_told_where_the_text_says_so(mission, text, told):
    assert batos.plain_answer(mission, [{"text": text}]) == told
