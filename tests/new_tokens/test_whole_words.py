"""Output rows that give new tokens the probability of the whole word."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from defemb_callbacks import DefinitionEMBConfig, load_definitions
from defemb_callbacks.new_tokens import whole_words
from defemb_callbacks.new_tokens.define import plan_new_tokens
from defemb_callbacks.new_tokens.output_calibration import OutputStates
from defemb_callbacks.new_tokens.readings import Reading, text_readings
from defemb_callbacks.new_tokens.whole_words import WordContexts, read_word_contexts
from tiny import byte_bpe_tokenizer, gemma_tokenizer, tiny_glossary, tiny_model

TEXTS = ["he saw the lynx in the forest", "the lynx and a dog", "a tokamak was near the road", "lynx (lynx) is"]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def output() -> OutputStates:
    return OutputStates.of(drawn(300, 8) * torch.linspace(0.1, 2, 8) + torch.eye(8)[0], drawn(50, 8, seed=1))


@pytest.mark.parametrize(
    ("model_class", "make"), [(GPT2LMHeadModel, byte_bpe_tokenizer), (LlamaForCausalLM, gemma_tokenizer)]
)
def test_the_new_token_has_the_probability_of_the_word(model_class, make):
    tokenizer = make()
    model = tiny_model(model_class, tokenizer).train()
    terms = {"lynx": "a cat", "tokamak": "a machine"}
    plan = plan_new_tokens(tokenizer, terms, load_definitions(tiny_glossary()), DefinitionEMBConfig(), TEXTS)
    readings = text_readings(plan)
    contexts = read_word_contexts(model, readings)
    assert model.training
    model.eval()
    assert sorted(contexts.rows.tolist()) == sorted(reading.row for reading in readings)
    for reading in readings:
        with torch.no_grad():
            logits = model(torch.tensor([reading.before])).logits[0]
            state = model.base_model(torch.tensor([reading.before])).last_hidden_state[0, reading.place - 1]
        probability = torch.ones(())
        for place in range(reading.place, reading.last + 1):
            probability *= logits[place - 1].softmax(dim=0)[reading.before[place]]
        (found,) = (index for index, each in enumerate(contexts.states) if torch.allclose(each, state, atol=1e-5))
        assert contexts.rows[found] == reading.row
        with_new = torch.cat([logits[reading.place - 1], contexts.logits[found][None]])
        torch.testing.assert_close(with_new.softmax(dim=0)[-1], probability, rtol=1e-3, atol=1e-9)


def test_words_at_the_start_and_behind_a_space_token_are_left_out():
    model = tiny_model(GPT2LMHeadModel, byte_bpe_tokenizer())
    first = Reading(0, (5, 6, 7), (400, 7), 0)
    behind_space = Reading(0, (4, 5, 6, 7), (4, 9, 400, 7), 2)
    contexts = read_word_contexts(model, [first, behind_space])
    assert len(contexts.rows) == len(contexts.states) == len(contexts.logits) == 0
    assert torch.equal(contexts.matched(drawn(2, 32), output_of(model), torch.zeros(())), drawn(2, 32))


def output_of(model: GPT2LMHeadModel) -> OutputStates:
    return OutputStates.of(drawn(40, 32), model.lm_head.weight.detach())


def test_rows_reach_the_logits_with_the_least_change_elsewhere(output, monkeypatch):
    monkeypatch.setattr(whole_words, "RIDGE", 1e-6)
    states, bias = drawn(3, 8, seed=2), torch.tensor(0.5)
    contexts = WordContexts(torch.tensor([1, 1, 1]), states, torch.tensor([2.0, -1.0, 4.0]))
    rows = drawn(3, 8, seed=3)
    matched = contexts.matched(rows, output, bias)
    torch.testing.assert_close(states @ matched[1] + bias, contexts.logits, atol=1e-3, rtol=1e-3)
    assert torch.equal(matched[[0, 2]], rows[[0, 2]])
    change = matched[1] - rows[1]
    # Any other row with these logits differs by a vector that is orthogonal to the states.
    _, _, basis = torch.linalg.svd(states)
    moment = torch.linalg.inv(output.inverse_moment()).float()
    for other in basis[3:]:
        worse = change + 0.1 * other
        torch.testing.assert_close(states @ worse, states @ change, atol=1e-4, rtol=1e-4)
        assert worse @ moment @ worse > change @ moment @ change


def test_more_contexts_come_closer_to_their_logits(output):
    """One context is half believed, as its logit is noisy."""
    logit, gaps = 6.0, []
    for number in (1, 4, 25):
        states = 1.0 + 0.01 * drawn(number, 8, seed=2)
        contexts = WordContexts(torch.zeros(number, dtype=torch.int64), states, torch.full((number,), logit))
        row = contexts.matched(torch.zeros(1, 8), output, torch.zeros(()))[0]
        gaps.append(logit - float(row.sum()))
    assert 0 < gaps[2] < gaps[1] < gaps[0] < logit


def test_a_certain_word_has_a_finite_logit():
    tokenizer = byte_bpe_tokenizer()
    model = tiny_model(GPT2LMHeadModel, tokenizer)
    with torch.no_grad():  # always predicts the token 7
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(1000 * model.lm_head.weight[7] / model.lm_head.weight[7].norm())
    contexts = read_word_contexts(model, [Reading(0, (4, 7, 7, 5), (4, 400, 5), 1)])
    assert contexts.logits.isfinite().all()
