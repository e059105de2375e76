"""The commands in the README of the examples: their files exist and all options are known."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import compare
import pytest
import run_glue
import run_new_words
import run_sense_distillation
import run_summarization
from accelerate.commands.launch import launch_command_parser
from arguments import parse
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from defemb_callbacks import DefinitionEMBConfig

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
SCRIPTS: dict[str, tuple[type, ...]] = {
    "examples/run_glue.py": (run_glue.ModelArguments, run_glue.DataArguments, DefinitionEMBConfig, TrainingArguments),
    "examples/run_new_words.py": (run_new_words.NewWordsArguments,),
    "examples/run_summarization.py": (
        run_summarization.ModelArguments,
        run_summarization.DataArguments,
        DefinitionEMBConfig,
        Seq2SeqTrainingArguments,
    ),
    "examples/run_sense_distillation.py": (
        run_sense_distillation.SenseArguments,
        run_sense_distillation.DataArguments,
        run_sense_distillation.StudentArguments,
    ),
}
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if "examples/" in line]


def check(script: str, options: list[str]) -> None:
    options = [option for option in options if option != "--bf16"]  # this CPU may not support it
    options = [str(ROOT / option) if option.endswith(".yaml") else option for option in options]
    trains = any(issubclass(kind, TrainingArguments) for kind in SCRIPTS[script])
    parse(SCRIPTS[script], [*options, *(["--bf16", "false"] if trains else [])])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.split()[1:4]))
def test_command(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.tsv", "dev.tsv", "train.jsonl", "dev.jsonl"):
        (tmp_path / name).touch()
    words = shlex.split(command)
    assert all((ROOT / word).is_file() for word in words if word.startswith("examples/"))
    if words[:2] == ["accelerate", "launch"]:
        launched = launch_command_parser().parse_args(
            [str(ROOT / w) if w.endswith("gpu.yaml") else w for w in words[2:]]
        )
        check(launched.training_script, launched.training_script_args)
    elif words[1] == "examples/compare.py":
        arguments = compare.parse(words[2:])
        for options in arguments.variants.values():
            check(arguments.script, [*arguments.script_options, *options, "--output_dir", "out", "--seed", "1"])
    else:
        assert words[0] == "python"
        check(words[1], words[2:])


def test_every_script_and_file_is_named() -> None:
    folder = ROOT / "examples"
    helpers = {
        "arguments.py",
        "console.py",
        "data_files.py",
        "glue_metrics.py",
        "glue_task.py",
        "intervals.py",
        "rare_tokens.py",
    }
    helpers |= {"rouge.py", "saving.py", "sense_results.py", "sense_students.py"}
    for path in [*folder.glob("*.py"), *folder.glob("*.ipynb"), *folder.glob("accelerate_configs/*.yaml")]:
        assert path.name in README or path.name in helpers, path.name
    assert len(COMMANDS) >= 10


def test_links_are_valid() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)", README) if not target.startswith("http")]
    assert targets
    assert not [target for target in targets if not (ROOT / "examples" / target).exists()]
