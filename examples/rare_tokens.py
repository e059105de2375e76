"""Which examples contain a rare token that is rebuilt: where definitions should matter most."""

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
    """The rare tokens whose rows a rebuild with this config writes, known without one: a baseline asks, too.

    Args:
        tokenizer: the model's own.
        size: rows of its embedding table.
        definitions: all that `load_definitions` takes.
        config: decides which tokens are rare and which are rebuilt.
        train: tokenized training data, for settings that count its tokens.
        labels: whether its labels are text, which the model is to write.

    Raises:
        ValueError: such settings without training data.
    """
    vocabulary = read_vocabulary(tokenizer, size)
    defined = definitions_of_tokens(vocabulary, load_definitions(definitions), config.definitions_per_token)
    counting = config.frequency == "training_data" or config.only_training_tokens
    if counting and train is None:
        raise ValueError("only_training_tokens and frequency='training_data' need the training data: --do_train.")
    counts = count_tokens(train, size, labels=labels) if counting else None
    # Which of the defined tokens are written does not depend on the rows: any will do.
    embeddings = DefinitionEmbeddings(torch.tensor(list(defined)), torch.zeros(len(defined), 1), vocabulary)
    rare = frequency_groups(configured_rank(vocabulary, config, counts), config.group_edges)["rare"]
    return set(embeddings.chosen(config, counts).tolist()) & set(rare.tolist())


def contain(rows: Iterable[Sequence[int]], tokens: set[int]) -> list[bool]:
    """Whether each row of token ids has one of the tokens.

    Example:
        >>> contain([[1, 2], [3, 4]], {4, 5})
        [False, True]
    """
    return [not tokens.isdisjoint(row) for row in rows]


def by_frequency(
    metric: evaluate.Metric, rare: Sequence[bool], predictions: Sequence[Any], references: Sequence[Any], prefix: str
) -> dict[str, float]:
    """The metric of the examples with a rare rebuilt token, and of the others: `eval_accuracy_rare`, `…_other`.

    Their numbers are given as `eval_samples_rare` and `…_other`; of no examples there is no metric.
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
    """One line of JSON for each example."""
    plain = [values.tolist() if isinstance(values, np.ndarray) else values for values in columns.values()]
    lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in zip(*plain, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
