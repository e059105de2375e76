"""Attempt: errors become one warning; settings errors and interruptions are raised."""

from __future__ import annotations

import logging

import pytest

from defemb_callbacks.attempt import Attempt


def test_an_error_is_one_warning_with_its_reason(caplog) -> None:
    with Attempt("The page is not saved") as attempt:
        raise OSError(28, "No space\nleft on device")
    assert attempt.failed
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "The page is not saved. OSError: [Errno 28] No space left on device"


def test_an_error_without_a_text_is_named(caplog) -> None:
    with Attempt("The page is not saved"):
        raise MemoryError
    assert caplog.messages == ["The page is not saved. MemoryError"]


def test_the_traceback_is_logged_for_debugging(caplog) -> None:
    caplog.set_level(logging.DEBUG)
    with Attempt("The page is not saved"):
        raise OSError("full")
    assert caplog.records[-1].exc_info is not None


def test_success_is_silent(caplog) -> None:
    with Attempt("The page is not saved") as attempt:
        pass
    assert not attempt.failed
    assert not caplog.records


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_fatal_errors_and_interruptions_are_raised(error) -> None:
    with pytest.raises(error), Attempt("The page is not saved", ValueError):
        raise error
