"""How far the rows of a table have turned from where they were."""

from __future__ import annotations

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import checked, reciprocal_or_zero, row_blocks, row_lengths


def drift(table: Tensor, reference: Tensor) -> float:
    r"""Mean over rows of 1 − cosine to the same row of the reference; lower is closer to it.

    .. math:: \frac{1}{n} \sum_i \Big(1 - \frac{e_i \cdot r_i}{\lVert e_i \rVert \lVert r_i \rVert}\Big)

    (The displacement of Hamilton, Leskovec and Jurafsky 2016, without their rotation: these are rows of one table.)
    In [0, 2]: 0 where no direction has changed, 1 where directions are unrelated. Unchanged by row lengths.
    A row that is zero on one side only has lost its direction and counts 1; a row that is zero on both is left out.

    Args:
        table: ``(n, d)``, any floating dtype, any device.
        reference: the same shape; it is moved to the table's device, block by block.

    Raises:
        TypeError, ValueError: see `checked`; or shapes differ, or every row is zero on both sides.

    Example:
        >>> drift(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        0.5
    """
    table, reference = checked_both(table, reference)
    change, counted = (float(total) for total in drift_sums(table, reference))
    if not counted:
        raise ValueError("drift needs at least 1 row that is not zero on both sides, every row is")
    return change / counted


def drift_sums(table: Tensor, reference: Tensor, ids: Tensor | None = None) -> Tensor:
    """Of checked tables, the sum of 1 − cosine over the rows ``ids`` and how many count: ``(2,)`` float64."""
    there = None if ids is None else ids.to(reference.device)
    sums = torch.zeros(2, dtype=torch.float64, device=table.device)
    for new, old in zip(row_blocks(table, ids), row_blocks(reference, there), strict=True):
        old = old.to(new.device)
        lengths, before = row_lengths(new), row_lengths(old)
        new *= reciprocal_or_zero(lengths)[:, None]
        new -= old.mul_(reciprocal_or_zero(before)[:, None])
        # ½‖ê − r̂‖² is 1 − cosine, but exactly 0 for equal rows, never negative, and exact for small changes.
        change = (new.square_().sum(dim=1) / 2).clamp(max=2)
        change = change.where((lengths > 0) == (before > 0), 1.0)  # a direction lost or found
        sums += torch.stack([change.sum(), ((lengths > 0) | (before > 0)).sum()])
    return sums


def checked_both(table: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both tables, checked, or an error if they are not of the same shape."""
    table, reference = checked(table), checked(reference, "reference")
    if table.shape != reference.shape:
        raise ValueError(
            f"table {tuple(table.shape)} and reference {tuple(reference.shape)} must have the same shape; "
            "take the reference again after the table was resized"
        )
    return table, reference
