"""define_new_tokens with texts: which rows change in which table, and what the report shows."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    BertModel,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    T5ForConditionalGeneration,
)

from defemb_callbacks import DefinitionEMBConfig, RebuildReport, build_definition_embeddings, define_new_tokens
from defemb_callbacks.new_tokens.output_calibration import OutputStates, read_output_states
from defemb_callbacks.new_tokens.term_rows import MAX_MISS
from defemb_callbacks.weights.config_record import read_new_tokens_record
from defemb_callbacks.weights.rows import read_table, tables_of
from tiny import (
    byte_bpe_tokenizer,
    gemma_tokenizer,
    tiny_bert,
    tiny_glossary,
    tiny_model,
    unigram_tokenizer,
    wordpiece_tokenizer,
)

FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[Any], PreTrainedModel]]] = {
    "BERT": (wordpiece_tokenizer, lambda tokenizer: tiny_bert(tokenizer, BertModel)),
    "BERT MLM": (wordpiece_tokenizer, lambda tokenizer: tiny_bert(tokenizer, BertForMaskedLM)),
    "T5": (unigram_tokenizer, lambda tokenizer: tiny_model(T5ForConditionalGeneration, tokenizer)),
    "GPT-2": (byte_bpe_tokenizer, lambda tokenizer: tiny_model(GPT2LMHeadModel, tokenizer)),
    "Llama": (gemma_tokenizer, lambda tokenizer: tiny_model(LlamaForCausalLM, tokenizer)),
}
GLOSSES = {"lynx": "a wild cat with long ears", "tokamak": "a machine for hot gas", "cello": "a large violin"}
TEXTS = ["he saw the lynx in the forest", "the lynx and a dog", "an old lynx was near the road"]
WITH_TEXTS = {**GLOSSES, "lynx": {"definition": GLOSSES["lynx"], "texts": TEXTS}}


def defined(family: str, terms: Any = WITH_TEXTS, **settings: Any) -> tuple[PreTrainedModel, RebuildReport]:
    make_tokenizer, make_model = FAMILIES[family]
    tokenizer, texts = make_tokenizer(), settings.pop("texts", ())
    model = make_model(tokenizer)
    config = DefinitionEMBConfig(**settings)
    return model, define_new_tokens(model, tokenizer, terms, tiny_glossary(), config, texts=texts)


def ids_of(report: RebuildReport, term: str) -> list[int]:
    (found,) = (list(one.tokens.values()) for one in report.terms if one.term == term)
    return found


@pytest.mark.parametrize("distil", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_terms_without_texts_and_all_other_weights_are_bitwise_as_without_texts(family: str, distil: bool):
    plain, _ = defined(family, GLOSSES, distil=distil)
    model, report = defined(family, distil=distil)
    lynx = ids_of(report, "lynx")
    for table in tables_of(model):
        rows, expected = read_table(model, table), read_table(plain, table)
        others = [index for index in range(len(rows)) if index not in lynx]
        assert torch.equal(rows[others], expected[others])
        assert not torch.equal(rows[lynx], expected[lynx])
    tables = {model.get_input_embeddings().weight.data_ptr()}
    if model.get_output_embeddings() is not None:
        tables.add(model.get_output_embeddings().weight.data_ptr())
    for name, weight in model.state_dict().items():
        if weight.data_ptr() not in tables and weight.shape == plain.state_dict()[name].shape[:1] + weight.shape[1:]:
            assert torch.equal(weight, plain.state_dict()[name]), name


def test_texts_are_found_in_the_training_data():
    given, _ = defined("GPT-2")
    corpus = ["the dog", *TEXTS, "the cat was here", TEXTS[0]]
    found, report = defined("GPT-2", GLOSSES, texts=iter(corpus))
    for table in tables_of(given):
        assert torch.equal(read_table(found, table), read_table(given, table))
    assert [term.texts for term in report.terms] == [3, 0, 0]
    _, limited = defined("GPT-2", GLOSSES, texts=corpus, texts_per_term=2)
    assert limited.terms[0].texts == 2


def test_the_report_shows_the_distillation():
    _, report = defined("GPT-2")
    assert report.terms[0].composition.endswith("sub-tokens, distilled on 3 texts")
    assert "distilled" not in report.terms[1].composition
    measured = report.info["token_distillation"]
    assert measured["readings"] == 3 + 3  # and three templates of the definition
    assert measured["distance_after"] < 0.9 * measured["distance_before"]
    shown = f"{measured['distance_before']:.3f} → {measured['distance_after']:.3f}."
    assert (
        "Token distillation on 6 texts and definitions: relative distance of the states to those with the "
        f"sub-tokens {shown}" in str(report)
    )
    assert "token_distillation" not in defined("GPT-2", GLOSSES)[1].info
    assert report.to_dict()["terms"][0]["texts"] == 3


def test_without_a_definition_the_start_is_the_mean_of_the_sub_tokens():
    """As in token distillation."""
    _, report = defined("Llama", {"lynx": {"texts": TEXTS}})
    assert report.terms[0].composition == "100% sub-tokens, distilled on 3 texts"
    # A dictionary defines it, if it can.
    _, report = defined("Llama", {"lion": {"texts": ["the lion and"]}, "lynx": {"texts": TEXTS}})
    assert report.terms[0].definitions == 1


def test_a_copied_row_is_only_the_start():
    terms = {"lynx": {"like": "lion", "texts": TEXTS}, "ocelot": {"like": "lion"}}
    for family in ("BERT", "GPT-2", "Llama"):
        model, report = defined(family, terms)
        lynx, ocelot = (read_table(model)[ids_of(report, term)[0]] for term in terms)
        assert not torch.equal(lynx, ocelot)
        assert report.terms[1].nearest[0] == "lion"
    output = read_table(model, "output")
    assert torch.equal(output[ids_of(report, "lynx")[0]], output[ids_of(report, "ocelot")[0]])


@pytest.mark.parametrize("family", ["GPT-2", "Llama"])
def test_the_new_token_is_expected_where_the_word_was(family: str):
    make_tokenizer, make_model = FAMILIES[family]
    before = make_tokenizer()
    original = make_model(before)

    def gap(terms: Any) -> float:
        """Mean distance of the log probabilities of the new token and of the word, in the texts."""
        model, tokenizer, gaps = copy.deepcopy(original), make_tokenizer(), []
        report = define_new_tokens(model, tokenizer, terms, tiny_glossary())
        word = ids_of(report, "lynx")[0]
        for text in TEXTS:
            old, new = (torch.tensor([one(text)["input_ids"]]) for one in (before, tokenizer))
            place = new[0].tolist().index(word)
            last = place + old.shape[1] - new.shape[1]
            with torch.no_grad():
                scores = original(old).logits[0].log_softmax(dim=1)
                wanted = sum(scores[at - 1, old[0, at]] for at in range(place, last + 1))
                found = model(new[:, :place]).logits[0, -1].log_softmax(dim=0)[word]
            gaps.append(abs(float(found - wanted)))
        return sum(gaps) / len(gaps)

    assert gap(WITH_TEXTS) < 0.9 * gap(GLOSSES)


@pytest.mark.parametrize("family", ["GPT-2", "Llama"])
def test_output_rows_are_still_calibrated(family: str):
    model, report = defined(family)
    table = "output" if family == "Llama" else "input"
    target = report.info["new_tokens"][table]["log_probability"]
    make_tokenizer, make_model = FAMILIES[family]
    original = make_model(make_tokenizer())
    texts = build_definition_embeddings(original, make_tokenizer(), tiny_glossary()).texts
    states = read_output_states(original, texts)
    assert isinstance(states, OutputStates)
    rows = read_table(model, table)[[ids_of(report, term)[0] for term in GLOSSES]]
    found = states.log_probabilities(rows, torch.zeros(()), new=True)
    torch.testing.assert_close(found, torch.full((3,), target), atol=MAX_MISS, rtol=0)
    torch.testing.assert_close(found[1:], torch.full((2,), target), atol=0.05, rtol=0)


def test_rows_of_a_masked_language_model_keep_their_length():
    """They are also rows of its output table."""
    plain, report = defined("BERT MLM", GLOSSES)
    model, _ = defined("BERT MLM")
    index = ids_of(report, "lynx")[0]
    centre = read_table(plain)[:-3].mean(dim=0)
    lengths = [float((read_table(one)[index] - centre).norm()) for one in (model, plain)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.05)


def test_unread_texts_are_a_warning(caplog: pytest.LogCaptureFixture):
    terms = {"cat": {"definition": "a pet", "texts": ["a cat runs"]}, "lynx": {"texts": ["there is a lynx"]}}
    with caplog.at_level(logging.WARNING):
        _, report = defined("Llama", terms)
    assert "The texts of 2 terms are not used, e.g. those of 'cat'" in caplog.text
    assert [term.texts for term in report.terms] == [0, 0]
    assert "token_distillation" not in report.info


def test_the_record_depends_on_the_texts():
    records = [read_new_tokens_record(defined("BERT", terms)[0]) for terms in (WITH_TEXTS, GLOSSES, WITH_TEXTS)]
    assert records[0] == records[2]
    assert records[0]["lynx"] != records[1]["lynx"]
    assert records[0]["cello"] == records[1]["cello"]


def test_texts_that_do_not_use_the_term_change_nothing():
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer)
    before: Tensor = read_table(model)
    with pytest.raises(ValueError, match=r"None of the 1 texts of 'lynx' contains it"):
        define_new_tokens(model, tokenizer, {"lynx": {"definition": "a cat", "texts": ["a dog"]}}, tiny_glossary())
    assert torch.equal(read_table(model), before)
    assert tokenizer.tokenize("lynx") == ["l", "##y", "##n", "##x"]
