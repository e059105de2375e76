"""Fixtures for tests and doctests: a private cache, no network, a fixed seed."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# huggingface_hub and torch read these once, when they are imported: a fixture would be too late.
os.environ["HF_HUB_OFFLINE"] = "1"
# OpenMP threads spin while they wait: on a busy machine, tiny models run a hundred times slower on two threads than on
# one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from transformers.utils import logging


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let the tests of a file share a process and its fixtures, but divide the architectures, which share none."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if file.endswith("test_every_architecture.py") else file

    return Scheduler(config, log)


@pytest.fixture(scope="module", autouse=True)
def imports_are_frozen() -> None:
    """Leave what has been imported out of garbage collections: accelerate starts one at the end of each training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep module- and session-scoped fixtures out of the user's cache."""
    folder = tmp_path_factory.mktemp("defemb-session-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEFEMB_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """The cache waits until its files are on the disk, which only matters after a power failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def own_cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test, so that no test depends on what another one left there."""
    # Not `mktemp` of pytest, which lists the folders of all tests to number the next one.
    folder = Path(tempfile.mkdtemp(dir=session_cache))
    monkeypatch.setenv("DEFEMB_CACHE", str(folder))
    return folder


@pytest.fixture
def shared_cache(own_cache: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache, shared by all test processes, for tests that build the whole of WordNet.

    The first test that needs it builds it, while the others wait for its lock.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # common to all workers
    monkeypatch.setenv("DEFEMB_CACHE", str(folder / "defemb-shared-cache"))
    return folder / "defemb-shared-cache"


@pytest.fixture(autouse=True)
def global_state_is_restored() -> Iterator[None]:
    """A Trainer sets the verbosity of transformers; autocast left on would make later tests compute in bfloat16."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    autocast = torch.is_autocast_enabled("cpu")
    torch.set_autocast_enabled("cpu", False)
    assert not autocast, "autocast was left on"


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)
