"""Batched k-means for many small sets of points, and rules for the number of clusters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from defemb_callbacks.weights.precision import float64_device


class Clusters(NamedTuple):
    """Clusters of t sets of points.

    Attributes:
        centres: Shape (t, k, d), float32; undefined for empty clusters.
        counts: Shape (t, k), int64; points per cluster, 0 beyond the number of clusters of a set.
        labels: Shape (t, n), int64; cluster of each point, 0 for padding.
        inertia: Shape (t,), float32; sum of squared distances of the points to their centroids.
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
    """Lloyd's algorithm on a batch of t sets of points, run until the assignments converge.

    An empty cluster is moved to the point farthest from its centroid, as in scikit-learn. It stays empty only if the
    set has fewer distinct points than clusters.

    Args:
        points: Shape (t, n, d), floating point; the points of set i are the first `sizes[i]` rows, the rest is padding.
        sizes: Shape (t,), int64, at least 1.
        numbers: Shape (t,), int64; number of clusters of each set, at least 1.
        starts: Shape (t, k, d), initial centroids, where k is the maximum of `numbers`; by default from
            `kmeans_plus_plus`.
        iterations: Maximum number of iterations.
        seed: Seed of the initialization.

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
    # Centre the points: |x|² − 2xc + |c|² cancels far from the origin, where the states of a token lie.
    middle = (points * valid[..., None]).sum(dim=1, keepdim=True) / sizes[:, None, None]
    points = (points - middle) * valid[..., None]
    centres = kmeans_plus_plus(points, sizes, most, seed) if starts is None else starts.float() - middle
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


def kmeans_plus_plus(points: Tensor, sizes: Tensor, most: int, seed: int = 0) -> Tensor:
    """k-means++ initialization (Arthur and Vassilvitskii 2007).

    Each centroid is a point drawn with probability proportional to its squared distance to the nearest centroid so far.
    Random numbers are drawn on the CPU, so that all devices start from the same centroids.

    Args:
        points: Shape (t, n, d), float32.
        sizes: Shape (t,), int64; number of points of each set.
        most: Number of centroids.
        seed: Seed of the draws.

    Returns:
        Shape (t, most, d), float32.
    """
    sets = torch.arange(len(points), device=points.device)
    exact = float64_device(points.device)
    draws = torch.rand(len(points), most, generator=torch.Generator().manual_seed(seed)).to(exact)
    valid = torch.arange(points.shape[1], device=points.device) < sizes[:, None]
    chances = valid.float()
    nearest = torch.full_like(chances, torch.inf)
    lengths = points.square().sum(dim=2)
    starts = []
    for draw in draws.T:
        # float64, so that rounding never selects a padding row.
        sums = chances.to(exact, torch.float64).cumsum(dim=1)
        chosen = torch.searchsorted(sums, draw[:, None] * sums[:, -1:], right=True)[:, 0]
        chosen = chosen.to(points.device).clamp(max=sizes - 1)
        start = points[sets, chosen]
        starts.append(start)
        distances = lengths - 2 * (points @ start[..., None])[..., 0] + start.square().sum(dim=1, keepdim=True)
        nearest = torch.minimum(nearest, distances.clamp(min=0))
        chances = nearest * valid
    return torch.stack(starts, dim=1)


def _nearest(points: Tensor, lengths: Tensor, centres: Tensor, beyond: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centroid of each point, (t, n), and its squared distance."""
    distances = centres.square().sum(dim=2).masked_fill(beyond, torch.inf)[:, None] - 2 * points @ centres.mT
    found = distances.min(dim=2)
    return found.indices, (found.values + lengths).clamp(min=0)


def _members(labels: Tensor, valid: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """One-hot assignments, (t, n, k), and points per cluster, (t, k)."""
    # A matrix product with one-hot rows is deterministic; index_add_ on a GPU is not.
    members = torch.nn.functional.one_hot(labels, most) * valid[..., None]
    return members.float(), members.sum(dim=1)


def _move_empty(centres: Tensor, empty: Tensor, points: Tensor, distances: Tensor) -> None:
    for position, cluster in empty.nonzero().tolist():
        farthest = int(distances[position].argmax())
        if distances[position, farthest] > 0:
            centres[position, cluster] = points[position, farthest]
            distances[position, farthest] = 0


# The samples of a token are in random order, so the first ones are a uniform subsample.
_SILHOUETTE_SAMPLES = 256

# Minimum score of more than one cluster. Kaufman and Rousseeuw (1990) call values below 0.25 "no structure", but hidden
# states of hundreds of dimensions rarely reach that.
_MIN_SILHOUETTE = 0.1


def markov_number(points: Tensor, sizes: Tensor) -> Tensor:
    """Number of senses by the paper's rule for Llama-3-8B (arXiv 2504.06036).

    If Markov clustering finds m clusters, the number is 0.1 m for m ≤ 900 and 0.4 m otherwise, and at least 5.

    Args:
        points: Shape (t, n, d), floating point; the points of set i are the first `sizes[i]` rows.
        sizes: Shape (t,), int64.

    Returns:
        Shape (t,), int64, at most `sizes`.
    """
    proposed = markov_clusters(points, sizes)
    number = torch.where(proposed <= 900, proposed // 10, proposed * 2 // 5)
    return torch.minimum(number.clamp(min=5), sizes)


def markov_clusters(points: Tensor, sizes: Tensor, *, inflation: float = 2.0, iterations: int = 60) -> Tensor:
    """Number of clusters that Markov clustering (van Dongen 2000) finds in each set of points.

    The paper does not specify the graph. Here, edge weights are max(0, cosine) of the mean-centred points: without
    centring, all states of a token are similar and form one cluster.

    Args:
        points: Shape (t, n, d), floating point; the points of set i are the first `sizes[i]` rows.
        sizes: Shape (t,), int64.
        inflation: Exponent of the inflation step; larger values give more clusters.
        iterations: Maximum number of iterations.

    Returns:
        Shape (t,), int64.

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
    # Self-loops prevent oscillation. Each padding row becomes a cluster of its own, subtracted below.
    flow.diagonal(dim1=1, dim2=2).fill_(1.0)
    flow /= flow.sum(dim=1, keepdim=True)
    for _ in range(iterations):
        before = flow
        flow = (flow @ flow).pow(inflation)
        flow /= flow.sum(dim=1, keepdim=True)
        if torch.allclose(flow, before, atol=1e-5):
            break
    # Each column flows to the attractor of its cluster.
    attractors = torch.zeros_like(valid).scatter_(1, flow.argmax(dim=1), torch.ones_like(valid))
    return attractors.sum(dim=1) - (~valid).sum(dim=1)


def silhouette_number(points: Tensor, sizes: Tensor, most: int, seed: int = 0) -> Tensor:
    """Number of clusters (2, 3, 5, 8, … up to `most`) with the best silhouette score; 1 if no score exceeds 0.1.

    The score (Rousseeuw 1987) is computed on the first 256 points of each set.

    Args:
        points: Shape (t, n, d), floating point; the points of set i are the first `sizes[i]` rows.
        sizes: Shape (t,), int64.
        most: Maximum number of clusters.
        seed: Seed of the clusterings.

    Returns:
        Shape (t,), int64, less than `sizes`, but at least 1.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    score_of = silhouette_score()
    points, sizes = points[:, :_SILHOUETTE_SAMPLES].float(), sizes.clamp(max=_SILHOUETTE_SAMPLES)
    best = torch.full(sizes.shape, _MIN_SILHOUETTE, dtype=torch.float64)
    numbers = torch.ones_like(sizes)
    for number in _candidates(most):
        labels = kmeans(points, sizes, torch.minimum(torch.full_like(sizes, number), sizes), seed=seed).labels
        for position, size in enumerate(sizes.tolist()):
            found = labels[position, :size].cpu()
            if 2 <= len(found.unique()) == number < size:
                # Old versions of scikit-learn return a float32 of numpy, which torch does not accept.
                score = float(score_of(points[position, :size].cpu().numpy(), found.numpy()))
                if score > best[position]:
                    best[position], numbers[position] = score, number
    return numbers


def silhouette_score() -> Callable[..., float]:
    """scikit-learn's `silhouette_score`.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:  # an optional extra
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise ImportError(
            "rule='silhouette' requires scikit-learn. Install it with: pip install \"defemb-callbacks[senses]\"."
        ) from error
    return silhouette_score


def _candidates(most: int) -> Sequence[int]:
    numbers = [2, 3]
    while numbers[-1] < most:
        numbers.append(numbers[-1] + numbers[-2])
    return [number for number in numbers if number <= most]
