"""Time of a cold build relative to the bare forward pass, time of a warm start, and memory of a build.

    python benchmarks/encode.py

"Bare" is the frozen model alone, on unpadded batches of the same definitions, with the same precision. Each build runs
in its own process with an empty cache of embeddings; WordNet is cached. "Rest" is the part of a build that is not
encoding: reading the dictionary from the cache, tokenization, the closed form and saving.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import RESULTS, add_model_argument, environment, find_model, held_mb
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from defemb_callbacks import DefinitionEMBConfig, build_definition_embeddings, load_definitions
from defemb_callbacks.embeddings import compute
from defemb_callbacks.reconstruction import definition_texts, prompt_style, resolve_settings
from defemb_callbacks.reconstruction.batching import equal_length_batches
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens
from defemb_callbacks.vocabulary.tokens import read_vocabulary


def measure_build(model_name: str, cache: str) -> dict[str, float]:
    """Measure time and extra peak memory of one build, and of applying its result, in this process."""
    model, tokenizer = AutoModel.from_pretrained(model_name), AutoTokenizer.from_pretrained(model_name)
    config = DefinitionEMBConfig(cache_dir=cache)
    encoding = [0.0]
    word_features = compute.word_features

    def timed(*arguments: Any, **settings: Any) -> Tensor:
        begin = time.perf_counter()
        features = word_features(*arguments, **settings)
        encoding[0] += time.perf_counter() - begin
        return features

    compute.word_features = timed
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, so that loading does not count
    before = held_mb("VmRSS")
    start = time.perf_counter()
    embeddings = build_definition_embeddings(model, tokenizer, config=config)
    built = time.perf_counter()
    embeddings.apply(model, config)
    applied = time.perf_counter()
    return {
        "build_seconds": built - start,
        "encoding_seconds": encoding[0],
        "apply_seconds": applied - built,
        "extra_peak_mb": held_mb("VmHWM") - before,
        "tokens": embeddings.info["tokens_encoded"],
        "texts": embeddings.info["texts_encoded"],
    }


def in_a_process(model_name: str, cache: str) -> dict[str, float]:
    """Run `measure_build` in a new process."""
    command = [sys.executable, __file__, "--model", model_name, "--build-in", cache]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def bare_forward(model_name: str, tokens: list[list[int]], batch_size: int) -> dict[str, float]:
    """Measure the seconds of the backbone alone over all definitions, by precision."""
    batches = [
        torch.tensor([tokens[index] for index in batch])
        for batch in equal_length_batches([len(ids) for ids in tokens], batch_size)
    ]
    model = AutoModel.from_pretrained(model_name).eval()
    seconds = {}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for batch in batches[::40]:  # warm up
            model(input_ids=batch)
        start = time.perf_counter()
        for batch in batches:
            model(input_ids=batch)
        seconds["bfloat16_autocast"] = time.perf_counter() - start
    model = model.bfloat16()
    with torch.inference_mode():
        start = time.perf_counter()
        for batch in batches:
            model(input_ids=batch)
        seconds["bfloat16_weights"] = time.perf_counter() - start
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "encode.json")
    parser.add_argument("--build-in", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model_name = arguments.model or find_model()
    if arguments.build_in:
        print(json.dumps(measure_build(model_name, arguments.build_in)))
        return

    model, tokenizer = AutoModel.from_pretrained(model_name), AutoTokenizer.from_pretrained(model_name)
    lexicon, config, style = (
        load_definitions("wordnet"),
        resolve_settings(DefinitionEMBConfig(), model),
        prompt_style(model),
    )
    vocabulary = read_vocabulary(tokenizer)
    found = definitions_of_tokens(vocabulary, lexicon, config.definitions_per_token)
    words = [vocabulary.words[index] or "" for index in found]
    texts = definition_texts(words, list(found.values()), tokenizer, config.max_length, style)

    cold, warm, bare = [], [], []
    for _ in range(arguments.repeats):  # interleaved, so that changes in machine speed affect all three
        bare.append(bare_forward(model_name, texts.input_ids, config.batch_size))
        with tempfile.TemporaryDirectory() as cache:
            cold.append(in_a_process(model_name, cache))
            warm.append(in_a_process(model_name, cache))
    assert cold[0]["tokens"] == texts.tokens
    ratios, encoding = (
        {name: median(b[name] / c[part] for b, c in zip(bare, cold, strict=True)) for name in bare[0]}
        for part in ("build_seconds", "encoding_seconds")
    )
    result = {
        "texts": len(texts.input_ids),
        "tokens": texts.tokens,
        "bare_seconds": bare,
        "cold": cold,
        "warm": warm,
        "build_speed_relative_to_bare": ratios,
        "encoding_speed_relative_to_bare": encoding,
        "rest_relative_to_encoding": median(run["build_seconds"] / run["encoding_seconds"] - 1 for run in cold),
        "cold_tokens_per_second": texts.tokens / median(run["build_seconds"] for run in cold),
        "warm_start_seconds": median(run["build_seconds"] + run["apply_seconds"] for run in warm),
        "extra_peak_mb": max(run["extra_peak_mb"] for run in cold),
        "environment": environment(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    shown = ("encoding_speed_relative_to_bare", "rest_relative_to_encoding", "warm_start_seconds", "extra_peak_mb")
    print(json.dumps({name: result[name] for name in shown}, indent=1))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main()
