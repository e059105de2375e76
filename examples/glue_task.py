"""A GLUE-like task: its text columns, classes and metric, inferred from the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from data_files import SplitArguments
from datasets import Dataset, DatasetDict
from glue_metrics import GlueMetric
from numpy.typing import NDArray
from transformers import PretrainedConfig

# Text columns of each GLUE task
TASKS = {
    "cola": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
    "stsb": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}


@dataclass
class DataArguments(SplitArguments):
    """Task and data."""

    task_name: str | None = field(default=None, metadata={"help": f"GLUE task: {', '.join(TASKS)}."})
    text_columns: list[str] = field(
        default_factory=list,
        metadata={"help": "One or two text columns. Default: those of the task, or all text columns."},
    )
    max_seq_length: int = field(default=128, metadata={"help": "Maximum input length in tokens."})

    def __post_init__(self) -> None:
        if self.task_name is not None and self.task_name not in TASKS:
            raise ValueError(f"task_name={self.task_name!r} is unknown. Choose one of {', '.join(TASKS)}.")
        if self.task_name and not self.dataset_name and not self.files:
            self.dataset_name, self.dataset_config_name = "nyu-mll/glue", self.task_name


@dataclass(frozen=True)
class GlueTask:
    """A classification task, or a regression task if it has no classes.

    Attributes:
        texts: Names of the text columns, one or two.
        classes: Names of the classes, in the order of the model's outputs.
        class_ids: Index of the model's output for each value in the column `label`.
        metric: Metric of the task.
    """

    texts: tuple[str, ...]
    classes: tuple[str, ...]
    class_ids: Mapping[str | int, int]
    metric: GlueMetric

    @classmethod
    def of(cls, splits: DatasetDict, name: str | None, texts: list[str], config: PretrainedConfig) -> GlueTask:
        """Infer the task from the data, and from the model's config if it was fine-tuned on the same classes.

        Args:
            splits: Splits with a column `label`, which test splits may lack.
            name: One of `TASKS`. By default, the task is inferred from the columns.
            texts: Text columns. Default: those of the task, or all text columns.
            config: Config of the model.

        Raises:
            ValueError: If a column or the label is missing, or there are more than two text columns.
        """
        labelled = {split: rows for split, rows in splits.items() if not split.startswith("test")}
        for split, rows in splits.items():
            columns = _text_columns(rows, name, texts)
            for column in (*columns, *(["label"] if split in labelled else [])):
                if column not in rows.column_names:
                    raise ValueError(
                        f"The data have no column {column!r}. Choose one of {', '.join(rows.column_names)}."
                    )
        if not labelled:  # prediction only: the classes of the model
            number = config.num_labels
            names = tuple(config.id2label[i] for i in range(number)) if number > 1 else ()
            return cls(columns, names, {}, GlueMetric("stsb" if number == 1 else name, keep_in_memory=True))
        feature = next(iter(labelled.values())).features["label"]
        if name == "stsb" or feature.dtype.startswith("float"):
            return cls(columns, (), {}, GlueMetric("stsb", keep_in_memory=True))
        metric = GlueMetric(name, keep_in_memory=True)
        if names := getattr(feature, "names", None):
            return cls(columns, tuple(names), {i: i for i in range(len(names))}, metric)._as_learned(config)
        found = sorted({label for rows in labelled.values() for label in rows.unique("label")})
        task = cls(columns, tuple(map(str, found)), {label: i for i, label in enumerate(found)}, metric)
        return task._as_learned(config)

    def _as_learned(self, config: PretrainedConfig) -> GlueTask:
        """Use the class indices of a model that was fine-tuned on the same classes."""
        learned = {name.lower(): number for name, number in (config.label2id or {}).items()}
        if not {name.lower() for name in self.classes} <= learned.keys():
            return self
        ids = {value: learned[self.classes[number].lower()] for value, number in self.class_ids.items()}
        return replace(self, classes=tuple(config.id2label[i] for i in range(config.num_labels)), class_ids=ids)

    @property
    def head(self) -> dict[str, Any]:
        """Settings for the model's config."""
        if not self.classes:
            return {"num_labels": 1}
        return {
            "num_labels": len(self.classes),
            "id2label": dict(enumerate(self.classes)),
            "label2id": {name: number for number, name in enumerate(self.classes)},
        }

    def targets(self, labels: list[Any]) -> list[int] | list[float]:
        """Convert labels to targets.

        Raises:
            ValueError: If a label is not a known class, such as the -1 of unlabelled rows.
        """
        if not self.classes:
            return [float(label) for label in labels]
        if unknown := set(labels) - self.class_ids.keys():
            raise ValueError(f"The label {unknown.pop()!r} is not one of {', '.join(self.classes)}. Remove such rows.")
        return [self.class_ids[label] for label in labels]

    def predicted(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Return the class or score of each example."""
        return logits.argmax(axis=-1) if self.classes else logits.squeeze(axis=-1)


def _text_columns(rows: Dataset, name: str | None, asked: list[str]) -> tuple[str, ...]:
    if asked or name:
        return tuple(asked) or TASKS[name]
    text_columns = [
        column for column, kind in rows.features.items() if str(getattr(kind, "dtype", "")).endswith("string")
    ]
    found = tuple(column for column in text_columns if column != "label")
    if not 1 <= len(found) <= 2:
        names = ", ".join(found) or "none"
        raise ValueError(f"There must be one or two text columns, found {names}. Pass --text_columns.")
    return found
