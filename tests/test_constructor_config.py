"""ConstructorConfig: validation, reading from dicts, text and files, and the paper's presets."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainingArguments, get_scheduler
from transformers.trainer_utils import IntervalStrategy

from defemb_callbacks import DefinitionEMBConfig
from defemb_callbacks.constructor_config import PAPER_SETTINGS, TRAINING_DEFAULTS, ConstructorConfig
from defemb_callbacks.reconstruction.constructor.training import constructor_arguments, early_stopping

# Each setting with a value that is not its default.
OTHER: dict[str, Any] = {
    "head": "random",
    "masking": "random",
    "words": "dictionary",
    "train_embeddings": True,
    "filter_ratio": 0.1,
    "held_out": 0.2,
    "patience": 5,
    "tokens_per_batch": 512,
    "lora_r": 8,
    "save_to": "somewhere",
    "training": {"learning_rate": 1e-3},
}


def arguments(config: ConstructorConfig, tmp_path: Path, *, evaluates: bool = True) -> TrainingArguments:
    return constructor_arguments(tmp_path, config, device=torch.device("cpu"), bfloat16=False, evaluates=evaluates)


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "zero"}, r"`head` must be one of ridge, random, got 'zero'"),
        ({"masking": "all"}, r"`masking` must be one of autoregressive, random, got 'all'"),
        ({"words": "all"}, r"`words` must be one of tokens, dictionary, got 'all'"),
        ({"filter_ratio": 1}, r"`filter_ratio` must be at least 0 and less than 1, got 1\."),
        ({"filter_ratio": -0.1}, r"`filter_ratio` must be at least 0 and less than 1, got -0.1\."),
        ({"filter_ratio": float("nan")}, r"`filter_ratio` must be at least 0 and less than 1, got nan\."),
        ({"held_out": 1.0}, r"`held_out` must be at least 0 and less than 1, got 1.0\."),
        ({"held_out": -1}, r"`held_out` must be at least 0 and less than 1, got -1\."),
        ({"patience": 0}, r"`patience` must be at least 1, got 0\."),
        ({"tokens_per_batch": 0}, r"`tokens_per_batch` must be at least 1, got 0\."),
        ({"tokens_per_batch": None}, r"`tokens_per_batch` must be a number, got None\."),
        ({"lora_r": 0}, r"`lora_r` must be at least 1, got 0\."),
        ({"patience": 5, "held_out": 0}, r"`patience=5` requires words to evaluate on, got `held_out=0`\."),
        ({"lora_r": 8, "train_embeddings": True}, r"`train_embeddings=True` cannot be combined with `lora_r=8`"),
        ({"training": "fast"}, r"`training` must be a dict of fields of TrainingArguments, got 'fast'\."),
        ({"training": None}, r"`training` must be a dict of fields of TrainingArguments, got None\."),
    ],
)
def test_invalid_values_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        ConstructorConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"filter_ratio": 0, "held_out": 0},
        {"filter_ratio": 0.999, "held_out": 0.999},
        {"patience": 1, "tokens_per_batch": 1, "lora_r": 1},
        {"patience": None, "held_out": 0, "lora_r": None},
    ],
)
def test_limits_are_inclusive(settings):
    config = ConstructorConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"lora": 8}, r"'lora' is not a setting of the constructor. Pass one of head, masking, .*lora_r"),
        ('{"lora": 8}', r"'lora' is not a setting of the constructor. Pass one of head"),
        ('{"lora_r": }', r"`constructor` must be valid JSON, got '{\"lora_r\": }': Expecting value"),
        ("nowhere.json", r"`constructor` must be a JSON object or the path of a JSON file, got 'nowhere.json'"),
        ("[8]", r"`constructor` must be a JSON object or the path of a JSON file, got '\[8\]'"),
        ([8], r"`constructor` must be a dict of settings, such as {'lora_r': 8}, got \[8\]"),
        (8, r"`constructor` must be a dict of settings, .*, got 8"),
        ({"lora_r": -2}, r"`lora_r` must be at least 1, got -2"),
    ],
)
def test_invalid_sources_raise(value, message):
    with pytest.raises(ValueError, match=message):
        ConstructorConfig.read(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{lora_r: 8}", r"must be valid JSON"), ("[8]", r"`constructor` must be a dict of settings, .*, got \[8\]")],
)
def test_invalid_files_raise(tmp_path, text, message):
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        ConstructorConfig.read(str(path))


def test_an_unknown_training_setting_raises(tmp_path):
    with pytest.raises(ValueError, match=r"training settings do not fit TrainingArguments: .*'learning_rat'"):
        arguments(ConstructorConfig(training={"learning_rat": 1}), tmp_path)


# What is read


def test_reads_a_dict_text_a_file_a_config_and_none(tmp_path):
    expected = ConstructorConfig(**OTHER | {"lora_r": None})
    settings = OTHER | {"lora_r": None}
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(settings))
    for value in (settings, json.dumps(settings), " \n" + json.dumps(settings), str(path), expected):
        assert ConstructorConfig.read(value) == expected
    assert ConstructorConfig.read(None) == ConstructorConfig.read({}) == ConstructorConfig.read("{}")
    assert ConstructorConfig.read(None) == ConstructorConfig()


@pytest.mark.parametrize("name", OTHER)
def test_reading_and_writing_round_trip(name):
    config = ConstructorConfig(**{name: OTHER[name]})
    assert ConstructorConfig.read(json.dumps(config.to_dict())) == config
    assert config != ConstructorConfig()


def test_settings_without_held_out_words_round_trip():
    config = ConstructorConfig(held_out=0)
    assert ConstructorConfig.read(config.to_dict()) == config


def test_every_setting_is_covered_here():
    assert {field.name for field in fields(ConstructorConfig)} == set(OTHER)


def test_written_settings_are_copies():
    config = ConstructorConfig(training={"max_steps": 5})
    config.to_dict()["training"]["max_steps"] = 7
    assert config.training == {"max_steps": 5}
    assert ConstructorConfig().training == {}


# How it is trained


def test_training_settings_override_the_defaults(tmp_path):
    assert ConstructorConfig().training_settings == TRAINING_DEFAULTS
    config = ConstructorConfig(training={"learning_rate": 0.5, "max_steps": 7})
    made = arguments(config, tmp_path)
    assert (made.learning_rate, made.max_steps) == (0.5, 7)
    left = {name: value for name, value in TRAINING_DEFAULTS.items() if name not in ("learning_rate", "report_to")}
    assert {name: getattr(made, name) for name in left} == left
    assert made.output_dir == str(tmp_path)
    assert "learning_rate" not in ConstructorConfig().training


def test_required_training_arguments_cannot_be_set(tmp_path):
    made = arguments(ConstructorConfig(training={"remove_unused_columns": True, "label_names": ["x"]}), tmp_path)
    assert (made.remove_unused_columns, made.label_names, made.prediction_loss_only) == (False, ["labels"], True)


def test_early_stopping_needs_held_out_words(tmp_path):
    for config, evaluates, expected in (
        (ConstructorConfig(patience=4), True, ["steps", True, 4]),
        (ConstructorConfig(patience=None), True, ["steps", False, None]),
        (ConstructorConfig(patience=4), False, ["no", False, None]),
    ):
        made = arguments(config, tmp_path, evaluates=evaluates)
        found = [callback.early_stopping_patience for callback in early_stopping(config, evaluates)]
        assert [made.eval_strategy.value, made.load_best_model_at_end, found[0] if found else None] == expected
        assert all(isinstance(callback, EarlyStoppingCallback) for callback in early_stopping(config, evaluates))
    best = arguments(ConstructorConfig(), tmp_path)
    assert (best.metric_for_best_model, best.greater_is_better) == ("eval_loss", False)
    assert best.eval_strategy == best.save_strategy == IntervalStrategy.STEPS
    assert best.eval_steps == best.save_steps


# The paper's settings

INVERSE_SQRT = {
    "learning_rate": 1e-4, "lr_scheduler_type": "inverse_sqrt", "optim": "adamw_torch", "adam_beta1": 0.9,
    "adam_beta2": 0.98, "weight_decay": 0.01, "max_grad_norm": 0.1,
}  # fmt: skip
ADAFACTOR = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "optim": "adafactor", "warmup_steps": 0}
# Updates, warm-up, tokens per batch, maximum length, whether the input table is trained, masking.
PAPER: dict[str, tuple[dict[str, Any], int, int, bool, str]] = {
    "roberta-base": ({**INVERSE_SQRT, "max_steps": 400_000, "warmup_steps": 24_000}, 4096, 512, True, "random"),
    "bart-large": ({**INVERSE_SQRT, "max_steps": 250_000, "warmup_steps": 20_000}, 4096, 1024, False, "autoregressive"),
    "t5-large": ({**ADAFACTOR, "max_steps": 125_000}, 8192, 512, False, "autoregressive"),
    "t5gemma-l-ul2": ({**ADAFACTOR, "max_steps": 125_000}, 8192, 512, False, "autoregressive"),
}


@pytest.mark.parametrize("name", PAPER)
def test_paper_settings(name, tmp_path):
    training, tokens, longest, trained, masking = PAPER[name]
    config = DefinitionEMBConfig.paper(name)
    constructor = config.constructor_config
    made = arguments(constructor, tmp_path)
    assert {setting: getattr(made, setting) for setting in training} == training
    assert (constructor.tokens_per_batch, config.max_length) == (tokens, longest)
    assert (constructor.train_embeddings, constructor.masking) == (trained, masking)
    # For all four: random head, rare tokens are targets too, one definition, no blending.
    assert (constructor.head, constructor.filter_ratio, constructor.patience) == ("random", 0.0, None)
    assert (config.definitions_per_token, config.strategy, config.rescale, config.alpha) == (1, "replace", False, 1.0)
    assert (config.method, constructor.words, constructor.lora_r) == ("learned", "tokens", None)


def test_unknown_paper_models_raise():
    assert set(PAPER_SETTINGS) == set(PAPER)
    with pytest.raises(ValueError, match=r"`name` must be one of roberta-base, .*t5gemma-l-ul2, got 'bert'"):
        DefinitionEMBConfig.paper("bert")


def test_paper_settings_can_be_overridden_and_are_copies():
    config = DefinitionEMBConfig.paper("bart-large", only_training_tokens=True, max_length=128)
    assert (config.only_training_tokens, config.max_length, config.definitions_per_token) == (True, 128, 1)
    assert isinstance(config.constructor, dict)
    config.constructor["training"]["max_steps"] = 3
    again = DefinitionEMBConfig.paper("bart-large").constructor_config.training
    assert again["max_steps"] == 250_000
    # Single settings of the constructor are replaced, also within its training.
    for change in (
        {"held_out": 0.1, "training": {"max_steps": 10}},
        '{"held_out": 0.1, "training": {"max_steps": 10}}',
    ):
        shorter = DefinitionEMBConfig.paper("bart-large", constructor=change).constructor_config
        assert (shorter.held_out, shorter.head, shorter.training) == (0.1, "random", {**again, "max_steps": 10})


@pytest.mark.parametrize("name", PAPER)
def test_paper_learning_rate_schedules(name, tmp_path):
    made = arguments(DefinitionEMBConfig.paper(name).constructor_config, tmp_path)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=made.learning_rate)
    schedule = get_scheduler(made.lr_scheduler_type, optimizer, made.get_warmup_steps(made.max_steps), made.max_steps)
    rate = schedule.lr_lambdas[0]
    warmup = PAPER[name][0]["warmup_steps"]
    if PAPER[name][0]["lr_scheduler_type"] == "constant":
        assert [rate(step) for step in (0, 1000, 124_999)] == [1.0, 1.0, 1.0]
    else:
        found = [rate(step) for step in (0, warmup // 2, warmup, 4 * warmup)]
        assert found == pytest.approx([0.0, 0.5, 1.0, 0.5])


# Fingerprints


FINGERPRINTED = {name: value for name, value in OTHER.items() if name != "save_to"}


def learned(**settings: object) -> DefinitionEMBConfig:
    return DefinitionEMBConfig(method="learned", constructor=settings)


@pytest.mark.parametrize("name", FINGERPRINTED)
def test_every_setting_changes_the_fingerprint(name):
    changed = learned(**{name: FINGERPRINTED[name]})
    assert changed.build_fingerprint != DefinitionEMBConfig(method="learned").build_fingerprint


def test_different_settings_have_distinct_fingerprints():
    configs = [DefinitionEMBConfig(), DefinitionEMBConfig(method="learned")]
    configs += [learned(**{name: value}) for name, value in FINGERPRINTED.items()]
    configs += [learned(training={"learning_rate": 2e-3}), learned(training={"max_steps": 3})]
    assert len({config.build_fingerprint for config in configs}) == len(configs)


def test_explicit_defaults_have_the_fingerprint_of_the_defaults():
    implicit = DefinitionEMBConfig(method="learned")
    for constructor in ({}, ConstructorConfig().to_dict(), "{}", {"lora_r": None}):
        explicit = DefinitionEMBConfig(method="learned", constructor=constructor)
        assert explicit.build_fingerprint == implicit.build_fingerprint
        assert explicit.constructor_config == implicit.constructor_config == ConstructorConfig()


def test_save_to_does_not_change_the_fingerprint():
    assert learned(save_to="here").build_fingerprint == learned(save_to="there").build_fingerprint


def test_mixed_precision_of_the_launch_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    made = arguments(ConstructorConfig(), tmp_path)
    assert (made.mixed_precision, made.bf16, made.fp16) == ("no", False, False)
    assert arguments(ConstructorConfig(training={"bf16": True}), tmp_path).mixed_precision == "bf16"
