"""Command lines of the example scripts: an optional YAML recipe, and options that override its settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from defemb_callbacks import DefinitionEMBConfig


@dataclass
class ModelArguments:
    """Model, and the dictionaries its embeddings are rebuilt from."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub id."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
    definition_emb: bool = field(
        default=True, metadata={"help": "Rebuild the embeddings before training; false is the baseline."}
    )
    definitions: list[str] = field(
        default_factory=lambda: ["wordnet"],
        metadata={"help": "'wordnet' and dictionary files; see `load_definitions`."},
    )


def parse(types: Sequence[type], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Parse `[RECIPE.yaml] --name value …` into one instance of each dataclass.

    `paper: bart-large` in a recipe stands for all settings of `DefinitionEMBConfig.paper("bart-large")`; other settings
    in the recipe override them.

    Args:
        types: Dataclasses without common field names.
        argv: Arguments without the script name; by default those of this process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        arguments = [*_options(Path(arguments[0])), *arguments[1:]]
    return tuple(HfArgumentParser(types).parse_args_into_dataclasses(arguments))


def _options(recipe: Path) -> list[str]:
    """Convert a recipe to options, which later options override."""
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    if "paper" in settings:
        settings = DefinitionEMBConfig.paper(settings.pop("paper")).to_dict() | settings
    options = []
    for name, value in settings.items():
        if isinstance(value, list):
            options += [f"--{name}", *map(str, value)]
        elif value is not None:
            options += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return options
