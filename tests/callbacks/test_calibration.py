"""CalibrationCallback: calibrated sentence embeddings at the end of a Trainer run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, Trainer

import tiny

pytest.importorskip("sentence_transformers", reason="the extra sentence is not installed")

from accelerate.state import AcceleratorState
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from defemb_callbacks.callbacks.calibration import CalibrationCallback
from defemb_callbacks.sentence import EmbeddingFlowConfig, encode_texts, fit_whitening

WORDS = [word for word in tiny.WORDS if "'" not in word]
TEXTS = [" ".join(WORDS[(7 * i + j * j) % len(WORDS)] for j in range(2 + i % 9)) for i in range(160)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny.wordpiece_tokenizer()


def trained(
    tokenizer: PreTrainedTokenizerBase, folder: Path, *callbacks: CalibrationCallback, **overrides: Any
) -> PreTrainedModel:
    model = tiny.tiny_bert(tokenizer, BertForSequenceClassification)
    Trainer(
        model,
        tiny.training_args(folder, **overrides),
        train_dataset=tiny.tiny_dataset(tokenizer),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    ).train()
    return model


def test_trained_encoder_is_calibrated_and_saved(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    callback = CalibrationCallback(TEXTS, components=6, shrinkage=0.1)
    model = trained(tokenizer, tmp_path, callback)
    vectors = encode_texts(model, tokenizer, TEXTS)  # of the trained weights
    expected = fit_whitening(vectors, 6, 0.1)(vectors)
    loaded = SentenceTransformer(str(tmp_path / "calibrated"), device="cpu")
    torch.testing.assert_close(loaded.encode(TEXTS, convert_to_tensor=True), expected, atol=1e-3, rtol=1e-3)
    assert callback.result is not None
    assert callback.result.after["average_cosine"] < callback.result.before["average_cosine"]


def test_the_trained_model_is_unchanged(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = trained(tokenizer, tmp_path / "with", CalibrationCallback(TEXTS, pooling="first_last", folder="whitened"))
    other = trained(tokenizer, tmp_path / "without", CalibrationCallback(TEXTS[:100]))
    assert (tmp_path / "with" / "whitened" / "modules.json").is_file()
    for one, two in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert not model.config.output_hidden_states


def test_sentence_transformer_trainer(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tiny.tiny_bert(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    args = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    pairs = Dataset.from_dict({"left": TEXTS[:40], "right": TEXTS[1:41], "score": [0.1 * (i % 9) for i in range(40)]})
    callback = CalibrationCallback(TEXTS, "standardization")
    SentenceTransformerTrainer(model, args, train_dataset=pairs, callbacks=[callback]).train()
    loaded = SentenceTransformer(str(tmp_path / "run" / "calibrated"), device="cpu")
    vectors = model.encode(TEXTS, convert_to_tensor=True).cpu()
    expected = (vectors - vectors.mean(dim=0)) / vectors.std(dim=0)
    torch.testing.assert_close(loaded.encode(TEXTS, convert_to_tensor=True), expected, atol=1e-3, rtol=1e-3)
    assert len(model) == 2


def test_harmful_calibration_is_refused_unless_forced(
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def encode(self: SentenceTransformer, texts: list[str], **kwargs: Any) -> torch.Tensor:
        return torch.randn(len(texts), 32, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(SentenceTransformer, "encode", encode)
    callback = CalibrationCallback(TEXTS)
    with caplog.at_level(logging.WARNING):
        trained(tokenizer, tmp_path, callback)
    assert "The sentence embeddings were not calibrated." in caplog.text
    assert "likely to harm" in caplog.text
    assert callback.result is None
    assert not (tmp_path / "calibrated").exists()
    forced = CalibrationCallback(TEXTS, force=True)
    trained(tokenizer, tmp_path, forced)
    assert (tmp_path / "calibrated").exists()


def test_missing_tokenizer_is_an_error(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    trainer = Trainer(
        tiny.tiny_bert(tokenizer, BertForSequenceClassification),
        tiny.training_args(tmp_path),
        train_dataset=tiny.tiny_dataset(tokenizer),
        callbacks=[CalibrationCallback(TEXTS)],
    )
    with pytest.raises(ValueError, match=r"CalibrationCallback needs a tokenizer\. Pass processing_class"):
        trainer.train()


def test_sharded_model_is_an_error(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    args = tiny.training_args(tmp_path)
    args.fsdp = True
    with pytest.raises(ValueError, match=r"sharded.*Remove the callback and run `defemb calibrate`"):
        CalibrationCallback(TEXTS).on_train_begin(args, None, None, model=tiny.tiny_bert(tokenizer))  # type: ignore[arg-type]


def test_a_failure_does_not_lose_the_trained_model(tokenizer, tmp_path, monkeypatch, caplog) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("defemb_callbacks.sentence.calibrate.calibrate", fail)
    callback = CalibrationCallback(TEXTS)
    trained(tokenizer, tmp_path, callback)
    assert callback.result is None
    assert (
        "were not calibrated; run `defemb calibrate` on the saved model. OutOfMemoryError: out of memory" in caplog.text
    )


def test_a_model_that_the_launch_has_sharded_is_an_error_before_training(tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("defemb_callbacks.callbacks.calibration.is_sharded", lambda weight: True)
    with pytest.raises(ValueError, match="needs a complete model on each process"):
        trained(tokenizer, tmp_path, CalibrationCallback(TEXTS))


def test_a_flow_keeps_the_precision_and_the_random_state_of_the_run(tokenizer, tmp_path) -> None:
    trained(tokenizer, tmp_path / "without", bf16=True)
    states = [torch.random.get_rng_state()]
    for method, settings in (("standardization", {}), ("flow", {"config": EmbeddingFlowConfig(32, width=8)})):
        callback = CalibrationCallback(TEXTS, method, force=True, **settings)
        trained(tokenizer, tmp_path / method, callback, bf16=True)
        assert callback.result is not None
        assert AcceleratorState().mixed_precision == "bf16"
        states.append(torch.random.get_rng_state())
    assert all(torch.equal(state, states[0]) for state in states)
