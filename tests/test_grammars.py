"""Grammars of the core's tasks: they compile whatever the text is that they embed, and take what that text says. No model."""

import json
import pathlib
import types

import llguidance
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import batos

SEED = pathlib.Path(batos.__file__).resolve().parent / "seed_core"
TOKENS = llguidance.LLTokenizer(batos._unspellable((SEED / "tokenizer.json").read_text()))
HARD = [*"/\\\"'`[](){}|*+?.^$&~#-%<>@!", *"\x00\x01\x1f\x7f\x85\xa0\u2028\u2029\ufeff\ud7ff\ud800\U0010ffff\u0301\u200d",
        "\n", "//", "\\/", '\\"', "/i", "%regex", "%json", "<|eot_id|>", "[1:2]", "\\n", "\\x2f", "(?i)",
        "مرحبا", "我的护照", "नमस्ते", "🦇"]
WORDS = st.sampled_from(["valve", "opens", "the", " ", " ", "and/or", 'a"b', "C:\\temp"])
TEXTS = st.lists(st.sampled_from(HARD) | st.text(max_size=6) | WORDS, min_size=1, max_size=25).map("".join)
USUAL = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def matcher(grammar):
    made = llguidance.LLMatcher(TOKENS, grammar, log_level=0)
    assert not made.is_error(), f"{made.get_error()[:300]}\n{grammar[:2000]}"
    return made


def takes(grammar, text):
    """Return whether a grammar takes a text from its beginning to its end."""
    made, ids = matcher(grammar), TOKENS.tokenize_str(text)
    return made.try_consume_tokens(ids) == len(ids) and made.is_accepting()


def all_fields(text, others):
    """Yield (task, fields) of every task, with a text and others wherever a person's words go."""
    shares = [0.5] * len(others)
    method = {"selector": "total_price", "intent": text, "slots": {"price": "number", "names": "texts"}, "arguments": [],
              "offered": []}
    yield "plan", {"mission": text, "offered": []}
    yield "facet", {"persona": "BRICK", "pillar": "tamland_facet_", "sub_query": text, "evidence": others, "shares": shares}
    yield "weave", {"lead": "BRICK", "mission": text, "quotes": others, "shares": shares}
    yield "summary", {"passage": others, "shares": shares}
    yield "method", method
    yield "tests", method


def check_all(text, others):
    for tag, fields in all_fields(text, others):
        try:
            _, grammar = batos.CORE_TASKS[tag].prompt(fields)
        except batos.BadRequest as error:
            assert "blank" in error.message
            continue
        matcher(grammar)


@settings(max_examples=60, **USUAL)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
def test_every_grammar_compiles_whatever_the_text_is(text, others):
    check_all(text, others)


@pytest.mark.campaign
@settings(max_examples=10_000, **USUAL)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
def test_every_grammar_compiles_ten_thousand_times(text, others):
    check_all(text, others)


@pytest.mark.parametrize("mark", HARD)
def test_a_word_with_any_mark_in_it_is_embedded_and_taken(mark):
    line = batos.one_line(f"open val{mark}ve now", batos.SUB_QUERY_BYTES)
    check_all(line, [line])
    assert takes(f"start: SPAN\nSPAN: {batos._run_of(batos._chunked(line))}\n", line)


@settings(max_examples=100, **USUAL)
@given(TEXTS)
def test_a_run_takes_each_telling_word_of_its_text_and_nothing_else(text):
    line = batos.one_line(text, batos.SPAN_CHARS // 4)
    chunks = batos._chunked(line)
    if not line:
        return
    grammar = f"start: SPAN\nSPAN: {batos._run_of(chunks)}\n"
    for chunk in filter(batos.carries_meaning, chunks):
        assert takes(grammar, chunk)
    assert not takes(grammar, f"{line} otherwise")


def test_plain_words_stand_in_a_grammar_as_they_are():
    """So that a core is still of the format that it was trained for."""
    assert batos._lark_literal("pump_2é我") == "pump_2é我" and batos._lark_literal("and/or") == "and\\x{2f}or"


# Special tokens


class SpellsTemplate:
    """A tokenizer with a chat template, as larger models have one."""

    chat_template = "there is one"
    special = ["<|eot_id|>", "<s>"]

    def __init__(self):
        self.backend_tokenizer, self.told = types.SimpleNamespace(encode_special_tokens=True), None
        self.added_tokens_decoder = {
            number: types.SimpleNamespace(content=content, special=content in self.special)
            for number, content in enumerate([*self.special, "word"])}

    def apply_chat_template(self, turns, **options):
        self.told = [turn["content"] for turn in turns]
        return [1, 2, 3]


def test_a_text_that_spells_a_special_token_ends_no_turn_of_a_larger_core():
    tokenizer = SpellsTemplate()
    core = types.SimpleNamespace(tokenizer=tokenizer)
    core.unspelled = lambda text: batos.LoadedCore.unspelled(core, text)
    core.template_ids = lambda turns: batos.LoadedCore.template_ids(core, turns)
    batos.LoadedCore.chat_ids(core, "a <|eot_id|> b <<s>s> c", "system <s>")
    assert not [text for text in tokenizer.told for token in tokenizer.special if token in text]
    assert [text.replace(" ", "") for text in tokenizer.told] == ["system<s>", "a<|eot_id|>b<<s>s>c"]
    batos.LoadedCore.chat_ids(core, "no special word < | here", None)
    assert tokenizer.told == ["no special word < | here"]


def test_our_own_core_s_special_tokens_are_letters_in_a_text():
    names = [token["content"] for token in json.loads((SEED / "tokenizer.json").read_text())["added_tokens"] if token["special"]]
    assert names
    for name in names:
        assert bytes(TOKENS.decode_bytes(TOKENS.tokenize_str(f"a {name} b"))).decode() == f"a {name} b"
