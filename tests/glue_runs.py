"""A tiny GLUE task in a folder, and the options of a run on it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tiny import WORDS, tiny_bert, tiny_glossary, wordpiece_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a glossary, and sentences that say which of two words is in them."""
    folder = tmp_path_factory.mktemp("glue")
    tokenizer = wordpiece_tokenizer()
    # Without dropout, of which two processes would draw other numbers.
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tiny_bert(tokenizer, num_labels=2, **still).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "glossary.json").write_text(json.dumps(tiny_glossary()))
    draw = random.Random(0)
    for name, size in (("train", 40), ("dev", 21)):
        rows = [(" ".join(draw.sample(WORDS, 6)), draw.randrange(2)) for _ in range(size)]
        lines = [f"{text} {('cold', 'warm')[label]}\t{label}" for text, label in rows]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return folder


def options(place: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--model_name_or_path", str(place / "model"), "--definitions", str(place / "glossary.json")),
        *("--train_file", str(place / "train.tsv"), "--validation_file", str(place / "dev.tsv")),
        *("--output_dir", str(output), "--do_train", "--do_eval", "--num_train_epochs", "1", "--report_to", "none"),
        *("--cache_dir", str(place / "cache"), "--plots", "false", "--monitor_steps", "0", "--disable_tqdm", "true"),
        *("--save_strategy", "no", "--dataloader_pin_memory", "false", *more),
    ]
