"""New tokens built from definitions, compared with other initialisations, on words that the model knows.

    python benchmarks/new_tokens.py

The words of the similarity sets that are tokens and in WordNet are held out, a fifth at a time. They are removed from
the tokenizer, so that definitions of other words contain their pieces; from the model, whose rows are set to zero
before anything is encoded; and from the dictionary that the map is fitted on. Then they are added like new words of a
user: `define_new_tokens(model, tokenizer, {word: glosses})`. Upper bound: the original rows.

- "definition" is the result of `define_new_tokens`; "with synonyms": the definitions include their synonyms, as those
  that it looks up in WordNet itself do.
- Alternatives: the mean of the sub-tokens; a sample from mean and covariance of the table (`resize_token_embeddings`);
  the mean row of the tokens of the glosses.

`--texts` compares more alternatives (`rivals.py`), on fewer words, without texts and with 1, 5 and 25 texts that use
each word, found in WikiText-2, SST-2, MNLI, XSum and CNN/DailyMail. Further texts are for evaluation: how near a
sentence embedding is to the one with the original row.

Needs shared/tools/wordsim.py and shared/data next to the repository. `--speed` measures 1,000 terms instead;
`--scaling`, how the time to add terms and to tokenize text with them grows with their number.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import DATA, RESULTS, add_model_argument, centred_cosine, environment, find_model, held_mb
from datasets import Dataset
from rivals import COUNTS, mean_states, rows_by_method, texts_of
from scipy.stats import spearmanr
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

from defemb_callbacks import Lexicon, build_definition_embeddings, define_new_tokens, load_definitions
from defemb_callbacks.new_tokens.terms import Term
from defemb_callbacks.new_tokens.token_plan import plan_tokens
from defemb_callbacks.reconstruction import features
from defemb_callbacks.vocabulary.frequency import frequency_groups, frequency_rank
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.rows import read_table

STEPS = (0, 16, 32, 64)
TEST_TEXTS = 5  # of a word
FEWEST_PAIRS = 30  # for a correlation


def rated_words(folder: Path) -> set[str]:
    lines = (line for path in folder.glob("*.txt") for line in path.read_text(encoding="utf-8").splitlines())
    return {word.lower() for line in lines for word in line.split()[:2]}


def without_words(name: str, ids: Sequence[int], folder: Path) -> tuple[PreTrainedModel, Any]:
    """Return model and tokenizer without these tokens: their entries are unused, their rows are zero."""
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
    """Rank a word's own row among the original rows of all words by cosine: 1 is best."""
    centre = table[among].mean(dim=0)
    unit = torch.nn.functional.normalize(table[among] - centre, dim=1)
    position = {index: place for place, index in enumerate(among.tolist())}
    own = torch.tensor([position[index] for index in ids.tolist()])
    cosines = torch.nn.functional.normalize(rows - centre, dim=1) @ unit.T
    return ((cosines > cosines.gather(1, own[:, None])).sum(dim=1) + 1).tolist()


def category_accuracy(
    tables: dict[str, Tensor], old: Tensor, ids: Tensor, vocabulary: Vocabulary, wordnet: Lexicon
) -> dict[str, Any]:
    """Predict the WordNet category of nouns from their new rows, with a classifier trained on rows of other nouns."""
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
    """Compute Spearman correlations with human ratings with the external script."""
    referee = DATA.parent / "tools" / "wordsim.py"
    command = [sys.executable, str(referee), *map(str, checkpoints.values()), "--data", str(DATA / "wordsim"), "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    label = {str(path): method for method, path in checkpoints.items()} | {"pairs": "pairs"}
    return {
        name: {group: {label[key]: value for key, value in row.items()} for group, row in groups.items()}
        for name, groups in report.items()
    }


def recovery(checkpoint: Path, words: set[str], seed: int, device_batch: int = 16) -> dict[str, list[float]]:
    """Measure loss and accuracy on SST-2 sentences with the words, during fine-tuning on such sentences."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def sentences(file: str, number: int) -> Dataset:
        rows = Dataset.from_csv(str(DATA / "sst2" / file), sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False)
        rows = rows.rename_column("label", "labels").shuffle(seed=seed)
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


@contextlib.contextmanager
def remembered_texts() -> Iterator[None]:
    """Encode each text once: texts without held-out words have the same encoding in every fold."""
    known: dict[tuple[bool, tuple[int, ...]], list[Tensor]] = {}
    plain = features._TextReader.parts

    def parts(reader: Any, input_ids: Tensor, weights: Any = None) -> list[Tensor]:
        texts = [(weights is None, tuple(ids)) for ids in input_ids.tolist()]
        new = [place for place, text in enumerate(texts) if text not in known]
        if new:
            columns = plain(reader, input_ids[new], weights)
            known.update({texts[place]: row for place, *row in zip(new, *columns, strict=True)})
        return [torch.stack(column) for column in zip(*(known[text] for text in texts), strict=True)]

    features._TextReader.parts = parts
    try:
        yield
    finally:
        features._TextReader.parts = plain


def new_rows(
    name: str, ids: list[int], vocabulary: Vocabulary, wordnet: Lexicon, folder: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Compute the rows of each method for words held out together, and the share of sub-tokens."""
    words = [str(vocabulary.words[index]) for index in ids]
    found = [wordnet.lookup(word, ignore_case=vocabulary.uncased) for word in words]
    glosses = {
        word: list(dict.fromkeys(definition.gloss for definition in listed if definition.rank <= 8))
        for word, listed in zip(words, found, strict=True)
    }
    senses = [replace(one, word=word) for word, listed in zip(words, found, strict=True) for one in listed]
    with_synonyms = Lexicon.from_definitions((one for one in senses if one.rank <= 8), name="held out")
    model, tokenizer = without_words(name, ids, folder)
    dictionary = wordnet.without(words)

    tables: dict[str, Tensor] = {}
    mixtures = {}
    for method, terms in (("definition", glosses), ("definition with synonyms", with_synonyms)):
        one = copy.deepcopy(model)
        report = define_new_tokens(one, copy.deepcopy(tokenizer), terms, dictionary)
        index = {term.term: next(iter(term.tokens.values())) for term in report.terms}
        tables[method] = read_table(one)[[index[word] for word in words]]
        mixtures[method] = report.info["new_tokens"]["input"]
    zeroed = read_table(model)

    def means(texts: list[str]) -> Tensor:
        cut = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return torch.stack([zeroed[pieces].mean(dim=0) for pieces in cut])

    tables["sub-token mean"] = means(words)
    tables["mean of the glosses' tokens"] = means([" ".join(glosses[word]) for word in words])
    torch.manual_seed(ids[0])
    drawn = copy.deepcopy(model)
    drawn.resize_token_embeddings(len(zeroed) + len(words))
    tables["mean + covariance draw"] = read_table(drawn)[len(zeroed) :]
    return tables, mixtures


def compare(name: str, folds: int, seeds: int, folder: Path) -> dict[str, Any]:
    wordnet = load_definitions("wordnet")
    tokenizer = AutoTokenizer.from_pretrained(name)
    old = read_table(AutoModel.from_pretrained(name))
    vocabulary = read_vocabulary(tokenizer, len(old))
    wanted = rated_words(DATA / "wordsim")
    ids = [i for i in vocabulary.word_ids.tolist() if vocabulary.words[i] in wanted]
    ids = [i for i in ids if wordnet.lookup(str(vocabulary.words[i]), ignore_case=vocabulary.uncased)]
    parts = [ids[fold::folds] for fold in range(folds)]
    found, mixtures = [], []
    with remembered_texts():
        for fold, part in enumerate(parts):
            start = time.perf_counter()
            rows, mixture = new_rows(name, part, vocabulary, wordnet, folder / f"fold-{fold}")
            found.append(rows)
            mixtures.append(mixture)
            print(f"fold {fold}: {len(part):,} words, {time.perf_counter() - start:.0f} s", flush=True)
    ids = [index for part in parts for index in part]
    index = torch.tensor(ids)
    tables = {method: torch.cat([rows[method] for rows in found]) for method in found[0]} | {"pretrained": old[index]}
    torch.save({"ids": index, "tables": tables}, folder / "rows.pt")

    checkpoints = {method: folder / method.replace(" ", "-") for method in tables}
    for method, checkpoint in checkpoints.items():
        model = AutoModel.from_pretrained(name)
        with torch.no_grad():
            model.get_input_embeddings().weight[index] = tables[method]
        model.save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
    ranks = {
        method: torch.tensor(ranks_of_old_rows(rows, index, old, vocabulary.word_ids))
        for method, rows in tables.items()
        if method != "pretrained"
    }
    groups = frequency_groups(frequency_rank(vocabulary))
    result: dict[str, Any] = {
        "words": len(ids),
        "folds": folds,
        "word_tokens": len(vocabulary.word_ids),
        "similarity": similarity(checkpoints),
        "median_rank": {
            group: {m: median(places[torch.isin(index, members)].tolist()) for m, places in ranks.items()}
            for group, members in groups.items()
        },
        "centred_cosine": {m: centred_cosine(rows, old[index], old.mean(dim=0)) for m, rows in tables.items()},
        "categories": category_accuracy(tables, old, index, vocabulary, wordnet),
        "mixtures": mixtures,
    }
    print(json.dumps({key: result[key] for key in ("similarity", "median_rank", "categories")}, indent=1), flush=True)
    words = {str(vocabulary.words[i]) for i in ids}
    curves: dict[str, list[dict[str, list[float]]]] = {}
    for method, checkpoint in checkpoints.items():
        if seeds and method != "definition with synonyms":
            curves[method] = [recovery(checkpoint, words, seed) for seed in range(seeds)]
            print(method, curves[method], flush=True)
    return result | {"recovery": {"steps": STEPS, "seeds": seeds, "curves": curves}}


def held_out_words(name: str, number: int) -> tuple[list[int], dict[str, tuple[str, ...]]]:
    """Rated words in WordNet with enough texts, spread over the vocabulary, and their texts."""
    wordnet = load_definitions("wordnet")
    vocabulary = read_vocabulary(AutoTokenizer.from_pretrained(name))
    wanted = rated_words(DATA / "wordsim")
    ids = [i for i in vocabulary.word_ids.tolist() if vocabulary.words[i] in wanted]
    ids = [i for i in ids if wordnet.lookup(str(vocabulary.words[i]), ignore_case=vocabulary.uncased)]
    most = COUNTS[-1] + TEST_TEXTS
    texts = texts_of([str(vocabulary.words[i]) for i in ids], most)
    ids = [i for i in ids if len(texts[str(vocabulary.words[i])]) == most]
    ids = ids[:: max(1, len(ids) // number)][:number]
    return ids, {word: texts[word] for word in (str(vocabulary.words[i]) for i in ids)}


def rating_correlations(
    tables: dict[str, Tensor], vocabulary: Vocabulary, words: set[str]
) -> dict[str, dict[str, Any]]:
    """Spearman correlations with human ratings of pairs with at least one of the words, by data set and method."""
    place = {word: index for index, word in enumerate(vocabulary.words) if word is not None}
    result: dict[str, dict[str, Any]] = {}
    for path in sorted((DATA / "wordsim").glob("*.txt")):
        rows = [line.split()[:3] for line in path.read_text(encoding="utf-8").splitlines()]
        pairs = [
            (place[one.lower()], place[other.lower()], float(score))
            for one, other, score in rows
            if {one.lower(), other.lower()} <= place.keys() and words & {one.lower(), other.lower()}
        ]
        if len(pairs) < FEWEST_PAIRS:
            continue
        first, second, ratings = zip(*pairs, strict=True)
        result[path.stem] = {"pairs": len(pairs)}
        for method, table in tables.items():
            centred = table - table[vocabulary.word_ids].mean(dim=0)
            cosines = torch.cosine_similarity(centred[list(first)], centred[list(second)])
            result[path.stem][method] = float(spearmanr(cosines.numpy(), ratings).statistic)
    return result


def compare_with_texts(name: str, number: int, folder: Path) -> dict[str, Any]:
    """Compare methods with several numbers of texts on words held out together."""
    wordnet, start = load_definitions("wordnet"), time.perf_counter()
    original, its_tokenizer = AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    old, vocabulary = read_table(original), read_vocabulary(its_tokenizer)
    ids, texts = held_out_words(name, number)
    words = list(texts)
    glosses = {
        word: list(dict.fromkeys(one.gloss for one in wordnet.lookup(word, ignore_case=True) if one.rank <= 8))
        for word in words
    }
    model, tokenizer = without_words(name, ids, folder)
    dictionary = wordnet.without(words)
    embeddings = build_definition_embeddings(model, tokenizer, dictionary)
    print(f"{len(words)} words, map after {time.perf_counter() - start:.0f} s", flush=True)
    found = rows_by_method(model, tokenizer, embeddings, dictionary, glosses, texts)
    rows = {method: made.rows[: len(ids)] for method, made in found.items()} | {"pretrained": old[ids]}

    test = [text for word in words for text in texts[word][COUNTS[-1] :]]
    expected = mean_states(original, its_tokenizer, test)
    sentences = {"not extended": torch.cosine_similarity(mean_states(model, tokenizer, test), expected).mean().item()}
    tables, weight = {}, original.get_input_embeddings().weight
    for method, made in rows.items():
        tables[method] = old.index_copy(0, torch.tensor(ids), made)
        with torch.no_grad():
            weight.copy_(tables[method])
        states = mean_states(original, its_tokenizer, test)
        sentences[method] = torch.cosine_similarity(states, expected).mean().item()
    index = torch.tensor(ids)
    return {
        "words": len(words),
        "test_texts": len(test),
        "word_tokens": len(vocabulary.word_ids),
        "sentence_cosine": sentences,
        "centred_cosine": {m: centred_cosine(made, old[index], old.mean(dim=0)) for m, made in rows.items()},
        "median_rank": {
            m: median(ranks_of_old_rows(made, index, old, vocabulary.word_ids)) for m, made in rows.items()
        },
        "similarity": rating_correlations(tables, vocabulary, set(words)),
        "seconds": time.perf_counter() - start,
    }


def speed(name: str, number: int = 1000) -> dict[str, Any]:
    """Measure seconds and memory of adding terms, with a cached map."""
    wordnet = load_definitions("wordnet")
    model, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    known = tokenizer.get_vocab()
    several = [word for word in wordnet.words if word.isalpha() and word.islower() and word not in known]
    terms = {word: wordnet.lookup(word)[0].gloss for word in several[:: len(several) // number][:number]}
    define_new_tokens(copy.deepcopy(model), copy.deepcopy(tokenizer), {"zyzzogeton": "a leafhopper"})  # the map
    before = held_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
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


def scaling(name: str, sizes: Sequence[int] = (500, 1000, 2000, 4000, 8000)) -> dict[str, list[dict[str, float]]]:
    """Measure, for growing numbers of terms, the CPU seconds to add them and to tokenize text in which they occur."""
    wordnet = load_definitions("wordnet")
    words = [word for word in wordnet.words if word.isalpha() and word.islower() and len(word) > 6]
    result: dict[str, list[dict[str, float]]] = {}
    for folder in (name, str(DATA / "tokenizers" / "roberta-base"), str(DATA / "tokenizers" / "t5-small")):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        known = read_vocabulary(tokenizer).words
        several = sorted(set(words) - set(known))
        texts = [" ".join(several[number :: len(several) // 40]) for number in range(500)]
        result[Path(folder).name] = rows = []
        for size in (0, *sizes):
            terms = [
                Term(word, tuple(wordnet.lookup(word)[:1])) for word in several[:: len(several) // sizes[-1]][:size]
            ]
            start = time.process_time()
            plan = plan_tokens(tokenizer, terms, wordnet.words) if terms else None
            planned = time.process_time()
            tokens = (tokenizer if plan is None else plan.after)(texts)["input_ids"]
            done = time.process_time()
            added = 0 if plan is None else len(plan.forms)
            rows.append(
                {
                    "terms": size,
                    "tokens_added": added,
                    "cpu_seconds_to_add": planned - start,
                    "cpu_seconds_to_tokenize": done - planned,
                    "tokens_of_text": sum(map(len, tokens)),
                }
            )
            print(Path(folder).name, rows[-1], flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--folds", type=int, default=5, help="number of folds of held-out words")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of fine-tuning; 0 skips it")
    parser.add_argument("--texts", action="store_true", help="compare methods with and without texts")
    parser.add_argument("--words", type=int, default=60, help="with --texts: number of words")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--output", type=Path, help="default: new_tokens.json, or new_tokens_texts.json with --texts")
    arguments = parser.parse_args()
    if not (DATA / "wordsim").is_dir():
        sys.exit("shared/data/wordsim is not beside the repository; nothing was measured.")
    name = arguments.model or find_model()
    output = arguments.output or RESULTS / f"new_tokens{'_texts' if arguments.texts else ''}.json"
    result = json.loads(output.read_text()) if output.is_file() else {}
    if arguments.texts:
        with tempfile.TemporaryDirectory() as folder:
            result["texts"] = compare_with_texts(name, arguments.words, Path(folder))
    elif arguments.speed:
        result["speed"] = speed(name)
    elif arguments.scaling:
        result["scaling"] = scaling(name)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result |= compare(name, arguments.folds, arguments.seeds, Path(folder))
    result["environment"] = environment()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    chosen = {"texts": arguments.texts, "speed": arguments.speed, "scaling": arguments.scaling}
    shown = next((mode for mode, wanted in chosen.items() if wanted), "similarity")
    print(json.dumps(result[shown], indent=1))


if __name__ == "__main__":
    main()
