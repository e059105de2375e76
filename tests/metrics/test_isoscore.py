"""IsoScore equals the authors' package, also if it is computed from spectrum and sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from defemb_callbacks.metrics import isoscore, measure_table
from defemb_callbacks.metrics.isotropy import known_isoscore
from defemb_callbacks.metrics.spectrum import Spectrum
from defemb_callbacks.metrics.sums import RowSums


def random_table(n: int = 400, d: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 2, d)


def authors(table: Tensor) -> float:
    """IsoScore 2.0.1, points as rows."""
    package = pytest.importorskip("IsoScore.IsoScore", reason="pip install IsoScore")
    return float(package.IsoScore(table.double().numpy()))


TABLES = {
    "random": random_table(),
    "the same in every direction": torch.randn(4000, 12, generator=torch.Generator().manual_seed(0)).double(),
    "fewer rows than columns": random_table(5, 40),
    "rank 1": torch.outer(torch.linspace(-1, 2, 50), torch.linspace(0.1, 1, 9)).double(),
    "zero rows": torch.cat([random_table(100), torch.zeros(50, 12, dtype=torch.float64)]),
    "strong mean": random_table() + 50,
    "two columns": random_table(30, 2),
}
tables = pytest.mark.parametrize("table", [pytest.param(table, id=name) for name, table in TABLES.items()])


@tables
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_the_authors_package(table: Tensor, dtype: torch.dtype) -> None:
    # Their √d is always float32, which is accurate to six digits.
    assert isoscore(table.to(dtype)) == pytest.approx(authors(table.to(dtype)), abs=1e-6)


@tables
def test_equals_isoscore_from_spectrum_and_sums(table: Tensor) -> None:
    known = known_isoscore(table, None, Spectrum.of_table(table), RowSums.of(table))
    assert known == pytest.approx(isoscore(table), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(
    ("distance", "dtype"),
    [(1e2, torch.float32), (1e4, torch.float32), (1e4, torch.float64), (1e6, torch.float64), (1e8, torch.float64)],
)
def test_a_large_mean_does_not_reduce_accuracy(distance: float, dtype: torch.dtype) -> None:
    """Far from the origin, EᵀE/n − μμᵀ is a difference of nearly equal numbers."""
    table = (random_table() + distance).to(dtype)
    rows = table.double().numpy() - distance  # exact: both are multiples of the table's spacing
    covariance = np.cov(rows, rowvar=False)
    expected = (np.trace(covariance) ** 2 / (covariance**2).sum() - 1) / 11
    figures = measure_table(table, {"all": torch.arange(400)})
    assert figures["defemb/isoscore/all"] == pytest.approx(expected, rel=1e-8)
    assert isoscore(table) == pytest.approx(expected, rel=1e-8)


def test_known_values() -> None:
    assert isoscore(torch.cat([torch.eye(7), -torch.eye(7)])) == pytest.approx(1)
    assert isoscore(torch.outer(torch.arange(9.0), torch.ones(4))) == pytest.approx(0, abs=1e-12)
    half = torch.zeros(400, 9, dtype=torch.float64)
    half[:, :5] = torch.cat([torch.eye(5), -torch.eye(5)]).repeat(40, 1)
    assert isoscore(half) == pytest.approx((5 - 1) / (9 - 1)), "of 9 directions 5 are used, all alike"


def test_invariant_to_mean_scale_and_rotation() -> None:
    table = random_table()
    turn = torch.linalg.qr(random_table(12, 12)).Q
    for changed in (table + 3, 1e-30 * table, 1e30 * table, table @ turn):
        assert isoscore(changed) == pytest.approx(isoscore(table), rel=1e-10)


def test_more_even_variance_scores_higher() -> None:
    table = random_table(2000)
    scores = [isoscore(table * torch.linspace(1, factor, 12)) for factor in (30, 5, 1)]
    assert scores == sorted(scores)


@pytest.mark.parametrize("value", [0.0, 0.7, 1 / 3, 1e30])
@pytest.mark.parametrize("rows", [1, 30])
def test_rows_all_the_same(value: float, rows: int) -> None:
    """The authors' package gives NaN or the score of rounding errors; here it is an error, and the log has no key."""
    table = torch.full((rows, 6), value, dtype=torch.float64)
    with pytest.raises(ValueError, match="at least 2 different rows, all rows are the same"):
        isoscore(table)
    assert "defemb/isoscore/all" not in measure_table(table, {"all": torch.arange(rows)})


def test_one_column() -> None:
    """With d = 1 the formula is 0/0."""
    with pytest.raises(ValueError, match="at least 2 columns, got 1"):
        isoscore(torch.randn(30, 1))
    assert "defemb/isoscore/all" not in measure_table(torch.randn(30, 1), {"all": torch.arange(30)})


def test_never_above_one() -> None:
    """Rounding must not move the score out of its range."""
    cross = torch.cat([torch.eye(6), -torch.eye(6)]).double()
    scores = [isoscore(cross * scale) for scale in torch.linspace(0.1, 10, 200)]
    assert max(scores) <= 1
    assert math.isclose(min(scores), 1)
