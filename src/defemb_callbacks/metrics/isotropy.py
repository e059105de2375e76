"""Isotropy of an embedding table: I(E) and IsoScore."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import CACHED, checked, row_blocks
from defemb_callbacks.metrics.spectrum import Spectrum, gram_matrix
from defemb_callbacks.metrics.sums import RowSums

CLIP = 50.0  # as the authors do; e^±50 is well inside the range of float32, so no log-sum-exp is needed

# Numbers in a block for matrix products: enough to keep all threads busy.
PRODUCT_BLOCK = 1 << 20
# Up to this number of directions, a first pass in float32 does not pay off.
DIRECT_LIMIT = 16


def isotropy(table: Tensor, *, both_signs: bool = True, spectrum: Spectrum | None = None) -> float:
    r"""I(E), the evenness of the partition function over directions; higher is more isotropic.

    $$I(E) = \frac{\min_c Z(c)}{\max_c Z(c)}, \qquad Z(c) = \sum_w \exp(c \cdot e_w)$$

    where c are the eigenvectors of EᵀE, E is neither centred nor scaled, and c·e is clipped to ±50 (Mu and Viswanath
    2018, in the form of Zhang, Li and Okumura, arXiv 2408.01308). It lies in (0, 1]; 1 is perfectly isotropic.

    I(E) also rises when rows get shorter: read it together with a scale-free measure such as `average_cosine`. If EᵀE
    has a repeated nonzero eigenvalue, its eigenvectors, and therefore I(E), are not unique.

    Args:
        table: Table, (n, d), any floating dtype, any device.
        both_signs: Use both c and −c, because the sign of an eigenvector is arbitrary. `False` is the authors' form
            with one sign, which depends on the signs that LAPACK happens to return.
        spectrum: The spectrum of this table, if it is already known.

    Returns:
        I(E), equal to a direct evaluation in float64.

    Raises:
        TypeError: If the table is not a floating-point tensor.
        ValueError: If the table is invalid (see `checked`).

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
    """Compute `isotropy` of the rows `ids` of a validated table from their spectrum and sums.

    Only the smallest and the largest Z matter. Bounds from the mean and the mean square of c·e exclude most directions.
    Of the remaining ones, a product in float32 finds the few that need a product in float64.
    """
    directions = spectrum.eigenvectors[:, _possible_extremes(spectrum, sums, both_signs)]
    tolerance = _float32_tolerance(sums.longest, len(directions))
    if directions.shape[1] > DIRECT_LIMIT and tolerance < 0.01:
        coarse = _partition(table, ids, directions, both_signs, torch.float32)
        near = (coarse <= coarse.min() * (1 + 2 * tolerance)) | (coarse >= coarse.max() * (1 - 2 * tolerance))
        chosen = near.any(dim=0)
        exact = _partition(table, ids, directions[:, chosen], both_signs, torch.float64)
        # TF32, autocast and bfloat16 products are less accurate than assumed. Their results are discarded.
        if float((exact / coarse[:, chosen] - 1).abs().max()) <= tolerance:
            return float(exact.min() / exact.max())
    exact = _partition(table, ids, directions, both_signs, torch.float64)
    return float(exact.min() / exact.max())


def _possible_extremes(spectrum: Spectrum, sums: RowSums, both_signs: bool) -> Tensor:
    """Return which directions can have the smallest or the largest Z, (d,) bool.

    For each direction, the products x = c·e have the mean c·Σe/n and the mean square λ/n, and lie in [−b, b], where b
    is the length of the longest row. Among all distributions with these properties, the mean of eˣ is largest if one
    value is b and all others are equal, and smallest if one value is −b (Chebyshev–Markov inequalities; Karlin and
    Studden 1966).
    """
    bound = sums.longest * (1 + 1e-6) + 1e-30  # so that rounding cannot make b − mean zero
    if bound > CLIP:
        return torch.ones_like(spectrum.eigenvalues, dtype=torch.bool)
    mean = sums.total @ spectrum.eigenvectors / sums.rows
    mean = torch.stack([mean, -mean]) if both_signs else mean[None]
    variance = spectrum.eigenvalues / sums.rows - mean.square()
    rounding = 4 * len(variance.T) * torch.finfo(variance.dtype).eps * spectrum.eigenvalues[-1] / sums.rows
    largest = _mean_exp(mean, (variance + rounding).clamp(min=0), bound)
    smallest = _mean_exp(mean, (variance - rounding).clamp(min=0), -bound)
    slack = 1 + 1e-9  # for all other rounding errors
    possible = (smallest <= largest.min() * slack) | (largest * slack >= smallest.max())
    return possible.any(dim=0)


def _mean_exp(mean: Tensor, variance: Tensor, end: Tensor) -> Tensor:
    """Return the mean of eˣ if x takes two values, one of them `end`, with the given mean and variance."""
    distance = end - mean
    share = variance / (variance + distance.square())
    return share * end.exp() + (1 - share) * (mean - variance / distance).exp()


def _float32_tolerance(longest: Tensor, dim: int) -> float:
    """Bound the relative error of Z in float32: √d roundings of c·e for the longest row, plus exp and sum."""
    return 2**-24 * (8 * math.sqrt(dim) * float(longest) + 64)


def _partition(table: Tensor, ids: Tensor | None, directions: Tensor, both_signs: bool, dtype: torch.dtype) -> Tensor:
    """Compute Z for each column of `directions`, and with `both_signs` for its negative: (1 or 2, k) float64."""
    directions = directions.to(dtype)
    elements = CACHED if directions.shape[1] <= DIRECT_LIMIT else PRODUCT_BLOCK
    total = torch.zeros(2 if both_signs else 1, directions.shape[1], dtype=torch.float64, device=table.device)
    for block in row_blocks(table, ids, dtype=dtype, elements=elements):
        terms = (block @ directions).clamp_(-CLIP, CLIP).exp_()
        total[0] += terms.sum(dim=0)
        if both_signs:
            total[1] += terms.reciprocal_().sum(dim=0)  # exp(−x) = 1 / exp(x)
    return total


# EᵀE/n − μμᵀ has rounding errors of about 1e-16 · EᵀE/n, which are negligible above this share of EᵀE/n.
RELIABLE_SHARE = 1e-5


def isoscore(table: Tensor) -> float:
    r"""IsoScore of the rows; higher is more isotropic.

    $$\frac{1}{d - 1} \Big( \frac{(\operatorname{tr} C)^2}{\lVert C \rVert_F^2} - 1 \Big)$$

    where C is the covariance matrix of the rows (Rudman, Gillman, Rayne and Eickhoff 2022, arXiv 2108.07344). The
    authors scale C's eigenvalues λ to the length √d and take their distance δ to (1, …, 1): δ² = 2d − 2√d · tr C /
    ‖C‖, where tr C = Σλ and ‖C‖² = Σλ². Their defect δ / √(2(d − √d)) and the score derived from it simplify to the
    formula above, which needs no eigenvalues. Its quotient is the number of dimensions over which the variance is
    spread, from 1 to d.

    It lies in [0, 1]: 0 if all variance lies in one direction, 1 if it is equal in all directions. It ignores the mean
    row: what all rows have in common shows in `average_cosine` and I(E). It does not depend on scale and rotation.

    Args:
        table: Table, (n, d), d ≥ 2, any floating dtype, any device.

    Raises:
        TypeError: If the table is not a floating-point tensor.
        ValueError: If the table is invalid (see `checked`), d is 1, or all rows are the same.

    Example:
        >>> round(isoscore(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 4)
        0.4706
        >>> isoscore(torch.tensor([[5.0, 5.0], [5.0, 6.0], [6.0, 5.0], [6.0, 6.0]]))
        1.0
    """
    table = checked(table)
    if table.shape[1] < 2:
        raise ValueError("isoscore needs at least 2 columns, got 1. Pass a wider table.")
    score = _score(_centred_gram(table, None))
    if score is None:
        raise ValueError("isoscore needs at least 2 different rows, all rows are the same. Load the weights first.")
    return score


def known_isoscore(table: Tensor, ids: Tensor | None, spectrum: Spectrum, sums: RowSums) -> float | None:
    """Compute `isoscore` of the rows `ids` of a validated table from their spectrum and sums; `None` if undefined."""
    if table.shape[1] < 2:
        return None
    # The covariance in the basis of the eigenvectors, where EᵀE is diagonal; IsoScore does not depend on rotation.
    squares = spectrum.eigenvalues / sums.rows
    mean = sums.total @ spectrum.eigenvectors / sums.rows
    covariance = squares.diag() - mean.outer(mean)
    # If the rows differ little from their mean, this difference is mostly rounding error: read the rows again.
    if not covariance.abs().max() > RELIABLE_SHARE * squares.max():
        covariance = _centred_gram(table, ids)
    return _score(covariance)


def _centred_gram(table: Tensor, ids: Tensor | None) -> Tensor:
    """Return n times the covariance of the rows; exactly 0 if all rows are the same."""
    first = (table[:1] if ids is None else table[ids[:1]]).double()
    sums = [block.sub_(first).sum(dim=0) for block in row_blocks(table, ids)]
    rows = len(table) if ids is None else len(ids)
    return gram_matrix(table, ids, mean=first[0] + torch.stack(sums).sum(dim=0) / rows)


def _score(covariance: Tensor) -> float | None:
    largest = covariance.abs().max()
    if largest == 0:
        return None
    covariance = covariance / largest  # so that its squares neither overflow nor underflow
    used = covariance.trace().square() / covariance.square().sum()
    return float(((used - 1) / (len(covariance) - 1)).clamp(0, 1))  # against rounding errors
