"""New words, from a glossary and raw text to a trained model, with and without tokens of their own.

    python examples/run_new_words.py
    python examples/run_new_words.py --task sft --model HuggingFaceTB/SmolLM2-135M

`medical_terms.jsonl` contains 200 terms of medicine, each with a definition, a specialty and two sentences. The first
sentence of each term is for training, the second one is for testing. With `--texts`, the new rows are also trained on
the sentences for training (token distillation).

- `--task classification` fine-tunes an encoder to predict the specialty of a sentence.
- `--task sft` fine-tunes a decoder with LoRA to write a sentence with a given term. The new rows are trained with the
  adapter, all other rows are kept.

Both are trained twice, with the tokenizer as it is and with the new tokens. Losses are per sentence or per character of
the text, so that two tokenizations can be compared. `--terms` is a `.jsonl` file of your own with the same keys.
"""

from __future__ import annotations

import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from defemb_callbacks import RebuildReport, TrainNewTokensCallback, define_new_tokens
from defemb_callbacks.reporting.style import LIGHT, figures

MODELS = {"classification": "sentence-transformers/all-MiniLM-L6-v2", "sft": "HuggingFaceTB/SmolLM2-135M"}
LEARNING_RATES = {"classification": 2e-4, "sft": 5e-4}
PROMPT = "Write a sentence with the word {}.\n"


@dataclass
class NewWordsArguments:
    """Settings of the script."""

    task: str = field(default="classification", metadata={"help": "'classification' or 'sft'."})
    model: str = field(default="", metadata={"help": "Folder or Hub id. Default: all-MiniLM-L6-v2, or SmolLM2-135M."})
    terms: str = field(
        default=str(Path(__file__).with_name("medical_terms.jsonl")),
        metadata={"help": "Objects with the keys word, definition, specialty and texts, one per line."},
    )
    texts: bool = field(default=False, metadata={"help": "Also train the new rows on the training sentences."})
    definitions: str = field(default="wordnet", metadata={"help": "The dictionary that rows are fitted on."})
    output_dir: str = field(default="outputs/new_words", metadata={"help": "Folder for model and results."})
    epochs: int = field(default=10, metadata={"help": "Number of passes over the training sentences."})
    learning_rate: float = field(default=0.0, metadata={"help": "Default: 2e-4, or 5e-4 for LoRA."})
    seed: int = field(default=0, metadata={"help": "Seed of the head, the adapter and the order of the sentences."})

    def __post_init__(self) -> None:
        if self.task not in MODELS:
            raise ValueError(f"`task` must be classification or sft, got {self.task!r}.")
        self.model = self.model or MODELS[self.task]
        self.learning_rate = self.learning_rate or LEARNING_RATES[self.task]


@dataclass(frozen=True)
class Example:
    """A sentence that uses a term."""

    word: str
    specialty: str
    text: str


def read_examples(path: Path) -> tuple[list[Example], list[Example]]:
    """Read the sentences for training, all but the last one of each term, and those for testing."""
    terms = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    train = [Example(term["word"], term["specialty"], text) for term in terms for text in term["texts"][:-1]]
    return train, [Example(term["word"], term["specialty"], term["texts"][-1]) for term in terms]


def coverage(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> dict[str, float]:
    """Return the mean number of tokens of a text, and the share of its words that are one token."""
    words = [word for text in texts for word in re.findall(r"[^\W\d_]+", text)]
    cut = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    tokens = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return {"tokens": mean(map(len, tokens)), "whole_words": mean(len(ids) == 1 for ids in cut)}


class Task(ABC):
    """A model with its data and its score.

    Args:
        arguments: Settings.
        train: Sentences for training.
        test: Sentences for testing.
    """

    unit = ""
    scores: tuple[str, ...] = ("loss",)

    def __init__(self, arguments: NewWordsArguments, train: Sequence[Example], test: Sequence[Example]) -> None:
        self.arguments, self.train, self.test = arguments, train, test
        self.tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        set_seed(arguments.seed)  # of the head
        self.model: Any = self.load()

    @abstractmethod
    def load(self) -> PreTrainedModel:
        """Load the model."""

    @abstractmethod
    def encode(self, example: Example) -> dict[str, Any]:
        """Tokenize a sentence, with its labels."""

    @abstractmethod
    def score(self, model: Any) -> dict[str, float]:
        """Score a model on the test sentences."""

    @abstractmethod
    def collator(self) -> Callable[[Any], Any]:
        """Return the function that pads sentences to a batch."""

    def prepare(self, *, new_tokens: bool) -> list[TrainerCallback]:
        """Change the model before it is trained, and return the callbacks."""
        return []

    def finished(self) -> PreTrainedModel:
        """Return the trained model as one that loads without other libraries."""
        return self.model

    def run(self, folder: Path, *, new_tokens: bool) -> list[dict[str, float]]:
        """Train, and return the scores on the test sentences before the first and after each epoch."""
        set_seed(self.arguments.seed)
        history: list[dict[str, float]] = []
        callbacks = [*self.prepare(new_tokens=new_tokens), ScoreCallback(self, history)]
        trainer = Trainer(
            self.model,
            TrainingArguments(
                output_dir=str(folder),
                num_train_epochs=self.arguments.epochs,
                learning_rate=self.arguments.learning_rate,
                per_device_train_batch_size=16,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=self.arguments.seed,
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            train_dataset=Dataset.from_list([self.encode(example) for example in self.train]),
            data_collator=self.collator(),
            processing_class=self.tokenizer,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return history


class ScoreCallback(TrainerCallback):
    """Scores the model on the test sentences before training and after each epoch."""

    def __init__(self, task: Task, history: list[dict[str, float]]) -> None:
        self.task, self.history = task, history

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._add(model)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._add(model)

    @torch.no_grad()
    def _add(self, model: Any) -> None:
        training = model.training
        self.history.append(self.task.score(model.eval()))
        model.train(training)


class Classification(Task):
    """An encoder with a classification head, which predicts the specialty of a sentence."""

    unit, scores = "loss per sentence", ("loss", "accuracy")

    def load(self) -> PreTrainedModel:
        self.labels = sorted({example.specialty for example in self.train})
        return AutoModelForSequenceClassification.from_pretrained(self.arguments.model, num_labels=len(self.labels))

    def encode(self, example: Example) -> dict[str, Any]:
        ids = self.tokenizer(example.text, truncation=True, max_length=64)
        return {**ids, "labels": self.labels.index(example.specialty)}

    def collator(self) -> Callable[[Any], Any]:
        return DataCollatorWithPadding(self.tokenizer)

    def score(self, model: Any) -> dict[str, float]:
        losses, right = [], []
        for start in range(0, len(self.test), 32):
            rows = [self.encode(example) for example in self.test[start : start + 32]]
            batch = self.collator()(rows).to(model.device)
            logits, labels = model(**batch).logits.float(), batch["labels"]
            losses += torch.nn.functional.cross_entropy(logits, labels, reduction="none").tolist()
            right += (logits.argmax(dim=1) == labels).float().tolist()
        return {"loss": mean(losses), "accuracy": mean(right)}


class SupervisedFineTuning(Task):
    """A decoder with LoRA, which writes a sentence with a term."""

    unit = "loss per character, in nats"

    def load(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.arguments.model, dtype=torch.float32)

    def prepare(self, *, new_tokens: bool) -> list[TrainerCallback]:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
        self.model = get_peft_model(self.model, lora)
        return [TrainNewTokensCallback()] if new_tokens else []

    def finished(self) -> PreTrainedModel:
        return self.model.merge_and_unload()

    def encode(self, example: Example) -> dict[str, Any]:
        prompt = self.tokenizer(PROMPT.format(example.word))["input_ids"]
        answer = self.tokenizer(example.text, add_special_tokens=False)["input_ids"] + [self.tokenizer.eos_token_id]
        ids = [*prompt, *answer]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(prompt) + answer}

    def collator(self) -> Callable[[Any], Any]:
        return DataCollatorForSeq2Seq(self.tokenizer)

    def score(self, model: Any) -> dict[str, float]:
        total = 0.0
        for start in range(0, len(self.test), 16):
            rows = [self.encode(example) for example in self.test[start : start + 16]]
            batch = self.collator()(rows).to(model.device)
            labels = batch.pop("labels")
            logits = model(**batch).logits[:, :-1].float()
            total += float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
            )
        return {"loss": total / sum(len(example.text) for example in self.test)}


TASKS: dict[str, type[Task]] = {"classification": Classification, "sft": SupervisedFineTuning}


def add_words(task: Task, arguments: NewWordsArguments) -> RebuildReport:
    """Give the terms tokens of their own, with rows from their definitions, and with `--texts` from sentences."""
    terms = [
        json.loads(line) for line in Path(arguments.terms).read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    glossary = {term["word"]: {"definition": term["definition"]} for term in terms}
    texts = [example.text for example in task.train] if arguments.texts else []  # not those for testing
    return define_new_tokens(task.model, task.tokenizer, glossary, arguments.definitions, texts=texts)


def table(task: Task, covered: dict[str, dict[str, float]], runs: dict[str, list[dict[str, float]]]) -> str:
    """Write the results as a table."""
    names = {"before": "sub-tokens", "after": "new tokens"}
    lines = [f"| | {names['before']} | {names['after']} |", "|---|---|---|"]
    shown = [("tokens per test sentence", "tokens", "{:.1f}"), ("words that are one token", "whole_words", "{:.1%}")]
    for label, key, form in shown:
        lines.append(f"| {label} | " + " | ".join(form.format(covered[name][key]) for name in names) + " |")
    for key in task.scores:
        label = task.unit if key == "loss" else key
        for when, place in (("before training", 0), ("after training", -1)):
            lines.append(f"| {label}, {when} | " + " | ".join(f"{runs[name][place][key]:.3f}" for name in names) + " |")
    return "\n".join(lines)


def picture(
    task: Task, covered: dict[str, dict[str, float]], runs: dict[str, list[dict[str, float]]], path: Path
) -> None:
    """Draw the tokens per sentence, and the loss over the epochs."""
    styles = {"before": ("sub-tokens", LIGHT["grey"]), "after": ("new tokens", LIGHT["blue"])}
    with figures() as figure_class:
        figure = figure_class(figsize=(9, 3.4), layout="constrained")
        bars, curves = figure.subplots(1, 2, width_ratios=[1, 2])
        for name, (label, colour) in styles.items():
            bar = bars.bar(label, covered[name]["tokens"], color=colour)
            bars.bar_label(bar, fmt="%.1f")
            losses = [scores["loss"] for scores in runs[name]]
            curves.plot(range(len(losses)), losses, marker="o", markersize=4, color=colour, label=label)
        bars.set_title("tokens per test sentence")
        curves.set_title(task.unit)
        curves.set_xlabel("epoch")
        curves.xaxis.get_major_locator().set_params(integer=True)
        curves.legend()
        figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Add the terms, train with and without them, and print a line for each phase and a table."""
    (arguments,) = HfArgumentParser(NewWordsArguments).parse_args_into_dataclasses(None if argv is None else list(argv))
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    train, test = read_examples(Path(arguments.terms))
    texts = [example.text for example in test]
    print(f"Data: {len(train):,} sentences for training and {len(test):,} for testing ({arguments.terms}).")

    kind = TASKS[arguments.task]
    task = kind(arguments, train, test)
    covered = {"before": coverage(task.tokenizer, texts)}
    print(
        f"Tokenizer of {arguments.model}: {covered['before']['tokens']:.1f} tokens per test sentence; "
        f"{covered['before']['whole_words']:.1%} of the words are one token."
    )
    print("Training with sub-tokens ...", flush=True)
    runs = {"before": task.run(output / "sub-tokens", new_tokens=False)}

    task = kind(arguments, train, test)
    print("Adding the terms (the first time, the dictionary is read for some minutes) ...", flush=True)
    start = time.perf_counter()
    report = add_words(task, arguments)
    (output / "new_tokens.txt").write_text(f"{report}\n", encoding="utf-8")
    covered["after"] = coverage(task.tokenizer, texts)
    saved = 1 - covered["after"]["tokens"] / covered["before"]["tokens"]
    trained = sum(term.texts > 0 for term in report.terms)
    print(
        f"{sum(term.is_new for term in report.terms):,} of {len(report.terms):,} terms got tokens in "
        f"{time.perf_counter() - start:.0f} s{f'; {trained:,} rows were trained on texts' if trained else ''}. "
        f"Now {covered['after']['tokens']:.1f} tokens per test sentence ({saved:.1%} saved); "
        f"{covered['after']['whole_words']:.1%} of the words are one token."
    )
    for term in [term for term in report.terms if term.is_new][:3]:
        print(f"  {term.term}: nearest words {', '.join(term.nearest)}")
    print("Training with new tokens ...", flush=True)
    runs["after"] = task.run(output / "new-tokens", new_tokens=True)

    task.finished().save_pretrained(output / "model")
    task.tokenizer.save_pretrained(output / "model")
    result = {"arguments": asdict(arguments), "coverage": covered, "runs": runs}
    (output / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    shown = table(task, covered, runs)
    (output / "results.md").write_text(shown + "\n", encoding="utf-8")
    picture(task, covered, runs, output / "new_words.png")
    print(f"\n{shown}\n")
    print(f"Model and tokenizer: {output / 'model'}. Picture: {output / 'new_words.png'}.")
    print(f"Each term with its row and nearest words: {output / 'new_tokens.txt'}.")
    return result


if __name__ == "__main__":
    main()
