"""Calibration of models: method, advice, and invalid arguments."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny

pytest.importorskip("sentence_transformers", reason="the extra sentence is not installed")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Transformer

from defemb_callbacks.sentence.calibrate import calibrate, sentence_encoder
from defemb_callbacks.sentence.fit import flow_training_arguments
from defemb_callbacks.sentence.flow import EmbeddingFlowConfig
from defemb_callbacks.sentence.modules import pooling_modules

TEXTS = tiny.random_texts(160)


def vectors_of(model: SentenceTransformer) -> Tensor:
    return model.encode(TEXTS, convert_to_tensor=True)


@pytest.mark.parametrize(
    ("method", "settings", "width"),
    [
        ("whitening", {}, 32),
        ("whitening", {"components": 5, "shrinkage": 0.1}, 5),
        ("standardization", {}, 32),
        ("top_removal", {"directions": 3}, 32),
        ("top_removal", {}, 32),
    ],
)
def test_calibrate_makes_vectors_more_isotropic(
    checkpoint: Path, method: Any, settings: dict[str, Any], width: int
) -> None:
    calibrated = calibrate(str(checkpoint), TEXTS, method, pooling="first_last", **settings)
    assert calibrated.advice.verdict == "helps"
    assert calibrated.model.get_embedding_dimension() == width
    assert calibrated.after["uniformity"] < calibrated.before["uniformity"] - 0.5
    assert abs(calibrated.after["average_cosine"]) < calibrated.before["average_cosine"]
    vectors = vectors_of(calibrated.model)
    torch.testing.assert_close(vectors.mean(dim=0), torch.zeros(width), atol=1e-3, rtol=0)


def test_calibrate_fits_a_flow(checkpoint: Path, tmp_path: Path) -> None:
    args = flow_training_arguments(str(tmp_path), num_train_epochs=1, use_cpu=True, disable_tqdm=True)
    config = EmbeddingFlowConfig(32, width=8, components=10)
    calibrated = calibrate(str(checkpoint), TEXTS, "flow", config=config, args=args)
    assert calibrated.model.get_embedding_dimension() == 10
    assert calibrated.after["average_cosine"] < calibrated.before["average_cosine"]


def test_calibrate_drops_duplicates_and_empty_texts(checkpoint: Path) -> None:
    expected = calibrate(str(checkpoint), TEXTS)
    repeated = calibrate(str(checkpoint), [*TEXTS, *TEXTS[:50], "", "  "])
    torch.testing.assert_close(vectors_of(repeated.model), vectors_of(expected.model))


def test_calibrate_keeps_the_modules_prompts_and_similarity_of_a_model(checkpoint: Path) -> None:
    modules = [*pooling_modules(Transformer(str(checkpoint)), "last"), Normalize()]
    given = SentenceTransformer(
        modules=modules, device="cpu", prompts={"query": "the "}, default_prompt_name="query", similarity_fn_name="dot"
    )
    model = calibrate(given, TEXTS).model
    assert list(model)[:3] == modules
    assert (model.prompts["query"], model.default_prompt_name, model.similarity_fn_name) == ("the ", "query", "dot")
    assert len(given) == 3  # the model itself is not changed
    vectors = torch.nn.functional.normalize(vectors_of(given))
    torch.testing.assert_close(vectors_of(given), vectors)


def test_another_pooling_does_not_change_the_given_model(checkpoint: Path) -> None:
    given = sentence_encoder(str(checkpoint), "last")
    before = vectors_of(given)
    for pooling in ("layer:1", "first_last"):
        calibrate(given, TEXTS, pooling=pooling)
    assert torch.equal(vectors_of(given), before)
    assert not given[0].config.output_hidden_states


def test_calibrate_ignores_truncation(checkpoint: Path) -> None:
    model = sentence_encoder(str(checkpoint))
    model.truncate_dim = 8
    assert calibrate(model, TEXTS).model.get_embedding_dimension() == 32


@pytest.fixture
def spread_out(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Replace all embeddings with isotropic ones, like those of a contrastively trained model."""
    encoded: list[str] = []

    def encode(self: SentenceTransformer, texts: list[str], **kwargs: Any) -> Tensor:
        encoded.extend(texts)
        return torch.randn(len(texts), 32, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(SentenceTransformer, "encode", encode)
    return lambda: encoded


def test_calibrate_raises_if_it_is_likely_to_harm(checkpoint: Path, spread_out: Callable[[], list[str]]) -> None:
    with pytest.raises(ValueError, match=r"likely to harm\. Pass force=True to calibrate anyway"):
        calibrate(str(checkpoint), TEXTS, sample=100)
    assert len(spread_out()) == 160  # step 160 // 100 = 1
    assert calibrate(str(checkpoint), TEXTS, force=True).advice.verdict == "harms"


def test_advice_is_based_on_an_even_sample(checkpoint: Path, spread_out: Callable[[], list[str]]) -> None:
    texts = [f"{text} {i}" for i in range(10) for text in TEXTS]
    with pytest.raises(ValueError, match="likely to harm"):
        calibrate(str(checkpoint), texts, sample=200)
    assert spread_out() == texts[::8]


def test_advice_is_logged(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "defemb_callbacks"):
        advice = calibrate(str(checkpoint), TEXTS).advice
    assert [(row.levelname, row.message) for row in caplog.records if row.name.startswith("defemb")] == [
        ("INFO", advice.reason)
    ]


def test_forced_calibration_logs_a_warning(
    checkpoint: Path, spread_out: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    calibrate(str(checkpoint), TEXTS, force=True)
    assert any(row.levelname == "WARNING" and "likely to harm" in row.message for row in caplog.records)


@pytest.mark.parametrize(
    ("texts", "method", "settings", "error", "message"),
    [
        (
            TEXTS,
            "zca",
            {},
            ValueError,
            "`method` must be one of whitening, flow, .*, got 'zca'",
        ),
        (TEXTS, "whitening", {"directions": 3}, TypeError, "unexpected keyword argument 'directions'"),
        (TEXTS, "flow", {"components": 3}, TypeError, "unexpected keyword argument 'components'"),
        (TEXTS, "whitening", {"components": 33}, ValueError, "`components` must be between 1 and the width 32, got 33"),
        (TEXTS, "top_removal", {"directions": 0}, ValueError, "`directions` must be between 1 and the width 32, got 0"),
        ("a text", "whitening", {}, TypeError, "Put it into a list"),
        (TEXTS[:40] * 5, "whitening", {}, ValueError, "at least 100 distinct texts, got 40"),
        (TEXTS, "whitening", {"pooling": "mean"}, ValueError, "`pooling` must be one of"),
    ],
)
def test_invalid_arguments_of_calibrate(
    checkpoint: Path, texts: Any, method: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        calibrate(str(checkpoint), texts, method, **settings)


def test_pooling_of_a_model_without_a_transformer(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"pooling='last' requires a Transformer, .* is a StaticEmbedding"):
        sentence_encoder(sentence_encoder(str(checkpoint), "static"), "last")
