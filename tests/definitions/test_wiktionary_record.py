"""One record of a Wiktionary extract: glosses, labels, references to other words, synonyms."""

from __future__ import annotations

import random
from typing import Any

import pytest

from defemb_callbacks.definitions.wiktionary.record import clean_gloss, parse_record, reference

Entry = dict[str, Any]


def entry(word: str, *senses: str | Entry, pos: str = "noun", **fields: Any) -> Entry:
    """A record; a sense that is a string is its gloss."""
    listed = [{"glosses": [sense]} if isinstance(sense, str) else sense for sense in senses]
    return {"word": word, "pos": pos, "lang_code": "en", "senses": listed, **fields}


def senses_of(*senses: str | Entry, **fields: Any) -> list[str]:
    return [sense.gloss for sense in parse_record(entry("word", *senses, **fields)).senses]


def test_parts_of_speech() -> None:
    parts = {"noun": "noun", "name": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
    parts |= dict.fromkeys(("suffix", "pron", "character", "phrase", ""), "")
    assert {pos: parse_record(entry("x", "y", pos=pos)).pos for pos in parts} == parts


def test_sub_senses_follow_the_glosses_above_them() -> None:
    assert senses_of({"glosses": ["Unconstrained.", "Unconstrained by quantifiers."]}) == [
        "Unconstrained: Unconstrained by quantifiers."
    ]
    assert senses_of({"glosses": ["A cat", "A cat of the house", ""]}) == ["A cat of the house"]
    assert senses_of({"glosses": ["A", "B:", "C"]}) == ["A: B: C"]


def test_raw_glosses_stand_in_and_nothing_is_no_sense() -> None:
    assert senses_of({"raw_glosses": ["(slang) Cool."]}, {"glosses": None}, {}, {"glosses": []}) == ["Cool."]
    assert senses_of({"tags": ["no-gloss"], "glosses": ["x"]}, {"glosses": ["…"]}, {"glosses": ["{{rfdef|en}}"]}) == []


def test_a_gloss_twice_is_one_sense() -> None:
    assert senses_of("A cat.", "A dog.", " A  cat.") == ["A cat.", "A dog."]


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
def test_references_in_the_words_of_a_gloss(gloss: str, expected: tuple[str | None, bool]) -> None:
    assert reference(gloss) == expected


def test_derived_words_are_no_forms() -> None:
    raw = {"glosses": ["Agent noun of run; one who runs"], "tags": ["agent", "form-of"], "form_of": [{"word": "run"}]}
    assert parse_record(entry("runner", raw)).senses[0].lemmas == ()
    assert parse_record(entry("runner", {**raw, "tags": ["form-of"]})).senses[0].lemmas == ("run",)


def test_a_reference_needs_no_gloss() -> None:
    raw = {"tags": ["form-of", "plural"], "form_of": [{"word": "cat"}]}
    [sense] = parse_record(entry("cats", raw)).senses
    assert (sense.gloss, sense.lemmas, sense.inflected) == ("", ("cat",), True)


def test_a_heading_may_name_the_lemma() -> None:
    [sense] = parse_record(entry("am", {"glosses": ["inflection of be:", "first-person singular"]}, pos="verb")).senses
    assert (sense.lemmas, sense.inflected) == (("be",), True)


def test_synonyms_of_a_sense_and_of_an_entry_with_one_sense() -> None:
    linked = {
        "glosses": ["y"],
        "synonyms": [{"word": "b"}, {"word": "word"}, {"word": "b"}, {"word": "Thesaurus:x"}, {}],
    }
    assert parse_record(entry("word", linked)).senses[0].synonyms == ("b",)
    shared = [{"word": "c"}]
    assert parse_record(entry("word", "y", synonyms=shared)).senses[0].synonyms == ("c",)
    assert parse_record(entry("word", linked, synonyms=shared)).senses[0].synonyms == ("b",)
    assert [sense.synonyms for sense in parse_record(entry("word", "y", "z", synonyms=shared)).senses] == [(), ()]
    many = [{"word": f"w{number}"} for number in range(40)]
    assert parse_record(entry("word", "y", synonyms=many)).senses[0].synonyms == tuple(f"w{n}" for n in range(10))


def test_any_structure_is_read_or_refused() -> None:
    """Records with parts replaced by other JSON: nothing but ValueError, and only senses with text or a lemma."""
    rng = random.Random(0)
    links = [{"word": "b"}, "c"]
    sense = {"glosses": ["x", "plural of y"], "tags": ["rare"], "form_of": links, "synonyms": links, "hyponyms": links}
    whole = entry("word", sense, {**sense, "form_of": None}, synonyms=links, antonyms=links)

    def other(value: Any) -> Any:
        if rng.random() < 0.1:
            return rng.choice([None, 0, 1.5, True, "", "(obsolete) text", [], [None], {}, {"word": 1}, [["a"]], [{}]])
        if isinstance(value, dict):
            return {key: other(one) for key, one in value.items()}
        return [other(one) for one in value] if isinstance(value, list) else value

    read = 0
    for _ in range(2000):
        changed = {key: other(value) for key, value in whole.items()}
        try:
            record = parse_record(changed)
        except ValueError:
            continue
        read += 1
        assert all(sense.gloss or sense.lemmas for sense in record.senses)
        assert all(isinstance(word, str) and word for _, word in record.relations)
    assert 200 < read < 2000


@pytest.mark.parametrize(
    ("gloss", "lemma"),
    [
        ("alternative spelling of Dr. Pepper", "Dr. Pepper"),
        ("initialism of U.S. Air Force", "U.S. Air Force"),
        ("plural of cat. Compare dogs", "cat"),
    ],
)
def test_full_stops_of_abbreviations_end_no_lemma(gloss: str, lemma: str) -> None:
    assert reference(gloss)[0] == lemma
