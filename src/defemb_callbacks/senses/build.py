"""Build a sense dictionary: sample the hidden states of each token, and cluster them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.embeddings.fingerprints import fingerprint_weights
from defemb_callbacks.progress import ProgressBar
from defemb_callbacks.senses.clustering import kmeans, markov_number, silhouette_number, silhouette_score
from defemb_callbacks.senses.config import SenseConfig
from defemb_callbacks.senses.dictionary import SenseDictionary
from defemb_callbacks.senses.model import require_states, state_width
from defemb_callbacks.senses.sampling import plan_samples, sampled_states, tokenize_texts
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.distributed import broadcast_tensors
from defemb_callbacks.weights.rows import embedding_weight

logger = logging.getLogger(__name__)

# Maximum number of values in a batch: states, distances to centroids, or edges of the Markov clustering graph.
_BATCH = 1 << 24


def build_sense_dictionary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    config: SenseConfig | None = None,
    **overrides: Any,
) -> SenseDictionary:
    """Run a model over texts, and cluster the hidden states of each token into senses.

    Each text is read once. Memory: 4 bytes per value of the kept states (at most `samples` per token) and of the
    senses, plus 12 bytes per token of the texts (about 40 while the sample is drawn). The total is logged at level INFO
    before the first text is read; clustering needs a few hundred MB more. In a distributed run, the processes share the
    texts, and each gets the dictionary that a single process would build.

    Args:
        model: The (fine-tuned) teacher, with any head; it is not changed.
        tokenizer: The tokenizer of the model.
        texts: Texts like those that the senses will be used on; a list, or a column of a `Dataset`.
        config: Settings; `SenseConfig()` by default.
        **overrides: Fields of the config to replace.

    Returns:
        The dictionary.

    Raises:
        TypeError: If `texts` is a single string or a stream.
        ValueError: If a setting is out of range, `texts` is empty, the tokenizer does not match the model, the
            states of the model are replaced with senses, or it does not have one state per token.
        ImportError: If `rule="silhouette"` and scikit-learn is not installed.

    Example:
        >>> build_sense_dictionary(model, tokenizer, texts, senses=10)  # doctest: +SKIP
        SenseDictionary(19,214 senses of 5,310 of 30,522 tokens, width 384)
    """
    config = SenseConfig.resolve(config, overrides)
    if config.rule == "silhouette":
        silhouette_score()  # fail before the texts are read
    require_states(model)
    vocabulary = read_vocabulary(tokenizer, len(embedding_weight(model)))
    tokenized = tokenize_texts(tokenizer, texts, config.max_length)
    plan = plan_samples(tokenized.ids, len(vocabulary), config.samples, config.seed)
    rows = int(plan.offsets[-1])
    senses = int(most_senses(plan.offsets.diff(), config).sum())
    logger.info(
        "Reading %s tokens of %s texts: %s states of %s distinct tokens are kept, for at most %s senses (%.2f GB).",
        *(f"{number:,}" for number in (len(tokenized.ids), len(texts), rows, int((plan.seen > 0).sum()), senses)),
        ((rows + senses) * state_width(model) * 4 + 12 * len(tokenized.ids)) / 1e9,
    )
    states = sampled_states(model, tokenized, plan, layer=config.layer, batch_size=config.batch_size)
    info = {
        "model": model.name_or_path,
        "weights": fingerprint_weights(model),
        "texts": len(texts),
        "tokens_read": len(tokenized.ids),
        "states_kept": rows,
    }
    return build_from_states(states, plan.offsets, vocabulary, config, device=model.device, info=info)


def build_from_states(
    states: Tensor,
    offsets: Tensor,
    vocabulary: Vocabulary,
    config: SenseConfig,
    *,
    device: torch.device | str = "cpu",
    info: dict[str, Any] | None = None,
) -> SenseDictionary:
    """Cluster given states into a dictionary; every process of a distributed run gets the same one.

    Args:
        states: Shape (rows, d), float32; grouped by token, in random order within a token.
        offsets: Shape (vocabulary + 1,), int64; token t has the rows `offsets[t]` to `offsets[t + 1]`.
        vocabulary: The tokens.
        config: Settings of the clustering.
        device: Device of the clustering.
        info: Entries about the model and the texts; plain JSON.
    """
    found = cluster_states(states, offsets, config, device)
    # Rounding may differ between devices.
    senses = broadcast_tensors(dict(zip(("offsets", "vectors", "counts"), found, strict=True)))
    info = {**(info or {}), "config": asdict(config)}
    return SenseDictionary(
        senses["offsets"], senses["vectors"], senses["counts"], vocabulary, similarity=config.similarity, info=info
    )


def cluster_states(
    states: Tensor, offsets: Tensor, config: SenseConfig, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster the states of each token; the centroids are its senses.

    A token with fewer than `min_samples` states keeps them as senses, or has no senses if `keep_rare=False`. A token
    that is clustered into at least as many senses as it has states gets one sense per distinct state.

    Args:
        states: Shape (rows, d), float32; grouped by token, in random order within a token.
        offsets: Shape (vocabulary + 1,), int64; token t has the rows `offsets[t]` to `offsets[t + 1]`.
        config: Settings of the clustering.
        device: Device of the clustering.

    Returns:
        Offsets of the senses, (vocabulary + 1,) int64; their vectors, (senses, d) float32; the number of states in
        each, (senses,) int64. All on the CPU.
    """
    sizes = offsets.diff()
    clustered = sizes >= config.min_samples
    found: dict[int, tuple[Tensor, Tensor]] = {}
    if config.keep_rare:
        for token in ((sizes > 0) & ~clustered).nonzero().flatten().tolist():
            rows = states[offsets[token] : offsets[token + 1]]
            found[token] = rows, torch.ones(len(rows), dtype=torch.int64)
    with ProgressBar(int(clustered.sum()), "Clustering the states of tokens", "token") as progress:
        for tokens in _batches(sizes, clustered, states.shape[1], config):
            most = int(sizes[tokens].max())
            rows = offsets[tokens][:, None] + torch.arange(most)
            points = states[rows.clamp(max=len(states) - 1)].to(device)
            batch_sizes = sizes[tokens].to(device)
            numbers = _numbers(points, batch_sizes, config)
            clusters = kmeans(points, batch_sizes, numbers, seed=config.seed)
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
    for token in order:  # popped one by one, so that the senses are not held twice
        span = slice(starts[token], starts[token + 1])
        vectors[span], counts[span] = found.pop(token)
    return starts, vectors, counts


def most_senses(sizes: Tensor, config: SenseConfig) -> Tensor:
    """Upper bound of the number of senses of tokens with `sizes` states, int64 in the shape of `sizes`.

    Example:
        >>> most_senses(torch.tensor([3, 15, 1000]), SenseConfig()).tolist()
        [3, 15, 20]
    """
    # Markov clustering finds at most one cluster per state; see `markov_number`.
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
    """Batches of tokens with similar numbers of states, to reduce padding."""
    tokens = sizes.argsort(descending=True, stable=True)
    tokens = tokens[wanted[tokens]]
    while len(tokens):
        largest = int(sizes[tokens[0]])
        senses = largest if config.rule == "markov" else config.senses
        number = max(1, _BATCH // (largest * max(width, senses)))
        yield tokens[:number]
        tokens = tokens[number:]
