"""From inflected forms to lemmas, by the rules of WordNet's own morphological processor.

The rules and their order are those of `morphy(7WN)` ("Morphological Processing", WordNet 3.0). Collocations are not
taken apart: a token is one word.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

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


FORM_SCHEMA = pa.schema({"key": pa.string(), "form": pa.string(), "lemma": pa.string(), "pos": pa.string()})


@dataclass(frozen=True, eq=False)
class Forms:
    """What a form is a form of, as the dictionary lists it.

    Attributes:
        table: one row a form and lemma (`FORM_SCHEMA`), sorted by the lower-cased form and then best first.

    Example:
        >>> rows = {"key": ["cats"], "form": ["cats"], "lemma": ["cat"], "pos": ["noun"]}
        >>> Forms(pa.table(rows, schema=FORM_SCHEMA)).of("cats")
        [('cats', 'cat', 'noun')]
    """

    table: pa.Table = field(repr=False)

    @cached_property
    def _keys(self) -> list[str]:
        keys: list[str] = self.table["key"].to_pylist()
        return keys

    def of(self, key: str) -> list[tuple[str, str, str]]:
        """(form, lemma, part of speech), as written, of the forms that are this word in lower case."""
        start = bisect_left(self._keys, key)
        found = self.table.slice(start, bisect_right(self._keys, key, lo=start) - start)
        if not len(found):
            return []
        return list(zip(*(found[name].to_pylist() for name in ("form", "lemma", "pos")), strict=True))


def lead_to(references: pa.Table, words: pa.Array) -> pa.Table:
    """The same references, each to a word that is defined; those that lead to none are left out.

    Args:
        references: with the columns `form` and `lemma`, and any others. A lemma that is itself but a form of other
            words is replaced by these, however long the chain.
        words: the defined words.
    """
    is_defined = pc.is_in(references["lemma"], words)
    found, open_ends = references.filter(is_defined), references.filter(pc.invert(is_defined))
    missing = pc.unique(open_ends["lemma"])
    links: dict[str, list[tuple[str, bool]]] = {}
    on_the_way = pc.is_in(references["form"], missing)
    for form, lemma, is_end in zip(
        references["form"].filter(on_the_way).to_pylist(),
        references["lemma"].filter(on_the_way).to_pylist(),
        is_defined.filter(on_the_way).to_pylist(),
        strict=True,
    ):
        links.setdefault(form, []).append((lemma, is_end))
    rows, lemmas = [], []
    for row, lemma in enumerate(open_ends["lemma"].to_pylist() if links else []):
        for end in _ends(lemma, links):
            rows.append(row)
            lemmas.append(end)
    chained = open_ends.take(pa.array(rows, pa.int64()))
    chained = chained.set_column(chained.schema.get_field_index("lemma"), "lemma", pa.array(lemmas, pa.string()))
    return pa.concat_tables([found, chained])


def _ends(lemma: str, links: dict[str, list[tuple[str, bool]]]) -> list[str]:
    ends: dict[str, None] = {}
    seen, waiting = {lemma}, [lemma]
    while waiting:
        for target, is_end in links.get(waiting.pop(0), ()):
            if is_end:
                ends.setdefault(target)
            elif target not in seen:
                seen.add(target)
                waiting.append(target)
    return list(ends)
