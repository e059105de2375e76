"""Cost of the metrics: I(E) against its plain evaluation, and all metrics by number of rows, sample and repetition.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/metrics.py

`--quick` runs everything on small tables and saves results only with `--output`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from common import RESULTS, add_model_argument, environment, find_model, held_mb
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from defemb_callbacks import DefinitionEMBConfig, load_definitions
from defemb_callbacks.metrics import (
    TableMeasure,
    average_cosine,
    drift,
    effective_rank,
    isoscore,
    isotropy,
    mean_norm,
    neighbour_overlap,
    relation_auc,
    spectra_by_group,
)
from defemb_callbacks.metrics.pairs import related_tokens
from defemb_callbacks.vocabulary.frequency import configured_rank, frequency_groups
from defemb_callbacks.vocabulary.tokens import read_vocabulary

Result = TypeVar("Result")

PAIRS = 20_000  # the maximum number of related pairs
PHASES = 10


def make_table(rows: int, dim: int, norm: float) -> Tensor:
    """Create random rows with unequal variances, a common direction and the given mean length."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(rows, dim, generator=generator)
    table.mul_(torch.linspace(0.5, 1.5, dim)).add_(0.1 * torch.randn(dim, generator=generator))
    return table.mul_(norm / float(table.norm(dim=1).mean()))


def make_groups(rows: int) -> dict[str, Tensor]:
    """Split rows into the first 30 %, the next 50 % and the last 20 %."""
    ids = torch.arange(rows)
    first, second = int(0.3 * rows), int(0.8 * rows)
    return {"all": ids, "frequent": ids[:first], "medium": ids[first:second], "rare": ids[second:]}


def make_pairs(rows: int, pairs: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    left, step = (torch.randint(low, rows, (pairs,), generator=generator) for low in (0, 1))
    return torch.stack([left, (left + step) % rows], dim=1)


def timed(function: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """Return median seconds and the result."""
    return next(iter(compare({"": function}, repeats)[0].values())), function()


def compare(runs: dict[str, Callable[[], Result]], repeats: int) -> tuple[dict[str, float], dict[str, Result]]:
    """Return median seconds and results; runs alternate, so that load on the machine affects all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, Result] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            results[name] = run()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in seconds.items()}, results


def one_by_one(table: Tensor) -> float:
    """Evaluate the formula as the authors do: in a loop over the eigenvectors, in the table's dtype.

    Both signs use one product, so no work is wasted.
    """
    _, vectors = torch.linalg.eigh(table.T @ table)
    partition = []
    for direction in vectors.T.contiguous():
        exponents = (table @ direction).clamp(-50, 50)
        partition += [float(exponents.exp().sum()), float((-exponents).exp().sum())]
    return min(partition) / max(partition)


def ours_by_group(table: Tensor, groups: dict[str, Tensor]) -> dict[str, float]:
    """Compute I(E) of the table and its groups as `TableMeasure` does: the Gram matrices of the groups add up."""
    spectra = spectra_by_group(table, groups)
    return {
        name: isotropy(table if name == "all" else table[ids], spectrum=spectra[name]) for name, ids in groups.items()
    }


def against_plain_evaluation(rows: int, dim: int, norm: float, repeats: int) -> dict[str, Any]:
    """Compare I(E) of a table, and of the table and its three groups, with one eigenvector at a time."""
    table, groups = make_table(rows, dim, norm), make_groups(rows)
    exact = table.double()
    seconds, values = compare(
        {
            "one_by_one_float32": lambda: one_by_one(table),
            "one_by_one_float64": lambda: one_by_one(exact),
            "ours": lambda: isotropy(table),
        },
        repeats,
    )
    group_seconds, group_values = compare(
        {
            "one_by_one_float32": lambda: {name: one_by_one(table[ids]) for name, ids in groups.items()},
            "one_by_one_float64": lambda: {name: one_by_one(exact[ids]) for name, ids in groups.items()},
            "ours": lambda: ours_by_group(table, groups),
        },
        repeats,
    )
    expected = group_values["one_by_one_float64"]
    differences = [abs(value / expected[name] - 1) for name, value in group_values["ours"].items()]
    return {
        "table": {"rows": rows, "dim": dim, "mean_norm": norm, "dtype": "float32"},
        "whole_table": {
            "seconds": seconds,
            "times_faster": {name: seconds[name] / seconds["ours"] for name in seconds if name != "ours"},
            "values": values,
            "relative_difference_from_float64": abs(values["ours"] / values["one_by_one_float64"] - 1),
        },
        "table_and_three_groups": {
            "seconds": group_seconds,
            "times_faster": {name: group_seconds[name] / group_seconds["ours"] for name in seconds if name != "ours"},
            "values": group_values,
            "largest_relative_difference_from_float64": max(differences),
        },
        "extra_peak_mb": {what: in_a_process(what, rows, dim, norm) for what in MEMORY_OF},
    }


def measure_once(table: Tensor, groups: dict[str, Tensor]) -> dict[str, float]:
    return TableMeasure(groups).measure(table)


MEMORY_OF = {"isotropy": ours_by_group, "all_metrics": measure_once}


def in_a_process(what: str, rows: int, dim: int, norm: float) -> float:
    """Measure the extra memory of a measurement in MB, in a new process."""
    shape = ["--rows", str(rows), "--dim", str(dim), "--norm", str(norm), "--threads", str(torch.get_num_threads())]
    command = [sys.executable, __file__, "--memory-of", what, *shape]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def extra_peak_mb(what: str, rows: int, dim: int, norm: float) -> float:
    """Return the peak memory minus the memory before; requires a new process."""
    table, groups = make_table(rows, dim, norm), make_groups(rows)
    MEMORY_OF[what](make_table(1000, dim, norm), make_groups(1000))  # libraries loaded, threads started
    before = held_mb("VmRSS")
    MEMORY_OF[what](table, groups)
    return held_mb("VmHWM") - before


def by_rows(sizes: list[int], dim: int, repeats: int) -> dict[str, Any]:
    """Seconds of each metric and of all by group, and the power of n with which they grow."""
    seconds: dict[str, dict[str, float]] = {}
    for rows in sizes:
        table, groups, pairs = make_table(rows, dim, 2.0), make_groups(rows), make_pairs(rows, PAIRS)
        reference = table.roll(1, dims=0).mul_(0.3).add_(table)
        measure = TableMeasure(groups, pairs=pairs, reference=reference)
        runs: dict[str, Callable[[], object]] = {
            "isotropy": lambda table=table: isotropy(table),
            "average_cosine": lambda table=table: average_cosine(table),
            "effective_rank": lambda table=table: effective_rank(table),
            "isoscore": lambda table=table: isoscore(table),
            "norm": lambda table=table: mean_norm(table),
            "relation_auc": lambda table=table, pairs=pairs: relation_auc(table, pairs),
            "drift": lambda table=table, reference=reference: drift(table, reference),
            "neighbour_overlap": lambda table=table, reference=reference: neighbour_overlap(
                table, reference, sample=200
            ),
            "measure_of_four_groups": lambda measure=measure, table=table: measure.measure(table),
        }
        seconds[str(rows)] = compare(runs, repeats)[0]
        print(rows, {name: round(value, 3) for name, value in seconds[str(rows)].items()}, flush=True)
    return {
        "dim": dim,
        "pairs": PAIRS,
        "seconds": seconds,
        "power_of_rows": {
            name: power([seconds[str(n)][name] for n in sizes], sizes) for name in seconds[str(sizes[0])]
        },
    }


def power(seconds: list[float], sizes: list[int]) -> float:
    """The slope of log seconds over log rows, by least squares."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, seconds))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def sampling_error(table: Tensor, groups: dict[str, Tensor], sizes: list[int]) -> dict[str, dict[str, float]]:
    """By sample size and metric, how far the metrics of evenly spaced rows are from those of all rows.

    The root mean square over groups that the sample is smaller than, and over phases: where the spacing begins.
    `effective_rank` is given as a share of the exact value, the others as they are.
    """
    exact = TableMeasure(groups).measure(table)
    errors: dict[str, dict[str, float]] = {}
    for size in sizes:
        squares: dict[str, list[float]] = {}
        for phase in range(PHASES):
            rolled = {name: ids.roll(round(phase * len(ids) / size / PHASES)) for name, ids in groups.items()}
            for key, value in TableMeasure(rolled, sample=size).measure(table).items():
                _, metric, group = key.split("/")
                if len(groups[group]) > size:
                    scale = exact[key] if metric in ("effective_rank", "norm") else 1
                    squares.setdefault(metric, []).append(((value - exact[key]) / scale) ** 2)
        errors[str(size)] = {metric: math.sqrt(sum(values) / len(values)) for metric, values in squares.items()}
        print(size, {metric: round(value, 5) for metric, value in errors[str(size)].items()}, flush=True)
    return errors


def again_and_again(table: Tensor, groups: dict[str, Tensor], pairs: Tensor, repeats: int) -> dict[str, Any]:
    """Seconds of a repeated measurement, and of its parts, each by what it adds."""
    generator = torch.Generator().manual_seed(0)
    reference = table + 0.01 * torch.randn(table.shape, generator=generator)
    made, everything = timed(lambda: TableMeasure(groups, pairs=pairs, reference=reference), 1)
    plain, with_pairs = TableMeasure(groups), TableMeasure(groups, pairs=pairs)
    spectra = spectra_by_group(table, groups)
    seconds, _ = compare(
        {
            "all": lambda: everything.measure(table),
            "spectra": lambda: spectra_by_group(table, groups),
            "plain": lambda: plain.measure(table, spectra),
            "with_pairs": lambda: with_pairs.measure(table, spectra),
            "with_reference": lambda: everything.measure(table, spectra),
            "drift": lambda: drift(table, reference),
        },
        repeats,
    )
    return {
        "table": list(table.shape),
        "pairs": len(pairs),
        "seconds_to_make": made,
        "seconds": seconds["all"],
        "of_this": {
            "spectra": seconds["spectra"],
            "isotropy, average_cosine, effective_rank, isoscore, norm": seconds["plain"],
            "relation_auc": seconds["with_pairs"] - seconds["plain"],
            "drift": seconds["drift"],
            "neighbour_overlap": seconds["with_reference"] - seconds["with_pairs"] - seconds["drift"],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--rows", type=int, default=50265)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--norm", type=float, default=2.0, help="mean length of the rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small tables, one repeat")
    parser.add_argument("--memory-of", choices=MEMORY_OF, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = (arguments.rows, arguments.dim, arguments.norm)
    if arguments.memory_of:
        print(extra_peak_mb(arguments.memory_of, *shape))
        return
    repeats, sizes, samples = arguments.repeats, [10_000, 30_000, 100_000, 300_000, 500_000], [500, 1000, 2000, 5000]
    if arguments.quick:
        repeats, sizes, samples, shape = 1, [3000, 10_000, 30_000], [500], (5000, 128, 2.0)

    name = arguments.model or find_model()
    table = AutoModel.from_pretrained(name).get_input_embeddings().weight.detach()
    vocabulary = read_vocabulary(AutoTokenizer.from_pretrained(name), len(table))
    groups = frequency_groups(configured_rank(vocabulary, DefinitionEMBConfig()))
    pairs = related_tokens(vocabulary, load_definitions("wordnet"))
    result = {
        "repeated": again_and_again(table, groups, pairs, repeats),
        "isotropy": against_plain_evaluation(*shape, repeats),
        "by_rows": by_rows(sizes, 64 if arguments.quick else 256, min(repeats, 3)),
        "sampling_error": sampling_error(table, groups, samples),
        "repeats": repeats,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load_average": os.getloadavg()[0],
        "environment": environment(),
    }
    text = json.dumps(result, indent=1)
    output = arguments.output or (None if arguments.quick else RESULTS / "metrics.json")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
