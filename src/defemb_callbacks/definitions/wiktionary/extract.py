"""Extracts of Wiktionary in wiktextract's layout, as kaikki.org publishes them; kept in the cache once read."""

from __future__ import annotations

import codecs
import gzip
import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from defemb_callbacks.cache import cache_root, cached, file_fingerprint, fingerprint
from defemb_callbacks.definitions.lexicon import Lexicon
from defemb_callbacks.definitions.morphology import Morphology
from defemb_callbacks.definitions.wiktionary.record import parse_record
from defemb_callbacks.definitions.wiktionary.tables import WiktionaryTables

logger = logging.getLogger(__name__)

# Part of every cache key; to be raised when the same file comes to be read differently.
READER_VERSION = "2"
MALFORMED_SHARE = 0.01
_NAMED = 5  # malformed lines named by number
_HOPELESS = 1000  # a file whose first lines are all malformed is not read to its end
_LAYOUT = (
    'one JSON object a line, with "word", "pos", "lang_code" and "senses", as in kaikki.org-dictionary-English.jsonl'
)


def load_wiktionary(path: Path, language: str = "en") -> Lexicon:
    """An extract of Wiktionary, from the cache where it was read before; else see [`read_wiktionary`]."""
    path = Path(path)
    folder = cache_root() / "wiktionary" / fingerprint(READER_VERSION, language, file_fingerprint([path]))
    return cached(folder, lambda: read_wiktionary(path, language), Lexicon.save, Lexicon.load)


def read_wiktionary(path: Path, language: str = "en") -> Lexicon:
    """Read an extract of Wiktionary in wiktextract's layout: JSON lines, gzipped or not, an entry each.

    Senses keep the order of the file, but those that are obsolete, archaic, rare and the like come last, and so do
    letters and other signs. Senses that only refer to another word ("plural of cat", "alternative spelling of colour",
    "initialism of …") give that word's definitions, after the word's own; where the other word is not in the file, a
    reference by inflection is left out, and others keep their gloss. Glosses are freed of markup and usage labels.

    Args:
        path: a `.jsonl` or `.jsonl.gz` file, for example the English one of https://kaikki.org/dictionary/English/.
        language: Wiktionary's code of the language of the words; other entries are left out. Entries that name no
            language are read if the first one names none either.

    Raises:
        ValueError: more than 1 % of the lines are malformed, the file is truncated, or it has no definition in this
            language; names the lines or the languages that are there.
        OSError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> lines = ['{"word": "cat", "pos": "noun", "lang_code": "en", "senses": [{"glosses": ["A small feline."]}]}',
        ...          '{"word": "cats", "pos": "noun", "lang_code": "en", "senses": [{"glosses": ["plural of cat"]}]}']
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "extract.jsonl")
        ...     _ = path.write_text("\\n".join(lines))
        ...     found = read_wiktionary(path).lookup("cats")
        >>> found[0].word, found[0].gloss
        ('cat', 'A small feline.')
    """
    path = Path(path)
    tables, languages = WiktionaryTables(), Counter[str]()
    reads_unnamed, lines, malformed, first = None, 0, 0, list[int]()
    for number, line in _numbered_lines(path):
        lines += 1
        try:
            entry = _entry(line)
            if "word" not in entry and "redirect" in entry:  # a page that only leads to another
                continue
            code = _language_code(entry)
            if reads_unnamed is None:
                reads_unnamed = code == ""
            # Records of other languages are checked too: they count among the lines.
            record = parse_record(entry)
        except (ValueError, RecursionError):
            malformed += 1
            first += [number] * (malformed <= _NAMED)
            if malformed == lines == _HOPELESS:
                break
            continue
        languages[code or "none"] += 1
        if code == language or (not code and reads_unnamed):
            tables.add(record)
    _check(path, lines, malformed, first)
    lexicon = tables.lexicon("wiktionary", Morphology() if language == "en" else None)
    if lexicon is None:
        there = ", ".join(f"{code!r} ({count:,})" for code, count in languages.most_common(10)) or "none"
        raise ValueError(
            f"{path} defines no word of the language {language!r}; the languages of its entries are {there}. Give an "
            "extract of that language, or pass another language to load_wiktionary."
        )
    return lexicon


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, under a progress bar of the bytes read."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        total = path.stat().st_size
        with tqdm(total=total, desc=f"Reading {path.name}", unit="B", unit_scale=True, disable=None) as progress:
            stream = gzip.GzipFile(fileobj=file) if is_gzip else file
            try:
                for number, line in enumerate(stream, start=1):
                    if number % 1000 == 0:
                        progress.update(file.tell() - progress.n)
                    if number == 1:
                        line = line.removeprefix(codecs.BOM_UTF8)
                    if line.strip():
                        yield number, line
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(f"{path} is truncated or damaged ({error}); download it again.") from error
            progress.update(total - progress.n)


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(entry, dict):
        raise ValueError("it is no object")
    if b"\\ud" in line.lower():
        # Half of a surrogate pair is valid in JSON, but no text.
        json.dumps(entry, ensure_ascii=False).encode()
    return entry


def _language_code(entry: dict[str, Any]) -> str:
    code = entry.get("lang_code") or ""
    if not isinstance(code, str):
        raise ValueError("its language code is no text")
    return code


def _check(path: Path, lines: int, malformed: int, first: list[int]) -> None:
    if not lines:
        raise ValueError(f"{path} is empty; it should hold {_LAYOUT}.")
    if not malformed:
        return
    named = ", ".join(map(str, first)) + (", …" if malformed > len(first) else "")
    report = (
        f"{malformed:,} of {lines:,} lines of {path} are malformed ({'line' if malformed == 1 else 'lines'} {named})"
    )
    if malformed > MALFORMED_SHARE * lines:
        raise ValueError(f"{report}; it should hold {_LAYOUT}. Download it again, or mend or delete those lines.")
    logger.warning("%s; they are left out.", report)
