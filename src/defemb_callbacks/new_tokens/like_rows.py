"""Rows that are like other rows of the table: copies, and weighted means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


def like_rows(table: Tensor, like: Sequence[Sequence[tuple[int, float]]], centre: Tensor) -> Tensor:
    """Return the weighted means of other rows, in direction and in length, (n, d); zeros for an empty list.

    The mean of one row is the row itself.

    Args:
        table: (vocabulary, d) floating-point.
        like: n lists of token ids with their weights, which sum to 1.
        centre: (d,) mean of the table.

    Example:
        >>> like_rows(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), [[(1, 1.0)], [], [(0, 0.5), (1, 0.5)]], torch.zeros(2))
        tensor([[0.0000, 4.0000],
                [0.0000, 0.0000],
                [2.1213, 2.1213]])
    """
    rows = torch.zeros(len(like), table.shape[1], dtype=table.dtype)
    for position, found in enumerate(like):
        if len(found) == 1:
            rows[position] = table[found[0][0]]
        elif found:
            weights = torch.tensor([weight for _, weight in found], dtype=table.dtype)
            deviations = table[[index for index, _ in found]] - centre
            length = weights @ deviations.norm(dim=1)
            rows[position] = centre + length * normalize(weights @ normalize(deviations, dim=1), dim=0)
    return rows
