"""The terms that are to become tokens, and what defines each of them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from defemb_callbacks.definitions import Definition, Lexicon, load_definitions
from defemb_callbacks.definitions.glossary import Gloss

TermSource: TypeAlias = Mapping[str, Gloss | Sequence[Gloss] | None] | Sequence[str] | str | os.PathLike[str] | Lexicon


@dataclass(frozen=True)
class Term:
    """A word or phrase, and its definitions, best first; none where nobody defines it.

    Example:
        >>> Term("pembrolizumab", (Definition("pembrolizumab", "a monoclonal antibody"),)).text
        'pembrolizumab'
    """

    text: str
    definitions: tuple[Definition, ...] = ()


def read_terms(source: TermSource, dictionary: Lexicon, *, ignore_case: bool = False, most: int = 8) -> list[Term]:
    """Terms in the order in which they are given.

    A term's own definitions stand alone. One without any is looked up in the dictionary.

    Args:
        source: `{term: definition, or a list of them, or None}`; a list of terms without definitions; a `Lexicon`; or a
            `.tsv`, `.csv` or `.json` file, as `load_definitions` reads them. Definitions may bring synonyms, as there.
        dictionary: for the terms that come without a definition.
        ignore_case: look a term up in any spelling, for uncased tokenizers.
        most: definitions of a term from each dictionary.

    Raises:
        ValueError: no term at all, an empty term or definition, a term twice, or with control characters.
        TypeError: a term that is no string, or defined by something else than these.
        FileNotFoundError: no such file.

    Example:
        >>> pets = load_definitions({"cat": "a small feline"})
        >>> terms = read_terms({"lynx": "a wild cat with tufted ears", "cat": None, "ounce": None}, pets)
        >>> [(term.text, [found.gloss for found in term.definitions]) for term in terms]
        [('lynx', ['a wild cat with tufted ears']), ('cat', ['a small feline']), ('ounce', [])]
    """
    if isinstance(source, str | os.PathLike | Lexicon):
        own: Lexicon | None = load_definitions(source)
        names: Iterable[object] = own.words if own else ()
    elif isinstance(source, Mapping):
        names = list(source)
        defined = {term: glosses for term, glosses in source.items() if glosses is not None}
        own = load_definitions(defined) if defined else None
    elif isinstance(source, Sequence):
        names, own = source, None
    else:
        raise TypeError(f"New tokens are a dict {{term: definition}}, a list of terms or a file, not {source!r}.")
    terms: dict[str, Term] = {}
    for name in names:
        text = checked_term(name)
        if text in terms:
            raise ValueError(f"The term {text!r} is given twice; give it once, with all its definitions in a list.")
        # Exactly so: "CAR" may be defined beside "car".
        found = [] if own is None else [found for found in own.lookup(text) if found.word == text]
        found = found or dictionary.lookup(text, ignore_case=ignore_case)
        terms[text] = Term(text, tuple(definition for definition in found if definition.rank <= most))
    if not terms:
        raise ValueError("There are no new tokens to define; give at least one term.")
    return list(terms.values())


def checked_term(name: object) -> str:
    """A term without the space around it: `TypeError` or `ValueError` where it can be no token.

    Example:
        >>> checked_term(" CAR T cell ")
        'CAR T cell'
    """
    if not isinstance(name, str):
        raise TypeError(f"The term {name!r} is no string but a {type(name).__name__}; write it as one.")
    text = name.strip()
    if not text:
        raise ValueError(f"The term {name!r} is empty or nothing but white space; delete it.")
    # Cc: control characters, line breaks among them; Cf: invisible ones; Cs: half of a character.
    odd = next((char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs")), None)
    if odd is not None:
        raise ValueError(f"The term {name!r} holds the control character {odd!r}; take it out.")
    return text
