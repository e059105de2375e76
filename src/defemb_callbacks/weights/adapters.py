"""What PEFT puts around an embedding layer: where the rows that training reads are, and whether they are saved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from defemb_callbacks.weights.sharding import gathered, whole, write_into

# Children of PEFT's layers that belong to the model itself.
_OWN = ("base_layer", "original_module", "token_adapter")


def is_adapted(layer: Any) -> bool:
    """Whether a layer is one of PEFT's, around one of the model."""
    return type(layer).__module__.startswith("peft.")


def base_layer(layer: Any) -> Any:
    """The embedding layer that the rows outside of any adapter are in; with `modules_to_save` the adapter's copy."""
    if not is_adapted(layer):
        return layer
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(layer, ModulesToSaveWrapper):
        active = None if layer.disable_adapters else next(iter(layer.active_adapters), None)
        return layer.original_module if active is None else layer.modules_to_save[active]
    return _tuner(layer).get_base_layer()


def with_adapters(layer: Any, table: Tensor) -> Tensor:
    """The table that a forward pass reads: that of the base layer, (vocabulary, d), and what adapters change in it.

    Raises:
        TypeError: a kind of adapter on the embeddings that is not known here.
    """
    for tuner, name in _active(layer):
        if _replaces_tokens(tuner):
            index = torch.tensor(tuner.token_indices[name], device=table.device)
            table = table.index_copy(0, index, whole(tuner.trainable_tokens_delta[name]).to(table))
        else:
            table = table + _delta(tuner, name).to(table)
    return table


def write_into_adapters(layer: Any, ids: Tensor, rows: Tensor) -> Tensor:
    """Write what of the rows adapters hold, and give what is to be written into the base layer for the rest.

    Args:
        layer: of `get_input_embeddings()`.
        ids: (n,) int64.
        rows: (n, d), as a forward pass is to read them.
    """
    for tuner, name in _active(layer):
        if _replaces_tokens(tuner):
            position = {token: place for place, token in enumerate(tuner.token_indices[name])}
            held = [number for number, token in enumerate(ids.tolist()) if token in position]
            places = torch.tensor([position[int(ids[number])] for number in held], dtype=torch.int64)
            for kept in (tuner.trainable_tokens_delta[name], tuner.trainable_tokens_original[name]):
                write_into(kept, places, rows[held].to(kept.dtype))
        else:
            delta = _delta(tuner, name)
            rows = rows - delta[ids.to(delta.device)].to(rows)
    return rows


def advice_on_saving(layer: Any, name: str, ids: Tensor) -> str | None:
    """What to set for the saved adapter of a PEFT model to contain these rows; `None` if it does.

    Args:
        layer: of `get_input_embeddings()`, adapted or not.
        name: of that layer in its parent, e.g. "word_embeddings".
        ids: (n,) int64 tokens that were written.
    """
    missing = len(ids)
    if is_adapted(layer):
        from peft.utils.constants import EMBEDDING_LAYER_NAMES
        from peft.utils.other import ModulesToSaveWrapper

        if isinstance(layer, ModulesToSaveWrapper):
            return None
        if _replaces_tokens(_tuner(layer)):
            held = {token for tuner, adapter in _active(layer) for token in tuner.token_indices[adapter]}
            missing = sum(token not in held for token in ids.tolist())
        elif name in EMBEDDING_LAYER_NAMES:  # PEFT saves embeddings of these names that are targets
            return None
    if not missing:
        return None
    return (
        f"{missing:,} of {len(ids):,} rebuilt rows are in the model but will not be in its saved adapter. Set "
        f"modules_to_save=[{name!r}] in the adapter's config, or save with save_embedding_layers=True, or "
        "save the merged model (merge_and_unload)."
    )


@contextlib.contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """The pretrained model without its adapters; afterwards all that was trainable is so again."""
    if not hasattr(model, "peft_config"):
        yield
        return
    from peft import PeftModel

    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        if isinstance(model, PeftModel):
            with model.disable_adapter():
                yield
        else:  # adapters that were added by transformers itself
            model.disable_adapters()
            try:
                yield
            finally:
                model.enable_adapters()
    finally:
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)


def base_weights(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Parameters, then buffers, by the names that they have in the model without adapters, whose own are left out."""
    foreign: list[str] = []
    for name, module in model.named_modules():
        if is_adapted(module):
            foreign += [f"{name}.{child}." for child, _ in module.named_children() if child not in _OWN]
            foreign += [f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)]
    for named in (model.named_parameters(), model.named_buffers()):
        for name, tensor in named:
            if not name.startswith(tuple(foreign)):
                yield ".".join(part for part in name.split(".") if part not in _OWN), tensor


def _tuner(layer: Any) -> Any:
    return layer.token_adapter if hasattr(layer, "token_adapter") else layer


def _replaces_tokens(tuner: Any) -> bool:
    return hasattr(tuner, "trainable_tokens_delta")


def _delta(tuner: Any, name: str) -> Tensor:
    """What a low-rank adapter adds to the table, (vocabulary, d), also where it is sharded."""
    with gathered(tuner):
        return whole(tuner.get_delta_weight(name))


def _active(layer: Any) -> list[tuple[Any, str]]:
    """PEFT's layer and the names of its adapters that a forward pass applies to the base layer's table."""
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
            f"The embeddings are adapted by {type(tuner).__name__} in a way that rows cannot be written through. Take "
            "them out of target_modules (plain LoRA, trainable_token_indices and modules_to_save are possible)."
        )
    # What is merged is in the base layer's table already, and tokens' rows are kept to be put back when it is undone.
    merged = () if _replaces_tokens(tuner) else tuner.merged_adapters
    return [(tuner, name) for name in tuner.active_adapters if name in held and name not in merged]
