"""How a new row and the old one become the row that is written."""

from __future__ import annotations

import torch
from torch import Tensor

from defemb_callbacks.config import DefinitionEMBConfig


def blend_weights(rarity: Tensor, blend: float, floor: float) -> Tensor:
    """Weight of the new direction: `blend · (floor + (1 - floor) · rarity)`.

    Frequent tokens were seen often enough for their rows to be right, and tasks lean on them: they are left nearly
    alone. Rare tokens have little but their definition.

    Args:
        rarity: frequency rank as a share, 0 for the most frequent token and 1 for the least frequent one.
        blend: weight at rarity 1.
        floor: share of `blend` at rarity 0.

    Example:
        >>> [round(w, 3) for w in blend_weights(torch.tensor([0.0, 0.5, 1.0]), blend=0.4, floor=0.25).tolist()]
        [0.1, 0.25, 0.4]
    """
    return blend * (floor + (1 - floor) * rarity)


def blend_rows(old: Tensor, new: Tensor, weights: Tensor, centre: Tensor) -> Tensor:
    """Turn old rows towards new ones, keeping the length of each old row.

    Directions are those of the deviations from `centre`. All rows share a common direction, which says nothing of
    a word; and as regression shrinks deviations, not the centre, mixing whole rows would turn them towards it.

    Args:
        old: (n, d).
        new: (n, d), paired with them; any length.
        weights: (n,) in [0, 1]; 0 gives the old row, bit by bit.
        centre: (d,) mean of the table.

    Example:
        >>> old, new = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.1]])
        >>> blend_rows(old, new, torch.tensor([0.5]), torch.zeros(2))
        tensor([[1.4142, 1.4142]])
    """
    weights = weights[:, None].to(torch.float64)
    deviation = old.to(torch.float64) - centre
    length = deviation.norm(dim=1, keepdim=True)
    mixed = (1 - weights) * deviation + weights * length * _unit(new.to(torch.float64) - centre)
    turned = _unit(centre + length * _unit(mixed)) * old.to(torch.float64).norm(dim=1, keepdim=True)
    return torch.where(weights > 0, turned.to(old.dtype), old)


def rescale_rows(new: Tensor, old: Tensor, groups: Tensor, centre: Tensor) -> Tensor:
    """Give new rows the typical (median) length that deviations from the centre have in the old rows of their group.

    Mean squared error pulls predictions towards the mean: unscaled, they are 0.4 to 0.5 times as long as the old rows.

    Args:
        new: (n, d).
        old: (n, d), paired with them.
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
    """The least frequent `alpha` of the definable tokens, of which those that are `allowed`.

    Args:
        ids: (n,) int64 tokens with a definition.
        rank: (size,) frequency rank by token.
        alpha: share in [0, 1]. Source: arXiv 2408.01308, replacement ratio.
        allowed: (size,) bool, e.g. the tokens of the training data.

    Returns:
        int64 positions in `ids`, in their order.

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
    config: DefinitionEMBConfig, old: Tensor, new: Tensor, rarity: Tensor, groups: Tensor, centre: Tensor
) -> tuple[Tensor, Tensor]:
    """The rows that a config writes, (n, d) in the type of `old`, and the weight of the new direction in each, (n,)."""
    if config.strategy == "replace":
        rows = rescale_rows(new, old, groups, centre) if config.rescale else new
        return rows.to(old.dtype), torch.ones(len(old), dtype=torch.float64)
    weights = blend_weights(rarity, config.blend, config.blend_floor)
    return blend_rows(old, new, weights, centre), weights


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
