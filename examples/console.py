"""What the example scripts show while they run: a line with the time of each phase, and one progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Load models without a bar for each, and without a report that each head has new weights."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class Phases:
    """Print a line for each finished phase of a script, with its time.

    Example:
        >>> seconds = Phases().done("Read the data")
           0.0 s  Read the data
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def done(self, text: str) -> float:
        """Print the line of the phase that ends now, and return its time in seconds. The next one begins."""
        seconds = time.perf_counter() - self._start
        tqdm.write(f"{seconds:6.1f} s  {text}", file=sys.stdout)  # above the progress bar, if one is shown
        sys.stdout.flush()
        self._start += seconds
        return seconds


class TrainingBar(TrainerCallback):
    """One progress bar for several training runs, shown in terminals only.

    Args:
        title: What is done.
        runs: Number of runs, which have the same number of steps.
    """

    def __init__(self, title: str, runs: int = 1) -> None:
        self.title, self.runs = title, runs
        self._bar: Any = None

    def instead_of_its_own(self, trainer: Trainer) -> Trainer:
        """Show this bar instead of that of a Trainer, which also prints each log row as a dict."""
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)
        return trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar when the first run begins."""
        if self._bar is None:
            total = self.runs * state.max_steps
            # `disable=None` hides it where there is no terminal.
            disable = None if state.is_world_process_zero else True
            self._bar = tqdm(desc=self.title, total=total, unit="step", leave=False, disable=disable)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count a step."""
        self._bar.update()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the bar when the last run ends."""
        self.runs -= 1
        if self.runs == 0:
            self._bar.close()
