"""Who is whose neighbour: how many of each row's nearest rows are still the same."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import make_unit_, row_blocks, unit_rows
from defemb_callbacks.metrics.drift import checked_both
from defemb_callbacks.metrics.groups import Parts

# Rows asked at once, and numbers in a block of cosines or of rows.
_QUERIES, _BLOCK = 1 << 10, 1 << 19


def neighbour_overlap(
    table: Tensor,
    reference: Tensor,
    *,
    k: int = 10,
    sample: int | None = 1000,
    seed: int = 0,
) -> float:
    r"""Mean share of a row's k nearest rows (cosine, itself excluded) that are the same in the reference.

    .. math:: \frac{1}{n} \sum_i \frac{\lvert N_k(e_i) \cap N_k(r_i) \rvert}{k}

    with N_k the k nearest (Gonen, Jawahar, Seddah and Goldberg 2020 find words of changed use by it). In [0, 1]; higher
    is closer to the reference, 1 where every neighbourhood is the same, about k/n by chance. Unchanged by row lengths
    and by a rotation of either table. Among rows of equal cosine the choice is arbitrary.

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
        TypeError, ValueError: see `checked`; or shapes differ, k is not in [1, n − 1], or sample is below 1.

    Example:
        >>> table = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> neighbour_overlap(table, 3 * table, k=1)
        1.0
        >>> neighbour_overlap(table, table[[0, 2, 1, 3]], k=1)
        0.0
    """
    table, reference = checked_both(table, reference)
    if not 1 <= k < len(table):
        raise ValueError(f"k must be between 1 and the number of other rows, {len(table) - 1}, got {k}")
    everything = torch.arange(len(table))
    queries = sample_rows(everything, sample, seed=seed)
    now, before = (nearest_rows(rows, queries, everything, k).cpu() for rows in (table, reference))
    return float(shared(now, before).mean())


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


def nearest_rows(table: Tensor, queries: Tensor, among: Tensor, k: int) -> Tensor:
    """The k rows of highest cosine to each query, itself excluded.

    Args:
        table: ``(n, d)``, `checked`.
        queries: ``(q,)`` int64 row ids.
        among: ``(m,)`` int64 row ids in growing order, m > k: where neighbours are sought.
        k: how many neighbours.

    Returns:
        ``(q, k)`` int64 row ids, in no particular order.

    Example:
        >>> nearest_rows(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([2]), torch.arange(3), 1)
        tensor([[1]])
    """
    queries, among = queries.to(table.device), among.to(table.device)
    return torch.cat([_decided(table, asked, among, k) for asked in queries.split(_QUERIES)])


def shared(now: Tensor, before: Tensor) -> Tensor:
    """The share of each row of ``now`` ``(q, k)`` that is in the same row of ``before``, ``(q,)`` float64.

    Example:
        >>> shared(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 1], [4, 7]])).tolist()
        [1.0, 0.5]
    """
    return (now[:, :, None] == before[:, None, :]).any(dim=2).double().mean(dim=1)


class NeighboursByGroup(NamedTuple):
    """The neighbours that rows of each group had in a reference, to compare many tables with.

    Attributes:
        among: ``(m,)`` int64, all rows among which neighbours are sought.
        queries: ``(q,)`` int64, the rows asked: of each part of the groups a sample, one after the other.
        before: ``(q, k)`` int64, their neighbours in the reference.
        asked: how many of the queries each part has.
        sizes: how many rows each part has.
        of: the parts that each group consists of.
    """

    among: Tensor
    queries: Tensor
    before: Tensor
    asked: dict[str, int]
    sizes: dict[str, int]
    of: dict[str, list[str]]

    @classmethod
    def of_reference(
        cls, reference: Tensor, groups: dict[str, Tensor], *, k: int, sample: int | None, seed: int = 0
    ) -> NeighboursByGroup:
        """Of a checked table and groups, more than k rows of it in ``"all"``; rows outside it are not asked."""
        among = groups["all"].sort().values
        inside = {name: ids[torch.isin(ids, among)] for name, ids in groups.items()}
        parts = Parts.of_groups(inside)
        queries = {name: sample_rows(ids, sample, seed=seed) for name, ids in parts.ids.items()}
        everyone = torch.cat(list(queries.values()))
        return cls(
            among,
            everyone,
            nearest_rows(reference, everyone, among, k).cpu(),
            {name: len(asked) for name, asked in queries.items()},
            {name: len(ids) for name, ids in parts.ids.items()},
            parts.of,
        )

    def overlaps(self, table: Tensor) -> dict[str, float]:
        """`neighbour_overlap` of each group that has rows: the mean of its parts, weighted by their sizes."""
        now = nearest_rows(table, self.queries, self.among, self.before.shape[1]).cpu()
        shares = shared(now, self.before).split(list(self.asked.values()))
        means = {part: float(share.mean()) for part, share in zip(self.asked, shares, strict=True)}
        return {
            name: sum(means[part] * self.sizes[part] for part in of) / sum(self.sizes[part] for part in of)
            for name, of in self.of.items()
            if of
        }


def _decided(table: Tensor, queries: Tensor, among: Tensor, k: int) -> Tensor:
    """`nearest_rows`; in float32, and again in float64 for the queries that float32 cannot decide."""
    if table.dtype == torch.float64 or not _exact_float32(table.device):
        return _nearest(table, queries, among, k, torch.float64)[0]
    nearest, gap = _nearest(table, queries, among, k, torch.float32)
    # Twice what a cosine of two unit rows may be off by: the rounding of their entries, and √d roundings of the sum.
    open_ones = (gap <= 2**-23 * (4 * math.sqrt(table.shape[1]) + 4)).nonzero()[:, 0]
    if len(open_ones):
        nearest[open_ones] = _nearest(table, queries[open_ones], among, k, torch.float64)[0]
    return nearest


def _exact_float32(device: torch.device) -> bool:
    """Whether float32 products are float32 products: not TF32 or bfloat16 inside, not under autocast."""
    highest = torch.get_float32_matmul_precision() == "highest"
    return device.type == "cpu" and highest and not torch.is_autocast_enabled("cpu")


def _nearest(table: Tensor, queries: Tensor, among: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Ids ``(q, k)``, and how much nearer the last of them is than the next row, ``(q,)``."""
    asked = unit_rows(table[queries]).to(dtype)
    cosines = torch.full((len(queries), k + 1), -math.inf, dtype=dtype, device=table.device)
    nearest = queries.new_zeros(len(queries), k + 1)
    start = 0
    for rows in row_blocks(table, among, elements=_BLOCK):
        ids = among[start : start + len(rows)]
        block = asked @ make_unit_(rows).to(dtype).T
        place = torch.searchsorted(ids, queries).clamp(max=len(ids) - 1)
        itself = (ids[place] == queries).nonzero()[:, 0]
        block[itself, place[itself]] = -math.inf
        best = block.topk(min(k + 1, len(ids)), dim=1, sorted=False)
        cosines, chosen = torch.cat([cosines, best.values], dim=1).topk(k + 1, dim=1)
        nearest = torch.cat([nearest, ids[best.indices]], dim=1).gather(1, chosen)
        start += len(ids)
    return nearest[:, :k], cosines[:, k - 1] - cosines[:, k]
