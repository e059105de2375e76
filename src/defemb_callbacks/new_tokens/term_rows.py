"""Compute the rows of terms in one table: definitions mixed with sub-tokens, scaled to a typical length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.blending import DirectionalBlend, written_rows
from defemb_callbacks.embeddings.rows_to_write import group_numbers, mean_row
from defemb_callbacks.new_tokens.definition_rows import out_of_sample
from defemb_callbacks.new_tokens.distillation import Distilled
from defemb_callbacks.new_tokens.like_rows import like_rows
from defemb_callbacks.new_tokens.output_calibration import OUTPUT_LENGTH, OutputStates
from defemb_callbacks.new_tokens.term_token import TermToken
from defemb_callbacks.new_tokens.whole_words import WordContexts
from defemb_callbacks.vocabulary.frequency import configured_rank, frequency_groups, frequency_rank, rarity
from defemb_callbacks.vocabulary.tokens import Vocabulary

# A row that matches whole words is only used if the log of its mean probability can be calibrated to within this.
MAX_MISS = 0.3


@dataclass(frozen=True)
class TermRows:
    """Rows of the tokens of a list of terms.

    Attributes:
        ids: (m,) int64, all tokens of all terms.
        rows: (m, d) float32, their rows.
        weights: (n,) float64, the weight of the definitions in the row of each term.
        mixture: How the weight was chosen for new tokens; `None` if no word of the vocabulary could be used.
        log_probability: Log of the mean probability that new rows were calibrated to; `None` if they were not.
        distilled: Result of the token distillation; `None` without it.
    """

    ids: Tensor
    rows: Tensor
    weights: Tensor
    mixture: Mixture | None
    log_probability: float | None = None
    distilled: Distilled | None = None


def term_rows(
    table: Tensor,
    tokens: Sequence[TermToken],
    from_definitions: Tensor,
    splits: Sequence[Sequence[int]],
    embeddings: DefinitionEmbeddings,
    config: DefinitionEMBConfig,
    output: OutputStates | None = None,
    distil: Callable[[Tensor], Distilled] | None = None,
    contexts: WordContexts | None = None,
    *,
    is_output: bool = False,
) -> TermRows:
    """Compute rows for new tokens from definitions and sub-tokens, and blend or replace those of existing tokens.

    Args:
        table: (vocabulary, d) float32, before any change.
        tokens: The terms with their tokens.
        from_definitions: (n, d) float32, the rows predicted from definitions; ignored for terms without definitions.
        splits: Sub-tokens of each word of `embeddings` as if it were not a token; from `split_without_itself`.
        embeddings: Embeddings of this table, before it grew.
        config: Settings.
        output: States of text, if this is the output table of a causal language model. New rows are then shorter, and
            as likely on average as the defined frequent words: a term that is worth a token is frequent in some text.
        distil: Function that turns rows, (n, d), into rows that the model reads as the sub-tokens of the terms. A table
            that is also the output table gets the mean of both directions.
        contexts: Contexts of the terms, if `output` is given, in which the new tokens should be as likely as the words.
        is_output: Whether the table is also the output table of a model other than a causal language model. Trained
            rows then keep their length.
    """
    vocabulary = embeddings.vocabulary
    rank = expected_rank(vocabulary, config)
    groups = frequency_groups(rank, config.group_edges)
    centre = mean_row(table, groups["all"]).float()
    mixture = _mixture(table, splits, embeddings, config, centre)

    pieces = piece_means(table, [token.averaged for token in tokens])
    weight = 1.0 if mixture is None else mixture.weight
    of_defined = [weight if token.averaged else 1.0 for token in tokens]
    weights = torch.tensor(
        [share if token.term.definitions else 0.0 for token, share in zip(tokens, of_defined, strict=True)],
        dtype=torch.float64,
    )
    directions = mixed_directions(from_definitions, pieces, weights, centre)
    shares = torch.tensor([token.like_share for token in tokens])
    others = like_rows(table, [token.like for token in tokens], centre)
    mixed, copied = shares > 0, shares == 1
    directions[mixed] = mixed_directions(others, directions + centre, shares, centre)[mixed]
    weights *= 1 - shares
    like = table[groups[config.new_token_group]]
    rows = scale_like(directions, like, centre)
    distilled = None
    if distil is not None:
        start = copied & torch.tensor([bool(token.term.options.texts) for token in tokens])
        rows[start] = others[start]
        distilled = distil(rows)
        changed = (distilled.rows != rows).any(dim=1)
        directions[changed] = (_unit(directions) + _unit(distilled.rows - centre))[changed]
        rows, copied = distilled.rows.clone(), copied & ~changed
        if is_output and output is None:
            rows = torch.where(changed[:, None], scale_like(directions, like, centre), rows)
    if output is not None:
        rows = scale_like(directions, like, centre, OUTPUT_LENGTH)
    existing = torch.tensor([position for position, token in enumerate(tokens) if not token.replaces_row]).long()
    if len(existing):
        existing_ids = torch.tensor([tokens[position].word for position in existing.tolist()])
        rows[existing], weights[existing] = written_rows(
            config,
            DirectionalBlend.fit(table[embeddings.ids], embeddings.rows, centre),
            old=table[existing_ids],
            new=from_definitions[existing],
            rarity=rarity(rank)[existing_ids],
            groups=group_numbers(groups, len(rank))[existing_ids],
        )
    target = None
    if output is not None:
        members = groups["frequent"]
        words = embeddings.ids[torch.isin(embeddings.ids, members)]
        words = words if len(words) else members
        target = float(output.log_probabilities(table[words], output.bias[words], new=False).mean())
        new = torch.tensor([token.replaces_row for token in tokens], dtype=torch.bool) & ~copied
        bias = output.bias[members].median()
        rows[new] = output.calibrate(rows[new], target, bias)
        if contexts is not None:
            matched = (torch.isin(torch.arange(len(rows)), contexts.rows) & new).nonzero().flatten()
            fitted = output.calibrate(contexts.matched(rows, output, bias)[matched], target, bias)
            missed = (output.log_probabilities(fitted, bias, new=True) - target).abs()
            rows[matched[missed < MAX_MISS]] = fitted[missed < MAX_MISS]
    rows[copied] = others[copied]  # with their own lengths
    offset = bare_offset(table, vocabulary)
    bare = torch.tensor([position for position, token in enumerate(tokens) if token.bare is not None]).long()
    ids = [token.word for token in tokens] + [token.bare for token in tokens if token.bare is not None]
    written = torch.cat([rows, rows[bare] + offset])
    return TermRows(torch.tensor(ids, dtype=torch.int64), written, weights, mixture, target, distilled)


def expected_rank(vocabulary: Vocabulary, config: DefinitionEMBConfig) -> Tensor:
    """Return the frequency rank of each token, as `configured_rank` does, but never from counts of training data.

    New tokens have no counts yet, so `frequency="training_data"` falls back to vocabulary order.

    Args:
        vocabulary: The tokens.
        config: Settings.
    """
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
    chosen = torch.tensor([bool(split) for split in splits]) & out_of_sample(embeddings, config)
    if not chosen.any():
        return None
    pieces = piece_means(table, [split for split, wanted in zip(splits, chosen.tolist(), strict=True) if wanted])
    return best_mixture(embeddings.rows[chosen], pieces, table[embeddings.ids[chosen]], centre)


# The candidates for the weight of the definition.
WEIGHTS = tuple(step / 20 for step in range(21))

# With fewer pairs, the mean difference between their rows is too noisy.
MIN_PAIRS = 30


@dataclass(frozen=True)
class Mixture:
    """The weight of the definition in a new row, and the measurements that it was chosen by.

    Attributes:
        weight: Weight of the definition; the sub-tokens have the rest.
        cosine: Mean centered cosine similarity of such rows to the pretrained ones, over words of the vocabulary.
        definition_cosine: The same for definitions alone.
        piece_cosine: The same for sub-tokens alone.
        words: Number of words that were measured.
    """

    weight: float
    cosine: float
    definition_cosine: float
    piece_cosine: float
    words: int


def best_mixture(rows: Tensor, pieces: Tensor, old: Tensor, centre: Tensor) -> Mixture:
    """Choose the weight at which words of the vocabulary, treated as new, are most similar to their own rows.

    Args:
        rows: (n, d) rows predicted from their definitions, out of sample.
        pieces: (n, d) mean rows of their sub-tokens.
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
    """Mix the directions in which two sets of rows deviate from the centre, (n, d).

    Directions are mixed instead of rows because regression shrinks the former rows and averaging the latter.

    Args:
        rows: (n, d), predicted from definitions.
        pieces: (n, d), means of sub-tokens.
        weights: (n,) weight of `rows`; at 1 `pieces` is ignored.
        centre: (d,) mean of the table.

    Example:
        >>> rows, pieces = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> mixed_directions(rows, pieces, torch.tensor([0.75]), torch.zeros(2))
        tensor([[0.7500, 0.2500]])
    """
    weights = weights[:, None].to(rows.dtype)
    return weights * _unit(rows - centre) + (1 - weights) * _unit(pieces - centre)


def scale_like(directions: Tensor, like: Tensor, centre: Tensor, share: float = 1.0) -> Tensor:
    """Return rows, (n, d), that deviate from the centre in these directions by the median distance of other rows.

    Args:
        directions: (n, d), of any length.
        like: (m, d) rows of tokens with the expected frequency.
        centre: (d,) mean of the table.
        share: Share of that distance.

    Example:
        >>> scale_like(torch.tensor([[0.1, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.zeros(2))
        tensor([[2., 0.]])
    """
    return centre + share * (like - centre).norm(dim=1).median() * _unit(directions)


def piece_means(table: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean row of each list of tokens, (n, d); zeros for an empty list.

    Args:
        table: (vocabulary, d) floating-point.
        pieces: n lists of token ids.

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
    """Return the mean difference between the rows of a word without and with a leading space: (d,).

    Byte-level BPE and SentencePiece vocabularies contain many words twice, as `Ġword` and `word`. With fewer than 30
    such pairs the result is zero.

    Args:
        table: (vocabulary, d) floating-point.
        vocabulary: The tokens.

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
    if len(pairs) < MIN_PAIRS:
        return torch.zeros(table.shape[1], dtype=table.dtype)
    spaced, bare = torch.tensor(pairs).T
    return (table[bare] - table[spaced]).mean(dim=0)


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
