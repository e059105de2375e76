"""Choice of the defaults on the vocabulary itself, without a downstream task and without human ratings.

    python benchmarks/choices.py

1. Features and number of definitions: how well cross-fitted rows predict the pretrained rows.
2. Weight of the new direction: `relation_auc` by frequency group, over pairs of words that have a WordNet relation but
   do not occur in each other's definitions, so that no pair is related by what the encoder has read.
3. `alpha`, the share of tokens that are rebuilt, least frequent first: the same over the whole vocabulary.
4. Dictionaries: the first score for WordNet, a small Wiktionary extract, and both, on the words that both define.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, WIKTIONARY, add_model_argument, centred_cosine, environment, find_model
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from defemb_callbacks import Definition, DefinitionEMBConfig, build_definition_embeddings, load_definitions
from defemb_callbacks.embeddings.blending import AUTO_BLEND, DirectionalBlend, blend_weights, choose_tokens
from defemb_callbacks.embeddings.rows_to_write import group_numbers, mean_row
from defemb_callbacks.metrics import pairs_by_group, relation_auc
from defemb_callbacks.metrics.pairs import related_tokens
from defemb_callbacks.reconstruction import cross_fitted_rows, definition_texts, resolve_settings, word_features
from defemb_callbacks.reconstruction.prompts import definition_prompt
from defemb_callbacks.vocabulary.frequency import frequency_groups, frequency_rank, rarity
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens, lemma_groups
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.rows import read_table

FEATURES = ("mean", "bag", "first", "mask", "layers")
COMBINATIONS = (
    ("mask",),
    ("first",),
    ("mean",),
    ("bag",),
    ("mean", "bag"),
    ("mean", "bag", "first", "mask"),
    ("layers", "bag"),
)
DEFINITIONS = (1, 2, 4, 8)
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
ALPHAS = (0.2, 0.5, 1.0)


def unmentioned(pairs: Tensor, words: dict[int, str], definitions: dict[int, list[Definition]]) -> Tensor:
    """Keep the pairs in which neither word occurs in the prompts of the other."""
    read = {
        index: set(re.findall(r"\w+", " ".join(definition_prompt(d, words[index], "") for d in found).lower()))
        for index, found in definitions.items()
    }
    kept = [a in read and b in read and words[b] not in read[a] and words[a] not in read[b] for a, b in pairs.tolist()]
    return pairs[torch.tensor(kept)]


def by_dictionary(model: PreTrainedModel, tokenizer: Any) -> dict[str, Any]:
    """Compute the centred cosine of cross-fitted to pretrained rows, on the words that all dictionaries define."""
    sources = {"WordNet": "wordnet", "Wiktionary 2015": str(WIKTIONARY), "both": ["wordnet", str(WIKTIONARY)]}
    built = {name: build_definition_embeddings(model, tokenizer, source) for name, source in sources.items()}
    table = read_table(model)
    one, other = built["WordNet"].ids, built["Wiktionary 2015"].ids
    ids = one[torch.isin(one, other)]
    found: dict[str, Any] = {"words": len(ids)}
    for name, embeddings in built.items():
        rows = embeddings.rows[torch.isin(embeddings.ids, ids)]
        found[name] = {"defined": len(embeddings.ids), "centred_cosine": centred_cosine(rows, table[ids])}
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--output", type=Path, default=RESULTS / "choices.json")
    arguments = parser.parse_args()
    name = arguments.model or find_model()
    model, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    vocabulary, lexicon = read_vocabulary(tokenizer), load_definitions("wordnet")
    config = resolve_settings(DefinitionEMBConfig(), model)
    table = read_table(model)
    widths = [table.shape[1] * (3 if feature == "layers" else 1) for feature in FEATURES]

    by_definitions, by_features = {}, {}
    for most in DEFINITIONS:
        found = definitions_of_tokens(vocabulary, lexicon, most)
        words = {index: vocabulary.words[index] or "" for index in found}
        texts = definition_texts(list(words.values()), list(found.values()), tokenizer, config.max_length)
        start = time.perf_counter()
        encoded = word_features(model, tokenizer, texts, FEATURES)
        seconds = time.perf_counter() - start
        old, groups = table[torch.tensor(list(found))], lemma_groups(list(found.values()))
        blocks = dict(zip(FEATURES, encoded.split(widths, dim=1), strict=True))
        for combination in COMBINATIONS if most == DEFINITIONS[-1] else [tuple(config.features)]:
            features = torch.cat([blocks[feature] for feature in combination], dim=1)
            fitted = cross_fitted_rows(features, old, groups=groups)
            scores = {"r_squared": fitted.r_squared, "centred_cosine": centred_cosine(fitted.rows, old)}
            if most == DEFINITIONS[-1]:
                by_features[" + ".join(combination)] = scores
            if combination == tuple(config.features):
                by_definitions[most] = scores | {"tokens": texts.tokens, "encode_seconds": seconds}
                rows = fitted.rows
            print(most, combination, scores, flush=True)

    ids, rank = torch.tensor(list(found)), frequency_rank(vocabulary)
    by_frequency = frequency_groups(rank)
    blend = DirectionalBlend.fit(table[ids], rows, mean_row(table, by_frequency["all"]))
    groups_of_ids = group_numbers(by_frequency, len(rank))[ids]
    pairs = pairs_by_group(
        unmentioned(related_tokens(vocabulary, lexicon), words, found),
        {group: members for group, members in by_frequency.items() if group != "all"},
    )

    def score(weights: Tensor) -> dict[str, float]:
        blended = table.clone()
        blended[ids] = blend(table[ids], rows, weights, groups_of_ids)
        return {group: relation_auc(blended, members) for group, members in pairs.items()}

    default = blend_weights(rarity(rank)[ids], AUTO_BLEND, config.blend_floor)
    by_weight = {str(weight): score(torch.full((len(ids),), weight)) for weight in WEIGHTS}
    by_weight["default"] = score(default)
    by_alpha = {}
    for alpha in ALPHAS:
        chosen = torch.zeros(len(ids), dtype=torch.bool)
        chosen[choose_tokens(ids, rank, alpha)] = True
        by_alpha[str(alpha)] = score(default * chosen)
    result = {
        "features": by_features,
        "definitions_per_token": by_definitions,
        "relation_auc_by_weight": by_weight,
        "relation_auc_by_alpha": by_alpha,
        "default_weights": [round(AUTO_BLEND * config.blend_floor, 3), AUTO_BLEND],
        "dictionaries": by_dictionary(model, tokenizer),
        "pairs": {group: len(members) for group, members in pairs.items()},
        "environment": environment(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
