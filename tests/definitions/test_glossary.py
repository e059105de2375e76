"""Glossaries in every format, and errors that name file and line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from defemb_callbacks import load_definitions
from defemb_callbacks.definitions.glossary import glossary_from_dict, read_json, read_table
from defemb_callbacks.definitions.lexicon import Lexicon
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens
from defemb_callbacks.vocabulary.tokens import read_vocabulary


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


def pairs(lexicon: Lexicon, word: str) -> list[tuple[int, str, str]]:
    return [(found.rank, found.gloss, found.pos) for found in lexicon.lookup(word)]


def test_dict_of_glosses_and_lists() -> None:
    lexicon = glossary_from_dict({"cat": " a feline ", " dog ": ["a pet", "a dull person"], "##ing": "forms nouns"})
    assert lexicon.name == "glossary"
    assert pairs(lexicon, "cat") == [(1, "a feline", "")]
    assert pairs(lexicon, "dog") == [(1, "a pet", ""), (2, "a dull person", "")]
    assert lexicon.lookup_token("##ing")[0].gloss == "forms nouns"


CSV = """\
pos,word,note,definition
n,cat,x,"a ""small"", furry
feline"

proper noun,cat,x,a bulldozer
symbol,mA,,ampere
"""


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "windows"])
def test_csv(tmp_path: Path, mark: str, newline: str) -> None:
    lexicon = read_table(write(tmp_path, "medicine.csv", mark + CSV.replace("\n", newline)))
    assert lexicon.name == "medicine"
    assert pairs(lexicon, "cat") == [(1, f'a "small", furry{newline}feline', "noun"), (2, "a bulldozer", "noun")]
    assert pairs(lexicon, "mA") == [(1, "ampere", "")]  # an unknown part of speech is ignored


def test_tsv_quotes_are_literal(tmp_path: Path) -> None:
    path = write(tmp_path, "x.tsv", 'Word\tDefinition\nGTX\t"Giga" is a type\ncat\t"a ""small"" feline"\n5"\tinches\n')
    lexicon = read_table(path)
    assert pairs(lexicon, "GTX") == [(1, '"Giga" is a type', "")]
    assert pairs(lexicon, "cat") == [(1, 'a "small" feline', "")]
    assert pairs(lexicon, '5"') == [(1, "inches", "")]


def test_layout_of_the_paper(tmp_path: Path) -> None:
    rows = "index\ttoken\tpos\tdefinition\n4830\tĠiTunes\tproper noun\ta media player\n220\t \tsymbol\ta space\n"
    lexicon = read_table(write(tmp_path, "manual.tsv", rows))
    assert lexicon.lookup_token("ĠiTunes")[0].pos == "noun"
    assert lexicon.lookup_token(" ")[0].gloss == "a space"  # cells of `token` are literal


def test_the_papers_own_file() -> None:
    data = Path(os.environ.get("DEFEMB_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
    path = data / "definitionemb" / "bart-manual-definitions.tsv"
    if not path.exists():
        pytest.skip(f"needs {path}; set DEFEMB_TEST_DATA to the folder of the test data")
    lexicon = read_table(path)
    assert len(lexicon) == 135
    assert lexicon.lookup_token("ĠGTX")[0].gloss.startswith('"Giga Texel Shader eXtreme" and is')
    assert [found.rank for found in lexicon.lookup_token("mA")] == [1, 2]


@pytest.mark.parametrize(
    "content",
    [
        {"cat": ["a feline", "a bulldozer"], "dog": "a pet"},
        [
            {"word": "cat", "definition": "a feline", "id": 3},
            {"word": "dog", "definition": "a pet"},
            {"word": "cat", "definition": "a bulldozer"},
        ],
    ],
    ids=["object", "list"],
)
def test_json(tmp_path: Path, content: object) -> None:
    lexicon = read_json(write(tmp_path, "g.json", json.dumps(content)))
    assert pairs(lexicon, "cat") == [(1, "a feline", ""), (2, "a bulldozer", "")]
    assert pairs(lexicon, "dog") == [(1, "a pet", "")]


SYNONYMS = {
    "dict.json": """{"cat": {"definition": "a feline", "synonyms": ["true cat", " mog "]}, "dog": ["a pet",
        {"definition": "a dull person", "synonyms": [], "pos": "n"}]}""",
    "list.json": """[{"word": "cat", "definition": "a feline", "synonyms": ["true cat", "mog"]},
        {"word": "dog", "definition": "a pet"}, {"word": "dog", "definition": "a dull person", "pos": "n"}]""",
    "g.tsv": "word\tsynonyms\tpos\tdefinition\ncat\ttrue cat; mog;\t\ta feline\n"
    "dog\t\t\ta pet\ndog\t ; \tn\ta dull person\n",
    "g.csv": "Word,Definition,Pos,Synonyms\ncat,a feline,,true cat;mog\ndog,a pet\ndog,a dull person,n,\n",
}


@pytest.mark.parametrize("name", SYNONYMS)
def test_synonyms_of_a_definition(tmp_path: Path, name: str) -> None:
    lexicon = load_definitions(write(tmp_path, name, SYNONYMS[name]))
    assert [found.synonyms for found in lexicon.lookup("cat")] == [("true cat", "mog")]
    assert [(found.gloss, found.pos, found.synonyms) for found in lexicon.lookup("dog")] == [
        ("a pet", "", ()),
        ("a dull person", "noun", ()),
    ]


@pytest.mark.parametrize(
    "content",
    [
        '[{"word": "cat", "token": null, "definition": "a feline", "pos": null, "synonyms": null}]',
        '{"cat": {"definition": "a feline", "synonyms": null, "pos": null}}',
    ],
)
def test_null_in_json_is_an_absent_value(tmp_path: Path, content: str) -> None:
    lexicon = read_json(write(tmp_path, "g.json", content))
    assert pairs(lexicon, "cat") == [(1, "a feline", "")]
    assert lexicon.lookup("cat")[0].synonyms == ()


@pytest.mark.parametrize(
    "content",
    [
        'word;definition;synonyms\ncat;a small, furry feline;"mog;puss"\ndog;a pet;\n',
        'word\tdefinition\tsynonyms\ncat\t"a small, furry feline"\tmog;puss\ndog\ta pet\n',
        'sep=;\nword;definition;synonyms\ncat;a small, furry feline;"mog;puss"\ndog;a pet\n',
        'sep=,\r\nword,definition,synonyms\r\ncat,"a small, furry feline",mog;puss\r\ndog,a pet\r\n',
        "\ufeffsep=\t\r\nword\tdefinition\tsynonyms\r\ncat\ta small, furry feline\tmog;puss\r\ndog\ta pet\r\n",
        '"Word";"Definition";"Synonyms";;\n"cat";"a small, furry feline";"mog;puss";;\n;;;;\n"dog";"a pet";;;;;\n;;\n',
        'word,definition,synonyms\n,,\ncat,"a small, furry feline",mog;puss,,,\n , ,\ndog,a pet,,\n,,,,,\n',
    ],
    ids=["semicolons", "tabs", "sep=;", "sep=,", "sep=tab", "empty columns", "empty rows and cells"],
)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, content: str) -> None:
    lexicon = read_table(write(tmp_path, "g.csv", content))
    assert len(lexicon) == 2
    assert pairs(lexicon, "cat") == [(1, "a small, furry feline", "")]
    assert lexicon.lookup("cat")[0].synonyms == ("mog", "puss")
    assert pairs(lexicon, "dog") == [(1, "a pet", "")]


def test_errors_name_the_line_after_a_separator_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 4: the definition of 'dog' is empty"):
        read_table(write(tmp_path, "g.csv", "sep=;\nword;definition\ncat;a feline\ndog;\n"))


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "windows"])
def test_tsv_cells_with_quoted_line_breaks(tmp_path: Path, newline: str) -> None:
    content = (
        'word\tdefinition\tpos\ncat\t"a ""small""\n\nfeline"\tn\ndog\ta pet\tn\nowl\t"a bird\nof the night"\n'
        'lynx\t"a cat"\t"\nn"\n'
    )
    lexicon = read_table(write(tmp_path, "g.tsv", content.replace("\n", newline)))
    assert pairs(lexicon, "cat") == [(1, f'a "small"{newline}{newline}feline', "noun")]
    assert pairs(lexicon, "dog") == [(1, "a pet", "noun")]
    assert pairs(lexicon, "owl") == [(1, f"a bird{newline}of the night", "")]
    assert pairs(lexicon, "lynx") == [(1, "a cat", "noun")]


def test_a_single_quote_at_the_start_of_a_tsv_cell_is_literal(tmp_path: Path) -> None:
    content = 'word\tdefinition\ncat\t"meow\ndog\t"bark\nowl\ta "bird"\nend\t"last\n'
    lexicon = read_table(write(tmp_path, "g.tsv", content))
    assert [pairs(lexicon, word)[0][1] for word in ("cat", "dog", "owl", "end")] == [
        '"meow',
        '"bark',
        'a "bird"',
        '"last',
    ]


def test_the_fingerprint_depends_on_synonyms() -> None:
    plain, empty, rich = (
        glossary_from_dict({"cat": value})
        for value in (
            "a feline",
            {"definition": "a feline", "synonyms": []},
            {"definition": "a feline", "synonyms": ("mog",)},
        )
    )
    assert plain.fingerprint == empty.fingerprint != rich.fingerprint


def test_json_with_parts_of_speech_and_tokens(tmp_path: Path) -> None:
    content = '[{"token": " ", "definition": "a space", "pos": "Noun"}]'
    assert read_json(write(tmp_path, "g.json", content)).lookup_token(" ")[0].pos == "noun"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"columns \[\]\. Required are 'word' or 'token'"),
        ("name,definition\ncat,a feline\n", r"columns \['name', 'definition'\]\. Required"),
        ("word,gloss\ncat,a feline\n", r"columns \['word', 'gloss'\]\. Required"),
        ("word,definition\n", "has no entries"),
        ("word,definition\ncat,a feline\n ,a pet\n", r"g\.csv, line 3: the word is empty"),
        ("word,definition\ncat, \n", r"g\.csv, line 2: the definition of 'cat' is empty"),
        ("word,definition\ncat\n", r"g\.csv, line 2: the definition of 'cat' is empty"),
        ("token,definition\n,a feline\n", r"g\.csv, line 2: the word is empty"),
        (
            'word,definition\ncat,"a\nfeline"\n\ndog,a pet\ndog,a pet\n',
            r"g\.csv, line 6: 'dog' has the same definition as in .*g\.csv, line 5",
        ),
        ("word,definition\ncat,a small, furry feline\n", r"g\.csv, line 2 has 3 cells for 2 columns"),
        ("word,definition,synonyms\ncat,a feline,mog|puss\n", r"g\.csv, line 2: the synonyms 'mog\|puss' contain '\|'"),
        ('word,definition\ncat,"a" feline\n', "not a valid table: ',' expected after '\"'"),
    ],
)
def test_mistakes_in_tables(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path, "g.csv", content))


def test_table_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "g.csv"
    path.write_bytes("word,definition\ncafé,a coffeehouse\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"g\.csv is not UTF-8"):
        read_table(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"g\.json is not a valid JSON"),
        ('{"cat": "a feline", "cat": "a bulldozer"}', "the key 'cat' is duplicated"),
        ('[{"word": "cat", "word": "dog", "definition": "x"}]', "the key 'word' is duplicated"),
        ('"cat"', "contains 'cat'. A JSON glossary must be"),
        ("{}", "has no entries"),
        ('{"": "a feline"}', "the word is empty"),
        ('{"cat": ["a feline", ""]}', "definition 2 of 'cat': the definition of 'cat' is empty"),
        ('{"cat": ["a feline", "a feline"]}', "definition 2 of 'cat': 'cat' has the same definition"),
        ('{"cat": []}', "'cat' has an empty list"),
        ('["cat"]', "entry 1 is 'cat'. It must be an object"),
        ('[{"word": "cat", "gloss": "a feline"}]', r"entry 1 has the columns \['word', 'gloss'\]\. Required"),
        ('[{"word": "cat", "definition": 3}]', "entry 1: `definition` must be a string, got 3"),
        (
            '[{"word": "cat", "definition": "x", "synonyms": "mog"}]',
            "entry 1: `synonyms` must be a list of non-empty strings, got 'mog'",
        ),
        (
            '{"cat": ["x", {"definition": "y", "synonyms": [" "]}]}',
            r"definition 2 of 'cat': `synonyms` must be .*, got \[' '\]",
        ),
        ('{"cat": {"definition": "x", "synonyms": [3]}}', r"definition 1 of 'cat': `synonyms` must be .*, got \[3\]"),
        ('[{"word": "cat", "definition": null}]', r"entry 1 has the columns \['word'\]\. Required"),
        ('{"cat": {"definition": 3}}', "definition 1 of 'cat': `definition` must be a string, got 3"),
        ('{"cat": {"definition": " "}}', "definition of 'cat' is empty"),
        ('{"cat": {"gloss": "x"}}', r"definition 1 of 'cat' has the columns \['gloss', 'word'\]\. Required"),
    ],
)
def test_mistakes_in_json(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_json(write(tmp_path, "g.json", content))


@pytest.mark.parametrize(
    ("glossary", "message"),
    [
        ({1990: "a year"}, "the word 1990 must be a str, got int"),
        ({"cat": 3}, "'cat' has the definition 3"),
        ({"cat": ["a feline", None]}, r"'cat' has the definition \['a feline', None\]"),
    ],
)
def test_values_of_a_wrong_type(glossary: dict[str, str], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        glossary_from_dict(glossary)


def test_the_papers_hand_written_definitions_are_found_by_token(data_dir: Path) -> None:
    """Their `index` refers to GPT-2's encoder, not to the Hugging Face vocabularies of RoBERTa and BART."""
    path = data_dir / "definitionemb" / "bart-manual-definitions.tsv"
    tokenizer = AutoTokenizer.from_pretrained(data_dir / "tokenizers" / "roberta-base")
    found = definitions_of_tokens(read_vocabulary(tokenizer), load_definitions(path), max_definitions=10)
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    assert header == "index\ttoken\tpos\tdefinition"
    ids = tokenizer.get_vocab()
    rows = [line.split("\t") for line in lines]
    known = [row for row in rows if row[1] in ids]
    assert [row[1] for row in rows if row not in known] == ["ulkan Ulkan"]
    for index, token, _, definition in known:
        assert definition.strip('"')[:40] in {d.gloss.strip('"')[:40] for d in found[ids[token]]}
        assert ids[token] != int(index)
