"""The page and the pictures of a run, or of a comparison of models."""

from __future__ import annotations

import logging
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from defemb_callbacks.metrics.catalog import OUTPUT, metrics_in
from defemb_callbacks.reporting.figures import plot_metrics, plot_projection, plot_singular_values
from defemb_callbacks.reporting.page_context import page_context
from defemb_callbacks.reporting.run_record import RunRecord
from defemb_callbacks.reporting.style import PALETTE

logger = logging.getLogger(__name__)

PAPER = "https://arxiv.org/abs/2408.01308"
TEMPLATES = Environment(
    loader=PackageLoader("defemb_callbacks.reporting"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def render_page(record: RunRecord) -> str:
    """Render a record as one HTML page, which needs no other files, no network and no scripts.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from defemb_callbacks.metrics.snapshot import TableSnapshot
        >>> from defemb_callbacks.vocabulary.tokens import Vocabulary
        >>> words, ids = ("the", "cat", "ibex"), torch.arange(3)
        >>> groups = {"all": ids, "frequent": ids[:1], "medium": ids[1:2], "rare": ids[2:]}
        >>> snapshots = {"now": TableSnapshot.take(torch.eye(3), groups)}
        >>> page = render_page(RunRecord("Three words", snapshots, Vocabulary(words, words, (None,) * 3, True)))
        >>> "<h1>Three words</h1>" in page
        True
    """
    template = TEMPLATES.get_template("page.html.jinja")
    return template.render(page_context(record), paper=PAPER, stylesheet=stylesheet())


def stylesheet() -> str:
    """Return the CSS of the page, with the palettes for light and dark screens."""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in PALETTE.items()) for i in (0, 1))
    rules = files("defemb_callbacks.reporting").joinpath("templates/page.css").read_text(encoding="utf-8")
    # Only on screens, because paper is white.
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}"


def save_pictures(folder: Path, record: RunRecord) -> list[Path]:
    """Call `write_pictures`, but only log a warning if matplotlib is not installed, so that a training run goes on."""
    try:
        return write_pictures(folder, record)
    except ImportError as error:
        logger.warning("%s No pictures are saved. Pass plots=False to silence this warning.", error)
        return []


def write_pictures(folder: Path, record: RunRecord) -> list[Path]:
    """Write a record into a folder, as a page and as pictures.

    `index.html` shows everything and needs no other file. `projection.png` and `singular_values.png` are always
    written; `metrics.png` if the history has metrics, and `output_metrics.png` if it has those of an output table that
    is not tied to the input embeddings.

    Args:
        folder: Folder to write into; created if it does not exist.
        record: The record to show.

    Returns:
        The paths of the files.

    Raises:
        ImportError: If matplotlib is not installed. Nothing is written then.
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
