"""From the states of a text's tokens to one vector: which layers are read, and the mean over the attention mask."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.reconstruction.backbone import backbone_of, evaluating
from defemb_callbacks.reconstruction.batching import equal_length_batches
from defemb_callbacks.weights.rows import embedding_weight

STATIC = "static"

# Layer 0 is what enters the first Transformer layer. "First" is what leaves it: so in the code of BERT-flow, where the
# paper's "last2avg" is the mean of this one and the last, and in those of BERT-whitening and SimCSE.
_LAYERS = {"last": (-1,), "first_last": (1, -1), "last_two": (-2, -1)}


def pooled_layers(pooling: str) -> tuple[int, ...]:
    """Which of a model's hidden states a pooling takes the mean of, as indices; none for `"static"`.

    Args:
        pooling: "last"; "first_last" (the output of the first Transformer layer and the last: what BERT-flow calls
            last2avg); "last_two"; "layer:N", N from 0 (what enters the first layer, positions and LayerNorm included)
            to the number of layers; or "static" (the rows of the token embedding table, without either).

    Raises:
        ValueError: any other pooling.

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
        raise ValueError(f"pooling must be one of {', '.join(_LAYERS)}, {STATIC}, or layer:N, got {pooling!r}")
    return (int(layer[1]),)


def masked_mean(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of the states that the mask keeps, summed in at least float32.

    Args:
        states: (batch, length, d), any floating dtype.
        attention_mask: (batch, length), not 0 where a token is to count.

    Returns:
        (batch, d), float32 or the wider dtype of the states; 0 for a text without a token.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
        tensor([[2.]])
    """
    if states.ndim != 3 or attention_mask.shape != states.shape[:2]:
        shapes = f"{tuple(states.shape)} and {tuple(attention_mask.shape)}"
        raise ValueError(f"states and attention_mask must be (batch, length, d) and (batch, length), got {shapes}")
    dtype = torch.promote_types(states.dtype, torch.float32)
    kept = (attention_mask != 0).to(dtype)
    # Half precision overflows or stagnates in sums over long texts.
    total = torch.einsum("bld,bl->bd", states.to(dtype), kept)
    mean: Tensor = total / kept.sum(dim=1, keepdim=True).clamp(min=1)
    return mean


def pool(hidden_states: Sequence[Tensor], attention_mask: Tensor, pooling: str = "last") -> Tensor:
    """One vector a text: the mean over its tokens of the mean over the pooling's layers.

    Args:
        hidden_states: as transformers returns them with `output_hidden_states=True`: what enters the first layer, then
            the output of each, (batch, length, d) each. For "static" the rows of the table alone:
            `[table[input_ids]]`.
        attention_mask: (batch, length). Special tokens count, as in BERT-flow.
        pooling: see `pooled_layers`.

    Returns:
        (batch, d), float32 or the wider dtype of the states.

    Raises:
        ValueError: an unknown pooling, a layer that is not there, shapes that do not fit.

    Example:
        >>> states = [torch.full((1, 2, 3), float(layer)) for layer in range(5)]
        >>> pool(states, torch.ones(1, 2), "first_last")
        tensor([[2.5000, 2.5000, 2.5000]])
    """
    layers = pooled_layers(pooling)
    if pooling == STATIC:
        if len(hidden_states) != 1:
            raise ValueError(
                f"pooling 'static' takes the rows of the embedding table, [table[input_ids]], got {len(hidden_states)} "
                "hidden states; of these, layer:0 is the nearest"
            )
        layers = (0,)
    check_layers(pooling, len(hidden_states) - 1)
    means = [masked_mean(hidden_states[layer], attention_mask) for layer in layers]
    return torch.stack(means).mean(dim=0)


def check_layers(pooling: str, number: int) -> None:
    """Refuse a pooling that reads a layer beyond a model's `number` of them: `ValueError`."""
    layers = pooled_layers(pooling)
    if any(not -number - 1 <= layer <= number for layer in layers):
        raise ValueError(
            f"pooling {pooling!r} reads a layer that is not there: the last of this model is layer:{number}"
        )


def encode_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pooling: str = "last",
    *,
    batch_size: int = 128,
    max_length: int | None = None,
) -> Tensor:
    """Sentence embeddings of texts by a frozen model, in their order.

    The model is read in eval mode, without gradients, on its own device, and left in the mode it was in. Texts of equal
    length are encoded together, so that nothing is padded: no pad token is needed, and no vector depends on what else
    is in the batch. An encoder-decoder is read by its encoder. "static" reads the table only.

    Args:
        model: with any head, or none.
        tokenizer: the model's.
        texts: a sequence of strings.
        pooling: see `pooled_layers`.
        batch_size: texts encoded at once.
        max_length: longest text in tokens, special tokens included, the rest is cut off (both papers: 64);
            `None` is the tokenizer's `model_max_length`.

    Returns:
        (n, d) float32, on the CPU.

    Raises:
        TypeError: `texts` is a single string.
        ValueError: no texts, a text without tokens, an unknown pooling, a layer that is not there.

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
        raise TypeError("texts must be a sequence of strings, got one string; put it into a list")
    if not len(texts):
        raise ValueError("texts is empty; there is nothing to encode")
    backbone = backbone_of(model)
    config = backbone.config.get_text_config()
    check_layers(pooling, config.num_hidden_layers)
    plain = {"return_attention_mask": False, "return_token_type_ids": False}
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, **plain)["input_ids"]
    empty = next((position for position, ids in enumerate(encoded) if not ids), None)
    if empty is not None:
        raise ValueError(f"text {empty}, {texts[empty]!r}, has no tokens; leave it out")
    table = embedding_weight(model).detach() if pooling == STATIC else None
    vectors = torch.empty(len(texts), config.hidden_size if table is None else table.shape[1])
    with (
        evaluating(model),
        torch.no_grad(),
        tqdm(total=len(texts), desc="Encoding texts", unit="text", disable=None) as progress,
    ):
        for batch in equal_length_batches([len(ids) for ids in encoded], batch_size):
            input_ids = torch.tensor([encoded[position] for position in batch], device=model.device)
            whole = torch.ones_like(input_ids)
            if table is None:
                inputs = {"input_ids": input_ids, "attention_mask": whole, "return_dict": True}
                states = backbone(**inputs, output_hidden_states=True).hidden_states
            else:
                states = (table[input_ids],)
            vectors[batch] = pool(states, whole, pooling).float().cpu()
            progress.update(len(batch))
    return vectors
