"""Calibrated models in sentence-transformers: modules, calibrate, saving and loading."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import tiny

pytest.importorskip("sentence_transformers", reason="the extra sentence is not installed")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding, Transformer

from defemb_callbacks.sentence import encode_texts, fit_whitening
from defemb_callbacks.sentence.calibrate import calibrate, sentence_encoder, with_calibration
from defemb_callbacks.sentence.fit import flow_training_arguments
from defemb_callbacks.sentence.flow import EmbeddingFlow, EmbeddingFlowConfig
from defemb_callbacks.sentence.modules import FlowCalibration, calibration_module, pooling_modules

ROOT = Path(__file__).resolve().parents[2]
POOLINGS = ["last", "first_last", "last_two", "layer:0", "layer:2"]
WORDS = [word for word in tiny.WORDS if "'" not in word]
TEXTS = [" ".join(WORDS[(7 * i + j * j) % len(WORDS)] for j in range(2 + i % 9)) for i in range(160)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny.wordpiece_tokenizer()


@pytest.fixture(scope="module")
def checkpoint(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of transformers."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    tiny.tiny_bert(tokenizer, num_hidden_layers=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def encoder(checkpoint: Path, pooling: str, *more: torch.nn.Module) -> SentenceTransformer:
    return SentenceTransformer(modules=[*pooling_modules(Transformer(str(checkpoint)), pooling), *more], device="cpu")


def vectors_of(model: SentenceTransformer) -> Tensor:
    return model.encode(TEXTS, convert_to_tensor=True)


def tiny_flow(vectors: Tensor) -> EmbeddingFlow:
    return EmbeddingFlow(EmbeddingFlowConfig(vectors.shape[1], width=8, components=10)).initialize(vectors)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_modules_match_encode_texts(checkpoint: Path, pooling: str) -> None:
    model = encoder(checkpoint, pooling)
    expected = encode_texts(model[0].model, model.tokenizer, TEXTS, pooling)
    torch.testing.assert_close(vectors_of(model), expected, atol=1e-5, rtol=1e-4)
    assert model.get_embedding_dimension() == 32


def test_static_pooling_has_no_transformer_and_no_special_tokens(checkpoint: Path) -> None:
    model = encoder(checkpoint, "static")
    assert [type(module) for module in model] == [StaticEmbedding]
    transformer = Transformer(str(checkpoint))
    ids = transformer.tokenizer("the dog", add_special_tokens=False)["input_ids"]
    expected = transformer.model.get_input_embeddings().weight[ids].mean(dim=0)
    torch.testing.assert_close(model.encode("the dog", convert_to_tensor=True), expected)


def test_static_table_and_tokenizer_are_copies(checkpoint: Path) -> None:
    transformer = Transformer(str(checkpoint))
    transformer.tokenizer.backend_tokenizer.enable_padding()
    (static,) = pooling_modules(transformer, "static")
    static.embedding.weight.data.zero_()
    assert transformer.model.get_input_embeddings().weight.any()
    assert transformer.tokenizer.backend_tokenizer.padding is not None


def test_pooling_of_a_transformer_can_be_replaced(checkpoint: Path) -> None:
    transformer = Transformer(str(checkpoint))
    for pooling in ("layer:1", "first_last", "last"):
        model = SentenceTransformer(modules=pooling_modules(transformer, pooling), device="cpu")
        expected = encode_texts(transformer.model, transformer.tokenizer, TEXTS, pooling)
        torch.testing.assert_close(vectors_of(model), expected, atol=1e-5, rtol=1e-4)


def test_another_transformer_is_not_changed(checkpoint: Path, tmp_path: Path) -> None:
    # Models without this setting share one default dictionary in sentence-transformers.
    encoder(checkpoint, "last").save_pretrained(str(tmp_path))
    settings = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    del settings["modality_config"]
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(settings))
    before, changed = (SentenceTransformer(str(tmp_path), device="cpu") for _ in range(2))
    pooling_modules(changed[0], "layer:1")
    expected = encode_texts(before[0].model, before.tokenizer, TEXTS, "last")
    torch.testing.assert_close(vectors_of(before), expected, atol=1e-5, rtol=1e-4)


def test_layer_out_of_range(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"pooling='layer:4' is out of range.*layer:3"):
        pooling_modules(Transformer(str(checkpoint)), "layer:4")


def test_whitened_models_load_without_this_package(checkpoint: Path, tmp_path: Path) -> None:
    expected = {}
    for pooling in [*POOLINGS, "static"]:
        plain = encoder(checkpoint, pooling)
        whitening = fit_whitening(vectors_of(plain), components=6)
        model = with_calibration(plain, whitening)
        expected[pooling] = vectors_of(model)
        torch.testing.assert_close(expected[pooling], whitening(vectors_of(plain)), atol=1e-4, rtol=1e-4)
        assert model.get_embedding_dimension() == 6
        model.save_pretrained(str(tmp_path / pooling))
    code = """
import json, sys
sys.modules["defemb_callbacks"] = None  # an import would fail
from sentence_transformers import SentenceTransformer
texts, poolings = json.loads(sys.argv[1])
models = {pooling: SentenceTransformer(pooling, device="cpu") for pooling in poolings}
widths = [model.get_embedding_dimension() for model in models.values()]
print(json.dumps([widths, {pooling: model.encode(texts).tolist() for pooling, model in models.items()}]))
"""
    command = [sys.executable, "-c", code, json.dumps([TEXTS[:5], list(expected)])]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    widths, loaded = json.loads(done.stdout)
    assert widths == [6] * 6
    for pooling, vectors in loaded.items():
        torch.testing.assert_close(torch.tensor(vectors), expected[pooling][:5], atol=1e-5, rtol=1e-5)


def test_dense_module_is_accurate_far_from_the_origin(checkpoint: Path) -> None:
    vectors = torch.randn(500, 32) * torch.logspace(-1, 1, 32) + 100
    whitening = fit_whitening(vectors)
    dense = calibration_module(whitening)({"sentence_embedding": vectors})["sentence_embedding"]
    torch.testing.assert_close(dense, whitening(vectors), atol=5e-3, rtol=0)


def test_flow_as_last_module(checkpoint: Path, tmp_path: Path) -> None:
    plain = encoder(checkpoint, "first_last")
    flow = tiny_flow(vectors_of(plain))
    model = with_calibration(plain, flow)
    with torch.no_grad():
        torch.testing.assert_close(vectors_of(model), flow(vectors_of(plain)), atol=1e-5, rtol=1e-5)
    assert model.get_embedding_dimension() == 10
    model.save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(tmp_path), device="cpu")
    loaded = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    assert torch.equal(vectors_of(loaded), vectors_of(model))
    assert loaded.get_embedding_dimension() == 10


def test_flow_stays_in_float32_in_a_half_precision_model(checkpoint: Path) -> None:
    plain = encoder(checkpoint, "last")
    model = with_calibration(plain, tiny_flow(vectors_of(plain))).bfloat16()
    assert next(model[0].parameters()).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model[-1].parameters()} == {torch.float32}
    assert vectors_of(model).dtype == torch.bfloat16
    assert next(model.to("meta")[-1].parameters()).device.type == "meta"  # it follows the device


def test_missing_folder_of_a_flow(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no folder '2_FlowCalibration'"):
        FlowCalibration.load(str(tmp_path), "2_FlowCalibration")


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
    given = encoder(checkpoint, "last")
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
        sentence_encoder(encoder(checkpoint, "static"), "last")


def test_without_sentence_transformers(tmp_path: Path) -> None:
    code = """
import json, sys
sys.modules["sentence_transformers"] = None  # as if not installed
import defemb_callbacks.sentence
try:
    import defemb_callbacks.sentence.modules
except ImportError as error:
    print(json.dumps(str(error)))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'pip install "defemb-callbacks[sentence]"' in json.loads(done.stdout)


def test_sentence_transformers_is_imported_lazily(tmp_path: Path) -> None:
    code = "import sys, defemb_callbacks.sentence; print('sentence_transformers' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "False", done.stderr
