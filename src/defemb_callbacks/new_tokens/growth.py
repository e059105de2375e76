"""Grow the embedding tables and the output bias of a model for new tokens, and undo it if a step fails."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EncoderDecoderModel,
    PreTrainedConfig,
    PreTrainedModel,
    SpeechEncoderDecoderModel,
    VisionEncoderDecoderModel,
)

from defemb_callbacks.weights.config_record import read_records, restore_records
from defemb_callbacks.weights.rows import embedding_weight, tables_of, write_rows
from defemb_callbacks.weights.sharding import is_sharded
from defemb_callbacks.weights.unwrapping import bare_model, input_layer, transformers_model


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
        # Mllama, Moshi and CPM-Ant read tokens that they cannot write, whose rows follow the vocabulary.
        raise ValueError(
            f"The output table has {len(output)} rows, but the input table has {len(weight)}. New tokens need a row in "
            "both: resize them to the same length, or, if the architecture reserves the last input rows, rebuild "
            "tokens that exist with `build_definition_embeddings`."
        )
    if model.config.is_encoder_decoder and not isinstance(model.get_decoder(), PreTrainedModel):
        raise ValueError(
            f"The decoder of {type(model).__name__} gives no access to its table, so its tables cannot grow. Rebuild "
            "tokens that exist with `build_definition_embeddings`."
        )
    if not _can_resize(model):
        raise ValueError(
            f"{type(model).__name__} does not support resize_token_embeddings(), so its tables cannot grow. Rebuild "
            "tokens that exist with `build_definition_embeddings`."
        )


@contextlib.contextmanager
def resized(model: PreTrainedModel, size: int, written: Tensor) -> Iterator[None]:
    """Context manager that grows all tables to at least `size` rows, and restores the model if the block fails.

    Args:
        model: The model.
        size: Number of rows that are needed.
        written: (n,) int64, tokens whose rows and biases the block may write.

    Raises:
        ValueError: If the grown model could not be loaded from a checkpoint.
    """
    old_size = len(embedding_weight(model))
    existing = written[written < old_size]
    rows = {}
    for table in tables_of(model):
        weight = embedding_weight(model, table).detach()
        rows[table] = weight[existing.to(weight.device)]
    bias = _output_bias(model)
    biases = None if bias is None else bias.detach()[existing.to(bias.device)]
    records, sizes = read_records(model), _vocabulary_sizes(model)
    try:
        if size > old_size:
            try:
                _resize(model, size)
            except NotImplementedError as error:  # raised by transformers for models whose table it cannot replace
                raise ValueError(
                    f"The tables of {type(model).__name__} cannot grow ({error}). Rebuild tokens that exist with "
                    "`build_definition_embeddings`."
                ) from error
            _check_checkpoint(model, old_size, size)
        yield
    except BaseException:
        if len(embedding_weight(model)) != old_size:
            _resize(model, old_size)
        for config, number in sizes:
            if number is not None:
                config.vocab_size = number
            elif "vocab_size" in vars(config):  # added by transformers
                del config.vocab_size
        for table, old in rows.items():
            write_rows(model, existing, old, table)
        bias = _output_bias(model)
        if bias is not None and biases is not None:
            with torch.no_grad():
                bias[existing.to(bias.device)] = biases
        if read_records(model) != records:
            restore_records(model, records)
        raise


def _resize(model: PreTrainedModel, size: int) -> None:
    old_size = len(embedding_weight(model))
    modules, biases = set(model.modules()), _biases(model)
    for part in _resizable_parts(model):
        # The new rows will be overwritten, so they need no initialization; xLSTM's would also change the old rows.
        part._init_weights = lambda module: None  # type: ignore[method-assign]
        try:
            # MobileBERT has no such option.
            quick = "mean_resizing" in inspect.signature(part.resize_token_embeddings).parameters
            part.resize_token_embeddings(size, **({"mean_resizing": False} if quick else {}))
        finally:
            del part._init_weights
    for module in set(model.modules()) - modules:
        module.training = model.training
    _resize_biases(model, biases, old_size, size)
    # transformers updates one config only, not those of T5Gemma's encoder and decoder.
    kept = {id(part.config) for part in model.modules() if _has_rows(part, old_size)}
    for config, number in _vocabulary_sizes(model):
        if number == old_size and id(config) not in kept:
            config.vocab_size = size


def _has_rows(part: Any, size: int) -> bool:
    """Whether a part is a model whose input table has this number of rows."""
    if not isinstance(part, PreTrainedModel):
        return False
    weight = getattr(input_layer(part), "weight", None)
    return isinstance(weight, Tensor) and len(weight) == size


def _biases(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: bias for name, bias in model.named_parameters(remove_duplicate=False) if name.endswith("bias")}


@torch.no_grad()
def _resize_biases(model: PreTrainedModel, before: dict[str, Tensor], old_size: int, size: int) -> None:
    """Resize output biases that transformers does not (ESM), and copy those that it has tied (Reformer).

    Args:
        model: The model, whose tables have been resized.
        before: Its biases before, by name.
        old_size: Number of rows before.
        size: Number of rows.
    """
    seen: dict[int, str] = {}
    for name, bias in _biases(model).items():
        other = seen.setdefault(id(bias), name)
        tied = other != name and before.get(other) is not before.get(name)
        if bias.shape == (old_size,) or (tied and bias.shape == (size,)):
            resized_bias = bias.new_zeros(size)
            resized_bias[: min(len(bias), size)] = bias[:size]
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, torch.nn.Parameter(resized_bias, bias.requires_grad))


def _can_resize(model: PreTrainedModel) -> bool:
    """Whether the tables can grow: classes that cannot raise an error even for the size that they have."""
    try:
        for part in _resizable_parts(model):
            if type(part).resize_token_embeddings is not PreTrainedModel.resize_token_embeddings:
                part.resize_token_embeddings(len(embedding_weight(model)))
    except NotImplementedError:
        return False
    return True


def _resizable_parts(model: PreTrainedModel) -> list[PreTrainedModel]:
    """The models whose `resize_token_embeddings` must be called: composite models leave it to their parts for text."""
    if isinstance(model, EncoderDecoderModel):
        return [model.encoder, model.decoder]
    if isinstance(model, (SpeechEncoderDecoderModel, VisionEncoderDecoderModel)):
        return [model.decoder]
    return [model]


def _vocabulary_sizes(model: PreTrainedModel) -> list[tuple[PreTrainedConfig, int | None]]:
    """The `vocab_size`, if any, of each of a model's configs: its own, those of its parts, and nested ones."""
    pending = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    found: list[tuple[PreTrainedConfig, int | None]] = []
    seen: set[int] = set()
    while pending:
        config = pending.pop()
        if id(config) in seen:
            continue
        seen.add(id(config))
        pending += [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
        found.append((config, vars(config).get("vocab_size")))
    return found


def _check_checkpoint(model: PreTrainedModel, old_size: int, size: int) -> None:
    """Raise if a model that is created from the config has tables of another size, so that it could not be loaded."""
    kind = type(model).__name__
    try:
        config = type(model.config).from_dict(model.config.to_dict())
        with torch.device("meta"):  # allocates nothing
            created = type(model)(config)
    except ValueError as error:
        raise ValueError(
            f"The tables of {kind} cannot grow, because its config would not be valid ({error}). Rebuild tokens that "
            "exist with `build_definition_embeddings`."
        ) from error
    shapes = {name: tensor.shape for name, tensor in created.state_dict().items()}
    for name, tensor in model.state_dict().items():
        expected = shapes.get(name, tensor.shape)
        # Other differences, such as those of quantized layers, have other causes.
        if expected != tensor.shape and {old_size, size} & {*expected, *tensor.shape}:
            raise ValueError(
                f"The tables of {kind} cannot grow: {name} has shape {tuple(tensor.shape)}, but its config describes "
                f"{tuple(expected)}, so a checkpoint could not be loaded. Rebuild tokens that exist with "
                "`build_definition_embeddings`."
            )


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
