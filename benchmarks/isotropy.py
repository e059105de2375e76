"""How much faster is I(E) than evaluating it eigenvector by eigenvector, and is it the same number?

Side by side in one process, in turn, medians: the partition function one eigenvector at a time (both signs from one
product, so the reference does no needless work) in float32 and in float64, and `defemb_callbacks.metrics.isotropy`.
First for the whole table, then for the table and its three frequency groups, as the callback logs them.

    python benchmarks/isotropy.py --rows 50265 --dim 768 --output benchmarks/results/isotropy.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from defemb_callbacks.metrics import isotropy
from defemb_callbacks.metrics.measure import spectra_by_group

Result = TypeVar("Result")


def make_table(rows: int, dim: int, norm: float) -> Tensor:
    """Random rows with unequal variances, a common direction and this mean length."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(rows, dim, generator=generator)
    table.mul_(torch.linspace(0.5, 1.5, dim)).add_(0.1 * torch.randn(dim, generator=generator))
    return table.mul_(norm / float(table.norm(dim=1).mean()))


def make_groups(rows: int) -> dict[str, Tensor]:
    """The first 30 %, the next 50 %, the last 20 %."""
    ids = torch.arange(rows)
    first, second = int(0.3 * rows), int(0.8 * rows)
    return {"all": ids, "frequent": ids[:first], "medium": ids[first:second], "rare": ids[second:]}


def one_by_one(table: Tensor) -> float:
    """The formula as the authors evaluate it: a loop over the eigenvectors, in the table's own dtype."""
    _, vectors = torch.linalg.eigh(table.T @ table)
    partition = []
    for direction in vectors.T.contiguous():
        exponents = (table @ direction).clamp(-50, 50)
        partition += [float(exponents.exp().sum()), float((-exponents).exp().sum())]
    return min(partition) / max(partition)


def ours_by_group(table: Tensor, groups: dict[str, Tensor]) -> dict[str, float]:
    """What `measure_table` does for I(E)."""
    spectra = spectra_by_group(table, groups)
    return {name: isotropy(table[ids], spectrum=spectra[name]) for name, ids in groups.items()}


def timed(function: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds and result of one call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def compare(runs: dict[str, Callable[[], Result]], repeats: int) -> tuple[dict[str, float], dict[str, Result]]:
    """Median seconds and result of each; in turn, so that a busy machine is busy for all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, Result] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            elapsed, results[name] = timed(run)
            seconds[name].append(elapsed)
    return {name: statistics.median(times) for name, times in seconds.items()}, results


def peak_mb() -> float:
    """The most memory this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if platform.system() == "Linux" else 1024**2)


def main() -> None:
    parser = argparse.ArgumentParser(description="I(E) against its evaluation eigenvector by eigenvector.")
    parser.add_argument("--rows", type=int, default=50265)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--norm", type=float, default=2.0, help="mean length of the rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table, groups = make_table(args.rows, args.dim, args.norm), make_groups(args.rows)

    isotropy(table[:1000])  # libraries loaded, threads started: not part of the memory that a table costs
    before = peak_mb()
    ours_by_group(table, groups)
    extra_mb = peak_mb() - before

    exact = table.double()
    runs = {
        "one_by_one_float32": lambda: one_by_one(table),
        "one_by_one_float64": lambda: one_by_one(exact),
        "ours": lambda: isotropy(table),
    }
    seconds, values = compare(runs, args.repeats)
    group_runs = {
        "one_by_one_float32": lambda: {name: one_by_one(table[ids]) for name, ids in groups.items()},
        "one_by_one_float64": lambda: {name: one_by_one(exact[ids]) for name, ids in groups.items()},
        "ours": lambda: ours_by_group(table, groups),
    }
    group_seconds, group_values = compare(group_runs, args.repeats)
    expected = group_values["one_by_one_float64"]
    differences = [abs(value / expected[name] - 1) for name, value in group_values["ours"].items()]
    results = {
        "table": {"rows": args.rows, "dim": args.dim, "mean_norm": args.norm, "dtype": "float32"},
        "whole_table": {
            "seconds": seconds,
            "times_faster": {name: seconds[name] / seconds["ours"] for name in runs if name != "ours"},
            "values": values,
            "relative_difference_from_float64": abs(values["ours"] / values["one_by_one_float64"] - 1),
        },
        "table_and_three_groups": {
            "seconds": group_seconds,
            "times_faster": {name: group_seconds[name] / group_seconds["ours"] for name in runs if name != "ours"},
            "values": group_values,
            "largest_relative_difference_from_float64": max(differences),
        },
        "ours_extra_peak_mb": round(extra_mb, 1),
        "repeats": args.repeats,
        "threads": args.threads,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    text = json.dumps(results, indent=2)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
