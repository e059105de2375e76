"""The records of rebuilds and of new tokens in a model's config."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn
from transformers import BertModel

from defemb_callbacks.weights.config_record import (
    read_new_tokens_record,
    read_record,
    restore_records,
    write_new_tokens_record,
    write_record,
)
from tiny import tiny_bert, wordpiece_tokenizer


@pytest.fixture
def model() -> BertModel:
    return tiny_bert(wordpiece_tokenizer())


def test_records_of_several_tables_are_kept_separately(model: BertModel) -> None:
    write_record(model, {"fingerprint": "a"}, "output")
    assert (read_record(model), read_record(model, "output")) == (None, {"fingerprint": "a"})
    write_record(model, {"fingerprint": "b"})
    assert (read_record(model), read_record(model, "output")) == (
        {"fingerprint": "b", "output": {"fingerprint": "a"}},
        {"fingerprint": "a"},
    )
    write_record(model, None)
    assert (read_record(model), read_record(model, "output")) == (None, {"fingerprint": "a"})


def test_new_tokens_are_recorded_next_to_a_rebuild(model: BertModel) -> None:
    write_new_tokens_record(model, {"lynx": "c"})
    assert (read_record(model), read_new_tokens_record(model)) == (None, {"lynx": "c"})
    write_record(model, {"fingerprint": "b"})
    assert read_new_tokens_record(model) == {"lynx": "c"}
    write_new_tokens_record(model, None)
    assert (read_record(model), read_new_tokens_record(model)) == ({"fingerprint": "b"}, None)


def test_models_of_one_config_do_not_share_records(model: BertModel) -> None:
    write_record(model, {"fingerprint": "a"})
    shared = dict(model.config.definition_emb)
    other = BertModel(model.config)
    other.config.definition_emb = shared
    write_record(other, {"fingerprint": "b"}, "output")
    assert shared == {"fingerprint": "a"}


def test_records_are_saved_with_the_model_and_restored(model: BertModel, tmp_path: Path) -> None:
    write_record(model, {"fingerprint": "a"})
    model.save_pretrained(tmp_path)
    loaded = BertModel.from_pretrained(tmp_path)
    assert read_record(loaded) == {"fingerprint": "a"}
    restore_records(loaded, None)
    assert read_record(loaded) is None


def test_a_model_without_a_config_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Linear has no config\. Pass a transformers model"):
        read_record(nn.Linear(2, 2))
