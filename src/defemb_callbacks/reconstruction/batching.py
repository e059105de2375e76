"""Batches by number of tokens or of one length, shared by any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


def spread(length: int, most: int) -> list[int]:
    """At most so many positions, from all over the data, which may be sorted.

    Example:
        >>> spread(9, 3), spread(2, 3)
        ([0, 4, 8], [0, 1])
    """
    return torch.linspace(0, length - 1, min(length, most), dtype=torch.float64).long().tolist()


class TokenBatchSampler(Sampler[list[int]]):
    """Rows of about equal length, together at most so many tokens, padding included.

    What one optimizer step sees does not depend on how many processes share it: batches are made for all of them, and
    dealt out row by row (but for a row longer than `tokens`, or a last batch of fewer rows than processes). Each epoch
    draws other rows together, in another order.

    Args:
        lengths: of each row, in tokens.
        tokens: most tokens of a batch on one process; a row that is longer is a batch of its own. Of several processes
            some get a row more than that, where a batch cannot be dealt out evenly.
        processes: each gets every `processes`-th of the batches, as accelerate deals them.
        seed: of the order.

    Raises:
        ValueError: fewer rows than processes.

    Example:
        >>> sampler = TokenBatchSampler([3, 9, 3, 3, 9], tokens=18)
        >>> sorted(sorted(batch) for batch in sampler)
        [[0, 2, 3], [1, 4]]
    """

    def __init__(self, lengths: Sequence[int], tokens: int, *, processes: int = 1, seed: int = 0) -> None:
        if len(lengths) < processes:
            raise ValueError(f"{len(lengths)} definitions cannot be dealt to {processes} processes; use fewer.")
        self.lengths = torch.as_tensor(lengths)
        self.processes, self.seed, self.epoch = processes, seed, 0
        self.batch_size = None  # accelerate's sign for batches of different sizes
        self.drop_last = False
        # Where accelerate looks for `set_epoch` behind its own shards.
        self.sampler = self
        self._cuts = _cuts(self.lengths.sort(descending=True).values.tolist(), tokens * processes, processes)

    def set_epoch(self, epoch: int) -> None:
        """Draw another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return (len(self._cuts) - 1) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.randperm(len(self.lengths), generator=generator)
        # Rows of one length stay in the order drawn, so that each epoch puts others together.
        order: list[int] = drawn[self.lengths[drawn].argsort(descending=True, stable=True)].tolist()
        for number in torch.randperm(len(self._cuts) - 1, generator=generator).tolist():
            batch = order[self._cuts[number] : self._cuts[number + 1]]
            yield from (batch[process :: self.processes] for process in range(self.processes))


def _cuts(lengths: list[int], tokens: int, fewest: int) -> list[int]:
    """Where batches of rows, the longest first, begin and end; each has at least so many rows."""
    cuts = [0]
    for row in range(len(lengths)):
        rows = row - cuts[-1]
        if rows >= fewest and (rows + 1) * lengths[cuts[-1]] > tokens and len(lengths) - row >= fewest:
            cuts.append(row)
    return [*cuts, len(lengths)]


def equal_length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Positions in batches of equal length, the longest first so that memory peaks at once.

    Example:
        >>> equal_length_batches([3, 5, 3, 5, 5], batch_size=2)
        [[1, 3], [4], [0, 2]]
    """
    by_length: dict[int, list[int]] = {}
    for position, length in enumerate(lengths):
        by_length.setdefault(length, []).append(position)
    return [
        same[start : start + batch_size]
        for _, same in sorted(by_length.items(), reverse=True)
        for start in range(0, len(same), batch_size)
    ]
