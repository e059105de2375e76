"""The Trainer of the constructor, and its arguments."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from defemb_callbacks.constructor_config import ConstructorConfig
from defemb_callbacks.reconstruction.backbone import has_fast_bfloat16
from defemb_callbacks.reconstruction.batching import TokenBatchSampler


class ConstructorTrainer(Trainer):
    """A `Trainer` whose batches are counted in tokens.

    Args:
        tokens_per_batch: on one process.
        *args, **kwargs: of the `Trainer`.
    """

    def __init__(self, *args: Any, tokens_per_batch: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokens_per_batch = tokens_per_batch

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of `TokenBatchSampler`, dealt to the processes by accelerate."""
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
        return self.accelerator.prepare(loader)


def constructor_arguments(
    output_dir: Path, settings: ConstructorConfig, *, device: torch.device, bfloat16: bool, evaluates: bool
) -> TrainingArguments:
    """The arguments of a constructor's Trainer.

    Args:
        output_dir: for checkpoints.
        settings: of the constructor.
        device: the model's; on a CPU it is trained there, even if there is an accelerator.
        bfloat16: compute in bfloat16, unless `settings.training` says otherwise.
        evaluates: whether there are words that are held out.

    Raises:
        ValueError: `settings.training` has a field that `TrainingArguments` does not have, or strategies that early
            stopping cannot do with.
    """
    fixed = {
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "prediction_loss_only": True,
        "ddp_find_unused_parameters": False,  # `freeze_unused` has found them
    }
    chosen: dict[str, Any] = {
        "use_cpu": device.type == "cpu",
        "bf16": bfloat16 and not settings.training.get("fp16", False),
        "per_device_eval_batch_size": 64,
        "dataloader_pin_memory": device.type != "cpu",  # warns without an accelerator
        **settings.training_settings,
    }
    if not evaluates:
        chosen["eval_strategy"] = "no"
    elif settings.patience is not None:
        if chosen["save_strategy"] != chosen["eval_strategy"]:
            raise ValueError(
                f"patience={settings.patience} goes back to the best checkpoint, which needs save_strategy and "
                f"eval_strategy to be the same, not {chosen['save_strategy']!r} and {chosen['eval_strategy']!r}; or "
                "set patience=None."
            )
        chosen |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    try:
        arguments = TrainingArguments(output_dir=str(output_dir), **chosen | fixed)
    except TypeError as error:
        raise ValueError(f"The constructor's training settings do not fit TrainingArguments: {error}.") from error
    # Not what `accelerate launch` was told of the run around this one.
    arguments.mixed_precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "no"
    # DataParallel would cut labels where it cuts rows, which may have several.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def trains_in_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether a constructor computes in bfloat16: if asked to, or with "auto" where it is fast."""
    return precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device.type))


def stopping(settings: ConstructorConfig, evaluates: bool) -> list[TrainerCallback]:
    """Early stopping, where it is asked for and there is something to evaluate."""
    return [EarlyStoppingCallback(settings.patience)] if evaluates and settings.patience is not None else []


_SHARED: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)

# With these `accelerate launch` tells a Trainer to shard its model.
_SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")


@contextlib.contextmanager
def isolated_training() -> Iterator[None]:
    """Train a model in here; afterwards random numbers and accelerate's shared state are what they were.

    `TrainingArguments` reset the state that all accelerators of a process share, and a Trainer seeds every generator.
    A Trainer around this one would go on with the other's precision, and with other random numbers. A model in here is
    not sharded, whatever `accelerate launch` was told to do with the one outside: its processes train copies (DDP).

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
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        os.environ.update(sharding)
        random.setstate(python)
        np.random.set_state(numpy)
        for state, values in shared:
            # In place: accelerators that exist hold this very dict.
            state._shared_state.clear()
            state._shared_state.update(values)
