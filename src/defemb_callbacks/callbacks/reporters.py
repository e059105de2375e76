"""Metrics that are known only after the Trainer's reporters have run, sent to the runs that these have started."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import (
    DagsHubCallback,
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
    get_reporting_integration_callbacks,
    rewrite_logs,
)

logger = logging.getLogger(__name__)
EVENT_FILES = "events.out.tfevents.*"


class ForwardingReporters:
    """Sends metrics to every tracker of a run, at the step of the Trainer's own row. For the main process only.

    The Trainer's reporters stand before user callbacks and have logged a row when these see it. A second instance of
    one would set up the run once more: trackio's ends it and begins another, MLflow's begins another within it where
    `MLFLOW_NESTED_RUN` is set. So the tracker itself is asked for the run that is active in this process: W&B, MLflow
    (which DagsHub is, too) and trackio know it, and TensorBoard merges the event files of a folder. Where no run is
    active, nothing is sent. Trackers that cannot be asked are named in one warning.

    Args:
        args: `report_to` names the trackers.
        own: the Trainer's callbacks, where they are known: its reporters get the metrics then, of whatever tracker.
    """

    def __init__(self, args: TrainingArguments, own: Iterable[TrainerCallback] | None = None) -> None:
        self._reporters: list[TrainerCallback] = []
        classes = get_reporting_integration_callbacks(args.report_to)
        if own is not None:
            self._reporters += [callback for callback in own if isinstance(callback, tuple(classes))]
            return
        self._reporters += [JOINING[reporter_class]() for reporter_class in classes if reporter_class in JOINING]
        # Those that log no rows, such as CodeCarbon's, have nothing to miss.
        others = [other for other in classes if other not in JOINING and other.on_log is not TrainerCallback.on_log]
        if others:
            logger.warning(
                "The metrics of the embeddings do not reach %s: call callback.attach(trainer) before trainer.train().",
                ", ".join(other.__name__ for other in others),
            )

    def log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Log metrics at `state.global_step`."""
        for reporter in self._reporters:
            reporter.on_log(args, state, control, logs=dict(metrics), **kwargs)

    def close(self) -> None:
        """Close what was opened here, at the end of training. What is logged later opens it again."""
        for reporter in self._reporters:
            if isinstance(reporter, _TensorBoardRun):
                reporter.close()


class _TensorBoardRun(TrainerCallback):
    """Adds an event file to the folder that the Trainer's writer uses."""

    def __init__(self) -> None:
        self._callback = TensorBoardCallback()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._callback.tb_writer is None:
            self._callback.logging_dir = _newest_event_folder(Path(str(args.output_dir)))
        if self._callback.logging_dir is not None:
            self._callback.on_log(args, state, control, logs=logs)

    def close(self) -> None:
        if self._callback.tb_writer is not None:
            self._callback.tb_writer.close()
            self._callback.tb_writer = None


class _WandbRun(TrainerCallback):
    """Adds to the W&B run of this process, whose charts are over `train/global_step`."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        run = import_module("wandb").run
        if run is not None:
            run.log({**rewrite_logs(logs), "train/global_step": state.global_step})


class _MLflowRun(TrainerCallback):
    """Adds to the innermost active MLflow run of this thread."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        mlflow = import_module("mlflow")
        if mlflow.active_run() is not None:  # else MLflow would start one
            metrics = {re.sub(r"[^0-9A-Za-z_\-. :/]", "_", key): value for key, value in logs.items()}
            mlflow.log_metrics(metrics, step=state.global_step, synchronous=False)


class _TrackioRun(TrainerCallback):
    """Adds to the trackio run of this process."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        trackio = import_module("trackio")
        run = trackio.context_vars.current_run.get()
        if run is None:
            return
        # trackio numbers the rows and draws over that number: this one gets the number of the loss before it, so that
        # the losses to come keep theirs.
        following = getattr(run, "_next_step", None)
        step = None if following is None else max(following - 1, 0)
        trackio.log({**rewrite_logs(logs), "train/global_step": state.global_step}, step=step)


JOINING: dict[type[TrainerCallback], type[TrainerCallback]] = {
    DagsHubCallback: _MLflowRun,
    MLflowCallback: _MLflowRun,
    TensorBoardCallback: _TensorBoardRun,
    TrackioCallback: _TrackioRun,
    WandbCallback: _WandbRun,
}


def _newest_event_folder(output_dir: Path) -> str | None:
    # The default is named after the second in which the run began, so it cannot be computed again.
    events = [*Path(output_dir, "runs").rglob(EVENT_FILES)]
    given = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if given:
        events += Path(given).expanduser().glob(EVENT_FILES)
    return str(max(events, key=os.path.getmtime).parent) if events else None  # none: the Trainer's own was removed
