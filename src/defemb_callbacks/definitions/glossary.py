"""Read users' glossaries: dicts and `.tsv`, `.csv` and `.json` files.

Entries may define words or literal tokens (`"##ing"`, `"Ġthe"`, `"1990"`). Whitespace around words is stripped, but
the column `token` is read literally, as a token may consist of whitespace only.

Entries may have synonyms, which are used like those of WordNet. In tables they are separated by `;`, as names may
contain commas ("1,2-dichloroethane").
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeAlias

from defemb_callbacks.definitions.definition import Definition
from defemb_callbacks.definitions.lexicon import Lexicon

# A gloss, or a dict with a "definition" and, optionally, "pos" and "synonyms".
Gloss: TypeAlias = str | Mapping[str, str | Sequence[str]]
Glossary: TypeAlias = Mapping[str, Gloss | Sequence[Gloss]]
SEPARATOR = ";"

# Common names of the parts of speech; any other name ("symbol", "phrase") is ignored.
PARTS = {
    **dict.fromkeys(("n", "n.", "noun", "proper noun", "propn"), "noun"),
    **dict.fromkeys(("v", "v.", "verb"), "verb"),
    **dict.fromkeys(("a", "s", "adj", "adj.", "adjective"), "adjective"),
    **dict.fromkeys(("r", "adv", "adv.", "adverb"), "adverb"),
}
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w"])', re.IGNORECASE)  # written by Excel


class Entry(NamedTuple):
    """A raw entry of a glossary, with its place for error messages."""

    place: str
    word: str
    gloss: str
    pos: str = ""
    synonyms: tuple[str, ...] = ()
    is_token: bool = False


def glossary_from_dict(glossary: Glossary, *, name: str = "glossary") -> Lexicon:
    """Create a lexicon from a dict `{word: gloss}` or `{word: [gloss, …]}`, with the most important gloss first.

    A gloss may also be a dict `{"definition": gloss, "synonyms": [name, …], "pos": part of speech}`.

    Raises:
        TypeError: If a word is not a string, or its definition has an unsupported type.
        ValueError: If there is no entry, a word, gloss or synonym is empty, a dict has no definition or one that is
            not a string, or a word has the same gloss twice.

    Example:
        >>> glossary_from_dict({"pembrolizumab": "a monoclonal antibody"}).lookup("Pembrolizumab")[0].gloss
        'a monoclonal antibody'
        >>> glossary_from_dict({"CAR": {"definition": "a receptor", "synonyms": ["T-body"]}}).lookup("CAR")[0].synonyms
        ('T-body',)
    """
    return _lexicon(_dict_entries(glossary, "the dict"), name, "the dict")


def read_table(path: Path) -> Lexicon:
    """Create a lexicon from a `.tsv` or `.csv` file.

    The columns are `word` or `token`, `definition` and, optionally, `pos` and `synonyms` (separated by `;`). Other
    columns, blank rows and trailing empty cells are ignored. A word may have several lines, with the best definition
    first. Cells of a `.csv` file are separated by commas, semicolons or tabs; Excel's line `sep=;` may come first.

    Raises:
        ValueError: If a column is missing, a word or definition is empty, synonyms are separated by `|`, a word has the
            same definition twice, or the file is not UTF-8 text; names file and line.
    """
    return _lexicon(_table_entries(path), path.stem, str(path))


def read_json(path: Path) -> Lexicon:
    """Create a lexicon from a `.json` file: an object as in `glossary_from_dict`, or a list of objects.

    The objects of a list have the columns of a table as their keys; synonyms are lists of strings.

    Raises:
        TypeError: See `glossary_from_dict`.
        ValueError: If the file is not valid JSON, has another structure or a duplicate key, a word or definition is
            empty, or a word has the same definition twice.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a valid JSON glossary: {error}. Correct the file.") from error
    if isinstance(content, dict):
        entries = _dict_entries(content, str(path))
    elif isinstance(content, list):
        entries = _object_entries(content, path)
    else:
        raise ValueError(
            f"{path} contains {content!r}. A JSON glossary must be an object {{word: definition}} or a list of objects."
        )
    return _lexicon(entries, path.stem, str(path))


def _lexicon(entries: Iterable[Entry], name: str, origin: str) -> Lexicon:
    seen: dict[tuple[str, str], str] = {}
    definitions: list[Definition] = []
    for entry in entries:
        word = entry.word if entry.is_token else entry.word.strip()
        gloss = entry.gloss.strip()
        if not word:
            raise ValueError(f"{entry.place}: the word is empty. Fill it in or delete the entry.")
        if not gloss:
            raise ValueError(f"{entry.place}: the definition of {word!r} is empty. Fill it in or delete the entry.")
        first = seen.setdefault((word, gloss), entry.place)
        if first != entry.place:
            raise ValueError(f"{entry.place}: {word!r} has the same definition as in {first}. Delete one of them.")
        pos = PARTS.get(entry.pos.strip().lower(), "")
        rank = len(definitions) + 1
        definitions.append(Definition(word, gloss, pos=pos, synonyms=entry.synonyms, rank=rank))
    if not definitions:
        raise ValueError(f"{origin} has no entries. Add at least one word with a definition.")
    return Lexicon.from_definitions(definitions, name=name, explicit=True)


def _dict_entries(glossary: Mapping[str, Any], origin: str) -> Iterator[Entry]:
    for word, glosses in glossary.items():
        if not isinstance(word, str):
            raise TypeError(f"{origin}: the word {word!r} must be a str, got {type(word).__name__}. Put it in quotes.")
        listed = [glosses] if isinstance(glosses, str | Mapping) else glosses
        if not isinstance(listed, list | tuple) or not all(isinstance(gloss, str | Mapping) for gloss in listed):
            raise TypeError(
                f"{origin}: {word!r} has the definition {glosses!r}. Pass a string, a dict with a 'definition' and "
                "'synonyms', or a list of these."
            )
        if not listed:
            raise ValueError(f"{origin}: {word!r} has an empty list of definitions. Add one or delete the word.")
        for number, gloss in enumerate(listed, start=1):
            item = {"definition": gloss} if isinstance(gloss, str) else gloss
            yield _object_entry({**item, "word": word}, f"{origin}, definition {number} of {word!r}")


def _table_entries(path: Path) -> Iterator[Entry]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = _cells(file, path.suffix.lower())
        try:
            header = [column.strip().lower() for column in next(rows, (1, []))[1]]
            key = _key_column(header, str(path))
            for line, row in rows:
                while len(row) > len(header) and not row[-1].strip():
                    row.pop()
                if len(row) > len(header):
                    raise ValueError(
                        f"{path}, line {line} has {len(row)} cells for {len(header)} columns. Put .csv cells with a "
                        "comma in quotes; .tsv cells cannot contain a tab."
                    )
                cells = dict(zip(header, row, strict=False))
                yield _row_entry(cells, key, f"{path}, line {line}")
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
    """The separator that gives the required columns; a comma if none does."""
    for delimiter in ",;\t":
        columns = [column.strip().lower() for column in next(csv.reader([header], delimiter=delimiter), [])]
        if "definition" in columns and not {"word", "token"}.isdisjoint(columns):
            return delimiter
    return ","


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


def _object_entries(content: list[Any], path: Path) -> Iterator[Entry]:
    for number, item in enumerate(content, start=1):
        place = f"{path}, entry {number}"
        if not isinstance(item, dict):
            raise ValueError(f"{place} is {item!r}. It must be an object with a word or token and a definition.")
        yield _object_entry(item, place)


def _object_entry(item: Mapping[str, Any], place: str) -> Entry:
    item = {column: value for column, value in item.items() if value is not None}  # as exported from tables
    key = _key_column(list(item), place)
    for column in (key, "definition", "pos"):
        if not isinstance(item.get(column, ""), str):
            raise ValueError(f"{place}: `{column}` must be a string, got {item[column]!r}.")
    synonyms = item.get("synonyms", ())
    if not isinstance(synonyms, list | tuple) or not all(isinstance(name, str) and name.strip() for name in synonyms):
        raise ValueError(f"{place}: `synonyms` must be a list of non-empty strings, got {synonyms!r}.")
    stripped = tuple(name.strip() for name in synonyms)
    return Entry(place, item[key], item["definition"], item.get("pos", ""), stripped, key == "token")


def _row_entry(cells: Mapping[str, str], key: str, place: str) -> Entry:
    listed = cells.get("synonyms", "")
    if "|" in listed:
        raise ValueError(f"{place}: the synonyms {listed!r} contain '|'. Separate them by {SEPARATOR!r}.")
    synonyms = tuple(name.strip() for name in listed.split(SEPARATOR) if name.strip())
    pos, gloss = cells.get("pos", ""), cells.get("definition", "")
    return Entry(place, cells.get(key, ""), gloss, pos, synonyms, key == "token")


def _key_column(columns: Sequence[str], place: str) -> str:
    key = next((column for column in ("word", "token") if column in columns), None)
    if key is None or "definition" not in columns:
        raise ValueError(
            f"{place} has the columns {list(columns)}. Required are 'word' or 'token', and 'definition'; 'pos' and "
            "'synonyms' are optional."
        )
    return key


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key!r} is duplicated; put all its definitions into one list")
        content[key] = value
    return content
