"""Command lines of the example scripts: a recipe in YAML, and options that replace single settings of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


def parse(types: Sequence[type], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """One instance of each dataclass from `[RECIPE.yaml] --name value …`.

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
    options = []
    for name, value in yaml.safe_load(recipe.read_text(encoding="utf-8")).items():
        if isinstance(value, list):
            options += [f"--{name}", *map(str, value)]
        else:
            options += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return options
