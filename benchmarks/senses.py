"""Sense dictionaries: cost of building and lookup, separation of meanings, and distillation.

    python benchmarks/senses.py

- build: tokens per second of `build_sense_dictionary`, relative to the bare forward pass over the same batches, half of
  it before and half after; clustering is reported separately. The texts are contexts of Word in Context (train) and
  running text.
- lookup: time of a forward pass with senses relative to one without, alternating.
- wic: Word in Context (development set): is the target word used in the same sense? "Same sense vector" against the
  gold label, and the threshold-free AUC of the cosine of the two states, raw and replaced by senses. The dictionaries
  are built from text without the pairs; wic_with_pairs adds their contexts, as when words of known text are looked up.
- distillation: `examples/run_sense_distillation.py` on SST-2.

Needs `shared/data` next to the repository, or $DEFEMB_TEST_DATA.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from common import DATA, RESULTS, ROOT, add_model_argument, environment, find_model
from scipy.stats import mannwhitneyu
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.reconstruction.backbone import last_states
from defemb_callbacks.reconstruction.batching import equal_length_batches
from defemb_callbacks.senses import SenseConfig, build_sense_dictionary, with_senses, without_senses
from defemb_callbacks.senses.build import build_from_states, cluster_states
from defemb_callbacks.senses.sampling import SamplePlan, TokenizedTexts, plan_samples, sampled_states, tokenize_texts
from defemb_callbacks.vocabulary.tokens import read_vocabulary

MAX_LENGTH = 64


def read_sst2() -> list[str]:
    with (DATA / "sst2" / "train.tsv").open(encoding="utf-8") as file:
        return [row["sentence"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def read_wikitext() -> list[str]:
    """Split into texts of about one sentence."""
    texts = []
    for split in ("valid", "test"):
        with gzip.open(DATA / "corpora" / f"wikitext-2-{split}.txt.gz", "rt", encoding="utf-8") as file:
            texts += [line.strip() for line in file if line.strip() and not line.startswith(" =")]
    return [sentence for text in texts for sentence in text.split(" . ")]


def bare_pass(model: PreTrainedModel, texts: TokenizedTexts, batch_size: int, part: int) -> float:
    """Measure the forward pass alone over every second batch of a build."""
    starts = (texts.lengths.cumsum(0) - texts.lengths).tolist()
    lengths = texts.lengths.tolist()
    batches = [
        torch.stack([texts.ids[starts[text] : starts[text] + lengths[text]] for text in batch]).long()
        for batch in equal_length_batches(lengths, batch_size)[part::2]
    ]
    begin = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            last_states(model, batch)
    return time.perf_counter() - begin


def read_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], config: SenseConfig
) -> tuple[TokenizedTexts, SamplePlan, Tensor]:
    """Do what a build does before clustering."""
    tokenized = tokenize_texts(tokenizer, texts, MAX_LENGTH)
    plan = plan_samples(tokenized.ids, len(tokenizer), config.samples)
    return tokenized, plan, sampled_states(model, tokenized, plan, batch_size=config.batch_size)


def build(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[dict[str, Any], SamplePlan, Tensor]:
    """Measure a build between the two halves of the bare pass; return its plan and states too."""
    config = SenseConfig(max_length=MAX_LENGTH)
    bare_pass(model, tokenize_texts(tokenizer, texts[::50], MAX_LENGTH), config.batch_size, 0)  # warm-up
    tokenized = tokenize_texts(tokenizer, texts, MAX_LENGTH)
    bare = bare_pass(model, tokenized, config.batch_size, 0)
    begin = time.perf_counter()
    tokenized, plan, states = read_states(model, tokenizer, texts, config)
    ours = time.perf_counter() - begin
    bare += bare_pass(model, tokenized, config.batch_size, 1)
    begin = time.perf_counter()
    offsets, vectors, _ = cluster_states(states, plan.offsets, config)
    figures = {
        "tokens": len(tokenized.ids),
        "texts": len(texts),
        "share_of_bare": bare / ours,
        "tokens_per_second": len(tokenized.ids) / ours,
        "clustering_seconds": time.perf_counter() - begin,
        "clustered_tokens": int((plan.offsets.diff() >= config.min_samples).sum()),
        "states_mb": states.numel() * 4 / 1e6,
        "senses": len(vectors),
        "tokens_with_senses": int((offsets.diff() > 0).sum()),
    }
    return figures, plan, states


def lookup(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], rounds: int) -> dict[str, Any]:
    """Alternate forward passes with and without senses, over batches of sentences of about the same length."""
    dictionary = build_sense_dictionary(model, tokenizer, texts[:6000], max_length=MAX_LENGTH)
    some = sorted(texts[6000:6512], key=len)
    batches = [tokenizer(some[at : at + 32], padding=True, return_tensors="pt") for at in range(0, len(some), 32)]
    ratios, alone = [], []
    with torch.no_grad():
        for batch in batches:
            model(**batch)
        for _ in range(rounds):
            for batch in batches:
                begin = time.perf_counter()
                model(**batch)
                plain = time.perf_counter() - begin
                with_senses(model, dictionary)
                begin = time.perf_counter()
                states = model(**batch).last_hidden_state
                ratios.append((time.perf_counter() - begin) / plain)
                without_senses(model)
                begin = time.perf_counter()
                dictionary.lookup(states, batch["input_ids"])
                alone.append((time.perf_counter() - begin) / plain)
    return {
        "ratio": median(ratios),
        "lookup_alone": median(alone),
        "pairs": len(ratios),
        "senses": dictionary.most_senses,
    }


def read_wic(split: str) -> list[tuple[str, list[list[str]], list[int], bool]]:
    """Return lemma, the two tokenized contexts, the position of the word in each, and whether its sense is the same."""
    folder = DATA / "wic"
    rows = (folder / f"{split}.data.txt").read_text(encoding="utf-8").splitlines()
    gold = (folder / f"{split}.gold.txt").read_text(encoding="utf-8").split()
    found = []
    for row, label in zip(rows, gold, strict=True):
        lemma, _, places, *contexts = row.split("\t")
        found.append((lemma, [text.split(" ") for text in contexts], list(map(int, places.split("-"))), label == "T"))
    return found


def target_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, words: list[str], place: int
) -> tuple[Tensor, Tensor]:
    """Return token ids of the target word, (pieces,), and its states, (pieces, d)."""
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, return_tensors="pt")
    pieces = [index for index, word in enumerate(encoded.word_ids()) if word == place]
    with torch.no_grad():
        states = last_states(model, encoded["input_ids"])[0]
    return encoded["input_ids"][0, pieces], states[pieces]


def auc(scores: list[float], labels: list[bool]) -> float:
    same = [score for score, label in zip(scores, labels, strict=True) if label]
    other = [score for score, label in zip(scores, labels, strict=True) if not label]
    return float(mannwhitneyu(same, other).statistic / (len(same) * len(other)))


def wic(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: SamplePlan,
    states: Tensor,
    configs: dict[str, SenseConfig],
) -> dict[str, Any]:
    """Evaluate sense dictionaries of these states on Word in Context."""
    vocabulary = read_vocabulary(tokenizer)
    pairs = read_wic("dev")
    labels = [label for *_, label in pairs]
    targets = [
        [target_states(model, tokenizer, words, place) for words, place in zip(both, places, strict=True)]
        for _, both, places, _ in pairs
    ]
    alike = [len(one[0]) == len(two[0]) == 1 and bool(one[0] == two[0]) for one, two in targets]

    def cosines(read: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
        means = [[read(ids, found).mean(dim=0) for ids, found in both] for both in targets]
        return [float(torch.cosine_similarity(one, two, dim=0)) for one, two in means]

    def scored(scores: list[float]) -> dict[str, float]:
        kept = [(score, label) for score, label, same in zip(scores, labels, alike, strict=True) if same]
        return {"auc": auc(scores, labels), "auc_same_token": auc(*map(list, zip(*kept, strict=True)))}

    result: dict[str, Any] = {
        "pairs": len(pairs),
        "pairs_of_one_token": sum(alike),
        "same_of_one_token": sum(label for label, same in zip(labels, alike, strict=True) if same),
        "tokens_read": int(plan.seen.sum()),
        "raw": scored(cosines(lambda ids, found: found)),
    }
    for name, config in configs.items():
        dictionary = build_from_states(states, plan.offsets, vocabulary, config)
        # Words with several pieces use the first; the second state chooses among the senses of the first one's token.
        chosen = [
            [int(dictionary.choose(found[:1], targets[row][0][0][:1])) for _, found in both]
            for row, both in enumerate(targets)
        ]
        right = [(one == two) == label for (one, two), label in zip(chosen, labels, strict=True)]
        result[name] = {
            "accuracy": mean(right),
            "accuracy_same_token": mean(hit for hit, same in zip(right, alike, strict=True) if same),
            "said_same": mean(one == two for one, two in chosen),
            "senses": len(dictionary.vectors),
            "mean_senses_of_targets": mean(int(dictionary.numbers(one[0][0])) for one, _ in targets),
            **scored(cosines(lambda ids, found, senses=dictionary: senses.lookup(found, ids))),
        }
    return result


WIC_CONFIGS = {
    **{f"{number} senses": SenseConfig(senses=number) for number in (5, 20, 50)},
    "20 senses, rare tokens keep their states": SenseConfig(keep_rare=False),
    "20 senses, the nearest": SenseConfig(similarity="euclidean"),
    "50 senses, the nearest": SenseConfig(senses=50, similarity="euclidean"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parts = ("build", "lookup", "wic", "wic_with_pairs", "distillation")
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts, help="parts to measure")
    parser.add_argument("--tokens", type=int, default=250_000, help="tokens of the build")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the distillation")
    parser.add_argument("--output", type=Path, default=RESULTS / "senses.json")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit("shared/data is not beside the repository; nothing was measured.")
    name = arguments.model or find_model()
    model, tokenizer = AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    # Parts that are not measured now keep their results.
    result: dict[str, Any] = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else {}

    def keep(part: str, figures: dict[str, Any]) -> None:
        print(part, json.dumps(figures, indent=1), flush=True)
        result[part] = {**figures, "environment": environment()}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    if "lookup" in arguments.parts:
        keep("lookup", lookup(model, tokenizer, read_sst2(), arguments.rounds))

    def contexts(split: str) -> list[str]:
        return list(dict.fromkeys(" ".join(words) for _, both, _, _ in read_wic(split) for words in both))

    def first_texts(texts: list[str]) -> list[str]:
        lengths = tokenize_texts(tokenizer, texts, MAX_LENGTH).lengths
        return texts[: int((lengths.cumsum(0) < arguments.tokens).sum()) + 1]

    if {"build", "wic"} & set(arguments.parts):
        texts = first_texts([*contexts("train"), *read_wikitext()])
        if "build" in arguments.parts:
            figures, plan, states = build(model, tokenizer, texts)
            keep("build", figures)
        else:
            _, plan, states = read_states(model, tokenizer, texts, SenseConfig())
        if "wic" in arguments.parts:
            keep("wic", wic(model, tokenizer, plan, states, WIC_CONFIGS))
    if "wic_with_pairs" in arguments.parts:
        texts = first_texts([*contexts("dev"), *contexts("train"), *read_wikitext()])
        _, plan, states = read_states(model, tokenizer, texts, SenseConfig())
        keep("wic_with_pairs", wic(model, tokenizer, plan, states, WIC_CONFIGS))
    if "distillation" in arguments.parts:
        folder = ROOT / "outputs" / "benchmark-senses"  # an interrupted run continues here
        command = [sys.executable, str(ROOT / "examples" / "run_sense_distillation.py"), "--model_name_or_path", name]
        for split in ("train", "validation"):
            command += [f"--{split}_file", str(DATA / "sst2" / f"{split}.tsv")]
        command += ["--task_name", "sst2", "--max_train_samples", "1024", "--seeds", str(arguments.seeds)]
        command += ["--output_dir", str(folder)]
        subprocess.run(command, check=True)
        keep("distillation", json.loads((folder / "results.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
