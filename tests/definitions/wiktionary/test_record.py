"""Wiktextract records: parts of speech, senses, lemmas and synonyms."""

from __future__ import annotations

import random
from typing import Any

import pytest

from defemb_callbacks.definitions.wiktionary.record import parse_record

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


def test_raw_glosses_are_a_fallback_and_empty_senses_are_skipped() -> None:
    assert senses_of({"raw_glosses": ["(slang) Cool."]}, {"glosses": None}, {}, {"glosses": []}) == ["Cool."]
    assert senses_of({"tags": ["no-gloss"], "glosses": ["x"]}, {"glosses": ["…"]}, {"glosses": ["{{rfdef|en}}"]}) == []


def test_a_repeated_gloss_is_one_sense() -> None:
    assert senses_of("A cat.", "A dog.", " A  cat.") == ["A cat.", "A dog."]


def test_derived_words_are_not_forms() -> None:
    raw = {"glosses": ["Agent noun of run; one who runs"], "tags": ["agent", "form-of"], "form_of": [{"word": "run"}]}
    assert parse_record(entry("runner", raw)).senses[0].lemmas == ()
    assert parse_record(entry("runner", {**raw, "tags": ["form-of"]})).senses[0].lemmas == ("run",)


def test_a_reference_does_not_need_a_gloss() -> None:
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


def test_any_structure_is_parsed_or_refused() -> None:
    """Records with randomly replaced values: only ValueError is raised, and every sense has a gloss or a lemma."""
    rng = random.Random(0)
    links = [{"word": "b"}, "c"]
    sense = {"glosses": ["x", "plural of y"], "tags": ["rare"], "form_of": links, "synonyms": links, "hyponyms": links}
    whole = entry("word", sense, {**sense, "form_of": None}, synonyms=links, antonyms=links)

    def mutated(value: Any) -> Any:
        if rng.random() < 0.1:
            return rng.choice([None, 0, 1.5, True, "", "(obsolete) text", [], [None], {}, {"word": 1}, [["a"]], [{}]])
        if isinstance(value, dict):
            return {key: mutated(one) for key, one in value.items()}
        return [mutated(one) for one in value] if isinstance(value, list) else value

    read = 0
    for _ in range(2000):
        changed = {key: mutated(value) for key, value in whole.items()}
        try:
            record = parse_record(changed)
        except ValueError:
            continue
        read += 1
        assert all(sense.gloss or sense.lemmas for sense in record.senses)
        assert all(isinstance(word, str) and word for _, word in record.relations)
    assert 200 < read < 2000


@pytest.mark.parametrize(
    "notice",
    [
        "Wiktionary does not have any English dictionary entry for this term.",
        "This term needs a definition. Please help out and add a definition, then remove the text {{rfdef}}.",
        "This entry is here for translation purposes only.",
        "No entry for this sense exists yet.",
        "There is no English entry for this term.",
    ],
)
def test_notices_are_not_definitions(notice: str) -> None:
    assert senses_of({"glosses": [notice]}, {"glosses": ["An animal.", notice]}) == []


@pytest.mark.parametrize("gloss", ["No entry sign.", "A definition is what explains a word.", "This term is a title."])
def test_definitions_that_resemble_notices_are_kept(gloss: str) -> None:
    assert senses_of({"glosses": [gloss]}) == [gloss]
