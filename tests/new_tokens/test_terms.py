"""read_terms: terms and their definitions from dicts, lists, files and lexicons."""

from __future__ import annotations

from pathlib import Path

import pytest

from defemb_callbacks.definitions import Definition, Lexicon, load_definitions
from defemb_callbacks.new_tokens.terms import Term, clean_term, read_terms

DICTIONARY = load_definitions({"cat": ["a small feline", "a gossip"], "CAR": "chimeric antigen receptor"})


def glosses(terms: list[Term]) -> dict[str, list[str]]:
    return {term.text: [definition.gloss for definition in term.definitions] for term in terms}


def test_own_definitions_replace_those_of_the_dictionary():
    terms = read_terms({"lynx": "a wild cat", "cat": ["a pet", "a jazz fan"]}, DICTIONARY)
    assert glosses(terms) == {"lynx": ["a wild cat"], "cat": ["a pet", "a jazz fan"]}


def test_terms_without_a_definition_are_looked_up():
    terms = read_terms({"ounce": None, "cat": None}, DICTIONARY)
    assert glosses(terms) == {"ounce": [], "cat": ["a small feline", "a gossip"]}
    assert read_terms(["ounce", "cat"], DICTIONARY) == terms


def test_terms_are_case_sensitive():
    terms = read_terms({"Car": "a vehicle", "car": "a wagon"}, DICTIONARY)
    assert glosses(terms) == {"Car": ["a vehicle"], "car": ["a wagon"]}
    assert glosses(read_terms(["car"], load_definitions({"Car": "a town"}))) == {"car": ["a town"]}


def test_max_definitions():
    assert glosses(read_terms({"cat": ["a pet", "a fan", "a whip"]}, DICTIONARY, max_definitions=2)) == {
        "cat": ["a pet", "a fan"]
    }


def test_white_space_around_a_term_is_stripped():
    assert glosses(read_terms({" CAR T cell ": "a T cell"}, DICTIONARY)) == {"CAR T cell": ["a T cell"]}


def test_a_file_and_a_lexicon(tmp_path: Path):
    path = tmp_path / "terms.tsv"
    path.write_text("word\tdefinition\nlynx\ta wild cat\nounce\ta snow leopard\n")
    assert glosses(read_terms(path, DICTIONARY)) == {"lynx": ["a wild cat"], "ounce": ["a snow leopard"]}
    lexicon = Lexicon.from_definitions([Definition("lynx", "a wild cat", synonyms=("catamount",))], name="mine")
    (term,) = read_terms(lexicon, DICTIONARY)
    assert term.definitions[0].synonyms == ("catamount",)


def test_synonyms_are_read_with_their_definition(tmp_path: Path):
    path = tmp_path / "terms.csv"
    path.write_text("word,definition,synonyms\nlynx,a wild cat,catamount; bobcat\n")
    own = {"lynx": {"definition": "a wild cat", "synonyms": ["catamount", "bobcat"]}, "cat": None}
    for source in (own, path):
        (definition,) = read_terms(source, DICTIONARY)[0].definitions
        assert definition.synonyms == ("catamount", "bobcat")


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        ({}, ValueError, "no new tokens"),
        ([], ValueError, "no new tokens"),
        ({"lynx": ""}, ValueError, "definition of 'lynx' is empty"),
        ({"lynx": "  "}, ValueError, "definition of 'lynx' is empty"),
        ({"lynx": []}, ValueError, "'lynx' has an empty list"),
        ({" \t": None}, ValueError, "only white space"),
        ({"": None}, ValueError, "only white space"),
        (["lynx", "lynx"], ValueError, "'lynx' is given twice"),
        ({"lynx": "a cat", " lynx": "a cat"}, ValueError, "'lynx'"),
        (["ly\u0007nx"], ValueError, r"control character '\\x07'"),
        (["ly\nnx"], ValueError, "control character"),
        (["ly\u200bnx"], ValueError, "control character"),
        (["lynx 5\u200d5"], ValueError, r"control character '\\u200d'"),
        (["\u200clynx \u200c"], ValueError, "control character"),
        ([3], TypeError, "Terms must be strings, got 3"),
        ({"lynx": 3}, TypeError, "'lynx' has the definition 3"),
        (3, TypeError, "got 3"),
    ],
)
def test_errors_name_the_term(source, error, match):
    with pytest.raises(error, match=match):
        read_terms(source, DICTIONARY)


@pytest.mark.parametrize("term", ["می\u200cخواهم", "ශ්\u200dරී", "क्\u200dष"], ids=["Persian", "Sinhala", "Hindi"])
def test_joiners_inside_words_belong_to_their_spelling(term):
    assert clean_term(term) == term


def test_a_missing_file_raises():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tsv"):
        read_terms("nowhere.tsv", DICTIONARY)
