"""Batches of rows of similar or equal length, by number of tokens or of rows, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


def spread(length: int, most: int) -> list[int]:
    """Return at most `most` evenly spaced positions, a sample that also represents sorted data.

    Args:
        length: Number of rows.
        most: Maximum number of positions.

    Example:
        >>> spread(9, 3), spread(2, 3)
        ([0, 4, 8], [0, 1])
    """
    return torch.linspace(0, length - 1, min(length, most), dtype=torch.float64).long().tolist()


class TokenBatchSampler(Sampler[list[int]]):
    """Batches of rows of similar length with at most `tokens` tokens, padding included.

    An optimizer step covers the same rows for any number of processes: batches are built for all processes together and
    distributed row by row, except for rows longer than `tokens` and a last batch with fewer rows than processes. Each
    epoch combines other rows, in another order.

    Args:
        lengths: Number of tokens of each row.
        tokens: Maximum number of tokens of a batch on one process. A longer row is a separate batch. With several
            processes, some get one row more if a batch cannot be split evenly.
        processes: Number of processes; each gets every `processes`-th batch, as accelerate distributes them.
        seed: Seed of the order.

    Raises:
        ValueError: If there are fewer rows than processes.

    Example:
        >>> sampler = TokenBatchSampler([3, 9, 3, 3, 9], tokens=18)
        >>> sorted(sorted(batch) for batch in sampler)
        [[0, 2, 3], [1, 4]]
    """

    def __init__(self, lengths: Sequence[int], tokens: int, *, processes: int = 1, seed: int = 0) -> None:
        if len(lengths) < processes:
            raise ValueError(
                f"{len(lengths)} definitions cannot be split over {processes} processes. Use fewer processes."
            )
        self.lengths = torch.as_tensor(lengths)
        self.processes, self.seed, self.epoch = processes, seed, 0
        self.batch_size = None  # signals to accelerate that batches differ in size
        self.drop_last = False
        # accelerate calls `set_epoch` on the `sampler` attribute of what it wraps.
        self.sampler = self
        self._cuts = _cuts(self.lengths.sort(descending=True).values.tolist(), tokens * processes, processes)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order.

        Args:
            epoch: Number of the epoch.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return (len(self._cuts) - 1) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.randperm(len(self.lengths), generator=generator)
        # A stable sort keeps rows of one length in random order, so each epoch combines others.
        order: list[int] = drawn[self.lengths[drawn].argsort(descending=True, stable=True)].tolist()
        for number in torch.randperm(len(self._cuts) - 1, generator=generator).tolist():
            batch = order[self._cuts[number] : self._cuts[number + 1]]
            yield from (batch[process :: self.processes] for process in range(self.processes))


def _cuts(lengths: list[int], tokens: int, fewest: int) -> list[int]:
    """Boundaries of batches of rows, the longest first; each has at least `fewest` rows."""
    cuts = [0]
    for row in range(len(lengths)):
        rows = row - cuts[-1]
        if rows >= fewest and (rows + 1) * lengths[cuts[-1]] > tokens and len(lengths) - row >= fewest:
            cuts.append(row)
    return [*cuts, len(lengths)]


def equal_length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group positions into batches of equal length, the longest first so that memory peaks in the first batch.

    Args:
        lengths: Number of tokens of each row.
        batch_size: Maximum number of rows of a batch.

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
