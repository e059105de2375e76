"""All metrics of a table by group of tokens, as a flat dictionary for loggers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from defemb_callbacks.metrics.blocks import checked
from defemb_callbacks.metrics.drift import drift_sums, equal_tables
from defemb_callbacks.metrics.groups import Parts, check_inside, checked_groups, evenly
from defemb_callbacks.metrics.isotropy import isotropy_of_rows, known_isoscore
from defemb_callbacks.metrics.neighbours import NeighboursByGroup
from defemb_callbacks.metrics.ratings import RatedByGroup, Ratings
from defemb_callbacks.metrics.semantics import RelatedWords, pairs_by_group
from defemb_callbacks.metrics.spectrum import Spectrum, gram_matrix
from defemb_callbacks.metrics.sums import RowSums

FEWEST_TOKENS = 2  # with fewer, there is no pair of tokens to take a mean over
FEWEST_PAIRS = 10  # with fewer, a single pair would dominate the score
NEIGHBOURS = 10


def measure_table(
    table: Tensor,
    groups: dict[str, Tensor],
    *,
    pairs: Tensor | None = None,
    reference: Tensor | None = None,
    ratings: Ratings | None = None,
    sample: int | None = None,
    neighbour_sample: int | None = 200,
    seed: int = 0,
) -> dict[str, float]:
    """Compute all metrics of all groups once, keyed `defemb/<metric>/<group>`.

    See `TableMeasure` for the arguments, and `TableMeasure.measure` for the table and the errors.

    Example:
        >>> table = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> figures = measure_table(table, {"all": torch.arange(4), "rare": torch.tensor([3])})
        >>> {key: round(value, 4) for key, value in figures.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'defemb/isotropy/all': 0.534, 'defemb/average_cosine/all': -0.3333, 'defemb/effective_rank/all': 1.8899,
         'defemb/isoscore/all': 0.4706, 'defemb/norm/all': 1.5}
    """
    measure = TableMeasure(
        groups,
        pairs=pairs,
        reference=reference,
        ratings=ratings,
        sample=sample,
        neighbour_sample=neighbour_sample,
        seed=seed,
    )
    return measure.measure(table)


class TableMeasure:
    """Measures a table repeatedly; everything that stays the same is validated and computed once.

    Args:
        groups: Row ids by name, int64: `"all"`, and disjoint other groups from frequent to rare.
        pairs: Row ids of related words, (m, 2) int64; each pair belongs to the group of its rarer word.
        reference: The table at an earlier time, (n, d). It is not copied: pass a copy if it will change.
        ratings: Human ratings of pairs of tokens; each pair belongs to the group of its rarer word.
        sample: Measure at most this number of rows per group, evenly spaced in the order of the group and therefore
            always the same; `None` is exact. Pairs, and the rows among which neighbours are searched, are not sampled.
            For the table of all-MiniLM-L6-v2 (30,522 × 384), a sample of 5,000 rows changes I(E) by 0.014, the average
            cosine by 0.0002 and the norm by 0.1 % (root mean square), and lowers the effective rank by 0.7 % and
            IsoScore by 0.013. A sample of 1,000 rows: 0.013, 0.001, 0.4 %, 5.7 % and 0.088 (`benchmarks/metrics.py`).
            The last two count directions and are too low by about d/sample: use a sample of at least 10 d.
        neighbour_sample: Number of rows per group whose neighbours are compared, always the same ones. The standard
            error is at most 0.5/√200 = 0.035 for one group at one time. `"all"` is the mean of its groups, weighted by
            their sizes. `None` uses all rows.
        seed: Seed of the shuffled pairs and of the neighbour sample.

    Raises:
        TypeError: If an argument has another dtype than documented.
        ValueError: If there is no group `"all"`, ids are negative or duplicate, groups overlap (with `pairs` or
            `ratings`), the reference is too short for the ids or has a NaN or infinite entry (the row is named), or a
            sample is too small.

    Example:
        >>> measure = TableMeasure({"all": torch.arange(4)}, reference=torch.eye(4))
        >>> measure.measure(torch.eye(4))["defemb/drift/all"], measure.measure(torch.ones(4, 4))["defemb/drift/all"]
        (0.0, 0.5)
    """

    def __init__(
        self,
        groups: dict[str, Tensor],
        *,
        pairs: Tensor | None = None,
        reference: Tensor | None = None,
        ratings: Ratings | None = None,
        sample: int | None = None,
        neighbour_sample: int | None = 200,
        seed: int = 0,
    ) -> None:
        if sample is not None and sample < FEWEST_TOKENS:
            raise ValueError(f"sample must be at least {FEWEST_TOKENS}, got {sample}. Pass None to measure every row.")
        groups = checked_groups(groups)
        self._measured = {name: evenly(ids, sample).sort().values for name, ids in groups.items()}
        self._is_sample = any(len(self._measured[name]) < len(ids) for name, ids in groups.items())
        self._parts = Parts.of_groups(self._measured)
        self._groups = groups
        others = {name: ids for name, ids in groups.items() if name != "all"}
        by_group = {} if pairs is None else pairs_by_group(pairs, others)
        self._related = {
            name: RelatedWords.of(members, seed=seed)
            for name, members in by_group.items()
            if len(members) >= FEWEST_PAIRS
        }
        self._rated = None if ratings is None else RatedByGroup.of(ratings, others)
        self._reference, self._neighbours = None, None
        if reference is not None:
            self._reference = checked(reference, "reference")
            check_inside(groups, self._reference, "reference")
            if len(groups["all"]) > NEIGHBOURS:
                self._neighbours = NeighboursByGroup.of_reference(
                    self._reference, groups, k=NEIGHBOURS, sample=neighbour_sample, seed=seed
                )

    def measure(self, table: Tensor, spectra: Mapping[str, Spectrum] | None = None) -> dict[str, float]:
        """Compute all metrics of all groups now, keyed `defemb/<metric>/<group>`.

        The metrics are `isotropy`, `average_cosine`, `effective_rank`, `isoscore` and `norm`; with pairs also
        `relation_auc`; with ratings also `rating_correlation`; with a reference also `drift` and `neighbour_overlap`.
        Each metric treats the rows of the group as a table of their own; for example, I(E) uses the eigenvectors of
        their own EᵀE. There are two exceptions: neighbours are searched among all rows of `"all"`, so that rare tokens
        whose neighbours have become frequent tokens are noticed, and the cosines of rated pairs are centred by the
        mean of all pairs, so that a group's pairs get the same cosines as in `"all"`.

        Undefined values are left out instead of being NaN: a group with fewer than 2 nonzero rows has no keys; a group
        whose rows are all the same has no `isoscore`; a group with fewer than 10 pairs has no `relation_auc`; a group
        with fewer than 10 rated pairs, or with the same rating or cosine for all of them, has no `rating_correlation`;
        and with at most 10 rows in `"all"` there is no `neighbour_overlap`.

        Args:
            table: Table, (n, d), any floating dtype, any device.
            spectra: The result of `spectra_by_group` for this table and these groups, if it is already known. It is
                ignored if `sample` leaves out rows.

        Raises:
            TypeError: If the table is not a floating-point tensor.
            ValueError: If a row has a NaN or infinite entry (it is named), or the table is too short for the ids or
                has another shape than the reference.
        """
        table = checked(table)
        if self._reference is not None and self._reference.shape != table.shape:
            raise ValueError(
                f"reference must have the table's shape {tuple(table.shape)}, got {tuple(self._reference.shape)}."
            )
        check_inside(self._groups, table)
        if spectra is None or self._is_sample:
            spectra = _spectra(table, self._parts)
        parts = {name: ids.to(table.device) for name, ids in self._parts.ids.items()}
        sums_of_parts = {name: RowSums.of(table, ids) for name, ids in parts.items()}
        sums = {
            name: RowSums.combined([sums_of_parts[part] for part in of]) for name, of in self._parts.of.items() if of
        }
        sums = {name: total for name, total in sums.items() if int(total.directions) >= FEWEST_TOKENS}
        figures: dict[str, float] = {}
        for name, total in sums.items():
            ids = self._measured[name].to(table.device) if total.rows < len(table) else None
            figures[f"defemb/isotropy/{name}"] = isotropy_of_rows(table, ids, spectra[name], total)
            figures[f"defemb/average_cosine/{name}"] = total.average_cosine()
            figures[f"defemb/effective_rank/{name}"] = spectra[name].effective_rank()
            score = known_isoscore(table, ids, spectra[name], total)
            if score is not None:
                figures[f"defemb/isoscore/{name}"] = score
            figures[f"defemb/norm/{name}"] = total.mean_norm()
            if name in self._related:
                figures[f"defemb/relation_auc/{name}"] = self._related[name].auc(table)
        if self._rated is not None:
            for name, correlation in self._rated.correlations(table, fewest=FEWEST_PAIRS).items():
                if name in sums:
                    figures[f"defemb/rating_correlation/{name}"] = correlation
        if self._reference is not None and equal_tables(table, self._reference):
            figures |= self._unmoved(sums)
        elif self._reference is not None:
            figures |= self._moves(table, self._reference, parts, sums)
        return figures

    def keep_reference(self, *, shared: bool = True) -> None:
        """Copy the reference if it will change with the table of a model.

        A reference in half precision on an accelerator is copied to the CPU, to leave the accelerator's memory to the
        training. It keeps its dtype, so that the drift of an unchanged table is exactly 0.

        Args:
            shared: Whether the reference is the memory of the model's table, not a copy that belongs to this object.
        """
        if self._reference is not None:
            on_cpu = self._reference.device.type != "cpu" and self._reference.element_size() == 2
            if on_cpu:
                self._reference = self._reference.cpu()
            elif shared:
                self._reference = self._reference.clone()

    def _unmoved(self, sums: Mapping[str, RowSums]) -> dict[str, float]:
        """Values for a table that still equals the reference, as at the start of a run or if it is frozen."""
        with_neighbours = self._neighbours.of if self._neighbours is not None else {}
        figures = {f"defemb/drift/{name}": 0.0 for name in sums}
        return figures | {f"defemb/neighbour_overlap/{name}": 1.0 for name in sums if with_neighbours.get(name)}

    def _moves(
        self, table: Tensor, reference: Tensor, parts: Mapping[str, Tensor], sums: Mapping[str, RowSums]
    ) -> dict[str, float]:
        figures = {}
        changes = {name: drift_sums(table, reference, ids) for name, ids in parts.items()}
        for name in sums:
            change, counted = torch.stack([changes[part] for part in self._parts.of[name]]).sum(dim=0).tolist()
            figures[f"defemb/drift/{name}"] = change / counted
        if self._neighbours is not None and sums:
            for name, overlap in self._neighbours.overlaps(table).items():
                if name in sums:
                    figures[f"defemb/neighbour_overlap/{name}"] = overlap
        return figures


def spectra_by_group(table: Tensor, groups: Mapping[str, Tensor]) -> dict[str, Spectrum]:
    """Compute the spectrum of each group's own EᵀE, for `isotropy` and `effective_rank`; groups without rows have none.

    If the other groups are disjoint subsets of `"all"`, EᵀE of `"all"` is the sum of theirs and that of the remaining
    rows, which saves a pass over the table.

    Args:
        table: Table, (n, d), any floating dtype, any device.
        groups: Row ids by name, int64, including `"all"`.

    Raises:
        TypeError: As in `TableMeasure`.
        ValueError: As in `TableMeasure`.

    Example:
        >>> spectra = spectra_by_group(torch.eye(3), {"all": torch.arange(3), "rare": torch.tensor([2])})
        >>> spectra["all"].eigenvalues.tolist(), spectra["rare"].eigenvalues.tolist()
        ([1.0, 1.0, 1.0], [0.0, 0.0, 1.0])
    """
    table = checked(table)
    groups = checked_groups(groups)
    check_inside(groups, table)
    return _spectra(table, Parts.of_groups(groups))


def _spectra(table: Tensor, parts: Parts) -> dict[str, Spectrum]:
    grams = {name: gram_matrix(table, ids.to(table.device)) for name, ids in parts.ids.items()}
    return {
        name: Spectrum.of_gram(torch.stack([grams[part] for part in of]).sum(dim=0))
        for name, of in parts.of.items()
        if of
    }
