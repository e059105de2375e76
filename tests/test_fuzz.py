"""Each file parser returns a value or raises a documented error, whatever the file contains.

`DEFEMB_FUZZ` sets the number of inputs for each parser; `benchmarks/faults.py` uses 10,000.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from defemb_callbacks import DefinitionEmbeddings, Lexicon
from defemb_callbacks.cache import MANIFEST, fingerprint, verify_manifest, write_manifest
from defemb_callbacks.definitions.glossary import read_json, read_table
from defemb_callbacks.definitions.wiktionary.extract import read_wiktionary
from defemb_callbacks.definitions.wiktionary.record import parse_record
from defemb_callbacks.definitions.wndb import read_wordnet
from defemb_callbacks.embeddings.artifact import DESCRIPTION, TENSORS
from defemb_callbacks.metrics.ratings import read_ratings
from defemb_callbacks.vocabulary.frequency import read_counts
from defemb_callbacks.vocabulary.tokens import Vocabulary
from tiny_wordnet import write_wordnet

INPUTS = int(os.environ.get("DEFEMB_FUZZ", "100"))
fuzzed = settings(
    max_examples=INPUTS, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
)
# Bytes that are special to some parser, and others.
PIECES = [b'"', b"\t", b"\n", b"\r", b",", b";", b"|", b"{", b"}", b"[", b"]", b":", b"\x00", b"\xff"]
PIECES += [b"9" * 30, b"-1", b"1e999", b"NaN", b"null", b"\\ud800", b"[" * 3000, b" ", b"  ", b"\xef\xbb\xbf", b"word"]
PIECES += ["\u2028é".encode()]
SCALARS = [None, True, False, 0, -1, 1 << 70, 0.5, float("nan"), "", "noun", "cats", "\ud800", "x"]
KEYS = ["word", "pos", "senses", "glosses", "raw_glosses", "lang_code", "form_of", "alt_of", "tags", "head_templates"]
# Hypothesis draws seeds rather than inputs, which is ten times faster.
SEEDS = st.integers(0, 1 << 64).map(random.Random)


def edits(draw: random.Random) -> list[tuple[float, int, bytes]]:
    """Edits as (relative position, number of bytes replaced, replacement)."""
    pieces = (draw.choice(PIECES) if draw.random() < 0.7 else draw.randbytes(draw.randrange(6)) for _ in iter(int, 1))
    return [(draw.random(), draw.randrange(9), next(pieces)) for _ in range(draw.randrange(5))]


def some_json(draw: random.Random, depth: int = 3) -> Any:
    kind = draw.random() if depth else 0.0
    if kind < 0.4:
        return draw.choice(SCALARS)
    if kind < 0.7:
        return [some_json(draw, depth - 1) for _ in range(draw.randrange(4))]
    return {draw.choice(KEYS): some_json(draw, depth - 1) for _ in range(draw.randrange(4))}


def edited(document: bytes, draw: random.Random) -> bytes:
    """Return the document with some pieces replaced."""
    for where, length, piece in edits(draw):
        start = int(where * len(document))
        document = document[:start] + piece + document[start + length :]
    return document


def try_it(parse: Callable[[], Any], *documented: type[Exception]) -> Any:
    """Return the result, or `None` after a documented error. Other errors fail the test; Hypothesis shows the input."""
    try:
        return parse()
    except documented:
        return None


TABLE = 'word\tdefinition\tpos\tsynonyms\ncat\ta feline\tnoun\tmog; puss\ndog\t"a ""canine"""\t\n'
COMMAS = 'word,definition,pos,synonyms\ncat,"a feline, small",noun,mog;"puss"\ndog,a canine,,"hound, cur"\n'
GLOSSARY = '{"cat": ["a feline", {"definition": "a gossip", "synonyms": ["mog"]}], "##ing": "forms nouns"}'
ENTRIES = (
    '[{"word": "cat", "definition": "a feline", "synonyms": ["mog"]}, {"token": "##ing", "definition": "of nouns"}]'
)
NOUN = {"pos": "noun", "lang_code": "en"}
EXTRACT = json.dumps({"word": "cat", **NOUN, "senses": [{"glosses": ["a {{l|en|feline}}"]}]})
EXTRACT += "\n" + json.dumps({"word": "cats", **NOUN, "senses": [{"form_of": [{"word": "cat"}]}]})


FILES = [
    ("glossary.tsv", TABLE, read_table),
    ("glossary.csv", COMMAS, read_table),
    ("glossary.json", GLOSSARY, read_json),
    ("entries.json", ENTRIES, read_json),
    ("extract.jsonl", EXTRACT, read_wiktionary),
    ("ratings.txt", "word1\tword2\tscore\ncat\tdog\t3.5\nold\tnew\t1\n", read_ratings),
    ("counts.tsv", "the\t10\ncat\t3\n", None),
    ("counts.json", '{"the": 10, "cat": 3}', None),
]


@pytest.mark.parametrize(("name", "document", "read"), FILES, ids=[file[0] for file in FILES])
def test_files(name: str, document: str, read: Any, tmp_path: Path) -> None:
    vocabulary = Vocabulary(("the", "cat"), ("the", "cat"), (None, None), True)
    parse = read or (lambda path: read_counts(path, vocabulary))
    file, outcomes = tmp_path / name, set()

    @fuzzed
    @given(SEEDS)
    def check(draw: random.Random) -> None:
        file.write_bytes(edited(document.encode(), draw))
        # In JSON glossaries, a value of the wrong type is a TypeError.
        found = try_it(lambda: parse(file), ValueError, *([TypeError] if parse is read_json else []))
        outcomes.add(type(found))

    check()
    assert len(outcomes) == 2  # some inputs were read, others rejected
    if parse in (read_table, read_json, read_wiktionary):
        assert Lexicon in outcomes


def test_wiktionary_records() -> None:
    outcomes = set()

    @fuzzed
    @given(SEEDS)
    def check(draw: random.Random) -> None:
        whole = {"word": "cat", "pos": "noun", "senses": [{"glosses": ["a feline"], "tags": []}]}
        outcomes.add(type(try_it(lambda: parse_record(whole | some_json_object(draw)), ValueError)))

    check()
    assert len(outcomes) == 2


def some_json_object(draw: random.Random) -> dict[str, Any]:
    return {draw.choice(KEYS): some_json(draw) for _ in range(draw.randrange(4))}


def test_wordnet_database_files(tmp_path: Path) -> None:
    folder = write_wordnet(tmp_path / "wordnet")
    original = {path: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    outcomes = set()

    @fuzzed
    @given(SEEDS)
    def check(draw: random.Random) -> None:
        path = draw.choice(list(original))
        path.write_bytes(edited(original[path], draw))
        outcomes.add(type(try_it(lambda: read_wordnet(folder), ValueError)))
        path.write_bytes(original[path])

    check()
    assert outcomes == {Lexicon, type(None)}


def embeddings() -> DefinitionEmbeddings:
    vocabulary = Vocabulary(("the", "cat", ""), ("the", "cat", None), (None, None, "row without a token"), True)
    return DefinitionEmbeddings(torch.tensor([0, 1]), torch.ones(2, 4), vocabulary, torch.tensor([[0, 1]]))


def test_embeddings_with_damaged_bytes(tmp_path: Path) -> None:
    embeddings().save_pretrained(tmp_path)
    original = {name: (tmp_path / name).read_bytes() for name in (TENSORS, DESCRIPTION)}
    outcomes = set()

    @fuzzed
    @given(SEEDS)
    def check(draw: random.Random) -> None:
        name = draw.choice([TENSORS, DESCRIPTION])
        for other, content in original.items():
            (tmp_path / other).write_bytes(content)
        (tmp_path / name).write_bytes(edited(original[name], draw))
        if name == TENSORS and draw.random() < 0.5:  # with a matching checksum
            description = json.loads(original[DESCRIPTION]) | {"tensors": fingerprint(tmp_path / TENSORS)}
            (tmp_path / DESCRIPTION).write_text(json.dumps(description))
        outcomes.add(type(try_it(lambda: DefinitionEmbeddings.from_pretrained(tmp_path), ValueError)))

    check()
    assert outcomes == {DefinitionEmbeddings, type(None)}


DTYPES = (torch.int64, torch.float32, torch.int32, torch.float16, torch.uint8, torch.bool)


def some_tensor(draw: random.Random) -> torch.Tensor:
    shape = [draw.randrange(4) for _ in range(draw.randrange(4))]
    values = torch.tensor([draw.randrange(-3, 5) for _ in range(27)])
    return values[: int(torch.tensor([1, *shape]).prod())].reshape(shape).to(draw.choice(DTYPES))


def test_embeddings_with_unexpected_contents(tmp_path: Path) -> None:
    embeddings().save_pretrained(tmp_path)
    original = json.loads((tmp_path / DESCRIPTION).read_text())

    @fuzzed
    @given(SEEDS)
    def check(draw: random.Random) -> None:
        good = {"ids": embeddings().ids, "rows": embeddings().rows, "pairs": embeddings().pairs}
        changed = {name: some_tensor(draw) for name in good if draw.random() < 0.3}
        (tmp_path / TENSORS).write_bytes(save(good | changed))
        more = {draw.choice([*original, "x"]): some_json(draw) for _ in range(draw.randrange(3))}
        description = original | {"tensors": fingerprint(tmp_path / TENSORS)} | more
        (tmp_path / DESCRIPTION).write_text(json.dumps(description))
        found = try_it(lambda: DefinitionEmbeddings.from_pretrained(tmp_path), ValueError)
        if found is not None:  # then it is consistent
            assert found.ids.dtype == torch.int64
            assert found.rows.dtype == torch.float32
            assert len(found.ids) == len(found.rows)
            assert all(isinstance(token, str) for token in found.vocabulary.tokens)
            assert not len(found.ids) or 0 <= int(found.ids.min()) <= int(found.ids.max()) < len(found.vocabulary)

    check()


def test_cache_manifests(tmp_path: Path) -> None:
    """Any manifest gives `None` or a description of the problem, never an error."""
    (tmp_path / "value").write_text("kept")
    write_manifest(tmp_path)
    original = (tmp_path / MANIFEST).read_bytes()

    @fuzzed
    @given(SEEDS)
    def check(draw: random.Random) -> None:
        (tmp_path / MANIFEST).write_bytes(edited(original, draw))
        assert verify_manifest(tmp_path) is None or isinstance(verify_manifest(tmp_path), str)

    check()
