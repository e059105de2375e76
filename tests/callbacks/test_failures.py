"""Whatever fails in monitor, page, report or cache, the trained weights are those of an undisturbed run.

An error is raised in one function after the other, at its first and last calls; tests try a sample of these calls, or
all of them with `DEFEMB_FAULTS`, which takes three minutes.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from transformers import Trainer

import defemb_callbacks
from defemb_callbacks import DefinitionEMBCallback, EmbeddingMonitorCallback
from defemb_callbacks.metrics.model_metrics import EmbeddingMonitor
from runs import assert_same_weights
from tiny import tiny_glossary

PACKAGE = Path(defemb_callbacks.__file__).parent
METRICS = {str(path) for path in (PACKAGE / "metrics").rglob("*.py")}
METRICS |= {str(PACKAGE / "callbacks" / f"{name}.py") for name in ("monitor", "reporters", "schedule")}
PAGE = {str(path) for path in (PACKAGE / "reporting").rglob("*.py")} | {str(PACKAGE / "callbacks" / "snapshots.py")}
FILES = METRICS | PAGE

# These decide whether there is an error, and one that they raise before the first step concerns the settings.
NOT_GUARDED = {"on_init_end", "on_step_end", "on_train_begin", "on_train_end", "_before_training"}
# Keys of the cache, without which nothing is built, and the functions that guard all others
NOT_GUARDED |= {"_read", "cache_root", "cached", "file_fingerprint", "fingerprint", "remembered_fingerprint"}

NOT_GUARDED |= {"close_reporters"}
NOT_GUARDED |= {"<genexpr>"}  # Python ignores an error in a generator that it closes

SHARE = 1 if "DEFEMB_FAULTS" in os.environ else 5
ERRORS = (OSError, RuntimeError, torch.OutOfMemoryError, torch.linalg.LinAlgError)

Call = tuple[CodeType, int]


class Calls:
    """Counts the calls of each function of `FILES`, and raises an error in one of them."""

    def __init__(self, fail: Call | None = None) -> None:
        self.numbers: Counter[CodeType] = Counter()
        self.fail, self.raised = fail, False
        # The kinds take turns.
        self.error = ERRORS[fail[0].co_firstlineno % len(ERRORS)] if fail else RuntimeError

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename in FILES and code.co_name not in NOT_GUARDED:
            self.numbers[code] += 1
            if self.fail == (code, self.numbers[code]):
                self.raised = True
                raise self.error(code.co_name)  # Python removes a trace function that raises


@contextmanager
def observed(fail: Call | None = None) -> Iterator[Calls]:
    calls = Calls(fail)
    sys.settrace(calls)  # called for each Python function only, unlike a profile function
    try:
        yield calls
    finally:
        sys.settrace(None)


def every_call(calls: Calls) -> list[Call]:
    """The first and the last call of each function."""
    return [(code, number) for code, most in calls.numbers.items() for number in sorted({1, most})]


SETTINGS: dict[str, Any] = {"max_steps": 3, "report_to": ["tensorboard"], "eval_strategy": "steps", "eval_steps": 2}


def check_faults(make: Callable[[], Trainer], while_training: bool, share: int, caplog: Any) -> None:
    """Run without faults, then with one in each `share`-th call, and compare the weights."""

    def trained(fail: Call | None = None) -> tuple[Trainer, Calls]:
        if while_training:
            run = make()
            with observed(fail) as calls:
                run.train()
        else:
            with observed(fail) as calls:
                run = make()
            run.train()
        return run, calls

    undisturbed, calls = trained()
    assert calls.numbers
    tried = every_call(calls)[::share]
    for fail in tried:
        caplog.clear()
        run, calls = trained(fail)
        name = f"{Path(fail[0].co_filename).stem}.{fail[0].co_name}, call {fail[1]}"
        assert calls.raised, name
        assert run.state.global_step == 3, name
        assert_same_weights(run.model, undisturbed.model)
        warnings = [record for record in caplog.records if record.name.startswith("defemb_callbacks")]
        # A cache entry that cannot be read is also reported as deleted.
        number = sum(fail[0].co_name in record.getMessage() for record in warnings)
        # An entry that cannot be read is checked again under the lock, so that a file that another process is writing
        # is not deleted: an error that does not occur again is not shown.
        is_retried = calls.error is OSError and Path(fail[0].co_filename).name == "cache.py"
        assert number == 1 or (is_retried and number == 0), name


@pytest.mark.parametrize(
    ("files", "plots", "share"),
    [
        pytest.param(METRICS | PAGE, True, 50, id="sample"),
        pytest.param(METRICS, False, SHARE, id="metrics", marks=pytest.mark.slow),
        pytest.param(PAGE, True, SHARE, id="page", marks=pytest.mark.slow),
    ],
)
def test_a_fault_in_any_call_while_training(trainer, caplog, monkeypatch, files, plots, share) -> None:
    monkeypatch.setitem(globals(), "FILES", files)

    def make() -> Trainer:
        return trainer(DefinitionEMBCallback(tiny_glossary(), monitor_steps=1, plots=plots), **SETTINGS)

    make()  # fill the cache
    caplog.set_level(logging.WARNING)
    check_faults(make, while_training=True, share=share, caplog=caplog)


@pytest.mark.parametrize("share", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_a_fault_in_any_call_of_the_cache(tmp_path, trainer, caplog, monkeypatch, share) -> None:
    """Both while it is filled and while it is read, when the Trainer is created."""
    monkeypatch.setitem(globals(), "FILES", {str(PACKAGE / "cache.py")})
    number = iter(range(10**6))
    warm = tmp_path / "warm"

    def cold() -> Trainer:
        monkeypatch.setenv("DEFEMB_CACHE", str(tmp_path / f"cold-{next(number)}"))
        return trainer(DefinitionEMBCallback(tiny_glossary(), plots=False), max_steps=3)

    def filled() -> Trainer:
        monkeypatch.setenv("DEFEMB_CACHE", str(warm))
        return trainer(DefinitionEMBCallback(tiny_glossary(), plots=False), max_steps=3)

    caplog.set_level(logging.WARNING)
    check_faults(cold, while_training=False, share=share, caplog=caplog)
    filled()
    check_faults(filled, while_training=False, share=share, caplog=caplog)


def package_warnings(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("defemb_callbacks")]


def test_an_unwritable_folder_is_one_warning(trainer, tmp_path, caplog) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "defemb").write_text("a file in place of the folder")
    run = trainer(DefinitionEMBCallback(tiny_glossary(), monitor_steps=1), max_steps=2)
    run.train()
    run.save_model()
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert [row["step"] for row in run.state.log_history if "defemb/norm/all" in row] == [0, 1, 2]
    [warning] = package_warnings(caplog)
    assert f"No files are saved in {tmp_path / 'run' / 'defemb'}. FileExistsError" in warning


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.linalg.LinAlgError, OSError, MemoryError, KeyError])
def test_every_kind_of_error_stops_the_monitor_only(trainer, monkeypatch, caplog, error) -> None:
    measure, calls = EmbeddingMonitor.measure, []

    def fail_at_the_third_call(self: EmbeddingMonitor, model: Any) -> dict[str, float]:
        calls.append(model)
        if len(calls) == 3:
            raise error("reason")
        return measure(self, model)

    monkeypatch.setattr(EmbeddingMonitor, "measure", fail_at_the_third_call)
    run = trainer(EmbeddingMonitorCallback(None, monitor_steps=1, plots=False), max_steps=4)
    run.train()
    assert [row["step"] for row in run.state.log_history if "defemb/norm/all" in row] == [0, 1]
    [warning] = package_warnings(caplog)
    assert warning.startswith(f"Embedding metrics stop at step 2. {error.__name__}: ")


def test_the_best_checkpoint_stays_the_best_when_its_metric_stops(trainer, monkeypatch) -> None:
    measure, calls = EmbeddingMonitor.measure, []

    def fail_later(self: EmbeddingMonitor, model: Any) -> dict[str, float]:
        calls.append(model)
        if len(calls) > 2:
            raise torch.OutOfMemoryError
        return measure(self, model)

    monkeypatch.setattr(EmbeddingMonitor, "measure", fail_later)
    saving = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "defemb/norm/all"}
    run = trainer(EmbeddingMonitorCallback(None, plots=False), **saving, **best)
    run.train()
    assert run.state.global_step == 8
    assert run.state.best_global_step == 2


def test_a_failure_at_the_start_leaves_out_the_metrics(trainer, monkeypatch, caplog) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(EmbeddingMonitor, "measure", fail)
    run = trainer(EmbeddingMonitorCallback(None, plots=False), max_steps=2)
    run.train()
    assert run.state.global_step == 2
    assert package_warnings(caplog) == ["The embeddings are not measured in this run. OutOfMemoryError: out of memory"]
    # Where the best checkpoint depends on it, nothing is lost yet.
    best = trainer(EmbeddingMonitorCallback(None, plots=False), max_steps=2, metric_for_best_model="defemb/norm/all")
    with pytest.raises(torch.OutOfMemoryError):
        best.train()
