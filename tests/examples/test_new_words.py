"""run_new_words.py: the glossary, and a run of both tasks with tiny models."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import run_new_words
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GPT2LMHeadModel

from defemb_callbacks.definitions import load_definitions
from defemb_callbacks.new_tokens.terms import read_terms
from tiny import byte_bpe_tokenizer, tiny_bert, tiny_glossary, tiny_model, wordpiece_tokenizer

GLOSSARY = Path(run_new_words.__file__).with_name("medical_terms.jsonl")
TERMS = [
    ("lynx", "a wild cat", "animals", ["the lynx was here", "a lynx runs fast"]),
    ("ocelot", "a cat", "animals", ["an ocelot is a cat", "the ocelot sleeps"]),
    ("tokamak", "a machine", "things", ["a tokamak is hot", "the tokamak runs"]),
]


def test_the_glossary_has_200_terms_that_define_new_tokens_reads():
    terms = read_terms(GLOSSARY, load_definitions({"cat": "a pet"}))
    assert len(terms) == 200
    assert all(len(term.definitions) == 1 and len(term.options.texts) == 2 for term in terms)
    for term in terms:
        for text in term.options.texts:
            assert re.search(rf"(?<!\w){term.text}(?!\w)", text, re.IGNORECASE), text
    rows = [json.loads(line) for line in GLOSSARY.read_text(encoding="utf-8").splitlines()]
    assert len({row["definition"] for row in rows}) == 200
    assert set(Counter(row["specialty"] for row in rows).values()) == {25}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    rows = [dict(zip(("word", "definition", "specialty", "texts"), term, strict=True)) for term in TERMS]
    (tmp_path / "terms.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "glossary.json").write_text(json.dumps(tiny_glossary()))
    files = {"terms": "terms.jsonl", "definitions": "glossary.json", "model": "model", "output_dir": "out"}
    options = [part for name, file in files.items() for part in (f"--{name}", str(tmp_path / file))]
    return [*options, "--epochs", "2"]


def saved(tokenizer: Any, model: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


@pytest.mark.parametrize("task", ["classification", "sft"])
def test_both_tasks_from_text_to_a_trained_model(task: str, arguments: list[str], tmp_path: Path, capsys: Any):
    if task == "classification":
        tokenizer = wordpiece_tokenizer()
        saved(tokenizer, tiny_bert(tokenizer), tmp_path / "model")
    else:
        tokenizer = byte_bpe_tokenizer()
        saved(tokenizer, tiny_model(GPT2LMHeadModel, tokenizer), tmp_path / "model")
    result = run_new_words.main(["--task", task, *arguments, *(["--texts"] if task == "sft" else [])])
    shown = capsys.readouterr().out
    assert shown.startswith("Data: 3 sentences for training and 3 for testing")
    assert "3 of 3 terms got tokens" in shown
    assert ("3 rows were trained on texts" in shown) == (task == "sft")
    assert "lynx: nearest words " in shown
    before, after = result["coverage"]["before"], result["coverage"]["after"]
    assert after["tokens"] < before["tokens"]
    assert after["whole_words"] > before["whole_words"]
    for name in ("before", "after"):
        scores = result["runs"][name]
        assert len(scores) == 3  # before training and after two epochs
        assert scores[-1]["loss"] != scores[0]["loss"]
    output = tmp_path / "out"
    assert (output / "new_words.png").stat().st_size > 5_000
    assert ("distilled on 1 text" in (output / "new_tokens.txt").read_text()) == (task == "sft")
    assert (output / "results.md").read_text().strip() in shown
    assert json.loads((output / "results.json").read_text())["runs"] == result["runs"]
    again = AutoTokenizer.from_pretrained(output / "model")
    assert "lynx" in [token.strip() for token in again.tokenize("see the lynx there")]
    auto = AutoModelForSequenceClassification if task == "classification" else AutoModelForCausalLM
    assert auto.from_pretrained(output / "model").get_input_embeddings().num_embeddings == len(again)


def test_an_unknown_task_raises(arguments: list[str]):
    with pytest.raises(ValueError, match="`task` must be classification or sft, got 'chat'"):
        run_new_words.main(["--task", "chat", *arguments])
