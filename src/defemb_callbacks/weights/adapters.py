"""Embedding layers with PEFT adapters: read and write the rows of a forward pass, and check that they are saved."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from defemb_callbacks.weights.sharding import gathered, whole, write_into

# Children of PEFT layers that hold weights of the base model.
_BASE_MODULES = ("base_layer", "original_module", "token_adapter")


def is_adapted(layer: Any) -> bool:
    """Whether a layer is a PEFT layer that wraps one of the model."""
    return type(layer).__module__.startswith("peft.")


def base_layer(layer: Any) -> Any:
    """The embedding layer inside all adapters; with `modules_to_save`, the active adapter's copy of it."""
    if not is_adapted(layer):
        return layer
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(layer, ModulesToSaveWrapper):
        active = None if layer.disable_adapters else next(iter(layer.active_adapters), None)
        return layer.original_module if active is None else layer.modules_to_save[active]
    return _tuner(layer).get_base_layer()


def with_adapters(layer: Any, table: Tensor) -> Tensor:
    """Apply the active adapters to the base layer's table, which gives the embeddings that a forward pass reads.

    Args:
        layer: The embedding layer, adapted or not.
        table: (vocabulary, d), the table of the base layer.

    Raises:
        TypeError: If the embeddings have an unsupported kind of adapter.
    """
    for tuner, name in _active(layer):
        if _replaces_tokens(tuner):
            index = torch.tensor(tuner.token_indices[name], device=table.device)
            table = table.index_copy(0, index, whole(tuner.trainable_tokens_delta[name]).to(table))
        else:
            table = _delta(tuner, name).to(table).add_(table)
    return table


def write_into_adapters(layer: Any, ids: Tensor, rows: Tensor) -> Tensor:
    """Write the rows that adapters hold, and return the rows to write into the base layer.

    Args:
        layer: The embedding layer, adapted or not.
        ids: (n,) int64.
        rows: (n, d), as a forward pass should read them.

    Returns:
        (n, d), the rows without what low-rank adapters add to them.
    """
    for tuner, name in _active(layer):
        if _replaces_tokens(tuner):
            position = {token: place for place, token in enumerate(tuner.token_indices[name])}
            held = [number for number, token in enumerate(ids.tolist()) if token in position]
            places = torch.tensor([position[int(ids[number])] for number in held], dtype=torch.int64)
            for weight in (tuner.trainable_tokens_delta[name], tuner.trainable_tokens_original[name]):
                write_into(weight, places, rows[held].to(weight.dtype))
        else:
            delta = _delta(tuner, name)
            rows = rows - delta[ids.to(delta.device)].to(rows)
    return rows


def advice_on_saving(layer: Any, name: str, ids: Tensor) -> str | None:
    """A warning if the saved adapter of a PEFT model will lack the written rows, with the cure; otherwise `None`.

    Args:
        layer: The embedding layer, adapted or not.
        name: The name of that layer in its parent module, e.g. `"word_embeddings"`.
        ids: (n,) int64, the tokens whose rows were written.
    """
    missing = len(ids)
    if is_adapted(layer):
        from peft.utils.constants import EMBEDDING_LAYER_NAMES
        from peft.utils.other import ModulesToSaveWrapper

        if isinstance(layer, ModulesToSaveWrapper):
            return None
        if _replaces_tokens(_tuner(layer)):
            held = adapted_tokens(layer)
            missing = sum(token not in held for token in ids.tolist())
        elif name in EMBEDDING_LAYER_NAMES:  # PEFT saves targeted embedding layers with these names
            return None
    if not missing:
        return None
    return (
        f"its saved adapter will lack {missing:,} of {len(ids):,} rebuilt token embeddings, so a model loaded from it "
        f"has the old ones. To save them, set modules_to_save=[{name!r}] in the adapter's config, or save with "
        "save_embedding_layers=True, or save the merged model (merge_and_unload)."
    )


def advice_on_ties(layer: Any, name: str, head: Any) -> str | None:
    """A warning if a tied output table does not get the written rows because PEFT has untied it; otherwise `None`.

    Args:
        layer: The input embedding layer, adapted or not.
        name: The name of that layer in its parent module.
        head: The output layer, adapted or not; `None` if there is none.
    """
    if head is None or not hasattr(layer, "modules_to_save"):
        return None
    originals = [getattr(table, "original_module", table).weight for table in (layer, head)]
    if originals[0] is not originals[1] or base_layer(head).weight is base_layer(layer).weight:
        return None
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    # PEFT ties only layers with these names again.
    cure = "Set ensure_weight_tying=True" if name in EMBEDDING_LAYER_NAMES else "Use trainable_token_indices instead"
    return (
        "the input and output tables were tied, but modules_to_save has untied them, so the rebuilt embeddings "
        f"were written to the input table only. {cure} in the adapter's config."
    )


def train_tokens(model: Any, names: Sequence[str], ids: Sequence[int]) -> None:
    """Let the active adapter of a PEFT model train the rows of some tokens, as `trainable_token_indices` does.

    The setting is added to the adapter's config, so that the rows are saved with the adapter.

    Args:
        model: A PEFT model, or a transformers model with adapters, whose embeddings are not adapted.
        names: Names of the embedding layers in their parent modules; a tied output layer follows the input layer.
        ids: The tokens.

    Raises:
        ValueError: If the kind of adapter has no such setting.
    """
    from peft import PeftModel
    from peft.utils.other import set_additional_trainable_modules

    active = model.active_adapter if isinstance(model, PeftModel) else model.active_adapters()[0]
    config = model.peft_config[active]
    if not hasattr(config, "trainable_token_indices"):
        raise ValueError(
            f"Adapters of type {config.peft_type.value} cannot train single rows of the embeddings. Use LoRA, or set "
            f"modules_to_save=[{names[0]!r}] in the adapter's config."
        )
    config.trainable_token_indices = {name: list(ids) for name in names}
    # Other modules to save are wrapped already.
    only = copy.copy(config)
    only.modules_to_save = None
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    set_additional_trainable_modules(base, only, base.config.to_dict(), active)


def adapter_kind(layer: Any) -> Literal["none", "copy", "tokens", "low-rank"]:
    """Return which rows an embedding layer's adapter trains: those of a copy of the table, of some tokens, or all.

    Args:
        layer: The embedding layer, adapted or not.
    """
    if not is_adapted(layer):
        return "none"
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(layer, ModulesToSaveWrapper):
        return "copy"
    return "tokens" if _replaces_tokens(_tuner(layer)) else "low-rank"


def adapted_tokens(layer: Any) -> set[int]:
    """Return the tokens whose rows the active adapters of an embedding layer train.

    Args:
        layer: An embedding layer whose adapter is of the kind "tokens".
    """
    return {token for tuner, name in _active(layer) for token in tuner.token_indices[name]}


@contextlib.contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Disable all adapters of a model within the context; `requires_grad` of all parameters is restored afterwards."""
    if not hasattr(model, "peft_config"):
        yield
        return
    from peft import PeftModel

    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        if isinstance(model, PeftModel):
            with model.disable_adapter():
                yield
        else:  # added through the transformers integration
            model.disable_adapters()
            try:
                yield
            finally:
                model.enable_adapters()
    finally:
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)


def base_weights(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """The base model's parameters, then its buffers, without adapters, under the names of the unadapted model."""
    adapter_names: list[str] = []
    for name, module in model.named_modules():
        if is_adapted(module):
            adapter_names += [f"{name}.{child}." for child, _ in module.named_children() if child not in _BASE_MODULES]
            adapter_names += [f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)]
    for named in (model.named_parameters(), model.named_buffers()):
        for name, tensor in named:
            if not name.startswith(tuple(adapter_names)):
                yield ".".join(part for part in name.split(".") if part not in _BASE_MODULES), tensor


def _tuner(layer: Any) -> Any:
    return layer.token_adapter if hasattr(layer, "token_adapter") else layer


def _replaces_tokens(tuner: Any) -> bool:
    return hasattr(tuner, "trainable_tokens_delta")


def _delta(tuner: Any, name: str) -> Tensor:
    """(vocabulary, d), the update that a low-rank adapter adds to the table, gathered if sharded."""
    with gathered(tuner):
        return whole(tuner.get_delta_weight(name))


def _active(layer: Any) -> list[tuple[Any, str]]:
    """The PEFT layer with the name of each adapter that a forward pass applies to the base layer's table."""
    if not is_adapted(layer):
        return []
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper

    tuner = _tuner(layer)
    if isinstance(layer, ModulesToSaveWrapper) or tuner.disable_adapters:
        return []
    if _replaces_tokens(tuner):
        held: Any = tuner.trainable_tokens_delta
    elif isinstance(tuner, LoraLayer) and not tuner.lora_variant:
        held = [*tuner.lora_embedding_A, *tuner.lora_A]
    else:
        raise TypeError(
            f"The embeddings have an adapter of type {type(tuner).__name__}, through which rows cannot be written. "
            "Remove them from target_modules, or use plain LoRA, trainable_token_indices or modules_to_save."
        )
    # Merged low-rank adapters are part of the base table. Token adapters keep rows to restore when they are unmerged.
    merged = () if _replaces_tokens(tuner) else tuner.merged_adapters
    return [(tuner, name) for name in tuner.active_adapters if name in held and name not in merged]
