"""Confidence intervals for the difference between two settings run with the same seeds on the same examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, sem, t

DRAWS = 10_000


def paired_interval(differences: NDArray[np.float64], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the mean difference, over both seeds and examples.

    Seeds and examples are resampled independently with replacement, and all combinations of the resampled seeds and
    examples are averaged (pigeonhole bootstrap: Owen, Annals of Applied Statistics 2007). With few seeds, percentiles
    are too narrow, so the deviations of the seeds are expanded to match Student's t (expanded percentiles: Hesterberg,
    The American Statistician 2015). With one seed, only examples are resampled.

    `scipy.stats.bootstrap` resamples along one axis only.

    Args:
        differences: (seeds, examples) differences between the scores of the two settings.
        level: Confidence level.
        seed: Random seed of the resampling.

    Returns:
        Lower and upper end: percentiles of 10,000 resamples.

    Example:
        >>> paired_interval(np.array([[0.5, 0.5], [0.5, 0.5]]))
        (0.5, 0.5)
    """
    seeds, examples = differences.shape
    tail = (1 - level) / 2
    deviations = differences.mean(axis=1) - differences.mean()
    expansion = (seeds / (seeds - 1)) ** 0.5 * t.ppf(1 - tail, seeds - 1) / norm.ppf(1 - tail) if seeds > 1 else 1
    expanded = differences + (expansion - 1) * deviations[:, None]
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(DRAWS // 100):  # in parts, to limit memory with many examples
        seed_counts = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=100)
        example_counts = generator.multinomial(examples, np.full(examples, 1 / examples), size=100)
        means.append(((seed_counts @ expanded) * example_counts).sum(axis=1) / (seeds * examples))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def seed_interval(differences: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean difference over seeds, for scores that are not means over examples.

    Args:
        differences: (seeds,) differences, at least two.
        level: Confidence level.

    Example:
        >>> low, high = seed_interval(np.array([0.01, 0.02, 0.03]))
        >>> round(low, 4), round(high, 4)
        (-0.0048, 0.0448)
    """
    half = t.ppf((1 + level) / 2, len(differences) - 1) * sem(differences)
    return float(differences.mean() - half), float(differences.mean() + half)
