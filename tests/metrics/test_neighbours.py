"""neighbour_overlap equals a numpy reference; by group it is the mean of the parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from defemb_callbacks.metrics import neighbour_overlap
from defemb_callbacks.metrics.neighbours import nearest_rows, sample_rows, shared


def random_table(n: int = 400, d: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 0.2


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def overlap_of_rows(table: Tensor, reference: Tensor, k: int = 10) -> Tensor:
    everything = torch.arange(len(table))
    return shared(*(nearest_rows(rows, everything, everything, k) for rows in (table, reference)))


def direct_shares(table: Tensor, reference: Tensor, k: int) -> np.ndarray:
    nearest = []
    for rows in (table.double().numpy(), reference.double().numpy()):
        similarity = cosines(rows, rows)
        np.fill_diagonal(similarity, -np.inf)
        nearest.append([set(order[:k]) for order in np.argsort(-similarity, axis=1)])
    return np.array([len(now & before) / k for now, before in zip(*nearest, strict=True)])


class TestNeighbourOverlap:
    @pytest.mark.parametrize("k", [1, 10, 399])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_equals_reference(self, k: int, dtype: torch.dtype) -> None:
        table = random_table().to(dtype)
        reference = table + 0.7 * random_table(seed=1).to(dtype)
        shares = overlap_of_rows(table, reference, k)
        np.testing.assert_allclose(shares.numpy(), direct_shares(table, reference, k))
        assert neighbour_overlap(table, reference, k=k) == pytest.approx(direct_shares(table, reference, k).mean())

    @pytest.mark.parametrize("level", ["high", "medium", "autocast"])
    def test_coarse_products_are_not_used(self, level: str) -> None:
        """TF32 or bfloat16 products, which users enable to train faster, must not make measurements less accurate."""
        table = random_table(500) + 3
        reference = table + 0.5 * random_table(500, seed=1)
        precision = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("highest" if level == "autocast" else level)
            with torch.autocast("cpu", torch.bfloat16, enabled=level == "autocast"):
                found = neighbour_overlap(table, reference, sample=None)
        finally:
            torch.set_float32_matmul_precision(precision)
        assert found == pytest.approx(direct_shares(table, reference, 10).mean(), abs=1e-12)

    def test_exact_where_float32_cannot_decide(self) -> None:
        table = (random_table().double() + 100).float()  # cosines differ from 1 and from one another by about 1e-5
        reference = (table + 0.1 * random_table(seed=1)).float()
        np.testing.assert_allclose(overlap_of_rows(table, reference).numpy(), direct_shares(table, reference, 10))

    def test_known_values(self) -> None:
        table = random_table(2000)
        assert neighbour_overlap(table, table) == 1
        assert neighbour_overlap(table, random_table(2000, seed=1)) == pytest.approx(10 / 1999, abs=0.004)

    def test_invariant_to_row_lengths_and_rotation(self) -> None:
        table = random_table().double()
        turn = torch.linalg.qr(random_table(16).double()).Q
        assert neighbour_overlap(table @ turn * torch.arange(1, 401)[:, None], table) == 1

    def test_more_noise_less_overlap(self) -> None:
        table, noise = random_table(), random_table(seed=1)
        overlaps = [neighbour_overlap(table + level * noise, table) for level in (0.1, 0.5, 2.0)]
        assert overlaps == sorted(overlaps, reverse=True)

    def test_extreme_norms(self) -> None:
        table = random_table()
        assert neighbour_overlap(table * 1e30, table * 1e-30) == pytest.approx(1, abs=1e-3)

    def test_sample_is_within_its_stated_error_and_always_the_same(self) -> None:
        table = random_table(3000)
        reference = table + 0.5 * random_table(3000, seed=1)
        every = overlap_of_rows(table, reference)
        sampled = neighbour_overlap(table, reference, sample=500)
        assert sampled == neighbour_overlap(table, reference, sample=500)
        assert sampled != neighbour_overlap(table, reference, sample=500, seed=1)
        assert sampled == pytest.approx(float(every.mean()), abs=3 * float(every.std()) / 500**0.5)
        assert neighbour_overlap(table, reference, sample=None) == pytest.approx(float(every.mean()))

    def test_sample_rows(self) -> None:
        ids = torch.arange(100, 200)
        chosen = sample_rows(ids, 30)
        assert len(chosen.unique()) == 30
        assert torch.isin(chosen, ids).all()
        assert torch.equal(sample_rows(ids, 100), ids)

    def test_one_neighbour_can_be_another_only_if_there_are_others(self) -> None:
        with pytest.raises(ValueError, match="k must be between 1 and the number of other rows, 9, got 10"):
            neighbour_overlap(random_table(10), random_table(10))
        with pytest.raises(ValueError, match="got 0"):
            neighbour_overlap(random_table(10), random_table(10), k=0)

    def test_sample_too_small(self) -> None:
        with pytest.raises(ValueError, match="sample must be at least 1, got 0"):
            neighbour_overlap(random_table(), random_table(), sample=0)


class TestErrors:
    def test_shapes_differ(self) -> None:
        with pytest.raises(ValueError, match=r"must have the same shape\. Take the reference again"):
            neighbour_overlap(random_table(20), random_table(21))

    def test_nan_in_either(self) -> None:
        table = random_table()
        table[3, 2] = float("nan")
        with pytest.raises(ValueError, match="row 3 of table"):
            neighbour_overlap(table, random_table())
        with pytest.raises(ValueError, match="row 3 of reference"):
            neighbour_overlap(random_table(), table)
