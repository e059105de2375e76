"""TrainedRows: other rows are bitwise as before, whatever the optimizer does, in every table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartForConditionalGeneration,
    BertForMaskedLM,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    T5GemmaForConditionalGeneration,
)

from defemb_callbacks.new_tokens import TrainedRows
from defemb_callbacks.weights.rows import embedding_weight, read_table, tables_of
from tiny import byte_bpe_tokenizer, gemma_tokenizer, tiny_bert, tiny_model, wordpiece_tokenizer

IDS = [3, 40, 41]
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "BERT, tied": lambda: tiny_bert(wordpiece_tokenizer(), BertForMaskedLM),
    "BERT, untied": lambda: tiny_bert(wordpiece_tokenizer(), BertForMaskedLM, tie_word_embeddings=False),
    "GPT-2, tied": lambda: tiny_model(GPT2LMHeadModel, byte_bpe_tokenizer()),
    "Llama, untied": lambda: tiny_model(LlamaForCausalLM, gemma_tokenizer()),
    "BART": lambda: tiny_model(BartForConditionalGeneration, byte_bpe_tokenizer()),
    "T5Gemma, two tables": lambda: tiny_model(T5GemmaForConditionalGeneration, gemma_tokenizer()),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1),
    "SGD with momentum": lambda weights: torch.optim.SGD(weights, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "Adafactor": lambda weights: torch.optim.Adafactor(weights, lr=1e-2, weight_decay=0.1),
}


def tables(model: PreTrainedModel) -> dict[str, Tensor]:
    return {table: read_table(model, table) for table in tables_of(model)}


def batches(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.randint(4, 60, (4, 12), generator=generator) for _ in range(steps)]
    for ids in found:
        ids[:, :3] = torch.tensor(IDS)
    return found


def train(model: Any, rows: TrainedRows, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for ids in batches(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        rows.restore()


def changed(before: Tensor, after: Tensor) -> list[int]:
    return (before != after).any(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize("name", MODELS)
def test_other_rows_are_bitwise_equal_after_100_steps_with_weight_decay(name: str):
    model = MODELS[name]().train()
    before = tables(model)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    old_bias = None if bias is None else bias.detach().clone()
    train(model, TrainedRows(model, IDS), OPTIMIZERS["AdamW"](model.parameters()), 100)
    for table, after in tables(model).items():
        assert changed(before[table], after) == IDS, table
    if bias is not None:
        assert (bias != old_bias).nonzero().flatten().tolist() == IDS


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_optimizer(optimizer: str, dtype: torch.dtype):
    model = MODELS["GPT-2, tied"]().to(dtype)
    before = tables(model)
    train(model, TrainedRows(model, IDS), OPTIMIZERS[optimizer](model.parameters()), 5)
    assert changed(before["input"], tables(model)["input"]) == IDS


def test_gradients_and_moments_of_other_rows_are_zero():
    model = MODELS["Llama, untied"]()
    rows = TrainedRows(model, IDS)
    assert (rows.trained, rows.kept) == (3, len(embedding_weight(model)) - 3)
    before = tables(model)["input"]
    for ids in batches(2):  # accumulated
        model(input_ids=ids, labels=ids).loss.backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    for table in ("input", "output"):
        weight = embedding_weight(model, table)
        assert weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == IDS
        assert optimizer.state[weight]["exp_avg_sq"].sum(dim=1).nonzero().flatten().tolist() == IDS
    assert len(changed(before, tables(model)["input"])) > len(before) - 2  # moved by weight decay; padding is zero
    rows.restore()
    assert changed(before, tables(model)["input"]) == IDS


def test_rows_are_trained_as_if_the_others_were_constants():
    model, other = MODELS["GPT-2, tied"](), MODELS["GPT-2, tied"]()
    for one in (model, other):
        for name, weight in one.named_parameters():
            weight.requires_grad_("wte" in name)
    train(model, TrainedRows(model, IDS), torch.optim.AdamW([embedding_weight(model)], lr=1e-2), 5)
    own = embedding_weight(other).detach()[IDS].clone().requires_grad_()
    optimizer = torch.optim.AdamW([own], lr=1e-2)
    for ids in batches(5):
        table = embedding_weight(other).detach().index_copy(0, torch.tensor(IDS), own)
        weights = {"transformer.wte.weight": table, "lm_head.weight": table}
        torch.func.functional_call(other, weights, kwargs={"input_ids": ids, "labels": ids}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(embedding_weight(model)[IDS], own)


def test_after_release_all_rows_are_trained():
    model = MODELS["GPT-2, tied"]()
    before = tables(model)["input"]
    rows = TrainedRows(model, IDS)
    rows.release()
    train(model, rows, OPTIMIZERS["AdamW"](model.parameters()), 1)
    assert len(changed(before, tables(model)["input"])) == len(before)


def test_a_copy_that_an_adapter_trains():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query"], modules_to_save=["word_embeddings"])
    model = peft.get_peft_model(MODELS["BERT, untied"](), config)
    before = read_table(model)
    train(model, TrainedRows(model, IDS), OPTIMIZERS["AdamW"](model.parameters()), 3)
    assert changed(before, read_table(model)) == IDS


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["word_embeddings"]},
        {"target_modules": ["query"], "trainable_token_indices": {"word_embeddings": [3]}},
    ],
)
def test_embeddings_with_other_adapters_raise(settings: dict[str, Any]):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(MODELS["BERT, untied"](), peft.LoraConfig(**settings))
    with pytest.raises(ValueError, match=r"The input embeddings have an adapter.*trainable_token_indices"):
        TrainedRows(model, IDS)


def test_frozen_tables_raise():
    model = MODELS["BERT, tied"]().requires_grad_(False)
    with pytest.raises(ValueError, match=r"embeddings are frozen.*requires_grad_\(True\)"):
        TrainedRows(model, IDS)


@pytest.mark.parametrize(
    ("ids", "match"),
    [([], "no rows to train"), ([3, 99999], "from 3 to 99999 do not fit a table of"), ([-1], "from -1 to -1")],
)
def test_ids_that_do_not_fit_raise(ids: list[int], match: str):
    with pytest.raises(ValueError, match=match):
        TrainedRows(MODELS["BERT, tied"](), ids)
