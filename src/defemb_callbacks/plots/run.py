"""The files that show one run, or one comparison of models."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from defemb_callbacks.plots.figures import plot_metrics, plot_projection, plot_singular_values
from defemb_callbacks.plots.record import RunRecord
from defemb_callbacks.plots.snapshot import TableSnapshot

logger = logging.getLogger(__name__)


def save_pictures(folder: Path, record: RunRecord) -> list[Path]:
    """Write the pictures of a record into a folder; returns the paths written.

    Where matplotlib is missing, a warning names the pip line and nothing is written: a finished training run must not
    fail for a picture.
    """
    before = None if record.report is None else record.report.before
    return save_run_plots(folder, record.history, record.snapshots, before)


def save_run_plots(
    folder: Path,
    history: Sequence[Mapping[str, Any]],
    snapshots: Mapping[str, TableSnapshot],
    before: Mapping[str, float] | None = None,
) -> list[Path]:
    """Write `metrics.png`, `singular_values.png` and `projection.png` into a folder; returns the paths written.

    Where matplotlib is missing, a warning names the pip line and nothing is written: a finished training run must not
    fail for a picture.
    """
    try:
        figures = {
            "singular_values": plot_singular_values({name: taken.spectrum for name, taken in snapshots.items()}),
            "projection": plot_projection(snapshots),
        }
    except ImportError as error:
        logger.warning("%s No pictures are saved; plots=False silences this.", error)
        return []
    if history:
        figures["metrics"] = plot_metrics(history, before)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130)
        written.append(folder / f"{name}.png")
    return written
