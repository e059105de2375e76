"""The backbone of a model: find it, compute its hidden states, in which mode and precision."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, RwkvModel

from defemb_callbacks.reconstruction.reading import (
    FORWARD_ERRORS,
    Reading,
    declared_reading,
    observed_reading,
    run,
    states_in,
    states_of,
)
from defemb_callbacks.weights.random_states import same_random_states
from defemb_callbacks.weights.sharding import is_sharded

logger = logging.getLogger(__name__)

# Observed once per model. Weights may change afterwards, but how a model reads does not depend on them.
_OBSERVED: WeakKeyDictionary[nn.Module, Reading] = WeakKeyDictionary()
_TRAINED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def reading_of(model: PreTrainedModel) -> Reading:
    """Return how a model reads text: observed on a few tokens, or from its config if its weights are elsewhere.

    Args:
        model: Any model.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> reading_of(GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1)))
        Reading(part='transformer', problem='', width=4, per_token=True, ahead=False, mixes=True)
    """
    model = _without_adapters(model)
    if model not in _OBSERVED:
        if any(is_sharded(weight) or weight.is_meta for weight in model.parameters()):
            return declared_reading(model)
        with evaluating(model), torch.no_grad():
            _OBSERVED[model] = observed_reading(model)
    return _OBSERVED[model]


def same_reading(model: PreTrainedModel, original: PreTrainedModel) -> None:
    """Note that a model reads as another one with the same parts, so that it is not tried again.

    Args:
        model: The model.
        original: The model whose parts it has.
    """
    reading_of(original)
    if (known := _OBSERVED.get(_without_adapters(original))) is not None:
        _OBSERVED[model] = known


def _without_adapters(model: Any) -> PreTrainedModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a model that reads text.

    This is the model without its head; for an encoder-decoder, its encoder; for a model that reads images or sound as
    well, its language model or decoder if the whole model needs more than text.

    Args:
        model: Any model.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> type(backbone_of(BertForMaskedLM(config))).__name__
        'BertModel'
    """
    return _without_adapters(model).get_submodule(reading_of(model).part)  # type: ignore[return-value]


def has_decoder(model: PreTrainedModel) -> bool:
    """Return whether a model is an encoder-decoder whose encoder reads text.

    Args:
        model: Any model.
    """
    model = _without_adapters(model)
    return model.config.is_encoder_decoder and backbone_of(model) is model.get_encoder()


def last_states(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    weights: Mapping[str, Tensor] | None = None,
    decoder_input_ids: Tensor | None = None,
    forward: Callable[..., Any] | None = None,
) -> Tensor:
    """Compute the last hidden states, (batch, length, d), of a model's backbone.

    Args:
        model: Any model, with or without a head.
        input_ids: (batch, length) int64.
        attention_mask: (batch, length); only needed with padding.
        weights: Weights to use instead of the backbone's own, by name, e.g. copies in lower precision.
        decoder_input_ids: (batch, decoder length) int64, for an encoder-decoder; the decoder's states are returned
            then. It needs no mask: padding at the end is invisible to earlier positions.
        forward: Function to call instead of the backbone.

    Returns:
        The hidden states of the backbone, or of the decoder.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> last_states(BertForMaskedLM(config), torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 4])
    """
    decoder = None if decoder_input_ids is None else _decoder_of(model)
    if decoder is not None and not isinstance(decoder, PreTrainedModel):
        # FSMT's decoder needs masks that only the whole model makes, and ends with the output table.
        inputs = {"attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids}
        options: dict[str, Any] = {**inputs, "output_hidden_states": True}
        output = run(_without_adapters(model).base_model, input_ids, **options)
        return output.decoder_hidden_states[-1]
    backbone = backbone_of(model)
    states = states_of(backbone, input_ids, attention_mask=attention_mask, weights=weights, forward=forward)
    if decoder is None or decoder_input_ids is None:
        return states
    return states_of(decoder, decoder_input_ids, encoder_hidden_states=states, encoder_attention_mask=attention_mask)


def causal_logits(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Compute the logits, (batch, length, vocabulary), of a causal language model on text.

    If the whole model needs more than text, as a speech recognizer does, its decoder is read alone.

    Args:
        model: A model of family "decoder" with output embeddings.
        input_ids: (batch, length) int64, without padding.
    """
    if backbone_of(model) is _without_adapters(model).base_model:
        return model(input_ids=input_ids, use_cache=False).logits
    return model.get_output_embeddings()(last_states(model, input_ids))


def _decoder_of(model: PreTrainedModel) -> nn.Module:
    """The decoder of an encoder-decoder, without a head, also inside another model."""
    decoder = model.get_decoder()
    while isinstance(decoder, PreTrainedModel) and (inner := decoder.get_decoder()) is not decoder:
        decoder = inner
    return decoder


def layer_states(
    model: PreTrainedModel, input_ids: Tensor, weights: Mapping[str, Tensor] | None = None
) -> list[Tensor]:
    """Compute the hidden states after each layer of a model's backbone in one forward pass.

    Args:
        model: Any model, with or without a head.
        input_ids: (batch, length) int64, without padding.
        weights: Weights to use instead of the backbone's own; see `last_states`.

    Returns:
        (batch, length, d) for each layer, the first layer first. The final entry is the last hidden states, after the
        final norm. A model that does not return a state per token and layer gives only these.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=2, num_attention_heads=1)
        >>> [states.shape for states in layer_states(BertForMaskedLM(config), torch.tensor([[1, 2, 3]]))]
        [torch.Size([1, 3, 4]), torch.Size([1, 3, 4])]
    """
    output = run(backbone_of(model), input_ids, weights=weights, output_hidden_states=True)
    last = states_in(output)
    hidden = getattr(output, "hidden_states", None) or ()
    # The final entry of `hidden_states` lacks the final norm in some models; some have several streams of states.
    if (
        last is not None
        and len(hidden) > 1
        and all(states.ndim == 3 and states.shape[:2] == last.shape[:2] for states in hidden[1:])
    ):
        return [*hidden[1:-1], last]
    name = type(model).__name__
    logger.info("%s does not return the hidden states of its layers; only the last hidden states are used.", name)
    return [last_states(model, input_ids, weights=weights) if last is None else last]


@torch.no_grad()
def width_of_states(model: PreTrainedModel) -> int:
    """Return the width of the states that a definition head reads; for an encoder-decoder, the decoder's.

    Args:
        model: Any model.
    """
    if not has_decoder(model):
        return reading_of(model).width
    if any(is_sharded(weight) or weight.is_meta for weight in model.parameters()):
        return model.config.get_text_config(decoder=True).hidden_size
    with evaluating(model):
        ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        return last_states(model, ids, decoder_input_ids=ids).shape[-1]


def has_fast_bfloat16(device: str) -> bool:
    """Return whether a type of device supports bfloat16 natively; emulation is slower than float32.

    Args:
        device: Device type, such as `"cuda"`.
    """
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Context manager that sets eval mode, which also disables NEFTune's noise, and restores each module's mode.

    Weights stay as they are, also those of RWKV, which divides them by powers of two when it is evaluated.

    Args:
        model: The model.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with unscaled(model):
            yield
    finally:
        for module, training in modes:
            module.training = training


def training_problem(model: PreTrainedModel) -> str:
    """Return why the backbone of a model cannot be trained on text alone; "" if it can.

    Args:
        model: Any model whose backbone reads text in eval mode.
    """
    backbone = backbone_of(model)
    if backbone not in _TRAINED:
        if any(is_sharded(weight) or weight.is_meta for weight in backbone.parameters()):
            return ""
        with evaluating(model), torch.no_grad():
            _TRAINED[backbone] = _tried_in_training(backbone)
    return _TRAINED[backbone]


def _tried_in_training(backbone: PreTrainedModel) -> str:
    ids = torch.zeros(1, 16, dtype=torch.int64, device=next(backbone.parameters()).device)
    copies = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone.train()
    with same_random_states(ids.device):
        try:
            run(backbone, ids, weights=copies, attention_mask=torch.ones_like(ids))
        except torch.OutOfMemoryError:
            raise
        except FORWARD_ERRORS as error:
            return f"{type(error).__name__}: {error}".partition("\n")[0]
    return ""


@contextlib.contextmanager
def unscaled(model: nn.Module) -> Iterator[None]:
    """Context manager in which RWKV does not divide its weights in place, as it does in eval mode.

    This only prevents overflows in float16, but weights that are saved or compared meanwhile would be others.

    Args:
        model: Any model.
    """
    parts = [module for module in model.modules() if isinstance(module, RwkvModel)]
    before = [(part, part.layers_are_rescaled, part.config.rescale_every) for part in parts]
    for part in parts:
        _rescale(part, False)
        part.config.rescale_every = 0
    try:
        yield
    finally:
        for part, rescaled, every in before:
            part.config.rescale_every, part.layers_are_rescaled = every, False
            _rescale(part, rescaled)


def _rescale(model: RwkvModel, wanted: bool) -> None:
    training, model.training = model.training, not wanted
    model._rescale_layers()  # does nothing if they are already
    model.training = training
