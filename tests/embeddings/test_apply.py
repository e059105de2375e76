"""Writing embeddings into a model: a table as copies as that of a large model is never copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerControl,
    TrainerState,
)

from allocations import TableCopies
from defemb_callbacks import DefinitionEMBCallback, DefinitionEMBConfig
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.metrics.model_metrics import EmbeddingMonitor
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.rows import embedding_weight, read_table
from tiny import training_args

# Larger than any block of rows that metrics or blending read at once.
SIZE, WIDTH = 36_000, 64


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    letters = "zyxwvutsrqponmlkjihgfedcba"  # a vocabulary in alphabetical order would carry no frequency information
    words = [a + b + c + d for a in letters for b in letters for c in letters for d in letters[:3]][: SIZE - 1]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


@pytest.fixture
def model() -> PreTrainedModel:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=SIZE, max_position_embeddings=8, **sizes))


def embeddings(tokenizer: PreTrainedTokenizerFast, step: int) -> DefinitionEmbeddings:
    """Rows of every `step`-th token."""
    ids = torch.arange(0, SIZE, step)
    rows = torch.randn(len(ids), WIDTH, generator=torch.Generator().manual_seed(1))
    return DefinitionEmbeddings(ids, rows, read_vocabulary(tokenizer, SIZE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", ["blend", "replace"])
def test_the_table_is_not_copied(tokenizer: Any, model: PreTrainedModel, strategy: Any, dtype: torch.dtype) -> None:
    model, ready = model.to(dtype), embeddings(tokenizer, step=2)
    before = read_table(model)
    with TableCopies(SIZE, WIDTH) as copies:
        ready.apply(model, DefinitionEMBConfig(strategy=strategy))
    assert copies.found == []
    assert (read_table(model) != before).any(dim=1).sum() > SIZE // 3


@pytest.mark.parametrize("strategy", ["blend", "replace"])
def test_if_all_rows_are_rebuilt_only_old_and_new_rows_are_in_memory(
    tokenizer: Any, model: PreTrainedModel, strategy: Any
) -> None:
    ready = embeddings(tokenizer, step=1)
    with TableCopies(SIZE, WIDTH) as copies:
        ready.apply(model, DefinitionEMBConfig(strategy=strategy))
    assert copies.found == [torch.float32] * 2


def test_a_rebuild_with_pictures_and_a_monitor_copy_the_table_once(
    tokenizer: Any, model: PreTrainedModel, tmp_path: Path
) -> None:
    ready = embeddings(tokenizer, step=2)
    callback = DefinitionEMBCallback(embeddings=ready)
    args, state = training_args(tmp_path), TrainerState()
    with TableCopies(SIZE, WIDTH) as copies:
        callback.on_init_end(args, state, TrainerControl(), processing_class=tokenizer, model=model)
    assert copies.found == []
    assert callback.report is not None
    assert callback.report.before != callback.report.after
    config = DefinitionEMBConfig()
    with TableCopies(SIZE, WIDTH) as copies:
        monitor = EmbeddingMonitor(model, ready.vocabulary, config)
        assert copies.found == [torch.float32]
        with torch.no_grad():
            embedding_weight(model)[:SIZE:3] += 0.1
        assert monitor.measure(model)["defemb/drift/all"] > 0
        monitor.snapshot(model, watched=torch.tensor([5]))
    assert copies.found == [torch.float32]


def test_the_table_is_shown_once_before_rows_are_written(tokenizer: Any, model: PreTrainedModel) -> None:
    ready, before, shown = embeddings(tokenizer, step=2), read_table(model), []
    report = ready.apply(model, look=lambda table, metrics: shown.append((table.clone(), metrics)))
    ((table, metrics),) = shown
    assert torch.equal(table, before)
    assert metrics == report.before
    assert not torch.equal(read_table(model), before)
