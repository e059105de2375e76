"""Update the tables of README and site from the JSON in `benchmarks/results/`.

A table is between `<!-- table NAME -->` and `<!-- end -->`. Tables that are too wide for a page are transposed or
divided.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tables_common import table
from tables_cost import faults, learned_speed, metrics, monitoring, scaling, speed
from tables_new_tokens import (
    new_tokens,
    new_tokens_lm,
    new_tokens_recovery,
    new_tokens_speed,
    new_tokens_texts,
    new_tokens_texts_lm,
)
from tables_quality import (
    coverage,
    definitions,
    dictionaries,
    features,
    fine_tuned,
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
    "new_tokens_texts": ("new_tokens_texts.json", new_tokens_texts),
    "new_tokens_texts_lm": ("new_tokens_texts_smollm2.json", new_tokens_texts_lm),
    "geometry": ("geometry.json", geometry),
    "language_models": ("language_models.json", language_models),
    "language_models_fine_tuned": ("language_models.json", fine_tuned),
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

MAX_COLUMNS = 6


def fitted(markdown: str) -> str:
    """Return a table with at most six columns.

    Args:
        markdown: The table. If it is too wide, it is divided where the first column repeats a value; otherwise it is
            transposed, in parts of as many rows as fit.
    """
    head, _, *rows = (line[2:-2].split(" | ") for line in markdown.splitlines())
    if len(head) <= MAX_COLUMNS:
        return markdown
    values = list(dict.fromkeys(row[0] for row in rows))
    if len(values) < len(rows):
        parts = [
            f"**{head[0]}: {value}**\n\n{fitted(table(head[1:], [row[1:] for row in rows if row[0] == value]))}"
            for value in values
        ]
        return "\n\n".join(parts)
    size = MAX_COLUMNS - 1
    parts = []
    for start in range(0, len(rows), size):
        header, *body = zip(head, *rows[start : start + size], strict=True)
        parts.append(table(list(header), [list(row) for row in body]))
    return "\n\n".join(parts)


def render(text: str) -> str:
    """Return the text with every table generated again from its results."""

    def replaced(match: re.Match[str]) -> str:
        file, make = TABLES[match["name"]]
        result = json.loads((RESULTS / file).read_text(encoding="utf-8"))
        return f"<!-- table {match['name']} -->\n{fitted(make(result))}\n<!-- end -->"

    return re.sub(r"<!-- table (?P<name>\w+) -->\n.*?<!-- end -->", replaced, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if render(text) != text:
            page.write_text(render(text), encoding="utf-8")
