"""Which states of each token are kept: a uniform sample, drawn before a model reads anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# Texts tokenized at once: their ids are Python lists until then.
_CHUNK = 4096


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts as one row of token ids.

    Attributes:
        ids: (positions,) int32, text after text.
        lengths: (texts,) int64.
    """

    ids: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class SamplePlan:
    """Where the states that are kept go: token by token, each token's in random order.

    Attributes:
        rows: (positions,) int64: the row of a position's state among those kept, -1 for one that is not.
        offsets: (vocabulary + 1,) int64: token t has the rows from offsets[t] to offsets[t + 1].
        seen: (vocabulary,) int64, occurrences of each token.
    """

    rows: Tensor
    offsets: Tensor
    seen: Tensor


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int | None = None
) -> TokenizedTexts:
    """Token ids of texts, special tokens included; what is longer than `max_length` is cut off.

    Raises:
        TypeError: a single string, or a stream, which can be read only once.
        ValueError: there is no text with a token.
    """
    if isinstance(texts, str) or not hasattr(texts, "__getitem__") or not hasattr(texts, "__len__"):
        raise TypeError(
            f"texts must be a list of strings or a column of a Dataset, got {type(texts).__name__}; put a single "
            "string into a list, and a stream into a Dataset"
        )
    plain = {"return_attention_mask": False, "return_token_type_ids": False}
    ids, lengths = [torch.zeros(0, dtype=torch.int32)], [torch.zeros(0, dtype=torch.int64)]
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        encoded = tokenizer(chunk, truncation=True, max_length=max_length, **plain)["input_ids"]
        ids.append(torch.tensor([index for text in encoded for index in text], dtype=torch.int32))
        lengths.append(torch.tensor([len(text) for text in encoded]))
    tokenized = TokenizedTexts(torch.cat(ids), torch.cat(lengths))
    if not len(tokenized.ids):
        raise ValueError(f"there is nothing to read: {len(texts)} texts without a token")
    return tokenized


def plan_samples(ids: Tensor, vocabulary: int, samples: int, seed: int = 0) -> SamplePlan:
    """Draw at most so many occurrences of each token, every set of them being equally likely.

    Each occurrence draws a key, and those with a token's smallest keys are kept: what reservoir sampling by keys holds
    at the end of its stream (Efraimidis and Spirakis 2006, with equal weights), known before it begins. So memory is
    known too, and the sample depends neither on batches nor on the number of processes.

    Args:
        ids: (positions,) integers.
        vocabulary: number of tokens.
        samples: of a token, at most.
        seed: of the keys.

    Raises:
        ValueError: an id beyond the vocabulary.

    Example:
        >>> plan = plan_samples(torch.tensor([2, 0, 2, 2]), vocabulary=4, samples=2)
        >>> plan.offsets.tolist(), plan.seen.tolist()
        ([0, 1, 1, 3, 3], [1, 0, 3, 0])
        >>> sorted(plan.rows.tolist())
        [-1, 0, 1, 2]
    """
    if len(ids) and int(ids.max()) >= vocabulary:
        raise ValueError(f"token {int(ids.max())} is beyond the {vocabulary} tokens of the model; another tokenizer?")
    seen = torch.bincount(ids, minlength=vocabulary)
    keys = torch.rand(len(ids), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = keys.argsort()
    del keys
    by_token = ids[order].argsort(stable=True)
    order = order[by_token]  # by token, and each token's by key
    del by_token
    token = ids[order]
    place = torch.arange(len(ids)) - (seen.cumsum(0) - seen)[token]
    kept = place < samples
    offsets = torch.nn.functional.pad(seen.clamp(max=samples).cumsum(0), (1, 0))
    order, token, place = order[kept], token[kept], place[kept]
    rows = torch.full((len(ids),), -1)
    rows[order] = offsets[token] + place
    return SamplePlan(rows, offsets, seen)
