"""Update the README's tables from the JSON in `benchmarks/results/`, between `<!-- table NAME -->` and `<!-- end -->`.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tables_cost import faults, learned_speed, metrics, monitoring, scaling, speed
from tables_new_tokens import new_tokens, new_tokens_lm, new_tokens_recovery, new_tokens_speed
from tables_quality import (
    coverage,
    definitions,
    dictionaries,
    features,
    geometry,
    language_models,
    learned,
    sst2,
    supersense,
    weights,
    wordsim,
)
from tables_senses import senses, senses_cost, senses_wic, sentence, sentence_cost

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "supersense": ("supersense.json", supersense),
    "wordsim": ("wordsim.json", wordsim),
    "new_tokens": ("new_tokens.json", new_tokens),
    "new_tokens_recovery": ("new_tokens.json", new_tokens_recovery),
    "new_tokens_speed": ("new_tokens.json", new_tokens_speed),
    "new_tokens_lm": ("new_tokens_lm.json", new_tokens_lm),
    "geometry": ("geometry.json", geometry),
    "language_models": ("language_models.json", language_models),
    "sst2": ("sst2.json", sst2),
    "features": ("choices.json", features),
    "definitions": ("choices.json", definitions),
    "weights": ("choices.json", weights),
    "scaling": ("scaling.json", scaling),
    "faults": ("faults.json", faults),
    "speed": ("encode.json", speed),
    "metrics": ("metrics.json", metrics),
    "dictionaries": ("choices.json", dictionaries),
    "coverage": ("coverage.json", coverage),
    "learned": ("learned.json", learned),
    "learned_speed": ("learned_speed.json", learned_speed),
    "monitoring": ("monitoring.json", monitoring),
    "sentence": ("sentence.json", sentence),
    "sentence_cost": ("sentence.json", sentence_cost),
    "senses": ("senses.json", senses),
    "senses_cost": ("senses.json", senses_cost),
    "senses_wic": ("senses.json", senses_wic),
}


def render(text: str) -> str:
    """Return the text with every table generated again from its results."""

    def replaced(match: re.Match[str]) -> str:
        file, make = TABLES[match["name"]]
        result = json.loads((RESULTS / file).read_text(encoding="utf-8"))
        return f"<!-- table {match['name']} -->\n{make(result)}\n<!-- end -->"

    return re.sub(r"<!-- table (?P<name>\w+) -->\n.*?<!-- end -->", replaced, text, flags=re.DOTALL)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text(encoding="utf-8")), encoding="utf-8")
