"""What a model's config tells of a rebuild, so that no table is rebuilt twice, by whomever the checkpoint is loaded."""

from __future__ import annotations

from typing import Any

from torch import nn

from defemb_callbacks.weights.rows import INPUT, TableName, transformers_model

NEW_TOKENS = "new_tokens"


def applied_to(model: nn.Module, table: TableName = INPUT) -> dict[str, Any] | None:
    """What was applied to a model's table, also before it was saved and loaded; `None` if it was never rebuilt.

    The note on the input table is `config.definition_emb` itself; those on other tables are in it under their names.
    """
    note = getattr(_config_of(model), "definition_emb", None)
    if table != INPUT:
        return (note or {}).get(table)
    return note if note and "fingerprint" in note else None


def note_applied(model: nn.Module, applied: dict[str, Any] | None, table: TableName = INPUT) -> None:
    """Set what `applied_to` tells of a model and of its checkpoints."""
    config = _config_of(model)
    note = getattr(config, "definition_emb", None) or {}
    others = {name: note[name] for name in ("output", "decoder", NEW_TOKENS) if name in note}
    note = {**(applied or {}), **others} if table == INPUT else {**note, table: applied}
    # A new dict: models that were made of one config may share the old one.
    config.definition_emb = note or None


def new_tokens_in(model: nn.Module) -> dict[str, Any] | None:
    """What `define_new_tokens` noted of a model, also before it was saved and loaded; `None` if it added nothing."""
    return (getattr(_config_of(model), "definition_emb", None) or {}).get(NEW_TOKENS)


def note_new_tokens(model: nn.Module, note: dict[str, Any] | None) -> None:
    """Set what `new_tokens_in` tells of a model and of its checkpoints."""
    config = _config_of(model)
    others = {**(getattr(config, "definition_emb", None) or {})}
    others.pop(NEW_TOKENS, None)
    config.definition_emb = ({**others, NEW_TOKENS: note} if note else others) or None


def restore_note(model: nn.Module, note: dict[str, Any] | None) -> None:
    """Set what a checkpoint's config says of all tables."""
    _config_of(model).definition_emb = note


def _config_of(model: nn.Module) -> Any:
    config = getattr(transformers_model(model), "config", None)
    if config is None:
        raise TypeError(f"{type(model).__name__} has no config; pass a transformers model.")
    return config
