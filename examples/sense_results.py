"""Results of sense distillation: stored per seed, shown as a table and a figure."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from defemb_callbacks.cache import file_fingerprint

SENSES, BOTH = "sense distillation", "sense distillation, task loss"
MODELS = ("teacher", "teacher with senses", "plain student", "logit distillation", SENSES, BOTH)


def identity(source: str) -> str:
    """Identify a file or model folder by name and content, independent of its location; return a Hub id unchanged."""
    path = Path(source)
    if path.is_file():
        return f"{path.name}, {file_fingerprint([path])}"
    if not path.is_dir():
        return source
    files = (file for file in path.iterdir() if file.suffix in (".json", ".txt", ".safetensors", ".bin"))
    return f"{path.name}, {file_fingerprint(files)}"


def finished(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the results of finished seeds if their settings are the same."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return known["runs"] if known.get("settings") == settings else []


def markdown(runs: list[dict[str, Any]]) -> str:
    """Write a row per model: means over the seeds, with standard deviations of the accuracies."""
    lines = [
        ["", "accuracy", "parameters (without embeddings)", "MB on disk", "speed relative to the teacher"],
        ["---"] * 5,
    ]
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
    """Plot accuracy over speed, a point per seed and model."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, marker in zip(MODELS, "os^Dv*", strict=True):
        speed = [run["seconds"]["teacher"] / run["seconds"][name] for run in runs]
        axes.plot(speed, [run["accuracy"][name] for run in runs], marker, label=name)
    axes.set(xlabel="speed relative to the teacher", ylabel="validation accuracy")
    axes.set_title("Accuracy and speed of students (one point per seed)", loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
