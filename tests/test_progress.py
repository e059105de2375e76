"""Long operations show a bar in a terminal and a line every 30 seconds elsewhere."""

from __future__ import annotations

import logging
import sys

import pytest
from transformers.utils import logging as transformers_logging

from defemb_callbacks import progress as module
from defemb_callbacks.progress import Display, ProgressBar, show_status, shown_on


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_30_seconds_where_there_is_no_terminal(clock) -> None:
    lines: list[str] = []
    with shown_on(Display(lines.append)), ProgressBar(1000, "Encoding definitions", "token") as progress:
        for _ in range(10):
            clock[0] += 10
            progress.update(100)
    assert lines == [
        "Encoding definitions: 300 of 1,000 tokens (30%).",
        "Encoding definitions: 600 of 1,000 tokens (60%).",
        "Encoding definitions: 900 of 1,000 tokens (90%).",
    ]


def test_a_bar_in_a_terminal(clock, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    lines: list[str] = []
    with shown_on(Display(lines.append)), ProgressBar(1000, "Encoding definitions", "token") as progress:
        clock[0] += 100
        progress.update(1000)
    captured = capsys.readouterr()
    assert "Encoding definitions: 100%" in captured.err
    assert captured.out == ""
    assert not lines


@pytest.mark.parametrize("disabled_by", ["the display", "transformers"])
def test_no_bar_if_bars_are_disabled(clock, monkeypatch, capsys, disabled_by) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    if disabled_by == "transformers":
        monkeypatch.setattr(transformers_logging, "_tqdm_active", False)
    with shown_on(Display(print, bar=disabled_by != "the display")), ProgressBar(10, "Reading", "text") as progress:
        progress.update(10)
    assert capsys.readouterr() == ("", "")


def test_status_lines_go_to_the_innermost_display_and_else_to_the_log(caplog) -> None:
    caplog.set_level(logging.INFO)
    outer, inner = list[str](), list[str]()
    with shown_on(Display(outer.append)) as display:
        with shown_on(Display(inner.append)):
            show_status("first")
        assert not display.used
        show_status("second")
        assert display.used
    show_status("third")
    assert (inner, outer, caplog.messages) == (["first"], ["second"], ["third"])
