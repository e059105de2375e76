"""Which of the processes of a launch this one is."""

from __future__ import annotations

import torch
from accelerate import PartialState


def this_process() -> PartialState:
    """Accelerate's view of the launch: one state for the whole process, whoever asks first.

    Without an accelerator `PartialState()` alone takes the processes of `torchrun` for single ones.

    Example:
        >>> this_process().num_processes
        1
    """
    return PartialState(cpu=not torch.accelerator.is_available())
