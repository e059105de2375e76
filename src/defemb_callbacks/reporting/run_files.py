"""The files that show one run, or one comparison of models."""

from __future__ import annotations

import logging
from pathlib import Path

from defemb_callbacks.metrics.catalog import OUTPUT, metrics_in
from defemb_callbacks.reporting.figures import plot_metrics, plot_projection, plot_singular_values
from defemb_callbacks.reporting.page import render_page
from defemb_callbacks.reporting.run_record import RunRecord

logger = logging.getLogger(__name__)


def save_pictures(folder: Path, record: RunRecord) -> list[Path]:
    """`write_pictures` for the end of a training run, which must not fail for a picture.

    Where matplotlib is missing, a warning names the pip line and nothing is written.
    """
    try:
        return write_pictures(folder, record)
    except ImportError as error:
        logger.warning("%s No pictures are saved; plots=False silences this.", error)
        return []


def write_pictures(folder: Path, record: RunRecord) -> list[Path]:
    """Write a record into a folder as pictures and as a page for the browser.

    `index.html` shows all and needs no other file. `projection.png` and `singular_values.png` are always there,
    `metrics.png`, and `output_metrics.png` of an output table that is not tied to the input, where the history has
    them.

    Args:
        folder: made if need be.
        record: what is shown.

    Returns:
        The paths written.

    Raises:
        ImportError: matplotlib is missing; names the pip line. Nothing is written then.
    """
    before = None if record.report is None else record.report.before
    page = render_page(record)
    figures = {
        "projection": plot_projection(record.snapshots, record.rebuilt_by_snapshot),
        "singular_values": plot_singular_values({name: taken.spectrum for name, taken in record.snapshots.items()}),
    }
    if metrics_in(record.history):
        figures["metrics"] = plot_metrics(record.history, before)
    if metrics_in(record.history, OUTPUT):
        figures["output_metrics"] = plot_metrics(record.history, before, output=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(page, encoding="utf-8")
    written = [folder / "index.html"]
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130)
        written.append(folder / f"{name}.png")
    return written
