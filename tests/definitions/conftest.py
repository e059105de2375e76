"""Fixtures for WordNet."""

from __future__ import annotations

from pathlib import Path

import pytest

from defemb_callbacks.definitions import wordnet
from tiny_wordnet import write_wordnet


@pytest.fixture
def tiny_dir(tmp_path: Path) -> Path:
    """Database files of a tiny WordNet."""
    return write_wordnet(tmp_path / "wordnet")


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without database files."""
    monkeypatch.delenv("WORDNET_DIR", raising=False)
    monkeypatch.setattr(wordnet, "DEBIAN_FOLDER", tmp_path / "absent")
