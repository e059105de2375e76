"""read_options: options of a term from Python, JSON and tables."""

from __future__ import annotations

import pytest

from defemb_callbacks.new_tokens.term_options import TermOptions, options_of_cells, read_options


@pytest.mark.parametrize(
    ("entry", "options"),
    [
        ({}, TermOptions()),
        ({"definition": "a cat", "special": None, "like": None}, TermOptions()),
        ({"special": True}, TermOptions(special=True)),
        ({"like": "draw"}, TermOptions(like=(("draw", 1.0),))),
        ({"like": "; =2"}, TermOptions(like=(("; =2", 1.0),))),
        ({"like": ["draw", "line"]}, TermOptions(like=(("draw", 1.0), ("line", 1.0)))),
        ({"like": {"draw": 3, "line": 0.5}}, TermOptions(like=(("draw", 3.0), ("line", 0.5)))),
        ({"pieces": ("hydroxy", "chloro")}, TermOptions(pieces=("hydroxy", "chloro"))),
        ({"texts": "a lynx"}, TermOptions(texts=("a lynx",))),
        ({"texts": ["a lynx", "the lynx"], "special": False}, TermOptions(texts=("a lynx", "the lynx"))),
    ],
)
def test_options_of_python_values(entry, options):
    assert read_options(entry, "the dict") == options


@pytest.mark.parametrize(
    ("cells", "options"),
    [
        ({"word": "lynx", "special": "", "like": " ", "pieces": ""}, TermOptions()),
        ({"special": " Yes "}, TermOptions(special=True)),
        ({"special": "0"}, TermOptions()),
        ({"like": "draw=2; line; a=b;"}, TermOptions(like=(("draw", 2.0), ("line", 1.0), ("a=b", 1.0)))),
        ({"pieces": "hydroxy;chloro"}, TermOptions(pieces=("hydroxy", "chloro"))),
    ],
)
def test_options_of_cells(cells, options):
    assert read_options(options_of_cells(cells, "line 2"), "line 2") == options


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"special": "yes"}, r"the dict: `special` must be true or false, got 'yes'"),
        ({"special": 1}, "must be true or false, got 1"),
        ({"like": 3}, r"`like` must be a word, a token or a non-empty list of these, got 3\. Correct it"),
        ({"like": []}, r"non-empty list of these, got \[\]"),
        ({"like": {}}, r"non-empty list of these, got \{\}"),
        ({"like": ""}, "non-empty list of these, got ''"),
        ({"like": ["draw", 3]}, r"got \['draw', 3\]"),
        ({"like": {"draw": 0}}, "weight of 'draw' in `like` must be a positive number, got 0"),
        ({"like": {"draw": float("nan")}}, "must be a positive number, got nan"),
        ({"like": {"draw": "much"}}, "must be a positive number, got 'much'"),
        ({"like": {"draw": True}}, "must be a positive number, got True"),
        ({"pieces": {}}, "`pieces` must be a word, a token or a non-empty list"),
        ({"texts": []}, r"`texts` must be a text or a non-empty list of texts, got \[\]\. Correct it"),
        ({"texts": ["a lynx", " "]}, r"`texts` must be a text or a non-empty list of texts, got \['a lynx', ' '\]"),
        ({"texts": ["<|svg|>"], "special": True}, r"`texts` cannot be used for a special token.*Give a definition"),
    ],
)
def test_errors_name_the_option(entry, match):
    with pytest.raises(ValueError, match=match):
        read_options(entry, "the dict")


def test_a_cell_that_is_neither_yes_nor_no_raises():
    with pytest.raises(ValueError, match="line 2: `special` must be yes or no, got 'maybe'"):
        options_of_cells({"special": "maybe"}, "line 2")


def test_texts_in_a_table_raise():
    with pytest.raises(ValueError, match=r"line 2: a cell cannot hold a list of `texts`\. Write the terms to a \.json"):
        options_of_cells({"texts": "a lynx"}, "line 2")
