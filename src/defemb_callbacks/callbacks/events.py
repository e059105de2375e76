"""Events of a Trainer run whose errors must not end it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from transformers import TrainerState

from defemb_callbacks.attempt import Attempt


def stops_measuring(event: Callable[..., None]) -> Callable[..., None]:
    """Decorate an event of a monitor: if it raises an error, a warning is logged and the monitor stops measuring.

    Args:
        event: A method of a callback with the attribute `_is_measuring`.
    """

    @wraps(event)
    def run(self: Any, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        with Attempt(f"Embedding metrics stop at step {state.global_step}") as attempt:
            event(self, args, state, control, **kwargs)
        if attempt.failed:
            self._is_measuring = False

    return run
