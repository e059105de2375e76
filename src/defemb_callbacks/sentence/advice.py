"""Whether calibration is likely to help, told from unlabelled text before anything is applied."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from defemb_callbacks.metrics import average_cosine, isoscore
from defemb_callbacks.metrics.blocks import checked, unit_rows

Verdict = Literal["helps", "unclear", "harms"]

# Where measured gains of whitening were large, and where there were losses: see `calibration_advice`.
NARROW = -2.6  # uniformity
DIRECTIONS, SHARE = 70, 0.2  # the smaller of a number of directions and a share of the width
FEWEST = 100

_REASONS: dict[Verdict, str] = {
    "helps": "they crowd in a small part of it, as those of encoders that were not trained to compare sentences. "
    "Calibration is likely to help.",
    "unclear": "they are spread, but over few directions. Calibration changes little, and may help or harm: compare "
    "both on rated pairs of your own.",
    "harms": "they are spread over many directions already, as those of encoders that were trained long to compare "
    "sentences. Calibration is likely to harm.",
}


@dataclass(frozen=True)
class CalibrationAdvice:
    """What `calibration_advice` has measured, and concludes.

    Attributes:
        uniformity: see the function of this name; from 0, all in one point, to about −4, all over the sphere.
        average_cosine: of two different texts.
        directions: among how many the centred vectors share their variance out, 1 to d: `isoscore`, as a number.
        verdict: "helps", "unclear" or "harms": what calibration is expected to do to similarities.
        reason: the same in words.
    """

    uniformity: float
    average_cosine: float
    directions: float
    verdict: Verdict
    reason: str


def calibration_advice(vectors: Tensor) -> CalibrationAdvice:
    """Whether calibration is likely to help these sentence embeddings: by how they are spread.

    Contrastive training pulls texts apart until they are uniform on the sphere (Wang and Isola 2020); what is left of
    anisotropy has a meaning then, which calibration takes away.

    The limits rest on little: English sentences of STS-B, and all-MiniLM-L6-v2, with its layers and some of them
    trained further. There, whitening to 128 gained 0.05 to 0.16 in Spearman's ρ on five poolings whose uniformity is
    above −2.6; lost 0.01 to 0.02 on two that share their variance out among 80 and 106 directions; and gained 0.00 to
    0.03 on lower layers after 75 to 200 steps of contrastive training, which are as uniform but use fewer directions.

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
    count, width = vectors.shape
    if count < FEWEST:
        raise ValueError(f"advice needs at least {FEWEST} vectors of different texts, got {count}")
    found, cosine = uniformity(vectors), average_cosine(vectors)
    directions = 1 + isoscore(vectors) * (width - 1)
    verdict: Verdict = "helps"
    if found < NARROW:
        verdict = "harms" if directions >= min(DIRECTIONS, SHARE * width) else "unclear"
    figures = (
        f"The vectors have uniformity {found:.2f} (0: all in one point, -4: the whole sphere), average cosine "
        f"{cosine:.2f}, and {directions:.0f} of {width} directions in use"
    )
    return CalibrationAdvice(found, cosine, directions, verdict, f"{figures}: {_REASONS[verdict]}")


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
