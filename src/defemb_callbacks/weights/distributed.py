"""Which of the processes of a launch this one is, and how they agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def this_process() -> PartialState:
    """Accelerate's view of the launch: one state for the whole process, whoever asks first.

    Without an accelerator `PartialState()` alone takes the processes of `torchrun` for single ones.

    Example:
        >>> this_process().num_processes
        1
    """
    return PartialState(cpu=not torch.accelerator.is_available())


def main_first(do: Callable[[], T]) -> T:
    """Do the same on every process, on each machine's main one first: the others find what it has put into the cache.

    An error is raised where it occurs; it keeps no other process waiting.

    Example:
        >>> main_first(lambda: "read")
        'read'
    """
    process = this_process()
    if process.num_processes == 1 or not process.is_local_main_process:
        process.wait_for_everyone()
        return do()
    try:
        return do()
    finally:
        process.wait_for_everyone()


def only_main(do: Callable[[], T]) -> T:
    """Do something on the main process alone, and give the result to all; an error is raised on all of them.

    Example:
        >>> only_main(lambda: "built")
        'built'
    """
    process = this_process()
    if process.num_processes == 1:
        return do()
    outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
    if process.is_main_process:
        try:
            outcome = [(do(), None)]
        except Exception as error:  # the others would wait for ever
            outcome = [(None, error)]
    value, raised = broadcast_object_list(outcome)[0]
    if raised is not None:
        raise raised
    return value
