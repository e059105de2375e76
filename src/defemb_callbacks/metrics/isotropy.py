"""How evenly the rows of an embedding table use their space: I(E), average cosine, effective rank, singular values.

Every function streams the table in row blocks on the table's own device, sums in float64, makes nothing of size n × n.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CLIP = 50.0  # the authors clip c·e to ±50; so e^±50 stays far inside float32, and no log-sum-exp is needed
LARGEST = 1e150  # squares of larger float64 entries would overflow; no float32 entry comes near

# Numbers in a block of rows: few enough for little memory, many enough that threads do not wait for one another.
_STREAM = 1 << 20
_MATMUL = 1 << 21


def checked(table: Tensor, name: str = "table") -> Tensor:
    """The table, detached and ready for float64, or an error that says what is wrong with it.

    Args:
        table: what should be an ``(n, d)`` tensor of real numbers.
        name: what the error calls it.

    Returns:
        The same storage without gradient; on the CPU where the device (MPS) has no float64.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not two-dimensional, empty, on the meta device, or with a NaN, infinite or overflowing entry.
    """
    if not isinstance(table, Tensor) or not table.is_floating_point():
        kind = table.dtype if isinstance(table, Tensor) else type(table).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}; dequantize or convert it first")
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"{name} must have shape (n, d) with n ≥ 1 and d ≥ 1, got {tuple(table.shape)}")
    if table.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values; load the weights first")
    table = table.detach()
    if table.device.type == "mps":
        table = table.cpu()
    low, high = (float(bound) for bound in torch.aminmax(table))
    if not (low > -LARGEST and high < LARGEST):  # put so that NaN, which is neither, gets here too
        for start, block in _starts(table, _STREAM):
            bad = ~(block.double().abs() < LARGEST).all(dim=1)
            if bad.any():
                row = start + int(bad.nonzero()[0])
                what = "a NaN or infinite entry" if not table[row].isfinite().all() else f"an entry beyond {LARGEST:g}"
                raise ValueError(f"row {row} of {name} has {what}; repair or leave out this row")
    return table


def float64_blocks(table: Tensor, elements: int = _STREAM) -> Iterator[Tensor]:
    """The rows in order, as float64 blocks of at most about ``elements`` numbers."""
    for _, block in _starts(table, elements):
        yield block.double()


def unit_rows(block: Tensor) -> Tensor:
    """Each row divided by its length, in float64; a zero row stays zero."""
    block = block.double()
    lengths = torch.linalg.vector_norm(block, dim=1, keepdim=True)
    unit: Tensor = block / lengths.where(lengths > 0, 1.0)
    return unit


class Spectrum(NamedTuple):
    """Eigenvalues (ascending, ``(d,)``) and eigenvectors (columns, ``(d, d)``) of EᵀE, in float64.

    What `isotropy` and `effective_rank` have in common: compute it once where both are wanted.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor

    @classmethod
    def of_gram(cls, gram: Tensor) -> Spectrum:
        """From EᵀE itself, for instance the sum of the Gram matrices of groups of rows."""
        eigenvalues, eigenvectors = torch.linalg.eigh(gram)
        # Below the rounding of EᵀE an eigenvalue is noise around zero, and can be negative.
        noise = gram.shape[0] * torch.finfo(gram.dtype).eps * eigenvalues[-1]
        return cls(eigenvalues.where(eigenvalues > noise, 0.0), eigenvectors)

    @classmethod
    def of_table(cls, table: Tensor) -> Spectrum:
        """From the rows, ``(n, d)``."""
        return cls.of_gram(gram_matrix(table))


def gram_matrix(table: Tensor) -> Tensor:
    """EᵀE of an ``(n, d)`` table, ``(d, d)`` in float64.

    Example:
        >>> gram_matrix(torch.tensor([[1.0, 2.0], [0.0, 3.0]])).tolist()
        [[1.0, 2.0], [2.0, 13.0]]
    """
    table = checked(table)
    dim = table.shape[1]
    gram = torch.zeros(dim, dim, dtype=torch.float64, device=table.device)
    step = max(64, -(-dim // 4))
    for block in float64_blocks(table, _MATMUL):
        for start in range(0, dim, step):  # the upper triangle in four strips: 5/8 of the full product
            gram[start : start + step, start:].addmm_(block[:, start : start + step].T, block[:, start:])
    return gram.triu() + gram.triu(1).T


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
    directions = (spectrum or Spectrum.of_table(table)).eigenvectors
    # Only the smallest and the largest Z count. Half the work: find them in float32, then evaluate in float64 the few
    # directions that float32 cannot tell apart from them.
    tolerance = _float32_tolerance(table)
    if tolerance < 0.01:
        coarse = _partition(table, directions, both_signs, torch.float32)
        near = (coarse <= coarse.min() * (1 + 2 * tolerance)) | (coarse >= coarse.max() * (1 - 2 * tolerance))
        chosen = near.any(dim=0)
        exact = _partition(table, directions[:, chosen], both_signs, torch.float64)
        # TF32, autocast or bfloat16 products would miss the assumed accuracy: then nothing found by them is used.
        if float((exact / coarse[:, chosen] - 1).abs().max()) <= tolerance:
            return float(exact.min() / exact.max())
    exact = _partition(table, directions, both_signs, torch.float64)
    return float(exact.min() / exact.max())


def average_cosine(table: Tensor) -> float:
    r"""Mean cosine over all ordered pairs of different rows; lower is more isotropic.

    .. math:: \frac{\lVert \sum_i \hat e_i \rVert^2 - m}{m (m - 1)}

    over the m rows that are not zero (Ethayarajh 2019 samples it; the sum makes it exact in O(nd)).
    In [−1/(m−1), 1]; about 0 for directions without preference, 1 for one common direction. Unchanged by row lengths.

    Args:
        table: ``(n, d)``, any floating dtype, any device.

    Raises:
        TypeError, ValueError: see `checked`; or fewer than two rows are not zero.

    Example:
        >>> round(average_cosine(torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0], [0.0, 0.0]])), 4)
        0.4714
    """
    table = checked(table)
    total = torch.zeros(table.shape[1], dtype=torch.float64, device=table.device)
    count = 0
    for block in float64_blocks(table):
        lengths = torch.linalg.vector_norm(block, dim=1)
        total += lengths.reciprocal().where(lengths > 0, 0.0) @ block
        count += int((lengths > 0).sum())
    if count < 2:
        raise ValueError(f"average_cosine needs at least 2 rows that are not zero, got {count} of {table.shape[0]}")
    return float((total @ total - count) / (count * (count - 1)))


def effective_rank(table: Tensor, *, spectrum: Spectrum | None = None) -> float:
    r"""How many directions the table really uses; higher is more isotropic.

    .. math:: \exp\Big(-\sum_i p_i \ln p_i\Big), \qquad p_i = \sigma_i / \textstyle\sum_j \sigma_j

    over the singular values σ of E (Roy and Vetterli 2007). In [1, min(n, d)]; unchanged by scale and rotation.

    Args:
        table: ``(n, d)``, any floating dtype, any device.
        spectrum: of this very table, where it is known already.

    Raises:
        TypeError, ValueError: see `checked`; or every row is zero.

    Example:
        >>> round(effective_rank(torch.eye(3)), 6)
        3.0
        >>> round(effective_rank(torch.ones(5, 3)), 6)
        1.0
    """
    table = checked(table)
    sigma = (spectrum or Spectrum.of_table(table)).eigenvalues.sqrt()
    if not sigma.any():
        raise ValueError("effective_rank needs at least 1 row that is not zero, every row is")
    return float(torch.special.entr(sigma / sigma.sum()).sum().exp())


def mean_norm(table: Tensor) -> float:
    """Mean length of the rows, zero rows included; ≥ 0, in the table's own unit, no direction is better.

    Args:
        table: ``(n, d)``, any floating dtype, any device.

    Raises:
        TypeError, ValueError: see `checked`.

    Example:
        >>> mean_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        3.0
    """
    table = checked(table)
    return math.fsum(float(torch.linalg.vector_norm(b, dim=1).sum()) for b in float64_blocks(table)) / table.shape[0]


def singular_values(table: Tensor) -> Tensor:
    """The min(n, d) singular values of an ``(n, d)`` table, largest first, float64; the flatter, the more isotropic.

    Square roots of the eigenvalues of EᵀE: values below about 1e-7 of the largest are rounding, and come out as 0.

    Raises:
        TypeError, ValueError: see `checked`.

    Example:
        >>> singular_values(torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0]])).tolist()
        [3.0, 2.0]
    """
    table = checked(table)
    return Spectrum.of_table(table).eigenvalues.sqrt().flip(0)[: min(table.shape)]


def _starts(table: Tensor, elements: int) -> Iterator[tuple[int, Tensor]]:
    rows = max(1, elements // table.shape[1])
    for start in range(0, table.shape[0], rows):
        yield start, table[start : start + rows]


def _float32_tolerance(table: Tensor) -> float:
    """The relative error of Z that float32 may make: by √d roundings of c·e for the longest row, and by exp and sum."""
    longest = float(torch.linalg.vector_norm(table, dim=1).max())  # infinite if it overflows: then float32 is not used
    return 2**-24 * (8 * math.sqrt(table.shape[1]) * longest + 64)


def _partition(table: Tensor, directions: Tensor, both_signs: bool, dtype: torch.dtype) -> Tensor:
    """Z of each column of ``directions``, and with ``both_signs`` of each negated column: ``(1 or 2, k)``, float64."""
    directions = directions.to(dtype)
    total = torch.zeros(2 if both_signs else 1, directions.shape[1], dtype=torch.float64, device=table.device)
    for _, block in _starts(table, _MATMUL):
        terms = (block.to(dtype) @ directions).clamp_(-CLIP, CLIP).exp_()
        total[0] += terms.sum(dim=0)
        if both_signs:
            total[1] += terms.reciprocal_().sum(dim=0)  # exp(−x) = 1 / exp(x): no second product, no second exp
    return total
