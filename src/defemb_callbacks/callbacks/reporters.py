"""Where logged metrics go: to the run's trackers (all of them) and to its progress bar (the headline metrics only)."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import (
    DagsHubCallback,
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
    get_reporting_integration_callbacks,
    rewrite_logs,
)

from defemb_callbacks.attempt import Attempt
from defemb_callbacks.metrics.catalog import HEADLINES

logger = logging.getLogger(__name__)
EVENT_FILES = "events.out.tfevents.*"
NOT_SENT = "The embedding metrics are not sent to the trackers of this run"


class HeadlineFilter(TrainerCallback):
    """Remove all embedding metrics except the headlines from a log row.

    Its place is between the trackers, which get the whole row, and the progress bar, which prints it.
    """

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for key in [key for key in logs or () if key.startswith("defemb/") and key not in HEADLINES]:
            del logs[key]


def move_to_front(
    callback: TrainerCallback, trainer: Trainer, attached_to: list[TrainerCallback] | None
) -> list[TrainerCallback]:
    """Move a callback before the reporters of a Trainer, and add a `HeadlineFilter` before those that print whole rows.

    Args:
        callback: The callback; added if the Trainer does not have it.
        trainer: The Trainer.
        attached_to: Callbacks that already have a filter.

    Returns:
        The callbacks of the Trainer in calling order.
    """
    callbacks: list[TrainerCallback] = trainer.callback_handler.callbacks
    if callback not in callbacks:
        trainer.add_callback(callback)
    callbacks.remove(callback)
    callbacks.insert(0, callback)
    if attached_to is callbacks:
        return callbacks
    printers = [i for i, callback in enumerate(callbacks) if isinstance(callback, (PrinterCallback, ProgressCallback))]
    callbacks.insert(printers[0] if printers else len(callbacks), HeadlineFilter())
    return callbacks


class ForwardingReporters:
    """Send metrics to every tracker of a run at the current step. For the main process only.

    The Trainer's reporters run before user callbacks, so they have already logged a row when a user callback sees it.
    A second instance of a reporter would set up the run again: trackio would end the run and start another, and MLflow
    would start a nested run if `MLFLOW_NESTED_RUN` is set. Instead, the tracker's own library is asked for the active
    run of this process (W&B, MLflow including DagsHub, trackio). TensorBoard merges all event files in a folder. If no
    run is active, nothing is sent. Trackers without such an interface are listed in one warning.

    Args:
        args: `report_to` names the trackers.
        trainer_callbacks: The callbacks of the Trainer, if known. Metrics then go to its own reporters, whatever the
            tracker.
    """

    def __init__(self, args: TrainingArguments, trainer_callbacks: Iterable[TrainerCallback] | None = None) -> None:
        self._reporters: list[TrainerCallback] = []
        with Attempt(NOT_SENT):
            self._find_reporters(args, trainer_callbacks)

    def _find_reporters(
        self, args: TrainingArguments, trainer_callbacks: Iterable[TrainerCallback] | None = None
    ) -> None:
        classes = get_reporting_integration_callbacks(args.report_to)
        if trainer_callbacks is not None:
            self._reporters = [callback for callback in trainer_callbacks if isinstance(callback, tuple(classes))]
            return
        self._reporters = [RUN_REPORTERS[cls]() for cls in classes if cls in RUN_REPORTERS]
        # Reporters without `on_log`, such as CodeCarbon's, log no rows.
        unsupported = [cls for cls in classes if cls not in RUN_REPORTERS and cls.on_log is not TrainerCallback.on_log]
        if unsupported:
            logger.warning(
                "The embedding metrics are not sent to %s. Call callback.attach(trainer) before trainer.train().",
                ", ".join(cls.__name__ for cls in unsupported),
            )

    def log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Log metrics at `state.global_step`. If that fails, a warning is logged and nothing is sent any more."""
        with Attempt(NOT_SENT) as attempt:
            for reporter in self._reporters:
                reporter.on_log(args, state, control, logs=dict(metrics), **kwargs)
        if attempt.failed:
            self._reporters = []

    def close(self) -> None:
        """Close the files opened here at the end of training. Logging again reopens them."""
        for reporter in self._reporters:
            if isinstance(reporter, _TensorBoardRun):
                reporter.close()


def close_reporters(reporters: ForwardingReporters | None) -> None:
    """Close reporters at the end of training; if that fails, a warning is logged.

    Args:
        reporters: The reporters, if there are any.
    """
    with Attempt("The file with the embedding metrics for TensorBoard may be incomplete"):
        if reporters is not None:
            reporters.close()


class _TensorBoardRun(TrainerCallback):
    """Add an event file to the folder of the Trainer's writer."""

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
    """Log to the active W&B run, whose x-axis is `train/global_step`."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        run = import_module("wandb").run
        if run is not None:
            run.log({**rewrite_logs(logs), "train/global_step": state.global_step})


class _MLflowRun(TrainerCallback):
    """Log to the innermost active MLflow run of this thread."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        mlflow = import_module("mlflow")
        if mlflow.active_run() is not None:  # otherwise, MLflow would start a run
            metrics = {re.sub(r"[^0-9A-Za-z_\-. :/]", "_", key): value for key, value in logs.items()}
            mlflow.log_metrics(metrics, step=state.global_step, synchronous=False)


class _TrackioRun(TrainerCallback):
    """Log to the active trackio run."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        trackio = import_module("trackio")
        run = trackio.context_vars.current_run.get()
        if run is None:
            return
        # The x-axis of trackio is its own row counter. Reuse the number of the loss row just logged, so that later
        # losses keep their numbers.
        next_step = getattr(run, "_next_step", None)
        step = None if next_step is None else max(next_step - 1, 0)
        trackio.log({**rewrite_logs(logs), "train/global_step": state.global_step}, step=step)


# Reporters that log to the active run of a tracker instead of starting one.
RUN_REPORTERS: dict[type[TrainerCallback], type[TrainerCallback]] = {
    DagsHubCallback: _MLflowRun,
    MLflowCallback: _MLflowRun,
    TensorBoardCallback: _TensorBoardRun,
    TrackioCallback: _TrackioRun,
    WandbCallback: _WandbRun,
}


def _newest_event_folder(output_dir: Path) -> str | None:
    """Find the folder of the Trainer's writer; `None` if the user removed the Trainer's TensorBoard callback."""
    # The name of the default folder contains the start time, so it cannot be computed again.
    events = [*Path(output_dir, "runs").rglob(EVENT_FILES)]
    logging_dir = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if logging_dir:
        events += Path(logging_dir).expanduser().glob(EVENT_FILES)
    return str(max(events, key=os.path.getmtime).parent) if events else None
