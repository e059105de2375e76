"""A config is either valid or refused by name, and reads from a command line beside the Trainer's own arguments."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from transformers import HfArgumentParser, TrainingArguments

from defemb_callbacks import DefinitionEMBConfig
from defemb_callbacks.constructor_config import ConstructorConfig

BUILD = {
    "table": "decoder",
    "features": ["mask"],
    "definitions_per_token": 1,
    "max_length": 32,
    "precision": "float32",
}
WRITE = {
    "batch_size": 7,
    "strategy": "replace",
    "blend": 0.1,
    "blend_floor": 0.9,
    "rescale": False,
    "alpha": 0.5,
    "only_training_tokens": True,
    "frequency": "training_data",
    "group_edges": [0.1, 0.2],
    "new_token_group": "medium",
    "monitor_steps": 5,
    "monitor_sample": 500,
    "ratings": __file__,
    "plots": False,
    "cache_dir": "/tmp/elsewhere",
}


def parse(*arguments: str) -> tuple[DefinitionEMBConfig, TrainingArguments]:
    parser = HfArgumentParser((DefinitionEMBConfig, TrainingArguments))
    return parser.parse_args_into_dataclasses(["--output_dir", "out", *arguments])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, r"method='magic' is unknown; choose from ridge, learned"),
        ({"table": "middle"}, r"table='middle' is unknown; choose from input, output, decoder"),
        ({"constructor": {"lora_r": 8}}, r"constructor= is of method='learned', but method='ridge'"),
        ({"method": "learned", "constructor": {"lora": 8}}, r"The constructor has no setting 'lora'; known are head"),
        ({"method": "learned", "constructor": "{8}"}, r"constructor='\{8\}' is no valid JSON"),
        ({"method": "learned", "constructor": "no.json"}, r"'no.json' is neither a JSON object nor a file with one"),
        ({"method": "learned", "constructor": {"held_out": 1}}, r"held_out=1 is not from 0 to below 1"),
        ({"strategy": "swap"}, r"strategy='swap' is unknown; choose from blend, replace"),
        ({"new_token_group": "new"}, r"new_token_group='new' is unknown; choose from frequent, medium, rare"),
        ({"precision": "float16"}, r"precision='float16' is unknown; choose from auto, float32, bfloat16"),
        ({"features": []}, r"features=\[\] must name at least one feature"),
        ({"features": ["mean", "mean"]}, r"features=\['mean', 'mean'\] must .* none twice"),
        ({"features": ["mean", "last"]}, r"features contains 'last'; choose from mean, first, mask, bag"),
        ({"blend": 1.01}, r"blend=1.01 is not between 0 and 1"),
        ({"blend": -0.01}, r"blend=-0.01 is not between 0 and 1"),
        ({"blend": float("nan")}, r"blend=nan is not between 0 and 1"),
        ({"blend_floor": 2}, r"blend_floor=2 is not between 0 and 1"),
        ({"alpha": -1}, r"alpha=-1 is not between 0 and 1"),
        ({"definitions_per_token": 0}, r"definitions_per_token=0 is less than 1"),
        ({"max_length": 3}, r"max_length=3 is less than 4"),
        ({"batch_size": 0}, r"batch_size=0 is less than 1"),
        ({"monitor_sample": 1}, r"monitor_sample=1 is less than 2; None measures every token"),
        ({"ratings": "nowhere.txt"}, r"ratings='nowhere.txt' is not a file"),
        ({"monitor_steps": -1}, r"monitor_steps=-1 is negative; 0 switches the metrics off"),
        ({"group_edges": [0.5]}, r"group_edges=\[0.5\] must be two growing shares"),
        ({"group_edges": [0.3, 0.5, 0.8]}, r"group_edges=.* must be two growing shares"),
        ({"group_edges": [0.8, 0.3]}, r"group_edges=.* must be two growing shares"),
        ({"group_edges": [0.3, 0.3]}, r"group_edges=.* must be two growing shares"),
        ({"group_edges": [0.0, 0.8]}, r"group_edges=.* must be two growing shares"),
        ({"group_edges": [0.3, 1.0]}, r"group_edges=.* must be two growing shares"),
    ],
)
def test_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        DefinitionEMBConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"blend": 0, "blend_floor": 0, "alpha": 0},
        {"blend": 1, "blend_floor": 1, "alpha": 1},
        {"definitions_per_token": 1, "max_length": 4, "batch_size": 1, "monitor_steps": 0},
        {"group_edges": [0.001, 0.999]},
        {"features": ["mean", "first", "mask", "bag"]},
    ],
)
def test_the_limits_themselves_are_allowed(settings):
    config = DefinitionEMBConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_no_field_has_the_name_of_a_training_argument():
    ours, theirs = ({field.name for field in fields(kind)} for kind in (DefinitionEMBConfig, TrainingArguments))
    assert not ours & theirs


def test_every_field_has_help():
    assert [field.name for field in fields(DefinitionEMBConfig) if not field.metadata.get("help")] == []


def test_a_command_line_without_settings_gives_the_defaults():
    config, arguments = parse()
    assert config == DefinitionEMBConfig()
    assert arguments.output_dir == "out"


def test_a_command_line_sets_every_field_in_its_type():
    constructor = json.dumps(ConstructorConfig(lora_r=8, training={"max_steps": 3}).to_dict())
    flags = {**BUILD, **WRITE, "method": "learned", "constructor": constructor, "features": ["mask", "first"]}
    line = []
    for name, value in flags.items():
        line += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    config, _ = parse(*line)
    assert flags.keys() == {field.name for field in fields(DefinitionEMBConfig)}
    assert config == DefinitionEMBConfig(**flags)
    assert {name: type(value) for name, value in config.to_dict().items()} == {
        name: type(value) for name, value in flags.items()
    } | {"constructor": dict}


@pytest.mark.parametrize("in_a_file", [False, True])
def test_a_command_line_sets_the_constructor_beside_the_trainers_own_arguments(in_a_file, tmp_path):
    text = '{"lora_r": 8, "training": {"learning_rate": 0.5}}'
    path = tmp_path / "constructor.json"
    path.write_text(text)
    line = ["--method", "learned", "--constructor", str(path) if in_a_file else text, "--learning_rate", "0.25"]
    config, arguments = parse(*line)
    assert config.constructor_config == ConstructorConfig(lora_r=8, training={"learning_rate": 0.5})
    assert arguments.learning_rate == 0.25


def test_a_command_line_is_validated_as_well():
    with pytest.raises(ValueError, match=r"alpha=3.0 is not between 0 and 1"):
        parse("--alpha", "3")


def test_a_choice_that_does_not_exist_stops_the_parser(capsys):
    with pytest.raises(SystemExit):
        parse("--strategy", "swap")
    assert "invalid choice: 'swap'" in capsys.readouterr().err


def test_to_dict_is_json_and_gives_the_config_back():
    learned = {"method": "learned", "constructor": {"held_out": 0, "training": {"max_steps": 3}}}
    for settings in ({}, learned, {"method": "learned"}):
        config = DefinitionEMBConfig(**BUILD, **WRITE, **settings)
        assert DefinitionEMBConfig(**json.loads(json.dumps(config.to_dict()))) == config
    paper = DefinitionEMBConfig.paper("t5-large")
    assert DefinitionEMBConfig(**json.loads(json.dumps(paper.to_dict()))) == paper


def test_configs_share_no_lists():
    given = {"training": {"max_steps": 3}}
    DefinitionEMBConfig(method="learned", constructor=given).constructor["training"]["max_steps"] = 4
    assert given == {"training": {"max_steps": 3}}
    DefinitionEMBConfig().features.append("mask")
    assert DefinitionEMBConfig().features == ["mean", "bag"]
    first = DefinitionEMBConfig()
    DefinitionEMBConfig.resolve(first, {}).group_edges[0] = 0.5
    assert first.group_edges == [0.3, 0.8]


def test_overrides_replace_fields_and_leave_the_config_alone():
    config = DefinitionEMBConfig(blend=0.2, alpha=0.5)
    resolved = DefinitionEMBConfig.resolve(config, {"alpha": 0.7})
    assert (resolved.blend, resolved.alpha, config.alpha) == (0.2, 0.7, 0.5)
    assert DefinitionEMBConfig.resolve(None, {}) == DefinitionEMBConfig()


def test_an_override_that_is_no_field_is_refused_and_the_fields_are_listed():
    with pytest.raises(TypeError, match=r"'blnd' is no setting; known are method, .*blend_floor"):
        DefinitionEMBConfig.resolve(None, {"blnd": 0.2})


def test_an_override_is_validated():
    with pytest.raises(ValueError, match="blend=7 is not between 0 and 1"):
        DefinitionEMBConfig.resolve(DefinitionEMBConfig(), {"blend": 7})


@pytest.mark.parametrize("name", BUILD)
def test_what_changes_the_vectors_changes_the_fingerprint(name):
    changed = DefinitionEMBConfig(**{name: BUILD[name]})
    assert changed.build_fingerprint != DefinitionEMBConfig().build_fingerprint


def test_what_only_decides_on_the_writing_does_not():
    assert DefinitionEMBConfig(**WRITE).build_fingerprint == DefinitionEMBConfig().build_fingerprint


def test_every_field_is_known_to_this_file():
    assert {field.name for field in fields(DefinitionEMBConfig)} == {*BUILD, *WRITE, "method", "constructor"}


def test_tuples_are_lists() -> None:
    config = DefinitionEMBConfig(features=("bag", "mean"), group_edges=(0.2, 0.9))  # type: ignore[arg-type]
    assert config.build_fingerprint == DefinitionEMBConfig(features=["bag", "mean"]).build_fingerprint
    assert config.group_edges == [0.2, 0.9]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "mean"}, r"features='mean' must be a list, such as \['mean'\]"),
        ({"frequency": "vocabulry"}, "frequency='vocabulry' is neither 'vocabulary', 'training_data', nor a file"),
    ],
)
def test_near_misses_are_told_before_anything_is_built(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        DefinitionEMBConfig(**settings)
