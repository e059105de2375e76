"""Words that a dictionary defines by reference to others: inflected forms, other spellings, abbreviations."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

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
