"""Cost of the callbacks with default settings: training without a callback, with the monitor, and with the rebuild.

    python benchmarks/monitoring.py

all-MiniLM-L6-v2 on SST-2 with the settings of sst2.py, but logging every few steps; on a GPU also RoBERTa-base with
random weights, batches of 32 x 128 random tokens in bfloat16. The three setups alternate, with paired seeds, after a
short run of each that fills the caches. Two numbers are reported:

- the paired ratio of the times of `trainer.train()`: what a user experiences, but noisy on a shared machine;
- the seconds inside the callback's hooks as a share of `trainer.train()`: precise, but without side effects.

The rebuild happens before `trainer.train()` and is reported separately. Needs WordNet and `shared/data` next to the
repository, or $DEFEMB_TEST_DATA.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import transformers
from common import DATA, RESULTS, add_model_argument, environment, find_model
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from defemb_callbacks import DefinitionEMBCallback, EmbeddingMonitorCallback

Setups = dict[str, Callable[[], EmbeddingMonitorCallback] | None]

SETUPS: Setups = {
    "none": None,
    "monitor": EmbeddingMonitorCallback,
    "rebuild": DefinitionEMBCallback,
}
# Phase of each hook; all others run during training.
PHASES = {"on_init_end": "before", "on_train_begin": "start", "on_train_end": "end"}
WARM_UP_STEPS = 5

MakeTrainer = Callable[..., Trainer]


class HookTimer:
    """Measure the seconds that a callback spends in each of its hooks."""

    def __init__(self, callback: TrainerCallback) -> None:
        self.seconds: Counter[str] = Counter()
        for name in (name for name in dir(TrainerCallback) if name.startswith("on_")):
            if getattr(type(callback), name) is not getattr(TrainerCallback, name):
                setattr(callback, name, self._timed(name, getattr(callback, name)))

    def _timed(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        # GPU work is asynchronous, so waiting for queued steps must not count as time of the hook. The hooks of each
        # step only check whether something is due, and must not block the queue.
        synchronize = torch.cuda.is_available() and not name.startswith(("on_step", "on_substep"))

        def run(*args: Any, **kwargs: Any) -> Any:
            if synchronize:
                torch.cuda.synchronize()
            began = time.perf_counter()
            result = hook(*args, **kwargs)
            if synchronize:
                torch.cuda.synchronize()
            self.seconds[name] += time.perf_counter() - began
            return result

        return run

    def by_phase(self) -> dict[str, float]:
        phases = dict.fromkeys(("before", "start", "during", "end"), 0.0)
        for name, seconds in self.seconds.items():
            phases[PHASES.get(name, "during")] += seconds
        return phases


class RandomTokens(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Sequences of random tokens with random labels."""

    def __init__(self, sequences: int, length: int, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(10, vocabulary - 1, (sequences, length), generator=generator)
        self.labels = torch.randint(2, (sequences,), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


def sst2(name: str, sentences: int, epochs: float, logging_steps: int) -> MakeTrainer:
    """Create Trainers with the settings of sst2.py."""
    tokenizer = AutoTokenizer.from_pretrained(name)

    def tokenize(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return dict(tokenizer(rows["sentence"], truncation=True, max_length=64))

    data = Dataset.from_csv(str(DATA / "sst2" / "train.tsv"), sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False)
    data = data.rename_column("label", "labels").shuffle(seed=0).select(range(sentences))
    data = data.map(tokenize, batched=True, remove_columns=["sentence"])

    def make(folder: str, seed: int, callbacks: list[TrainerCallback], max_steps: int = -1) -> Trainer:
        set_seed(seed)
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            max_steps=max_steps,
            learning_rate=5e-5,
            per_device_train_batch_size=16,
            logging_steps=logging_steps,
            save_strategy="no",
            report_to=[],
            seed=seed,
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        return Trainer(
            AutoModelForSequenceClassification.from_pretrained(name, num_labels=2),
            arguments,
            train_dataset=data,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=callbacks,
        )

    return make


def roberta_base(steps: int, logging_steps: int) -> MakeTrainer:
    """Create Trainers for RoBERTa-base with random weights, which do not affect the time."""
    tokenizer = AutoTokenizer.from_pretrained(str(DATA / "tokenizers" / "roberta-base"))
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 514, "type_vocab_size": 1}
    return random_tokens(RobertaConfig(**sizes), tokenizer, steps, logging_steps)


def random_tokens(
    config: RobertaConfig, tokenizer: Any, steps: int, logging_steps: int, use_cpu: bool = False
) -> MakeTrainer:
    """Create Trainers for a RoBERTa with random weights, on batches of 32 sequences of random tokens in bfloat16."""
    data = RandomTokens(32 * steps, 128, len(tokenizer))

    def make(folder: str, seed: int, callbacks: list[TrainerCallback], max_steps: int = -1) -> Trainer:
        set_seed(0)  # the same model for all seeds, so that its definition embeddings are cached
        # A copy, because a rebuild is recorded in it.
        model = RobertaForSequenceClassification(copy.deepcopy(config))
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            max_steps=max_steps,
            per_device_train_batch_size=32,
            bf16=True,
            use_cpu=use_cpu,
            dataloader_pin_memory=not use_cpu,
            logging_steps=logging_steps,
            save_strategy="no",
            report_to=[],
            seed=seed,
            disable_tqdm=True,
        )
        return Trainer(model, arguments, train_dataset=data, processing_class=tokenizer, callbacks=callbacks)

    return make


def run(
    make: MakeTrainer, create: Callable[[], EmbeddingMonitorCallback] | None, seed: int, **settings: Any
) -> dict[str, Any]:
    """Run one training; return its seconds, those of the hooks, and the number of log rows with metrics."""
    callback = create() if create else None
    timer = HookTimer(callback) if callback else None
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(folder, seed, [callback] if callback else [], **settings)
        trainer.remove_callback(PrinterCallback)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    if isinstance(callback, DefinitionEMBCallback) and callback.report is None:
        raise RuntimeError("Nothing was rebuilt, so the cost of a rebuild cannot be measured.")
    rows = [row for row in trainer.state.log_history if any(key.startswith("defemb/") for key in row)]
    return {
        "seconds": seconds,
        "steps": trainer.state.global_step,
        "rows_with_metrics": len(rows),
        "hooks": timer.by_phase() if timer else {},
    }


def compare(make: MakeTrainer, repeats: int, setups: Setups) -> dict[str, Any]:
    """Run the setups `repeats` times, alternating, each time starting with another one."""
    first = {setup: run(make, create, 0, max_steps=WARM_UP_STEPS)["hooks"] for setup, create in setups.items()}
    runs: dict[str, list[dict[str, Any]]] = {setup: [] for setup in setups}
    names = list(setups)
    for repeat in range(repeats):
        shift = repeat % len(names)
        for setup in names[shift:] + names[:shift]:
            runs[setup].append(run(make, setups[setup], repeat))
            print(f"repeat {repeat}, {setup}: {runs[setup][-1]['seconds']:.2f} s", flush=True)
    result: dict[str, Any] = {"steps": runs["none"][0]["steps"], "repeats": repeats}
    for setup, found in runs.items():
        result[setup] = {"seconds": [one["seconds"] for one in found]}
        if setup != "none":
            result[setup] |= costs(found, runs["none"]) | {"hook_seconds_of_the_first_short_run": first[setup]}
    return result


def costs(runs: list[dict[str, Any]], without: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute the cost of one setup relative to the paired runs without a callback."""
    ratios = [one["seconds"] / base["seconds"] for one, base in zip(runs, without, strict=True)]
    phases = ("start", "during", "end")
    return {
        "time_ratio": ratios,
        "mean_time_ratio": mean(ratios),
        "standard_error_of_time_ratio": stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else None,
        "hook_seconds": {phase: mean(one["hooks"][phase] for one in runs) for phase in ("before", *phases)},
        "hook_share": {phase: mean(one["hooks"][phase] / one["seconds"] for one in runs) for phase in phases}
        | {"total": mean(sum(one["hooks"][phase] for phase in phases) / one["seconds"] for one in runs)},
        "rows_with_metrics": [one["rows_with_metrics"] for one in runs],
    }


def as_text(name: str, result: dict[str, Any]) -> str:
    lines = [f"\n{name}: {result['steps']} steps, {mean(result['none']['seconds']):.1f} s without a callback"]
    for setup in [setup for setup in SETUPS if setup in result and setup != "none"]:
        found, share = result[setup], result[setup]["hook_share"]
        parts = ", ".join(f"{phase} {share[phase]:.2%}" for phase in ("start", "during", "end"))
        lines.append(
            f"  {setup}: hooks {share['total']:.2%} of the time ({parts}), {found['rows_with_metrics'][0]} rows of "
            f"metrics; time x {found['mean_time_ratio']:.3f}; {found['hook_seconds']['before']:.2f} s before training"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--sentences", type=int, default=16384)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--setups", nargs="+", choices=list(SETUPS), default=list(SETUPS), help="must include none")
    parser.add_argument("--gpu-steps", type=int, default=2000, help="steps of RoBERTa-base, if there is a GPU")
    parser.add_argument("--logging-steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="try every part; saves results only with --output")
    parser.add_argument("--output", type=Path, help=f"default {RESULTS / 'monitoring.json'}")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if not DATA.is_dir():
        sys.exit("There is no data folder. Set DEFEMB_TEST_DATA.")
    if arguments.quick:
        arguments.sentences, arguments.epochs, arguments.gpu_steps, arguments.repeats = 128, 1, 50, 1
    else:
        arguments.output = arguments.output or RESULTS / "monitoring.json"
    logging_steps = arguments.logging_steps
    tasks = {"sst2": sst2(arguments.model or find_model(), arguments.sentences, arguments.epochs, logging_steps)}
    if torch.cuda.is_available():
        tasks["roberta_base"] = roberta_base(arguments.gpu_steps, logging_steps)
    setups = {name: SETUPS[name] for name in arguments.setups}
    results = {name: compare(make, arguments.repeats, setups) for name, make in tasks.items()}
    results["sst2"] |= {"sentences": arguments.sentences, "epochs": arguments.epochs}
    for name, result in results.items():
        print(as_text(name, result))
    if arguments.output:
        saved = {**results, "logging_steps": logging_steps, "environment": environment()}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
