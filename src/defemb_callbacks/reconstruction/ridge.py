"""Ridge regression in closed form, with predictions that leave out one group of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from defemb_callbacks.reconstruction.normal_equations import NormalEquations

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

# The strength is chosen on about this many rows, with targets projected on this many random directions.
SAMPLE_ROWS, SAMPLE_TARGETS = 2048, 64

# Left-out errors are computed in float32 if it agrees with float64 on about this many groups.
CHECKED_GROUPS = 64


@dataclass(frozen=True)
class RidgeRows:
    """Cross-fitted predictions.

    Attributes:
        rows: (n, d) float32 on the CPU; each is predicted by a map fitted without the targets of its group.
        weights: (F + 1, d) float32 on the CPU, the map fitted on all rows, for the features of other words: see
            `mapped`. The last row is the intercept.
        strength: The ridge strength that cross-validation chose.
        r_squared: The explained share of the targets' variance, over all left-out rows.
    """

    rows: Tensor
    weights: Tensor
    strength: float
    r_squared: float


def cross_fitted_rows(
    x: Tensor,
    y: Tensor,
    *,
    groups: Tensor | None = None,
    strengths: Sequence[float] = STRENGTHS,
    block: int = 4096,
    device: torch.device | None = None,
) -> RidgeRows:
    """Predict each row of `y` from `x` with a linear map fitted on the rows of all other groups.

    The map minimises `‖XW + b - Y‖² + strength · n · Σ_j var(x_j) ‖W_j‖²`, which is ridge regression on standardised
    features with an intercept; constant features get no weight. The left-out predictions come from the hat matrix of
    one fit. They equal those of a refit without each group, with the penalty computed from all rows.

    The strength is the one with the smallest left-out error on an evenly spaced sample of the groups. The search starts
    in the middle of `strengths` and follows the decreasing error. Nothing depends on the random state.

    The fit is in float64; left-out predictions are computed in float32 where this agrees with float64. Besides the
    result, at most two F × F matrices, three F × d matrices and a few blocks of rows are in memory.

    Args:
        x: (n, F) features, of any floating-point type.
        y: (n, d) targets, of any floating-point type.
        groups: (n,) int64, the group of each row; the rows of a group are left out together. `None` leaves out each
            row alone.
        strengths: The strengths to choose from. Those below 1e-8 · F are raised to this value, so that left-out
            predictions are not dominated by rounding errors if there are more features than rows.
        block: The number of rows converted to float64 at once; it does not change the result.
        device: The device of the computation, to which blocks of rows are copied; by default that of `x`. If it has no
            float64, the CPU is used.

    Returns:
        The left-out predictions, and the map fitted on all rows.

    Raises:
        ValueError: If there are fewer than two rows or groups, if shapes do not match, if `strengths` is empty, or if
            values are NaN or infinite.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> fitted = cross_fitted_rows(x, x @ torch.ones(3, 2) + 1, groups=torch.arange(200) // 2)
        >>> fitted.rows.shape, round(fitted.r_squared, 3)
        (torch.Size([200, 2]), 1.0)
    """
    if groups is None:
        groups = torch.arange(len(x))
    x, y = x.detach(), y.detach()
    _check(x, y, groups, strengths)
    batches = _batches_of_groups(groups.cpu())
    equations = NormalEquations(x, y, block, device)

    sample = _parts(_sample(batches, max(1, len(x) // SAMPLE_ROWS)), block)
    sketch = _sketch(y.shape[1]).to(equations.device)

    def sampled_error(strength: float) -> float:
        fit = equations.fit(strength, sketch)
        return sum(float(fit.left_out_errors(part)[0].square().sum()) for part in sample)

    strength = _smallest(sampled_error, [max(strength, 1e-8 * x.shape[1]) for strength in strengths])
    fit = equations.fit(strength)
    del equations.gram
    weights, fast = fit.weights(), fit.in_float32(sample[0][:CHECKED_GROUPS])
    rows, squared_error = torch.empty(len(x), y.shape[1]), 0.0
    for part in _parts(batches, block):
        errors, determined = fast.left_out_errors(part)
        if determined < 0.1 and fast is not fit:
            errors, _ = fit.left_out_errors(part)
        squared_error += float(errors.square().sum(dtype=torch.float64))
        members = part.flatten()
        rows[members] = equations.y(members).sub_(errors).to("cpu", torch.float32)
    r_squared = 1 - squared_error / equations.variation if equations.variation > 0 else 0.0
    return RidgeRows(rows, weights, strength, r_squared)


def mapped(x: Tensor, weights: Tensor) -> Tensor:
    """Apply a map to features: (n, d) float32.

    Args:
        x: (n, F) features, of any floating-point type.
        weights: (F + 1, d); the last row is the intercept.

    Example:
        >>> mapped(torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0], [100.0], [5.0]]))
        tensor([[215.]])
    """
    weights = weights.to(torch.float64)
    return torch.addmm(weights[-1], x.to(torch.float64), weights[:-1]).to(torch.float32)


def _check(x: Tensor, y: Tensor, groups: Tensor, strengths: Sequence[float]) -> None:
    if len(x) != len(y):
        raise ValueError(f"There are {len(x)} rows of features, but {len(y)} targets. Pass one target for each row.")
    if len(x) < 2:
        raise ValueError(
            f"A cross-fitted map needs at least 2 tokens with definitions, got {len(x)}. Pass a larger dictionary."
        )
    if groups.shape != (len(x),) or groups.dtype != torch.int64:
        raise ValueError(
            f"`groups` must have shape ({len(x)},) and dtype int64, got {tuple(groups.shape)} and {groups.dtype}. "
            "Pass the group of each row."
        )
    if bool((groups == groups[0]).all()):
        raise ValueError(
            f"A cross-fitted map needs at least 2 tokens with definitions of different words, but all {len(x)} rows "
            "are in one group. Pass a larger dictionary."
        )
    if not strengths:
        raise ValueError("`strengths` must not be empty. Pass at least one ridge strength.")


def _batches_of_groups(groups: Tensor) -> list[Tensor]:
    """Return the rows of all groups, batched by size: (m, k) int64 for m groups of k rows."""
    _, group, sizes = groups.unique(return_inverse=True, return_counts=True)
    size = sizes[group]
    order = group.argsort(stable=True)
    order = order[size[order].argsort(stable=True)]
    counts = sizes.bincount()
    lengths = [int(count) * size for size, count in enumerate(counts)]
    return [rows.view(-1, size) for size, rows in enumerate(order.split(lengths)) if len(rows)]


def _sample(batches: list[Tensor], stride: int) -> list[Tensor]:
    """Return every `stride`-th group."""
    sample, seen = [], 0
    for batch in batches:
        sample.append(batch[-seen % stride :: stride])
        seen += len(batch)
    return [batch for batch in sample if len(batch)]


def _parts(batches: list[Tensor], block: int) -> list[Tensor]:
    """Split batches of groups into parts of at most `block` rows, or one group."""
    return [part for batch in batches for part in batch.split(max(1, block // batch.shape[1]))]


def _sketch(targets: int) -> Tensor:
    """Return directions that preserve squared lengths in expectation, all if there are few: (targets, s) float64."""
    if targets <= SAMPLE_TARGETS:
        return torch.eye(targets, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(targets, SAMPLE_TARGETS, generator=generator, dtype=torch.float64) / SAMPLE_TARGETS**0.5


def _smallest(error: Callable[[float], float], values: Sequence[float]) -> float:
    """Return the value with the smallest error, for an error with one minimum, from few evaluations."""
    error, values = cache(error), sorted(set(values))
    best = (len(values) - 1) // 2
    for step in (1, -1):
        while 0 <= best + step < len(values) and error(values[best + step]) < error(values[best]):
            best += step
    return values[best]
