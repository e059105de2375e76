"""Lengths and mean direction: sums over rows, so that those of all rows are the total of those of the groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import checked, reciprocal_or_zero, row_blocks, row_lengths


class RowSums(NamedTuple):
    """Sums over a set of rows e, in float64 on the table's device; ê is e divided by its length.

    Attributes:
        rows: how many.
        directions: ``()`` int64, how many of them are not zero.
        length: ``()``, Σ ‖e‖.
        longest: ``()``, max ‖e‖.
        total: ``(d,)``, Σ e.
        unit_total: ``(d,)``, Σ ê over the rows that are not zero.
    """

    rows: int
    directions: Tensor
    length: Tensor
    longest: Tensor
    total: Tensor
    unit_total: Tensor

    @classmethod
    def of(cls, table: Tensor, ids: Tensor | None = None) -> RowSums:
        """Of all rows of a checked table, or of those that ``ids`` names, in one pass."""
        parts = []
        for block in row_blocks(table, ids):
            lengths = row_lengths(block)
            unit_total = reciprocal_or_zero(lengths) @ block
            directions = lengths.count_nonzero()
            parts.append(cls(len(block), directions, lengths.sum(), lengths.max(), block.sum(dim=0), unit_total))
        return cls.combined(parts)

    @classmethod
    def combined(cls, parts: Sequence[RowSums]) -> RowSums:
        """Of the union of disjoint sets of rows."""
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
        """See the function of this name."""
        count = int(self.directions)
        if count < 2:
            raise ValueError(f"average_cosine needs at least 2 rows that are not zero, got {count} of {self.rows}")
        mean = (self.unit_total @ self.unit_total - count) / (count * (count - 1))
        return float(mean.clamp(-1 / (count - 1), 1))  # rounding must not carry it out of its range

    def mean_norm(self) -> float:
        """See the function of this name."""
        return float(self.length) / self.rows


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
    return RowSums.of(checked(table)).average_cosine()


def mean_norm(table: Tensor) -> float:
    r"""Mean length of the rows, zero rows included; ≥ 0, in the table's own unit, no direction is better.

    .. math:: \frac{1}{n} \sum_i \lVert e_i \rVert

    Args:
        table: ``(n, d)``, any floating dtype, any device.

    Raises:
        TypeError, ValueError: see `checked`.

    Example:
        >>> mean_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        3.0
    """
    return RowSums.of(checked(table)).mean_norm()
