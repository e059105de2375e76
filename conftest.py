"""For the tests and the doctests alike: a cache of their own, no network, a fixed seed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Both are read once, at the first import of huggingface_hub and of torch: a fixture would come too late.
os.environ["HF_HUB_OFFLINE"] = "1"
# OpenMP's threads spin while they wait for one another: on a busy machine, two of them run tiny models a hundred times
# slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from transformers.utils import logging


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps fixtures wider than one test out of the user's cache as well."""
    folder = tmp_path_factory.mktemp("defemb-session-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEFEMB_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def own_cache(session_cache: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test, so that none passes because of what another one has left there."""
    folder = tmp_path_factory.mktemp("defemb-cache")
    monkeypatch.setenv("DEFEMB_CACHE", str(folder))
    return folder


@pytest.fixture
def shared_cache(own_cache: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache for all tests that build the whole WordNet, which takes minutes, in whichever process they run.

    The first to ask for it builds, and the others wait for its lock.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes of this run
    monkeypatch.setenv("DEFEMB_CACHE", str(folder / "defemb-shared-cache"))
    return folder / "defemb-shared-cache"


@pytest.fixture(autouse=True)
def nothing_left_to_other_tests() -> Iterator[None]:
    """A Trainer sets how much transformers logs in its process; autocast that is not left would compute in bfloat16."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    autocast = torch.is_autocast_enabled("cpu")
    torch.set_autocast_enabled("cpu", False)
    assert not autocast, "autocast was left on"


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)
