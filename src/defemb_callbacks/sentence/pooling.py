"""Mean pooling of hidden states over tokens and layers, and sentence embeddings of texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.progress import ProgressBar
from defemb_callbacks.reconstruction.backbone import backbone_of, evaluating
from defemb_callbacks.reconstruction.batching import equal_length_batches
from defemb_callbacks.weights.rows import embedding_weight

STATIC = "static"

# Hidden state 0 is the input of the first layer, 1 its output. "First" is the latter, as in the code of BERT-flow
# (called last2avg there), BERT-whitening and SimCSE.
_LAYERS = {"last": (-1,), "first_last": (1, -1), "last_two": (-2, -1)}


def pooled_layers(pooling: str) -> tuple[int, ...]:
    """Indices of the hidden states that a pooling averages; empty for `"static"`.

    Args:
        pooling: `"last"`; `"first_last"` (outputs of the first and the last layer; last2avg in BERT-flow);
            `"last_two"`; `"layer:N"`, with N from 0 (the input of the first layer, including positions and LayerNorm)
            to the number of layers; or `"static"` (rows of the token embedding table, without positions or LayerNorm).

    Raises:
        ValueError: If `pooling` is unknown.

    Example:
        >>> pooled_layers("first_last"), pooled_layers("layer:3"), pooled_layers("static")
        ((1, -1), (3,), ())
    """
    if pooling == STATIC:
        return ()
    if pooling in _LAYERS:
        return _LAYERS[pooling]
    layer = re.fullmatch(r"layer:(\d+)", pooling)
    if layer is None:
        raise ValueError(f"`pooling` must be one of {', '.join(_LAYERS)}, {STATIC} or layer:N, got {pooling!r}.")
    return (int(layer[1]),)


def masked_mean(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of the states over the attention mask, computed in at least float32.

    Args:
        states: Shape (batch, length, d), any floating-point dtype.
        attention_mask: Shape (batch, length), nonzero for tokens to include.

    Returns:
        Shape (batch, d), in float32 or the dtype of `states` if that is wider; 0 for a text without tokens.

    Raises:
        ValueError: If the shapes do not match.

    Example:
        >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
        tensor([[2.]])
    """
    if states.ndim != 3 or attention_mask.shape != states.shape[:2]:
        shapes = f"{tuple(states.shape)} and {tuple(attention_mask.shape)}"
        raise ValueError(f"`states` and `attention_mask` must be (batch, length, d) and (batch, length), got {shapes}.")
    dtype = torch.promote_types(states.dtype, torch.float32)
    kept = (attention_mask != 0).to(dtype)
    # In half precision, sums over long texts overflow or lose small terms.
    total = torch.einsum("bld,bl->bd", states.to(dtype), kept)
    mean: Tensor = total / kept.sum(dim=1, keepdim=True).clamp(min=1)
    return mean


def pool(hidden_states: Sequence[Tensor], attention_mask: Tensor, pooling: str = "last") -> Tensor:
    """Sentence embeddings: the mean of the hidden states over tokens and layers.

    Args:
        hidden_states: As returned by transformers with `output_hidden_states=True`: the input of the first layer and
            the output of each layer, (batch, length, d) each. For `"static"`, only the rows of the embedding table:
            `[table[input_ids]]`.
        attention_mask: Shape (batch, length). Special tokens are included, as in BERT-flow.
        pooling: See `pooled_layers`.

    Returns:
        Shape (batch, d), in float32 or the dtype of the states if that is wider.

    Raises:
        ValueError: If the pooling is unknown or reads a layer that is out of range, or if the shapes do not match.

    Example:
        >>> states = [torch.full((1, 2, 3), float(layer)) for layer in range(5)]
        >>> pool(states, torch.ones(1, 2), "first_last")
        tensor([[2.5000, 2.5000, 2.5000]])
    """
    layers = pooled_layers(pooling)
    if pooling == STATIC:
        if len(hidden_states) != 1:
            raise ValueError(
                f"pooling='static' requires only the rows of the embedding table, [table[input_ids]], got "
                f"{len(hidden_states)} hidden states. Use pooling='layer:0' for the first of them."
            )
        layers = (0,)
    check_layers(pooling, len(hidden_states) - 1)
    means = [masked_mean(hidden_states[layer], attention_mask) for layer in layers]
    return torch.stack(means).mean(dim=0)


def check_layers(pooling: str, depth: int) -> None:
    """Check that the layers of a pooling exist in a model with `depth` layers.

    Raises:
        ValueError: If a layer is out of range.
    """
    if any(not -depth - 1 <= layer <= depth for layer in pooled_layers(pooling)):
        raise ValueError(
            f"pooling={pooling!r} is out of range: the last layer of this model is layer:{depth}. Choose a lower layer."
        )


@overload
def encode_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pooling: str = ...,
    *,
    batch_size: int = ...,
    max_length: int | None = ...,
) -> Tensor: ...


@overload
def encode_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pooling: list[str] | tuple[str, ...],
    *,
    batch_size: int = ...,
    max_length: int | None = ...,
) -> dict[str, Tensor]: ...


def encode_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pooling: str | list[str] | tuple[str, ...] = "last",
    *,
    batch_size: int = 128,
    max_length: int | None = None,
) -> Tensor | dict[str, Tensor]:
    """Encode texts as sentence embeddings with a frozen model.

    The model runs in eval mode, without gradients, on its own device; its mode is restored afterwards. Batches contain
    texts of equal length, so nothing is padded: no pad token is needed, and vectors do not depend on the batch. For an
    encoder-decoder model, the encoder is used. `"static"` only uses the embedding table.

    Args:
        model: Any model, with or without a head.
        tokenizer: The tokenizer of the model.
        texts: The texts.
        pooling: See `pooled_layers`. With a list, the model reads the texts once for all poolings.
        batch_size: Number of texts per forward pass.
        max_length: Maximum text length in tokens, including special tokens (64 in both papers); `None` for the
            tokenizer's `model_max_length`.

    Returns:
        Shape (n, d), float32, on the CPU, in the order of the texts; by pooling if a list was given.

    Raises:
        TypeError: If `texts` is a single string.
        ValueError: If `texts` is empty or has a text without tokens, or if the pooling is unknown or reads a layer that
            is out of range.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"planes": 0, "fly": 1}, unk_token="fly"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=16)
        >>> config = BertConfig(vocab_size=2, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> encode_texts(BertModel(config), tokenizer, ["planes fly", "fly"], "first_last").shape
        torch.Size([2, 4])
    """
    if isinstance(texts, str):
        raise TypeError("`texts` must be a list of strings, got a single string. Put it into a list.")
    if not len(texts):
        raise ValueError("`texts` must not be empty, got []. Pass at least one text.")
    poolings = [pooling] if isinstance(pooling, str) else list(pooling)
    backbone = backbone_of(model)
    config = backbone.config.get_text_config()
    for name in poolings:
        check_layers(name, config.num_hidden_layers)
    options = {"return_attention_mask": False, "return_token_type_ids": False}
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, **options)["input_ids"]
    empty = next((position for position, ids in enumerate(encoded) if not ids), None)
    if empty is not None:
        raise ValueError(f"Text {empty}, {texts[empty]!r}, has no tokens. Remove it.")
    table = embedding_weight(model).detach() if STATIC in poolings else torch.empty(0, 0)
    widths = [table.shape[1] if name == STATIC else config.hidden_size for name in poolings]
    vectors = {name: torch.empty(len(texts), width) for name, width in zip(poolings, widths, strict=True)}
    with (
        evaluating(model),
        torch.no_grad(),
        ProgressBar(len(texts), "Encoding texts", "text") as progress,
    ):
        for batch in equal_length_batches([len(ids) for ids in encoded], batch_size):
            input_ids = torch.tensor([encoded[position] for position in batch], device=model.device)
            mask = torch.ones_like(input_ids)
            states: Sequence[Tensor] = ()
            if set(vectors) != {STATIC}:
                inputs = {"input_ids": input_ids, "attention_mask": mask, "return_dict": True}
                states = backbone(**inputs, output_hidden_states=True).hidden_states
            for name, rows in vectors.items():
                read = (table[input_ids],) if name == STATIC else states
                rows[batch] = pool(read, mask, name).float().cpu()
            progress.update(len(batch))
    return vectors[pooling] if isinstance(pooling, str) else vectors
