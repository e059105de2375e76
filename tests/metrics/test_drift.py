"""drift equals a numpy reference and has the expected properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from defemb_callbacks.metrics import drift


def random_table(n: int = 400, d: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 0.2


class TestDrift:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_equals_reference(self, dtype: torch.dtype) -> None:
        table, reference = random_table(30_000).to(dtype), random_table(30_000, seed=1).to(dtype)
        a, b = table.double().numpy(), reference.double().numpy()
        expected = 1 - (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        assert drift(table, reference) == pytest.approx(expected.mean(), rel=1e-9)

    def test_known_values(self) -> None:
        table = random_table()
        assert drift(table, table) == 0
        assert drift(-table, table) == pytest.approx(2)
        assert drift(torch.eye(4), torch.eye(4).roll(1, dims=0)) == pytest.approx(1)

    def test_invariant_to_row_lengths_and_rotation(self) -> None:
        table, reference = random_table().double(), random_table(seed=1).double()
        turn = torch.linalg.qr(random_table(16).double()).Q
        assert drift(table * torch.arange(1, 401)[:, None], reference) == pytest.approx(drift(table, reference))
        assert drift(table @ turn, reference @ turn) == pytest.approx(drift(table, reference))

    def test_small_changes_are_not_lost_in_rounding(self) -> None:
        reference = torch.eye(2, dtype=torch.float64)
        angle = 1e-9
        turn = torch.tensor([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], dtype=torch.float64)
        assert drift(reference @ turn, reference) == pytest.approx(angle**2 / 2, rel=1e-6)

    def test_zero_rows(self) -> None:
        table = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
        reference = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
        assert drift(table, reference) == 0.5  # unchanged, lost, left out
        assert drift(reference, table) == 0.5

    def test_nothing_to_compare(self) -> None:
        with pytest.raises(ValueError, match="at least 1 row that is not zero in both tables"):
            drift(torch.zeros(3, 2), torch.zeros(3, 2))


class TestErrors:
    def test_shapes_differ(self) -> None:
        with pytest.raises(ValueError, match=r"must have the same shape\. Take the reference again"):
            drift(random_table(20), random_table(21))

    def test_nan_in_either(self) -> None:
        table = random_table()
        table[3, 2] = float("nan")
        with pytest.raises(ValueError, match="row 3 of table"):
            drift(table, random_table())
        with pytest.raises(ValueError, match="row 3 of reference"):
            drift(random_table(), table)
