"""The Trainer's progress displays show only the headline metrics."""

from __future__ import annotations

import ast
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import BertForSequenceClassification, PrinterCallback, Trainer

from defemb_callbacks import DefinitionEMBCallback, EmbeddingMonitorCallback
from launching import exit_together, launch
from tiny import tiny_bert, tiny_dataset, tiny_glossary, training_args, wordpiece_tokenizer

EVALUATING = {"eval_strategy": "steps", "eval_steps": 4}
SHOWN = {"defemb/isotropy/all", "defemb/isotropy/rare"}  # without a dictionary there is no relation_auc


def monitor(**settings: Any) -> EmbeddingMonitorCallback:
    return EmbeddingMonitorCallback(None, monitor_steps=2, plots=False, **settings)


@pytest.mark.parametrize("disable_tqdm", [True, False])
@pytest.mark.parametrize("attached", [False, True])
def test_printed_rows_have_only_the_headlines(trainer, capsys, disable_tqdm, attached) -> None:
    callback = monitor()
    run = trainer(callback, disable_tqdm=disable_tqdm, **EVALUATING)
    if attached:
        callback.attach(run)
    run.train()
    printed = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    history = run.state.log_history[1:]  # the first row is that of the start
    assert len(printed) == len(history)
    for row, full in zip(printed, history, strict=True):
        ours = {key for key in full if key.startswith("defemb/")}
        assert {key for key in row if key.startswith("defemb/")} == (SHOWN if ours else set())
        assert {key for key in row if "eval_" in key} == {key for key in full if "eval_" in key}
    assert [row["step"] for row in history if "defemb/norm/all" in row] == [2, 4, 6, 8]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook progress callback and its HTML, with a stand-in for IPython."""
    shown: list[str] = []

    class Output:
        def update(self, html: str) -> None:
            shown.append(html)

    display = ModuleType("IPython.display")
    display.HTML = str
    display.display = lambda html, display_id=None: shown.append(html) or Output()
    parent = ModuleType("IPython")
    parent.display = display
    monkeypatch.setitem(sys.modules, "IPython", parent)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.delitem(sys.modules, "transformers.utils.notebook", raising=False)
    yield import_module("transformers.utils.notebook").NotebookProgressCallback, shown
    sys.modules.pop("transformers.utils.notebook", None)


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("evaluating", [False, True])
def test_the_table_of_a_notebook_stays_narrow(trainer, notebook, attached, evaluating) -> None:
    progress, shown = notebook
    callback = monitor()
    run = trainer(callback, **(EVALUATING if evaluating else {}))
    run.remove_callback(PrinterCallback)
    run.add_callback(progress)
    if attached:
        callback.attach(run)
    run.train()
    columns = re.findall(r"<th>(.*?)</th>", shown[-1])
    assert columns[:2] == ["Step", "Training Loss"]
    cells = re.findall(r"<td>(.*?)</td>", shown[-1])
    if not evaluating:
        assert len(columns) == 2
        assert len(cells) == 2 * 8
        return
    assert columns[2:] == ["Validation Loss", "Defemb/isotropy/all", "Defemb/isotropy/rare"]
    evaluated = [row for row in run.state.log_history if "eval_loss" in row]
    for column, key in ((3, "eval_defemb/isotropy/all"), (4, "eval_defemb/isotropy/rare")):
        assert cells[column::5] == [f"{row[key]:.6f}" for row in evaluated]


# Two processes

MARK = "--- with the callback ---"


def worker(folder: Path) -> None:
    """Runs in each process: a Trainer without the callback, the mark on both streams, a Trainer with it."""
    tokenizer = wordpiece_tokenizer()
    for callbacks in ([], [DefinitionEMBCallback(tiny_glossary(), monitor_steps=2)]):
        if callbacks:
            for stream in (sys.stdout, sys.stderr):
                stream.write(f"{MARK}\n")
                stream.flush()
        trainer = Trainer(
            tiny_bert(tokenizer, BertForSequenceClassification),
            training_args(folder / "run", report_to=["tensorboard"], disable_tqdm=False, **EVALUATING),
            train_dataset=tiny_dataset(tokenizer),
            eval_dataset=tiny_dataset(tokenizer, 8),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        assert trainer.args.world_size == 2
        trainer.train()
    exit_together(folder)


@pytest.mark.slow
def test_only_the_main_process_shows_anything(tmp_path) -> None:
    after = {}
    for rank, streams in enumerate(launch(__file__, str(tmp_path))):
        for name, text in zip(("stdout", "stderr"), streams, strict=True):
            _, mark, after[rank, name] = text.partition(f"{MARK}\n")
            assert mark
    assert "defemb/isotropy/rare" in after[0, "stdout"]
    assert after[1, "stdout"] == after[1, "stderr"] == ""


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
