"""console.py: a line for each phase, one progress bar, no rows of dicts, no reports of new weights."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from console import Phases, TrainingBar, quiet_loading
from transformers import BertForSequenceClassification
from transformers.utils import logging as transformers_logging

from tiny import tiny_bert, wordpiece_tokenizer


def test_a_line_for_each_phase(capsys: pytest.CaptureFixture[str]) -> None:
    phases = Phases()
    seconds = phases.done("Read the data")
    assert phases.done("Trained") >= 0
    assert capsys.readouterr().out == f"{seconds:6.1f} s  Read the data\n   0.0 s  Trained\n"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("disable_tqdm", [True, False])  # with it, the Trainer prints its rows without a bar
def test_one_bar_for_all_runs_and_no_rows(trainer, monkeypatch, capsys, terminal: bool, disable_tqdm: bool) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    bar = TrainingBar("Fine-tuning", runs=2)
    for _ in range(2):
        run = bar.instead_of_its_own(trainer(logging_steps=1, disable_tqdm=disable_tqdm))
        run.train()
        run.predict(run.eval_dataset)
        assert any("loss" in row for row in run.state.log_history)
    out, err = capsys.readouterr()
    assert out == ""
    shown = [line for line in re.split(r"[\r\n]", err) if line.strip()]
    assert bool(shown) == terminal
    assert all(line.startswith("Fine-tuning: ") and f"/{2 * run.state.max_steps} " in line for line in shown)
    assert "\n" not in err  # a single line, which is removed at the end


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines that transformers logs."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Handler()
    transformers_logging.add_handler(handler)
    yield found
    transformers_logging.remove_handler(handler)


def test_models_are_loaded_quietly(tmp_path: Path, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    tiny_bert(wordpiece_tokenizer()).save_pretrained(tmp_path)
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    capsys.readouterr()
    with quiet_loading():
        BertForSequenceClassification.from_pretrained(tmp_path)
    assert (lines, capsys.readouterr()) == ([], ("", ""))
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
    BertForSequenceClassification.from_pretrained(tmp_path)
    assert "classifier.weight" in "".join(lines)
