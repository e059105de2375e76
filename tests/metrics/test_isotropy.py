"""Each metric equals a float64 numpy reference, also on degenerate tables, and has the properties it claims."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from defemb_callbacks.metrics import average_cosine, effective_rank, isotropy, mean_norm, singular_values
from defemb_callbacks.metrics.isotropy import _mean_exp, _possible_extremes
from defemb_callbacks.metrics.spectrum import Spectrum, gram_matrix
from defemb_callbacks.metrics.sums import RowSums

METRICS = [isotropy, average_cosine, effective_rank, mean_norm, singular_values]


def random_table(n: int, d: int, *, norm: float = 1.0, seed: int = 0, shift: float = 0.3) -> Tensor:
    """Rows of about this length, with a common direction and unequal variances, as embedding tables have."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.5, 1.5, d)
    table = torch.randn(n, d, generator=generator) * scales + shift
    return table * (norm / table.norm(dim=1).mean())


def direct_isotropy(table: Tensor, both_signs: bool = True) -> float:
    """The formula as written, one eigenvector at a time."""
    rows = table.detach().double().numpy()
    _, vectors = np.linalg.eigh(rows.T @ rows)
    partition = []
    for c in vectors.T:
        for direction in (c, -c) if both_signs else (c,):
            partition.append(np.exp(np.clip(rows @ direction, -50, 50)).sum())
    return float(min(partition) / max(partition))


def direct_average_cosine(table: Tensor) -> float:
    rows = table.double().numpy()
    rows = rows[np.linalg.norm(rows, axis=1) > 0]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    return float(cosines[~np.eye(len(rows), dtype=bool)].mean())


def direct_effective_rank(table: Tensor) -> float:
    sigma = scipy.linalg.svdvals(table.double().numpy())
    p = sigma / sigma.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def rotation(d: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(d, d, dtype=dtype, generator=generator)).Q


tables = pytest.mark.parametrize(
    "table",
    [
        pytest.param(random_table(5000, 48, norm=1.4), id="like a real table"),
        pytest.param(random_table(5000, 48, norm=0.05, shift=0.0), id="short rows, all directions nearly alike"),
        pytest.param(random_table(3000, 64, norm=10), id="long rows"),
        pytest.param(random_table(500, 32, norm=1e4), id="so long that c·e is clipped"),
        pytest.param(random_table(10, 32), id="fewer rows than columns"),
        pytest.param(torch.outer(torch.linspace(-1, 2, 40), torch.linspace(0, 1, 8)), id="rank 1"),
        pytest.param(torch.full((30, 6), 0.7), id="constant"),
        pytest.param(torch.cat([random_table(30, 6), torch.zeros(20, 6)]), id="zero rows"),
        pytest.param(torch.arange(5.0)[:, None], id="one column"),
    ],
)


class TestAgainstReferences:
    @tables
    @pytest.mark.parametrize("both_signs", [True, False])
    def test_isotropy(self, table: Tensor, both_signs: bool) -> None:
        if both_signs:
            expected = direct_isotropy(table)
        else:  # the one-sign form depends on the signs of the eigenvectors: both sides use the same ones
            directions = Spectrum.of_table(table).eigenvectors
            partition = (table.double() @ directions).clamp(-50, 50).exp().sum(dim=0)
            expected = float(partition.min() / partition.max())
        assert isotropy(table, both_signs=both_signs) == pytest.approx(expected, rel=1e-6)

    @tables
    def test_average_cosine(self, table: Tensor) -> None:
        assert average_cosine(table) == pytest.approx(direct_average_cosine(table), abs=1e-9)

    @tables
    def test_effective_rank(self, table: Tensor) -> None:
        assert effective_rank(table) == pytest.approx(direct_effective_rank(table), rel=1e-5)

    @tables
    def test_mean_norm(self, table: Tensor) -> None:
        assert mean_norm(table) == pytest.approx(np.linalg.norm(table.double().numpy(), axis=1).mean(), rel=1e-12)

    @tables
    def test_singular_values(self, table: Tensor) -> None:
        expected = scipy.linalg.svdvals(table.double().numpy())
        assert singular_values(table).shape == expected.shape
        np.testing.assert_allclose(singular_values(table).numpy(), expected, atol=1e-6 * expected[0])

    def test_gram_matrix(self) -> None:
        table = random_table(300, 130)  # not a multiple of the strips
        rows = table.double().numpy()
        np.testing.assert_allclose(gram_matrix(table).numpy(), rows.T @ rows, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_any_floating_dtype(self, dtype: torch.dtype) -> None:
        table = random_table(2000, 16).to(dtype)
        assert isotropy(table) == pytest.approx(direct_isotropy(table), rel=1e-6)
        assert average_cosine(table) == pytest.approx(direct_average_cosine(table.double()), abs=1e-9)

    def test_coarse_products_are_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With float32 products as inaccurate as TF32's, the result still equals float64."""
        module = importlib.import_module(isotropy.__module__)  # the package's attribute of that name is the function
        table = random_table(3000, 32, norm=8)  # rows so long that the bounds exclude no direction
        accurate, dtypes = module._partition, []

        def rough(table: Tensor, ids: Tensor, directions: Tensor, both_signs: bool, dtype: torch.dtype) -> Tensor:
            dtypes.append(dtype)
            partition = accurate(table, ids, directions, both_signs, dtype)
            noise = torch.linspace(-1e-2, 1e-2, partition.numel(), dtype=torch.float64).view_as(partition)
            return partition * (1 + noise.flip(1)) if dtype == torch.float32 else partition

        monkeypatch.setattr(module, "_partition", rough)
        assert isotropy(table) == pytest.approx(direct_isotropy(table), rel=1e-9)
        assert dtypes == [torch.float32, torch.float64, torch.float64]


def heavy_tailed(n: int, d: int) -> Tensor:
    """A few rows many times as long as the others, on one side."""
    return random_table(n, d).abs() ** 3


class TestExcludedDirections:
    """Most directions are known to have neither the smallest nor the largest Z before any Z is evaluated."""

    @pytest.mark.parametrize("both_signs", [True, False])
    @pytest.mark.parametrize("longest", [1e-3, 0.1, 0.5, 1, 2, 4, 8, 16, 49])
    @pytest.mark.parametrize("make", [random_table, heavy_tailed])
    def test_extreme_directions_are_never_excluded(
        self, make: Callable[..., Tensor], longest: float, both_signs: bool
    ) -> None:
        table = make(700, 24)
        table *= longest / table.norm(dim=1).max()
        spectrum, sums = Spectrum.of_table(table), RowSums.of(table)
        exponents = table.double() @ spectrum.eigenvectors
        partition = torch.stack([exponents.exp().sum(dim=0), (-exponents).exp().sum(dim=0)])[: 1 + both_signs]
        possible = _possible_extremes(spectrum, sums, both_signs)
        assert possible[partition.amin(dim=0).argmin()]
        assert possible[partition.amax(dim=0).argmax()]

    def test_few_directions_remain_for_a_table_like_those_of_transformers(self) -> None:
        table = random_table(5000, 48, norm=1.4)
        assert int(_possible_extremes(Spectrum.of_table(table), RowSums.of(table), True).sum()) <= 2

    def test_none_is_excluded_if_products_are_clipped(self) -> None:
        table = random_table(500, 32, norm=1e4)
        assert _possible_extremes(Spectrum.of_table(table), RowSums.of(table), True).all()

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
    def test_bounds_are_attained(self, share: float) -> None:
        """By two values, one of them the end of the interval: no bound from mean, variance and interval is tighter."""
        end, other = 3.0, -1.0
        mean = share * end + (1 - share) * other
        variance = share * (end - mean) ** 2 + (1 - share) * (other - mean) ** 2
        expected = share * math.exp(end) + (1 - share) * math.exp(other)
        found = _mean_exp(torch.tensor(mean), torch.tensor(variance), torch.tensor(end))
        assert float(found) == pytest.approx(expected, rel=1e-6)


class TestProperties:
    def test_invariant_to_rotation(self) -> None:
        table = random_table(2000, 24).double()
        turned = table @ rotation(24)
        for metric in (isotropy, average_cosine, effective_rank, mean_norm):
            assert metric(turned) == pytest.approx(metric(table), rel=1e-9)

    def test_invariant_to_the_order_of_rows(self) -> None:
        table = random_table(2000, 24)
        shuffled = table[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
        for metric in (isotropy, average_cosine, effective_rank, mean_norm):
            assert metric(shuffled) == pytest.approx(metric(table), rel=1e-9)

    def test_scale_changes_only_isotropy_and_norm(self) -> None:
        table = random_table(2000, 24).double()
        assert average_cosine(3 * table) == pytest.approx(average_cosine(table), abs=1e-12)
        assert effective_rank(3 * table) == pytest.approx(effective_rank(table), rel=1e-9)
        assert mean_norm(3 * table) == pytest.approx(3 * mean_norm(table), rel=1e-12)
        assert isotropy(table / 3) > isotropy(table), "I(E) rises when rows get shorter: the trap its docstring names"

    def test_row_lengths_do_not_matter_to_average_cosine(self) -> None:
        table = random_table(500, 24).double()
        lengths = torch.rand(500, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.1
        assert average_cosine(table * lengths) == pytest.approx(average_cosine(table), abs=1e-12)

    def test_a_common_direction_makes_it_less_isotropic(self) -> None:
        even, narrow = random_table(2000, 24, shift=0.0), random_table(2000, 24, shift=1.0)
        assert isotropy(narrow) < isotropy(even)
        assert average_cosine(narrow) > average_cosine(even)
        assert effective_rank(narrow) < effective_rank(even)

    def test_signs_of_eigenvectors_do_not_matter_with_both_signs(self) -> None:
        table = random_table(1000, 16)
        spectrum = Spectrum.of_table(table)
        signs = torch.ones(16, dtype=torch.float64)
        signs[::3] = -1
        flipped = Spectrum(spectrum.eigenvalues, spectrum.eigenvectors * signs)
        assert isotropy(table, spectrum=flipped) == pytest.approx(isotropy(table, spectrum=spectrum), rel=1e-12)
        one_sign = [isotropy(table, both_signs=False, spectrum=s) for s in (spectrum, flipped)]
        assert one_sign[0] != pytest.approx(one_sign[1], rel=1e-3)

    def test_known_values(self) -> None:
        assert average_cosine(torch.full((30, 6), 0.7)) == pytest.approx(1)
        assert effective_rank(torch.eye(7)) == pytest.approx(7)
        assert effective_rank(torch.ones(30, 6)) == pytest.approx(1)
        assert isotropy(torch.tensor([[0.0, 2.0]])) == pytest.approx(np.exp(-4.0)), "one row: e⁻² against e²"
        assert isotropy(torch.zeros(3, 4)) == pytest.approx(1)

    @pytest.mark.parametrize("norm", [1e-30, 1e30])
    def test_extreme_norms_do_not_overflow_or_lose_accuracy(self, norm: float) -> None:
        table = random_table(200, 8).double()
        extreme = table * norm
        assert effective_rank(extreme) == pytest.approx(effective_rank(table), rel=1e-9)
        assert average_cosine(extreme) == pytest.approx(average_cosine(table), rel=1e-9)
        assert mean_norm(extreme) == pytest.approx(norm * mean_norm(table), rel=1e-9)
        assert isotropy(extreme) == pytest.approx(direct_isotropy(extreme), rel=1e-6)

    def test_parameters_are_unchanged(self) -> None:
        table = torch.nn.Parameter(random_table(50, 8))
        before = table.detach().clone()
        assert all(isinstance(metric(table), float) for metric in METRICS[:-1])
        assert not singular_values(table).requires_grad
        assert torch.equal(table, before)
        assert table.grad is None


class TestErrors:
    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_not_finite(self, metric: Callable[..., float], value: float) -> None:
        table = random_table(9000, 64)
        table[8321, 5] = value
        with pytest.raises(ValueError, match=r"row 8321 of table has a NaN or infinite entry\. Repair"):
            metric(table)

    def test_overflowing(self) -> None:
        table = torch.ones(3, 2, dtype=torch.float64)
        table[1, 0] = -1e200
        with pytest.raises(ValueError, match=r"row 1 of table has an entry beyond 1e\+140"):
            isotropy(table)

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 2, 2)])
    def test_shape(self, metric: Callable[..., float], shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"must have shape \(n, d\)"):
            metric(torch.ones(shape))

    def test_meta(self) -> None:
        with pytest.raises(ValueError, match="meta device"):
            isotropy(torch.ones(3, 2, device="meta"))

    @pytest.mark.parametrize("table", [torch.ones(3, 2, dtype=torch.int8), [[1.0, 2.0]]])
    def test_not_floating(self, table: Tensor) -> None:
        with pytest.raises(TypeError, match=r"must be a floating-point tensor, got (torch\.int8|list)"):
            isotropy(table)

    def test_average_cosine_of_one_direction(self) -> None:
        with pytest.raises(ValueError, match="at least 2 rows that are not zero, got 1 of 3"):
            average_cosine(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))

    def test_effective_rank_of_nothing(self) -> None:
        with pytest.raises(ValueError, match="at least 1 row that is not zero"):
            effective_rank(torch.zeros(3, 2))
