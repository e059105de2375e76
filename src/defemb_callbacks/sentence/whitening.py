"""Whitening in closed form, from one pass over the vectors; and the simpler calibrations that the same pass gives."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import checked, row_blocks
from defemb_callbacks.metrics.spectrum import gram_matrix
from defemb_callbacks.sentence.linear import LinearCalibration

logger = logging.getLogger(__name__)
Shrinkage = float | Literal["auto"]


class WhiteningFitter:
    """Mean and covariance of a stream of vectors, and the calibrations that follow from them.

    Sums are kept in float64 on the device of the first vectors, (d, d) and smaller, whatever the length of the stream.
    A stream gives what all its vectors at once would give, in any order, and so do the merged fitters of several
    processes.

    Example:
        >>> vectors = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 3, 1, 1])
        >>> fitter = WhiteningFitter()
        >>> for batch in vectors.split(100):
        ...     fitter.update(batch)
        >>> whitened = fitter.whitening(components=2, shrinkage=0.0)(vectors)
        >>> torch.allclose(whitened.T.cov(), torch.eye(2), atol=1e-4)
        True
    """

    def __init__(self) -> None:
        self._moments: _Moments | None = None

    def update(self, vectors: Tensor) -> None:
        """Take in more vectors.

        Args:
            vectors: (n, d), any floating dtype, any device.

        Raises:
            TypeError: not a floating-point tensor.
            ValueError: another shape, NaN or infinity, or another width than before.
        """
        self._add(_Moments.of(checked(vectors, "vectors")))

    def merge(self, other: WhiteningFitter) -> None:
        """Take in what another fitter has seen.

        Raises:
            ValueError: vectors of another width there.
        """
        if other._moments is not None:
            self._add(other._moments)

    @property
    def count(self) -> int:
        """How many vectors were seen."""
        return 0 if self._moments is None else self._moments.count

    @property
    def mean(self) -> Tensor:
        """(d,) float64."""
        return self._seen(1).mean

    @property
    def covariance(self) -> Tensor:
        """(d, d) float64, unbiased."""
        moments = self._seen(2)
        return moments.scatter / (moments.count - 1)

    def whitening(
        self, components: int | None = None, shrinkage: float | Literal["auto"] = "auto"
    ) -> LinearCalibration:
        r"""Principal directions, each scaled to variance 1.

        .. math:: x' = (x - \mu)\, (U \Lambda^{-1/2})_{:, :k}, \qquad
            U \Lambda U^\top = (1 - s)\, \Sigma + s\, \tfrac{\operatorname{tr} \Sigma}{d}\, I

        (Su, Cao, Liu and Ou, arXiv 2103.15316, who have s = 0). Each column's sign makes its largest entry positive.

        A layer that ends with LayerNorm spans d − 1 directions only; with ``shrinkage=0`` and ``components=None`` the
        result has that many columns, since the last would be rounding, scaled up.

        Args:
            components: k, how many directions to keep, those of the largest variance; `None` keeps all.
            shrinkage: s in [0, 1], how much of the covariance is replaced by the sphere of the same trace; 1 only
                centres, scales and rotates. "auto" estimates the best s (Ledoit and Wolf 2004): much for few vectors,
                next to nothing for many. With s = 0, all d directions of fewer than about 2d vectors are mostly noise.

        Raises:
            ValueError: fewer than two vectors, components or shrinkage outside their range, or more components than
                the vectors have directions.
        """
        moments = self._seen(2)
        dim = len(moments.mean)
        if components is not None and not 1 <= components <= dim:
            raise ValueError(f"components must be from 1 to the width {dim}, got {components}")
        strength = moments.ledoit_wolf() if shrinkage == "auto" else shrinkage
        if not 0 <= strength <= 1:
            raise ValueError(f'shrinkage must be "auto" or from 0 to 1, got {shrinkage!r}')
        variances, directions = self._spectrum
        variances = (1 - strength) * variances + strength * variances.mean()
        usable = int((variances > moments.rounding()).sum())
        kept = components or (usable if moments.count > dim or strength else dim)
        if kept > usable or not kept:
            raise ValueError(
                f"{moments.count} vectors vary in {usable} directions, too few for {kept}: "
                f'give components={max(1, usable // 2)} or less, shrinkage="auto", or more vectors'
            )
        if not strength and moments.count < 2 * kept:
            logger.warning(
                'Whitening %d directions from %d vectors without shrinkage gives noise; use shrinkage="auto".',
                kept,
                moments.count,
            )
        transform = directions[:, :kept] / variances[:kept].sqrt()
        return self._calibration(transform, method="whitening", components=kept, shrinkage=float(strength))

    def standardization(self) -> LinearCalibration:
        """Each coordinate less its mean, divided by its standard deviation; one that never varies becomes 0.

        Raises:
            ValueError: fewer than two vectors.
        """
        deviations = self.covariance.diagonal().sqrt()
        return self._calibration(deviations.where(deviations > 0, 1.0).reciprocal().diag(), method="standardization")

    def top_removal(self, directions: int | None = None) -> LinearCalibration:
        """Vectors less their mean and less their share of the strongest principal directions; their width stays.

        Source: Mu and Viswanath, "All-but-the-Top", ICLR 2018.

        Args:
            directions: how many; `None` is the authors' d / 100, rounded up.

        Raises:
            ValueError: fewer than two vectors, or directions not from 1 to d − 1.
        """
        dim = len(self._seen(2).mean)
        directions = math.ceil(dim / 100) if directions is None else directions
        if not 1 <= directions < dim:
            raise ValueError(f"directions must be from 1 to {dim - 1}, one less than the width, got {directions}")
        top = self._spectrum[1][:, :directions]
        rest = torch.eye(dim, dtype=top.dtype, device=top.device) - top @ top.T
        return self._calibration(rest, method="top removal", directions=directions)

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Variances of the principal directions, largest first, and these as columns."""
        variances, directions = torch.linalg.eigh(self.covariance)
        variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)
        # LAPACK's signs are arbitrary, and would differ between a stream and a batch.
        largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
        return variances, directions * largest.sign()

    def _calibration(self, transform: Tensor, **info: Any) -> LinearCalibration:
        mean = self.mean.float().cpu()
        return LinearCalibration(mean, transform.float().cpu(), info | {"vectors": self.count})

    def _add(self, moments: _Moments) -> None:
        if self._moments is not None:
            width, expected = len(moments.mean), len(self._moments.mean)
            if width != expected:
                raise ValueError(f"vectors must have width {expected}, as those before, got {width}")
            moments = self._moments.merged(moments)
        self._moments = moments
        self.__dict__.pop("_spectrum", None)

    def _seen(self, fewest: int) -> _Moments:
        if self._moments is None or self._moments.count < fewest:
            raise ValueError(f"at least {fewest} vectors are needed, got {self.count}; update() the fitter first")
        return self._moments


def fit_whitening(vectors: Tensor, components: int | None = None, shrinkage: Shrinkage = "auto") -> LinearCalibration:
    """The whitening of ready vectors: see `WhiteningFitter.whitening`, also for what is raised.

    Args:
        vectors: (n, d), any floating dtype, any device.
        components: how many directions to keep; `None` keeps all.
        shrinkage: "auto", or from 0 (the paper) to 1.

    Example:
        >>> vectors = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) + 5
        >>> fit_whitening(vectors, components=3)(vectors).shape
        torch.Size([500, 3])
    """
    fitter = WhiteningFitter()
    fitter.update(vectors)
    return fitter.whitening(components, shrinkage)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Sums over n vectors of powers of y = x − mean, in float64.

    The cubes and fourth powers are what the Ledoit-Wolf estimate takes besides the covariance, and what keeps it exact
    when sums around different means are merged.
    """

    count: int
    mean: Tensor  # (d,)
    scatter: Tensor  # (d, d), Σ y yᵀ
    cubes: Tensor  # (d,), Σ ‖y‖² y
    fourths: Tensor  # (), Σ ‖y‖⁴

    @classmethod
    def of(cls, vectors: Tensor) -> _Moments:
        """Of checked vectors."""
        count = len(vectors)
        mean = torch.stack([block.sum(dim=0) for block in row_blocks(vectors)]).sum(dim=0) / count
        cubes, fourths = torch.zeros_like(mean), mean.new_zeros(())
        for block in row_blocks(vectors):
            block -= mean
            squares = (block * block).sum(dim=1)
            cubes += squares @ block
            fourths += squares @ squares
        return cls(count, mean, gram_matrix(vectors, mean=mean), cubes, fourths)

    def merged(self, other: _Moments) -> _Moments:
        """Of the vectors of both: the update of Chan, Golub and LeVeque (1979), carried on to fourth powers."""
        count = self.count + other.count
        mean = self.mean + (other.mean.to(self.mean) - self.mean) * (other.count / count)
        pairs = zip(self._around(mean), other._around(mean), strict=True)
        return _Moments(count, mean, *(mine + theirs for mine, theirs in pairs))

    def _around(self, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sums of y = x − centre, on the centre's device."""
        scatter, cubes, fourths = (sums.to(centre) for sums in (self.scatter, self.cubes, self.fourths))
        shift = self.mean.to(centre) - centre
        turned, square, trace = scatter @ shift, shift @ shift, scatter.trace()
        return (
            scatter + self.count * torch.outer(shift, shift),
            cubes + trace * shift + 2 * turned + self.count * square * shift,
            fourths + 4 * cubes @ shift + 4 * turned @ shift + 2 * square * trace + self.count * square**2,
        )

    def ledoit_wolf(self) -> float:
        """The shrinkage of least expected squared error (Ledoit and Wolf 2004, as scikit-learn computes it)."""
        dim = len(self.mean)
        covariance = self.scatter / self.count
        distance = covariance.square().sum() - covariance.trace() ** 2 / dim
        error = (self.fourths / self.count - covariance.square().sum()) / self.count
        return float((error / distance).clamp(0, 1)) if distance > 0 else 1.0

    def rounding(self) -> Tensor:
        """The variance, (), below which a direction holds nothing but rounding of float32 vectors and of these sums."""
        variances = self.scatter.diagonal() / (self.count - 1)
        sums = len(self.mean) * torch.finfo(torch.float64).eps * torch.linalg.matrix_norm(self.scatter, ord="fro")
        entries = torch.finfo(torch.float32).eps ** 2 * (variances + self.mean.square()).max()
        return torch.maximum(sums / (self.count - 1), entries)
