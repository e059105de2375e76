"""The building blocks of the page."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from defemb_callbacks.reporting.svg import inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    label: str,
    numbers: Container[int] = (),
    kind: str = "",
) -> str:
    """A table that scrolls on narrow screens.

    Args:
        headings: text of the first row.
        rows: cells as HTML; the first of each row is its heading.
        label: what the table is, for readers who cannot see where it stands.
        numbers: which columns hold numbers, counted from 0.
        kind: CSS class.

    Example:
        >>> table(["group", "tokens"], [["rare", "20"]], label="Sizes", numbers=[1])[-53:]
        '<td class="number">20</td></tr></tbody></table></div>'
    """
    classes = [' class="number"' if column in numbers else "" for column in range(len(headings))]
    head = "".join(
        f'<th scope="col"{cell}>{escape(heading)}</th>' for cell, heading in zip(classes, headings, strict=True)
    )
    body = ""
    for first, *cells in rows:
        others = "".join(f"<td{cell}>{text}</td>" for cell, text in zip(classes[1:], cells, strict=True))
        body += f'<tr><th scope="row">{first}</th>{others}</tr>'
    name = escape(label)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{name}"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def picture(figure: Figure, name: str, alt: str, *, heading: str = "", caption: str = "") -> str:
    """A figure with what stands above and below it, which is HTML; the rest as `inline_svg`."""
    above = f'<p class="heading">{heading}</p>' if heading else ""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{above}{inline_svg(figure, name, alt)}{below}</figure>"


def legend(entries: Mapping[str, Figure], name: str) -> str:
    """What each mark means; `entries` are pictures of the marks by what they stand for."""
    items = (
        f"<li>{inline_svg(figure, f'{name}-{number}', '')} {escape(label)}</li>"
        for number, (label, figure) in enumerate(entries.items())
    )
    return f'<ul class="legend" aria-label="Legend">{"".join(items)}</ul>'


def note(text: str) -> str:
    """Small print; `text` is plain, and may be empty."""
    return f'<br><span class="small muted">{escape(text)}</span>' if text else ""


def isolated(token: str) -> str:
    """A token among other text: one that is written from right to left must not turn what stands beside it."""
    return f"<bdi>{escape(token)}</bdi>"
