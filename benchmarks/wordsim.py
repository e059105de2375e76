"""Word similarity of a checkpoint before and after the rebuild: closed form and learned, with one and two dictionaries.

    python benchmarks/wordsim.py

Needs the external script `shared/tools/wordsim.py` and its data (MEN-3000, SimLex-999, RareWords-2034) next to the
repository; the human ratings are not used for tuning. The score is Spearman's correlation over the same pairs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from common import DATA, RESULTS, WIKTIONARY, add_model_argument, environment, find_model
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks import DefinitionEMBConfig, build_definition_embeddings

BOTH = ["wordnet", str(WIKTIONARY)]
SETUPS: dict[str, tuple[Any, DefinitionEMBConfig]] = {
    "default": ("wordnet", DefinitionEMBConfig()),
    "replace": ("wordnet", DefinitionEMBConfig(strategy="replace")),
    "both": (BOTH, DefinitionEMBConfig()),
    "learned": ("wordnet", DefinitionEMBConfig(method="learned")),
    "learned, replace": ("wordnet", DefinitionEMBConfig(method="learned", strategy="replace")),
}


def human_ratings(models: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return {dataset: {group: {"pairs": number, label of a model: correlation, …}}}."""
    referee = DATA.parent / "tools" / "wordsim.py"
    if not referee.is_file():
        sys.exit(f"{referee} does not exist. It computes the scores.")
    with tempfile.TemporaryDirectory() as folder:
        paths = {str(Path(folder, label)): label for label in models}
        for path, label in paths.items():
            models[label].save_pretrained(path)
            tokenizer.save_pretrained(path)
        command = [sys.executable, str(referee), *paths, "--data", str(DATA / "wordsim"), "--json"]
        report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        dataset: {group: {paths.get(key, key): value for key, value in row.items()} for group, row in groups.items()}
        for dataset, groups in report.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--setups", nargs="+", default=list(SETUPS))
    parser.add_argument("--output", type=Path, default=RESULTS / "wordsim.json")
    arguments = parser.parse_args()
    name = arguments.model or find_model()
    tokenizer = AutoTokenizer.from_pretrained(name)
    checkpoints = {"pretrained": AutoModel.from_pretrained(name)}
    for label in arguments.setups:
        definitions, config = SETUPS[label]
        model = checkpoints[label] = AutoModel.from_pretrained(name)
        build_definition_embeddings(model, tokenizer, definitions, config).apply(model, config)
    scores = human_ratings(checkpoints, tokenizer)
    gains = {
        label: {dataset: groups["all"][label] - groups["all"]["pretrained"] for dataset, groups in scores.items()}
        for label in arguments.setups
    }
    result = {
        "scores": scores,
        "gains": gains,
        "mean_gain": {label: mean(by_set.values()) for label, by_set in gains.items()},
        "environment": environment(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: result[name] for name in ("gains", "mean_gain")}, indent=1))


if __name__ == "__main__":
    main()
