"""WordNet from database files (tiny and real), from the `wn` library, and how it is found."""

from __future__ import annotations

import builtins
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from defemb_callbacks.definitions import Definition, Lexicon, Relation, load_definitions, wndb, wordnet
from defemb_callbacks.definitions.wndb import definition_of, read_wordnet
from defemb_callbacks.definitions.wordnet import CLOSED_CLASS_WORDS
from tiny_wordnet import write_wordnet


@pytest.fixture
def tiny_dir(tmp_path: Path) -> Path:
    return write_wordnet(tmp_path / "wordnet")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFEMB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without database files."""
    monkeypatch.delenv("WORDNET_DIR", raising=False)
    monkeypatch.setattr(wordnet, "DEBIAN_FOLDER", tmp_path / "absent")


def test_definitions_of_the_tiny_wordnet(tiny_dir: Path) -> None:
    lexicon = read_wordnet(tiny_dir)
    assert lexicon.name == "wordnet"
    first, second = lexicon.lookup("dog")
    assert first == Definition(
        "dog", "a pet", "noun", ("domestic dog",), "noun.animal", 1, 42, first.concept, source="wordnet"
    )
    assert (second.gloss, second.category, second.tag_count, second.rank) == ("a dull person", "noun.person", 0, 2)
    assert lexicon.lookup("domestic dog")[0].concept == first.concept
    [china] = lexicon.lookup("China")
    assert (china.gloss, china.word, china.rank) == ("a country", "China", 1)
    assert [found.gloss for found in lexicon.lookup("china", ignore_case=True)] == [
        "high quality porcelain",
        "a country",
    ]


def test_markers_of_adjectives_are_dropped_except_in_sense_keys(tiny_dir: Path) -> None:
    lexicon = read_wordnet(tiny_dir)
    assert lexicon.lookup("good")[0].word == "good"
    [able] = lexicon.lookup("able")
    assert (able.pos, able.tag_count, able.category) == ("adjective", 4, "adj.all")


def test_inflected_forms_of_the_tiny_wordnet(tiny_dir: Path) -> None:
    lexicon = read_wordnet(tiny_dir)
    assert [found.word for found in lexicon.lookup("geese")] == ["goose"]
    assert [found.word for found in lexicon.lookup("ran")] == ["run"]
    assert [(found.word, found.pos) for found in lexicon.lookup("better")] == [
        ("good", "adjective"),
        ("well", "adverb"),
    ]


def test_relations_of_the_tiny_wordnet(tiny_dir: Path) -> None:
    assert set(read_wordnet(tiny_dir).relations()) == {
        Relation("dog", "canine", "hypernym"),
        Relation("domestic dog", "canine", "hypernym"),
        Relation("good", "bad", "antonym"),  # a relation of these words only, not of "evil"
        Relation("good", "able", "similar"),
        Relation("well", "good", "pertainym"),
    }


GLOSSES = {
    # From WordNet 3.0, some of them shortened.
    "a separate and self-contained entity": "a separate and self-contained entity",
    'a tangible and visible entity; an entity that can cast a shadow; "it was full of rackets, balls"': (
        "a tangible and visible entity; an entity that can cast a shadow"
    ),
    'draw air into, and expel out of, the lungs; "I can breathe better; the air is clean"; "he respires"': (
        "draw air into, and expel out of, the lungs"
    ),
    "in a satisfactory manner; \"she'll do okay\"; (`alright' is a nonstandard variant of `all right')": (
        "in a satisfactory manner"
    ),
    'intended to deceive; "smooth, shining, and deceitful as thin ice" - S.T.Coleridge': "intended to deceive",
    '(usually followed by `to\') having the skill; "able to swim"': "(usually followed by `to') having the skill",
    'a report of the exact words used in a discourse (e.g., "he said `I am a fool\'")': (
        'a report of the exact words used in a discourse (e.g., "he said `I am a fool\'")'
    ),
    'significant progress (especially in the phrase "make strides"); "they made big strides in productivity"': (
        'significant progress (especially in the phrase "make strides")'
    ),
    'promise of reward as in "carrot and stick"; "used the carrot"': 'promise of reward as in "carrot and stick"',
    'roll around, "pigs were wallowing in the mud"': "roll around",
    'having or being more than normal or necessary:"long on brains"; "in long supply"': (
        "having or being more than normal or necessary"
    ),
    'deliver a sharp blow or push :"He knocked the glass clear across the room"': "deliver a sharp blow or push",
    'independent of order; as in e.g. "a x b = b x a"': "independent of order",
    'reach a goal, e.g., "make the first team"; "We made it!"': "reach a goal",
    'being present (at meeting or event etc.) "attendant members of the congreation"': (
        "being present (at meeting or event etc.)"
    ),
    '(of color) discolored by impurities; "dirty" is often used in combination; "a dirty white"': (
        "(of color) discolored by impurities"
    ),
    'focus once again; The physicist refocused the light beam"': "focus once again",
    'a local branch where postal services are available"': "a local branch where postal services are available",
    "fueled by wood; \"a wood-burning stove'": "fueled by wood",
}


@pytest.mark.parametrize(("gloss", "definition"), GLOSSES.items())
def test_only_examples_are_removed_from_glosses(gloss: str, definition: str) -> None:
    assert definition_of(gloss) == definition


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("data.noun", "00001740 05 n 01 cat 0 000\n", r"data\.noun, line 8 .*the gloss is missing"),
        ("data.noun", "00001740 05 n 01 cat 0 002 @ 1 n 0000 | x\n", r"data\.noun, line 8 .*fewer than 2 pointers"),
        ("data.verb", "foreign | text\n", r"data\.verb, line 3 is not in the WordNet database format"),
        ("index.adv", "cat r x\n", r"index\.adv, line 3 is not"),
        ("cntlist.rev", "cat%1:05:00:: 1 many\n", r"cntlist\.rev, line 4 is not"),
        ("noun.exc", "mice\n", r"noun\.exc, line 2 .*the lemma is missing"),
        ("data.noun", "00009999 05 n 01 cat 0 000 | a feline\n", "are inconsistent: .*'cat', 9999"),
        ("data.noun", "00009999 05 n 01 dog 0 001 @ 00000001 n 0000 | x\n", "are inconsistent"),
    ],
)
def test_damaged_files_are_named(tiny_dir: Path, name: str, line: str, message: str) -> None:
    with (tiny_dir / name).open("a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=message):
        read_wordnet(tiny_dir)


def test_found_in_the_folder_of_the_environment(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDNET_DIR", str(tiny_dir))
    assert wordnet.find_wordnet() == tiny_dir
    assert len(load_definitions("wordnet")) == len(read_wordnet(tiny_dir))


def test_found_in_the_folder_of_debian(tiny_dir: Path, nowhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wordnet.find_wordnet() is None
    monkeypatch.setattr(wordnet, "DEBIAN_FOLDER", tiny_dir)
    assert wordnet.find_wordnet() == tiny_dir


def test_folder_of_the_environment_must_be_complete(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDNET_DIR", str(tiny_dir))
    (tiny_dir / "data.verb").unlink()
    with pytest.raises(FileNotFoundError, match=r"WORDNET_DIR is '.*wordnet', where data\.verb is missing"):
        load_definitions("wordnet")


def test_parsed_once_until_the_files_change(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Path] = []

    def counting(folder: Path) -> Lexicon:
        parsed.append(folder)
        return read_wordnet(folder)

    monkeypatch.setenv("WORDNET_DIR", str(tiny_dir))
    monkeypatch.setattr(wndb, "read_wordnet", counting)
    first, second = load_definitions("wordnet"), load_definitions("wordnet")
    assert len(parsed) == 1
    assert first.fingerprint == second.fingerprint
    assert first.lookup("geese") == second.lookup("geese") != []
    (tiny_dir / "noun.exc").write_text("")
    assert load_definitions("wordnet").lookup("geese") == []
    assert len(parsed) == 2


def test_damaged_cache_is_built_again(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDNET_DIR", str(tiny_dir))
    words = load_definitions("wordnet").words
    [table] = (tmp_path / "cache").rglob("definitions-0.arrow")
    table.write_bytes(table.read_bytes()[:-100])
    assert load_definitions("wordnet").words == words


# The real dictionary.


@pytest.fixture(scope="module")
def real(wordnet_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lexicon]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEFEMB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("WORDNET_DIR", str(wordnet_dir))
        load_definitions("wordnet")
        yield load_definitions("wordnet")


def test_wordnet_is_complete(wordnet_dir: Path) -> None:
    # The numbers of lemmas and senses in the four index files.
    whole = read_wordnet(wordnet_dir)
    lemmas = {word.lower() for word in whole}
    assert len(lemmas) == 147_306
    assert sum(len(whole.lookup(lemma, ignore_case=True)) for lemma in lemmas) == 206_941


def test_homographs_of_closed_class_words_are_removed(real: Lexicon, wordnet_dir: Path) -> None:
    whole = read_wordnet(wordnet_dir)
    assert any("inert gasses" in found.gloss for found in whole.lookup("he", ignore_case=True))  # helium
    assert not any(real.lookup(word, ignore_case=True) for word in CLOSED_CLASS_WORDS)
    assert real.lookup("be")
    assert real.lookup("very")


def test_no_definition_contains_an_example(real: Lexicon) -> None:
    quoted = {found.gloss for word in real for found in real.lookup(word) if '"' in found.gloss}
    # The example that follows "yarns" has no punctuation before it; the others are part of the definition.
    assert sorted(gloss.partition('"')[0] for gloss in quoted) == [
        "a demand especially in the phrase ",
        "a report of a discourse in which deictic terms are modified appropriately (e.g., ",
        "a report of the exact words used in a discourse (e.g., ",
        "a woolen fabric with a hard textured surface and no nap; woven of worsted yarns ",
        "a workplace; as in the expression ",
        "as the agent of or on someone's part (usually expressed as ",
        "killed; `slain' is formal or literary as in ",
        "promise of reward as in ",
        "significant progress (especially in the phrase ",
        "spread by scattering (",
    ]


@pytest.mark.parametrize(
    ("form", "lemma", "pos"),
    [
        ("geese", "goose", "noun"),
        ("mice", "mouse", "noun"),
        ("ran", "run", "verb"),
        ("was", "be", "verb"),
        ("boxes", "box", "noun"),
        ("houses", "house", "noun"),
        ("spoonsful", "spoonful", "noun"),
        ("happiest", "happy", "adjective"),
        ("Germans", "German", "noun"),
        ("dvds", "DVD", "noun"),
    ],
)
def test_real_inflected_forms(real: Lexicon, form: str, lemma: str, pos: str) -> None:
    best = real.lookup(form)[0]
    assert (best.word, best.pos) == (lemma, pos)


def test_words_that_are_entries_are_not_inflected(real: Lexicon) -> None:
    assert {found.word for found in real.lookup("better")} == {"better"}
    assert "geese" not in real.without(["goose"])


def test_best_senses_of_real_words(real: Lexicon, wordnet_dir: Path) -> None:
    dog = real.lookup("dog")[0]
    assert (dog.tag_count, dog.category, dog.rank) == (42, "noun.animal", 1)
    assert dog.synonyms == ("domestic dog", "Canis familiaris")
    assert {found.category for found in real.lookup("China")} == {"noun.location"}
    assert real.lookup("china")[0].gloss == "high quality porcelain originally made only in China"
    assert real.lookup("single")[0].tag_count == 74
    above = read_wordnet(wordnet_dir).lookup("above")
    assert ("adjective", 13) in {(found.pos, found.tag_count) for found in above}  # of "preceding(a)"


def test_real_relations_join_different_concepts_quickly(real: Lexicon) -> None:
    words = [word for word in real if word.isalpha() and word.islower()][::3]
    real.lookup("dog")  # exclude the one-time decoding from the measurement
    start = time.perf_counter()
    relations = real.relations(words)
    seconds = time.perf_counter() - start
    assert seconds < 2.0, "a join takes 0.2 s on two shared cores"
    assert len(relations) > 10_000
    assert len({frozenset(pair[:2]) for pair in relations}) == len(relations)
    wanted = set(words)
    for left, right, _ in relations[::50]:
        assert {left.lower(), right.lower()} <= wanted
        ours, theirs = (real.lookup(word, ignore_case=True) for word in (left, right))
        assert {found.concept for found in ours}.isdisjoint(found.concept for found in theirs)
        assert {found.gloss for found in ours}.isdisjoint(found.gloss for found in theirs)
    assert Relation("hot", "cold", "antonym") in real.relations(["hot", "cold"])
    assert real.relations(["car", "automobile"]) == []


# The `wn` library.

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


def test_reading_is_logged_once(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORDNET_DIR", str(tiny_dir))
    with caplog.at_level(logging.INFO, logger="defemb_callbacks"):
        load_definitions("wordnet")
        load_definitions("wordnet")
    assert [record.getMessage() for record in caplog.records] == ["Reading WordNet; this is done once."]
