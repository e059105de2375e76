"""Predict from unlabelled sentence embeddings whether calibration will help."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from defemb_callbacks.metrics import average_cosine, isoscore
from defemb_callbacks.metrics.blocks import checked, unit_rows

Verdict = Literal["helps", "unclear", "harms"]

# Thresholds between measured gains and losses of whitening, see `calibration_advice`.
MIN_VECTORS = 100
MIN_UNIFORMITY = -2.6
MIN_DIRECTIONS, MIN_DIRECTION_SHARE = 70, 0.2  # the smaller of a number and a share of the width

_REASONS: dict[Verdict, str] = {
    "helps": "They occupy a narrow cone, as for encoders that were not trained to compare sentences. Calibration is "
    "likely to help.",
    "unclear": "They are spread out, but over few directions. The effect of calibration is small and may be positive "
    "or negative: compare both on rated pairs of your own.",
    "harms": "They are spread over many directions, as for encoders that were trained extensively to compare "
    "sentences. Calibration is likely to harm.",
}


@dataclass(frozen=True)
class CalibrationAdvice:
    """Result of `calibration_advice`.

    Attributes:
        uniformity: See `uniformity`; from 0 (all vectors in one direction) to about −4 (uniform on the sphere).
        average_cosine: Mean cosine of two different texts.
        directions: Effective number of directions of the centred vectors, from 1 to d: `isoscore` as a count.
        verdict: Expected effect of calibration on similarities: `"helps"`, `"unclear"` or `"harms"`.
        reason: The verdict in words.
    """

    uniformity: float
    average_cosine: float
    directions: float
    verdict: Verdict
    reason: str


def calibration_advice(vectors: Tensor) -> CalibrationAdvice:
    """Predict from the distribution of sentence embeddings whether calibration will help.

    Contrastive training pushes texts apart until they are uniform on the sphere (Wang and Isola 2020). The remaining
    anisotropy is then meaningful, and calibration removes it.

    The thresholds rest on limited evidence: English sentences of STS-B, and all-MiniLM-L6-v2 with its layers, some of
    them trained further. There, whitening to 128 components improved Spearman's ρ by 0.05 to 0.16 for five poolings
    with a uniformity above −2.6. It reduced ρ by 0.01 to 0.02 for two poolings with 80 and 106 effective directions.
    For lower layers after 75 to 200 steps of contrastive training, which are equally uniform but use fewer directions,
    ρ changed by 0.00 to +0.03.

    Args:
        vectors: Shape (n, d); embeddings of about 1,000 different texts like those that will be compared.

    Raises:
        TypeError: If `vectors` is not a floating-point tensor.
        ValueError: If `vectors` has another shape, fewer than 100 rows, or NaN or infinite entries.

    Example:
        >>> import torch
        >>> vectors = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
        >>> calibration_advice(vectors).verdict, calibration_advice(vectors + 1).verdict
        ('harms', 'helps')
    """
    vectors = checked(vectors, "vectors")
    count, width = vectors.shape
    if count < MIN_VECTORS:
        raise ValueError(f"`vectors` must have at least {MIN_VECTORS} rows, got {count}. Encode more texts.")
    measured, cosine = uniformity(vectors), average_cosine(vectors)
    directions = 1 + isoscore(vectors) * (width - 1)
    verdict: Verdict = "helps"
    if measured < MIN_UNIFORMITY:
        verdict = "harms" if directions >= min(MIN_DIRECTIONS, MIN_DIRECTION_SHARE * width) else "unclear"
    measurements = (
        f"The sentence embeddings have uniformity {measured:.2f} (0: one direction, -4: uniform on the sphere), "
        f"average cosine {cosine:.2f} and {directions:.0f} of {width} effective directions."
    )
    return CalibrationAdvice(measured, cosine, directions, verdict, f"{measurements} {_REASONS[verdict]}")


def uniformity(vectors: Tensor) -> float:
    r"""How uniformly the directions of vectors cover the sphere; lower is more uniform.

    $$\ln \frac{2}{n (n - 1)} \sum_{i < j} e^{-2 \lVert \hat u_i - \hat u_j \rVert^2}$$

    (Wang and Isola 2020, arXiv 2005.10242, with t = 2.) At most 0, which is reached if all directions are equal; about
    −4 + 8 / d for n ≫ d isotropic directions. Invariant to lengths and rotation, but not to translation. Takes O(n²d)
    time: pass a sample.

    Args:
        vectors: Shape (n, d), any floating-point dtype, any device; a zero vector has distance 1 to all others.

    Raises:
        TypeError: If `vectors` is not a floating-point tensor.
        ValueError: If `vectors` has another shape, fewer than two rows, or NaN or infinite entries.

    Example:
        >>> import torch
        >>> round(uniformity(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])), 4)
        -4.3963
    """
    vectors = checked(vectors, "vectors")
    count = len(vectors)
    if count < 2:
        raise ValueError(f"`vectors` must have at least 2 rows, got {count}.")
    directions = unit_rows(vectors)
    squares = directions.square().sum(dim=1)
    total = 0.0
    for rows, lengths in zip(directions.split(1024), squares.split(1024), strict=True):
        distances = lengths[:, None] + squares - 2 * rows @ directions.T
        total += float((-2 * distances).exp().sum())
    diagonal = count  # e⁰ for each vector with itself
    return math.log((total - diagonal) / (count * (count - 1)))
