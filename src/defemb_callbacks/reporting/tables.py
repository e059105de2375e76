"""Tables of text and of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

_RULES = {"<": ":--", ">": "--:"}


def text_table(rows: Sequence[Sequence[str]], headers: Sequence[str] = (), align: str = "<>") -> str:
    """Align cells in columns, two spaces apart.

    Args:
        rows: Cells of each row. A row with a single cell is a heading: it may be wider than the first column.
        headers: Cells of the first row; empty for a table without headers.
        align: `<` (left) or `>` (right) for each column; the last one also holds for all further columns.

    Returns:
        The lines of the table, without trailing spaces.

    Example:
        >>> print(text_table([["all", "29,523"], ["rare", "5,905"]], ["group", "tokens"]))
        group  tokens
        all    29,523
        rare    5,905
    """
    lines = [list(row) for row in ([headers] if headers else []) + list(rows)]
    columns = max((len(line) for line in lines), default=0)
    widths = [
        max((len(line[column]) for line in lines if len(line) > max(column, 1)), default=0) for column in range(columns)
    ]
    return "\n".join(
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(line, _sides(align, columns), widths, strict=False)
        ).rstrip()
        for line in lines
    )


def markdown_table(rows: Sequence[Sequence[str]], headers: Sequence[str], align: str = "<>") -> str:
    """Write a Markdown table.

    Args:
        rows: Cells of each row, as many as there are headers.
        headers: Headings of the columns.
        align: As in `text_table`.

    Example:
        >>> print(markdown_table([["all", "29,523"]], ["group", "tokens"]))
        | group | tokens |
        | :-- | --: |
        | all | 29,523 |
    """
    rules = [_RULES[side] for side in _sides(align, len(headers))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [headers, rules, *rows])


def _sides(align: str, columns: int) -> str:
    return align[:columns].ljust(columns, align[-1])
