"""Read users' glossaries: dicts and `.tsv`, `.csv` and `.json` files.

Entries may define words or literal tokens (`"##ing"`, `"Ġthe"`, `"1990"`). Whitespace around words is stripped, but
the column `token` is read literally, as a token may consist of whitespace only.

Entries may have synonyms, which are used like those of WordNet. In tables they are separated by `;`, as names may
contain commas ("1,2-dichloroethane").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from defemb_callbacks.definitions.definition import Definition
from defemb_callbacks.definitions.lexicon import Lexicon
from defemb_callbacks.definitions.table_files import check_columns, key_of, table_rows

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


class Entry(NamedTuple):
    """A raw entry of a glossary, with its place for error messages."""

    place: str
    word: str
    gloss: str
    pos: str = ""
    synonyms: tuple[str, ...] = ()
    is_token: bool = False


def glossary_from_dict(glossary: Glossary, *, name: str = "glossary", origin: str = "the dict") -> Lexicon:
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
    return glossary_from_entries(_dict_entries(glossary, origin), name, origin)


def read_table(path: Path) -> Lexicon:
    """Create a lexicon from a `.tsv` or `.csv` file.

    The columns are `word` or `token`, `definition` and, optionally, `pos` and `synonyms` (separated by `;`). Other
    columns, blank rows and trailing empty cells are ignored. A word may have several lines, with the best definition
    first. Cells of a `.csv` file are separated by commas, semicolons or tabs; Excel's line `sep=;` may come first.

    Raises:
        ValueError: If a column is missing, a word or definition is empty, synonyms are separated by `|`, a word has the
            same definition twice, or the file is not UTF-8 text; names file and line.
    """
    entries = (row_entry(cells, place) for place, cells in table_rows(path))
    return glossary_from_entries(entries, path.stem, str(path))


def read_json(path: Path) -> Lexicon:
    """Create a lexicon from a `.json` file: an object as in `glossary_from_dict`, or a list of objects.

    The objects of a list have the columns of a table as their keys; synonyms are lists of strings.

    Raises:
        TypeError: See `glossary_from_dict`.
        ValueError: If the file is not valid JSON, has another structure or a duplicate key, a word or definition is
            empty, or a word has the same definition twice.
    """
    content = json_content(path)
    entries = _dict_entries(content, str(path)) if isinstance(content, dict) else _object_entries(content, path)
    return glossary_from_entries(entries, path.stem, str(path))


def json_content(path: Path) -> dict[str, Any] | list[Any]:
    """Read the object or the list of a `.json` file.

    Args:
        path: UTF-8 file, with or without a byte order mark.

    Raises:
        ValueError: If the file is not valid JSON, has another structure or a duplicate key.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a valid JSON glossary: {error}. Correct the file.") from error
    if not isinstance(content, dict | list):
        raise ValueError(
            f"{path} contains {content!r}. A JSON glossary must be an object {{word: definition}} or a list of objects."
        )
    return content


def glossary_from_entries(entries: Iterable[Entry], name: str, origin: str) -> Lexicon:
    """Create a lexicon from raw entries.

    Args:
        entries: The entries; those of one word with the most important one first.
        name: Name of the lexicon.
        origin: The source as a whole, for error messages.

    Raises:
        ValueError: If there is no entry, a word or definition is empty, or a word has the same definition twice.
    """
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
            yield object_entry({**item, "word": word}, f"{origin}, definition {number} of {word!r}")


def _object_entries(content: list[Any], path: Path) -> Iterator[Entry]:
    for number, item in enumerate(content, start=1):
        place = f"{path}, entry {number}"
        if not isinstance(item, dict):
            raise ValueError(f"{place} is {item!r}. It must be an object with a word or token and a definition.")
        yield object_entry(item, place)


def object_entry(item: Mapping[str, Any], place: str) -> Entry:
    """Create an entry from an object with the columns of a table as its keys.

    Args:
        item: Values by column; synonyms are lists of strings.
        place: Where the object is, for error messages.

    Raises:
        ValueError: If a column is missing or its value has another type.
    """
    item = {column: value for column, value in item.items() if value is not None}  # as exported from tables
    key = check_columns(list(item), place)
    for column in (key, "definition", "pos"):
        if not isinstance(item.get(column, ""), str):
            raise ValueError(f"{place}: `{column}` must be a string, got {item[column]!r}.")
    synonyms = item.get("synonyms", ())
    if not isinstance(synonyms, list | tuple) or not all(isinstance(name, str) and name.strip() for name in synonyms):
        raise ValueError(f"{place}: `synonyms` must be a list of non-empty strings, got {synonyms!r}.")
    stripped = tuple(name.strip() for name in synonyms)
    return Entry(place, item[key], item["definition"], item.get("pos", ""), stripped, key == "token")


def row_entry(cells: Mapping[str, str], place: str) -> Entry:
    """Create an entry from a row of a table.

    Args:
        cells: Text by column; see `table_rows`.
        place: Where the row is, for error messages.

    Raises:
        ValueError: If synonyms are separated by `|`.
    """
    key = key_of(cells)
    listed = cells.get("synonyms", "")
    if "|" in listed:
        raise ValueError(f"{place}: the synonyms {listed!r} contain '|'. Separate them by {SEPARATOR!r}.")
    synonyms = tuple(name.strip() for name in listed.split(SEPARATOR) if name.strip())
    pos, gloss = cells.get("pos", ""), cells.get("definition", "")
    return Entry(place, cells.get(key, ""), gloss, pos, synonyms, key == "token")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key!r} is duplicated; put all its definitions into one list")
        content[key] = value
    return content
