"""DefinitionEMBConfig: validation, parsing together with TrainingArguments, fingerprints."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from transformers import HfArgumentParser, TrainingArguments

from defemb_callbacks import DefinitionEMBConfig
from defemb_callbacks.constructor_config import ConstructorConfig
from tiny import tiny_bert, wordpiece_tokenizer

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
    "distil": True,
    "texts_per_term": 3,
    "reuse_reserved": True,
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
        ({"method": "magic"}, r"`method` must be one of ridge, learned, got 'magic'"),
        ({"table": "middle"}, r"`table` must be one of input, output, decoder, got 'middle'"),
        ({"method": "learned", "reader": "a/b"}, r"`reader` requires `method='ridge'`, got .* `reader='a/b'`"),
        ({"constructor": {"lora_r": 8}}, r"`constructor` requires `method='learned'`, got `method='ridge'`"),
        ({"method": "learned", "constructor": {"lora": 8}}, r"'lora' is not a setting of the constructor"),
        ({"method": "learned", "constructor": "{8}"}, r"`constructor` must be valid JSON, got '\{8\}'"),
        ({"method": "learned", "constructor": "no.json"}, r"a JSON object or the path of a JSON file, got 'no.json'"),
        ({"method": "learned", "constructor": {"held_out": 1}}, r"`held_out` must be at least 0 and less than 1"),
        ({"strategy": "swap"}, r"`strategy` must be one of blend, replace, got 'swap'"),
        ({"new_token_group": "new"}, r"`new_token_group` must be one of frequent, medium, rare, got 'new'"),
        ({"precision": "float16"}, r"`precision` must be one of auto, float32, bfloat16, got 'float16'"),
        ({"features": []}, r"`features` must be a non-empty list without duplicates, got \[\]"),
        ({"features": ["mean", "mean"]}, r"`features` must be .* without duplicates, got \['mean', 'mean'\]"),
        (
            {"features": ["mean", "sum"]},
            r"`features` must contain only mean, first, mask, bag, layers, middle, last, got 'sum'",
        ),
        ({"blend": 1.01}, r"`blend` must be between 0 and 1, got 1.01"),
        ({"blend": -0.01}, r"`blend` must be between 0 and 1, got -0.01"),
        ({"blend": float("nan")}, r"`blend` must be between 0 and 1, got nan"),
        ({"blend_floor": 2}, r"`blend_floor` must be between 0 and 1, got 2"),
        ({"alpha": -1}, r"`alpha` must be between 0 and 1, got -1"),
        ({"definitions_per_token": 0}, r"`definitions_per_token` must be at least 1, got 0"),
        ({"max_length": 3}, r"`max_length` must be at least 4, got 3"),
        ({"max_length": None}, r"`max_length` must be at least 4, got None"),
        ({"texts_per_term": 0}, r"`texts_per_term` must be at least 1, got 0"),
        ({"batch_size": 0}, r"`batch_size` must be at least 1, got 0"),
        ({"monitor_sample": 1}, r"`monitor_sample` must be at least 2, got 1. None measures every token"),
        ({"ratings": "nowhere.txt"}, r"`ratings` must be the path of a file, got 'nowhere.txt'"),
        ({"monitor_steps": -1}, r"`monitor_steps` must be at least 0, got -1. 0 disables the metrics"),
        ({"group_edges": [0.5]}, r"`group_edges` must be two increasing shares between 0 and 1, got \[0.5\]"),
        ({"group_edges": [0.3, 0.5, 0.8]}, r"`group_edges` must be two increasing shares"),
        ({"group_edges": [0.8, 0.3]}, r"`group_edges` must be two increasing shares"),
        ({"group_edges": [0.3, 0.3]}, r"`group_edges` must be two increasing shares"),
        ({"group_edges": [0.0, 0.8]}, r"`group_edges` must be two increasing shares"),
        ({"group_edges": [0.3, 1.0]}, r"`group_edges` must be two increasing shares"),
    ],
)
def test_invalid_values_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        DefinitionEMBConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"blend": 0, "blend_floor": 0, "alpha": 0},
        {"blend": 1, "blend_floor": 1, "alpha": 1},
        {"definitions_per_token": 1, "max_length": 4, "batch_size": 1, "monitor_steps": 0},
        {"group_edges": [0.001, 0.999]},
        {"features": ["mean", "first", "mask", "bag", "layers", "middle", "last"]},
    ],
)
def test_limits_are_inclusive(settings):
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
    # A constructor reads by itself.
    assert flags.keys() == {field.name for field in fields(DefinitionEMBConfig)} - {"reader"}
    assert config == DefinitionEMBConfig(**flags)
    assert {name: type(value) for name, value in config.to_dict().items()} == {
        name: type(value) for name, value in flags.items()
    } | {"constructor": dict, "reader": type(None)}


def test_a_command_line_names_the_reader():
    config, _ = parse("--reader", "sentence-transformers/all-MiniLM-L6-v2")
    assert config == DefinitionEMBConfig(reader="sentence-transformers/all-MiniLM-L6-v2")


def test_a_reader_that_is_a_model_is_kept_by_copies_and_named_in_json():
    model = tiny_bert(wordpiece_tokenizer())
    for reader, name in ((("a model", "its tokenizer"), "str"), ((model, None), "BertModel"), ("a/b", "a/b")):
        config = DefinitionEMBConfig(reader=reader)
        assert DefinitionEMBConfig.resolve(config, {"alpha": 0.5}).reader is reader
        assert json.loads(json.dumps(config.to_dict()))["reader"] == name


@pytest.mark.parametrize("in_a_file", [False, True])
def test_a_command_line_sets_the_constructor_together_with_training_arguments(in_a_file, tmp_path):
    text = '{"lora_r": 8, "training": {"learning_rate": 0.5}}'
    path = tmp_path / "constructor.json"
    path.write_text(text)
    line = ["--method", "learned", "--constructor", str(path) if in_a_file else text, "--learning_rate", "0.25"]
    config, arguments = parse(*line)
    assert config.constructor_config == ConstructorConfig(lora_r=8, training={"learning_rate": 0.5})
    assert arguments.learning_rate == 0.25


def test_a_command_line_is_validated():
    with pytest.raises(ValueError, match=r"`alpha` must be between 0 and 1, got 3.0"):
        parse("--alpha", "3")


def test_an_unknown_choice_stops_the_parser(capsys):
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
    features = ["mean", "bag"]
    DefinitionEMBConfig(features=features).features.append("mask")
    assert features == ["mean", "bag"]
    first = DefinitionEMBConfig()
    DefinitionEMBConfig.resolve(first, {}).group_edges[0] = 0.5
    assert first.group_edges == [0.3, 0.8]


def test_overrides_replace_fields_in_a_copy():
    config = DefinitionEMBConfig(blend=0.2, alpha=0.5)
    resolved = DefinitionEMBConfig.resolve(config, {"alpha": 0.7})
    assert (resolved.blend, resolved.alpha, config.alpha) == (0.2, 0.7, 0.5)
    assert DefinitionEMBConfig.resolve(None, {}) == DefinitionEMBConfig()


def test_an_unknown_override_raises_and_lists_the_fields():
    with pytest.raises(TypeError, match=r"'blnd' is not a setting. Pass one of method, .*blend_floor"):
        DefinitionEMBConfig.resolve(None, {"blnd": 0.2})


def test_an_override_is_validated():
    with pytest.raises(ValueError, match="`blend` must be between 0 and 1, got 7"):
        DefinitionEMBConfig.resolve(DefinitionEMBConfig(), {"blend": 7})


@pytest.mark.parametrize("name", BUILD)
def test_settings_that_change_the_rows_change_the_fingerprint(name):
    changed = DefinitionEMBConfig(**{name: BUILD[name]})
    assert changed.build_fingerprint != DefinitionEMBConfig().build_fingerprint


def test_settings_of_the_writing_do_not_change_the_fingerprint():
    assert DefinitionEMBConfig(**WRITE).build_fingerprint == DefinitionEMBConfig().build_fingerprint


def test_every_field_is_covered_here():
    assert {field.name for field in fields(DefinitionEMBConfig)} == {
        *(*BUILD, *WRITE, "method", "constructor", "reader")
    }


def test_tuples_become_lists() -> None:
    config = DefinitionEMBConfig(features=("bag", "mean"), group_edges=(0.2, 0.9))  # type: ignore[arg-type]
    assert config.build_fingerprint == DefinitionEMBConfig(features=["bag", "mean"]).build_fingerprint
    assert config.group_edges == [0.2, 0.9]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "mean"}, r"`features` must be a list, got 'mean'. Pass \['mean'\]"),
        ({"frequency": "vocabulry"}, "`frequency` must be .* or the path of a file, got 'vocabulry'"),
    ],
)
def test_near_misses_raise(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        DefinitionEMBConfig(**settings)
