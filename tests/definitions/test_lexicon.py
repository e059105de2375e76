"""`Lexicon`: lookup, removal of words, relations, merging and saving."""

from __future__ import annotations

from pathlib import Path

import pytest

from defemb_callbacks.definitions import Definition, Lexicon, Relation
from defemb_callbacks.definitions.morphology import Morphology

DEFINITIONS = [
    Definition("dog", "a domestic canine", pos="noun", rank=1, tag_count=40, concept="1", synonyms=("hound",)),
    Definition("hound", "a domestic canine", pos="noun", concept="1", synonyms=("dog",)),
    Definition("dog", "go after", pos="verb", rank=1, tag_count=2, concept="2"),
    Definition("dog", "a dull person", pos="noun", rank=2, tag_count=2, concept="3"),
    Definition("goose", "a web-footed bird", pos="noun", concept="4", category="noun.animal"),
    Definition("goose", "pinch in the buttocks", pos="verb", concept="5"),
    Definition("bird", "an animal with feathers", pos="noun", concept="6"),
    Definition("china", "porcelain", pos="noun", concept="7"),
    Definition("China", "a country in Asia", pos="noun", tag_count=5, concept="8"),
    Definition("WA", "a state", pos="noun", concept="9"),
    Definition("be", "exist", pos="verb", concept="10"),
    Definition("DVD", "a disc", pos="noun", concept="11"),
    Definition("Turkey", "a republic", pos="noun", concept="12", tag_count=9),
    Definition("turkey", "a bird", pos="noun", concept="13"),
]
RELATIONS = [
    Relation("goose", "bird", "hypernym"),
    Relation("bird", "goose", "also"),
    Relation("dog", "hound", "similar"),
    Relation("dog", "dog", "derivation"),
    Relation("dog", "wolf", "hypernym"),
    Relation("China", "Turkey", "similar"),
]
MORPHOLOGY = Morphology({"noun": {"geese": ["goose"]}, "verb": {"was": ["be"]}})


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon.from_definitions(DEFINITIONS, name="tiny", relations=RELATIONS, morphology=MORPHOLOGY)


def glosses(definitions: list[Definition]) -> list[str]:
    return [definition.gloss for definition in definitions]


def test_best_definition_first_and_ranked_from_one(lexicon: Lexicon) -> None:
    found = lexicon.lookup("dog")
    # Both other senses have tag count 2; the verb's rank is lower.
    assert glosses(found) == ["a domestic canine", "go after", "a dull person"]
    assert [definition.rank for definition in found] == [1, 2, 3]


def test_equally_good_senses_are_ordered_by_part_of_speech() -> None:
    parts = ["adverb", "", "adjective", "verb", "noun"]
    lexicon = Lexicon.from_definitions([Definition("x", f"gloss {pos}", pos=pos) for pos in parts], name="x")
    assert [found.pos for found in lexicon.lookup("x")] == ["noun", "verb", "adjective", "adverb", ""]


def test_lookup_returns_every_field(lexicon: Lexicon) -> None:
    assert lexicon.lookup("dog")[0] == Definition(
        "dog", "a domestic canine", "noun", ("hound",), rank=1, tag_count=40, concept="1", source="tiny"
    )
    assert lexicon.lookup("goose")[0].category == "noun.animal"
    assert lexicon.lookup("hound")[0].synonyms == ("dog",)


def test_exact_spelling_takes_precedence(lexicon: Lexicon) -> None:
    assert glosses(lexicon.lookup("china")) == ["porcelain"]
    assert glosses(lexicon.lookup("China")) == ["a country in Asia"]
    assert glosses(lexicon.lookup("CHINA")) == ["a country in Asia", "porcelain"]
    assert glosses(lexicon.lookup("china", ignore_case=True)) == ["a country in Asia", "porcelain"]


def test_spellings_of_one_concept_give_one_definition() -> None:
    spellings = [
        Definition("baroque", "ornate", concept="1"),
        Definition("baroque", "of an era", rank=2, concept="2"),
        Definition("Baroque", "ornate", rank=3, concept="1"),
    ]
    found = Lexicon.from_definitions(spellings, name="x").lookup("baroque", ignore_case=True)
    assert [(d.word, d.gloss, d.rank) for d in found] == [("baroque", "ornate", 1), ("baroque", "of an era", 2)]


def test_inflected_form_leads_to_its_part_of_speech_only(lexicon: Lexicon) -> None:
    assert glosses(lexicon.lookup("geese")) == ["a web-footed bird"]
    assert glosses(lexicon.lookup("Geese")) == ["a web-footed bird"]
    assert glosses(lexicon.lookup("goosed")) == ["pinch in the buttocks"]
    assert glosses(lexicon.lookup("dogs")) == ["a domestic canine", "go after", "a dull person"]


def test_inflected_form_keeps_case(lexicon: Lexicon) -> None:
    assert glosses(lexicon.lookup("turkeys")) == ["a bird"]
    assert glosses(lexicon.lookup("turkeys", ignore_case=True)) == ["a republic", "a bird"]


def test_abbreviations_are_inflected_in_capitals_or_as_a_last_resort(lexicon: Lexicon) -> None:
    assert glosses(lexicon.lookup("was")) == ["exist"]
    assert glosses(lexicon.lookup("WAs")) == ["a state", "exist"]
    assert glosses(lexicon.lookup("DVDs")) == glosses(lexicon.lookup("dvds")) == ["a disc"]
    alone = Lexicon.from_definitions([Definition("IT", "computing", pos="noun")], name="x", morphology=Morphology())
    assert alone.lookup("its") == []
    assert "its" not in alone


def test_unknown_words_have_no_definition(lexicon: Lexicon) -> None:
    assert lexicon.lookup("xyzzy") == []
    assert lexicon.lookup("") == []


def test_contains_agrees_with_lookup(lexicon: Lexicon) -> None:
    for word in ["dog", "DOG", "geese", "goosing", "was", "xyzzy", "", "gooses", "dvds"]:
        assert (word in lexicon) == bool(lexicon.lookup(word)) == bool(lexicon.lookup(word, ignore_case=True))
    assert 3 not in lexicon


def test_length_and_iteration_count_spellings(lexicon: Lexicon) -> None:
    assert list(lexicon) == list(lexicon.words) == sorted({d.word for d in DEFINITIONS}, key=lambda w: (w.lower(), w))
    assert len(lexicon) == 11


def test_only_glossaries_define_tokens(lexicon: Lexicon) -> None:
    mine = Lexicon.from_definitions(
        [Definition("##ing", "forms nouns"), Definition("Dog", "mine")], name="m", explicit=True
    )
    assert glosses(mine.lookup_token("##ing")) == ["forms nouns"]
    assert mine.lookup_token("dog") == []  # literal text is case-sensitive
    assert lexicon.lookup_token("dog") == []
    assert glosses(Lexicon.merge([lexicon, mine]).lookup_token("Dog")) == ["mine"]


def test_without_removes_a_word_in_every_case_and_form(lexicon: Lexicon) -> None:
    fewer = lexicon.without(["GOOSE", "china"])
    for word in ["goose", "geese", "goosed", "Goose", "china", "China"]:
        assert fewer.lookup(word) == []
        assert word not in fewer
    assert fewer.lookup("dog") == lexicon.lookup("dog")
    assert set(lexicon) - set(fewer) == {"goose", "china", "China"}
    assert fewer.relations() == []
    assert glosses(lexicon.lookup("geese")) == ["a web-footed bird"]  # the original is unchanged


def test_without_an_inflected_form_removes_only_that_form(lexicon: Lexicon) -> None:
    fewer = lexicon.without(["geese"])
    assert fewer.lookup("Geese", ignore_case=True) == []
    assert glosses(fewer.lookup("goose")) == glosses(lexicon.lookup("goose"))


def test_without_everything_is_empty(lexicon: Lexicon) -> None:
    nothing = lexicon.without(lexicon)
    assert len(nothing) == 0
    assert nothing.lookup("dog") == nothing.lookup("dogs") == nothing.relations() == []


def test_without_a_string_is_refused(lexicon: Lexicon) -> None:
    with pytest.raises(TypeError, match=r"Pass \['dog'\]"):
        lexicon.without("dog")


def test_relations_join_different_words_and_concepts_once(lexicon: Lexicon) -> None:
    # Dropped: the same pair again, synonyms, a word with itself, an unknown word.
    assert lexicon.relations() == [Relation("goose", "bird", "hypernym"), Relation("China", "Turkey", "similar")]
    assert lexicon.relations(["GOOSE", "bird", "china"]) == [Relation("goose", "bird", "hypernym")]
    assert lexicon.relations([]) == []


def test_words_that_share_a_gloss_in_different_concepts_are_not_related() -> None:
    twins = [Definition("a", "the same", concept="1"), Definition("b", "the same", concept="2")]
    assert Lexicon.from_definitions(twins, name="x", relations=[Relation("a", "b", "also")]).relations() == []


def test_merged_sources_are_looked_up_separately(lexicon: Lexicon) -> None:
    glossary = Lexicon.from_definitions(
        [Definition("geese", "my birds"), Definition("dog", "my pet")], name="tiny", explicit=True
    )
    merged = Lexicon.merge([lexicon, glossary])
    assert merged.sources == ("tiny", "tiny-2")
    assert merged.name == "tiny+tiny-2"
    # One source has "geese" as an inflected form, the other as an entry.
    assert [(d.source, d.rank, d.gloss) for d in merged.lookup("geese")] == [
        ("tiny", 1, "a web-footed bird"),
        ("tiny-2", 1, "my birds"),
    ]
    assert [(d.source, d.rank) for d in merged.lookup("dog")] == [("tiny", 1), ("tiny", 2), ("tiny", 3), ("tiny-2", 1)]
    assert len(merged) == len(lexicon) + 1
    assert Lexicon.merge([merged, glossary]).sources == ("tiny", "tiny-2", "tiny-3")
    assert merged.without(["geese"]).lookup("geese") == []


def test_merged_relations_respect_the_glosses_of_every_source(lexicon: Lexicon) -> None:
    again = Lexicon.from_definitions(DEFINITIONS, name="again", relations=RELATIONS)
    assert Lexicon.merge([lexicon, again]).relations() == lexicon.relations()
    twins = Lexicon.from_definitions([Definition("goose", "poultry"), Definition("bird", "poultry")], name="twins")
    assert Lexicon.merge([lexicon, twins]).relations() == [Relation("China", "Turkey", "similar")]


def test_merging_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no lexicon to merge"):
        Lexicon.merge([])


def test_fingerprint_depends_on_the_content(lexicon: Lexicon) -> None:
    def of(definitions: list[Definition], **options: object) -> str:
        return Lexicon.from_definitions(definitions, **{"name": "x", **options}).fingerprint  # type: ignore[arg-type]

    plain = of(DEFINITIONS)
    assert plain == of(DEFINITIONS[::-1]) == of(DEFINITIONS, name="y")
    changed = [
        of(DEFINITIONS[1:]),
        of([*DEFINITIONS, Definition("new", "new")]),
        of(DEFINITIONS, explicit=True),
        of(DEFINITIONS, morphology=MORPHOLOGY),
        of(DEFINITIONS, relations=RELATIONS),
        lexicon.fingerprint,
        lexicon.without(["dog"]).fingerprint,
        Lexicon.merge([lexicon, lexicon]).fingerprint,
    ]
    assert len({plain, *changed}) == len(changed) + 1
    assert lexicon.without(["dog", "cat"]).fingerprint == lexicon.without(["cat"]).without(["Dog"]).fingerprint


def test_save_and_load_round_trip(lexicon: Lexicon, tmp_path: Path) -> None:
    mine = Lexicon.from_definitions([Definition("##ing", "forms nouns")], name="mine", explicit=True)
    saved = Lexicon.merge([lexicon.without(["hound"]), mine])
    saved.save(tmp_path)
    loaded = Lexicon.load(tmp_path)
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.sources == saved.sources
    assert loaded.words == saved.words
    assert loaded.relations() == saved.relations()
    for word in ["dog", "geese", "hound", "China", "was"]:
        assert loaded.lookup(word) == saved.lookup(word)
    assert loaded.lookup_token("##ing") == saved.lookup_token("##ing")
    assert not [path for path in tmp_path.iterdir() if path.suffix not in {".arrow", ".json"}]


def test_loading_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lexicon\.json"):
        Lexicon.load(tmp_path)


@pytest.mark.parametrize(
    ("definitions", "message"),
    [
        ([], "'broken' has no definition"),
        ([Definition("", "a gloss")], "defines an empty word"),
        ([Definition("cat", " ")], "empty gloss for 'cat'"),
        ([Definition("cat", "a feline", pos="nuon")], "unknown part of speech for 'cat': 'nuon'"),
    ],
)
def test_invalid_definitions_are_refused(definitions: list[Definition], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lexicon.from_definitions(definitions, name="broken")
