"""gpu.py: each part runs with tiny models on the CPU; without a GPU, its figures are not those of one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setenv("DEFEMB_CACHE", str(tmp_path / "cache"))
    import gpu_parts

    return gpu_parts


def figures_of(parts: ModuleType, part: str) -> dict[str, Any]:
    figures = parts.PARTS[part](parts.setting("cpu", quick=True))
    json.dumps(figures)
    return figures


def test_closed_form(parts: ModuleType) -> None:
    found = figures_of(parts, "closed_form")
    assert found["error"] == 0
    assert found["seconds"] > 0


def test_build(parts: ModuleType) -> None:
    found = figures_of(parts, "build")
    assert found["rows"] > 60
    assert 0 < found["warm_seconds"] < found["seconds"]


def test_constructor(parts: ModuleType) -> None:
    found = figures_of(parts, "constructor")
    assert found["updates_per_second"] > 0
    assert found["share_of_peak"] > 0


def test_monitoring(parts: ModuleType) -> None:
    found = figures_of(parts, "monitoring")
    assert found["steps"] == 6
    assert set(found) >= {"none", "monitor", "rebuild"}
    assert found["rebuild"]["hook_seconds"]["before"] > 0


def test_new_tokens(parts: ModuleType) -> None:
    assert figures_of(parts, "new_tokens")["terms"] == 5


def test_senses(parts: ModuleType) -> None:
    found = figures_of(parts, "senses")
    assert found["senses"] > 0
    assert found["forward_ratio"] > 0


def test_a_launch(parts: ModuleType) -> None:
    found = figures_of(parts, "nccl")
    assert found["error_at_start"] == 0
    assert 0 < found["lost_at_end"] < 0.5
    assert found["saved"] == ["model.safetensors"]


@pytest.mark.parametrize("change", ["begin", "end"])
def test_lost_rows_are_an_error(parts: ModuleType, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    class Losing(parts.Tables):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if change == "begin":
                torch.nn.init.zeros_(model.get_input_embeddings().weight)
            super().on_train_begin(args, state, control, model, **kwargs)

        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            torch.nn.init.zeros_(model.get_input_embeddings().weight)

    monkeypatch.setattr(parts, "Tables", Losing)
    with pytest.raises(RuntimeError, match="The written rows were lost"):
        figures_of(parts, "fsdp2")


@pytest.fixture
def run(parts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run the script in this process, which has imported transformers; each part has a process of its own."""
    import gpu

    def main(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
        gpu.main()

    return main


def test_a_failed_part_does_not_lose_the_others(run: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"build": "of an earlier run"}))
    run("--device", "cpu", "--quick", "--parts", "zero3", "fsdp2", "--output", str(path))
    found = json.loads(path.read_text())
    assert found["build"] == "of an earlier run"
    assert found["fsdp2"]["error_at_start"] == 0
    assert found["environment"]["torch"] == torch.__version__


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_so(run: Callable[..., None]) -> None:
    with pytest.raises(SystemExit, match=r"There is no GPU with CUDA\. To try .*, use --device cpu --quick\."):
        run()
