"""Sense distillation: train a student to select the senses that its teacher selects."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from defemb_callbacks.senses.dictionary import SenseDictionary
from defemb_callbacks.senses.layer import recorded_states
from defemb_callbacks.senses.model import CONFIG_ENTRY, check_tokenizer, with_senses
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
    """Cross-entropy of a student's sense scores with the teacher's sense, or divergence from the teacher's scores.

    Args:
        scores: Shape (n, senses), floating point; -inf beyond the senses of a token.
        targets: Shape (n,), int64: indices of senses. Or shape (n, senses): the teacher's scores; the loss is then the
            Kullback-Leibler divergence at this temperature, times the squared temperature (Hinton et al. 2015).
        temperature: Divisor of the scores, greater than 0.

    Returns:
        Scalar, the mean over the rows; 0 for n = 0.

    Example:
        >>> round(float(sense_loss(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([1]))), 4)
        0.6931
    """
    if not len(scores):
        return scores.sum()
    if targets.ndim == 1:
        return cross_entropy(scores / temperature, targets)
    # Beyond the senses of a token, both are -inf, and their difference would be NaN.
    missing = torch.isinf(scores)
    student = log_softmax(scores / temperature, dim=1).masked_fill(missing, 0.0)
    teacher = softmax(targets / temperature, dim=1)
    return kl_div(student, teacher, reduction="batchmean") * temperature**2


class SenseDistillationTrainer(Trainer):
    """Trains a student to select, for each token in context, the sense that its teacher selects.

    The student scores a sense by the dot product with its last hidden state; the loss is the cross-entropy over the
    senses of the token. The pooler and the head are the teacher's and are frozen. From the start, the student's last
    hidden states are replaced with the senses it selects (`with_senses`), so evaluation measures the model that will be
    deployed; the gradient of a task loss passes straight through them. The teacher's senses are computed once and
    cached.

    `save_model` writes an ordinary checkpoint, with the dictionary in its subfolder `senses`:

    `with_senses(AutoModel….from_pretrained(folder), SenseDictionary.from_pretrained(f"{folder}/senses"))`

    Source: arXiv 2504.06036.

    Args:
        model: The student: `first_layers(teacher, n)` or `SenseStudent.of(teacher, smaller)`.
        teacher: The model that the dictionary was built from; moved to the Trainer's device, otherwise unchanged.
        dictionary: The teacher's sense dictionary.
        args: Training arguments.
        train_dataset: Tokenized rows: `input_ids` and other inputs of the teacher; `labels` for a task loss.
        processing_class: The tokenizer of teacher and student.
        data_collator: `DataCollatorWithPadding` by default.
        **kwargs: Passed to the Trainer.

    Raises:
        TypeError: If `args` is not `SenseDistillationArguments`, or `train_dataset` is not a `Dataset`.
        ValueError: If the dictionary belongs to another model, tokenizer or width, the student has senses already,
            a task loss has no labels, no token has several senses, or the process sees several GPUs.

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
            raise TypeError(f"`args` must be SenseDistillationArguments, got {type(args).__name__}.")
        if args.n_gpu > 1:
            raise ValueError(
                f"One process sees {args.n_gpu} GPUs, and nn.DataParallel is not supported. Start one process per GPU "
                "with torchrun or accelerate launch, or restrict CUDA_VISIBLE_DEVICES to one."
            )
        if not isinstance(train_dataset, Dataset):
            raise TypeError(f"`train_dataset` must be a Dataset of tokenized rows, got {type(train_dataset).__name__}.")
        if args.task_weight and "labels" not in train_dataset.column_names:
            raise ValueError(
                "`train_dataset` has no column `labels`, which task_weight > 0 requires. Set task_weight=0."
            )
        check_tokenizer(dictionary, processing_class)
        collator = data_collator or DataCollatorWithPadding(processing_class)
        self.teacher, self.dictionary = teacher, dictionary
        teacher.to(args.device)  # type: ignore[arg-type]
        self._padded_left = processing_class.padding_side == "left"
        labels = teacher_senses(teacher, dictionary, train_dataset, processing_class)
        if not any((row >= 0).any() for row in labels):
            raise ValueError("No token in `train_dataset` has several senses. Build the dictionary from more texts.")
        freeze_head(model)
        setattr(model.config, CONFIG_ENTRY, dictionary.fingerprint)
        with_senses(model, dictionary)
        super().__init__(
            model,
            args,
            data_collator=WithSenseLabels(collator, self._padded_left),
            train_dataset=train_dataset.add_column(COLUMN, [row.tolist() for row in labels]),
            processing_class=processing_class,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, not a sum

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sense loss plus weighted task loss; the task loss alone for batches without sense labels (evaluation)."""
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
            teacher_ids, hidden = teacher_states(self.teacher, inputs)
            targets = self.dictionary.scores(hidden[chosen], teacher_ids[chosen])
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
        """Save the student and its dictionary; intermediate checkpoints do not contain the dictionary."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.args.should_save:
            self.dictionary.save_pretrained(Path(output_dir or str(self.args.output_dir)) / "senses")


@dataclass
class SenseDistillationArguments(TrainingArguments):
    """`TrainingArguments` with the settings of sense distillation.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> SenseDistillationArguments.paper("deberta-v3", "outputs").num_train_epochs
        15
    """

    temperature: float = field(default=1.0, metadata={"help": "Divisor of the sense scores in the loss."})
    soft_targets: bool = field(
        default=False,
        metadata={
            "help": "Train on the teacher's probabilities of all senses instead of its best sense; runs the teacher "
            "in every step."
        },
    )
    task_weight: float = field(default=0.0, metadata={"help": "Weight of the task loss; requires labels."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be greater than 0, got {self.temperature}.")
        if self.task_weight < 0:
            raise ValueError(f"`task_weight` must be at least 0, got {self.task_weight}.")

    @classmethod
    def paper(cls, name: str, output_dir: str, **overrides: Any) -> SenseDistillationArguments:
        """Return the paper's settings for a model.

        Args:
            name: `"deberta-v3"` (large to xsmall) or `"llama-3-8b"` (to its first 4 layers).
            output_dir: Output folder of the Trainer.
            **overrides: Fields to replace.

        Raises:
            ValueError: If `name` is unknown.
        """
        presets: dict[str, dict[str, Any]] = {
            "deberta-v3": {"num_train_epochs": 15, "learning_rate": 5e-4},
            "llama-3-8b": {
                "num_train_epochs": 5,
                "learning_rate": 5e-6,  # scaled by the number of processes below
                "lr_scheduler_type": "cosine",
                "warmup_steps": 300,
            },
        }
        if name not in presets:
            raise ValueError(f"`name` must be one of {', '.join(presets)}, got {name!r}.")
        arguments = cls(output_dir=output_dir, **presets[name] | overrides)
        if name == "llama-3-8b" and "learning_rate" not in overrides:
            arguments.learning_rate *= arguments.world_size
        return arguments
