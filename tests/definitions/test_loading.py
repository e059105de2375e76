"""`load_definitions` accepts every kind of dictionary."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from defemb_callbacks.definitions import Definition, Lexicon, load_definitions, loading

CAT = {"cat": "a feline"}


def test_lexicons_pass_through() -> None:
    lexicon = Lexicon.from_definitions([Definition("cat", "a feline")], name="mine")
    assert load_definitions(lexicon) is lexicon


def test_dict() -> None:
    assert load_definitions(CAT).lookup("cat")[0].gloss == "a feline"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("g.tsv", "word\tdefinition\ncat\ta feline\n"),
        ("g.CSV", "word,definition\ncat,a feline\n"),
        ("g.json", '{"cat": "a feline"}'),
    ],
)
def test_files_as_strings_and_paths(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    for source in (path, str(path)):
        lexicon = load_definitions(source)
        assert lexicon.name == "g"
        assert lexicon.lookup("cat")[0].gloss == "a feline"


@pytest.mark.parametrize("name", ["Extract.JSONL", "my.extract.jsonl.gz"])
def test_extracts_of_wiktionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("DEFEMB_CACHE", str(tmp_path / "cache"))
    line = b'{"word": "cat", "lang_code": "en", "senses": [{"glosses": ["a feline"]}]}'
    (tmp_path / name).write_bytes(gzip.compress(line) if name.endswith("gz") else line)
    lexicon = load_definitions([tmp_path / name, CAT])
    assert lexicon.sources == ("wiktionary", "glossary")
    assert [found.gloss for found in lexicon.lookup("cat")] == ["a feline", "a feline"]


def test_wordnet_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    wordnet = Lexicon.from_definitions([Definition("cat", "a feline")], name="wordnet")
    monkeypatch.setattr(loading, "load_wordnet", lambda: wordnet)
    assert load_definitions("wordnet") is wordnet
    assert load_definitions(["wordnet", {"cat": "mine"}]).sources == ("wordnet", "glossary")


def test_lists_are_merged_in_order() -> None:
    lexicon = load_definitions([CAT, ({"cat": "a bulldozer"}, {"dog": "a pet"})])
    assert lexicon.sources == ("glossary", "glossary-2", "glossary-3")
    assert [found.gloss for found in lexicon.lookup("cat")] == ["a feline", "a bulldozer"]


def test_an_unknown_suffix_lists_the_known_ones() -> None:
    for name in ("words.xlsx", "words.tsv.gz", "words.gz"):
        with pytest.raises(ValueError, match=rf"{name!r}.*\.tsv, \.csv, \.json.* extract \(\.jsonl, \.jsonl\.gz\)"):
            load_definitions(name)


def test_an_unknown_name_lists_what_is_accepted() -> None:
    with pytest.raises(ValueError, match=r"'wordnte'.*\"wordnet\", a path"):
        load_definitions("wordnte")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file '.*absent\.tsv'"):
        load_definitions(tmp_path / "absent.tsv")


def test_empty_list() -> None:
    with pytest.raises(ValueError, match="list of definitions is empty"):
        load_definitions([])


@pytest.mark.parametrize("source", [None, 3, {"cat"}])
def test_other_types(source: object) -> None:
    with pytest.raises(TypeError, match=r"Cannot load definitions from .* \((NoneType|int|set)\)"):
        load_definitions(source)  # type: ignore[arg-type]
