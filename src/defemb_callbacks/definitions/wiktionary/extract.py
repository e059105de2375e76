"""Load Wiktionary extracts as published on kaikki.org; the parsed lexicon is cached."""

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

from defemb_callbacks.cache import cache_root, cached, fingerprint, remembered_fingerprint
from defemb_callbacks.definitions.lexicon import Lexicon
from defemb_callbacks.definitions.morphology import Morphology
from defemb_callbacks.definitions.wiktionary.record import parse_record
from defemb_callbacks.definitions.wiktionary.tables import WiktionaryTables
from defemb_callbacks.progress import ProgressBar

logger = logging.getLogger(__name__)

# Part of the cache key. Increment it when a change of the reader changes the lexicon of the same file.
READER_VERSION = "2"
MAX_MALFORMED_SHARE = 0.01
_MAX_LISTED = 5  # numbers of malformed lines in messages
_GIVE_UP_AFTER = 1000  # lines, if all of them are malformed
_FORMAT = (
    'one JSON object per line with "word", "pos", "lang_code" and "senses", as in kaikki.org-dictionary-English.jsonl'
)


def load_wiktionary(path: Path, language: str = "en") -> Lexicon:
    """Load a Wiktionary extract from the cache, or read it and cache it; see `read_wiktionary` for the arguments."""
    path = Path(path)
    folder = cache_root() / "wiktionary" / fingerprint(READER_VERSION, language, remembered_fingerprint(path))
    return cached(folder, lambda: read_wiktionary(path, language), Lexicon.save, Lexicon.load)


def read_wiktionary(path: Path, language: str = "en") -> Lexicon:
    """Read a Wiktionary extract in wiktextract's format: JSON Lines, gzipped or not.

    Senses keep the order of the file, but obsolete, archaic, rare and similar senses come last, as do the names of
    letters and other signs. Senses that only refer to another word ("plural of cat", "alternative spelling of colour",
    "initialism of …") are replaced by that word's definitions, after the word's own. If the other word is not in the
    file, an inflected form is skipped, and other references keep their gloss. Markup and usage labels are removed from
    glosses.

    Args:
        path: A `.jsonl` or `.jsonl.gz` file, such as the English one at https://kaikki.org/dictionary/English/.
        language: Wiktionary's code of the language of the words; entries of other languages are skipped. Entries
            without a language code are read only if the first entry has none.

    Raises:
        ValueError: If more than 1 % of the lines are malformed, the file is truncated, or it has no definition in this
            language; names the lines or the languages found.
        OSError: If the file cannot be read.

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
            if "word" not in entry and "redirect" in entry:  # a redirect page
                continue
            code = _language_code(entry)
            if reads_unnamed is None:
                reads_unnamed = code == ""
            # Also parse records of other languages: the share of malformed lines refers to all lines.
            record = parse_record(entry)
        except (ValueError, RecursionError):
            malformed += 1
            first += [number] * (malformed <= _MAX_LISTED)
            if malformed == lines == _GIVE_UP_AFTER:
                break
            continue
        languages[code or "none"] += 1
        if code == language or (not code and reads_unnamed):
            tables.add(record)
    _check(path, lines, malformed, first)
    lexicon = tables.lexicon("wiktionary", Morphology() if language == "en" else None)
    if lexicon is None:
        found = ", ".join(f"{code!r} ({count:,})" for code, count in languages.most_common(10)) or "none"
        raise ValueError(
            f"{path} has no definition in the language {language!r}; its entries are in {found}. Use an extract of "
            "that language, or pass another language to load_wiktionary."
        )
    return lexicon


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the non-blank lines with their numbers and show a progress bar of the bytes read."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        total = path.stat().st_size
        with ProgressBar(total, f"Reading {path.name}", "byte") as progress:
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
                raise ValueError(f"{path} is truncated or damaged ({error}). Download it again.") from error
            progress.update(total - progress.n)


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line.decode())
    except RecursionError as error:
        raise ValueError("the record is nested too deeply") from error
    if not isinstance(entry, dict):
        raise ValueError("the record must be an object")
    if b"\\ud" in line.lower():
        # An unpaired surrogate is valid JSON, but it cannot be encoded as text.
        json.dumps(entry, ensure_ascii=False).encode()
    return entry


def _language_code(entry: dict[str, Any]) -> str:
    code = entry.get("lang_code") or ""
    if not isinstance(code, str):
        raise ValueError("the language code must be a string")
    return code


def _check(path: Path, lines: int, malformed: int, first: list[int]) -> None:
    if not lines:
        raise ValueError(f"{path} is empty. It must contain {_FORMAT}.")
    if not malformed:
        return
    listed = ", ".join(map(str, first)) + (", …" if malformed > len(first) else "")
    report = (
        f"{malformed:,} of {lines:,} lines of {path} are malformed ({'line' if malformed == 1 else 'lines'} {listed})"
    )
    if malformed > MAX_MALFORMED_SHARE * lines:
        raise ValueError(
            f"{report}. The file must contain {_FORMAT}. Download it again, or correct or delete those lines."
        )
    logger.warning("%s. They are skipped.", report)
