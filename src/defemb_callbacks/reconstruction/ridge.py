"""Ridge regression in closed form from streamed normal equations, cross-fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class NormalEquations:
    """XᵀX, XᵀY and YᵀY of each fold, in float64, from blocks of rows.

    Memory is `folds · (F + 1) · (F + 1 + d)` float64 values, whatever the number of rows. A column of ones is added to
    X, so that the maps have an intercept; it is not penalised.

    Args:
        features: F, width of X.
        targets: d, width of Y.
        folds: number of parts; the map for the rows of one part is fitted on all the others.

    Example:
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> y = x @ torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64) + 4
        >>> equations = NormalEquations(features=3, targets=1, folds=5)
        >>> equations.update(x, y, torch.arange(100) % 5)
        >>> [round(value, 3) for value in equations.solve(strength=1e-12).flatten().tolist()]
        [1.0, 2.0, 3.0, 4.0]
    """

    def __init__(self, features: int, targets: int, folds: int) -> None:
        self.gram = torch.zeros(folds, features + 1, features + 1, dtype=torch.float64)
        self.moment = torch.zeros(folds, features + 1, targets, dtype=torch.float64)
        self.square = torch.zeros(folds, dtype=torch.float64)
        # Sums over the folds, kept up to date: each map is their difference to one fold.
        self.total_gram = torch.zeros(features + 1, features + 1, dtype=torch.float64)
        self.total_moment = torch.zeros(features + 1, targets, dtype=torch.float64)

    def update(self, x: Tensor, y: Tensor, folds: Tensor) -> None:
        """Add rows.

        Args:
            x: (n, F).
            y: (n, d).
            folds: (n,) int64, the fold of each row.
        """
        for fold in folds.unique().tolist():
            rows = _with_ones(x[folds == fold])
            targets = y[folds == fold].to(torch.float64)
            gram, moment = rows.T @ rows, rows.T @ targets
            self.gram[fold] += gram
            self.moment[fold] += moment
            self.total_gram += gram
            self.total_moment += moment
            self.square[fold] += targets.square().sum()

    @property
    def rows(self) -> int:
        """Number of rows seen."""
        return round(float(self.total_gram[-1, -1]))

    def solve(self, strength: float, without: int | None = None) -> Tensor:
        """The map of all folds but one.

        Minimises ‖XW + b - Y‖² + strength · n · Σ_j var(x_j) ‖W_j‖², the ridge of standardised features.

        Returns:
            (F + 1, d) float64; the last row is the intercept.
        """
        gram, moment = self.total_gram, self.total_moment
        if without is not None:
            gram, moment = gram - self.gram[without], moment - self.moment[without]
        count = gram[-1, -1]
        mean, target_mean = gram[-1, :-1] / count, moment[-1] / count
        covariance = gram[:-1, :-1] / count - torch.outer(mean, mean)
        variance = covariance.diagonal()
        # A feature that is constant here, up to rounding, has nothing to say and gets no weight.
        varies = variance > 1e-12 * gram.diagonal()[:-1] / count
        scale = torch.where(varies, variance.clamp(min=1e-300).rsqrt(), 0.0)
        system = scale[:, None] * covariance * scale
        system.diagonal().add_(strength)
        covariance_with_targets = moment[:-1] / count - torch.outer(mean, target_mean)
        weights = torch.cholesky_solve(scale[:, None] * covariance_with_targets, torch.linalg.cholesky(system))
        weights = scale[:, None] * weights
        return torch.cat([weights, (target_mean - mean @ weights)[None]])

    def squared_error(self, solution: Tensor, fold: int) -> float:
        """‖Y - XW‖² over the rows of one fold, from its normal equations."""
        cross = (solution * self.moment[fold]).sum()
        quadratic = (solution * (self.gram[fold] @ solution)).sum()
        return float(self.square[fold] - 2 * cross + quadratic)

    @property
    def total_variation(self) -> float:
        """Σ‖y - ȳ‖² over all rows."""
        return float(self.square.sum() - self.total_moment[-1].square().sum() / self.total_gram[-1, -1])


@dataclass(frozen=True)
class RidgeRows:
    """Cross-fitted predictions.

    Attributes:
        rows: (n, d) float32; each from a map that has not seen this row's target.
        weights: (F + 1, d) float32, the map that has seen all of them, for features of other words: see `mapped`.
        strength: the ridge strength that cross-validation chose.
        r_squared: explained share of the targets' variation, on rows that the map has not seen.
    """

    rows: Tensor
    weights: Tensor
    strength: float
    r_squared: float


def cross_fitted_rows(
    x: Tensor, y: Tensor, *, folds: int = 10, strengths: Sequence[float] = STRENGTHS, block: int = 4096
) -> RidgeRows:
    """Predict each row of `y` from `x` with a linear map fitted on the other folds.

    The strength is the one with the least error on held-out folds. Rows are dealt to folds in turn, so the result
    depends on nothing random.

    Args:
        x: (n, F) features, any floating type.
        y: (n, d) targets.
        folds: parts; fewer rows than this give as many folds as rows.
        strengths: candidates.
        block: rows converted to float64 at once.

    Raises:
        ValueError: fewer than two rows or folds, shapes that differ, or NaN or infinite values.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> fitted = cross_fitted_rows(x, x @ torch.ones(3, 2) + 1)
        >>> fitted.rows.shape, round(fitted.r_squared, 3)
        (torch.Size([200, 2]), 1.0)
    """
    if len(x) != len(y):
        raise ValueError(f"There are {len(x)} rows of features, but {len(y)} targets.")
    if len(x) < 2:
        raise ValueError(f"A cross-fitted map needs at least 2 tokens with definitions, got {len(x)}.")
    if folds < 2:
        raise ValueError(f"folds={folds}: cross-fitting needs at least 2.")
    for name, values in (("features", x), ("targets", y)):
        broken = (~torch.isfinite(values).all(dim=1)).nonzero().flatten()
        if len(broken):
            raise ValueError(
                f"{len(broken)} rows of the {name} hold NaN or infinity, the first one row {int(broken[0])}. "
                "Are the model's weights damaged?"
            )
    folds = min(folds, len(x))
    fold_of_row = torch.arange(len(x)) % folds
    equations = NormalEquations(x.shape[1], y.shape[1], folds)
    for start in range(0, len(x), block):
        part = slice(start, start + block)
        equations.update(x[part], y[part], fold_of_row[part])

    best_error, best, maps = float("inf"), strengths[0], list[Tensor]()
    for strength in strengths:
        solutions = [equations.solve(strength, without=fold) for fold in range(folds)]
        error = sum(equations.squared_error(solution, fold) for fold, solution in enumerate(solutions))
        if error < best_error:
            best_error, best, maps = error, strength, solutions
    rows = torch.empty(len(x), y.shape[1])
    for fold, solution in enumerate(maps):
        rows[fold::folds] = mapped(x[fold::folds], solution)
    variation = equations.total_variation
    r_squared = 1 - best_error / variation if variation > 0 else 0.0
    return RidgeRows(rows, equations.solve(best).to(torch.float32), best, r_squared)


def mapped(x: Tensor, weights: Tensor) -> Tensor:
    """What a map makes of features: (n, d) float32.

    Args:
        x: (n, F) features, any floating type.
        weights: (F + 1, d), the last row being the intercept.

    Example:
        >>> mapped(torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0], [100.0], [5.0]]))
        tensor([[215.]])
    """
    return (_with_ones(x) @ weights.to(torch.float64)).to(torch.float32)


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x.to(torch.float64), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
