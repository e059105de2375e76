"""Meaning gained and geometry kept by each way to write the rows, for all-MiniLM-L6-v2 and WordNet.

    python benchmarks/geometry.py

Compares the default with `strategy="replace"`, with one weight for all directions ("scalar"), and with the default
after exchanging the reconstructed rows among the tokens ("shuffled"), a control that has no meaning to add. Word
similarity is the gain over the pretrained rows of Spearman's correlation with human ratings, see `wordsim.py`, whose
external script and data it needs. Sentence similarity is Spearman's correlation, on the validation pairs of STS-B, of
the cosines of mean-pooled states, without any training.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
from common import DATA, RESULTS, add_model_argument, environment, find_model
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from wordsim import human_ratings

from defemb_callbacks import DefinitionEMBConfig, DefinitionEmbeddings, build_definition_embeddings
from defemb_callbacks.metrics import measure_table
from defemb_callbacks.sentence import encode_texts
from defemb_callbacks.vocabulary.frequency import frequency_groups, frequency_rank, rarity

SCALAR_WEIGHTS = (0.1, 0.4)  # for the most and the least frequent token
METRICS = ("isotropy", "isoscore", "effective_rank", "average_cosine", "relation_auc")


def scalar_blend(embeddings: DefinitionEmbeddings, table: Tensor) -> Tensor:
    """Return the table with old and new deviations from its mean mixed with one weight for all directions."""
    rank = frequency_rank(embeddings.vocabulary)
    low, high = SCALAR_WEIGHTS
    weight = (low + (high - low) * rarity(rank)[embeddings.ids])[:, None]
    old, new = table[embeddings.ids].double(), embeddings.rows.double()
    centre = table[rank >= 0].double().mean(dim=0)
    length = (old - centre).norm(dim=1, keepdim=True)
    mixed = (1 - weight) * (old - centre) + weight * length * unit(new - centre)
    result = table.clone()
    result[embeddings.ids] = (unit(centre + length * unit(mixed)) * old.norm(dim=1, keepdim=True)).to(table.dtype)
    return result


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def shuffled(embeddings: DefinitionEmbeddings) -> DefinitionEmbeddings:
    """Give each token the row of another one."""
    order = torch.randperm(len(embeddings.ids), generator=torch.Generator().manual_seed(0))
    return replace(embeddings, rows=embeddings.rows[order])


def sentence_similarity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Spearman's correlation of cosines and human ratings, on the validation pairs of STS-B."""
    with (DATA / "stsb" / "validation.csv").open(encoding="utf-8", newline="") as file:
        left, right, ratings = zip(*csv.reader(file), strict=True)
    vectors = encode_texts(model, tokenizer, [*left, *right])
    cosines = torch.cosine_similarity(vectors[: len(left)], vectors[len(left) :])
    return float(spearmanr(cosines.tolist(), [float(rating) for rating in ratings]).statistic)


def table_of(model: PreTrainedModel) -> Tensor:
    return model.get_input_embeddings().weight.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--output", type=Path, default=RESULTS / "geometry.json")
    arguments = parser.parse_args()
    name = arguments.model or find_model()
    tokenizer = AutoTokenizer.from_pretrained(name)

    def load() -> PreTrainedModel:
        return AutoModel.from_pretrained(name, dtype=torch.float32).eval()

    models = {label: load() for label in ("pretrained", "default", "scalar", "replace", "shuffled")}
    config = DefinitionEMBConfig()
    embeddings = build_definition_embeddings(models["pretrained"], tokenizer, "wordnet", config)
    embeddings.apply(models["default"], config)
    embeddings.apply(models["replace"], DefinitionEMBConfig(strategy="replace"))
    shuffled(embeddings).apply(models["shuffled"], config)
    table_of(models["scalar"]).copy_(scalar_blend(embeddings, table_of(models["pretrained"])))

    scores = human_ratings(models, tokenizer)
    groups = frequency_groups(frequency_rank(embeddings.vocabulary), config.group_edges)
    rows = {}
    for label, model in models.items():
        measured = measure_table(table_of(model), groups, pairs=embeddings.pairs)
        gains = {
            dataset: round(by_group["all"][label] - by_group["all"]["pretrained"], 4)
            for dataset, by_group in scores.items()
        }
        rows[label] = {
            "similarity": gains,
            "mean_similarity": round(mean(gains.values()), 4),
            "sentence_similarity": round(sentence_similarity(model, tokenizer), 4),
            **{metric: {group: measured[f"defemb/{metric}/{group}"] for group in groups} for metric in METRICS},
        }
    result = {
        "tokens": {group: len(ids) for group, ids in groups.items()},
        "defined": len(embeddings.ids),
        "r_squared": embeddings.info["r_squared"],
        "rows": rows,
        "environment": environment(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
