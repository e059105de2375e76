"""Sense distillation: loss, training, and invalid arguments."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

import tiny
from defemb_callbacks.reconstruction.backbone import last_states
from defemb_callbacks.senses import (
    SenseConfig,
    SenseDictionary,
    SenseDistillationArguments,
    SenseDistillationTrainer,
    SenseStudent,
    first_layers,
    with_senses,
)
from defemb_callbacks.senses.distillation import sense_loss
from defemb_callbacks.senses.layer import recorded_states
from defemb_callbacks.senses.teacher_labels import IGNORED

SETTINGS = {
    *("output_dir", "per_device_train_batch_size", "num_train_epochs", "learning_rate", "logging_steps"),
    *("save_strategy", "report_to", "use_cpu", "disable_tqdm", "dataloader_pin_memory", "max_steps"),
    *("temperature", "soft_targets", "task_weight", "gradient_accumulation_steps"),
}


@pytest.fixture(scope="module")
def dictionary(sentence_dictionary: SenseDictionary) -> SenseDictionary:
    return sentence_dictionary


@pytest.fixture
def distilled(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dictionary: SenseDictionary,
    rows: Dataset,
    tmp_path: Path,
) -> Callable[..., SenseDistillationTrainer]:
    """Factory of trainers with a one-layer student."""

    def make(student: PreTrainedModel | None = None, **settings: Any) -> SenseDistillationTrainer:
        args = tiny.training_args(tmp_path / "run").to_dict() | settings
        known = {name: value for name, value in args.items() if name in SETTINGS}
        student = student or first_layers(teacher, 1)
        return SenseDistillationTrainer(
            student,
            teacher,
            dictionary,
            SenseDistillationArguments(**known),
            train_dataset=rows,
            eval_dataset=rows.select(range(8)),
            processing_class=tokenizer,
        )

    return make


def test_hard_loss_is_cross_entropy() -> None:
    scores = torch.tensor([[1.0, 2.0, -torch.inf], [0.5, -1.0, 3.0]], requires_grad=True)
    targets = torch.tensor([0, 2])
    loss = sense_loss(scores, targets, temperature=2.0)
    expected = 0.0
    for row, target in zip([[0.5, 1.0], [0.25, -0.5, 1.5]], [0, 2], strict=True):
        exponentials = [torch.tensor(score).exp() for score in row]
        expected -= float((exponentials[target] / sum(exponentials)).log()) / 2
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[0, 2] == 0


def test_soft_loss_is_scaled_kl_divergence() -> None:
    scores = torch.tensor([[1.0, 2.0, -torch.inf], [0.5, -1.0, 3.0]], requires_grad=True)
    of_teacher = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 0.0, 1.0]])
    loss = sense_loss(scores, of_teacher, temperature=3.0)
    expected = 0.0
    for row, wanted in zip([[1.0, 2.0], [0.5, -1.0, 3.0]], [[0.0, 1.0], [2.0, 0.0, 1.0]], strict=True):
        student, teacher = (torch.tensor(x, dtype=torch.float64).div(3).softmax(dim=0) for x in (row, wanted))
        expected += 9 * float((teacher * (teacher / student).log()).sum()) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert torch.isfinite(scores.grad).all()
    assert float(sense_loss(of_teacher, of_teacher)) == pytest.approx(0.0, abs=1e-6)
    assert float(sense_loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))) == 0


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "soft_targets": True}, {"task_weight": 0.5}])
def test_batch_loss_matches_a_loop(
    distilled: Any, teacher: PreTrainedModel, dictionary: SenseDictionary, settings: dict[str, Any]
) -> None:
    trainer = distilled(**settings)
    student = trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in (0, 40, 7)])
    assert batch["sense_labels"].shape == batch["input_ids"].shape
    plain = first_layers(teacher, 1)
    temperature, total, number = settings.get("temperature", 1.0), 0.0, 0
    with torch.no_grad():
        wanted, found = (last_states(m, batch["input_ids"], batch["attention_mask"]) for m in (teacher, plain))
        for text in range(3):
            for place in range(int(batch["attention_mask"][text].sum())):
                token = int(batch["input_ids"][text, place])
                senses = dictionary.vectors[dictionary.offsets[token] : dictionary.offsets[token + 1]]
                if len(senses) < 2:
                    assert batch["sense_labels"][text, place] == IGNORED
                    continue
                chosen = (senses @ wanted[text, place]).argmax()
                assert batch["sense_labels"][text, place] == chosen
                log_student = (senses @ found[text, place] / temperature).log_softmax(dim=0)
                if settings.get("soft_targets"):
                    of_teacher = (senses @ wanted[text, place] / temperature).softmax(dim=0)
                    total += float((of_teacher * (of_teacher.log() - log_student)).sum()) * temperature**2
                else:
                    total -= float(log_student[chosen])
                number += 1
        expected = total / number
        if settings.get("task_weight"):
            logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            expected += 0.5 * float(torch.nn.functional.cross_entropy(logits, batch["labels"]))
        loss = trainer.compute_loss(student, dict(batch))
    assert number > 15
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_agreement_with_the_teacher_increases(distilled: Any, rows: Dataset) -> None:
    trainer = distilled(num_train_epochs=6)

    def agreement() -> float:
        model = trainer.model.eval()
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(rows))])
        with torch.no_grad(), recorded_states(model) as recorded:
            model(batch["input_ids"], attention_mask=batch["attention_mask"])
        (ids, states) = recorded[0]
        known = batch["sense_labels"] != IGNORED
        return float(
            (trainer.dictionary.choose(states[known], ids[known]) == batch["sense_labels"][known]).float().mean()
        )

    before = agreement()
    trainer.train()
    assert agreement() > before + 0.1
    assert "eval_loss" in trainer.evaluate()  # the task loss, computed from senses


def test_pooler_and_head_are_frozen(distilled: Any, teacher: PreTrainedModel) -> None:
    trainer = distilled(task_weight=1.0)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    after = trainer.model.state_dict()
    frozen = [name for name in after if "pooler" in name or "classifier" in name]
    assert len(frozen) == 4
    for name in frozen:
        assert torch.equal(after[name], teacher.state_dict()[name])
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    assert any("layer.0" in name for name in moved)
    assert "bert.embeddings.word_embeddings.weight" in moved


def test_task_loss_has_a_gradient_through_the_senses(distilled: Any) -> None:
    trainer = distilled()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    batch.pop("sense_labels")
    trainer.model(**batch).loss.backward()
    assert trainer.model.bert.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0


def test_saved_student_contains_its_dictionary(
    distilled: Any, dictionary: SenseDictionary, rows: Dataset, tmp_path: Path
) -> None:
    trainer = distilled(max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    saved = SenseDictionary.from_pretrained(tmp_path / "student" / "senses")
    assert saved.fingerprint == dictionary.fingerprint
    with_senses(loaded, saved)
    ids = torch.tensor(rows[0]["input_ids"])[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)
    # Another model of the same size was not distilled with this dictionary.
    with pytest.raises(ValueError, match="was built from other weights"):
        with_senses(tiny.tiny_bert(trainer.processing_class, num_hidden_layers=1), saved)


def test_smaller_student_is_projected_to_the_teachers_width(
    distilled: Any,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dictionary: SenseDictionary,
    tmp_path: Path,
) -> None:
    smaller = tiny.tiny_bert(tokenizer, BertModel, hidden_size=16, num_hidden_layers=1)
    student = SenseStudent.of(teacher, smaller)
    ids = torch.tensor([[9, 8, 7]])
    with torch.no_grad():
        states = student.projected.encoder.projection(smaller(ids).last_hidden_state)
        expected = teacher.classifier(teacher.bert.pooler(states))
        torch.testing.assert_close(student.eval()(ids).logits, expected)
    trainer = distilled(student, num_train_epochs=2, task_weight=0.1)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    assert torch.equal(student.head.classifier.weight, teacher.classifier.weight)
    assert torch.equal(student.projected.pooler.dense.weight, teacher.bert.pooler.dense.weight)
    trainer.save_model(str(tmp_path / "small"))
    loaded = with_senses(SenseStudent.from_pretrained(tmp_path / "small").eval(), dictionary)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, student.eval()(ids).logits)


def test_settings_of_the_paper(tmp_path: Path) -> None:
    deberta = SenseDistillationArguments.paper("deberta-v3", str(tmp_path), use_cpu=True)
    assert (deberta.num_train_epochs, deberta.learning_rate) == (15, 5e-4)
    llama = SenseDistillationArguments.paper("llama-3-8b", str(tmp_path), use_cpu=True)
    assert (llama.num_train_epochs, llama.warmup_steps, llama.lr_scheduler_type) == (5, 300, "cosine")
    assert llama.learning_rate == 5e-6 * llama.world_size
    assert SenseDistillationArguments.paper("llama-3-8b", str(tmp_path), learning_rate=1e-3).learning_rate == 1e-3
    # The presets of SenseConfig have the same names.
    assert [SenseConfig.paper(name).rule for name in ("deberta-v3", "llama-3-8b")] == ["fixed", "markov"]
    with pytest.raises(ValueError, match="`name` must be one of deberta-v3, llama-3-8b, got 'bert'"):
        SenseDistillationArguments.paper("bert", str(tmp_path))
    with pytest.raises(ValueError, match=r"`temperature` must be greater than 0, got 0\.0"):
        SenseDistillationArguments(str(tmp_path), temperature=0.0)
    with pytest.raises(ValueError, match="`task_weight` must be at least 0, got -1"):
        SenseDistillationArguments(str(tmp_path), task_weight=-1)


def test_invalid_arguments(
    distilled: Any,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dictionary: SenseDictionary,
    rows: Dataset,
    tmp_path: Path,
) -> None:
    args = SenseDistillationArguments(str(tmp_path), use_cpu=True, report_to=[])

    def make(**changes: Any) -> SenseDistillationTrainer:
        given = {"model": first_layers(teacher, 1), "teacher": teacher, "dictionary": dictionary, "args": args}
        return SenseDistillationTrainer(**{**given, "train_dataset": rows, "processing_class": tokenizer, **changes})

    with pytest.raises(TypeError, match="`args` must be SenseDistillationArguments, got TrainingArguments"):
        make(args=TrainingArguments(str(tmp_path), use_cpu=True))
    several = SenseDistillationArguments(str(tmp_path), use_cpu=True, report_to=[])
    several._n_gpu = 2
    with pytest.raises(ValueError, match=r"One process sees 2 GPUs.*torchrun or accelerate launch"):
        make(args=several)
    with pytest.raises(TypeError, match="`train_dataset` must be a Dataset of tokenized rows, got list"):
        make(train_dataset=[{"input_ids": [1]}])
    weighted = SenseDistillationArguments(str(tmp_path), use_cpu=True, report_to=[], task_weight=1.0)
    with pytest.raises(ValueError, match="has no column `labels`, which task_weight > 0 requires"):
        make(args=weighted, train_dataset=rows.remove_columns("labels"))
    with pytest.raises(ValueError, match="built with another tokenizer"):
        make(processing_class=tiny.byte_bpe_tokenizer())
    other = tiny.tiny_bert(tokenizer, BertForSequenceClassification, initializer_range=0.1)
    with pytest.raises(ValueError, match="was built from other weights"):
        make(teacher=other)
    with pytest.raises(ValueError, match="Call without_senses"):
        make(teacher=with_senses(copy.deepcopy(teacher), dictionary))
    with pytest.raises(ValueError, match="No token in `train_dataset` has several senses"):
        make(train_dataset=Dataset.from_dict({"input_ids": [[1, 2]]}))
    smaller = tiny.tiny_bert(tokenizer, BertForSequenceClassification, hidden_size=16)
    with pytest.raises(ValueError, match="The senses have width 32, but the model's hidden states have width 16"):
        make(model=smaller)
    with pytest.raises(ValueError, match="as many tokens as the teacher, 476, got 500"):
        SenseStudent.of(teacher, tiny.tiny_bert(tokenizer, vocab_size=500))
    with pytest.raises(ValueError, match="BertModel has no head"):
        SenseStudent.of(teacher.bert, tiny.tiny_bert(tokenizer))
