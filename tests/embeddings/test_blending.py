"""What becomes of an old row and a new one: length, direction and choice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from defemb_callbacks import DefinitionEMBConfig
from defemb_callbacks.embeddings.blending import blend_rows, blend_weights, choose_tokens, rescale_rows, written_rows


def rows(n: int = 50, d: int = 8, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Old rows with a common direction, shorter new ones, and the centre of the old ones."""
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(n, d, generator=generator) * torch.linspace(0.5, 2, n)[:, None] + 1
    new = 0.4 * torch.randn(n, d, generator=generator) + 1
    return old, new, old.double().mean(dim=0)


def deviation_cosine(a: Tensor, b: Tensor, centre: Tensor) -> Tensor:
    return torch.cosine_similarity(a.double() - centre, b.double() - centre, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_blending_keeps_the_length_of_each_row(dtype):
    old, new, centre = rows()
    old = old.to(dtype)
    blended = blend_rows(old, new, torch.linspace(0, 1, 50), centre)
    assert blended.dtype == dtype
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(blended.double().norm(dim=1), old.double().norm(dim=1), rtol=tolerance, atol=tolerance)


# float64 has no digits to spare that would hide rounding on the way.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weight_0_gives_the_old_row_bit_by_bit(dtype):
    old, new, centre = rows()
    old = old.to(dtype)
    weights = torch.zeros(50)
    weights[7] = 0.5
    same = (blend_rows(old, new, weights, centre) == old).all(dim=1)
    assert same.tolist() == [index != 7 for index in range(50)]


def test_weight_1_gives_the_direction_of_the_new_rows_deviation():
    old, new, _ = rows()
    zero = torch.zeros(8, dtype=torch.float64)
    torch.testing.assert_close(
        deviation_cosine(blend_rows(old, new, torch.ones(50), zero), new, zero), torch.ones(50, dtype=torch.float64)
    )


def test_weight_1_around_a_centre_is_parallel_to_the_centre_plus_the_turned_deviation():
    old, new, centre = rows()
    length = (old.double() - centre).norm(dim=1, keepdim=True)
    turned = centre + length * torch.nn.functional.normalize(new.double() - centre, dim=1)
    blended = blend_rows(old, new, torch.ones(50), centre)
    cosine = torch.cosine_similarity(blended.double(), turned, dim=1)
    torch.testing.assert_close(cosine, torch.ones(50, dtype=torch.float64), rtol=0, atol=1e-10)


def test_more_weight_brings_a_row_nearer_to_the_new_one():
    old, new, _ = rows()
    centre = torch.zeros(8, dtype=torch.float64)
    steps = [blend_rows(old, new, torch.full((50,), weight), centre) for weight in (0.0, 0.25, 0.5, 0.75, 1.0)]
    cosines = torch.stack([deviation_cosine(step, new, centre) for step in steps])
    assert (cosines.diff(dim=0) > 0).all()


def test_half_the_weight_lies_halfway_whatever_the_length_of_the_new_row():
    old, new, _ = rows()
    centre = torch.zeros(8, dtype=torch.float64)
    half = torch.full((50,), 0.5)
    blended = blend_rows(old, new, half, centre)
    to_old, to_new = deviation_cosine(blended, old, centre), deviation_cosine(blended, new, centre)
    torch.testing.assert_close(to_old, to_new, rtol=0, atol=1e-6)
    torch.testing.assert_close(blend_rows(old, 100 * new, half, centre), blended)


def test_a_new_row_without_direction_leaves_the_old_one():
    old, _, centre = rows()
    blended = blend_rows(old, centre.expand(50, 8), torch.full((50,), 0.3), centre)
    torch.testing.assert_close(blended, old)


def test_blending_does_not_write_into_its_arguments():
    old, new, centre = rows()
    copies = old.clone(), new.clone(), centre.clone()
    blend_rows(old, new, torch.full((50,), 0.5), centre)
    rescale_rows(new, old, torch.zeros(50, dtype=torch.int64), centre)
    assert all(torch.equal(a, b) for a, b in zip((old, new, centre), copies, strict=True))


def test_weights_grow_with_rarity_from_the_floor_to_the_blend():
    rarity = torch.linspace(0, 1, 11)
    weights = blend_weights(rarity, blend=0.4, floor=0.25)
    assert (weights.diff() > 0).all()
    torch.testing.assert_close(weights[[0, 5, 10]], torch.tensor([0.1, 0.25, 0.4]))
    assert (weights <= 0.4).all()


def test_floor_1_weighs_all_tokens_alike_and_blend_0_none():
    rarity = torch.linspace(0, 1, 11)
    assert blend_weights(rarity, blend=0.4, floor=1).tolist() == pytest.approx([0.4] * 11)
    assert blend_weights(rarity, blend=0, floor=0.25).tolist() == [0] * 11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rescaling_gives_every_row_its_groups_median_length_and_keeps_its_direction(dtype):
    old, new, centre = rows()
    groups = torch.arange(50) % 3
    new = new.to(dtype)
    rescaled = rescale_rows(new, old, groups, centre)
    assert rescaled.dtype == dtype
    for group in range(3):
        members = groups == group
        median = (old.double() - centre)[members].norm(dim=1).median()
        lengths = (rescaled.double() - centre)[members].norm(dim=1)
        tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(lengths, median.expand_as(lengths), rtol=tolerance, atol=tolerance)
    assert deviation_cosine(rescaled, new, centre).min() > (0.999 if dtype == torch.bfloat16 else 1 - 1e-9)


def test_alpha_takes_the_least_frequent_share():
    ids = torch.tensor([3, 5, 8, 9, 12, 20])
    rank = torch.full((30,), -1, dtype=torch.int64)
    rank[ids] = torch.tensor([40, 2, 7, 1, 99, 3])
    assert choose_tokens(ids, rank, alpha=0).tolist() == []
    assert choose_tokens(ids, rank, alpha=0.5).tolist() == [0, 2, 4]
    assert choose_tokens(ids, rank, alpha=1).tolist() == [0, 1, 2, 3, 4, 5]


def test_of_the_least_frequent_share_only_the_allowed_are_taken():
    """As in the paper: first the share of the definable tokens, then those that occur in the training data."""
    ids, rank = torch.tensor([1, 3, 5, 7]), torch.arange(10)
    allowed = torch.zeros(10, dtype=torch.bool)
    allowed[[1, 2, 5]] = True
    assert choose_tokens(ids, rank, alpha=1, allowed=allowed).tolist() == [0, 2]
    assert choose_tokens(ids, rank, alpha=0.5, allowed=allowed).tolist() == [2]
    assert choose_tokens(ids, rank, alpha=1, allowed=torch.zeros(10, dtype=torch.bool)).tolist() == []


def write(old: Tensor, new: Tensor, centre: Tensor, **config: object) -> tuple[Tensor, Tensor]:
    rarity, groups = torch.linspace(0, 1, len(old), dtype=torch.float64), torch.arange(len(old)) % 3
    return written_rows(DefinitionEMBConfig(**config), old, new, rarity, groups, centre)  # type: ignore[arg-type]


def test_blend_writes_blended_rows_with_the_weights_of_their_rarity():
    old, new, centre = rows()
    written, weights = write(old, new, centre, blend=0.3, blend_floor=0.5)
    expected = blend_weights(torch.linspace(0, 1, 50, dtype=torch.float64), 0.3, 0.5)
    assert torch.equal(weights, expected)
    assert torch.equal(written, blend_rows(old, new, expected, centre))


def test_blend_0_writes_the_old_rows():
    old, new, centre = rows()
    assert torch.equal(write(old, new, centre, blend=0)[0], old)


def test_replace_writes_rescaled_new_rows_in_the_type_of_the_old():
    old, new, centre = rows()
    written, weights = write(old.bfloat16(), new, centre, strategy="replace")
    assert written.dtype == torch.bfloat16
    assert weights.tolist() == [1] * 50
    expected = rescale_rows(new, old.bfloat16(), torch.arange(50) % 3, centre)
    assert torch.equal(written, expected.bfloat16())


def test_replace_without_rescaling_writes_the_new_rows_themselves():
    old, new, centre = rows()
    assert torch.equal(write(old, new, centre, strategy="replace", rescale=False)[0], new)
