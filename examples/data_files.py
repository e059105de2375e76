"""The splits of a data set, of the hub or in local files; what the example scripts share of reading data."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from transformers import TrainingArguments


@dataclass
class SplitArguments:
    """Where the data are, and how much of them to take."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    train_file: str | None = field(default=None, metadata={"help": "Local .tsv, .csv or .jsonl file, with a header."})
    validation_file: str | None = field(default=None, metadata={"help": "The same, to evaluate on."})
    test_file: str | None = field(default=None, metadata={"help": "The same, to predict."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on so many examples, drawn by --seed; by default on all."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate and predict the first so many."})

    @property
    def files(self) -> dict[str, str]:
        """The local files, by split."""
        found = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: path for split, path in found.items() if path}


def load_splits(arguments: SplitArguments, args: TrainingArguments) -> DatasetDict:
    """The splits that are needed for what is to be done: "train", those for validation, those for tests.

    Args:
        arguments: local files, or else a data set on the hub.
        args: say what is to be done.

    Raises:
        ValueError: neither files nor a data set, a file of another kind, no split for what is to be done, or an order
            of training examples that the Trainer would give to those for evaluation, too.
        FileNotFoundError: no such file.
    """
    if args.train_sampling_strategy == "group_by_length":
        raise ValueError("train_sampling_strategy='group_by_length' would shuffle what is evaluated, too.")
    if arguments.files:
        found = {split: _read(path) for split, path in arguments.files.items()}
    elif arguments.dataset_name:
        name, config = arguments.dataset_name, arguments.dataset_config_name
        found = load_dataset(name, config, revision=arguments.dataset_revision)
    else:
        raise ValueError("No data: give --dataset_name, or --train_file and --validation_file.")
    splits = DatasetDict()
    for kind, needed in (("train", args.do_train), ("validation", args.do_eval), ("test", args.do_predict)):
        of_kind = {split: rows for split, rows in found.items() if split.startswith(kind)}
        if needed and not of_kind:
            raise ValueError(f"No split {kind!r} among {', '.join(found)}: give --{kind}_file.")
        splits |= of_kind if needed else {}
    if not splits:
        raise ValueError("Nothing to do: give --do_train, --do_eval or --do_predict.")
    return splits


def cut(splits: DatasetDict, arguments: SplitArguments, args: TrainingArguments) -> DatasetDict:
    """At most so many examples as the arguments say.

    Those to train on are drawn by `seed`, so that runs with the same seed train on the same examples.
    """
    shorter = DatasetDict()
    for split, rows in splits.items():
        most = arguments.max_train_samples if split == "train" else arguments.max_eval_samples
        if most is not None and most < len(rows):
            rows = (rows.shuffle(seed=args.seed) if split == "train" else rows).select(range(most))
        shorter[split] = rows
    return shorter


def _read(path: str) -> Dataset:
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path!r}.")
    # A review may be "null" or "None": text, and no missing value.
    text = {"keep_default_na": False}
    match Path(path).suffix:
        case ".tsv":
            return Dataset.from_csv(path, sep="\t", quoting=csv.QUOTE_NONE, **text)
        case ".csv":
            return Dataset.from_csv(path, **text)
        case ".jsonl" | ".json":
            return Dataset.from_json(path)
        case suffix:
            raise ValueError(f"{path!r} is a {suffix or 'file without a suffix'}; known are .tsv, .csv and .jsonl.")
