"""Snapshots of an embedding table: what pictures and pages need, much smaller than the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import checked, unit_rows
from defemb_callbacks.metrics.groups import evenly
from defemb_callbacks.metrics.measure import spectra_by_group
from defemb_callbacks.metrics.neighbours import nearest_rows
from defemb_callbacks.metrics.spectrum import Spectrum
from defemb_callbacks.vocabulary.frequency import GROUPS
from defemb_callbacks.vocabulary.tokens import Vocabulary

POINTS = 250  # per group in a projection; more would overlap too much


@dataclass(frozen=True)
class TableSnapshot:
    """What pictures and pages need of a table at one time; much smaller than the table.

    Attributes:
        metrics: Metrics by key `defemb/<metric>/<group>`; may be empty.
        spectrum: Singular values of the rows of `"all"`, largest first, (d,) float64.
        basis: The first two right singular vectors of these rows, (d, 2) float64.
        points: Rows of a sample of each group, (at most 250, d) float32; always the same tokens.
        point_ids: Ids of these tokens, (at most 250,) int64.
        neighbours: The nearest tokens of each watched token and their cosines, nearest first.
    """

    metrics: dict[str, float]
    spectrum: Tensor
    basis: Tensor
    points: dict[str, Tensor]
    point_ids: dict[str, Tensor]
    neighbours: dict[int, list[tuple[int, float]]]

    @classmethod
    @torch.no_grad()
    def take(
        cls,
        table: Tensor,
        groups: Mapping[str, Tensor],
        *,
        metrics: Mapping[str, float] | None = None,
        spectrum: Spectrum | None = None,
        watched: Tensor | None = None,
        among: Tensor | None = None,
        nearest: int = 6,
    ) -> TableSnapshot:
        """Take a snapshot of a table, which is neither modified nor kept.

        Args:
            table: Table, (n, d), any floating dtype, any device.
            groups: Token ids by group, from `frequency_groups`.
            metrics: Metrics of this table by key `defemb/<metric>/<group>`.
            spectrum: Spectrum of the rows of `groups["all"]`, if it is already known.
            watched: Ids of the tokens whose neighbours are looked up, (w,) int64.
            among: Ids of the tokens that may be neighbours, int64; `None` means `groups["all"]`.
            nearest: Number of neighbours of each watched token.

        Raises:
            TypeError: If the table is not a floating-point tensor.
            ValueError: If the table is invalid (see `measure_table`), or ids are out of range.

        Example:
            >>> table = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
            >>> ids = torch.arange(3)
            >>> groups = {"all": ids, "frequent": ids[:1], "medium": ids[1:2], "rare": ids[2:]}
            >>> taken = TableSnapshot.take(table, groups, watched=torch.tensor([0]), nearest=1)
            >>> [(token, round(cosine, 3)) for token, cosine in taken.neighbours[0]]
            [(1, 0.995)]
        """
        table = checked(table)
        if spectrum is None:
            spectrum = spectra_by_group(table, {"all": groups["all"]})["all"]
        point_ids = {name: evenly(groups[name], POINTS).cpu() for name in GROUPS if len(groups[name])}
        neighbours = {}
        if watched is not None:
            neighbours = nearest_tokens(table, watched, groups["all"] if among is None else among, nearest)
        basis = spectrum.eigenvectors[:, -2:].flip(1).cpu()
        return cls(
            metrics=dict(metrics or {}),
            spectrum=spectrum.eigenvalues.clamp(min=0).sqrt().flip(0).cpu(),
            basis=torch.nn.functional.pad(basis, (0, 2 - basis.shape[1])),  # a table of width 1 has only one direction
            points={name: table[ids.to(table.device)].float().cpu() for name, ids in point_ids.items()},
            point_ids=point_ids,
            neighbours=neighbours,
        )


def nearest_tokens(table: Tensor, ids: Tensor, among: Tensor, count: int) -> dict[int, list[tuple[int, float]]]:
    """Find the tokens of `among` with the largest cosines to each token of `ids`, excluding itself, nearest first.

    Args:
        table: Table, (n, d), any floating dtype, any device.
        ids: Ids of the tokens to query, (w,) int64.
        among: Ids of the tokens to search, (m,) int64.
        count: Number of neighbours of each token; fewer if `among` is too small.

    Example:
        >>> nearest_tokens(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]), torch.tensor([0]), torch.arange(3), 2)
        {0: [(2, 1.0), (1, 0.0)]}
    """
    count = min(count, len(among) - 1)
    if count < 1 or not len(ids):
        return {index: [] for index in ids.tolist()}
    ids = ids.to(table.device)
    nearest = nearest_rows(table, ids, among.sort().values, count)
    directions = unit_rows(table[nearest.flatten()]).unflatten(0, nearest.shape)
    cosines = torch.einsum("wd,wkd->wk", unit_rows(table[ids]), directions)
    cosines, order = cosines.sort(dim=1, descending=True, stable=True)
    rows = zip(nearest.gather(1, order).tolist(), cosines.tolist(), strict=True)
    return {index: list(zip(*row, strict=True)) for index, row in zip(ids.tolist(), rows, strict=True)}


def watched_tokens(candidates: Tensor, groups: Mapping[str, Tensor], vocabulary: Vocabulary, most: int = 10) -> Tensor:
    """Choose a few rare words whose neighbours are worth showing, always the same ones.

    Args:
        candidates: Ids to choose from, int64, such as those of rebuilt tokens.
        groups: Token ids by group, from `frequency_groups`.
        vocabulary: The tokens of the ids; only words are chosen.
        most: Maximum number of words.

    Returns:
        Ids, (at most `most`,) int64, evenly spaced over the candidates of the rare group, or of the medium or frequent
        group if the rarer ones have no candidates.

    Example:
        >>> words = ("a", "cat", "ox", "ibex", "##s", "gnu")
        >>> vocabulary = Vocabulary(words, ("a", "cat", "ox", "ibex", None, "gnu"), (None,) * 6, uncased=True)
        >>> groups = {"frequent": torch.tensor([0]), "medium": torch.tensor([1]), "rare": torch.tensor([2, 3, 4, 5])}
        >>> watched_tokens(torch.arange(1, 6), groups, vocabulary, most=2).tolist()
        [2, 5]
    """
    wanted = {index for index in candidates.tolist() if vocabulary.words[index] is not None}
    for name in reversed(GROUPS):
        words = [index for index in groups[name].tolist() if index in wanted]
        if words:
            return evenly(torch.tensor(words), most)
    return torch.zeros(0, dtype=torch.int64)
