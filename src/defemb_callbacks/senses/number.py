"""How many senses a token has, where that is not fixed: by Markov clustering, or by silhouette."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from defemb_callbacks.senses.clustering import kmeans

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
