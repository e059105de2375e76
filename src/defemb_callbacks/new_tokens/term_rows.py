"""The rows that terms get in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defemb_callbacks.blending import written_rows
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.embeddings import DefinitionEmbeddings
from defemb_callbacks.frequency import GROUPS, configured_rank, frequency_groups, frequency_rank, rarity
from defemb_callbacks.new_tokens.constructors import comparable_words
from defemb_callbacks.new_tokens.mixing import (
    Mixture,
    at_length,
    bare_offset,
    best_mixture,
    mixed_directions,
    piece_means,
)
from defemb_callbacks.new_tokens.tokenization import TermToken
from defemb_callbacks.vocabulary import Vocabulary


@dataclass(frozen=True)
class TermRows:
    """Rows for the tokens of some terms.

    Attributes:
        ids: (m,) int64, each token of each term.
        rows: (m, d) float32.
        weights: (n,) float64, for each term: the share of its definitions in its row.
        mixture: how the share was chosen for new tokens; `None` where no word of the vocabulary could tell.
    """

    ids: Tensor
    rows: Tensor
    weights: Tensor
    mixture: Mixture | None


def term_rows(
    table: Tensor,
    tokens: Sequence[TermToken],
    from_definitions: Tensor,
    splits: Sequence[Sequence[int]],
    embeddings: DefinitionEmbeddings,
    config: DefinitionEMBConfig,
) -> TermRows:
    """Rows of new tokens, made of definitions and sub-tokens; of tokens that were there, blended or replaced.

    Args:
        table: (vocabulary, d) float32, as it is before.
        tokens: those to get rows.
        from_definitions: (n, d) float32, what the definitions of each give; anything for a term without.
        splits: of each word of `embeddings`, its sub-tokens without itself; from `split_without_itself`.
        embeddings: of this table, before it grew.
        config: settings.
    """
    vocabulary = embeddings.vocabulary
    rank = expected_rank(vocabulary, config)
    groups = frequency_groups(rank, config.group_edges)
    centre = table[groups["all"]].double().mean(dim=0).float()
    mixture = _mixture(table, splits, embeddings, config, centre)

    pieces = piece_means(table, [token.pieces for token in tokens])
    share = 1.0 if mixture is None else mixture.weight
    weights = torch.tensor(
        [(share if token.pieces else 1.0) if token.term.definitions else 0.0 for token in tokens], dtype=torch.float64
    )
    directions = mixed_directions(from_definitions, pieces, weights, centre)
    rows = at_length(directions, table[groups[config.new_token_group]], centre)
    old = torch.tensor([position for position, token in enumerate(tokens) if not token.is_new], dtype=torch.int64)
    if len(old):
        there = torch.tensor([tokens[position].word for position in old.tolist()])
        rows[old], weights[old] = written_rows(
            config,
            old=table[there],
            new=from_definitions[old],
            rarity=rarity(rank)[there],
            groups=_group_of(groups, len(rank))[there],
            centre=centre,
        )
    offset = bare_offset(table, vocabulary)
    bare = torch.tensor([position for position, token in enumerate(tokens) if token.bare is not None]).long()
    ids = [token.word for token in tokens] + [token.bare for token in tokens if token.bare is not None]
    return TermRows(torch.tensor(ids, dtype=torch.int64), torch.cat([rows, rows[bare] + offset]), weights, mixture)


def expected_rank(vocabulary: Vocabulary, config: DefinitionEMBConfig) -> Tensor:
    """`configured_rank`; but vocabulary order instead of counts of training data, which has none of new tokens yet."""
    if config.frequency == "training_data":
        return frequency_rank(vocabulary)
    return configured_rank(vocabulary, config)


def _mixture(
    table: Tensor,
    splits: Sequence[Sequence[int]],
    embeddings: DefinitionEmbeddings,
    config: DefinitionEMBConfig,
    centre: Tensor,
) -> Mixture | None:
    comparable = comparable_words(embeddings, config)
    chosen = torch.tensor([bool(split) for split in splits]) & comparable
    if not chosen.any():
        return None
    pieces = piece_means(table, [split for split, wanted in zip(splits, chosen.tolist(), strict=True) if wanted])
    return best_mixture(embeddings.rows[chosen], pieces, table[embeddings.ids[chosen]], centre)


def _group_of(groups: dict[str, Tensor], size: int) -> Tensor:
    group = torch.zeros(size, dtype=torch.int64)
    for number, name in enumerate(GROUPS):
        group[groups[name]] = number
    return group
