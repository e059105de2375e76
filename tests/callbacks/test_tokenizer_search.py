"""The callback needs one argument: the tokenizer is found wherever a run has it, and the model inside any module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertForSequenceClassification,
    BertModel,
    DataCollatorWithPadding,
    PreTrainedModel,
    ProcessorMixin,
    Trainer,
    ViTConfig,
    ViTModel,
)

from defemb_callbacks import DefinitionEMBCallback, EmbeddingMonitorCallback
from defemb_callbacks.weights.config_record import read_record
from defemb_callbacks.weights.rows import read_table
from defemb_callbacks.weights.unwrapping import transformers_model
from runs import changed_rows, defined_ids, glossary_callback, measured_steps
from tiny import tiny_bert, tiny_dataset, training_args


@pytest.fixture
def untokenized(tokenizer, tmp_path) -> Any:
    """Creates Trainers that get no tokenizer."""

    def make(callback: Any, model: nn.Module, **init: Any) -> Trainer:
        args = training_args(tmp_path / "run", max_steps=2)
        return Trainer(model, args, train_dataset=tiny_dataset(tokenizer), callbacks=[callback], **init)

    return make


@pytest.mark.parametrize("in_processor", [False, True])
@pytest.mark.parametrize("remove_unused_columns", [False, True])
def test_the_tokenizer_of_the_data_collator(untokenized, tokenizer, model, in_processor, remove_unused_columns) -> None:
    class Processor(ProcessorMixin):
        def __init__(self) -> None:
            self.tokenizer = tokenizer

    class Collator:
        def __init__(self) -> None:
            self.processor = Processor()

        def __call__(self, rows: Any) -> Any:
            return DataCollatorWithPadding(tokenizer)(rows)

    before = read_table(model)
    callback = glossary_callback(monitor_steps=1)
    run = untokenized(callback, model, data_collator=Collator() if in_processor else DataCollatorWithPadding(tokenizer))
    run.args.remove_unused_columns = remove_unused_columns
    assert torch.equal(read_table(model), before)  # the collator is not known yet
    run.train()
    assert set(defined_ids(tokenizer).tolist()) <= set(changed_rows(before, read_table(model)).tolist())
    assert callback.report.rebuilt == 66
    assert measured_steps(run) == [1, 2]


def test_the_tokenizer_saved_with_the_model(untokenized, tokenizer, model, tmp_path) -> None:
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "model")
    before = read_table(loaded)
    callback = glossary_callback()
    untokenized(callback, loaded)  # written when the Trainer is created
    assert torch.equal(changed_rows(before, read_table(loaded)), defined_ids(tokenizer))


def test_a_folder_without_a_tokenizer_is_no_error_yet(untokenized, model, tmp_path) -> None:
    model.save_pretrained(tmp_path / "model")
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "model")
    run = untokenized(EmbeddingMonitorCallback(None), loaded)
    with pytest.raises(ValueError, match="EmbeddingMonitorCallback needs a tokenizer"):
        run.train()


# Plain modules around a model


class Classifier(nn.Module):
    """A module as users write it, with or without a config of its own."""

    def __init__(self, encoder: PreTrainedModel, config: Any = None) -> None:
        super().__init__()
        self.wrapped = nn.ModuleDict({"encoder": encoder})
        self.head = nn.Linear(32, 2)
        if config is not None:
            self.config = config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        states = self.wrapped["encoder"](input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.head(states[:, 0])
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("with_config", [False, True])
def test_a_module_around_one_model_is_read_and_written_through(tokenizer, tmp_path, with_config) -> None:
    encoder = tiny_bert(tokenizer)
    before = read_table(encoder)
    model = Classifier(encoder, encoder.config if with_config else None)
    callback = glossary_callback(monitor_steps=1, plots=True)
    args = training_args(tmp_path, max_steps=2)
    data = tiny_dataset(tokenizer)
    run = Trainer(model, args, train_dataset=data, processing_class=tokenizer, callbacks=[callback])
    assert torch.equal(changed_rows(before, read_table(encoder)), defined_ids(tokenizer))
    assert torch.equal(read_table(model), read_table(encoder))
    assert read_record(model)["rebuilt"] == 66
    run.train()
    assert measured_steps(run) == [1, 2]
    assert (tmp_path / "defemb" / "index.html").is_file()


class Pair(nn.Module):
    """Two encoders."""

    def __init__(self, query: nn.Module, passage: nn.Module) -> None:
        super().__init__()
        self.query, self.passage = query, passage


def test_several_models_are_a_question(tokenizer, trainer) -> None:
    model = Pair(tiny_bert(tokenizer), tiny_bert(tokenizer))
    message = (
        r"Pair contains several models with token embeddings: query \(BertModel\), passage \(BertModel\)\. "
        r"Which one is meant\? Define a property `transformers_model` of Pair that returns it\."
    )
    with pytest.raises(TypeError, match=message):
        trainer(DefinitionEMBCallback({"dog": "an animal"}), model=model)


def test_the_answer_is_a_property(tokenizer, trainer) -> None:
    class Answered(Pair):
        transformers_model = property(lambda self: self.passage)

    model = Answered(tiny_bert(tokenizer), tiny_bert(tokenizer))
    trainer(glossary_callback(), model=model)
    assert read_record(model.passage)["rebuilt"] == 66
    assert read_record(model.query) is None


def test_one_model_used_twice_or_beside_an_image_encoder_is_no_question(tokenizer) -> None:
    encoder: BertModel = tiny_bert(tokenizer)
    assert transformers_model(Pair(encoder, encoder)) is encoder
    images = ViTModel(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8)
    )
    assert transformers_model(Pair(images, encoder)) is encoder
