"""New tokens from their definitions, against what one would do otherwise, on words that a model does know.

    python benchmarks/new_tokens.py

Held out are the words of the similarity sets that are tokens and in WordNet. They are taken out of the tokenizer, so
that the definitions of other words show them in pieces; out of the model, whose rows of them are zeroed before anything
reads it; and out of the dictionary that the map is fitted on. Then they are added as a user adds new words:
`define_new_tokens(model, tokenizer, {word: glosses})`. What their rows were is known, and the ceiling.

- "definition" is what `define_new_tokens` writes; "with synonyms": the definitions bring their synonyms, as those that
  it looks up in WordNet itself do.
- Rivals: the mean of the sub-tokens; a draw from mean and covariance of the table (`resize_token_embeddings`); the mean
  row of the tokens of the glosses.

Needs shared/tools/wordsim.py and shared/data beside the repository. `--speed` measures 1,000 terms instead.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from common import DATA, RESULTS, add_model_argument, centred_cosine, environment, find_model, held_mb
from datasets import Dataset
from sst2 import read as read_sst2
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from defemb_callbacks import Lexicon, define_new_tokens, load_definitions
from defemb_callbacks.frequency import frequency_groups, frequency_rank
from defemb_callbacks.rows import read_table
from defemb_callbacks.vocabulary import Vocabulary, read_vocabulary

SETS = ("MEN-3000", "SimLex-999", "RareWords-2034")
STEPS = (0, 16, 32, 64)


def rated_words(folder: Path) -> set[str]:
    lines = (line for path in folder.glob("*.txt") for line in path.read_text(encoding="utf-8").splitlines())
    return {word.lower() for line in lines for word in line.split()[:2]}


def without_words(name: str, ids: Sequence[int], folder: Path) -> tuple[PreTrainedModel, Any]:
    """Model and tokenizer that have never had these tokens: their entries are unused ones, their rows are zero."""
    AutoTokenizer.from_pretrained(name).save_pretrained(folder)
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    renamed = set(ids)
    state["model"]["vocab"] = {
        f"[unused{10_000 + index}]" if index in renamed else token: index
        for token, index in state["model"]["vocab"].items()
    }
    path.write_text(json.dumps(state), encoding="utf-8")
    (folder / "vocab.txt").unlink(missing_ok=True)
    model = AutoModel.from_pretrained(name)
    with torch.no_grad():
        model.get_input_embeddings().weight[list(ids)] = 0.0
    return model, AutoTokenizer.from_pretrained(folder)


def ranks_of_old_rows(rows: Tensor, ids: Tensor, table: Tensor, among: Tensor) -> list[int]:
    """Where a word's own old row stands among all words' old rows, nearest first: 1 is the best."""
    centre = table[among].mean(dim=0)
    unit = torch.nn.functional.normalize(table[among] - centre, dim=1)
    position = {index: place for place, index in enumerate(among.tolist())}
    own = torch.tensor([position[index] for index in ids.tolist()])
    cosines = torch.nn.functional.normalize(rows - centre, dim=1) @ unit.T
    return ((cosines > cosines.gather(1, own[:, None])).sum(dim=1) + 1).tolist()


def category_accuracy(
    tables: dict[str, Tensor], old: Tensor, ids: Tensor, vocabulary: Vocabulary, wordnet: Lexicon
) -> dict[str, Any]:
    """WordNet category of a noun from the row that each method gives, by a classifier of other nouns' old rows."""
    from sklearn.linear_model import LogisticRegression

    def category(word: str | None) -> str | None:
        senses = wordnet.lookup(word, ignore_case=vocabulary.uncased) if word else []
        return senses[0].category if senses and senses[0].pos == "noun" else None

    held_out = set(ids.tolist())
    train = [(index, found) for index in vocabulary.word_ids.tolist() if (found := category(vocabulary.words[index]))]
    train = [(index, found) for index, found in train if index not in held_out]
    test = [(place, found) for place, index in enumerate(ids.tolist()) if (found := category(vocabulary.words[index]))]
    centre = old.mean(dim=0)

    def inputs(rows: Tensor) -> Any:
        return torch.nn.functional.normalize(rows - centre, dim=1).numpy()

    probe = LogisticRegression(C=10.0, max_iter=300).fit(inputs(old[[i for i, _ in train]]), [c for _, c in train])
    places, wanted = [place for place, _ in test], [found for _, found in test]
    scores = {method: float(probe.score(inputs(rows[places]), wanted)) for method, rows in tables.items()}
    return {"train_nouns": len(train), "test_nouns": len(test), "accuracy": scores}


def similarity(checkpoints: dict[str, Path]) -> dict[str, Any]:
    """The referee's report: Spearman correlations with human ratings."""
    referee = DATA.parent / "tools" / "wordsim.py"
    command = [sys.executable, str(referee), *map(str, checkpoints.values()), "--data", str(DATA / "wordsim"), "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    label = {str(path): method for method, path in checkpoints.items()} | {"pairs": "pairs"}
    return {name: {label[key]: value for key, value in groups["all"].items()} for name, groups in report.items()}


def recovery(checkpoint: Path, words: set[str], seed: int, device_batch: int = 16) -> dict[str, list[float]]:
    """Loss and accuracy on SST-2 sentences with the words, after so many steps of fine-tuning on such sentences."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def sentences(file: str, number: int) -> Dataset:
        rows = read_sst2(file).shuffle(seed=seed)
        rows = rows.filter(lambda row: len(words & set(row["sentence"].split())) >= 3)
        rows = rows.select(range(min(number, len(rows))))
        return rows.map(lambda row: dict(tokenizer(row["sentence"], truncation=True, max_length=64)))

    train, test = sentences("train.tsv", STEPS[-1] * device_batch), sentences("validation.tsv", 400)
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=2)
    curve: dict[str, list[float]] = {"loss": [], "accuracy": []}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS[-1],
            learning_rate=5e-5,
            lr_scheduler_type="constant",
            per_device_train_batch_size=device_batch,
            per_device_eval_batch_size=100,
            eval_strategy="steps",
            eval_steps=16,
            eval_on_start=True,
            save_strategy="no",
            report_to=[],
            seed=seed,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=train,
            eval_dataset=test,
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
            compute_metrics=lambda output: {"accuracy": float((output[0].argmax(axis=-1) == output[1]).mean())},
        )
        trainer.train()
        for row in trainer.state.log_history:
            if "eval_loss" in row and row["step"] in STEPS:
                curve["loss"].append(row["eval_loss"])
                curve["accuracy"].append(row["eval_accuracy"])
    return curve


def compare(name: str, seeds: int, folder: Path) -> dict[str, Any]:
    wordnet = load_definitions("wordnet")
    tokenizer = AutoTokenizer.from_pretrained(name)
    old = read_table(AutoModel.from_pretrained(name))
    vocabulary = read_vocabulary(tokenizer, len(old))
    wanted = rated_words(DATA / "wordsim")
    ids = [i for i in vocabulary.word_ids.tolist() if vocabulary.words[i] in wanted]
    found = {i: wordnet.lookup(str(vocabulary.words[i]), ignore_case=vocabulary.uncased) for i in ids}
    ids = [index for index in ids if found[index]]
    words = [str(vocabulary.words[index]) for index in ids]
    model, reduced = without_words(name, ids, folder / "reduced")
    dictionary = wordnet.without(words)
    glosses = {word: [d.gloss for d in found[i] if d.rank <= 8] for i, word in zip(ids, words, strict=True)}
    glosses = {word: list(dict.fromkeys(listed)) for word, listed in glosses.items()}
    senses = [replace(d, word=word) for i, word in zip(ids, words, strict=True) for d in found[i] if d.rank <= 8]
    with_synonyms = Lexicon.from_definitions(senses, name="held out")

    print(f"{len(words):,} words held out; fitting the map on the others", flush=True)
    tables: dict[str, Tensor] = {}
    reports = {}
    start = time.perf_counter()
    for method, terms in (("definition", glosses), ("definition with synonyms", with_synonyms)):
        one, its_tokenizer = copy.deepcopy(model), copy.deepcopy(reduced)
        reports[method] = define_new_tokens(one, its_tokenizer, terms, dictionary)
        new = {term.term: next(iter(term.tokens.values())) for term in reports[method].terms}
        tables[method] = read_table(one)[[new[word] for word in words]]
    print(f"{time.perf_counter() - start:.0f} s", flush=True)
    zeroed = read_table(model)
    pieces = [reduced(word, add_special_tokens=False)["input_ids"] for word in words]
    tables["sub-token mean"] = torch.stack([zeroed[found].mean(dim=0) for found in pieces])
    torch.manual_seed(0)
    drawn = copy.deepcopy(model)
    drawn.resize_token_embeddings(len(zeroed) + len(words))
    tables["mean + covariance draw"] = read_table(drawn)[len(zeroed) :]
    described = [reduced(" ".join(glosses[word]), add_special_tokens=False)["input_ids"] for word in words]
    tables["mean of the glosses' tokens"] = torch.stack([zeroed[found].mean(dim=0) for found in described])
    index = torch.tensor(ids)
    tables["pretrained"] = old[index]

    checkpoints = {}
    for method, rows in tables.items():
        holder = copy.deepcopy(one)
        with torch.no_grad():
            holder.get_input_embeddings().weight[[new[word] for word in words]] = rows
        checkpoints[method] = folder / method.replace(" ", "-")
        holder.save_pretrained(checkpoints[method])
        its_tokenizer.save_pretrained(checkpoints[method])
    ranks = {
        method: ranks_of_old_rows(rows, index, old, vocabulary.word_ids)
        for method, rows in tables.items()
        if method != "pretrained"
    }
    groups = frequency_groups(frequency_rank(vocabulary))
    in_group = {group: torch.isin(index, members) for group, members in groups.items() if group != "all"}
    result: dict[str, Any] = {
        "words": len(words),
        "word_tokens": len(vocabulary.word_ids),
        "similarity": similarity(checkpoints),
        "median_rank": {method: median(found) for method, found in ranks.items()},
        "median_rank_by_group": {
            group: {method: median(torch.tensor(found)[inside].tolist()) for method, found in ranks.items()}
            for group, inside in in_group.items()
        },
        "centred_cosine": {
            method: centred_cosine(rows, old[index], old.mean(dim=0)) for method, rows in tables.items()
        },
        "categories": category_accuracy(tables, old, index, vocabulary, wordnet),
        "mixture": {method: report.info["new_tokens"]["input"] for method, report in reports.items()},
    }
    print(json.dumps({key: result[key] for key in ("similarity", "median_rank", "mixture")}, indent=1), flush=True)
    curves: dict[str, list[dict[str, list[float]]]] = {}
    for method, checkpoint in checkpoints.items():
        if method != "definition with synonyms" and seeds:
            curves[method] = [recovery(checkpoint, set(words), seed) for seed in range(seeds)]
            print(method, [round(mean(c["accuracy"][-1] for c in curves[method]), 4)], flush=True)
    return result | {"recovery": {"steps": STEPS, "seeds": seeds, "curves": curves}}


def speed(name: str, number: int = 1000) -> dict[str, Any]:
    """Seconds and memory of so many new terms, with the map in the cache."""
    wordnet = load_definitions("wordnet")
    model, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    known = tokenizer.get_vocab()
    several = [word for word in wordnet.words if word.isalpha() and word.islower() and word not in known]
    terms = {word: wordnet.lookup(word)[0].gloss for word in several[:: len(several) // number][:number]}
    define_new_tokens(copy.deepcopy(model), copy.deepcopy(tokenizer), {"zyzzogeton": "a leafhopper"})  # the map
    before = held_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
    start = time.perf_counter()
    report = define_new_tokens(model, tokenizer, terms)
    seconds = time.perf_counter() - start
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 1e6
    return {
        "terms": len(report.terms),
        "seconds": seconds,
        "extra_mb": held_mb("VmHWM") - before,
        "model_mb": size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--seeds", type=int, default=3, help="of fine-tuning; 0 leaves it out")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS / "new_tokens.json")
    arguments = parser.parse_args()
    if not (DATA / "wordsim").is_dir():
        sys.exit("shared/data/wordsim is not beside the repository; nothing was measured.")
    name = arguments.model or find_model()
    result = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    if arguments.speed:
        result["speed"] = speed(name)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result |= compare(name, arguments.seeds, Path(folder))
    result["environment"] = environment()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result.get("speed") if arguments.speed else result["categories"], indent=1))


if __name__ == "__main__":
    main()
