"""One record of a wiktextract file: its senses, cleaned, and the words that it refers to."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

# As wiktextract names them; the parts of speech of the closed classes and of signs have no name in a lexicon.
PARTS = {"noun": "noun", "name": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
SIGNS = frozenset(("character", "symbol", "punct"))

# What is said of a sense that few texts of today use.
LATE_LABELS = frozenset(
    ("archaic", "dated", "historical", "misspelling", "nonstandard", "obsolete", "rare", "uncommon", "no longer used")
)

# Labels that say how a word is used. Those that name a field ("baseball") say what it means, and stay in the gloss.
USAGE_LABELS = LATE_LABELS | frozenset(
    """
    transitive intransitive ambitransitive ditransitive reflexive impersonal modal auxiliary copulative attributive
    predicative postpositive countable uncountable plural singular collective comparable idiomatic idiom slang informal
    formal colloquial colloquially vulgar derogatory pejorative offensive humorous euphemism euphemistic childish
    literary poetic figurative figuratively fig metaphorical metaphorically literally literal dialect dialectal
    regional proscribed Internet internet US UK USA Britain British Canada Canadian Australia Australian Ireland Irish
    Scotland Scottish India England English intr. tr. grammar old-fashioned
    """.split()  # noqa: SIM905 - a list of quoted words would be harder to read
)


USAGE_LABELS |= {"by extension", "not comparable", "set phrase", "in the plural", "plural only", "New Zealand"}


_HEDGES = ("chiefly ", "mainly ", "mostly ", "usually ", "often ", "now ", "sometimes ", "somewhat ", "also ")

# Said of words that are made of another one, yet mean something else: "one who runs", "a small duck".
DERIVED = frozenset(("agent", "diminutive", "augmentative"))
RELATIONS = {
    "hypernyms": "hypernym",
    "hyponyms": "hyponym",
    "holonyms": "holonym",
    "meronyms": "meronym",
    "antonyms": "antonym",
    "coordinate_terms": "coordinate",
}
LINKS_KEPT = 10  # of one kind, in one sense; thesaurus pages list hundreds
_MARKUP = re.compile(r"[\[\]{}<>&]|''|Category:")
_LABEL_TEMPLATE = re.compile(r"\{\{\s*(?:lb|lbl|label|tlb)\s*\|[^{}|]*\|([^{}]*)\}\}")
_TEXT_TEMPLATE = re.compile(
    r"\{\{\s*(?:l|ll|link|m|mention|w|gloss|gl|ngd|n-g|non-gloss definition|taxlink|vern)\s*\|([^{}]*)\}\}"
)
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_REPLACED = [
    (re.compile(r"<!--.*?(?:-->|$)|<ref\b[^>]*/>|<ref\b.*?(?:</ref>|$)", re.DOTALL), ""),
    (re.compile(r"\[\[\s*(?:Category|File|Image)\s*:[^\[\]]*\]\]", re.IGNORECASE), ""),
    (re.compile(r"</?(?:br|p|li|div)\b[^<>]*>", re.IGNORECASE), " "),
    (re.compile(r"</?[a-zA-Z][^<>]*>"), ""),
    (re.compile(r"\[https?://\S+ ([^\[\]]*)\]"), r"\1"),
    # "water.[1]" has a note; "C[16]H[34]" is a formula.
    (re.compile(r"(?:(?<=[a-z]{3})|(?<=[.,;:\"'”\s]))(?:\[(?:\d{1,3}|note \d+|citation needed)\])+"), ""),
    (re.compile(r"\s*\bCategory:\S.*$", re.DOTALL), ""),
    (re.compile(r"\{\{.*$|\[\[|\]\]|\}\}|'{2,}", re.DOTALL), ""),
]
_LEADING_LABELS = re.compile(r"\(([^()]{1,80})\)[\s:,]*")
_GRAMMAR = (
    r"(?:en|first|second|third|person|singular|plural|simple|past|present|tense|participle|gerund|comparative|"
    r"superlative|inflection|indicative|subjunctive|imperative|objective|possessive|form|case|degree)"
)
_QUALITY = (
    r"(?:alternative|archaic|obsolete|dated|rare|nonstandard|uncommon|informal|colloquial|dialectal|variant|older|"
    r"eye dialect|pronunciation|former|superseded|short|shortened|pet|letter-case|case|standard)"
)

# "plural of cat", "simple past tense and past participle of run"; not "person of Danish descent" or "a form of art".
_INFLECTION = re.compile(
    rf"(?=.*\b(?:singular|plural|past|tense|participle|gerund|comparative|superlative|inflection|objective)\b.*\bof\b)"
    rf"(?:{_GRAMMAR}(?:[-/ ]|, )(?:and )?)+of\b",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(
    rf"(?:an? )?(?:(?:{_QUALITY} )+(?:spelling|form|capitalization)|misspelling|eye dialect|abbreviation|initialism|"
    r"acronym|clipping|ellipsis|synonym) (?:of|for)\b",
    re.IGNORECASE,
)
_QUOTES = "\"'“”‘’ "

# A full stop after "Dr" or "U.S" is one of an abbreviation.
_LEMMA_ENDS = re.compile(r"[;:(]|, |(?<!\b[A-Z])(?<!\b[A-Z][a-z])\.(?:\s|$)")
_BEFORE_LEMMA = re.compile(r"(?:the )?(?:noun|verb|adjective|adverb|word|number) |to ", re.IGNORECASE)
_NO_LEMMA = re.compile(r"(?:an?|the|any|some|verbs|nouns|adjectives) ", re.IGNORECASE)


class Sense(NamedTuple):
    """A meaning of the record's word, or, where `lemmas` are given, a reference to the meanings of other words.

    Attributes:
        gloss: the cleaned definition.
        late: whether it is obsolete, rare or the like.
        synonyms: other words with this meaning.
        lemmas: what the word is a form, another spelling or an abbreviation of.
        inflected: whether it is an inflected form, of which the gloss says nothing but that.
    """

    gloss: str
    late: bool = False
    synonyms: tuple[str, ...] = ()
    lemmas: tuple[str, ...] = ()
    inflected: bool = False


class Record(NamedTuple):
    """What a lexicon takes from one line: the word's senses in their order, and (kind, word) related to it."""

    word: str
    pos: str
    senses: list[Sense]
    relations: list[tuple[str, str]]


def parse_record(entry: Mapping[str, Any]) -> Record:
    """Read a wiktextract record.

    Raises:
        ValueError: it has no word, or its senses, glosses or links are not what they should be.

    Example:
        >>> record = parse_record({"word": "cats", "pos": "noun", "senses": [{"glosses": ["plural of cat"]}]})
        >>> record.senses[0].lemmas
        ('cat',)
    """
    word = entry.get("word")
    senses = entry.get("senses")
    if not isinstance(word, str) or not word.strip():
        raise ValueError("it has no word")
    if not isinstance(senses, list) or not all(isinstance(sense, dict) for sense in senses):
        raise ValueError("its senses are no list of objects")
    word, part = " ".join(word.split()), entry.get("pos")
    part = part if isinstance(part, str) else ""
    # Synonyms of a whole entry belong to one of its senses, but only where it has one is it known which.
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


def clean_gloss(gloss: str) -> tuple[str, set[str]]:
    """The plain text of a gloss, and the usage labels that stood before it.

    Example:
        >>> text, labels = clean_gloss("(obsolete, transitive) To ''share'' a [[secret|hidden]] thing.[1]")
        >>> text, sorted(labels)
        ('To share a hidden thing.', ['obsolete', 'transitive'])
    """
    labels: set[str] = set()
    if _MARKUP.search(gloss):
        gloss, labels = _without_markup(gloss)
    gloss = " ".join(gloss.split())
    while match := _LEADING_LABELS.match(gloss):
        parts = {_unhedged(part) for part in re.split(r",|;|/| or | and ", match[1]) if part.strip()}
        if not parts <= USAGE_LABELS:
            break
        labels |= parts
        gloss = gloss[match.end() :]
    gloss = gloss.lstrip("#*:;, ")
    return (gloss if any(map(str.isalnum, gloss)) else ""), labels


def reference(gloss: str) -> tuple[str | None, bool]:
    """The word that a gloss merely refers to (`None`: it defines; `""`: it does not say which), and if by inflection.

    Example:
        >>> reference("simple past tense and past participle of run"), reference("alternative spelling of colour.")
        (('run', True), ('colour', False))
        >>> reference("a form of government")
        (None, False)
    """
    for pattern, inflected in ((_INFLECTION, True), (_ALTERNATIVE, False)):
        if match := pattern.match(gloss):
            rest = gloss[match.end() :].strip(_QUOTES)
            if before := _BEFORE_LEMMA.match(rest):
                rest = rest[before.end() :]
            if inflected and _NO_LEMMA.match(rest):
                return None, False
            lemma = _LEMMA_ENDS.split(rest, maxsplit=1)[0].strip(_QUOTES)
            return (None, False) if inflected and len(lemma.split()) > 4 else (lemma, inflected)
    return None, False


def _sense(raw: Mapping[str, Any], word: str, sign: bool, shared: list[str]) -> Sense | None:
    tags = {tag for tag in _listed(raw, "tags") if isinstance(tag, str)}
    if "no-gloss" in tags:
        return None
    texts = []
    for gloss in _listed(raw, "glosses") or _listed(raw, "raw_glosses"):
        if not isinstance(gloss, str):
            raise ValueError("a gloss is no text")
        text, labels = clean_gloss(gloss)
        tags |= labels
        texts.append(text)
    gloss, late = _joined(texts), sign or not tags.isdisjoint(LATE_LABELS)
    inflections, alternatives = _linked(raw, "form_of"), _linked(raw, "alt_of")
    if (inflections or alternatives) and tags.isdisjoint(DERIVED):
        return Sense(gloss, late, lemmas=tuple(inflections + alternatives), inflected=not alternatives)
    if not gloss:
        return None
    # The last gloss is that of the sense itself; those before it are the headings that it stands under.
    lemma, inflected = reference(texts[-1])
    if lemma is None and reference(texts[0])[1]:  # "inflection of be:" above "first-person singular"
        lemma, inflected = reference(texts[0])
    if lemma == "":
        return None
    if lemma is not None:
        late = late or not LATE_LABELS.isdisjoint(gloss.lower().split()[:2])
        return Sense(gloss, late, lemmas=(lemma,), inflected=inflected)
    synonyms = dict.fromkeys(_linked(raw, "synonyms") or shared)
    synonyms.pop(word, None)
    return Sense(gloss, late, tuple(synonyms))


def _joined(texts: Iterable[str]) -> str:
    """A sub-sense's gloss after those of the senses above it, unless it repeats them."""
    joined = ""
    for text in texts:
        if not joined or text.startswith(joined):
            joined = text
        elif text:
            joined = f"{joined.rstrip(' .:;,')}: {text}"
    return joined


def _listed(level: Mapping[str, Any], key: str) -> list[Any]:
    value = level.get(key)
    if value is None:  # tables of records name every key
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError(f"its {key} are no list")
    return value


def _linked(level: Mapping[str, Any], key: str) -> list[str]:
    if key not in level:  # as most
        return []
    return list(_words(_listed(level, key)))[:LINKS_KEPT]


def _words(links: Iterable[Any]) -> Iterator[str]:
    for link in links:
        word = link.get("word") if isinstance(link, dict) else link
        if isinstance(word, str) and word.strip() and not word.startswith("Thesaurus:"):
            yield " ".join(word.split())


def _unhedged(label: str) -> str:
    label = label.strip()
    for hedge in _HEDGES:
        label = label.removeprefix(hedge)
    return label


def _without_markup(text: str) -> tuple[str, set[str]]:
    labels = {_unhedged(label) for found in _LABEL_TEMPLATE.findall(text) for label in found.split("|")}
    for pattern, replacement in _REPLACED[:2]:
        text = pattern.sub(replacement, text)
    while (plain := _TEMPLATE.sub("", _TEXT_TEMPLATE.sub(_last_argument, text))) != text:
        text = plain  # templates stand within templates
    text = _LINK.sub(r"\1", text)
    for pattern, replacement in _REPLACED[2:]:
        text = pattern.sub(replacement, text)
    return html.unescape(text), labels


def _last_argument(template: re.Match[str]) -> str:
    return next((part for part in reversed(template[1].split("|")) if part and "=" not in part), "")
