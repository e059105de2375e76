"""The command line: the same results as the functions, ordinary checkpoints, one-line errors."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM, BertForSequenceClassification

from defemb_callbacks import DefinitionEMBConfig, DefinitionEmbeddings, build_definition_embeddings, measure_embeddings
from defemb_callbacks.cli import main
from defemb_callbacks.cli.models import echo, read_lines
from defemb_callbacks.reporting.model_card import model_card_section
from defemb_callbacks.weights.rows import read_table
from tiny import WORDS, tiny_bert, tiny_glossary, wordpiece_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return wordpiece_tokenizer()


@pytest.fixture
def checkpoint(tokenizer: Any, tmp_path: Path) -> Path:
    tiny_bert(tokenizer, BertForSequenceClassification).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def glossary(tmp_path: Path) -> Path:
    path = tmp_path / "glossary.json"
    path.write_text(json.dumps(tiny_glossary()), encoding="utf-8")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `defemb …` in this process and returns its output."""

    def run(*arguments: Any) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert end.value.code == 0, captured.err
        return captured.out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `defemb …`, which must fail with a one-line error, and returns the error."""

    def refused(*arguments: Any) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert end.value.code == 1
        assert captured.out == ""
        error = captured.err.splitlines()[-1]
        assert error.startswith("Error: ")
        assert "Traceback" not in captured.err
        return error

    return refused


def test_inspect_counts_and_measures(run, checkpoint, glossary, tokenizer) -> None:
    found = json.loads(run("inspect", checkpoint, "--definitions", glossary, "--json"))
    model = BertForSequenceClassification.from_pretrained(checkpoint)
    assert found["metrics"] == measure_embeddings(model, tokenizer, str(glossary))
    assert sum(found["vocabulary"].values()) == len(tokenizer)
    assert found["vocabulary"]["unused entry"] == 4
    assert found["dictionary"] == {"name": "glossary", "words": 66, "defined_words": 66, "defined_tokens": 66}
    assert found["rebuilt"] is None


def test_inspect_prints_tables(run, checkpoint, glossary) -> None:
    text = run("inspect", checkpoint, "--definitions", glossary)
    assert "word piece 32 6.7%" in " ".join(text.split())
    assert "glossary (66 words) defines 66 of 374 words (17.6%), and 66 tokens in all." in text
    assert [line.split()[0] for line in text.splitlines()[-4:]] == ["all", "frequent", "medium", "rare"]
    assert "Rebuilt:" not in text


def test_inspect_compares_models(run, checkpoint, glossary, tmp_path) -> None:
    new, embeddings = tmp_path / "new", tmp_path / "embeddings"
    run("build", checkpoint, "--output", embeddings, "--definitions", glossary)
    run("apply", checkpoint, embeddings, "--output", new)
    text = run("inspect", checkpoint, new, "--definitions", glossary)
    assert text.splitlines()[0].split() == ["model", "new"]
    assert "66 tokens have different embeddings than in model." in text
    found = json.loads(run("inspect", checkpoint, new, "--definitions", glossary, "--json"))
    assert [model["model"] for model in found] == [str(checkpoint), str(new)]
    assert found[0] == json.loads(run("inspect", checkpoint, "--definitions", glossary, "--json"))
    assert found[1]["rebuilt"]["rebuilt"] == 66


def test_inspect_writes_a_page(run, checkpoint, glossary, tmp_path) -> None:
    text = run("inspect", checkpoint, "--definitions", glossary, "--output", tmp_path / "page", "--projector", "--json")
    assert json.loads(text)["model"] == str(checkpoint)  # nothing else is printed
    assert "Token embeddings of model" in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "page" / "projection.png").is_file()
    assert (tmp_path / "page" / "projector" / "model" / "projector_config.pbtxt").is_file()


def test_inspect_compares_with_human_ratings(run, refused, checkpoint, glossary, tokenizer, tmp_path) -> None:
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 3)
    pairs = zip(words, words[7:], strict=False)
    (tmp_path / "ratings.csv").write_text("".join(f"{a},{b},{len(a) + len(b)}\n" for a, b in pairs))
    arguments = ("inspect", checkpoint, "--definitions", glossary, "--json", "--ratings")
    metrics = json.loads(run(*arguments, tmp_path / "ratings.csv"))["metrics"]
    assert -1 <= metrics["defemb/rating_correlation/all"] <= 1
    assert "missing.csv" in refused(*arguments, tmp_path / "missing.csv")


def test_several_dictionaries_are_merged(run, checkpoint, glossary, tmp_path) -> None:
    (tmp_path / "more.tsv").write_text("word\tdefinition\nlamp\ta thing that gives light\n", encoding="utf-8")
    text = run("inspect", checkpoint, "--definitions", glossary, "--definitions", tmp_path / "more.tsv")
    assert "glossary+more (67 words) defines 67 of 374 words" in text


def test_build_saves_what_the_function_builds(run, checkpoint, glossary, tokenizer, tmp_path) -> None:
    text = run(
        *("build", checkpoint, "--output", tmp_path / "embeddings", "--definitions", glossary),
        *("--features", "bag", "--features", "first", "--max-length", 12, "--precision", "float32"),
        *("--definitions-per-token", 1, "--batch-size", 7, "--cache-dir", tmp_path / "cache"),
    )
    saved = DefinitionEmbeddings.from_pretrained(tmp_path / "embeddings")
    config = DefinitionEMBConfig(features=["bag", "first"], max_length=12, precision="float32", definitions_per_token=1)
    model = BertForSequenceClassification.from_pretrained(checkpoint)
    built = build_definition_embeddings(model, tokenizer, str(glossary), config)
    assert torch.equal(saved.ids, built.ids)
    torch.testing.assert_close(saved.rows, built.rows)
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    assert "66 of 476 tokens rebuilt from 66 definitions (glossary)" in text


def test_build_with_the_papers_constructor(run, checkpoint, glossary, tmp_path) -> None:
    steps = {"max_steps": 2, "eval_steps": 1, "save_steps": 1, "disable_tqdm": True, "warmup_steps": 1}
    text = run(
        *(
            "build",
            checkpoint,
            "--output",
            tmp_path / "embeddings",
            "--definitions",
            glossary,
            "--paper",
            "roberta-base",
        ),
        *("--constructor", json.dumps({"training": steps, "held_out": 0.1}), "--cache-dir", tmp_path / "cache"),
    )
    info = DefinitionEmbeddings.from_pretrained(tmp_path / "embeddings").info
    assert (info["method"], info["steps"], info["held_out"]) == ("learned", 2, 6)
    config = {name: info["constructor"][name] for name in ("masking", "head", "train_embeddings", "tokens_per_batch")}
    assert config == {"masking": "random", "head": "random", "train_embeddings": True, "tokens_per_batch": 4096}
    assert info["constructor"]["training"]["warmup_steps"] == 1
    assert text.splitlines()[-1].endswith("--output DIR --strategy replace --no-rescale")
    done = run(
        *("apply", checkpoint, tmp_path / "embeddings", "--output", tmp_path / "new", "--strategy", "replace"),
        *("--no-rescale", "--report", tmp_path / "report.json"),
    )
    assert "Saved in" in done
    assert json.loads((tmp_path / "report.json").read_text())["info"]["steps"] == 2


def test_unknown_paper_settings_are_an_error(refused, checkpoint, glossary, tmp_path) -> None:
    arguments = ("build", checkpoint, "--output", tmp_path / "embeddings", "--definitions", glossary)
    assert "`name` must be one of roberta-base, bart-large" in refused(*arguments, "--paper", "gpt2")
    assert "got 'no.json'" in refused(*arguments, "--method", "learned", "--constructor", "no.json")


@pytest.mark.parametrize("model_class", [BertForSequenceClassification, BertForMaskedLM])
def test_apply_saves_an_ordinary_checkpoint_with_its_head(run, glossary, tokenizer, tmp_path, model_class) -> None:
    model = tiny_bert(tokenizer, model_class)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    ready = build_definition_embeddings(model, tokenizer, str(glossary))
    ready.save_pretrained(tmp_path / "embeddings")
    text = run(
        *("apply", tmp_path / "model", tmp_path / "embeddings", "--output", tmp_path / "new"),
        *("--strategy", "replace", "--no-rescale", "--alpha", 0.5, "--report", tmp_path / "report.json"),
    )
    report = ready.apply(model, DefinitionEMBConfig(strategy="replace", rescale=False, alpha=0.5))
    loaded = model_class.from_pretrained(tmp_path / "new")
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "new").get_vocab() == tokenizer.get_vocab()
    assert text.startswith(str(report).splitlines()[0])
    assert model_card_section(report) in (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == json.loads(report.to_json())


def test_a_rebuilt_model_is_rebuilt_again_only_if_forced(run, refused, checkpoint, glossary, tmp_path) -> None:
    new, again, embeddings = tmp_path / "new", tmp_path / "again", tmp_path / "embeddings"
    run("build", checkpoint, "--output", embeddings, "--definitions", glossary)
    run("apply", checkpoint, embeddings, "--output", new, "--blend", 0.3, "--blend-floor", 1)
    assert run("inspect", new, "--definitions", glossary).endswith("Rebuilt: 66 rows (blend).\n")
    assert "already been rebuilt" in refused("apply", new, embeddings, "--output", again)
    assert not again.exists()
    run("apply", new, embeddings, "--output", again, "--force")
    tables = [read_table(BertForSequenceClassification.from_pretrained(folder)) for folder in (new, again)]
    assert not torch.equal(*tables)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """120 different texts, one per line."""
    words = [word for word in WORDS if word.isalpha()]
    lines = [" ".join(words[(7 * i + j * j) % len(words)] for j in range(3 + i % 5)) for i in range(120)]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_calibrate_saves_a_sentence_transformer(run, checkpoint, texts, tmp_path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="the extra sentence is not installed")
    options = ("--output", tmp_path / "calibrated", "--pooling", "layer:1", "--components", 8, "--force")
    printed = run("calibrate", checkpoint, texts, *options)
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "calibrated"), device="cpu")
    vectors = model.encode(texts.read_text(encoding="utf-8").splitlines(), convert_to_tensor=True)
    assert vectors.shape == (120, 8)
    torch.testing.assert_close(vectors.mean(dim=0), torch.zeros(8), atol=1e-3, rtol=0)
    assert printed.startswith("The sentence embeddings have uniformity ")
    assert f"Saved in {tmp_path / 'calibrated'}." in printed


def test_calibrate_settings_of_another_method_are_an_error(refused, checkpoint, texts, tmp_path) -> None:
    options = ("--output", tmp_path / "calibrated", "--method", "flow", "--components", 8)
    assert "--components cannot be used with --method flow" in refused("calibrate", checkpoint, texts, *options)


def test_errors_are_one_line(refused, checkpoint, glossary, tmp_path) -> None:
    output = ("--output", tmp_path / "out")
    (tmp_path / "notes.txt").write_text("no glossary")
    for word, arguments in {
        "no file": ("inspect", checkpoint, "--definitions", tmp_path / "missing.tsv"),
        "notes.txt": ("build", checkpoint, *output, "--definitions", tmp_path / "notes.txt"),
        "`features` must contain only mean, first, mask, bag, layers, middle, last, got 'all'": (
            "build",
            checkpoint,
            *output,
            "--features",
            "all",
        ),
        "missing-model": ("inspect", tmp_path / "missing-model"),
        "no folder": ("apply", checkpoint, tmp_path / "missing", *output),
        "contains no definition embeddings": ("apply", checkpoint, checkpoint, *output),
        "`blend` must be between 0 and 1, got 3.0": ("apply", checkpoint, tmp_path, *output, "--blend", 3),
        "is the folder of MODEL": ("apply", checkpoint, tmp_path, "--output", checkpoint),
        "--projector requires an output folder": ("inspect", checkpoint, "--projector"),
    }.items():
        assert word in refused(*arguments)
    assert not (tmp_path / "out").exists()


def raise_error(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail


def test_bugs_keep_their_traceback(checkpoint, monkeypatch) -> None:
    monkeypatch.setattr("defemb_callbacks.cli.embeddings.load_definitions", raise_error(TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        main(["inspect", str(checkpoint)])
    monkeypatch.setattr("defemb_callbacks.cli.embeddings.load_definitions", lambda source: len(3))
    with pytest.raises(TypeError, match="has no len"):
        main(["inspect", str(checkpoint)])


def test_type_errors_that_the_package_raises_are_one_line(refused, checkpoint, tmp_path) -> None:
    glossary = tmp_path / "numbers.json"
    glossary.write_text('{"cat": 3}')
    assert "'cat' has the definition 3" in refused("inspect", checkpoint, "--definitions", glossary)


def test_debug_shows_the_traceback_of_a_user_error(checkpoint) -> None:
    with pytest.raises(ValueError, match="--projector requires"):
        main(["--debug", "inspect", str(checkpoint), "--projector"])


def test_lines_of_a_text_file_end_with_a_line_feed_only(tmp_path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffone\u2028a\r\ntwo\x85b\n\nfour\x0bd\nfive".encode())
    assert read_lines(path) == ["one\u2028a", "two\x85b", "", "four\x0bd", "five"]
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"texts\.txt is not UTF-8 text.*Save it as UTF-8"):
        read_lines(path)


def test_a_console_without_unicode_shows_replacements(monkeypatch) -> None:
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    echo("isotropy 0.1 → 0.2 ± Ġthe")
    console.flush()
    assert console.buffer.getvalue() == "isotropy 0.1 ? 0.2 ± ?the\n".encode("cp1252")


def test_missing_matplotlib_is_a_one_line_error(refused, checkpoint, glossary, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = refused("inspect", checkpoint, "--definitions", glossary, "--output", tmp_path / "page")
    assert 'pip install "defemb-callbacks[plots]"' in error
    assert not (tmp_path / "page").exists()


def test_an_unknown_architecture_is_an_error(refused, checkpoint, glossary) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"architectures": ["SpecialBert"]}))
    assert "no class 'SpecialBert'. Pass --trust-remote-code" in refused(
        "inspect", checkpoint, "--definitions", glossary
    )


def test_embeddings_of_another_tokenizer_are_an_error(refused, checkpoint, glossary, tokenizer, tmp_path) -> None:
    model = tiny_bert(tokenizer, vocab_size=len(tokenizer) + 8)
    build_definition_embeddings(model, tokenizer, tiny_glossary()).save_pretrained(tmp_path / "embeddings")
    error = refused("apply", checkpoint, tmp_path / "embeddings", "--output", tmp_path / "out")
    assert "another tokenizer: it has 484 entries, this one 476" in error


@pytest.mark.parametrize("command", ["inspect", "build", "apply"])
def test_help_explains_every_option(run, command) -> None:
    text = run(command, "--help")
    assert "--trust-remote-code" in text
    if command == "apply":
        assert "--blend-floor" in text
        assert "Weight for the most frequent token" in " ".join(text.split())
    if command == "build":
        assert "--definitions-per-token" in text


@pytest.mark.slow
def test_the_module_runs(checkpoint, glossary) -> None:
    arguments = [sys.executable, "-m", "defemb_callbacks", "inspect", str(checkpoint), "--definitions", str(glossary)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # a checkout that is not installed
    done = subprocess.run([*arguments, "--json"], capture_output=True, text=True, check=True, timeout=120, env=env)
    assert json.loads(done.stdout)["dictionary"]["defined_words"] == 66
