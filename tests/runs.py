"""Helpers to inspect a Trainer run: losses, measured steps, changed rows, forward calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback

from defemb_callbacks import DefinitionEMBCallback
from tiny import tiny_glossary


def glossary_callback(**settings: Any) -> DefinitionEMBCallback:
    return DefinitionEMBCallback(tiny_glossary(), **{"plots": False, "monitor_steps": 0} | settings)


def defined_ids(tokenizer: Any) -> Tensor:
    return torch.tensor(sorted(tokenizer.convert_tokens_to_ids(word) for word in tiny_glossary()))


def changed_rows(before: Tensor, after: Tensor) -> Tensor:
    return (before != after).any(dim=1).nonzero().flatten()


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


def losses(trainer: Trainer) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]


def measured_steps(trainer: Trainer) -> list[int]:
    """The steps with metrics after the start of training."""
    return [row["step"] for row in trainer.state.log_history if "defemb/isotropy/all" in row and row["step"] > 0]


@contextmanager
def forward_calls() -> Iterator[list[PreTrainedModel]]:
    """Collect the transformers models whose `forward` runs inside the block, once per call."""
    calls: list[PreTrainedModel] = []

    def record(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, PreTrainedModel):
            calls.append(module)

    handle = torch.nn.modules.module.register_module_forward_hook(record)
    try:
        yield calls
    finally:
        handle.remove()


class StopAtStep4(TrainerCallback):
    """Stop training early."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step == 4
        return control
