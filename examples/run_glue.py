"""Fine-tune on a GLUE task, or on sentences of your own, with the model's embeddings rebuilt from definitions.

    python examples/run_glue.py --model_name_or_path roberta-base --task_name sst2 --do_train --do_eval \
        --output_dir outputs/sst2
    python examples/run_glue.py --model_name_or_path roberta-base --train_file train.tsv --validation_file dev.tsv \
        --do_train --do_eval --output_dir outputs/mine

`--definition_emb false` is the baseline. Metrics are given for all examples of the validation set, for those with a
rare token that is rebuilt (`eval_accuracy_rare`), and for the others. A `.yaml` file before the options is a recipe.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arguments import parse
from data_files import SplitArguments, load_splits
from datasets import DatasetDict
from glue_metrics import GlueMetric
from numpy.typing import NDArray
from rare_tokens import by_frequency, contain, rare_rebuilt_tokens, write_columns
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

from defemb_callbacks import DefinitionEMBCallback, DefinitionEMBConfig, update_model_card

logger = logging.getLogger(__name__)

# The columns with text, of each task.
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

# The splits to evaluate on, and what their metrics are called; MNLI has two.
EVALUATED = {"validation": "eval", "validation_matched": "eval", "validation_mismatched": "eval_mm"}


@dataclass
class ModelArguments:
    """Which model, and whether its embeddings are rebuilt, from what."""

    model_name_or_path: str = field(metadata={"help": "Folder or hub id."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the hub."})
    definition_emb: bool = field(default=True, metadata={"help": "Rebuild the embeddings; false is the baseline."})
    definitions: list[str] = field(
        default_factory=lambda: ["wordnet"], metadata={"help": "'wordnet' and files, as `load_definitions` reads them."}
    )


@dataclass
class DataArguments(SplitArguments):
    """Which data."""

    task_name: str | None = field(default=None, metadata={"help": f"One of GLUE: {', '.join(TASKS)}."})
    max_seq_length: int = field(default=128, metadata={"help": "Longest input in tokens."})

    def __post_init__(self) -> None:
        if self.task_name is not None and self.task_name not in TASKS:
            raise ValueError(f"task_name={self.task_name!r} is unknown; choose from {', '.join(TASKS)}.")
        if self.task_name and not self.dataset_name and not self.files:
            self.dataset_name, self.dataset_config_name = "nyu-mll/glue", self.task_name


@dataclass
class Task:
    """What the data say of the task: columns with text, names of classes (none of a regression), metrics."""

    texts: tuple[str, ...]
    classes: list[str]
    metric: GlueMetric
    class_ids: dict[str | int, int]  # of what is in the column

    @classmethod
    def of(cls, splits: DatasetDict, name: str | None) -> Task:
        """GLUE's task of this name, or what the columns say: `label`, and the first or the first two with text."""
        labelled = [rows for split, rows in splits.items() if not split.startswith("test")]
        columns = labelled[0].features if labelled else {}
        strings = [column for column, kind in columns.items() if str(getattr(kind, "dtype", "")).endswith("string")]
        texts = TASKS[name] if name else tuple([column for column in strings if column != "label"][:2])
        for column in (*(texts or ("sentence",)), "label"):
            if column not in columns:
                raise ValueError(f"The data have no column {column!r}, only {', '.join(columns) or 'a test split'}.")
        if name == "stsb" or columns["label"].dtype.startswith("float"):
            return cls(texts, [], GlueMetric("stsb"), {})
        if names := getattr(columns["label"], "names", None):
            return cls(texts, names, GlueMetric(name), {number: number for number in range(len(names))})
        found = sorted({label for rows in labelled for label in rows.unique("label")})
        return cls(texts, list(map(str, found)), GlueMetric(name), {label: i for i, label in enumerate(found)})

    def target(self, label: Any) -> int | float:
        """What the model is to say."""
        return self.class_ids[label] if self.classes else float(label)

    def predicted(self, output: Any) -> NDArray[Any]:
        """Label or score of each example, from the model's output."""
        logits = output[0] if isinstance(output, tuple) else output
        return logits.argmax(axis=-1) if self.classes else logits.squeeze(axis=-1)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train and evaluate as the options say; returns the metrics."""
    model_args, data_args, config, args = parse(
        (ModelArguments, DataArguments, DefinitionEMBConfig, TrainingArguments), argv
    )
    logging.basicConfig(level=args.get_process_log_level(), format="%(levelname)s %(name)s: %(message)s")
    logger.info("Process %d of %d.", args.process_index, args.world_size)
    set_seed(args.seed)

    splits = load_splits(data_args, args)
    task = Task.of(splits, data_args.task_name)
    source, revision = model_args.model_name_or_path, model_args.model_revision
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    names = {"id2label": dict(enumerate(task.classes)), "label2id": {name: i for i, name in enumerate(task.classes)}}
    model = AutoModelForSequenceClassification.from_pretrained(
        source, revision=revision, num_labels=len(task.classes) or 1, **(names if task.classes else {})
    )
    model.accepts_loss_kwargs = False  # its loss is a mean over its own batch, which Trainer does not expect

    def tokenize(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[column] for column in task.texts]
        encoded = tokenizer(*texts, truncation=True, max_length=data_args.max_seq_length)
        return {**encoded, **({"labels": [task.target(label) for label in rows["label"]]} if "label" in rows else {})}

    with args.main_process_first(desc="tokenize"):
        for split, rows in splits.items():
            if split.startswith("test") and "label" in rows.column_names:  # GLUE's are all -1
                rows = rows.remove_columns("label")
            splits[split] = rows.map(tokenize, batched=True, remove_columns=rows.column_names)
        size = model.get_input_embeddings().num_embeddings
        rare = rare_rebuilt_tokens(tokenizer, size, model_args.definitions, config, splits.get("train"))

    def compute_metrics(output: EvalPrediction) -> dict[str, float]:
        predictions, references = task.predicted(output.predictions), output.label_ids
        return task.metric.compute(predictions=predictions, references=references)

    evaluated = {split: EVALUATED[split] for split in splits if split in EVALUATED}
    callback = DefinitionEMBCallback(model_args.definitions, config=config)
    trainer = Trainer(
        model,
        args,
        train_dataset=splits.get("train"),
        eval_dataset=splits[next(iter(evaluated))] if evaluated else None,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
        callbacks=[callback] if model_args.definition_emb else [],
    )
    results: dict[str, float] = {}
    if args.do_train:
        results |= trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics
        trainer.save_metrics("train", results)
        trainer.save_state()
        if args.save_strategy != "no":
            trainer.save_model()
            if callback.report and trainer.is_world_process_zero():
                update_model_card(args.output_dir, callback.report)
    for split, prefix in evaluated.items() if args.do_eval else ():
        output = trainer.predict(splits[split], metric_key_prefix=prefix)
        predictions = task.predicted(output.predictions)
        pairs = {"predictions": predictions, "references": output.label_ids}
        with_rare = contain(splits[split]["input_ids"], rare)
        metrics = output.metrics | by_frequency(task.metric, with_rare, **pairs, prefix=prefix)
        trainer.log_metrics(prefix, metrics)
        trainer.save_metrics(prefix, metrics)
        results |= metrics
        if trainer.is_world_process_zero():
            each = {"rare": with_rare, **task.metric.of_each(**pairs), **pairs}
            write_columns(Path(args.output_dir, f"{prefix}_examples.jsonl"), each)
    for split in [split for split in splits if split.startswith("test")] if args.do_predict else ():
        predictions = task.predicted(trainer.predict(splits[split]).predictions)
        lines = [task.classes[value] if task.classes else f"{value:.3f}" for value in predictions]
        if trainer.is_world_process_zero():
            Path(args.output_dir, f"{split}_predictions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
