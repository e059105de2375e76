"""Which examples contain a rare token that is rebuilt: where definitions should matter most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from defemb_callbacks import DefinitionEmbeddings, DefinitionEMBConfig, load_definitions
from defemb_callbacks.build import definitions_of_tokens
from defemb_callbacks.frequency import configured_rank, count_tokens, frequency_groups
from defemb_callbacks.vocabulary import read_vocabulary


def rare_rebuilt_tokens(
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    definitions: Any,
    config: DefinitionEMBConfig,
    train: Any = None,
) -> set[int]:
    """The rare tokens whose rows a rebuild with this config writes, known without one: a baseline asks, too.

    Args:
        tokenizer: the model's own.
        size: rows of its embedding table.
        definitions: all that `load_definitions` takes.
        config: decides which tokens are rare and which are rebuilt.
        train: tokenized training data, for settings that count its tokens.
    """
    vocabulary = read_vocabulary(tokenizer, size)
    defined = definitions_of_tokens(vocabulary, load_definitions(definitions), config.definitions_per_token)
    counting = config.frequency == "training_data" or config.only_training_tokens
    counts = count_tokens(train, size) if counting else None
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
