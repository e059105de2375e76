"""Drift: how far the rows of a table have turned since an earlier time."""

from __future__ import annotations

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import LAUNCHED, checked, reciprocal_or_zero, row_blocks, row_lengths


def drift(table: Tensor, reference: Tensor) -> float:
    r"""Mean over rows of 1 − cosine to the same row of a reference; lower means closer to the reference.

    $$\frac{1}{n} \sum_i \Big(1 - \frac{e_i \cdot r_i}{\lVert e_i \rVert \lVert r_i \rVert}\Big)$$

    This is the displacement of Hamilton, Leskovec and Jurafsky (2016) without their rotation, since both are states of
    one table. It lies in [0, 2]: 0 if no direction has changed, 1 if the directions are unrelated. It does not depend
    on row lengths. A row that is zero in only one of the tables counts as 1; a row that is zero in both is left out.

    Args:
        table: Table, (n, d), any floating dtype, any device.
        reference: Table of the same shape; it is moved to the device of `table` block by block.

    Raises:
        TypeError: If a table is not a floating-point tensor.
        ValueError: If the tables have different shapes or non-finite entries, or all rows are zero in both.

    Example:
        >>> drift(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        0.5
    """
    table, reference = checked_both(table, reference)
    change, counted = (float(total) for total in drift_sums(table, reference))
    if not counted:
        raise ValueError(
            "drift needs at least 1 row that is not zero in both tables, but all are. Load the weights first."
        )
    return change / counted


def drift_sums(table: Tensor, reference: Tensor, ids: Tensor | None = None) -> Tensor:
    """Return the sum of 1 − cosine over the rows `ids` of validated tables and the number of rows: (2,) float64."""
    reference_ids = None if ids is None else ids.to(reference.device)
    sums = torch.zeros(2, dtype=torch.float64, device=table.device)
    for new, old in zip(row_blocks(table, ids), row_blocks(reference, reference_ids), strict=True):
        old = old.to(new.device)
        lengths, before = row_lengths(new), row_lengths(old)
        new *= reciprocal_or_zero(lengths)[:, None]
        new -= old.mul_(reciprocal_or_zero(before)[:, None])
        # ½‖ê − r̂‖² is 1 − cosine, but exactly 0 for equal rows, never negative, and exact for small changes.
        change = (new.square_().sum(dim=1) / 2).clamp(max=2)
        change = change.where((lengths > 0) == (before > 0), 1.0)  # zero in one of the tables only
        sums += torch.stack([change.sum(), ((lengths > 0) | (before > 0)).sum()])
    return sums


def equal_tables(table: Tensor, reference: Tensor) -> bool:
    """Return whether two validated tables of the same shape have equal entries, also on different devices."""
    rows = max(1, LAUNCHED // table.shape[1])
    blocks = zip(table.split(rows), reference.split(rows), strict=True)
    return all(torch.equal(new, old.to(new.device)) for new, old in blocks)


def checked_both(table: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Validate both tables and that they have the same shape."""
    table, reference = checked(table), checked(reference, "reference")
    if table.shape != reference.shape:
        raise ValueError(
            f"table {tuple(table.shape)} and reference {tuple(reference.shape)} must have the same shape. "
            "Take the reference again after resizing the table."
        )
    return table, reference
