"""Writes the README's tables from the JSON in `benchmarks/results/`, between `<!-- table NAME -->` and `<!-- end -->`.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GROUPS = ("all", "frequent", "medium", "rare")


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def supersense(result: dict[str, Any]) -> str:
    rows = []
    for group in GROUPS[1:]:
        runs = {name: [run[group] for run in result["accuracy"][name]] for name in ("baseline", "definitions")}
        paired = [b - a for a, b in zip(runs["baseline"], runs["definitions"], strict=True)]
        cells = [f"{mean(values):.3f} ± {stdev(values):.3f}" for values in runs.values()]
        rows.append([f"{group} ({result['test_nouns'][group]:,})", *cells, f"**{mean(paired):+.3f}**"])
    return table(["test nouns", "without", "with the callback", "difference"], rows)


WORDSIM = {
    "pretrained": "pretrained",
    "default": "default (blend)",
    "both": "with Wiktionary",
    "replace": "replace",
    "learned": "learned",
    "learned, replace": "learned, replace",
}


def wordsim(result: dict[str, Any]) -> str:
    rows = []
    for dataset, groups in result["scores"].items():
        for group, row in groups.items():
            if group in ("all", "rare"):
                name = f"{dataset}{'' if group == 'all' else ', pairs with a rare word'} ({row['pairs']:,})"
                rows.append([name, *(f"{row[label]:.3f}" for label in WORDSIM)])
    return table(["Spearman, input embeddings", *WORDSIM.values()], rows)


def sst2(result: dict[str, Any]) -> str:
    rows, examples = [], {}
    for sentences, run in ((size, run) for size, run in result.items() if size.isdecimal()):
        groups = {group: run["accuracy"][group] for group in ("all", "rare")}
        examples = {group: scores["examples"] for group, scores in groups.items()}
        for variant in (name for name in groups["all"] if name != "examples"):
            near = result["centred_cosine"].get(variant)
            cells = [f"{int(sentences):,}", variant, "" if near is None else f"{near:.2f}"]
            for scores in groups.values():
                row = scores[variant]
                low, high = row["interval"]
                difference = f"{row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
                bold = "**" if low > 0 or high < 0 else ""
                cells += [f"{row['mean']:.4f}", "" if variant == "baseline" else f"{bold}{difference}{bold}"]
            rows.append(cells)
    headings = [f"all {examples['all']:,}", f"the {examples['rare']:,} with a rare rebuilt token"]
    columns = [column for heading in headings for column in (f"accuracy, {heading}", "difference [95 %]")]
    return table(["sentences", "rows", "new to old rows, cosine", *columns], rows)


def features(result: dict[str, Any]) -> str:
    rows = [
        [name, f"{row['r_squared']:.3f}", f"{row['centred_cosine']:.3f}"] for name, row in result["features"].items()
    ]
    return table(["features of a definition", "held-out R²", "centred cosine to the old row"], rows)


def definitions(result: dict[str, Any]) -> str:
    rows = [
        [number, f"{row['r_squared']:.3f}", f"{row['centred_cosine']:.3f}", f"{row['tokens']:,}"]
        for number, row in result["definitions_per_token"].items()
    ]
    return table(["definitions a word, at most", "held-out R²", "centred cosine", "tokens to encode"], rows)


def weights(result: dict[str, Any]) -> str:
    rows = [
        [weight if weight != "default" else "**default** (0.1 to 0.4)", *(f"{row[group]:.3f}" for group in GROUPS)]
        for weight, row in result["relation_auc_by_weight"].items()
    ]
    rows += [
        [f"default, alpha {alpha}", *(f"{row[group]:.3f}" for group in GROUPS)]
        for alpha, row in result["relation_auc_by_alpha"].items()
        if alpha != "1.0"
    ]
    return table(["weight of the new direction", *GROUPS], rows)


def speed(result: dict[str, Any]) -> str:
    ratio = result["build_speed_relative_to_bare"]
    rows = [
        ["cold build against the bare forward pass, bfloat16 autocast", f"{ratio['bfloat16_autocast']:.2f}"],
        ["the same against weights cast to bfloat16", f"{ratio['bfloat16_weights']:.2f}"],
        ["warm start (load and apply), seconds", f"{result['warm_start_seconds']:.1f}"],
        ["extra peak memory of a cold build, MB", f"{result['extra_peak_mb']:,.0f}"],
    ]
    return table(["all-MiniLM-L6-v2, whole vocabulary, WordNet, 2 CPU cores", "measured"], rows)


def metrics(result: dict[str, Any]) -> str:
    isotropy, by_rows = result["isotropy"], result["by_rows"]
    rows = []
    for key, name in (("whole_table", "I(E)"), ("table_and_three_groups", "I(E) of the table and of its three groups")):
        faster = isotropy[key]["times_faster"]
        against = f"{faster['one_by_one_float32']:.1f} × in float32, {faster['one_by_one_float64']:.1f} × in float64"
        rows.append([f"{name}: times faster than eigenvector by eigenvector", against])
    rows.append(["its extra peak memory, MB", f"{isotropy['extra_peak_mb']['isotropy']:,.0f}"])
    seconds = {int(size): row["measure_of_four_groups"] for size, row in by_rows["seconds"].items()}
    few, many = min(seconds), max(seconds)
    rows.append(
        [
            f"all metrics: how many times as long for {many / few:.0f} times as many rows ({few:,} → {many:,}, "
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
        ["in the callback: before the first step", f"{share['start']:.2%}"],
        ["in the callback: while training", f"{share['during']:.2%}"],
        ["in the callback: pictures and page at the end", f"{share['end']:.2%}"],
        ["in the callback, together", f"**{share['total']:.2%}**"],
        ["time with it, as a multiple of the time without (one pair, noisy)", f"{found['mean_time_ratio']:.3f}"],
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
    header = ["model, device", "tokens a second", "of the bare passes' speed", "of the matrix peak"]
    return table([*header, "hours for the paper's updates"], rows)


POOLINGS = {"static": "static table", "layer:3": "layer 3", "layer:5": "layer 5", "first_last": "first and last layer"}


def sentence(result: dict[str, Any]) -> str:
    rows = []
    for pooling, found in result["quality"].items():
        scores = found["spearman"]
        whitening = {k: scores[f"whitening {k}, shrinkage 0.0"] for k in (384, 256, 128)}
        flows = {name: scores[f"flow {name}"] for name in ("principal", "paper", "code")}
        shown = [scores["raw"], *whitening.values(), scores["top 10 removed"], *flows.values()]
        best = max(shown)
        cells = [f"**{score:.3f}**" if score == best else f"{score:.3f}" for score in shown]
        rows.append([POOLINGS.get(pooling, f"{pooling} layer"), *cells, found["advice"]["verdict"]])
    header = ["mean over", "raw", "whitening", "to 256", "to 128", "top 10 removed"]
    return table([*header, "flow (principal)", "flow (paper)", "flow (code)", "advice"], rows)


def sentence_cost(result: dict[str, Any]) -> str:
    fit, encode, stream = result["fit_seconds"], result["encode"]["ratio"], result["stream"]
    flows = [value for name, value in fit.items() if name.startswith("flow")]
    rows = [
        [f"fit to {fit['sentences']:,} vectors of {fit['width']}: whitening", f"{fit['whitening']:.2f} s"],
        ["the same: flows", f"{min(flows):.0f} to {max(flows):.0f} s"],
        [
            f"whitening of a stream of {stream['vectors']:,} × {stream['width']}: extra memory",
            f"{stream['extra_mb']:.0f} MB",
        ],
        ["time to encode, as a multiple of the time without: whitening", f"{encode['whitening']:.2f}"],
        ["the same: flow (principal)", f"{encode['flow principal']:.2f}"],
    ]
    return table(["all-MiniLM-L6-v2, 2 CPU cores", "measured"], rows)


SENSE_STUDENTS = ("sense distillation", "sense distillation, task loss")
SENSE_MODELS = ("teacher", "teacher with senses", "plain student", "logit distillation", *SENSE_STUDENTS)


def senses(result: dict[str, Any]) -> str:
    found = result["distillation"]
    runs, rows = found["runs"], []
    for name in SENSE_MODELS:
        scores = [run["accuracy"][name] for run in runs]
        differences = [score - run["accuracy"]["teacher"] for score, run in zip(scores, runs, strict=True)]
        model = "teacher" if name == "teacher with senses" else name
        size = runs[0]["bytes"][model] / 1e6
        if name in ("teacher with senses", *SENSE_STUDENTS):
            size += runs[0]["bytes"]["dictionary, float16"] / 1e6
        faster = mean(run["seconds"]["teacher"] / run["seconds"][name] for run in runs)
        layers = runs[0]["parameters"][model]["layers"] / 1e6
        spread = f" ± {stdev(scores):.4f}" if len(scores) > 1 else ""
        cells = [f"{mean(scores):.4f}{spread}", f"{mean(differences):+.4f}"]
        rows.append([name, *cells, f"{layers:.1f} M", f"{size:.0f}", f"{faster:.2f}"])
    settings = found["settings"]
    what = f"SST-2, {settings['sentences']:,} sentences, {len(runs)} seed{'s' * (len(runs) > 1)}"
    header = [what, "accuracy", "less the teacher's", "parameters without table", "MB on disk, senses in float16"]
    return table([*header, "times the teacher's speed"], rows)


def senses_cost(result: dict[str, Any]) -> str:
    build, lookup = result["build"], result["lookup"]
    runs = result["distillation"]["runs"]
    rows = [
        [
            f"reading {build['tokens']:,} tokens: share of the bare forward pass's speed",
            f"{build['share_of_bare']:.2f}",
        ],
        [
            f"clustering {build['clustered_tokens']:,} tokens ({build['senses']:,} senses of "
            f"{build['tokens_with_senses']:,} tokens in all), seconds",
            f"{build['clustering_seconds']:.0f}",
        ],
        ["memory of the states that are kept, MB", f"{build['states_mb']:.0f}"],
        ["forward pass with senses, as a multiple of that without", f"{lookup['ratio']:.3f}"],
    ]
    for storage in ("float32", "float16", "product"):
        size = runs[0]["bytes"][f"dictionary, {storage}"] / 1e6
        score = runs[0]["dictionary_accuracy"][storage]
        rows.append(
            [
                f"SST-2's dictionary in {storage}, first seed: MB, and the teacher's accuracy with it",
                f"{size:.1f}, {score:.4f}",
            ]
        )
    return table(["all-MiniLM-L6-v2, 2 CPU cores", "measured"], rows)


def senses_wic(result: dict[str, Any]) -> str:
    rows = []
    for part, texts in (("wic", "without the pairs"), ("wic_with_pairs", "with the pairs' contexts")):
        for name, row in result[part].items():
            if isinstance(row, dict) and "auc" in row and not (name == "raw" and rows):
                right = [f"{row[key]:.3f}" if key in row else "" for key in ("accuracy", "accuracy_same_token")]
                number = f"{row['mean_senses_of_targets']:.1f}" if "mean_senses_of_targets" in row else ""
                known = "" if name == "raw" else texts
                rows.append(
                    ["states themselves" if name == "raw" else name, known, number, *right, f"{row['auc']:.3f}"]
                )
    found = result["wic"]
    one = f"of the {found['pairs_of_one_token']:,} with one token"
    header = [f"Word in Context, {found['pairs']:,} pairs", "dictionary of text", "senses of a target"]
    return table([*header, 'accuracy of "same sense"', one, "AUC of the cosine"], rows)


def dictionaries(result: dict[str, Any]) -> str:
    found = result["dictionaries"]
    rows = [
        [name, f"{found[name]['defined']:,}", f"{found[name]['centred_cosine']:.3f}"]
        for name in ("WordNet", "Wiktionary 2015", "both")
    ]
    return table(["dictionaries", "tokens defined", f"centred cosine on {found['words']:,} words of both"], rows)


def coverage(result: dict[str, Any]) -> str:
    rows = []
    for vocabulary, found in result["vocabularies"].items():
        for dictionary, counts in found["dictionaries"].items():
            shares = [f"{counts['defined'][group]:,} of {found['words'][group]:,}" for group in GROUPS]
            rows.append([vocabulary, dictionary, *shares, f"{counts['definitions']['all']:,}"])
    return table(["vocabulary", "dictionary", *(f"{group} words" for group in GROUPS), "definitions"], rows)


def learned(result: dict[str, Any]) -> str:
    rows = []
    for part in ("all", "some"):
        found = result[part]
        for setup in (name for name in found if isinstance(found[name], dict)):
            row, size = found[setup], f"{found['words'] - found['held_out']:,}"
            first = row.get("eval_loss", [])[:1] if part == "some" else []
            curve = f"{1000 * first[0][1]:.3f} → {1000 * row['eval_loss'][-1][1]:.3f}" if first else ""
            rows.append([size, setup, f"{row['centred_cosine']:.3f}", f"{row['seconds'] / 60:.1f} min", curve])
    header = ["words to learn from", "method", "centred cosine, words held out", "time"]
    return table([*header, "their loss × 1000, at a tenth and at the end"], rows)


def scaling(result: dict[str, Any]) -> str:
    busiest, clock = result["processor_seconds_of_the_busiest"], result["seconds"]
    rows = [
        [f"{processes} × 1 core", f"{busiest[processes]:.0f} s", f"{clock[processes]:.0f} s"]
        for processes in ("1", "2")
    ]
    rows.append(["times faster", f"**{result['speedup_in_processor_time']:.2f}**", f"{result['speedup']:.2f}"])
    header = [
        f"cold build, {result['tokens_encoded']:,} tokens read",
        "processor time of the busiest process",
        "clock, on a machine in use",
    ]
    return table(header, rows)


def faults(result: dict[str, Any]) -> str:
    found = result["faults"]
    kills = [case for name, case in found.items() if "kills" in case]
    at_once = found["test_eight_processes_at_once_build_once"]
    died = found["test_a_process_that_dies_stops_the_others"]["seconds_until_the_other_stops"]
    fuzz = [case["outcome"] for case in result["fuzz"].values()]
    states = {state: sum(case["found"][state] for case in kills) for state in ("nothing", "half", "whole")}
    return table(
        ["fault", "what happened"],
        [
            [
                f"killed at {sum(case['kills'] for case in kills)} random moments",
                f"nothing was there {states['nothing']} times, half of it {states['half']} times, all "
                f"{states['whole']} times; the next run always gave the right rows, and no lock stayed",
            ],
            ["8 processes at once", f"{at_once['builds']} build, {at_once['different_results']} result"],
            [f"{found['test_every_flipped_bit_is_noticed']['flips']:,} flipped bits", "no wrong row"],
            ["one of two processes killed", f"the other one stopped after {died} s"],
            [
                f"{result['inputs_per_parser']:,} inputs for each of {len(fuzz)} parser tests",
                f"{len(fuzz) - fuzz.count('passed')} with another error than those documented",
            ],
        ],
    )


NEW_TOKENS = {
    "pretrained": "pretrained (ceiling)",
    "definition": "definitions",
    "definition with synonyms": "with synonyms",
    "sub-token mean": "sub-token mean",
    "mean of the glosses' tokens": "mean of the gloss",
    "mean + covariance draw": "mean + covariance draw",
}


def new_tokens(result: dict[str, Any]) -> str:
    def cells(row: dict[str, float], form: str = "{:.3f}") -> list[str]:
        return [form.format(row[method]) if method in row else "" for method in NEW_TOKENS]

    rows = [
        [f"{name}, {groups['all']['pairs']:,} pairs (Spearman)", *cells(groups["all"])]
        for name, groups in result["similarity"].items()
    ]
    rows += [
        [f"rank of the word's old row among {result['word_tokens']:,}, median: {group} words", *cells(ranks, "{:,.0f}")]
        for group, ranks in result["median_rank"].items()
    ]
    categories = result["categories"]
    rows.append([f"WordNet category of {categories['test_nouns']:,} nouns (accuracy)", *cells(categories["accuracy"])])
    rows.append(["cosine to the old row, centred", *cells(result["centred_cosine"])])
    return table([f"{result['words']:,} words held out, {result['folds']} parts", *NEW_TOKENS.values()], rows)


def new_tokens_recovery(result: dict[str, Any]) -> str:
    curves, steps = result["recovery"]["curves"], result["recovery"]["steps"]
    rows = []
    for method, label in NEW_TOKENS.items():
        if method in curves:
            losses, scores = ([run[what] for run in curves[method]] for what in ("loss", "accuracy"))
            by_step = [mean(values) for values in zip(*losses, strict=True)]
            rows.append([label, *(f"{value:.3f}" for value in by_step), f"{mean(run[-1] for run in scores):.3f}"])
    return table(["rows", *(f"loss, step {step}" for step in steps), f"accuracy, step {steps[-1]}"], rows)


def new_tokens_speed(result: dict[str, Any]) -> str:
    speed = result["speed"]
    rows = [
        [f"{speed['terms']:,} new terms, map in the cache, seconds", f"{speed['seconds']:.1f}"],
        [f"memory beyond the model's {speed['model_mb']:.0f} MB, MB", f"{speed['extra_mb']:.0f}"],
    ]
    return table(["all-MiniLM-L6-v2, 2 CPU cores", "measured"], rows)


NEW_TOKENS_LM = {
    "not extended": "sub-tokens, nothing added",
    **{method: label for method, label in NEW_TOKENS.items() if method in ("definition", "sub-token mean")},
    "mean of the glosses' tokens": "mean of the gloss",
    "mean + covariance draw": "mean + covariance draw",
}


def new_tokens_lm(result: dict[str, Any]) -> str:
    spaced, behind = ([run[form]["losses"] for run in result["runs"]] for form in ("with its space", "behind a space"))

    def cell(runs: list[dict[str, Any]], method: str, step: int, part: str) -> str:
        # What is not extended has no rows to train.
        return f"{mean(run[method][step][part] for run in runs):.2f}" if step < len(runs[0][method]) else ""

    shown = [(spaced, 0, part) for part in ("sentence", "before", "word", "after")]
    shown += [(spaced, step, "sentence") for step in range(1, len(result["steps"]))]
    shown += [(behind, 0, part) for part in ("sentence", "word")]
    rows = [
        [label, *(cell(runs, method, step, part) for runs, step, part in shown)]
        for method, label in NEW_TOKENS_LM.items()
    ]
    header = ["rows", "sentence, a character", "before the word", "the word", "after it"]
    header += [f"sentence, step {step}" for step in result["steps"][1:]]
    return table([*header, "word behind a space: sentence", "the word"], rows)


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "supersense": ("supersense.json", supersense),
    "wordsim": ("wordsim.json", wordsim),
    "new_tokens": ("new_tokens.json", new_tokens),
    "new_tokens_recovery": ("new_tokens.json", new_tokens_recovery),
    "new_tokens_speed": ("new_tokens.json", new_tokens_speed),
    "new_tokens_lm": ("new_tokens_lm.json", new_tokens_lm),
    "sst2": ("sst2.json", sst2),
    "features": ("choices.json", features),
    "definitions": ("choices.json", definitions),
    "weights": ("choices.json", weights),
    "scaling": ("scaling.json", scaling),
    "faults": ("faults.json", faults),
    "speed": ("encode.json", speed),
    "metrics": ("metrics.json", metrics),
    "dictionaries": ("choices.json", dictionaries),
    "coverage": ("coverage.json", coverage),
    "learned": ("learned.json", learned),
    "learned_speed": ("learned_speed.json", learned_speed),
    "monitoring": ("monitoring.json", monitoring),
    "sentence": ("sentence.json", sentence),
    "sentence_cost": ("sentence.json", sentence_cost),
    "senses": ("senses.json", senses),
    "senses_cost": ("senses.json", senses_cost),
    "senses_wic": ("senses.json", senses_wic),
}


def render(text: str) -> str:
    """The text with every table made anew from its results."""

    def replaced(match: re.Match[str]) -> str:
        file, make = TABLES[match["name"]]
        result = json.loads((RESULTS / file).read_text(encoding="utf-8"))
        return f"<!-- table {match['name']} -->\n{make(result)}\n<!-- end -->"

    return re.sub(r"<!-- table (?P<name>\w+) -->\n.*?<!-- end -->", replaced, text, flags=re.DOTALL)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text(encoding="utf-8")), encoding="utf-8")
