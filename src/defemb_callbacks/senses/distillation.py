"""Sense distillation: a student learns to choose the senses that its teacher chooses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from defemb_callbacks.senses.checks import MARK
from defemb_callbacks.senses.dictionary import SenseDictionary
from defemb_callbacks.senses.model import recorded_states, with_senses
from defemb_callbacks.senses.student import freeze_head
from defemb_callbacks.senses.teacher_labels import (
    COLUMN,
    IGNORED,
    Collator,
    WithSenseLabels,
    teacher_senses,
    teacher_states,
)


def sense_loss(scores: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of a student's scores of senses against the sense, or the probabilities, of its teacher.

    Args:
        scores: (n, senses) floating; minus infinity where a token has fewer senses.
        targets: (n,) int64, senses; or (n, senses), the teacher's scores, which are then divided by the temperature as
            well, and the loss is the Kullback-Leibler divergence, times the temperature's square (Hinton et al. 2015).
        temperature: above 0.

    Returns:
        A scalar: the mean over the rows; 0 without any.

    Example:
        >>> round(float(sense_loss(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([1]))), 4)
        0.6931
    """
    if not len(scores):
        return scores.sum()
    if targets.ndim == 1:
        return cross_entropy(scores / temperature, targets)
    # Where there is no sense both are minus infinity, whose difference is not a number.
    missing = torch.isinf(scores)
    student = log_softmax(scores / temperature, dim=1).masked_fill(missing, 0.0)
    teacher = softmax(targets / temperature, dim=1)
    return kl_div(student, teacher, reduction="batchmean") * temperature**2


class SenseDistillationTrainer(Trainer):
    """Trains a student to choose, for each token in context, the sense that its teacher chooses.

    The student's score of a sense is the dot product with its own last state; the loss is the cross-entropy over the
    senses of the token. Pooler and head are the teacher's, and frozen. From the start the student's last states are
    replaced by the senses it chooses (`with_senses`), so that evaluations measure what will be used; a task loss passes
    them straight through. What the teacher chooses is computed once, and kept in the cache.

    `save_model` writes an ordinary checkpoint, and the dictionary into its folder `senses`:

    `with_senses(AutoModel….from_pretrained(folder), SenseDictionary.from_pretrained(f"{folder}/senses"))`

    Source: arXiv 2504.06036.

    Args:
        model: the student: `first_layers(teacher, n)` or `SenseStudent.of(teacher, smaller)`.
        teacher: the model that the dictionary was built of; it moves to the Trainer's device, and does not change.
        dictionary: the teacher's.
        args: settings; a plain `TrainingArguments` is refused.
        train_dataset: tokenized rows: `input_ids` and whatever else the teacher reads; `labels` for a task loss.
        processing_class: the teacher's tokenizer, which the student shares.
        data_collator: default `DataCollatorWithPadding`.
        **kwargs: of the Trainer.

    Raises:
        TypeError: arguments or rows of another kind.
        ValueError: a dictionary of another model, tokenizer or width; a student with senses already; a task loss
            without labels; no token with several senses; several GPUs in one process.

    Example:
        >>> trainer = SenseDistillationTrainer(  # doctest: +SKIP
        ...     first_layers(teacher, 3), teacher, dictionary, SenseDistillationArguments("outputs"),
        ...     train_dataset=rows, processing_class=tokenizer)
    """

    args: SenseDistillationArguments

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel,
        dictionary: SenseDictionary,
        args: SenseDistillationArguments,
        *,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        data_collator: Collator | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, SenseDistillationArguments):
            raise TypeError(f"args must be SenseDistillationArguments, got {type(args).__name__}")
        if args.n_gpu > 1:
            raise ValueError(
                f"a single process sees {args.n_gpu} GPUs, for which the Trainer takes nn.DataParallel, which "
                "senses do not support: start one process for each with torchrun or accelerate launch, or let "
                "CUDA_VISIBLE_DEVICES name one"
            )
        if not isinstance(train_dataset, Dataset):
            raise TypeError(f"train_dataset must be a Dataset of tokenized rows, got {type(train_dataset).__name__}")
        if args.task_weight and "labels" not in train_dataset.column_names:
            raise ValueError("task_weight needs rows with labels; set it to 0")
        dictionary.check_tokenizer(processing_class)
        collator = data_collator or DataCollatorWithPadding(processing_class)
        self.teacher, self.dictionary = teacher, dictionary
        teacher.to(args.device)  # type: ignore[arg-type]
        self._padded_left = processing_class.padding_side == "left"
        labels = teacher_senses(teacher, dictionary, train_dataset, processing_class)
        if not any((row >= 0).any() for row in labels):
            raise ValueError("no token of train_dataset has several senses to choose from")
        freeze_head(model)
        setattr(model.config, MARK, dictionary.fingerprint)
        with_senses(model, dictionary)
        super().__init__(
            model,
            args,
            data_collator=WithSenseLabels(collator, self._padded_left),
            train_dataset=train_dataset.add_column(COLUMN, [row.tolist() for row in labels]),
            processing_class=processing_class,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, not a share of a sum

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of choosing senses, with the task's own loss if it has a weight; evaluations get the latter only."""
        labels = inputs.pop(COLUMN, None)
        if labels is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with recorded_states(model) as recorded:
            outputs = model(**inputs)
        (ids, states) = recorded[0]
        labels = labels.to(states.device)
        chosen = labels != IGNORED
        targets = labels[chosen]
        if self.args.soft_targets:
            ids_read, of_teacher = teacher_states(self.teacher, inputs)
            targets = self.dictionary.scores(of_teacher[chosen], ids_read[chosen])
        loss = sense_loss(self.dictionary.scores(states[chosen], ids[chosen]), targets, self.args.temperature)
        if self.args.task_weight:
            loss = loss + self.args.task_weight * outputs.loss
        return (loss, outputs) if return_outputs else loss

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if COLUMN not in columns:
            columns.append(COLUMN)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the student, and beside it, but not into every checkpoint of the training, the dictionary."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.args.should_save:
            self.dictionary.save_pretrained(Path(output_dir or str(self.args.output_dir)) / "senses")


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
