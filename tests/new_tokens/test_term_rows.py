"""Directions and lengths of new rows."""

from __future__ import annotations

import pytest
import torch

from defemb_callbacks.new_tokens.term_rows import (
    WEIGHTS,
    bare_offset,
    best_mixture,
    mixed_directions,
    piece_means,
    scale_like,
)
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from tiny import byte_bpe_tokenizer


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_best_weight_recovers_the_true_mixture():
    rows, pieces, centre = drawn(200, 16), drawn(200, 16, seed=1), drawn(16, seed=2)
    for weight in (0.0, 0.25, 0.8, 1.0):
        old = centre + 3 * mixed_directions(rows, pieces, torch.full((200,), weight), centre)
        found = best_mixture(rows, pieces, old, centre)
        assert found.weight == pytest.approx(weight)
        assert found.cosine == pytest.approx(1.0, abs=1e-5)


def test_cosines_of_the_mixture_equal_a_loop():
    rows, pieces, old, centre = drawn(50, 8), drawn(50, 8, seed=1), drawn(50, 8, seed=2), drawn(8, seed=3)
    old = old + rows  # so that definitions help
    found = best_mixture(rows, pieces, old, centre)
    cosines = []
    for weight in WEIGHTS:
        made = [weight * (r - centre) / (r - centre).norm() for r in rows]
        made = [m + (1 - weight) * (p - centre) / (p - centre).norm() for m, p in zip(made, pieces, strict=True)]
        each = [torch.cosine_similarity(m, o - centre, dim=0) for m, o in zip(made, old, strict=True)]
        cosines.append(float(torch.stack(each).mean()))
    assert found.weight == WEIGHTS[cosines.index(max(cosines))]
    assert found.cosine == pytest.approx(max(cosines), abs=1e-6)
    assert (found.piece_cosine, found.definition_cosine) == pytest.approx((cosines[0], cosines[-1]), abs=1e-6)
    assert found.words == 50


def test_lengths_do_not_affect_the_mixture():
    rows, pieces, centre = drawn(5, 8), drawn(5, 8, seed=1), torch.zeros(8)
    weights = torch.full((5,), 0.5)
    expected = mixed_directions(rows, pieces, weights, centre)
    torch.testing.assert_close(mixed_directions(9 * rows, pieces / 7, weights, centre), expected)


def test_length_is_the_median_distance_from_the_centre():
    centre, like = drawn(8), drawn(21, 8, seed=1)
    made = scale_like(drawn(4, 8, seed=2), like, centre)
    expected = (like - centre).norm(dim=1).median().expand(4)
    torch.testing.assert_close((made - centre).norm(dim=1), expected)


def test_piece_means_equal_a_loop():
    table, pieces = drawn(20, 4), [[3, 5, 5], [7], [], [0, 19]]
    expected = torch.stack([table[ids].mean(dim=0) if ids else torch.zeros(4) for ids in pieces])
    torch.testing.assert_close(piece_means(table, pieces), expected)


def test_bare_offset_is_the_mean_difference_of_pairs():
    vocabulary = read_vocabulary(byte_bpe_tokenizer())
    table, offset = drawn(len(vocabulary), 4), drawn(4, seed=9)
    places = {token: index for index, token in enumerate(vocabulary.tokens)}
    pairs = [(places[f"Ġ{token}"], index) for token, index in places.items() if f"Ġ{token}" in places]
    pairs = [(spaced, bare) for spaced, bare in pairs if vocabulary.words[spaced] is not None]
    assert len(pairs) >= 30
    for spaced, bare in pairs:
        table[bare] = table[spaced] + offset
    torch.testing.assert_close(bare_offset(table, vocabulary), offset, atol=1e-5, rtol=1e-5)


def test_bare_offset_is_zero_with_few_pairs():
    vocabulary = Vocabulary(("Ġcat", "cat"), ("cat", None), (None, "word piece"), uncased=False)
    assert bare_offset(drawn(2, 4), vocabulary).tolist() == [0.0] * 4
