"""ForwardingReporters: metrics are added to active runs at the step of the loss, and no run is started.

test_trackers.py tests real trackers.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import WandbCallback

from defemb_callbacks.callbacks.reporters import ForwardingReporters
from tiny import training_args

METRICS = {"defemb/isotropy/rare": 0.25}


def log(reporters: ForwardingReporters, args: Any, step: int) -> None:
    reporters.log(args, TrainerState(global_step=step), TrainerControl(), METRICS)


def arguments(folder: Path, *trackers: str) -> Any:
    args = training_args(folder)
    args.report_to = list(trackers)
    return args


class _Tracker:
    """Stand-in for the modules of W&B, MLflow and trackio with at most one run, which records what it was sent."""

    def __init__(self, active: bool) -> None:
        self.sent: list[tuple[Any, Any]] = []
        self.run = self if active else None
        self.context_vars = SimpleNamespace(current_run=SimpleNamespace(get=lambda: self.run))

    def active_run(self) -> Any:
        return self.run

    def log(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.sent.append((metrics, step))

    def log_metrics(self, metrics: dict[str, float], step: int, synchronous: bool) -> None:
        self.sent.append((metrics, step))


@pytest.mark.parametrize("name", ["wandb", "mlflow", "dagshub", "trackio"])
@pytest.mark.parametrize("active", [True, False])
def test_only_an_active_run_is_sent_anything(tmp_path, monkeypatch, name, active) -> None:
    tracker = _Tracker(active)
    monkeypatch.setitem(sys.modules, "mlflow" if name == "dagshub" else name, tracker)
    args = arguments(tmp_path, name)
    log(ForwardingReporters(args), args, 7)
    step_in_row = {"train/defemb/isotropy/rare": 0.25, "train/global_step": 7}
    expected = {"wandb": (step_in_row, None), "trackio": (step_in_row, None)}.get(name, (METRICS, 7))
    assert tracker.sent == ([expected] if active else [])


def test_trackio_numbers_the_metrics_like_the_row_before_them(tmp_path, monkeypatch) -> None:
    tracker = _Tracker(active=True)
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    args = arguments(tmp_path, "trackio")
    for following, expected in ((0, 0), (1, 0), (5, 4)):
        tracker._next_step = following
        log(ForwardingReporters(args), args, 50)
        assert tracker.sent[-1][1] == expected


def test_invalid_mlflow_keys_are_replaced(tmp_path, monkeypatch) -> None:
    tracker = _Tracker(active=True)
    monkeypatch.setitem(sys.modules, "mlflow", tracker)
    args = arguments(tmp_path, "mlflow")
    ForwardingReporters(args).log(args, TrainerState(), TrainerControl(), {"defemb/norm/très rare (5 %)": 1.0})
    assert tracker.sent == [({"defemb/norm/tr_s rare _5 __": 1.0}, 0)]


def test_unsupported_trackers_are_named_in_one_warning(tmp_path, caplog) -> None:
    args = arguments(tmp_path, "comet_ml", "codecarbon", "clearml")
    with caplog.at_level(logging.WARNING, "defemb_callbacks"):
        reporters = ForwardingReporters(args)
        log(reporters, args, 1)
        log(reporters, args, 2)
    [record] = caplog.records
    # CodeCarbon's callback logs no rows, so nothing is missing there.
    assert "are not sent to CometCallback, ClearMLCallback. Call callback.attach(trainer)" in record.message


def test_known_reporters_of_the_trainer_get_the_metrics(tmp_path, caplog) -> None:
    seen: list[tuple[TrainerCallback, int, Any]] = []

    class Wandb(WandbCallback):  # possibly replaced by the user
        def __init__(self) -> None: ...

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append((self, state.global_step, logs))

    class Other(PrinterCallback):
        def on_log(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError("is no reporter")

    args = arguments(tmp_path, "wandb", "clearml")
    own = [Other(), Wandb()]
    log(ForwardingReporters(args, own), args, 7)
    [(reporter, step, logs)] = seen
    assert (reporter, step, logs) == (own[1], 7, METRICS)
    assert logs is not METRICS  # reporters may modify their input
    assert not caplog.records


def test_all_and_none(tmp_path) -> None:
    args = training_args(tmp_path, report_to="none")
    log(ForwardingReporters(args), args, 1)
    assert args.report_to == []
    args = training_args(tmp_path, report_to="all")
    assert "tensorboard" in args.report_to
    ForwardingReporters(args)
    assert not list(tmp_path.rglob("*"))


# TensorBoard


def test_tensorboard_continues_in_the_newest_folder(tmp_path) -> None:
    for age, name in enumerate(["new", "old"]):
        with SummaryWriter(str(tmp_path / "runs" / name)):
            pass
        for file in (tmp_path / "runs" / name).iterdir():
            os.utime(file, (1_000_000 - age, 1_000_000 - age))
    args = training_args(tmp_path, report_to=["tensorboard"])
    reporters = ForwardingReporters(args)
    for step in (5, 6):
        log(reporters, args, step)
    files = {path.parent.name: len(list(path.parent.iterdir())) for path in (tmp_path / "runs").rglob("events*")}
    assert files == {"new": 2, "old": 1}
    events = EventAccumulator(str(tmp_path / "runs" / "new"))
    events.Reload()
    values = events.Scalars("train/defemb/isotropy/rare")
    assert [(event.step, event.value) for event in values] == [(5, 0.25), (6, 0.25)]


def test_tensorboard_folder_from_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    with SummaryWriter(str(tmp_path / "elsewhere")):
        pass
    args = training_args(tmp_path / "run", report_to=["tensorboard"])
    log(ForwardingReporters(args), args, 5)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2


@pytest.mark.parametrize("elsewhere", [False, True])
def test_without_a_tensorboard_run_no_folder_is_created(tmp_path, monkeypatch, elsewhere) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    if elsewhere:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    args = training_args(tmp_path / "run", report_to=["tensorboard"])
    log(ForwardingReporters(args), args, 5)
    assert not list(tmp_path.rglob("events*"))


def test_close_ends_the_writer_and_later_rows_reopen_it(tmp_path) -> None:
    with SummaryWriter(str(tmp_path / "runs" / "one")):
        pass
    before = set(threading.enumerate())
    args = training_args(tmp_path, report_to=["tensorboard"])
    reporters = ForwardingReporters(args)
    log(reporters, args, 5)
    assert set(threading.enumerate()) - before  # TensorBoard writes in its own thread
    reporters.close()
    assert not set(threading.enumerate()) - before
    reporters.close()
    log(reporters, args, 6)
    reporters.close()
    events = EventAccumulator(str(tmp_path / "runs" / "one"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/defemb/isotropy/rare")] == [5, 6]
