"""Own instances of the Trainer's reporters, for metrics that are known only after theirs have run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks


class ForwardingReporters:
    """Sends metrics to every tracker of a run, at the step of the Trainer's own row.

    The Trainer's reporters stand before user callbacks and have logged a row when these see it. A second instance of
    each adds to the same run: W&B knows the run of the process, TensorBoard merges the event files of one folder.

    Args:
        args: `report_to` names the trackers.
    """

    def __init__(self, args: TrainingArguments) -> None:
        self._reporters: list[TrainerCallback] = []
        for reporter_class in get_reporting_integration_callbacks(args.report_to):
            name = reporter_class.__name__
            # With these variables MLflow's callback would not join the run, but start another one.
            if name == "MLflowCallback" and {"MLFLOW_NESTED_RUN", "MLFLOW_RUN_ID"} & os.environ.keys():
                continue
            reporter = reporter_class()
            if name == "TensorBoardCallback" and reporter.logging_dir is None:
                # Its default is named after the second in which the run began, so it cannot be computed again.
                reporter.logging_dir = _newest_event_folder(Path(str(args.output_dir)))
                if reporter.logging_dir is None:  # the Trainer's own was removed
                    continue
            self._reporters.append(reporter)

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
        """End what the own instances hold open; the runs stay the Trainer's."""


def _newest_event_folder(folder: Path) -> str | None:
    events = sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime)
    return str(events[-1].parent) if events else None
