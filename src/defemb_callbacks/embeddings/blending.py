"""Blend rows from definitions with pretrained rows, with a weight for each token and principal direction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from defemb_callbacks.config import DefinitionEMBConfig

AUTO_BLEND = 0.7  # the largest weight with `blend="auto"`; see benchmarks/geometry.py

FEWEST_ROWS = 100  # fewer rows do not determine the correlation of single directions
_BLOCK = 8192  # rows converted to float64 at once
_EXPONENT = 0.8  # exponent of the correlation in the weight of a direction; see `DirectionalBlend`


def blend_weights(rarity: Tensor, blend: float, floor: float) -> Tensor:
    """Weight of the new row by token: `blend · (floor + (1 - floor) · rarity)`.

    Frequent tokens were seen often enough for their rows to be reliable, and tasks depend on them most. Rare tokens
    have little else than their definitions.

    Args:
        rarity: Frequency rank as a share, 0 for the most frequent token and 1 for the least frequent one.
        blend: Weight at rarity 1.
        floor: Share of `blend` at rarity 0.

    Example:
        >>> [round(w, 3) for w in blend_weights(torch.tensor([0.0, 0.5, 1.0]), blend=0.4, floor=0.25).tolist()]
        [0.1, 0.25, 0.4]
    """
    return blend * (floor + (1 - floor) * rarity)


@dataclass(frozen=True)
class DirectionalBlend:
    """Blend old and new rows separately in each principal direction, preserving the variance of each direction.

    Definitions predict a few directions of the embedding space well and most of them poorly. A single weight for
    all directions would therefore shrink the unpredictable ones and make the table less isotropic. Here, the weight
    of direction j in row i is `w_i · (r_j / max r)^0.8`, where `r_j` is the correlation of old and new rows in that
    direction. Each direction is then scaled back to the variance that it had in its group of rows.

    The directions are computed from unit deviations from `centre`. All rows share their mean, which
    is uninformative about a word, and regression shrinks deviations but not the mean.

    Attributes:
        centre: (d,) float64, mean of the table.
        axes: (d, d) float64, principal directions of the old rows' unit deviations, as columns.
        correlation: (d,) float64 in [0, 1], relative to the largest.
        scale: (d,) float64, factor that gives the new rows the standard deviation of the old ones.

    Example:
        >>> old = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
        >>> blend = DirectionalBlend.fit(old, old * torch.tensor([1.0, 1.0, 0.1, 0.1]), old.double().mean(dim=0))
        >>> rows = blend(old, 0.5 * old, torch.full((500,), 0.3), torch.zeros(500, dtype=torch.int64))
        >>> torch.allclose(rows.norm(dim=1), old.norm(dim=1))
        True
    """

    centre: Tensor
    axes: Tensor
    correlation: Tensor
    scale: Tensor

    @classmethod
    def uniform(cls, centre: Tensor) -> DirectionalBlend:
        """Return the blend that gives all directions the same weight.

        Args:
            centre: (d,) mean of the table.
        """
        ones = torch.ones(len(centre), dtype=torch.float64)
        return cls(centre.to(torch.float64), ones.diag(), ones, ones)

    @classmethod
    def fit(cls, old: Tensor, new: Tensor, centre: Tensor) -> DirectionalBlend:
        """Find the directions of the old rows and how well the new rows predict each of them.

        The new rows must be out-of-sample predictions (see `cross_fitted_rows`), or the correlations are too high.
        With fewer than 100 rows all directions get the same weight.

        Args:
            old: (n, d) pretrained rows, any floating dtype.
            new: (n, d) rows from definitions, paired with them; their lengths are ignored.
            centre: (d,) mean of the table.
        """
        if len(old) < FEWEST_ROWS:
            return cls.uniform(centre)
        centre, width = centre.to(torch.float64), old.shape[1]
        sum_old, sum_new = torch.zeros(2, width, dtype=torch.float64)
        gram_old, gram_new, gram_both = torch.zeros(3, width, width, dtype=torch.float64)
        for part in _blocks(len(old)):
            y, p = _unit(old[part].to(torch.float64) - centre), _unit(new[part].to(torch.float64) - centre)
            sum_old, sum_new = sum_old + y.sum(dim=0), sum_new + p.sum(dim=0)
            gram_old, gram_new, gram_both = gram_old + y.T @ y, gram_new + p.T @ p, gram_both + y.T @ p
        count = len(old)
        covariance = gram_old / count - sum_old.outer(sum_old) / count**2
        _, axes = torch.linalg.eigh(covariance)
        variance_old = _along(covariance, axes)
        variance_new = _along(gram_new / count - sum_new.outer(sum_new) / count**2, axes)
        shared = _along(gram_both / count - sum_old.outer(sum_new) / count**2, axes)
        varies = torch.minimum(variance_old, variance_new) > 1e-12 * variance_old.max()
        correlation = torch.where(varies, shared / (variance_old * variance_new).sqrt(), 0.0).clamp(min=0)
        if not correlation.max() > 0:  # nothing was predicted, so no direction is preferred
            correlation = torch.ones_like(correlation)
        scale = torch.where(varies, (variance_old / variance_new).sqrt(), 1.0)
        return cls(centre, axes, correlation / correlation.max(), scale)

    def __call__(self, old: Tensor, new: Tensor, weights: Tensor, groups: Tensor) -> Tensor:
        """Blend rows.

        Args:
            old: (n, d) pretrained rows.
            new: (n, d) rows from definitions, paired with them; any length.
            weights: (n,) in [0, 1]; 0 keeps the old row bit for bit.
            groups: (n,) int64, the group of each row, e.g. its frequency group. Each group keeps its variance
                in each direction. A group of fewer than 100 rows is blended without that correction.

        Returns:
            (n, d) in the dtype of `old`, with the lengths of the old rows.
        """
        factors = torch.ones(int(groups.max()) + 1 if len(groups) else 0, len(self.axes), dtype=torch.float64)
        sizes = torch.bincount(groups, minlength=len(factors))
        for group in (sizes >= FEWEST_ROWS).nonzero().flatten().tolist():
            members = (groups == group).nonzero().flatten()
            before, after = _Variance(len(self.axes)), _Variance(len(self.axes))
            for part in _blocks(len(members)):
                ids = members[part]
                before.update(_unit(old[ids].to(torch.float64) - self.centre) @ self.axes)
                after.update(self._mixed(old[ids], new[ids], weights[ids]))
            ratio = before.value / after.value
            factors[group] = torch.where(torch.isfinite(ratio), ratio, 1.0).sqrt()
        rows = old.clone()
        for part in _blocks(len(old)):
            own = old[part].to(torch.float64)
            length = (own - self.centre).norm(dim=1, keepdim=True)
            mixed = self._mixed(old[part], new[part], weights[part]) * factors[groups[part]]
            turned = _unit(self.centre + length * _unit(mixed @ self.axes.T)) * own.norm(dim=1, keepdim=True)
            rows[part] = torch.where(weights[part, None] > 0, turned.to(old.dtype), old[part])
        return rows

    def _mixed(self, old: Tensor, new: Tensor, weights: Tensor) -> Tensor:
        """(n, d) float64 along `axes`."""
        y = _unit(old.to(torch.float64) - self.centre) @ self.axes
        p = _unit(new.to(torch.float64) - self.centre) @ self.axes
        weight = weights[:, None].to(torch.float64) * self.correlation**_EXPONENT
        return (1 - weight) * y + weight * p * self.scale


class _Variance:
    """Variance of each column over blocks of rows."""

    def __init__(self, width: int) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(width).double(), torch.zeros(width).double()

    def update(self, rows: Tensor) -> None:
        self.count += len(rows)
        self.total += rows.sum(dim=0)
        self.squares += rows.square().sum(dim=0)

    @property
    def value(self) -> Tensor:
        return self.squares / self.count - (self.total / self.count).square()


def protect_outputs(old: Tensor, new: Tensor, second_moment: Tensor, strength: float) -> Tensor:
    """Restrict the change of rows to directions that barely affect the logits they produce as output embeddings.

    A row `e` of an output table gives its token the logit `e · h` in state `h`. The change `Δ = new - old` is replaced
    with `argmin_D ‖D - Δ‖² + E[(D · h)²] / (strength · m) = Δ (I + E[hhᵀ] / (strength · m))⁻¹`, where `m` is the mean
    of the diagonal of `E[hhᵀ]`: directions in which states are large keep their old values, the others change.

    Args:
        old: (n, d) rows of the table.
        new: (n, d) rows, without regard to logits.
        second_moment: (d, d) float64, `E[hhᵀ]` over states of running text.
        strength: Positive; smaller values change logits less.

    Example:
        >>> old, new = torch.zeros(1, 2), torch.ones(1, 2)
        >>> protect_outputs(old, new, torch.diag(torch.tensor([100.0, 0.0]).double()), strength=0.1)
        tensor([[0.0476, 1.0000]])
    """
    system = second_moment / (strength * second_moment.diagonal().mean())
    system.diagonal().add_(1)
    factor = torch.linalg.cholesky(system)
    rows = old.clone()
    for part in _blocks(len(old)):
        change = new[part].to(torch.float64) - old[part].to(torch.float64)
        rows[part] = (old[part] + torch.cholesky_solve(change.T, factor).T).to(old.dtype)
    return rows


def rescale_rows(new: Tensor, old: Tensor, groups: Tensor, centre: Tensor) -> Tensor:
    """Give new rows the median length of the old rows of their group, measured from the centre.

    Regression shrinks predictions towards the mean: without rescaling they have 0.4 to 0.5 times the length of the old
    rows.

    Args:
        new: (n, d) rows.
        old: (n, d) rows, paired with them.
        groups: (n,) int64 group of each row.
        centre: (d,) mean of the table.

    Example:
        >>> rescale_rows(torch.tensor([[0.1, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([0]), torch.zeros(2))
        tensor([[2., 0.]])
    """
    lengths = (old.to(torch.float64) - centre).norm(dim=1)
    rows = new.to(torch.float64) - centre
    for group in groups.unique():
        members = groups == group
        rows[members] = _unit(rows[members]) * lengths[members].median()
    return (rows + centre).to(new.dtype)


def choose_tokens(ids: Tensor, rank: Tensor, alpha: float, allowed: Tensor | None = None) -> Tensor:
    """Choose the least frequent share `alpha` of the tokens with definitions, restricted to those that are `allowed`.

    Args:
        ids: (n,) int64 tokens with a definition.
        rank: (size,) frequency rank by token.
        alpha: Share in [0, 1]. Source: arXiv 2408.01308, replacement ratio.
        allowed: (size,) bool, e.g. the tokens of the training data.

    Returns:
        int64 positions in `ids`, in ascending order.

    Example:
        >>> choose_tokens(torch.tensor([5, 6, 7, 8]), torch.arange(10), alpha=0.5).tolist()
        [2, 3]
    """
    count = round(alpha * len(ids))
    chosen = torch.zeros(len(ids), dtype=torch.bool)
    chosen[torch.argsort(rank[ids], descending=True, stable=True)[:count]] = True
    if allowed is not None:
        chosen &= allowed[ids]
    return chosen.nonzero().flatten()


def written_rows(
    config: DefinitionEMBConfig,
    blend: DirectionalBlend,
    old: Tensor,
    new: Tensor,
    rarity: Tensor,
    groups: Tensor,
    weight: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the rows that a config writes, before a language model limits the change.

    Args:
        config: Strategy, weights and rescaling.
        blend: Fitted on all tokens with definitions.
        old: (n, d) pretrained rows.
        new: (n, d) rows from definitions.
        rarity: (n,) frequency rank as a share, 0 to 1.
        groups: (n,) int64 frequency group.
        weight: Weight at rarity 1; by default that of the config.

    Returns:
        Rows, (n, d) in the dtype of `old`, and the weights of the new rows, (n,) float64.
    """
    if config.strategy == "replace":
        rows = rescale_rows(new, old, groups, blend.centre) if config.rescale else new
        return rows.to(old.dtype), torch.ones(len(old), dtype=torch.float64)
    if weight is None:
        weight = AUTO_BLEND if config.blend_weight is None else config.blend_weight
    weights = blend_weights(rarity, weight, config.blend_floor)
    return blend(old, new, weights, groups), weights


def _along(matrix: Tensor, axes: Tensor) -> Tensor:
    """Diagonal of the matrix in the coordinates of the axes."""
    return (axes * (matrix @ axes)).sum(dim=0)


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, rows, _BLOCK))


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
