"""Layers of a Glow-like flow on vectors, each with a closed-form inverse and log-determinant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from defemb_callbacks.weights.precision import float64_device

# Bound of the log-scale of affine couplings: a scale near 0 cannot be inverted in float32.
MAX_LOG_SCALE = 2.0


def _resolution(x: Tensor) -> Tensor:
    """Standard deviation below which a direction contains only rounding error.

    LayerNorm leaves one direction without variance. In the last layer of all-MiniLM-L6-v2, three more coordinates are
    below 1e-8, while others are near 0.3; scaled to 1, they would count as much as these.
    """
    return 16 * torch.finfo(torch.float32).eps * x.abs().max()


class ActNorm(nn.Module):
    """Shift and scale of each coordinate, initialized to standardize the data (Glow, section 3.1).

    Unlike in Glow, the statistics of the data are fixed buffers, and the trained parameters start at shift 0 and scale
    1 relative to the standardized data. The maps are the same, but one learning rate suits coordinates of any scale.

    Example:
        >>> norm = ActNorm(2)
        >>> norm.initialize(torch.tensor([[0.0, 10.0], [2.0, 50.0]]))
        >>> norm(torch.tensor([[2.0, 10.0]]))[0].tolist()
        [[1.0, -1.0]]
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))
        self.shift = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set mean and standard deviation from `x`, (n, dim); coordinates without variance are not scaled."""
        spread, mean = torch.std_mean(x, dim=0, correction=0)
        self.mean.copy_(mean)
        self.spread.copy_(spread.masked_fill(spread <= _resolution(x), 1.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output, (n, dim), and log-determinant, (n,)."""
        log_det = (self.log_scale - self.spread.log()).sum()
        return (x - self.mean) / self.spread * self.log_scale.exp() + self.shift, log_det.expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        """Inverse of `forward`, (n, dim)."""
        return (y - self.shift) * (-self.log_scale).exp() * self.spread + self.mean


class PrincipalAxes(nn.Module):
    """Projection to the first principal components of the data; a rotation, with log-determinant 0, if all are kept.

    Permutations and couplings narrower than dim / 2 cannot remove all correlations. Principal components are
    uncorrelated, and with the following actnorm the projection becomes PCA whitening.

    Args:
        dim: Width of the vectors.
        components: Number of components to keep, by decreasing variance. With fewer than `dim`, `inverse` returns the
            projection of the original vector.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("axes", torch.eye(dim, components))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set mean and axes from `x`, (n, dim), computed in float64.

        Raises:
            ValueError: If `x` varies along fewer than `components` directions.
        """
        components = self.axes.shape[1]
        x = x.to(float64_device(x.device))
        mean = x.double().mean(dim=0)
        centred = x.double() - mean
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(x))
        varying = int((variances > _resolution(x) ** 2).sum())
        if varying < components:
            raise ValueError(
                f"`vectors` vary along {varying} directions, fewer than components={components}. "
                f"Use components={varying} or fewer, or pass more vectors."
            )
        self.mean.copy_(mean)
        self.axes.copy_(axes.flip(1)[:, :components])

    def forward(self, x: Tensor) -> Tensor:
        """Output, (n, components)."""
        return (x - self.mean) @ self.axes

    def inverse(self, y: Tensor) -> Tensor:
        """Inverse of `forward`, (n, dim)."""
        return y @ self.axes.T + self.mean


class Coupling(nn.Module):
    """Transforms one half of the coordinates as a function of the other (NICE, RealNVP); initially the identity.

    The network has three linear layers with ReLU in between, ⌈dim/2⌉ → width → width → ⌊dim/2⌋, the last one
    initialized to 0.

    Args:
        dim: Width of the vectors, at least 2.
        width: Width of the hidden layers.
        affine: Whether to scale as well as shift. Additive couplings have log-determinant 0.
    """

    def __init__(self, dim: int, width: int, affine: bool) -> None:
        super().__init__()
        self.read, self.moved, self.affine = dim - dim // 2, dim // 2, affine
        last = nn.Linear(width, self.moved * (2 if affine else 1))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(nn.Linear(self.read, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output, (n, dim), and log-determinant, (n,)."""
        read, moved = x.split([self.read, self.moved], dim=1)
        shift, log_scale = self._shift_and_log_scale(read)
        return torch.cat([read, moved * log_scale.exp() + shift], dim=1), log_scale.sum(dim=1)

    def inverse(self, y: Tensor) -> Tensor:
        """Inverse of `forward`, (n, dim)."""
        read, moved = y.split([self.read, self.moved], dim=1)
        shift, log_scale = self._shift_and_log_scale(read)
        return torch.cat([read, (moved - shift) * (-log_scale).exp()], dim=1)

    def _shift_and_log_scale(self, read: Tensor) -> tuple[Tensor, Tensor]:
        if not self.affine:
            shift = self.net(read)
            return shift, torch.zeros_like(shift)
        shift, log_scale = self.net(read).chunk(2, dim=1)
        return shift, MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE)


class FlowStep(nn.Module):
    """One step of Glow: actnorm, fixed random permutation, coupling.

    Args:
        dim: Width of the vectors.
        width: See `Coupling`.
        affine: See `Coupling`.
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, dim: int, width: int, affine: bool) -> None:
        super().__init__()
        self.norm = ActNorm(dim)
        permutation = torch.randperm(dim)
        # Saved rather than redrawn from the seed: other versions of torch may draw another permutation.
        self.register_buffer("permutation", permutation)
        self.register_buffer("inverse_permutation", permutation.argsort())
        self.coupling = Coupling(dim, width, affine)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output, (n, dim), and log-determinant, (n,)."""
        x, norm_log_det = self.norm(x)
        x, coupling_log_det = self.coupling(x[:, self.permutation])
        return x, norm_log_det + coupling_log_det

    def inverse(self, y: Tensor) -> Tensor:
        """Inverse of `forward`, (n, dim)."""
        return self.norm.inverse(self.coupling.inverse(y)[:, self.inverse_permutation])


class FlowLevel(nn.Module):
    """A sequence of steps.

    Args:
        dim: Width of the vectors.
        depth: Number of steps.
        width: See `Coupling`.
        affine: See `Coupling`.
    """

    def __init__(self, dim: int, depth: int, width: int, affine: bool) -> None:
        super().__init__()
        steps = nn.ModuleList(FlowStep(dim, width, affine) for _ in range(depth))
        self.steps = cast("Sequence[FlowStep]", steps)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Initialize each actnorm from the output of the steps before it, given `x`, (n, dim)."""
        for step in self.steps:
            step.norm.initialize(x)
            x, _ = step(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output, (n, dim), and log-determinant, (n,)."""
        log_det = x.new_zeros(len(x))
        for step in self.steps:
            x, step_log_det = step(x)
            log_det = log_det + step_log_det
        return x, log_det

    def inverse(self, y: Tensor) -> Tensor:
        """Inverse of `forward`, (n, dim)."""
        for step in reversed(self.steps):
            y = step.inverse(y)
        return y
