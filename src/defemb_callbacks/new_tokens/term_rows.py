"""The rows that terms get in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.blending import written_rows
from defemb_callbacks.new_tokens.definition_rows import comparable_words
from defemb_callbacks.new_tokens.token_plan import TermToken
from defemb_callbacks.vocabulary.frequency import GROUPS, configured_rank, frequency_groups, frequency_rank, rarity
from defemb_callbacks.vocabulary.tokens import Vocabulary


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


WEIGHTS = tuple(step / 20 for step in range(21))

# Below, a mean over differences of pairs says more of the pairs than of a space.
FEWEST_PAIRS = 30


@dataclass(frozen=True)
class Mixture:
    """How much of a new row comes from its definition, and what the choice rests on.

    Attributes:
        weight: of the definition; the rest is the sub-tokens'.
        cosine: mean cosine of such rows, less the table's mean, to the pretrained ones, over words of the vocabulary.
        definition_cosine: the same of definitions alone.
        piece_cosine: the same of sub-tokens alone.
        words: how many words that was measured on.
    """

    weight: float
    cosine: float
    definition_cosine: float
    piece_cosine: float
    words: int


def best_mixture(rows: Tensor, pieces: Tensor, old: Tensor, centre: Tensor) -> Mixture:
    """The weight at which words of the vocabulary, treated as if they were new, come nearest to their own rows.

    Args:
        rows: (n, d) what their definitions give, from maps that have not seen their rows.
        pieces: (n, d) the means of what they would be cut into.
        old: (n, d) their pretrained rows.
        centre: (d,) mean of the table.

    Example:
        >>> old = torch.eye(3)
        >>> best_mixture(rows=old, pieces=old.roll(1, dims=0), old=old, centre=torch.zeros(3)).weight
        1.0
    """
    targets, cosines = _unit(old - centre), []
    for weight in WEIGHTS:
        made = _unit(mixed_directions(rows, pieces, torch.full((len(rows),), weight), centre))
        cosines.append(float((made * targets).sum(dim=1).mean()))
    best = max(range(len(WEIGHTS)), key=lambda index: cosines[index])
    return Mixture(WEIGHTS[best], cosines[best], cosines[-1], cosines[0], len(rows))


def mixed_directions(rows: Tensor, pieces: Tensor, weights: Tensor, centre: Tensor) -> Tensor:
    """Weighted sums, (n, d), of the directions in which two sets of rows deviate from the centre.

    Directions and not rows, as regression shrinks the ones and averaging the others.

    Args:
        rows: (n, d).
        pieces: (n, d).
        weights: (n,) of the first; 1 takes nothing of the second.
        centre: (d,).

    Example:
        >>> rows, pieces = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> mixed_directions(rows, pieces, torch.tensor([0.75]), torch.zeros(2))
        tensor([[0.7500, 0.2500]])
    """
    weights = weights[:, None].to(rows.dtype)
    return weights * _unit(rows - centre) + (1 - weights) * _unit(pieces - centre)


def at_length(directions: Tensor, like: Tensor, centre: Tensor) -> Tensor:
    """Rows, (n, d), that deviate from the centre in these directions, as far as other rows typically (median) do.

    Args:
        directions: (n, d), any length.
        like: (m, d) rows of tokens of the expected frequency.
        centre: (d,) mean of the table.

    Example:
        >>> at_length(torch.tensor([[0.1, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.zeros(2))
        tensor([[2., 0.]])
    """
    return centre + (like - centre).norm(dim=1).median() * _unit(directions)


def piece_means(table: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """The mean row of each list of tokens, (n, d); zeros for an empty list.

    Example:
        >>> piece_means(torch.tensor([[1.0], [3.0]]), [[0, 1], []]).tolist()
        [[2.0], [0.0]]
    """
    counts = torch.tensor([len(found) for found in pieces], dtype=torch.int64)
    tokens = torch.tensor([index for found in pieces for index in found], dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(pieces)), counts)
    sums = torch.zeros(len(pieces), table.shape[1], dtype=table.dtype).index_add_(0, owner, table[tokens])
    return sums / counts.clamp(min=1)[:, None]


def bare_offset(table: Tensor, vocabulary: Vocabulary) -> Tensor:
    """What a word's row changes by, on average, where no space comes before it: (d,).

    Byte-level BPE and SentencePiece have many a word twice, as `Ġword` and `word`. Zeros where there are fewer than 30
    such pairs.

    Example:
        >>> vocabulary = Vocabulary(("cat", "dog"), ("cat", "dog"), (None, None), uncased=True)
        >>> bare_offset(torch.ones(2, 3), vocabulary).tolist()
        [0.0, 0.0, 0.0]
    """
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    pairs = [
        (index, ids[word])
        for index, word in enumerate(vocabulary.words)
        if word is not None and word != vocabulary.tokens[index] and word in ids
    ]
    if len(pairs) < FEWEST_PAIRS:
        return torch.zeros(table.shape[1], dtype=table.dtype)
    spaced, bare = torch.tensor(pairs).T
    return (table[bare] - table[spaced]).mean(dim=0)


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
