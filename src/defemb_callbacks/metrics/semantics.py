"""Relation AUC: whether a table reflects lexical relations, compared with randomly re-paired words."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import CACHED, checked, make_unit_, reciprocal_or_zero, row_blocks

MAX_SWAPS = 64  # per pair, to find an unrelated partner


def relation_auc(table: Tensor, pairs: Tensor, *, centred: bool = True, seed: int = 0) -> float:
    r"""Probability that related words have a larger cosine than re-paired ones; higher means more meaning.

    $$P(\cos^+ > \cos^-) + \tfrac{1}{2} P(\cos^+ = \cos^-)$$

    over all combinations of a related pair and a re-paired one: the area under the ROC curve (Mann and Whitney 1947).
    It lies in [0, 1]: 0.5 is chance, 1 is perfect. Re-paired words are the same left words with the right words
    shuffled (see `shuffled_pairs`): both sets contain the same words equally often, so frequency or length cannot give
    the answer away.

    Cosines are computed from unit rows less the mean unit row of all words in `pairs`. A direction common to all rows
    would add to each cosine not a constant, which ranks would ignore, but a term that depends on how much of it the
    two rows have. For example, a common direction three times as long as the rows lowers MiniLM's score on 19,266
    WordNet hypernym pairs from 0.83 to 0.71 without centring, although no word has moved relative to the others; with
    centring it stays at 0.83. `average_cosine` measures that direction; this score measures which words are near each
    other. It does not depend on row lengths, rotation, or rows that are in no pair. Directions are computed in float64
    and stored in float32, so cosines that agree to six decimals tie (to twelve for a float64 table), which changes the
    score by less than 1e-6.

    Args:
        table: Table, (n, d), any floating dtype, any device. A row that is zero or equal to the mean has cosine 0 to
            all others.
        pairs: Row ids of related words, (m, 2) int64, m ≥ 2; the two words of a pair must be different.
        centred: Subtract the mean unit row; `False` uses the plain cosines.
        seed: Seed of the shuffle.

    Raises:
        TypeError: If `table` or `pairs` has the wrong dtype.
        ValueError: If the table is invalid (see `checked`), there are fewer than 2 pairs, ids are out of range, or a
            word is paired with itself.

    Example:
        >>> table = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> relation_auc(table, torch.tensor([[0, 1], [2, 3]]))
        1.0
    """
    return RelatedWords.of(pairs, seed=seed).auc(checked(table), centred=centred)


class RelatedWords(NamedTuple):
    """Pairs prepared for `relation_auc`, computed once for many tables.

    Attributes:
        words: Ids of all words in the pairs, ascending, (w,) int64.
        left: Positions in `words` of the left words, (m,) int64.
        right: Positions of the words related to them, (m,) int64.
        other: Positions of the words they are re-paired with, (m,) int64.
    """

    words: Tensor
    left: Tensor
    right: Tensor
    other: Tensor

    @classmethod
    def of(cls, pairs: Tensor, *, seed: int = 0) -> RelatedWords:
        """Prepare pairs of row ids, (m, 2) int64, m ≥ 2."""
        pairs = checked_pairs(pairs)
        if len(pairs) < 2:
            raise ValueError(f"relation_auc needs at least 2 pairs, got {len(pairs)}. Pass more pairs.")
        words, (left, right, other) = torch.stack([*pairs.cpu().T, shuffled_pairs(pairs, seed=seed)[:, 1]]).unique(
            return_inverse=True
        )
        return cls(words, left, right, other)

    def auc(self, table: Tensor, *, centred: bool = True) -> float:
        """Compute `relation_auc` of a `checked` table."""
        words, left, right, other = (ids.to(table.device) for ids in self)
        if int(words[-1]) >= len(table):
            raise ValueError(
                f"pairs name row {int(words[-1])}, the table has rows 0 to {len(table) - 1}. Pass ids of its rows."
            )
        directions = _directions(table, words, centred)
        related, shuffled = (_cosines(directions, left, partners) for partners in (right, other))
        shuffled = shuffled.sort().values
        below = torch.searchsorted(shuffled, related, side="left")
        not_above = torch.searchsorted(shuffled, related, side="right")
        return float((below + not_above).double().mean() / (2 * len(shuffled)))


def shuffled_pairs(pairs: Tensor, *, seed: int = 0) -> Tensor:
    """Shuffle the right words of the pairs: `relation_auc` compares related pairs with the result.

    The shuffle is a random cycle, so no pair keeps its right word by staying in place. If a word is then paired with
    itself or with a related word (in either order), its right word is swapped with random others, in up to 64
    attempts, until both pairs are unrelated. Pairs for which this fails, for example if one word is in every pair,
    stay and pull the score towards 0.5.

    Args:
        pairs: Row ids, (m, 2) int64; the two words of a pair must be different.
        seed: Seed of the shuffle.

    Returns:
        The pairs, (m, 2) int64, on the CPU.

    Raises:
        TypeError: If `pairs` is not an int64 tensor.
        ValueError: If `pairs` has another shape, or a word is paired with itself.

    Example:
        >>> shuffled_pairs(torch.tensor([[0, 1], [2, 3]])).tolist()
        [[0, 3], [2, 1]]
    """
    left, right = checked_pairs(pairs).cpu().T.tolist()
    related = set(zip(left, right, strict=True)) | set(zip(right, left, strict=True)) | {(word, word) for word in left}
    rng = random.Random(seed)
    cycle = list(range(len(left)))
    rng.shuffle(cycle)
    partner = [0] * len(left)
    for position, following in zip(cycle, cycle[1:] + cycle[:1], strict=True):
        partner[position] = right[following]
    for i in range(len(left)):
        for _ in range(MAX_SWAPS):
            if (left[i], partner[i]) not in related:
                break
            j = rng.randrange(len(left))
            if (left[i], partner[j]) not in related and (left[j], partner[i]) not in related:
                partner[i], partner[j] = partner[j], partner[i]
    return torch.tensor([left, partner], dtype=torch.int64).T.contiguous()


def pairs_by_group(pairs: Tensor, groups: dict[str, Tensor]) -> dict[str, Tensor]:
    """Assign each pair to the group of its rarer word, and all pairs to `"all"`.

    Args:
        pairs: Row ids, (m, 2) int64.
        groups: Disjoint ids by name, from frequent to rare: `{"frequent": …, "medium": …, "rare": …}`.

    Returns:
        `{"all": all pairs, "frequent": …, …}`. Pairs with a word in no group are only in `"all"`.

    Raises:
        TypeError: If `pairs` is not an int64 tensor.
        ValueError: If `pairs` has another shape, a word is paired with itself, an id is in two groups, or a group is
            called "all".

    Example:
        >>> groups = {"frequent": torch.tensor([0, 1]), "rare": torch.tensor([2])}
        >>> by_group = pairs_by_group(torch.tensor([[0, 1], [2, 0], [1, 7]]), groups)
        >>> {name: chosen.tolist() for name, chosen in by_group.items()}
        {'all': [[0, 1], [2, 0], [1, 7]], 'frequent': [[0, 1]], 'rare': [[2, 0]]}
    """
    group = group_of_pairs(pairs, groups)
    return {"all": pairs} | {name: pairs[group == position] for position, name in enumerate(groups)}


def group_of_pairs(pairs: Tensor, groups: dict[str, Tensor]) -> Tensor:
    """Return the position in `groups` of each pair's rarer word, (m,) int64; −1 if one of its words is in no group.

    Raises:
        TypeError: As in `pairs_by_group`.
        ValueError: As in `pairs_by_group`.

    Example:
        >>> groups = {"frequent": torch.tensor([0, 1]), "rare": torch.tensor([2])}
        >>> group_of_pairs(torch.tensor([[0, 1], [2, 0], [1, 7]]), groups).tolist()
        [0, 1, -1]
    """
    pairs = checked_pairs(pairs)
    if "all" in groups:
        raise ValueError('groups must not contain "all", which is every pair. Pass the frequency groups only.')
    ids = [members.to(pairs.device) for members in groups.values()]
    highest = max([int(members.max()) for members in (*ids, pairs) if members.numel()], default=-1)
    rank = torch.full((highest + 1,), -1, device=pairs.device)
    for position, (name, members) in enumerate(zip(groups, ids, strict=True)):
        if (members < 0).any():
            raise ValueError(
                f"group {name!r} must hold row ids of 0 or more, got {int(members.min())}. Leave out negative ids."
            )
        taken = members[rank[members] >= 0]
        if taken.numel():
            raise ValueError(
                f"token {int(taken[0])} is in group {name!r} and in a group before it. Pass disjoint groups."
            )
        rank[members] = position
    ranks = rank[pairs]
    return ranks.amax(dim=1).where((ranks >= 0).all(dim=1), -1)


def checked_pairs(pairs: Tensor) -> Tensor:
    """Validate pairs of row ids."""
    if not isinstance(pairs, Tensor) or pairs.dtype != torch.int64:
        kind = pairs.dtype if isinstance(pairs, Tensor) else type(pairs).__name__
        raise TypeError(f"pairs must be an int64 tensor of row ids, got {kind}. Pass torch.tensor(pairs).")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must have shape (m, 2), got {tuple(pairs.shape)}.")
    if (pairs < 0).any():
        raise ValueError(f"pairs must hold row ids of 0 or more, got {int(pairs.min())}. Leave out negative ids.")
    alike = (pairs[:, 0] == pairs[:, 1]).nonzero()
    if alike.numel():
        row = int(alike[0])
        raise ValueError(f"pair {row} relates token {int(pairs[row, 0])} to itself. Leave such pairs out.")
    return pairs


def _directions(table: Tensor, words: Tensor, centred: bool) -> Tensor:
    """Normalize the rows of `words`, subtract their mean if `centred`, and normalize again: (w, d)."""
    # Computed in float64. Stored in float32, a cosine is exact to 1e-7, far better than the rounding of the table.
    dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
    centre = torch.zeros(table.shape[1], dtype=torch.float64, device=table.device)
    if centred:
        centre = torch.stack([make_unit_(block).sum(dim=0) for block in row_blocks(table, words)]).sum(dim=0)
        centre /= len(words)
    # An offset from the centre below the precision of the table's dtype, or of this sum, is rounding error.
    shortest = max(torch.finfo(table.dtype).eps, 1e-12)
    directions = torch.empty(len(words), table.shape[1], dtype=dtype, device=table.device)
    start = 0
    for block in row_blocks(table, words):
        make_unit_(block).sub_(centre)
        lengths = torch.linalg.vector_norm(block, dim=1)
        block *= reciprocal_or_zero(lengths.where(lengths > shortest, 0.0))[:, None]
        directions[start : start + len(block)] = block
        start += len(block)
    return directions


def _cosines(directions: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Compute the cosine of each row in `left` with the row at the same position in `right`: (m,) float64."""
    rows = max(1, CACHED // directions.shape[1])
    blocks = zip(left.split(rows), right.split(rows), strict=True)
    cosines = torch.cat([(directions[a] * directions[b]).sum(dim=1) for a, b in blocks])
    # Cosines that differ only by rounding must tie, as in a rank-1 table.
    return cosines.double().round(decimals=12 if directions.dtype == torch.float64 else 6)
