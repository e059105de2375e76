"""TrainNewTokensCallback in Trainer runs: other rows are kept bitwise; PEFT's own setting is used."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertForMaskedLM, BertForSequenceClassification, Trainer

from defemb_callbacks import DefinitionEMBCallback, TrainNewTokensCallback, define_new_tokens
from defemb_callbacks.weights.config_record import read_new_token_ids
from defemb_callbacks.weights.rows import embedding_weight, read_table
from tiny import tiny_bert, tiny_glossary, training_args, wordpiece_tokenizer

TERMS = {"lynx": "a wild cat with long ears", "<|svg|>": {"definition": "starts a drawing", "special": True}}
SENTENCES = ["the lynx was in the house", "a <|svg|> is on the road", "the lynx", "he saw the old <|svg|>"] * 4


def tokenized(tokenizer: Any, labels: bool = True) -> Dataset:
    rows = dict(tokenizer(SENTENCES, padding=True))
    return Dataset.from_dict({**rows, "labels": [0, 1] * 8 if labels else rows["input_ids"]})


def defined(model_class: Any = BertForSequenceClassification, **config: Any) -> tuple[Any, Any]:
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, model_class, **config)
    define_new_tokens(model, tokenizer, TERMS, tiny_glossary())
    return model, tokenizer


def trainer_of(model: Any, tokenizer: Any, folder: Path, *callbacks: Any, labels: bool = True, **args: Any) -> Trainer:
    settings = {"weight_decay": 0.1, "max_steps": 8, "per_device_train_batch_size": 4, **args}
    return Trainer(
        model,
        training_args(folder, **settings),
        train_dataset=tokenized(tokenizer, labels),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


def changed(before: Tensor, after: Tensor) -> list[int]:
    return (before != after).any(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_new_rows_move(tmp_path: Path, tied: bool):
    model, tokenizer = defined(BertForMaskedLM, tie_word_embeddings=tied)
    size = len(tokenizer)
    tables = ["input"] if tied else ["input", "output"]
    before = {table: read_table(model, table) for table in tables}
    layers = {name: weight.detach().clone() for name, weight in model.named_parameters() if "layer.0" in name}
    trainer = trainer_of(model, tokenizer, tmp_path, TrainNewTokensCallback(), labels=False, max_steps=100)
    trainer.train()
    for table in tables:
        assert changed(before[table], read_table(model, table)) == [size - 2, size - 1]
    assert not any(torch.equal(weight, layers[name]) for name, weight in model.named_parameters() if name in layers)
    assert not embedding_weight(model)._post_accumulate_grad_hooks  # released


def test_no_other_weight_moves_if_they_are_frozen(tmp_path: Path):
    model, tokenizer = defined()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer_of(model, tokenizer, tmp_path, TrainNewTokensCallback(freeze_other_weights=True)).train()
    moved = [name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])]
    assert moved == ["bert.embeddings.word_embeddings.weight"]
    assert changed(before[moved[0]], embedding_weight(model).detach()) == read_new_token_ids(model)


@pytest.mark.parametrize("first", [True, False])
def test_rows_that_another_callback_writes_at_train_start_are_kept(tmp_path: Path, first: bool):
    def run(folder: str, *callbacks: Any, **args: Any) -> Tensor:
        tokenizer = wordpiece_tokenizer()
        model = tiny_bert(tokenizer, BertForSequenceClassification)
        settings = {"new_tokens": TERMS, "tokenizer": tokenizer, "frequency": "training_data", "monitor_steps": 0}
        rebuild = DefinitionEMBCallback(tiny_glossary(), **settings)
        both = [*callbacks, rebuild] if first else [rebuild, *callbacks]
        trainer_of(model, tokenizer, tmp_path / folder, *both, **args).train()
        assert rebuild.report is not None
        assert len(read_new_token_ids(model)) == 2
        return read_table(model)

    rebuilt = run("constant", learning_rate=0.0)
    trained = run("trained", TrainNewTokensCallback())
    assert changed(rebuilt, trained) == [len(rebuilt) - 2, len(rebuilt) - 1]


def test_given_tokens(tmp_path: Path):
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForSequenceClassification)
    before = read_table(model)
    unused = tokenizer.convert_tokens_to_ids("spoon")
    trainer_of(model, tokenizer, tmp_path, TrainNewTokensCallback(["the", "house", unused])).train()
    moved = {*tokenizer.convert_tokens_to_ids(["the", "house"]), unused}  # "spoon" by weight decay
    assert set(changed(before, read_table(model))) == moved


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path):
    def trainer() -> Trainer:
        model, tokenizer = defined()
        settings = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant"}
        return trainer_of(model, tokenizer, tmp_path, TrainNewTokensCallback(), **settings)

    whole, resumed = trainer(), trainer()
    start = read_table(whole.model)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert changed(start, read_table(resumed.model)) == read_new_token_ids(resumed.model)
    torch.testing.assert_close(read_table(resumed.model), read_table(whole.model))


def test_the_ids_are_saved_with_the_model(tmp_path: Path):
    model, tokenizer = defined()
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    before = read_table(loaded)
    trainer_of(loaded, tokenizer, tmp_path, TrainNewTokensCallback()).train()
    assert changed(before, read_table(loaded)) == [len(tokenizer) - 2, len(tokenizer) - 1]


def test_two_runs_of_one_trainer(tmp_path: Path):
    model, tokenizer = defined()
    before = read_table(model)
    trainer = trainer_of(model, tokenizer, tmp_path, TrainNewTokensCallback(), max_steps=2)
    trainer.train()
    trainer.train()
    assert changed(before, read_table(model)) == read_new_token_ids(model)


# PEFT


@pytest.mark.parametrize("tied", [True, False])
def test_peft_trains_the_new_rows_and_saves_them(tmp_path: Path, tied: bool, caplog):
    peft = pytest.importorskip("peft")
    model, tokenizer = defined(BertForMaskedLM, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "base")
    ids = read_new_token_ids(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"]))
    before = read_table(adapted)
    with caplog.at_level(logging.WARNING, "transformers"):
        trainer = trainer_of(adapted, tokenizer, tmp_path, TrainNewTokensCallback(), labels=False, learning_rate=0.01)
    assert "trainable_token_indices is set for word_embeddings" in caplog.text
    trainer.train()
    after = read_table(adapted)
    assert changed(before, after) == ids
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert all("lora_" in name or "trainable_tokens_delta" in name for name in trained)
    adapted.save_pretrained(tmp_path / "adapter")
    base = BertForMaskedLM.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(read_table(loaded), after)
    inputs = {"input_ids": torch.tensor([[1, *ids, 9]])}
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**inputs).logits, adapted.eval()(**inputs).logits)


def test_peft_resumes(tmp_path: Path):
    peft = pytest.importorskip("peft")

    def trainer() -> Trainer:
        torch.manual_seed(0)
        model, tokenizer = defined()
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"]))
        settings = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant"}
        return trainer_of(adapted, tokenizer, tmp_path, TrainNewTokensCallback(), **settings)

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    torch.testing.assert_close(read_table(resumed.model), read_table(whole.model))


def test_indices_that_the_user_has_set_are_kept(tmp_path: Path):
    peft = pytest.importorskip("peft")
    model, tokenizer = defined()
    ids = read_new_token_ids(model)
    config = peft.LoraConfig(target_modules=["query"], trainable_token_indices={"word_embeddings": [7, *ids]})
    adapted = peft.get_peft_model(model, config)
    before = read_table(adapted)
    trainer_of(adapted, tokenizer, tmp_path, TrainNewTokensCallback()).train()
    assert set(ids) <= set(changed(before, read_table(adapted))) <= {7, *ids}


def test_indices_that_lack_a_new_token_raise(tmp_path: Path):
    peft = pytest.importorskip("peft")
    model, tokenizer = defined()
    config = peft.LoraConfig(target_modules=["query"], trainable_token_indices={"word_embeddings": [7]})
    with pytest.raises(ValueError, match=r"does not train the rows of 2 new tokens, the first one of token \d+\. Add"):
        trainer_of(peft.get_peft_model(model, config), tokenizer, tmp_path, TrainNewTokensCallback())


def test_an_adapter_without_this_setting_raises(tmp_path: Path):
    peft = pytest.importorskip("peft")
    model, tokenizer = defined()
    config = peft.IA3Config(target_modules=["query"], feedforward_modules=[])
    with pytest.raises(ValueError, match=r"type IA3 cannot train single rows.*modules_to_save=\['word_embeddings'\]"):
        trainer_of(peft.get_peft_model(model, config), tokenizer, tmp_path, TrainNewTokensCallback())


# Errors


def test_a_model_without_new_tokens_raises_before_the_first_step(tmp_path: Path):
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForSequenceClassification)
    trainer = trainer_of(model, tokenizer, tmp_path, TrainNewTokensCallback())
    with pytest.raises(ValueError, match=r"found no new tokens.*define_new_tokens or DefinitionEMBCallback"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_text_that_is_not_a_token_raises(tmp_path: Path):
    model, tokenizer = defined()
    with pytest.raises(ValueError, match=r"'zorblax' is not a token of the tokenizer\. Add it first"):
        trainer_of(model, tokenizer, tmp_path, TrainNewTokensCallback(["zorblax"]))


def test_deepspeed_is_refused_when_the_trainer_is_created(tmp_path: Path, monkeypatch):
    model, tokenizer = defined()
    args: Any = trainer_of(model, tokenizer, tmp_path).args  # its Accelerator has a state
    for state in (PartialState, AcceleratorState):
        monkeypatch.setitem(state._shared_state, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(ValueError, match=r"DeepSpeed trains copies.*Use DDP or FSDP2, or a LoRA adapter"):
        TrainNewTokensCallback().on_init_end(args, None, None, processing_class=tokenizer, model=model)  # type: ignore[arg-type]
