"""Ridge regression in closed form, with predictions that leave out one group of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

# The strength is chosen on about this many rows, with targets projected on this many random directions.
SAMPLE_ROWS, SAMPLE_TARGETS = 2048, 64

# Left-out errors are computed in float32 if it agrees with float64 on about this many groups.
CHECKED_GROUPS = 64

# Width of the blocks of columns in which half of the symmetric Gram matrix is computed.
COLUMNS = 256


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
) -> RidgeRows:
    """Predict each row of `y` from `x` with a linear map fitted on the rows of all other groups.

    The map minimises `‖XW + b - Y‖² + strength · n · Σ_j var(x_j) ‖W_j‖²`, which is ridge regression on standardised
    features with an intercept; constant features get no weight. The left-out predictions come from the hat matrix of
    one fit. They equal those of a refit without each group, with the penalty computed from all rows.

    The strength is the one with the smallest left-out error on an evenly spaced sample of the groups. The search starts
    in the middle of `strengths` and follows the decreasing error. Nothing depends on the random state.

    The computation runs on the device of `x`, or on the CPU if that device has no float64. The fit is in float64;
    left-out predictions are computed in float32 where this agrees with float64. Besides the result, at most two F × F
    matrices, three F × d matrices and a few blocks of rows are in memory.

    Args:
        x: (n, F) features, of any floating-point type.
        y: (n, d) targets, of any floating-point type.
        groups: (n,) int64, the group of each row; the rows of a group are left out together. `None` leaves out each
            row alone.
        strengths: The strengths to choose from. Those below 1e-8 · F are raised to this value, so that left-out
            predictions are not dominated by rounding errors if there are more features than rows.
        block: The number of rows converted to float64 at once; it does not change the result.

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
    ridge = _Ridge(x, y, block)

    sample = _parts(_sample(batches, max(1, len(x) // SAMPLE_ROWS)), block)
    sketch = _sketch(y.shape[1]).to(ridge.device)

    def sampled_error(strength: float) -> float:
        fit = ridge.fit(strength, sketch)
        return sum(float(fit.left_out_errors(part)[0].square().sum()) for part in sample)

    strength = _smallest(sampled_error, [max(strength, 1e-8 * x.shape[1]) for strength in strengths])
    fit = ridge.fit(strength)
    del ridge.gram
    weights, fast = fit.weights(), fit.in_float32(sample[0][:CHECKED_GROUPS])
    rows, squared_error = torch.empty(len(x), y.shape[1]), 0.0
    for part in _parts(batches, block):
        errors, determined = fast.left_out_errors(part)
        if determined < 0.1 and fast is not fit:
            errors, _ = fit.left_out_errors(part)
        squared_error += float(errors.square().sum(dtype=torch.float64))
        members = part.flatten()
        rows[members] = ridge.y(members).sub_(errors).to("cpu", torch.float32)
    r_squared = 1 - squared_error / ridge.variation if ridge.variation > 0 else 0.0
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


class _Float64Rows:
    """Rows of a tensor, converted to float64 in a reused buffer, which saves most of the time of the conversion.

    Args:
        values: (n, w), of any floating-point type.
        device: The device of the converted rows.
    """

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self.values = values
        self._taken = values[:0].clone()
        self._converted = self._taken.to(device, torch.float64)

    def __call__(self, members: Tensor | slice) -> Tensor:
        """Return these rows: (m, w) float64, valid until the next call."""
        if isinstance(members, slice):
            taken = self.values[members]
        else:
            if len(members) > len(self._taken):
                self._taken = self.values.new_empty(len(members), self.values.shape[1])
            taken = self._taken[: len(members)]
            torch.index_select(self.values, 0, members.to(self.values.device), out=taken)
        if len(taken) > len(self._converted):
            self._converted = self._converted.new_empty(taken.shape)
        return self._converted[: len(taken)].copy_(taken)

    def blocks(self, block: int) -> list[slice]:
        """Return consecutive slices of at most `block` rows."""
        return [slice(start, start + block) for start in range(0, len(self.values), block)]

    def mean(self, name: str, block: int) -> Tensor:
        """Return the mean of all rows, (w,) float64, or raise if `name` holds NaN or infinity."""
        sums = [self(members).sum(dim=0) for members in self.blocks(block)]
        mean = torch.stack(sums).sum(dim=0) / len(self.values)
        if bool(torch.isfinite(mean).all()):
            return mean
        finite = torch.cat([torch.isfinite(self(members)).all(dim=1) for members in self.blocks(block)])
        broken = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"{len(broken)} rows of the {name} hold NaN or infinity, the first one row {broken[0]}. "
            "Check the model's weights."
        )


class _Ridge:
    """The normal equations of standardised features and centred targets.

    Args:
        x: (n, F) features.
        y: (n, d) targets.
        block: The number of rows converted to float64 at once.
    """

    def __init__(self, x: Tensor, y: Tensor, block: int) -> None:
        self.count, features = x.shape
        self.device = _float64_device(x.device)
        self.x, self.y = _Float64Rows(x, self.device), _Float64Rows(y, self.device)
        self.mean = self.x.mean("features", block)
        self.target_mean = self.y.mean("targets", block)
        self.gram = torch.zeros(features, features, dtype=torch.float64, device=self.device)  # lower triangle
        self.factor = torch.empty_like(self.gram).T
        self.moment = torch.zeros(features, y.shape[1], dtype=torch.float64, device=self.device)
        self.variation = 0.0
        for members in self.x.blocks(block):
            rows, targets = self.x(members).sub_(self.mean), self.centred_targets(members)
            for start in range(0, features, COLUMNS):
                stop = min(start + COLUMNS, features)
                self.gram[start:, start:stop].addmm_(rows[:, start:].T, rows[:, start:stop])
            self.moment.addmm_(rows.T, targets)
            self.variation += float(targets.square().sum())
        if self.variation <= 1e-24 * self.count * float(self.target_mean.square().sum()):
            self.variation = 0.0  # equal targets, up to the rounding of their mean
        variance = self.gram.diagonal() / self.count
        varies = variance > 1e-12 * (self.mean.square() + variance)
        self.scale = torch.where(varies, variance.clamp(min=1e-300).rsqrt(), 0.0)
        self.gram.mul_(self.scale).mul_(self.scale[:, None])
        self.moment.mul_(self.scale[:, None])

    def standardised(self, members: Tensor) -> Tensor:
        """Return the standardised features of some rows: (m, F) float64, valid until the next call."""
        return self.x(members).sub_(self.mean).mul_(self.scale)

    def centred_targets(self, members: Tensor | slice) -> Tensor:
        """Return the targets of some rows minus their mean: (m, d) float64, valid until the next call."""
        return self.y(members).sub_(self.target_mean)

    def fit(self, strength: float, sketch: Tensor | None = None) -> _Fit:
        """Factorise the normal equations with this strength; overwrites the factor of an earlier fit.

        Args:
            strength: The ridge strength.
            sketch: (d, s) float64, directions to project the targets on; `None` keeps the targets.
        """
        diagonal = self.gram.diagonal().clone()
        self.gram.diagonal().add_(strength * self.count)
        # The same memory for each strength.
        torch.linalg.cholesky(self.gram, out=self.factor)
        self.gram.diagonal().copy_(diagonal)
        moment = self.moment if sketch is None else self.moment @ sketch
        return _Fit(self, self.factor, torch.linalg.solve_triangular(self.factor, moment, upper=False), sketch)


@dataclass(frozen=True)
class _Fit:
    """A ridge regression with one strength.

    Attributes:
        ridge: The normal equations.
        factor: (F, F), the Cholesky factor L of the normal equations, in float64 or float32.
        moment: (F, d), L⁻¹ZᵀY of the standardised features Z and centred targets Y, of the same type.
        sketch: The directions that the targets are projected on, or `None`.
    """

    ridge: _Ridge
    factor: Tensor
    moment: Tensor
    sketch: Tensor | None

    def in_float32(self, members: Tensor) -> _Fit:
        """Return this fit in float32, or unchanged if float32 gives other errors of these rows."""
        single = _Fit(self.ridge, self.factor.float(), self.moment.float(), self.sketch)
        exact, rounded = self.left_out_errors(members)[0], single.left_out_errors(members)[0]
        agrees = (rounded - exact).abs().max() <= 1e-5 * exact.square().mean().sqrt()
        return single if agrees else self

    def left_out_errors(self, members: Tensor) -> tuple[Tensor, float]:
        """Return targets minus predictions without the group: `(I - H)⁻¹ e`, with `H` and `e` of the group's rows.

        Args:
            members: (m, k) int64, the rows of m groups.

        Returns:
            (m · k, d), and a lower bound of the eigenvalues of `I - H`, by which rounding errors are divided.
        """
        (groups, size), rows, dtype = members.shape, members.flatten(), self.factor.dtype
        features = self.ridge.standardised(rows).to(dtype)
        whitened = torch.linalg.solve_triangular(self.factor, features.T, upper=False, out=features.T).T
        targets = self.ridge.centred_targets(rows)
        if self.sketch is not None:
            targets = targets @ self.sketch
        errors = targets.to(dtype).addmm_(whitened, self.moment, alpha=-1).view(groups, size, -1)
        whitened = whitened.view(groups, size, -1)
        identity = torch.eye(size, dtype=dtype, device=self.ridge.device)
        complement = identity - 1 / self.ridge.count - whitened @ whitened.mT
        errors = errors / complement if size == 1 else torch.linalg.solve(complement, errors)
        return errors.flatten(0, 1), 1 - float((1 - complement.diagonal(dim1=1, dim2=2)).sum(dim=1).max())

    def weights(self) -> Tensor:
        """Return the map of features to targets: (F + 1, d) float32."""
        weights = torch.linalg.solve_triangular(self.factor.T, self.moment, upper=True)
        weights.mul_(self.ridge.scale[:, None])
        intercept = self.ridge.target_mean - self.ridge.mean @ weights
        return torch.cat([weights.float(), intercept.float()[None]]).cpu()


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


def _float64_device(device: torch.device) -> torch.device:
    """Return this device, or the CPU if the device has no float64, as Apple's GPUs."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device
