"""Contents of the files of TensorBoard, W&B, MLflow and trackio after real runs, with and without `attach`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import BertForSequenceClassification, Trainer

from defemb_callbacks import DefinitionEMBCallback, measure_embeddings
from tiny import tiny_bert, tiny_dataset, tiny_glossary, training_args, wordpiece_tokenizer
from tracker_files import READERS, Run

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
MODES = ("plain", "attached")
# The loss is logged at each step; metrics are due at the start, at 2 and 4, with the evaluation at 3, and at the end.
SETTINGS = {"max_steps": 5, "eval_strategy": "steps", "eval_steps": 3}
# W&B and trackio do not store these as a curve.
OF_THE_WHOLE_RUN = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}


# Runs in a new process, because some trackers read their settings only once


def worker(folder: Path, trackers: list[str]) -> None:
    """Runs each tracker and mode, and saves the Trainer's logs or the traceback."""
    contacts: list[str] = []

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "::1"):
            contacts.append(str(args[1]))

    sys.addaudithook(watch)
    logs = {}
    for tracker in trackers:
        for mode in (*MODES, "nested", "continued") if tracker == "mlflow" else MODES:
            try:
                logs[f"{tracker} {mode}"] = _train(folder, tracker, mode)
            except Exception:  # must not fail the tests of other trackers
                logs[f"{tracker} {mode}"] = traceback.format_exc()
    (folder / "logs.json").write_text(json.dumps({"logs": logs, "contacts": contacts}))


def _train(folder: Path, tracker: str, mode: str) -> dict[str, Any]:
    tokenizer = wordpiece_tokenizer()
    callback = DefinitionEMBCallback(tiny_glossary(), plots=False, monitor_steps=2)
    trainer = Trainer(
        tiny_bert(tokenizer, BertForSequenceClassification),
        training_args(folder / tracker / mode, report_to=[tracker], project=mode, **SETTINGS),
        train_dataset=tiny_dataset(tokenizer),
        eval_dataset=tiny_dataset(tokenizer, 8),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    if mode == "attached":
        callback.attach(trainer)
    start = measure_embeddings(trainer.model, tokenizer)
    for group in ("all", "frequent", "medium", "rare"):
        start |= {f"defemb/drift/{group}": 0.0, f"defemb/neighbour_overlap/{group}": 1.0}
    os.environ["WANDB_PROJECT"] = os.environ["MLFLOW_EXPERIMENT_NAME"] = mode
    with _mlflow_variables(mode):
        trainer.train()
    if tracker == "wandb":
        import wandb

        wandb.finish()  # otherwise, the next Trainer of this process would continue this run
    first, *history = trainer.state.log_history
    assert first == pytest.approx({"epoch": 0.0, "step": 0, **start})
    return {"start": start, "history": history}


@contextmanager
def _mlflow_variables(mode: str) -> Iterator[None]:
    """Variables that make `MLflowCallback` start a nested run or continue a finished one."""
    if mode in MODES:
        yield
        return
    import mlflow

    mlflow.set_experiment(mode)
    with mlflow.start_run() as run:
        if mode == "nested":
            os.environ["MLFLOW_NESTED_RUN"] = "1"
            yield
            del os.environ["MLFLOW_NESTED_RUN"]
    if mode == "continued":
        os.environ["MLFLOW_RUN_ID"] = run.info.run_id
        yield
        os.environ.pop("MLFLOW_RUN_ID", None)  # MLflow removes it at the end of the run


# Checks


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("trackers")
    for name in ("home", "cwd", *TRACKERS):
        (folder / name).mkdir()
    mark = uuid.uuid4().hex
    own = ("MLFLOW", "TENSORBOARD", "TRACKIO", "WANDB", "HF_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(own)} | {
        "DEFEMB_TEST_MARK": mark,
        "HF_HUB_OFFLINE": "1",
        "HOME": str(folder / "home"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TRACKIO_DIR": str(folder / "trackio"),
        "WANDB_DIR": str(folder / "wandb"),
        "WANDB_MODE": "offline",
    }
    installed = [tracker for tracker in TRACKERS if importlib.util.find_spec(tracker)]
    command = [sys.executable, __file__, str(folder), *installed]
    done = subprocess.run(command, env=env, cwd=folder / "cwd", capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    return {"folder": folder, "mark": mark, **json.loads((folder / "logs.json").read_text())}


@pytest.fixture(scope="module", params=TRACKERS)
def tracker(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param, reason=f"needs {request.param}")
    return request.param


@pytest.fixture(scope="module")
def runs(finished: dict[str, Any], tracker: str) -> list[Run]:
    """All runs in the tracker's files."""
    return READERS[tracker](finished["folder"] / tracker)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


def _log(finished: dict[str, Any], tracker: str, mode: str) -> dict[str, Any]:
    log = finished["logs"][f"{tracker} {mode}"]
    assert isinstance(log, dict), log
    return log


def _run(runs: list[Run], mode: str) -> Run:
    [run] = [run for run in runs if run.project == mode]
    return run


def _points(run: Run) -> dict[str, list[Any]]:
    """Returns steps and values, except the epoch, which is in each row of the Trainer."""
    return {key: sorted(point[:2] for point in points) for key, points in run.points.items() if "epoch" not in key}


def _expected(tracker: str, log: dict[str, Any]) -> dict[str, list[Any]]:
    """Returns the start metrics at step 0, and each value of the Trainer's log once, at its step."""
    left_out = {"step", "epoch"} | (OF_THE_WHOLE_RUN if tracker in ("wandb", "trackio") else set())
    points: dict[str, list[Any]] = {}
    for row in [{"step": 0, **log["start"]}, *log["history"]]:
        for key in row.keys() - left_out:
            if tracker == "mlflow":
                name = key
            elif key.startswith("eval_"):
                name = f"eval/{key.removeprefix('eval_')}"
            else:
                name = f"train/{key}"
            points.setdefault(name, []).append((row["step"], pytest.approx(row[key], rel=1e-6)))  # float32
    return points


def test_each_value_of_the_log_is_in_the_only_run_once(finished, tracker, runs, mode) -> None:
    assert _points(_run(runs, mode)) == _expected(tracker, _log(finished, tracker, mode))


def test_all_due_metrics_are_in_the_log(finished, tracker, mode) -> None:
    log = _log(finished, tracker, mode)
    losses = [row["step"] for row in log["history"] if "loss" in row]
    assert losses == [1, 2, 3, 4, 5]
    measured = [row for row in log["history"] if "defemb/norm/all" in row]
    assert [row["step"] for row in measured] == [2, 4, 5]
    assert all(row.keys() >= log["start"].keys() for row in measured)
    evaluated = [row["step"] for row in log["history"] if "eval_defemb/isotropy/rare" in row]
    assert evaluated[0] == SETTINGS["eval_steps"]


def test_no_other_runs_exist(tracker, runs) -> None:
    expected = ["attached", "continued", "nested", "nested", "plain"] if tracker == "mlflow" else ["attached", "plain"]
    assert sorted(run.project for run in runs) == expected


def test_trackio_row_numbers_of_losses_are_unchanged(finished, mode) -> None:
    """The x-axis of trackio is its own row counter."""
    pytest.importorskip("trackio", reason="needs trackio")
    run = _run(READERS["trackio"](finished["folder"] / "trackio"), mode)
    rows = _log(finished, "trackio", mode)["history"]
    numbers = {row["step"]: number for number, row in enumerate(rows, start=1) if "loss" in row}
    assert {step: number for step, _, number in run.points["train/loss"]} == numbers
    measured = {step: number for step, _, number in run.points["train/defemb/norm/all"]}
    assert measured == {0: 0, 2: numbers[2], 4: numbers[4], 5: len(rows)}


@pytest.mark.parametrize("mode", ["nested", "continued"])
def test_mlflow_runs_configured_by_the_environment(finished, mode) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow")
    found = [run for run in READERS["mlflow"](finished["folder"] / "mlflow") if run.project == mode]
    assert [run.status for run in found] == ["FINISHED"] * (2 if mode == "nested" else 1)
    [run] = [run for run in found if run.points]  # the outer one of the nested has none
    assert _points(run) == _expected("mlflow", _log(finished, "mlflow", mode))


def test_mlflow_runs_are_finished(finished, mode) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow")
    assert _run(READERS["mlflow"](finished["folder"] / "mlflow"), mode).status == "FINISHED"


def test_no_process_is_left_and_no_host_was_contacted(finished) -> None:
    deadline = time.monotonic() + 10
    while (left := _heirs(finished["mark"])) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    assert finished["contacts"] == []
    assert list((finished["folder"] / "cwd").iterdir()) == []


def _heirs(mark: str) -> list[list[str]]:
    """Returns the processes that inherited the environment of the training process."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DEFEMB_TEST_MARK") == mark:
                found.append(process.cmdline())
        except psutil.Error:  # another user's, or gone
            continue
    return found


if __name__ == "__main__":
    worker(Path(sys.argv[1]), sys.argv[2:])
