"""All metrics of one table by group of tokens, as the flat dictionary that loggers take."""

from __future__ import annotations

import torch
from torch import Tensor

from defemb_callbacks.metrics.drift import drift, overlap_of_rows, sample_rows
from defemb_callbacks.metrics.isoscore import centred_gram, isoscore_of_covariance
from defemb_callbacks.metrics.isotropy import (
    Spectrum,
    average_cosine,
    checked,
    effective_rank,
    gram_matrix,
    isotropy,
    mean_norm,
)
from defemb_callbacks.metrics.ratings import Ratings, rank_correlation, rated_cosines, ratings_by_group
from defemb_callbacks.metrics.semantics import pairs_by_group, relation_auc

FEWEST_TOKENS = 2  # below, a mean over pairs of tokens does not exist
FEWEST_PAIRS = 10  # below, one pair moves the score by more than anything it could show
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
    """Every metric of every group, keyed ``defemb/<metric>/<group>``: `TableMeasure` for a single time.

    All arguments but the table are those of `TableMeasure`, the table and the errors those of `TableMeasure.measure`.

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
    """Measures one table again and again: what stays the same is checked and computed once, here.

    Args:
        groups: int64 row ids by name, ``"all"`` among them, the others from frequent to rare and disjoint.
        pairs: ``(m, 2)`` int64 row ids of related words; each belongs to the group of its rarer word.
        reference: the table of an earlier time, ``(n, d)``. It is kept, not copied: pass a copy if it will change.
        ratings: human ratings of pairs of tokens; each belongs to the group of its rarer word.
        sample: measure at most that many rows of each group, evenly spaced in the group's order, so always the same
            ones. ``None`` is exact. Pairs, and the rows among which neighbours are sought, are not sampled.
        neighbour_sample: rows asked for their neighbours in each group, always the same ones; the standard error is
            at most 0.5/√200 = 0.035, in one group at one time. ``None`` asks all.
        seed: of the shuffled pairs and of the neighbour sample.

    Raises:
        TypeError: a dtype other than these.
        ValueError: no group ``"all"``, negative ids or ids twice in a group, groups that share a token (with ``pairs``
            or ``ratings``), a row of the reference with NaN or infinity (named), a sample below 1.

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
            raise ValueError(f"sample must be at least {FEWEST_TOKENS}, got {sample}; None measures every row")
        self.groups = _checked_groups(groups)
        self.sampled = {name: _evenly(ids, sample) for name, ids in self.groups.items()}
        self.reference = None if reference is None else checked(reference, "reference")
        self.neighbour_sample, self.seed = neighbour_sample, seed
        others = {name: ids for name, ids in self.groups.items() if name != "all"}
        self.pairs = {} if pairs is None else pairs_by_group(pairs, others)
        self.ratings = {} if ratings is None else ratings_by_group(ratings, others)

    def measure(self, table: Tensor, spectra: dict[str, Spectrum] | None = None) -> dict[str, float]:
        """Every metric of every group now, keyed ``defemb/<metric>/<group>``.

        Always ``isotropy``, ``average_cosine``, ``effective_rank``, ``isoscore`` and ``norm``; with pairs also
        ``relation_auc``; with ratings also ``rating_correlation``; with a reference also ``drift`` and
        ``neighbour_overlap``. Each metric is that of the group's rows as a table of their own, I(E) over the
        eigenvectors of their own EᵀE; only neighbours are sought among all rows of ``"all"``, since a rare token whose
        neighbours have become frequent ones is just what should be seen.

        A value that would not be defined is left out rather than NaN: a group with fewer than 2 rows that are not zero
        has no keys, one whose rows are all the same no ``isoscore``, one with fewer than 10 pairs no ``relation_auc``,
        with fewer than 10 rated pairs or only one rating or cosine no ``rating_correlation``, and with 10 rows or fewer
        in ``"all"`` there is no ``neighbour_overlap``.

        Args:
            table: ``(n, d)``, any floating dtype, any device.
            spectra: `spectra_by_group` of this very table and these groups, where they are known already. They are not
                used where ``sample`` leaves rows out.

        Raises:
            TypeError: a table that is not floating-point.
            ValueError: a row with NaN or infinity (named), a table too short for the ids, or of another shape than the
                reference.
        """
        table = checked(table)
        reference = self.reference
        if reference is not None and reference.shape != table.shape:
            raise ValueError(
                f"reference must have the table's shape {tuple(table.shape)}, got {tuple(reference.shape)}"
            )
        _check_ids(self.groups, table)
        groups = {name: ids.to(table.device) for name, ids in self.sampled.items()}
        if spectra is None or any(len(ids) < len(self.groups[name]) for name, ids in groups.items()):
            spectra = spectra_by_group(table, groups)
        not_zero = table.any(dim=1)
        groups = {name: ids for name, ids in groups.items() if int(not_zero[ids].sum()) >= FEWEST_TOKENS}
        figures: dict[str, float] = {}
        for name, ids in groups.items():
            rows = _rows(table, ids)
            figures[f"defemb/isotropy/{name}"] = isotropy(rows, spectrum=spectra[name])
            figures[f"defemb/average_cosine/{name}"] = average_cosine(rows)
            figures[f"defemb/effective_rank/{name}"] = effective_rank(rows, spectrum=spectra[name])
            covariance = centred_gram(rows)
            if table.shape[1] > 1 and covariance.any():
                figures[f"defemb/isoscore/{name}"] = isoscore_of_covariance(covariance)
            figures[f"defemb/norm/{name}"] = mean_norm(rows)
            if name in self.pairs and len(self.pairs[name]) >= FEWEST_PAIRS:
                figures[f"defemb/relation_auc/{name}"] = relation_auc(table, self.pairs[name], seed=self.seed)
            if name in self.ratings and len(self.ratings[name].pairs) >= FEWEST_PAIRS:
                cosines, scores = rated_cosines(table, self.ratings[name].pairs), self.ratings[name].scores
                if bool((cosines != cosines[0]).any()) and bool((scores != scores[0]).any()):
                    figures[f"defemb/rating_correlation/{name}"] = rank_correlation(cosines, scores)
            if reference is not None:
                figures[f"defemb/drift/{name}"] = drift(rows, _rows(reference, ids.to(reference.device)))
        if reference is not None:
            everything = self.groups["all"].to(table.device)
            figures |= _neighbour_overlaps(table, reference, everything, groups, self.neighbour_sample, self.seed)
        return figures


def spectra_by_group(table: Tensor, groups: dict[str, Tensor]) -> dict[str, Spectrum]:
    """The spectrum of each group's own EᵀE, for `isotropy` and `effective_rank`; a group without rows has none.

    Where the other groups are disjoint parts of ``"all"``, EᵀE of ``"all"`` is the sum of theirs and of that of the
    rows in no other group, which saves a pass over the table.

    Args:
        table: ``(n, d)``, any floating dtype, any device.
        groups: int64 row ids by name, ``"all"`` among them.

    Raises:
        TypeError, ValueError: as `measure_table`.

    Example:
        >>> spectra = spectra_by_group(torch.eye(3), {"all": torch.arange(3), "rare": torch.tensor([2])})
        >>> spectra["all"].eigenvalues.tolist(), spectra["rare"].eigenvalues.tolist()
        ([1.0, 1.0, 1.0], [0.0, 0.0, 1.0])
    """
    table = checked(table)
    groups = _checked_groups(groups)
    _check_ids(groups, table)
    groups = {name: ids.to(table.device) for name, ids in groups.items()}
    grams = {name: gram_matrix(_rows(table, ids)) for name, ids in groups.items() if name != "all" and len(ids)}
    times_named = torch.zeros(len(table), dtype=torch.int64, device=table.device)
    for name in grams:
        times_named[groups[name]] += 1
    rest = groups["all"][times_named[groups["all"]] == 0]
    parts = list(grams.values())
    if int(times_named.max()) > 1 or int(times_named.sum()) + len(rest) != len(groups["all"]):
        rest, parts = groups["all"], []
    if len(rest):
        parts.append(gram_matrix(_rows(table, rest)))
    if parts:
        grams["all"] = torch.stack(parts).sum(dim=0)
    return {name: Spectrum.of_gram(gram) for name, gram in grams.items()}


def _checked_groups(groups: dict[str, Tensor]) -> dict[str, Tensor]:
    if "all" not in groups:
        raise ValueError(f'groups must contain "all", the ids of every token that counts, got {sorted(groups)}')
    for name, ids in groups.items():
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.ndim != 1:
            raise TypeError(f"group {name!r} must be a one-dimensional int64 tensor of row ids, got {ids!r}")
        if (ids < 0).any():
            raise ValueError(f"group {name!r} must hold row ids of 0 or more, got {int(ids.min())}")
        if len(ids) and int(ids.bincount().max()) > 1:
            raise ValueError(f"group {name!r} names a row twice; use ids.unique()")
    return dict(groups)


def _check_ids(groups: dict[str, Tensor], table: Tensor) -> None:
    for name, ids in groups.items():
        if len(ids) and int(ids.max()) >= len(table):
            raise ValueError(f"group {name!r} names row {int(ids.max())}, the table has rows 0 to {len(table) - 1}")


def _evenly(ids: Tensor, size: int | None) -> Tensor:
    """At most ``size`` of the ids, evenly spaced, the first and the last among them."""
    if size is None or len(ids) <= size:
        return ids
    return ids[torch.linspace(0, len(ids) - 1, size, dtype=torch.float64).round().long().to(ids.device)]


def _rows(table: Tensor, ids: Tensor) -> Tensor:
    """``table[ids]``, without the copy where that is the whole table."""
    whole = len(ids) == len(table) and bool((ids == torch.arange(len(ids), device=ids.device)).all())
    return table if whole else table[ids]


def _neighbour_overlaps(
    table: Tensor,
    reference: Tensor,
    everything: Tensor,
    groups: dict[str, Tensor],
    sample: int | None,
    seed: int,
) -> dict[str, float]:
    if not groups or len(everything) <= NEIGHBOURS:
        return {}
    position = torch.full((len(table),), -1, device=table.device)
    position[everything] = torch.arange(len(everything), device=table.device)
    queries = {name: position[ids] for name, ids in groups.items()}
    queries = {name: sample_rows(asked[asked >= 0], sample, seed=seed) for name, asked in queries.items()}
    queries = {name: asked for name, asked in queries.items() if len(asked)}
    # One call for all groups: a table's rows are normalised once, not once a group.
    shares = overlap_of_rows(
        _rows(table, everything),
        _rows(reference, everything.to(reference.device)),
        torch.cat(list(queries.values())),
        k=NEIGHBOURS,
    )
    split = shares.split([len(asked) for asked in queries.values()])
    return {f"defemb/neighbour_overlap/{name}": float(share.mean()) for name, share in zip(queries, split, strict=True)}
