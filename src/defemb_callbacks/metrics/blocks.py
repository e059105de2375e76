"""Read embedding tables in float64 blocks of rows, on the device of the table."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from defemb_callbacks.weights.precision import float64_device

LARGEST = 1e140  # sums of squares of larger float64 entries would overflow; all float32 entries are far smaller
SHORTEST = 1e-145  # squares of shorter float64 rows would underflow; nonzero float32 rows are all longer

# Numbers in a block: on the CPU few enough to fit its cache, on other devices enough to justify a kernel launch.
CACHED, LAUNCHED = 1 << 17, 1 << 22


def checked(table: Tensor, name: str = "table") -> Tensor:
    """Validate a table and detach it.

    Args:
        table: Table to validate, (n, d).
        name: Name of the table in error messages.

    Returns:
        The same storage without gradient; a copy on the CPU if the device has no float64.

    Raises:
        TypeError: If the table is not a floating-point tensor.
        ValueError: If the table is not two-dimensional, is empty, is on the meta device, or has a NaN, infinite or
            overflowing entry.
    """
    if not isinstance(table, Tensor) or not table.is_floating_point():
        kind = table.dtype if isinstance(table, Tensor) else type(table).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}. Dequantize or convert it first.")
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"{name} must have shape (n, d) with n ≥ 1 and d ≥ 1, got {tuple(table.shape)}")
    if table.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values. Load the weights first.")
    table = table.detach()
    table = table.to(float64_device(table.device))
    low, high = (float(bound) for bound in torch.aminmax(table))
    if not (low > -LARGEST and high < LARGEST):  # negated so that NaN is caught as well
        start = 0
        for block in row_blocks(table):
            bad = ~(block.abs() < LARGEST).all(dim=1)
            if bad.any():
                row = start + int(bad.nonzero()[0])
                what = "a NaN or infinite entry" if not table[row].isfinite().all() else f"an entry beyond {LARGEST:g}"
                raise ValueError(f"row {row} of {name} has {what}. Repair or leave out this row.")
            start += len(block)
    return table


def row_blocks(
    table: Tensor, ids: Tensor | None = None, *, dtype: torch.dtype = torch.float64, elements: int = CACHED
) -> Iterator[Tensor]:
    """Yield the rows, or those in `ids`, in order, as blocks of about `elements` numbers of the given dtype.

    All blocks share one buffer, because allocating a new one would cost more than the arithmetic on it: each block
    overwrites the previous one, and callers may modify it.
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
    """Return the norm of each row of a float64 block, (rows,); norms up to `SHORTEST` become 0."""
    lengths = torch.linalg.vector_norm(block, dim=1)
    return lengths.where(lengths > SHORTEST, 0.0)


def reciprocal_or_zero(lengths: Tensor) -> Tensor:
    """Return 1/x, and 0 where x is 0."""
    return torch.where(lengths > 0, lengths.reciprocal(), 0.0)


def make_unit_(block: Tensor) -> Tensor:
    """Normalize each row of a float64 block in place; zero rows stay zero."""
    return block.mul_(reciprocal_or_zero(row_lengths(block))[:, None])


def unit_rows(rows: Tensor) -> Tensor:
    """Return a float64 copy with normalized rows; zero rows stay zero."""
    return make_unit_(rows.to(torch.float64, copy=True))


def exact_float32(device: torch.device) -> bool:
    """Return whether float32 products are computed in float32, not in TF32 or bfloat16 or under autocast."""
    highest = torch.get_float32_matmul_precision() == "highest"
    return device.type == "cpu" and highest and not torch.is_autocast_enabled("cpu")
