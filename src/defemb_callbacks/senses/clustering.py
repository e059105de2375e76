"""k-means for many small sets of points at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


# The samples of a token are in random order, so that the first ones are a sample of them.
_SILHOUETTE_SAMPLES = 256

# Below it, clusters overlap so much that one is as good (Kaufman and Rousseeuw 1990 call 0.25 "no structure"; states of
# hundreds of dimensions stay far below that).
LEAST_SILHOUETTE = 0.1


def markov_number(points: Tensor, sizes: Tensor) -> Tensor:
    """The paper's number of senses: Markov clustering proposes m clusters; 0.1 m up to m = 900, else 0.4 m, at least 5.

    Source: arXiv 2504.06036, for Llama-3-8B.

    Args:
        points: (t, n, d) floating; of set i the first `sizes[i]` count.
        sizes: (t,) int64.

    Returns:
        (t,) int64, at most `sizes`.
    """
    proposed = markov_clusters(points, sizes)
    number = torch.where(proposed <= 900, proposed // 10, proposed * 2 // 5)
    return torch.minimum(number.clamp(min=5), sizes)


def markov_clusters(points: Tensor, sizes: Tensor, *, inflation: float = 2.0, iterations: int = 60) -> Tensor:
    """Number of clusters that Markov clustering (van Dongen 2000) finds in each set of points.

    The paper does not say what its graph is. Here edges weigh max(0, cosine) of points less their set's mean: without
    the mean, all states of one token are alike and fall into one cluster.

    Args:
        points: (t, n, d) floating; of set i the first `sizes[i]` count.
        sizes: (t,) int64.
        inflation: the power that strengthens strong flows; larger gives more clusters.
        iterations: at most.

    Returns:
        (t,) int64.

    Example:
        >>> points = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]]])
        >>> markov_clusters(points, torch.tensor([4])).tolist()
        [2]
    """
    points = points.float()
    valid = torch.arange(points.shape[1], device=points.device) < sizes[:, None]
    mean = (points * valid[..., None]).sum(dim=1, keepdim=True) / sizes[:, None, None]
    units = torch.nn.functional.normalize((points - mean) * valid[..., None], dim=2)
    flow = (units @ units.mT).clamp(min=0)
    # Loops, without which flow goes back and forth; padding is a cluster of its own, point by point.
    flow.diagonal(dim1=1, dim2=2).fill_(1.0)
    flow /= flow.sum(dim=1, keepdim=True)
    for _ in range(iterations):
        before = flow
        flow = (flow @ flow).pow(inflation)
        flow /= flow.sum(dim=1, keepdim=True)
        if torch.allclose(flow, before, atol=1e-5):
            break
    # Each column flows into the attractor of its cluster.
    attractors = torch.zeros_like(valid).scatter_(1, flow.argmax(dim=1), torch.ones_like(valid))
    return attractors.sum(dim=1) - (~valid).sum(dim=1)


def silhouette_number(points: Tensor, sizes: Tensor, most: int, seed: int = 0) -> Tensor:
    """The number of clusters, out of 2, 3, 5, 8, … up to `most`, with the best silhouette; 1 where none separates.

    Source: Rousseeuw 1987, on the first 256 points of each set.

    Args:
        points: (t, n, d) floating; of set i the first `sizes[i]` count.
        sizes: (t,) int64.
        most: the largest number.
        seed: of the clusterings.

    Returns:
        (t,) int64, less than `sizes`, but at least 1.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    score_of = silhouette_score()
    points, sizes = points[:, :_SILHOUETTE_SAMPLES].float(), sizes.clamp(max=_SILHOUETTE_SAMPLES)
    best = torch.full(sizes.shape, LEAST_SILHOUETTE, dtype=torch.float64)
    numbers = torch.ones_like(sizes)
    for number in _candidates(most):
        labels = kmeans(points, sizes, torch.minimum(torch.full_like(sizes, number), sizes), seed=seed).labels
        for position, size in enumerate(sizes.tolist()):
            found = labels[position, :size].cpu()
            if 2 <= len(found.unique()) == number < size:
                score = score_of(points[position, :size].cpu().numpy(), found.numpy())
                if score > best[position]:
                    best[position], numbers[position] = score, number
    return numbers


def silhouette_score() -> Callable[..., float]:
    """scikit-learn's function.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise ImportError("rule='silhouette' needs scikit-learn: pip install \"defemb-callbacks[senses]\".") from error
    return silhouette_score


def _candidates(most: int) -> Sequence[int]:
    numbers = [2, 3]
    while numbers[-1] < most:
        numbers.append(numbers[-1] + numbers[-2])
    return [number for number in numbers if number <= most]
