"""Calibration of new rows in the output table of a causal language model."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    BertForMaskedLM,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaForCausalLM,
)

from defemb_callbacks import define_new_tokens
from defemb_callbacks.new_tokens import table_rows
from defemb_callbacks.new_tokens.output_calibration import (
    OutputStates,
    predicts_text,
    read_output_states,
    text_loss,
    without_terms,
)
from defemb_callbacks.weights.rows import read_table
from tiny import byte_bpe_tokenizer, gemma_tokenizer, tiny_bert, tiny_glossary, tiny_model, wordpiece_tokenizer

TERMS = {"lynx": "a wild cat with long ears", "tokamak": "a machine for hot gas"}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def output() -> OutputStates:
    states = 0.3 * drawn(400, 16) + 5 * torch.eye(16)[0]
    return OutputStates.of(states, drawn(50, 16, seed=1))


def test_the_direction_shifts_logits_by_the_same_amount_everywhere(output):
    shifts = output.states @ output.shift_direction()
    assert float(shifts.mean()) == pytest.approx(1)
    assert float(shifts.std()) < 0.1


def test_normalizers_equal_a_loop():
    states, weight, bias = drawn(7, 4), drawn(9, 4, seed=1), drawn(9, seed=2)
    found = OutputStates.of(states, weight, bias)
    for state, normalizer in zip(states, found.normalizers, strict=True):
        expected = torch.stack([row @ state + b for row, b in zip(weight, bias, strict=True)]).exp().sum().log()
        torch.testing.assert_close(normalizer, expected)
    expected = (states @ weight.T + bias).softmax(dim=1).mean(dim=0).log()
    torch.testing.assert_close(found.log_probabilities(weight, bias, new=False), expected)


@pytest.mark.parametrize("target", [-12.0, -6.0, -3.0])
def test_new_rows_reach_the_target(output, target: float):
    rows, bias = 3 * drawn(20, 16, seed=3), torch.tensor(0.7)
    made = output.calibrate(rows, target, bias)
    reached = output.log_probabilities(made, bias, new=True)
    torch.testing.assert_close(reached, torch.full((20,), target), atol=0.05, rtol=0)
    change = made - rows
    similar = torch.cosine_similarity(change, output.shift_direction()[None]).abs()
    torch.testing.assert_close(similar, torch.ones(20))
    # Each new token by itself, with the old ones.
    logits = torch.cat([output.states @ made[:1].T + bias, output.normalizers[:, None]], dim=1)
    torch.testing.assert_close(logits.softmax(dim=1)[:, 0].mean().log(), reached[0])


def test_states_are_those_of_the_model():
    tokenizer = byte_bpe_tokenizer()
    model = tiny_model(GPT2LMHeadModel, tokenizer).train()
    texts = [[5, 6, 7, 8], [9, 10, 11], [3, 4, 5, 6]]
    found = read_output_states(model, texts)
    assert model.training
    model.eval()
    with torch.no_grad():
        logits = [model(torch.tensor([texts[index]])).logits[0] for index in (0, 2, 1)]
    assert found is not None
    torch.testing.assert_close(found.normalizers, torch.cat(logits).logsumexp(dim=1))
    losses = [
        nn.functional.cross_entropy(each[:-1], torch.tensor(texts[i][1:]), reduction="none")
        for each, i in zip(logits, (0, 2, 1), strict=True)
    ]
    assert text_loss(model, texts) == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_models_that_change_their_logits_are_not_calibrated(monkeypatch):
    model = tiny_model(GPT2LMHeadModel, byte_bpe_tokenizer())
    forward = model.forward

    def capped(**arguments):
        found = forward(**arguments)
        found.logits = 2 * torch.tanh(found.logits / 2)
        return found

    monkeypatch.setattr(model, "forward", capped)
    assert read_output_states(model, [[5, 6, 7]]) is None


def test_texts_with_a_term_are_left_out():
    assert without_terms([[1, 2, 3], [12, 3], [2, 3]], [[2, 3]]) == [[12, 3]]


def test_only_causal_language_models_predict_text():
    tokenizer = byte_bpe_tokenizer()
    assert predicts_text(tiny_model(GPT2LMHeadModel, tokenizer))
    assert not predicts_text(tiny_model(GPT2Model, tokenizer))
    assert not predicts_text(tiny_model(GPT2ForSequenceClassification, tokenizer))
    assert not predicts_text(tiny_bert(wordpiece_tokenizer(), BertForMaskedLM))


@pytest.mark.skipif(not hasattr(transformers, "Gemma4AssistantConfig"), reason="this transformers has no Gemma 4")
def test_a_language_model_that_needs_more_than_text_gets_uncalibrated_rows():
    """Gemma's drafting model reads the states of another model."""
    tokenizer = gemma_tokenizer()
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 8, "global_head_dim": 8, "vocab_size": len(tokenizer)}
    text = transformers.Gemma4TextConfig(**sizes, hidden_size_per_layer_input=0, vocab_size_per_layer_input=0)
    config = transformers.Gemma4AssistantConfig(text_config=text, backbone_hidden_size=16)
    model = transformers.Gemma4AssistantForCausalLM(config).eval()
    assert not predicts_text(model)
    report = define_new_tokens(model, tokenizer, {"lynx": "a wild cat"}, tiny_glossary())
    assert "other_text" not in report.info
    assert len(read_table(model)) == len(tokenizer)


def test_new_words_are_as_likely_as_words_of_their_group(monkeypatch):
    for model_class, make, table in (
        (GPT2LMHeadModel, byte_bpe_tokenizer, "input"),
        (LlamaForCausalLM, gemma_tokenizer, "output"),
    ):
        tokenizer = make()
        model = tiny_model(model_class, tokenizer)
        plain, size = copy.deepcopy(model), len(read_table(model))
        report = define_new_tokens(model, copy.deepcopy(tokenizer), TERMS, tiny_glossary())
        target = report.info["new_tokens"][table]["log_probability"]
        assert target == pytest.approx(float(torch.tensor(1 / size).log()), abs=1.5)
        measured = report.info["other_text"]
        assert measured["loss_before"] < measured["loss_after"] < measured["loss_before"] + 0.5
        assert f"{measured['loss_before']:.4f} → {measured['loss_after']:.4f}" in str(report)
        if table == "output":
            assert report.info["new_tokens"]["input"]["log_probability"] is None
        # The other rows, and a model that predicts nothing, are as before.
        assert torch.equal(read_table(model)[:size], read_table(plain))
        with monkeypatch.context() as patch:
            patch.setattr(table_rows, "predicts_text", lambda model: False)
            louder = copy.deepcopy(plain)
            define_new_tokens(louder, copy.deepcopy(tokenizer), TERMS, tiny_glossary())
        centre = read_table(plain, table).mean(dim=0)
        lengths = [(read_table(one, table)[size:] - centre).norm(dim=1).mean() for one in (model, louder)]
        assert lengths[0] < lengths[1]
