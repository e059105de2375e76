"""IsoScore: how evenly the variance of an embedding table spreads over all directions."""

from __future__ import annotations

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import checked, row_blocks
from defemb_callbacks.metrics.spectrum import Spectrum, gram_matrix
from defemb_callbacks.metrics.sums import RowSums

# EᵀE/n − μμᵀ has rounding errors of about 1e-16 of EᵀE/n: above this share of it they do not count.
_EXACT = 1e-5


def isoscore(table: Tensor) -> float:
    r"""IsoScore of the rows; higher is more isotropic.

    .. math:: \frac{1}{d - 1} \Big( \frac{(\operatorname{tr} C)^2}{\lVert C \rVert_F^2} - 1 \Big)

    with C the covariance matrix of the rows (Rudman, Gillman, Rayne and Eickhoff 2022, arXiv 2108.07344). They stretch
    C's eigenvalues λ to the length √d and take their distance δ to (1, …, 1): δ² = 2d − 2√d · tr C / ‖C‖, for tr C = Σλ
    and ‖C‖² = Σλ². Their defect δ / √(2(d − √d)) and what they make of it come down to the formula above, so that no
    eigenvalue need be known. Its quotient is the number of directions among which the variance is shared out, 1 to d.

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
    if table.shape[1] < 2:
        raise ValueError("isoscore needs at least 2 columns, got 1")
    score = _score(_centred_gram(table, None))
    if score is None:
        raise ValueError("isoscore needs at least 2 different rows, all rows are the same")
    return score


def known_isoscore(table: Tensor, ids: Tensor | None, spectrum: Spectrum, sums: RowSums) -> float | None:
    """`isoscore` of the rows ``ids`` of a checked table from what is known of them; `None` where it has none."""
    if table.shape[1] < 2:
        return None
    # The covariance in the eigenvectors' own axes, where EᵀE is diagonal; a rotation changes no IsoScore.
    squares = spectrum.eigenvalues / sums.rows
    mean = sums.total @ spectrum.eigenvectors / sums.rows
    covariance = squares.diag() - mean.outer(mean)
    # Where rows differ by little from their mean, the difference would be rounding: then the rows are read again.
    if not covariance.abs().max() > _EXACT * squares.max():
        covariance = _centred_gram(table, ids)
    return _score(covariance)


def _centred_gram(table: Tensor, ids: Tensor | None) -> Tensor:
    """n times the covariance of the rows; exactly 0 where all of them are the same."""
    first = (table[:1] if ids is None else table[ids[:1]]).double()
    sums = [block.sub_(first).sum(dim=0) for block in row_blocks(table, ids)]
    rows = len(table) if ids is None else len(ids)
    return gram_matrix(table, ids, mean=first[0] + torch.stack(sums).sum(dim=0) / rows)


def _score(covariance: Tensor) -> float | None:
    largest = covariance.abs().max()
    if largest == 0:
        return None
    covariance = covariance / largest  # its squares neither overflow nor vanish
    used = covariance.trace().square() / covariance.square().sum()
    return float(((used - 1) / (len(covariance) - 1)).clamp(0, 1))  # rounding must not carry it out of its range
