"""The top-level package: its public names, and an import without side effects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import defemb_callbacks

ROOT = Path(__file__).resolve().parents[2]

# Dependencies that a training script imports anyway. Importing these does have side effects.
IMPORT_DEPENDENCIES = """
import accelerate, datasets, filelock, huggingface_hub, numpy, pyarrow, pyarrow.parquet, safetensors.torch, scipy, torch
import tqdm.auto, transformers, typer, xxhash
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
"""
STATE = """
import json, logging, os, random, sys, warnings
def state():
    loggers = [logging.getLogger(name) for name in ("", "defemb_callbacks", "transformers", "datasets")]
    return {
        "logging": [(logger.level, list(map(str, logger.handlers)), logger.propagate) for logger in loggers],
        "warnings": list(map(str, warnings.filters)),
        "random": hash(random.getstate()),
        "numpy": hash(numpy.random.get_state()[1].tobytes()),
        "torch": hash(torch.get_rng_state().numpy().tobytes()),
        "torch settings": [torch.get_num_threads(), torch.is_grad_enabled(), str(torch.get_default_dtype())],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "signals": str(__import__("signal").getsignal(2)),
    }
"""

OPTIONAL = ["matplotlib", "wn", "sklearn", "sentence_transformers", "peft", "tensorboard", "wandb"]


def fresh_python(code: str, folder: Path) -> tuple[Any, str]:
    """Run `code` in a new interpreter; return the JSON that it prints, and its standard error."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "DEFEMB_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_public_names_exist_and_have_docstrings():
    for name in defemb_callbacks.__all__:
        assert getattr(defemb_callbacks, name).__doc__, name
        assert getattr(defemb_callbacks, name).__module__.startswith("defemb_callbacks."), name
    star: dict[str, Any] = {}
    exec("from defemb_callbacks import *", star)
    assert star.keys() - {"__builtins__"} == set(defemb_callbacks.__all__)


def test_all_lists_exactly_the_public_names():
    for name in defemb_callbacks.__all__:
        getattr(defemb_callbacks, name)  # names are imported when they are first used
    public = {
        name
        for name in dir(defemb_callbacks)
        if not name.startswith("_") and not isinstance(getattr(defemb_callbacks, name), ModuleType)
    }
    assert public == set(defemb_callbacks.__all__)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'defemb_callbacks' has no attribute 'DefinitionEMB'"):
        defemb_callbacks.DefinitionEMB  # noqa: B018


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an import changes after that of the dependencies, in a process of its own."""
    folder = tmp_path_factory.mktemp("import")
    code = f"""
{IMPORT_DEPENDENCIES}
{STATE}
optional = lambda: [name for name in {OPTIONAL} if name in sys.modules]
warnings.filterwarnings("error", module="defemb_callbacks")
print("--", file=sys.stderr, flush=True)
before, loaded = state(), optional()
from defemb_callbacks import *
print(json.dumps({{"before": before, "after": state(), "loaded": [loaded, optional()]}}))
"""
    found, errors = fresh_python(code, folder)
    return {**found, "errors": errors.rpartition("--")[2].strip(), "files": list(folder.iterdir())}


def test_import_has_no_side_effects(imported: dict[str, Any]) -> None:
    for part, value in imported["before"].items():
        assert imported["after"][part] == value, part
    assert imported["files"] == []


def test_import_prints_and_warns_nothing(imported: dict[str, Any]) -> None:
    assert imported["errors"] == ""


def test_import_loads_no_optional_dependency(imported: dict[str, Any]) -> None:
    # transformers imports some of these itself if they are installed.
    before, after = imported["loaded"]
    assert after == before
    assert not {"matplotlib", "wn"} & set(after)


def test_heavy_dependencies_are_imported_when_they_are_used(tmp_path):
    code = "import json, sys, torch, transformers; before = set(sys.modules); import defemb_callbacks; "
    code += "from defemb_callbacks import DefinitionEMBConfig; DefinitionEMBConfig(); print(json.dumps("
    code += "[name for name in sys.modules if name.partition('.')[0] in ('datasets', 'scipy', 'pyarrow')]))"
    loaded, _ = fresh_python(code, tmp_path)
    assert loaded == []


def test_import_takes_at_most_15_percent_longer_than_that_of_transformers(tmp_path):
    def seconds(modules: str) -> float:
        code = f"import time; start = time.perf_counter(); import {modules}; print(time.perf_counter() - start)"
        return min(float(fresh_python(code, tmp_path)[0]) for _ in range(2))

    assert seconds("defemb_callbacks") <= 1.15 * seconds("transformers, torch")
