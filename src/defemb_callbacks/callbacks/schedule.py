"""When a training run is measured, and how much time measuring has taken."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

MAX_MEASUREMENTS = 20  # between start and end: enough for a curve

# Maximum share of the run time. Together with start, end and pictures this stays below 1 % of a ten-minute run.
TIME_BUDGET = 0.005

# Seconds that are always allowed, so that short runs have a curve too.
LEAST_BUDGET = 1.0


class MeasuringSchedule:
    """Decide at which steps to measure, within a time budget.

    Args:
        every: Measure every `every` steps, whatever it costs. `None` measures at the last step and at most 20 times
            before it, evenly spaced, and skips a measurement if all measuring, including that one, would take more
            than one second and 0.5 % of the time since this object was created.
        max_steps: Total number of training steps.

    Attributes:
        last_step: Step of the last measurement; -1 before the first one.
        seconds: Total time spent on measuring.

    Example:
        >>> schedule = MeasuringSchedule(every=50, max_steps=120)
        >>> [step for step in (40, 50, 100, 120) if schedule.is_due(step)]
        [50, 100]
    """

    def __init__(self, every: int | None, max_steps: int) -> None:
        self.every = every
        self.max_steps = max_steps
        self.last_step = -1
        self.seconds = 0.0
        self._last_duration = 0.0
        self._start_time = time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Return whether to measure at this step.

        All processes must call this; they all get the same answer.
        """
        if self.every:
            return step % self.every == 0
        if step >= self.max_steps:
            return True
        return (step - self.last_step) * MAX_MEASUREMENTS >= self.max_steps and self.is_affordable()

    def is_affordable(self) -> bool:
        """Return whether one more measurement fits the time budget; always `True` if `every` is set.

        All processes must call this; they all get the answer of the main process, because clocks differ.
        """
        if self.every:
            return True
        elapsed = time.perf_counter() - self._start_time
        answer = [self.seconds + self._last_duration <= max(LEAST_BUDGET, TIME_BUDGET * elapsed)]
        if PartialState().num_processes > 1:
            broadcast_object_list(answer)
        return answer[0]

    @contextmanager
    def measuring(self, step: int) -> Iterator[None]:
        """Time the measurement at this step. A block that raises does not count."""
        start = time.perf_counter()
        yield
        self._last_duration = time.perf_counter() - start
        self.seconds += self._last_duration
        self.last_step = step
