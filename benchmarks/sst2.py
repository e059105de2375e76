"""Do no harm: SST-2 fine-tuning with and without the callback, the same seeds in pairs.

    python benchmarks/sst2.py

1,024 training sentences (another draw for each seed), 3 epochs, learning rate 5e-5, batches of 16, accuracy on the
whole validation set. Needs `shared/data/sst2` beside the repository, or $DEFEMB_TEST_DATA.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

import torch
from common import DATA, RESULTS, add_model_argument, environment, find_model
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from defemb_callbacks import DefinitionEMBCallback

RUNS = {"none": None, "default": {}, "replace": {"strategy": "replace"}}


def read(name: str) -> Dataset:
    with (DATA / "sst2" / name).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return Dataset.from_dict(
        {"sentence": [row["sentence"] for row in rows], "labels": [int(row["label"]) for row in rows]}
    )


def accuracy(name: str, train: Dataset, validation: Dataset, seed: int, settings: dict[str, object] | None) -> float:
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=3,
            learning_rate=5e-5,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            logging_steps=500,
            save_strategy="no",
            report_to=[],
            seed=seed,
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=train,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[] if settings is None else [DefinitionEMBCallback(monitor_steps=0, plots=False, **settings)],
        )
        trainer.train()
        predicted = trainer.predict(validation).predictions.argmax(axis=-1)
    return float((torch.from_numpy(predicted) == torch.tensor(validation["labels"])).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sentences", type=int, default=1024)
    parser.add_argument("--runs", nargs="+", default=["none", "default"], choices=list(RUNS))
    parser.add_argument("--output", type=Path, default=RESULTS / "sst2.json")
    arguments = parser.parse_args()
    if not (DATA / "sst2").is_dir():
        sys.exit("shared/data/sst2 is not beside the repository; nothing was measured.")
    name = arguments.model or find_model()
    tokenizer = AutoTokenizer.from_pretrained(name)

    def tokenize(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return dict(tokenizer(rows["sentence"], truncation=True, max_length=64))

    train, validation = (
        read(file).map(tokenize, batched=True, remove_columns=["sentence"]) for file in ("train.tsv", "validation.tsv")
    )
    scores: dict[str, list[float]] = {run: [] for run in arguments.runs}
    for seed in range(arguments.seeds):
        sample = train.shuffle(seed=seed).select(range(arguments.sentences))
        for run in arguments.runs:
            scores[run].append(accuracy(name, sample, validation, seed, RUNS[run]))
            print(f"seed {seed}, {run}: {scores[run][-1]:.4f}", flush=True)
    differences = {
        run: [score - base for score, base in zip(scores[run], scores["none"], strict=True)]
        for run in arguments.runs
        if run != "none"
    }
    result = {
        "sentences": arguments.sentences,
        "accuracy": scores,
        "mean_accuracy": {run: mean(values) for run, values in scores.items()},
        "mean_difference": {run: mean(values) for run, values in differences.items()},
        "standard_error": {run: stdev(values) / len(values) ** 0.5 for run, values in differences.items()},
        "environment": environment(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("mean_accuracy", "mean_difference", "standard_error")}, indent=1))


if __name__ == "__main__":
    main()
