"""The backbone of a model: find it, compute its hidden states, in which mode and precision."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model without its head; for an encoder-decoder, its encoder.

    Args:
        model: Any model.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> type(backbone_of(BertForMaskedLM(config))).__name__
        'BertModel'
    """
    return model.get_encoder() if model.config.is_encoder_decoder else getattr(model, model.base_model_prefix, model)


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
    states = _backbone_output(model, input_ids, attention_mask, weights, forward).last_hidden_state
    if decoder_input_ids is None:
        return states
    output = model.get_decoder()(
        input_ids=decoder_input_ids,
        encoder_hidden_states=states,
        encoder_attention_mask=attention_mask,
        use_cache=False,
        return_dict=True,
    )
    return output.last_hidden_state


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
    output = _backbone_output(model, input_ids, None, weights, None, output_hidden_states=True)
    last = output.last_hidden_state
    hidden = getattr(output, "hidden_states", None) or ()
    # The final entry of `hidden_states` lacks the final norm in some models.
    if len(hidden) > 1 and all(states.shape[:2] == last.shape[:2] for states in hidden[1:]):
        return [*hidden[1:-1], last]
    logger.info(
        "%s does not return the hidden states of its layers; only the last hidden states are used.",
        type(model).__name__,
    )
    return [last]


def _backbone_output(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    weights: Mapping[str, Tensor] | None,
    forward: Callable[..., Any] | None,
    **options: Any,
) -> Any:
    backbone = backbone_of(model)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "return_dict": True, **options}
    if _has_cache(type(backbone)):
        inputs["use_cache"] = False
    if weights is not None:
        return functional_call(backbone, dict(weights), (), inputs)
    return (forward or backbone)(**inputs)


def _has_cache(backbone: type[PreTrainedModel]) -> bool:
    """Whether the forward pass of a class of models, or of one that it extends, has a `use_cache` argument."""
    forwards = [vars(cls)["forward"] for cls in backbone.__mro__ if "forward" in vars(cls)]
    return any("use_cache" in inspect.signature(forward).parameters for forward in forwards)


def width_of_states(model: PreTrainedModel) -> int:
    """Return the width of a model's hidden states; for an encoder-decoder, the decoder's.

    Args:
        model: Any model.
    """
    config = model.config.get_text_config(decoder=True) if model.config.is_encoder_decoder else model.config
    return config.get_text_config().hidden_size


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

    Args:
        model: The model.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
