"""Pairs of tokens for the metrics of meaning: related in a dictionary, or rated by people."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from defemb_callbacks.definitions import Lexicon
from defemb_callbacks.metrics.ratings import Ratings, read_ratings
from defemb_callbacks.vocabulary.tokens import Vocabulary

# With this many pairs from WordNet, the smallest group has about 2,500, and its `relation_auc` a standard error below
# 0.01.
MOST_PAIRS = 20_000


def related_tokens(vocabulary: Vocabulary, lexicon: Lexicon) -> Tensor:
    """Return pairs of tokens whose words are related in the dictionary without sharing a definition: (m, 2) int64.

    At most `MOST_PAIRS` pairs are returned, evenly spaced over the order of the dictionary and therefore always the
    same.
    """
    token_of_word = _token_of_word(vocabulary)
    relations = lexicon.relations(token_of_word)
    pairs = [(token_of_word[left.lower()], token_of_word[right.lower()]) for left, right, _ in relations]
    pairs = pairs[:: -(-len(pairs) // MOST_PAIRS)] if pairs else pairs
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def rated_tokens(vocabulary: Vocabulary, file: str | Path) -> Ratings:
    """Return the rated pairs of a file whose words are both tokens.

    Args:
        vocabulary: Vocabulary from `read_vocabulary`.
        file: File of human ratings, see `read_ratings`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file cannot be read (see `read_ratings`), or it has no pair of two tokens.
    """
    token_of_word = _token_of_word(vocabulary)
    rated = [
        (token_of_word[left.lower()], token_of_word[right.lower()], score)
        for left, right, score in read_ratings(file)
        if left.lower() in token_of_word and right.lower() in token_of_word and left.lower() != right.lower()
    ]
    if not rated:
        raise ValueError(f"No line of {file} has two different words that are tokens. Pass ratings of common words.")
    left, right, scores = zip(*rated, strict=True)
    return Ratings(torch.tensor([left, right]).T.contiguous(), torch.tensor(scores, dtype=torch.float64))


def _token_of_word(vocabulary: Vocabulary) -> dict[str, int]:
    tokens: dict[str, int] = {}
    # "march" before "March", because the relations in a dictionary are mostly those of the common word.
    for wanted_lower in (True, False):
        for index, word in enumerate(vocabulary.words):
            if word is not None and word.islower() == wanted_lower:
                tokens.setdefault(word.lower(), index)
    return tokens
