"""k-means for many small sets of points at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Clusters(NamedTuple):
    """Clusters of t sets of points.

    Attributes:
        centres: (t, k, d) float32; those of empty clusters mean nothing.
        counts: (t, k) int64, points of each cluster; 0 for clusters beyond the number that a set was to have.
        labels: (t, n) int64, the cluster of each point; 0 for padding.
        inertia: (t,) float32, sum of the squared distances of a set's points to their centres.
    """

    centres: Tensor
    counts: Tensor
    labels: Tensor
    inertia: Tensor


def kmeans(
    points: Tensor,
    sizes: Tensor,
    numbers: Tensor,
    *,
    starts: Tensor | None = None,
    iterations: int = 100,
    seed: int = 0,
) -> Clusters:
    """Lloyd's algorithm on t sets of points in one batch, until no point changes its cluster.

    An empty cluster is moved to the point that is farthest from its centre, as scikit-learn does; it stays empty only
    where there are fewer different points than clusters.

    Args:
        points: (t, n, d) floating; of set i the first `sizes[i]` count.
        sizes: (t,) int64, at least 1.
        numbers: (t,) int64: clusters of each set, at least 1.
        starts: (t, k, d), the first centres, k the largest of `numbers`; default `spread_starts`.
        iterations: at most.
        seed: of the starts.

    Example:
        >>> points = torch.tensor([[[0.0], [1.0], [10.0], [11.0]], [[5.0], [7.0], [0.0], [0.0]]])
        >>> found = kmeans(points, torch.tensor([4, 2]), torch.tensor([2, 1]))
        >>> found.centres[0].sort(dim=0).values.flatten().tolist(), found.centres[1, 0].tolist()
        ([0.5, 10.5], [6.0])
        >>> found.counts.tolist(), found.inertia.tolist()
        ([[2, 2], [2, 0]], [1.0, 2.0])
    """
    points = points.float()
    most = int(numbers.max())
    valid = torch.arange(points.shape[1], device=points.device) < sizes[:, None]
    # |x|² − 2xc + |c|² loses digits far from the origin, where states of one token lie.
    middle = (points * valid[..., None]).sum(dim=1, keepdim=True) / sizes[:, None, None]
    points = (points - middle) * valid[..., None]
    centres = spread_starts(points, sizes, most, seed) if starts is None else starts.float() - middle
    beyond = torch.arange(most, device=points.device) >= numbers[:, None]
    lengths = points.square().sum(dim=2)
    labels: Tensor | None = None
    for _ in range(iterations):
        before = labels
        labels, distances = _nearest(points, lengths, centres, beyond)
        if before is not None and torch.equal(labels * valid, before * valid):
            break
        members, counts = _members(labels, valid, most)
        centres = members.mT @ points / counts[..., None].clamp(min=1)
        _move_empty(centres, (counts == 0) & ~beyond, points, distances * valid)
    labels, distances = _nearest(points, lengths, centres, beyond)
    _, counts = _members(labels, valid, most)
    return Clusters(centres + middle, counts.long(), labels * valid, (distances * valid).sum(dim=1))


def spread_starts(points: Tensor, sizes: Tensor, most: int, seed: int = 0) -> Tensor:
    """k-means++: each next start is a point drawn with a chance proportional to its squared distance to the others.

    Arthur and Vassilvitskii 2007. The draws come from the CPU, so that every device starts alike.

    Args:
        points: (t, n, d) float32.
        sizes: (t,) int64: how many points of each set count.
        most: number of starts.
        seed: of the draws.

    Returns:
        (t, most, d) float32.
    """
    sets = torch.arange(len(points), device=points.device)
    draws = torch.rand(len(points), most, generator=torch.Generator().manual_seed(seed)).to(points.device)
    valid = torch.arange(points.shape[1], device=points.device) < sizes[:, None]
    chances = valid.float()
    nearest = torch.full_like(chances, torch.inf)
    lengths = points.square().sum(dim=2)
    starts = []
    for draw in draws.T:
        # Sums in float64: a draw must never fall behind the last point that counts.
        sums = chances.double().cumsum(dim=1)
        chosen = torch.searchsorted(sums, draw[:, None] * sums[:, -1:], right=True)[:, 0]
        chosen = chosen.clamp(max=sizes - 1)
        start = points[sets, chosen]
        starts.append(start)
        distances = lengths - 2 * (points @ start[..., None])[..., 0] + start.square().sum(dim=1, keepdim=True)
        nearest = torch.minimum(nearest, distances.clamp(min=0))
        chances = nearest * valid
    return torch.stack(starts, dim=1)


def _nearest(points: Tensor, lengths: Tensor, centres: Tensor, beyond: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each point, (t, n), and its squared distance."""
    distances = centres.square().sum(dim=2).masked_fill(beyond, torch.inf)[:, None] - 2 * points @ centres.mT
    found = distances.min(dim=2)
    return found.indices, (found.values + lengths).clamp(min=0)


def _members(labels: Tensor, valid: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(t, n, k): 1.0 where a point belongs to a cluster, and the number of its points, (t, k)."""
    # A product with this adds up in the same order on every run, which index_add_ on a GPU does not.
    members = torch.nn.functional.one_hot(labels, most) * valid[..., None]
    return members.float(), members.sum(dim=1)


def _move_empty(centres: Tensor, empty: Tensor, points: Tensor, distances: Tensor) -> None:
    for position, cluster in empty.nonzero().tolist():
        farthest = int(distances[position].argmax())
        if distances[position, farthest] > 0:
            centres[position, cluster] = points[position, farthest]
            distances[position, farthest] = 0
