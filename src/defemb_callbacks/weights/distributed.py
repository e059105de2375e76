"""This process's place in a distributed launch, and functions that coordinate with the other processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")


def this_process() -> PartialState:
    """Return accelerate's state of this process.

    On machines without an accelerator, a plain `PartialState()` would treat each process of `torchrun` as a run of its
    own.

    Example:
        >>> this_process().num_processes
        1
    """
    return PartialState(cpu=not torch.accelerator.is_available())


def main_process_first(function: Callable[[], T]) -> T:
    """Run a function on every process, first on the main process of each machine.

    The other processes then find in the cache what the main process has stored. An error is raised on the process
    where it occurs and does not block the others.

    Example:
        >>> main_process_first(lambda: "read")
        'read'
    """
    process = this_process()
    if process.num_processes == 1 or not process.is_local_main_process:
        process.wait_for_everyone()
        return function()
    try:
        return function()
    finally:
        process.wait_for_everyone()


def on_main_process(function: Callable[[], T]) -> T:
    """Run a function on the main process and return its result on all processes; errors are raised on all of them.

    Example:
        >>> on_main_process(lambda: "built")
        'built'
    """
    process = this_process()
    if process.num_processes == 1:
        return function()
    outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
    if process.is_main_process:
        try:
            outcome = [(function(), None)]
        except Exception as error:  # noqa: BLE001 - broadcast it, otherwise the other processes would wait forever
            outcome = [(None, error)]
    value, raised = broadcast_object_list(outcome)[0]
    if raised is not None:
        raise raised
    return value


def on_any_process(answer: bool) -> bool:
    """Return whether the answer of any process is yes. All processes must call this.

    Args:
        answer: The answer of this process.

    Example:
        >>> on_any_process(True)
        True
    """
    return answer if this_process().num_processes == 1 else any(gather_object([answer]))
