"""A single dictionary as Arrow tables; a `Lexicon` consists of one or several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.definitions.definition import PARTS_OF_SPEECH, Definition, Relation
from defemb_callbacks.definitions.morphology import FormTable, Morphology

DEFINITION_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "word": pa.string(),
        "pos": pa.dictionary(pa.int8(), pa.string()),
        "gloss": pa.string(),
        "synonyms": pa.list_(pa.string()),
        "category": pa.dictionary(pa.int16(), pa.string()),
        "rank": pa.int32(),
        "tag_count": pa.int32(),
        "concept": pa.string(),
    }
)
RELATION_SCHEMA = pa.schema({"left": pa.string(), "right": pa.string(), "kind": pa.dictionary(pa.int8(), pa.string())})


@dataclass(frozen=True, eq=False)
class Source:
    """The definitions of one dictionary, sorted by lower-cased word, best definition first.

    Attributes:
        name: The name of the dictionary, which its definitions carry as `source`.
        table: One row per definition (`DEFINITION_SCHEMA`).
        relation_table: One row per pair of words (`RELATION_SCHEMA`).
        content: The fingerprint of the dictionary as it was built.
        explicit: Whether the dictionary is a user's glossary, whose entries may define literal tokens.
        morphology: The rules that map inflected forms to entries; `None` for dictionaries of literal forms.
        removed: Lower-cased words that were removed.
        forms: The inflected and variant forms that the dictionary lists, which take precedence over `morphology`;
            `None` if it lists none.
    """

    name: str
    table: pa.Table = field(repr=False)
    relation_table: pa.Table = field(repr=False)
    content: str
    explicit: bool = False
    morphology: Morphology | None = field(default=None, repr=False)
    removed: frozenset[str] = field(default=frozenset(), repr=False)
    forms: FormTable | None = field(default=None, repr=False)

    @classmethod
    def build(
        cls,
        definitions: Iterable[Definition],
        *,
        name: str,
        relations: Iterable[Relation] = (),
        morphology: Morphology | None = None,
        explicit: bool = False,
    ) -> Source:
        """Check and sort definitions, and drop uninformative relations; see `Lexicon.from_definitions`."""
        rows = sorted(
            _checked(definitions, name), key=lambda d: (d.word.lower(), *_preference(d.tag_count, d.rank, d.pos))
        )
        if not rows:
            raise ValueError(f"The lexicon {name!r} has no definition. Add at least one word with a gloss.")
        keys = [row.word.lower() for row in rows]
        columns: dict[str, list[Any]] = {
            column: [getattr(row, column) for row in rows] for column in DEFINITION_SCHEMA.names if column != "key"
        }
        table = pa.table({"key": keys, **columns}, schema=DEFINITION_SCHEMA)
        links = list(zip(*_informative(relations, keys, rows), strict=True)) or [(), (), ()]
        relation_table = pa.table(dict(zip(Relation._fields, links, strict=True)), schema=RELATION_SCHEMA)
        rules = morphology.fingerprint if morphology else "literal"
        content = fingerprint(table_bytes(table), table_bytes(relation_table), rules, str(explicit))
        return cls(name, table, relation_table, content, explicit, morphology)

    @property
    def fingerprint(self) -> str:
        """Hex digest of the definitions, relations and removed words; independent of the name."""
        return fingerprint(self.content, *sorted(self.removed)) if self.removed else self.content

    @cached_property
    def _rows(self) -> dict[str, range]:
        keys = self.table["key"].to_numpy()
        # If all rows were removed, there is no first key to start a range at.
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, np.int64)
        stops = np.append(starts[1:], len(keys))[: len(starts)]
        return {key: range(a, b) for key, a, b in zip(keys[starts], starts.tolist(), stops.tolist(), strict=True)}

    @cached_property
    def _columns(self) -> dict[str, list[Any]]:
        # Reading a single cell of an Arrow table costs 50 times as much as a list access, so decode whole columns once.
        columns = {}
        for name in ("word", "gloss", "rank", "tag_count", "concept"):
            columns[name] = self.table[name].to_pylist()
        for name in ("pos", "category"):
            column = self.table[name].unify_dictionaries().combine_chunks()
            values = np.asarray(column.dictionary.to_pylist(), dtype=object)
            columns[name] = values[column.indices.to_numpy()].tolist()
        columns["synonym"] = pc.list_flatten(self.table["synonyms"]).to_pylist()
        lengths = pc.list_value_length(self.table["synonyms"]).to_numpy()
        columns["synonym_end"] = np.append(np.cumsum(lengths), 0).tolist()  # the last 0 is the start for row 0, at -1
        return columns

    @cached_property
    def words(self) -> list[str]:
        """All spellings, without duplicates, sorted by lower-cased word."""
        return list(dict.fromkeys(self._columns["word"]))

    def __contains__(self, word: str) -> bool:
        key = word.lower()
        if key in self.removed:
            return False
        return key in self._rows or bool(self._with_lemmas(word, [], True) or self._inflected(word, ignore_case=True))

    def lookup(self, word: str, *, ignore_case: bool = False) -> list[Definition]:
        """See `Lexicon.lookup`."""
        key = word.lower()
        if key in self.removed:
            return []
        rows = list(self._rows.get(key, ()))
        if self.forms is not None:
            rows = self._with_lemmas(word, rows, ignore_case)
        elif not ignore_case:
            rows = self._spelled(word, rows) or rows
        return self._definitions(rows or self._inflected(word, ignore_case))

    def lookup_token(self, token: str) -> list[Definition]:
        """See `Lexicon.lookup_token`."""
        rows = self._rows.get(token.lower()) if self.explicit else None
        return self._definitions(self._spelled(token, rows)) if rows else []

    def without(self, removed: frozenset[str]) -> Source:
        """A copy without these lower-cased words; inflected forms no longer lead to them."""
        dropped = pa.array(sorted(removed), pa.string())
        spellings = pa.array(sorted(self._spellings(removed)), pa.string())
        links = self.relation_table
        touched = pc.or_(pc.is_in(links["left"], spellings), pc.is_in(links["right"], spellings))
        return Source(
            self.name,
            self.table.filter(pc.invert(pc.is_in(self.table["key"], dropped))),
            links.filter(pc.invert(touched)),
            self.content,
            self.explicit,
            self.morphology,
            self.removed | removed,
            self.forms,
        )

    def relations(self, words: frozenset[str] | None) -> Iterator[Relation]:
        """See `Lexicon.relations`; `words` are in lower case."""
        links = self.relation_table
        if words is not None:
            spellings = pa.array(sorted(self._spellings(words)), pa.string())
            links = links.filter(pc.is_in(links["left"], spellings))
            links = links.filter(pc.is_in(links["right"], spellings))
        kinds = links["kind"].cast(pa.string())
        return map(Relation, links["left"].to_pylist(), links["right"].to_pylist(), kinds.to_pylist())

    def same_meaning(self, left: str, right: str) -> bool:
        """Whether two words share a concept or a gloss in this dictionary."""
        rows = [self._rows.get(word.lower()) for word in (left, right)]
        if rows[0] is None or rows[1] is None:
            return False
        gloss, concept = self._columns["gloss"], self._columns["concept"]
        first, second = ({text for r in one or () for text in (gloss[r], concept[r]) if text} for one in rows)
        return not first.isdisjoint(second)

    def _spellings(self, keys: Iterable[str]) -> set[str]:
        word = self._columns["word"]
        return {word[row] for key in keys for row in self._rows.get(key, ())}

    def _spelled(self, word: str, rows: Iterable[int]) -> list[int]:
        column = self._columns["word"]
        return [row for row in rows if column[row] == word]

    def _has(self, key: str, pos: str) -> bool:
        column = self._columns["pos"]
        return any(column[row] == pos for row in self._rows.get(key, ()))

    def _with_lemmas(self, word: str, rows: list[int], ignore_case: bool) -> list[int]:
        """The word's own senses, then those of its listed lemmas: for "saw" the tool, then the verb "see".

        Exact spellings come first, then lower-case ones: "is" is a form of "be" before it is "IS", the information
        system.
        """
        listed = self.forms.lookup(word.lower()) if self.forms else []
        words = self._columns["word"]
        found: list[int] = []
        for spelling in (word, word.lower(), None):
            found += [row for row in rows if spelling in (None, words[row])]
            for form, lemma, pos in listed:
                if spelling in (None, form):
                    lemma_rows = self._spelled(lemma, self._rows.get(lemma.lower(), ()))
                    found += [row for row in lemma_rows if self._columns["pos"][row] == pos] or lemma_rows
            if found and spelling == word and not ignore_case:
                break
        return list(dict.fromkeys(found))

    def _inflected(self, word: str, ignore_case: bool) -> list[int]:
        if self.morphology is None:
            return []
        c, found = self._columns, set()
        for lemma, pos in self.morphology.lemmas(word.lower(), self._has):
            rows = [row for row in self._rows[lemma] if c["pos"][row] == pos]
            if not ignore_case and word.islower():  # "turkeys" are birds, not countries
                rows = self._spelled(lemma, rows) or rows
            found.update(rows)
        # "was" is not a plural of "WA", nor "its" of "IT" or "cas" of "Ca"; but "DVDs" and "dvds" are plurals of "DVD".
        short = {row for row in found if _is_abbreviation(c["word"][row]) and not word.startswith(c["word"][row])}
        found = (found - short) or {row for row in short if len(c["word"][row]) > 2}
        return sorted(found, key=lambda r: _preference(c["tag_count"][r], c["rank"][r], c["pos"][r]))

    def _definitions(self, rows: Iterable[int]) -> list[Definition]:
        c, synonyms, ends = self._columns, self._columns["synonym"], self._columns["synonym_end"]
        # If case is ignored, two spellings of one concept ("baroque", "Baroque") give a single definition.
        distinct: dict[Any, int] = {}
        for row in rows:
            distinct.setdefault(c["concept"][row] or row, row)
        return [
            Definition(
                word=c["word"][row],
                gloss=c["gloss"][row],
                pos=c["pos"][row],
                synonyms=tuple(synonyms[ends[row - 1] : ends[row]]),
                category=c["category"][row],
                rank=rank,
                tag_count=c["tag_count"][row],
                concept=c["concept"][row],
                source=self.name,
            )
            for rank, row in enumerate(distinct.values(), start=1)
        ]


def _checked(definitions: Iterable[Definition], name: str) -> Iterator[Definition]:
    for definition in definitions:
        if not definition.word:
            raise ValueError(f"The lexicon {name!r} defines an empty word: {definition}. Remove this entry.")
        if not definition.gloss.strip():
            raise ValueError(f"The lexicon {name!r} has an empty gloss for {definition.word!r}. Remove this entry.")
        if definition.pos not in PARTS_OF_SPEECH:
            raise ValueError(
                f"The lexicon {name!r} has an unknown part of speech for {definition.word!r}: {definition.pos!r}. "
                f"Use one of {PARTS_OF_SPEECH}."
            )
        yield definition


def _preference(tag_count: int, rank: int, pos: str) -> tuple[int, int, int]:
    return -tag_count, rank, PARTS_OF_SPEECH.index(pos)


def _is_abbreviation(word: str) -> bool:
    return word.isupper() or (len(word) <= 2 and not word.islower())


def _informative(relations: Iterable[Relation], keys: list[str], rows: list[Definition]) -> list[Relation]:
    """Keep one relation per pair of different words that share neither a concept nor a gloss."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    meanings: list[set[str]] = [set() for _ in numbers]
    words: dict[str, int] = {}
    for key, row in zip(keys, rows, strict=True):
        number = words[row.word] = numbers[key]
        meanings[number].add(row.gloss)
        if row.concept:
            meanings[number].add(row.concept)
    kept: dict[int, Relation] = {}
    for relation in relations:
        left, right = words.get(relation.left), words.get(relation.right)
        if left is None or right is None or left == right:
            continue
        pair = left * len(words) + right if left < right else right * len(words) + left
        if pair not in kept and meanings[left].isdisjoint(meanings[right]):
            kept[pair] = relation
    return list(kept.values())


def table_bytes(table: pa.Table) -> bytes:
    """Serialize a table, for fingerprints."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
