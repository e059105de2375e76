"""Generate the tables of the quality of rebuilt embeddings, and of the choice of defaults."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from tables_common import GROUPS, table


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


ROWS = {
    "pretrained": "pretrained",
    "default": "default",
    "scalar": "one weight for all directions, 0.1 to 0.4",
    "replace": "replace",
    "shuffled": "definitions shuffled (control)",
}


def geometry(result: dict[str, Any]) -> str:
    rows = []
    for name, label in ROWS.items():
        row = result["rows"][name]
        pairs = [
            f"{row[metric]['all']:.{digits}f} / {row[metric]['rare']:.{digits}f}"
            for metric, digits in (("relation_auc", 3), ("isoscore", 3), ("effective_rank", 0), ("isotropy", 3))
        ]
        rows.append([label, f"{row['mean_similarity']:+.3f}", f"{row['sentence_similarity']:.3f}", *pairs])
    return table(
        ["rows (all / rare tokens)", "similarity", "STS-B", "relation AUC", "IsoScore", "effective rank", "I(E)"], rows
    )


def language_models(result: dict[str, Any]) -> str:
    rows = []
    for name, row in result["untrained"]["setups"].items():
        roles = ("tied", "as input only", "as output only", "rare targets")
        nothing = row["language_model"] is not None and not row["language_model"]["share"]
        cells = [f"{row[role]['mean']:+.4f} ± {row[role]['standard_error']:.4f}" for role in roles]
        rows.append([name, *(["nothing written"] + 3 * [""] if nothing else cells)])
    tokens = result["untrained"]["tokens"]
    return table([f"nats per token, {tokens:,} tokens", "tied", "input only", "output only", "rare words (tied)"], rows)


def fine_tuned(result: dict[str, Any]) -> str:
    run, rows = result["fine_tuning"], []
    for seed, pair in enumerate(run["pairs"]):
        difference = pair["difference"]
        rows.append(
            [
                str(seed),
                f"{pair['without']:.4f}",
                f"{pair['without'] + difference['mean']:.4f}",
                f"{difference['mean']:+.4f} ± {difference['standard_error']:.4f}",
            ]
        )
    return table([f"seed ({run['steps']} steps)", "without", "with the callback", "difference"], rows)


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
    return table(["sentences", "rows", "cosine of new to old rows", *columns], rows)


def features(result: dict[str, Any]) -> str:
    rows = [
        [name, f"{row['r_squared']:.3f}", f"{row['centred_cosine']:.3f}"] for name, row in result["features"].items()
    ]
    return table(["features of a definition", "held-out R²", "centred cosine to the original row"], rows)


def definitions(result: dict[str, Any]) -> str:
    rows = [
        [number, f"{row['r_squared']:.3f}", f"{row['centred_cosine']:.3f}", f"{row['tokens']:,}"]
        for number, row in result["definitions_per_token"].items()
    ]
    return table(["max. definitions per word", "held-out R²", "centred cosine", "tokens to encode"], rows)


def weights(result: dict[str, Any]) -> str:
    low, high = result["default_weights"]
    by_frequency = f"by frequency, {low} to {high}"
    rows = [
        [weight if weight != "default" else by_frequency, *(f"{row[group]:.3f}" for group in GROUPS)]
        for weight, row in result["relation_auc_by_weight"].items()
    ]
    rows += [
        [f"{by_frequency}, alpha {alpha}", *(f"{row[group]:.3f}" for group in GROUPS)]
        for alpha, row in result["relation_auc_by_alpha"].items()
        if alpha != "1.0"
    ]
    return table(["weight of the new direction", *GROUPS], rows)


def dictionaries(result: dict[str, Any]) -> str:
    found = result["dictionaries"]
    rows = [
        [name, f"{found[name]['defined']:,}", f"{found[name]['centred_cosine']:.3f}"]
        for name in ("WordNet", "Wiktionary 2015", "both")
    ]
    return table(
        ["dictionaries", "tokens defined", f"centred cosine on {found['words']:,} words defined by both"], rows
    )


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
            rows.append(
                [
                    size,
                    setup.replace("head drawn at random", "random head"),
                    f"{row['centred_cosine']:.3f}",
                    f"{row['seconds'] / 60:.1f} min",
                    curve,
                ]
            )
    header = ["training words", "method", "centred cosine, held-out words", "time"]
    return table([*header, "held-out loss × 1000, after 10 % and at the end"], rows)
