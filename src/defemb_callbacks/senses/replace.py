"""A model whose last hidden states are sense vectors, whatever comes after them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from defemb_callbacks.reconstruction.mixin import backbone_of
from defemb_callbacks.rows import bare_model
from defemb_callbacks.senses.dictionary import SenseDictionary


class SenseLayer(nn.Module):
    """What `with_senses` puts into a backbone: a dictionary, and the hooks that use it.

    Attributes:
        dictionary: the senses.
        recorded: a list that takes token ids and unreplaced states of each forward pass, or `None`.
    """

    def __init__(self, dictionary: SenseDictionary) -> None:
        super().__init__()
        self.dictionary = dictionary
        self.recorded: list[tuple[Tensor, Tensor]] | None = None
        self._input_ids: Tensor | None = None
        self._handles: list[Any] = []

    def attach(self, backbone: nn.Module) -> None:
        """Read the token ids that enter a backbone, and replace the states that leave it."""
        # A pooler inside the backbone (BERT, RoBERTa) has to read senses as well.
        source = backbone.encoder if getattr(backbone, "pooler", None) is not None else backbone
        self._handles = [
            backbone.register_forward_pre_hook(self._read_ids, with_kwargs=True),
            source.register_forward_hook(self._replace),
        ]
        backbone.add_module("senses", self)

    def detach(self, backbone: nn.Module) -> None:
        """Undo `attach`."""
        for handle in self._handles:
            handle.remove()
        delattr(backbone, "senses")

    def _read_ids(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._input_ids = args[0] if args else kwargs.get("input_ids")
        if self._input_ids is None:
            raise ValueError("a model with senses needs input_ids: inputs_embeds do not tell which tokens these are")

    def _replace(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        states = output[0]
        assert self._input_ids is not None
        if self.recorded is not None:
            self.recorded.append((self._input_ids, states))
        senses = self.dictionary.lookup(states, self._input_ids)
        self._input_ids = None
        if isinstance(output, tuple):
            return (senses, *output[1:])
        output.last_hidden_state = senses
        return output


def with_senses(model: PreTrainedModel, dictionary: SenseDictionary, *, force: bool = False) -> PreTrainedModel:
    """Let the last hidden states of a model be senses: of each, the sense of its token with the largest dot product.

    Poolers, heads and whatever else reads the last hidden states then read senses. States of tokens without senses
    stay. `hidden_states` may still show the last layer's own. The model is changed in place, and `without_senses`
    changes it back; its checkpoints are ordinary ones without the dictionary.

    Of an encoder-decoder it is the encoder's states that are replaced. Of a `SentenceTransformer` give the encoder:
    `with_senses(model.transformers_model, dictionary)`.

    Source: arXiv 2504.06036.

    Args:
        model: the one that the dictionary was built of, with any head, or a student of it.
        dictionary: of its last layer. It moves to the model's device.
        force: take a model with other weights too, such as one in another dtype.

    Returns:
        The model.

    Raises:
        ValueError: a dictionary of another model, tokenizer, width or layer; a model that has senses.

    Example:
        >>> model = with_senses(model, dictionary)  # doctest: +SKIP
        >>> model(**inputs).logits.shape  # doctest: +SKIP
        torch.Size([8, 2])
    """
    backbone = backbone_of(model)
    if isinstance(getattr(backbone, "senses", None), SenseLayer):
        raise ValueError("the model gives senses already; call without_senses(model) first")
    layer = dictionary.info.get("config", {}).get("layer", -1)
    if layer != -1:
        raise ValueError(f"the dictionary holds senses of layer {layer}; a model's last states need one of layer -1")
    dictionary.check_model(model, force=force)
    SenseLayer(dictionary.to(model.device)).attach(backbone)
    return model


def without_senses(model: PreTrainedModel) -> PreTrainedModel:
    """Undo `with_senses`.

    Raises:
        ValueError: the model gives no senses.
    """
    sense_layer(model).detach(backbone_of(model))
    return model


def sense_layer(model: nn.Module) -> SenseLayer:
    """What `with_senses` has put into a model, also inside DDP, DataParallel or torch.compile.

    Raises:
        ValueError: the model gives no senses.
    """
    layer = getattr(backbone_of(bare_model(model)), "senses", None)  # type: ignore[arg-type]
    if not isinstance(layer, SenseLayer):
        raise ValueError("the model gives no senses; call with_senses(model, dictionary) first")
    return layer


@contextlib.contextmanager
def recorded_states(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """A list that takes, for each forward pass of a model with senses, its token ids and its states before replacing.

    Raises:
        ValueError: the model gives no senses.
    """
    layer = sense_layer(model)
    layer.recorded = []
    try:
        yield layer.recorded
    finally:
        layer.recorded = None
