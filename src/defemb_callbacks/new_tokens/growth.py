"""The tables of a model as they grow by new tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from defemb_callbacks.weights.config_record import read_new_tokens_record, write_new_tokens_record
from defemb_callbacks.weights.rows import (
    INPUT,
    TableName,
    bare_model,
    embedding_weight,
    output_weight,
    transformers_model,
    write_rows,
)
from defemb_callbacks.weights.sharding import is_sharded


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model whose tables cannot grow.

    Raises:
        ValueError: it is wrapped, sharded, has adapters, is read-only (made under `torch.inference_mode()`), or its
            tables differ in length.
        TypeError: a table is quantized, or there is none.
    """
    if bare_model(model) is not model:
        raise ValueError(f"The model is inside {type(model).__name__}; define new tokens before it is wrapped.")
    if transformers_model(model) is not model:
        raise ValueError(
            f"{type(model).__name__} has its tables in a model inside; define new tokens in model.transformers_model."
        )
    if hasattr(model, "peft_config"):
        raise ValueError(
            "This is a PEFT model, whose tables cannot grow. Define new tokens in the base model first, then add the "
            "adapters, with the embeddings in modules_to_save if the new rows are to be trained and saved with them."
        )
    weight = embedding_weight(model)
    if is_sharded(weight) or weight.is_meta:
        raise ValueError(
            "The model is spread over processes, and its tables cannot grow there. Define new tokens beforehand, with "
            "`defemb define MODEL GLOSSARY --output DIR`, and load model and tokenizer from DIR."
        )
    head: Any = model.get_output_embeddings()
    output = getattr(head, "weight", None)
    if head is not None and not (isinstance(output, Tensor) and output.is_floating_point()):
        kind = output.dtype if isinstance(output, Tensor) else type(head).__name__
        raise TypeError(
            f"The output embeddings cannot be written ({kind}). Load the model with them in a floating-point type, "
            "e.g. keep them out of the quantization config."
        )
    if weight.is_inference() or (output is not None and output.is_inference()):
        raise ValueError(
            "The embeddings are read-only, as the model was made under torch.inference_mode(). Load it outside of that."
        )
    if output is not None and len(output) != len(weight):
        raise ValueError(
            f"The output table has {len(output)} rows, the input table {len(weight)}; new tokens need a row in both."
        )


def tables_of(model: PreTrainedModel) -> list[TableName]:
    """Every table that has rows of its own: "input", and "decoder" and "output" where they are not tied to it.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> sizes = dict(vocab_size=10, n_embd=4, n_layer=1, n_head=1)
        >>> tables_of(GPT2LMHeadModel(GPT2Config(**sizes)))
        ['input']
        >>> tables_of(GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False)))
        ['input', 'output']
    """
    tables: list[TableName] = [INPUT]
    decoder = None
    if model.config.is_encoder_decoder:
        decoder = embedding_weight(model.get_decoder())
        if decoder.data_ptr() != embedding_weight(model).data_ptr():
            tables.append("decoder")
    output = output_weight(model)
    if output is not None and (decoder is None or output.data_ptr() != decoder.data_ptr()):
        tables.append("output")
    return tables


@contextlib.contextmanager
def grown(model: PreTrainedModel, size: int, written: Tensor) -> Iterator[None]:
    """Let all tables have `size` rows, unless they have more; if the block fails, the model is as it was.

    Args:
        model: whose tables are to grow.
        size: rows that are needed.
        written: (n,) int64, tokens whose rows and biases the block may write.
    """
    earlier = len(embedding_weight(model))
    there = written[written < earlier]
    rows = {table: embedding_weight(model, table).detach()[there.to(model.device)] for table in tables_of(model)}
    bias = _output_bias(model)
    biases = None if bias is None else bias.detach()[there.to(bias.device)]
    note = read_new_tokens_record(model)
    try:
        if size > earlier:
            _resize(model, size)
        yield
    except BaseException:
        if len(embedding_weight(model)) != earlier:
            _resize(model, earlier)
        for table, old in rows.items():
            write_rows(model, there, old, table)
        bias = _output_bias(model)
        if bias is not None and biases is not None:
            with torch.no_grad():
                bias[there.to(bias.device)] = biases
        write_new_tokens_record(model, note)
        raise


def _resize(model: PreTrainedModel, size: int) -> None:
    earlier = len(embedding_weight(model))
    # The new rows will be written: nothing need be drawn from the old ones' distribution.
    model.resize_token_embeddings(size, mean_resizing=False)
    # transformers forgets what the configs of T5Gemma's two parts say, and could not load it again.
    for name in model.config.sub_configs:
        part = getattr(model.config, name)
        if getattr(part, "vocab_size", None) == earlier:
            part.vocab_size = size


@torch.no_grad()
def write_bias(model: PreTrainedModel, ids: Tensor, like: Tensor) -> None:
    """Give new logits, where their layer has a bias, that of tokens of the expected frequency (median), and not 0.

    Args:
        model: any.
        ids: (n,) int64, new tokens.
        like: (m,) int64, tokens of the expected frequency.
    """
    bias = _output_bias(model)
    if bias is not None:
        bias[ids.to(bias.device)] = bias[like.to(bias.device)].median()


def _output_bias(model: PreTrainedModel) -> Tensor | None:
    bias = getattr(model.get_output_embeddings(), "bias", None)
    return bias if isinstance(bias, Tensor) else None
