"""Run functions in forked processes, which tests kill or limit."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

PROCESSES = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


def forked(work: Callable[..., Any], *arguments: Any) -> Any:
    process = PROCESSES.Process(target=work, args=arguments)
    process.start()
    return process


def result_of(work: Callable[[], Any]) -> Any:
    """Return the result of `work` in a forked process, or its error as text; limits set there end with it."""

    def run(connection: Any) -> None:
        try:
            connection.send(work())
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")

    here, there = PROCESSES.Pipe()
    process = forked(run, there)
    assert here.poll(60)
    outcome = here.recv()
    process.join(10)
    return outcome
