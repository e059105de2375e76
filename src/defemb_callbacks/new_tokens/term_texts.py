"""Texts that use a term: check those that are given, and find more in a corpus such as the training data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from defemb_callbacks.new_tokens.terms import Term

# Characters around a term, about 60 tokens in all. States farther away hardly depend on it.
BEFORE, AFTER = 120, 200

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class _Use:
    """How a term is found in text.

    Attributes:
        first: Its first word; "" if it has none.
        pattern: Matches the term as a whole word.
    """

    first: str
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, term: str, ignore_case: bool) -> _Use:
        word = _WORD.search(term)
        first = "" if word is None else word[0]
        pattern = re.compile(rf"(?<!\w){re.escape(term)}(?!\w)", re.IGNORECASE if ignore_case else 0)
        return cls(first.lower() if ignore_case else first, pattern)

    def passage(self, text: str) -> str | None:
        """The part of a text around the first occurrence of the term, cut between words; `None` if there is none."""
        found = self.pattern.search(text)
        if found is None:
            return None
        start, end = max(0, found.start() - BEFORE), min(len(text), found.end() + AFTER)
        if start > 0 and (space := text.find(" ", start - 1, found.start())) >= 0:
            start = space
        if end < len(text) and (space := text.rfind(" ", found.end(), end + 1)) >= 0:
            end = space
        return text[start:end].strip()


def with_texts(
    terms: Sequence[Term], corpus: Iterable[str] = (), *, most: int, ignore_case: bool = False
) -> list[Term]:
    """Return terms with passages that use them: from their own texts, then from a corpus.

    A passage is at most 320 characters around the first occurrence of the term as a whole word, cut between words. Each
    text gives one passage. The corpus is read once, in its order, until each term has `most` different passages.

    Args:
        terms: The terms. Special ones are returned as they are.
        corpus: Texts, such as the column of a data set.
        most: Maximum number of passages of a term.
        ignore_case: Whether to ignore case, for uncased tokenizers.

    Raises:
        ValueError: If a term occurs in none of its own texts.
        TypeError: If the corpus is a string, or contains anything but strings.

    Example:
        >>> terms = [Term("lynx"), Term("ounce")]
        >>> [term.options.texts for term in with_texts(terms, ["A lynx hunts.", "Lynxes hunt.", "The lynx"], most=5)]
        [('A lynx hunts.', 'The lynx'), ()]
    """
    uses = {term.text: _Use.of(term.text, ignore_case) for term in terms if not term.special}
    found: dict[str, dict[str, None]] = {}
    for term in terms:
        if term.special:
            continue
        own = [passage for text in term.options.texts if (passage := uses[term.text].passage(text)) is not None]
        if term.options.texts and not own:
            raise ValueError(
                f"None of the {len(term.options.texts)} texts of {term.text!r} contains it as a whole word; the first "
                f"one is {term.options.texts[0]!r}. Give texts that do."
            )
        found[term.text] = dict.fromkeys(own[:most])
    _search(uses, found, corpus, most, ignore_case)
    return [
        replace(term, options=replace(term.options, texts=tuple(found[term.text]))) if found.get(term.text) else term
        for term in terms
    ]


def _search(
    uses: dict[str, _Use], found: dict[str, dict[str, None]], corpus: Iterable[str], most: int, ignore_case: bool
) -> None:
    """Add passages of a corpus to those of the terms."""
    if isinstance(corpus, str):
        raise TypeError(f"`texts` must be a list of texts or a column of a data set, got {corpus!r:.80}. Pass a list.")
    by_first: dict[str, list[str]] = {}
    for text, passages in found.items():
        if len(passages) < most:
            by_first.setdefault(uses[text].first, []).append(text)
    for number, text in enumerate(corpus):
        if not by_first:
            return
        if not isinstance(text, str):
            raise TypeError(f"Text {number} of `texts` is {text!r:.80}. Pass strings, such as dataset['text'].")
        words = {"", *_WORD.findall(text.lower() if ignore_case else text)}
        for first in words & by_first.keys():
            for term in by_first[first]:
                if (passage := uses[term].passage(text)) is not None:
                    found[term][passage] = None
            by_first[first] = [term for term in by_first[first] if len(found[term]) < most]
            if not by_first[first]:
                del by_first[first]
