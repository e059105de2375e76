"""Compute the rows of new tokens in every table of a model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Lexicon
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.language_model import serves_as_output
from defemb_callbacks.new_tokens.definition_rows import rows_from_definitions
from defemb_callbacks.new_tokens.distillation import Distilled, distilled_on_texts, distilled_rows
from defemb_callbacks.new_tokens.output_calibration import predicts_text, read_output_states, without_terms
from defemb_callbacks.new_tokens.readings import Reading, definition_readings, text_readings
from defemb_callbacks.new_tokens.subtokens import split_without_itself
from defemb_callbacks.new_tokens.term_rows import TermRows, term_rows
from defemb_callbacks.new_tokens.token_plan import TokenPlan
from defemb_callbacks.new_tokens.whole_words import read_word_contexts
from defemb_callbacks.weights.rows import INPUT, TableName, read_table

logger = logging.getLogger(__name__)

LOSS_STRIDE = 4  # every 4th text shows what new tokens cost other text, about 1,000 tokens


def rows_of_tables(
    model: PreTrainedModel,
    plan: TokenPlan,
    embeddings: Mapping[TableName, DefinitionEmbeddings],
    dictionary: Lexicon,
    config: DefinitionEMBConfig,
) -> dict[TableName, TermRows]:
    """Compute the rows of the tokens of a plan in each table.

    Args:
        model: The model, before its tables grow.
        plan: The new tokens.
        embeddings: Definition embeddings of each table.
        dictionary: The dictionary that they were built from.
        config: Settings.
    """
    terms = [token.term for token in plan.tokens]
    texts = text_readings(plan)
    _warn_of_unread_texts(plan, texts)
    definitions = definition_readings(plan) if texts or config.distil else []
    predicts = predicts_text(model)
    found: dict[TableName, TermRows] = {}
    for table, built in embeddings.items():
        settings = replace(config, table=table)
        predicted = rows_from_definitions(model, plan.before, terms, built, settings, dictionary)
        splits = split_without_itself(plan.before, built.ids)
        serves = serves_as_output(model, table)
        output = read_output_states(model, built.texts) if predicts and serves and built.texts else None
        distil = None
        if table == INPUT and (texts or (config.distil and predicts)):
            distil = partial(distilled_terms, model, definitions, texts, config.distil and predicts)
        found[table] = term_rows(
            read_table(model, table).cpu(),
            plan.tokens,
            predicted,
            splits,
            built,
            settings,
            output,
            distil,
            None if output is None or not texts else read_word_contexts(model, texts),
            is_output=serves and not predicts,
        )
    return found


def distilled_terms(
    model: PreTrainedModel, definitions: Sequence[Reading], texts: Sequence[Reading], all_terms: bool, rows: Tensor
) -> Distilled:
    """Distil all terms on their definitions, if that is wanted, then those with texts on both.

    Args:
        model: See `distilled_rows`.
        definitions: From `definition_readings`.
        texts: From `text_readings`.
        all_terms: Whether terms without texts are distilled, too.
        rows: See `distilled_rows`.
    """
    found = distilled_rows(model, definitions, rows) if all_terms else Distilled(rows)
    if not texts:
        return found
    # A run of its own, so that the rows of the other terms do not depend on these texts.
    own = Counter(reading.row for reading in texts)
    found = distilled_on_texts(model, [*texts, *(one for one in definitions if one.row in own)], found.rows)
    return replace(found, texts=dict(own))


def _warn_of_unread_texts(plan: TokenPlan, readings: Sequence[Reading]) -> None:
    read = {reading.row for reading in readings}
    unread = [token.term.text for row, token in enumerate(plan.tokens) if token.term.options.texts and row not in read]
    if unread:
        logger.warning(
            "The texts of %d terms are not used, e.g. those of %r: the term was a token before, has one sub-token, or "
            "is not found as a token before others.",
            len(unread),
            unread[0],
        )


def other_texts(
    model: PreTrainedModel, plan: TokenPlan, embeddings: Mapping[TableName, DefinitionEmbeddings]
) -> list[Sequence[int]]:
    """Return texts without the terms, for the loss of a causal language model before and after; none for other models.

    Args:
        model: The model.
        plan: The new tokens.
        embeddings: Definition embeddings of each table.
    """
    texts: list[Sequence[int]] = []
    for table, built in embeddings.items():
        if predicts_text(model) and serves_as_output(model, table) and built.texts:
            texts = without_terms(built.texts, [token.pieces for token in plan.tokens])[::LOSS_STRIDE]
    return texts
