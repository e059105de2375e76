"""Wiktionary extracts: a record for every rule, damaged files, and real extracts."""

from __future__ import annotations

import gzip
import json
import logging
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defemb_callbacks import cache
from defemb_callbacks.definitions import Definition, Lexicon, Relation, load_definitions
from defemb_callbacks.definitions.wiktionary import tables as wiktionary_tables
from defemb_callbacks.definitions.wiktionary.extract import load_wiktionary, read_wiktionary
from defemb_callbacks.definitions.wordnet import CLOSED_CLASS_WORDS

Entry = dict[str, Any]


def entry(word: str, *senses: str | Entry, pos: str = "noun", **fields: Any) -> Entry:
    """A record; a sense that is a string is its gloss."""
    listed = [{"glosses": [sense]} if isinstance(sense, str) else sense for sense in senses]
    return {"word": word, "pos": pos, "lang_code": "en", "senses": listed, **fields}


def form_of(lemma: str, gloss: str = "", key: str = "form_of", **fields: Any) -> Entry:
    return {"glosses": [gloss or f"plural of {lemma}"], key: [{"word": lemma}], **fields}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Lexicon]:
    def read(*entries: Entry, language: str = "en") -> Lexicon:
        path = tmp_path / "extract.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in entries), encoding="utf-8")
        return read_wiktionary(path, language)

    return read


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEFEMB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def glosses(lexicon: Lexicon, word: str, **options: bool) -> list[str]:
    return [found.gloss for found in lexicon.lookup(word, **options)]


# Lexicons of several records.


def test_every_field_of_a_definition(read: Callable[..., Lexicon]) -> None:
    lexicon = read(entry("Paris", {"glosses": ["A city."], "synonyms": [{"word": "City of Light"}]}, pos="name"))
    assert lexicon.lookup("Paris") == [
        Definition("Paris", "A city.", "noun", ("City of Light",), rank=1, source="wiktionary")
    ]
    assert lexicon.name == "wiktionary"


def test_obsolete_senses_come_last(read: Callable[..., Lexicon]) -> None:
    lexicon = read(
        entry("share", {"glosses": ["first"], "tags": ["obsolete"]}, "(archaic) second", "third", pos="verb"),
        entry("a", "The first letter.", pos="character"),
        entry("a", "One.", pos="article"),
        entry("share", "fourth"),
    )
    assert glosses(lexicon, "share") == ["third", "fourth", "first", "second"]
    assert [found.rank for found in lexicon.lookup("share")] == [1, 2, 3, 4]
    assert glosses(lexicon, "a") == ["One.", "The first letter."]


def test_senses_keep_the_order_of_the_file(read: Callable[..., Lexicon]) -> None:
    lexicon = read(entry("set", "to put", pos="verb"), entry("set", "a collection"), entry("set", "to put", pos="verb"))
    assert glosses(lexicon, "set") == ["to put", "a collection"]


def test_forms_have_the_senses_of_their_lemma(read: Callable[..., Lexicon]) -> None:
    lexicon = read(
        entry("cats", form_of("cat")),
        entry("cat", "a feline"),
        entry("cat", "to vomit", pos="verb"),
        entry("left", "not right", pos="adj"),
        entry("left", form_of("leave", "past of leave"), pos="verb"),
        entry("leave", "to go away", pos="verb"),
        entry("leave", "permission"),
        entry("theirs", form_of("cat"), pos="pron"),
        entry("colour", form_of("color", "British spelling of color", key="alt_of")),
        entry("color", "a hue"),
        entry("algae", "plural of alga"),
        entry("alga", "a seaweed"),
    )
    assert [(found.word, found.gloss) for found in lexicon.lookup("cats")] == [("cat", "a feline")]
    assert glosses(lexicon, "left") == ["not right", "to go away"]
    assert glosses(lexicon, "theirs") == ["a feline", "to vomit"]  # no common part of speech: all senses
    assert glosses(lexicon, "colour") == ["a hue"]
    assert glosses(lexicon, "algae") == ["a seaweed"]
    assert all(form in lexicon for form in ("cats", "Colour", "left"))
    assert "dogs" not in lexicon
    assert "cats" not in lexicon.words
    assert "cats" not in lexicon.without(["cat"])
    assert "cat" in lexicon.without(["cats"])
    assert lexicon.without(["cats"]).lookup("cats") == lexicon.without(["cat"]).lookup("cats") == []


def test_chains_of_references_are_followed_and_cycles_end(read: Callable[..., Lexicon]) -> None:
    lexicon = read(
        entry("wo'ms", form_of("wo'm", tags=["archaic"])),
        entry("wo'm", form_of("worme", "eye dialect", key="alt_of"), form_of("moth", "alternative form", key="alt_of")),
        entry("worme", form_of("worm", "obsolete spelling of worm", key="alt_of")),
        entry("worm", "a creeper"),
        entry("moth", "a flyer"),
        entry("hither", form_of("thither", key="alt_of", gloss="see thither")),
        entry("thither", form_of("hither", key="alt_of", gloss="see hither")),
        entry("round", form_of("around")),
        entry("around", form_of("round")),
        entry("sheep", form_of("sheep"), "a bleater"),
    )
    assert glosses(lexicon, "wo'ms") == ["a flyer", "a creeper"]
    assert glosses(lexicon, "hither") == ["see thither"]  # a cycle: its gloss is kept
    assert "round" not in lexicon
    assert "around" not in lexicon
    assert glosses(lexicon, "sheep") == ["a bleater"]


def test_references_to_undefined_words(read: Callable[..., Lexicon]) -> None:
    gloss = "Initialism of random access memory"
    targets = [{"word": "random access memory"}, {"word": "a store"}]
    lexicon = read(entry("dogs", form_of("dog")), entry("RAM", {"glosses": [gloss], "alt_of": targets}))
    assert "dogs" not in lexicon
    assert glosses(lexicon, "RAM") == [gloss]
    lexicon = read(
        entry("store", "a shop"), entry("RAM", {"glosses": [gloss], "alt_of": [targets[0], {"word": "store"}]})
    )
    assert glosses(lexicon, "RAM") == ["a shop"]


def test_exact_spelling_takes_precedence(read: Callable[..., Lexicon]) -> None:
    lexicon = read(
        entry("IS", "information system"),
        entry("is", form_of("be", "third-person singular of be"), pos="verb"),
        entry("be", "to exist", pos="verb"),
        entry("China", "a country", pos="name"),
        entry("china", "porcelain"),
    )
    assert glosses(lexicon, "is") == ["to exist"]
    assert glosses(lexicon, "IS") == ["information system"]
    assert glosses(lexicon, "Is") == ["to exist", "information system"]
    assert glosses(lexicon, "is", ignore_case=True) == ["to exist", "information system"]
    assert glosses(lexicon, "china", ignore_case=True) == ["porcelain", "a country"]


def test_english_morphology_is_used_for_english_only(read: Callable[..., Lexicon]) -> None:
    assert glosses(read(entry("box", "a case")), "boxes") == ["a case"]
    lexicon = read(entry("Box", "a surname", pos="name"), entry("box", "a case"))
    assert glosses(lexicon, "boxes", ignore_case=True) == ["a case", "a surname"]
    french = {**entry("danse", "a dance"), "lang_code": "fr"}
    assert "danses" not in read(french, language="fr")
    assert "danse" in read(french, language="fr")


def test_closed_class_words_are_kept(read: Callable[..., Lexicon]) -> None:
    assert glosses(read(entry("the", "definite article", pos="article")), "the") == ["definite article"]


def test_relations_are_between_known_words_without_a_common_gloss(read: Callable[..., Lexicon]) -> None:
    lexicon = read(
        entry("dog", {"glosses": ["a barker"], "hypernyms": [{"word": "canine"}, {"word": "wolf"}, {"word": "dog"}]}),
        entry("canine", "a flesh-eater", hyponyms=[{"word": "dog"}], antonyms=[{"word": "cat"}]),
        entry("cat", "a meower", "a flesh-eater"),
        entry("Cat", "a bulldozer", coordinate_terms=[{"word": "dog"}], holonyms=[{"word": "cat"}]),
    )
    assert lexicon.relations() == [Relation("dog", "canine", "hypernym"), Relation("Cat", "dog", "coordinate")]


def test_other_languages_are_skipped(read: Callable[..., Lexicon]) -> None:
    chat = {**entry("chat", "cat"), "lang_code": "fr"}
    unnamed = {key: value for key, value in entry("dog", "a barker").items() if key != "lang_code"}
    lexicon = read(entry("chat", "a talk"), chat, unnamed)
    assert glosses(lexicon, "chat") == ["a talk"]
    assert "dog" not in lexicon
    assert glosses(read(unnamed, chat), "dog") == ["a barker"]
    assert glosses(read(chat, entry("x", "y"), language="fr"), "chat") == ["cat"]


def test_a_missing_language_lists_those_found(read: Callable[..., Lexicon]) -> None:
    chat = {**entry("chat", "cat"), "lang_code": "fr"}
    with pytest.raises(ValueError, match=r"no definition in the language 'en'.*'fr' \(2\), 'de' \(1\)"):
        read(chat, chat, {**chat, "lang_code": "de"})


def test_any_chunking_gives_the_same_lexicon(read: Callable[..., Lexicon], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference in plain Python: the glosses of each word, demoted ones last."""
    rng = random.Random(0)
    words = [f"{'AbC'[rng.randrange(3)]}w{number}" for number in range(30)]
    entries = [
        entry(rng.choice(words), *({"glosses": [f"g{n} {i}"], "tags": ["rare"] * rng.randrange(2)} for i in range(3)))
        for n in range(200)
    ]
    whole = read(*entries, *(entry(f"{word}s", form_of(word)) for word in words))
    monkeypatch.setattr(wiktionary_tables, "CHUNK", 7)
    pieces = read(*entries, *(entry(f"{word}s", form_of(word)) for word in words))
    for word in {one["word"] for one in entries}:
        senses = [sense for one in entries if one["word"] == word for sense in one["senses"]]
        expected = [sense["glosses"][0] for sense in sorted(senses, key=lambda sense: bool(sense["tags"]))]
        assert glosses(whole, word) == glosses(pieces, word) == glosses(pieces, f"{word}s") == expected


# Files.


def lines_of(count: int, bad: dict[int, str]) -> str:
    return "".join(bad.get(n, json.dumps(entry(f"w{n}", f"gloss {n}"))) + "\n" for n in range(1, count + 1))


MALFORMED = [
    '{"word": "cut", "sen',
    "[1, 2]",
    '{"pos": "noun", "senses": []}',
    '{"word": " ", "senses": []}',
    '{"word": 3, "senses": []}',
    '{"word": "x"}',
    '{"word": "x", "senses": {}}',
    '{"word": "x", "senses": ["y"]}',
    '{"word": "x", "senses": [{"glosses": [1]}]}',
    '{"word": "x", "senses": [{"glosses": 1}]}',
    '{"word": "x", "lang_code": 1, "senses": []}',
    '{"word": "\\uD800", "senses": []}',
    "[" * 200_000,
]


@pytest.mark.parametrize("line", MALFORMED, ids=lambda line: line[:40])
def test_a_malformed_line_is_counted_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text(lines_of(100, {7: line}))
    with caplog.at_level(logging.WARNING):
        assert len(read_wiktionary(path)) == 99
    assert "1 of 100 lines" in caplog.text
    assert "malformed (line 7)" in caplog.text
    path.write_text(lines_of(99, {7: line}))
    with pytest.raises(
        ValueError, match=r"1 of 99 lines of .*e\.jsonl are malformed \(line 7\)\. The file must contain one JSON"
    ):
        read_wiktionary(path)


def test_the_first_malformed_lines_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text("\n" + lines_of(10, dict.fromkeys(range(2, 9), "oops")))
    with pytest.raises(ValueError, match=r"7 of 10 lines .* \(lines 3, 4, 5, 6, 7, …\)"):
        read_wiktionary(path)


def test_a_file_in_another_format_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text('{"word": "x", "definition": "y"}\n' * 5000)
    with pytest.raises(ValueError, match="1,000 of 1,000 lines"):
        read_wiktionary(path)


def test_a_line_in_another_encoding_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(lines_of(100, {}).encode() + json.dumps(entry("naïve", "x"), ensure_ascii=False).encode("latin-1"))
    assert len(read_wiktionary(path)) == 100


def test_redirects_blank_lines_nulls_and_a_byte_order_mark_are_fine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nulls = {"glosses": ["a feline"], "tags": None, "form_of": None, "alt_of": None, "synonyms": None}
    lines = ['{"title": "x", "redirect": "y"}', "", json.dumps(entry("cat", nulls, hypernyms=None)), " "]
    lines += [json.dumps(entry("cat", "a \N{CAT FACE}", pos="symbol"))]
    path = tmp_path / "e.jsonl"
    path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    assert glosses(read_wiktionary(path), "cat") == ["a feline", "a \N{CAT FACE}"]
    assert not caplog.records


def test_gzip_is_recognized_by_content(tmp_path: Path) -> None:
    data = gzip.compress(lines_of(10, {}).encode())
    for name in ("e.jsonl", "e.jsonl.gz"):
        (tmp_path / name).write_bytes(data)
        assert len(read_wiktionary(tmp_path / name)) == 10


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data[:200] + b"\0" * 50 + data[250:]])
def test_a_damaged_gzip_file(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    rng = random.Random(0)
    noise = "".join(json.dumps(entry(f"w{n}", f"{rng.random()}")) + "\n" for n in range(1000))
    path = tmp_path / "e.jsonl.gz"
    path.write_bytes(damage(gzip.compress(noise.encode())))
    with pytest.raises(ValueError, match=r"e\.jsonl\.gz is truncated or damaged .*\. Download it again"):
        read_wiktionary(path)


def test_the_progress_bar_counts_bytes_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    path = tmp_path / "e.jsonl.gz"
    path.write_bytes(gzip.compress(lines_of(5000, {}).encode()))
    read_wiktionary(path)
    bars = capsys.readouterr().err
    assert "Reading e.jsonl.gz: 100%" in bars
    assert f"{path.stat().st_size / 1000:.1f}k/" in bars


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"e\.jsonl is empty\. It must contain one JSON object per line"):
        read_wiktionary(path)


def test_the_cached_lexicon_equals_the_built_one(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "e.jsonl"
    entries = [entry("kine", form_of("cow", "plural of cow")), entry("cow", "a ruminant")]
    entries += [{**entry("chat", "cat"), "lang_code": "fr"}]
    path.write_text("\n".join(map(json.dumps, entries)))
    built = load_wiktionary(path)
    written = {file: file.stat().st_mtime_ns for file in own_cache.rglob("*")}
    kept = load_definitions(path)
    assert {file: file.stat().st_mtime_ns for file in own_cache.rglob("*")} == written
    assert kept.fingerprint == built.fingerprint
    assert kept.lookup("kine") == built.lookup("kine") != []
    assert load_wiktionary(path, "fr").words == ("chat",)
    path.write_text(json.dumps(entry("cat", "a pet")))
    assert glosses(load_wiktionary(path), "cat") == ["a pet"]


def test_a_large_unchanged_file_is_not_read_again(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "REMEMBERED_FROM", 1)
    monkeypatch.setattr(cache, "SETTLED_AFTER", 0)
    path = tmp_path / "e.jsonl"
    path.write_text(json.dumps(entry("cow", "a ruminant")))
    time.sleep(0.02)
    first = load_wiktionary(path)
    monkeypatch.setattr(cache, "file_fingerprint", pytest.fail)
    assert load_wiktionary(path).fingerprint == first.fingerprint


def test_the_fingerprint_depends_on_senses_and_forms(read: Callable[..., Lexicon]) -> None:
    cat, dog = entry("cat", "a feline"), entry("dog", "a barker")
    lexicons = [
        read(cat, dog),
        read(dog, cat),
        read(cat, dog, entry("kit", form_of("cat"))),
        read(cat, entry("dog", "x")),
    ]
    prints = [lexicon.fingerprint for lexicon in lexicons]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


# The real files.


def test_the_kaikki_sample(data_dir: Path) -> None:
    lexicon = load_definitions(data_dir / "dictionaries" / "kaikki-en-sample.jsonl")
    assert len(lexicon) == 9
    assert glosses(lexicon, "bring")[:2] == ["To transport toward somebody/somewhere.", "To supply or contribute."]
    assert glosses(lexicon, "falcon")[-2:] == [
        "To hunt with a falcon or falcons.",
        "A light cannon used from the 15th to the 17th century.",  # historical
    ]
    assert lexicon.lookup("magical")[1].synonyms == ("bewitching", "captivating", "fascinating")
    assert glosses(lexicon, "synonyme") == ["Archaic form of synonym."]
    assert glosses(lexicon, "participates") == glosses(lexicon, "participate")


@pytest.mark.parametrize(
    ("name", "words", "senses", "forms"),
    [
        ("enwiktionary-2015-glosses.jsonl.gz", 74_000, 120_000, {"algae": "alga", "built": "build", "are": "be"}),
        ("enwiktionary-slice-definitions.jsonl.gz", 1_200, 4_900, {"abandoned": "abandon", "is": "be", "swop": "swap"}),
    ],
)
def test_real_glosses(data_dir: Path, name: str, words: int, senses: int, forms: dict[str, str]) -> None:
    lexicon = read_wiktionary(data_dir / "dictionaries" / name)
    definitions = [found for word in lexicon for found in lexicon.lookup(word)]
    assert len(lexicon) > words
    assert len(definitions) > senses
    for form, lemma in forms.items():
        assert lemma in {found.word for found in lexicon.lookup(form)}
    for marks in ("[[", "]]", "{{", "}}", "''", "&amp;", "<!--", "<ref", "  "):
        assert not [found.gloss for found in definitions if marks in found.gloss]
    assert not [found for found in definitions if found.gloss != found.gloss.strip()]
    assert len(CLOSED_CLASS_WORDS & set(lexicon)) > len(CLOSED_CLASS_WORDS) / (2 if senses > 100_000 else 20)
