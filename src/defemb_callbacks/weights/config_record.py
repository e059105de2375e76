"""The record of a rebuild in a model's config: a saved checkpoint keeps it, so no table is rebuilt twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from defemb_callbacks.weights.rows import INPUT, TableName
from defemb_callbacks.weights.unwrapping import transformers_model

NEW_TOKENS, NEW_TOKEN_IDS = "new_tokens", "new_token_ids"


def read_record(model: nn.Module, table: TableName = INPUT) -> dict[str, Any] | None:
    """Return the record of the last rebuild of a table, or `None` if the table was never rebuilt.

    The record of the input table is `config.definition_emb` itself. The records of other tables are stored in it, by
    table name.
    """
    record = getattr(_config(model), "definition_emb", None)
    if table != INPUT:
        return (record or {}).get(table)
    return record if record and "fingerprint" in record else None


def write_record(model: nn.Module, record: dict[str, Any] | None, table: TableName = INPUT) -> None:
    """Store the record of a rebuild in the model's config."""
    config = _config(model)
    stored = getattr(config, "definition_emb", None) or {}
    others = {name: stored[name] for name in ("output", "decoder", NEW_TOKENS, NEW_TOKEN_IDS) if name in stored}
    stored = {**(record or {}), **others} if table == INPUT else {**stored, table: record}
    # Assign a new dict: several models created from one config may share the old one.
    config.definition_emb = stored or None


def read_new_tokens_record(model: nn.Module) -> dict[str, Any] | None:
    """Return the record of the tokens added by `define_new_tokens`, or `None` if there are none."""
    return (getattr(_config(model), "definition_emb", None) or {}).get(NEW_TOKENS)


def write_new_tokens_record(model: nn.Module, record: dict[str, Any] | None) -> None:
    """Store the record of added tokens in the model's config."""
    config = _config(model)
    others = {**(getattr(config, "definition_emb", None) or {})}
    others.pop(NEW_TOKENS, None)
    config.definition_emb = ({**others, NEW_TOKENS: record} if record else others) or None


def read_new_token_ids(model: nn.Module) -> list[int]:
    """Return the ids of all tokens added by `define_new_tokens`, in ascending order."""
    return list((getattr(_config(model), "definition_emb", None) or {}).get(NEW_TOKEN_IDS, []))


def write_new_token_ids(model: nn.Module, ids: Iterable[int]) -> None:
    """Store the ids of added tokens in the model's config, besides those of earlier calls."""
    config = _config(model)
    found = sorted({*read_new_token_ids(model), *ids})
    if found:
        config.definition_emb = {**(getattr(config, "definition_emb", None) or {}), NEW_TOKEN_IDS: found}


def read_records(model: nn.Module) -> dict[str, Any] | None:
    """Return all records of a model's config."""
    records: dict[str, Any] | None = getattr(_config(model), "definition_emb", None)
    return records


def restore_records(model: nn.Module, records: dict[str, Any] | None) -> None:
    """Replace all records, e.g. by those of a checkpoint's config."""
    _config(model).definition_emb = records


def _config(model: nn.Module) -> Any:
    config = getattr(transformers_model(model), "config", None)
    if config is None:
        raise TypeError(f"{type(model).__name__} has no config. Pass a transformers model.")
    return config
