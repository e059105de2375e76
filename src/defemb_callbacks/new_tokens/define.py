"""Define new tokens: plan the tokens, predict their rows, grow the model, write the rows, extend the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Lexicon, load_definitions
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.rows_to_write import mean_row
from defemb_callbacks.metrics import TableMeasure
from defemb_callbacks.new_tokens.definition_rows import build_keeping_constructor
from defemb_callbacks.new_tokens.distillation import check_distillation
from defemb_callbacks.new_tokens.growth import check_model, resized, write_bias
from defemb_callbacks.new_tokens.nearest import nearest_tokens
from defemb_callbacks.new_tokens.output_calibration import text_loss
from defemb_callbacks.new_tokens.table_rows import other_texts, rows_of_tables
from defemb_callbacks.new_tokens.term_options import TermOptions
from defemb_callbacks.new_tokens.term_rows import expected_rank
from defemb_callbacks.new_tokens.term_summary import new_tokens_report
from defemb_callbacks.new_tokens.term_texts import with_texts
from defemb_callbacks.new_tokens.terms import Term, TermSource, read_terms
from defemb_callbacks.new_tokens.token_plan import TokenPlan, plan_tokens
from defemb_callbacks.reporting.summary import RebuildReport
from defemb_callbacks.vocabulary.frequency import frequency_groups
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.config_record import (
    read_new_tokens_record,
    write_new_token_ids,
    write_new_tokens_record,
)
from defemb_callbacks.weights.rows import (
    INPUT,
    TableName,
    check_rows,
    embedding_weight,
    tables_of,
    whole_table,
    write_rows,
)


def define_new_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    terms: TermSource,
    definitions: Any = "wordnet",
    config: DefinitionEMBConfig | None = None,
    *,
    texts: Iterable[str] = (),
) -> RebuildReport:
    """Add terms to a tokenizer, and initialize their embeddings from their definitions.

    A map from definitions to rows is fitted on the words of the vocabulary (by `build_definition_embeddings`, with the
    same cache) and applied to the definitions of the terms. A new row mixes this prediction with the mean of the term's
    sub-tokens; the weight is the one that works best for words of the vocabulary, treated as new. Rows get the median
    length of `config.new_token_group`, in every table of the model; an untied output table has its own map.

    In the output table of a causal language model, also a tied one, rows are shorter, and calibrated so that the new
    tokens are as likely on average as frequent words; the report shows what they cost text without the terms. With
    `config.distil`, its input rows are also trained, on the definitions, until the model reads the new tokens as it
    reads their sub-tokens.

    Special terms, `{"<|svg|>": {"definition": "starts a drawing", "special": True}}`, become special tokens. Their rows
    come from the definition alone, also if the token exists. With `config.reuse_reserved`, reserved tokens of the
    tokenizer, such as `<unused12>`, are renamed into new tokens, so that the tables need not grow.

    A row may also be made from other rows: `{"like": "draw"}` copies a row, and `{"like": {"draw": 2, "line": 1}}`
    averages several; with a definition, the two have equal shares. `{"pieces": ["hydroxy", "chloro"]}` replaces the
    sub-tokens. The report shows the nearest words of each new row.

    Texts that use a term, `{"texts": ["A lynx hunts at night."]}` or found in `texts`, are used to train its input row
    further (token distillation), until the model reads the text around the term as it does with the sub-tokens. In a
    causal language model, the output row is also fitted to the probability of the whole word in these texts. An encoder
    may read a row of definitions better than the sub-tokens: compare the two on your task before you pass texts. The
    step is short and deterministic, and its result is saved with the model, so that there is nothing to resume.

    A term that is already a token is rebuilt with `config.strategy`. A term without a definition is looked up in
    `definitions`; if it is not found, its row is the mean of its sub-tokens. Terms that cannot become tokens are
    reported with the reason. If a step fails, model and tokenizer are left unchanged.

    Args:
        model: Any model that is not wrapped, sharded or adapted yet. Its tables grow.
        tokenizer: The model's tokenizer, to which the terms are added; see `plan_tokens`.
        terms: `{term: definition, or a list of them, or None}`, a list of terms, a `Lexicon`, or a glossary file. A
            definition may be `{"definition": …, "synonyms": […]}`, in which synonyms are encoded with the definition,
            and have the options `special`, `like`, `pieces` and `texts`.
        definitions: The dictionary to fit on; any source that `load_definitions` accepts.
        config: Settings; defaults if `None`.
        texts: Texts to search for the terms, such as a column of the training data, read once. Each term is trained on
            at most `config.texts_per_term` passages.

    Returns:
        The tokens and the composition of each term, and the metrics of the input table before and after.

    Raises:
        ValueError: If a definition or an option is invalid; a term is empty, repeated, a special token or contains
            control characters; no token can be renamed; a term does not occur in its texts; or the model does not fit
            the tokenizer, is wrapped, read-only or has adapters.
        TypeError: If a table is quantized, so that it cannot be written, or `texts` contains other objects.

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
    plan = plan_new_tokens(tokenizer, terms, dictionary, config, texts)
    embeddings = new_token_embeddings(model, plan, dictionary, config)
    report = write_new_tokens(model, plan, embeddings, dictionary, config)
    plan.extend(tokenizer)
    return report


def plan_new_tokens(
    tokenizer: PreTrainedTokenizerBase,
    terms: TermSource,
    dictionary: Lexicon,
    config: DefinitionEMBConfig,
    texts: Iterable[str] = (),
) -> TokenPlan:
    """Plan the tokens that `define_new_tokens` adds to a tokenizer.

    Args:
        tokenizer: The tokenizer; not changed.
        terms: See `define_new_tokens`.
        dictionary: The dictionary for terms without a definition.
        config: Settings.
        texts: Texts to search for the terms.

    Raises:
        ValueError: If a term or a definition is invalid; see `read_terms`, `plan_tokens` and `with_texts`.
        TypeError: If the terms or texts have another type; see `read_terms` and `with_texts`.
    """
    uncased = read_vocabulary(tokenizer).uncased
    # The default depends on the model, which may not exist yet: `rows_from_definitions` reads no more than that.
    most = config.definitions_per_token or 8
    defined = read_terms(terms, dictionary, ignore_case=uncased, max_definitions=most)
    defined = with_texts(defined, texts, most=config.texts_per_term, ignore_case=uncased)
    return plan_tokens(tokenizer, defined, dictionary.words, reuse_reserved=config.reuse_reserved)


def new_token_embeddings(
    model: PreTrainedModel,
    plan: TokenPlan,
    dictionary: Lexicon,
    config: DefinitionEMBConfig,
    ready: Mapping[TableName, DefinitionEmbeddings] | None = None,
) -> dict[TableName, DefinitionEmbeddings]:
    """Return the definition embeddings of each table of a model: those given, from the cache, or built.

    Args:
        model: The model.
        plan: From `plan_new_tokens`.
        dictionary: The dictionary to fit on.
        config: Settings.
        ready: Embeddings that were built before, by table.

    Raises:
        ValueError: If the given embeddings were built for another tokenizer, or terms have texts that the model cannot
            be trained on.
    """
    if any(token.term.options.texts for token in plan.tokens):
        check_distillation(model)
    embeddings: dict[TableName, DefinitionEmbeddings] = {}
    for table in tables_of(model):
        if ready and table in ready:
            embeddings[table] = ready[table]
            vocabulary = read_vocabulary(plan.before, len(embedding_weight(model, table)))
            embeddings[table].check_tokenizer(vocabulary)
        else:
            embeddings[table] = build_keeping_constructor(model, plan.before, dictionary, replace(config, table=table))
    return embeddings


def write_new_tokens(
    model: PreTrainedModel,
    plan: TokenPlan,
    embeddings: Mapping[TableName, DefinitionEmbeddings],
    dictionary: Lexicon,
    config: DefinitionEMBConfig,
) -> RebuildReport:
    """Grow a model's tables by the tokens of a plan, and write their rows.

    Args:
        model: See `define_new_tokens`.
        plan: From `plan_new_tokens`. The tokenizer may or may not be extended already.
        embeddings: From `new_token_embeddings`.
        dictionary: The dictionary that they were built from.
        config: Settings.

    Returns:
        The report of `define_new_tokens`.
    """
    check_model(model)
    size = max([len(embedding_weight(model)), *(index + 1 for token in plan.tokens for index in token.ids)])
    rows_of = rows_of_tables(model, plan, embeddings, dictionary, config)
    for table, found in rows_of.items():
        weight = embedding_weight(model, table)
        check_rows(found.ids, found.rows.to(weight.dtype), size=size, width=weight.shape[1])
    texts = other_texts(model, plan, embeddings)
    vocabulary = read_vocabulary(plan.after, size)
    groups = frequency_groups(expected_rank(vocabulary, config), config.group_edges)
    new = torch.tensor([index for token in plan.tokens if token.is_new for index in token.ids], dtype=torch.int64)
    untrained = [index for token in plan.tokens if token.is_new or token.term.special for index in token.ids]
    # The same groups without the new tokens, which have no rows yet.
    old_groups = {name: members[~torch.isin(members, new)] for name, members in groups.items()}
    pairs = embeddings[INPUT].pairs
    before = TableMeasure(old_groups, pairs=pairs).measure(whole_table(model))
    loss_before = text_loss(model, texts)
    with resized(model, size, rows_of[INPUT].ids):
        for table, rows in rows_of.items():
            write_rows(model, rows.ids, rows.rows, table)
        write_bias(model, torch.tensor(untrained, dtype=torch.int64), old_groups[config.new_token_group])
        after = TableMeasure(groups, pairs=pairs).measure(whole_table(model))
        info = embeddings[INPUT].info | ({"renamed_tokens": plan.renamed} if plan.renamed else {})
        if texts:
            losses = {"loss_before": loss_before, "loss_after": text_loss(model, texts)}
            info["other_text"] = {"texts": len(texts), **losses}
        rebuilt = whole_table(model)
        centre = mean_row(rebuilt, groups["all"])
        nearest = nearest_tokens(rebuilt, [token.ids for token in plan.tokens], vocabulary.word_ids, centre)
        words = [[str(vocabulary.words[index]) for index in ids] for ids in nearest]
        report = new_tokens_report(plan, rows_of, groups, info, before, after, words)
        added = {term.text: term_fingerprint(term, config) for term in plan.terms}
        write_new_tokens_record(model, {**(read_new_tokens_record(model) or {}), **added})
        write_new_token_ids(model, untrained)
    return report


def term_fingerprint(term: Term, config: DefinitionEMBConfig) -> str:
    """Return a short hex string of a term, its definitions and the settings; a model records it for each row.

    Args:
        term: The term.
        config: Settings.
    """
    read = json.dumps([(definition.gloss, definition.synonyms) for definition in term.definitions])
    if term.options != TermOptions():
        read += json.dumps(asdict(term.options))
    return fingerprint(term.text, read, config.build_fingerprint, config.new_token_group, str(config.distil))[:8]
