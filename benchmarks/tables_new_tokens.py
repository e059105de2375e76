"""Generate the tables of new tokens."""

from __future__ import annotations

from statistics import mean
from typing import Any

from tables_common import table

NEW_TOKENS = {
    "pretrained": "pretrained (upper bound)",
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
        [f"median rank of the word's own row among {result['word_tokens']:,}: {group} words", *cells(ranks, "{:,.0f}")]
        for group, ranks in result["median_rank"].items()
    ]
    categories = result["categories"]
    rows.append([f"WordNet category of {categories['test_nouns']:,} nouns (accuracy)", *cells(categories["accuracy"])])
    rows.append(["centred cosine to the original row", *cells(result["centred_cosine"])])
    return table([f"{result['words']:,} held-out words, {result['folds']} folds", *NEW_TOKENS.values()], rows)


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
        [f"{speed['terms']:,} new terms, cached map, seconds", f"{speed['seconds']:.1f}"],
        [f"extra memory (model: {speed['model_mb']:.0f} MB), MB", f"{speed['extra_mb']:.0f}"],
    ]
    return table(["all-MiniLM-L6-v2, 2 CPU cores", "measured"], rows)


NEW_TOKENS_LM = {
    "not extended": "sub-tokens (not added)",
    **{method: label for method, label in NEW_TOKENS.items() if method in ("definition", "sub-token mean")},
    "mean of the glosses' tokens": "mean of the gloss",
    "mean + covariance draw": "mean + covariance draw",
}


def new_tokens_lm(result: dict[str, Any]) -> str:
    spaced, behind = ([run[form]["losses"] for run in result["runs"]] for form in ("with its space", "behind a space"))

    def cell(runs: list[dict[str, Any]], method: str, step: int, part: str) -> str:
        # Without added tokens there are no rows to train.
        return f"{mean(run[method][step][part] for run in runs):.2f}" if step < len(runs[0][method]) else ""

    shown = [(spaced, 0, part) for part in ("sentence", "before", "word", "after")]
    shown += [(spaced, step, "sentence") for step in range(1, len(result["steps"]))]
    shown += [(behind, 0, part) for part in ("sentence", "word")]
    rows = [
        [label, *(cell(runs, method, step, part) for runs, step, part in shown)]
        for method, label in NEW_TOKENS_LM.items()
    ]
    header = ["rows", "sentence, per character", "before the word", "the word", "after it"]
    header += [f"sentence, step {step}" for step in result["steps"][1:]]
    return table([*header, "word after a space token: sentence", "the word"], rows)


TEXTS = (1, 5, 25)
WITH_TEXTS = {
    "sub-token mean": "sub-token mean",
    "mean + covariance draw": "mean + covariance draw",
    "mean of the glosses' tokens": "mean of the gloss",
    "mean of words with similar definitions": "words with similar definitions",
    "definition": "definitions",
    **{
        f"token distillation, {number} texts": f"sub-token mean, distilled, texts per word: {number}"
        for number in TEXTS
    },
    **{
        f"definition + token distillation, {number} texts": f"definitions, distilled, texts per word: {number}"
        for number in TEXTS
    },
}


def new_tokens_texts(result: dict[str, Any]) -> str:
    found = result["texts"]
    labels = {"pretrained": "pretrained (upper bound)", "not extended": "sub-tokens (not added)", **WITH_TEXTS}

    def cell(values: dict[str, Any], method: str, form: str) -> str:
        return form.format(values[method]) if method in values else ""

    columns = {
        f"cosine of {found['test_texts']:,} sentences to those with the original row": (
            found["sentence_cosine"],
            "{:.3f}",
        ),
        "centred cosine to the original row": (found["centred_cosine"], "{:.3f}"),
        f"median rank of the original row among {found['word_tokens']:,}": (found["median_rank"], "{:,.0f}"),
        **{
            f"{name}, {values['pairs']:,} pairs with such a word (Spearman)": (values, "{:.3f}")
            for name, values in found["similarity"].items()
        },
    }
    rows = [
        [label, *(cell(values, method, form) for values, form in columns.values())] for method, label in labels.items()
    ]
    return table([f"{found['words']:,} held-out words", *columns], rows)


def new_tokens_texts_lm(result: dict[str, Any]) -> str:
    labels = {"nothing added": "sub-tokens (not added)", "sub-token mean": "sub-token mean"}
    labels |= {"sub-token mean, calibrated": "sub-token mean, calibrated", **WITH_TEXTS}
    rows = [
        [label, f"{result[method]['loss']:.3f}", f"{result[method].get('other text', 0.0):+.3f}"]
        for method, label in labels.items()
        if method in result
    ]
    header = f"{result['words']:,} words of several tokens, {result['occurrences']:,} occurrences"
    return table([header, "loss of their paragraphs, per character", "change in other text, per token"], rows)
