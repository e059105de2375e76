"""A definition as text: nothing but its definition tells which word it is."""

from __future__ import annotations

import pytest

from defemb_callbacks import Definition
from defemb_callbacks.prompts import definition_prompt, mask_text
from tiny import byte_bpe_tokenizer, unigram_tokenizer, wordpiece_tokenizer

MASK = "<mask>"


@pytest.mark.parametrize(
    ("make", "text"), [(wordpiece_tokenizer, "[MASK]"), (byte_bpe_tokenizer, "<mask>"), (unigram_tokenizer, "")]
)
def test_the_mask_is_the_tokenizers_own_or_none(make, text):
    assert mask_text(make()) == text


@pytest.mark.parametrize(
    ("definition", "word", "prompt"),
    [
        (Definition("cat", "a small feline"), "cat", "<mask>: a small feline"),
        (Definition("cat", "a small feline", synonyms=("mog", "puss")), "cat", "<mask>, mog, puss: a small feline"),
        # The lemma of an inflected form and the other case of a lower-cased one.
        (Definition("cat", "a small feline"), "cats", "<mask>, cat: a small feline"),
        (Definition("Paris", "the capital of France"), "paris", "<mask>: the capital of France"),
        # Itself among the synonyms, twice, and within longer names.
        (Definition("cat", "a pet", synonyms=("Cat", "true cat", "true Cat")), "cat", "<mask>, true <mask>: a pet"),
        # In the gloss: in any case, beside punctuation, but no part of another word.
        (Definition("cat", "Cat's cradle; (cat), cat-like"), "cat", "<mask>: <mask>'s cradle; (<mask>), <mask>-like"),
        (Definition("cat", "category of cats; concat"), "cat", "<mask>: category of cats; concat"),
        (Definition("slovo", "slov, slovom"), "slov", "<mask>, slovo: <mask>, slovom"),
        # Words with characters that mean something to a regular expression.
        (Definition("c++", "what c++ compilers read; c, cc++"), "c++", "<mask>: what <mask> compilers read; c, cc++"),
        (Definition(".net", "a .net is no net"), ".net", "<mask>: a <mask> is no net"),
    ],
)  # fmt: skip
def test_the_word_is_masked_wherever_it_stands(definition, word, prompt):
    assert definition_prompt(definition, word, MASK) == prompt


def test_without_a_mask_the_word_is_left_out():
    assert definition_prompt(Definition("cat", "a small feline"), "cat", "") == "a small feline"
    assert definition_prompt(Definition("cat", "a feline", synonyms=("mog",)), "cat", "") == "mog: a feline"


@pytest.mark.parametrize("word", ["dog", "river", "happy"])
def test_the_tokenized_prompt_holds_the_mask_and_not_the_word(word):
    tokenizer = byte_bpe_tokenizer()
    definition = Definition(word, f"the {word} of a {word.upper()}", synonyms=("animal", f"big {word}"))
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(definition_prompt(definition, word, MASK))["input_ids"])
    assert tokens.count("<mask>") == 4
    assert word not in "".join(tokens).lower()
