"""Find the examples with a rare rebuilt token, where definitions should matter most."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from defemb_callbacks import DefinitionEMBConfig, DefinitionEmbeddings, load_definitions
from defemb_callbacks.vocabulary.frequency import configured_rank, count_tokens, frequency_groups
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens
from defemb_callbacks.vocabulary.tokens import read_vocabulary


def rare_rebuilt_tokens(
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    definitions: Any,
    config: DefinitionEMBConfig,
    train: Any = None,
    *,
    labels: bool = False,
) -> set[int]:
    """Return the rare tokens that a rebuild with this config would rebuild, also for a baseline without a rebuild.

    Args:
        tokenizer: Tokenizer of the model.
        size: Number of rows of its embedding table.
        definitions: Dictionaries in any form accepted by `load_definitions`.
        config: Decides which tokens are rare and which are rebuilt.
        train: Tokenized training data, for settings that count its tokens.
        labels: Whether its labels are target texts.

    Raises:
        ValueError: If such settings are used without training data.
    """
    vocabulary = read_vocabulary(tokenizer, size)
    defined = definitions_of_tokens(vocabulary, load_definitions(definitions), max_definitions=1)
    counting = config.frequency == "training_data" or config.only_training_tokens
    if counting and train is None:
        raise ValueError("only_training_tokens and frequency='training_data' require training data. Pass --do_train.")
    counts = count_tokens(train, size, labels=labels) if counting else None
    # The choice of tokens does not depend on the rows, so these are zeros.
    embeddings = DefinitionEmbeddings(torch.tensor(list(defined)), torch.zeros(len(defined), 1), vocabulary)
    rare = frequency_groups(configured_rank(vocabulary, config, counts), config.group_edges)["rare"]
    return set(embeddings.chosen(config, counts).tolist()) & set(rare.tolist())


def contain(rows: Iterable[Sequence[int]], tokens: set[int]) -> list[bool]:
    """Return for each row of token ids whether it contains one of the tokens.

    Example:
        >>> contain([[1, 2], [3, 4]], {4, 5})
        [False, True]
    """
    return [not tokens.isdisjoint(row) for row in rows]


def by_frequency(
    metric: evaluate.Metric, rare: Sequence[bool], predictions: Sequence[Any], references: Sequence[Any], prefix: str
) -> dict[str, float]:
    """Compute a metric for the examples with a rare rebuilt token (`eval_accuracy_rare`) and the others (`…_other`).

    The numbers of examples are `eval_samples_rare` and `…_other`. An empty group has no metric.
    """
    metrics: dict[str, float] = {}
    for group, value in (("rare", True), ("other", False)):
        chosen = np.flatnonzero(np.asarray(rare) == value)
        metrics[f"{prefix}_samples_{group}"] = len(chosen)
        if len(chosen):
            pairs = {"predictions": [predictions[i] for i in chosen], "references": [references[i] for i in chosen]}
            metrics |= {f"{prefix}_{name}_{group}": score for name, score in metric.compute(**pairs).items()}
    return metrics


def write_columns(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write one JSON line per example."""
    plain = [values.tolist() if isinstance(values, np.ndarray) else values for values in columns.values()]
    lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in zip(*plain, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
