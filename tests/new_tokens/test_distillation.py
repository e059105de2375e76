"""Rows of new tokens that a model reads as the sub-tokens of the terms."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertModel,
    FunnelBaseModel,
    FunnelConfig,
    Gemma3ForCausalLM,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaModel,
    T5ForConditionalGeneration,
)

from defemb_callbacks import DefinitionEMBConfig, define_new_tokens, load_definitions
from defemb_callbacks.new_tokens import distillation, table_rows
from defemb_callbacks.new_tokens.define import plan_new_tokens
from defemb_callbacks.new_tokens.distillation import (
    Distilled,
    check_distillation,
    distilled_on_texts,
    distilled_rows,
)
from defemb_callbacks.new_tokens.readings import Reading, definition_readings, text_readings
from defemb_callbacks.new_tokens.term_rows import piece_means
from defemb_callbacks.new_tokens.token_plan import TokenPlan
from defemb_callbacks.weights.rows import read_table
from tiny import (
    byte_bpe_tokenizer,
    gemma_tokenizer,
    tiny_bert,
    tiny_glossary,
    tiny_model,
    tiny_roberta,
    unigram_tokenizer,
    wordpiece_tokenizer,
)

TERMS = {"lynx": ["a wild cat with long ears", "a shy animal"], "tokamak": "a machine for hot gas", "cat": "a pet"}
TEXTS = [
    "he saw the lynx in the forest",
    "the lynx and a dog",
    "a tokamak was near the road",
    "they see a tokamak here",
]
DECODERS = [(GPT2LMHeadModel, byte_bpe_tokenizer), (LlamaForCausalLM, gemma_tokenizer)]
DECODERS += [(Gemma3ForCausalLM, gemma_tokenizer)]
OTHERS = [
    (GPT2Model, byte_bpe_tokenizer),
    (BertModel, wordpiece_tokenizer),
    (BertForMaskedLM, wordpiece_tokenizer),
    (RobertaModel, byte_bpe_tokenizer),
    (T5ForConditionalGeneration, unigram_tokenizer),
]


def planned(tokenizer, terms=TERMS, texts=()) -> TokenPlan:
    return plan_new_tokens(tokenizer, terms, load_definitions(tiny_glossary()), DefinitionEMBConfig(), texts)


def made(model_class: Any, tokenizer: Any) -> PreTrainedModel:
    if model_class is RobertaModel:
        return tiny_roberta(tokenizer)
    return (
        tiny_bert(tokenizer, model_class)
        if issubclass(model_class, BertModel | BertForMaskedLM)
        else tiny_model(model_class, tokenizer)
    )


def distance(model: PreTrainedModel, readings: Sequence[Reading], rows: torch.Tensor) -> float:
    """Relative squared distance of the last states, computed without the package's code."""
    layer, total = model.get_input_embeddings(), []
    part = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    causal = model.config.model_type in ("gpt2", "llama", "gemma3_text")
    model.eval()
    for reading in readings:
        with torch.no_grad():
            expected = part(torch.tensor([reading.before])).last_hidden_state[0]
            ids = torch.tensor([[index if index < len(layer.weight) else 5 for index in reading.after]])
            embedded = layer(ids)
            scale = float((layer(torch.tensor([5])) / layer.weight[5]).median())
            embedded[0, reading.place] = scale * rows[reading.row]
            found = part(inputs_embeds=embedded).last_hidden_state[0]
        after = len(reading.after) - reading.place
        if causal:
            found, expected = found[-after:], expected[-after:]
        else:
            found = torch.cat([found[: reading.place], found[reading.place + 1 :]])
            expected = torch.cat([expected[: reading.place], expected[len(expected) - after + 1 :]])
        gap = (found - expected).square().sum(dim=1) / expected.square().sum(dim=1)
        total.append(gap.mean())
    return float(torch.stack(total).mean())


def starts(model: PreTrainedModel, plan: TokenPlan) -> torch.Tensor:
    return piece_means(read_table(model), [token.pieces for token in plan.tokens])


def test_terms_that_cannot_be_distilled_keep_their_rows():
    tokenizer = byte_bpe_tokenizer()
    plan = planned(tokenizer, {"lynx": None, "cat": "a pet"})
    rows = torch.randn(len(plan.tokens), 32)
    assert not definition_readings(plan)
    found = distilled_rows(tiny_model(GPT2LMHeadModel, tokenizer), definition_readings(plan), rows)
    assert torch.equal(found.rows, rows)
    assert found.readings == 0


@pytest.mark.parametrize(("model_class", "make"), DECODERS)
def test_the_model_reads_the_rows_as_the_sub_tokens(model_class, make):
    tokenizer = make()
    model = tiny_model(model_class, tokenizer).train()
    plan = planned(tokenizer)
    readings = definition_readings(plan)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    start = starts(model, plan)
    given = start.clone()
    rows = distilled_rows(model, readings, start).rows
    # Positions after the term shift by the number of its sub-tokens, so the distance cannot become 0.
    found = distance(model, readings, rows)
    assert found < 0.85 * distance(model, readings, start)
    assert found < 0.85 * distance(model, readings, rows[[1, 0, 2]])  # the rows of two terms exchanged
    assert torch.equal(start, given)
    assert (rows.dtype, rows.requires_grad) == (torch.float32, False)
    assert torch.equal(rows[2], start[2])  # "cat" is a token
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(("model_class", "make"), [*DECODERS, *OTHERS])
def test_texts_of_every_kind_of_model(model_class, make):
    tokenizer = make()
    model = made(model_class, tokenizer).train()
    plan = planned(tokenizer, TERMS, TEXTS)
    readings = text_readings(plan)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    start = starts(model, plan)
    found = distilled_on_texts(model, readings, start)
    # The distances are measured with dropout off, and by the loss itself.
    assert found.distance_before == pytest.approx(distance(model, readings, start), rel=0.01)  # bfloat16
    assert found.distance_after == pytest.approx(distance(model, readings, found.rows), rel=0.01)
    assert found.distance_after < 0.9 * found.distance_before
    assert found.readings == len(readings) == 4
    assert torch.equal(found.rows[2], start[2])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


ANIMALS, PLACES = ("lynx", "wolf", "dog"), ("forest", "desert", "house", "valley", "city", "island", "castle", "tower")
FRAMES = (
    "the {} is in the {} and the {} is there",
    "a {} was seen near the {} by a {}",
    "people in the {} saw a {} run to the {}",
    "at the {} an old {} lived in a {}",
)


def sentences(number: int, seed: int) -> list[str]:
    chosen = random.Random(seed)
    words = [*ANIMALS, *PLACES]
    return [chosen.choice(FRAMES).format(*chosen.choices(words, k=3)) for _ in range(number)]


def trained(model: PreTrainedModel, tokenizer: Any, texts: list[str]) -> PreTrainedModel:
    """Train a model on these texts; a masked language model restores a sixth of the tokens."""
    masks = tokenizer.mask_token_id if isinstance(model, BertForMaskedLM) else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draws = torch.Generator().manual_seed(0)
    for start in range(0, len(texts), 16):
        batch = tokenizer(texts[start : start + 16], padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        if masks is not None:
            hidden = (torch.rand(labels.shape, generator=draws) < 1 / 6) & (labels != -100)
            batch["input_ids"] = batch["input_ids"].masked_fill(hidden, masks)
            labels = labels.masked_fill(~hidden, -100)
        kept = {name: batch[name] for name in ("input_ids", "attention_mask")}
        model(**kept, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize(
    ("model_class", "make"), [(GPT2LMHeadModel, byte_bpe_tokenizer), (BertForMaskedLM, wordpiece_tokenizer)]
)
def test_held_out_texts_are_read_better_too(model_class, make):
    tokenizer = make()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = trained(made(model_class, tokenizer), tokenizer, sentences(2400, seed=1))
    lynx = {"lynx": "a wild cat"}
    with_lynx = [text for text in sentences(400, seed=2) if text.count("lynx") == 1]
    plan, held_out = (planned(tokenizer, lynx, texts) for texts in (with_lynx[:25], with_lynx[25:50]))
    start = starts(model, plan)
    rows = distilled_on_texts(model, text_readings(plan), start).rows
    test = text_readings(held_out)
    assert len(test) > 15
    assert distance(model, test, rows) < 0.9 * distance(model, test, start)


def test_terms_are_distilled_in_parts(monkeypatch):
    """Memory is bounded, and each part changes its own rows only."""
    tokenizer = byte_bpe_tokenizer()
    model, plan = tiny_model(GPT2LMHeadModel, tokenizer), planned(byte_bpe_tokenizer(), TERMS, TEXTS)
    start, calls = starts(model, plan), []

    def noted(model, readings, rows, epochs):
        calls.append((sorted({reading.row for reading in readings}), epochs))
        found = distilled_rows(model, readings, rows, epochs)
        others = [row for row in range(len(rows)) if row not in calls[-1][0]]
        assert torch.equal(found.rows[others], rows[others])
        return found

    monkeypatch.setattr(distillation, "distilled_rows", noted)
    readings = text_readings(plan)
    whole = distilled_on_texts(model, readings, start)
    assert calls == [([0, 1], 45)]  # 90 readings of a term
    monkeypatch.setattr(distillation, "MAX_READINGS", 3)
    parts = distilled_on_texts(model, readings, start)
    assert [rows for rows, _ in calls[1:]] == [[0], [1]]
    assert parts.readings == whole.readings == 4
    assert parts.distance_before == pytest.approx(whole.distance_before, rel=1e-5)
    assert parts.distance_after < 0.9 * parts.distance_before


def test_distillation_is_reproducible_and_keeps_the_mode_and_the_random_state():
    tokenizer = byte_bpe_tokenizer()
    model, plan = tiny_model(GPT2LMHeadModel, tokenizer).train(), planned(byte_bpe_tokenizer())
    readings = definition_readings(plan)
    start, state = torch.randn(len(plan.tokens), 32), torch.get_rng_state()
    rows = distilled_rows(model, readings, start).rows
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(distilled_rows(model, readings, start).rows, rows)


def test_define_new_tokens_distils_rows_of_causal_language_models_only(monkeypatch):
    calls = []

    def noted(model, readings, rows):
        calls.append(type(model))
        return Distilled(rows)

    monkeypatch.setattr(table_rows, "distilled_rows", noted)

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
    expected = distilled_rows(plain, definition_readings(plan), start).rows
    torch.testing.assert_close(read_table(model)[index : index + 1], expected)
    assert torch.equal(outputs[0], outputs[1])


def test_a_model_without_a_state_for_each_token_raises():
    tokenizer = wordpiece_tokenizer()
    sizes = {"block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16}
    model = FunnelBaseModel(FunnelConfig(vocab_size=len(tokenizer), **sizes)).eval()
    match = r"FunnelBaseModel cannot be trained on the `texts` of new tokens \(its states are not .*\)\. Leave them out"
    with pytest.raises(ValueError, match=match):
        check_distillation(model)
    before, size = read_table(model), len(tokenizer)
    with pytest.raises(ValueError, match=match):
        define_new_tokens(
            model, tokenizer, {"lynx": {"definition": "a cat", "texts": ["a lynx runs"]}}, tiny_glossary()
        )
    assert torch.equal(read_table(model), before)
    assert len(tokenizer) == size
