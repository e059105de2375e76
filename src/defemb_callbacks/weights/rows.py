"""Read and write rows of a model's token embeddings, wherever training keeps them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from accelerate.utils import extract_model_from_parallel, is_compiled_module
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from defemb_callbacks.weights.adapters import base_layer, with_adapters, write_into_adapters
from defemb_callbacks.weights.sharding import (
    awaits_main_process,
    from_main_process,
    reshard,
    same_weight,
    whole,
    whole_shape,
    write_into,
)

TableName = Literal["input", "output", "decoder"]
INPUT: TableName = "input"


def bare_model(model: nn.Module) -> nn.Module:
    """The model inside DDP, DataParallel or torch.compile, or the body of SetFit's; the wrappers stay as they are."""
    model = getattr(model, "model_body", model)
    # From a compiled wrapper, accelerate's function would take the DDP inside out for good, and gradients with it.
    compiled: Any = model if is_compiled_module(model) else None
    return extract_model_from_parallel(compiled._orig_mod if compiled is not None else model)


def transformers_model(model: nn.Module) -> Any:
    """The model of transformers, or PEFT's around it, inside such wrappers and inside a SentenceTransformer.

    Raises:
        TypeError: the model is wrapped by FSDP1, which keeps all weights in one.
    """
    bare = bare_model(model)
    if any(isinstance(module, FullyShardedDataParallel) for module in (model, *bare.modules())):
        raise TypeError(
            "The model is wrapped by FSDP1, in which no embedding table can be told apart. Use FSDP2: "
            'fsdp_config={"version": 2} of TrainingArguments, or fsdp_version: 2 in accelerate\'s configuration.'
        )
    inner = getattr(bare, "transformers_model", None)
    return bare if inner is None else inner


def embedding_layer(model: nn.Module, table: TableName = INPUT) -> Any:
    """The layer of a table, with what PEFT has put around it.

    Raises:
        TypeError, ValueError: see `embedding_weight`.
    """
    inner = transformers_model(model)
    if table == "decoder" and inner.config.is_encoder_decoder:
        layer = embedding_layer(inner.get_decoder())
        if not same_weight(base_layer(layer).weight, embedding_weight(model)):
            return layer
    elif table == "output":
        if output_weight(model) is not None:
            return inner.get_output_embeddings()
    elif table == INPUT:
        try:
            return inner.get_input_embeddings() if hasattr(inner, "get_input_embeddings") else None
        except NotImplementedError:  # transformers' answer for models that read no tokens
            return None
    raise ValueError(
        f"{type(inner).__name__} has no {table} table of its own beside its input table; use table='input'."
    )


def embedding_weight(model: nn.Module, table: TableName = INPUT) -> nn.Parameter:
    """The parameter of an embedding table, (vocabulary, d), of a model that may be inside DDP, PEFT, or torch.compile.

    It may be sharded, or awaited from the main process: see `whole_table` for its values. Of a table that PEFT adapts
    it is the base layer's.

    Args:
        model: any model with token embeddings.
        table: "input"; "decoder", what the decoder of an encoder-decoder reads where it has a table of its own
            (T5Gemma); or "output", the table of logits where it is not tied.

    Raises:
        TypeError: the model has no `get_input_embeddings()` with a table, or a quantized one; or is wrapped by FSDP1.
        ValueError: the model has no such table beside its input table, or it is on the meta device (no data yet).

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> embedding_weight(BertModel(config)).shape
        torch.Size([10, 4])
    """
    layer = embedding_layer(model, table)
    weight = getattr(base_layer(layer), "weight", None)
    if not isinstance(weight, Tensor) or len(whole_shape(weight)) != 2:
        raise TypeError(
            f"{type(transformers_model(model)).__name__} has no token embeddings to rebuild: get_input_embeddings() "
            f"gives {type(layer).__name__}. Pass the transformers model itself."
        )
    if not weight.is_floating_point():
        raise TypeError(
            f"The token embeddings are quantized ({weight.dtype}) and cannot be written. Load the model with its "
            "embeddings in a floating-point type, e.g. keep them out of the quantization config."
        )
    if weight.is_meta and not awaits_main_process(weight):
        raise ValueError(
            "The token embeddings are on the meta device and hold no data. Load the weights first, without "
            "torch.device('meta') or init_empty_weights(); with a device_map, keep the embeddings on a device and "
            "offload other layers."
        )
    return weight  # type: ignore[return-value]


def output_weight(model: nn.Module) -> nn.Parameter | None:
    """The output embedding table, (vocabulary, d'), or `None` where there is none or it is the input table itself.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> sizes = dict(vocab_size=10, n_embd=4, n_layer=1, n_head=1)
        >>> output_weight(GPT2LMHeadModel(GPT2Config(**sizes))) is None  # tied, GPT-2's default
        True
        >>> output_weight(GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False))).shape
        torch.Size([10, 4])
    """
    inner = transformers_model(model)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    weight = getattr(base_layer(head), "weight", None)
    if not isinstance(weight, Tensor) or len(whole_shape(weight)) != 2 or not weight.is_floating_point():
        return None
    return None if same_weight(weight, embedding_weight(model)) else weight  # type: ignore[return-value]


def table_shape(model: nn.Module, table: TableName = INPUT) -> torch.Size:
    """(vocabulary, d) of a table, also where this process has only a part of it.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> table_shape(BertModel(config))
        torch.Size([10, 4])
    """
    return whole_shape(embedding_weight(model, table))


@torch.no_grad()
def whole_table(model: nn.Module, table: TableName = INPUT) -> Tensor:
    """The embeddings that a forward pass reads, (vocabulary, d), detached, in their own type.

    They are not copied where this process holds them as they are. Where they are sharded or awaited from the main
    process, every process must ask at once.
    """
    layer, weight = embedding_layer(model, table), embedding_weight(model, table)
    if awaits_main_process(weight):
        return from_main_process(weight if weight.is_meta else with_adapters(layer, weight.detach()))
    reshard(transformers_model(model))
    # FSDP2 exchanges its parameter when it gives up the whole one.
    return with_adapters(layer, whole(embedding_weight(model, table)))


def read_table(model: nn.Module, table: TableName = INPUT) -> Tensor:
    """A float32 copy, (vocabulary, d), of the embeddings of a table, on their device; see `whole_table`."""
    return whole_table(model, table).to(torch.float32, copy=True)


@torch.no_grad()
def write_rows(model: nn.Module, ids: Tensor, rows: Tensor, table: TableName = INPUT) -> None:
    """Overwrite rows of the input embeddings, and so of an output table that is tied to them; or of another table.

    All is checked before the first row is written. The parameter stays the same object, so that ties, optimizers and
    compiled graphs see the new rows. On several processes call it on every one with the same rows. Sharded tables, the
    float32 copies of DeepSpeed's optimizer, and what PEFT's adapters hold of the table are written too.

    Args:
        model: also inside DDP, DataParallel or torch.compile, sharded by FSDP2 or ZeRO, or with PEFT's adapters.
        ids: (n,) int64, each once.
        rows: (n, d), any floating type.
        table: see `embedding_weight`.

    Raises:
        ValueError: shapes or ids that do not fit, or values that are NaN or infinite in the table's type (the first
            such row is named).
        TypeError: see `embedding_weight`; or a kind of adapter on the embeddings that rows cannot be written through.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1))
        >>> write_rows(model, torch.tensor([3]), torch.ones(1, 4))
        >>> embedding_weight(model)[3].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    reshard(transformers_model(model))
    layer, weight = embedding_layer(model, table), embedding_weight(model, table)
    size, width = whole_shape(weight)
    rows = rows.to(weight.dtype)  # first: what float32 holds may be infinite in float16
    check_rows(ids, rows, size=size, width=width)
    write_into(weight, ids, write_into_adapters(layer, ids, rows).to(weight.dtype))


def check_rows(ids: Tensor, rows: Tensor, *, size: int, width: int) -> None:
    """Refuse rows that do not fit a (size, width) table: `ValueError` with what is wrong."""
    if ids.ndim != 1 or ids.dtype != torch.int64:
        raise ValueError(f"Token ids must be a vector of int64 numbers, got {tuple(ids.shape)} {ids.dtype}.")
    different, times = ids.unique(return_counts=True)
    if len(different) < len(ids):
        raise ValueError(f"Each token has one row, but token {int(different[times > 1][0])} has several.")
    if rows.shape != (len(ids), width):
        raise ValueError(
            f"The rows have shape {tuple(rows.shape)}; {len(ids)} rows of this model have ({len(ids)}, {width}). "
            "Were they built for another model?"
        )
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= size):
        raise ValueError(
            f"Token ids from {int(ids.min())} to {int(ids.max())} do not fit a table of {size} rows. "
            "Were the rows built for another tokenizer?"
        )
    broken = ids.to(rows.device)[~torch.isfinite(rows).all(dim=1)]
    if len(broken):
        raise ValueError(f"{len(broken)} new rows hold NaN or infinity, the first one that of token {int(broken[0])}.")
