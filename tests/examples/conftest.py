"""Fixtures for the example scripts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tiny import WORDS, tiny_bert, tiny_glossary, wordpiece_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a glossary, and a classification task: random words, labelled cold or warm."""
    folder = tmp_path_factory.mktemp("glue")
    tokenizer = wordpiece_tokenizer()
    # Without dropout, for which two processes would draw different numbers.
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tiny_bert(tokenizer, num_labels=2, **no_dropout).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "glossary.json").write_text(json.dumps(tiny_glossary()))
    draw = random.Random(0)
    for name, size in (("train", 40), ("dev", 21)):
        rows = [(" ".join(draw.sample(WORDS, 6)), draw.randrange(2)) for _ in range(size)]
        lines = [f"{text} {('cold', 'warm')[label]}\t{label}" for text, label in rows]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return folder
