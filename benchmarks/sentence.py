"""Calibrated sentence embeddings on STS-B: quality of each calibration, and cost of fitting and applying it.

    python benchmarks/sentence.py

Calibrations are fitted on the sentences of train and validation, without scores; Spearman's correlation of cosines with
human ratings is computed on validation. Times require an otherwise idle machine; "ratio" is the median over rounds in
which encoders with and without a calibration alternate. Memory is measured in a new process.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import DATA, RESULTS, add_model_argument, environment, find_model, held_mb
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from defemb_callbacks.sentence import (
    EmbeddingFlow,
    EmbeddingFlowConfig,
    WhiteningFitter,
    calibration_advice,
    encode_texts,
    fit_flow,
)
from defemb_callbacks.sentence.calibrate import sentence_encoder, with_calibration
from defemb_callbacks.sentence.fit import flow_training_arguments

POOLINGS = ("static", "layer:3", "layer:5", "first_last", "last")
PRESETS = ("principal", "paper", "code")
STREAM_WIDTH, STREAM_BATCH = 768, 4096


def read_pairs(split: str) -> tuple[list[str], list[str], list[float]]:
    """Return left sentences, right sentences and ratings."""
    with open(DATA / "stsb" / f"{split}.csv", encoding="utf-8", newline="") as file:
        left, right, scores = zip(*csv.reader(file), strict=True)
    return list(left), list(right), list(map(float, scores))


def fitted_flow(vectors: Tensor, preset: str) -> EmbeddingFlow:
    with tempfile.TemporaryDirectory() as folder:
        args = flow_training_arguments(folder, disable_tqdm=True, logging_strategy="no")
        return fit_flow(vectors, EmbeddingFlowConfig.preset(preset, vectors.shape[1]), args)


def quality(vectors: Tensor, scores: list[float], presets: list[str]) -> dict[str, Any]:
    """Compute Spearman's ρ of each calibration, fitted on all vectors; those of the rated pairs come first."""
    pairs = len(scores)
    fitter = WhiteningFitter()
    fitter.update(vectors)
    found: dict[str, float] = {}

    def score(name: str, calibration: Callable[[Tensor], Tensor]) -> None:
        with torch.no_grad():
            cosines = torch.cosine_similarity(calibration(vectors[:pairs]), calibration(vectors[pairs : 2 * pairs]))
        found[name] = float(spearmanr(cosines.numpy(), scores).statistic)

    score("raw", lambda vectors: vectors)
    score("standardised", fitter.standardization())
    for directions in (1, 4, 10):
        score(f"top {directions} removed", fitter.top_removal(directions))
    for shrinkage in (0.0, "auto"):
        for components in (None, 256, 128):
            kept = components or vectors.shape[1]
            score(f"whitening {kept}, shrinkage {shrinkage}", fitter.whitening(components, shrinkage))
    for preset in presets:
        score(f"flow {preset}", fitted_flow(vectors, preset))
    # Each distinct sentence of the pairs once, as in a user's sample.
    advice = asdict(calibration_advice(vectors[: 2 * pairs].unique(dim=0)))
    return {"advice": advice, "spearman": found}


def fit_seconds(vectors: Tensor, presets: list[str]) -> dict[str, float]:
    """Measure the seconds of each fit on precomputed vectors."""

    def whitening() -> None:
        fitter = WhiteningFitter()
        fitter.update(vectors)
        fitter.whitening()

    fits: dict[str, Callable[[], Any]] = {"whitening": whitening}
    fits |= {f"flow {preset}": lambda preset=preset: fitted_flow(vectors, preset) for preset in presets}
    seconds = {}
    for name, fit in fits.items():
        start = time.perf_counter()
        fit()
        seconds[name] = time.perf_counter() - start
    return seconds


def encode_ratios(model_name: str, texts: list[str], preset: str, rounds: int) -> dict[str, Any]:
    """Measure encoding with and without calibrations, alternating, and pooling of two layers against one."""
    plain = sentence_encoder(model_name, "last")
    vectors = torch.as_tensor(plain.encode(texts, show_progress_bar=False))
    fitter = WhiteningFitter()
    fitter.update(vectors)
    encoders: dict[str, SentenceTransformer] = {
        "plain": plain,
        "whitening": with_calibration(plain, fitter.whitening()),
        f"flow {preset}": with_calibration(plain, fitted_flow(vectors, preset)),
        "first_last": sentence_encoder(model_name, "first_last"),
        "static": sentence_encoder(model_name, "static"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(rounds + 1):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder.encode(texts, show_progress_bar=False)
            seconds[name].append(time.perf_counter() - start)
    seconds = {name: taken[1:] for name, taken in seconds.items()}  # the first round is a warm-up
    ratios = {
        name: median(one / other for one, other in zip(taken, seconds["plain"], strict=True))
        for name, taken in seconds.items()
    }
    return {"texts": len(texts), "seconds": {name: median(taken) for name, taken in seconds.items()}, "ratio": ratios}


def stream(count: int) -> dict[str, float]:
    """Measure seconds and extra peak memory of fitting a whitening to a stream of `count` vectors."""
    batch = torch.randn(STREAM_BATCH, STREAM_WIDTH)
    before = held_mb("VmRSS")
    fitter = WhiteningFitter()
    seconds = 0.0
    for first in range(0, count, STREAM_BATCH):
        torch.randn(batch.shape, out=batch)
        start = time.perf_counter()
        fitter.update(batch[: count - first])
        seconds += time.perf_counter() - start
    fitter.whitening(256)
    return {"vectors": fitter.count, "width": STREAM_WIDTH, "seconds": seconds, "extra_mb": held_mb("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_argument(parser)
    parser.add_argument("--parts", nargs="+", default=["fit", "encode", "stream", "quality"], help="parts to measure")
    parser.add_argument("--poolings", nargs="+", default=list(POOLINGS))
    parser.add_argument("--presets", nargs="*", default=list(PRESETS), help="flows to fit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vectors", type=int, default=1_000_000, help="length of the stream")
    parser.add_argument("--stream", action="store_true", help="measure the stream in this process and print it")
    parser.add_argument("--output", type=Path, default=RESULTS / "sentence.json")
    arguments = parser.parse_args()
    if arguments.stream:
        print(json.dumps(stream(arguments.vectors)))
        return
    name = arguments.model or find_model()
    model, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    left, right, scores = read_pairs("validation")
    texts = [*left, *right, *read_pairs("train")[0], *read_pairs("train")[1]]
    # Parts that are not measured now keep their results.
    known = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
    result: dict[str, Any] = {**known, "environment": environment(), "sentences": len(texts), "pairs": len(scores)}

    def keep(part: str, figures: dict[str, Any]) -> None:
        print(part, json.dumps(figures, indent=1), flush=True)
        result[part] = figures
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    if "fit" in arguments.parts:
        vectors = encode_texts(model, tokenizer, texts[:6000], "layer:3", max_length=64)
        seconds = fit_seconds(vectors, arguments.presets)
        keep("fit_seconds", {"sentences": len(vectors), "width": vectors.shape[1], **seconds})
    if "encode" in arguments.parts:
        keep("encode", encode_ratios(name, texts[:2000], arguments.presets[0], arguments.rounds))
    if "stream" in arguments.parts:
        command = [sys.executable, __file__, "--stream", "--vectors", str(arguments.vectors)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        keep("stream", json.loads(output.splitlines()[-1]))
    if "quality" in arguments.parts:
        found = dict(known.get("quality", {}))
        for pooling in arguments.poolings:
            vectors = encode_texts(model, tokenizer, texts, pooling, max_length=64)
            found[pooling] = quality(vectors, scores, arguments.presets)
            keep("quality", found)


if __name__ == "__main__":
    main()
