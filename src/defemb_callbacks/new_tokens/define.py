"""New tokens with rows made from their definitions, in a tokenizer and a model that stay ordinary ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Lexicon, load_definitions
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.metrics import TableMeasure
from defemb_callbacks.new_tokens.definition_rows import build_keeping_constructor, rows_from_definitions
from defemb_callbacks.new_tokens.growth import check_model, grown, tables_of, write_bias
from defemb_callbacks.new_tokens.term_rows import TermRows, expected_rank, term_rows
from defemb_callbacks.new_tokens.terms import Term, TermSource, read_terms
from defemb_callbacks.new_tokens.token_forms import split_without_itself
from defemb_callbacks.new_tokens.token_plan import TermToken, TokenPlan, plan_tokens
from defemb_callbacks.reporting.summary import GroupSummary, RebuildReport, TermSummary
from defemb_callbacks.vocabulary.frequency import frequency_groups
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.config_record import read_new_tokens_record, write_new_tokens_record
from defemb_callbacks.weights.rows import INPUT, TableName, check_rows, embedding_weight, read_table, write_rows


def define_new_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    terms: TermSource,
    definitions: Any = "wordnet",
    config: DefinitionEMBConfig | None = None,
) -> RebuildReport:
    """Add terms to a tokenizer, and give their rows what their definitions say.

    A map from definitions to rows is fitted on the words of the vocabulary (`build_definition_embeddings`, whose cache
    this shares) and applied to the definitions of the terms. How much of a new row comes from the term's sub-tokens
    besides is decided by the vocabulary's own words, treated as if they were new. Rows get the length of tokens of
    `config.new_token_group`, in every table of the model; an output table that is not tied has a map of its own.

    A term that is a token already is rebuilt, as `config.strategy` says. One without a definition of its own is looked
    up in `definitions`; if it is not there either, its row is that of its sub-tokens. Terms that cannot be tokens are
    reported with the reason. If anything fails, model and tokenizer are as before.

    Args:
        model: any model, before it is wrapped, sharded or given adapters; its tables grow.
        tokenizer: the model's own; the terms are added to it, see `plan_tokens`.
        terms: `{term: definition, or a list of them, or None}`, a list of terms, a `Lexicon`, or a glossary file. For
            `{"definition": …, "synonyms": […]}` in place of a definition the synonyms are read with it.
        definitions: the dictionary that the map is fitted on; all that `load_definitions` takes.
        config: settings.

    Returns:
        What became of each term, and the metrics of the input table before and after.

    Raises:
        ValueError: an empty definition; a term that is empty, doubled, a special token or has control characters; a
            model that does not fit the tokenizer, is wrapped, read-only or has adapters.
        TypeError: a table that cannot be written, as it is quantized.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
        >>> words = "[UNK] cat dog a small large wild animal that purrs barks".split()
        >>> backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = BertModel(BertConfig(vocab_size=len(words), **sizes))
        >>> glossary = {"cat": "a small animal that purrs", "dog": "a large animal that barks"}
        >>> report = define_new_tokens(model, tokenizer, {"lynx": "a wild cat"}, glossary)
        >>> report.terms[0].tokens, tokenizer("a lynx")["input_ids"], model.get_input_embeddings().weight.shape
        ({'lynx': 11}, [3, 11], torch.Size([12, 8]))
    """
    config = config or DefinitionEMBConfig()
    dictionary = load_definitions(definitions)
    check_model(model)
    read_vocabulary(tokenizer, len(embedding_weight(model)))
    plan = plan_new_tokens(tokenizer, terms, dictionary, config)
    embeddings = new_token_embeddings(model, plan, dictionary, config)
    report = write_new_tokens(model, plan, embeddings, dictionary, config)
    plan.extend(tokenizer)
    return report


def plan_new_tokens(
    tokenizer: PreTrainedTokenizerBase, terms: TermSource, dictionary: Lexicon, config: DefinitionEMBConfig
) -> TokenPlan:
    """What `define_new_tokens` will add to a tokenizer; the errors are those of `read_terms` and `plan_tokens`."""
    uncased = read_vocabulary(tokenizer).uncased
    read = read_terms(terms, dictionary, ignore_case=uncased, most=config.definitions_per_token)
    return plan_tokens(tokenizer, read, dictionary.words)


def new_token_embeddings(
    model: PreTrainedModel,
    plan: TokenPlan,
    dictionary: Lexicon,
    config: DefinitionEMBConfig,
    ready: Mapping[TableName, DefinitionEmbeddings] | None = None,
) -> dict[TableName, DefinitionEmbeddings]:
    """The embeddings, with their maps, of each table of a model: those at hand, from the cache, or built."""
    found: dict[TableName, DefinitionEmbeddings] = {}
    for table in tables_of(model):
        if ready and table in ready:
            found[table] = ready[table]
            vocabulary = read_vocabulary(plan.before, len(embedding_weight(model, table)))
            found[table].check_tokenizer(vocabulary)
        else:
            found[table] = build_keeping_constructor(model, plan.before, dictionary, replace(config, table=table))
    return found


def write_new_tokens(
    model: PreTrainedModel,
    plan: TokenPlan,
    embeddings: Mapping[TableName, DefinitionEmbeddings],
    dictionary: Lexicon,
    config: DefinitionEMBConfig,
) -> RebuildReport:
    """Let a model's tables grow by the tokens of a plan, and write their rows.

    Args:
        model: see `define_new_tokens`.
        plan: from `plan_new_tokens`; whether the tokenizer is extended already makes no difference.
        embeddings: from `new_token_embeddings`.
        dictionary: from which they were built.
        config: settings.
    """
    check_model(model)
    terms = [token.term for token in plan.tokens]
    size = max([len(embedding_weight(model)), *(index + 1 for token in plan.tokens for index in token.ids)])
    made: dict[TableName, TermRows] = {}
    for table, built in embeddings.items():
        settings = replace(config, table=table)
        rows = rows_from_definitions(model, plan.before, terms, built, settings, dictionary)
        splits = split_without_itself(plan.before, built.ids)
        found = made[table] = term_rows(read_table(model, table).cpu(), plan.tokens, rows, splits, built, settings)
        weight = embedding_weight(model, table)
        check_rows(found.ids, found.rows.to(weight.dtype), size=size, width=weight.shape[1])
    groups = frequency_groups(expected_rank(read_vocabulary(plan.after, size), config), config.group_edges)
    # Of the same groups, as far as they have rows yet.
    earlier = {name: members[members < len(embedding_weight(model))] for name, members in groups.items()}
    pairs = embeddings[INPUT].pairs
    before = TableMeasure(earlier, pairs=pairs).measure(read_table(model))
    new = torch.tensor([index for token in plan.tokens if token.is_new for index in token.ids], dtype=torch.int64)
    with grown(model, size, made[INPUT].ids):
        for table, found in made.items():
            write_rows(model, found.ids, found.rows, table)
        write_bias(model, new, earlier[config.new_token_group])
        after = TableMeasure(groups, pairs=pairs).measure(read_table(model))
        report = _report(plan, made, groups, embeddings[INPUT].info, before, after)
        added = {term.text: term_fingerprint(term, config) for term in plan.terms}
        write_new_tokens_record(model, {**(read_new_tokens_record(model) or {}), **added})
    return report


def term_fingerprint(term: Term, config: DefinitionEMBConfig) -> str:
    """Short hex string of a term, its definitions and the settings, by which a model knows that it has its row."""
    read = json.dumps([(definition.gloss, definition.synonyms) for definition in term.definitions])
    return fingerprint(term.text, read, config.build_fingerprint, config.new_token_group)[:8]


def _report(
    plan: TokenPlan,
    made: Mapping[TableName, TermRows],
    groups: Mapping[str, Tensor],
    info: dict[str, Any],
    before: dict[str, float],
    after: dict[str, float],
) -> RebuildReport:
    rows = made[INPUT]
    weights = rows.weights.tolist()
    weight_of_token = {index: weight for token, weight in zip(plan.tokens, weights, strict=True) for index in token.ids}

    def summary(members: Tensor) -> GroupSummary:
        written = members[torch.isin(members, rows.ids)].tolist()
        weight = sum(weight_of_token[index] for index in written) / max(len(written), 1)
        return GroupSummary(tokens=len(members), defined=len(written), rebuilt=len(written), weight=weight)

    mixtures = {table: asdict(found.mixture) for table, found in made.items() if found.mixture is not None}
    return RebuildReport(
        groups={name: summary(members) for name, members in groups.items()},
        skipped=plan.refused,
        before=before,
        after=after,
        info=info | {"new_tokens": mixtures},
        terms=tuple(_summary(token, weight, plan) for token, weight in zip(plan.tokens, weights, strict=True)),
    )


def _summary(token: TermToken, weight: float, plan: TokenPlan) -> TermSummary:
    return TermSummary(
        term=token.term.text,
        tokens={str(plan.after.convert_ids_to_tokens(index)): index for index in token.ids},
        is_new=token.is_new,
        definitions=len(token.term.definitions),
        pieces=tuple(map(str, plan.before.convert_ids_to_tokens(list(token.pieces)))),
        weight=weight,
    )
