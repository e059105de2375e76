"""One self-contained HTML page that shows a record to people who have not read the paper."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from defemb_callbacks.metrics.catalog import OUTPUT, meaning_of
from defemb_callbacks.reporting import sections
from defemb_callbacks.reporting.run_record import RunRecord
from defemb_callbacks.reporting.style import PALETTE

PAPER = "https://arxiv.org/abs/2408.01308"
HEADLINES = ("isotropy", "relation_auc", "rating_correlation")


def render_page(record: RunRecord) -> str:
    """The record as one HTML document, which needs no other file, no network and no script.

    Raises:
        ImportError: matplotlib is missing; names the pip line.

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
    bodies = {
        "The models" if len(record.snapshots) > 1 else "The model": sections.facts(record),
        "Metrics": sections.metrics(record, ""),
        "Metrics of the output embeddings": sections.metrics(record, OUTPUT),
        "What was rebuilt": sections.rebuilt(record),
        "The embeddings as a picture": sections.projection(record),
        "Directions in use": sections.singular_values(record),
        "Nearest neighbours of rare words": sections.neighbours(record),
        "Settings": sections.settings(record),
    }
    shown = [(heading.lower().replace(" ", "-"), heading, body) for heading, body in bodies.items() if body]
    links = "".join(f'<li><a href="#{anchor}">{heading}</a></li>' for anchor, heading, _ in shown)
    main = "".join(f'<section id="{anchor}"><h2>{heading}</h2>{body}</section>\n' for anchor, heading, body in shown)
    title = escape(record.title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{stylesheet()}</style>
</head>
<body>
<header><h1>{title}</h1>{_what_was_done(record)}{_background(record)}{_in_short(record)}</header>
<nav aria-label="Contents"><ul>{links}</ul></nav>
<main>
{main}</main>
<footer class="muted small">Written by defemb_callbacks.</footer>
</body>
</html>
"""


def stylesheet() -> str:
    """The page's CSS, with the palette for light and dark."""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in PALETTE.items()) for i in (0, 1))
    rules = files("defemb_callbacks.reporting").joinpath("page.css").read_text(encoding="utf-8")
    # Paper is white: the dark colours are for screens.
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}"


def _what_was_done(record: RunRecord) -> str:
    return f'<p class="lead">{_measured(record) if record.report is None else _rebuild(record)}</p>'


def _measured(record: RunRecord) -> str:
    *others, last = (f"<strong>{escape(name)}</strong>" for name in record.snapshots)
    listed = f"{', '.join(others)} and {last}" if others else last
    # The facts are those of models; without them, the snapshots are times: "at train start and at train end".
    text = f"The token embeddings of {listed}." if record.facts else f"The token embeddings {listed}."
    if record.rebuilt is not None and len(record.rebuilt):
        text += (
            f" Those of <strong>{len(record.rebuilt):,}</strong> tokens differ, as they were rebuilt from definitions."
        )
    return text


def _rebuild(record: RunRecord) -> str:
    assert record.report is not None
    total, info = record.report.groups["all"], record.report.info
    source = f" (dictionary: {escape(str(info['definitions']))})" if "definitions" in info else ""
    text = (
        f"<strong>{total.rebuilt:,} of {total.tokens:,}</strong> token embeddings were rebuilt from the definitions of "
        f"their words{source}."
    )
    settings = record.all_settings
    if settings.get("strategy") == "replace":
        text += " Each of these vectors was replaced by one that was computed from the word’s definitions."
    elif settings.get("strategy") == "blend":
        text += (
            " Each of these vectors was turned towards one that was computed from the word’s definitions, rare "
            f"words more (up to a weight of {settings['blend']:g}) than frequent ones, and kept its length."
        )
    return text


def _background(record: RunRecord) -> str:
    first, second = record.all_settings.get("group_edges", (0.3, 0.8))
    shares = [f"{share:.0%}" for share in (first, second - first, 1 - second)]
    return f"""<p>A language model keeps one vector, the embedding, for each token of its vocabulary: a word or a piece
of one. Tokens that are rare in the texts that it was trained on tend to get poor vectors, which crowd together and say
little about meaning. A dictionary says what rare words mean, so that their vectors can be rebuilt from it
(<a href="{PAPER}">Zhang, Li and Okumura, 2024</a>).</p>
<p>All figures are given for <em>all</em> tokens and, by how frequent they are, for the <em>frequent</em> ones
({shares[0]} of the vocabulary), the <em>medium</em> ones ({shares[1]}) and the <em>rare</em> ones ({shares[2]}).</p>"""


def _in_short(record: RunRecord) -> str:
    """What changed between the first and the last of several times, or between two models, where it matters most."""
    names = list(record.snapshots)
    if record.report is None and len(names) != 2:
        return ""
    first, last = record.snapshots[names[0]].metrics, record.snapshots[names[-1]].metrics
    items = []
    for group in ("rare", "all"):
        parts = []
        for metric in HEADLINES:
            key, meaning = f"defemb/{metric}/{group}", meaning_of(metric)
            if key in first and key in last:
                values = f"{meaning.title} {meaning.write(first[key])} → {meaning.write(last[key])}"
                parts.append(f'<span class="one">{values} {sections.verdict(metric, first[key], last[key])}</span>')
        if parts:
            items.append(f"<li><strong>{group.capitalize()} tokens:</strong> {', '.join(parts)}</li>")
    if not items:
        return ""
    return f"<p>In short, “{escape(names[-1])}” against “{escape(names[0])}”:</p><ul>{''.join(items)}</ul>"
