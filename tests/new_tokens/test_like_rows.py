"""Other sources of a row than definitions: special tokens, rows like others, given pieces, and mixtures of these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, BertForMaskedLM, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from defemb_callbacks import DefinitionEMBConfig, RebuildReport, define_new_tokens
from defemb_callbacks.new_tokens.like_rows import like_rows
from defemb_callbacks.vocabulary.frequency import frequency_groups, frequency_rank
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.config_record import read_new_tokens_record
from defemb_callbacks.weights.rows import read_table, tables_of
from tiny import byte_bpe_tokenizer, gemma_tokenizer, tiny_bert, tiny_glossary, tiny_model, wordpiece_tokenizer

FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[Any], PreTrainedModel]]] = {
    "BERT": (wordpiece_tokenizer, lambda tokenizer: tiny_bert(tokenizer, BertForMaskedLM)),
    "GPT-2": (byte_bpe_tokenizer, lambda tokenizer: tiny_model(GPT2LMHeadModel, tokenizer)),
    "Llama": (gemma_tokenizer, lambda tokenizer: tiny_model(LlamaForCausalLM, tokenizer)),
}
SVG = {"definition": "starts a drawing on paper", "special": True}


def defined(terms: dict[str, Any], family: str = "BERT", **settings: Any) -> tuple[Any, Any, RebuildReport, Tensor]:
    """The tokenizer, the model, the report, and the table before."""
    make_tokenizer, make_model = FAMILIES[family]
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    before = read_table(model)
    report = define_new_tokens(model, tokenizer, terms, tiny_glossary(), DefinitionEMBConfig(**settings))
    return tokenizer, model, report, before


def centre_of(table: Tensor, tokenizer: Any) -> Tensor:
    return table[frequency_groups(frequency_rank(read_vocabulary(tokenizer)))["all"]].mean(dim=0)


def word_id(tokenizer: Any, word: str) -> int:
    return tokenizer(f" {word}", add_special_tokens=False)["input_ids"][-1]


# Special tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_get_rows_from_their_definitions(family: str, tmp_path: Path):
    terms = {"<|svg|>": SVG, "lynx": "a wild cat", "<|end|>": {**SVG, "definition": "the end of a story"}}
    tokenizer, model, report, before = defined(terms, family)
    assert not report.skipped
    assert [term.weight for term in report.terms if term.term.startswith("<")] == [1.0, 1.0]
    assert report.terms[0].composition == "100% 1 definition"
    first, last = (next(iter(report.terms[place].tokens.values())) for place in (0, 2))
    for table in tables_of(model):
        rows = read_table(model, table)
        if table == "input":
            assert torch.equal(rows[: len(before)], before)
        assert torch.cosine_similarity(rows[first] - rows.mean(0), rows[last] - rows.mean(0), dim=0) < 0.999
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "the <|svg|> lynx <|end|> is"
    ids = again(text, add_special_tokens=False)["input_ids"]
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(first) == ids.count(last) == 1
    assert again.decode(ids) == text
    assert again.decode(ids, skip_special_tokens=True).split() == ["the", "lynx", "is"]


def test_an_untrained_special_token_gets_the_same_row_as_a_new_one():
    _, fresh, _, _ = defined({"<|svg|>": SVG})
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForMaskedLM)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|svg|>"]})
    model.resize_token_embeddings(len(tokenizer))
    noise = read_table(model)[-1]
    report = define_new_tokens(model, tokenizer, {"<|svg|>": SVG}, tiny_glossary())
    assert not report.terms[0].is_new
    assert report.terms[0].composition == "100% 1 definition"
    assert not torch.equal(read_table(model)[-1], noise)
    torch.testing.assert_close(read_table(model)[-1], read_table(fresh)[-1])


# Rows like others


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_like_one_word_is_its_copy_in_every_table(family: str):
    terms = {"<|svg|>": {"like": "paper", "special": True}, "ocelot": {"like": "lion"}}
    tokenizer, model, report, _ = defined(terms, family)
    assert [term.composition for term in report.terms] == ["100% like paper", "100% like lion"]
    assert [term.nearest[0] for term in report.terms] == ["paper", "lion"]
    for table in tables_of(model):
        rows = read_table(model, table)
        for term, word in zip(report.terms, ("paper", "lion"), strict=True):
            assert torch.equal(rows[next(iter(term.tokens.values()))], rows[word_id(tokenizer, word)])


def test_weights_and_words_of_several_pieces():
    tokenizer, model, report, before = defined({"ocelot": {"like": {"lion": 3, "cat": 0.5, "owlness": 0.5}}})
    centre = centre_of(before, wordpiece_tokenizer())
    ids = tokenizer.convert_tokens_to_ids(["lion", "cat", "owl", "##ness"])
    weights = torch.tensor([0.75, 0.125, 0.0625, 0.0625])
    deviations = before[ids] - centre
    direction = normalize(weights @ normalize(deviations, dim=1), dim=0)
    expected = centre + weights @ deviations.norm(dim=1) * direction
    torch.testing.assert_close(read_table(model)[-1], expected, atol=1e-5, rtol=1e-4)
    assert report.terms[0].like == {"lion": 3.0, "cat": 0.5, "owlness": 0.5}


def test_definition_and_like_have_an_equal_say():
    gloss, rows = "a wild cat with long ears", {}
    for name, entry in {
        "defined": gloss,
        "like": {"like": "owl"},
        "both": {"definition": gloss, "like": "owl"},
    }.items():
        _, model, report, before = defined({"lynx": entry})
        rows[name] = normalize(read_table(model)[-1] - centre_of(before, wordpiece_tokenizer()), dim=0)
    torch.testing.assert_close(rows["both"], normalize(rows["defined"] + rows["like"], dim=0), atol=1e-4, rtol=1e-3)
    term = report.terms[0]
    assert term.like_weight == 0.5
    assert term.weight == 0.5 * report.info["new_tokens"]["input"]["weight"]
    assert "50% like owl" in term.composition
    assert sum(int(part.split("%")[0]) for part in term.composition.split(", ")) == pytest.approx(100, abs=1)


def test_given_pieces_replace_the_sub_tokens():
    _, model, report, before = defined({"lynx": {"pieces": ["wolf", "cat"]}})
    ids = wordpiece_tokenizer().convert_tokens_to_ids(["wolf", "cat"])
    centre = centre_of(before, wordpiece_tokenizer())
    cosine = torch.cosine_similarity(read_table(model)[-1] - centre, before[ids].mean(dim=0) - centre, dim=0)
    assert cosine == pytest.approx(1.0, abs=1e-5)
    assert report.terms[0].composition == "100% given pieces"
    assert report.terms[0].pieces == ("l", "##y", "##n", "##x")


def test_an_existing_word_like_another_is_overwritten():
    tokenizer, model, report, _ = defined({"bridge": {"like": "road"}})
    assert not report.terms[0].is_new
    rows = read_table(model)
    assert torch.equal(rows[word_id(tokenizer, "bridge")], rows[word_id(tokenizer, "road")])


def test_the_record_depends_on_the_options():
    records = [
        read_new_tokens_record(defined({"ocelot": entry})[1])
        for entry in ("a cat", {"definition": "a cat"}, {"definition": "a cat", "like": "cat"}, {"like": "cat"})
    ]
    assert records[0] == records[1]
    assert len({record["ocelot"] for record in records}) == 3


def test_the_report_shows_the_nearest_words():
    tokenizer, model, report, _ = defined({"lynx": "a wild animal like a large dog", "ocelot": {"like": "lion"}})
    assert len(report.terms[0].nearest) == 4
    assert "nearest words" in str(report)
    assert f"100% like lion {report.terms[1].nearest[0]}," in " ".join(str(report).split())
    rows = read_table(model)
    units = normalize(rows - rows[frequency_groups(frequency_rank(read_vocabulary(tokenizer)))["all"]].mean(0), dim=1)
    vocabulary = read_vocabulary(tokenizer)
    best = max(
        (index for index in vocabulary.word_ids.tolist() if index != len(rows) - 2), key=lambda i: units[i] @ units[-2]
    )
    assert report.terms[0].nearest[0] == vocabulary.words[best]


@pytest.mark.parametrize(
    ("terms", "match"),
    [
        ({"lynx": {"like": "猫"}}, r"`like` of 'lynx' names '猫', of which the tokenizer knows no part\. Name other"),
        ({"lynx": {"pieces": ["猫"]}}, "`pieces` of 'lynx' names '猫'"),
        (
            {"ocelot": "a cat", "lynx": {"like": "ocelot"}},
            r"'ocelot', which is a new token itself\. Add it in an earlier",
        ),
        ({"lynx": {"like": "lynx"}}, "'lynx', which is a new token itself"),
    ],
)
def test_words_that_have_no_row_raise(terms, match):
    with pytest.raises(ValueError, match=match):
        defined(terms)


def test_like_rows_of_an_empty_list_are_zero():
    assert like_rows(torch.eye(3), [[], [(1, 1.0)]], torch.ones(3)).tolist() == [[0, 0, 0], [0, 1, 0]]
