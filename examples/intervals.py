"""Confidence intervals of a difference between settings that were run with the same seeds on the same examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

DRAWS = 10_000


def paired_interval(differences: NDArray[np.float64], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Of the mean difference, by drawing seeds and examples again: would it hold for other ones of both?

    Seeds and examples are drawn independently of each other, each with replacement, and every drawn seed meets every
    drawn example (the pigeonhole bootstrap: Owen, Annals of Applied Statistics 2007). As percentiles of few seeds are
    too narrow, what the seeds differ by is stretched to what Student's t would give (expanded percentiles: Hesterberg,
    The American Statistician 2015). Of one seed only examples are drawn.

    Args:
        differences: (seeds, examples) difference of the two settings' scores.
        level: of the interval.
        seed: of the draws.

    Returns:
        Lower and upper end, percentiles of 10,000 draws.

    Example:
        >>> paired_interval(np.array([[0.5, 0.5], [0.5, 0.5]]))
        (0.5, 0.5)
    """
    seeds, examples = differences.shape
    tail = (1 - level) / 2
    of_seeds = differences.mean(axis=1) - differences.mean()
    stretch = (seeds / (seeds - 1)) ** 0.5 * t.ppf(1 - tail, seeds - 1) / norm.ppf(1 - tail) if seeds > 1 else 1
    stretched = differences + (stretch - 1) * of_seeds[:, None]
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(DRAWS // 100):  # in parts, which bounds the memory for many examples
        seed_counts = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=100)
        example_counts = generator.multinomial(examples, np.full(examples, 1 / examples), size=100)
        means.append(((seed_counts @ stretched) * example_counts).sum(axis=1) / (seeds * examples))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def seed_interval(differences: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Of the mean difference, by Student's t over seeds: for scores that are no mean over examples.

    Args:
        differences: (seeds,); at least two.
        level: of the interval.

    Example:
        >>> low, high = seed_interval(np.array([0.01, 0.02, 0.03]))
        >>> round(low, 4), round(high, 4)
        (-0.0048, 0.0448)
    """
    half = t.ppf((1 + level) / 2, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return float(differences.mean() - half), float(differences.mean() + half)
