"""Order tokens by frequency, and split them into frequent, medium and rare groups."""

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
from defemb_callbacks.weights.rows import table_shape
from defemb_callbacks.weights.unwrapping import transformers_model

GROUPS = ("frequent", "medium", "rare")
_SMALLEST_BLOCK = 1 << 16  # ids that are counted at once even if the vocabulary is smaller


def frequency_rank(vocabulary: Vocabulary, counts: Tensor | None = None) -> Tensor:
    """Rank tokens by frequency, with 0 for the most frequent one.

    Args:
        vocabulary: The tokens. The paper assumes that the vocabularies of BERT, RoBERTa, BART and T5 are ordered by
            frequency.
        counts: (size,), the number of occurrences of each token; ties keep vocabulary order. `None` uses vocabulary
            order.

    Returns:
        (size,) int64; -1 for tokens that no text contains (special and unused tokens, rows without a token).

    Raises:
        ValueError: If `counts` has another shape.

    Example:
        >>> vocabulary = Vocabulary(("[UNK]", "the", "cat"), (None, "the", "cat"), ("special token", None, None), True)
        >>> frequency_rank(vocabulary).tolist(), frequency_rank(vocabulary, torch.tensor([9, 1, 2])).tolist()
        ([-1, 0, 1], [-1, 1, 0])
    """
    if counts is not None and counts.shape != (len(vocabulary),):
        raise ValueError(f"`counts` must have shape ({len(vocabulary)},), got {tuple(counts.shape)}.")
    in_text = torch.tensor([index for index, reason in enumerate(vocabulary.reasons) if reason not in OUTSIDE_TEXT])
    in_text = in_text.to(torch.int64)
    if counts is not None:
        in_text = in_text[torch.argsort(counts[in_text], descending=True, stable=True)]
    rank = torch.full((len(vocabulary),), -1, dtype=torch.int64)
    rank[in_text] = torch.arange(len(in_text))
    return rank


def configured_rank(vocabulary: Vocabulary, config: DefinitionEMBConfig, counts: Tensor | None = None) -> Tensor:
    """Rank tokens by the source of frequencies that the config selects; see `frequency_rank`.

    Raises:
        ValueError: If `frequency="training_data"` and there are no counts, if the file of counts is malformed, or if
            `frequency="vocabulary"` and the vocabulary is in alphabetical order.
    """
    if config.frequency == "vocabulary":
        _check_not_alphabetical(vocabulary)
        return frequency_rank(vocabulary)
    if config.frequency != "training_data":
        return frequency_rank(vocabulary, read_counts(config.frequency, vocabulary))
    if counts is None:
        raise ValueError("`frequency='training_data'` needs the token counts of the training data. Pass `counts`.")
    return frequency_rank(vocabulary, counts)


def _check_not_alphabetical(vocabulary: Vocabulary) -> None:
    words = [word for word in vocabulary.words if word is not None]
    # In a vocabulary ordered by frequency, about half of the words follow their predecessor in the alphabet.
    ascending = sum(first <= second for first, second in pairwise(words))
    if len(words) >= 100 and ascending > 0.95 * len(words):
        raise ValueError(
            "This tokenizer's vocabulary is in alphabetical order, which carries no frequency information. Set "
            "frequency='training_data', or frequency to a file of token counts."
        )


def rarity(rank: Tensor) -> Tensor:
    """Normalize ranks to [0, 1]: 0 for the most frequent token, 1 for the least frequent one.

    Args:
        rank: (size,) int64 from `frequency_rank`.

    Returns:
        (size,) float64; 0 for tokens without a rank.

    Example:
        >>> rarity(torch.tensor([-1, 0, 1, 2])).tolist()
        [0.0, 0.0, 0.5, 1.0]
    """
    return rank.clamp(min=0).to(torch.float64) / max(int(rank.max()), 1)


def frequency_groups(rank: Tensor, edges: Sequence[float] = (0.3, 0.8)) -> dict[str, Tensor]:
    """Split tokens into frequency groups.

    Args:
        rank: (size,) int64 from `frequency_rank`.
        edges: The shares of the vocabulary at which the medium and the rare group begin. The default, 30/50/20 %, is
            that of arXiv 2408.01308.

    Returns:
        The token ids, int64, of `"all"`, `"frequent"`, `"medium"` and `"rare"`, each in order of frequency.

    Example:
        >>> {name: ids.tolist() for name, ids in frequency_groups(torch.arange(-1, 5)).items()}
        {'all': [1, 2, 3, 4, 5], 'frequent': [1], 'medium': [2, 3, 4], 'rare': [5]}
    """
    ids = torch.argsort(rank)[int((rank < 0).sum()) :]
    first, second = (int(edge * len(ids) + 1e-9) for edge in edges)
    return {"all": ids} | dict(zip(GROUPS, ids.tensor_split([first, second]), strict=True))


def read_counts(path: str | Path, vocabulary: Vocabulary) -> Tensor:
    """Read token counts from a `.json` file `{token: count}`, or from a text file with `token<TAB>count` lines.

    Tokens are literal (`Ġthe`, `▁the`, `the`). Tokens that are not in the vocabulary are ignored.

    Returns:
        (size,) int64, 0 for tokens that are not in the file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a line is malformed (named), or if the file has no token of this vocabulary.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"The file frequency={str(path)!r} does not exist. Pass an existing file, 'vocabulary' or 'training_data'."
        )
    entries: list[tuple[str, Any]] = []
    if path.suffix == ".json":
        try:
            entries = list(json.loads(path.read_text(encoding="utf-8")).items())
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} must contain a JSON object {{token: count}}: {error}.") from error
    else:
        # Not splitlines(), as a token may contain other Unicode line breaks.
        for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
            token, tab, count = line.rpartition("\t")
            if not tab:
                raise ValueError(f"{path}, line {number} must be 'token<TAB>count', got {line!r}.")
            entries.append((token, count))
    ids = {token: index for index, token in enumerate(vocabulary.tokens) if token}
    counts = torch.zeros(len(vocabulary), dtype=torch.int64)
    known = 0
    for number, (token, count) in enumerate(entries, 1):
        if not str(count).strip().isdecimal() or len(str(count)) > 18:  # the limit of int64
            raise ValueError(
                f"{path}, entry {number}: the count of {token!r} must be a non-negative integer of at most 18 digits, "
                f"got {count!r}."
            )
        if token in ids:
            counts[ids[token]] += int(count)
            known += 1
    if not known:
        raise ValueError(
            f"{path} has no token of this vocabulary. Tokens must be literal, e.g. "
            f"{vocabulary.tokens[len(vocabulary) // 2]!r}."
        )
    return counts


def count_tokens(dataset: Any, size: int, *, labels: bool = False) -> Tensor:
    """Count the occurrences of each token id in the `input_ids` of a dataset, in time linear in the number of ids.

    The dataset is neither reordered nor consumed.

    Args:
        dataset: A dataset with a length, whose rows are mappings with `input_ids`.
        size: The number of rows of the embedding table.
        labels: Whether to count the ids in `labels` too, the target text of an encoder-decoder. Negative ids, which
            the loss ignores, are not counted.

    Returns:
        (size,) int64.

    Raises:
        ValueError: If the dataset is a stream, or if its rows have no `input_ids`.

    Example:
        >>> count_tokens([{"input_ids": [1, 2, 2]}], size=4).tolist()
        [0, 1, 2, 0]
        >>> count_tokens([{"input_ids": [1], "labels": [3, -100]}], size=4, labels=True).tolist()
        [0, 1, 0, 1]
    """
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            "The training data is a stream, which counting would consume. Count its tokens beforehand and pass the "
            "file as frequency='counts.tsv'."
        )
    counts = torch.zeros(size, dtype=torch.int64)
    block, held = list[Tensor](), 0
    # A map-style torch dataset has no __iter__; Python would index it until an IndexError, which may never come.
    rows = dataset if hasattr(dataset, "__iter__") else (dataset[index] for index in range(len(dataset)))
    for row in rows:
        if "input_ids" not in row:
            raise ValueError(f"The training data has the columns {sorted(row)}, but no 'input_ids'. Tokenize it first.")
        for column in ("input_ids", "labels") if labels and "labels" in row else ("input_ids",):
            block.append(torch.as_tensor(row[column]).flatten())
            held += len(block[-1])
        # A bincount costs as much as the vocabulary is large: take one for at least as many ids.
        if held >= max(size, _SMALLEST_BLOCK):
            counts += _bincount(block, size)
            block, held = [], 0
    return counts + _bincount(block, size)


def _bincount(block: Sequence[Tensor], size: int) -> Tensor:
    """Count the ids in [0, size) of a block of rows."""
    filled = [ids for ids in block if len(ids)]  # an empty list has become a float tensor
    if not filled:
        return torch.zeros(size, dtype=torch.int64)
    ids = torch.cat(filled)
    return torch.bincount(ids[(ids >= 0) & (ids < size)], minlength=size)


def training_counts(model: Any, dataloader: Any, config: DefinitionEMBConfig) -> Tensor | None:
    """Count the tokens of the training data if the config requires it, otherwise return `None`.

    For encoder-decoder models that generate text, the labels are counted too.

    Returns:
        (vocabulary,) int64, or `None`.
    """
    if config.frequency != "training_data" and not config.only_training_tokens:
        return None
    inner = transformers_model(model)
    generates = inner.config.is_encoder_decoder and inner.can_generate()
    return count_tokens(dataloader.dataset, table_shape(model)[0], labels=generates)
