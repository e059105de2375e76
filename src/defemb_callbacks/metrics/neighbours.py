"""Neighbour overlap: how many of each row's nearest rows are still the same."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import exact_float32, make_unit_, row_blocks, unit_rows
from defemb_callbacks.metrics.drift import checked_both
from defemb_callbacks.metrics.groups import Parts

# Queries per batch, and numbers in a block of cosines or rows.
QUERY_BATCH, ROW_BLOCK = 1 << 10, 1 << 19


def neighbour_overlap(
    table: Tensor,
    reference: Tensor,
    *,
    k: int = 10,
    sample: int | None = 1000,
    seed: int = 0,
) -> float:
    r"""Mean share of a row's k nearest rows (by cosine, excluding itself) that are the same in a reference.

    $$\frac{1}{n} \sum_i \frac{\lvert N_k(e_i) \cap N_k(r_i) \rvert}{k}$$

    where N_k are the k nearest rows (Gonen, Jawahar, Seddah and Goldberg 2020 find words of changed usage with it). It
    lies in [0, 1]; higher means closer to the reference: 1 if all neighbourhoods are the same, about k/n by chance. It
    does not depend on row lengths or on a rotation of either table. Ties of equal cosine are broken arbitrarily.

    If the table has more than `sample` rows, only a seeded random sample of them is queried, always against all rows.
    The standard error is the standard deviation of the rows' shares divided by √sample: at most 0.5/√1000 = 0.016 with
    the default. The same seed queries the same rows in every call, so the change between two calls is more precise
    than that.

    Args:
        table: Table, (n, d), n > k, any floating dtype, any device.
        reference: Table of the same shape.
        k: Number of neighbours.
        sample: Maximum number of rows to query; `None` queries all rows, in O(n²).
        seed: Seed of the sample.

    Raises:
        TypeError: If a table is not a floating-point tensor.
        ValueError: If the tables have different shapes or non-finite entries, k is not in [1, n − 1], or `sample` is
            below 1.

    Example:
        >>> table = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> neighbour_overlap(table, 3 * table, k=1)
        1.0
        >>> neighbour_overlap(table, table[[0, 2, 1, 3]], k=1)
        0.0
    """
    table, reference = checked_both(table, reference)
    if not 1 <= k < len(table):
        raise ValueError(f"k must be between 1 and the number of other rows, {len(table) - 1}, got {k}.")
    everything = torch.arange(len(table))
    queries = sample_rows(everything, sample, seed=seed)
    now, before = (nearest_rows(rows, queries, everything, k).cpu() for rows in (table, reference))
    return float(shared(now, before).mean())


def sample_rows(ids: Tensor, size: int | None, *, seed: int = 0) -> Tensor:
    """Return `ids`, or a seeded random sample of `size` of them in their order if there are more.

    Raises:
        ValueError: If `size` is below 1.

    Example:
        >>> len(sample_rows(torch.arange(100), 7))
        7
    """
    if size is None:
        return ids
    if size < 1:
        raise ValueError(f"sample must be at least 1, got {size}. Pass None to query every row.")
    if len(ids) <= size:
        return ids
    # Drawn on the CPU, so that the sample does not depend on the device of the table.
    chosen = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))[:size].sort().values
    return ids[chosen.to(ids.device)]


def nearest_rows(table: Tensor, queries: Tensor, among: Tensor, k: int) -> Tensor:
    """Find the k rows with the highest cosine to each query, excluding the query itself.

    Args:
        table: Table validated by `checked`, (n, d).
        queries: Row ids, (q,) int64.
        among: Ids of the rows to search, in ascending order, (m,) int64, m > k.
        k: Number of neighbours.

    Returns:
        Row ids in arbitrary order, (q, k) int64.

    Example:
        >>> nearest_rows(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([2]), torch.arange(3), 1)
        tensor([[1]])
    """
    queries, among = queries.to(table.device), among.to(table.device)
    return torch.cat([_decided(table, asked, among, k) for asked in queries.split(QUERY_BATCH)])


def shared(now: Tensor, before: Tensor) -> Tensor:
    """Return the share of each row of `now`, (q, k), that is also in the same row of `before`: (q,) float64.

    Example:
        >>> shared(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 1], [4, 7]])).tolist()
        [1.0, 0.5]
    """
    return (now[:, :, None] == before[:, None, :]).any(dim=2).double().mean(dim=1)


class NeighboursByGroup(NamedTuple):
    """Neighbours in a reference of a sample of each group's rows, for comparison with many tables.

    Attributes:
        among: Ids of all rows that are searched, (m,) int64.
        queries: Ids of the queried rows: the samples of all parts, concatenated, (q,) int64.
        before: Their neighbours in the reference, (q, k) int64.
        asked: Number of queries of each part.
        sizes: Number of rows of each part.
        of: Names of the parts of each group.
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
        """Query a validated reference with more than k rows in `"all"`; rows outside `"all"` are not queried."""
        among = groups["all"].sort().values
        inside = {name: ids[torch.isin(ids, among)] for name, ids in groups.items()}
        parts = Parts.of_groups(inside)
        queries = {name: sample_rows(ids, sample, seed=seed) for name, ids in parts.ids.items()}
        all_queries = torch.cat(list(queries.values()))
        return cls(
            among,
            all_queries,
            nearest_rows(reference, all_queries, among, k).cpu(),
            {name: len(asked) for name, asked in queries.items()},
            {name: len(ids) for name, ids in parts.ids.items()},
            parts.of,
        )

    def overlaps(self, table: Tensor) -> dict[str, float]:
        """Return `neighbour_overlap` of each nonempty group: the mean over its parts, weighted by their sizes."""
        now = nearest_rows(table, self.queries, self.among, self.before.shape[1]).cpu()
        shares = shared(now, self.before).split(list(self.asked.values()))
        means = {part: float(share.mean()) for part, share in zip(self.asked, shares, strict=True)}
        return {
            name: sum(means[part] * self.sizes[part] for part in of) / sum(self.sizes[part] for part in of)
            for name, of in self.of.items()
            if of
        }


def _decided(table: Tensor, queries: Tensor, among: Tensor, k: int) -> Tensor:
    """Compute `nearest_rows` in float32, and again in float64 for queries that float32 cannot decide."""
    if table.dtype == torch.float64 or not exact_float32(table.device):
        return _nearest(table, queries, among, k, torch.float64)[0]
    nearest, gap = _nearest(table, queries, among, k, torch.float32)
    # Twice the largest error of a cosine of two unit rows: rounding of the entries, and √d roundings of the sum.
    undecided = (gap <= 2**-23 * (4 * math.sqrt(table.shape[1]) + 4)).nonzero()[:, 0]
    if len(undecided):
        nearest[undecided] = _nearest(table, queries[undecided], among, k, torch.float64)[0]
    return nearest


def _nearest(table: Tensor, queries: Tensor, among: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return ids, (q, k), and by how much the last of them is nearer than the next row, (q,)."""
    asked = unit_rows(table[queries]).to(dtype)
    cosines = torch.full((len(queries), k + 1), -math.inf, dtype=dtype, device=table.device)
    nearest = queries.new_zeros(len(queries), k + 1)
    start = 0
    for rows in row_blocks(table, among, elements=ROW_BLOCK):
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
