"""Definitions of tokens, looked up as words and literally."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, PerceiverTokenizer

from defemb_callbacks.definitions import Definition, Lexicon, load_definitions
from defemb_callbacks.vocabulary.lookup import (
    definitions_of_tokens,
    first_glosses,
    lemma_groups,
    single_words,
    why_none_is_defined,
)
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from tiny import byte_bpe_tokenizer, wordpiece_tokenizer


def glosses(definitions: list[Definition]) -> list[str]:
    return [definition.gloss for definition in definitions]


@pytest.mark.parametrize("make", [wordpiece_tokenizer, byte_bpe_tokenizer])
def test_a_glossary_adds_to_the_definitions_of_other_dictionaries(make: Any) -> None:
    # In a WordPiece vocabulary the literal token is the word itself; the other source must not be overridden.
    vocabulary = read_vocabulary(make())
    other = Lexicon.from_definitions([Definition("cat", "a feline")], name="other")
    lexicon = Lexicon.merge([other, load_definitions({"cat": "a pet"})])
    found = definitions_of_tokens(vocabulary, lexicon, max_definitions=8)
    [index] = [index for index, word in enumerate(vocabulary.words) if word == "cat"]
    assert [(each.source, each.gloss) for each in found[index]] == [("other", "a feline"), ("glossary", "a pet")]


def test_the_entry_of_a_literal_token_overrides_that_of_the_word() -> None:
    tokenizer = byte_bpe_tokenizer()
    both = load_definitions({"Ġcat": "the token", "cat": "the word", "dog": "another word"})
    found = definitions_of_tokens(read_vocabulary(tokenizer), both, max_definitions=8)
    ids = tokenizer.get_vocab()
    assert glosses(found[ids["Ġcat"]]) == ["the token"]
    assert glosses(found[ids["Ġdog"]]) == ["another word"]


def test_the_number_of_definitions_is_limited_within_each_dictionary() -> None:
    lexicon = load_definitions([{"dog": ["one", "two", "three"]}, {"dog": ["four", "five"]}])
    [found] = definitions_of_tokens(read_vocabulary(wordpiece_tokenizer()), lexicon, max_definitions=2).values()
    assert glosses(found) == ["one", "two", "four", "five"]


def test_special_and_unused_tokens_are_not_looked_up() -> None:
    tokenizer = wordpiece_tokenizer()
    lexicon = load_definitions({"[CLS]": "a special token", "[unused0]": "a reserved entry", "##ing": "forms nouns"})
    found = definitions_of_tokens(read_vocabulary(tokenizer), lexicon, max_definitions=8)
    assert tokenizer.convert_ids_to_tokens(list(found)) == ["##ing"]


def test_only_the_given_tokens_are_looked_up_in_ascending_order() -> None:
    tokenizer = wordpiece_tokenizer()
    vocabulary, ids = read_vocabulary(tokenizer), tokenizer.convert_tokens_to_ids(["water", "dog", "the"])
    lexicon = load_definitions({"dog": ["an animal", "a person"], "water": "a liquid", "cat": "a pet"})
    assert list(definitions_of_tokens(vocabulary, lexicon, max_definitions=8, ids=ids)) == sorted(ids[:2])
    assert first_glosses(vocabulary, lexicon, torch.tensor(ids)) == {ids[0]: "a liquid", ids[1]: "an animal"}
    assert first_glosses(vocabulary, None, torch.tensor(ids)) == {}


def test_phrases_are_not_single_words() -> None:
    lexicon = load_definitions({"dog": ["an animal", "a person"], "hot dog": "food", "hot_dog": "food", "it's": "x"})
    found = single_words(lexicon, max_definitions=1)
    assert [(word, glosses(definitions)) for word, definitions in found] == [("dog", ["an animal"]), ("it's", ["x"])]


@given(st.lists(st.lists(st.sampled_from("abcdefghijkABC"), max_size=3), max_size=8))
def test_tokens_are_grouped_if_a_chain_of_shared_words_connects_them(words: list[list[str]]) -> None:
    groups = lemma_groups([[Definition(word, "a gloss") for word in token] for token in words])
    expected = [{word.casefold() for word in token} for token in words]
    for _ in words:  # spreads the words of each token to all that it is connected with
        for one in expected:
            for other in expected:
                if one & other:
                    one |= other
    assert groups.dtype == torch.int64
    for i, one in enumerate(expected):
        for j, other in enumerate(expected):
            assert bool(groups[i] == groups[j]) == (i == j or bool(one & other))
    # Numbered in order of first appearance.
    assert list(dict.fromkeys(groups.tolist())) == list(range(len(groups.unique())))


@pytest.mark.parametrize("make", [ByT5Tokenizer, PerceiverTokenizer])
def test_a_vocabulary_of_bytes_has_no_words(make: Any) -> None:
    vocabulary, lexicon = read_vocabulary(make()), load_definitions({"cat": "a pet"})
    assert not definitions_of_tokens(vocabulary, lexicon, max_definitions=8)
    assert why_none_is_defined(vocabulary, lexicon).startswith(
        f"The vocabulary has no words: its {len(vocabulary)} tok"
    )


def test_a_dictionary_of_another_language_defines_nothing() -> None:
    lexicon = load_definitions({"Katze": "ein Haustier"})
    found = why_none_is_defined(read_vocabulary(wordpiece_tokenizer()), lexicon)
    assert found.endswith("Pass a dictionary in the tokenizer's language, with one word per entry.")
