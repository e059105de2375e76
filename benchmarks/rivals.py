"""Rows of new words by several methods, without texts and with some, for `new_tokens.py` and `new_tokens_lm.py`.

- Without texts: the mean of the sub-tokens; a sample from mean and covariance of the table (`resize_token_embeddings`);
  the mean row of the tokens of the glosses; the mean row of words with similar definitions, weighted as in WECHSEL.
- With texts: token distillation from the mean of the sub-tokens, and from the rows of `define_new_tokens`.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from common import DATA
from language_models import wikitext
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks import DefinitionEMBConfig, DefinitionEmbeddings, Lexicon
from defemb_callbacks.new_tokens.define import plan_new_tokens
from defemb_callbacks.new_tokens.table_rows import rows_of_tables
from defemb_callbacks.new_tokens.term_rows import TermRows, piece_means
from defemb_callbacks.new_tokens.term_texts import with_texts
from defemb_callbacks.new_tokens.terms import Term
from defemb_callbacks.new_tokens.token_plan import TokenPlan
from defemb_callbacks.reconstruction import last_states
from defemb_callbacks.reconstruction.backbone import evaluating
from defemb_callbacks.reconstruction.batching import equal_length_batches
from defemb_callbacks.weights.rows import INPUT, read_table

COUNTS = (0, 1, 5, 25)  # texts of a word
NEIGHBOURS, TEMPERATURE = 10, 0.1  # of WECHSEL


def corpus() -> Iterator[str]:
    """Texts of WikiText-2, SST-2, MNLI, XSum and CNN/DailyMail, in an order that mixes them."""
    texts = [*wikitext("valid")]
    for name, columns in (
        ("mnli", ("premise", "hypothesis")),
        ("xsum", ("document",)),
        ("cnn_dailymail", ("article",)),
    ):
        with (DATA / name / "train.jsonl").open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        # In parts, as each text gives one passage of a word.
        texts += [
            row[column][start : start + 600]
            for row in rows
            for column in columns
            for start in range(0, len(row[column]), 600)
        ]
    lines = (DATA / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    texts += [line.rsplit("\t", 1)[0] for line in lines if line.count(" ") > 8]
    random.Random(0).shuffle(texts)
    yield from texts


def texts_of(words: Sequence[str], most: int) -> dict[str, tuple[str, ...]]:
    """Find passages of the corpus that use each word."""
    found = with_texts([Term(word) for word in words], corpus(), most=most, ignore_case=True)
    return {term.text: term.options.texts for term in found}


def rows_by_method(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    embeddings: DefinitionEmbeddings,
    dictionary: Lexicon,
    glosses: Mapping[str, Sequence[str]],
    texts: Mapping[str, Sequence[str]],
    counts: Sequence[int] = COUNTS,
) -> dict[str, TermRows]:
    """Compute the rows of words by each method, and with each number of texts.

    Args:
        model: The model without the words.
        tokenizer: Its tokenizer without them.
        embeddings: Definition embeddings of its input table.
        dictionary: The dictionary that they were built from.
        glosses: The definitions of each word.
        texts: The texts of each word.
        counts: Numbers of texts.
    """
    config = DefinitionEMBConfig()

    def planned(number: int, *, defined: bool = True) -> TokenPlan:
        terms = {word: {"definition": list(found)} for word, found in glosses.items()}
        for word in terms if number else ():
            terms[word]["texts"] = list(texts[word][:number])
        plan = plan_new_tokens(tokenizer, terms, dictionary, config)
        if defined:
            return plan
        # Without definitions, a row is made from the sub-tokens alone.
        tokens = tuple(replace(token, term=replace(token.term, definitions=())) for token in plan.tokens)
        return replace(plan, tokens=tokens)

    def ours(plan: TokenPlan) -> TermRows:
        return rows_of_tables(model, plan, {INPUT: embeddings}, dictionary, config)[INPUT]

    found = {}
    for number in counts:
        name = "sub-token mean, calibrated" if number == 0 else f"token distillation, {number} texts"
        found[name] = ours(planned(number, defined=False))
        name = "definition" if number == 0 else f"definition + token distillation, {number} texts"
        found[name] = ours(planned(number))
        print(f"rows with {number} texts", flush=True)
    plan = planned(0)
    words = [token.term.text for token in plan.tokens]
    bare = [place for place, token in enumerate(plan.tokens) if token.bare is not None]
    plain = rivals_without_texts(model, tokenizer, embeddings, dictionary, [glosses[word] for word in words], plan)
    ids = found["definition"].ids
    return {
        **{name: TermRows(ids, torch.cat([rows, rows[bare]]), torch.ones(0), None) for name, rows in plain.items()},
        **found,
    }


def rivals_without_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    embeddings: DefinitionEmbeddings,
    dictionary: Lexicon,
    glosses: Sequence[Sequence[str]],
    plan: TokenPlan,
) -> dict[str, Tensor]:
    """Compute the rows of the methods that need no texts, (n, d) each."""
    table = read_table(model).cpu()
    joined = tokenizer([" ".join(found) for found in glosses], add_special_tokens=False)["input_ids"]
    drawn = copy.deepcopy(model)
    torch.manual_seed(0)
    drawn.resize_token_embeddings(len(table) + len(glosses))  # mean and covariance
    return {
        "sub-token mean": piece_means(table, [token.pieces for token in plan.tokens]),
        "mean of the glosses' tokens": piece_means(table, joined),
        "mean + covariance draw": read_table(drawn).cpu()[len(table) :],
        "mean of words with similar definitions": similar_means(model, tokenizer, embeddings, dictionary, glosses),
    }


def similar_means(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    embeddings: DefinitionEmbeddings,
    dictionary: Lexicon,
    glosses: Sequence[Sequence[str]],
) -> Tensor:
    """The mean row of the words of the vocabulary with the most similar first glosses, (n, d).

    The weights are a softmax of the cosines of the mean states of the glosses, as WECHSEL's of word vectors.
    """
    vocabulary, table = embeddings.vocabulary, read_table(model).cpu()
    known = [str(vocabulary.words[index]) for index in embeddings.ids.tolist()]
    known_glosses = [
        found[0].gloss if (found := dictionary.lookup(word, ignore_case=vocabulary.uncased)) else word for word in known
    ]
    states = mean_states(model, tokenizer, [*known_glosses, *(found[0] for found in glosses)])
    states = normalize(states - states.mean(dim=0), dim=1)
    cosines, places = (states[len(known) :] @ states[: len(known)].T).topk(min(NEIGHBOURS, len(known)), dim=1)
    weights = (cosines / TEMPERATURE).softmax(dim=1)
    return (weights[:, :, None] * table[embeddings.ids[places]]).sum(dim=1)


@torch.no_grad()
def mean_states(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """Means of the last hidden states of texts, (n, d) float32."""
    ids = tokenizer(list(texts), truncation=True, max_length=64)["input_ids"]
    means = torch.zeros(len(texts), 0)
    with evaluating(model), torch.autocast("cpu", torch.bfloat16):
        for batch in equal_length_batches([len(each) for each in ids], 64):
            states = last_states(model, torch.tensor([ids[index] for index in batch])).float().mean(dim=1)
            if not means.numel():
                means = torch.zeros(len(texts), states.shape[1])
            means[batch] = states
    return means
