"""propose_terms: which words of a corpus to add, and what that saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertModel

from defemb_callbacks import define_new_tokens, load_definitions
from defemb_callbacks.new_tokens.proposals import Proposal, propose_terms
from tiny import byte_bpe_tokenizer, tiny_bert, tiny_glossary, unigram_tokenizer, wordpiece_tokenizer

DICTIONARY = load_definitions(
    {"lynx": ["a wild cat", "a constellation"], "T-cell": "a cell", "zebra": "a striped horse", "cat": "a small animal"}
)
TEXTS = ["the lynx and the cat", "a lynx, the lynx-like zorblax", "the zebra", "T-cell, T-cell", "zorblax zorblax"] * 3


@pytest.mark.parametrize("make", [wordpiece_tokenizer, byte_bpe_tokenizer, unigram_tokenizer])
def test_proposed_words_save_what_is_said(make: Callable[[], Any]):
    """Tokens saved are the difference of two tokenizations."""
    tokenizer = make()
    # Without punctuation, with which pieces may be joined
    texts = ["the lynx and the cat", "a lynx in the house of the zebra", "the zebra"] * 4
    found = propose_terms(tokenizer, texts, DICTIONARY, min_count=1)
    assert {proposal.word for proposal in found.words} == {"lynx", "zebra"}
    before = sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    assert found.corpus_tokens == before
    model = tiny_bert(tokenizer, BertModel)
    terms = {proposal.word: proposal.definition for proposal in found.words}
    define_new_tokens(model, tokenizer, terms, tiny_glossary())
    after = sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    assert before - after == found.saved > 0


def test_words_are_frequent_cut_and_defined():
    found = propose_terms(wordpiece_tokenizer(), TEXTS, DICTIONARY, min_count=4)
    # "cat" is a token, "zebra" is rare, "zorblax" and "lynx-like" are not defined.
    assert [proposal.word for proposal in found.words] == ["t-cell", "lynx"]
    assert found.words[1] == Proposal("lynx", 6, 4, "a wild cat")
    assert found.words[1].saved == 18


def test_the_words_that_save_most_are_kept():
    found = propose_terms(wordpiece_tokenizer(), TEXTS, DICTIONARY, most=1, min_count=1)
    assert [proposal.word for proposal in found.words] == ["t-cell"]
    everything = propose_terms(wordpiece_tokenizer(), TEXTS, DICTIONARY, min_count=1)
    saved = [proposal.saved for proposal in everything.words]
    assert saved == sorted(saved, reverse=True)
    assert len(saved) == 3


def test_cased_tokenizers_get_words_as_written():
    found = propose_terms(byte_bpe_tokenizer(), TEXTS, DICTIONARY, min_count=4)
    assert "T-cell" in [proposal.word for proposal in found.words]


def test_the_table_and_the_file(tmp_path: Path):
    found = propose_terms(wordpiece_tokenizer(), TEXTS, DICTIONARY, min_count=4)
    shown = str(found)
    assert shown.startswith(f"2 words would save {found.saved} of {found.corpus_tokens} tokens (")
    assert "lynx 6 4 18 a wild cat" in " ".join(shown.split())
    found.save(tmp_path / "terms.csv")
    tokenizer = wordpiece_tokenizer()
    report = define_new_tokens(tiny_bert(tokenizer, BertModel), tokenizer, tmp_path / "terms.csv", tiny_glossary())
    assert [term.term for term in report.terms] == ["lynx", "t-cell"]


def test_nothing_to_propose():
    found = propose_terms(wordpiece_tokenizer(), ["the cat"], DICTIONARY)
    assert not found.words
    assert str(found) == "No word to add was found in 2 tokens."
    assert propose_terms(wordpiece_tokenizer(), [], DICTIONARY).corpus_tokens == 0


@pytest.mark.parametrize("name", ["most", "min_count"])
def test_settings_below_one_raise(name: str):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        propose_terms(wordpiece_tokenizer(), TEXTS, DICTIONARY, **{name: 0})
