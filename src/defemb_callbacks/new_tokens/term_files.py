"""Read the definitions and the options of terms from dicts, tables and JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from defemb_callbacks.definitions import Lexicon, load_definitions
from defemb_callbacks.definitions.glossary import (
    Entry,
    glossary_from_dict,
    glossary_from_entries,
    json_content,
    object_entry,
    row_entry,
)
from defemb_callbacks.definitions.table_files import key_of, table_rows
from defemb_callbacks.new_tokens.term_options import OPTIONS, TermOptions, options_of_cells, read_options


@dataclass(frozen=True)
class GivenTerms:
    """What users give for their terms.

    Attributes:
        names: The terms, those of a dict in its order; a name may be invalid.
        definitions: Their definitions; `None` if there is none.
        options: The options of terms that have any.
    """

    names: list[Any]
    definitions: Lexicon | None = None
    options: dict[Any, TermOptions] = field(default_factory=dict)


def terms_from_dict(source: Mapping[Any, Any], *, name: str = "glossary", origin: str = "the dict") -> GivenTerms:
    """Read terms from a dict.

    Args:
        source: Definitions, `None`, or a dict with a definition or options, by term.
        name: Name of the lexicon.
        origin: The source, for error messages.

    Raises:
        ValueError: If a definition or an option is invalid.
        TypeError: If a definition has another type.

    Example:
        >>> given = terms_from_dict({"<|svg|>": {"definition": "starts a drawing", "special": True}, "lynx": "a cat"})
        >>> given.names, list(given.options), len(given.definitions)
        (['<|svg|>', 'lynx'], ['<|svg|>'], 2)
    """
    glosses, options = {}, {}
    for term, value in source.items():
        place = f"{origin}: {term!r}"
        gloss = value
        if isinstance(value, Mapping):
            found = read_options(value, place)
            if found != TermOptions():
                options[term] = found
            rest = {key: item for key, item in value.items() if key not in OPTIONS and item is not None}
            listed = rest.get("definition")
            if "definition" not in rest and found != TermOptions():
                gloss = None
            elif isinstance(listed, list | tuple):
                gloss = [{**rest, "definition": one} if isinstance(one, str) else one for one in listed]
            else:
                gloss = rest
        elif isinstance(value, list | tuple):
            for item in value:
                if isinstance(item, Mapping) and not set(OPTIONS).isdisjoint(item):
                    raise ValueError(
                        f"{place} has options in a list. Put the list into them: "
                        f'{{"definition": [...], "{next(key for key in item if key in OPTIONS)}": ...}}.'
                    )
        if gloss is not None:
            glosses[term] = gloss
    lexicon = glossary_from_dict(glosses, name=name, origin=origin) if glosses else None
    return GivenTerms(list(source), lexicon, options)


def terms_from_file(path: Path) -> GivenTerms:
    """Read terms from a `.tsv`, `.csv`, `.json` or `.jsonl` file, or from any other dictionary.

    Besides the columns of a glossary, tables and JSON objects may have those of `read_options`. A term with options
    needs no definition. A term may have several rows, with the best definition first. The terms are sorted as in a
    `Lexicon`; those without a definition come last.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is not valid, or a row is not; names the row.
        FileNotFoundError: If there is no such file.
    """
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (".tsv", ".csv", ".json", ".jsonl") or _is_wiktionary(path, suffix):
        lexicon = load_definitions(path)
        return GivenTerms(list(lexicon.words), lexicon)
    if suffix == ".json":
        content = json_content(path)
        if isinstance(content, dict):
            given = terms_from_dict(content, name=path.stem, origin=str(path))
            return replace(given, names=_sorted(given.names, given.definitions))
        return _terms_from_rows(_objects(enumerate(content, start=1), path, "entry"), path)
    if suffix == ".jsonl":
        return _terms_from_rows(_objects(_json_lines(path), path, "line"), path)
    return _terms_from_rows(_table(path), path)


def _terms_from_rows(rows: Iterable[tuple[str, Any, Entry | None, TermOptions]], path: Path) -> GivenTerms:
    names: dict[Any, None] = {}
    entries, options = [], dict[Any, TermOptions]()
    for place, name, entry, found in rows:
        names[name] = None
        if entry is not None:
            entries.append(entry)
        if found != TermOptions() and found != options.setdefault(name, found):
            raise ValueError(f"{place}: {name!r} has other options in an earlier row. Give them once.")
    # A file without any row is an error, which the glossary raises.
    lexicon = glossary_from_entries(entries, path.stem, str(path)) if entries or not names else None
    return GivenTerms(_sorted(names, lexicon), lexicon, options)


def _sorted(names: Iterable[Any], lexicon: Lexicon | None) -> list[Any]:
    defined = () if lexicon is None else lexicon.words
    return list(dict.fromkeys([*defined, *names]))


def _table(path: Path) -> Iterator[tuple[str, Any, Entry | None, TermOptions]]:
    for place, cells in table_rows(path, needs_definition=False):
        found = read_options(options_of_cells(cells, place), place)
        # Without options, an empty definition is an error, which the glossary raises.
        has_entry = cells.get("definition", "").strip() or found == TermOptions()
        yield place, cells[key_of(cells)].strip(), row_entry(cells, place) if has_entry else None, found


def _objects(
    items: Iterable[tuple[int, Any]], path: Path, unit: str
) -> Iterator[tuple[str, Any, Entry | None, TermOptions]]:
    for number, item in items:
        place = f"{path}, {unit} {number}"
        if not isinstance(item, dict):
            raise ValueError(f"{place} is {item!r}. It must be an object with a word or token and a definition.")
        found = read_options(item, place)
        has_entry = item.get("definition") is not None or found == TermOptions()
        name = item.get(key_of([key for key, value in item.items() if value is not None]))
        yield (
            place,
            name.strip() if isinstance(name, str) else name,
            object_entry(item, place) if has_entry else None,
            found,
        )


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number} is not valid JSON: {error}. Correct it.") from error


def _is_wiktionary(path: Path, suffix: str) -> bool:
    """Whether a `.jsonl` file is an extract of Wiktionary, whose entries have senses; redirects may come first."""
    if suffix != ".jsonl":
        return False
    try:
        first = next((item for _, item in _json_lines(path)), None)
    except (ValueError, UnicodeDecodeError):
        return False
    return isinstance(first, dict) and not {"senses", "lang_code", "redirect"}.isdisjoint(first)
