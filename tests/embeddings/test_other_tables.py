"""Tables other than the input table: an untied output table, and the table of T5Gemma's decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5ForConditionalGeneration,
    T5GemmaForConditionalGeneration,
    Trainer,
)

from defemb_callbacks import DefinitionEMBCallback, DefinitionEMBConfig, build_definition_embeddings
from defemb_callbacks.weights.config_record import read_record
from defemb_callbacks.weights.rows import embedding_weight, read_table, write_rows
from tiny import (
    byte_bpe_tokenizer,
    gemma_tokenizer,
    tiny_bert,
    tiny_dataset,
    tiny_glossary,
    tiny_model,
    training_args,
    unigram_tokenizer,
    wordpiece_tokenizer,
)

QUICK = {"tokens_per_batch": 256, "training": {"max_steps": 2, "disable_tqdm": True}}


def untied() -> tuple[PreTrainedModel, Any]:
    tokenizer = byte_bpe_tokenizer()
    return tiny_model(GPT2LMHeadModel, tokenizer, tie_word_embeddings=False), tokenizer


def t5gemma() -> tuple[PreTrainedModel, Any]:
    tokenizer = gemma_tokenizer()
    return tiny_model(T5GemmaForConditionalGeneration, tokenizer), tokenizer


MODELS = {"output": untied, "decoder": t5gemma}


def independent(model: PreTrainedModel, table: str) -> Tensor:
    """The table by the models' own names."""
    weight = model.lm_head.weight if table == "output" else model.model.decoder.embed_tokens.weight
    return weight.detach().clone()


@pytest.mark.parametrize("method", ["ridge", "learned"])
@pytest.mark.parametrize("table", MODELS)
def test_only_the_requested_table_changes(tmp_path: Path, table: Any, method: Any) -> None:
    model, tokenizer = MODELS[table]()
    constructor = QUICK if method == "learned" else None
    config = DefinitionEMBConfig(method=method, table=table, constructor=constructor, cache_dir=str(tmp_path))
    inputs, before = read_table(model), independent(model, table)
    embeddings = build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
    assert embeddings.info["table"] == table
    report = embeddings.apply(model, config)
    after = independent(model, table)
    assert torch.equal(read_table(model), inputs)
    assert torch.equal((after != before).any(dim=1).nonzero().flatten(), embeddings.ids)
    assert report.groups["all"].rebuilt == len(embeddings.ids) > 20
    model.save_pretrained(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    assert torch.equal(independent(loaded, table), after)
    assert read_record(loaded, table) == read_record(model, table) is not None
    assert read_record(loaded) is None


@pytest.mark.parametrize("table", MODELS)
def test_rows_are_predicted_from_the_table_itself(tmp_path: Path, table: Any) -> None:
    """Doubling the targets doubles the rows; doubling the input table does not."""
    model, tokenizer = MODELS[table]()
    config = DefinitionEMBConfig(table=table, cache_dir=str(tmp_path))
    first = build_definition_embeddings(model, tokenizer, tiny_glossary(), config).rows
    with torch.no_grad():
        embedding_weight(model, table).mul_(2)
    second = build_definition_embeddings(model, tokenizer, tiny_glossary(), config).rows
    torch.testing.assert_close(second, 2 * first, rtol=1e-3, atol=1e-5)


def test_each_table_is_rebuilt_once(tmp_path: Path) -> None:
    model, tokenizer = untied()
    for table in ("input", "output"):
        config = DefinitionEMBConfig(table=table, cache_dir=str(tmp_path))  # type: ignore[arg-type]
        embeddings = build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
        embeddings.apply(model, config)
        with pytest.raises(ValueError, match="already been rebuilt"):
            embeddings.apply(model, config)
    assert read_record(model) != read_record(model, "output")


def test_rows_of_another_table_raise(tmp_path: Path) -> None:
    model, tokenizer = untied()
    config = DefinitionEMBConfig(table="output", cache_dir=str(tmp_path))
    embeddings = build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
    with pytest.raises(ValueError, match=r"built for the output table, not for the input table\. Set `table='output'`"):
        embeddings.apply(model)


@pytest.mark.parametrize(
    ("make", "table"),
    [
        (lambda: tiny_bert(wordpiece_tokenizer(), BertForMaskedLM), "output"),
        (lambda: tiny_bert(wordpiece_tokenizer(), BertForMaskedLM), "decoder"),
        (lambda: tiny_model(T5ForConditionalGeneration, unigram_tokenizer()), "decoder"),
    ],
)
def test_missing_tables_raise(make: Any, table: Any) -> None:
    model = make()
    with pytest.raises(ValueError, match=f"has no separate {table} table. Use table='input'"):
        embedding_weight(model, table)
    with pytest.raises(ValueError, match=f"{type(model).__name__} has no separate {table} table"):
        write_rows(model, torch.tensor([1]), torch.ones(1, 32), table)


def test_callback_rebuilds_an_output_table(tmp_path: Path) -> None:
    model, tokenizer = untied()
    inputs, before = read_table(model), independent(model, "output")
    data = tiny_dataset(tokenizer)
    data = data.remove_columns("labels").add_column("labels", data["input_ids"][:])
    trainer = Trainer(
        model,
        training_args(tmp_path / "run", max_steps=2, logging_steps=1, learning_rate=0.0),
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[DefinitionEMBCallback(tiny_glossary(), table="output", monitor_steps=1)],
    )
    trainer.train()
    assert torch.equal(read_table(model), inputs)
    changed = (independent(model, "output") != before).any(dim=1)
    assert int(changed.sum()) > 20
    assert any("defemb/output_isotropy/all" in row for row in trainer.state.log_history)
    assert (tmp_path / "run" / "defemb" / "index.html").is_file()
