"""Uniform samples of the hidden states of each token, drawn before the texts are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.progress import ProgressBar
from defemb_callbacks.reconstruction.backbone import backbone_of, evaluating, last_states
from defemb_callbacks.reconstruction.batching import equal_length_batches
from defemb_callbacks.senses.model import require_states, state_width
from defemb_callbacks.weights.distributed import this_process

# Texts tokenized per call: their ids are Python lists until then.
_CHUNK = 4096

# Rows per all-reduce.
_EXCHANGED_ROWS = 1 << 16


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of texts, concatenated.

    Attributes:
        ids: Shape (positions,), int32.
        lengths: Shape (texts,), int64; number of tokens of each text.
    """

    ids: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class SamplePlan:
    """Which states are kept, and where: grouped by token, in random order within a token.

    Attributes:
        rows: Shape (positions,), int64; row of each position's state, or -1 if it is not kept.
        offsets: Shape (vocabulary + 1,), int64; token t has the rows `offsets[t]` to `offsets[t + 1]`.
        seen: Shape (vocabulary,), int64; occurrences of each token.
    """

    rows: Tensor
    offsets: Tensor
    seen: Tensor


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int | None = None
) -> TokenizedTexts:
    """Tokenize texts with special tokens, truncated to `max_length`.

    Raises:
        TypeError: If `texts` is a single string, or a stream, which could be read only once.
        ValueError: If no text has a token.
    """
    if isinstance(texts, str) or not hasattr(texts, "__getitem__") or not hasattr(texts, "__len__"):
        raise TypeError(
            f"`texts` must be a list of strings or a column of a Dataset, got {type(texts).__name__}. Put a single "
            "string into a list, and a stream into a Dataset."
        )
    options = {"return_attention_mask": False, "return_token_type_ids": False}
    ids, lengths = [torch.zeros(0, dtype=torch.int32)], [torch.zeros(0, dtype=torch.int64)]
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        encoded = tokenizer(chunk, truncation=True, max_length=max_length, **options)["input_ids"]
        ids.append(torch.tensor([index for text in encoded for index in text], dtype=torch.int32))
        lengths.append(torch.tensor([len(text) for text in encoded]))
    tokenized = TokenizedTexts(torch.cat(ids), torch.cat(lengths))
    if not len(tokenized.ids):
        raise ValueError(
            f"`texts` must contain at least one token, got {len(texts)} texts without any. Pass other texts."
        )
    return tokenized


def plan_samples(ids: Tensor, vocabulary: int, samples: int, seed: int = 0) -> SamplePlan:
    """Draw a uniform sample of at most `samples` occurrences of each token.

    Each occurrence gets a random key, and those with the smallest keys of each token are kept. This is the result of
    reservoir sampling by keys (Efraimidis and Spirakis 2006, with equal weights), known in advance. Memory is therefore
    known as well, and the sample depends neither on batches nor on the number of processes.

    Args:
        ids: Shape (positions,), integer.
        vocabulary: Vocabulary size.
        samples: Maximum number of samples per token.
        seed: Seed of the keys.

    Raises:
        ValueError: If a token id is out of range.

    Example:
        >>> plan = plan_samples(torch.tensor([2, 0, 2, 2]), vocabulary=4, samples=2)
        >>> plan.offsets.tolist(), plan.seen.tolist()
        ([0, 1, 1, 3, 3], [1, 0, 3, 0])
        >>> sorted(plan.rows.tolist())
        [-1, 0, 1, 2]
    """
    if len(ids) and int(ids.max()) >= vocabulary:
        raise ValueError(
            f"Token id {int(ids.max())} is out of range: the model has {vocabulary} tokens. "
            "Pass the tokenizer of this model."
        )
    seen = torch.bincount(ids, minlength=vocabulary)
    keys = torch.rand(len(ids), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = keys.argsort()
    del keys
    by_token = ids[order].argsort(stable=True)
    order = order[by_token]  # by token, then by key
    del by_token
    token = ids[order]
    place = torch.arange(len(ids)) - (seen.cumsum(0) - seen)[token]
    kept = place < samples
    offsets = torch.nn.functional.pad(seen.clamp(max=samples).cumsum(0), (1, 0))
    order, token, place = order[kept], token[kept], place[kept]
    rows = torch.full((len(ids),), -1)
    rows[order] = offsets[token] + place
    return SamplePlan(rows, offsets, seen)


def layer_states(model: PreTrainedModel, input_ids: Tensor, layer: int = -1) -> Tensor:
    """Hidden states of a layer of a model's backbone, (batch, length, d).

    Args:
        model: Any model, with or without a head; the encoder of an encoder-decoder is read.
        input_ids: Shape (batch, length), int64, without padding.
        layer: -1 for the output of the backbone, 0 for the input of its first layer, n for the output of layer n.
    """
    if layer == -1:
        return last_states(model, input_ids)
    mask = torch.ones_like(input_ids)
    output = backbone_of(model)(input_ids, attention_mask=mask, output_hidden_states=True, return_dict=True)
    states: Tensor = output.hidden_states[layer]
    return states


def sampled_states(
    model: PreTrainedModel, texts: TokenizedTexts, plan: SamplePlan, *, layer: int = -1, batch_size: int = 32
) -> Tensor:
    """Run a model over all texts once, and keep the states of a plan.

    The model runs in eval mode, without gradients, on its own device; its mode is restored afterwards. Batches contain
    texts of equal length, so nothing is padded. In a distributed run, the processes share the texts and each gets all
    rows.

    Args:
        model: See `layer_states`.
        texts: Output of `tokenize_texts`.
        plan: Output of `plan_samples` for the ids of these texts.
        layer: See `layer_states`.
        batch_size: Number of texts per forward pass.

    Returns:
        Shape (rows, d), float32, on the CPU.

    Raises:
        ValueError: If the states of the model are replaced with senses, or it does not have one state per token.
    """
    require_states(model)
    process = this_process()
    starts = [0, *accumulate(texts.lengths.tolist())]
    batches = equal_length_batches(texts.lengths.tolist(), batch_size)
    kept = torch.zeros(int(plan.offsets[-1]), state_width(model))
    progress = ProgressBar(len(texts.ids), "Reading texts", "token")
    with evaluating(model), torch.no_grad(), progress:
        for batch in batches[process.process_index :: process.num_processes]:
            length = starts[batch[0] + 1] - starts[batch[0]]
            if length:
                positions = torch.tensor([starts[text] for text in batch])[:, None] + torch.arange(length)
                states = layer_states(model, texts.ids[positions].long().to(model.device), layer)
                rows = plan.rows[positions].flatten()
                wanted = (rows >= 0).nonzero().flatten()
                chosen = states.flatten(0, 1)[wanted.to(states.device)]
                kept[rows[wanted]] = chosen.float().cpu()
                progress.update(positions.numel())
    if process.num_processes > 1:
        # Each row is filled by one process and zero on the others.
        for block in kept.split(_EXCHANGED_ROWS):
            block.copy_(reduce(block.to(process.device), reduction="sum").cpu())
    return kept
