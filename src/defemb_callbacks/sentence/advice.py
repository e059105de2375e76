"""Whether calibration is likely to help, told from unlabelled text before anything is applied."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from defemb_callbacks.metrics import average_cosine, isoscore
from defemb_callbacks.metrics.blocks import checked, unit_rows

Verdict = Literal["helps", "unclear", "harms"]

# Uniformity from which on upwards calibration is expected to help, and downwards to harm.
HELPS, HARMS = -2.5, -3.1
FEWEST = 100

_REASONS: dict[Verdict, str] = {
    "helps": "the vectors crowd in a narrow cone, as those of encoders do that were not trained contrastively. "
    "Calibration is likely to help.",
    "unclear": "the vectors are spread more than those of plain encoders, less than those of contrastively trained "
    "ones. Calibration may help or harm: compare both on labelled pairs of your own.",
    "harms": "the vectors are spread over the whole sphere already, as those of contrastively trained encoders are. "
    "Calibration is likely to harm.",
}


@dataclass(frozen=True)
class CalibrationAdvice:
    """What `calibration_advice` has measured, and concludes.

    Attributes:
        uniformity: see the function of this name; from 0, all in one point, to about −4, all over the sphere.
        average_cosine: of two different texts.
        isoscore: in [0, 1], how evenly the centred vectors use all directions.
        verdict: "helps", "unclear" or "harms": what calibration is expected to do to similarities.
        reason: the same in words.
    """

    uniformity: float
    average_cosine: float
    isoscore: float
    verdict: Verdict
    reason: str


def calibration_advice(vectors: Tensor) -> CalibrationAdvice:
    """Whether calibration is likely to help these sentence embeddings: by how uniformly they fill the sphere.

    Contrastive training pulls texts apart until they are uniform on the sphere (Wang and Isola 2020); what is left of
    anisotropy then has a meaning, which calibration would take away.

    The limits rest on little: all-MiniLM-L6-v2, English sentences, STS-B as the only judge.

    Args:
        vectors: (n, d), embeddings of different texts of the kind that will be compared, about 1,000 of them.

    Raises:
        TypeError, ValueError: not such a tensor, NaN or infinity, or fewer than 100 vectors.

    Example:
        >>> import torch
        >>> vectors = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
        >>> calibration_advice(vectors).verdict, calibration_advice(vectors + 1).verdict
        ('harms', 'helps')
    """
    vectors = checked(vectors, "vectors")
    if len(vectors) < FEWEST:
        raise ValueError(f"advice needs at least {FEWEST} vectors of different texts, got {len(vectors)}")
    found, cosine, score = uniformity(vectors), average_cosine(vectors), isoscore(vectors)
    verdict: Verdict = "helps" if found >= HELPS else "harms" if found <= HARMS else "unclear"
    figures = f"Uniformity {found:.2f} (0: one point, -4: the whole sphere), average cosine {cosine:.2f}"
    return CalibrationAdvice(found, cosine, score, verdict, f"{figures}: {_REASONS[verdict]}")


def uniformity(vectors: Tensor) -> float:
    r"""How uniformly directions fill the sphere; lower is more uniform.

    .. math:: \ln \frac{2}{n (n - 1)} \sum_{i < j} e^{-2 \lVert \hat u_i - \hat u_j \rVert^2}

    (Wang and Isola 2020, arXiv 2005.10242, t = 2). At most 0, where all directions are the same; about −4 + 8 / d for
    n ≫ d directions without preference. Unchanged by lengths and rotation, not by a shift. Takes O(n²d): give a sample.

    Args:
        vectors: (n, d), any floating dtype, any device; a zero vector has distance 1 to all others.

    Raises:
        TypeError, ValueError: not such a tensor, NaN or infinity, or fewer than two vectors.

    Example:
        >>> import torch
        >>> round(uniformity(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])), 4)
        -4.3963
    """
    vectors = checked(vectors, "vectors")
    count = len(vectors)
    if count < 2:
        raise ValueError(f"uniformity needs at least 2 vectors, got {count}")
    directions = unit_rows(vectors)
    squares = directions.square().sum(dim=1)
    total = 0.0
    for rows, lengths in zip(directions.split(1024), squares.split(1024), strict=True):
        distances = lengths[:, None] + squares - 2 * rows @ directions.T
        total += float((-2 * distances).exp().sum())
    same = count  # each vector with itself: e⁰
    return math.log((total - same) / (count * (count - 1)))
