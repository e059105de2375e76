"""The nearest words of new rows, which show at a glance whether a row is sensible."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

SHOWN = 4
_BLOCK = 8192


@torch.no_grad()
def nearest_tokens(
    table: Tensor, tokens: Sequence[Sequence[int]], among: Tensor, centre: Tensor, number: int = SHOWN
) -> list[list[int]]:
    """Find the rows with the highest centred cosine to the first row of each term, without the term's own rows.

    Args:
        table: (vocabulary, d) floating-point; rows are converted to float32 in blocks.
        tokens: Ids of the tokens of each term.
        among: (m,) int64, the rows to search.
        centre: (d,) subtracted from all rows.
        number: Number of rows to find for each term; fewer if `among` has fewer.

    Returns:
        Ids for each term, nearest first.

    Example:
        >>> table = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 0.1]])
        >>> nearest_tokens(table, [[3], [2]], torch.arange(4), torch.zeros(2), number=2)
        [[1, 0], [1, 3]]
    """
    if not tokens or not len(among):
        return [[] for _ in tokens]
    centre = centre.to(table.device, torch.float32)
    queries = normalize(table[[ids[0] for ids in tokens]].float() - centre)
    # Enough of them to leave out the term's own.
    wanted = number + max(map(len, tokens))
    best = torch.full((len(tokens), 0), -torch.inf, device=table.device)
    ids = torch.zeros(len(tokens), 0, dtype=torch.int64, device=table.device)
    for block in among.to(table.device).split(_BLOCK):
        cosines = torch.cat([best, queries @ normalize(table[block].float() - centre).T], dim=1)
        candidates = torch.cat([ids, block.expand(len(tokens), -1)], dim=1)
        best, places = cosines.topk(min(wanted, cosines.shape[1]), dim=1)
        ids = candidates.gather(1, places)
    return [
        [index for index in row if index not in own][:number] for row, own in zip(ids.tolist(), tokens, strict=True)
    ]
