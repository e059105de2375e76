"""Read and write rows of a model's embedding tables, inside any wrapper, tied, adapted or sharded."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedModel

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
from defemb_callbacks.weights.unwrapping import input_layer, transformers_model

TableName = Literal["input", "output", "decoder"]
INPUT: TableName = "input"
SEPARATE_TABLES: tuple[TableName, ...] = ("decoder", "output")


class NoTokenEmbeddings(TypeError):
    """The model does not read text, as vision and audio models do not."""


def embedding_layer(model: nn.Module, table: TableName = INPUT) -> Any:
    """The layer of an embedding table, including a PEFT wrapper.

    Raises:
        TypeError: See `embedding_weight`.
        ValueError: See `embedding_weight`.
    """
    inner = transformers_model(model)
    if table == "decoder" and inner.config.is_encoder_decoder and isinstance(inner.get_decoder(), PreTrainedModel):
        layer = embedding_layer(inner.get_decoder())
        if not same_weight(base_layer(layer).weight, embedding_weight(model)):
            return layer
    elif table == "output":
        if output_weight(model) is not None:
            return inner.get_output_embeddings()
    elif table == INPUT:
        return input_layer(inner)
    raise ValueError(f"{type(inner).__name__} has no separate {table} table. Use table='input'.")


def table_layers(model: nn.Module) -> dict[TableName, Any]:
    """The layers of the input table and of those that are not tied to it, including PEFT wrappers.

    Args:
        model: The model, maybe wrapped.
    """
    layers = {INPUT: embedding_layer(model)}
    for table in SEPARATE_TABLES:
        with contextlib.suppress(ValueError):  # there is no such table
            layers[table] = embedding_layer(model, table)
    return layers


def tables_of(model: nn.Module) -> list[TableName]:
    """The tables with separate weights: "input", and "decoder" and "output" if they are not tied to another.

    Args:
        model: The model, maybe wrapped.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> sizes = dict(vocab_size=10, n_embd=4, n_layer=1, n_head=1)
        >>> tables_of(GPT2LMHeadModel(GPT2Config(**sizes)))
        ['input']
        >>> tables_of(GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False)))
        ['input', 'output']
    """
    weights: dict[TableName, nn.Parameter] = {}
    for table in table_layers(model):
        weight = embedding_weight(model, table)
        if not any(same_weight(weight, other) for other in weights.values()):
            weights[table] = weight
    return list(weights)


def embedding_weight(model: nn.Module, table: TableName = INPUT) -> nn.Parameter:
    """The parameter of an embedding table, (vocabulary, d), also inside DDP, PEFT or torch.compile.

    The parameter may be sharded or not loaded yet; see `whole_table` for its values. For a table with PEFT adapters
    it is the parameter of the base layer.

    Args:
        model: Any model with token embeddings.
        table: `"input"`; `"decoder"`, the separate input table of an encoder-decoder's decoder (T5Gemma); or
            `"output"`, the output table if it is not tied to the input table.

    Raises:
        TypeError: If the model has no token embeddings, if they are quantized, or if the model is wrapped by FSDP1.
        ValueError: If the model has no such table, or if the table is on the meta device.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> embedding_weight(BertModel(config)).shape
        torch.Size([10, 4])
    """
    layer = embedding_layer(model, table)
    weight = getattr(base_layer(layer), "weight", None)
    if not isinstance(weight, Tensor) or len(whole_shape(weight)) != 2:
        inner = transformers_model(model)
        raise NoTokenEmbeddings(
            f"{type(inner).__name__} has no token embeddings to rebuild: get_input_embeddings() gives "
            f"{type(layer).__name__}. {_advice(inner)}"
        )
    if not weight.is_floating_point():
        raise TypeError(
            f"The token embeddings are quantized ({weight.dtype}) and cannot be written. Load the model with "
            "embeddings in a floating-point dtype, e.g. exclude them in the quantization config."
        )
    if weight.is_meta and not awaits_main_process(weight):
        raise ValueError(
            "The token embeddings are on the meta device and hold no data. Load the weights first, without "
            "torch.device('meta') or init_empty_weights(). With a device_map, keep the embeddings on a device and "
            "offload other layers."
        )
    return weight  # type: ignore[return-value]


def _has_codebooks(table: nn.Embedding, model: PreTrainedModel) -> bool:
    """Whether a table has the codes of sounds, several codebooks one after the other, instead of tokens of text."""
    size = getattr(model.config.get_text_config(), "vocab_size", None) or table.num_embeddings
    return table.num_embeddings > size and table.num_embeddings % size == 0


def _advice(model: nn.Module) -> str:
    """What to pass instead of a model without token embeddings: its outermost parts that have them, if any."""
    if not isinstance(model, PreTrainedModel):
        return "Pass the transformers model itself."
    parts: list[str] = []
    for name, part in model.named_modules():
        if name and isinstance(part, PreTrainedModel) and not name.startswith(tuple(f"{outer}." for outer in parts)):
            table = base_layer(input_layer(part))
            if isinstance(table, nn.Embedding) and not _has_codebooks(table, part):
                parts.append(name)
    parts = [name for name in parts if "text" in name] or parts  # not those of speech, if there is a choice
    if parts:
        return f"Pass the part that reads text: {' or '.join(f'`model.{name}`' for name in parts)}."
    kind: Any = type(getattr(model.config, "text_config", None))
    if kind in MODEL_MAPPING:
        text_model: Any = MODEL_MAPPING[kind]
        return f"Load its text model instead, with `{text_model.__name__}.from_pretrained(...)`."
    # OWL-ViT's is not registered; the last class is the complete one.
    defined = [found for found in vars(sys.modules[type(model).__module__]).values() if isinstance(found, type)]
    models = [found.__name__ for found in defined if issubclass(found, PreTrainedModel) and found.config_class is kind]
    if models:
        return f"Load its text model instead, with `{models[-1]}.from_pretrained(...)`."
    return "Pass a model that reads tokens through one embedding table."


def output_weight(model: nn.Module) -> nn.Parameter | None:
    """The output embedding table, (vocabulary, d'), or `None` if there is none or it is tied to the input table.

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
    """The shape of an embedding table, (vocabulary, d), even if it is sharded.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> table_shape(BertModel(config))
        torch.Size([10, 4])
    """
    return whole_shape(embedding_weight(model, table))


@torch.no_grad()
def whole_table(model: nn.Module, table: TableName = INPUT) -> Tensor:
    """The embeddings that a forward pass reads, (vocabulary, d), detached, in their own dtype.

    Not a copy if this process holds them unchanged. If they are sharded or only the main process holds them so far,
    this is a collective operation: all processes must call it.
    """
    layer, weight = embedding_layer(model, table), embedding_weight(model, table)
    if awaits_main_process(weight):
        return from_main_process(weight if weight.is_meta else with_adapters(layer, weight.detach()))
    reshard(transformers_model(model))
    # Read the parameter again: FSDP2 replaces it when it reshards.
    return with_adapters(layer, whole(embedding_weight(model, table)))


def read_table(model: nn.Module, table: TableName = INPUT) -> Tensor:
    """A float32 copy of an embedding table, (vocabulary, d), on the table's device; see `whole_table`."""
    return whole_table(model, table).to(torch.float32, copy=True)


def read_rows(model: nn.Module, ids: Tensor, table: TableName = INPUT) -> Tensor:
    """A float32 copy of the rows `ids`, (n, d), on the CPU, without a copy of the table unless it is sharded.

    Args:
        model: The model; see `whole_table`.
        ids: (n,) int64 token ids.
        table: See `embedding_weight`.
    """
    weight = whole_table(model, table)
    return weight[ids.to(weight.device)].to("cpu", torch.float32)


@torch.no_grad()
def write_rows(model: nn.Module, ids: Tensor, rows: Tensor, table: TableName = INPUT) -> None:
    """Overwrite rows of an embedding table and of tables tied to it.

    All rows are checked before the first one is written. The parameter is modified in place, so tied weights,
    optimizers and compiled graphs see the new rows. Sharded tables, the float32 master copy of DeepSpeed's optimizer
    and rows held by PEFT adapters are updated too. In a distributed launch, call it on all processes with the same
    rows.

    Args:
        model: The model, also inside DDP, DataParallel or torch.compile, sharded by FSDP2 or ZeRO, or with PEFT
            adapters.
        ids: (n,) int64, unique token ids.
        rows: (n, d), any floating-point dtype.
        table: See `embedding_weight`.

    Raises:
        ValueError: If shapes or ids do not fit the table, or if a row is NaN or infinite in the table's dtype; names
            the first such row.
        TypeError: See `embedding_weight`; also if the embeddings have an unsupported kind of adapter.

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
    rows = rows.to(weight.dtype)  # before the check: a large float32 value is infinite in float16
    check_rows(ids, rows, size=size, width=width)
    write_into(weight, ids, write_into_adapters(layer, ids, rows).to(weight.dtype))


def check_rows(ids: Tensor, rows: Tensor, *, size: int, width: int) -> None:
    """Check that rows fit a table of shape (size, width).

    Raises:
        ValueError: If ids or shapes do not fit, or if a row contains NaN or infinity.
    """
    if ids.ndim != 1 or ids.dtype != torch.int64:
        raise ValueError(f"Token ids must be a 1-D int64 tensor, got shape {tuple(ids.shape)} and dtype {ids.dtype}.")
    unique, counts = ids.unique(return_counts=True)
    if len(unique) < len(ids):
        raise ValueError(
            f"Token ids must be unique, but {int(unique[counts > 1][0])} occurs more than once. Pass each id once."
        )
    if rows.shape != (len(ids), width):
        raise ValueError(
            f"The rows have shape {tuple(rows.shape)}, but this model needs ({len(ids)}, {width}). "
            "Build them for this model."
        )
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= size):
        raise ValueError(
            f"Token ids from {int(ids.min())} to {int(ids.max())} do not fit a table of {size} rows. "
            "Build the rows with the model's own tokenizer."
        )
    # In blocks, because `isfinite` makes a copy.
    finite = torch.cat([torch.isfinite(block).all(dim=1) for block in rows.split(4096)])
    invalid = ids.to(rows.device)[~finite]
    if len(invalid):
        raise ValueError(
            f"{len(invalid)} new rows contain NaN or infinity, the first one for token {int(invalid[0])}. "
            "Leave out or repair these rows."
        )
