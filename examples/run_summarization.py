"""Fine-tune on summarization, XSum by default, with the model's embeddings rebuilt from definitions.

    python examples/run_summarization.py --model_name_or_path facebook/bart-large --do_train --do_eval \
        --output_dir outputs/xsum
    python examples/run_summarization.py --model_name_or_path google-t5/t5-small --train_file train.jsonl \
        --validation_file dev.jsonl --do_train --do_eval --output_dir outputs/mine

`--definition_emb false` is the baseline. ROUGE (stemmed, 0 to 1, against the full summaries) is averaged over all
examples, over those whose summary has a rare rebuilt token (`eval_rouge1_rare`), and over the others. The generated
summaries and their scores are in `eval_examples.jsonl`. `--do_predict` does the same with the test set, as `predict_…`.
A `.yaml` file before the options is a recipe.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import arguments
import numpy as np
from data_files import SplitArguments, cut, load_splits
from datasets import Dataset, DatasetDict
from rare_tokens import contain, rare_rebuilt_tokens, write_columns
from rouge import Rouge, one_sentence_per_line
from saving import train_and_save
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from defemb_callbacks import DefinitionEMBCallback, DefinitionEMBConfig

logger = logging.getLogger(__name__)

XSUM = "EdinburghNLP/xsum"

# Column names of common data sets, the most common first
DOCUMENTS = ("document", "article", "dialogue", "text", "description", "source")
SUMMARIES = ("summary", "highlights", "abstract", "tldr", "target")


@dataclass
class ModelArguments(arguments.ModelArguments):
    """Model and generation settings."""

    generation: str = field(
        default="{}",
        metadata={"help": 'JSON that overrides the generation_config.json of the model: {"length_penalty": 2, …}.'},
    )


@dataclass
class DataArguments(SplitArguments):
    """Data and lengths."""

    document_column: str | None = field(
        default=None, metadata={"help": f"Default: the first of {', '.join(DOCUMENTS)}."}
    )
    summary_column: str | None = field(
        default=None, metadata={"help": f"Default: the first of {', '.join(SUMMARIES)}."}
    )
    source_prefix: str | None = field(
        default=None, metadata={"help": "Prefix of each document. Default: 'summarize: ' for T5, otherwise none."}
    )
    max_source_length: int = field(default=1024, metadata={"help": "Maximum document length in tokens."})
    max_target_length: int = field(
        default=128, metadata={"help": "Maximum summary length in tokens, in training and, by default, generation."}
    )

    def __post_init__(self) -> None:
        if not self.dataset_name and not self.files:
            self.dataset_name = XSUM
        if self.dataset_name == XSUM and self.dataset_revision is None:
            self.dataset_revision = (
                "refs/convert/parquet"  # the main revision is a loading script, which `datasets` no longer runs
            )

    def pairs(self, rows: Dataset) -> Dataset:
        """Return only the columns `document` and `summary`."""
        asked = {"document": self.document_column, "summary": self.summary_column}
        columns = {}
        for name, known in {"document": DOCUMENTS, "summary": SUMMARIES}.items():
            found = [column for column in (known if asked[name] is None else [asked[name]]) if column in rows.features]
            if not found:
                has = ", ".join(rows.column_names)
                raise ValueError(f"No column for the {name} was found. Pass --{name}_column, one of {has}.")
            columns[found[0]] = name
        return rows.select_columns(list(columns)).rename_columns(columns)


class SummaryScores:
    """`compute_metrics` of one split: mean ROUGE scores. The scores of each example are stored in `examples`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, references: Sequence[str], rare: Sequence[bool]) -> None:
        self.tokenizer, self.references, self.rare = tokenizer, list(references), np.asarray(rare)
        self.examples: dict[str, Sequence[Any]] = {}

    def __call__(self, output: EvalPrediction) -> dict[str, float]:
        # With several processes, the last batches are padded with the first examples, which Seq2SeqTrainer keeps.
        ids = output.predictions[: len(self.references)]
        ids = np.where(ids < 0, self.tokenizer.pad_token_id, ids)
        written = [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        scores = Rouge(keep_in_memory=True).compute(
            predictions=[one_sentence_per_line(text) for text in written],
            references=[one_sentence_per_line(text) for text in self.references],
            use_stemmer=True,
            use_aggregator=False,
        )
        self.examples = {"rare": self.rare, **scores, "prediction": written}
        metrics: dict[str, float] = {name: float(np.mean(values)) for name, values in scores.items()}
        for group, chosen in (("rare", self.rare), ("other", ~self.rare)):
            metrics[f"samples_{group}"] = int(chosen.sum())
            if chosen.any():  # an empty group has no mean
                metrics |= {f"{name}_{group}": float(np.mean(values, where=chosen)) for name, values in scores.items()}
        return metrics


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate and predict according to the options; return the metrics."""
    types = (ModelArguments, DataArguments, DefinitionEMBConfig, Seq2SeqTrainingArguments)
    model_args, data_args, config, args = arguments.parse(types, argv)
    logging.basicConfig(level=args.get_process_log_level(), format="%(levelname)s %(name)s: %(message)s")
    logger.info("Process %d of %d.", args.process_index, args.world_size)
    args.predict_with_generate = True
    set_seed(args.seed)

    source, revision = model_args.model_name_or_path, model_args.model_revision
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    model = AutoModelForSeq2SeqLM.from_pretrained(source, revision=revision)
    model.accepts_loss_kwargs = False  # the loss of T5 and BART is already the mean over the batch
    generation = {"max_length": data_args.max_target_length, **json.loads(model_args.generation)}
    if unknown := model.generation_config.update(**generation):
        raise ValueError(
            f"generation={model_args.generation!r} has the unknown setting {next(iter(unknown))!r}. Remove it."
        )
    model.generation_config.validate(strict=True)  # otherwise this fails only when the first checkpoint is saved
    usual_prefix = "summarize: " if model.config.model_type == "t5" else ""
    prefix = usual_prefix if data_args.source_prefix is None else data_args.source_prefix

    def tokenize(rows: dict[str, list[str]]) -> dict[str, Any]:
        documents = [prefix + document for document in rows["document"]]
        encoded = tokenizer(documents, truncation=True, max_length=data_args.max_source_length)
        labels = tokenizer(text_target=rows["summary"], truncation=True, max_length=data_args.max_target_length)
        return {**encoded, "labels": labels["input_ids"]}

    with args.main_process_first(desc="tokenize"):
        found = cut(load_splits(data_args, args), data_args, args)
        texts = DatasetDict({split: data_args.pairs(rows) for split, rows in found.items()})
        splits = texts.map(tokenize, batched=True, remove_columns=["document", "summary"])
        size = model.get_input_embeddings().num_embeddings
        written = {"train": splits.get("train"), "labels": True}
        rare = rare_rebuilt_tokens(tokenizer, size, model_args.definitions, config, **written)
    scores = {
        split: SummaryScores(tokenizer, texts[split]["summary"], contain(rows["labels"], rare))
        for split, rows in splits.items()
        if split != "train"
    }

    callback = DefinitionEMBCallback(model_args.definitions, config=config)
    trainer = Seq2SeqTrainer(
        model,
        args,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        compute_metrics=scores.get("validation"),
        # Do not rebuild a model that is only evaluated.
        callbacks=[callback] if model_args.definition_emb and args.do_train else [],
    )
    results = train_and_save(trainer, callback) if args.do_train else {}
    for split, name in (("validation", "eval"), ("test", "predict")):
        if split in splits:
            trainer.compute_metrics = scores[split]
            metrics = trainer.evaluate(splits[split], metric_key_prefix=name)
            trainer.log_metrics(name, metrics)
            trainer.save_metrics(name, metrics)
            results |= metrics
            if trainer.is_world_process_zero():
                write_columns(Path(args.output_dir, f"{name}_examples.jsonl"), scores[split].examples)
    return results


if __name__ == "__main__":
    main()
