"""The model that turns definitions into embeddings, before and after it is trained."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from defemb_callbacks.constructor_config import ConstructorConfig
from defemb_callbacks.reconstruction.backbone import evaluating, last_states
from defemb_callbacks.reconstruction.batching import spread
from defemb_callbacks.reconstruction.constructor.data import DefinitionCollator
from defemb_callbacks.reconstruction.definition_head import DefinitionEMBMixin, with_definition_head
from defemb_callbacks.weights.rows import INPUT, TableName, embedding_weight

# Definitions from which the head is solved: more would not move it by what training does.
HEAD_ROWS = 8192
_HEAD_RIDGE = 0.03


@contextlib.contextmanager
def open_constructor(model: PreTrainedModel, settings: ConstructorConfig, table: TableName = INPUT) -> Iterator[Any]:
    """A trainable constructor: a float32 copy of the model, or with `lora_r` the model itself with adapters.

    Its targets are the rows of `table` as they are now.

    Afterwards the model is what it was: the adapters are taken off, and each parameter is trained or frozen as before.

    Raises:
        ImportError: `lora_r` without peft.
    """
    if settings.lora_r is None:
        constructor = with_definition_head(copy.deepcopy(model).float(), table=table)
        if "flash" in (constructor.config._attn_implementation or ""):
            constructor.set_attn_implementation("sdpa")  # FlashAttention reads no float32
        constructor.requires_grad_(True)
        # A table that is trained is no fixed target.
        if settings.train_embeddings and table == INPUT:
            constructor.definition_targets = embedding_weight(constructor).detach().clone()
        # Of an encoder-decoder both parts read a table, which may be the same one.
        readers = [constructor, constructor.get_decoder()] if constructor.config.is_encoder_decoder else [constructor]
        for reader in readers:
            embedding_weight(reader).requires_grad_(settings.train_embeddings)
        yield constructor
        return
    trained = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    checkpointing = [(m, m.gradient_checkpointing) for m in model.modules() if hasattr(m, "gradient_checkpointing")]
    try:
        constructor = _with_adapters(with_definition_head(model, table=table), settings.lora_r)
        try:
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
def kept_constructor(model: PreTrainedModel, folder: Path, table: TableName = INPUT) -> Iterator[Any]:
    """A trained constructor that was saved with `ConstructorConfig.save_to`, for reading.

    Afterwards the model is what it was.

    Raises:
        FileNotFoundError: the folder holds no constructor.
        ValueError: it is one of another model.
        ImportError: adapters without peft.
    """
    if (folder / "adapter_config.json").is_file():
        try:
            from peft import PeftModel
        except ImportError as error:
            raise ImportError('adapters need peft: pip install "defemb-callbacks[peft]"') from error
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
        raise FileNotFoundError(f"There is no trained constructor in {folder}; train one with save_to={str(folder)!r}.")
    constructor = with_definition_head(copy.deepcopy(model).float(), table=table)
    state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    missing = set(constructor.load_state_dict(state, strict=False).missing_keys)
    # A tied weight is saved once, under one of its names.
    saved = {tensor.data_ptr() for name, tensor in constructor.state_dict().items() if name not in missing}
    lost = [name for name in sorted(missing) if constructor.state_dict()[name].data_ptr() not in saved]
    if lost:
        raise ValueError(f"The constructor in {folder} is of another model: it has no {lost[0]!r}.")
    yield constructor


def _with_adapters(wrapped: Any, rank: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError('lora_r needs peft: pip install "defemb-callbacks[peft]"') from error
    wrapped.definition_head.float()  # a head in half precision would not move by small steps
    head = "definition_head"
    adapters = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", exclude_modules=[head], modules_to_save=[head]
    )
    return get_peft_model(wrapped, adapters)


def bare_constructor(constructor: Any) -> Any:
    """The `DefinitionEMBMixin` itself, inside of adapters."""
    return constructor if isinstance(constructor, DefinitionEMBMixin) else constructor.get_base_model()


def solve_head(constructor: Any, rows: Dataset, collator: DefinitionCollator, batch_size: int = 64) -> None:
    """Let the head start as the best linear map from the untrained states to the pretrained rows (ridge, closed form).

    Args:
        constructor: from `open_constructor`, not trained yet.
        rows: from `definition_rows`; a spread sample of them is read.
        collator: for these rows.
        batch_size: definitions encoded at once.
    """
    model = bare_constructor(constructor)
    table = embedding_weight(model).detach() if model.definition_targets is None else model.definition_targets
    head = model.definition_head  # with adapters peft trains a copy of it
    weight = (head if isinstance(head, torch.nn.Linear) else head.modules_to_save["default"]).weight
    gram = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    moment = torch.zeros(weight.shape[1], weight.shape[0], dtype=torch.float64)
    # Those of one length together, so that little is padded.
    sample = sorted(rows.select(spread(len(rows), HEAD_ROWS)), key=lambda row: len(row["input_ids"]))
    with evaluating(model), torch.inference_mode():
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
    # Without an intercept, as the head has none.
    gram.diagonal().add_(_HEAD_RIDGE * float(gram.diagonal().mean()))
    with torch.no_grad():
        weight.copy_(torch.linalg.solve(gram, moment).T)


def freeze_unused(constructor: Any, batch: dict[str, Tensor]) -> None:
    """Freeze what no gradient reaches (task heads, poolers): processes would wait for it after each step.

    Args:
        constructor: from `open_constructor`.
        batch: of many kinds of rows, as those experts of a mixture that none of them reaches are frozen, too.
    """
    model = bare_constructor(constructor)
    with evaluating(model):  # where no layer is dropped
        constructor(**{name: tensor.to(model.device) for name, tensor in batch.items()}).loss.backward()
    for parameter in constructor.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
        parameter.grad = None
