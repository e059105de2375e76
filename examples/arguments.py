"""Command lines of the example scripts: a recipe in YAML, and options that replace single settings of it."""

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
    """Which model, and whether its embeddings are rebuilt, from what."""

    model_name_or_path: str = field(metadata={"help": "Folder or hub id."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the hub."})
    definition_emb: bool = field(
        default=True, metadata={"help": "Rebuild the embeddings before training; false is the baseline."}
    )
    definitions: list[str] = field(
        default_factory=lambda: ["wordnet"], metadata={"help": "'wordnet' and files, as `load_definitions` reads them."}
    )


def parse(types: Sequence[type], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """One instance of each dataclass from `[RECIPE.yaml] --name value …`.

    A recipe's `paper: bart-large` stands for all settings of `DefinitionEMBConfig.paper("bart-large")`; those beside it
    replace single ones.

    Args:
        types: dataclasses, no two of which have a field of the same name.
        argv: without the script's name; by default those of this process.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given and given[0].endswith((".yaml", ".yml")):
        given = [*_options(Path(given[0])), *given[1:]]
    return tuple(HfArgumentParser(types).parse_args_into_dataclasses(given))


def _options(recipe: Path) -> list[str]:
    """The settings of a recipe as options; what is given after them replaces them."""
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
