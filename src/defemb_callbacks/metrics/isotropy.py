"""Isotropy of an embedding table: I(E) and IsoScore."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import CACHED, checked, row_blocks
from defemb_callbacks.metrics.spectrum import Spectrum, gram_matrix
from defemb_callbacks.metrics.sums import RowSums

CLIP = 50.0  # the authors clip c·e to ±50; so e^±50 stays far inside float32, and no log-sum-exp is needed

# Numbers in a block that is multiplied: enough that the product's threads do not wait for one another.
_PRODUCT = 1 << 20
_FEW = 16  # directions that are not worth a coarse look first


def isotropy(table: Tensor, *, both_signs: bool = True, spectrum: Spectrum | None = None) -> float:
    r"""I(E), the evenness of the partition function over directions; higher is more isotropic.

    .. math:: I(E) = \frac{\min_c Z(c)}{\max_c Z(c)}, \qquad Z(c) = \sum_w \exp(c \cdot e_w)

    with c over the eigenvectors of EᵀE, E neither centred nor scaled, c·e clipped to ±50 (Mu and Viswanath 2018;
    the form of Zhang, Li and Okumura, arXiv 2408.01308). In (0, 1]; 1 is perfectly isotropic. I(E) rises by itself when
    rows get shorter: read it beside a scale-free measure such as `average_cosine`. Where EᵀE has a repeated non-zero
    eigenvalue its eigenvectors, and with them I(E), are not unique.

    Args:
        table: ``(n, d)``, any floating dtype, any device.
        both_signs: take c and −c, since an eigenvector's sign is arbitrary. ``False`` is the authors' one-sign form,
            which depends on the signs that LAPACK happens to return.
        spectrum: of this very table, where it is known already.

    Returns:
        I(E), equal to a direct float64 evaluation.

    Raises:
        TypeError, ValueError: see `checked`.

    Example:
        >>> cross = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(isotropy(cross), 4)
        0.534
        >>> round(isotropy(cross + torch.tensor([3.0, 0.0])), 4)
        0.0025
    """
    table = checked(table)
    return isotropy_of_rows(table, None, spectrum or Spectrum.of_table(table), RowSums.of(table), both_signs)


def isotropy_of_rows(
    table: Tensor, ids: Tensor | None, spectrum: Spectrum, sums: RowSums, both_signs: bool = True
) -> float:
    """`isotropy` of the rows ``ids`` of a checked table, whose spectrum and sums are known.

    Only the smallest and the largest Z count. Most directions can have neither, which their mean and mean square tell;
    of the others, a product in float32 finds the few that are worth one in float64.
    """
    directions = spectrum.eigenvectors[:, _possible_extremes(spectrum, sums, both_signs)]
    tolerance = _float32_tolerance(sums.longest, len(directions))
    if directions.shape[1] > _FEW and tolerance < 0.01:
        coarse = _partition(table, ids, directions, both_signs, torch.float32)
        near = (coarse <= coarse.min() * (1 + 2 * tolerance)) | (coarse >= coarse.max() * (1 - 2 * tolerance))
        chosen = near.any(dim=0)
        exact = _partition(table, ids, directions[:, chosen], both_signs, torch.float64)
        # TF32, autocast or bfloat16 products would miss the assumed accuracy: then nothing found by them is used.
        if float((exact / coarse[:, chosen] - 1).abs().max()) <= tolerance:
            return float(exact.min() / exact.max())
    exact = _partition(table, ids, directions, both_signs, torch.float64)
    return float(exact.min() / exact.max())


def _possible_extremes(spectrum: Spectrum, sums: RowSums, both_signs: bool) -> Tensor:
    """Which directions can have the smallest or the largest Z, ``(d,)`` bool.

    The products x = c·e of a direction have the mean c·Σe/n, the mean square λ/n, and lie in [−b, b] with b the length
    of the longest row. Among all distributions of which this is true, the mean of eˣ is largest where one value is b
    and all the others are equal, and smallest where one is −b (the inequalities of Chebyshev and Markov; Karlin and
    Studden 1966).
    """
    bound = sums.longest * (1 + 1e-6) + 1e-30  # so that no rounding makes b − mean zero
    if bound > CLIP:
        return torch.ones_like(spectrum.eigenvalues, dtype=torch.bool)
    mean = sums.total @ spectrum.eigenvectors / sums.rows
    mean = torch.stack([mean, -mean]) if both_signs else mean[None]
    variance = spectrum.eigenvalues / sums.rows - mean.square()
    rounding = 4 * len(variance.T) * torch.finfo(variance.dtype).eps * spectrum.eigenvalues[-1] / sums.rows
    largest = _mean_exp(mean, (variance + rounding).clamp(min=0), bound)
    smallest = _mean_exp(mean, (variance - rounding).clamp(min=0), -bound)
    slack = 1 + 1e-9  # for the rounding of all else
    possible = (smallest <= largest.min() * slack) | (largest * slack >= smallest.max())
    return possible.any(dim=0)


def _mean_exp(mean: Tensor, variance: Tensor, end: Tensor) -> Tensor:
    """The mean of eˣ where x takes two values, one of them ``end``, with this mean and variance."""
    distance = end - mean
    share = variance / (variance + distance.square())
    return share * end.exp() + (1 - share) * (mean - variance / distance).exp()


def _float32_tolerance(longest: Tensor, dim: int) -> float:
    """The relative error of Z that float32 may make: by √d roundings of c·e for the longest row, and by exp and sum."""
    return 2**-24 * (8 * math.sqrt(dim) * float(longest) + 64)


def _partition(table: Tensor, ids: Tensor | None, directions: Tensor, both_signs: bool, dtype: torch.dtype) -> Tensor:
    """Z of each column of ``directions``, and with ``both_signs`` of each negated column: ``(1 or 2, k)``, float64."""
    directions = directions.to(dtype)
    elements = CACHED if directions.shape[1] <= _FEW else _PRODUCT
    total = torch.zeros(2 if both_signs else 1, directions.shape[1], dtype=torch.float64, device=table.device)
    for block in row_blocks(table, ids, dtype=dtype, elements=elements):
        terms = (block @ directions).clamp_(-CLIP, CLIP).exp_()
        total[0] += terms.sum(dim=0)
        if both_signs:
            total[1] += terms.reciprocal_().sum(dim=0)  # exp(−x) = 1 / exp(x): no second product, no second exp
    return total


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
