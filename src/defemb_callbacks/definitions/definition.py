"""What a dictionary says: definitions of words and relations between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

# Also the order in which equally frequent senses of a word are ranked.
PARTS_OF_SPEECH = ("noun", "verb", "adjective", "adverb", "")


@dataclass(frozen=True, slots=True)
class Definition:
    """One meaning of one word.

    Attributes:
        word: the word as the dictionary writes it (`"Paris"`, `"hot dog"`), or a literal token in a glossary.
        gloss: the definition, without usage examples.
        pos: `"noun"`, `"verb"`, `"adjective"`, `"adverb"`, or `""` where the dictionary does not say.
        synonyms: the other words of the same concept.
        category: WordNet's lexicographer file, such as `"noun.animal"`.
        rank: 1 for the best definition of the word in its source, then 2, 3, ….
        tag_count: how often this sense was seen in the source's sense-tagged corpus.
        concept: the synset; two words of one concept share a gloss.
        source: the name of the dictionary.

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
    """Two words of different concepts, and what `right` is to `left` (`"hypernym"`, `"antonym"`, …)."""

    left: str
    right: str
    kind: str
