"""WordNet through the `wn` library, without a network."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from defemb_callbacks.definitions import Definition, Relation, load_definitions

LMF = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE LexicalResource SYSTEM "http://globalwordnet.github.io/schemas/WN-LMF-1.1.dtd">
<LexicalResource xmlns:dc="https://globalwordnet.github.io/schemas/dc/">
<Lexicon id="omw-en" label="tiny" language="en" email="x@example.org" license="none" version="1.4">
<LexicalEntry id="e-goose"><Lemma writtenForm="goose" partOfSpeech="n"/><Form writtenForm="geese"/>
  <Sense id="s-goose" synset="y-goose"/></LexicalEntry>
<LexicalEntry id="e-bird"><Lemma writtenForm="bird" partOfSpeech="n"/>
  <Sense id="s-bird" synset="y-bird"><Count>7</Count></Sense><Sense id="s-bird2" synset="y-girl"/></LexicalEntry>
<LexicalEntry id="e-fowl"><Lemma writtenForm="feathered friend" partOfSpeech="n"/>
  <Sense id="s-fowl" synset="y-bird"/></LexicalEntry>
<LexicalEntry id="e-good"><Lemma writtenForm="good" partOfSpeech="a"/><Form writtenForm="better"/>
  <Sense id="s-good" synset="y-good"><SenseRelation relType="antonym" target="s-bad"/></Sense></LexicalEntry>
<LexicalEntry id="e-bad"><Lemma writtenForm="bad" partOfSpeech="s"/>
  <Sense id="s-bad" synset="y-bad"><SenseRelation relType="antonym" target="s-good"/></Sense></LexicalEntry>
<Synset id="y-goose" ili="" partOfSpeech="n" lexfile="noun.animal"><Definition>a web-footed bird</Definition>
  <SynsetRelation relType="hypernym" target="y-bird"/><Example>the goose honked</Example></Synset>
<Synset id="y-bird" ili="" partOfSpeech="n" lexfile="noun.animal" members="e-bird e-fowl">
  <Definition>an animal with feathers</Definition><SynsetRelation relType="hyponym" target="y-goose"/></Synset>
<Synset id="y-girl" ili="" partOfSpeech="n" lexfile="noun.person"><Definition>a young woman</Definition></Synset>
<Synset id="y-good" ili="" partOfSpeech="a" lexfile="adj.all"><Definition>desirable</Definition></Synset>
<Synset id="y-bad" ili="" partOfSpeech="s"><Definition>undesirable</Definition></Synset>
</Lexicon></LexicalResource>
"""


@pytest.fixture
def wn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nowhere: None) -> ModuleType:
    """The library with an empty database, which a download fills with LMF."""
    library: Any = pytest.importorskip("wn", reason="needs the extra: pip install 'defemb-callbacks[wordnet]'")
    monkeypatch.setattr(library.config, "_data_directory", library.config._data_directory)
    monkeypatch.setattr(library.config, "_dbpath", library.config._dbpath)
    library.config.data_directory = tmp_path / "wn"
    (tmp_path / "tiny.xml").write_text(LMF)

    def download(specifier: str) -> None:
        assert specifier == "omw-en:1.4"
        library.add(tmp_path / "tiny.xml", progress_handler=None)

    monkeypatch.setattr(library, "download", download)
    return library


def test_wn_library_gives_an_equivalent_lexicon(wn: ModuleType) -> None:
    lexicon = load_definitions("wordnet")
    assert lexicon.name == "wordnet"
    assert lexicon.lookup("bird")[0] == Definition(
        "bird", "an animal with feathers", "noun", ("feathered friend",), "noun.animal", 1, 7, "y-bird", "wordnet"
    )
    assert [found.gloss for found in lexicon.lookup("bird")] == ["an animal with feathers", "a young woman"]
    assert [found.gloss for found in lexicon.lookup("geese")] == ["a web-footed bird"]
    assert replace(lexicon.lookup("better")[0], concept="") == Definition(
        "good", "desirable", "adjective", category="adj.all", source="wordnet"
    )
    assert lexicon.lookup("bad")[0].pos == "adjective"
    assert set(lexicon.relations()) == {
        Relation("goose", "bird", "hypernym"),
        Relation("goose", "feathered friend", "hypernym"),
        Relation("good", "bad", "antonym"),
    }


def test_wn_library_downloads_once(wn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_definitions("wordnet")

    def refuse(specifier: str) -> None:
        raise AssertionError("downloaded again")

    monkeypatch.setattr(wn, "download", refuse)
    assert load_definitions("wordnet").fingerprint == first.fingerprint


CURES = r"(?s)set WORDNET_DIR .*apt-get install wordnet-base.*pip install \"defemb-callbacks\[wordnet\]\""


def test_failed_download_names_all_cures(wn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(specifier: str) -> None:
        raise wn.Error("download failed at 0 bytes")

    monkeypatch.setattr(wn, "download", fail)
    with pytest.raises(FileNotFoundError, match=rf"could not download omw-en:1\.4.*{CURES[4:]}"):
        load_definitions("wordnet")


def test_missing_library_names_all_cures(nowhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = builtins.__import__

    def without_wn(name: str, *args: Any) -> Any:
        if name == "wn":
            raise ImportError(name)
        return import_module(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_wn)
    with pytest.raises(FileNotFoundError, match=rf"`wn` library is not installed.*{CURES[4:]}"):
        load_definitions("wordnet")
