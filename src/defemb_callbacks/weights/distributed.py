"""This process's place in a distributed launch, and functions that coordinate with the other processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import Tensor

T = TypeVar("T")

# Elements of a tensor that are on the device at once while it is broadcast.
BROADCAST_BLOCK = 1 << 26


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

    If the result is a dataclass, its tensors are broadcast as tensors and arrive on the CPU; its other fields are
    pickled, as is any other result.

    Example:
        >>> on_main_process(lambda: "built")
        'built'
    """
    process = this_process()
    if process.num_processes == 1:
        return function()
    value: Any = None
    sent: list[Any] = [None]
    tensors: dict[str, Tensor] = {}
    if process.is_main_process:
        try:
            value = function()
        except Exception as error:  # noqa: BLE001 - broadcast it, otherwise the other processes would wait forever
            sent = [(error, None, value)]
        else:
            tensors, others = _fields(value)
            sent = [(None, type(value), others) if tensors else (None, None, value)]
    raised, kind, others = broadcast_object_list(sent)[0]
    if raised is not None:
        raise raised
    if kind is None:
        return others
    tensors = broadcast_tensors(tensors)
    return value if process.is_main_process else kind(**others, **tensors)


def broadcast_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Broadcast the main process's tensors to the CPU of all processes, which must all call this.

    Only shapes and dtypes are pickled. At most 2²⁶ elements are on the device at once.

    Args:
        tensors: Tensors by name; ignored on the other processes.

    Example:
        >>> broadcast_tensors({"ids": torch.arange(3)})
        {'ids': tensor([0, 1, 2])}
    """
    process = this_process()
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if process.num_processes == 1:
        return found
    layout = broadcast_object_list([{name: (tensor.shape, tensor.dtype) for name, tensor in found.items()}])[0]
    if not process.is_main_process:
        found = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in layout.items()}
    for tensor in found.values():
        for block in tensor.view(-1).split(BROADCAST_BLOCK):
            received = broadcast(block.to(process.device))
            if not process.is_main_process:
                block.copy_(received)
    return found


def _fields(value: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The fields of a dataclass that are tensors, and its other fields; none if it is not a dataclass."""
    if not dataclasses.is_dataclass(value):
        return {}, {}
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    tensors = {name: part for name, part in fields.items() if isinstance(part, Tensor)}
    return tensors, {name: part for name, part in fields.items() if name not in tensors}


def on_any_process(answer: bool) -> bool:
    """Return whether the answer of any process is yes. All processes must call this.

    Args:
        answer: The answer of this process.

    Example:
        >>> on_any_process(True)
        True
    """
    return answer if this_process().num_processes == 1 else any(gather_object([answer]))
