"""Reading an embedding table: checked once, then in float64 blocks of rows, on the table's own device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

LARGEST = 1e140  # sums of squares of larger float64 entries would overflow; no float32 entry comes near
SHORTEST = 1e-145  # squares of shorter float64 rows would vanish; every float32 row that is not zero is longer

# Numbers in a block: on the CPU few enough to stay in its cache, elsewhere enough to be worth a launch.
CACHED, LAUNCHED = 1 << 18, 1 << 24


def checked(table: Tensor, name: str = "table") -> Tensor:
    """The table, detached and ready for float64, or an error that says what is wrong with it.

    Args:
        table: what should be an ``(n, d)`` tensor of real numbers.
        name: what the error calls it.

    Returns:
        The same storage without gradient; on the CPU where the device (MPS) has no float64.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not two-dimensional, empty, on the meta device, or with a NaN, infinite or overflowing entry.
    """
    if not isinstance(table, Tensor) or not table.is_floating_point():
        kind = table.dtype if isinstance(table, Tensor) else type(table).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}; dequantize or convert it first")
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"{name} must have shape (n, d) with n ≥ 1 and d ≥ 1, got {tuple(table.shape)}")
    if table.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values; load the weights first")
    table = table.detach()
    if table.device.type == "mps":
        table = table.cpu()
    low, high = (float(bound) for bound in torch.aminmax(table))
    if not (low > -LARGEST and high < LARGEST):  # put so that NaN, which is neither, gets here too
        start = 0
        for block in float64_blocks(table):
            bad = ~(block.abs() < LARGEST).all(dim=1)
            if bad.any():
                row = start + int(bad.nonzero()[0])
                what = "a NaN or infinite entry" if not table[row].isfinite().all() else f"an entry beyond {LARGEST:g}"
                raise ValueError(f"row {row} of {name} has {what}; repair or leave out this row")
            start += len(block)
    return table


def row_blocks(table: Tensor, ids: Tensor | None = None, *, elements: int = CACHED) -> Iterator[Tensor]:
    """The rows, or those that ``ids`` names, in order, as blocks of about ``elements`` numbers on the CPU."""
    rows = max(1, (elements if table.device.type == "cpu" else max(elements, LAUNCHED)) // table.shape[1])
    if ids is None:
        yield from table.split(rows)
    else:
        for block in ids.split(rows):
            yield table[block]


def float64_blocks(table: Tensor, ids: Tensor | None = None, *, elements: int = CACHED) -> Iterator[Tensor]:
    """`row_blocks` in float64."""
    for block in row_blocks(table, ids, elements=elements):
        yield block.double()


def row_lengths(block: Tensor) -> Tensor:
    """The length of each row of a float64 block, ``(rows,)``; 0 where it is below `SHORTEST`."""
    lengths = torch.linalg.vector_norm(block, dim=1)
    return lengths.where(lengths > SHORTEST, 0.0)


def unit_rows(block: Tensor) -> Tensor:
    """Each row divided by its length, in float64; a zero row stays zero."""
    block = block.double()
    lengths = row_lengths(block)[:, None]
    return torch.where(lengths > 0, block / lengths, 0.0)
