"""The layers of a Glow-like flow on vectors: each is invertible in closed form and knows its log-determinant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

# The log-scale of an affine coupling stays within ±2: a scale near 0 could not be inverted in float32.
LARGEST_LOG_SCALE = 2.0


def _resolution(x: Tensor) -> Tensor:
    """The standard deviation below which a direction holds nothing but rounding, or nothing at all.

    LayerNorm leaves one direction without variance. In the last layer of all-MiniLM-L6-v2, three coordinates besides
    are below 1e-8, where others are near 0.3: scaled up to 1, they would be as loud as these.
    """
    return 16 * torch.finfo(torch.float32).eps * x.abs().max()


class ActNorm(nn.Module):
    """A shift and a scale for each coordinate, which start by standardising the data (Glow, section 3.1).

    What is taken from the data stays fixed; what is trained starts at shift 0 and scale 1 in units of the standardised
    data. The same maps as Glow's can be reached, but one learning rate suits coordinates of any scale.

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
        """Take mean and standard deviation from `x`, (n, dim); a coordinate without variance keeps its scale."""
        spread, mean = torch.std_mean(x, dim=0, correction=0)
        self.mean.copy_(mean)
        self.spread.copy_(spread.masked_fill(spread <= _resolution(x), 1.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, dim) and the log-determinant, (n,)."""
        log_det = (self.log_scale - self.spread.log()).sum()
        return (x - self.mean) / self.spread * self.log_scale.exp() + self.shift, log_det.expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        """What `forward` maps to `y`."""
        return (y - self.shift) * (-self.log_scale).exp() * self.spread + self.mean


class PrincipalAxes(nn.Module):
    """Rotates to the first principal axes of the data; between as many coordinates as it reads, the volume stays.

    Permutations and couplings of a width below dim / 2 cannot undo all correlations. Turned to its principal axes, the
    data have none, and the actnorm that follows makes it PCA whitening.

    Args:
        dim: of the vectors.
        components: how many axes to keep, those of the largest variance. With fewer than `dim`, `inverse` gives the
            nearest vector in the span of the axes, through the mean.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("axes", torch.eye(dim, components))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Take mean and axes from `x`, (n, dim); computed in float64.

        Raises:
            ValueError: `x` has no variance along so many axes.
        """
        components = self.axes.shape[1]
        mean = x.double().mean(dim=0)
        centred = x.double() - mean
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(x))
        varying = int((variances > _resolution(x) ** 2).sum())
        if varying < components:
            raise ValueError(
                f"the vectors vary along {varying} directions only, which is fewer than components={components}; "
                f"choose components={varying} or fewer, or give more vectors"
            )
        self.mean.copy_(mean)
        self.axes.copy_(axes.flip(1)[:, :components])

    def forward(self, x: Tensor) -> Tensor:
        """(n, components)."""
        return (x - self.mean) @ self.axes

    def inverse(self, y: Tensor) -> Tensor:
        """(n, dim)."""
        return y @ self.axes.T + self.mean


class Coupling(nn.Module):
    """Moves one half of the coordinates by what the other half tells, the identity at the start (NICE, RealNVP).

    The net is three linear layers with ReLU between them, ⌈dim/2⌉ → width → width → ⌊dim/2⌋, the last one 0.

    Args:
        dim: of the vectors, at least 2, odd or even.
        width: of the hidden layers.
        affine: scale besides shifting. Additive couplings keep the volume: their log-determinant is 0.
    """

    def __init__(self, dim: int, width: int, affine: bool) -> None:
        super().__init__()
        self.read, self.moved, self.affine = dim - dim // 2, dim // 2, affine
        last = nn.Linear(width, self.moved * (2 if affine else 1))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(nn.Linear(self.read, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, dim) and the log-determinant, (n,)."""
        read, moved = x.split([self.read, self.moved], dim=1)
        shift, log_scale = self._shift_and_log_scale(read)
        return torch.cat([read, moved * log_scale.exp() + shift], dim=1), log_scale.sum(dim=1)

    def inverse(self, y: Tensor) -> Tensor:
        """What `forward` maps to `y`."""
        read, moved = y.split([self.read, self.moved], dim=1)
        shift, log_scale = self._shift_and_log_scale(read)
        return torch.cat([read, (moved - shift) * (-log_scale).exp()], dim=1)

    def _shift_and_log_scale(self, read: Tensor) -> tuple[Tensor, Tensor]:
        if not self.affine:
            shift = self.net(read)
            return shift, torch.zeros_like(shift)
        shift, log_scale = self.net(read).chunk(2, dim=1)
        return shift, LARGEST_LOG_SCALE * torch.tanh(log_scale / LARGEST_LOG_SCALE)


class FlowStep(nn.Module):
    """One step of Glow: actnorm, a permutation that is drawn once and kept, a coupling.

    Args:
        dim: of the vectors.
        width: see `Coupling`.
        affine: see `Coupling`.
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, dim: int, width: int, affine: bool) -> None:
        super().__init__()
        self.norm = ActNorm(dim)
        permutation = torch.randperm(dim)
        # Saved, not drawn again from the seed: a later torch might draw another one.
        self.register_buffer("permutation", permutation)
        self.register_buffer("inverse_permutation", permutation.argsort())
        self.coupling = Coupling(dim, width, affine)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, dim) and the log-determinant, (n,)."""
        x, of_norm = self.norm(x)
        x, of_coupling = self.coupling(x[:, self.permutation])
        return x, of_norm + of_coupling

    def inverse(self, y: Tensor) -> Tensor:
        """What `forward` maps to `y`."""
        return self.norm.inverse(self.coupling.inverse(y)[:, self.inverse_permutation])


class FlowLevel(nn.Module):
    """Some steps in a row.

    Args:
        dim: of the vectors.
        depth: number of steps.
        width: see `Coupling`.
        affine: see `Coupling`.
    """

    def __init__(self, dim: int, depth: int, width: int, affine: bool) -> None:
        super().__init__()
        steps = nn.ModuleList(FlowStep(dim, width, affine) for _ in range(depth))
        self.steps = cast("Sequence[FlowStep]", steps)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Let each actnorm take its shift and scale from what the steps before it make of `x`, (n, dim)."""
        for step in self.steps:
            step.norm.initialize(x)
            x, _ = step(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, dim) and the log-determinant, (n,)."""
        log_det = x.new_zeros(len(x))
        for step in self.steps:
            x, of_step = step(x)
            log_det = log_det + of_step
        return x, log_det

    def inverse(self, y: Tensor) -> Tensor:
        """What `forward` maps to `y`."""
        for step in reversed(self.steps):
            y = step.inverse(y)
        return y
