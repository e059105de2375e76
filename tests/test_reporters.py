"""ForwardingReporters: metrics reach every tracker of a run at the step of the loss, and nothing else is started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState

from defemb_callbacks.monitoring import reporters as module
from defemb_callbacks.monitoring.reporters import ForwardingReporters
from tiny import training_args

METRICS = {"defemb/isotropy/rare": 0.25}


class _Reporter(TrainerCallback):
    """Remembers every event that it gets."""

    made: list[_Reporter]

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        type(self).made.append(self)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.events.append((state.global_step, logs))


@pytest.fixture
def classes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand-ins for two integrations."""
    classes = {name: type(name, (_Reporter,), {"made": []}) for name in ("WandbCallback", "MLflowCallback")}
    monkeypatch.setattr(module, "get_reporting_integration_callbacks", lambda names: [classes[name] for name in names])
    for name in ("MLFLOW_NESTED_RUN", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return classes


def log(reporters: ForwardingReporters, args: Any, step: int) -> None:
    reporters.log(args, TrainerState(global_step=step), TrainerControl(), METRICS)


def test_every_tracker_of_report_to_gets_the_metrics(classes, tmp_path) -> None:
    args = training_args(tmp_path)
    args.report_to = ["WandbCallback", "MLflowCallback"]
    log(ForwardingReporters(args), args, 7)
    for reporter_class in classes.values():
        [reporter] = reporter_class.made
        [(step, logs)] = reporter.events
        assert (step, logs) == (7, METRICS)
        assert logs is not METRICS  # reporters may rewrite what they get


@pytest.mark.parametrize("variable", ["MLFLOW_NESTED_RUN", "MLFLOW_RUN_ID"])
def test_no_second_mlflow_run_is_started(classes, tmp_path, monkeypatch, variable) -> None:
    monkeypatch.setenv(variable, "1")
    args = training_args(tmp_path)
    args.report_to = ["WandbCallback", "MLflowCallback"]
    log(ForwardingReporters(args), args, 7)
    assert not classes["MLflowCallback"].made
    assert len(classes["WandbCallback"].made) == 1


def test_tensorboard_continues_in_the_newest_folder(tmp_path) -> None:
    for age, name in enumerate(["new", "old"]):
        with SummaryWriter(str(tmp_path / "runs" / name)):
            pass
        for file in (tmp_path / "runs" / name).iterdir():
            os.utime(file, (1_000_000 - age, 1_000_000 - age))
    args = training_args(tmp_path, report_to=["tensorboard"])
    log(ForwardingReporters(args), args, 5)
    files = {path.parent.name: len(list(path.parent.iterdir())) for path in (tmp_path / "runs").rglob("events*")}
    assert files == {"new": 2, "old": 1}
    events = EventAccumulator(str(tmp_path / "runs" / "new"))
    events.Reload()
    [event] = events.Scalars("train/defemb/isotropy/rare")
    assert (event.step, event.value) == (5, 0.25)


def test_tensorboard_where_the_environment_says(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    args = training_args(tmp_path / "run", report_to=["tensorboard"])
    log(ForwardingReporters(args), args, 5)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_without_a_run_of_tensorboard_no_folder_is_made(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    args = training_args(tmp_path / "run", report_to=["tensorboard"])
    log(ForwardingReporters(args), args, 5)
    assert not list(Path(tmp_path).rglob("events*"))
