"""A training run inside another one, of which nothing is left in the process."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

_SHARED: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)
# With these `accelerate launch` tells a Trainer to shard its model.
_SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")


@contextlib.contextmanager
def isolated_training() -> Iterator[None]:
    """Train a model in here; afterwards random numbers and accelerate's shared state are what they were.

    `TrainingArguments` reset the state that all accelerators of a process share, and a Trainer seeds every generator.
    A Trainer around this one would go on with the other's precision, and with other random numbers. A model in here is
    not sharded, whatever `accelerate launch` was told to do with the one outside: its processes train copies (DDP).

    Example:
        >>> before = torch.get_rng_state()
        >>> with isolated_training():
        ...     _ = torch.manual_seed(7)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    shared = [(state, dict(state._shared_state)) for state in _SHARED]
    python, numpy = random.getstate(), np.random.get_state()
    sharding = {name: os.environ.pop(name) for name in _SHARDING if name in os.environ}
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        os.environ.update(sharding)
        random.setstate(python)
        np.random.set_state(numpy)
        for state, values in shared:
            # In place: accelerators that exist hold this very dict.
            state._shared_state.clear()
            state._shared_state.update(values)
