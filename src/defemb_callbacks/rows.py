"""Read and write rows of a model's token embeddings."""

from __future__ import annotations

from typing import Any, Literal

import torch
from accelerate.utils import extract_model_from_parallel, is_compiled_module
from torch import Tensor, nn

TableName = Literal["input", "output", "decoder"]
INPUT: TableName = "input"


def bare_model(model: nn.Module) -> nn.Module:
    """The model inside DDP, DataParallel or torch.compile; the wrappers stay as they are."""
    # From a compiled wrapper, accelerate's function would take the DDP inside out for good, and gradients with it.
    compiled: Any = model if is_compiled_module(model) else None
    return extract_model_from_parallel(compiled._orig_mod if compiled is not None else model)


def embedding_weight(model: nn.Module, table: TableName = INPUT) -> nn.Parameter:
    """An embedding table, (vocabulary, d), of a model, also inside DDP, DataParallel or torch.compile.

    Args:
        model: any model with token embeddings.
        table: "input"; "decoder", what the decoder of an encoder-decoder reads where it has a table of its own
            (T5Gemma); or "output", the table of logits where it is not tied.

    Raises:
        TypeError: the model has no `get_input_embeddings()` with a table, or a quantized one.
        ValueError: the model has no such table beside its input table; it is on the meta device (no data yet), or empty
            here because it is sharded.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> embedding_weight(BertModel(config)).shape
        torch.Size([10, 4])
    """
    if table != INPUT:
        return _other_weight(model, table)
    inner: Any = bare_model(model)
    try:
        embedding = inner.get_input_embeddings() if hasattr(inner, "get_input_embeddings") else None
    except NotImplementedError:  # transformers' answer for models that read no tokens
        embedding = None
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor) or (weight.ndim != 2 and weight.numel()):
        raise TypeError(
            f"{type(inner).__name__} has no token embeddings to rebuild: get_input_embeddings() gives "
            f"{type(embedding).__name__}. Pass the transformers model itself."
        )
    if not weight.is_floating_point():
        raise TypeError(
            f"The token embeddings are quantized ({weight.dtype}) and cannot be written. Load the model with its "
            "embeddings in a floating-point type, e.g. keep them out of the quantization config."
        )
    if weight.device.type == "meta":
        raise ValueError(
            "The token embeddings are on the meta device and hold no data. Load the weights first, without "
            "torch.device('meta') or init_empty_weights()."
        )
    if not weight.numel():
        raise ValueError("The token embeddings have no rows here, as they are sharded over processes (ZeRO-3).")
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
    inner: Any = bare_model(model)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return None
    # Tying shares the parameter, or, after some wrappers, only its storage.
    return None if weight.data_ptr() == embedding_weight(model).data_ptr() else weight  # type: ignore[return-value]


def _other_weight(model: nn.Module, table: TableName) -> nn.Parameter:
    inner: Any = bare_model(model)
    weight = output_weight(model) if table == "output" else None
    if table == "decoder" and inner.config.is_encoder_decoder:
        own = embedding_weight(inner.get_decoder())
        weight = None if own.data_ptr() == embedding_weight(model).data_ptr() else own
    if weight is None:
        raise ValueError(
            f"{type(inner).__name__} has no {table} table of its own beside its input table; use table='input'."
        )
    return weight


@torch.no_grad()
def read_table(model: nn.Module, table: TableName = INPUT) -> Tensor:
    """A float32 copy, (vocabulary, d), of the embeddings of a table, on their device."""
    return embedding_weight(model, table).detach().to(torch.float32, copy=True)


@torch.no_grad()
def write_rows(model: nn.Module, ids: Tensor, rows: Tensor, table: TableName = INPUT) -> None:
    """Overwrite rows of the input embeddings, and so of an output table that is tied to them; or of another table.

    All is checked before the first row is written. The parameter stays the same object, so that ties, optimizers and
    compiled graphs see the new rows. Under DDP call it on every process with the same rows.

    Args:
        model: also inside DDP, DataParallel or torch.compile.
        ids: (n,) int64, each once.
        rows: (n, d), any floating type.
        table: see `embedding_weight`.

    Raises:
        ValueError: shapes or ids that do not fit, or values that are NaN or infinite in the table's type (the first
            such row is named).

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1))
        >>> write_rows(model, torch.tensor([3]), torch.ones(1, 4))
        >>> embedding_weight(model)[3].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    weight = embedding_weight(model, table)
    rows = rows.to(weight.device, weight.dtype)  # first: what float32 holds may be infinite in float16
    check_rows(ids, rows, size=weight.shape[0], width=weight.shape[1])
    weight.index_copy_(0, ids.to(weight.device), rows)


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
