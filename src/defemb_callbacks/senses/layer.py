"""The layer inside a model that replaces its last hidden states with sense vectors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from defemb_callbacks.senses.dictionary import SenseDictionary
from defemb_callbacks.senses.placement import Place, returned_states, with_states
from defemb_callbacks.weights.unwrapping import bare_model

# Token ids of the current forward pass: not an attribute, because several threads may run one model.
INPUT_IDS: ContextVar[Tensor | None] = ContextVar("input_ids", default=None)


class SenseLayer(nn.Module):
    """Replaces the hidden states of a backbone; `with_senses` adds it.

    Attributes:
        dictionary: The senses.
        recorded: A list that collects token ids and original states of each forward pass, or `None`.
        probing: Whether states are replaced with arbitrary ones, to test whether the output depends on them.
        hook: The hook on the submodule whose output is replaced; `None` if it is the backbone's own output.
    """

    def __init__(self, dictionary: SenseDictionary) -> None:
        super().__init__()
        self.dictionary = dictionary
        self.recorded: list[tuple[Tensor, Tensor]] | None = None
        self.probing = False
        self.hook: RemovableHandle | None = None

    def replace_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Replace the states in a module's output, which is a tensor, a tuple or a `ModelOutput`."""
        input_ids = INPUT_IDS.get()
        if input_ids is None:
            if self.probing:
                return output
            raise ValueError(
                "`backbone.forward` was bypassed, as nn.DataParallel does. Start one process per device with torchrun "
                "or accelerate launch."
            )
        states = returned_states(output)
        assert states is not None
        ids = input_ids.to(states.device)
        if self.probing:
            return with_states(output, states.flip(-1) + 1)
        if self.recorded is not None:
            self.recorded.append((ids, states))
        # The layers of a model may be distributed over several devices.
        if self.dictionary.vectors.device != states.device:
            self.dictionary.to(states.device)
        return with_states(output, self.dictionary.lookup(states, ids))


def require_no_senses(model: PreTrainedModel) -> None:
    """Check that the states of a model are its own.

    Raises:
        ValueError: If `with_senses` was applied to the model.
    """
    if reader_with_senses(model) is not None:
        raise ValueError("The hidden states of this model are already senses. Call without_senses(model) first.")


def class_with_senses(original: type[nn.Module]) -> type[nn.Module]:
    """Subclass of a backbone's class whose `senses` replace its states.

    A subclass rather than a forward hook: sentence-transformers calls `forward` directly, which runs no hooks, and a
    copy of a model must use its own senses.
    """

    @functools.wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        layer: SenseLayer = self.senses
        input_ids = args[0] if args else kwargs.get("input_ids")
        if input_ids is None and not layer.probing:
            raise ValueError("A model with senses requires `input_ids`, got None. Do not pass `inputs_embeds` instead.")
        before = INPUT_IDS.set(input_ids)
        try:
            output = original.forward(self, *args, **kwargs)
            return output if layer.hook is not None else layer.replace_output(self, args, output)
        finally:
            INPUT_IDS.reset(before)

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        return _empty_with_senses, (original,), self.__dict__

    # The class name is written to checkpoints.
    attributes = {"forward": forward, "__reduce_ex__": reduce, "__module__": original.__module__}
    return type(original.__name__, (original,), attributes)


def _empty_with_senses(original: type[nn.Module]) -> nn.Module:
    """An object without attributes, which `pickle` and `copy` fill: they cannot import a class made by a function."""
    kind = class_with_senses(original)
    return kind.__new__(kind)


def replace_states(place: Place, layer: SenseLayer) -> None:
    """Let a layer replace states.

    Args:
        place: Where.
        layer: The layer.
    """
    reader: Any = place.reader
    reader.senses = layer
    if place.inside is not None:
        layer.hook = place.inside.register_forward_hook(layer.replace_output)
    reader.__class__ = class_with_senses(type(reader))


def sense_layer(model: nn.Module) -> SenseLayer:
    """The layer that `with_senses` added to a model, which may be wrapped by DDP or torch.compile.

    Raises:
        ValueError: If the model has no senses.
    """
    reader = reader_with_senses(bare_model(model))
    if reader is None:
        raise ValueError("This model has no senses. Call with_senses(model, dictionary) first.")
    layer: SenseLayer = reader.senses
    return layer


def reader_with_senses(model: nn.Module) -> Any:
    """The part of a model whose states are replaced; `None` without senses."""
    return next((part for part in model.modules() if isinstance(getattr(part, "senses", None), SenseLayer)), None)


@contextlib.contextmanager
def recorded_states(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record token ids and original hidden states of each forward pass of a model with senses.

    Raises:
        ValueError: If the model has no senses.
    """
    layer = sense_layer(model)
    layer.recorded = []
    try:
        yield layer.recorded
    finally:
        layer.recorded = None
