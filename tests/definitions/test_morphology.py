"""WordNet's morphology on hand-written cases."""

from __future__ import annotations

import pytest

from defemb_callbacks.definitions.morphology import Morphology

ENTRIES = {
    ("goose", "noun"),
    ("box", "noun"),
    ("box", "verb"),
    ("house", "noun"),
    ("house", "verb"),
    ("sing", "verb"),
    ("singe", "verb"),
    ("spoonful", "noun"),
    ("pony", "noun"),
    ("woman", "noun"),
    ("church", "noun"),
    ("glass", "noun"),
    ("gas", "noun"),
    ("quiz", "noun"),
    ("dish", "noun"),
    ("good", "adjective"),
    ("well", "adverb"),
    ("fine", "adjective"),
    ("tall", "adjective"),
    ("run", "verb"),
    ("hope", "verb"),
    ("hop", "verb"),
    ("try", "verb"),
    ("a", "noun"),
    ("hi", "noun"),
    ("d", "adjective"),
}
MORPHOLOGY = Morphology(
    {
        "noun": {"geese": ["goose"], "his": ["his"]},
        "verb": {"ran": ["run"]},
        "adjective": {"better": ["good", "well"]},
        "adverb": {"better": ["well"]},
    }
)


@pytest.mark.parametrize(
    ("word", "lemmas"),
    [
        ("geese", [("goose", "noun")]),
        ("better", [("good", "adjective"), ("well", "adverb")]),  # these entries have no adjective "well"
        ("ran", [("run", "verb")]),
        ("boxes", [("box", "noun"), ("box", "verb")]),
        ("houses", [("house", "noun"), ("house", "verb")]),
        ("housing", [("house", "verb")]),
        ("singes", [("singe", "verb")]),  # not "sing" + "es"
        ("sings", [("sing", "verb")]),
        ("hoped", [("hope", "verb")]),
        ("tried", []),  # no rule for "ied": WordNet lists such verbs as exceptions
        ("tries", [("try", "verb")]),
        ("finer", [("fine", "adjective")]),
        ("tallest", [("tall", "adjective")]),
        ("ponies", [("pony", "noun")]),
        ("women", [("woman", "noun")]),
        ("churches", [("church", "noun")]),
        ("gases", [("gas", "noun")]),
        ("glasses", [("glass", "noun")]),
        ("dishes", [("dish", "noun")]),
        ("spoonsful", [("spoonful", "noun")]),
        ("spoonfuls", [("spoonful", "noun")]),
        ("his", []),  # listed as its own lemma, so it is not the plural of "hi"
        ("as", []),
        ("der", []),
        ("unknowns", []),
        ("", []),
        ("s", []),
    ],
)
def test_lemmas(word: str, lemmas: list[tuple[str, str]]) -> None:
    assert MORPHOLOGY.lemmas(word, lambda lemma, pos: (lemma, pos) in ENTRIES) == lemmas


def test_words_ending_in_ss_are_not_plurals() -> None:
    assert Morphology().lemmas("glass", lambda lemma, pos: pos == "noun") == []


def test_fingerprint_depends_on_the_exceptions() -> None:
    assert (
        Morphology({"noun": {"geese": ["goose"]}}).fingerprint
        == Morphology({"noun": {"geese": ("goose",)}}).fingerprint
    )
    assert (
        Morphology({"noun": {"geese": ["goose"]}}).fingerprint != Morphology({"verb": {"geese": ["goose"]}}).fingerprint
    )
    assert Morphology().fingerprint != MORPHOLOGY.fingerprint
