"""From inflected forms to lemmas, by the rules of WordNet's own morphological processor.

The rules and their order are those of `morphy(7WN)` ("Morphological Processing", WordNet 3.0). Collocations are not
taken apart: a token is one word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

from defemb_callbacks.cache import fingerprint

DETACHMENT_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "noun": (
        ("s", ""),
        ("ses", "s"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adjective": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adverb": (),
}


class Morphology:
    """WordNet's "morphy": exception lists, then detachment of endings.

    Args:
        exceptions: for each part of speech, irregular form → lemmas, in lower case. A form that is listed is not put
            through the rules of that part of speech.

    Example:
        >>> morphology = Morphology({"noun": {"geese": ["goose"]}})
        >>> morphology.lemmas("geese", lambda lemma, pos: lemma == "goose")
        [('goose', 'noun')]
        >>> morphology.lemmas("boxes", lambda lemma, pos: lemma == "box")
        [('box', 'noun'), ('box', 'verb')]
    """

    def __init__(self, exceptions: Mapping[str, Mapping[str, Sequence[str]]] | None = None) -> None:
        self.exceptions = dict(exceptions or {})

    @cached_property
    def fingerprint(self) -> str:
        """Hex string that changes with the exception lists."""
        listed = (
            (pos, form, *lemmas)
            for pos, forms in sorted(self.exceptions.items())
            for form, lemmas in sorted(forms.items())
        )
        return fingerprint(*("\t".join(line) for line in listed))

    def lemmas(self, word: str, has: Callable[[str, str], bool]) -> list[tuple[str, str]]:
        """The lemmas of an inflected form and their parts of speech.

        Args:
            word: an inflected form in lower case.
            has: whether the dictionary has an entry for (lemma, part of speech); only such lemmas are given.
        """
        found = []
        for pos in DETACHMENT_RULES:
            irregular = self.exceptions.get(pos, {}).get(word)
            if irregular is not None:
                found += [(lemma, pos) for lemma in irregular if has(lemma, pos)]
                continue
            # As WordNet does, the first rule that hits an entry is trusted: "singes" is of "singe", not of "sing".
            lemma = next((lemma for lemma in _detached(word, pos) if has(lemma, pos)), None)
            if lemma is not None:
                found.append((lemma, pos))
        return found


def _detached(word: str, pos: str) -> Iterator[str]:
    stem, tail = word, ""
    if pos == "noun":
        if word.endswith("ful"):  # "spoonsful" is inflected in the middle
            stem, tail = word[:-3], "ful"
        elif word.endswith("ss") or len(word) <= 2:
            return
    for ending, replacement in DETACHMENT_RULES[pos]:
        # Not so in WordNet: a single letter has no inflected forms, lest "der" be a comparative of "d".
        if stem.endswith(ending) and len(stem) > len(ending) + 1:
            yield stem[: len(stem) - len(ending)] + replacement + tail
