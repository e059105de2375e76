"""Attempts that may fail: their errors become warnings, because they must not end a training run."""

from __future__ import annotations

import logging
from types import TracebackType

logger = logging.getLogger(__name__)


class Attempt:
    """A block whose errors are logged as a warning instead of being raised.

    Args:
        consequence: What the user goes without if the block fails; the start of the warning.
        *fatal: Errors that are raised nevertheless, such as those of wrong settings before training.

    Attributes:
        failed: Whether the block raised an error.

    Example:
        >>> with Attempt("The page is not saved") as attempt:
        ...     raise OSError(28, "No space left on device")
        >>> attempt.failed
        True
    """

    def __init__(self, consequence: str, *fatal: type[Exception]) -> None:
        self.consequence, self.fatal = consequence, fatal
        self.failed = False

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        # Not KeyboardInterrupt and SystemExit.
        if not isinstance(error, Exception) or isinstance(error, self.fatal):
            return False
        self.failed = True
        reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        logger.warning("%s. %s", self.consequence, reason)
        logger.debug("The error in full:", exc_info=error)
        return True
