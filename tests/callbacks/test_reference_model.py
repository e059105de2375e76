"""A warning if the reference model of preference optimization keeps the old embeddings."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from transformers import BertForSequenceClassification, LlamaForCausalLM, PreTrainedModel, Trainer

from defemb_callbacks import DefinitionEMBCallback, build_definition_embeddings
from runs import glossary_callback
from tiny import (
    tiny_bert,
    tiny_dataset,
    tiny_glossary,
    tiny_model,
    training_args,
    unigram_tokenizer,
    wordpiece_tokenizer,
)

WARNING = "keeps the old token embeddings, so training starts at a distance from it"


def rebuilt(model: PreTrainedModel, tokenizer: Any) -> PreTrainedModel:
    build_definition_embeddings(model, tokenizer, tiny_glossary()).apply(model)
    return model


class WithReference(Trainer):
    """A Trainer that compares its model with another one, as those of trl do."""

    ref_model: PreTrainedModel | None = None


def train(folder: Any, callback: DefinitionEMBCallback, reference: PreTrainedModel | None, attach: bool = True) -> None:
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForSequenceClassification)
    args = training_args(folder, max_steps=1)
    data = tiny_dataset(tokenizer)
    trainer = WithReference(model, args, train_dataset=data, processing_class=tokenizer, callbacks=[callback])
    trainer.ref_model = reference
    if attach:
        callback.attach(trainer)
    trainer.train()


def test_a_reference_that_was_not_rebuilt_is_a_warning_with_the_cure(tmp_path, caplog):
    reference = tiny_bert(wordpiece_tokenizer(), BertForSequenceClassification)
    train(tmp_path, glossary_callback(monitor_steps=0), reference)
    assert f"The reference model of this WithReference {WARNING}" in caplog.text
    assert "rebuild the checkpoint first (`defemb build` and `defemb apply`)" in caplog.text


def test_no_warning_if_both_were_rebuilt_or_there_is_no_reference(tmp_path, caplog):
    tokenizer = wordpiece_tokenizer()
    train(tmp_path, glossary_callback(monitor_steps=0), rebuilt(tiny_bert(tokenizer), tokenizer))
    train(tmp_path, glossary_callback(monitor_steps=0), None)
    assert WARNING not in caplog.text


def test_without_attach_the_trainer_is_not_known(tmp_path, caplog):
    train(tmp_path, glossary_callback(monitor_steps=0), tiny_bert(wordpiece_tokenizer()), attach=False)
    assert WARNING not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("with_adapters", [False, True])
def test_trl_dpo_trainer(with_adapters, tmp_path, caplog) -> None:
    """With adapters, the reference is the same model without them."""
    trl, peft = pytest.importorskip("trl"), pytest.importorskip("peft")
    tokenizer, lora = unigram_tokenizer(), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    models = {"peft_config": lora} if with_adapters else {"ref_model": tiny_model(LlamaForCausalLM, tokenizer)}
    settings = {"max_steps": 1, "report_to": [], "save_strategy": "no", "use_cpu": True, "bf16": False}
    args = trl.DPOConfig(str(tmp_path / "run"), max_length=16, **settings)
    data = Dataset.from_list([{"prompt": "the dog", "chosen": " was in the house", "rejected": " was a cat"}] * 8)
    callback, model = glossary_callback(monitor_steps=0), tiny_model(LlamaForCausalLM, tokenizer)
    more = {"processing_class": tokenizer, "callbacks": [callback], **models}
    callback.attach(trainer := trl.DPOTrainer(model, args=args, train_dataset=data, **more))
    trainer.train()
    assert callback.report.rebuilt > 60
    assert (WARNING in caplog.text) is not with_adapters
