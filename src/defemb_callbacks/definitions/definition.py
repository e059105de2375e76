"""The entries of a dictionary: definitions of words and relations between words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

# In the order in which equally frequent senses of a word are ranked.
PARTS_OF_SPEECH = ("noun", "verb", "adjective", "adverb", "")


@dataclass(frozen=True, slots=True)
class Definition:
    """One meaning of one word.

    Attributes:
        word: The word as the dictionary spells it (`"Paris"`, `"hot dog"`), or a literal token in a glossary.
        gloss: The definition, without usage examples.
        pos: `"noun"`, `"verb"`, `"adjective"`, `"adverb"`, or `""` if unknown.
        synonyms: The other words of the same concept.
        category: WordNet's lexicographer file, such as `"noun.animal"`.
        rank: 1 for the best definition of the word in its source, then 2, 3, ….
        tag_count: The number of occurrences of this sense in the source's sense-tagged corpus.
        concept: The synset; words of the same concept share a gloss.
        source: The name of the dictionary.

    Example:
        >>> Definition("cat", "a small domesticated feline", pos="noun").rank
        1
    """

    word: str
    gloss: str
    pos: str = ""
    synonyms: tuple[str, ...] = ()
    category: str = ""
    rank: int = 1
    tag_count: int = 0
    concept: str = ""
    source: str = ""


class Relation(NamedTuple):
    """Two words of different concepts; `right` is the `kind` (`"hypernym"`, `"antonym"`, …) of `left`."""

    left: str
    right: str
    kind: str
