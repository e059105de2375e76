"""Status lines and progress bars of long operations. The Trainer run, or the command line, decides where they go."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType

from transformers.utils import logging as transformers_logging

logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0  # between two lines where there is no terminal for a bar


@dataclass
class Display:
    """Where long operations show their status.

    Attributes:
        line: Shows one line of text.
        bar: Whether a bar may be shown in a terminal; otherwise progress is shown as lines.
        used: Whether a line was shown that announces a build.
    """

    line: Callable[[str], None]
    bar: bool = True
    used: bool = False


_DISPLAY: ContextVar[Display | None] = ContextVar("display", default=None)


@contextmanager
def shown_on(display: Display) -> Iterator[Display]:
    """Use a display for the long operations inside the block.

    Args:
        display: Where they show their status.

    Example:
        >>> with shown_on(Display(print)):
        ...     show_status("Reading a dictionary.")
        Reading a dictionary.
    """
    token = _DISPLAY.set(display)
    try:
        yield display
    finally:
        _DISPLAY.reset(token)


def _display() -> Display:
    return _DISPLAY.get() or Display(logger.info)


def show_status(text: str, *, is_build: bool = True) -> None:
    """Show a line of text on the current display; without one, log it at level INFO.

    Args:
        text: The line.
        is_build: Whether it announces that embeddings are built.
    """
    display = _display()
    display.used |= is_build
    display.line(text)


class ProgressBar:
    """The progress of a long operation: a bar in a terminal, elsewhere a line every 30 seconds.

    Args:
        total: Number of units.
        title: What is done, such as "Encoding definitions".
        unit: Name of one unit, such as "token".

    Attributes:
        n: Number of units done.

    Example:
        >>> with ProgressBar(total=3, title="Encoding definitions", unit="token") as progress:
        ...     progress.update(3)
        >>> progress.n
        3
    """

    def __init__(self, total: int, title: str, unit: str) -> None:
        self.total, self.title, self.unit, self.n = total, title, unit, 0
        self._display = _display()
        self._shown = time.monotonic()
        # transformers' bar respects `disable_progress_bar()`.
        self._bar = None
        is_main_process = os.environ.get("RANK", "0") == "0"
        if self._display.bar and is_main_process and sys.stderr.isatty():
            self._bar = transformers_logging.tqdm(total=total, desc=title, unit=unit, unit_scale=True)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def update(self, number: int) -> None:
        """Count units as done.

        Args:
            number: Number of units.
        """
        self.n += number
        if self._bar is not None:
            self._bar.update(number)
        elif time.monotonic() - self._shown >= LINE_SECONDS:
            self._shown = time.monotonic()
            share = f" ({self.n / self.total:.0%})" if self.total else ""
            self._display.line(f"{self.title}: {self.n:,} of {self.total:,} {self.unit}s{share}.")
