"""Settings of sense distillation, and the paper's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments


@dataclass
class SenseDistillationArguments(TrainingArguments):
    """`TrainingArguments`, and what of sense distillation can be chosen.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> SenseDistillationArguments.paper("deberta-v3", "outputs").num_train_epochs
        15
    """

    temperature: float = field(default=1.0, metadata={"help": "Scores of senses are divided by it."})
    soft_targets: bool = field(
        default=False,
        metadata={
            "help": "Learn the teacher's probabilities of all senses instead of its best one (reads the teacher"
            " in every step)."
        },
    )
    task_weight: float = field(default=0.0, metadata={"help": "Weight of the task's own loss, where rows have labels."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.task_weight < 0:
            raise ValueError(f"task_weight must be at least 0, got {self.task_weight}")

    @classmethod
    def paper(cls, name: str, output_dir: str, **overrides: Any) -> SenseDistillationArguments:
        """The paper's settings for "deberta-v3" (large to xsmall), or "llama-3-8b" (to its first 4 layers).

        Args:
            name: which of them.
            output_dir: of the Trainer.
            **overrides: other fields.

        Raises:
            ValueError: any other name.
        """
        presets: dict[str, dict[str, Any]] = {
            "deberta-v3": {"num_train_epochs": 15, "learning_rate": 5e-4},
            "llama-3-8b": {
                "num_train_epochs": 5,
                "learning_rate": 5e-6,  # times the number of processes
                "lr_scheduler_type": "cosine",
                "warmup_steps": 300,
            },
        }
        if name not in presets:
            raise ValueError(f"the paper's settings are for {', '.join(presets)}, not {name!r}")
        arguments = cls(output_dir=output_dir, **presets[name] | overrides)
        if name == "llama-3-8b" and "learning_rate" not in overrides:
            arguments.learning_rate *= arguments.world_size
        return arguments
