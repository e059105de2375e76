"""Pictures of an embedding table and of its metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from defemb_callbacks.frequency import GROUPS
from defemb_callbacks.rows import read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Okabe and Ito's palette, told apart by colour-blind readers too.
COLOURS = {"all": "#555555", "frequent": "#0072B2", "medium": "#E69F00", "rare": "#D55E00"}
MARKERS = {"all": "o", "frequent": "s", "medium": "^", "rare": "D"}
SNAPSHOT_COLOURS = ("#555555", "#0072B2", "#D55E00")
PANELS = {
    "isotropy": "isotropy I(E)  (1 = the same in all directions)",
    "relation_auc": "relation AUC  (0.5 = no meaning, 1 = perfect)",
    "average_cosine": "average cosine  (0 = no common direction)",
    "effective_rank": "effective rank  (directions in use)",
    "drift": "drift  (1 - cosine to the row at train start, 0 = unmoved)",
    "neighbour_overlap": "neighbours kept  (of the 10 nearest at train start)",
}
POINTS = 700  # of each group in a projection: more would hide each other


@dataclass(frozen=True)
class TableSnapshot:
    """What the pictures need of a table at one time; far smaller than the table.

    Attributes:
        spectrum: (d,) float64 singular values, the largest first.
        basis: (d, 2) float64, the first two right singular vectors.
        points: rows of a sample of each group, (at most 700, d) float32, the same tokens at any time.
    """

    spectrum: Tensor
    basis: Tensor
    points: dict[str, Tensor]

    @classmethod
    def take(cls, model: nn.Module, groups: Mapping[str, Tensor]) -> TableSnapshot:
        """Look at a model's input embeddings; `groups` as from `frequency_groups`."""
        table = read_table(model)
        rows = table[groups["all"].to(table.device)].double()
        squares, vectors = torch.linalg.eigh(rows.T @ rows)  # gives the singular values as well
        points = {}
        for name in GROUPS:
            ids = groups[name]
            evenly = ids[torch.linspace(0, len(ids) - 1, min(POINTS, len(ids))).round().long()]
            points[name] = table[evenly.to(table.device)].cpu()
        return cls(squares.clamp(min=0).sqrt().flip(0).cpu(), vectors[:, -2:].flip(1).cpu(), points)


def plot_metrics(history: Sequence[Mapping[str, Any]], before: Mapping[str, float] | None = None) -> Figure:
    """Metrics over training steps, a line for each frequency group.

    Args:
        history: rows of `state.log_history` with `step` and `defemb/<metric>/<group>` keys.
        before: the metrics before the rebuild, shown as crosses at step 0.

    Raises:
        ImportError: matplotlib is missing; names the pip line.
        ValueError: no row has metrics.
    """
    figure_class = _figure_class()
    shown = [metric for metric in PANELS if any(key.startswith(f"defemb/{metric}/") for row in history for key in row)]
    if not shown:
        raise ValueError("The history has no row with defemb/… metrics; there is nothing to plot.")
    rows = -(-len(shown) // 2)
    figure = figure_class(figsize=(11, 3 * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, 2, squeeze=False, sharex=True).flat)
    for axis, metric in zip(axes, shown, strict=False):
        for group in COLOURS:
            key = f"defemb/{metric}/{group}"
            points = [(row["step"], row[key]) for row in history if key in row]
            if points:
                style = {"color": COLOURS[group], "marker": MARKERS[group], "markersize": 4, "label": group}
                if group == "all":  # lies over its parts without hiding them
                    style |= {"linestyle": "--", "markerfacecolor": "none", "markersize": 7, "zorder": 3}
                axis.plot(*zip(*points, strict=True), **style)
            if before and key in before:
                axis.plot(0, before[key], "x", color=COLOURS[group], markersize=8, markeredgewidth=2)
        _tidy(axis, PANELS[metric])
    for axis in axes[len(shown) :]:
        axis.remove()
    for axis in axes[max(0, len(shown) - 2) : len(shown)]:
        axis.set_xlabel("training step")
        axis.tick_params(labelbottom=True)
    handles, labels = axes[0].get_legend_handles_labels()
    title = "tokens by frequency" + ("  (× before the rebuild)" if before else "")
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, title=title)
    return figure


def plot_singular_values(spectra: Mapping[str, Tensor]) -> Figure:
    """Singular values of several tables, each relative to its largest: a slow fall uses many directions alike.

    Args:
        spectra: (d,) singular values by name.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = _figure_class()(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    styles = ("-", "--", ":")
    for number, (name, values) in enumerate(spectra.items()):
        relative = (values / values.max()).tolist()
        axis.plot(
            range(1, len(relative) + 1),
            relative,
            styles[number % 3],
            color=SNAPSHOT_COLOURS[number % 3],
            label=name,
            linewidth=2,
        )
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("singular value, by size")
    axis.set_ylabel("relative to the largest")
    _tidy(axis, "Singular values of the embedding table  (a slow fall: many directions in use)")
    axis.legend(frameon=False)
    return figure


def plot_projection(snapshots: Mapping[str, TableSnapshot]) -> Figure:
    """Tokens in the plane of the first snapshot's two main directions, coloured by frequency group.

    All panels have the same axes, so that a shift of a group is seen as a shift.

    Args:
        snapshots: by name, in order of time.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = _figure_class()(figsize=(4.6 * len(snapshots), 4.9), layout="constrained")
    axes = figure.subplots(1, len(snapshots), squeeze=False, sharex=True, sharey=True)[0]
    basis = next(iter(snapshots.values())).basis
    for axis, (name, snapshot) in zip(axes, snapshots.items(), strict=True):
        for group, points in snapshot.points.items():
            x, y = (points.double() @ basis).T.tolist()
            axis.scatter(x, y, s=7, alpha=0.55, linewidths=0, color=COLOURS[group], label=group)
        axis.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        axis.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        _tidy(axis, name)
        axis.set_xlabel("first singular direction")
    axes[0].set_ylabel("second singular direction")
    handles, labels = axes[0].get_legend_handles_labels()
    title = f"tokens by frequency, at most {POINTS} of each group"
    legend = figure.legend(
        handles, labels, loc="outside upper center", ncols=3, frameon=False, markerscale=3, title=title
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    return figure


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


def _figure_class() -> type[Figure]:
    # Figure rather than pyplot: no global state, no window, no choice of backend for the user's own plots.
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "defemb-callbacks[plots]".') from error
    return Figure


def _tidy(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
