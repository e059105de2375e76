"""Parse wiktextract records into senses, references to other words, and relations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from defemb_callbacks.definitions.wiktionary.gloss import DEMOTED_LABELS, NOTICE, clean_gloss, parse_reference

# From wiktextract's parts of speech to those of a lexicon; all others become "".
PARTS = {"noun": "noun", "name": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
SIGNS = frozenset(("character", "symbol", "punct"))

# Tags of derived words with a meaning of their own, such as "one who runs" or "a small duck".
DERIVED = frozenset(("agent", "diminutive", "augmentative"))
RELATIONS = {
    "hypernyms": "hypernym",
    "hyponyms": "hyponym",
    "holonyms": "holonym",
    "meronyms": "meronym",
    "antonyms": "antonym",
    "coordinate_terms": "coordinate",
}
MAX_LINKS = 10  # per kind and sense; thesaurus pages list hundreds


class Sense(NamedTuple):
    """One meaning of a word, or a reference to the meanings of other words, its lemmas.

    Attributes:
        gloss: The cleaned definition.
        demoted: Whether the sense is ranked last, because it is obsolete, rare or the name of a sign.
        synonyms: Other words with this meaning.
        lemmas: The words of which the word is an inflected form, a spelling variant or an abbreviation.
        inflected: Whether the word is an inflected form, so that the gloss is useless without the lemma.
    """

    gloss: str
    demoted: bool = False
    synonyms: tuple[str, ...] = ()
    lemmas: tuple[str, ...] = ()
    inflected: bool = False


class Record(NamedTuple):
    """The content of one line of a wiktextract file.

    Attributes:
        word: The word that the record defines.
        pos: Its part of speech, `""` if it has no name in a lexicon.
        senses: Its senses, in the order of the record.
        relations: (kind, word) of each related word.
    """

    word: str
    pos: str
    senses: list[Sense]
    relations: list[tuple[str, str]]


def parse_record(entry: Mapping[str, Any]) -> Record:
    """Parse a wiktextract record.

    Raises:
        ValueError: If the record has no word, or if its senses, glosses or links have an unexpected structure.

    Example:
        >>> record = parse_record({"word": "cats", "pos": "noun", "senses": [{"glosses": ["plural of cat"]}]})
        >>> record.senses[0].lemmas
        ('cat',)
    """
    word = entry.get("word")
    senses = entry.get("senses")
    if not isinstance(word, str) or not word.strip():
        raise ValueError("the record has no word")
    if not isinstance(senses, list) or not all(isinstance(sense, dict) for sense in senses):
        raise ValueError("the senses must be a list of objects")
    word, part = " ".join(word.split()), entry.get("pos")
    part = part if isinstance(part, str) else ""
    # Synonyms of a whole record belong to one of its senses; which one is known only if there is a single sense.
    shared = _linked(entry, "synonyms") if len(senses) == 1 else []
    found, seen = [], set()
    for raw in senses:
        sense = _sense(raw, word, part in SIGNS, shared)
        if sense is not None and (sense.gloss, sense.lemmas) not in seen:
            seen.add((sense.gloss, sense.lemmas))
            found.append(sense)
    relations = [
        (kind, other)
        for level in (*senses, entry)
        for key, kind in RELATIONS.items()
        if key in level
        for other in _linked(level, key)
    ]
    return Record(word, PARTS.get(part, ""), found, relations)


def _sense(raw: Mapping[str, Any], word: str, is_sign: bool, shared: list[str]) -> Sense | None:
    tags = {tag for tag in _listed(raw, "tags") if isinstance(tag, str)}
    if "no-gloss" in tags:
        return None
    texts = []
    for gloss in _listed(raw, "glosses") or _listed(raw, "raw_glosses"):
        if not isinstance(gloss, str):
            raise ValueError("a gloss must be a string")
        text, labels = clean_gloss(gloss)
        tags |= labels
        texts.append(text)
    gloss, demoted = _joined(texts), is_sign or not tags.isdisjoint(DEMOTED_LABELS)
    inflections, alternatives = _linked(raw, "form_of"), _linked(raw, "alt_of")
    if (inflections or alternatives) and tags.isdisjoint(DERIVED):
        return Sense(gloss, demoted, lemmas=tuple(inflections + alternatives), inflected=not alternatives)
    if not gloss or NOTICE.match(texts[-1]):
        return None
    # The last gloss belongs to the sense itself; those before it belong to the senses above it.
    lemma, inflected = parse_reference(texts[-1])
    if lemma is None and parse_reference(texts[0])[1]:  # "inflection of be:" above "first-person singular"
        lemma, inflected = parse_reference(texts[0])
    if lemma == "":
        return None
    if lemma is not None:
        demoted = demoted or not DEMOTED_LABELS.isdisjoint(gloss.lower().split()[:2])
        return Sense(gloss, demoted, lemmas=(lemma,), inflected=inflected)
    synonyms = dict.fromkeys(_linked(raw, "synonyms") or shared)
    synonyms.pop(word, None)
    return Sense(gloss, demoted, tuple(synonyms))


def _joined(texts: Iterable[str]) -> str:
    """Join the gloss of a sub-sense to those of the senses above it, unless it repeats them."""
    joined = ""
    for text in texts:
        if not joined or text.startswith(joined):
            joined = text
        elif text:
            joined = f"{joined.rstrip(' .:;,')}: {text}"
    return joined


def _listed(level: Mapping[str, Any], key: str) -> list[Any]:
    value = level.get(key)
    if value is None:  # records exported from tables have all keys, with null for missing values
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list")
    return value


def _linked(level: Mapping[str, Any], key: str) -> list[str]:
    if key not in level:  # a shortcut: most records have no links
        return []
    return list(_words(_listed(level, key)))[:MAX_LINKS]


def _words(links: Iterable[Any]) -> Iterator[str]:
    for link in links:
        word = link.get("word") if isinstance(link, dict) else link
        if isinstance(word, str) and word.strip() and not word.startswith("Thesaurus:"):
            yield " ".join(word.split())
