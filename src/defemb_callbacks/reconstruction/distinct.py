"""Check that different definitions have given different vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from defemb_callbacks.reconstruction.prompts import DefinitionTexts

# Maximum share of vectors that are equal although their definitions differ.
MAX_EQUAL = 0.1

# Vectors are equal if they differ by less than this share of their mean length, which is more than float32 rounds.
TOLERANCE = 1e-5


def check_distinct(vectors: Tensor, texts: Callable[[], DefinitionTexts], cure: str) -> None:
    """Raise if more than 10 % of the vectors are equal to others that come from other definitions.

    A model that reads before the definition, or whose states do not depend on the text, gives all words one vector.

    Args:
        vectors: (n, d), one for each word.
        texts: Function that returns the definitions of these words; called only if many vectors are equal.
        cure: A sentence that says what to do.

    Raises:
        ValueError: If too many are equal.
    """
    distinct = distinct_rows(vectors)
    if distinct >= (1 - MAX_EQUAL) * len(vectors):
        return
    different = _distinct_definitions(texts())
    if distinct < (1 - MAX_EQUAL) * different:
        raise ValueError(
            f"The definitions of {len(vectors)} tokens, {different} of which differ, have given only {distinct} "
            f"different vectors: the model does not tell them apart. {cure}"
        )


def distinct_rows(rows: Tensor, block: int = 4096) -> int:
    """Count the rows of a matrix that differ by more than rounding.

    Args:
        rows: (n, d), floating-point.
        block: Number of rows compared at once.

    Example:
        >>> distinct_rows(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0 + 1e-7]]))
        2
    """
    # Equal rows are neighbours if rows are sorted by their projection on a random direction.
    direction = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0)).to(rows.device, rows.dtype)
    order = (rows @ direction).argsort()
    least = TOLERANCE * rows.norm(dim=1).mean()
    count = min(1, len(rows))
    for start in range(0, len(order) - 1, block):
        part = rows[order[start : start + block + 1]]
        count += int((part.diff(dim=0).norm(dim=1) > least).sum())
    return count


def _distinct_definitions(texts: DefinitionTexts) -> int:
    words: dict[int, list[tuple[tuple[int, ...], float]]] = {}
    for text, word, weight in zip(texts.text.tolist(), texts.word.tolist(), texts.weight.tolist(), strict=True):
        words.setdefault(word, []).append((tuple(texts.input_ids[text]), weight))
    return len({tuple(sorted(found)) for found in words.values()})
