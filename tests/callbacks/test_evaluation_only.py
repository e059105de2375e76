"""A run that only evaluates leaves the model as it is; evaluating a rebuilt, untrained model is a warning."""

from __future__ import annotations

import pytest
import torch
from transformers import BertForSequenceClassification

from defemb_callbacks import DefinitionEMBCallback
from defemb_callbacks.weights.rows import read_table
from runs import assert_same_weights, glossary_callback
from tiny import tiny_bert, tiny_dataset

WARNING = "evaluated with rebuilt token embeddings, but it has not been trained since"


@pytest.mark.parametrize(
    "flags",
    [
        {"do_eval": True},
        {"do_predict": True},
        {"do_predict": True, "eval_strategy": "steps", "eval_steps": 4},
    ],
    ids=["do_eval", "do_predict", "do_predict and a strategy"],
)
@pytest.mark.parametrize("settings", [{}, {"only_training_tokens": True}])
def test_evaluation_without_training_changes_nothing(trainer, tokenizer, caplog, flags, settings) -> None:
    original = tiny_bert(tokenizer, BertForSequenceClassification)
    callback = glossary_callback(**settings)
    run = trainer(callback, **flags)
    run.evaluate()
    run.predict(tiny_dataset(tokenizer, 8))
    assert_same_weights(run.model, original)
    assert not hasattr(run.model.config, "definition_emb")
    assert callback.report is None
    assert WARNING not in caplog.text


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"do_train": True},
        {"do_train": True, "do_eval": True, "do_predict": True},
        {"eval_strategy": "steps", "eval_steps": 4},  # sets do_eval
    ],
    ids=["no flags", "do_train", "all", "a strategy"],
)
def test_runs_that_train_are_rebuilt_when_the_trainer_is_created(trainer, flags) -> None:
    callback = glossary_callback()
    trainer(callback, **flags)
    assert callback.report.rebuilt == 66


def test_a_run_that_trains_after_all_is_rebuilt_at_train_start(trainer, model) -> None:
    callback = glossary_callback()
    run = trainer(callback, model=model, do_eval=True, max_steps=1)
    before = read_table(model)
    run.evaluate()
    assert torch.equal(read_table(model), before)
    run.train()
    assert callback.report.rebuilt == 66


@pytest.mark.parametrize("predicts", [False, True])
def test_one_warning_if_a_rebuilt_model_was_not_trained(trainer, tokenizer, caplog, predicts) -> None:
    run = trainer(glossary_callback())
    for _ in range(2):
        run.predict(tiny_dataset(tokenizer, 8)) if predicts else run.evaluate()
    assert caplog.text.count(WARNING) == 1


def test_no_warning_while_and_after_training(trainer, caplog) -> None:
    run = trainer(glossary_callback(), max_steps=2, eval_on_start=True, eval_strategy="steps", eval_steps=1)
    run.train()
    run.evaluate()
    assert WARNING not in caplog.text


def test_no_warning_for_a_model_that_was_rebuilt_in_an_earlier_run(trainer, caplog) -> None:
    run = trainer(glossary_callback(), max_steps=1)
    run.train()
    trainer(DefinitionEMBCallback({"dog": "an animal"}, plots=False), model=run.model).evaluate()
    assert WARNING not in caplog.text
