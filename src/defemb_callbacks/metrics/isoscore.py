"""IsoScore: how evenly the variance of an embedding table spreads over all directions."""

from __future__ import annotations

import torch
from torch import Tensor

from defemb_callbacks.metrics.isotropy import checked, float64_blocks


def isoscore(table: Tensor) -> float:
    r"""IsoScore of the rows; higher is more isotropic.

    .. math:: \frac{1}{d - 1} \Big( \frac{(\operatorname{tr} C)^2}{\lVert C \rVert_F^2} - 1 \Big)

    with C the covariance matrix of the rows (Rudman, Gillman, Rayne and Eickhoff 2022, arXiv 2108.07344). They rescale
    C's eigenvalues λ to length √d and take their distance δ to (1, …, 1), so that
    δ² = 2d − 2√d · tr C / ‖C‖ with tr C = Σλ and ‖C‖² = Σλ². Put into their defect and score, that leaves the formula
    above: no eigenvalue need be known. The quotient tr²/‖C‖² is the number of directions among which the variance is
    shared out (the participation ratio), from 1 to d.

    In [0, 1]: 0 where all variance lies in one direction, 1 where it is the same in each. The mean row does not count:
    what all rows have in common is seen by `average_cosine` and I(E). Unchanged by scale and rotation.

    Args:
        table: ``(n, d)``, d ≥ 2, any floating dtype, any device.

    Raises:
        TypeError, ValueError: see `checked`; or d is 1, or all rows are the same, as a single one always is.

    Example:
        >>> round(isoscore(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 4)
        0.4706
        >>> isoscore(torch.tensor([[5.0, 5.0], [5.0, 6.0], [6.0, 5.0], [6.0, 6.0]]))
        1.0
    """
    table = checked(table)
    return isoscore_of_covariance(centred_gram(table))


def centred_gram(table: Tensor) -> Tensor:
    """Σ (e − μ)(e − μ)ᵀ over the rows, ``(d, d)`` in float64, in two passes: exactly 0 where all rows are the same."""
    first = table[0].double()
    total = torch.zeros_like(first)
    for block in float64_blocks(table):
        total += (block - first).sum(dim=0)
    mean = first + total / len(table)
    gram = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=table.device)
    for block in float64_blocks(table):
        offsets = block - mean
        gram.addmm_(offsets.T, offsets)
    return gram


def isoscore_of_covariance(covariance: Tensor) -> float:
    """`isoscore` of rows with this covariance matrix ``(d, d)``, or any multiple of it."""
    dim = len(covariance)
    if dim < 2:
        raise ValueError("isoscore needs at least 2 columns, got 1")
    largest = covariance.abs().max()
    if largest == 0:
        raise ValueError("isoscore needs at least 2 different rows, all rows are the same")
    covariance = covariance / largest  # its squares cannot overflow or vanish
    used = covariance.trace().square() / covariance.square().sum()
    return float((used - 1).clamp(min=0) / (dim - 1))
