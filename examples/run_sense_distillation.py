"""Sense dictionaries and sense distillation on a GLUE task or your own classification task.

    python examples/run_sense_distillation.py --model_name_or_path FacebookAI/roberta-base --task_name sst2 \
        --max_train_samples 4096 --output_dir outputs/senses
    python examples/run_sense_distillation.py --model_name_or_path FacebookAI/roberta-base --train_file train.tsv \
        --validation_file dev.tsv --output_dir outputs/mine

A teacher is fine-tuned, and its sense dictionary is built from the same sentences. Students with its first layers start
from its weights and are trained on the same sentences for the same number of steps: plain (cross-entropy with the
labels), logit distillation (Hinton et al. 2015, temperature 2), sense distillation (arXiv 2504.06036; without labels),
and sense distillation with the task loss added. Token embeddings are half of all parameters and hardly change; they are
frozen in all models, unless --train_embeddings. Accuracy is measured on the whole validation set, speed on a quarter of
it, with the models alternating in one process. An interrupted command continues with the first unfinished seed.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arguments import parse
from console import Phases, quiet_loading
from data_files import cut, load_splits
from datasets import DatasetDict
from glue_task import DataArguments, GlueTask
from sense_results import BOTH, SENSES, draw, finished, identity, markdown
from sense_students import Batches, StudentTraining, accuracy, bytes_on_disk, seconds_per_pass
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from defemb_callbacks.senses import (
    SenseConfig,
    SenseDictionary,
    SenseDistillationArguments,
    build_sense_dictionary,
    with_senses,
    without_senses,
)
from defemb_callbacks.senses.student import parameter_counts


@dataclass
class SenseArguments:
    """Settings of teacher, dictionary and students."""

    model_name_or_path: str = field(metadata={"help": "Pretrained model of the teacher: folder or Hub id."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
    layers: int = field(default=3, metadata={"help": "Number of the teacher's first layers in a student."})
    senses: int = field(default=20, metadata={"help": "Maximum number of senses per token."})
    similarity: str = field(
        default="dot", metadata={"help": "Similarity to choose a sense by: dot, cosine or euclidean."}
    )
    seeds: int = field(
        default=3, metadata={"help": "Number of repetitions, each with another sample of the sentences."}
    )
    teacher_epochs: float = field(default=3.0)
    teacher_learning_rate: float = field(
        default=1e-4, metadata={"help": "Learning rate of the teacher and of the plain and logit students."}
    )
    train_embeddings: bool = field(default=False, metadata={"help": "Also train the token embeddings, in all models."})


@dataclass
class StudentArguments(SenseDistillationArguments):
    """Training settings; learning rate, epochs and task weight are those of the students."""

    do_train: bool = True
    do_eval: bool = True
    learning_rate: float = field(
        default=5e-4, metadata={"help": "Learning rate of the sense students. Default: the paper's."}
    )
    num_train_epochs: float = field(default=4.0, metadata={"help": "Epochs of each student."})
    per_device_train_batch_size: int = 32
    warmup_steps: float = 0.06
    logging_steps: float = 100
    save_strategy: str = "no"
    task_weight: float = field(
        default=1.0, metadata={"help": "Weight of the task loss in the student that learns both."}
    )


def tokenized(
    splits: DatasetDict, task: GlueTask, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments
) -> DatasetDict:
    """Tokenize the training and validation data; the latter is sorted by length."""

    def tokenize(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[column] for column in task.texts]
        encoded = tokenizer(*texts, truncation=True, max_length=data_args.max_seq_length)
        return {**encoded, "labels": task.targets(rows["label"])}

    held = next(rows for split, rows in splits.items() if split.startswith("validation"))
    found = DatasetDict(train=splits["train"], validation=held)
    for split, rows in found.items():
        found[split] = rows.map(tokenize, batched=True, remove_columns=rows.column_names)
    lengths = [len(ids) for ids in found["validation"]["input_ids"]]
    found["validation"] = found["validation"].select(sorted(range(len(lengths)), key=lengths.__getitem__))
    return found


def one_seed(
    sense_args: SenseArguments, data_args: DataArguments, args: StudentArguments, found: DatasetDict
) -> dict[str, Any]:
    """Train teacher, dictionary and students of one seed, and measure them."""
    set_seed(args.seed)
    source = {"pretrained_model_name_or_path": sense_args.model_name_or_path, "revision": sense_args.model_revision}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    task = GlueTask.of(found, data_args.task_name, data_args.text_columns, AutoConfig.from_pretrained(**source))
    splits = cut(found, data_args, args)
    rows = tokenized(splits, task, tokenizer, data_args)
    with quiet_loading():
        model = AutoModelForSequenceClassification.from_pretrained(**source, **task.head)
    training = StudentTraining(
        rows["train"], tokenizer, args, sense_args.teacher_learning_rate, sense_args.train_embeddings
    )
    times: dict[str, float] = {}
    phases = Phases()

    def stop_clock(what: str) -> None:
        times[what] = phases.done(f"Seed {args.seed}: {what}")

    teacher = training.fine_tune(model, sense_args.teacher_epochs)
    stop_clock("teacher")
    texts = [text for column in task.texts for text in splits["train"][column]]
    config = SenseConfig(sense_args.senses, similarity=sense_args.similarity, max_length=data_args.max_seq_length)
    dictionary = build_sense_dictionary(teacher, tokenizer, texts, config, seed=args.seed)
    stop_clock("dictionary")
    layers = sense_args.layers
    models = {
        "teacher": teacher,
        "plain student": training.fine_tune(training.student(teacher, layers), args.num_train_epochs),
    }
    stop_clock("plain student")
    models["logit distillation"] = training.distill_logits(teacher, layers)
    stop_clock("logit distillation")
    for what, weight in ((SENSES, 0.0), (BOTH, args.task_weight)):
        models[what] = training.distill_senses(teacher, layers, dictionary, weight)
        stop_clock(what)
    collator, held = DataCollatorWithPadding(tokenizer), rows["validation"]
    batches = [
        collator([held[row] for row in range(at, min(at + 32, len(held)))]).to(teacher.device)
        for at in range(0, len(held), 32)
    ]
    return {**measured(models, dictionary, training.student(teacher, layers), batches), "train_seconds": times}


def measured(
    models: dict[str, PreTrainedModel], dictionary: SenseDictionary, untrained: PreTrainedModel, batches: Batches
) -> dict[str, Any]:
    """Measure accuracy, speed and size of all models, and of the dictionary in each storage format."""
    wrapped = with_senses(copy.deepcopy(models["teacher"]), dictionary)
    everyone = {**models, "teacher with senses": wrapped}
    stored = {kind: dictionary.compressed(kind) for kind in ("float32", "float16", "product")}
    disk = {what: bytes_on_disk(model.save_pretrained) for what, model in models.items()}
    disk |= {f"dictionary, {kind}": bytes_on_disk(small.save_pretrained) for kind, small in stored.items()}
    found = {what: accuracy(model, batches) for what, model in everyone.items()}
    return {
        "accuracy": found | {"first layers, untrained": accuracy(untrained, batches)},
        "seconds": seconds_per_pass(everyone, batches[::4]),
        "bytes": disk,
        "parameters": {what: parameter_counts(model) for what, model in models.items()},
        "dictionary": str(dictionary),
        "dictionary_accuracy": {
            kind: accuracy(with_senses(without_senses(wrapped), small), batches) for kind, small in stored.items()
        },
    }


def settings_record(sense_args: SenseArguments, data_args: DataArguments, args: StudentArguments) -> dict[str, Any]:
    """Return the settings that the results depend on; files are identified by content instead of path."""
    usual = StudentArguments(output_dir=args.output_dir).to_dict()
    changed = {name: value for name, value in args.to_dict().items() if value != usual[name]}
    given = {**asdict(sense_args), **asdict(data_args), **changed}
    for name in ("model_name_or_path", *(f"{split}_file" for split in data_args.files)):
        given[name] = identity(given[name])
    return {name: value for name, value in given.items() if name not in ("seeds", "seed") and value is not None}


def main(argv: list[str] | None = None) -> None:
    """Run all seeds and save results, table and figure in the output folder."""
    sense_args, data_args, args = parse((SenseArguments, DataArguments, StudentArguments), argv)
    found = load_splits(data_args, args)
    # Evaluation examples are sorted already and are not shuffled.
    args.train_sampling_strategy = "group_by_length"
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    settings = settings_record(sense_args, data_args, args)
    runs = finished(output / "results.json", settings)
    for seed in range(len(runs), sense_args.seeds):
        args.seed = seed
        runs.append(one_seed(sense_args, data_args, args, found))
        scores = (f"{name} {score:.4f}" for name, score in runs[-1]["accuracy"].items())
        print(f"Accuracy with seed {seed}: {'; '.join(scores)}.\n", flush=True)
        figures = json.dumps({"settings": settings, "runs": runs}, indent=1)
        (output / "results.json").write_text(figures + "\n", encoding="utf-8")
    runs = runs[: sense_args.seeds]
    table = markdown(runs)
    (output / "results.md").write_text(table + "\n", encoding="utf-8")
    draw(runs, output / "senses.png")
    print(f"\n{table}\n\nTable, figure and results are saved in {output}.")


if __name__ == "__main__":
    main()
