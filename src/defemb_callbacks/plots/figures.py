"""Pictures of an embedding table and of its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from defemb_callbacks.plots.snapshot import POINTS, TableSnapshot
from defemb_callbacks.plots.style import COLOURS, MARKERS, SNAPSHOT_COLOURS, figure_class, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "isotropy": "isotropy I(E)  (1 = the same in all directions)",
    "relation_auc": "relation AUC  (0.5 = no meaning, 1 = perfect)",
    "average_cosine": "average cosine  (0 = no common direction)",
    "effective_rank": "effective rank  (directions in use)",
    "drift": "drift  (1 - cosine to the row at train start, 0 = unmoved)",
    "neighbour_overlap": "neighbours kept  (of the 10 nearest at train start)",
}


def plot_metrics(history: Sequence[Mapping[str, Any]], before: Mapping[str, float] | None = None) -> Figure:
    """Metrics over training steps, a line for each frequency group.

    Args:
        history: rows of `state.log_history` with `step` and `defemb/<metric>/<group>` keys.
        before: the metrics before the rebuild, shown as crosses at step 0.

    Raises:
        ImportError: matplotlib is missing; names the pip line.
        ValueError: no row has metrics.
    """
    shown = [metric for metric in PANELS if any(key.startswith(f"defemb/{metric}/") for row in history for key in row)]
    if not shown:
        raise ValueError("The history has no row with defemb/… metrics; there is nothing to plot.")
    rows = -(-len(shown) // 2)
    figure = figure_class()(figsize=(11, 3 * rows + 0.6), layout="constrained")
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
        tidy(axis, PANELS[metric])
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
    figure = figure_class()(figsize=(7, 4.2), layout="constrained")
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
    tidy(axis, "Singular values of the embedding table  (a slow fall: many directions in use)")
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
    figure = figure_class()(figsize=(4.6 * len(snapshots), 4.9), layout="constrained")
    axes = figure.subplots(1, len(snapshots), squeeze=False, sharex=True, sharey=True)[0]
    basis = next(iter(snapshots.values())).basis
    for axis, (name, snapshot) in zip(axes, snapshots.items(), strict=True):
        for group, points in snapshot.points.items():
            x, y = (points.double() @ basis).T.tolist()
            axis.scatter(x, y, s=7, alpha=0.55, linewidths=0, color=COLOURS[group], label=group)
        axis.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        axis.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        tidy(axis, name)
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
