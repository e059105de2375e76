"""Closed-form calibrations from streaming statistics: whitening, standardization, removal of top directions."""

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
    """Streaming mean and covariance of vectors, and linear calibrations computed from them.

    The statistics, (d, d) and smaller, are kept in float64 on the device of the first vectors. The result is that of a
    single batch, for any order and any split of the vectors into batches or merged fitters.

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
        """Add vectors.

        Args:
            vectors: Shape (n, d), any floating-point dtype, any device.

        Raises:
            TypeError: If `vectors` is not a floating-point tensor.
            ValueError: If `vectors` has another shape or another width than before, or contains NaN or infinity.
        """
        self._add(_Moments.of(checked(vectors, "vectors")))

    def merge(self, other: WhiteningFitter) -> None:
        """Add the vectors of another fitter.

        Raises:
            ValueError: If its vectors have another width.
        """
        if other._moments is not None:
            self._add(other._moments)

    @property
    def count(self) -> int:
        """Number of vectors."""
        return 0 if self._moments is None else self._moments.count

    @property
    def mean(self) -> Tensor:
        """Mean, (d,) float64."""
        return self._seen(1).mean

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, (d, d) float64."""
        moments = self._seen(2)
        return moments.scatter / (moments.count - 1)

    def whitening(
        self, components: int | None = None, shrinkage: float | Literal["auto"] = "auto"
    ) -> LinearCalibration:
        r"""Whitening: projection to principal directions, each scaled to variance 1.

        $$x' = (x - \mu)\, (U \Lambda^{-1/2})_{:, :k}, \qquad
        U \Lambda U^\top = (1 - s)\, \Sigma + s\, \tfrac{\operatorname{tr} \Sigma}{d}\, I$$

        (Su, Cao, Liu and Ou, arXiv 2103.15316, with s = 0.) The sign of each column makes its largest entry positive.

        Outputs of LayerNorm span only d − 1 directions. With `shrinkage=0` and `components=None`, directions that
        contain only rounding error are dropped.

        Args:
            components: Number k of directions to keep, by decreasing variance; `None` for all.
            shrinkage: Weight s in [0, 1] of the isotropic covariance; 1 only centres, scales and rotates. `"auto"`
                estimates the optimal weight (Ledoit and Wolf 2004), which is large for few vectors and small for many.
                With s = 0 and fewer than about 2d vectors, the whitened directions are mostly noise.

        Raises:
            ValueError: If there are fewer than two vectors, `components` or `shrinkage` is out of range, or the vectors
                vary along fewer than `components` directions.
        """
        moments = self._seen(2)
        dim = len(moments.mean)
        if components is not None and not 1 <= components <= dim:
            raise ValueError(f"`components` must be between 1 and the width {dim}, got {components}.")
        strength = moments.ledoit_wolf() if shrinkage == "auto" else shrinkage
        if not 0 <= strength <= 1:
            raise ValueError(f'`shrinkage` must be "auto" or between 0 and 1, got {shrinkage!r}.')
        variances, directions = self._spectrum
        variances = (1 - strength) * variances + strength * variances.mean()
        usable = int((variances > moments.rounding()).sum())
        kept = components or (usable if moments.count > dim or strength else dim)
        if kept > usable or not kept:
            cures = [f"components={usable // 2} or fewer, "] if usable > 1 else []
            cures += ['shrinkage="auto", '] if shrinkage != "auto" else []
            raise ValueError(
                f"{moments.count} vectors vary along {usable} directions, fewer than {kept}. "
                f"Use {''.join(cures)}{'or ' if cures else ''}more vectors."
            )
        if not strength and moments.count < 2 * kept:
            logger.warning(
                'Whitening %d directions of %d vectors without shrinkage amplifies noise. Use shrinkage="auto".',
                kept,
                moments.count,
            )
        transform = directions[:, :kept] / variances[:kept].sqrt()
        return self._calibration(transform, method="whitening", components=kept, shrinkage=float(strength))

    def standardization(self) -> LinearCalibration:
        """Standardization: each coordinate gets mean 0 and standard deviation 1; constant coordinates become 0.

        Raises:
            ValueError: If there are fewer than two vectors.
        """
        deviations = self.covariance.diagonal().sqrt()
        return self._calibration(deviations.where(deviations > 0, 1.0).reciprocal().diag(), method="standardization")

    def top_removal(self, directions: int | None = None) -> LinearCalibration:
        """Removal of the mean and of the projection on the top principal directions; the width is unchanged.

        Source: Mu and Viswanath, "All-but-the-Top", ICLR 2018.

        Args:
            directions: Number of directions to remove; `None` for the authors' d / 100, rounded up.

        Raises:
            ValueError: If there are fewer than two vectors, or `directions` is not between 1 and d − 1.
        """
        dim = len(self._seen(2).mean)
        directions = math.ceil(dim / 100) if directions is None else directions
        if not 1 <= directions < dim:
            raise ValueError(f"`directions` must be between 1 and {dim - 1} (less than the width), got {directions}.")
        top = self._spectrum[1][:, :directions]
        rest = torch.eye(dim, dtype=top.dtype, device=top.device) - top @ top.T
        return self._calibration(rest, method="top removal", directions=directions)

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Variances of the principal directions in decreasing order, and the directions as columns."""
        variances, directions = torch.linalg.eigh(self.covariance)
        variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)
        # The signs of eigenvectors are arbitrary and would differ between a stream and a batch.
        largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
        return variances, directions * largest.sign()

    def _calibration(self, transform: Tensor, **info: Any) -> LinearCalibration:
        mean = self.mean.float().cpu()
        return LinearCalibration(mean, transform.float().cpu(), info | {"vectors": self.count})

    def _add(self, moments: _Moments) -> None:
        if self._moments is not None:
            width, expected = len(moments.mean), len(self._moments.mean)
            if width != expected:
                raise ValueError(f"`vectors` must have width {expected} as before, got {width}.")
            moments = self._moments.merged(moments)
        self._moments = moments
        self.__dict__.pop("_spectrum", None)

    def _seen(self, fewest: int) -> _Moments:
        if self._moments is None or self._moments.count < fewest:
            raise ValueError(f"The fitter needs at least {fewest} vectors, got {self.count}. Call update() first.")
        return self._moments


def fit_whitening(vectors: Tensor, components: int | None = None, shrinkage: Shrinkage = "auto") -> LinearCalibration:
    """Fit a whitening to vectors; see `WhiteningFitter.whitening` for details and errors.

    Args:
        vectors: Shape (n, d), any floating-point dtype, any device.
        components: Number of directions to keep; `None` for all.
        shrinkage: `"auto"`, or a number from 0 (the paper) to 1.

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

    The Ledoit-Wolf estimate needs the fourth powers in addition to the covariance; the cubes keep them exact when
    moments around different means are merged.
    """

    count: int
    mean: Tensor  # (d,)
    scatter: Tensor  # (d, d), Σ y yᵀ
    cubes: Tensor  # (d,), Σ ‖y‖² y
    fourths: Tensor  # (), Σ ‖y‖⁴

    @classmethod
    def of(cls, vectors: Tensor) -> _Moments:
        """Moments of checked vectors."""
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
        """Moments of both sets: the update of Chan, Golub and LeVeque (1979), extended to fourth powers."""
        count = self.count + other.count
        mean = self.mean + (other.mean.to(self.mean) - self.mean) * (other.count / count)
        pairs = zip(self._around(mean), other._around(mean), strict=True)
        return _Moments(count, mean, *(left + right for left, right in pairs))

    def _around(self, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of powers of y = x − centre, on the device of `centre`."""
        scatter, cubes, fourths = (sums.to(centre) for sums in (self.scatter, self.cubes, self.fourths))
        shift = self.mean.to(centre) - centre
        projected, square, trace = scatter @ shift, shift @ shift, scatter.trace()
        return (
            scatter + self.count * torch.outer(shift, shift),
            cubes + trace * shift + 2 * projected + self.count * square * shift,
            fourths + 4 * cubes @ shift + 4 * projected @ shift + 2 * square * trace + self.count * square**2,
        )

    def ledoit_wolf(self) -> float:
        """Shrinkage with the least expected squared error (Ledoit and Wolf 2004), as in scikit-learn."""
        dim = len(self.mean)
        covariance = self.scatter / self.count
        distance = covariance.square().sum() - covariance.trace() ** 2 / dim
        error = (self.fourths / self.count - covariance.square().sum()) / self.count
        return float((error / distance).clamp(0, 1)) if distance > 0 else 1.0

    def rounding(self) -> Tensor:
        """Variance, (), below which a direction contains only rounding error of float32 vectors and of these sums."""
        variances = self.scatter.diagonal() / (self.count - 1)
        sums = len(self.mean) * torch.finfo(torch.float64).eps * torch.linalg.matrix_norm(self.scatter, ord="fro")
        entries = torch.finfo(torch.float32).eps ** 2 * (variances + self.mean.square()).max()
        return torch.maximum(sums / (self.count - 1), entries)
