"""A tiny tokenizer and a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import tiny


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny.wordpiece_tokenizer()


@pytest.fixture(scope="session")
def checkpoint(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of transformers with three layers."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    tiny.tiny_bert(tokenizer, num_hidden_layers=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
