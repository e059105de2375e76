"""The report of new tokens: what it shows of each term, and of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from defemb_callbacks.new_tokens.term_rows import TermRows
from defemb_callbacks.new_tokens.term_token import TermToken
from defemb_callbacks.new_tokens.token_plan import TokenPlan
from defemb_callbacks.reporting.summary import GroupSummary, RebuildReport, TermSummary
from defemb_callbacks.weights.rows import INPUT, TableName


def new_tokens_report(
    plan: TokenPlan,
    rows_of: Mapping[TableName, TermRows],
    groups: Mapping[str, Tensor],
    info: dict[str, Any],
    before: dict[str, float],
    after: dict[str, float],
    nearest: Sequence[Sequence[str]],
) -> RebuildReport:
    """Return the report of new tokens.

    Args:
        plan: The new tokens.
        rows_of: Their rows in each table.
        groups: Tokens of each frequency group.
        info: How the embeddings were built.
        before: Metrics of the input table before the change.
        after: The same after it.
        nearest: The words with the nearest rows, for each token of the plan.
    """
    rows = rows_of[INPUT]
    weights = rows.weights.tolist()
    weight_of_token = {index: weight for token, weight in zip(plan.tokens, weights, strict=True) for index in token.ids}

    def summary(members: Tensor) -> GroupSummary:
        written = members[torch.isin(members, rows.ids)].tolist()
        weight = sum(weight_of_token[index] for index in written) / max(len(written), 1)
        return GroupSummary(tokens=len(members), defined=len(written), rebuilt=len(written), weight=weight)

    mixtures = {
        table: asdict(found.mixture) | {"log_probability": found.log_probability}
        for table, found in rows_of.items()
        if found.mixture is not None
    }
    info = info | {"new_tokens": mixtures}
    texts: Mapping[int, int] = {}
    if rows.distilled is not None and rows.distilled.readings:
        numbers = {name: getattr(rows.distilled, name) for name in ("readings", "distance_before", "distance_after")}
        info["token_distillation"], texts = numbers, rows.distilled.texts
    return RebuildReport(
        groups={name: summary(members) for name, members in groups.items()},
        skipped=plan.refused,
        before=before,
        after=after,
        info=info,
        terms=tuple(
            term_summary(token, weight, plan, words, texts.get(place, 0))
            for place, (token, weight, words) in enumerate(zip(plan.tokens, weights, nearest, strict=True))
        ),
    )


def term_summary(
    token: TermToken, weight: float, plan: TokenPlan, nearest: Sequence[str], texts: int = 0
) -> TermSummary:
    """Return what the report shows of a term.

    Args:
        token: The term with its tokens.
        weight: Share of the definitions in its row.
        plan: The plan with the tokenizers before and after.
        nearest: The words with the nearest rows.
        texts: Number of texts that its row was trained on.
    """
    return TermSummary(
        term=token.term.text,
        tokens={str(plan.after.convert_ids_to_tokens(index)): index for index in token.ids},
        is_new=token.is_new,
        definitions=len(token.term.definitions),
        pieces=tuple(map(str, plan.before.convert_ids_to_tokens(list(token.pieces)))),
        weight=weight,
        like=dict(token.term.options.like),
        like_weight=token.like_share,
        given_pieces=token.term.options.pieces,
        nearest=tuple(nearest),
        texts=texts,
    )
