"""The constructor's training: its Trainer and arguments, isolation from an outer Trainer, and resuming."""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from defemb_callbacks.constructor_config import ConstructorConfig
from defemb_callbacks.progress import ProgressBar
from defemb_callbacks.reconstruction.backbone import has_fast_bfloat16
from defemb_callbacks.reconstruction.batching import TokenBatchSampler
from defemb_callbacks.weights.random_states import current_accelerator, same_random_states

logger = logging.getLogger(__name__)


class ConstructorTrainer(Trainer):
    """A `Trainer` whose batch size is a number of tokens.

    Args:
        *args: Arguments of `Trainer`.
        tokens_per_batch: Maximum number of tokens of a batch on one process.
        **kwargs: Arguments of `Trainer`.
    """

    def __init__(self, *args: Any, tokens_per_batch: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokens_per_batch = tokens_per_batch

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return batches of `TokenBatchSampler`, distributed over the processes by accelerate."""
        rows: Any = self.train_dataset
        lengths = [len(a) + len(b) for a, b in zip(rows["input_ids"], rows["decoder_input_ids"], strict=True)]
        sampler = TokenBatchSampler(lengths, self.tokens_per_batch, processes=self.args.world_size, seed=self.args.seed)
        loader = DataLoader(
            rows,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        # accelerate before 1.14 cannot even out batches of different sizes. All processes have equally many.
        evens, self.accelerator.even_batches = self.accelerator.even_batches, False
        try:
            return self.accelerator.prepare(loader)
        finally:
            self.accelerator.even_batches = evens


def constructor_arguments(
    output_dir: Path, settings: ConstructorConfig, *, device: torch.device, bfloat16: bool, evaluates: bool
) -> TrainingArguments:
    """Return the arguments of the constructor's Trainer.

    Args:
        output_dir: Folder for checkpoints.
        settings: Settings of the constructor.
        device: Device of the model. If it is the CPU, other devices are not used.
        bfloat16: Whether to train in bfloat16; `settings.training` overrides it.
        evaluates: Whether there are held-out words.

    Raises:
        ValueError: If `settings.training` has a field that `TrainingArguments` does not have, or strategies that early
            stopping does not support.
    """
    fixed = {
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "prediction_loss_only": True,
        "ddp_find_unused_parameters": False,  # `freeze_unused` freezes them
    }
    chosen: dict[str, Any] = {
        "use_cpu": device.type == "cpu",
        "bf16": bfloat16 and not settings.training.get("fp16", False),
        "per_device_eval_batch_size": 64,
        "dataloader_pin_memory": device.type != "cpu",  # would warn on the CPU
        **settings.training_settings,
    }
    if not evaluates:
        chosen["eval_strategy"] = "no"
    elif settings.patience is not None:
        if chosen["save_strategy"] != chosen["eval_strategy"]:
            raise ValueError(
                f"`patience={settings.patience}` restores the best checkpoint and requires equal save_strategy and "
                f"eval_strategy, got {chosen['save_strategy']!r} and {chosen['eval_strategy']!r}. Make them equal, or "
                "set `patience=None`."
            )
        chosen |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    try:
        arguments = TrainingArguments(output_dir=str(output_dir), **chosen | fixed)
    except TypeError as error:
        raise ValueError(
            f"The constructor's training settings do not fit TrainingArguments: {error}. Correct `training`."
        ) from error
    # The settings of `accelerate launch` apply to the outer run.
    arguments.mixed_precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "no"
    # DataParallel would split labels like rows, but a row may have several labels.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def trains_in_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether a constructor is trained in bfloat16: if requested, or with "auto" if it is fast.

    Args:
        precision: "float32", "bfloat16" or "auto".
        device: Device of the model.
    """
    return precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device.type))


def in_float32(arguments: TrainingArguments) -> TrainingArguments:
    """Return the same arguments for training in float32.

    Args:
        arguments: From `constructor_arguments`; changed in place.
    """
    arguments.bf16, arguments.mixed_precision = False, "no"
    return arguments


def early_stopping(settings: ConstructorConfig, evaluates: bool) -> list[TrainerCallback]:
    """Return the callback for early stopping, if it is configured and there are held-out words.

    Args:
        settings: Settings of the constructor.
        evaluates: Whether there are held-out words.
    """
    return [EarlyStoppingCallback(settings.patience)] if evaluates and settings.patience is not None else []


# accelerate keeps the state of all accelerators of a process in these classes.
_SHARED: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)

# `accelerate launch` sets these to make a Trainer shard its model.
_SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    """Context manager that leaves autocast, and restores it; accelerate leaves it enabled if a step raises an error.

    Autocast keeps its copies of the weights until its outermost context ends. Inside another context, a training in
    bfloat16 would compute with its first copies to the end.
    """
    devices = {"cpu", current_accelerator().type}
    before = [(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices]
    depth = _leave_autocast()
    for device in devices:
        torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        _leave_autocast()
        for device, enabled, dtype in before:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        for _ in range(depth):
            torch.autocast_increment_nesting()


def _leave_autocast() -> int:
    """Set the number of autocast contexts to 0, without their copies of weights, and return what it was."""
    depth = torch.autocast_increment_nesting() - 1
    while torch.autocast_decrement_nesting() > 0:
        pass
    torch.clear_autocast_cache()
    return depth


@contextlib.contextmanager
def isolated_training() -> Iterator[None]:
    """Context manager to train a model inside another Trainer's run, which continues as if nothing had happened.

    `TrainingArguments` resets the state that all accelerators of a process share, and a Trainer seeds all generators.
    Without isolation, the outer Trainer would continue with the precision and the random numbers of the inner one. The
    inner model is never sharded, regardless of the settings of `accelerate launch`: processes train copies (DDP).

    Example:
        >>> before = torch.get_rng_state()
        >>> with isolated_training():
        ...     _ = torch.manual_seed(7)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    shared = [(state, dict(state._shared_state)) for state in _SHARED]
    python, numpy = random.getstate(), np.random.get_state()
    sharding = {name: os.environ.pop(name) for name in _SHARDING if name in os.environ}
    try:
        with same_random_states(), _without_autocast():
            yield
    finally:
        os.environ.update(sharding)
        random.setstate(python)
        np.random.set_state(numpy)
        for state, values in shared:
            # In place, because existing accelerators refer to this dict.
            state._shared_state.clear()
            state._shared_state.update(values)


class ShownProgress(TrainerCallback):
    """Shows the progress of a training inside another run, on the main process."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress = ProgressBar(state.max_steps, "Training the constructor", "step")
        self._progress.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._progress.update(1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.close()


def show_only_progress(trainer: Trainer) -> None:
    """Show the progress of a Trainer instead of its log rows, which it prints to the standard output of the outer run.

    Args:
        trainer: The Trainer.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ShownProgress())


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint, the same on all processes; `None` if there is none.

    Args:
        folder: Folder that contains the checkpoints.

    Raises:
        ValueError: If the processes see different checkpoints.
    """
    # The Trainer writes this file last.
    complete = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    newest = max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    names = gather_object([newest and newest.name])
    if len(set(names)) > 1:
        raise ValueError(f"The processes see different checkpoints in {folder} ({names}). Let them share `cache_dir`.")
    if newest is None:
        return None
    logger.info("Resuming the training of the constructor from %s.", newest)
    return str(newest)
