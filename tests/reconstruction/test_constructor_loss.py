"""The loss of the constructor, for every family: equal to a reference, independent of padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import BartModel, DebertaV2Model, GPT2Model, LlamaModel, PreTrainedModel, T5GemmaModel, T5Model

from defemb_callbacks import Definition, with_definition_head
from defemb_callbacks.reconstruction.constructor.data import (
    DefinitionCollator,
    ReadingStyle,
    definition_rows,
    sub_tokens_of,
)
from defemb_callbacks.weights.rows import embedding_weight
from tiny import gemma_tokenizer, tiny_glossary, tiny_model, tiny_roberta, wordpiece_tokenizer


def rows_of(model: PreTrainedModel, tokenizer: Any, **options: Any) -> tuple[ReadingStyle, Dataset]:
    """Definitions of different lengths, the first one of a word of several sub-tokens."""
    glosses = {"wolfing": "to run quickly at night"}
    glosses |= {word: tiny_glossary()[word] for word in ("gold", "river", "king", "violin")}
    definitions = [[Definition(word, gloss)] for word, gloss in glosses.items()]
    style, words = ReadingStyle.of(model, tokenizer), list(glosses)
    sub_tokens = sub_tokens_of(words, tokenizer)
    return style, definition_rows(style, tokenizer, words, sub_tokens, definitions, max_length=64, **options)


def family_rows(name: str) -> tuple[PreTrainedModel, Any, ReadingStyle, Dataset]:
    """A model that reads with BERT's tokenizer, or T5Gemma's with its own, and its rows."""
    tokenizer = gemma_tokenizer() if name == "t5gemma" else wordpiece_tokenizer()
    classes: dict[str, Any] = {"bart": BartModel, "t5": T5Model, "gpt2": GPT2Model, "llama": LlamaModel}
    classes |= {"deberta": DebertaV2Model, "t5gemma": T5GemmaModel}
    starts = {"bart": {"decoder_start_token_id": 6}}.get(name, {})
    model = tiny_roberta(tokenizer) if name == "roberta" else tiny_model(classes[name], tokenizer, **starts)
    return model, tokenizer, *rows_of(model, tokenizer)


@pytest.mark.parametrize("name", ["roberta", "deberta", "bart", "t5", "t5gemma", "gpt2", "llama"])
def test_padding_changes_nothing(name):
    model, tokenizer, style, rows = family_rows(name)
    wrapped = with_definition_head(model)
    collate = DefinitionCollator(style.pad, len(tokenizer))
    batch = collate(list(rows))
    lengths = batch["attention_mask"].sum(dim=1)
    assert lengths.tolist() == [len(ids) for ids in rows["input_ids"]]
    assert len(set(lengths.tolist())) > 2
    together = wrapped.reconstruct(batch)
    alone = torch.cat([wrapped.reconstruct(collate([row])) for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def independent_loss(model: Any, head: Tensor, table: Tensor, rows: Dataset) -> float:
    """(arXiv 2408.01308) squared error, mean over d, times 100 / d, mean over targets: one row at a time, unpadded."""
    errors = []
    for row in rows:
        inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "decoder_input_ids") if row[name]}
        states = model(**inputs).last_hidden_state[0]
        for j, label in enumerate(row["labels"]):
            difference = head @ states[row["position"] + j] - table[label]
            errors.append((difference @ difference).item() / len(difference) * 100 / len(difference))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("name", ["roberta", "bart", "t5", "gpt2"])
def test_the_loss_equals_a_reference(name):
    model, tokenizer, style, rows = family_rows(name)
    wrapped = with_definition_head(model.double())
    table, head = embedding_weight(model), wrapped.definition_head.weight
    batch = DefinitionCollator(style.pad, len(tokenizer))(list(rows))
    expected = independent_loss(model, head, table, rows)
    assert expected > 1e-2
    assert wrapped(**batch).loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    # As one part of a batch of 50 targets, and with other rows to reconstruct.
    share = len(batch["labels"]) / 50
    part = wrapped(**batch, num_items_in_batch=torch.tensor(50)).loss.item()
    assert part == pytest.approx(expected * share, rel=1e-6, abs=1e-6)
    wrapped.register_buffer("definition_targets", torch.randn_like(table), persistent=False)
    expected = independent_loss(model, head, wrapped.definition_targets, rows)
    assert wrapped(**batch).loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", ["roberta", "bart", "t5", "gpt2"])
def test_targets_get_no_gradient(name):
    model, tokenizer, style, rows = family_rows(name)
    rows = rows.select(range(2, len(rows)))  # of one sub-token, which no row shows
    batch = DefinitionCollator(style.pad, len(tokenizer))(list(rows))
    wrapped = with_definition_head(model)
    wrapped(**batch).loss.backward()
    gradient = embedding_weight(model).grad.abs().sum(dim=1)
    read = batch["input_ids"].unique()
    assert not set(batch["labels"].tolist()) & set(read.tolist())
    assert gradient[batch["labels"]].tolist() == [0.0] * len(rows)
    content = [index for index in read.tolist() if index not in tokenizer.all_special_ids]
    assert gradient[content].min() > 0
    assert wrapped.definition_head.weight.grad.abs().sum() > 0


def test_sub_tokens_have_equal_weight_with_random_masking():
    tokenizer = wordpiece_tokenizer()
    model = tiny_roberta(tokenizer).double()
    style, rows = rows_of(model, tokenizer, masking="random")
    assert [len(labels) for labels in rows["labels"]] == [2, 1, 1, 1, 1]
    plain = rows.map(lambda row: {"redrawn": False})
    wrapped = with_definition_head(model)
    expected = independent_loss(model, wrapped.definition_head.weight, embedding_weight(model), plain)
    loss = wrapped(**DefinitionCollator(style.pad, len(tokenizer))(list(plain))).loss.item()
    assert loss == pytest.approx(expected, rel=1e-6, abs=1e-6)
