"""DefinitionEMBCallback in Trainers of other libraries: one short real run each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import BertModel, LlamaForCausalLM, TrainerCallback

from defemb_callbacks.weights.rows import read_table
from runs import changed_rows, defined_ids, glossary_callback, measured_steps
from tiny import tiny_bert, tiny_glossary, tiny_model, unigram_tokenizer, wordpiece_tokenizer

pytestmark = pytest.mark.slow

SHORT = {"max_steps": 2, "report_to": [], "learning_rate": 1e-4, "save_strategy": "no", "logging_steps": 1}
WORDS = list(tiny_glossary())


@pytest.fixture
def sentence_transformer(tmp_path: Path) -> Any:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    tokenizer = wordpiece_tokenizer()
    for part in (tiny_bert(tokenizer, BertModel), tokenizer):
        part.save_pretrained(tmp_path / "bert")
    return sentence_transformers.SentenceTransformer(str(tmp_path / "bert"), device="cpu")


def check(model: Any, before: torch.Tensor, written: torch.Tensor, trainer: Any, ids: torch.Tensor) -> None:
    """The rows were written before the run and are kept after it."""
    assert torch.equal(changed_rows(before, written), ids)
    after = read_table(model)
    assert 0 < (after - written).norm() < (written - before).norm() / 2
    assert measured_steps(trainer) == [1, 2]


def test_sentence_transformer_trainer(sentence_transformer, tmp_path) -> None:
    import sentence_transformers
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    model, callback = sentence_transformer, glossary_callback(monitor_steps=1)
    before = read_table(model)
    pairs = {"anchor": [f"the {word}" for word in WORDS[:32]], "positive": [f"a {word}" for word in WORDS[:32]]}
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model,
        sentence_transformers.SentenceTransformerTrainingArguments(str(tmp_path / "run"), use_cpu=True, **SHORT),
        train_dataset=Dataset.from_dict(pairs),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[callback],
    )
    written = read_table(model)
    trainer.train()
    check(model, before, written, trainer, defined_ids(wordpiece_tokenizer()))
    model.save(str(tmp_path / "saved"))
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(read_table(loaded), read_table(model))
    assert loaded.transformers_model.config.definition_emb["rebuilt"] == 66


def test_trl_sft_trainer(tmp_path) -> None:
    trl = pytest.importorskip("trl")
    tokenizer = unigram_tokenizer()
    model, callback = tiny_model(LlamaForCausalLM, tokenizer), glossary_callback(monitor_steps=1)
    before = read_table(model)
    args = trl.SFTConfig(str(tmp_path / "run"), use_cpu=True, bf16=False, max_length=16, **SHORT)
    data = Dataset.from_dict({"text": [f"the {word} was in the house" for word in WORDS]})
    trainer = trl.SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer, callbacks=[callback])
    written = read_table(trainer.model)
    trainer.train()
    check(trainer.model, before, written, trainer, changed_rows(before, written))
    assert callback.report.rebuilt == len(changed_rows(before, written)) > 60


def test_setfit_trainer(sentence_transformer, tmp_path) -> None:
    """SetFit passes its own arguments and a model that is not a module."""
    setfit = pytest.importorskip("setfit")
    from sklearn.linear_model import LogisticRegression

    body, callback, tables = sentence_transformer, glossary_callback(monitor_steps=0), []

    class Look(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            tables.append(read_table(model))

    before = read_table(body)
    model = setfit.SetFitModel(model_body=body, model_head=LogisticRegression())
    args = setfit.TrainingArguments(output_dir=str(tmp_path / "run"), max_steps=2, report_to="none", batch_size=4)
    data = Dataset.from_dict({"text": [f"the {word}" for word in WORDS[:16]], "label": [0, 1] * 8})
    setfit.Trainer(model, args, train_dataset=data, callbacks=[callback, Look()]).train()
    [written] = tables
    assert torch.equal(changed_rows(before, written), defined_ids(wordpiece_tokenizer()))
    assert 0 < (read_table(body) - written).norm() < (written - before).norm() / 2
    assert len(model.predict(["the dog"])) == 1
