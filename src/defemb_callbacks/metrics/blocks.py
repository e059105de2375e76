"""Reading an embedding table: checked once, then in float64 blocks of rows, on the table's own device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

LARGEST = 1e140  # sums of squares of larger float64 entries would overflow; no float32 entry comes near
SHORTEST = 1e-145  # squares of shorter float64 rows would vanish; every float32 row that is not zero is longer

# Numbers in a block: on the CPU few enough to stay in its cache, elsewhere enough to be worth a launch.
CACHED, LAUNCHED = 1 << 17, 1 << 22


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
        for block in row_blocks(table):
            bad = ~(block.abs() < LARGEST).all(dim=1)
            if bad.any():
                row = start + int(bad.nonzero()[0])
                what = "a NaN or infinite entry" if not table[row].isfinite().all() else f"an entry beyond {LARGEST:g}"
                raise ValueError(f"row {row} of {name} has {what}; repair or leave out this row")
            start += len(block)
    return table


def row_blocks(
    table: Tensor, ids: Tensor | None = None, *, dtype: torch.dtype = torch.float64, elements: int = CACHED
) -> Iterator[Tensor]:
    """The rows, or those that ``ids`` names, in order, as blocks of about ``elements`` numbers of this dtype.

    Each block overwrites the one before it, and may be written to: memory is asked for once, which costs more than the
    arithmetic on a block otherwise.
    """
    dim = table.shape[1]
    on_cpu = table.device.type == "cpu"
    rows, gathered = (max(1, (size if on_cpu else max(size, LAUNCHED)) // dim) for size in (elements, CACHED))
    total = len(table) if ids is None else len(ids)
    buffer = torch.empty(min(rows, total), dim, dtype=dtype, device=table.device)
    for start in range(0, total, rows):
        block = buffer[: min(rows, total - start)]
        if ids is None:
            block.copy_(table[start : start + rows])
        else:
            for target, chosen in zip(block.split(gathered), ids[start : start + rows].split(gathered), strict=True):
                target.copy_(table[chosen])
        yield block


def row_lengths(block: Tensor) -> Tensor:
    """The length of each row of a float64 block, ``(rows,)``; 0 where it is below `SHORTEST`."""
    lengths = torch.linalg.vector_norm(block, dim=1)
    return lengths.where(lengths > SHORTEST, 0.0)


def reciprocal_or_zero(lengths: Tensor) -> Tensor:
    """1/x, and 0 where x is 0."""
    return torch.where(lengths > 0, lengths.reciprocal(), 0.0)


def make_unit_(block: Tensor) -> Tensor:
    """Divide each row of a float64 block by its length, in place; a zero row stays zero."""
    return block.mul_(reciprocal_or_zero(row_lengths(block))[:, None])


def unit_rows(rows: Tensor) -> Tensor:
    """Each row divided by its length, a float64 copy; a zero row stays zero."""
    return make_unit_(rows.to(torch.float64, copy=True))
