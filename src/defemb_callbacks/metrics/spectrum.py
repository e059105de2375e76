"""The spectrum of an embedding table: singular values and directions from EᵀE, and the effective rank."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import checked, row_blocks

# Numbers in a block for matrix products: enough to keep all threads busy.
PRODUCT_BLOCK = 1 << 21


class Spectrum(NamedTuple):
    """Eigenvalues and eigenvectors of EᵀE in float64.

    `isotropy` and `effective_rank` both need it: compute it once if you want both.

    Attributes:
        eigenvalues: Eigenvalues in ascending order, (d,).
        eigenvectors: Eigenvectors as columns, (d, d).
    """

    eigenvalues: Tensor
    eigenvectors: Tensor

    @classmethod
    def of_gram(cls, gram: Tensor) -> Spectrum:
        """Compute it from EᵀE, for instance from the sum of the Gram matrices of groups of rows."""
        eigenvalues, eigenvectors = torch.linalg.eigh(gram)
        # Eigenvalues below the rounding error of EᵀE are noise, and may be negative.
        noise = gram.shape[0] * torch.finfo(gram.dtype).eps * eigenvalues[-1]
        return cls(eigenvalues.where(eigenvalues > noise, 0.0), eigenvectors)

    @classmethod
    def of_table(cls, table: Tensor) -> Spectrum:
        """Compute it from a table, (n, d)."""
        return cls.of_gram(gram_matrix(checked(table)))

    def effective_rank(self) -> float:
        """See `effective_rank`."""
        sigma = self.eigenvalues.sqrt()
        if not sigma.any():
            raise ValueError(
                "effective_rank needs at least 1 row that is not zero, but all rows are zero. Load the weights first."
            )
        return float(torch.special.entr(sigma / sigma.sum()).sum().exp())


def gram_matrix(table: Tensor, ids: Tensor | None = None, *, mean: Tensor | None = None) -> Tensor:
    """Compute Σ (e − mean)(e − mean)ᵀ over the rows of a `checked` table; EᵀE without `mean`.

    Args:
        table: Table, (n, d), any floating dtype, any device.
        ids: Ids of the rows to use, (m,) int64; `None` uses all rows.
        mean: Vector to subtract from each row, (d,) float64.

    Returns:
        The matrix, (d, d) float64.

    Example:
        >>> gram_matrix(torch.tensor([[1.0, 2.0], [0.0, 3.0]])).tolist()
        [[1.0, 2.0], [2.0, 13.0]]
    """
    dim = table.shape[1]
    gram = torch.zeros(dim, dim, dtype=torch.float64, device=table.device)
    step = max(64, -(-dim // 4))
    for block in row_blocks(table, ids, elements=PRODUCT_BLOCK):
        if mean is not None:
            block -= mean
        for start in range(0, dim, step):  # the upper triangle in four strips: 5/8 of the cost of the full product
            gram[start : start + step, start:].addmm_(block[:, start : start + step].T, block[:, start:])
    return gram.triu() + gram.triu(1).T


def effective_rank(table: Tensor, *, spectrum: Spectrum | None = None) -> float:
    r"""Number of directions that the table effectively uses; higher is more isotropic.

    $$\exp\Big(-\sum_i p_i \ln p_i\Big), \qquad p_i = \sigma_i / \textstyle\sum_j \sigma_j$$

    over the singular values σ of E (Roy and Vetterli 2007). It lies in [1, min(n, d)] and does not depend on scale and
    rotation.

    Args:
        table: Table, (n, d), any floating dtype, any device.
        spectrum: The spectrum of this table, if it is already known.

    Raises:
        TypeError: If the table is not a floating-point tensor.
        ValueError: If the table is invalid (see `checked`), or all rows are zero.

    Example:
        >>> round(effective_rank(torch.eye(3)), 6)
        3.0
        >>> round(effective_rank(torch.ones(5, 3)), 6)
        1.0
    """
    table = checked(table)
    return (spectrum or Spectrum.of_table(table)).effective_rank()


def singular_values(table: Tensor) -> Tensor:
    """Return the min(n, d) singular values of a table, largest first, in float64; flatter means more isotropic.

    They are square roots of the eigenvalues of EᵀE, so values below about 1e-7 of the largest are lost in rounding and
    become 0.

    Args:
        table: Table, (n, d), any floating dtype, any device.

    Raises:
        TypeError: If the table is not a floating-point tensor.
        ValueError: If the table is invalid (see `checked`).

    Example:
        >>> singular_values(torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0]])).tolist()
        [3.0, 2.0]
    """
    table = checked(table)
    return Spectrum.of_table(table).eigenvalues.sqrt().flip(0)[: min(table.shape)]
