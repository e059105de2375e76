"""Smoke test of an installation without extras: import, command line, a tiny rebuild, the message about matplotlib.

`make dist` runs it in an environment that has only the wheel.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, Trainer, TrainingArguments

import defemb_callbacks
from defemb_callbacks import DefinitionEMBCallback

WORDS = ["cat", "dog", "cow", "hen", "oak", "elm", "a", "small", "large", "feline", "canine", "tree", "bird", "that"]
TERMS = {
    "cat": "a small feline",
    "dog": "a canine",
    "cow": "a large canine that",
    "hen": "a small bird",
    "oak": "a large tree",
    "elm": "a tree",
}


def check(condition: bool, problem: str) -> None:
    if not condition:
        raise SystemExit(f"The installed package fails: {problem}")


def tiny_run(folder: Path) -> None:
    """Train a tiny classifier with the callback: its rows are rebuilt, and the run goes on without matplotlib."""
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict.fromkeys(["pad", "unk", "cls", "sep", "mask"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, **{f"{name}_token": f"[{name.upper()}]" for name in special}
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertForSequenceClassification(config)
    before = model.get_input_embeddings().weight.detach().clone()
    data = Dataset.from_dict({**tokenizer(["a small cat", "a large dog"] * 4), "labels": [0, 1] * 4})
    callback = DefinitionEMBCallback(TERMS)
    arguments = TrainingArguments(str(folder), max_steps=2, report_to="none", use_cpu=True, save_strategy="no")
    trainer = Trainer(model, arguments, train_dataset=data, processing_class=tokenizer, callbacks=[callback])
    report = callback.report
    check(report is not None and report.rebuilt == len(TERMS), f"{len(TERMS)} tokens should be rebuilt: {report}")
    check(not torch.equal(before, model.get_input_embeddings().weight), "the rows are unchanged")
    trainer.train()


def main() -> None:
    """Run all checks."""
    place = Path(defemb_callbacks.__file__)
    check(place.is_relative_to(sys.prefix), f"{place} is not in this environment")
    check(importlib.util.find_spec("matplotlib") is None, "this environment has matplotlib")
    command = Path(sys.executable).with_name("defemb")
    help_text = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    check("inspect" in help_text, f"`defemb --help` shows {help_text!r}")
    # The run, in a process of its own: its warnings are on stderr.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, __file__, folder], capture_output=True, text=True, check=False)
    check(done.returncode == 0, done.stderr)
    check("pip install" in done.stderr and "defemb-callbacks[plots]" in done.stderr, f"no cure in {done.stderr!r}")
    sys.stdout.write(f"defemb-callbacks {version('defemb-callbacks')} works without extras.\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        tiny_run(Path(sys.argv[1]))
    else:
        main()
