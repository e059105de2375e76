"""MeasuringSchedule: the user's steps are used; without them, measuring stays within the time budget."""

from __future__ import annotations

from typing import Any

import pytest

from defemb_callbacks.callbacks import schedule as module
from defemb_callbacks.callbacks.schedule import MeasuringSchedule


class Clock:
    """A clock that is advanced manually."""

    now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def run(
    schedule: MeasuringSchedule, clock: Clock, steps: int, step_seconds: float, measure_seconds: float
) -> list[int]:
    """Returns the measured steps of a run that logs each step."""
    measured = []
    with schedule.measuring(0):
        clock.now += measure_seconds
    for step in range(1, steps + 1):
        clock.now += step_seconds
        if schedule.is_due(step):
            with schedule.measuring(step):
                clock.now += measure_seconds
            measured.append(step)
    return measured


def test_cheap_measurements_are_taken_20_times_evenly(clock) -> None:
    schedule = MeasuringSchedule(None, 1000)
    assert run(schedule, clock, 1000, step_seconds=1.0, measure_seconds=0.1) == list(range(50, 1001, 50))


@pytest.mark.parametrize("measure_seconds", [0.3, 0.5, 1.0, 2.5])
def test_expensive_measurements_stay_within_the_time_budget(clock, measure_seconds) -> None:
    schedule = MeasuringSchedule(None, 1000)
    measured = run(schedule, clock, 1000, step_seconds=1.0, measure_seconds=measure_seconds)
    between = [step for step in measured if step < 1000]
    assert measured[-1] == 1000
    assert (1 + len(between)) * measure_seconds <= 0.005 * (1000 + schedule.seconds)
    assert len(between) >= int(0.005 * 1000 / measure_seconds) - 2
    assert schedule.seconds == pytest.approx((1 + len(measured)) * measure_seconds)


def test_a_short_run_is_measured_only_at_its_end(clock) -> None:
    assert run(MeasuringSchedule(None, 10), clock, 10, step_seconds=1.0, measure_seconds=3.0) == [10]


def test_a_short_run_has_a_curve_within_one_second(clock) -> None:
    schedule = MeasuringSchedule(None, 10)
    measured = run(schedule, clock, 10, step_seconds=1.0, measure_seconds=0.15)
    assert measured == [1, 2, 3, 4, 5, 10]
    assert schedule.seconds - 0.15 <= 1.0  # without the end, which is always measured


def test_the_users_steps_ignore_the_budget(clock) -> None:
    assert run(MeasuringSchedule(3, 10), clock, 10, step_seconds=1.0, measure_seconds=60.0) == [3, 6, 9]


def test_a_resumed_run_counts_from_its_step(clock) -> None:
    schedule = MeasuringSchedule(None, 100)
    with schedule.measuring(50):
        pass
    clock.now += 1
    assert [step for step in range(51, 57) if schedule.is_due(step)] == [55, 56]


def test_a_failed_measurement_is_not_counted(clock) -> None:
    schedule = MeasuringSchedule(None, 100)
    with pytest.raises(ValueError, match="NaN"), schedule.measuring(5):
        raise ValueError("NaN")
    assert (schedule.last_step, schedule.seconds) == (-1, 0.0)


def test_all_processes_use_the_answer_of_the_main_process(clock, monkeypatch) -> None:
    schedule = MeasuringSchedule(None, 1000)
    with schedule.measuring(0):
        clock.now += 1.0
    clock.now += 1.0
    monkeypatch.setattr(module, "PartialState", lambda: type("Two", (), {"num_processes": 2}))

    def from_main(answer: list[Any]) -> list[Any]:
        assert answer == [False]
        answer[0] = True
        return answer

    monkeypatch.setattr(module, "broadcast_object_list", from_main)
    assert schedule.is_due(50)
