"""Write definition embeddings into a model: choose the tokens, blend or replace their rows, report the effect."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from defemb_callbacks.attempt import Attempt
from defemb_callbacks.cache import fingerprint
from defemb_callbacks.config import APPLY_FIELDS, DefinitionEMBConfig
from defemb_callbacks.embeddings.blending import choose_tokens
from defemb_callbacks.embeddings.rows_to_write import rows_to_write
from defemb_callbacks.metrics import TableMeasure
from defemb_callbacks.reporting.summary import GroupSummary, RebuildReport
from defemb_callbacks.vocabulary.frequency import configured_rank, frequency_groups
from defemb_callbacks.weights.adapters import advice_on_saving, advice_on_ties
from defemb_callbacks.weights.config_record import read_record, write_record
from defemb_callbacks.weights.rows import INPUT, TableName, embedding_layer, table_shape, whole_table, write_rows
from defemb_callbacks.weights.unwrapping import transformers_model

if TYPE_CHECKING:
    from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings

logger = logging.getLogger(__name__)


NOT_DEFINED, NOT_CHOSEN, NOT_IN_DATA = "not in the dictionary", "too frequent (alpha)", "not in the training data"


def apply_embeddings(
    embeddings: DefinitionEmbeddings,
    model: nn.Module,
    config: DefinitionEMBConfig,
    *,
    counts: Tensor | None = None,
    force: bool = False,
    look: Callable[[Tensor, dict[str, float]], None] | None = None,
) -> RebuildReport:
    """Write embeddings into a table of a model. See `DefinitionEmbeddings.apply`.

    The table is not copied, except that a sharded one is gathered.

    Args:
        embeddings: The new rows.
        model: The model to change.
        config: Strategy and weights.
        counts: (vocabulary,) int64, token counts of the training data.
        force: Whether to rebuild a model that was rebuilt before.
        look: Called with the table and its metrics before any row is written. The table must not be kept: it is the
            model's own.

    Returns:
        The rebuilt and the skipped tokens, and the metrics before and after.
    """
    table = config.table
    _check_model(embeddings, model, table, force)
    ids = chosen_tokens(embeddings, config, counts)
    rank = configured_rank(embeddings.vocabulary, config, counts)
    groups = frequency_groups(rank, config.group_edges)

    before = whole_table(model, table)
    rows, weights, choice = rows_to_write(embeddings, model, config, before, rank, groups, ids)
    if choice.get("share") == 0:
        if "divergence" in choice:
            reason = "no blend was found that leaves the predictions of this language model intact"
        elif embeddings.texts:
            reason = "the predictions of this language model could not be measured"
        else:
            reason = "they contain no texts on which the predictions of this language model could be measured"
        logger.warning(
            "The embeddings were not changed: %s. To rebuild them anyway, set the weight of the new embeddings, e.g. "
            "`blend=0.1`.",
            reason,
        )
        ids, rows, weights = ids[:0], rows[:0], weights[:0]
    measure = TableMeasure(groups, pairs=embeddings.pairs)
    metrics_before: dict[str, float] = {}
    metrics_after: dict[str, float] = {}
    with Attempt("The metrics of the report are missing", ValueError):  # ValueError: the table contains NaN
        metrics_before = measure.measure(before)
    if look is not None:
        look(before, metrics_before)
    del before  # a gathered table would be in memory while the next one is gathered
    write_rows(model, ids, rows, table)
    if metrics_before:
        with Attempt("The metrics of the report are missing"):
            metrics_after = measure.measure(whole_table(model, table))
    _warn_about_adapters(model, ids, table)

    settings = {name: getattr(config, name) for name in APPLY_FIELDS}
    applied = {
        "fingerprint": fingerprint(embeddings.fingerprint, json.dumps(settings)),
        "strategy": config.strategy,
        "rebuilt": len(ids),
    }
    write_record(model, applied, table)
    weight_of_token = torch.zeros(len(rank), dtype=torch.float64)
    weight_of_token[ids] = weights
    return RebuildReport(
        groups={
            name: GroupSummary(
                tokens=len(members),
                defined=int(torch.isin(members, embeddings.ids).sum()),
                rebuilt=(rebuilt := int(torch.isin(members, ids).sum())),
                weight=float(weight_of_token[members].sum()) / max(rebuilt, 1),
            )
            for name, members in groups.items()
        },
        skipped=_skipped_tokens(embeddings, ids, counts if config.only_training_tokens else None),
        before=metrics_before,
        after=metrics_after,
        info=embeddings.info
        | {"settings": settings, "blend_weight": float(weights.max()) if len(ids) else None}
        | applied
        | ({"language_model": choice} if choice else {}),
    )


def chosen_tokens(embeddings: DefinitionEmbeddings, config: DefinitionEMBConfig, counts: Tensor | None) -> Tensor:
    """Choose the tokens whose rows are written: (m,) int64, in the order of `embeddings.ids`.

    Args:
        embeddings: The candidates.
        config: Settings; `alpha`, `frequency` and `only_training_tokens` decide.
        counts: (vocabulary,) int64, token counts of the training data.

    Raises:
        ValueError: If the settings need counts and they are missing or do not fit the vocabulary.
    """
    rank = configured_rank(embeddings.vocabulary, config, counts)
    allowed = None
    if config.only_training_tokens:
        if counts is None:
            raise ValueError(
                "`only_training_tokens=True` needs the token counts of the training data. Pass them as `counts`."
            )
        if len(counts) != len(rank):
            raise ValueError(
                f"`counts` has shape {tuple(counts.shape)}, but the vocabulary has {len(rank)} entries. "
                "Count the tokens with the model's own tokenizer."
            )
        allowed = counts > 0
    return embeddings.ids[choose_tokens(embeddings.ids, rank, config.alpha, allowed)]


def _check_model(embeddings: DefinitionEmbeddings, model: nn.Module, table: TableName, force: bool) -> None:
    built_for = embeddings.info.get("table", INPUT)
    if built_for != table:
        raise ValueError(
            f"These embeddings were built for the {built_for} table, not for the {table} table. "
            f"Set `table={built_for!r}`."
        )
    expected, shape = (len(embeddings.vocabulary), embeddings.rows.shape[1]), tuple(table_shape(model, table))
    if shape != expected:
        raise ValueError(
            f"These embeddings were built for a table of shape {expected}, but the model's table has shape {shape}: "
            "it has another tokenizer or size, or its vocabulary was resized. Build the embeddings for this model."
        )
    if (record := read_record(model, table)) and not force:
        raise ValueError(
            f"This model's embeddings have already been rebuilt (model.config.definition_emb: {record}). "
            "Load the original checkpoint, or pass `force=True` to rebuild them again."
        )


def _skipped_tokens(embeddings: DefinitionEmbeddings, ids: Tensor, counts: Tensor | None) -> dict[str, tuple[str, ...]]:
    """The tokens that keep their rows, by reason; `counts` if only tokens of the training data are rebuilt."""
    defined, rebuilt, vocabulary = set(embeddings.ids.tolist()), set(ids.tolist()), embeddings.vocabulary
    skipped: dict[str, list[str]] = {}
    for index, (token, reason) in enumerate(zip(vocabulary.tokens, vocabulary.reasons, strict=True)):
        if index in rebuilt:
            continue
        if index not in defined:
            reason = reason or NOT_DEFINED
        else:
            reason = NOT_IN_DATA if counts is not None and not counts[index] else NOT_CHOSEN
        skipped.setdefault(reason, []).append(token)
    return {reason: tuple(tokens) for reason, tokens in skipped.items()}


def _warn_about_adapters(model: nn.Module, ids: Tensor, table: TableName) -> None:
    """Warn if the checkpoint of a PEFT model, which holds the adapter only, will not contain the rows."""
    inner = transformers_model(model)
    if not hasattr(inner, "peft_config"):
        return
    layer = embedding_layer(model, table)
    name = next(name for name, module in inner.named_modules() if module is layer).rpartition(".")[2]
    for advice in (advice_on_saving(layer, name, ids), advice_on_ties(layer, name, inner.get_output_embeddings())):
        if advice:
            logger.warning("This is a PEFT model: %s", advice)
