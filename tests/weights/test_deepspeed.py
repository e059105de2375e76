"""DeepSpeed ZeRO-2 and 3: rows are written where the optimizer trains them, before or after the model is prepared."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import _found
from runs import defined_ids
from tiny import wordpiece_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One process on the CPU: accelerate does not support multi-process DeepSpeed without an accelerator."""
    # Installed in a separate folder, as accelerate would import it into every process, which takes five seconds.
    spec = importlib.util.find_spec("deepspeed")
    apart = Path(sys.prefix) / "deepspeed" if spec is None else Path(str(spec.origin)).parents[1]
    apart = _found(apart, "DeepSpeed", "make deepspeed")
    folder = tmp_path_factory.mktemp("deepspeed")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([*filter(None, sys.path), str(apart)])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DEFEMB_CACHE": str(folder / "cache")}
    # This makes accelerate treat the process as part of a DeepSpeed launch.
    env |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true", "RANK": "0", "LOCAL_RANK": "0"}
    env |= {"WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = [sys.executable, str(Path(__file__).parents[1] / "deepspeed_run.py"), str(folder)]
    with (folder / "log").open("w") as log:
        done = subprocess.run(command, env=env, stdout=log, stderr=subprocess.STDOUT, timeout=180)
    assert done.returncode == 0, (folder / "log").read_text()[-5000:]
    return {
        file.stem: load_file(file) | json.loads(file.with_suffix(".json").read_text())
        for file in folder.glob("*.safetensors")
    }


@pytest.mark.parametrize("case", ["zero2-init", "zero2-late", "zero3-init", "zero3-late", "zero3-data"])
def test_training_continues_from_the_written_rows(outcomes: dict[str, Any], case: str) -> None:
    found, reference = outcomes[case], outcomes["reference"]
    assert found["engine"] == "DeepSpeedEngine"
    if case == "zero3-init":
        assert found["shape"] == [0]  # it was sharded when it was loaded
    ids = defined_ids(wordpiece_tokenizer())
    rebuilt = reference["rebuilt by counts" if case == "zero3-data" else "rebuilt"]
    torch.testing.assert_close(found["begin"], rebuilt, rtol=0, atol=1e-6)
    lost = (reference["untouched"] - rebuilt)[ids].norm()
    for later in ("first", "end"):
        assert 0 < (found[later] - rebuilt)[ids].norm() < lost / 10


def test_all_cases_train_equally(outcomes: dict[str, Any]) -> None:
    """Late and early writes are equivalent, and metrics of sharded tables equal those of whole ones."""
    first = outcomes["zero2-init"]
    for case in ("zero2-late", "zero3-init", "zero3-late"):
        assert outcomes[case]["losses"] == pytest.approx(first["losses"], rel=1e-4)
        assert outcomes[case]["isotropy"] == pytest.approx(first["isotropy"], rel=1e-5)


def test_the_rows_are_saved(outcomes: dict[str, Any]) -> None:
    assert torch.equal(outcomes["zero2-init"]["saved"], outcomes["zero2-init"]["end"])


@pytest.mark.parametrize("stage", [2, 3])
def test_the_float32_master_copies_of_bfloat16_weights_are_written_too(outcomes: dict[str, Any], stage: int) -> None:
    """Otherwise the optimizer's first step restores the old rows."""
    assert (outcomes[f"zero{stage}-bfloat16"]["first"][[7, 3, 470, 100]] - 9.0).abs().max() < 0.1


def test_training_only_new_rows_is_refused(outcomes: dict[str, Any]) -> None:
    assert outcomes["refused"]["error"].startswith("DeepSpeed trains copies of the weights")
