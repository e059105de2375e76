"""Poolings and calibrations as modules of sentence-transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny

pytest.importorskip("sentence_transformers", reason="the extra sentence is not installed")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding, Transformer

from defemb_callbacks.sentence import encode_texts, fit_whitening
from defemb_callbacks.sentence.calibrate import with_calibration
from defemb_callbacks.sentence.flow import EmbeddingFlow, EmbeddingFlowConfig
from defemb_callbacks.sentence.modules import FlowCalibration, calibration_module, pooling_modules

ROOT = Path(__file__).resolve().parents[2]
POOLINGS = ["last", "first_last", "last_two", "layer:0", "layer:2"]
TEXTS = tiny.random_texts(160)


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


def test_sentence_transformers_is_optional(tmp_path: Path) -> None:
    code = """
import json, sys
import defemb_callbacks.sentence
imported = "sentence_transformers" in sys.modules
sys.modules["sentence_transformers"] = None  # as if not installed
try:
    import defemb_callbacks.sentence.modules
except ImportError as error:
    print(json.dumps([imported, str(error)]))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    imported, message = json.loads(done.stdout)
    assert not imported
    assert 'pip install "defemb-callbacks[sentence]"' in message
