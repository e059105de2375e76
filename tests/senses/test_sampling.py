"""Uniform samples of hidden states."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import tiny
from defemb_callbacks.reconstruction.backbone import last_states
from defemb_callbacks.senses import build_sense_dictionary
from defemb_callbacks.senses.sampling import layer_states, plan_samples, sampled_states, tokenize_texts

TEXTS = tiny.random_texts(160)


def test_sample_is_uniform() -> None:
    ids = torch.tensor([1, 0] * 30)
    draws = 2000
    kept = torch.zeros(60)
    pairs = torch.zeros(30, 30)
    for seed in range(draws):
        rows = plan_samples(ids, 2, samples=6, seed=seed).rows
        kept += rows >= 0
        chosen = (rows[1::2] >= 0).float()
        pairs += chosen[:, None] * chosen
    for token in (0, 1):
        assert chisquare(kept[token::2].numpy()).pvalue > 0.001
    # Pairs of occurrences are uniform as well.
    assert chisquare(pairs[tuple(torch.triu_indices(30, 30, offset=1))].numpy()).pvalue > 0.001
    assert kept.sum() == draws * 12


def test_rows_of_a_token_are_in_random_order() -> None:
    first = torch.zeros(20)
    for seed in range(2000):
        first += plan_samples(torch.zeros(20, dtype=torch.int64), 1, samples=10, seed=seed).rows == 0
    assert chisquare(first.numpy()).pvalue > 0.001


def test_sample_size_is_bounded_and_depends_on_the_seed() -> None:
    ids = torch.randint(0, 9, (500,))
    plan, again = plan_samples(ids, 12, samples=30), plan_samples(ids, 12, samples=30)
    assert torch.equal(plan.rows, again.rows)
    assert not torch.equal(plan.rows, plan_samples(ids, 12, samples=30, seed=1).rows)
    assert torch.equal(plan.seen, torch.bincount(ids, minlength=12))
    assert torch.equal(plan.offsets.diff(), plan.seen.clamp(max=30))
    rows = plan.rows[plan.rows >= 0]
    assert torch.equal(rows.sort().values, torch.arange(int(plan.offsets[-1])))
    for token in range(12):
        of_token = plan.rows[(ids == token) & (plan.rows >= 0)]
        assert ((of_token >= plan.offsets[token]) & (of_token < plan.offsets[token + 1])).all()


def test_sampled_states_match_their_positions(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = TEXTS[:20]
    tokenized = tokenize_texts(tokenizer, texts)
    plan = plan_samples(tokenized.ids, len(tokenizer), samples=5)
    states = sampled_states(teacher, tokenized, plan, batch_size=3)
    position = 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            of_text = last_states(teacher, ids)[0]
        for state in of_text:
            if (row := int(plan.rows[position])) >= 0:
                torch.testing.assert_close(states[row], state, atol=1e-5, rtol=1e-4)
            position += 1
    assert position == len(plan.rows)


def test_layer_states_match_hidden_states(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        layers = teacher.bert(ids, output_hidden_states=True).hidden_states
        for layer in (0, 1, 2):
            torch.testing.assert_close(layer_states(teacher, ids, layer), layers[layer])
        torch.testing.assert_close(layer_states(teacher, ids), layers[2])


def test_invalid_texts(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="`texts` must contain at least one token, got 0 texts"):
        build_sense_dictionary(teacher, tokenizer, [])
    with pytest.raises(TypeError, match="`texts` must be a list of strings or a column of a Dataset, got str"):
        build_sense_dictionary(teacher, tokenizer, "one text")
    with pytest.raises(TypeError, match=r"got generator\. Put .* a stream into a Dataset"):
        build_sense_dictionary(teacher, tokenizer, (text for text in TEXTS))  # type: ignore[arg-type]


def test_token_ids_out_of_range() -> None:
    with pytest.raises(ValueError, match="Token id 7 is out of range: the model has 5 tokens"):
        plan_samples(torch.tensor([1, 7]), 5, samples=1)
