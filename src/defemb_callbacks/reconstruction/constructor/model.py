"""The constructor's model: create it as a copy or with adapters, load a trained one, solve its head, freeze weights."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from defemb_callbacks.constructor_config import ConstructorConfig
from defemb_callbacks.reconstruction.backbone import evaluating, last_states, unscaled
from defemb_callbacks.reconstruction.batching import spread
from defemb_callbacks.reconstruction.constructor.data import DefinitionCollator
from defemb_callbacks.reconstruction.definition_head import DefinitionEMBMixin, with_definition_head
from defemb_callbacks.reconstruction.reading import FORWARD_ERRORS
from defemb_callbacks.weights.rows import INPUT, TableName, embedding_weight

logger = logging.getLogger(__name__)

# Number of definitions that the initial head is solved from. More would change it less than training does.
HEAD_ROWS = 8192
_HEAD_RIDGE = 0.03


@contextlib.contextmanager
def open_constructor(model: PreTrainedModel, settings: ConstructorConfig, table: TableName = INPUT) -> Iterator[Any]:
    """Context manager for a trainable constructor: a float32 copy of the model, or with `lora_r` the adapted model.

    Its targets are the current rows of `table`. On exit the adapters are removed, and each parameter's `requires_grad`,
    gradient and each module's mode are restored.

    Args:
        model: The model.
        settings: Settings of the constructor.
        table: Table whose rows are the targets.

    Raises:
        ImportError: If `lora_r` is set and peft is not installed.
    """
    if settings.lora_r is None:
        constructor = with_definition_head(copy.deepcopy(model).float(), table=table)
        if "flash" in (constructor.config._attn_implementation or ""):
            constructor.set_attn_implementation("sdpa")  # FlashAttention does not support float32
        constructor.requires_grad_(True)
        # The targets must not change while the table is trained.
        if settings.train_embeddings and table == INPUT:
            constructor.definition_targets = embedding_weight(constructor).detach().clone()
        # Encoder and decoder each have an input table, which they may share. FSMT's decoder is not a model of its own.
        decoder = constructor.get_decoder() if constructor.config.is_encoder_decoder else constructor
        for reader in [constructor, decoder] if isinstance(decoder, PreTrainedModel) else [constructor]:
            embedding_weight(reader).requires_grad_(settings.train_embeddings)
        with unscaled(constructor):
            yield constructor
        return
    trained = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    checkpointing = [(m, m.gradient_checkpointing) for m in model.modules() if hasattr(m, "gradient_checkpointing")]
    try:
        constructor = _with_adapters(with_definition_head(model, table=table), settings.lora_r)
        try:
            with unscaled(constructor):
                yield constructor
        finally:
            constructor.unload()
    finally:
        for parameter, requires_grad, gradient in trained:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        for module, training in modes:
            module.training = training
        for module, is_on in checkpointing:
            module.gradient_checkpointing = is_on


@contextlib.contextmanager
def load_constructor(model: PreTrainedModel, folder: Path, table: TableName = INPUT) -> Iterator[Any]:
    """Context manager for a trained constructor, saved with `ConstructorConfig.save_to`, for inference.

    On exit the model is restored.

    Args:
        model: The model that the constructor was trained from.
        folder: Folder of the constructor.
        table: Table whose rows were the targets.

    Raises:
        FileNotFoundError: If the folder contains no constructor.
        ValueError: If the constructor was trained from another model.
        ImportError: If the folder contains adapters and peft is not installed.
    """
    if (folder / "adapter_config.json").is_file():
        try:
            from peft import PeftModel
        except ImportError as error:
            raise ImportError('Adapters require peft. Install it with: pip install "defemb-callbacks[peft]"') from error
        trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        modes = [(module, module.training) for module in model.modules()]
        adapted = PeftModel.from_pretrained(with_definition_head(model, table=table), folder)
        try:
            yield adapted
        finally:
            adapted.unload()
            for parameter, requires_grad in trained:
                parameter.requires_grad_(requires_grad)
            for module, training in modes:
                module.training = training
        return
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"There is no trained constructor in {folder}. Train one with `save_to={str(folder)!r}`."
        )
    constructor = with_definition_head(copy.deepcopy(model).float(), table=table)
    with unscaled(constructor):
        state = {name: tensor for file in files for name, tensor in load_file(file).items()}
        missing = set(constructor.load_state_dict(state, strict=False).missing_keys)
        # A tied weight is saved under one of its names only.
        saved = {tensor.data_ptr() for name, tensor in constructor.state_dict().items() if name not in missing}
        lost = [name for name in sorted(missing) if constructor.state_dict()[name].data_ptr() not in saved]
        if lost:
            raise ValueError(
                f"The constructor in {folder} was trained from another model: it has no {lost[0]!r}. "
                "Pass the model that it was trained from."
            )
        yield constructor


def _with_adapters(wrapped: Any, rank: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError('`lora_r` requires peft. Install it with: pip install "defemb-callbacks[peft]"') from error
    wrapped.definition_head.float()  # small updates would be lost in half precision
    head = "definition_head"
    adapters = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", exclude_modules=[head], modules_to_save=[head]
    )
    return get_peft_model(wrapped, adapters)


def unwrap_constructor(constructor: Any) -> Any:
    """Return the `DefinitionEMBMixin` inside PEFT's wrapper, if there is one.

    Args:
        constructor: From `open_constructor` or `load_constructor`.
    """
    return constructor if isinstance(constructor, DefinitionEMBMixin) else constructor.get_base_model()


def solve_head(constructor: Any, rows: Dataset, collator: DefinitionCollator, batch_size: int = 64) -> None:
    """Initialize the head as the best linear map from the untrained states to the pretrained rows (ridge, closed form).

    Args:
        constructor: From `open_constructor`, not trained yet.
        rows: From `definition_rows`; an evenly spaced sample of them is encoded.
        collator: Collator for these rows.
        batch_size: Definitions encoded at once.
    """
    model = unwrap_constructor(constructor)
    table = embedding_weight(model).detach() if model.definition_targets is None else model.definition_targets
    head = model.definition_head  # with adapters, PEFT trains a copy of it
    weight = (head if isinstance(head, torch.nn.Linear) else head.modules_to_save["default"]).weight
    gram = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    moment = torch.zeros(weight.shape[1], weight.shape[0], dtype=torch.float64)
    # Sorted by length to minimize padding.
    sample = sorted(rows.select(spread(len(rows), HEAD_ROWS)), key=lambda row: len(row["input_ids"]))
    with evaluating(model), torch.no_grad():
        for start in range(0, len(sample), batch_size):
            batch = collator([{**row, "redrawn": False} for row in sample[start : start + batch_size]])
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            states = last_states(
                model,
                batch["input_ids"],
                batch.get("attention_mask"),
                decoder_input_ids=batch.get("decoder_input_ids"),
            )[batch["target_mask"]]
            states, targets = states.cpu().double(), table[batch["labels"]].cpu().double()
            gram += states.T @ states
            moment += states.T @ targets
    # The head has no bias, so the solution has no intercept.
    gram.diagonal().add_(_HEAD_RIDGE * float(gram.diagonal().mean()))
    with torch.no_grad():
        weight.copy_(torch.linalg.solve(gram, moment).T)


def freeze_unused(constructor: Any, batch: dict[str, Tensor]) -> None:
    """Freeze parameters that get no gradient (task heads, poolers), because DDP would wait for their gradients.

    Args:
        constructor: From `open_constructor`.
        batch: A diverse batch, because the experts of a mixture-of-experts layer that it does not use are frozen too.
    """
    model = unwrap_constructor(constructor)
    with evaluating(model):  # without layer dropout
        constructor(**{name: tensor.to(model.device) for name, tensor in batch.items()}).loss.backward()
    for parameter in constructor.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
        parameter.grad = None


def supports_bfloat16(constructor: Any, batch: dict[str, Tensor]) -> bool:
    """Return whether a constructor can be trained with autocast to bfloat16, which some operations do not support.

    Args:
        constructor: From `open_constructor`.
        batch: A batch to try it with.
    """
    model = unwrap_constructor(constructor)
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    try:
        with evaluating(model), torch.autocast(model.device.type, torch.bfloat16):
            constructor(**inputs).loss.backward()
    except torch.OutOfMemoryError:
        raise
    except FORWARD_ERRORS as error:
        logger.info("The constructor cannot be trained in bfloat16 (%s); float32 is used.", error)
        return False
    finally:
        for parameter in constructor.parameters():
            parameter.grad = None
    return True
