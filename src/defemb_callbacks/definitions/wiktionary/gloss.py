"""Clean Wiktionary glosses: remove markup and usage labels, and recognize references to other words."""

from __future__ import annotations

import html
import re

# Labels of senses that are rare in modern text; these senses are ranked last.
DEMOTED_LABELS = frozenset(
    ("archaic", "dated", "historical", "misspelling", "nonstandard", "obsolete", "rare", "uncommon", "no longer used")
)

# Labels of usage are removed. Labels of a subject field ("baseball") are part of the meaning and stay in the gloss.
USAGE_LABELS = DEMOTED_LABELS | frozenset(
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
_QUALIFIERS = ("chiefly ", "mainly ", "mostly ", "usually ", "often ", "now ", "sometimes ", "somewhat ", "also ")

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
    # Remove the footnote in "water.[1]", but keep the formula "C[16]H[34]".
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
# Notices of Wiktionary's templates instead of a definition: `no entry`, `rfdef`, `translation only`
NOTICE = re.compile(
    r"Wiktionary does not (?:currently )?have an?y? |There is no (?:\w+ )?entry |No entry(?: (?:for|exists|is)\b|\.?$)|"
    r"This (?:term|entry|word|sense) (?:needs a (?:definition|translation)|is (?:here )?for translation)|"
    r"A definition is (?:needed|missing)",
    re.IGNORECASE,
)
_QUOTES = "\"'“”‘’ "

# A period after "Dr" or "U.S" marks an abbreviation, not the end of the lemma.
_LEMMA_ENDS = re.compile(r"[;:(]|, |(?<!\b[A-Z])(?<!\b[A-Z][a-z])\.(?:\s|$)")
_BEFORE_LEMMA = re.compile(r"(?:the )?(?:noun|verb|adjective|adverb|word|number) |to ", re.IGNORECASE)
_NO_LEMMA = re.compile(r"(?:an?|the|any|some|verbs|nouns|adjectives) ", re.IGNORECASE)


def clean_gloss(gloss: str) -> tuple[str, set[str]]:
    """Convert a gloss to plain text.

    Args:
        gloss: The gloss, with wiki markup and usage labels or without.

    Returns:
        The text (empty if there is nothing alphanumeric in it) and the usage labels that preceded it.

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
        parts = {_without_qualifier(part) for part in re.split(r",|;|/| or | and ", match[1]) if part.strip()}
        if not parts <= USAGE_LABELS:
            break
        labels |= parts
        gloss = gloss[match.end() :]
    gloss = gloss.lstrip("#*:;, ")
    return (gloss if any(map(str.isalnum, gloss)) else ""), labels


def parse_reference(gloss: str) -> tuple[str | None, bool]:
    """Find the word that a gloss refers to, if it is a reference ("plural of cat") and not a definition.

    Args:
        gloss: A gloss from `clean_gloss`.

    Returns:
        The word, which is `None` if the gloss is a definition and `""` if the reference names no word, and whether it
        is a reference from an inflected form.

    Example:
        >>> parse_reference("simple past tense and past participle of run")
        ('run', True)
        >>> parse_reference("alternative spelling of colour.")
        ('colour', False)
        >>> parse_reference("a form of government")
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


def _without_qualifier(label: str) -> str:
    label = label.strip()
    for qualifier in _QUALIFIERS:
        label = label.removeprefix(qualifier)
    return label


def _without_markup(text: str) -> tuple[str, set[str]]:
    labels = {_without_qualifier(label) for found in _LABEL_TEMPLATE.findall(text) for label in found.split("|")}
    for pattern, replacement in _REPLACED[:2]:
        text = pattern.sub(replacement, text)
    while (plain := _TEMPLATE.sub("", _TEXT_TEMPLATE.sub(_last_argument, text))) != text:
        text = plain  # repeat for nested templates
    text = _LINK.sub(r"\1", text)
    for pattern, replacement in _REPLACED[2:]:
        text = pattern.sub(replacement, text)
    return html.unescape(text), labels


def _last_argument(template: re.Match[str]) -> str:
    return next((part for part in reversed(template[1].split("|")) if part and "=" not in part), "")
