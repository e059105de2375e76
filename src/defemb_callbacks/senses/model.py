"""A model whose last hidden states are sense vectors, whatever comes after them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from defemb_callbacks.reconstruction.backbone import backbone_of
from defemb_callbacks.senses.dictionary import SenseDictionary
from defemb_callbacks.senses.layer import SenseLayer, require_own_states
from defemb_callbacks.weights.rows import bare_model


def _class_with_senses(original: type[nn.Module]) -> type[nn.Module]:
    """The class of a backbone whose `senses` replace its states.

    A subclass, not hooks on the backbone: sentence-transformers calls `forward` itself, which runs no hooks, and a copy
    of a model must use its own senses.
    """

    @functools.wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        layer: SenseLayer = self.senses
        layer.input_ids = args[0] if args else kwargs.get("input_ids")
        if layer.input_ids is None:
            raise ValueError("a model with senses needs input_ids: inputs_embeds do not tell which tokens these are")
        output = original.forward(self, *args, **kwargs)
        return output if layer.hook is not None else layer.replace_output(self, args, output)

    # Of the same name, which goes into checkpoints.
    return type(original.__name__, (original,), {"forward": forward, "__module__": original.__module__})


def with_senses(model: PreTrainedModel, dictionary: SenseDictionary, *, force: bool = False) -> PreTrainedModel:
    """Let the last hidden states of a model be senses: of each, the sense of its token with the largest dot product.

    Poolers, heads and whatever else reads the last hidden states then read senses. States of tokens without senses
    stay. `hidden_states` may still show the last layer's own. The model is changed in place, and `without_senses`
    changes it back; its checkpoints are ordinary ones without the dictionary. DDP has nothing of the dictionary to
    broadcast; `nn.DataParallel` is not supported.

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
        ValueError: a dictionary of another model, tokenizer, width or layer; a model that has senses, or
            that accelerate has prepared for mixed precision.

    Example:
        >>> model = with_senses(model, dictionary)  # doctest: +SKIP
        >>> model(**inputs).logits.shape  # doctest: +SKIP
        torch.Size([8, 2])
    """
    backbone: Any = backbone_of(model)
    require_own_states(model)
    layer = dictionary.info.get("config", {}).get("layer", -1)
    if layer != -1:
        raise ValueError(f"the dictionary holds senses of layer {layer}; a model's last states need one of layer -1")
    if "forward" in backbone.__dict__:
        raise ValueError(
            "accelerate has prepared this model for mixed precision: call with_senses before, or on "
            "accelerator.unwrap_model(model, keep_fp32_wrapper=False)"
        )
    dictionary.check_model(model, force=force)
    backbone.senses = SenseLayer(dictionary.to(model.device))
    if getattr(backbone, "pooler", None) is not None:  # it reads the states within the backbone: BERT, RoBERTa
        backbone.senses.hook = backbone.encoder.register_forward_hook(backbone.senses.replace_output)
    backbone.__class__ = _class_with_senses(type(backbone))
    return model


def without_senses(model: PreTrainedModel) -> PreTrainedModel:
    """Undo `with_senses`.

    Raises:
        ValueError: the model gives no senses.
    """
    layer = sense_layer(model)
    backbone: Any = backbone_of(model)
    if layer.hook is not None:
        layer.hook.remove()
    backbone.__class__ = type(backbone).__base__
    del backbone.senses
    return model


def sense_layer(model: nn.Module) -> SenseLayer:
    """What `with_senses` has put into a model, also inside DDP or torch.compile.

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
