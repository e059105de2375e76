"""Senses instead of states, and students that learn to choose them, on a classification task of GLUE or your own.

    python examples/run_sense_distillation.py --model_name_or_path FacebookAI/roberta-base --task_name sst2 \
        --max_train_samples 4096 --output_dir outputs/senses
    python examples/run_sense_distillation.py --model_name_or_path FacebookAI/roberta-base --train_file train.tsv \
        --validation_file dev.tsv --output_dir outputs/mine

A teacher is fine-tuned on some sentences. Its sense dictionary is built of the same sentences. Students with its first
layers start from its weights and see the same sentences as often: plainly trained (cross-entropy with the labels, head
included), logit distillation (Hinton et al. 2015: the teacher's probabilities at temperature 2), sense distillation
(arXiv 2504.06036; no labels), and the same with the task's loss added. Token embeddings are half of all parameters and
hardly move: they are frozen in all models, unless --train_embeddings. Accuracy is that of the whole validation set,
speed that over a quarter of it, all models by turns in one process. An interrupted command, given again, goes on with
the seed it had come to.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arguments import parse
from data_files import cut, load_splits
from datasets import DatasetDict
from glue_task import DataArguments, GlueTask
from sense_results import BOTH, SENSES, draw, finished, identity, markdown
from sense_students import Batches, School, accuracy, bytes_on_disk, seconds_by_turns
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
    """Which teacher, which dictionary, which students."""

    model_name_or_path: str = field(metadata={"help": "What the teacher is before it is trained: folder or hub id."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the hub."})
    layers: int = field(default=3, metadata={"help": "Of the students: the teacher's first."})
    senses: int = field(default=20, metadata={"help": "Of a token."})
    similarity: str = field(default="dot", metadata={"help": "What chooses a sense: dot, cosine or euclidean."})
    seeds: int = field(default=3, metadata={"help": "How often all is done, with another draw of the sentences."})
    teacher_epochs: float = field(default=3.0)
    teacher_learning_rate: float = field(
        default=1e-4, metadata={"help": "Of the teacher, and of the plain and the logit student."}
    )
    train_embeddings: bool = field(default=False, metadata={"help": "Train the token embeddings of all models, too."})


@dataclass
class StudentArguments(SenseDistillationArguments):
    """Settings of every training; rate, epochs and task's weight are those of the students."""

    do_train: bool = True
    do_eval: bool = True
    learning_rate: float = field(default=5e-4, metadata={"help": "Of the sense students; default the paper's."})
    num_train_epochs: float = field(default=4.0, metadata={"help": "Of each student."})
    per_device_train_batch_size: int = 32
    warmup_steps: float = 0.06
    logging_steps: float = 100
    save_strategy: str = "no"
    task_weight: float = field(default=1.0, metadata={"help": "Of the task's loss in the student that learns both."})


def tokenized(
    splits: DatasetDict, task: GlueTask, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments
) -> DatasetDict:
    """Rows for training and, those of about the same length together, for evaluation."""

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
    """Teacher, dictionary and students of one seed, and what is measured of them."""
    set_seed(args.seed)
    source = {"pretrained_model_name_or_path": sense_args.model_name_or_path, "revision": sense_args.model_revision}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    task = GlueTask.of(found, data_args.task_name, data_args.text_columns, AutoConfig.from_pretrained(**source))
    splits = cut(found, data_args, args)
    rows = tokenized(splits, task, tokenizer, data_args)
    model = AutoModelForSequenceClassification.from_pretrained(**source, **task.head)
    school = School(rows["train"], tokenizer, args, sense_args.teacher_learning_rate, sense_args.train_embeddings)
    times: dict[str, float] = {}
    start = time.perf_counter()

    def took(what: str) -> None:
        nonlocal start
        times[what], start = time.perf_counter() - start, time.perf_counter()

    teacher = school.plainly(model, sense_args.teacher_epochs)
    took("teacher")
    texts = [text for column in task.texts for text in splits["train"][column]]
    config = SenseConfig(sense_args.senses, similarity=sense_args.similarity, max_length=data_args.max_seq_length)
    dictionary = build_sense_dictionary(teacher, tokenizer, texts, config, seed=args.seed)
    took("dictionary")
    layers = sense_args.layers
    models = {
        "teacher": teacher,
        "plain student": school.plainly(school.student(teacher, layers), args.num_train_epochs),
    }
    took("plain student")
    models["logit distillation"] = school.by_logits(teacher, layers)
    took("logit distillation")
    for what, weight in ((SENSES, 0.0), (BOTH, args.task_weight)):
        models[what] = school.by_senses(teacher, layers, dictionary, weight)
        took(what)
    collator, held = DataCollatorWithPadding(tokenizer), rows["validation"]
    batches = [
        collator([held[row] for row in range(at, min(at + 32, len(held)))]).to(teacher.device)
        for at in range(0, len(held), 32)
    ]
    return {**measured(models, dictionary, school.student(teacher, layers), batches), "train_seconds": times}


def measured(
    models: dict[str, PreTrainedModel], dictionary: SenseDictionary, untrained: PreTrainedModel, batches: Batches
) -> dict[str, Any]:
    """Accuracy, speed and size of all models, and of the dictionary in each way it can be stored."""
    wrapped = with_senses(copy.deepcopy(models["teacher"]), dictionary)
    everyone = {**models, "teacher with senses": wrapped}
    stored = {kind: dictionary.compressed(kind) for kind in ("float32", "float16", "product")}
    disk = {what: bytes_on_disk(model.save_pretrained) for what, model in models.items()}
    disk |= {f"dictionary, {kind}": bytes_on_disk(small.save_pretrained) for kind, small in stored.items()}
    found = {what: accuracy(model, batches) for what, model in everyone.items()}
    return {
        "accuracy": found | {"first layers, untrained": accuracy(untrained, batches)},
        "seconds": seconds_by_turns(everyone, batches[::4]),
        "bytes": disk,
        "parameters": {what: parameter_counts(model) for what, model in models.items()},
        "dictionary": str(dictionary),
        "dictionary_accuracy": {
            kind: accuracy(with_senses(without_senses(wrapped), small), batches) for kind, small in stored.items()
        },
    }


def told(sense_args: SenseArguments, data_args: DataArguments, args: StudentArguments) -> dict[str, Any]:
    """The settings that results depend on, with what files hold instead of where they are."""
    usual = StudentArguments(output_dir=args.output_dir).to_dict()
    changed = {name: value for name, value in args.to_dict().items() if value != usual[name]}
    given = {**asdict(sense_args), **asdict(data_args), **changed}
    for name in ("model_name_or_path", *(f"{split}_file" for split in data_args.files)):
        given[name] = identity(given[name])
    return {name: value for name, value in given.items() if name not in ("seeds", "seed") and value is not None}


def main(argv: list[str] | None = None) -> None:
    """Do it all for each seed, and write table, picture and figures into the output folder."""
    sense_args, data_args, args = parse((SenseArguments, DataArguments, StudentArguments), argv)
    found = load_splits(data_args, args)
    # What is evaluated here is sorted already, and not shuffled.
    args.train_sampling_strategy = "group_by_length"
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    settings = told(sense_args, data_args, args)
    runs = finished(output / "results.json", settings)
    for seed in range(len(runs), sense_args.seeds):
        args.seed = seed
        runs.append(one_seed(sense_args, data_args, args, found))
        print(f"seed {seed}: {json.dumps(runs[-1]['accuracy'])}", flush=True)
        figures = json.dumps({"settings": settings, "runs": runs}, indent=1)
        (output / "results.json").write_text(figures + "\n", encoding="utf-8")
    runs = runs[: sense_args.seeds]
    table = markdown(runs)
    (output / "results.md").write_text(table + "\n", encoding="utf-8")
    draw(runs, output / "senses.png")
    print(f"\n{table}\n\nTable, picture and figures are in {output}.")


if __name__ == "__main__":
    main()
