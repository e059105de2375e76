"""Fixtures for the callbacks."""

from __future__ import annotations

import io
from typing import Any

import pytest
from matplotlib.figure import Figure

_PICTURES: dict[str, bytes] = {}  # by format


@pytest.fixture(autouse=True)
def pictures_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the first picture of each format in place of all others, which takes most of the time of a tiny run.

    What pictures show is tested in `tests/reporting`.
    """
    savefig = Figure.savefig

    def save(figure: Figure, target: Any, format: str = "png", **settings: Any) -> None:
        if format not in _PICTURES:
            picture = io.BytesIO()
            savefig(figure, picture, format=format, **settings)
            _PICTURES[format] = picture.getvalue()
        if isinstance(target, io.BytesIO):
            target.write(_PICTURES[format])
        else:
            target.write_bytes(_PICTURES[format])

    monkeypatch.setattr(Figure, "savefig", save)
