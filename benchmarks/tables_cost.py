"""Generate the tables of time, memory and robustness."""

from __future__ import annotations

from statistics import median
from typing import Any

from tables_common import table


def speed(result: dict[str, Any]) -> str:
    encoding, build = result["encoding_speed_relative_to_bare"], result["build_speed_relative_to_bare"]
    bare = "speed relative to the bare forward pass"
    rows = [
        [f"encoding: {bare}, bfloat16 weights", f"{encoding['bfloat16_weights']:.2f}"],
        [f"encoding: {bare}, bfloat16 autocast", f"{encoding['bfloat16_autocast']:.2f}"],
        ["everything else in a cold build, relative to the encoding", f"{result['rest_relative_to_encoding']:.2f}"],
        [f"cold build: {bare}, bfloat16 weights", f"{build['bfloat16_weights']:.2f}"],
        ["warm start (load and apply), seconds", f"{result['warm_start_seconds']:.1f}"],
        ["cold build: extra peak memory, MB", f"{result['extra_peak_mb']:,.0f}"],
    ]
    return table(["all-MiniLM-L6-v2, whole vocabulary, WordNet, 2 CPU cores", "measured"], rows)


def metrics(result: dict[str, Any]) -> str:
    isotropy, by_rows = result["isotropy"], result["by_rows"]
    rows = []
    for key, name in (("whole_table", "I(E)"), ("table_and_three_groups", "I(E) of the table and its three groups")):
        faster = isotropy[key]["times_faster"]
        against = f"{faster['one_by_one_float32']:.1f} × in float32, {faster['one_by_one_float64']:.1f} × in float64"
        rows.append([f"{name}: speed-up over one eigenvector at a time", against])
    rows.append(["I(E): extra peak memory, MB", f"{isotropy['extra_peak_mb']['isotropy']:,.0f}"])
    seconds = {int(size): row["measure_of_four_groups"] for size, row in by_rows["seconds"].items()}
    few, many = min(seconds), max(seconds)
    rows.append(
        [
            f"all metrics: relative time for {many / few:.0f} times as many rows ({few:,} → {many:,}, "
            f"d = {by_rows['dim']})",
            f"{seconds[many] / seconds[few]:.0f}",
        ]
    )
    shape = f"{isotropy['table']['rows']:,} × {isotropy['table']['dim']}"
    return table([f"{shape} float32, 2 CPU cores", "measured"], rows)


def monitoring(result: dict[str, Any]) -> str:
    run = result["sst2"]
    found = run["monitor"]
    share = found["hook_share"]
    rows = [
        ["callback, before the first step", f"{share['start']:.2%}"],
        ["callback, during training", f"{share['during']:.2%}"],
        ["callback, pictures and page at the end", f"{share['end']:.2%}"],
        ["callback, total", f"**{share['total']:.2%}**"],
        ["training time relative to a run without it (one pair, noisy)", f"{found['mean_time_ratio']:.3f}"],
    ]
    what = f"SST-2, {run['sentences']:,} sentences, {run['steps']:,} steps, all-MiniLM-L6-v2, 2 CPU cores"
    return table([what, "share of training time"], rows)


def learned_speed(result: dict[str, Any]) -> str:
    rows = []
    for name, found in result.items():
        tokens = median(found["trainer_tokens_per_second"])
        hours = found.get("hours_of_the_papers_updates")
        shares = [f"{found['share_of_bare']:.2f}", f"{found['share_of_peak']:.2f}"]
        rows.append([name, f"{tokens:,.0f}", *shares, "" if hours is None else f"{hours:,.0f}"])
    header = ["model, device", "tokens per second", "relative to bare passes", "share of matrix peak"]
    return table([*header, "hours for the paper's updates"], rows)


def scaling(result: dict[str, Any]) -> str:
    busiest, clock = result["processor_seconds_of_the_busiest"], result["seconds"]
    rows = [
        [f"{processes} × 1 core", f"{busiest[processes]:.0f} s", f"{clock[processes]:.0f} s"]
        for processes in ("1", "2")
    ]
    rows.append(["speed-up", f"**{result['speedup_in_processor_time']:.2f}**", f"{result['speedup']:.2f}"])
    header = [
        f"cold build, {result['tokens_encoded']:,} tokens read",
        "CPU time of the busiest process",
        "wall-clock time, shared machine",
    ]
    return table(header, rows)


def faults(result: dict[str, Any]) -> str:
    found = result["faults"]
    kills = [case for name, case in found.items() if "kills" in case]
    at_once = found["test_eight_processes_at_once_build_once"]
    died = found["test_a_killed_process_stops_the_others"]["seconds_until_the_other_stops"]
    fuzz = [case["outcome"] for case in result["fuzz"].values()]
    states = {state: sum(case["found"][state] for case in kills) for state in ("nothing", "half", "whole")}
    return table(
        ["fault", "result"],
        [
            [
                f"killed at {sum(case['kills'] for case in kills)} random moments",
                f"left nothing {states['nothing']} times, partial files {states['half']} times, complete files "
                f"{states['whole']} times; the next run always gave the right rows, and no lock was left",
            ],
            ["8 processes at once", f"{at_once['builds']} build, {at_once['different_results']} distinct result"],
            [f"{found['test_every_flipped_bit_is_detected']['flips']:,} flipped bits", "no wrong row"],
            ["one of two processes killed", f"the other stopped after {died} s"],
            [
                f"{result['inputs_per_parser']:,} inputs for each of {len(fuzz)} parser tests",
                f"{len(fuzz) - fuzz.count('passed')} raised an undocumented error",
            ],
        ],
    )
