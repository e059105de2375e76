"""The example of sense distillation: its table, its resuming, and that it runs on any task."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import BertForSequenceClassification

import tiny

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "run_sense_distillation.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_sense_distillation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_sense_distillation"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def a_run(example: ModuleType, teacher: float) -> dict[str, Any]:
    names = [name for name in example.MODELS if name != "teacher with senses"]
    return {
        "accuracy": dict.fromkeys(example.MODELS, teacher) | {"sense distillation": teacher - 0.25},
        "seconds": dict.fromkeys(example.MODELS, 2.0) | {"sense distillation": 1.0},
        "bytes": dict.fromkeys(names, 80e6) | {"dictionary, float32": 20e6},
        "parameters": {name: {"all": 22e6, "layers": 10e6} for name in names},
    }


def test_table(example: ModuleType) -> None:
    lines = example.markdown([a_run(example, 0.75), a_run(example, 0.85)]).splitlines()
    assert lines[2] == "| teacher | 0.8000 ± 0.0707 | 22.0 M (10.0 M) | 80 | 1.00 |"
    assert lines[3] == "| teacher with senses | 0.8000 ± 0.0707 | 22.0 M (10.0 M) | 100 | 1.00 |"
    assert lines[-2] == "| sense distillation | 0.5500 ± 0.0707 | 22.0 M (10.0 M) | 100 | 2.00 |"


def test_seeds_that_are_done_are_not_run_again(example: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert example.finished(path, {"layers": 3}) == []
    path.write_text(json.dumps({"settings": {"layers": 3}, "runs": [{}]}))
    assert example.finished(path, {"layers": 3}) == [{}]
    assert example.finished(path, {"layers": 4}) == []


def test_other_data_or_another_model_is_another_run(example: ModuleType, tmp_path: Path) -> None:
    for place, text in (("one", "a\tb"), ("two", "a\tb"), ("three", "a\tc")):
        (tmp_path / place / "sst2").mkdir(parents=True)
        (tmp_path / place / "sst2" / "train.tsv").write_text(text)
    one, two, three = (example.identity(str(tmp_path / place / "sst2")) for place in ("one", "two", "three"))
    assert one == two != three
    assert one.startswith("sst2, ")
    assert example.identity("user/model") == "user/model"


@pytest.mark.parametrize("task", ["sst2", "rte"])
def test_it_runs(example: ModuleType, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn.cluster")
    tokenizer = tiny.wordpiece_tokenizer()
    tiny.tiny_bert(tokenizer, BertForSequenceClassification).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = [word for word in tiny.WORDS if "'" not in word]
    columns = [column for column in example.COLUMNS[task] if column]
    for split, number in (("train", 40), ("validation", 12)):
        rows = ["\t".join([f"the {words[i % 9]} was a {words[(i + 3) % 7]}"] * len(columns)) for i in range(number)]
        lines = ["\t".join([*columns, "label"]), *(f"{row}\t{i % 2}" for i, row in enumerate(rows))]
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines))
    settings = {"task": task, "data": tmp_path, "model": tmp_path / "model", "output_dir": tmp_path / "out"}
    settings |= {"sentences": 32, "layers": 1, "senses": 3, "seeds": 1, "epochs": 1, "teacher_epochs": 1}
    arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_sense_distillation.py", *arguments])
    example.main()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["model"].startswith("model, ")
    (run,) = results["runs"]
    assert set(run["accuracy"]) == {*example.MODELS, "first layers, untrained"}
    assert run["bytes"]["dictionary, float16"] < run["bytes"]["dictionary, float32"]
    assert run["parameters"]["plain student"]["all"] < run["parameters"]["teacher"]["all"]
    assert (tmp_path / "out" / "senses.png").stat().st_size > 10_000
    assert "| sense distillation |" in (tmp_path / "out" / "results.md").read_text()
