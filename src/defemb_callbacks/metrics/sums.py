"""Row norms and mean direction from sums over rows, so that the sums of all rows are those of the groups together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import checked, reciprocal_or_zero, row_blocks, row_lengths


class RowSums(NamedTuple):
    """Sums over a set of rows e, in float64 on the device of the table; ê is the normalized row.

    Attributes:
        rows: Number of rows.
        directions: Number of nonzero rows, () int64.
        length: Sum of ‖e‖, ().
        longest: Largest ‖e‖, ().
        total: Σ e, (d,).
        unit_total: Σ ê over the nonzero rows, (d,).
    """

    rows: int
    directions: Tensor
    length: Tensor
    longest: Tensor
    total: Tensor
    unit_total: Tensor

    @classmethod
    def of(cls, table: Tensor, ids: Tensor | None = None) -> RowSums:
        """Sum all rows of a validated table, or those in `ids`, in one pass."""
        parts = []
        for block in row_blocks(table, ids):
            lengths = row_lengths(block)
            unit_total = reciprocal_or_zero(lengths) @ block
            directions = lengths.count_nonzero()
            parts.append(cls(len(block), directions, lengths.sum(), lengths.max(), block.sum(dim=0), unit_total))
        return cls.combined(parts)

    @classmethod
    def combined(cls, parts: Sequence[RowSums]) -> RowSums:
        """Combine the sums of disjoint sets of rows."""
        rows, directions, lengths, longest, totals, unit_totals = zip(*parts, strict=True)
        return cls(
            sum(rows),
            torch.stack(directions).sum(),
            torch.stack(lengths).sum(),
            torch.stack(longest).amax(),
            torch.stack(totals).sum(dim=0),
            torch.stack(unit_totals).sum(dim=0),
        )

    def average_cosine(self) -> float:
        """See `average_cosine`."""
        count = int(self.directions)
        if count < 2:
            raise ValueError(
                f"average_cosine needs at least 2 rows that are not zero, got {count} of {self.rows}. "
                "Load the weights first."
            )
        mean = (self.unit_total @ self.unit_total - count) / (count * (count - 1))
        return float(mean.clamp(-1 / (count - 1), 1))  # against rounding errors

    def mean_norm(self) -> float:
        """See `mean_norm`."""
        return float(self.length) / self.rows


def average_cosine(table: Tensor) -> float:
    r"""Mean cosine over all ordered pairs of different rows; values near 0 are more isotropic.

    $$\frac{\lVert \sum_i \hat e_i \rVert^2 - m}{m (m - 1)}$$

    over the m nonzero rows. Ethayarajh (2019) estimates it from a sample; the sum is exact in O(nd). It lies in
    [−1/(m−1), 1]: about 0 if no direction is preferred, 1 if all rows have the same direction. It does not depend on
    row lengths.

    Args:
        table: Table, (n, d), any floating dtype, any device.

    Raises:
        TypeError: If the table is not a floating-point tensor.
        ValueError: If the table is invalid (see `checked`), or fewer than two rows are nonzero.

    Example:
        >>> round(average_cosine(torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0], [0.0, 0.0]])), 4)
        0.4714
    """
    return RowSums.of(checked(table)).average_cosine()


def mean_norm(table: Tensor) -> float:
    r"""Mean Euclidean norm of the rows, including zero rows; neither direction is better.

    $$\frac{1}{n} \sum_i \lVert e_i \rVert$$

    Args:
        table: Table, (n, d), any floating dtype, any device.

    Raises:
        TypeError: If the table is not a floating-point tensor.
        ValueError: If the table is invalid (see `checked`).

    Example:
        >>> mean_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        3.0
    """
    return RowSums.of(checked(table)).mean_norm()
