"""Pairs of tokens that a dictionary relates or that people have rated: what the metrics of meaning are measured on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from defemb_callbacks.definitions import Lexicon
from defemb_callbacks.metrics.ratings import Ratings, read_ratings
from defemb_callbacks.vocabulary.tokens import Vocabulary

# A `relation_auc` over 2,500 pairs, as many as the smallest group then has in WordNet, has a standard error below 0.01.
MOST_PAIRS = 20_000


def related_tokens(vocabulary: Vocabulary, lexicon: Lexicon) -> Tensor:
    """(m, 2) int64: pairs of tokens whose words the dictionary relates, without sharing a definition.

    At most `MOST_PAIRS` of them, evenly spaced over the dictionary's order, so always the same ones.
    """
    token_of_word = _token_of_word(vocabulary)
    relations = lexicon.relations(token_of_word)
    pairs = [(token_of_word[left.lower()], token_of_word[right.lower()]) for left, right, _ in relations]
    pairs = pairs[:: -(-len(pairs) // MOST_PAIRS)] if pairs else pairs
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def rated_tokens(vocabulary: Vocabulary, file: str | Path) -> Ratings:
    """The pairs of a file of human ratings of which both words are tokens, with their ratings.

    Args:
        vocabulary: from `read_vocabulary`.
        file: as `read_ratings` takes it.

    Raises:
        FileNotFoundError, ValueError: see `read_ratings`; or no pair of the file consists of two tokens.
    """
    token_of_word = _token_of_word(vocabulary)
    rated = [
        (token_of_word[left.lower()], token_of_word[right.lower()], score)
        for left, right, score in read_ratings(file)
        if left.lower() in token_of_word and right.lower() in token_of_word and left.lower() != right.lower()
    ]
    if not rated:
        raise ValueError(f"No line of {file} has two different words that are tokens of the vocabulary.")
    left, right, scores = zip(*rated, strict=True)
    return Ratings(torch.tensor([left, right]).T.contiguous(), torch.tensor(scores, dtype=torch.float64))


def _token_of_word(vocabulary: Vocabulary) -> dict[str, int]:
    tokens: dict[str, int] = {}
    # "march" before "March": a dictionary's relations are mostly those of the common word.
    for wanted_lower in (True, False):
        for index, word in enumerate(vocabulary.words):
            if word is not None and word.islower() == wanted_lower:
                tokens.setdefault(word.lower(), index)
    return tokens
