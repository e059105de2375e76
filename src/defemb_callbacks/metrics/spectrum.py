"""The singular values and directions of an embedding table, from EᵀE, and how many of them count."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import checked, row_blocks

# Numbers in a block that is multiplied: enough that the product's threads do not wait for one another.
_PRODUCT = 1 << 21


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
        return cls.of_gram(gram_matrix(checked(table)))

    def effective_rank(self) -> float:
        """See the function of this name."""
        sigma = self.eigenvalues.sqrt()
        if not sigma.any():
            raise ValueError("effective_rank needs at least 1 row that is not zero, every row is")
        return float(torch.special.entr(sigma / sigma.sum()).sum().exp())


def gram_matrix(table: Tensor, ids: Tensor | None = None, *, mean: Tensor | None = None) -> Tensor:
    """Σ (e − mean)(e − mean)ᵀ over the rows of a `checked` table or those that ``ids`` names; EᵀE without ``mean``.

    Args:
        table: ``(n, d)``, any floating dtype, any device.
        ids: ``(m,)`` int64.
        mean: ``(d,)`` float64.

    Returns:
        ``(d, d)`` in float64.

    Example:
        >>> gram_matrix(torch.tensor([[1.0, 2.0], [0.0, 3.0]])).tolist()
        [[1.0, 2.0], [2.0, 13.0]]
    """
    dim = table.shape[1]
    gram = torch.zeros(dim, dim, dtype=torch.float64, device=table.device)
    step = max(64, -(-dim // 4))
    for block in row_blocks(table, ids, elements=_PRODUCT):
        if mean is not None:
            block -= mean
        for start in range(0, dim, step):  # the upper triangle in four strips: 5/8 of the full product
            gram[start : start + step, start:].addmm_(block[:, start : start + step].T, block[:, start:])
    return gram.triu() + gram.triu(1).T


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
    return (spectrum or Spectrum.of_table(table)).effective_rank()


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
