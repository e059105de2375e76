"""SenseMonitorCallback: senses of a model during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    PreTrainedTokenizerBase,
    Trainer,
)

import tiny
from defemb_callbacks.callbacks.senses import SenseMonitorCallback
from defemb_callbacks.senses import (
    SenseConfig,
    build_sense_dictionary,
    with_senses,
)

TEXTS = tiny.random_texts(160)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny.wordpiece_tokenizer()


def test_sense_error_decreases_with_more_senses(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny.tiny_bert(tokenizer, BertForSequenceClassification)
    errors = []
    for senses in (1, 3, 9):
        callback = SenseMonitorCallback(TEXTS, senses=senses)
        callback.on_train_begin(None, None, None, model=model, processing_class=tokenizer)  # type: ignore[arg-type]
        errors.append(callback._measure(model, callback._plan)["defemb/sense_error/all"])
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(1.0, abs=0.15)  # clustered tokens exactly 1, those with raw vectors 0


def test_monitor_logs_at_evaluations_and_at_train_end(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = tiny.tiny_bert(tokenizer, BertForSequenceClassification)
    callback = SenseMonitorCallback(TEXTS, SenseConfig(senses=3))
    trainer = Trainer(
        model,
        tiny.training_args(tmp_path, eval_strategy="steps", eval_steps=3, report_to=["tensorboard"]),
        train_dataset=tiny.tiny_dataset(tokenizer),
        eval_dataset=tiny.tiny_dataset(tokenizer, 8),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    rows = {row["step"]: row for row in trainer.state.log_history if "defemb/sense_error/all" in row}
    assert list(rows) == [3, 6, 8]
    assert rows[3]["defemb/sense_error/all"] != rows[8]["defemb/sense_error/all"]
    assert rows[8]["defemb/senses/all"] == 3.0
    assert callback.dictionary is not None
    assert callback.dictionary.most_senses == 3
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 2  # the Trainer's and ours
    without = Trainer(model, tiny.training_args(tmp_path), train_dataset=tiny.tiny_dataset(tokenizer))
    without.add_callback(SenseMonitorCallback(TEXTS))
    with pytest.raises(ValueError, match="SenseMonitorCallback needs a tokenizer"):
        without.train()
    given = with_senses(model, build_sense_dictionary(model, tokenizer, TEXTS, senses=3))
    with pytest.raises(ValueError, match="are already senses"):
        callback.on_train_begin(None, None, None, model=given, processing_class=tokenizer)  # type: ignore[arg-type]


def test_monitor_does_not_measure_before_training(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    callback = SenseMonitorCallback(TEXTS, senses=3)
    trainer = Trainer(
        tiny.tiny_bert(tokenizer, BertForSequenceClassification),
        tiny.training_args(tmp_path, max_steps=1),
        train_dataset=tiny.tiny_dataset(tokenizer, 8),
        eval_dataset=tiny.tiny_dataset(tokenizer, 8),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    assert "eval_loss" in trainer.evaluate()
    assert callback.dictionary is None
    trainer.train()
    assert callback.dictionary is not None


def test_a_failure_is_one_warning_and_training_goes_on(tokenizer, tmp_path, monkeypatch, caplog) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("defemb_callbacks.callbacks.senses.build_from_states", fail)
    trainer = Trainer(
        tiny.tiny_bert(tokenizer, BertForSequenceClassification),
        tiny.training_args(tmp_path, eval_strategy="steps", eval_steps=3),
        train_dataset=tiny.tiny_dataset(tokenizer),
        eval_dataset=tiny.tiny_dataset(tokenizer, 8),
        processing_class=tokenizer,
        callbacks=[SenseMonitorCallback(TEXTS, senses=3)],
    )
    trainer.train()
    assert trainer.state.global_step == 8
    assert caplog.messages.count("The senses are not measured from step 3 on. OutOfMemoryError: out of memory") == 1
