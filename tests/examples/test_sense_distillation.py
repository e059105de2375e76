"""run_sense_distillation.py: its table, resuming, and runs on several tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import run_sense_distillation
import sense_results
from arguments import parse
from glue_task import TASKS, DataArguments
from run_sense_distillation import SenseArguments, StudentArguments
from transformers import BertForSequenceClassification

import tiny


def a_run(teacher: float) -> dict[str, Any]:
    names = [name for name in sense_results.MODELS if name != "teacher with senses"]
    return {
        "accuracy": dict.fromkeys(sense_results.MODELS, teacher) | {"sense distillation": teacher - 0.25},
        "seconds": dict.fromkeys(sense_results.MODELS, 2.0) | {"sense distillation": 1.0},
        "bytes": dict.fromkeys(names, 80e6) | {"dictionary, float32": 20e6},
        "parameters": {name: {"all": 22e6, "layers": 10e6} for name in names},
    }


def test_table() -> None:
    lines = sense_results.markdown([a_run(0.75), a_run(0.85)]).splitlines()
    assert lines[2] == "| teacher | 0.8000 ± 0.0707 | 22.0 M (10.0 M) | 80 | 1.00 |"
    assert lines[3] == "| teacher with senses | 0.8000 ± 0.0707 | 22.0 M (10.0 M) | 100 | 1.00 |"
    assert lines[-2] == "| sense distillation | 0.5500 ± 0.0707 | 22.0 M (10.0 M) | 100 | 2.00 |"


def test_finished_seeds_are_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert sense_results.finished(path, {"layers": 3}) == []
    path.write_text(json.dumps({"settings": {"layers": 3}, "runs": [{}]}))
    assert sense_results.finished(path, {"layers": 3}) == [{}]
    assert sense_results.finished(path, {"layers": 4}) == []


def test_other_data_or_another_model_starts_again(tmp_path: Path) -> None:
    def settings(place: str, *more: str) -> dict[str, Any]:
        files = ["--train_file", str(tmp_path / place / "train.tsv"), "--validation_file", "dev.tsv"]
        model = ["--model_name_or_path", str(tmp_path / place), "--output_dir", str(tmp_path / place / "out")]
        return run_sense_distillation.settings_record(
            *parse((SenseArguments, DataArguments, StudentArguments), [*files, *model, *more])
        )

    for place, text, weight in (("one", "a\tb", "1"), ("two", "a\tc", "1"), ("three", "a\tb", "2")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "train.tsv").write_text(text)
        (tmp_path / place / "config.json").write_text(weight)
    (tmp_path / "moved").mkdir()
    for path in (tmp_path / "one").iterdir():
        (tmp_path / "moved" / path.name).write_bytes(path.read_bytes())
    one, two, three = map(settings, ("one", "two", "three"))
    assert one["train_file"] != two["train_file"]
    assert one["train_file"].startswith("train.tsv, ")
    assert one["model_name_or_path"].partition(", ")[2] != three["model_name_or_path"].partition(", ")[2]
    # Independent of the location of files; a model is named after its folder.
    assert settings("moved") == one | {"model_name_or_path": one["model_name_or_path"].replace("one", "moved")}
    # All training settings that differ from the defaults are recorded; seeds only add runs.
    assert settings("one", "--weight_decay", "0.1") == one | {"weight_decay": 0.1}
    assert settings("one", "--seeds", "7") == one
    assert sense_results.identity("user/model") == "user/model"


@pytest.mark.parametrize("task", ["sst2", "rte"])
def test_it_runs(task: str, tmp_path: Path) -> None:
    tokenizer = tiny.wordpiece_tokenizer()
    tiny.tiny_bert(tokenizer, BertForSequenceClassification).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = [word for word in tiny.WORDS if "'" not in word]
    columns = TASKS[task]
    for split, number in (("train", 40), ("validation", 12)):
        rows = ["\t".join([f"the {words[i % 9]} was a {words[(i + 3) % 7]}"] * len(columns)) for i in range(number)]
        lines = ["\t".join([*columns, "label"]), *(f"{row}\t{i % 2}" for i, row in enumerate(rows))]
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines))
    settings = {f"{split}_file": tmp_path / f"{split}.tsv" for split in ("train", "validation")}
    settings |= {"task_name": task, "model_name_or_path": tmp_path / "model", "output_dir": tmp_path / "out"}
    settings |= {"max_train_samples": 32, "layers": 1, "senses": 3, "teacher_epochs": 1, "num_train_epochs": 1}
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    run_sense_distillation.main([*options, "--seeds", "1"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["model_name_or_path"].startswith("model, ")
    [run] = results["runs"]
    assert set(run["accuracy"]) == {*sense_results.MODELS, "first layers, untrained"}
    assert run["bytes"]["dictionary, float16"] < run["bytes"]["dictionary, float32"]
    assert run["parameters"]["plain student"]["all"] < run["parameters"]["teacher"]["all"]
    assert (tmp_path / "out" / "senses.png").stat().st_size > 10_000
    assert "| sense distillation |" in (tmp_path / "out" / "results.md").read_text()
    # One more seed adds one run.
    run_sense_distillation.main([*options, "--seeds", "2"])
    first, second = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert first == run
    assert second["dictionary"]
