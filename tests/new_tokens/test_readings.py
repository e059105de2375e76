"""Texts with a term, as sub-tokens and with its new token."""

from __future__ import annotations

import pytest

from defemb_callbacks import DefinitionEMBConfig, load_definitions
from defemb_callbacks.new_tokens.define import plan_new_tokens
from defemb_callbacks.new_tokens.readings import MAX_TOKENS, TEMPLATES, definition_readings, text_readings
from defemb_callbacks.new_tokens.token_plan import TokenPlan
from tiny import byte_bpe_tokenizer, gemma_tokenizer, tiny_glossary, unigram_tokenizer, wordpiece_tokenizer

TERMS = {"lynx": ["a wild cat with long ears", "a shy animal"], "tokamak": "a machine for hot gas", "cat": "a pet"}
TEXTS = [
    "he saw the lynx in the forest",
    "the lynx and the tokamak, and a lynx (lynx)",
    "a tokamak was near the lynx .",
    "lynxes run; a lynx runs",
]
TOKENIZERS = {
    "WordPiece": wordpiece_tokenizer,
    "byte-level BPE": byte_bpe_tokenizer,
    "SentencePiece": gemma_tokenizer,
    "Unigram": unigram_tokenizer,
}


def planned(tokenizer, terms=TERMS, texts=()) -> TokenPlan:
    return plan_new_tokens(tokenizer, terms, load_definitions(tiny_glossary()), DefinitionEMBConfig(), texts)


def test_definitions_are_read_with_and_without_the_new_token():
    tokenizer = byte_bpe_tokenizer()
    plan = planned(tokenizer)
    readings = definition_readings(plan)
    # not "cat", a token
    assert [reading.row for reading in readings] == [0] * 2 * len(TEMPLATES) + [1] * len(TEMPLATES)
    first = readings[0]
    assert tokenizer.decode(first.before, skip_special_tokens=True) == "The word lynx means a wild cat with long ears."
    assert plan.after.decode(first.after) == tokenizer.decode(first.before)
    token = plan.tokens[0]
    assert first.after[first.place] == token.word
    assert first.after[first.place + 1 :] == first.before[first.place + len(token.pieces) :]


def test_long_texts_are_truncated_after_the_term():
    plan = planned(byte_bpe_tokenizer(), {"lynx": "a cat and a dog " * 40})
    for reading in definition_readings(plan):
        assert len(reading.after) == MAX_TOKENS
        assert len(reading.before) == MAX_TOKENS + len(plan.tokens[0].pieces) - 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_only_the_first_occurrence_of_the_term_is_its_token(name: str):
    tokenizer = TOKENIZERS[name]()
    plan = planned(tokenizer, TERMS, TEXTS)
    new = {index for token in plan.tokens if token.is_new for index in token.ids}
    readings = text_readings(plan)
    assert [reading.row for reading in readings] == [0, 0, 0, 0, 1, 1]
    for reading, text in zip(readings, [*TEXTS, *TEXTS[1:3]], strict=True):
        assert list(reading.before) == tokenizer(text)["input_ids"]
        assert [index for index in reading.after if index in new] == [plan.tokens[reading.row].word]
        assert reading.after[reading.place] == plan.tokens[reading.row].word
        assert plan.after.decode(reading.after) == tokenizer.decode(reading.before)
        # What follows is the same, and so is what precedes.
        following = len(reading.after) - reading.place - 1
        assert reading.after[-following:] == reading.before[-following:]
        assert reading.last == len(reading.before) - following - 1
        assert reading.shared == reading.place
        assert reading.after[: reading.shared] == reading.before[: reading.shared]


def test_a_term_behind_a_space_token():
    """ "graft" begins a known word, so that the space before it becomes a token of its own."""
    tokenizer = byte_bpe_tokenizer()
    dictionary = load_definitions(tiny_glossary() | {"grafting": "work with skin"})
    texts = ["the graft is good", "a (graft) and a lynx", "a lynx and a graft is"]
    terms = {"graft": "a piece", "lynx": "a cat"}
    plan = plan_new_tokens(tokenizer, terms, dictionary, DefinitionEMBConfig(), texts)
    assert plan.after.convert_ids_to_tokens(plan.tokens[0].word) == "graft"
    readings = text_readings(plan)
    assert [reading.row for reading in readings] == [0, 0, 0, 1, 1]
    spaced = readings[0]
    assert plan.after.convert_ids_to_tokens(spaced.after[spaced.place - 1]) == "Ġ"
    assert spaced.shared == spaced.place - 1  # the sub-tokens include the space
    for reading in readings:
        assert plan.after.decode(reading.after) == tokenizer.decode(reading.before)


def test_texts_that_show_nothing_are_left_out():
    terms = {"lynx": "a cat", "cat": "a pet", "<|svg|>": {"definition": "a drawing", "special": True}}
    texts = ["a cat", "the lynx", "lynx is first", "a lynx is", "the <|svg|> is"]
    cased = planned(byte_bpe_tokenizer(), terms, [*texts, "Lynx is first"])
    readings = text_readings(cased)
    assert {reading.row for reading in readings} == {0}  # not the token, nor the special token
    shown = [cased.before.decode(reading.before, skip_special_tokens=True) for reading in readings]
    # The bare token, at the start of a text, has a row of its own.
    assert shown == ["the lynx", "a lynx is"]  # "</s>" follows the first one
    gemma = planned(gemma_tokenizer(), terms, texts)
    assert all(gemma.before.decode(reading.before) != "<bos>the lynx" for reading in text_readings(gemma))


def test_windows_of_long_texts_contain_the_term():
    plan = planned(byte_bpe_tokenizer(), {"lynx": "a cat"}, ["the dog and " * 50 + "the lynx " + "and the dog " * 50])
    (reading,) = text_readings(plan)
    assert reading.place <= MAX_TOKENS // 2 < len(reading.after) <= MAX_TOKENS
