"""What pictures need of an embedding table at one time; far smaller than the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from defemb_callbacks.frequency import GROUPS
from defemb_callbacks.rows import read_table

POINTS = 700  # of each group in a projection: more would hide each other


@dataclass(frozen=True)
class TableSnapshot:
    """What the pictures need of a table at one time; far smaller than the table.

    Attributes:
        spectrum: (d,) float64 singular values, the largest first.
        basis: (d, 2) float64, the first two right singular vectors.
        points: rows of a sample of each group, (at most 700, d) float32, the same tokens at any time.
    """

    spectrum: Tensor
    basis: Tensor
    points: dict[str, Tensor]

    @classmethod
    def take(cls, model: nn.Module, groups: Mapping[str, Tensor]) -> TableSnapshot:
        """Look at a model's input embeddings; `groups` as from `frequency_groups`."""
        table = read_table(model)
        rows = table[groups["all"].to(table.device)].double()
        squares, vectors = torch.linalg.eigh(rows.T @ rows)  # gives the singular values as well
        points = {}
        for name in GROUPS:
            ids = groups[name]
            evenly = ids[torch.linspace(0, len(ids) - 1, min(POINTS, len(ids))).round().long()]
            points[name] = table[evenly.to(table.device)].cpu()
        return cls(squares.clamp(min=0).sqrt().flip(0).cpu(), vectors[:, -2:].flip(1).cpu(), points)
