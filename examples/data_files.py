"""Read the splits of a data set from the Hub or from local files. Shared by the example scripts."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from transformers import TrainingArguments


@dataclass
class SplitArguments:
    """Location and size of the data."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set."})
    train_file: str | None = field(
        default=None, metadata={"help": "Local .tsv, .csv or .jsonl file with column names."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "Local file to evaluate on."})
    test_file: str | None = field(default=None, metadata={"help": "Local file to predict."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Number of training examples, sampled with --seed. Default: all."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Number of examples to evaluate and predict, the first ones. Default: all."}
    )

    @property
    def files(self) -> dict[str, str]:
        """Local files by split."""
        found = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: path for split, path in found.items() if path}


def load_splits(arguments: SplitArguments, args: TrainingArguments) -> DatasetDict:
    """Load the splits required by `do_train`, `do_eval` and `do_predict`.

    Args:
        arguments: Local files or a data set on the Hub.
        args: Training arguments.

    Raises:
        ValueError: If there is no data source, a file has an unknown format, a required split is missing, or the
            sampling strategy would also reorder evaluation examples.
        FileNotFoundError: If a file does not exist.
    """
    if args.train_sampling_strategy == "group_by_length":
        raise ValueError(
            "train_sampling_strategy='group_by_length' would also shuffle evaluation examples. Choose another."
        )
    if arguments.files:
        found = {split: _read(path) for split, path in arguments.files.items()}
    elif arguments.dataset_name:
        name, config = arguments.dataset_name, arguments.dataset_config_name
        found = load_dataset(name, config, revision=arguments.dataset_revision)
    else:
        raise ValueError("There are no data. Pass --dataset_name, or --train_file and --validation_file.")
    splits = DatasetDict()
    for kind, needed in (("train", args.do_train), ("validation", args.do_eval), ("test", args.do_predict)):
        of_kind = {split: rows for split, rows in found.items() if split.startswith(kind)}
        if needed and not of_kind:
            raise ValueError(f"There is no split {kind!r}, only {', '.join(found)}. Pass --{kind}_file.")
        splits |= of_kind if needed else {}
    if not splits:
        raise ValueError("Nothing to do. Pass --do_train, --do_eval or --do_predict.")
    return splits


def cut(splits: DatasetDict, arguments: SplitArguments, args: TrainingArguments) -> DatasetDict:
    """Limit the number of examples.

    Training examples are sampled with `seed`, so runs with the same seed train on the same examples.
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
        raise FileNotFoundError(f"The file {path!r} does not exist.")
    # "null" and "None" may be texts; they are not missing values.
    text = {"keep_default_na": False}
    match Path(path).suffix:
        case ".tsv":
            return Dataset.from_csv(path, sep="\t", quoting=csv.QUOTE_NONE, **text)
        case ".csv":
            return Dataset.from_csv(path, **text)
        case ".jsonl" | ".json":
            return Dataset.from_json(path)
        case suffix:
            raise ValueError(f"{path!r} has an unknown format ({suffix or 'no suffix'}). Use .tsv, .csv or .jsonl.")
