"""Read the rows of `.tsv` and `.csv` files, as spreadsheets and scripts write them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TextIO

_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w"])', re.IGNORECASE)  # written by Excel


def table_rows(path: Path, *, needs_definition: bool = True) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a `.tsv` or `.csv` file, each with its place for error messages and its text by column.

    Args:
        path: The file; see `read_table` for its format.
        needs_definition: Whether the table must have the column `definition`.

    Raises:
        ValueError: If a column is missing, a row has too many cells, or the file is not UTF-8 text or not a table.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = _cells(file, path.suffix.lower())
        try:
            header = [column.strip().lower() for column in next(rows, (1, []))[1]]
            check_columns(header, str(path), needs_definition=needs_definition)
            for line, row in rows:
                while len(row) > len(header) and not row[-1].strip():
                    row.pop()
                if len(row) > len(header):
                    raise ValueError(
                        f"{path}, line {line} has {len(row)} cells for {len(header)} columns. Put .csv cells with a "
                        "comma in quotes; .tsv cells cannot contain a tab."
                    )
                yield f"{path}, line {line}", dict(zip_longest(header, row, fillvalue=""))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error
        except csv.Error as error:
            raise ValueError(f"{path} is not a valid table: {error}. Correct the file.") from error


def _cells(file: TextIO, suffix: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the non-blank rows, each with the number of its first line."""
    first = file.readline()
    separator = _SEPARATOR_LINE.match(first)
    lines: Iterable[str] = file if separator else chain([first], file)
    start = 2 if separator else 1
    if suffix == ".tsv":
        found = _tsv_rows(list(lines), start)
    else:
        found = _csv_rows(lines, separator[1] if separator else _delimiter(first), start)
    yield from ((line, row) for line, row in found if any(cell.strip() for cell in row))


def _csv_rows(lines: Iterable[str], delimiter: str, start: int) -> Iterator[tuple[int, list[str]]]:
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    line = start
    for row in rows:
        yield line, row
        line = start + rows.line_num


def _delimiter(header: str) -> str:
    """The separator that gives the required columns, or at least a word and another column; otherwise a comma."""
    split = {}
    for delimiter in ",;\t":
        columns = [column.strip().lower() for column in next(csv.reader([header], delimiter=delimiter), [])]
        if not {"word", "token"}.isdisjoint(columns):
            split[delimiter] = columns
    complete = [delimiter for delimiter, columns in split.items() if "definition" in columns]
    return next(iter([*complete, *(delimiter for delimiter, columns in split.items() if len(columns) > 1)]), ",")


def _tsv_rows(lines: Sequence[str], start: int) -> Iterator[tuple[int, list[str]]]:
    """Split lines at tabs.

    Most .tsv files are written without quoting, so a definition may start with a literal quote, as in
    `"Giga Texel Shader eXtreme" and is a type of …`. Spreadsheets quote cells that contain quotes or line breaks.
    """
    number = 0
    while number < len(lines):
        end = _end_of_row(lines, number)
        text = "".join(lines[number:end]).rstrip("\r\n")
        yield start + number, [_unquoted(cell) for cell in text.split("\t")]
        number = end


def _end_of_row(lines: Sequence[str], number: int) -> int:
    """The number of the line after a row: its last cell may be quoted and end in a later line."""
    end = number + 1
    opening = lines[number].rstrip("\r\n").rpartition("\t")[2]
    while opening.startswith('"') and opening.count('"') % 2:
        # The first line with an odd number of quotes before its first tab, which must be the end of the cell
        for closing in range(end, len(lines)):
            first, tab, rest = lines[closing].rstrip("\r\n").partition("\t")
            if first.count('"') % 2 and first.endswith('"'):
                break
            if tab or first.count('"') % 2:
                return end  # a new row, so the quote is literal
        else:
            return end
        end, opening = closing + 1, rest.rpartition("\t")[2]
    return end


def _unquoted(cell: str) -> str:
    quoted = _QUOTED.fullmatch(cell)
    return quoted[1].replace('""', '"') if quoted else cell


def key_of(columns: Iterable[str]) -> str:
    """Return the column that names the words: `word`, or `token` if there is none.

    Args:
        columns: Names of columns.
    """
    return "word" if "word" in columns else "token"


def check_columns(columns: Sequence[str], place: str, *, needs_definition: bool = True) -> str:
    """Return the column that names the words, and check that the required columns are there.

    Args:
        columns: Names of columns.
        place: Where they are, for error messages.
        needs_definition: Whether `definition` is required.

    Raises:
        ValueError: If a column is missing.
    """
    key = key_of(columns)
    if key not in columns or (needs_definition and "definition" not in columns):
        raise ValueError(
            f"{place} has the columns {list(columns)}. Required are 'word' or 'token', and 'definition'; 'pos' and "
            "'synonyms' are optional."
        )
    return key
