"""When a run is measured, and what that has cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

MOST_ROWS = 20  # measurements between start and end: enough for a curve

# Share of a run's time; start, end and pictures, which have their price, then come out below 1 % of ten minutes.
BUDGET = 0.005


class MeasuringSchedule:
    """Says when to measure, so that curves are complete and nobody waits for them.

    Args:
        every: measure every so many steps, whatever it costs. `None`: at most 20 times, evenly, each time only if all
            measuring, that one included, takes less than 0.5 % of the time since this object was made; and at the end.
        max_steps: length of the run.

    Attributes:
        last_step: where the run was measured last; -1 before.
        seconds: what all measuring has taken.

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
        self._latest = 0.0
        self._began = time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Whether to measure in the row of the log of this step. Every process has to ask, and gets the same answer."""
        if self.every:
            return step % self.every == 0
        if step >= self.max_steps:
            return True
        return (step - self.last_step) * MOST_ROWS >= self.max_steps and self.is_affordable()

    def is_affordable(self) -> bool:
        """Whether one more measurement keeps within the budget; always, where the user has set the steps.

        Every process has to ask, and gets the same answer: the main one's, as clocks differ.
        """
        if self.every:
            return True
        elapsed = time.perf_counter() - self._began
        answer = [self.seconds + self._latest <= BUDGET * elapsed]
        if PartialState().num_processes > 1:
            broadcast_object_list(answer)
        return answer[0]

    @contextmanager
    def measuring(self, step: int) -> Iterator[None]:
        """The time that the block takes is that of the measurement at this step."""
        began = time.perf_counter()
        yield
        self._latest = time.perf_counter() - began
        self.seconds += self._latest
        self.last_step = step
