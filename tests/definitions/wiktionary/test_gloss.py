"""Wiktionary glosses: markup, usage labels and references to other words."""

from __future__ import annotations

import pytest

from defemb_callbacks.definitions.wiktionary.gloss import clean_gloss, parse_reference


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A [[small]] [[feline|cat]] of the [[house#Noun|house]].", "A small cat of the house."),
        ("An '''odd''' ''thing''", "An odd thing"),
        ("Salt &amp; pepper&nbsp;mix", "Salt & pepper mix"),
        ("H<sub>2</sub>O<br/>pure", "H2O pure"),
        ("Water.[1][23] Ice.<ref name='a'>Smith [[x]]</ref>", "Water. Ice."),
        ("Water[citation needed]", "Water"),
        ("The hydrocarbon C[16]H[34]", "The hydrocarbon C[16]H[34]"),
        ('any of "<" and ">"', 'any of "<" and ">"'),
        ("A {{l|en|thing}} {{gloss|small}} {{rare|{{x}}}}here", "A thing small here"),
        ("A cat. [[Category:English nouns]]", "A cat."),
        ("A cat. Category:English nouns", "A cat."),
        ("Real. <!-- check", "Real."),
        ("cut {{trans-top, see", "cut"),
        ("# a [[broken link", "a broken link"),
        ("see [https://example.org/a b c]", "see b c"),
        ("  two \n spaces\t", "two spaces"),
        ("(US, chiefly dialectal) (by extension) to go", "to go"),
        ("(baseball) To pitch", "(baseball) To pitch"),
        ("(of a person) Foolish", "(of a person) Foolish"),
        ("(slang)", ""),
        ("?!", ""),
    ],
)
def test_markup_and_labels_are_cleaned(raw: str, clean: str) -> None:
    assert clean_gloss(raw)[0] == clean
    assert clean_gloss(clean) == (clean, set())


def test_labels_of_a_gloss() -> None:
    assert clean_gloss("{{lb|en|obsolete|slang}} (now rare or archaic) thing")[1] == {
        "obsolete",
        "slang",
        "rare",
        "archaic",
    }


@pytest.mark.parametrize(
    ("gloss", "expected"),
    [
        ("plural of cat", ("cat", True)),
        ("en third person singular of pie", ("pie", True)),
        ("Simple past tense and past participle of detect.", ("detect", True)),
        ("third-person singular simple present indicative of run", ("run", True)),
        ("past tense of “to light”", ("light", True)),
        ("superlative of the adjective good", ("good", True)),
        ("present participle of contract, as in hiring", ("contract", True)),
        ("plural of", ("", True)),
        ("alternative spelling of encyclopedia", ("encyclopedia", False)),
        ("Alternative letter-case form of Aboriginal", ("Aboriginal", False)),
        ("Initialism of random access memory; a store", ("random access memory", False)),
        ("synonym of etendue.", ("etendue", False)),
        ("eye dialect spelling of probably", ("probably", False)),
        ("a form of government", (None, False)),
        ("person of Danish descent", (None, False)),
        ("inflection of the voice", (None, False)),
        ("present of great value", (None, False)),
        ("plural", (None, False)),
    ],
)
def test_glosses_that_are_references(gloss: str, expected: tuple[str | None, bool]) -> None:
    assert parse_reference(gloss) == expected


@pytest.mark.parametrize(
    ("gloss", "lemma"),
    [
        ("alternative spelling of Dr. Pepper", "Dr. Pepper"),
        ("initialism of U.S. Air Force", "U.S. Air Force"),
        ("plural of cat. Compare dogs", "cat"),
    ],
)
def test_periods_of_abbreviations_do_not_end_a_lemma(gloss: str, lemma: str) -> None:
    assert parse_reference(gloss)[0] == lemma
