"""Where a model's hidden states can be replaced so that its output follows: found and verified by forward passes."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from defemb_callbacks.reconstruction.backbone import backbone_of, evaluating

# Smallest change of an output, relative to its largest value, that is not rounding.
_TOLERANCE = 1e-4


def returned_states(output: Any) -> Tensor | None:
    """Return the hidden states in a module's output: a tensor, a tuple that starts with one, or a `ModelOutput`.

    Args:
        output: The output of a module.
    """
    if isinstance(output, tuple):
        output = next(iter(output), None)
    states = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
    return states if isinstance(states, Tensor) else None


def with_states(output: Any, states: Tensor) -> Any:
    """Return a module's output with other hidden states; a `ModelOutput` is changed in place.

    Args:
        output: The output of a module, for which `returned_states` is not `None`.
        states: The states, in the shape of the old ones.
    """
    if isinstance(output, Tensor):
        return states
    if isinstance(output, tuple):
        return (states, *output[1:])
    output.last_hidden_state = states
    return output


@dataclass(frozen=True)
class Place:
    """Where hidden states can be replaced.

    Attributes:
        reader: The model that is called with token ids: the backbone, or a model inside it.
        inside: The submodule of the reader whose output is replaced; `None` for the reader's own output.
    """

    reader: PreTrainedModel
    inside: nn.Module | None


@torch.no_grad()
def places(model: PreTrainedModel, input_ids: Tensor) -> list[Place]:
    """Return where the last hidden states of a model's backbone may be replaced, the best place first.

    Besides the output of the backbone, this is the outermost submodule that returns the same states, where poolers
    inside the backbone read them. The reader may also be a model inside the backbone that returns these states, for
    heads that call only this one (`BartForCausalLM` calls its decoder).

    Args:
        model: Any model, with or without a head.
        input_ids: (batch, length) int64.
    """
    backbone = backbone_of(model)
    returned: list[tuple[nn.Module, Tensor | None]] = []
    handles = [
        module.register_forward_hook(lambda module, _, output: returned.append((module, returned_states(output))))
        for module in backbone.modules()
        if module is not backbone
    ]
    try:
        with evaluating(model):
            output = backbone(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), return_dict=True)
    finally:
        for handle in handles:
            handle.remove()
    last = returned_states(output)
    if last is None:
        return []
    calls = Counter(module for module, _ in returned)  # a shared module returns other states as well
    outermost_first = [module for module, states in reversed(returned) if states is last and calls[module] == 1]
    pooled = getattr(output, "pooler_output", None) is not None
    found: list[Place] = []
    for reader in (backbone, *(module for module in outermost_first if isinstance(module, PreTrainedModel))):
        parts = set(reader.modules()) - {reader}
        inside = [Place(reader, module) for module in outermost_first if module in parts][:1]
        own = Place(reader, None)
        found += [*inside, own] if pooled else [own, *inside]
    return found


@torch.no_grad()
def task_outputs(model: PreTrainedModel, input_ids: Tensor) -> list[Tensor]:
    """Return what a model computes from text, in eval mode: its first output, and its pooled states if there are any.

    Args:
        model: Any model, with or without a head.
        input_ids: (batch, length) int64.
    """
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "return_dict": True}
    if model.config.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters:
        inputs["decoder_input_ids"] = input_ids
    with evaluating(model):
        output: Any = model(**inputs)
    found = [output[0], getattr(output, "pooler_output", None)]
    return [value.float().clone() for value in found if isinstance(value, Tensor)]


def all_changed(before: list[Tensor], after: list[Tensor]) -> bool:
    """Return whether each output differs from the one before.

    Args:
        before: From `task_outputs`.
        after: From `task_outputs` with other states.

    Example:
        >>> zero, one = torch.zeros(2), torch.ones(2)
        >>> all_changed([zero, one], [one, zero]), all_changed([zero, one], [one, one])
        (True, False)
    """
    return all(
        not torch.allclose(old, new, rtol=0, atol=_TOLERANCE * float(old.abs().max()))
        for old, new in zip(before, after, strict=True)
    )
