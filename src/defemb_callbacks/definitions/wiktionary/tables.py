"""From a stream of Wiktionary records to the sorted tables of a lexicon, in little memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.definitions.definition import PARTS_OF_SPEECH
from defemb_callbacks.definitions.lexicon import Lexicon
from defemb_callbacks.definitions.morphology import FORM_SCHEMA, Forms, Morphology, lead_to
from defemb_callbacks.definitions.source import DEFINITION_SCHEMA, RELATION_SCHEMA, Source, table_bytes
from defemb_callbacks.definitions.wiktionary.record import RELATIONS, Record

# Python's objects take ten times the memory of Arrow's columns, so no more rows than this wait in lists.
CHUNK = 1 << 15
_KINDS = tuple(RELATIONS.values())
_SENSES = pa.schema(
    {
        "key": pa.string(),
        "word": pa.string(),
        "pos": pa.int8(),
        "gloss": pa.string(),
        "synonyms": pa.list_(pa.string()),
        "late": pa.bool_(),
        "order": pa.int32(),
    }
)
_REFERENCES = pa.schema(
    {
        "form": pa.string(),
        "lemma": pa.string(),
        "pos": pa.int8(),
        "gloss": pa.string(),  # empty where it says nothing once the lemma is unknown
        "late": pa.bool_(),
        "order": pa.int32(),
    }
)
_LINKS = pa.schema({"left": pa.string(), "right": pa.string(), "kind": pa.int8()})


class _Rows:
    """Rows that are turned into Arrow's columns as they come."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._waiting: list[tuple[Any, ...]] = []
        self._chunks: list[pa.RecordBatch] = []

    def append(self, *row: Any) -> None:
        self._waiting.append(row)
        if len(self._waiting) >= CHUNK:
            self._flush()

    def take(self) -> pa.Table:
        """All of them; nothing is left here."""
        self._flush()
        chunks, self._chunks = self._chunks, []
        return pa.Table.from_batches(chunks, self._schema)

    def _flush(self) -> None:
        columns = list(zip(*self._waiting, strict=True)) or [()] * len(self._schema)
        self._chunks.append(pa.record_batch(dict(zip(self._schema.names, columns, strict=True)), self._schema))
        self._waiting.clear()


class WiktionaryTables:
    """Takes records in the order of the file and makes a lexicon of them."""

    def __init__(self) -> None:
        self._senses, self._references, self._links = _Rows(_SENSES), _Rows(_REFERENCES), _Rows(_LINKS)
        self._page, self._glosses = "", set[str]()
        self._order = 0

    def add(self, record: Record) -> None:
        """Take one record; a gloss that the word's last records had already is left out."""
        word, pos = record.word, PARTS_OF_SPEECH.index(record.pos)
        if word != self._page:
            self._page, self._glosses = word, set()
        for sense in record.senses:
            self._order += 1
            for lemma in sense.lemmas:
                kept = "" if sense.inflected else sense.gloss
                self._references.append(word, lemma, pos, kept, sense.late, self._order)
            if not sense.lemmas and sense.gloss not in self._glosses:
                self._glosses.add(sense.gloss)
                self._senses.append(word.lower(), word, pos, sense.gloss, sense.synonyms, sense.late, self._order)
        for kind, other in record.relations:
            self._links.append(word, other, _KINDS.index(kind))

    def lexicon(self, name: str, morphology: Morphology | None) -> Lexicon | None:
        """The lexicon of what was taken, `None` if nothing of it is a definition."""
        senses, references = self._senses.take(), self._references.take()
        found = lead_to(references, pc.unique(senses["word"]))
        senses = pa.concat_tables([senses, _on_their_own(references, found["order"])])
        del references
        if not len(senses):
            return None
        senses = _sorted(senses, "word")
        forms = Forms(_form_table(found))
        del found
        links = _relation_table(self._links.take(), senses)
        table = _definition_table(senses)
        return Lexicon(
            [Source(name, table, links, _content(table, links, forms, morphology), False, morphology, forms=forms)]
        )


def _on_their_own(references: pa.Table, resolved: pa.ChunkedArray) -> pa.Table:
    """References that lead nowhere, as senses, where their gloss says something all the same."""
    lost = references.filter(
        pc.and_(pc.not_equal(references["gloss"], ""), pc.invert(pc.is_in(references["order"], resolved)))
    )
    _, first = np.unique(lost["order"].to_numpy(), return_index=True)  # one a gloss, not one a lemma
    lost = lost.take(pa.array(first))
    columns = {name: lost[name] for name in ("pos", "gloss", "late", "order")}
    words = lost["form"].to_pylist()
    empty = pa.array([[]] * len(lost), _SENSES.field("synonyms").type)
    keys = pa.array([word.lower() for word in words], pa.string())
    return pa.table({"key": keys, "word": lost["form"], "synonyms": empty, **columns}).select(_SENSES.names)


def _sorted(rows: pa.Table, spelling: str) -> pa.Table:
    """By lower-cased word, lower case before other spellings, what is late last; else as in the file."""
    is_cased = pc.not_equal(rows[spelling], rows["key"])
    columns = {"key": rows["key"], "cased": is_cased, "late": rows["late"], "order": rows["order"]}
    return rows.take(pc.sort_indices(pa.table(columns), [(name, "ascending") for name in columns]))


def _form_table(found: pa.Table) -> pa.Table:
    found = found.group_by(["form", "lemma", "pos"], use_threads=False).aggregate([("late", "min"), ("order", "min")])
    found = found.rename_columns(["form", "lemma", "pos", "late", "order"])
    keys = pa.array([form.lower() for form in found["form"].to_pylist()], pa.string())
    found = _sorted(found.append_column("key", keys), "form")
    parts = pa.array(PARTS_OF_SPEECH).take(found["pos"].combine_chunks())
    columns = {"key": found["key"], "form": found["form"], "lemma": found["lemma"], "pos": parts}
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
    """As `Source.build` keeps them: between different words that share no gloss, each pair once."""
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

    def of(word: int) -> set[int]:
        return set(glosses[starts[word] : stops[word]].tolist())

    # A word shares its glosses with itself, which leaves that pair out too.
    kept = [row for row in np.sort(first).tolist() if of(left[row]).isdisjoint(of(right[row]))]
    links = links.take(pa.array(kept, pa.int64()))
    kinds = pa.DictionaryArray.from_arrays(links["kind"].combine_chunks(), list(_KINDS))
    return pa.table({"left": links["left"], "right": links["right"], "kind": kinds}, schema=RELATION_SCHEMA)


def _content(table: pa.Table, links: pa.Table, forms: Forms, morphology: Morphology | None) -> str:
    content = fingerprint(morphology.fingerprint if morphology else "literal")
    for part in (table, links, forms.table):
        for start in range(0, len(part), CHUNK):
            # However the columns are chunked, a piece is one batch.
            content = fingerprint(content, table_bytes(part.slice(start, CHUNK).combine_chunks()))
    return content
