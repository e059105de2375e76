"""Collect a stream of Wiktionary records into the sorted tables of a lexicon, with little memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.definitions.definition import PARTS_OF_SPEECH
from defemb_callbacks.definitions.lexicon import Lexicon
from defemb_callbacks.definitions.morphology import FORM_SCHEMA, FormTable, Morphology, resolve_references
from defemb_callbacks.definitions.source import DEFINITION_SCHEMA, RELATION_SCHEMA, Source, table_bytes
from defemb_callbacks.definitions.wiktionary.record import RELATIONS, Record

# Rows are buffered in Python lists up to this number: Python objects take ten times the memory of Arrow columns.
CHUNK = 1 << 15
_KINDS = tuple(RELATIONS.values())
_SENSES = pa.schema(
    {
        "key": pa.string(),
        "word": pa.string(),
        "pos": pa.int8(),
        "gloss": pa.string(),
        "synonyms": pa.list_(pa.string()),
        "demoted": pa.bool_(),
        "order": pa.int32(),
    }
)
_REFERENCES = pa.schema(
    {
        "form": pa.string(),
        "lemma": pa.string(),
        "pos": pa.int8(),
        "gloss": pa.string(),  # empty if it is useless without the lemma
        "demoted": pa.bool_(),
        "order": pa.int32(),
    }
)
_LINKS = pa.schema({"left": pa.string(), "right": pa.string(), "kind": pa.int8()})


class _Rows:
    """A table that grows row by row."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._buffer: list[tuple[Any, ...]] = []
        self._chunks: list[pa.RecordBatch] = []

    def append(self, *row: Any) -> None:
        self._buffer.append(row)
        if len(self._buffer) >= CHUNK:
            self._flush()

    def take(self) -> pa.Table:
        """Return all rows and clear the table."""
        self._flush()
        chunks, self._chunks = self._chunks, []
        return pa.Table.from_batches(chunks, self._schema)

    def _flush(self) -> None:
        columns = list(zip(*self._buffer, strict=True)) or [()] * len(self._schema)
        self._chunks.append(pa.record_batch(dict(zip(self._schema.names, columns, strict=True)), self._schema))
        self._buffer.clear()


class WiktionaryTables:
    """Collects records in the order of the file and builds a lexicon from them."""

    def __init__(self) -> None:
        self._senses, self._references, self._links = _Rows(_SENSES), _Rows(_REFERENCES), _Rows(_LINKS)
        self._page, self._glosses = "", set[str]()
        self._order = 0

    def add(self, record: Record) -> None:
        """Add a record; glosses repeated in consecutive records of a word are skipped."""
        word, pos = record.word, PARTS_OF_SPEECH.index(record.pos)
        if word != self._page:
            self._page, self._glosses = word, set()
        for sense in record.senses:
            self._order += 1
            for lemma in sense.lemmas:
                gloss = "" if sense.inflected else sense.gloss
                self._references.append(word, lemma, pos, gloss, sense.demoted, self._order)
            if not sense.lemmas and sense.gloss not in self._glosses:
                self._glosses.add(sense.gloss)
                self._senses.append(word.lower(), word, pos, sense.gloss, sense.synonyms, sense.demoted, self._order)
        for kind, other in record.relations:
            self._links.append(word, other, _KINDS.index(kind))

    def lexicon(self, name: str, morphology: Morphology | None) -> Lexicon | None:
        """Build the lexicon of all records, or return `None` if they contain no definition.

        The tables are cleared to save memory, so this can be called only once.
        """
        senses, references = self._senses.take(), self._references.take()
        resolved = resolve_references(references, pc.unique(senses["word"]))
        senses = pa.concat_tables([senses, _unresolved_senses(references, resolved["order"])])
        del references
        if not len(senses):
            return None
        senses = _sorted(senses, "word")
        forms = FormTable(_form_table(resolved))
        del resolved
        links = _relation_table(self._links.take(), senses)
        table = _definition_table(senses)
        return Lexicon(
            [Source(name, table, links, _content(table, links, forms, morphology), False, morphology, forms=forms)]
        )


def _unresolved_senses(references: pa.Table, resolved: pa.ChunkedArray) -> pa.Table:
    """The references that reach no defined word but have a gloss, as senses."""
    unresolved = references.filter(
        pc.and_(pc.not_equal(references["gloss"], ""), pc.invert(pc.is_in(references["order"], resolved)))
    )
    _, first = np.unique(unresolved["order"].to_numpy(), return_index=True)  # one row per gloss, not per lemma
    unresolved = unresolved.take(pa.array(first))
    columns = {name: unresolved[name] for name in ("pos", "gloss", "demoted", "order")}
    words = unresolved["form"].to_pylist()
    empty = pa.array([[]] * len(unresolved), _SENSES.field("synonyms").type)
    keys = pa.array([word.lower() for word in words], pa.string())
    return pa.table({"key": keys, "word": unresolved["form"], "synonyms": empty, **columns}).select(_SENSES.names)


def _sorted(rows: pa.Table, spelling: str) -> pa.Table:
    """Sort by lower-cased word; then lower-case spellings first, demoted senses last, otherwise in file order."""
    is_cased = pc.not_equal(rows[spelling], rows["key"])
    columns = {"key": rows["key"], "cased": is_cased, "demoted": rows["demoted"], "order": rows["order"]}
    return rows.take(pc.sort_indices(pa.table(columns), [(name, "ascending") for name in columns]))


def _form_table(references: pa.Table) -> pa.Table:
    groups = references.group_by(["form", "lemma", "pos"], use_threads=False)
    forms = groups.aggregate([("demoted", "min"), ("order", "min")])
    forms = forms.rename_columns(["form", "lemma", "pos", "demoted", "order"])
    keys = pa.array([form.lower() for form in forms["form"].to_pylist()], pa.string())
    forms = _sorted(forms.append_column("key", keys), "form")
    parts = pa.array(PARTS_OF_SPEECH).take(forms["pos"].combine_chunks())
    columns = {"key": forms["key"], "form": forms["form"], "lemma": forms["lemma"], "pos": parts}
    return pa.table(columns, schema=FORM_SCHEMA)


def _definition_table(senses: pa.Table) -> pa.Table:
    rows = len(senses)
    starts = _starts(senses["key"])
    ranks = np.arange(1, rows + 1) - np.repeat(starts, np.diff(np.append(starts, rows)))
    none, no_category = (
        pa.repeat(pa.scalar("", pa.string()), rows),
        pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int16()), rows), [""]),
    )
    columns = {
        **{name: senses[name] for name in ("key", "word", "gloss", "synonyms")},
        "pos": pa.DictionaryArray.from_arrays(senses["pos"].combine_chunks(), list(PARTS_OF_SPEECH)),
        "category": no_category,
        "rank": pa.array(ranks, pa.int32()),
        "tag_count": pa.array(np.zeros(rows, np.int32)),
        "concept": none,
    }
    return pa.table({name: columns[name] for name in DEFINITION_SCHEMA.names}, schema=DEFINITION_SCHEMA)


def _starts(keys: pa.ChunkedArray) -> np.ndarray:
    changes = pc.not_equal(keys.slice(1), keys.slice(0, max(len(keys) - 1, 0)))
    return np.flatnonzero(np.append(True, changes.to_numpy()))


def _relation_table(links: pa.Table, senses: pa.Table) -> pa.Table:
    """As in `Source.build`: one relation per pair of different words that share no gloss."""
    words = pc.unique(senses["word"])
    for side in ("left", "right"):
        links = links.filter(pc.is_in(links[side], words))
    starts = _starts(senses["key"])
    numbers = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(senses))))
    stops = np.append(starts[1:], len(senses))
    glosses = pc.dictionary_encode(senses["gloss"]).combine_chunks().indices.to_numpy()
    spelled = senses["word"].combine_chunks()
    left, right = (numbers[pc.index_in(links[side], spelled).to_numpy()] for side in ("left", "right"))
    pairs = np.minimum(left, right).astype(np.int64) * len(starts) + np.maximum(left, right)
    _, first = np.unique(pairs, return_index=True)

    def glosses_of(word: int) -> set[int]:
        return set(glosses[starts[word] : stops[word]].tolist())

    # This also drops relations of a word with itself.
    kept = [row for row in np.sort(first).tolist() if glosses_of(left[row]).isdisjoint(glosses_of(right[row]))]
    links = links.take(pa.array(kept, pa.int64()))
    kinds = pa.DictionaryArray.from_arrays(links["kind"].combine_chunks(), list(_KINDS))
    return pa.table({"left": links["left"], "right": links["right"], "kind": kinds}, schema=RELATION_SCHEMA)


def _content(table: pa.Table, links: pa.Table, forms: FormTable, morphology: Morphology | None) -> str:
    content = fingerprint(morphology.fingerprint if morphology else "literal")
    for part in (table, links, forms.table):
        for start in range(0, len(part), CHUNK):
            # One batch per slice, so that the fingerprint does not depend on how the columns are chunked.
            content = fingerprint(content, table_bytes(part.slice(start, CHUNK).combine_chunks()))
    return content
