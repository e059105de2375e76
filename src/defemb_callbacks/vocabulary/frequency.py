"""The order of tokens by frequency, and the frequent, medium and rare groups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.vocabulary.tokens import OUTSIDE_TEXT, Vocabulary
from defemb_callbacks.weights.rows import table_shape, transformers_model

GROUPS = ("frequent", "medium", "rare")


def frequency_rank(vocabulary: Vocabulary, counts: Tensor | None = None) -> Tensor:
    """Rank of each token by frequency: 0 for the most frequent.

    Args:
        vocabulary: its order is one of frequency for BERT, RoBERTa, BART and T5, as the paper assumes.
        counts: (size,) how often each token occurs; ties keep vocabulary order. `None` takes vocabulary order.

    Returns:
        (size,) int64; -1 for tokens that no text contains (special, unused, rows without a token).

    Example:
        >>> vocabulary = Vocabulary(("[UNK]", "the", "cat"), (None, "the", "cat"), ("special token", None, None), True)
        >>> frequency_rank(vocabulary).tolist(), frequency_rank(vocabulary, torch.tensor([9, 1, 2])).tolist()
        ([-1, 0, 1], [-1, 1, 0])
    """
    if counts is not None and counts.shape != (len(vocabulary),):
        raise ValueError(f"counts has shape {tuple(counts.shape)}; the vocabulary needs ({len(vocabulary)},).")
    in_text = torch.tensor([index for index, reason in enumerate(vocabulary.reasons) if reason not in OUTSIDE_TEXT])
    in_text = in_text.to(torch.int64)
    if counts is not None:
        in_text = in_text[torch.argsort(counts[in_text], descending=True, stable=True)]
    rank = torch.full((len(vocabulary),), -1, dtype=torch.int64)
    rank[in_text] = torch.arange(len(in_text))
    return rank


def configured_rank(vocabulary: Vocabulary, config: DefinitionEMBConfig, counts: Tensor | None = None) -> Tensor:
    """(vocabulary,) int64 frequency rank of each token, by the order that the config asks for.

    Raises:
        ValueError: `frequency="training_data"` without counts, a file that cannot be read, or `frequency="vocabulary"`
            for a vocabulary in alphabetical order.
    """
    if config.frequency == "vocabulary":
        _refuse_alphabetical(vocabulary)
        return frequency_rank(vocabulary)
    if config.frequency != "training_data":
        return frequency_rank(vocabulary, read_counts(config.frequency, vocabulary))
    if counts is None:
        raise ValueError("frequency='training_data' needs the token counts of the training data: counts=...")
    return frequency_rank(vocabulary, counts)


def _refuse_alphabetical(vocabulary: Vocabulary) -> None:
    words = [word for word in vocabulary.words if word is not None]
    # By frequency, about every second word comes after its predecessor in the alphabet.
    rising = sum(first <= second for first, second in pairwise(words))
    if len(words) >= 100 and rising > 0.95 * len(words):
        raise ValueError(
            "This tokenizer's vocabulary is in alphabetical order, which tells no frequency. Order its tokens by "
            "frequency='training_data', or by frequency=FILE with token counts."
        )


def rarity(rank: Tensor) -> Tensor:
    """Rank as a share: 0 for the most frequent token, 1 for the least frequent one.

    Example:
        >>> rarity(torch.tensor([-1, 0, 1, 2])).tolist()
        [0.0, 0.0, 0.5, 1.0]
    """
    return rank.clamp(min=0).to(torch.float64) / max(int(rank.max()), 1)


def frequency_groups(rank: Tensor, edges: Sequence[float] = (0.3, 0.8)) -> dict[str, Tensor]:
    """Token ids of "all", then of the "frequent", "medium" and "rare" tokens, each in order of frequency.

    Args:
        rank: (size,) int64 from `frequency_rank`.
        edges: the shares of the vocabulary at which medium and rare begin. Source: arXiv 2408.01308, 30/50/20 %.

    Example:
        >>> {name: ids.tolist() for name, ids in frequency_groups(torch.arange(-1, 5)).items()}
        {'all': [1, 2, 3, 4, 5], 'frequent': [1], 'medium': [2, 3, 4], 'rare': [5]}
    """
    ids = torch.argsort(rank)[int((rank < 0).sum()) :]
    first, second = (int(edge * len(ids) + 1e-9) for edge in edges)
    return {"all": ids} | dict(zip(GROUPS, ids.tensor_split([first, second]), strict=True))


def read_counts(path: str | Path, vocabulary: Vocabulary) -> Tensor:
    """Token counts from a file: `.json` with {token: count}, or text with one `token<TAB>count` a line.

    Tokens are written literally (`Ġthe`, `▁the`, `the`). Tokens of the file that the vocabulary lacks are passed over.

    Returns:
        (size,) int64, 0 for tokens that the file lacks.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that cannot be read (named), or a file with no token of this vocabulary.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"frequency={str(path)!r}: no such file; or say 'vocabulary' or 'training_data'.")
    entries: list[tuple[str, Any]] = []
    if path.suffix == ".json":
        try:
            entries = list(json.loads(path.read_text(encoding="utf-8")).items())
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON object {{token: count}}: {error}.") from error
    else:
        # Not splitlines(): a token may hold one of Unicode's other line breaks.
        for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
            token, tab, count = line.rpartition("\t")
            if not tab:
                raise ValueError(f"{path}, line {number}: {line!r} is not 'token<TAB>count'.")
            entries.append((token, count))
    ids = {token: index for index, token in enumerate(vocabulary.tokens) if token}
    counts = torch.zeros(len(vocabulary), dtype=torch.int64)
    known = 0
    for number, (token, count) in enumerate(entries, 1):
        if not str(count).strip().isdecimal() or len(str(count)) > 18:  # as int64 holds
            raise ValueError(
                f"{path}, entry {number}: the count of {token!r} is {count!r}, not a whole number of at most 18 digits."
            )
        if token in ids:
            counts[ids[token]] += int(count)
            known += 1
    if not known:
        raise ValueError(f"{path} has no token of this vocabulary, e.g. {vocabulary.tokens[len(vocabulary) // 2]!r}.")
    return counts


def count_tokens(dataset: Any, size: int, *, labels: bool = False) -> Tensor:
    """How often each token id occurs in the `input_ids` of a data set.

    The data set is read by index or iteration and neither reordered nor consumed; a stream that can be read only once
    is refused.

    Args:
        dataset: of any kind that has a length; rows are mappings with `input_ids`.
        size: rows of the embedding table.
        labels: count those in `labels`, too, which is the text that an encoder-decoder is to write; negative ones,
            which the loss leaves out, are not counted.

    Returns:
        (size,) int64.

    Raises:
        ValueError: a stream, or rows without `input_ids`.

    Example:
        >>> count_tokens([{"input_ids": [1, 2, 2]}], size=4).tolist()
        [0, 1, 2, 0]
        >>> count_tokens([{"input_ids": [1], "labels": [3, -100]}], size=4, labels=True).tolist()
        [0, 1, 0, 1]
    """
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            "The training data is a stream, which counting would consume; count its tokens beforehand and pass the "
            "file as frequency='counts.tsv'."
        )
    counts = torch.zeros(size, dtype=torch.int64)
    # A map-style torch data set has no __iter__, and Python's stand-in for it would run on to an IndexError.
    rows = dataset if hasattr(dataset, "__iter__") else (dataset[index] for index in range(len(dataset)))
    for row in rows:
        if "input_ids" not in row:
            raise ValueError(f"The training data has no column 'input_ids' (it has {sorted(row)}); tokenize it first.")
        for column in ("input_ids", "labels") if labels and "labels" in row else ("input_ids",):
            ids = torch.as_tensor(row[column]).flatten()
            counts += torch.bincount(ids[ids >= 0], minlength=size)[:size]
    return counts


def training_counts(model: Any, dataloader: Any, config: DefinitionEMBConfig) -> Tensor | None:
    """(vocabulary,) int64 token counts of the training data, if the config asks for them.

    Of a model that writes from an encoder's states (a summary, a translation), what it is to write is counted, too.
    """
    if config.frequency != "training_data" and not config.only_training_tokens:
        return None
    inner = transformers_model(model)
    writes = inner.config.is_encoder_decoder and inner.can_generate()
    return count_tokens(dataloader.dataset, table_shape(model)[0], labels=writes)
