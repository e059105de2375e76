"""run_glue.py: data formats, correct metrics, and a baseline that differs only in the callback."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_glue
import torch
from arguments import parse
from data_files import SplitArguments, cut, load_splits
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from glue_metrics import GlueMetric
from rare_tokens import by_frequency, rare_rebuilt_tokens
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from defemb_callbacks import DefinitionEMBConfig, build_definition_embeddings
from defemb_callbacks.vocabulary.frequency import configured_rank, count_tokens, frequency_groups
from defemb_callbacks.weights.rows import read_table
from glue_runs import options
from launching import accelerate_launch
from runs import changed_rows
from tiny import WORDS, tiny_bert, tiny_glossary, wordpiece_tokenizer


def examples(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# The script


def test_the_baseline_keeps_its_rows_and_the_callback_rebuilds_them(place: Path, tmp_path: Path) -> None:
    before = read_table(AutoModelForSequenceClassification.from_pretrained(place / "model"))
    # Without training steps, only rebuilt rows have changed.
    still = ["--learning_rate", "0", "--save_strategy", "epoch"]
    run_glue.main(options(place, tmp_path / "baseline", "--definition_emb", "false", *still))
    run_glue.main(options(place, tmp_path / "blend", *still))
    baseline, blend = (
        read_table(AutoModelForSequenceClassification.from_pretrained(tmp_path / name))
        for name in ("baseline", "blend")
    )
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    defined = sorted(tokenizer.convert_tokens_to_ids(word) for word in tiny_glossary())
    assert changed_rows(before, baseline).tolist() == []
    assert changed_rows(before, blend).tolist() == defined
    assert "token embeddings" in (tmp_path / "blend" / "README.md").read_text()


def test_metrics_are_those_of_the_examples(place: Path, tmp_path: Path) -> None:
    metrics = run_glue.main(options(place, tmp_path, "--definition_emb", "false"))
    assert json.loads((tmp_path / "all_results.json").read_text()) == metrics
    rows = examples(tmp_path / "eval_examples.jsonl")
    assert len(rows) == 21
    right = [row["predictions"] == row["references"] for row in rows]
    assert [row["accuracy"] for row in rows] == [float(value) for value in right]
    assert metrics["eval_accuracy"] == pytest.approx(np.mean(right))
    for group, value in (("rare", True), ("other", False)):
        chosen = [one for one, row in zip(right, rows, strict=True) if row["rare"] is value]
        assert metrics[f"eval_samples_{group}"] == len(chosen) > 0
        assert metrics[f"eval_accuracy_{group}"] == pytest.approx(np.mean(chosen))


def test_repeated_and_resumed_runs_are_equal(place: Path, tmp_path: Path) -> None:
    saving = ["--save_strategy", "steps", "--save_steps", "2", "--per_device_train_batch_size", "8", "--seed", "3"]
    one, two = (run_glue.main(options(place, tmp_path / name, *saving)) for name in ("one", "two"))
    checkpoint = tmp_path / "one" / "checkpoint-2"
    resuming = options(place, tmp_path / "one", *saving, "--resume_from_checkpoint", str(checkpoint))
    resumed = run_glue.main(resuming)
    assert one["eval_loss"] == two["eval_loss"] == pytest.approx(resumed["eval_loss"], abs=1e-6)
    # It starts from the checkpoint: another checkpoint gives another result.
    weights = load_file(checkpoint / "model.safetensors")
    weights["classifier.bias"][0] += 1
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    assert run_glue.main(resuming)["eval_loss"] != resumed["eval_loss"]
    other = run_glue.main(options(place, tmp_path / "other", *saving, "--seed", "4"))
    assert other["eval_loss"] != one["eval_loss"]


def test_a_hub_task_with_two_validation_sets(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["entailment", "neutral", "contradiction"]
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=names)})

    def rows(size: int, label: int | None = None) -> Dataset:
        labels = [number % 3 if label is None else label for number in range(size)]
        columns = {"premise": ["the dog barks"] * size, "hypothesis": ["a cat"] * size, "label": labels}
        return Dataset.from_dict(columns, features=features)

    splits = {
        "train": rows(9),
        "validation_matched": rows(5),
        "validation_mismatched": rows(4),
        "test_matched": rows(3, -1),
    }
    asked = []

    def load_dataset(*name: str, revision: str | None) -> DatasetDict:
        asked.append(name)
        return DatasetDict(splits)

    monkeypatch.setattr("data_files.load_dataset", load_dataset)
    given = options(place, tmp_path, "--task_name", "mnli", "--do_predict")
    metrics = run_glue.main([*given[:4], *given[8:]])  # no files
    assert asked == [("nyu-mll/glue", "mnli")]
    assert metrics["eval_samples_other"] + metrics["eval_samples_rare"] == 5
    assert metrics["eval_mm_samples_other"] + metrics["eval_mm_samples_rare"] == 4
    predicted = (tmp_path / "test_matched_predictions.txt").read_text().split()
    assert len(predicted) == 3
    assert set(predicted) <= set(names)
    said = [row["references"] for row in examples(tmp_path / "eval_mm_examples.jsonl")]
    assert said == [0, 1, 2, 0]


def test_text_labels_and_a_class_only_in_validation(place: Path, tmp_path: Path) -> None:
    files = {"train": ["text,label", "the dog,no", "null,yes"], "dev": ["text,label", "a cat,maybe", "None,no"]}
    for name, lines in files.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    paths = ["--train_file", str(tmp_path / "train.csv"), "--validation_file", str(tmp_path / "dev.csv")]
    run_glue.main(options(place, tmp_path / "run", *paths, "--save_strategy", "epoch", "--max_train_samples", "1"))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["id2label"] == {"0": "maybe", "1": "no", "2": "yes"}
    assert [row["references"] for row in examples(tmp_path / "run" / "eval_examples.jsonl")] == [0, 1]


def test_a_fine_tuned_model_keeps_its_rows_and_its_classes(place: Path, tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_text("text,label\nthe dog,Yes\na cat,no\n")
    (tmp_path / "test.csv").write_text("text\nthe dog\na cat\n")
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    names = {"id2label": {0: "yes", 1: "no", 2: "maybe"}, "label2id": {"yes": 0, "no": 1, "maybe": 2}}
    model = tiny_bert(tokenizer, BertForSequenceClassification, **names)
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    given = ["--model_name_or_path", str(tmp_path / "tuned"), "--definitions", str(place / "glossary.json")]
    given += ["--output_dir", str(tmp_path / "run"), "--report_to", "none", "--cache_dir", str(place / "cache")]
    run_glue.main([*given, "--validation_file", str(tmp_path / "dev.csv"), "--do_eval"])
    assert not (tmp_path / "run" / "defemb").exists()
    with torch.no_grad():
        logits = model.eval()(**tokenizer(["the dog", "a cat"], return_tensors="pt", padding=True)).logits
    rows = examples(tmp_path / "run" / "eval_examples.jsonl")
    assert [row["references"] for row in rows] == [0, 1]
    assert [row["predictions"] for row in rows] == logits.argmax(dim=1).tolist()
    run_glue.main([*given, "--test_file", str(tmp_path / "test.csv"), "--do_predict"])
    said = (tmp_path / "run" / "test_predictions.txt").read_text().split()
    assert said == [names["id2label"][i] for i in logits.argmax(dim=1).tolist()]


def test_scores_are_a_regression(place: Path, tmp_path: Path) -> None:
    lines = ["sentence1,sentence2,label", *(f"the dog,{WORDS[i]} cat,{i / 4}" for i in range(12))]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    paths = [
        part for split in ("train", "validation", "test") for part in (f"--{split}_file", str(tmp_path / "pairs.csv"))
    ]
    metrics = run_glue.main(options(place, tmp_path / "run", *paths, "--do_predict"))
    rows = examples(tmp_path / "run" / "eval_examples.jsonl")
    said, true = ([row[name] for row in rows] for name in ("predictions", "references"))
    assert true == [i / 4 for i in range(12)]
    assert metrics["eval_pearson"] == pytest.approx(np.corrcoef(said, true)[0, 1])
    assert "eval_spearmanr" in metrics
    assert "accuracy" not in rows[0]
    predicted = (tmp_path / "run" / "test_predictions.txt").read_text().split()
    assert predicted == [f"{score:.3f}" for score in said]


def test_only_logits_are_kept() -> None:
    logits = torch.zeros(2, 3)
    assert run_glue.keep_logits((logits, torch.zeros(2, 9, 8)), torch.zeros(2)) is logits
    assert run_glue.keep_logits(logits, torch.zeros(2)) is logits


def test_the_model_card_on_the_hub_describes_the_rebuild(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed, uploaded = [], []

    def init_hf_repo(trainer: Trainer, **_: Any) -> None:
        trainer.hub_model_id, trainer.push_in_progress = "user/model", None

    monkeypatch.setattr(Trainer, "init_hf_repo", init_hf_repo)
    monkeypatch.setattr(Trainer, "push_to_hub", lambda self, **_: pushed.append((tmp_path / "README.md").exists()))
    monkeypatch.setattr("saving.HfApi.upload_file", lambda self, **file: uploaded.append(file))
    run_glue.main(options(place, tmp_path, "--save_strategy", "epoch", "--push_to_hub"))
    assert pushed == [False]
    assert uploaded[0]["repo_id"] == "user/model"
    assert uploaded[0]["path_in_repo"] == "README.md"
    assert "token embeddings" in uploaded[0]["path_or_fileobj"].read_text()


@pytest.mark.parametrize(("task", "suffix", "classes"), [("sst2", "tsv", 2), ("mnli", "jsonl", 3)])
def test_real_data(place: Path, tmp_path: Path, data_dir: Path, task: str, suffix: str, classes: int) -> None:
    paths = ["--train_file", str(data_dir / task / f"train.{suffix}")]
    paths += ["--validation_file", str(data_dir / task / f"validation.{suffix}")]
    sizes = ["--max_train_samples", "32", "--max_eval_samples", "50", "--save_strategy", "epoch"]
    metrics = run_glue.main(options(place, tmp_path, *paths, *sizes, "--task_name", task))
    assert metrics["eval_samples_rare"] + metrics["eval_samples_other"] == 50
    assert len(json.loads((tmp_path / "config.json").read_text())["id2label"]) == classes


@pytest.mark.slow
def test_two_processes_equal_one(place: Path, tmp_path: Path) -> None:
    # With 21 examples, two processes evaluate one example twice, which counts once.
    def given(name: str, batch: int) -> list[str]:
        size = (
            "--per_device_train_batch_size",
            str(batch),
            "--log_level",
            "info",
            "--log_level_replica",
            "info",
            "--logging_steps",
            "1",
        )
        return options(place, tmp_path / name, "--use_cpu", *size)

    run_glue.main(given("one", 8))
    said = accelerate_launch(run_glue.__file__, *given("two", 4), attempts=2)
    assert all(f"Process {rank} of 2." in said for rank in (0, 1))
    one, two = (json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("one", "two"))
    # Except `eval_loss`, where the Trainer counts the example that pads the last batch twice.
    for metric in ("eval_accuracy", "eval_accuracy_rare", "eval_accuracy_other", "eval_samples_rare"):
        assert two[metric] == pytest.approx(one[metric], abs=1e-6), metric
    first, second = (examples(tmp_path / name / "eval_examples.jsonl") for name in ("one", "two"))
    assert first == second
    assert len(first) == 21
    logs = [json.loads((tmp_path / n / "trainer_state.json").read_text())["log_history"] for n in ("one", "two")]
    steps = [[row["loss"] for row in log if "loss" in row] for log in logs]
    assert steps[1] == pytest.approx(steps[0], abs=1e-4)
    assert len(steps[0]) == 5


# Metrics


def test_metrics_equal_their_definitions() -> None:
    draw = np.random.default_rng(0)
    said, true = draw.integers(0, 2, (2, 60))
    both, only_said, only_true = (said & true).sum(), (said & ~true & 1).sum(), (true & ~said & 1).sum()
    neither = 60 - both - only_said - only_true
    pairs = {"predictions": said, "references": true}
    assert GlueMetric("sst2").compute(**pairs) == {"accuracy": pytest.approx((both + neither) / 60)}
    f1 = 2 * both / (2 * both + only_said + only_true)
    assert GlueMetric("mrpc").compute(**pairs) == {"accuracy": (both + neither) / 60, "f1": pytest.approx(f1)}
    square = (both + only_said) * (both + only_true) * (neither + only_said) * (neither + only_true)
    correlation = (both * neither - only_said * only_true) / math.sqrt(square)
    assert GlueMetric("cola").compute(**pairs) == {"matthews_correlation": pytest.approx(correlation)}
    scores, ratings = draw.normal(size=(2, 60))
    found = GlueMetric("stsb").compute(predictions=scores, references=ratings)
    ranks = [np.argsort(np.argsort(values)) for values in (scores, ratings)]
    assert found["pearson"] == pytest.approx(np.corrcoef(scores, ratings)[0, 1])
    assert found["spearmanr"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_a_correlation_with_a_constant_is_nan() -> None:
    found = GlueMetric("stsb").compute(predictions=[1.0, 1.0], references=[1.0, 2.0])
    assert all(math.isnan(value) for value in found.values())


def test_no_metric_of_no_examples() -> None:
    metrics = by_frequency(GlueMetric("sst2"), [False, False], [1, 0], [1, 1], "eval")
    assert metrics == {"eval_samples_rare": 0, "eval_samples_other": 2, "eval_accuracy_other": 0.5}


@pytest.mark.parametrize(
    "settings", [{}, {"alpha": 0.3}, {"only_training_tokens": True}, {"frequency": "training_data"}], ids=str
)
def test_rare_tokens_equal_those_of_a_rebuild(tmp_path: Path, settings: dict[str, Any]) -> None:
    tokenizer = wordpiece_tokenizer()
    model = tiny_bert(tokenizer)
    config = DefinitionEMBConfig(cache_dir=str(tmp_path), **settings)
    texts = [f"the {word} of the {other}" for word, other in zip(WORDS, WORDS[9::3], strict=False)]
    train = Dataset.from_dict(tokenizer(texts))
    before = read_table(model)
    found = rare_rebuilt_tokens(tokenizer, len(before), tiny_glossary(), config, train)
    embeddings = build_definition_embeddings(model, tokenizer, tiny_glossary(), config)
    counts = count_tokens(train, len(before))
    embeddings.apply(model, config, counts=counts)
    rare = frequency_groups(configured_rank(embeddings.vocabulary, config, counts))["rare"]
    written = set(changed_rows(before, read_table(model)).tolist()) & set(rare.tolist())
    assert found == written
    assert found


# Files and recipes


def test_text_that_looks_like_a_missing_value_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('sentence\tlabel\nnull\t1\n"NA" he said\t0\nnan\t1\n')
    (tmp_path / "b.csv").write_text('sentence,label\nnull,1\n"one, ""two""",0\n')
    arguments = SplitArguments(train_file=str(tmp_path / "a.tsv"), validation_file=str(tmp_path / "b.csv"))
    splits = load_splits(arguments, TrainingArguments(tmp_path, do_train=True, do_eval=True))
    assert splits["train"]["sentence"] == ["null", '"NA" he said', "nan"]
    assert splits["validation"]["sentence"] == ["null", 'one, "two"']


def test_training_examples_are_sampled_with_the_seed(place: Path, tmp_path: Path) -> None:
    arguments = SplitArguments(train_file=str(place / "train.tsv"), max_train_samples=8)
    each = [TrainingArguments(tmp_path, seed=seed, do_train=True) for seed in (1, 1, 2)]
    draws = [cut(load_splits(arguments, args), arguments, args)["train"]["sentence"][:] for args in each]
    assert draws[0] == draws[1] != draws[2]
    assert len(draws[0]) == 8


def test_options_override_settings_of_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "method: learned\nconstructor: {patience: null, training: {max_steps: 9}}\nfeatures: [mean, first]\n"
        "rescale: false\nblend: 0.2\nlearning_rate: 1e-3\n"
    )
    config, args = parse([DefinitionEMBConfig, TrainingArguments], [str(recipe), "--blend", "0.1"])
    assert (config.blend, config.rescale, config.features, args.learning_rate) == (0.1, False, ["mean", "first"], 1e-3)
    assert config.constructor_config.training == {"max_steps": 9}
    assert config.constructor_config.patience is None


def test_three_text_columns_are_an_error(place: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text,source,label\na1,the dog,web,0\na2,a cat,web,1\n")
    paths = ["--train_file", str(tmp_path / "a.csv"), "--validation_file", str(tmp_path / "a.csv")]
    with pytest.raises(ValueError, match=r"found id, text, source\. Pass --text_columns"):
        run_glue.main(options(place, tmp_path, *paths))
    run_glue.main(options(place, tmp_path / "run", *paths, "--text_columns", "text"))


def test_unlabelled_rows_are_an_error(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = Dataset.from_dict({"sentence": ["a cat", "a dog"], "label": [1, -1]}, features=features)
    monkeypatch.setattr("data_files.load_dataset", lambda *name, **_: DatasetDict(train=rows, validation=rows))
    given = options(place, tmp_path, "--dataset_name", "user/set")
    with pytest.raises(ValueError, match=r"The label -1 is not one of bad, good\. Remove such rows"):
        run_glue.main([*given[:4], *given[8:]])


def test_counting_requires_training_data() -> None:
    config = DefinitionEMBConfig(only_training_tokens=True)
    with pytest.raises(ValueError, match=r"require training data\. Pass --do_train"):
        rare_rebuilt_tokens(wordpiece_tokenizer(), 476, tiny_glossary(), config)


def without(name: str) -> Callable[[list[str]], list[str]]:
    return lambda given: given[: given.index(name)] + given[given.index(name) + 2 :]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (
            lambda given: [*given, "--task_name", "mnil"],
            ValueError,
            r"task_name='mnil' is unknown\. Choose one of cola, mnli",
        ),
        (lambda given: without("--train_file")(without("--validation_file")(given)), ValueError, "There are no data"),
        (lambda given: [x for x in given if not x.startswith("--do_")], ValueError, r"Nothing to do\. Pass --do_train"),
        (
            lambda given: [*given, "--text_columns", "text"],
            ValueError,
            r"no column 'text'\. Choose one of sentence, label",
        ),
        (without("--validation_file"), ValueError, r"no split 'validation', only train\. Pass --validation_file"),
        (lambda given: [*given, "--train_file", "gone.tsv"], FileNotFoundError, r"The file 'gone\.tsv' does not exist"),
        (lambda given: [*given, "--train_file", __file__], ValueError, r"unknown format \(\.py\)\. Use \.tsv"),
        (
            lambda given: [*given, "--train_sampling_strategy", "group_by_length"],
            ValueError,
            "would also shuffle evaluation examples",
        ),
        (
            lambda given: [*given, "--task_name", "mnli"],
            ValueError,
            r"no column 'premise'\. Choose one of sentence, label",
        ),
    ],
    ids=["task", "no data", "nothing", "text", "split", "file", "kind of file", "order", "column"],
)
def test_errors(place: Path, tmp_path: Path, change: Callable, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        run_glue.main(change(options(place, tmp_path)))
