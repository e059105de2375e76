"""Blend rows from definitions with pretrained rows, with a weight for each token and principal direction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.metrics.blocks import exact_float32

AUTO_BLEND = 0.7  # the largest weight with `blend="auto"`; see benchmarks/geometry.py

FEWEST_ROWS = 100  # fewer rows do not determine the correlation of single directions
# Rows converted to float64 at once, and their elements.
_BLOCK, _BLOCK_ELEMENTS = 8192, 1 << 22
_COLUMNS = 512  # width of the blocks of columns in which half of a symmetric matrix is computed
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
        centre, width, count = centre.to(torch.float64), old.shape[1], len(old)
        total, gram = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
        for part in _blocks(count, width):
            y = _unit(old[part].to(torch.float64) - centre)
            total += y.sum(dim=0)
            for start in range(0, width, _COLUMNS):  # the lower triangle, which `eigh` reads
                stop = min(start + _COLUMNS, width)
                gram[start:, start:stop].addmm_(y[:, start:].T, y[:, start:stop])
        _, axes = torch.linalg.eigh(gram / count - total.outer(total) / count**2)
        # Sums of y, p, y², p² and yp along each axis.
        sums = torch.zeros(5, width, dtype=torch.float64)
        directions = axes.to(_product_dtype(old))
        for part in _blocks(count, width):
            y, p = _projected(old[part], centre, directions), _projected(new[part], centre, directions)
            sums += torch.stack([values.sum(dim=0) for values in (y, p, y.square(), p.square(), y * p)])
        mean_old, mean_new, square_old, square_new, product = sums / count
        variance_old, variance_new = square_old - mean_old.square(), square_new - mean_new.square()
        varies = torch.minimum(variance_old, variance_new) > 1e-12 * variance_old.max()
        shared = product - mean_old * mean_new
        correlation = torch.where(varies, shared / (variance_old * variance_new).sqrt(), 0.0).clamp(min=0)
        if not correlation.max() > 0:  # nothing was predicted, so no direction is preferred
            correlation = torch.ones_like(correlation)
        scale = torch.where(varies, (variance_old / variance_new).sqrt(), 1.0)
        return cls(centre, axes, correlation / correlation.max(), scale)

    def __call__(self, old: Tensor, new: Tensor, weights: Tensor, groups: Tensor) -> Tensor:
        """Blend rows.

        Each row is projected on the directions once. Products are computed in float32, or in float64 if `old` is
        float64 or if PyTorch is set to compute float32 products in a lower precision.

        Args:
            old: (n, d) pretrained rows.
            new: (n, d) rows from definitions, paired with them; any length.
            weights: (n,) in [0, 1]; 0 keeps the old row bit for bit.
            groups: (n,) int64, the group of each row, e.g. its frequency group. Each group keeps its variance
                in each direction. A group of fewer than 100 rows is blended without that correction.

        Returns:
            (n, d) in the dtype of `old`, with the lengths of the old rows.
        """
        (count, width), dtype = old.shape, _product_dtype(old)
        axes, influence = self.axes.to(dtype), self.correlation**_EXPONENT
        # First the coordinates of the blended rows, which the rows themselves replace block by block.
        rows = torch.empty(count, width, dtype=torch.promote_types(old.dtype, torch.float32))
        sizes = torch.bincount(groups)
        # For each group, sums of old and blended coordinates and of their squares.
        sums = torch.zeros(4, len(sizes), width, dtype=torch.float64)
        for part in _blocks(count, width):
            y, p = _projected(old[part], self.centre, axes), _projected(new[part], self.centre, axes)
            mixed = p.mul_(self.scale).sub_(y).mul_(influence).mul_(weights[part, None]).add_(y)
            rows[part] = mixed
            members = torch.nn.functional.one_hot(groups[part], len(sizes)).T.to(torch.float64)
            sums += torch.stack([members @ values for values in (y, y.square(), mixed, mixed.square())])
        before, before_square, after, after_square = sums / sizes[:, None]
        ratio = (before_square - before.square()) / (after_square - after.square())
        usable = torch.isfinite(ratio) & (ratio >= 0) & (sizes >= FEWEST_ROWS)[:, None]
        factors = torch.where(usable, ratio, 1.0).sqrt()
        for part in _blocks(count, width):
            own = old[part].to(torch.float64)
            length = (own - self.centre).norm(dim=1, keepdim=True)
            mixed = (rows[part] * factors[groups[part]]).to(dtype) @ axes.T
            turned = _unit(self.centre + length * _unit(mixed.to(torch.float64))) * own.norm(dim=1, keepdim=True)
            rows[part] = torch.where(weights[part, None] > 0, turned.to(rows.dtype), old[part].to(rows.dtype))
        return rows.to(old.dtype)


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
    for part in _blocks(*old.shape):
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
    parts = list(_blocks(*old.shape))
    lengths = torch.cat([(old[part].to(torch.float64) - centre).norm(dim=1) for part in parts])
    target = torch.empty_like(lengths)
    for group in groups.unique():
        members = groups == group
        target[members] = lengths[members].median()
    rows = torch.empty_like(new)
    for part in parts:
        rows[part] = (_unit(new[part].to(torch.float64) - centre) * target[part, None] + centre).to(new.dtype)
    return rows


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


def _product_dtype(rows: Tensor) -> torch.dtype:
    exact = rows.dtype != torch.float64 and exact_float32(rows.device)
    return torch.float32 if exact else torch.float64


def _projected(rows: Tensor, centre: Tensor, axes: Tensor) -> Tensor:
    """Coordinates of the rows' unit deviations along the axes, (n, d) float64, rounded to the dtype of the axes."""
    return (_unit(rows.to(torch.float64) - centre).to(axes.dtype) @ axes).to(torch.float64)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(256, min(_BLOCK, _BLOCK_ELEMENTS // width))
    return (slice(start, start + step) for start in range(0, rows, step))


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
