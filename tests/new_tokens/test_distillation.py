"""Rows of new tokens that a language model reads as the sub-tokens of the terms."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3ForCausalLM, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from defemb_callbacks import DefinitionEMBConfig, define_new_tokens, load_definitions
from defemb_callbacks.new_tokens import define
from defemb_callbacks.new_tokens.define import plan_new_tokens
from defemb_callbacks.new_tokens.distillation import MAX_TOKENS, TEMPLATES, distilled_rows, readings_of
from defemb_callbacks.new_tokens.term_rows import piece_means
from defemb_callbacks.new_tokens.token_plan import TokenPlan
from defemb_callbacks.weights.rows import read_table
from tiny import byte_bpe_tokenizer, gemma_tokenizer, tiny_bert, tiny_glossary, tiny_model, wordpiece_tokenizer

TERMS = {"lynx": ["a wild cat with long ears", "a shy animal"], "tokamak": "a machine for hot gas", "cat": "a pet"}


def planned(tokenizer, terms=TERMS) -> TokenPlan:
    return plan_new_tokens(tokenizer, terms, load_definitions(tiny_glossary()), DefinitionEMBConfig())


def distance(model: PreTrainedModel, plan: TokenPlan, rows: torch.Tensor) -> float:
    """Relative squared distance of the last states after the terms, computed without the package's code."""
    layer, total = model.get_input_embeddings(), []
    model.eval()
    for reading in readings_of(plan):
        with torch.no_grad():
            expected = model.base_model(torch.tensor([reading.before])).last_hidden_state[0]
            ids = torch.tensor([[index if index < len(layer.weight) else 0 for index in reading.after]])
            embedded = layer(ids)
            scale = float((layer(torch.tensor([5])) / layer.weight[5]).median())
            embedded[0, reading.place] = scale * rows[reading.row]
            found = model.base_model(inputs_embeds=embedded).last_hidden_state[0]
        after = len(reading.after) - reading.place
        gap = (found[-after:] - expected[-after:]).square().sum(dim=1) / expected[-after:].square().sum(dim=1)
        total.append(gap.mean())
    return float(torch.stack(total).mean())


def test_texts_are_the_definitions_with_and_without_the_new_token():
    tokenizer = byte_bpe_tokenizer()
    plan = planned(tokenizer)
    readings = readings_of(plan)
    assert [reading.row for reading in readings] == [0] * 2 * len(TEMPLATES) + [1] * len(
        TEMPLATES
    )  # not "cat", a token
    first = readings[0]
    assert tokenizer.decode(first.before, skip_special_tokens=True) == "The word lynx means a wild cat with long ears."
    assert plan.after.decode(first.after) == tokenizer.decode(first.before)
    token = plan.tokens[0]
    assert first.after[first.place] == token.word
    assert first.after[first.place + 1 :] == first.before[first.place + len(token.pieces) :]


def test_long_texts_are_truncated_after_the_term():
    plan = planned(byte_bpe_tokenizer(), {"lynx": "a cat and a dog " * 40})
    for reading in readings_of(plan):
        assert len(reading.after) == MAX_TOKENS
        assert len(reading.before) == MAX_TOKENS + len(plan.tokens[0].pieces) - 1


def test_terms_that_cannot_be_distilled_keep_their_rows():
    tokenizer = byte_bpe_tokenizer()
    plan = planned(tokenizer, {"lynx": None, "cat": "a pet"})
    rows = torch.randn(len(plan.tokens), 32)
    assert not readings_of(plan)
    assert torch.equal(distilled_rows(tiny_model(GPT2LMHeadModel, tokenizer), plan, rows), rows)


@pytest.mark.parametrize(
    ("model_class", "make"),
    [(GPT2LMHeadModel, byte_bpe_tokenizer), (LlamaForCausalLM, gemma_tokenizer), (Gemma3ForCausalLM, gemma_tokenizer)],
)
def test_the_model_reads_the_rows_as_the_sub_tokens(model_class, make):
    tokenizer = make()
    model = tiny_model(model_class, tokenizer).train()
    plan = planned(tokenizer)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    start = piece_means(read_table(model), [token.pieces for token in plan.tokens])
    given = start.clone()
    rows = distilled_rows(model, plan, start)
    # Positions after the term shift by the number of its sub-tokens, so the distance cannot become 0.
    found = distance(model, plan, rows)
    assert found < 0.85 * distance(model, plan, start)
    assert found < 0.85 * distance(model, plan, rows[[1, 0, 2]])  # the rows of two terms exchanged
    assert torch.equal(start, given)
    assert (rows.dtype, rows.requires_grad) == (torch.float32, False)
    assert torch.equal(rows[2], start[2])  # "cat" is a token
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_distillation_is_reproducible_and_keeps_the_mode_and_the_random_state():
    tokenizer = byte_bpe_tokenizer()
    model, plan = tiny_model(GPT2LMHeadModel, tokenizer).train(), planned(byte_bpe_tokenizer())
    start, state = torch.randn(len(plan.tokens), 32), torch.get_rng_state()
    rows = distilled_rows(model, plan, start)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(distilled_rows(model, plan, start), rows)


def test_define_new_tokens_distils_rows_of_causal_language_models_only(monkeypatch):
    calls = []
    monkeypatch.setattr(define, "distilled_rows", lambda model, plan, rows: calls.append(type(model)) or rows)

    def defined(model: PreTrainedModel, tokenizer, **settings) -> int:
        calls.clear()
        config = DefinitionEMBConfig(**settings)
        define_new_tokens(model, tokenizer, {"lynx": "a wild cat"}, tiny_glossary(), config)
        return len(calls)

    tokenizer = byte_bpe_tokenizer()
    assert defined(tiny_model(GPT2LMHeadModel, tokenizer), byte_bpe_tokenizer(), distil=True) == 1
    assert defined(tiny_model(GPT2LMHeadModel, tokenizer), byte_bpe_tokenizer()) == 0
    assert defined(tiny_bert(wordpiece_tokenizer()), wordpiece_tokenizer(), distil=True) == 0


def test_an_untied_input_row_is_the_distilled_one():
    tokenizer = gemma_tokenizer()
    model = tiny_model(LlamaForCausalLM, tokenizer)  # its tables are not tied
    plain = tiny_model(LlamaForCausalLM, tokenizer)
    plain.load_state_dict(model.state_dict())
    outputs: list[torch.Tensor] = []
    for one, distil in ((model, True), (plain, False)):
        config = DefinitionEMBConfig(distil=distil)
        define_new_tokens(one, gemma_tokenizer(), {"lynx": "a wild cat"}, tiny_glossary(), config)
        outputs.append(read_table(one, "output"))
    plan = planned(tokenizer, {"lynx": "a wild cat"})
    index = plan.tokens[0].word
    start = read_table(plain)[index : index + 1]
    plain.resize_token_embeddings(index)  # as before the terms were added
    expected = distilled_rows(plain, plan, start)
    torch.testing.assert_close(read_table(model)[index : index + 1], expected)
    assert torch.equal(outputs[0], outputs[1])
