"""Command-line options of a quick run of `run_glue.py`."""

from __future__ import annotations

from pathlib import Path


def options(place: Path, output: Path, *more: str) -> list[str]:
    """Train and evaluate for one epoch on the task in `place` (the fixture), and write into `output`."""
    return [
        *("--model_name_or_path", str(place / "model"), "--definitions", str(place / "glossary.json")),
        *("--train_file", str(place / "train.tsv"), "--validation_file", str(place / "dev.tsv")),
        *("--output_dir", str(output), "--do_train", "--do_eval", "--num_train_epochs", "1", "--report_to", "none"),
        *("--cache_dir", str(place / "cache"), "--plots", "false", "--monitor_steps", "0", "--disable_tqdm", "true"),
        *("--save_strategy", "no", "--dataloader_pin_memory", "false", *more),
    ]
