"""Grow the embedding tables and the output bias of a model for new tokens, and undo it if a step fails."""

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
    """Check that the tables of a model can grow.

    Args:
        model: The model.

    Raises:
        ValueError: If the model is wrapped, sharded, has adapters or is read-only (created under
            `torch.inference_mode()`), or its tables differ in length.
        TypeError: If a table is quantized, or there is none.
    """
    if bare_model(model) is not model:
        raise ValueError(f"The model is wrapped in {type(model).__name__}. Define new tokens before wrapping it.")
    if transformers_model(model) is not model:
        raise ValueError(
            f"{type(model).__name__} contains the model that has the tables. Pass `model.transformers_model`."
        )
    if hasattr(model, "peft_config"):
        raise ValueError(
            "The tables of a PEFT model cannot grow. Define new tokens in the base model first, then add the adapters; "
            "list the embeddings in modules_to_save to train and save the new rows with them."
        )
    weight = embedding_weight(model)
    if is_sharded(weight) or weight.is_meta:
        raise ValueError(
            "The tables of a sharded model cannot grow. Define new tokens beforehand, with "
            "`defemb define MODEL GLOSSARY --output DIR`, and load model and tokenizer from DIR."
        )
    head: Any = model.get_output_embeddings()
    output = getattr(head, "weight", None)
    if head is not None and not (isinstance(output, Tensor) and output.is_floating_point()):
        kind = output.dtype if isinstance(output, Tensor) else type(head).__name__
        raise TypeError(
            f"The output embeddings cannot be written ({kind}). Load them in a floating-point dtype, "
            "e.g. exclude them in the quantization config."
        )
    if weight.is_inference() or (output is not None and output.is_inference()):
        raise ValueError(
            "The embeddings are read-only because the model was created under torch.inference_mode(). Load the model "
            "outside of it."
        )
    if output is not None and len(output) != len(weight):
        raise ValueError(
            f"The output table has {len(output)} rows, but the input table has {len(weight)}. New tokens need a row in "
            "both: resize them to the same length."
        )


def tables_of(model: PreTrainedModel) -> list[TableName]:
    """Return the tables with separate weights: "input", and "decoder" and "output" if they are not tied to another.

    Args:
        model: The model.

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
def resized(model: PreTrainedModel, size: int, written: Tensor) -> Iterator[None]:
    """Context manager that grows all tables to at least `size` rows, and restores the model if the block fails.

    Args:
        model: The model.
        size: Number of rows that are needed.
        written: (n,) int64, tokens whose rows and biases the block may write.
    """
    old_size = len(embedding_weight(model))
    existing = written[written < old_size]
    rows = {table: embedding_weight(model, table).detach()[existing.to(model.device)] for table in tables_of(model)}
    bias = _output_bias(model)
    biases = None if bias is None else bias.detach()[existing.to(bias.device)]
    record = read_new_tokens_record(model)
    try:
        if size > old_size:
            _resize(model, size)
        yield
    except BaseException:
        if len(embedding_weight(model)) != old_size:
            _resize(model, old_size)
        for table, old in rows.items():
            write_rows(model, existing, old, table)
        bias = _output_bias(model)
        if bias is not None and biases is not None:
            with torch.no_grad():
                bias[existing.to(bias.device)] = biases
        write_new_tokens_record(model, record)
        raise


def _resize(model: PreTrainedModel, size: int) -> None:
    old_size = len(embedding_weight(model))
    # The new rows will be overwritten, so they need no initialization.
    model.resize_token_embeddings(size, mean_resizing=False)
    # transformers does not update the configs of T5Gemma's encoder and decoder, and could not load the checkpoint.
    for name in model.config.sub_configs:
        part = getattr(model.config, name)
        if getattr(part, "vocab_size", None) == old_size:
            part.vocab_size = size


@torch.no_grad()
def write_bias(model: PreTrainedModel, ids: Tensor, like: Tensor) -> None:
    """Set the output bias of new tokens to the median bias of tokens with the expected frequency, if there is one.

    Args:
        model: The model.
        ids: (n,) int64, new tokens.
        like: (m,) int64, tokens with the expected frequency.
    """
    bias = _output_bias(model)
    if bias is not None:
        bias[ids.to(bias.device)] = bias[like.to(bias.device)].median()


def _output_bias(model: PreTrainedModel) -> Tensor | None:
    bias = getattr(model.get_output_embeddings(), "bias", None)
    return bias if isinstance(bias, Tensor) else None
