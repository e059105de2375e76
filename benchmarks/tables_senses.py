"""Generate the tables of sentence embeddings and of senses."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from tables_common import table

POOLINGS = {
    "static": "static embeddings",
    "layer:3": "layer 3",
    "layer:5": "layer 5",
    "first_last": "first and last layer",
}


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
    header = ["pooling", "raw", "whitening", "to 256", "to 128", "top 10 removed"]
    return table([*header, "flow (principal)", "flow (paper)", "flow (code)", "advice"], rows)


def sentence_cost(result: dict[str, Any]) -> str:
    fit, encode, stream = result["fit_seconds"], result["encode"]["ratio"], result["stream"]
    flows = [value for name, value in fit.items() if name.startswith("flow")]
    rows = [
        [f"fit to {fit['sentences']:,} vectors of width {fit['width']}: whitening", f"{fit['whitening']:.2f} s"],
        ["the same, flows", f"{min(flows):.0f} to {max(flows):.0f} s"],
        [
            f"whitening of a stream of {stream['vectors']:,} × {stream['width']}: extra memory",
            f"{stream['extra_mb']:.0f} MB",
        ],
        ["encoding time relative to no calibration: whitening", f"{encode['whitening']:.2f}"],
        ["the same, flow (principal)", f"{encode['flow principal']:.2f}"],
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
    header = [
        what,
        "accuracy",
        "difference to the teacher",
        "parameters without embeddings",
        "MB on disk, senses in float16",
    ]
    return table([*header, "speed relative to the teacher"], rows)


def senses_cost(result: dict[str, Any]) -> str:
    build, lookup = result["build"], result["lookup"]
    runs = result["distillation"]["runs"]
    rows = [
        [
            f"reading {build['tokens']:,} tokens: speed relative to the bare forward pass",
            f"{build['share_of_bare']:.2f}",
        ],
        [
            f"clustering {build['clustered_tokens']:,} tokens ({build['senses']:,} senses of "
            f"{build['tokens_with_senses']:,} tokens in all), seconds",
            f"{build['clustering_seconds']:.0f}",
        ],
        ["memory of the sampled states, MB", f"{build['states_mb']:.0f}"],
        ["forward pass: time with senses relative to without", f"{lookup['ratio']:.3f}"],
    ]
    for storage in ("float32", "float16", "product"):
        size = runs[0]["bytes"][f"dictionary, {storage}"] / 1e6
        score = runs[0]["dictionary_accuracy"][storage]
        rows.append(
            [
                f"SST-2 dictionary in {storage}, first seed: MB, accuracy of the teacher with it",
                f"{size:.1f}, {score:.4f}",
            ]
        )
    return table(["all-MiniLM-L6-v2, 2 CPU cores", "measured"], rows)


def senses_wic(result: dict[str, Any]) -> str:
    rows = []
    for part, texts in (("wic", "text without the pairs"), ("wic_with_pairs", "text with the pairs")):
        for name, row in result[part].items():
            if isinstance(row, dict) and "auc" in row and not (name == "raw" and rows):
                right = [f"{row[key]:.3f}" if key in row else "" for key in ("accuracy", "accuracy_same_token")]
                number = f"{row['mean_senses_of_targets']:.1f}" if "mean_senses_of_targets" in row else ""
                known = "" if name == "raw" else texts
                label = "hidden states" if name == "raw" else name.replace(", the nearest", ", Euclidean")
                rows.append([label, known, number, *right, f"{row['auc']:.3f}"])
    found = result["wic"]
    one = f"accuracy, {found['pairs_of_one_token']:,} single-token pairs"
    header = [f"Word in Context, {found['pairs']:,} pairs", "dictionary built from", "senses per target"]
    return table([*header, 'accuracy of "same sense"', one, "AUC of the cosine"], rows)
