"""Figures of an embedding table and of its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from defemb_callbacks.metrics.catalog import OUTPUT, metric_of, metrics_in
from defemb_callbacks.metrics.snapshot import TableSnapshot
from defemb_callbacks.reporting.style import COLOURS, LIGHT, MARKERS, SNAPSHOT_STYLES, figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

NEGLIGIBLE = 1e-6  # share of the largest singular value below which values are not drawn
SAME_SPACE = 0.5  # mean cosine of the rows of the same tokens from which two tables count as being in the same space


def plot_metrics(
    history: Sequence[Mapping[str, Any]], before: Mapping[str, float] | None = None, *, output: bool = False
) -> Figure:
    """Plot metrics over training steps, with a line for each frequency group.

    Args:
        history: Rows of `state.log_history` with `step` and `defemb/<metric>/<group>` keys.
        before: Metrics before the rebuild, shown as crosses at step 0.
        output: Plot the metrics of the output table, `defemb/output_<metric>/<group>`, instead of the input table.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If no row has metrics of this table.
    """
    shown = metrics_in(history, OUTPUT if output else "")
    if not shown:
        raise ValueError(
            "The history has no row with `defemb/…` metrics of this table. Pass the `log_history` of a monitored run."
        )
    crossed = bool(before) and bool(set(metrics_in([before or {}])) & set(shown))
    rows = -(-len(shown) // 2)
    with figures() as figure_class:
        figure = figure_class(figsize=(11, 3 * rows + 0.6), layout="constrained")
        axes = list(figure.subplots(rows, 2, squeeze=False, sharex=True).flat)
        for axis, metric in zip(axes, shown, strict=False):
            _draw_metric(axis, metric, history, before)
            title, scale = metric_of(metric).title, metric_of(metric).scale
            axis.set_title(f"{title}  ({scale})" if scale else title)
        for axis in axes[len(shown) :]:
            axis.remove()
        for axis in axes[max(0, len(shown) - 2) : len(shown)]:
            axis.set_xlabel("training step")
            axis.tick_params(labelbottom=True)
        table = "tokens of the output table by frequency" if output else "tokens by frequency"
        figure.legend(handles=_metric_handles(crossed), loc="outside upper center", ncols=5, title=table)
    return figure


def plot_metric(metric: str, history: Sequence[Mapping[str, Any]], before: Mapping[str, float] | None = None) -> Figure:
    """Plot one metric over training steps as `plot_metrics` does, without title and legend, which the page has."""
    with figures() as figure_class:
        figure = figure_class(figsize=(3.7, 2.4), layout="constrained")
        axis = figure.subplots()
        _draw_metric(axis, metric, history, before)
        axis.set_xlabel("training step")
        axis.set_ylabel(metric_of(metric).title)
    return figure


def _draw_metric(
    axis: Axes, metric: str, history: Sequence[Mapping[str, Any]], before: Mapping[str, float] | None = None
) -> None:
    """Draw the lines of one metric."""
    for group in COLOURS:
        key = f"defemb/{metric}/{group}"
        points = [(row["step"], row[key]) for row in history if key in row]
        if points:
            axis.plot(*zip(*points, strict=True), **_line_style(group))
        if before and key in before:
            axis.plot(0, before[key], **_cross_style(COLOURS[group]))
    # No offset, which would magnify rounding errors; powers of ten for values with too many digits for the margin.
    axis.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 4))
    axis.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]


def _metric_handles(crossed: bool) -> list[Line2D]:
    """Return the entries of the legend of metrics."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **_line_style(group)) for group in COLOURS]
    if crossed:
        handles.append(Line2D([], [], linestyle="", label="before the rebuild", **_cross_style(LIGHT["ink"])))
    return handles


def _line_style(group: str) -> dict[str, Any]:
    style: dict[str, Any] = {"color": COLOURS[group], "marker": MARKERS[group], "markersize": 4, "label": group}
    if group == "all":  # drawn over the groups without hiding them
        style |= {"linestyle": "--", "markerfacecolor": "none", "markersize": 7, "zorder": 3}
    return style


def _cross_style(colour: str) -> dict[str, Any]:
    return {"marker": "x", "color": colour, "markersize": 8, "markeredgewidth": 2, "zorder": 4}


def legend_of_metrics(crossed: bool) -> dict[str, Figure]:
    """Return the marks of `plot_metric` by label; with `crossed`, also the crosses before the rebuild."""
    with figures() as figure_class:
        return {str(handle.get_label()): _mark(figure_class, handle) for handle in _metric_handles(crossed)}


def legend_of_projection(marked: bool) -> dict[str, Figure]:
    """Return the marks of `plot_panel` by label; with `marked`, also those of rebuilt and kept tokens."""
    with figures() as figure_class:
        return {str(handle.get_label()): _mark(figure_class, handle) for handle in _projection_handles(marked)}


def legend_of_singular_values(names: Sequence[str]) -> dict[str, Figure]:
    """Return the lines of `plot_singular_values` by name of the table."""
    from matplotlib.lines import Line2D

    with figures() as figure_class:
        handles = (Line2D([], [], **_spectrum_style(number, name)) for number, name in enumerate(names))
        return {str(handle.get_label()): _mark(figure_class, handle) for handle in handles}


def _mark(figure_class: type[Figure], handle: Line2D) -> Figure:
    wide = handle.get_linestyle() != "None"
    figure = figure_class(figsize=(0.35 if wide else 0.16, 0.16))
    handle.set_data([0, 0.5, 1] if wide else [0.5], [0.5] * (3 if wide else 1))
    handle.set_markevery([1] if wide else [0])
    handle.set_transform(figure.transFigure)
    figure.add_artist(handle)
    return figure


def plot_singular_values(spectra: Mapping[str, Tensor], *, small: bool = False) -> Figure:
    """Plot the singular values of several tables, relative to the largest; a slow fall means many directions in use.

    Args:
        spectra: Singular values of each table, (d,), by name.
        small: Leave out title and legend, which the page provides.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    with figures() as figure_class:
        from matplotlib.ticker import LogLocator, NullLocator

        figure = figure_class(figsize=(4.4, 3) if small else (7, 4.2), layout="constrained")
        axis = figure.subplots()
        for number, (name, values) in enumerate(spectra.items()):
            # Zeros, exact or up to rounding, would compress the rest of the logarithmic axis.
            used = values[values > NEGLIGIBLE * values.max()]
            relative = (used / used.max()).tolist() if len(used) else []
            axis.plot(range(1, len(relative) + 1), relative, **_spectrum_style(number, name))
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("direction, from the strongest to the weakest")
        axis.set_ylabel("singular value, relative to the largest")
        if not small:
            axis.set_title("Singular values of the embedding table  (a slow fall: many directions in use)")
            axis.legend(
                handles=list(axis.lines)
            )  # explicit, because names with a leading underscore are left out otherwise
    return figure


def _spectrum_style(number: int, name: str) -> dict[str, Any]:
    return {"label": name, "linewidth": 2} | SNAPSHOT_STYLES[number % len(SNAPSHOT_STYLES)]


def plot_projection(snapshots: Mapping[str, TableSnapshot], rebuilt: Mapping[str, Tensor] | None = None) -> Figure:
    """Plot tokens in the plane of the two main directions, coloured by frequency group; rebuilt tokens are filled.

    All panels of one model's table use the same directions and axes, so that a shift of a group is visible as a shift.
    The table of another model has its own.

    Args:
        snapshots: Snapshots by name, in temporal order.
        rebuilt: Ids of the rebuilt tokens of each snapshot, (r,) int64, by name; `None` marks no tokens.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    columns = min(len(snapshots), 3)
    rows = -(-len(snapshots) // columns)
    with figures() as figure_class:
        figure = figure_class(figsize=(4.6 * columns, 4.3 * rows + 0.6), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, name in zip(axes, snapshots, strict=False):
            _draw_projection(axis, name, snapshots, rebuilt)
            axis.set_title(name)
            axis.set_xlabel("first main direction")
        for axis in axes[len(snapshots) :]:
            axis.remove()
        for axis in axes[: len(snapshots) : columns]:
            axis.set_ylabel("second main direction")
        shown = max(len(points) for taken in snapshots.values() for points in taken.points.values())
        figure.legend(
            handles=_projection_handles(bool(rebuilt)),
            loc="outside upper center",
            ncols=5,
            title=f"tokens by frequency, at most {shown} of each group",
        )
    return figure


def plot_panel(
    name: str, snapshots: Mapping[str, TableSnapshot], rebuilt: Mapping[str, Tensor] | None = None
) -> Figure:
    """Plot the panel `name` of `plot_projection` alone, without title and legend, which the page provides."""
    with figures() as figure_class:
        figure = figure_class(figsize=(3.7, 3.5), layout="constrained")
        axis = figure.subplots()
        _draw_projection(axis, name, snapshots, rebuilt)
        axis.set_xlabel("first main direction")
        axis.set_ylabel("second main direction")
    return figure


def planes(snapshots: Mapping[str, TableSnapshot]) -> dict[str, Tensor]:
    """Return the plane of each panel, (d, 2): that of the first snapshot for all tables in the same space."""
    first = next(iter(snapshots.values()))
    return {name: first.basis if _same_space(first, taken) else taken.basis for name, taken in snapshots.items()}


def _same_space(first: TableSnapshot, other: TableSnapshot) -> bool:
    if first is other:
        return True
    if first.point_ids.keys() != other.point_ids.keys() or first.basis.shape != other.basis.shape:
        return False
    if any(not torch.equal(ids, other.point_ids[name]) for name, ids in first.point_ids.items()):
        return False
    left, right = (torch.cat(list(taken.points.values())) for taken in (first, other))
    return float(torch.cosine_similarity(left, right).mean()) >= SAME_SPACE


def _draw_projection(
    axis: Axes, name: str, snapshots: Mapping[str, TableSnapshot], rebuilt: Mapping[str, Tensor] | None
) -> None:
    """Draw the points of one snapshot, in axes with room for all snapshots of the same space."""
    bases = planes(snapshots)
    for zero_line in (axis.axhline, axis.axvline):
        zero_line(0, color=LIGHT["faint"], linewidth=1.2, zorder=0)
    marked = (rebuilt or {}).get(name, torch.zeros(0, dtype=torch.int64)).cpu()
    for group, points in snapshots[name].points.items():
        filled = torch.isin(snapshots[name].point_ids[group], marked) if rebuilt else torch.ones(len(points)).bool()
        for fill in (False, True):
            x, y = (points[filled == fill].double() @ bases[name]).T.tolist()
            axis.plot(x, y, linestyle="", **_point_style(group, fill))
    same_space = [taken.points for other, taken in snapshots.items() if bases[other] is bases[name]]
    places = torch.cat([points.double() @ bases[name] for table in same_space for points in table.values()])
    low, high = places.amin(dim=0), places.amax(dim=0)
    margin = 0.05 * (high - low).clamp(min=1e-12)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    axis.set(xlim=(left, right), ylim=(bottom, top))
    axis.locator_params(nbins=5)


def _projection_handles(marked: bool) -> list[Line2D]:
    """Return the entries of the legend of a projection."""
    from matplotlib.lines import Line2D

    groups = [group for group in COLOURS if group != "all"]
    handles = [Line2D([], [], linestyle="", **_point_style(group, filled=True)) for group in groups]
    if marked:
        for filled, label in ((True, "rebuilt"), (False, "kept")):
            style = _point_style("all", filled) | {"label": label, "marker": "o"}
            handles.append(Line2D([], [], linestyle="", **style))
    for handle in handles:
        handle.set_markersize(7)
    return handles


def _point_style(group: str, filled: bool) -> dict[str, Any]:
    size = {"^": 4.3}.get(MARKERS[group], 3.5)  # triangles look smaller than squares
    style: dict[str, Any] = {"color": COLOURS[group], "marker": MARKERS[group], "label": group}
    if filled:  # with a thin edge that separates overlapping marks
        return style | {"markersize": size + 0.5, "markeredgewidth": 0.3, "markeredgecolor": LIGHT["paper"]}
    return style | {"markersize": size - 0.4, "markerfacecolor": "none", "markeredgewidth": 0.7}
