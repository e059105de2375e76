"""Map inflected forms to lemmas, by rules (WordNet's morphy) or by the forms that a dictionary lists."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from defemb_callbacks.cache import fingerprint

# The rules of morphy(7WN), "Morphological Processing" (WordNet 3.0), in its order: (ending, replacement).
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
    """WordNet's morphological processor, morphy: exception lists first, then detachment rules.

    Collocations are not split, as a token is a single word.

    Args:
        exceptions: For each part of speech, a mapping from irregular forms to lemmas, in lower case. The rules of a
            part of speech are not applied to its exceptions.

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
        """Hex digest of the exception lists."""
        listed = (
            (pos, form, *lemmas)
            for pos, forms in sorted(self.exceptions.items())
            for form, lemmas in sorted(forms.items())
        )
        return fingerprint(*("\t".join(line) for line in listed))

    def lemmas(self, word: str, has: Callable[[str, str], bool]) -> list[tuple[str, str]]:
        """Find the lemmas of an inflected form.

        Args:
            word: An inflected form in lower case.
            has: Whether the dictionary has an entry for a lemma and a part of speech.

        Returns:
            (lemma, part of speech) pairs for which `has` is true.
        """
        found = []
        for pos in DETACHMENT_RULES:
            irregular = self.exceptions.get(pos, {}).get(word)
            if irregular is not None:
                found += [(lemma, pos) for lemma in irregular if has(lemma, pos)]
                continue
            # As in WordNet, the first rule that leads to an entry wins: "singes" is a form of "singe", not of "sing".
            lemma = next((lemma for lemma in _detached(word, pos) if has(lemma, pos)), None)
            if lemma is not None:
                found.append((lemma, pos))
        return found


def _detached(word: str, pos: str) -> Iterator[str]:
    stem, tail = word, ""
    if pos == "noun":
        if word.endswith("ful"):  # "spoonsful" is inflected inside the word
            stem, tail = word[:-3], "ful"
        elif word.endswith("ss") or len(word) <= 2:
            return
    for ending, replacement in DETACHMENT_RULES[pos]:
        # Unlike WordNet, do not inflect single letters: "der" is not the comparative of "d".
        if stem.endswith(ending) and len(stem) > len(ending) + 1:
            yield stem[: len(stem) - len(ending)] + replacement + tail


FORM_SCHEMA = pa.schema({"key": pa.string(), "form": pa.string(), "lemma": pa.string(), "pos": pa.string()})


@dataclass(frozen=True, eq=False)
class FormTable:
    """The forms that a dictionary lists, with their lemmas.

    Attributes:
        table: One row per form and lemma (`FORM_SCHEMA`), sorted by lower-cased form, best lemma first.

    Example:
        >>> rows = {"key": ["cats"], "form": ["cats"], "lemma": ["cat"], "pos": ["noun"]}
        >>> FormTable(pa.table(rows, schema=FORM_SCHEMA)).lookup("cats")
        [('cats', 'cat', 'noun')]
    """

    table: pa.Table = field(repr=False)

    @cached_property
    def _keys(self) -> list[str]:
        keys: list[str] = self.table["key"].to_pylist()
        return keys

    def lookup(self, key: str) -> list[tuple[str, str, str]]:
        """Find all spellings of a lower-cased form, as (form, lemma, part of speech) triples."""
        start = bisect_left(self._keys, key)
        found = self.table.slice(start, bisect_right(self._keys, key, lo=start) - start)
        if not len(found):
            return []
        return list(zip(*(found[name].to_pylist() for name in ("form", "lemma", "pos")), strict=True))


def resolve_references(references: pa.Table, words: pa.Array) -> pa.Table:
    """Follow references from forms to lemmas until they reach defined words.

    A lemma that is itself a form of other words is replaced by them, through chains of any length.

    Args:
        references: A table with the columns `form` and `lemma`, and any others.
        words: The defined words.

    Returns:
        The references with a defined lemma, one row per form and lemma; references that reach no defined word are
        dropped.
    """
    is_defined = pc.is_in(references["lemma"], words)
    direct, indirect = references.filter(is_defined), references.filter(pc.invert(is_defined))
    missing = pc.unique(indirect["lemma"])
    links: dict[str, list[tuple[str, bool]]] = {}
    is_link = pc.is_in(references["form"], missing)
    for form, lemma, defined in zip(
        references["form"].filter(is_link).to_pylist(),
        references["lemma"].filter(is_link).to_pylist(),
        is_defined.filter(is_link).to_pylist(),
        strict=True,
    ):
        links.setdefault(form, []).append((lemma, defined))
    rows, lemmas = [], []
    for row, lemma in enumerate(indirect["lemma"].to_pylist() if links else []):
        for target in _defined_lemmas(lemma, links):
            rows.append(row)
            lemmas.append(target)
    resolved = indirect.take(pa.array(rows, pa.int64()))
    resolved = resolved.set_column(resolved.schema.get_field_index("lemma"), "lemma", pa.array(lemmas, pa.string()))
    return pa.concat_tables([direct, resolved])


def _defined_lemmas(lemma: str, links: dict[str, list[tuple[str, bool]]]) -> list[str]:
    """Breadth-first search for the defined words that an undefined lemma leads to."""
    found: dict[str, None] = {}
    seen, queue = {lemma}, [lemma]
    while queue:
        for target, is_defined in links.get(queue.pop(0), ()):
            if is_defined:
                found.setdefault(target)
            elif target not in seen:
                seen.add(target)
                queue.append(target)
    return list(found)
