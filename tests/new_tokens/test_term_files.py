"""Terms with options from dicts, tables, JSON and JSON Lines: the same terms from each of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from defemb_callbacks.definitions import load_definitions
from defemb_callbacks.new_tokens.term_options import TermOptions
from defemb_callbacks.new_tokens.terms import Term, read_terms

DICTIONARY = load_definitions({"cat": "a small feline", "ounce": "a snow leopard"})
TERMS = {
    "<|svg|>": {"definition": "starts a drawing", "special": True},
    "<|end|>": {"like": {"stop": 2.0, "end": 1.0}, "special": True},
    "lynx": {"definition": ["a wild cat", "a constellation"], "synonyms": ["bobcat"]},
    "ounce": {"pieces": ["snow", "leopard"]},
}
ROWS = [
    {"word": "<|svg|>", "definition": "starts a drawing", "special": True},
    {"word": "<|end|>", "like": {"stop": 2.0, "end": 1.0}, "special": True, "definition": None},
    {"word": "lynx", "definition": "a wild cat", "synonyms": ["bobcat"]},
    {"word": "lynx", "definition": "a constellation", "synonyms": ["bobcat"]},
    {"word": "ounce", "pieces": ["snow", "leopard"]},
]
TABLE = [
    ("word", "definition", "synonyms", "special", "like", "pieces"),
    ("<|svg|>", "starts a drawing", "", "yes", "", ""),
    ("<|end|>", "", "", "x", "stop=2; end", ""),
    ("lynx", "a wild cat", "bobcat", "", "", ""),
    ("lynx", "a constellation", "bobcat", "no", "", ""),
    ("ounce", "", "", "", "", "snow; leopard"),
]


def written(folder: Path) -> dict[str, Path]:
    contents = {
        "terms.json": json.dumps(TERMS),
        "list.json": json.dumps(ROWS),
        "terms.jsonl": "\ufeff" + "\n\n".join(map(json.dumps, ROWS)),
        "terms.csv": "\n".join(",".join(f'"{cell}"' for cell in row) for row in TABLE),
        "semicolons.csv": "sep=;\n" + "\n".join(";".join(f'"{cell}"' for cell in row) for row in TABLE),
        "terms.tsv": "\n".join("\t".join(row) for row in TABLE),
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    return {name: folder / name for name in contents}


def described(terms: list[Term]) -> dict[str, tuple[object, ...]]:
    return {term.text: (term.options, [(found.gloss, found.synonyms) for found in term.definitions]) for term in terms}


def test_all_formats_contain_the_same_terms(tmp_path: Path):
    expected = described(read_terms(TERMS, DICTIONARY))
    assert expected["<|end|>"][0].like == (("stop", 2.0), ("end", 1.0))
    assert expected["ounce"][1] == []  # not looked up
    assert expected["lynx"][1] == [("a wild cat", ("bobcat",)), ("a constellation", ("bobcat",))]
    for name, path in written(tmp_path).items():
        assert described(read_terms(path, DICTIONARY)) == expected, name
        assert described(read_terms(str(path), DICTIONARY)) == expected, name


def test_terms_of_files_are_sorted_and_those_without_a_definition_come_last(tmp_path: Path):
    for path in written(tmp_path).values():
        assert [term.text for term in read_terms(path, DICTIONARY)] == ["<|svg|>", "lynx", "<|end|>", "ounce"]
    assert [term.text for term in read_terms(TERMS, DICTIONARY)] == list(TERMS)


def test_a_table_without_definitions(tmp_path: Path):
    path = tmp_path / "terms.csv"
    path.write_text("word;like\n<|svg|>;draw\n")
    (term,) = read_terms(path, DICTIONARY)
    assert term.options.like == (("draw", 1.0),)


@pytest.mark.parametrize("name", ["terms.json", "list.json", "terms.jsonl"])
def test_texts_are_read_and_the_term_is_still_looked_up(tmp_path: Path, name: str):
    texts = ["A cat sleeps.", "the cat"]
    rows = [
        {"word": "cat", "texts": texts},
        {"word": "lynx", "definition": "a wild cat", "texts": ["a lynx"]},
        {"word": "lynx", "definition": "a constellation"},
    ]
    lynx = {"definition": ["a wild cat", "a constellation"], "texts": ["a lynx"]}
    contents = {
        "terms.json": json.dumps({"cat": {"texts": texts}, "lynx": lynx}),
        "list.json": json.dumps(rows),
        "terms.jsonl": "\n".join(map(json.dumps, rows)),
    }
    (tmp_path / name).write_text(contents[name])
    found = described(read_terms(tmp_path / name, DICTIONARY))
    assert found["cat"] == (TermOptions(texts=tuple(texts)), [("a small feline", ())])
    assert found["lynx"] == (TermOptions(texts=("a lynx",)), [("a wild cat", ()), ("a constellation", ())])


def test_an_extract_of_wiktionary_is_still_one(tmp_path: Path):
    path = tmp_path / "extract.jsonl"
    lines = [
        {"redirect": "cat", "title": "Cat"},
        {"word": "lynx", "pos": "noun", "lang_code": "en", "senses": [{"glosses": ["A wild cat."]}]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    (term,) = read_terms(path, DICTIONARY)
    assert term.definitions[0].gloss == "A wild cat."


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.csv", "word,definition,special\nlynx,a cat,maybe\n", r"a\.csv, line 2: `special` must be yes or no"),
        ("a.csv", "word,definition\nlynx,\n", r"line 2: the definition of 'lynx' is empty"),
        ("a.csv", "name,definition\nlynx,a cat\n", r"a\.csv has the columns \['name', 'definition'\]"),
        ("a.csv", "word,texts\nlynx,a lynx\n", r"line 2: a cell cannot hold a list of `texts`"),
        ("a.csv", "word,like\nlynx,cat\nlynx,dog\n", "line 3: 'lynx' has other options in an earlier row"),
        ("a.jsonl", '{"word": "lynx", "definition": "a cat"}\n{"word": ', r"line 2 is not valid JSON.*Correct it"),
        ("a.jsonl", '["lynx"]\n', r"line 1 is \['lynx'\]\. It must be an object"),
        ("a.jsonl", '{"word": "lynx"}\n', r"line 1 has the columns \['word'\]"),
        ("a.jsonl", '{"like": "cat"}\n', "Terms must be strings, got None"),
        ("a.jsonl", "\n", "has no entries"),
        ("a.json", '[{"word": "lynx", "like": 3}]', "entry 1: `like` must be a word"),
        ("a.json", '{"lynx": {"like": 3}}', r"a\.json: 'lynx': `like` must be a word"),
        ("a.json", '{"lynx": {"pos": "noun"}}', "Required are 'word' or 'token', and 'definition'"),
    ],
)
def test_errors_name_the_row(tmp_path: Path, name: str, content: str, match: str):
    (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, TypeError), match=match):
        read_terms(tmp_path / name, DICTIONARY)


def test_options_in_a_list_raise():
    with pytest.raises(ValueError, match=r'options in a list\. Put the list into them: {"definition": \[...\], "spe'):
        read_terms({"<|svg|>": ["a mark", {"definition": "starts a drawing", "special": True}]}, DICTIONARY)


def test_a_special_token_without_a_source_raises():
    with pytest.raises(ValueError, match=r"special token '<\|svg\|>' has no source of its row\. Describe it"):
        read_terms({"<|svg|>": {"special": True}}, DICTIONARY)
