"""What the report of new tokens shows of each term."""

from __future__ import annotations

from collections.abc import Sequence

from defemb_callbacks.new_tokens.term_token import TermToken
from defemb_callbacks.new_tokens.token_plan import TokenPlan
from defemb_callbacks.reporting.summary import TermSummary


def term_summary(token: TermToken, weight: float, plan: TokenPlan, nearest: Sequence[str]) -> TermSummary:
    """Return what the report shows of a term.

    Args:
        token: The term with its tokens.
        weight: Share of the definitions in its row.
        plan: The plan with the tokenizers before and after.
        nearest: The words with the nearest rows.
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
    )
