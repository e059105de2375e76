"""The few metrics that are shown where all of them would be a wall of figures."""

from __future__ import annotations

from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

# What stands in the progress bar and beside an evaluation's metrics.
HEADLINES = tuple(f"defemb/{metric}/{group}" for metric in ("isotropy", "relation_auc") for group in ("all", "rare"))
SCREENS = (PrinterCallback, ProgressCallback)  # these print whole rows


class OnlyHeadlines(TrainerCallback):
    """Takes all other metrics out of a row that passes: for the place between the trackers and the screen."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for key in [key for key in logs or () if key.startswith("defemb/") and key not in HEADLINES]:
            del logs[key]


def shield_screen(callbacks: list[TrainerCallback]) -> None:
    """Let only the headlines reach what prints whole rows.

    Args:
        callbacks: those of a Trainer, in the order in which they are called; one is added.
    """
    screens = [position for position, callback in enumerate(callbacks) if isinstance(callback, SCREENS)]
    callbacks.insert(screens[0] if screens else len(callbacks), OnlyHeadlines())


def own_metric(metric_for_best_model: str | None) -> str | None:
    """The key of ours that the best checkpoint is chosen by, if it is one.

    Example:
        >>> own_metric("eval_defemb/isotropy/rare"), own_metric("eval_loss")
        ('defemb/isotropy/rare', None)
    """
    key = (metric_for_best_model or "").removeprefix("eval_")
    return key if key.startswith("defemb/") else None
