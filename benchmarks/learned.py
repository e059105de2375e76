"""Learned constructor and closed form compared: closeness to held-out embeddings, and time.

    python benchmarks/learned.py

A fifth of the words of all-MiniLM-L6-v2 that WordNet defines is held out. Both methods are trained on the others and
predict the held-out rows. "Centred cosine" is the mean cosine to the pretrained rows, after subtracting their mean.
Initialisations of the head, and adapters, are compared on a subset of the words.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, add_model_argument, centred_cosine, environment, find_model
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from defemb_callbacks import DefinitionEMBConfig, load_definitions
from defemb_callbacks.constructor_config import ConstructorConfig
from defemb_callbacks.reconstruction import (
    cross_fitted_rows,
    definition_texts,
    learned_rows,
    mapped,
    prompt_style,
    resolve_settings,
    word_features,
)
from defemb_callbacks.reconstruction.constructor.learned_rows import held_out_words
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens, lemma_groups
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.rows import read_table

HELD_OUT = 0.2
SETUPS: dict[str, dict[str, Any]] = {
    "learned": {},
    "learned, head drawn at random": {"head": "random"},
    "learned, low-rank adapters": {"lora_r": 16, "training": {"learning_rate": 5e-4}},
}


def ridge(
    model: PreTrainedModel, tokenizer: Any, defined: list[Any], old: Tensor, held_out: Tensor
) -> dict[str, float]:
    """Fit a map on the other words, with regularisation chosen by cross-validation."""
    config = resolve_settings(DefinitionEMBConfig(), model)
    start = time.perf_counter()
    texts = definition_texts(
        [word for word, _ in defined],
        [found for _, found in defined],
        tokenizer,
        config.max_length,
        prompt_style(model),
    )
    features = word_features(model, tokenizer, texts, config.features)
    kept = ~held_out
    groups = lemma_groups([found for _, found in defined])
    weights = cross_fitted_rows(features[kept], old[kept], groups=groups[kept]).weights
    rows = mapped(features[held_out], weights)
    seconds = time.perf_counter() - start
    return {"centred_cosine": centred_cosine(rows, old[held_out], old.mean(dim=0)), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--words", type=int, default=4000, help="number of words to compare setups on")
    parser.add_argument("--output", type=Path, default=RESULTS / "learned.json")
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.WARNING)
    name = arguments.model or find_model()
    model, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    vocabulary, lexicon = read_vocabulary(tokenizer), load_definitions("wordnet")
    config = resolve_settings(DefinitionEMBConfig(), model)
    found = definitions_of_tokens(vocabulary, lexicon, config.definitions_per_token)
    table = read_table(model)
    known = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
    result: dict[str, Any] = {**known, "environment": environment(), "epochs": arguments.epochs}

    def keep() -> None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    for words, setups in ((len(found), ["learned"]), (arguments.words, list(SETUPS))):
        chosen = list(found)[:: max(1, len(found) // words)]
        ids = torch.tensor(chosen)
        defined = [(vocabulary.words[index] or "", found[index]) for index in chosen]
        old, held_out = table[ids], held_out_words(len(ids), HELD_OUT)
        figures: dict[str, Any] = {
            "words": len(ids),
            "held_out": int(held_out.sum()),
            "definitions": sum(len(definitions) for _, definitions in defined),
            "ridge": ridge(model, tokenizer, defined, old, held_out),
        }
        result["all" if words == len(found) else "some"] = figures
        print(json.dumps(figures), flush=True)
        for setup in setups:
            settings = dict(SETUPS[setup])
            training = (
                {"eval_steps": 0.1, "save_steps": 0.5} if words < len(found) else {"eval_steps": 0.5, "save_steps": 0.5}
            )
            training |= {"num_train_epochs": arguments.epochs} | settings.pop("training", {})
            constructor = ConstructorConfig(held_out=HELD_OUT, training=training, patience=None, **settings)
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                learned = learned_rows(model, tokenizer, ids, defined, Path(folder), settings=constructor)
                seconds = time.perf_counter() - start
            figures[setup] = {"centred_cosine": learned.info["held_out_cosine"], "seconds": seconds, **learned.info}
            print(setup, json.dumps(figures[setup]), flush=True)
            keep()


if __name__ == "__main__":
    main()
