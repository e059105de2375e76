"""Fine-tune on a GLUE task or your own sentences, with the model's embeddings rebuilt from definitions.

    python examples/run_glue.py --model_name_or_path roberta-base --task_name sst2 --do_train --do_eval \
        --output_dir outputs/sst2
    python examples/run_glue.py --model_name_or_path roberta-base --train_file train.tsv --validation_file dev.tsv \
        --do_train --do_eval --output_dir outputs/mine

`--definition_emb false` is the baseline. Metrics are reported for the whole validation set, for the examples with a
rare rebuilt token (`eval_accuracy_rare`), and for the others. A `.yaml` file before the options is a recipe.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from arguments import ModelArguments, parse
from data_files import cut, load_splits
from glue_task import DataArguments, GlueTask
from rare_tokens import by_frequency, contain, rare_rebuilt_tokens, write_columns
from saving import train_and_save
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

from defemb_callbacks import DefinitionEMBCallback, DefinitionEMBConfig

logger = logging.getLogger(__name__)

# Prefix of the metrics of each validation split; MNLI has two.
EVALUATED = {"validation": "eval", "validation_matched": "eval", "validation_mismatched": "eval_mm"}


def keep_logits(output: Any, labels: Tensor) -> Tensor:
    """Drop other outputs, such as encoder states, which would be collected for every example."""
    return output[0] if isinstance(output, tuple) else output


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate and predict according to the options; return the metrics."""
    types = (ModelArguments, DataArguments, DefinitionEMBConfig, TrainingArguments)
    model_args, data_args, config, args = parse(types, argv)
    logging.basicConfig(level=args.get_process_log_level(), format="%(levelname)s %(name)s: %(message)s")
    logger.info("Process %d of %d.", args.process_index, args.world_size)
    set_seed(args.seed)

    found = load_splits(data_args, args)
    source = {"pretrained_model_name_or_path": model_args.model_name_or_path, "revision": model_args.model_revision}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    task = GlueTask.of(found, data_args.task_name, data_args.text_columns, AutoConfig.from_pretrained(**source))
    model = AutoModelForSequenceClassification.from_pretrained(**source, **task.head)
    model.accepts_loss_kwargs = False  # its loss is already the mean over the batch

    def tokenize(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[column] for column in task.texts]
        encoded = tokenizer(*texts, truncation=True, max_length=data_args.max_seq_length)
        return {**encoded, **({"labels": task.targets(rows["label"])} if "label" in rows else {})}

    with args.main_process_first(desc="tokenize"):
        splits = cut(found, data_args, args)
        for split, rows in splits.items():
            if split.startswith("test") and "label" in rows.column_names:  # GLUE's test labels are all -1
                rows = rows.remove_columns("label")
            splits[split] = rows.map(tokenize, batched=True, remove_columns=rows.column_names)
        size = model.get_input_embeddings().num_embeddings
        rare = rare_rebuilt_tokens(tokenizer, size, model_args.definitions, config, splits.get("train"))

    def compute_metrics(output: EvalPrediction) -> dict[str, float]:
        return task.metric.compute(predictions=task.predicted(output.predictions), references=output.label_ids)

    evaluated = {split: prefix for split, prefix in EVALUATED.items() if split in splits}
    callback = DefinitionEMBCallback(model_args.definitions, config=config)
    trainer = Trainer(
        model,
        args,
        train_dataset=splits.get("train"),
        eval_dataset=splits[next(iter(evaluated))] if evaluated else None,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=keep_logits,
        # Do not rebuild a model that is only evaluated.
        callbacks=[callback] if model_args.definition_emb and args.do_train else [],
    )
    results = train_and_save(trainer, callback) if args.do_train else {}
    for split, prefix in evaluated.items():
        output = trainer.predict(splits[split], metric_key_prefix=prefix)
        pairs = {"predictions": task.predicted(output.predictions), "references": output.label_ids}
        with_rare = contain(splits[split]["input_ids"], rare)
        metrics = output.metrics | by_frequency(task.metric, with_rare, **pairs, prefix=prefix)
        trainer.log(metrics)
        trainer.log_metrics(prefix, metrics)
        trainer.save_metrics(prefix, metrics)
        results |= metrics
        if trainer.is_world_process_zero():
            each = {"rare": with_rare, **task.metric.of_each(**pairs), **pairs}
            write_columns(Path(args.output_dir, f"{prefix}_examples.jsonl"), each)
    for split in (split for split in splits if split.startswith("test")):
        predictions = task.predicted(trainer.predict(splits[split]).predictions)
        lines = [task.classes[value] if task.classes else f"{value:.3f}" for value in predictions]
        if trainer.is_world_process_zero():
            Path(args.output_dir, f"{split}_predictions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
