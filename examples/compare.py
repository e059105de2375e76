"""Run a script with and without the callback, with paired seeds, and test whether the difference is significant.

    python examples/compare.py examples/run_glue.py --output_dir outputs/compare --seeds 5 \
        --variants baseline blend replace "learned=--method learned --strategy replace" -- \
        --model_name_or_path roberta-base --task_name sst2 --do_train --do_eval --max_train_samples 4096

Arguments after `--` and the options of a variant are passed to the script unchanged. With the same seed, all variants
have the same training examples, order and initialisation of the head. Each finished run is a line in `runs.jsonl`: an
interrupted command continues when it is run again, and with more seeds or variants only the missing runs are started.
`--launcher "accelerate launch"` runs on several GPUs. Results: `results.md`, `results.json` and `differences.png`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from intervals import paired_interval, seed_interval
from matplotlib.figure import Figure
from numpy.typing import NDArray

BASELINE = "baseline"
VARIANTS = {BASELINE: "--definition_emb false", "blend": "--strategy blend", "replace": "--strategy replace"}
EXAMPLES = "_examples.jsonl"
GROUPS = {"all": "all", "rare": "with a rare rebuilt token", "other": "without one"}

Run = dict[str, Any]
Results = dict[str, dict[str, dict[str, Any]]]  # metric, group, variant (and "examples")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the options; `variants` becomes {name: script options}, `script_options` a list."""
    options = list(argv[: argv.index("--")]) if "--" in argv else list(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "script", help="run_glue.py, run_summarization.py, or another script that writes the same files"
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5, help="number of paired runs, with --seed 0, 1, 2, …")
    parser.add_argument(
        "--variants", nargs="+", default=["baseline", "blend"], help=f"{', '.join(VARIANTS)}, NAME=OPTIONS"
    )
    parser.add_argument("--launcher", default=sys.executable, help="command that starts the script, instead of python")
    arguments = parser.parse_args(options)
    arguments.script_options = list(argv[len(options) + 1 :])
    variants = {}
    for variant in arguments.variants:
        name, equals, script_options = variant.partition("=")
        if not equals and name not in VARIANTS:
            parser.error(f"unknown variant {name!r}. Choose one of {', '.join(VARIANTS)}, or pass {name}=OPTIONS")
        variants[name] = shlex.split(script_options if equals else VARIANTS[name])
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {arguments.seeds}")
    if BASELINE not in variants:
        parser.error(f"--variants must include {BASELINE!r}, got {', '.join(variants)}")
    arguments.variants = variants
    return arguments


def finished_runs(path: Path, expected: dict[str, list[str]]) -> list[Run]:
    """Read the runs of earlier commands for the given variants.

    Raises:
        ValueError: If a run of one of these variants had different options.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):  # killed while writing
        path.write_text("".join(lines[:-1]), encoding="utf-8")
        lines = lines[:-1]
    runs = [run for run in map(json.loads, lines) if run["variant"] in expected]
    for run in runs:
        if run["options"] != expected[run["variant"]]:
            raise ValueError(
                f"{path} has runs of {run['variant']!r} with different options ({shlex.join(run['options'])}). "
                "Choose another --output_dir or rename the variant."
            )
    return runs


def new_run(launcher: str, script: str, variant: str, options: list[str], seed: int, folder: Path) -> Run:
    """Run the script and return its metrics and the scores of single examples.

    Raises:
        RuntimeError: If the script fails; the message contains the end of its output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [*shlex.split(launcher), script, *options, "--seed", str(seed), "--output_dir", str(folder)]
    with (folder / "output.log").open("w", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        end = (folder / "output.log").read_text(encoding="utf-8")[-2000:]
        raise RuntimeError(f"{shlex.join(command)} failed ({code}). The end of {folder / 'output.log'}:\n{end}")
    metrics = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    files = sorted(folder.glob(f"*{EXAMPLES}"))
    if not files:
        raise RuntimeError(f"{shlex.join(command)} wrote no *{EXAMPLES}. Pass --do_eval.")
    examples = {path.name.removesuffix(EXAMPLES): _columns(path, metrics) for path in files}
    return {"variant": variant, "seed": seed, "options": options, "metrics": metrics, "examples": examples}


def _columns(path: Path, metrics: dict[str, float]) -> dict[str, list[float]]:
    """Read for each example whether it has a rare token, and the scores that are averaged over examples."""
    prefix = path.name.removesuffix(EXAMPLES)
    examples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = ["rare", *(name for name in examples[0] if f"{prefix}_{name}" in metrics)]
    return {name: [round(float(example[name]), 6) for example in examples] for name in kept}


def check_same_examples(runs: list[Run]) -> None:
    """Raise a `ValueError` if runs were evaluated on different examples."""
    sizes = [{prefix: len(columns["rare"]) for prefix, columns in run["examples"].items()} for run in runs]
    if other := [size for size in sizes if size != sizes[0]]:
        raise ValueError(f"The runs were evaluated on different numbers of examples: {sizes[0]} and {other[0]}.")


def compared(runs: list[Run], variants: Sequence[str], seeds: int) -> Results:
    """Compute mean score, paired difference and interval by metric, group of examples and variant.

    Variants may differ in which tokens are rare and rebuilt; the groups are those of the baseline's first run. Metrics
    that are not means over examples are reported by group only if all runs have the same groups.
    """
    by_key = {(run["variant"], run["seed"]): run for run in runs}
    pairs = {variant: [by_key[variant, seed] for seed in range(seeds)] for variant in variants}
    first = pairs[BASELINE][0]
    results: Results = {}
    for prefix, columns in first["examples"].items():
        rare = np.array(columns["rare"], dtype=bool)
        groups = {"all": np.ones_like(rare), "rare": rare, "other": ~rare}
        same = all(run["examples"][prefix]["rare"] == columns["rare"] for of in pairs.values() for run in of)
        for name in _metrics(first, prefix):
            label = name if prefix == "eval" else f"{name} ({prefix})"
            for group, mask in groups.items():
                if not mask.any() or not (name in columns or same or group == "all"):
                    continue
                if name in columns:
                    every = {variant: [run["examples"][prefix][name] for run in of] for variant, of in pairs.items()}
                    scores = {variant: np.array(of)[:, mask] for variant, of in every.items()}
                else:
                    key = f"{prefix}_{name}" if group == "all" else f"{prefix}_{name}_{group}"
                    scores = {variant: np.array([run["metrics"][key] for run in of]) for variant, of in pairs.items()}
                rows = {variant: _row(of, scores[BASELINE]) for variant, of in scores.items()}
                results.setdefault(label, {})[group] = {"examples": int(mask.sum()), **rows}
    return results


def _row(scores: NDArray[np.float64], baseline: NDArray[np.float64]) -> dict[str, Any]:
    """Summarise (seeds, examples) scores, or (seeds,) scores that are not means over examples."""
    difference = scores - baseline
    by_seed = difference if difference.ndim == 1 else difference.mean(axis=1)
    row = {"mean": float(scores.mean()), "difference": float(difference.mean()), "of_seeds": by_seed.tolist()}
    if difference.ndim == 2:
        row["interval"] = paired_interval(difference)
    elif len(difference) > 1:
        row["interval"] = seed_interval(difference)
    return row


def _metrics(run: Run, prefix: str) -> list[str]:
    """Return the metrics of one set of examples that are reported by group."""
    others = tuple(f"{other}_" for other in run["examples"] if other.startswith(f"{prefix}_"))
    keys = [key for key in run["metrics"] if key.startswith(f"{prefix}_") and key.endswith(("_rare", "_other"))]
    own = [key for key in keys if not key.startswith((*others, f"{prefix}_samples_"))]
    return list(dict.fromkeys(key.removeprefix(f"{prefix}_").rpartition("_")[0] for key in own))


def markdown(results: Results, variants: Sequence[str]) -> str:
    """Write a table per metric with a row per variant. Differences are bold if their interval excludes 0."""
    return "\n\n".join("\n".join(_table(name, groups, variants)) for name, groups in results.items())


def _table(metric: str, groups: dict[str, dict[str, Any]], variants: Sequence[str]) -> Iterator[str]:
    headings = [f"{GROUPS[group]} ({rows['examples']:,})" for group, rows in groups.items()]
    yield " | ".join(["| " + metric, *(f"{heading} | difference [95 %]" for heading in headings)]) + " |"
    yield "| --- " * (1 + 2 * len(groups)) + "|"
    for variant in variants:
        cells = [variant]
        for rows in groups.values():
            row = rows[variant]
            cells += [f"{row['mean']:.4f}", "" if variant == BASELINE else _difference(row)]
        yield "| " + " | ".join(cells) + " |"


def _difference(row: dict[str, Any]) -> str:
    if "interval" not in row:
        return f"{row['difference']:+.4f}"
    low, high = row["interval"]
    text = f"{row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def draw(results: Results, variants: Sequence[str], path: Path) -> None:
    """Draw a row of panels per metric and a panel per group: differences with intervals, a dot per seed."""
    shown = [variant for variant in variants if variant != BASELINE]
    columns = max(map(len, results.values()))
    size = (3.4 * columns + 1, (0.45 * len(shown) + 1.3) * len(results))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(results), columns, squeeze=False, sharey=True, sharex="row")
    for panels, (metric, groups) in zip(grid, results.items(), strict=True):
        for axes, (group, rows) in zip(panels, groups.items(), strict=False):
            for place, variant in enumerate(shown):
                row = rows[variant]
                low, high = row.get("interval", (row["difference"],) * 2)
                axes.hlines(place, low, high, color="#0072B2", linewidth=3, alpha=0.5)
                axes.plot(row["of_seeds"], [place] * len(row["of_seeds"]), ".", color="#555555", markersize=5)
                axes.plot(row["difference"], place, "D", color="#0072B2", markersize=6)
            axes.axvline(0, color="black", linewidth=0.8)
            axes.set_title(f"{metric}, {GROUPS[group]} ({rows['examples']:,})", fontsize=9, loc="left")
            axes.locator_params(axis="x", nbins=5)  # more labels would overlap
            axes.grid(axis="x", alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_yticks(range(len(shown)), shown)
    grid[0][0].invert_yaxis()
    figure.suptitle("Difference to the baseline (diamond: mean, bar: 95 % interval, dots: seeds)", fontsize=10)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> Results:
    """Run what is missing and compare."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    folder: Path = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    expected = {variant: [*arguments.script_options, *options] for variant, options in arguments.variants.items()}
    runs = finished_runs(folder / "runs.jsonl", expected)
    done = {(run["variant"], run["seed"]) for run in runs}
    for seed in range(arguments.seeds):
        for variant, options in expected.items():
            if (variant, seed) in done:
                continue
            run = new_run(arguments.launcher, arguments.script, variant, options, seed, folder / f"{variant}-{seed}")
            with (folder / "runs.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(run) + "\n")
            runs.append(run)
            check_same_examples(runs)
            scores = (f"{name} {run['metrics'][f'eval_{name}']:.4f}" for name in _metrics(run, "eval"))
            print(f"Seed {seed}, {variant}: {', '.join(scores)}", flush=True)
    results = compared(runs, list(expected), arguments.seeds)
    settings = {"script": Path(arguments.script).name, "seeds": arguments.seeds, "options": expected}
    (folder / "results.json").write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n")
    table = markdown(results, list(expected))
    (folder / "results.md").write_text(table + "\n", encoding="utf-8")
    draw(results, list(expected), folder / "differences.png")
    print(f"\n{table}\n\nSaved in {folder}.")
    return results


if __name__ == "__main__":
    main()
