"""Rating correlation: whether the cosines of word pairs agree with human similarity ratings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from defemb_callbacks.metrics.blocks import checked, unit_rows
from defemb_callbacks.metrics.semantics import checked_pairs, group_of_pairs


class Ratings(NamedTuple):
    """Rated pairs of tokens.

    Attributes:
        pairs: Row ids of the two words of each pair, (m, 2) int64; the two are different.
        scores: How similar people find them, (m,) float64, on any scale that increases with similarity.
    """

    pairs: Tensor
    scores: Tensor


def read_ratings(path: str | Path) -> list[tuple[str, str, float]]:
    r"""Read rated pairs of words from a file such as SimLex-999, MEN or Rare Words: word, word, rating on each line.

    Fields are separated by tabs, otherwise by semicolons, otherwise by commas, otherwise by whitespace. Further fields
    and empty lines are ignored. The first line is a header if its third field is not a number.

    Args:
        path: Text file in UTF-8.

    Returns:
        `[(word, word, rating), …]` in the order of the file, with the words as written.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a line has another form (it is named), or no line has this form.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "ratings.csv")
        ...     _ = file.write_text("word1,word2,similarity\nold,new,1.58\nsmart,intelligent,9.2\n")
        ...     read_ratings(file)
        [('old', 'new', 1.58), ('smart', 'intelligent', 9.2)]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} does not exist. Pass a file of human ratings.")
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
            raise ValueError(
                f"{path}, line {number}: {line.rstrip()!r} is not 'word, word, rating'. Correct this line."
            )
        seen = True
    if not ratings:
        raise ValueError(f"{path} has no line 'word, word, rating'. Pass a file of human ratings.")
    return ratings


def rating_correlation(table: Tensor, pairs: Tensor, scores: Tensor, *, centred: bool = True) -> float:
    r"""Spearman rank correlation of the cosine of two rows with a human rating of the two words; higher is better.

    $$\rho\big(\operatorname{rank} \cos(e_a - \mu, e_b - \mu), \operatorname{rank} s_{ab}\big)$$

    where μ is the mean row of all words in `pairs` (Spearman 1904; the usual score of word similarity benchmarks, with
    the common direction removed as in Mu and Viswanath 2018). It lies in [−1, 1]: 0 means no relation, 1 the same
    order. Ties share their mean rank. It does not depend on the scale or a rotation of the table, or on a monotonic
    change of the ratings.

    Args:
        table: Table, (n, d), any floating dtype, any device. A row that is zero after centring has cosine 0 to all
            others.
        pairs: Row ids of the two words of each pair, (m, 2) int64, m ≥ 2; the two must be different.
        scores: Their ratings, (m,), any floating dtype.
        centred: Subtract μ; `False` uses the plain cosines.

    Raises:
        TypeError: If `table`, `pairs` or `scores` has the wrong dtype.
        ValueError: If the table is invalid (see `checked`), the shapes do not match, ids are out of range, a word is
            paired with itself, ratings are not finite, or all ratings or all cosines are equal.

    Example:
        >>> import torch
        >>> table = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.1]])
        >>> rating_correlation(table, torch.tensor([[0, 1], [0, 2], [0, 3]]), torch.tensor([9.0, 5.0, 1.0]))
        1.0
    """
    pairs, scores = checked_ratings(Ratings(pairs, scores))
    if len(pairs) < 2:
        raise ValueError(f"rating_correlation needs at least 2 pairs, got {len(pairs)}. Pass more pairs.")
    cosines = _cosines(checked(table), pairs, centred)
    for name, values in (("cosine", cosines), ("rating", scores)):
        if not _has_different_values(values):
            raise ValueError(
                f"rating_correlation needs different values, but every {name} is {float(values[0]):g}. "
                "Pass other pairs."
            )
    return _rank_correlation(cosines, scores)


class RatedByGroup(NamedTuple):
    """Rated pairs, each in the group of its rarer word and in `"all"`.

    Attributes:
        ratings: All pairs.
        groups: Which pairs belong to each group, (m,) bool by group name.
    """

    ratings: Ratings
    groups: dict[str, Tensor]

    @classmethod
    def of(cls, ratings: Ratings, groups: dict[str, Tensor]) -> RatedByGroup:
        """Assign pairs to groups, given as for `pairs_by_group`.

        Example:
            >>> import torch
            >>> ratings = Ratings(torch.tensor([[0, 1], [2, 0]]), torch.tensor([3.0, 1.0]))
            >>> by_group = RatedByGroup.of(ratings, {"frequent": torch.tensor([0, 1]), "rare": torch.tensor([2])})
            >>> {name: ratings.scores[members].tolist() for name, members in by_group.groups.items()}
            {'all': [3.0, 1.0], 'frequent': [3.0], 'rare': [1.0]}
        """
        pairs, scores = checked_ratings(ratings)
        group = group_of_pairs(pairs, groups)
        return cls(
            Ratings(pairs.cpu(), scores.cpu()),
            {"all": group.cpu() >= -1} | {name: group.cpu() == position for position, name in enumerate(groups)},
        )

    def correlations(self, table: Tensor, *, fewest: int = 2) -> dict[str, float]:
        """Compute `rating_correlation` of a validated table for each group with enough pairs that are not all tied.

        A group needs at least `fewest` pairs. The cosines of all pairs are centred by the same mean.
        """
        cosines = _cosines(table, self.ratings.pairs, centred=True)
        found = {}
        for name, members in self.groups.items():
            of_group, scores = cosines[members], self.ratings.scores[members]
            if len(of_group) >= fewest and _has_different_values(of_group) and _has_different_values(scores):
                found[name] = _rank_correlation(of_group, scores)
        return found


def checked_ratings(ratings: Ratings) -> Ratings:
    """Validate ratings."""
    pairs, scores = checked_pairs(ratings.pairs), ratings.scores
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"scores must be a floating-point tensor of ratings, got {kind}. Pass torch.tensor(scores).")
    if scores.shape != pairs.shape[:1]:
        raise ValueError(f"scores must have shape ({len(pairs)},), one for each pair, got {tuple(scores.shape)}.")
    if not scores.isfinite().all():
        raise ValueError(f"the rating of pair {int((~scores.isfinite()).nonzero()[0])} is not finite. Leave it out.")
    return Ratings(pairs, scores)


def _cosines(table: Tensor, pairs: Tensor, centred: bool) -> Tensor:
    """Compute the cosine of each pair of rows less the mean row of all words in `pairs`: (m,) float64 on the CPU."""
    words, positions = pairs.to(table.device).unique(return_inverse=True)
    if len(words) and int(words[-1]) >= len(table):
        raise ValueError(
            f"pairs name row {int(words[-1])}, the table has rows 0 to {len(table) - 1}. Pass ids of its rows."
        )
    rows = table[words].double()
    if centred:
        rows = rows - rows.mean(dim=0)
    directions = unit_rows(rows)
    # Cosines that differ only by rounding must tie, as in a rank-1 table.
    return (directions[positions[:, 0]] * directions[positions[:, 1]]).sum(dim=1).round(decimals=12).cpu()


def _has_different_values(values: Tensor) -> bool:
    return bool((values != values[0]).any())


def _rank_correlation(cosines: Tensor, scores: Tensor) -> float:
    from scipy.stats import spearmanr  # takes longer to import than the rest of this module

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
