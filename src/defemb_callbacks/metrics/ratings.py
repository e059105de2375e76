"""Whether near rows are what people call similar: correlation of cosines with human ratings of word pairs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from scipy.stats import spearmanr
from torch import Tensor

from defemb_callbacks.metrics.blocks import checked, unit_rows
from defemb_callbacks.metrics.semantics import checked_pairs, group_of_pairs


class Ratings(NamedTuple):
    """Rated pairs of tokens.

    Attributes:
        pairs: ``(m, 2)`` int64, the rows of the two words, no word with itself.
        scores: ``(m,)`` float64, how similar people find them; any scale that grows with similarity.
    """

    pairs: Tensor
    scores: Tensor


def read_ratings(path: str | Path) -> list[tuple[str, str, float]]:
    """Rated pairs of words from a file such as SimLex-999, MEN or Rare Words: word, word, rating on each line.

    The three are separated by tabs, else by semicolons, else by commas, else by blanks; what follows them is passed
    over, and so are empty lines. The first line may be a header: it is one if its third field is no number.

    Args:
        path: a text file in UTF-8.

    Returns:
        ``[(word, word, rating), …]`` in the file's order, words as written.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not of this form (named), or none that is.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "ratings.csv")
        ...     _ = file.write_text("word1,word2,similarity\\nold,new,1.58\\nsmart,intelligent,9.2\\n")
        ...     read_ratings(file)
        [('old', 'new', 1.58), ('smart', 'intelligent', 9.2)]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is no file of human ratings")
    ratings: list[tuple[str, str, float]] = []
    seen = False
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        fields = _fields(line)
        score = _number(fields[2]) if len(fields) > 2 else None
        if score is not None and fields[0] and fields[1]:
            ratings.append((fields[0], fields[1], score))
        elif seen or len(fields) < 3 or score is not None:
            raise ValueError(f"{path}, line {number}: {line.rstrip()!r} is not 'word, word, rating'")
        seen = True
    if not ratings:
        raise ValueError(f"{path} has no line 'word, word, rating'")
    return ratings


def rating_correlation(table: Tensor, pairs: Tensor, scores: Tensor, *, centred: bool = True) -> float:
    r"""Spearman's rank correlation of the cosine of two rows with a human rating of the two words; higher is better.

    .. math:: \rho\big(\operatorname{rank} \cos(e_a - \mu, e_b - \mu), \operatorname{rank} s_{ab}\big)

    with μ the mean row of all words in ``pairs`` (Spearman 1904; as word similarity benchmarks are scored, with the
    common direction taken out: Mu and Viswanath 2018). In [−1, 1]: 0 is no relation, 1 the same order. Ties share
    their mean rank. Unchanged by the scale and by a rotation of the table, and by any growing change of the ratings.

    Args:
        table: ``(n, d)``, any floating dtype, any device; a row that is zero after centring has cosine 0 to all.
        pairs: ``(m, 2)`` int64, row ids of the two words, m ≥ 2, no word with itself.
        scores: ``(m,)`` floating, their ratings.
        centred: subtract μ; ``False`` takes the cosines as they are.

    Raises:
        TypeError: ``table``, ``pairs`` or ``scores`` of another dtype.
        ValueError: see `checked`; or shapes that do not fit, ids outside the table, a word with itself, ratings that
            are not finite; or all ratings, or all cosines, are the same, so that there is no order.

    Example:
        >>> import torch
        >>> table = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.1]])
        >>> rating_correlation(table, torch.tensor([[0, 1], [0, 2], [0, 3]]), torch.tensor([9.0, 5.0, 1.0]))
        1.0
    """
    pairs, scores = checked_ratings(Ratings(pairs, scores))
    if len(pairs) < 2:
        raise ValueError(f"rating_correlation needs at least 2 pairs, got {len(pairs)}")
    cosines = _cosines(checked(table), pairs, centred)
    for name, values in (("cosine", cosines), ("rating", scores)):
        if not _has_order(values):
            raise ValueError(f"rating_correlation needs an order, but every {name} is {float(values[0]):g}")
    return _rank_correlation(cosines, scores)


class RatedByGroup(NamedTuple):
    """Rated pairs, each in the group of its rarer word and in ``"all"``.

    Attributes:
        ratings: all of them.
        groups: ``(m,)`` bool by group, which pairs are its own.
    """

    ratings: Ratings
    groups: dict[str, Tensor]

    @classmethod
    def of(cls, ratings: Ratings, groups: dict[str, Tensor]) -> RatedByGroup:
        """With groups as `pairs_by_group` takes them.

        Example:
            >>> import torch
            >>> ratings = Ratings(torch.tensor([[0, 1], [2, 0]]), torch.tensor([3.0, 1.0]))
            >>> by_group = RatedByGroup.of(ratings, {"frequent": torch.tensor([0, 1]), "rare": torch.tensor([2])})
            >>> {name: ratings.scores[its].tolist() for name, its in by_group.groups.items()}
            {'all': [3.0, 1.0], 'frequent': [3.0], 'rare': [1.0]}
        """
        pairs, scores = checked_ratings(ratings)
        group = group_of_pairs(pairs, groups)
        return cls(
            Ratings(pairs.cpu(), scores.cpu()),
            {"all": group.cpu() >= -1} | {name: group.cpu() == position for position, name in enumerate(groups)},
        )

    def correlations(self, table: Tensor, *, fewest: int = 2) -> dict[str, float]:
        """`rating_correlation` of a checked table for each group that has so many pairs, and an order among them.

        The cosines of all pairs are centred by one mean.
        """
        cosines = _cosines(table, self.ratings.pairs, centred=True)
        found = {}
        for name, its in self.groups.items():
            here, scores = cosines[its], self.ratings.scores[its]
            if len(here) >= fewest and _has_order(here) and _has_order(scores):
                found[name] = _rank_correlation(here, scores)
        return found


def checked_ratings(ratings: Ratings) -> Ratings:
    """The ratings, or an error that says what is wrong with them."""
    pairs, scores = checked_pairs(ratings.pairs), ratings.scores
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"scores must be a floating-point tensor of ratings, got {kind}; use torch.tensor(scores)")
    if scores.shape != pairs.shape[:1]:
        raise ValueError(f"scores must have shape ({len(pairs)},), one for each pair, got {tuple(scores.shape)}")
    if not scores.isfinite().all():
        raise ValueError(f"the rating of pair {int((~scores.isfinite()).nonzero()[0])} is not finite; leave it out")
    return Ratings(pairs, scores)


def _cosines(table: Tensor, pairs: Tensor, centred: bool) -> Tensor:
    """The cosine of each pair, ``(m,)`` float64 on the CPU, of rows less the mean row of all words in ``pairs``."""
    words, where = pairs.to(table.device).unique(return_inverse=True)
    if len(words) and int(words[-1]) >= len(table):
        raise ValueError(f"pairs name row {int(words[-1])}, the table has rows 0 to {len(table) - 1}")
    rows = table[words].double()
    if centred:
        rows = rows - rows.mean(dim=0)
    directions = unit_rows(rows)
    # Cosines that differ by rounding alone must tie, as in a rank-1 table.
    return (directions[where[:, 0]] * directions[where[:, 1]]).sum(dim=1).round(decimals=12).cpu()


def _has_order(values: Tensor) -> bool:
    return bool((values != values[0]).any())


def _rank_correlation(cosines: Tensor, scores: Tensor) -> float:
    return float(spearmanr(cosines.numpy(), scores.cpu().numpy()).statistic)


def _fields(line: str) -> list[str]:
    for separator in "\t;,":
        if separator in line:
            return [field.strip() for field in line.split(separator)]
    return re.split(r"\s+", line.strip())


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None
