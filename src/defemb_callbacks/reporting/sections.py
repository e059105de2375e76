"""The sections of the page; each is HTML, and empty where the record has nothing to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from typing import Any

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.metrics.catalog import meaning_of, metrics_in
from defemb_callbacks.reporting.figures import (
    legend_of_metrics,
    legend_of_projection,
    legend_of_singular_values,
    planes,
    plot_metric,
    plot_panel,
    plot_singular_values,
)
from defemb_callbacks.reporting.html import isolated, legend, note, picture, table
from defemb_callbacks.reporting.run_record import RunRecord
from defemb_callbacks.vocabulary.frequency import GROUPS
from defemb_callbacks.vocabulary.tokens import LETTER, NUMBER, PADDING, PIECE, SPECIAL, SYMBOL, UNUSED

# What the reasons for keeping a token mean.
REASONS = {
    SPECIAL: "stands for no text, such as the mark of a sentence’s end",
    UNUSED: "a place in the vocabulary that no text uses",
    PADDING: "a vector to which no token belongs",
    PIECE: "a part of words, which a dictionary does not define",
    NUMBER: "has digits in it",
    SYMBOL: "has no letter in it",
    LETTER: "a letter by itself is no word",
}

# What the report tells of the build.
BUILD = {
    "model": "Model",
    "definitions": "Dictionary",
    "definitions_read": "Definitions read",
    "r_squared": "Share of the old vectors’ variation that definitions explain, for words held out",
    "ridge_strength": "Strength of the ridge penalty, by cross-validation",
}


def facts(record: RunRecord) -> str:
    """What is known of each model besides its metrics."""
    labels = dict.fromkeys(label for about in record.facts.values() for label in about)
    rows = (
        [escape(label), *(escape(record.facts.get(name, {}).get(label, "")) for name in record.snapshots)]
        for label in labels
    )
    return table(["", *record.snapshots], rows, label="Facts about the models") if labels else ""


def metrics(record: RunRecord, prefix: str) -> str:
    """A card for each metric: what it means, its values, its course; `prefix` as in `metrics_in`."""
    shown = metrics_in([*(taken.metrics for taken in record.snapshots.values()), *record.history], prefix)
    if not shown:
        return ""
    over_time = metrics_in(record.history, prefix)
    before = {} if record.report is None else record.report.before
    text = ""
    if len(record.snapshots) > 1:
        text += f"<p>“Better” and “worse” compare with “{escape(next(iter(record.snapshots)))}”.</p>"
    if over_time:
        crossed = bool(set(metrics_in([before], prefix)) & set(over_time))
        text += legend(legend_of_metrics(crossed), f"{prefix.removesuffix('_') or 'input'}-mark")
    cards = []
    for metric in shown:
        meaning = meaning_of(metric)
        words = f'<p>{escape(meaning.text)}</p><p class="small muted">{meaning.direction}</p>' if meaning.text else ""
        values = _values(record, metric, meaning.title)
        chart = ""
        if metric in over_time:
            figure = plot_metric(metric, record.history, before)
            chart = picture(figure, f"steps-{metric}".replace("_", "-"), _in_words(metric, record.history))
        cards.append(f'<article class="card"><h3>{escape(meaning.title)}</h3>{words}{values}{chart}</article>')
    return f'{text}<div class="grid">{"".join(cards)}</div>'


def _values(record: RunRecord, metric: str, title: str) -> str:
    keys = {group: f"defemb/{metric}/{group}" for group in ("all", *GROUPS)}
    measured = {
        name: taken.metrics for name, taken in record.snapshots.items() if set(keys.values()) & set(taken.metrics)
    }
    if not measured:
        return ""
    rows = []
    for group, key in keys.items():
        first, *others = (figures.get(key) for figures in measured.values())
        if first is None and all(value is None for value in others):
            continue
        cells = [_value_of(metric, first)]
        for value in others:
            change = "" if first is None or value is None else f"<br>{verdict(metric, first, value)}"
            cells.append(_value_of(metric, value) + change)
        rows.append([group, *cells])
    columns = ["tokens", *measured]
    return table(columns, rows, label=f"{title} by group of tokens", numbers=range(1, len(columns)))


def _value_of(metric: str, value: float | None) -> str:
    return "–" if value is None else meaning_of(metric).write(value)


def verdict(metric: str, before: float, after: float) -> str:
    """Whether a metric has become better, as an arrow and a word."""
    word = meaning_of(metric).verdict(before, after)
    mark = "=" if word == "same" else "▲" if after > before else "▼"
    return f'<span class="verdict {word}">{mark}&nbsp;{word}</span>'


def _in_words(metric: str, history: Sequence[Mapping[str, Any]]) -> str:
    meaning, parts, steps = meaning_of(metric), [], []
    for group in ("all", *GROUPS):
        rows = [row for row in history if f"defemb/{metric}/{group}" in row]
        if rows:
            first, last = (meaning.write(row[f"defemb/{metric}/{group}"]) for row in (rows[0], rows[-1]))
            parts.append(f"{group} from {first} to {last}")
            steps += [rows[0]["step"], rows[-1]["step"]]
    return f"{meaning.title} over the training steps {min(steps)} to {max(steps)}: {', '.join(parts)}."


def rebuilt(record: RunRecord) -> str:
    """How many tokens of each group were rebuilt, and why the others were not."""
    if record.report is None:
        return ""
    groups = (
        [name, f"{group.tokens:,}", f"{group.defined:,}", f"{group.rebuilt:,}", f"{group.weight:.2f}"]
        for name, group in record.report.groups.items()
    )
    headings = ["tokens", "number", "with a definition", "rebuilt", "weight of the new vector"]
    text = table(headings, groups, label="Rebuilt tokens by group", numbers=range(1, 5))
    if record.report.skipped:
        kept = sorted(record.report.skipped.items(), key=lambda item: -len(item[1]))
        rows = (
            [escape(reason) + note(REASONS.get(reason, "")), f"{len(tokens):,}", _examples(tokens)]
            for reason, tokens in kept
        )
        text += f"<p>{sum(len(tokens) for _, tokens in kept):,} tokens were kept as they were:</p>"
        text += table(["why", "tokens", "for instance"], rows, label="Kept tokens by reason", numbers=[1])
    return text


def _examples(tokens: Sequence[str], number: int = 6) -> str:
    # From the middle of the vocabulary: the first tokens are seldom typical.
    start = max(0, len(tokens) // 2 - number // 2)
    return " ".join(f"<code>{isolated(repr(token)[1:-1])}</code>" for token in tokens[start : start + number] if token)


def projection(record: RunRecord) -> str:
    """The tokens as points in the plane, a panel for each snapshot."""
    bases, panels = list(planes(record.snapshots).values()), ""
    for number, name in enumerate(record.snapshots):
        figure = plot_panel(name, record.snapshots, record.rebuilt_by_snapshot)
        alt = f"Tokens as points in two dimensions, coloured by frequency group: {name}."
        panels += picture(figure, f"projection-{number}", alt, heading=escape(name))
    most = max(len(points) for taken in record.snapshots.values() for points in taken.points.values())
    caption = (
        f"Each mark is a token, at most {most} of each group. Its place is given by the two directions in which the "
        "embeddings reach farthest. "
    )
    if record.rebuilt_by_snapshot:
        caption += "Filled marks are the rebuilt tokens, the same ones in every panel of this vocabulary. "
    if any(basis is not bases[0] for basis in bases):
        caption += "Embeddings of different models lie in different spaces and have directions of their own. "
    elif len(bases) > 1:
        caption += f"All panels have the directions of “{escape(next(iter(record.snapshots)))}”. "
    caption += (
        "Where groups lie apart, vectors tell how frequent a token is and not only what it means. A dense clump is "
        "made of tokens that the model can hardly tell apart."
    )
    marks = legend(legend_of_projection(bool(record.rebuilt_by_snapshot)), "projection-mark")
    return f'{marks}<div class="panels">{panels}</div><p class="small muted">{caption}</p>'


def singular_values(record: RunRecord) -> str:
    """The singular values of all snapshots."""
    spectra = {name: taken.spectrum for name, taken in record.snapshots.items()}
    parts = []
    for name, values in spectra.items():
        middle = float(values[len(values) // 2] / values[0].clamp(min=1e-30))
        parts.append(f"{name}: {middle:.2f} for the middle direction")
    marks = legend(legend_of_singular_values(list(spectra)), "singular-values-mark")
    return marks + picture(
        plot_singular_values(spectra, small=True),
        "singular-values",
        f"Falling curves of the singular values relative to the largest; {', '.join(parts)}.",
        caption="How far the embeddings reach in each direction of their space, compared with the direction in which "
        "they reach farthest. A line that falls slowly means that many directions are used alike; one that falls "
        "steeply, that a few directions dominate.",
    )


def neighbours(record: RunRecord) -> str:
    """A row for each watched word, a column for each snapshot; words rather than ids, which differ between models."""
    found: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for name, taken in record.snapshots.items():
        vocabulary = record.vocabularies.get(name, record.vocabulary)
        for index, others in taken.neighbours.items():
            near = [(vocabulary.words[other] or vocabulary.tokens[other], cosine) for other, cosine in others]
            found.setdefault(vocabulary.words[index] or vocabulary.tokens[index], {})[name] = near
    if not found:
        return ""
    words, tokens = record.vocabulary.words, record.vocabulary.tokens
    glosses = {words[index] or tokens[index]: gloss for index, gloss in record.glosses.items()}
    columns = [name for name in record.snapshots if any(name in near for near in found.values())]
    rows = []
    for word, by_name in found.items():
        cells = [f"<strong>{isolated(word)}</strong>{note(glosses.get(word, ''))}"]
        known = {text for text, _ in by_name.get(columns[0], ())}
        for name in columns:
            near = by_name.get(name, [])
            cells.append(" ".join(_neighbour(*one, new=bool(known) and one[0] not in known) for one in near) or "–")
        rows.append(cells)
    caption = "The words with the most similar vectors, nearest first, and the cosines of the angles between the two."
    if len(columns) > 1:
        caption += f" <b>Bold</b>: not among the nearest in “{escape(columns[0])}”."
    return f"<p>{caption}</p>{table(['word', *columns], rows, label='Nearest neighbours', kind='near')}"


def _neighbour(text: str, cosine: float, new: bool) -> str:
    word = f"<b>{isolated(text)}</b>" if new else isolated(text)
    return f'<span class="one">{word} <span class="small muted">{cosine:.2f}</span></span>'


def settings(record: RunRecord) -> str:
    """How all this was made."""
    helps = {field.name: field.metadata.get("help", "") for field in fields(DefinitionEMBConfig)}
    rows = []
    if record.report is not None:
        info = record.report.info
        rows += [[words, _value(info[name]), ""] for name, words in BUILD.items() if name in info]
    for name, value in record.all_settings.items():
        rows.append([f"<code>{escape(name)}</code>", _value(value), escape(helps.get(name, ""))])
    return table(["setting", "value", "what it means"], rows, label="Settings") if rows else ""


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
