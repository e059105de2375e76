"""`defemb run`: an unchanged script, with the callback in every Trainer that it creates."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification, Trainer

from defemb_callbacks.cli import main
from tiny import tiny_glossary

# A script as users have it, without the callback
SCRIPT = """
import sys
from transformers import BertForSequenceClassification, HfArgumentParser, Trainer, TrainingArguments
from tiny import tiny_bert, tiny_dataset, wordpiece_tokenizer

if __name__ == "__main__":
    [args] = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer, BertForSequenceClassification)
    trainer = Trainer(model, args, train_dataset=tiny_dataset(tokenizer), processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    print("argv:", sys.argv[0], "main:", sys.modules["__main__"].__file__)
    sys.exit(3)
"""
ARGUMENTS = ["--max_steps", "1", "--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true"]


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "train.py"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def glossary(tmp_path: Path) -> Path:
    path = tmp_path / "glossary.json"
    path.write_text(json.dumps(tiny_glossary()), encoding="utf-8")
    return path


def exit_code(*arguments: Any) -> Any:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def test_a_script_is_run_unchanged_with_the_callback(script, glossary, tmp_path, capsys) -> None:
    path, create = script(SCRIPT), Trainer.__init__
    argv, environment = list(sys.argv), dict(os.environ)
    settings = ["--definitions", glossary, "--blend", "0.3", "--no-plots"]
    code = exit_code("run", *settings, path, "--output_dir", tmp_path / "out", *ARGUMENTS)
    assert code == 3
    assert f"argv: {path} main: {path}" in capsys.readouterr().out
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert saved.config.definition_emb["rebuilt"] == 66
    report = json.loads((tmp_path / "out" / "defemb" / "report.json").read_text())
    assert report["info"]["settings"]["blend"] == 0.3
    assert Trainer.__init__ is create
    assert (sys.argv, dict(os.environ)) == (argv, environment)


def test_a_module_is_run_as_with_python_m(script, glossary, tmp_path, monkeypatch, capsys) -> None:
    script(SCRIPT)
    monkeypatch.chdir(tmp_path)
    code = exit_code("run", "--definitions", glossary, "-m", "train", "--output_dir", tmp_path / "out", *ARGUMENTS)
    assert code == 3
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.definition_emb["rebuilt"] == 66
    assert f"main: {tmp_path / 'train.py'}" in capsys.readouterr().out


def test_the_script_gets_its_own_options_and_a_double_dash(script, capsys) -> None:
    assert exit_code("run", script("import sys; print(sys.argv[1:])"), "--blend", "x", "--help", "--", "-m") == 0
    captured = capsys.readouterr()
    assert captured.out == "['--blend', 'x', '--help', '--', '-m']\n"
    assert captured.err == (
        "defemb run: the script has created no Trainer in this process, so nothing was changed here. Processes that it "
        "started report for themselves. For a script with its own training loop, use `defemb build` and `defemb "
        "apply`.\n"
    )


def test_errors_of_the_script_are_its_own(script) -> None:
    with pytest.raises(ValueError, match="of the script"):
        main(["run", str(script("raise ValueError('of the script')"))])
    with pytest.raises(KeyboardInterrupt):
        main(["run", str(script("raise KeyboardInterrupt"))])


def test_wrong_arguments_of_a_trainer_are_the_same_error(script) -> None:
    text = "from transformers import Trainer; Trainer(processing_classtokenizer=None)"
    with pytest.raises(TypeError) as plain:
        exec(text)
    with pytest.raises(TypeError) as launched:
        main(["run", str(script(text))])
    assert str(launched.value) == str(plain.value)


@pytest.mark.parametrize(
    "call",
    ["processing_class=tokenizer, callbacks=[seen]", "None, None, None, tokenizer, None, None, None, [seen]"],
    ids=["by name", "by position"],
)
def test_callbacks_of_the_script_are_kept(script, glossary, tmp_path, call) -> None:
    text = f"""
from transformers import Trainer, TrainerCallback, TrainingArguments
from tiny import tiny_bert, wordpiece_tokenizer
seen, tokenizer = TrainerCallback(), wordpiece_tokenizer()
args = TrainingArguments({str(tmp_path / "out")!r}, use_cpu=True, report_to="none")
trainer = Trainer(tiny_bert(tokenizer), args, {call})
kinds = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
assert seen in trainer.callback_handler.callbacks and kinds.count("LaunchedCallback") == 1, kinds
assert trainer.model.config.definition_emb["rebuilt"] == 66
"""
    assert exit_code("run", "--definitions", glossary, script(text)) == 0


def test_a_model_without_text_is_trained_as_it_is(script, tmp_path) -> None:
    text = """
import sys, torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
model = ViTForImageClassification(ViTConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4
))
data = [{"pixel_values": torch.zeros(3, 8, 8), "labels": 0}] * 4
args = TrainingArguments(sys.argv[1], max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
trainer = Trainer(model, args, train_dataset=data)
trainer.train()
assert trainer.state.global_step == 1
assert not hasattr(model.config, "definition_emb")
"""
    assert exit_code("run", script(text), tmp_path / "out") == 0


def test_trainers_of_this_package_and_callbacks_of_the_script_are_left_alone(script, glossary, tmp_path) -> None:
    text = f"""
import torch
from transformers import BertForSequenceClassification, Trainer
from defemb_callbacks import DefinitionEMBCallback
from defemb_callbacks.sentence import fit_flow
from defemb_callbacks.sentence.fit import flow_training_arguments
from tiny import tiny_bert, tiny_glossary, training_args, wordpiece_tokenizer
callbacks = [DefinitionEMBCallback(tiny_glossary())]
trainer = Trainer(
    tiny_bert(wordpiece_tokenizer(), BertForSequenceClassification), training_args({str(tmp_path)!r}),
    processing_class=wordpiece_tokenizer(), callbacks=callbacks
)
assert sum(isinstance(callback, DefinitionEMBCallback) for callback in trainer.callback_handler.callbacks) == 1
fit_flow(torch.randn(64, 4), args=flow_training_arguments({str(tmp_path / "flow")!r}, max_steps=1, use_cpu=True))
"""
    assert exit_code("run", script(text)) == 0


def test_a_missing_script_is_an_error(capsys) -> None:
    assert exit_code("run", "nowhere.py") == 1
    assert capsys.readouterr().err == "Error: There is no script nowhere.py. Check its path, or pass -m for a module.\n"
    with pytest.raises(ImportError, match="No module named no_such_module"):
        main(["run", "-m", "no_such_module"])


# In processes of their own


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1", **variables}


@pytest.mark.slow
def test_processes_that_the_script_starts_have_the_callback(script, glossary, tmp_path) -> None:
    path = script(SCRIPT)
    starter = tmp_path / "starter.py"
    starter.write_text("import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))")
    command = [sys.executable, "-m", "defemb_callbacks", "run", "--definitions", glossary, starter, path]
    done = subprocess.run(
        [*map(str, command), "--output_dir", str(tmp_path / "out"), *ARGUMENTS],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.definition_emb["rebuilt"] == 66


@pytest.mark.slow
def test_the_environment_variable_is_the_same_switch(script, glossary, tmp_path) -> None:
    import defemb_callbacks.startup

    folder = str(Path(defemb_callbacks.startup.__file__).parent)
    settings = {"definitions": str(glossary), "plots": False}
    env = environment(DEFEMB_RUN=json.dumps(settings))
    env["PYTHONPATH"] = os.pathsep.join([folder, env["PYTHONPATH"]])
    command = [sys.executable, str(script(SCRIPT)), "--output_dir", str(tmp_path / "out"), *ARGUMENTS]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.definition_emb["rebuilt"] == 66


@pytest.mark.slow
def test_a_signal_ends_the_script_as_without_defemb(script, tmp_path) -> None:
    path = script(f"import time\nopen({str(tmp_path / 'started')!r}, 'w').close()\ntime.sleep(120)")
    codes = {}
    for name, prefix in (("plain", []), ("run", ["-m", "defemb_callbacks", "run"])):
        # Where the tests run in the background of a shell, processes ignore this signal unless they are told not to.
        start = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        command = [sys.executable, *prefix, str(path)]
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL, preexec_fn=start)
        while not (tmp_path / "started").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        codes[name] = process.wait(timeout=60)
        (tmp_path / "started").unlink()
    assert codes["run"] == codes["plain"] == -signal.SIGINT
