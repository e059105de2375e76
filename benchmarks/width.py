"""Time and memory of the ridge regression in closed form, at the width of small and large models.

    python benchmarks/width.py                       # width 384 to 4096; the last takes minutes
    python benchmarks/width.py --widths 384 1024

Two features for each dimension, as by default, and targets that are linear in them but for noise; about a third of
the rows share their group with another row. The time is compared with one float64 product `x.T @ x` of the same size,
alternating in the same process. "Peak" is the memory of a process of its own above its inputs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import RESULTS, environment, held_mb
from torch import Tensor

from defemb_callbacks.reconstruction import cross_fitted_rows

ROWS = 25_000
WIDTHS = (384, 1024, 2048, 4096)


def inputs(rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, targets (both float32) and groups."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 2 * width, generator=generator)
    y = torch.randn(rows, width, generator=generator).mul_(3).add_(x[:, :width])
    return x, y, torch.randint(0, 5 * rows // 2, (rows,), generator=generator)


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def timed_product(x: Tensor) -> float:
    """Time the product without the conversion to float64."""
    features = x.to(torch.float64)
    return timed(lambda: features.T @ features)


def measure(rows: int, width: int, rounds: int) -> dict[str, float]:
    """Measure one width in this process."""
    x, y, groups = inputs(rows, width)
    before = held_mb("VmRSS")
    closed = [timed(lambda: cross_fitted_rows(x, y, groups=groups))]
    peak = held_mb("VmHWM")  # before the product allocates memory of its own
    product = [timed_product(x)]
    for _ in range(rounds - 1):  # alternating, so that load on the machine affects both
        closed.append(timed(lambda: cross_fitted_rows(x, y, groups=groups)))
        product.append(timed_product(x))
    return {
        "rows": rows,
        "features": x.shape[1],
        "seconds": round(min(closed), 2),
        "product_seconds": round(min(product), 2),
        "ratio": round(min(closed) / min(product), 2),
        "peak_mb": round(peak - before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--rows", type=int, default=ROWS, help="number of tokens with definitions")
    parser.add_argument("--rounds", type=int, default=3, help="number of repetitions; the fastest counts")
    parser.add_argument("--output", type=Path, default=RESULTS / "width.json")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.rows, arguments.worker, arguments.rounds)))
        return
    known = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
    result = known | {"environment": environment()}
    for width in arguments.widths:
        # A process of its own, whose peak is not that of an earlier width.
        command = [sys.executable, __file__, "--worker", str(width)]
        command += ["--rows", str(arguments.rows), "--rounds", str(arguments.rounds)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result[str(width)] = json.loads(found)
        print(width, found.strip(), flush=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
