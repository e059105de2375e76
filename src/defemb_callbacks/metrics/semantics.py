"""Whether a table still knows which words belong together: lexical relations against re-paired words."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import CACHED, checked, make_unit_, reciprocal_or_zero, row_blocks

_TRIES = 64


def relation_auc(table: Tensor, pairs: Tensor, *, centred: bool = True, seed: int = 0) -> float:
    r"""How well the cosine tells related words from re-paired ones; higher means more meaning.

    .. math:: P(\cos^+ > \cos^-) + \tfrac{1}{2} P(\cos^+ = \cos^-)

    over all combinations of a related pair and a re-paired one (Mann and Whitney 1947; the area under the ROC curve).
    In [0, 1]: 0.5 is no meaning, 1 is perfect. The re-paired ones are the same left words with the right words shuffled
    (`shuffled_pairs`): both sets hold the same words equally often, so that frequency or length cannot give the answer
    away.

    The cosines are of unit rows less the mean unit row of all words in ``pairs``. A direction common to all rows adds
    no mere constant, which ranks would ignore: it adds each row's own share of it, until cosines tell mostly who has
    more. With a common direction three times as long as the rows, MiniLM's score on 19,266 WordNet hypernym pairs falls
    from 0.83 to 0.71 uncentred, though every word is still where it was among the others; centred it stays at 0.83. How
    strong that direction is, `average_cosine` tells; this score tells who is near whom. It is unchanged by row
    lengths, by rotation, and by rows in no pair. Directions are computed in float64 and kept in float32, so cosines
    that are the same to six decimals tie, to twelve for a float64 table; that moves the score by less than 1e-6.

    Args:
        table: ``(n, d)``, any floating dtype, any device; a row that is zero, or at the mean, has cosine 0 to all.
        pairs: ``(m, 2)`` int64, row ids of related words, m ≥ 2, no word with itself.
        centred: subtract the mean unit row; ``False`` takes the cosines as they are.
        seed: of the shuffle.

    Raises:
        TypeError: ``table`` or ``pairs`` of another dtype.
        ValueError: see `checked`; or ``pairs`` of another shape, fewer than 2, outside the table, a word with itself.

    Example:
        >>> table = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> relation_auc(table, torch.tensor([[0, 1], [2, 3]]))
        1.0
    """
    return RelatedWords.of(pairs, seed=seed).auc(checked(table), centred=centred)


class RelatedWords(NamedTuple):
    """What `relation_auc` needs of its pairs, computed once for many tables.

    Attributes:
        words: ``(w,)`` int64, the rows in any pair, in growing order.
        left, right, other: ``(m,)`` int64, positions in ``words``; left with right are related, with other re-paired.
    """

    words: Tensor
    left: Tensor
    right: Tensor
    other: Tensor

    @classmethod
    def of(cls, pairs: Tensor, *, seed: int = 0) -> RelatedWords:
        """From ``(m, 2)`` int64 row ids, m ≥ 2."""
        pairs = checked_pairs(pairs)
        if len(pairs) < 2:
            raise ValueError(f"relation_auc needs at least 2 pairs, got {len(pairs)}")
        words, (left, right, other) = torch.stack([*pairs.cpu().T, shuffled_pairs(pairs, seed=seed)[:, 1]]).unique(
            return_inverse=True
        )
        return cls(words, left, right, other)

    def auc(self, table: Tensor, *, centred: bool = True) -> float:
        """`relation_auc` of a `checked` table."""
        words, left, right, other = (ids.to(table.device) for ids in self)
        if int(words[-1]) >= len(table):
            raise ValueError(f"pairs name row {int(words[-1])}, the table has rows 0 to {len(table) - 1}")
        directions = _directions(table, words, centred)
        related, shuffled = (_cosines(directions, left, partners) for partners in (right, other))
        shuffled = shuffled.sort().values
        below = torch.searchsorted(shuffled, related, side="left")
        not_above = torch.searchsorted(shuffled, related, side="right")
        return float((below + not_above).double().mean() / (2 * len(shuffled)))


def shuffled_pairs(pairs: Tensor, *, seed: int = 0) -> Tensor:
    """The same left words with the right words in another order: what `relation_auc` compares related pairs with.

    The shuffle is one random cycle, so no pair keeps its right word by staying in place. A word that met itself or one
    that it is related to (in either order) then swaps its right word with random others, up to 64 tries, until both
    are unrelated. What cannot be helped, as when one word is in every pair, stays, and draws the score towards 0.5.

    Args:
        pairs: ``(m, 2)`` int64, no word with itself.
        seed: of the shuffle.

    Returns:
        ``(m, 2)`` int64 on the CPU.

    Raises:
        TypeError, ValueError: ``pairs`` of another dtype or shape, or a word with itself.

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
    for here, there in zip(cycle, cycle[1:] + cycle[:1], strict=True):
        partner[here] = right[there]
    for i in range(len(left)):
        for _ in range(_TRIES):
            if (left[i], partner[i]) not in related:
                break
            j = rng.randrange(len(left))
            if (left[i], partner[j]) not in related and (left[j], partner[i]) not in related:
                partner[i], partner[j] = partner[j], partner[i]
    return torch.tensor([left, partner], dtype=torch.int64).T.contiguous()


def pairs_by_group(pairs: Tensor, groups: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each pair in the group of its rarer word, and every pair in ``"all"``.

    Args:
        pairs: ``(m, 2)`` int64 row ids.
        groups: disjoint ids by name, from frequent to rare: ``{"frequent": …, "medium": …, "rare": …}``.

    Returns:
        ``{"all": every pair, "frequent": …, …}``. A pair with a word in no group is in ``"all"`` only.

    Raises:
        TypeError: ``pairs`` of another dtype.
        ValueError: ``pairs`` of another shape or a word with itself; an id in two groups; a group called "all".

    Example:
        >>> groups = {"frequent": torch.tensor([0, 1]), "rare": torch.tensor([2])}
        >>> by_group = pairs_by_group(torch.tensor([[0, 1], [2, 0], [1, 7]]), groups)
        >>> {name: chosen.tolist() for name, chosen in by_group.items()}
        {'all': [[0, 1], [2, 0], [1, 7]], 'frequent': [[0, 1]], 'rare': [[2, 0]]}
    """
    group = group_of_pairs(pairs, groups)
    return {"all": pairs} | {name: pairs[group == position] for position, name in enumerate(groups)}


def group_of_pairs(pairs: Tensor, groups: dict[str, Tensor]) -> Tensor:
    """The position in ``groups`` of each pair's rarer word, ``(m,)`` int64; −1 where a word is in no group.

    Raises:
        TypeError, ValueError: as `pairs_by_group`.

    Example:
        >>> groups = {"frequent": torch.tensor([0, 1]), "rare": torch.tensor([2])}
        >>> group_of_pairs(torch.tensor([[0, 1], [2, 0], [1, 7]]), groups).tolist()
        [0, 1, -1]
    """
    pairs = checked_pairs(pairs)
    if "all" in groups:
        raise ValueError('groups must not contain "all", which is every pair; pass the frequency groups only')
    ids = [members.to(pairs.device) for members in groups.values()]
    highest = max([int(members.max()) for members in (*ids, pairs) if members.numel()], default=-1)
    rank = torch.full((highest + 1,), -1, device=pairs.device)
    for position, (name, members) in enumerate(zip(groups, ids, strict=True)):
        if (members < 0).any():
            raise ValueError(f"group {name!r} must hold row ids of 0 or more, got {int(members.min())}")
        taken = members[rank[members] >= 0]
        if taken.numel():
            raise ValueError(
                f"token {int(taken[0])} is in group {name!r} and in a group before it; groups must be disjoint"
            )
        rank[members] = position
    ranks = rank[pairs]
    return ranks.amax(dim=1).where((ranks >= 0).all(dim=1), -1)


def checked_pairs(pairs: Tensor) -> Tensor:
    """The pairs, or an error that says what is wrong with them."""
    if not isinstance(pairs, Tensor) or pairs.dtype != torch.int64:
        kind = pairs.dtype if isinstance(pairs, Tensor) else type(pairs).__name__
        raise TypeError(f"pairs must be an int64 tensor of row ids, got {kind}; use torch.tensor(pairs)")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must have shape (m, 2), got {tuple(pairs.shape)}")
    if (pairs < 0).any():
        raise ValueError(f"pairs must hold row ids of 0 or more, got {int(pairs.min())}")
    alike = (pairs[:, 0] == pairs[:, 1]).nonzero()
    if alike.numel():
        row = int(alike[0])
        raise ValueError(f"pair {row} relates token {int(pairs[row, 0])} to itself; leave such pairs out")
    return pairs


def _directions(table: Tensor, words: Tensor, centred: bool) -> Tensor:
    """Unit rows of ``words``, less their mean if ``centred``, and made unit again: ``(w, d)``."""
    # Computed in float64; then float32 holds a cosine to 1e-7, far finer than the table's own rounding moves it.
    dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
    centre = torch.zeros(table.shape[1], dtype=torch.float64, device=table.device)
    if centred:
        centre = torch.stack([make_unit_(block).sum(dim=0) for block in row_blocks(table, words)]).sum(dim=0)
        centre /= len(words)
    # Nearer to the centre than the table's dtype, or this sum, can tell, an offset is rounding: no direction at all.
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
    """Of each row named by ``left`` with the one named beside it by ``right``: ``(m,)`` float64."""
    rows = max(1, CACHED // directions.shape[1])
    blocks = zip(left.split(rows), right.split(rows), strict=True)
    cosines = torch.cat([(directions[here] * directions[there]).sum(dim=1) for here, there in blocks])
    # Cosines that differ by rounding alone must tie, as in a rank-1 table.
    return cosines.double().round(decimals=12 if directions.dtype == torch.float64 else 6)
