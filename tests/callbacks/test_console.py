"""What a run shows on the console: few lines, on stderr, which respect the user's log level."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import TrainerState
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging as transformers_logging

from defemb_callbacks import DefinitionEMBCallback
from defemb_callbacks.callbacks.console import show
from runs import StopAtStep4
from tiny import tiny_glossary, training_args


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DEFEMB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def console() -> Iterator[CaptureLogger]:
    """The lines of transformers' loggers."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    with CaptureLogger(transformers_logging.get_logger("transformers")) as captured:
        yield captured
    transformers_logging.set_verbosity(verbosity)


def lines(console: CaptureLogger) -> list[str]:
    shown = console.io.getvalue().splitlines()
    return [re.sub(r"^\[transformers\] ", "", line) for line in shown if "embedding" in line]


def test_before_the_build_after_it_and_at_the_end(trainer, own_cache, console, tmp_path, capsys) -> None:
    trainer(DefinitionEMBCallback(tiny_glossary())).train()
    before, after, end = lines(console)
    page = tmp_path / "run" / "defemb" / "index.html"
    assert re.fullmatch(
        r"Rebuilding the token embeddings of BertForSequenceClassification from \w+: 66 definitions of 66 tokens are "
        r"encoded\. The result is kept for the next run\.",
        before,
    )
    assert re.fullmatch(
        r"Rebuilt 66 of \d+ token embeddings from definitions \(\w+\)\. It took \d+\.\d s \(built now\)\. "
        rf"Metrics and pictures will be in {page}\.",
        after,
    )
    assert end == f"Metrics and pictures of the token embeddings in this run: {page}"
    printed = capsys.readouterr().out.splitlines()
    assert all(line.startswith("{") for line in printed)  # the rows of the Trainer


def test_rows_from_the_cache_are_said_to_be(trainer, own_cache, console) -> None:
    trainer(DefinitionEMBCallback(tiny_glossary(), plots=False))
    trainer(DefinitionEMBCallback(tiny_glossary(), plots=False))
    *_, last = lines(console)
    assert len(lines(console)) == 3
    assert last.endswith("(from the cache).")


@pytest.mark.parametrize("log_level", ["warning", "error"])
def test_an_explicit_log_level_hides_the_lines(trainer, own_cache, console, log_level) -> None:
    trainer(DefinitionEMBCallback(tiny_glossary()), log_level=log_level).train()
    assert not lines(console)


def test_an_explicit_log_level_shows_them_as_information(trainer, own_cache, console) -> None:
    trainer(DefinitionEMBCallback(tiny_glossary()), log_level="info").train()
    assert len(lines(console)) == 3


def test_transformers_verbosity_hides_them(trainer, own_cache, console) -> None:
    transformers_logging.set_verbosity_error()
    trainer(DefinitionEMBCallback(tiny_glossary())).train()
    assert not lines(console)


def test_only_the_main_process_shows_lines(console, tmp_path) -> None:
    show(training_args(tmp_path), TrainerState(is_world_process_zero=False), "about embeddings")
    assert not lines(console)


def test_a_resumed_run_and_a_rebuilt_model_are_left_as_they_are(trainer, console, tmp_path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4}
    settings: dict[str, Any] = {"plots": False}
    run = trainer(DefinitionEMBCallback(tiny_glossary(), **settings), StopAtStep4, **saving)
    run.train()
    trainer(DefinitionEMBCallback(tiny_glossary(), **settings), **saving).train(resume_from_checkpoint=True)
    left = "The token embeddings are left as in the checkpoint of step 4. They replace those rebuilt above."
    assert left in lines(console)
    trainer(DefinitionEMBCallback(tiny_glossary(), **settings), model=run.model)
    assert lines(console)[-1] == "The token embeddings were rebuilt before and are kept as they are."


def test_a_process_shows_them_on_stderr_only(tmp_path) -> None:
    program = """
import sys
from transformers import BertForSequenceClassification, Trainer
from defemb_callbacks import DefinitionEMBCallback
from tiny import tiny_bert, tiny_glossary, training_args, wordpiece_tokenizer
tokenizer = wordpiece_tokenizer()
model = tiny_bert(tokenizer, BertForSequenceClassification)
callbacks = [DefinitionEMBCallback(tiny_glossary())]
Trainer(model, training_args(sys.argv[1]), processing_class=tokenizer, callbacks=callbacks)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "DEFEMB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert "Rebuilding the token embeddings" in done.stderr
    assert "(built now)" in done.stderr
