"""The parser of WordNet's database files, on a tiny WordNet; removing examples from glosses."""

from __future__ import annotations

from pathlib import Path

import pytest

from defemb_callbacks.definitions import Definition, Relation
from defemb_callbacks.definitions.wndb import definition_of, read_wordnet


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
