"""Blending of old and new rows: lengths, directions, variances, protected logits, chosen tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from defemb_callbacks import DefinitionEMBConfig
from defemb_callbacks.embeddings import blending
from defemb_callbacks.embeddings.blending import (
    AUTO_BLEND,
    DirectionalBlend,
    blend_weights,
    choose_tokens,
    protect_outputs,
    rescale_rows,
    written_rows,
)
from defemb_callbacks.metrics import effective_rank


def rows(n: int = 50, d: int = 8, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Old rows with a common direction, shorter new ones, and the centre of the old ones."""
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(n, d, generator=generator) * torch.linspace(0.5, 2, n)[:, None] + 1
    new = 0.4 * torch.randn(n, d, generator=generator) + 1
    return old, new, old.double().mean(dim=0)


def blend_rows(old: Tensor, new: Tensor, weights: Tensor, centre: Tensor) -> Tensor:
    """All rows in one group."""
    return DirectionalBlend.fit(old, new, centre)(old, new, weights, torch.zeros(len(old), dtype=torch.int64))


def predicted_table(n: int = 3000, d: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """A table with a decaying spectrum, whose first directions are predicted well and the last ones not at all."""
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(d, d, generator=generator))
    signal = torch.randn(n, d, generator=generator) * torch.linspace(2, 0.5, d)
    noise = torch.randn(n, d, generator=generator) * torch.linspace(2, 0.5, d)
    quality = torch.linspace(1, 0, d)
    predicted = quality * (quality * signal + (1 - quality) * noise)
    old = signal @ rotation + 1
    return old, 0.4 * predicted @ rotation + 1, old.double().mean(dim=0)


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


# In float64, intermediate rounding would be visible.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weight_0_keeps_the_old_row_bit_for_bit(dtype):
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


def test_weight_1_around_a_centre_is_parallel_to_the_centre_plus_the_new_deviation():
    old, new, centre = rows()
    length = (old.double() - centre).norm(dim=1, keepdim=True)
    turned = centre + length * torch.nn.functional.normalize(new.double() - centre, dim=1)
    blended = blend_rows(old, new, torch.ones(50), centre)
    cosine = torch.cosine_similarity(blended.double(), turned, dim=1)
    torch.testing.assert_close(cosine, torch.ones(50, dtype=torch.float64), rtol=0, atol=1e-10)


def test_more_weight_gives_a_row_closer_to_the_new_one():
    old, new, _ = rows()
    centre = torch.zeros(8, dtype=torch.float64)
    steps = [blend_rows(old, new, torch.full((50,), weight), centre) for weight in (0.0, 0.25, 0.5, 0.75, 1.0)]
    cosines = torch.stack([deviation_cosine(step, new, centre) for step in steps])
    assert (cosines.diff(dim=0) > 0).all()


def test_half_the_weight_is_halfway_for_any_length_of_the_new_row():
    old, new, _ = rows()
    centre = torch.zeros(8, dtype=torch.float64)
    half = torch.full((50,), 0.5)
    blended = blend_rows(old, new, half, centre)
    to_old, to_new = deviation_cosine(blended, old, centre), deviation_cosine(blended, new, centre)
    torch.testing.assert_close(to_old, to_new, rtol=0, atol=1e-6)
    torch.testing.assert_close(blend_rows(old, 100 * new, half, centre), blended)


def test_a_zero_new_row_keeps_the_old_one():
    old, _, centre = rows()
    blended = blend_rows(old, centre.expand(50, 8), torch.full((50,), 0.3), centre)
    torch.testing.assert_close(blended, old)


def test_blending_does_not_change_its_arguments():
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


def test_floor_1_gives_equal_weights_and_blend_0_none():
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


def test_only_allowed_tokens_of_the_least_frequent_share_are_chosen():
    """As in the paper: first the share of the tokens with definitions, then those that occur in the training data."""
    ids, rank = torch.tensor([1, 3, 5, 7]), torch.arange(10)
    allowed = torch.zeros(10, dtype=torch.bool)
    allowed[[1, 2, 5]] = True
    assert choose_tokens(ids, rank, alpha=1, allowed=allowed).tolist() == [0, 2]
    assert choose_tokens(ids, rank, alpha=0.5, allowed=allowed).tolist() == [2]
    assert choose_tokens(ids, rank, alpha=1, allowed=torch.zeros(10, dtype=torch.bool)).tolist() == []


def blended_by_definition(old: Tensor, new: Tensor, weights: Tensor, groups: Tensor, centre: Tensor) -> Tensor:
    """`DirectionalBlend` in float64, without blocks."""
    y, p = (torch.nn.functional.normalize(table.double() - centre, dim=1) for table in (old, new))
    axes = torch.linalg.svd(y - y.mean(dim=0), full_matrices=False).Vh.T
    y, p = y @ axes, p @ axes
    correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(y.T, p.T, strict=True)])
    influence = weights[:, None] * (correlation.clamp(min=0) / correlation.max()) ** 0.8
    mixed = (1 - influence) * y + influence * p * y.std(dim=0) / p.std(dim=0)
    for group in groups.unique():
        members = groups == group
        mixed[members] *= y[members].std(dim=0) / mixed[members].std(dim=0)
    length = (old.double() - centre).norm(dim=1, keepdim=True)
    turned = centre + length * torch.nn.functional.normalize(mixed @ axes.T, dim=1)
    return torch.nn.functional.normalize(turned, dim=1) * old.double().norm(dim=1, keepdim=True)


class TestByDirection:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_equals_its_definition(self, dtype):
        old, new, centre = predicted_table()
        old, new = old.to(dtype), new.to(dtype)
        weights, groups = torch.linspace(0.1, 0.9, 3000, dtype=torch.float64), torch.arange(3000) % 3
        rows = DirectionalBlend.fit(old, new, centre)(old, new, weights, groups)
        expected = blended_by_definition(old, new, weights, groups, centre).to(dtype)
        torch.testing.assert_close(rows, expected, **({"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {}))

    def test_does_not_depend_on_the_precision_of_float32_products(self):
        old, new, centre = predicted_table()
        weights, groups = torch.linspace(0, 1, 3000), torch.arange(3000) % 3
        exact = DirectionalBlend.fit(old, new, centre)(old, new, weights, groups)
        highest = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            lower = DirectionalBlend.fit(old, new, centre)(old, new, weights, groups)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                automatic = DirectionalBlend.fit(old, new, centre)(old, new, weights, groups)
        finally:
            torch.set_float32_matmul_precision(highest)
        torch.testing.assert_close(lower, exact)
        torch.testing.assert_close(automatic, exact)

    def test_predictable_directions_get_more_weight(self):
        old, new, centre = predicted_table()
        blend = DirectionalBlend.fit(old, new, centre)
        along_old, along_new = (((rows.double() - centre) @ blend.axes).T for rows in (old, new))
        correlation = torch.stack(
            [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(along_old, along_new, strict=True)]
        )
        order = torch.argsort(correlation)
        assert blend.correlation.max() == 1
        assert blend.correlation[order[-1]] > blend.correlation[order[5]] > blend.correlation[order[0]]
        assert torch.linalg.matrix_norm(blend.axes.T @ blend.axes - torch.eye(12).double()) < 1e-10

    @pytest.mark.parametrize("weight", [0.3, 0.8])
    def test_each_group_keeps_the_variance_of_each_direction(self, weight):
        old, new, centre = predicted_table()
        groups = torch.arange(3000) % 2
        blend = DirectionalBlend.fit(old, new, centre)
        rows = blend(old, new, torch.full((3000,), weight), groups)
        for group in range(2):
            before, after = (
                (torch.nn.functional.normalize(table[groups == group].double() - centre, dim=1) @ blend.axes).var(dim=0)
                for table in (old, rows)
            )
            torch.testing.assert_close(after, before, rtol=0.15, atol=0)

    def test_one_weight_for_all_directions_would_lose_effective_rank(self):
        old, new, centre = predicted_table()
        weights = torch.full((3000,), 0.7)
        by_direction = blend_rows(old, new, weights, centre)
        ones = torch.ones(12, dtype=torch.float64)
        alike = DirectionalBlend(centre, ones.diag(), ones, ones)
        # Each row is a separate group, so no variance is restored.
        scalar = alike(old, new, weights, torch.arange(3000))
        assert effective_rank(by_direction - centre.float()) > effective_rank(scalar - centre.float())
        assert effective_rank(by_direction - centre.float()) > 0.98 * effective_rank(old - centre.float())

    def test_rows_move_towards_the_new_ones(self):
        old, new, centre = predicted_table()
        moved = [
            float(deviation_cosine(blend_rows(old, new, torch.full((3000,), weight), centre), new, centre).mean())
            for weight in (0.0, 0.3, 0.6)
        ]
        assert moved[0] < moved[1] < moved[2]

    def test_the_result_does_not_depend_on_blocks(self, monkeypatch):
        old, new, centre = predicted_table()
        weights, groups = torch.linspace(0, 1, 3000), torch.arange(3000) % 3
        whole = DirectionalBlend.fit(old, new, centre)(old, new, weights, groups)
        monkeypatch.setattr(blending, "_BLOCK", 700)
        fitted = DirectionalBlend.fit(old, new, centre)
        torch.testing.assert_close(fitted(old, new, weights, groups), whole, rtol=0, atol=1e-5)

    def test_directions_without_variance_are_unchanged(self):
        old, new, _ = predicted_table()
        old, new = (torch.cat([rows, torch.zeros(3000, 2)], dim=1) for rows in (old, new))
        rows = blend_rows(old, new, torch.full((3000,), 0.5), old.double().mean(dim=0))
        assert torch.isfinite(rows).all()
        assert rows[:, -2:].abs().max() < 1e-6

    def test_unpredictive_rows_keep_the_table_finite(self):
        old, _, centre = predicted_table()
        rows = blend_rows(old, centre.float().expand(3000, 12), torch.full((3000,), 0.5), centre)
        assert torch.isfinite(rows).all()
        torch.testing.assert_close(rows.norm(dim=1), old.norm(dim=1))


class TestProtectedOutputs:
    def test_equals_the_minimum_of_its_objective(self):
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(500, 6, generator=generator).double() * torch.linspace(3, 0.1, 6).double() + 1
        moment = states.T @ states / 500
        old, new = torch.randn(2, 9, 6, generator=generator)
        change = (protect_outputs(old, new, moment, 0.2) - old).double().requires_grad_()
        lost = (change - (new - old).double()).square().sum()
        logits = (states @ change.T).square().mean(dim=0).sum() / (0.2 * moment.diagonal().mean())
        (gradient,) = torch.autograd.grad(lost + logits, change)
        assert gradient.abs().max() < 1e-5

    def test_less_strength_changes_logits_less(self):
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(500, 6, generator=generator).double() + 1
        old, new = torch.randn(2, 9, 6, generator=generator)
        changes = [
            float((states @ (protect_outputs(old, new, states.T @ states / 500, s) - old).double().T).square().mean())
            for s in (1e6, 1.0, 0.1, 0.001)
        ]
        assert changes == sorted(changes, reverse=True)
        unprotected = float((states @ (new - old).double().T).square().mean())
        assert changes[0] == pytest.approx(unprotected, rel=1e-4)

    def test_the_second_moment_is_not_changed(self):
        moment = torch.eye(3).double()
        protect_outputs(torch.zeros(1, 3), torch.ones(1, 3), moment, 1.0)
        assert torch.equal(moment, torch.eye(3).double())


def write(old: Tensor, new: Tensor, centre: Tensor, **config: object) -> tuple[Tensor, Tensor]:
    rarity, groups = torch.linspace(0, 1, len(old), dtype=torch.float64), torch.arange(len(old)) % 3
    blend = DirectionalBlend.fit(old, new, centre)
    return written_rows(DefinitionEMBConfig(**config), blend, old, new, rarity, groups)  # type: ignore[arg-type]


def test_blend_writes_blended_rows_with_the_weights_of_their_rarity():
    old, new, centre = rows()
    written, weights = write(old, new, centre, blend=0.3, blend_floor=0.5)
    expected = blend_weights(torch.linspace(0, 1, 50, dtype=torch.float64), 0.3, 0.5)
    assert torch.equal(weights, expected)
    assert torch.equal(written, blend_rows(old, new, expected, centre))


def test_auto_starts_from_the_default_weight():
    old, new, centre = rows()
    automatic, fixed = write(old, new, centre), write(old, new, centre, blend=AUTO_BLEND)
    assert all(map(torch.equal, automatic, fixed))


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
