"""The values that the templates of the page show, computed from the record of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.metrics.catalog import CATALOG, OUTPUT, Metric, metric_of, metrics_in
from defemb_callbacks.reporting.figures import (
    legend_of_metrics,
    legend_of_projection,
    legend_of_singular_values,
    planes,
    plot_metric,
    plot_panel,
    plot_singular_values,
)
from defemb_callbacks.reporting.run_record import RunRecord
from defemb_callbacks.reporting.svg import inline_svg
from defemb_callbacks.vocabulary.frequency import GROUPS
from defemb_callbacks.vocabulary.tokens import LETTER, NUMBER, PADDING, PIECE, SPECIAL, SYMBOL, UNUSED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Why tokens of each kind are kept.
REASONS = {
    SPECIAL: "has no text of its own, such as an end-of-sentence token",
    UNUSED: "a reserved entry that no text uses",
    PADDING: "a row of the table without a token",
    PIECE: "a part of words, which dictionaries do not define",
    NUMBER: "contains digits",
    SYMBOL: "contains no letters",
    LETTER: "a single letter is not a word",
}

# Labels of what the report knows about the build.
BUILD_LABELS = {
    "model": "Model",
    "definitions": "Dictionary",
    "definitions_read": "Number of definitions read",
    "r_squared": "R² of rows predicted from definitions, held out",
    "ridge_strength": "Strength of the ridge penalty, by cross-validation",
}

Context = dict[str, Any]


def page_context(record: RunRecord) -> Context:
    """Compute the values of the templates `page.html.jinja` and `sections.html.jinja`.

    All values are plain text and numbers, which the templates escape, except for the pictures, which are `<svg>`
    elements.
    """
    sections = {
        "The models" if len(record.snapshots) > 1 else "The model": ("facts", _facts(record)),
        "Metrics": ("metrics", _metrics(record, "")),
        "Metrics of the output embeddings": ("metrics", _metrics(record, OUTPUT)),
        "What was rebuilt": ("rebuilt", _rebuilt(record)),
        "The embeddings in two dimensions": ("projection", _projection(record)),
        "Directions in use": ("spectrum", _spectrum(record)),
        "Nearest neighbours of rare words": ("neighbours", _neighbours(record)),
        "Settings": ("settings", _settings(record)),
    }
    first, second = record.all_settings.get("group_edges", (0.3, 0.8))
    return {
        "title": record.title,
        "names": list(record.snapshots),
        "are_models": bool(record.facts),  # otherwise the snapshots are times: "at train start"
        "rebuilt": _rebuild_in_short(record),
        "differing": f"{len(record.rebuilt):,}" if record.rebuilt is not None and len(record.rebuilt) else None,
        "shares": [f"{share:.0%}" for share in (first, second - first, 1 - second)],
        "summary": _summary(record),
        "sections": [
            {"id": heading.lower().replace(" ", "-"), "heading": heading, "kind": kind, **values}
            for heading, (kind, values) in sections.items()
            if values is not None
        ],
    }


def _rebuild_in_short(record: RunRecord) -> Context | None:
    if record.report is None:
        return None
    total, settings, info = record.report.groups["all"], record.all_settings, record.report.info
    return {
        "rebuilt": f"{total.rebuilt:,}",
        "tokens": f"{total.tokens:,}",
        "dictionary": record.report.info.get("definitions"),
        "strategy": settings.get("strategy"),
        "blend": f"{round(info['blend_weight'], 2):g}" if info.get("blend_weight") is not None else None,
    }


def _summary(record: RunRecord) -> list[Context]:
    """The change of a few metrics from the first of several times to the last, or between two models."""
    snapshots = list(record.snapshots.values())
    if record.report is None and len(snapshots) != 2:
        return []
    first, last = snapshots[0].metrics, snapshots[-1].metrics
    rows = []
    for group in ("rare", "all"):
        changes = []
        for metric in CATALOG.values():
            key = f"defemb/{metric.name}/{group}"
            if metric.in_summary and key in first and key in last:
                before, after = first[key], last[key]
                shown = {"title": metric.title, "id": f"metric-{metric.name}", "change": _change(metric, before, after)}
                changes.append({**shown, "before": metric.format_value(before), "after": metric.format_value(after)})
        if changes:
            rows.append({"group": group.capitalize(), "metrics": changes})
    return rows


def _change(metric: Metric, before: float, after: float) -> Context:
    word = metric.compare(before, after)
    return {"word": word, "arrow": "=" if word == "same" else "▲" if after > before else "▼"}


def _facts(record: RunRecord) -> Context | None:
    labels = dict.fromkeys(label for facts in record.facts.values() for label in facts)
    if not labels:
        return None
    rows = [(label, [record.facts.get(name, {}).get(label, "") for name in record.snapshots]) for label in labels]
    return {"names": list(record.snapshots), "rows": rows}


def _metrics(record: RunRecord, prefix: str) -> Context | None:
    shown = metrics_in([*(snapshot.metrics for snapshot in record.snapshots.values()), *record.history], prefix)
    if not shown:
        return None
    plotted = metrics_in(record.history, prefix)
    before = {} if record.report is None else record.report.before
    has_crosses = bool(set(metrics_in([before], prefix)) & set(plotted))
    marks = legend_of_metrics(has_crosses) if plotted else {}
    return {
        "baseline": next(iter(record.snapshots)) if len(record.snapshots) > 1 else None,
        "legend": _legend(marks, f"{prefix.removesuffix('_') or 'input'}-mark"),
        "cards": [_card(record, name, before if name in plotted else None) for name in shown],
    }


def _card(record: RunRecord, name: str, before: Mapping[str, float] | None) -> Context:
    """What is shown of one metric; `before`: the values before the rebuild, or `None` to draw no chart."""
    metric = metric_of(name)
    keys = {group: f"defemb/{name}/{group}" for group in ("all", *GROUPS)}
    measured = {
        snapshot_name: snapshot.metrics
        for snapshot_name, snapshot in record.snapshots.items()
        if set(keys.values()) & set(snapshot.metrics)
    }
    rows = []
    for group, key in keys.items():
        values = [metrics.get(key) for metrics in measured.values()]
        if any(value is not None for value in values):
            rows.append(
                (group, [_cell(metric, value, values[0] if column else None) for column, value in enumerate(values)])
            )
    chart = None
    if before is not None:
        figure = plot_metric(name, record.history, before)
        chart = inline_svg(figure, f"steps-{name}".replace("_", "-"), _describe_chart(name, record.history))
    return {
        "id": f"metric-{name}",
        "title": metric.title,
        "meaning": metric.meaning,
        "direction": metric.direction,
        "names": list(measured),
        "rows": rows,
        "chart": chart,
    }


def _cell(metric: Metric, value: float | None, first: float | None) -> Context:
    if value is None:
        return {"value": "–", "change": None}
    return {
        "value": metric.format_value(value),
        "change": None if first is None else _change(metric, first, value),
    }


def _describe_chart(name: str, history: Sequence[Mapping[str, Any]]) -> str:
    metric, parts, steps = metric_of(name), [], []
    for group in ("all", *GROUPS):
        rows = [row for row in history if f"defemb/{name}/{group}" in row]
        if rows:
            first, last = (metric.format_value(row[f"defemb/{name}/{group}"]) for row in (rows[0], rows[-1]))
            parts.append(f"{group} from {first} to {last}")
            steps += [rows[0]["step"], rows[-1]["step"]]
    return f"{metric.title} over the training steps {min(steps)} to {max(steps)}: {', '.join(parts)}."


def _rebuilt(record: RunRecord) -> Context | None:
    if record.report is None:
        return None
    by_number = sorted(record.report.skipped.items(), key=lambda item: -len(item[1]))
    return {
        "groups": [
            (name, [f"{group.tokens:,}", f"{group.defined:,}", f"{group.rebuilt:,}", f"{group.weight:.2f}"])
            for name, group in record.report.groups.items()
        ],
        "kept": f"{sum(len(tokens) for _, tokens in by_number):,}",
        "skipped": [
            {
                "reason": reason,
                "explanation": REASONS.get(reason, ""),
                "number": f"{len(tokens):,}",
                "examples": _examples(tokens),
            }
            for reason, tokens in by_number
        ],
    }


def _examples(tokens: Sequence[str], number: int = 6) -> list[str]:
    # From the middle of the vocabulary, because the first tokens are seldom typical.
    start = max(0, len(tokens) // 2 - number // 2)
    return [repr(token)[1:-1] for token in tokens[start : start + number] if token]


def _projection(record: RunRecord) -> Context:
    bases = list(planes(record.snapshots).values())
    marked = bool(record.rebuilt_by_snapshot)
    panels = []
    for number, name in enumerate(record.snapshots):
        figure = plot_panel(name, record.snapshots, record.rebuilt_by_snapshot)
        alt = f"Tokens as points in two dimensions, coloured by frequency group: {name}."
        panels.append({"name": name, "svg": inline_svg(figure, f"projection-{number}", alt)})
    return {
        "legend": _legend(legend_of_projection(marked), "projection-mark"),
        "panels": panels,
        "most": max(len(points) for snapshot in record.snapshots.values() for points in snapshot.points.values()),
        "marks_rebuilt": marked,
        "has_several_spaces": any(basis is not bases[0] for basis in bases),
    }


def _spectrum(record: RunRecord) -> Context:
    spectra = {name: snapshot.spectrum for name, snapshot in record.snapshots.items()}
    middles = []
    for name, values in spectra.items():
        middle = float(values[len(values) // 2] / values[0].clamp(min=1e-30))
        middles.append(f"{name}: {middle:.2f} for the middle direction")
    alt = f"Falling curves of the singular values relative to the largest; {', '.join(middles)}."
    return {
        "legend": _legend(legend_of_singular_values(list(spectra)), "singular-values-mark"),
        "svg": inline_svg(plot_singular_values(spectra, small=True), "singular-values", alt),
    }


def _neighbours(record: RunRecord) -> Context | None:
    """Nearest words of each watched word in each snapshot; by word, since ids differ between vocabularies."""
    found: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for name, snapshot in record.snapshots.items():
        vocabulary = record.vocabularies.get(name, record.vocabulary)
        for index, others in snapshot.neighbours.items():
            near = [(vocabulary.words[other] or vocabulary.tokens[other], cosine) for other, cosine in others]
            found.setdefault(vocabulary.words[index] or vocabulary.tokens[index], {})[name] = near
    if not found:
        return None
    words, tokens = record.vocabulary.words, record.vocabulary.tokens
    glosses = {words[index] or tokens[index]: gloss for index, gloss in record.glosses.items()}
    names = [name for name in record.snapshots if any(name in by_name for by_name in found.values())]
    rows = []
    for word, by_name in found.items():
        first = {text for text, _ in by_name.get(names[0], ())}
        cells = [
            [
                {"text": text, "cosine": f"{cosine:.2f}", "is_new": bool(first) and text not in first}
                for text, cosine in by_name.get(name, ())
            ]
            for name in names
        ]
        rows.append({"word": word, "gloss": glosses.get(word, ""), "cells": cells})
    return {"names": names, "rows": rows}


def _settings(record: RunRecord) -> Context | None:
    helps = {field.name: field.metadata.get("help", "") for field in fields(DefinitionEMBConfig)}
    info = {} if record.report is None else record.report.info
    build = [(label, _written(info[name])) for name, label in BUILD_LABELS.items() if name in info]
    settings = [(name, _written(value), helps.get(name, "")) for name, value in record.all_settings.items()]
    return {"build": build, "settings": settings} if build or settings else None


def _written(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_written, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _legend(marks: Mapping[str, Figure], name: str) -> list[Context]:
    return [
        {"label": label, "svg": inline_svg(figure, f"{name}-{number}", "")}
        for number, (label, figure) in enumerate(marks.items())
    ]
