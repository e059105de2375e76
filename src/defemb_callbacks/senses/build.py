"""From samples of each token's states to its senses, many tokens at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from defemb_callbacks.senses.clustering import kmeans, markov_number, silhouette_number
from defemb_callbacks.senses.config import SenseConfig

# Numbers in a batch of tokens: of their states, of their distances to centres, and with Markov clustering of a graph.
_BATCH = 1 << 24


def discover_senses(
    states: Tensor, offsets: Tensor, config: SenseConfig, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster the states of each token; the centres are its senses.

    A token of fewer than `min_samples` states keeps them as they are, or with `keep_rare=False` has no senses. One of
    at least so many, but no more than it is to have senses, gets a sense for each that differs from the others.

    Args:
        states: (rows, d) float32, token by token, each token's in random order.
        offsets: (vocabulary + 1,) int64: token t has the rows from offsets[t] to offsets[t + 1].
        config: which rule and how many senses.
        device: where to compute.

    Returns:
        Offsets of the senses, (vocabulary + 1,) int64; their vectors, (senses, d) float32; the number of states of
        each, (senses,) int64. All on the CPU.
    """
    sizes = offsets.diff()
    clustered = sizes >= config.min_samples
    found: dict[int, tuple[Tensor, Tensor]] = {}
    if config.keep_rare:
        for token in ((sizes > 0) & ~clustered).nonzero().flatten().tolist():
            rows = states[offsets[token] : offsets[token + 1]]
            found[token] = rows, torch.ones(len(rows), dtype=torch.int64)
    progress = tqdm(total=int(clustered.sum()), desc="Clustering", unit="token", disable=None)
    with progress:
        for tokens in _batches(sizes, clustered, states.shape[1], config):
            most = int(sizes[tokens].max())
            rows = offsets[tokens][:, None] + torch.arange(most)
            points = states[rows.clamp(max=len(states) - 1)].to(device)
            of_token = sizes[tokens].to(device)
            numbers = _numbers(points, of_token, config)
            clusters = kmeans(points, of_token, numbers, seed=config.seed)
            centres, counts = clusters.centres.cpu(), clusters.counts.cpu()
            for token, centre, count in zip(tokens.tolist(), centres, counts, strict=True):
                found[token] = centre[count > 0], count[count > 0]
            progress.update(len(tokens))
    order = sorted(found)
    number = torch.zeros_like(sizes)
    number[order] = torch.tensor([len(found[token][1]) for token in order], dtype=torch.int64)
    starts = torch.nn.functional.pad(number.cumsum(0), (1, 0))
    vectors = states.new_empty(int(starts[-1]), states.shape[1])
    counts = offsets.new_empty(int(starts[-1]))
    for token in order:  # and let go one by one, so that nothing is held twice
        span = slice(starts[token], starts[token + 1])
        vectors[span], counts[span] = found.pop(token)
    return starts, vectors, counts


def most_senses(sizes: Tensor, config: SenseConfig) -> Tensor:
    """How many senses tokens with so many states have at most, int64 in the shape of `sizes`: known before clustering.

    Example:
        >>> most_senses(torch.tensor([3, 15, 1000]), SenseConfig()).tolist()
        [3, 15, 20]
    """
    # Markov clustering proposes at most as many clusters as there are states; see `markov_number`.
    number = (sizes * 2 // 5).clamp(min=5) if config.rule == "markov" else torch.full_like(sizes, config.senses)
    rare = sizes if config.keep_rare else torch.zeros_like(sizes)
    return torch.where(sizes < config.min_samples, rare, torch.minimum(number, sizes))


def _numbers(points: Tensor, sizes: Tensor, config: SenseConfig) -> Tensor:
    if config.rule == "markov":
        return markov_number(points, sizes)
    if config.rule == "silhouette":
        return silhouette_number(points, sizes, config.senses, config.seed)
    return sizes.clamp(max=config.senses)


def _batches(sizes: Tensor, wanted: Tensor, width: int, config: SenseConfig) -> Iterator[Tensor]:
    """Tokens of about the same number of states, so that little is padded."""
    tokens = sizes.argsort(descending=True, stable=True)
    tokens = tokens[wanted[tokens]]
    while len(tokens):
        largest = int(sizes[tokens[0]])
        senses = largest if config.rule == "markov" else config.senses
        number = max(1, _BATCH // (largest * max(width, senses)))
        yield tokens[:number]
        tokens = tokens[number:]
