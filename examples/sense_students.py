"""Train students of a teacher with different methods, and measure them."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from console import TrainingBar
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, Trainer

from defemb_callbacks.senses import SenseDictionary, SenseDistillationArguments, SenseDistillationTrainer, first_layers

Batches = Sequence[dict[str, Tensor]]


class LogitTrainer(Trainer):
    """Logit distillation (Hinton et al. 2015): learn the teacher's probabilities at a temperature, without labels."""

    teacher: PreTrainedModel
    temperature = 2.0

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        inputs.pop("labels", None)
        outputs = model(**inputs)
        with torch.no_grad():
            wanted = softmax(self.teacher(**inputs).logits / self.temperature, dim=-1)
        found = log_softmax(outputs.logits / self.temperature, dim=-1)
        loss = kl_div(found, wanted, reduction="batchmean") * self.temperature**2
        return (loss, outputs) if return_outputs else loss


@dataclass(frozen=True)
class StudentTraining:
    """Data and settings shared by all models of one seed.

    Attributes:
        rows: Tokenized training data with labels.
        tokenizer: Tokenizer of the teacher and its students.
        args: Training settings, except learning rate and epochs of the models that do not learn senses.
        learning_rate: Learning rate of the teacher and of students that do not learn senses.
        train_embeddings: Whether to train the token embeddings, half of all parameters.
    """

    rows: Dataset
    tokenizer: PreTrainedTokenizerBase
    args: SenseDistillationArguments
    learning_rate: float
    train_embeddings: bool

    def fine_tune(self, model: PreTrainedModel, epochs: float) -> PreTrainedModel:
        """Train with the labels only."""
        return self._train(Trainer, model, epochs)

    def distill_logits(self, teacher: PreTrainedModel, layers: int) -> PreTrainedModel:
        """Train a student on the teacher's probabilities."""
        return self._train(LogitTrainer, self.student(teacher, layers), self.args.num_train_epochs, teacher)

    def distill_senses(
        self, teacher: PreTrainedModel, layers: int, dictionary: SenseDictionary, task_weight: float
    ) -> PreTrainedModel:
        """Train a student to choose the senses that the teacher chooses."""
        args = copy.copy(self.args)
        args.task_weight = task_weight
        trainer = SenseDistillationTrainer(
            self.student(teacher, layers),
            teacher,
            dictionary,
            args,
            train_dataset=self.rows,
            processing_class=self.tokenizer,
        )
        TrainingBar("Learning senses").instead_of_its_own(trainer).train()
        return trainer.model.eval()

    def student(self, teacher: PreTrainedModel, layers: int) -> PreTrainedModel:
        """Return an untrained student, the starting point of all students."""
        return self._frozen(first_layers(teacher, layers))

    def _frozen(self, model: PreTrainedModel) -> PreTrainedModel:
        model.get_input_embeddings().weight.requires_grad_(self.train_embeddings)
        return model

    def _train(
        self, kind: type[Trainer], model: PreTrainedModel, epochs: float, teacher: PreTrainedModel | None = None
    ) -> PreTrainedModel:
        args = copy.copy(self.args)
        args.learning_rate, args.num_train_epochs = self.learning_rate, epochs
        trainer = kind(
            self._frozen(model),
            args,
            train_dataset=self.rows,
            processing_class=self.tokenizer,
            data_collator=DataCollatorWithPadding(self.tokenizer),
        )
        if isinstance(trainer, LogitTrainer):
            trainer.teacher = teacher
        TrainingBar("Fine-tuning").instead_of_its_own(trainer).train()
        return model.eval()


def accuracy(model: PreTrainedModel, batches: Batches) -> float:
    """Return the share of correctly classified examples."""
    model.eval()
    with torch.no_grad():
        right = [
            model(**{name: value for name, value in batch.items() if name != "labels"}).logits.argmax(dim=-1)
            == batch["labels"]
            for batch in batches
        ]
    return float(torch.cat(right).float().mean())


def seconds_per_pass(models: dict[str, PreTrainedModel], batches: Batches, rounds: int = 3) -> dict[str, float]:
    """Return each model's median time for all batches. Models alternate, so that load on the machine affects all."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            start = time.perf_counter()
            accuracy(model, batches)
            taken[name].append(time.perf_counter() - start)
    return {name: median(found[1:]) for name, found in taken.items()}  # the first round is a warm-up


def bytes_on_disk(save: Callable[[str], Any]) -> int:
    """Return the size of the tensors that `save` writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
