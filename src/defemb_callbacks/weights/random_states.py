"""torch's random states, on every kind of accelerator."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

CPU = torch.device("cpu")


def current_accelerator() -> torch.device:
    """Return the accelerator that torch uses in this process, such as `cuda`, `mps` or `xpu`; without one, the CPU."""
    return torch.accelerator.current_accelerator() or CPU


def same_random_states(device: torch.device | None = None) -> AbstractContextManager[None]:
    """Context manager that restores torch's random states of the CPU and of an accelerator.

    Args:
        device: The device that draws random numbers. `None` restores the states of all devices of this process.

    Example:
        >>> before = torch.get_rng_state()
        >>> with same_random_states():
        ...     _ = torch.manual_seed(7)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    chosen = current_accelerator() if device is None else device
    devices = range(torch.accelerator.device_count()) if device is None else [chosen]
    # The state of the CPU is always restored. By default, older versions of torch assume CUDA.
    return torch.random.fork_rng([] if chosen.type == "cpu" else devices, device_type=chosen.type)
