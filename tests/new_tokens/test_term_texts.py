"""with_texts: passages of a corpus that use a term."""

from __future__ import annotations

import re

import pytest

from defemb_callbacks.new_tokens.term_options import TermOptions
from defemb_callbacks.new_tokens.term_texts import AFTER, BEFORE, with_texts
from defemb_callbacks.new_tokens.terms import Term


def passages(terms, corpus=(), **settings):
    settings = {"most": 25, **settings}
    return {term.text: list(term.options.texts) for term in with_texts(terms, corpus, **settings)}


def test_terms_are_found_as_whole_words():
    corpus = ["a lynx", "lynxes", "the lynx's ears", "un-lynx-like", "my_lynx", "(lynx)", "Lynx", "lynx2"]
    found = passages([Term("lynx")], corpus)
    assert found["lynx"] == ["a lynx", "the lynx's ears", "un-lynx-like", "(lynx)"]
    assert "Lynx" in passages([Term("lynx")], corpus, ignore_case=True)["lynx"]
    assert passages([Term("LYNX")], corpus, ignore_case=True)["LYNX"][0] == "a lynx"


def test_phrases_and_terms_with_signs():
    corpus = ["a CAR T cell", "a CAR T cells", "uses C++ well", "a .NET shop", "C and T", "→ here", "猫はC++だ"]
    terms = [Term(text) for text in ("CAR T cell", "C++", ".NET", "→", "猫")]
    assert passages(terms, corpus) == {
        "CAR T cell": ["a CAR T cell"],
        "C++": ["uses C++ well"],
        ".NET": ["a .NET shop"],
        "→": ["→ here"],
        "猫": [],
    }


def test_each_term_gets_the_first_texts_and_the_corpus_is_read_no_further():
    read = []

    def corpus():
        for number in range(100):
            read.append(number)
            yield f"lynx {number}"

    assert passages([Term("lynx")], corpus(), most=3)["lynx"] == ["lynx 0", "lynx 1", "lynx 2"]
    assert read == [0, 1, 2, 3]


def test_own_texts_come_first_and_equal_passages_count_once():
    own = Term("lynx", options=TermOptions(texts=("my lynx", "my lynx", "no cat")))
    assert passages([own], ["a lynx", "my lynx", "a lynx", "the lynx"], most=3)["lynx"] == [
        "my lynx",
        "a lynx",
        "the lynx",
    ]
    assert passages([own], ["a lynx"], most=1)["lynx"] == ["my lynx"]


def test_long_texts_are_cut_between_words_around_the_term():
    words = [f"word{number}" for number in range(100)]
    text = " ".join([*words, "lynx", *words])
    (found,) = passages([Term("lynx")], [text])["lynx"]
    before, after = found.split(" lynx ")
    assert text.count(found) == 1
    assert BEFORE - 8 < len(before) < BEFORE
    assert AFTER - 8 < len(after) < AFTER
    assert re.fullmatch(r"(word\d+ ?)+", before)
    assert set(after.split()) <= set(words)
    (glued,) = passages([Term("x")], ["-" * 500 + "x" + "-" * 500])["x"]  # nothing to cut at
    assert len(glued) == BEFORE + 1 + AFTER


def test_terms_without_texts_and_special_ones_are_returned_as_they_are():
    terms = [Term("lynx"), Term("<|svg|>", options=TermOptions(special=True))]
    found = with_texts(terms, ["<|svg|> a cat"], most=5)
    assert found[0] is terms[0]
    assert found[1] is terms[1]


def test_texts_without_their_term_raise():
    term = Term("lynx", options=TermOptions(texts=("lynxes", "a cat")))
    with pytest.raises(ValueError, match=r"None of the 2 texts of 'lynx' contains it as a whole word.*'lynxes'\. Give"):
        with_texts([term], most=5)


@pytest.mark.parametrize(
    ("corpus", "match"),
    [
        ("a lynx", r"`texts` must be a list of texts or a column of a data set, got 'a lynx'\. Pass a list"),
        (["a lynx", {"text": "a lynx"}], r"Text 1 of `texts` is {'text': 'a lynx'}\. Pass strings, such as dataset\["),
    ],
)
def test_a_corpus_of_other_objects_raises(corpus, match):
    with pytest.raises(TypeError, match=match):
        with_texts([Term("lynx")], corpus, most=5)
