"""What a user may say about a term besides its definitions: that it is special, and other sources of its row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from defemb_callbacks.definitions.glossary import SEPARATOR

OPTIONS = ("special", "like", "pieces", "texts")
# Words as they are written in tables
_FLAGS = {"true": True, "yes": True, "1": True, "x": True, "false": False, "no": False, "0": False, "": False}


@dataclass(frozen=True)
class TermOptions:
    """Options of a term.

    Attributes:
        special: Whether it becomes a special token.
        like: Words or tokens whose rows its row is made from, with their weights.
        pieces: Words or tokens to average instead of its sub-tokens.
        texts: Texts that use the term. Its row is trained on them; see `distilled_rows`.
    """

    special: bool = False
    like: tuple[tuple[str, float], ...] = ()
    pieces: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def describes_row(self) -> bool:
        """Whether there is a source of the row that replaces the definition of a dictionary."""
        return bool(self.special or self.like or self.pieces)


def read_options(entry: Mapping[str, Any], place: str) -> TermOptions:
    """Read the options of a term.

    Args:
        entry: May contain `special`, a bool; `like`, a word, a list of words, or a dict `{word: weight}`; `pieces`, a
            list of words; and `texts`, a list of texts that use the term. Absent options may be `None`.
        place: Where the entry is, for error messages.

    Raises:
        ValueError: If an option has another type, is empty, or has a weight that is not positive; or if a special token
            has `texts`.

    Example:
        >>> read_options({"like": {"draw": 2, "line": 1}, "special": True}, "the dict")
        TermOptions(special=True, like=(('draw', 2.0), ('line', 1.0)), pieces=(), texts=())
    """
    special, like = entry.get("special"), entry.get("like")
    if special is not None and not isinstance(special, bool):
        raise ValueError(f"{place}: `special` must be true or false, got {special!r}.")
    texts = _strings("texts", "a text or a non-empty list of texts", entry.get("texts"), place)
    if special and texts:
        raise ValueError(
            f"{place}: `texts` cannot be used for a special token, whose sub-tokens have no meaning that could be "
            "distilled. Give a definition, or `like`."
        )
    weighted = like if isinstance(like, Mapping) else dict.fromkeys(_names("like", like, place), 1)
    for name, weight in weighted.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"{place}: the weight of {name!r} in `like` must be a positive number, got {weight!r}.")
    return TermOptions(
        special=bool(special),
        like=tuple((name, float(weighted[name])) for name in _names("like", like, place)),
        pieces=tuple(_names("pieces", entry.get("pieces"), place)),
        texts=tuple(texts),
    )


def options_of_cells(cells: Mapping[str, str], place: str) -> dict[str, Any]:
    """Convert the cells of a table with options to the values that `read_options` reads.

    Words are separated by `;`, weights follow `=`, and `special` is "yes", "true", "x" or "1", or their opposites.

    Args:
        cells: Text by column.
        place: Where the row is, for error messages.

    Raises:
        ValueError: If `special` is another text, or there are `texts`.

    Example:
        >>> options_of_cells({"word": "<|svg|>", "like": "draw=2; line", "special": "yes"}, "terms.csv, line 2")
        {'special': True, 'like': {'draw': 2.0, 'line': 1.0}}
    """
    found: dict[str, Any] = {}
    flag = cells.get("special", "").strip()
    if flag.lower() not in _FLAGS:
        raise ValueError(f"{place}: `special` must be yes or no, got {flag!r}.")
    if _FLAGS[flag.lower()]:
        found["special"] = True
    if like := _listed(cells.get("like", "")):
        found["like"] = dict(map(_split_weight, like))
    if pieces := _listed(cells.get("pieces", "")):
        found["pieces"] = pieces
    if cells.get("texts", "").strip():
        raise ValueError(f"{place}: a cell cannot hold a list of `texts`. Write the terms to a .json or .jsonl file.")
    return found


def _listed(cell: str) -> list[str]:
    return [name.strip() for name in cell.split(SEPARATOR) if name.strip()]


def _split_weight(text: str) -> tuple[str, float]:
    name, _, weight = text.rpartition("=")
    try:
        return (name.strip(), float(weight)) if name.strip() else (text, 1.0)
    except ValueError:  # the token contains "="
        return text, 1.0


def _names(option: str, value: object, place: str) -> list[str]:
    return _strings(option, "a word, a token or a non-empty list of these", value, place)


def _strings(option: str, expected: str, value: object, place: str) -> list[str]:
    if value is None:
        return []
    listed = [value] if isinstance(value, str) else list(value) if isinstance(value, Mapping | Sequence) else None
    if not listed or not all(isinstance(name, str) and name.strip() for name in listed):
        raise ValueError(f"{place}: `{option}` must be {expected}, got {value!r}. Correct it, or leave it out.")
    return listed
