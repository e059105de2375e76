"""Where sums that need float64 are computed."""

from __future__ import annotations

import torch


def float64_device(device: torch.device) -> torch.device:
    """Return a device, or the CPU if the device has no float64, as Apple's and some of Intel's GPUs.

    Args:
        device: The device of the tensors.

    Example:
        >>> float64_device(torch.device("cpu"))
        device(type='cpu')
    """
    if device.type == "cpu":
        return device
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device
