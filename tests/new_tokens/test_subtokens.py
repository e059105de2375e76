"""split_without_itself: the sub-tokens of a word as if it were not a token."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from defemb_callbacks.new_tokens.subtokens import split_without_itself
from tiny import byte_bpe_tokenizer, unigram_tokenizer, wordpiece_tokenizer


def splits(tokenizer, *tokens: str) -> list[list[str]]:
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(token) for token in tokens])
    return [tokenizer.convert_ids_to_tokens(found) for found in split_without_itself(tokenizer, ids)]


def test_wordpiece_uses_the_longest_remaining_prefix():
    assert splits(wordpiece_tokenizer(), "cats", "bigger", "walking") == [
        ["cat", "##s"],
        ["big", "##g", "##er"],
        ["walk", "##ing"],
    ]


def test_words_of_one_part_are_removed_together():
    # "cat" is the first and "cats" the eleventh: both are out when each is cut.
    others = ["the", "of", "and", "in", "to", "was", "for", "on", "as"]
    found = splits(wordpiece_tokenizer(), "cat", *others, "cats")
    assert found[0] == ["c", "##a", "##t"]
    assert found[-1] == ["c", "##a", "##t", "##s"]


def test_bpe_undoes_the_last_merge():
    tokenizer = byte_bpe_tokenizer()
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    (left, right), word = next((tuple(merge), "".join(merge)) for merge in merges if "".join(merge) == "Ġanimal")
    assert splits(tokenizer, word) == [[left, right]]


def test_unigram_uses_the_most_likely_segmentation():
    tokenizer = unigram_tokenizer()
    scores = dict(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"])

    def best(text: str, without: str) -> tuple[float, list[str]]:
        found = [(0.0, [])] if not text else []
        for end in range(1, len(text) + 1):
            if text[:end] in scores and text[:end] != without:
                score, rest = best(text[end:], without)
                found.append((scores[text[:end]] + score, [text[:end], *rest]))
        return max(found, key=lambda one: one[0])

    for word in ("▁cats", "▁walking", "▁teacher"):
        assert splits(tokenizer, word) == [best(word, word)[1]]


def test_words_that_cannot_be_split_have_no_sub_tokens():
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1}, unk_token="[UNK]"))
    assert splits(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"), "cat") == [[]]
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "cat": 1, "c": 2}, unk_token="[UNK]"))
    assert splits(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"), "cat") == [[]]


@pytest.mark.parametrize("make", [wordpiece_tokenizer, byte_bpe_tokenizer, unigram_tokenizer])
def test_the_tokenizer_is_unchanged(make):
    tokenizer = make()
    before = tokenizer.backend_tokenizer.to_str()
    split_without_itself(tokenizer, torch.arange(200, 260))
    assert tokenizer.backend_tokenizer.to_str() == before
