"""The normal equations of ridge regression: built from blocks of rows, solved for a strength, groups left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defemb_callbacks.weights.precision import float64_device

# Width of the blocks of columns in which half of the symmetric Gram matrix is computed.
COLUMNS = 256


class Float64Rows:
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


class NormalEquations:
    """The normal equations of standardised features and centred targets.

    Args:
        x: (n, F) features.
        y: (n, d) targets.
        block: The number of rows converted to float64 at once.
        device: The device of the computation, by default that of `x`; the CPU if it has no float64.
    """

    def __init__(self, x: Tensor, y: Tensor, block: int, device: torch.device | None = None) -> None:
        self.count, features = x.shape
        self.device = float64_device(device or x.device)
        self.x, self.y = Float64Rows(x, self.device), Float64Rows(y, self.device)
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

    def fit(self, strength: float, sketch: Tensor | None = None) -> RidgeFit:
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
        return RidgeFit(self, self.factor, torch.linalg.solve_triangular(self.factor, moment, upper=False), sketch)


@dataclass(frozen=True)
class RidgeFit:
    """A ridge regression with one strength.

    Attributes:
        ridge: The normal equations.
        factor: (F, F), the Cholesky factor L of the normal equations, in float64 or float32.
        moment: (F, d), L⁻¹ZᵀY of the standardised features Z and centred targets Y, of the same type.
        sketch: The directions that the targets are projected on, or `None`.
    """

    ridge: NormalEquations
    factor: Tensor
    moment: Tensor
    sketch: Tensor | None

    def in_float32(self, members: Tensor) -> RidgeFit:
        """Return this fit in float32, or unchanged if float32 gives other errors of these rows."""
        single = RidgeFit(self.ridge, self.factor.float(), self.moment.float(), self.sketch)
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
