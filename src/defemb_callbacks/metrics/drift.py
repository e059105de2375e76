"""How far a table has moved from a reference: in direction, and in who is whose neighbour."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from defemb_callbacks.metrics.isotropy import checked, unit_rows

_STREAM = 1 << 20
_SIMILARITIES = 1 << 23


def drift(table: Tensor, reference: Tensor) -> float:
    r"""Mean over rows of 1 − cosine to the same row of the reference; lower is closer to it.

    .. math:: \frac{1}{n} \sum_i \Big(1 - \frac{e_i \cdot r_i}{\lVert e_i \rVert \lVert r_i \rVert}\Big)

    In [0, 2]: 0 where no direction has changed, 1 where directions are unrelated. Unchanged by row lengths.
    A row that is zero on one side only has lost its direction and counts 1; a row that is zero on both is left out.

    Args:
        table: ``(n, d)``, any floating dtype, any device.
        reference: the same shape; it is moved to the table's device, block by block.

    Raises:
        TypeError, ValueError: see `isotropy.checked`; or shapes differ, or every row is zero on both sides.

    Example:
        >>> drift(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        0.5
    """
    table, reference = _checked_both(table, reference)
    rows = max(1, _STREAM // table.shape[1])
    changes, counted = [], 0
    for block, before in zip(table.split(rows), reference.split(rows), strict=True):
        new, old = unit_rows(block), unit_rows(before.to(table.device))
        empty = torch.stack([~new.any(dim=1), ~old.any(dim=1)])
        # ½‖û − v̂‖² is 1 − cosine, but exactly 0 for equal rows, never negative, and exact for small changes.
        change = (new - old).square().sum(dim=1) / 2
        change = change.where(~empty.any(dim=0), 1.0)
        changes.append(float(change[~empty.all(dim=0)].sum()))
        counted += int((~empty.all(dim=0)).sum())
    if not counted:
        raise ValueError("drift needs at least 1 row that is not zero on both sides, every row is")
    return math.fsum(changes) / counted


def neighbour_overlap(
    table: Tensor,
    reference: Tensor,
    *,
    k: int = 10,
    sample: int | None = 1000,
    seed: int = 0,
) -> float:
    """Mean share of a row's k nearest rows (cosine, itself excluded) that are the same in the reference.

    In [0, 1]; higher is closer to the reference, 1 where every neighbourhood is the same, about k/n by chance.
    Unchanged by row lengths and by a rotation of either table. Among rows of equal cosine the choice is arbitrary.

    With more than ``sample`` rows only a seeded random sample of them is asked, always among all rows. The standard
    error is the spread of the rows' shares over √sample: at most 0.5/√1000 = 0.016 at the default. One seed asks the
    same rows at every call, so the change between two calls is surer than that.

    Args:
        table: ``(n, d)``, n > k, any floating dtype, any device.
        reference: the same shape.
        k: how many neighbours.
        sample: how many rows are asked at most; ``None`` asks all, at a cost of n².
        seed: of the sample.

    Raises:
        TypeError, ValueError: see `isotropy.checked`; or shapes differ, k is not in [1, n − 1], or sample is below 1.

    Example:
        >>> table = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> neighbour_overlap(table, 3 * table, k=1)
        1.0
        >>> neighbour_overlap(table, table[[0, 2, 1, 3]], k=1)
        0.0
    """
    table, reference = _checked_both(table, reference)
    queries = sample_rows(torch.arange(len(table)), sample, seed=seed)
    return float(overlap_of_rows(table, reference, queries, k=k).mean())


def sample_rows(ids: Tensor, size: int | None, *, seed: int = 0) -> Tensor:
    """``ids`` themselves, or if they are more than ``size``, a seeded random sample of them in their order.

    Raises:
        ValueError: ``size`` is below 1.

    Example:
        >>> len(sample_rows(torch.arange(100), 7))
        7
    """
    if size is None:
        return ids
    if size < 1:
        raise ValueError(f"sample must be at least 1, got {size}; None asks every row")
    if len(ids) <= size:
        return ids
    # Drawn on the CPU: its generator gives the same rows whatever device the table is on.
    chosen = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))[:size].sort().values
    return ids[chosen.to(ids.device)]


def overlap_of_rows(table: Tensor, reference: Tensor, queries: Tensor, *, k: int = 10) -> Tensor:
    """`neighbour_overlap` row by row: the share for each of the rows ``queries`` ``(q,)``, sought among all rows.

    Raises:
        TypeError, ValueError: as `neighbour_overlap`.

    Example:
        >>> table = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> overlap_of_rows(table, table, torch.tensor([0, 2]), k=1).tolist()
        [1.0, 1.0]
    """
    table, reference = _checked_both(table, reference)
    if not 1 <= k < len(table):
        raise ValueError(f"k must be between 1 and the number of other rows, {len(table) - 1}, got {k}")
    now = _neighbours(table, queries, k)
    before = _neighbours(reference, queries, k).to(now.device)
    return (now[:, :, None] == before[:, None, :]).any(dim=2).double().mean(dim=1)


def _neighbours(table: Tensor, queries: Tensor, k: int) -> Tensor:
    """Ids of the k rows of highest cosine to each query, ``(q, k)``."""
    queries = queries.to(table.device)
    # Lengths are divided out in float64, where they cannot overflow; float32 then compares cosines of float32 rows.
    dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
    unit = torch.empty_like(table, dtype=dtype)
    rows = max(1, _STREAM // table.shape[1])
    for target, block in zip(unit.split(rows), table.split(rows), strict=True):
        target.copy_(unit_rows(block))
    nearest = []
    for asked in queries.split(max(1, _SIMILARITIES // len(table))):
        similarity = unit[asked] @ unit.T
        similarity[torch.arange(len(asked), device=table.device), asked] = -math.inf
        nearest.append(similarity.topk(k, dim=1, sorted=False).indices)
    return torch.cat(nearest)


def _checked_both(table: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    table, reference = checked(table), checked(reference, "reference")
    if table.shape != reference.shape:
        raise ValueError(
            f"table {tuple(table.shape)} and reference {tuple(reference.shape)} must have the same shape; "
            "take the reference again after the table was resized"
        )
    return table, reference
