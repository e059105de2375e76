"""WordNet: where its database files are found, how the parsed result is cached, and the content of the real one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from defemb_callbacks.definitions import Lexicon, Relation, load_definitions, wndb, wordnet
from defemb_callbacks.definitions.wndb import read_wordnet
from defemb_callbacks.definitions.wordnet import CLOSED_CLASS_WORDS
from defemb_callbacks.progress import Display, shown_on


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


def test_damaged_cache_is_built_again(tiny_dir: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDNET_DIR", str(tiny_dir))
    words = load_definitions("wordnet").words
    [table] = own_cache.rglob("definitions-0.arrow")
    table.write_bytes(table.read_bytes()[:-100])
    assert load_definitions("wordnet").words == words


def test_reading_is_logged_once(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORDNET_DIR", str(tiny_dir))
    with caplog.at_level(logging.INFO, logger="defemb_callbacks"):
        load_definitions("wordnet")
        load_definitions("wordnet")
    assert [record.getMessage() for record in caplog.records] == ["Reading WordNet; this is done once."]


def test_reading_is_shown_to_the_user_but_is_no_build(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDNET_DIR", str(tiny_dir))
    shown: list[str] = []
    with shown_on(Display(shown.append)) as display:
        load_definitions("wordnet")
    assert shown == ["Reading WordNet; this is done once."]
    assert not display.used


# The real dictionary.


@pytest.fixture(scope="module")
def real(wordnet_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lexicon]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEFEMB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("WORDNET_DIR", str(wordnet_dir))
        load_definitions("wordnet")
        yield load_definitions("wordnet")


@pytest.fixture(scope="module")
def whole(wordnet_dir: Path) -> Lexicon:
    """With closed-class words, and not from the cache."""
    return read_wordnet(wordnet_dir)


def test_wordnet_is_complete(whole: Lexicon) -> None:
    # The numbers of lemmas and senses in the four index files.
    lemmas = {word.lower() for word in whole}
    assert len(lemmas) == 147_306
    assert sum(len(whole.lookup(lemma, ignore_case=True)) for lemma in lemmas) == 206_941


def test_homographs_of_closed_class_words_are_removed(real: Lexicon, whole: Lexicon) -> None:
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


def test_best_senses_of_real_words(real: Lexicon, whole: Lexicon) -> None:
    dog = real.lookup("dog")[0]
    assert (dog.tag_count, dog.category, dog.rank) == (42, "noun.animal", 1)
    assert dog.synonyms == ("domestic dog", "Canis familiaris")
    assert {found.category for found in real.lookup("China")} == {"noun.location"}
    assert real.lookup("china")[0].gloss == "high quality porcelain originally made only in China"
    assert real.lookup("single")[0].tag_count == 74
    above = whole.lookup("above")
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
