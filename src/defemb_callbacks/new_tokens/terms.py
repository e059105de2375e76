"""Read the terms to add and their definitions from a dict, a list, a file or a `Lexicon`, and validate them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from defemb_callbacks.definitions import Definition, Lexicon, load_definitions
from defemb_callbacks.definitions.glossary import Gloss
from defemb_callbacks.new_tokens.term_files import GivenTerms, terms_from_dict, terms_from_file
from defemb_callbacks.new_tokens.term_options import TermOptions

# The zero-width non-joiner and joiner, which belong to the spelling of Persian, Hindi or Sinhala words
JOINERS = "\u200c\u200d"

TermSource: TypeAlias = (
    Mapping[str, Gloss | Mapping[str, Any] | Sequence[Gloss] | None] | Sequence[str] | str | os.PathLike[str] | Lexicon
)


@dataclass(frozen=True)
class Term:
    """A word, a phrase or a control token, and the sources of its row.

    Attributes:
        text: The term.
        definitions: Its definitions, best first; empty if neither the user nor the dictionary defines it.
        options: Whether it is special, and other sources of its row.

    Example:
        >>> Term("pembrolizumab", (Definition("pembrolizumab", "a monoclonal antibody"),)).text
        'pembrolizumab'
    """

    text: str
    definitions: tuple[Definition, ...] = ()
    options: TermOptions = field(default_factory=TermOptions)

    @property
    def special(self) -> bool:
        """Whether it becomes a special token."""
        return self.options.special


def read_terms(
    source: TermSource, dictionary: Lexicon, *, ignore_case: bool = False, max_definitions: int = 8
) -> list[Term]:
    """Read terms, in the order in which they are given.

    A term's own definitions replace those of the dictionary, which defines terms that come without any source.

    Args:
        source: `{term: definition, or a list of them, or None}`; a list of terms without definitions; a `Lexicon`; or a
            `.tsv`, `.csv`, `.json` or `.jsonl` file, with synonyms if there are any. In place of a definition there may
            be a dict `{"definition": …, "synonyms": […], "special": True}`; see `read_options`. Files may have the same
            columns; their terms are sorted as in a `Lexicon`.
        dictionary: Dictionary for the terms that come without a definition.
        ignore_case: Whether to ignore case when terms are looked up, for uncased tokenizers.
        max_definitions: Maximum number of definitions of a term from each dictionary.

    Raises:
        ValueError: If there is no term, a term, definition or option is empty or invalid, a term is repeated or
            contains control characters, or a special one has no source of its row.
        TypeError: If a term is not a string, or a definition has another type.
        FileNotFoundError: If there is no such file.

    Example:
        >>> pets = load_definitions({"cat": "a small feline"})
        >>> terms = read_terms({"lynx": "a wild cat with tufted ears", "cat": None, "ounce": None}, pets)
        >>> [(term.text, [found.gloss for found in term.definitions]) for term in terms]
        [('lynx', ['a wild cat with tufted ears']), ('cat', ['a small feline']), ('ounce', [])]
    """
    given = _given(source)
    terms: dict[str, Term] = {}
    for name in given.names:
        text = clean_term(name)
        if text in terms:
            raise ValueError(f"The term {text!r} is given twice. Give it once, with all its definitions in a list.")
        options = given.options.get(name, TermOptions())
        found = [] if given.definitions is None else given.definitions.lookup(text)
        # Case-sensitive: "CAR" and "car" may both be defined.
        found = [definition for definition in found if definition.word == text]
        if not found and not options.describes_row:
            found = dictionary.lookup(text, ignore_case=ignore_case)
        if not found and options == TermOptions(special=True):
            raise ValueError(
                f"The special token {text!r} has no source of its row. Describe it with a definition, or set `like` to "
                "a word."
            )
        kept = tuple(definition for definition in found if definition.rank <= max_definitions)
        terms[text] = Term(text, kept, options)
    if not terms:
        raise ValueError("There are no new tokens to define. Give at least one term.")
    return list(terms.values())


def _given(source: TermSource) -> GivenTerms:
    if isinstance(source, Lexicon):
        return GivenTerms(list(source.words), source)
    if source == "wordnet":
        return _given(load_definitions("wordnet"))
    if isinstance(source, str | os.PathLike):
        return terms_from_file(Path(source).expanduser())
    if isinstance(source, Mapping):
        return terms_from_dict(source)
    if isinstance(source, Sequence):
        return GivenTerms(list(source))
    raise TypeError(f"New tokens must be a dict {{term: definition}}, a list of terms or a file, got {source!r}.")


def clean_term(name: object) -> str:
    """Strip the white space around a term, and check that it can be a token.

    Args:
        name: The term.

    Raises:
        TypeError: If it is not a string.
        ValueError: If it is empty or contains control characters.

    Example:
        >>> clean_term(" CAR T cell ")
        'CAR T cell'
    """
    if not isinstance(name, str):
        raise TypeError(f"Terms must be strings, got {name!r} ({type(name).__name__}). Quote it.")
    text = name.strip()
    if not text:
        raise ValueError(f"The term {name!r} is empty or only white space. Delete it.")
    # Cc: control characters, including line breaks; Cf: invisible formatting characters; Cs: unpaired surrogates.
    kinds = [unicodedata.category(char) for char in text]
    control = None
    for place, (char, kind) in enumerate(zip(text, kinds, strict=True)):
        if kind in ("Cc", "Cf", "Cs") and not (char in JOINERS and _is_inside_word(kinds, place)):
            control = control or char
    if control is not None:
        raise ValueError(f"The term {name!r} contains the control character {control!r}. Remove it.")
    return text


def _is_inside_word(kinds: Sequence[str], place: int) -> bool:
    """Whether the characters before and after a place are letters or marks, such as vowel signs."""
    around = (*kinds[max(place - 1, 0) : place], *kinds[place + 1 : place + 2])
    return len(around) == 2 and all(kind[0] in "LM" for kind in around)
