"""The README's tables of sentence embeddings and of senses."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from tables_common import table

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
    what = f"SST-2, {settings['max_train_samples']:,} sentences, {len(runs)} seed{'s' * (len(runs) > 1)}"
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
