"""New tokens in a language model: the loss of sentences with new words, by initialisation of their rows.

    python benchmarks/new_tokens_lm.py

The model is a Llama with 260 K parameters and 512 tokens, trained on TinyStories (`models/stories260k` in shared/data).
Sentences are sampled from it at temperature 1, as no other text of this kind is available here. The most frequent words
of half of the stories that have several tokens and are in WordNet become tokens and are looked up there; the other half
is for evaluation. Words that are not a prefix of other known words, whose tokens include the space, and words that are
("park", "parking"), which follow a space token, are measured separately. All numbers are in nats per character or word
of the text, so that two tokenizations can be compared:

- "sentence": each sentence with new words, per character, given the preceding text of its story;
- "word": a new word, with the space before it;
- "before", "after": the rest of these sentences, up to the first new word and after it, per character. The loss before
  it rises if new tokens are predicted where there are none, the loss after it if they are not understood.

"untied" is the same model with an untied output table with the same content, whose new rows come from its own map.
Then only the new rows are trained, on the stories that the words were taken from.

    make smollm2
    python benchmarks/new_tokens_lm.py --smollm2

measures SmolLM2-135M instead, on paragraphs of WikiText-2 with the terms and on others: words of several tokens in nats
per character, and whole words of the vocabulary, treated as new, in nats per token of the original tokenization.

    python benchmarks/new_tokens_lm.py --smollm2 --texts --words 20

compares more alternatives (`rivals.py`) on words of several tokens, without texts and with 1, 5 and 25 texts that use
each word.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import DATA, RESULTS, environment
from language_models import Losses, load_smollm2, wikitext
from rivals import COUNTS, rows_by_method, texts_of
from torch import Tensor
from transformers import LlamaForCausalLM, LlamaTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import generate_merges

from defemb_callbacks import (
    DefinitionEMBConfig,
    DefinitionEmbeddings,
    Lexicon,
    build_definition_embeddings,
    define_new_tokens,
    load_definitions,
)
from defemb_callbacks.new_tokens.define import plan_new_tokens
from defemb_callbacks.new_tokens.definition_rows import rows_from_definitions
from defemb_callbacks.new_tokens.distillation import distilled_rows
from defemb_callbacks.new_tokens.output_calibration import read_output_states
from defemb_callbacks.new_tokens.readings import definition_readings
from defemb_callbacks.new_tokens.subtokens import split_without_itself
from defemb_callbacks.new_tokens.term_rows import TermRows, piece_means, term_rows
from defemb_callbacks.new_tokens.term_token import TermToken
from defemb_callbacks.new_tokens.terms import Term
from defemb_callbacks.reporting.summary import TermSummary
from defemb_callbacks.weights.rows import read_table

MODEL = DATA / "models" / "stories260k"
STEPS = (0, 16, 64)
LENGTH = 128
BATCH = 16


def read_tokenizer(folder: Path) -> LlamaTokenizer:
    """Read the tokenizer of `tok512.json`, a SentencePiece BPE that merges the pair with the best score first."""
    content = json.loads((folder / "tok512.json").read_text(encoding="utf-8"))
    # llama2.c stores spaces instead of the mark, and puts special tokens on separate lines.
    pieces = [piece.strip("\n").replace(" ", "▁") for piece in content["vocab"]]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    special = [piece for piece in pieces if piece.startswith("<") and len(piece) > 1]
    merges = generate_merges(vocabulary, dict(zip(pieces, content["scores"], strict=True)), special)
    return LlamaTokenizer(vocab=vocabulary, merges=merges)


@torch.no_grad()
def write_stories(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, number: int, seed: int) -> list[str]:
    """Sample stories from the model, up to their last complete sentence."""
    torch.manual_seed(seed)
    start = torch.full((number, 1), model.config.bos_token_id)
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
    drawn = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=LENGTH - 1, **settings)
    texts = tokenizer.batch_decode(drawn, skip_special_tokens=True)
    return [text[: max(map(text.rfind, ".!?")) + 1] for text in texts]


def words_to_add(
    stories: Sequence[str], tokenizer: PreTrainedTokenizerBase, wordnet: Lexicon, number: int
) -> dict[str, list[str]]:
    """Find the most frequent lower-case words with several tokens and a definition, by the form of their token."""
    counts = Counter(word for story in stories for word in re.findall(r"\b[a-z]+\b", story))
    common = [word for word, count in counts.most_common() if count > 2 and wordnet.lookup(word)]
    plan = plan_new_tokens(tokenizer, common, wordnet, DefinitionEMBConfig())
    names: dict[str, list[str]] = {"with its space": [], "behind a space": []}
    for token in plan.tokens:
        if token.is_new:
            spaced = str(plan.after.convert_ids_to_tokens(token.word)).startswith(" ")
            names["with its space" if spaced else "behind a space"].append(token.term.text)
    return {form: found[:number] for form, found in names.items()}


class Texts:
    """Stories, with the part of a sentence with new words that each character belongs to."""

    def __init__(self, stories: Sequence[str], words: Sequence[str]) -> None:
        self.stories = list(stories)
        found = re.compile(rf"(?: |\b)(?:{'|'.join(words)})\b")
        self.parts = [[""] * len(story) for story in stories]
        self.sizes: Counter[str] = Counter()
        for story, parts in zip(stories, self.parts, strict=True):
            for sentence in re.finditer(r"[^.!?\n]+[.!?\n]+", story):
                spans = [match.span() for match in found.finditer(story, *sentence.span())]
                for place in range(*sentence.span()) if spans else ():
                    parts[place] = "before" if place < spans[0][0] else "after"
                for span in spans:
                    parts[slice(*span)] = ["word"] * (span[1] - span[0])
                self.sizes["words"] += len(spans)
            self.sizes.update(parts)

    @torch.no_grad()
    def losses(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """Compute negative log-likelihoods in nats per character or word."""
        sums: Counter[str] = Counter()
        for first in range(0, len(self.stories), BATCH):
            chosen = slice(first, first + BATCH)
            encoded = tokenizer(self.stories[chosen], add_special_tokens=False, return_offsets_mapping=True)
            logits, labels = forward(model, encoded["input_ids"])
            costs = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").tolist()
            for parts, offsets, row in zip(self.parts[chosen], encoded["offset_mapping"], costs, strict=True):
                for (_, end), cost in zip(offsets, row, strict=False):
                    sums[parts[end - 1]] += cost
        inside = ("before", "word", "after")
        return {
            "sentence": sum(sums[part] for part in inside) / sum(self.sizes[part] for part in inside),
            "word": sums["word"] / self.sizes["words"],
            "before": sums["before"] / self.sizes["before"],
            "after": sums["after"] / self.sizes["after"],
        }


def forward(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Compute the logits of each token, and the labels; -100 for padding."""
    length = max(map(len, texts))
    labels = torch.tensor([[*ids, *[-100] * (length - len(ids))] for ids in texts])
    start = torch.full((len(texts), 1), model.config.bos_token_id)
    inputs = torch.cat([start, labels[:, :-1].clamp(min=0)], dim=1)
    return model(input_ids=inputs, use_cache=False).logits, labels


def train_rows(
    model: PreTrainedModel, tokens: Tensor, texts: Sequence[list[int]], rate: float, seed: int, steps: Sequence[int]
) -> Iterator[int]:
    """Train only these rows, in all tables, with Adam; pause at each of these steps."""
    tables = {id(table): table for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    model.requires_grad_(False)
    chosen = torch.zeros(len(read_table(model)), 1).index_fill_(0, tokens, 1.0)
    for table in tables.values():
        table.requires_grad_(True).register_hook(lambda gradient: gradient * chosen)
    optimizer = torch.optim.Adam(tables.values(), lr=rate)
    order = torch.Generator().manual_seed(seed)
    for step in range(steps[-1] + 1):
        if step in steps:
            yield step
        if step == steps[-1]:
            return
        batch = [texts[index] for index in torch.randint(len(texts), (BATCH,), generator=order).tolist()]
        logits, labels = forward(model, batch)
        torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def rows_of_rivals(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, terms: Sequence[TermSummary], wordnet: Lexicon
) -> dict[str, Tensor]:
    """Compute the rows of each alternative, term by term."""
    table = read_table(model)
    glosses = [" ".join(found.gloss for found in wordnet.lookup(term.term) if found.rank <= 8) for term in terms]
    drawn = copy.deepcopy(model)
    drawn.resize_token_embeddings(len(table) + len(terms))  # mean and covariance
    pieces = [tokenizer.convert_tokens_to_ids(list(term.pieces)) for term in terms]
    return {
        "sub-token mean": piece_means(table, pieces),
        "mean of the glosses' tokens": piece_means(table, tokenizer(glosses, add_special_tokens=False)["input_ids"]),
        "mean + covariance draw": read_table(drawn)[len(table) :],
    }


def untied(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the model with an untied output table with the same content."""
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = False
    one = LlamaForCausalLM(config).eval()
    one.load_state_dict(model.state_dict())
    return one


def measure(
    words: list[str], train: list[str], test: list[str], wordnet: Lexicon, rate: float, seed: int, steps: Sequence[int]
) -> dict[str, Any]:
    """Measure the losses of each method at each of these steps."""
    model, tokenizer = LlamaForCausalLM.from_pretrained(MODEL).eval(), read_tokenizer(MODEL)
    texts, extended = Texts(test, words), copy.deepcopy(tokenizer)
    models, with_two_tables = {"definition": copy.deepcopy(model)}, untied(model)
    report = define_new_tokens(models["definition"], extended, words, wordnet)
    define_new_tokens(with_two_tables, copy.deepcopy(tokenizer), words, wordnet)
    tokens = [(place, index) for place, term in enumerate(report.terms) for index in term.tokens.values()]
    owners, ids = torch.tensor(tokens).T
    torch.manual_seed(seed)
    for method, rows in rows_of_rivals(model, tokenizer, report.terms, wordnet).items():
        models[method] = copy.deepcopy(models["definition"])
        with torch.no_grad():
            models[method].get_input_embeddings().weight[ids] = rows[owners]
    losses = {"not extended": [texts.losses(model, tokenizer)]}
    losses["definition, untied"] = [texts.losses(with_two_tables, extended)]
    encoded = extended(train, add_special_tokens=False)["input_ids"]
    for method, one in models.items():
        losses[method] = [texts.losses(one, extended) for _ in train_rows(one, ids, encoded, rate, seed, steps)]
    for method, curve in losses.items():
        print(method, *({part: round(cost, 3) for part, cost in row.items()} for row in curve), flush=True)
    rests_on = {name: report.info[name] for name in ("definitions_read", "r_squared", "new_tokens")}
    return {"words": words, "sizes": texts.sizes, "map": rests_on, "losses": losses}


def compare(seed: int, stories: int, words: int, rate: float, wordnet: Lexicon) -> dict[str, Any]:
    model, tokenizer = LlamaForCausalLM.from_pretrained(MODEL).eval(), read_tokenizer(MODEL)
    written = write_stories(model, tokenizer, stories, seed)
    train, test = written[::2], written[1::2]
    result = {}
    for form, chosen in words_to_add(train, tokenizer, wordnet, words).items():
        print(f"seed {seed}, {form}: {len(chosen)} words", flush=True)
        steps = STEPS if form == "with its space" else STEPS[:1]
        result[form] = measure(chosen, train, test, wordnet, rate, seed, steps)
    return result


class Passages:
    """Paragraphs with new words, densest first, and paragraphs without them."""

    def __init__(self, words: Sequence[str], characters: int) -> None:
        found = re.compile(rf"(?<= )(?:{'|'.join(words)})\b")
        texts = [text[:600] for text in wikitext("test")]
        texts.sort(key=lambda text: -len(found.findall(text)))
        self.dense = texts[: max(1, characters // 600)]
        self.other = [text for text in texts if not found.search(text)][:: len(texts) // 12]
        self.words = sum(len(found.findall(text)) for text in self.dense)

    def losses(self, model: PreTrainedModel, tokenize: Any, rows: TermRows | None = None) -> dict[str, Tensor]:
        """Sum of the loss of each paragraph, with these rows in the table."""
        sums = {}
        for name in ("dense", "other"):
            losses = Losses(model, [torch.tensor(ids) for ids in tokenize(getattr(self, name))])
            table = losses.table
            if rows is not None:
                table = torch.cat(
                    [table, table.new_zeros(max(0, int(rows.ids.max()) + 1 - len(table)), table.shape[1])]
                )
                table[rows.ids] = rows.rows
            each = losses.of(losses.states(table), table).double().split(losses.lengths)
            sums[name] = torch.stack([part.sum() for part in each])
        return sums


def measure_rows(
    model: PreTrainedModel,
    passages: Passages,
    before: Any,
    after: Any,
    rows: dict[str, TermRows],
    unit: str,
) -> dict[str, Any]:
    """Losses per unit with each of these rows, and without new tokens."""
    sizes = {name: [len(ids) for ids in before(getattr(passages, name))] for name in ("dense", "other")}
    number = sum(map(len, passages.dense)) if unit == "character" else sum(sizes["dense"])
    plain = passages.losses(model, before)
    result: dict[str, Any] = {"occurrences": passages.words, f"{unit}s": number}
    result["nothing added"] = {"loss": round(float(plain["dense"].sum()) / number, 4)}
    for method, written in rows.items():
        sums = passages.losses(model, after, written)
        result[method] = {
            "loss": round(float(sums["dense"].sum()) / number, 4),
            "other text": round(float((sums["other"].sum() - plain["other"].sum()) / sum(sizes["other"])), 4),
        }
        print(method, result[method], result["nothing added"], flush=True)
    return result


def words_in_test(wordnet: Lexicon) -> Counter[str]:
    """The words of WikiText-2's test set that are in WordNet, with the number of paragraphs."""
    paragraphs = (set(re.findall(r"(?<= )[a-z]{5,}\b", text)) for text in wikitext("test"))
    return Counter(word for words in paragraphs for word in words if word in wordnet)


def with_texts(folder: str, embeddings_folder: Path | None, words: int, characters: int) -> dict[str, Any]:
    """Measure rows made by each method, with several numbers of texts, for words of several tokens."""
    model, tokenizer = load_smollm2(folder)
    wordnet, start = load_definitions("wordnet"), time.perf_counter()
    if embeddings_folder is None:
        built = build_definition_embeddings(model, tokenizer, wordnet)
    else:
        built = DefinitionEmbeddings.from_pretrained(embeddings_folder)
    counts = words_in_test(wordnet)
    encoded = {word: tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in counts}
    several = [word for word, _ in counts.most_common() if len(encoded[word]) > 1]
    found = texts_of(several, COUNTS[-1])
    enough = [word for word in several if len(found[word]) >= COUNTS[-2]][:words]
    glosses = {word: [one.gloss for one in wordnet.lookup(word)] for word in enough}
    rows = rows_by_method(model, tokenizer, built, wordnet, glosses, found)
    plan = plan_new_tokens(tokenizer, enough, wordnet, DefinitionEMBConfig())
    passages = Passages(enough, characters)
    result = measure_rows(model, passages, ids_of(plan.before), ids_of(plan.after), rows, "character")
    texts = {"fewest texts": min(len(found[word]) for word in enough)}
    return {"words": len(enough), **texts, **result, "seconds": time.perf_counter() - start}


def smollm2(folder: str, embeddings_folder: Path | None, words: int, characters: int) -> dict[str, Any]:
    """Measure words of several tokens, and words of the vocabulary treated as new."""
    model, tokenizer = load_smollm2(folder)
    wordnet, config = load_definitions("wordnet"), DefinitionEMBConfig()
    if embeddings_folder is None:
        built = build_definition_embeddings(model, tokenizer, wordnet, config)
    else:
        built = DefinitionEmbeddings.from_pretrained(embeddings_folder)
    table, splits = read_table(model), split_without_itself(tokenizer, built.ids)
    output = read_output_states(model, built.texts)
    counts = words_in_test(wordnet)
    encoded = {word: tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in counts}

    def measured(plan: Any, terms: Sequence[str], rows: Tensor, unit: str, **more: TermRows) -> dict[str, Any]:
        tokens, distil = plan.tokens, partial(distilled_rows, model, definition_readings(plan))
        loud = term_rows(table, tokens, rows, splits, built, config)
        means = piece_means(table, [token.pieces for token in tokens])
        bare = [position for position, token in enumerate(tokens) if token.bare is not None]
        variants = {
            "sub-token mean": TermRows(loud.ids, torch.cat([means, means[bare]]), loud.weights, None),
            "full length, not calibrated": loud,
            "default": term_rows(table, tokens, rows, splits, built, config, output),
            "distilled": term_rows(table, tokens, rows, splits, built, config, output, distil),
            **more,
        }
        passages = Passages(terms, characters)
        found = measure_rows(model, passages, ids_of(plan.before), ids_of(plan.after), variants, unit)
        return {"words": len(tokens), "log_probability": variants["default"].log_probability} | found

    several = [word for word, _ in counts.most_common() if len(encoded[word]) > 1][:words]
    plan = plan_new_tokens(tokenizer, several, wordnet, config)
    predicted = rows_from_definitions(model, tokenizer, [token.term for token in plan.tokens], built, config, wordnet)
    terms = [token.term.text for token in plan.tokens]
    result = {"words of several tokens": measured(plan, terms, predicted, "character")}

    place = {index: position for position, index in enumerate(built.ids.tolist())}
    whole = [word for word in counts if len(encoded[word]) == 1 and encoded[word][0] >= 0.8 * len(table)]
    whole = [word for word in whole if splits[place.get(encoded[word][0], 0)]][: round(1.8 * words)]
    chosen = [place[encoded[word][0]] for word in whole]
    held_out = tuple(
        TermToken(Term(word, tuple(wordnet.lookup(word))), encoded[word][0], None, True, tuple(splits[position]))
        for word, position in zip(whole, chosen, strict=True)
    )
    pieces_of = {token.word: token.pieces for token in held_out}

    def split_up(text: str) -> dict[str, list[int]]:
        ids = tokenizer(text)["input_ids"]
        return {"input_ids": [piece for index in ids for piece in pieces_of.get(index, (index,))]}

    plan = SimpleNamespace(tokens=held_out, before=split_up, after=tokenizer)
    ids = torch.tensor([token.word for token in held_out])
    true_rows = TermRows(ids, table[ids], torch.ones(0), None)
    result["held-out words"] = measured(plan, whole, built.rows[chosen], "token", **{"true rows": true_rows})
    return result


def ids_of(tokenizer: Any) -> Callable[[Sequence[str]], list[list[int]]]:
    return lambda texts: [tokenizer(text)["input_ids"] for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of stories, words, samples and training")
    parser.add_argument("--stories", type=int, default=300, help="half for training, half for evaluation")
    parser.add_argument("--words", type=int, default=100, help="number of words that become tokens")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate of the rows")
    parser.add_argument("--smollm2", nargs="?", const="", help="measure SmolLM2; optionally the folder of a checkpoint")
    parser.add_argument("--embeddings", type=Path, help="ready definition embeddings of SmolLM2")
    parser.add_argument("--characters", type=int, default=24_000, help="text that is read for SmolLM2")
    parser.add_argument("--texts", action="store_true", help="compare methods with and without texts")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.smollm2 is not None and arguments.texts:
        result = with_texts(arguments.smollm2, arguments.embeddings, arguments.words, arguments.characters)
        output = arguments.output or RESULTS / "new_tokens_texts_smollm2.json"
        output.write_text(json.dumps({**result, "environment": environment()}, indent=1) + "\n", encoding="utf-8")
        return
    if arguments.smollm2 is not None:
        result = smollm2(arguments.smollm2, arguments.embeddings, arguments.words, arguments.characters)
        output = arguments.output or RESULTS / "new_tokens_lm_smollm2.json"
        output.write_text(json.dumps({**result, "environment": environment()}, indent=1) + "\n", encoding="utf-8")
        return
    if not MODEL.is_dir():
        sys.exit("shared/data/models/stories260k is not beside the repository; nothing was measured.")
    wordnet = load_definitions("wordnet")
    settings = {name: getattr(arguments, name) for name in ("stories", "words", "rate")}
    runs = [compare(seed, **settings, wordnet=wordnet) for seed in range(arguments.seeds)]
    result = {"steps": STEPS, "settings": settings, "runs": runs, "environment": environment()}
    output = arguments.output or RESULTS / "new_tokens_lm.json"
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
