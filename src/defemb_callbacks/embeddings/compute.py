"""Compute the rows of a model's tokens from their definitions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Definition, Lexicon
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.metrics.pairs import related_tokens
from defemb_callbacks.progress import show_status
from defemb_callbacks.reconstruction import (
    DefinitionReader,
    definition_texts,
    learned_rows,
    own_bag,
    prompt_style,
    word_features,
)
from defemb_callbacks.reconstruction.distinct import check_distinct
from defemb_callbacks.reconstruction.feature_choice import best_rows, names_to_compute
from defemb_callbacks.reconstruction.model_settings import feature_widths
from defemb_callbacks.reconstruction.prompts import mask_text
from defemb_callbacks.reconstruction.ridge import RidgeRows
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens, lemma_groups, single_words, why_none_is_defined
from defemb_callbacks.vocabulary.tokens import Vocabulary
from defemb_callbacks.weights.distributed import on_main_process
from defemb_callbacks.weights.rows import embedding_layer, embedding_weight, read_rows
from defemb_callbacks.weights.sharding import awaits_main_process, gathered, is_sharded

logger = logging.getLogger(__name__)

OWN = "own bag"  # the bag of the model's own embeddings, beside the features of another reader
PROBE_TEXTS = 256  # definitions on which the predictions of a language model are measured


def compute_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lexicon: Lexicon,
    vocabulary: Vocabulary,
    config: DefinitionEMBConfig,
    *,
    training: Path,
    readers: list[int],
    candidates: list[list[str]],
) -> DefinitionEmbeddings:
    """Compute embeddings without looking into the cache; all processes of a launch must call this function.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        lexicon: The dictionary.
        vocabulary: The model's vocabulary.
        config: Settings from `resolve_settings`.
        training: Folder for checkpoints of the learned constructor.
        readers: Indices of the processes whose model has the main process's weights.
        candidates: Sets of features, of which the one that predicts left-out rows best is used.

    Raises:
        ValueError: If no token has a definition, or if a part of the model is not in memory.
    """
    assert config.definitions_per_token is not None
    found = definitions_of_tokens(vocabulary, lexicon, config.definitions_per_token)
    if not found:
        raise ValueError(why_none_is_defined(vocabulary, lexicon))
    _check_readable(model, config)
    ids = torch.tensor(list(found))
    words, definitions = [vocabulary.words[index] or vocabulary.tokens[index] for index in found], list(found.values())
    if config.method == "learned":
        rows, details = _rows_of_constructor(model, tokenizer, lexicon, ids, words, definitions, config, training)
        feature_map = None
    else:
        fitted, details = _rows_of_ridge(
            model, tokenizer, lexicon, ids, words, definitions, config, readers, candidates
        )
        rows, feature_map = fitted.rows, fitted.weights
    mask = mask_text(tokenizer)
    info = {
        "model": model.name_or_path,
        "method": config.method,
        "table": config.table,
        "definitions": lexicon.name,
        "definitions_per_token": config.definitions_per_token,
        "definitions_read": sum(map(len, definitions)),
        "mask_token_id": tokenizer.convert_tokens_to_ids(mask) if mask else None,
        **details,
    }
    pairs, probes = related_tokens(vocabulary, lexicon), probe_texts(words, definitions, tokenizer)
    return DefinitionEmbeddings(ids, rows, vocabulary, pairs, info, feature_map, probes)


def _rows_of_constructor(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lexicon: Lexicon,
    ids: Tensor,
    words: list[str],
    definitions: list[list[Definition]],
    config: DefinitionEMBConfig,
    training: Path,
) -> tuple[Tensor, dict[str, Any]]:
    show_status(
        f"Training a constructor of token embeddings for {_name(model)} on the definitions of {len(words):,} tokens in "
        f"{lexicon.name}. The result is kept for the next run."
    )
    max_length, most = min(config.max_length, tokenizer.model_max_length), config.definitions_per_token or 1
    learned = learned_rows(
        model,
        tokenizer,
        ids,
        list(zip(words, definitions, strict=True)),
        training,
        more=lambda: single_words(lexicon, most),
        max_length=max_length,
        precision=config.precision,
        batch_size=config.batch_size,
        settings=config.constructor_config,
        table=config.table,
    )
    texts = lambda: definition_texts(words, definitions, tokenizer, max_length)  # noqa: E731
    check_distinct(learned.rows, texts, "Use `method='ridge'`.")
    return learned.rows, {**learned.info, "constructor": config.constructor_config.to_dict()}


def _rows_of_ridge(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lexicon: Lexicon,
    ids: Tensor,
    words: list[str],
    definitions: list[list[Definition]],
    config: DefinitionEMBConfig,
    readers: list[int],
    candidates: list[list[str]],
) -> tuple[RidgeRows, dict[str, Any]]:
    reader = DefinitionReader.chosen(config.reader, model, tokenizer)
    style = prompt_style(reader.model)
    max_length = min(config.max_length, reader.tokenizer.model_max_length)
    texts = definition_texts(words, definitions, reader.tokenizer, max_length, style)
    show_status(
        f"Rebuilding the token embeddings of {_name(model)} from {lexicon.name}: {len(texts.input_ids):,} definitions "
        f"of {len(words):,} tokens are encoded. The result is kept for the next run."
    )
    options: dict[str, Any] = {"batch_size": config.batch_size, "readers": readers}
    names, widths = names_to_compute(candidates), feature_widths(reader.model)
    with gathered(model if config.reader is None else embedding_layer(model)):
        features = word_features(reader.model, reader.tokenizer, texts, names, precision=config.precision, **options)
        if config.reader is not None:
            own = own_bag(model, tokenizer, words, definitions, config.max_length, **options)
            features = torch.cat([features, own], dim=1)
            names, candidates = [*names, OWN], [[*candidate, OWN] for candidate in candidates]
            widths |= {OWN: own.shape[1]}
    check_distinct(features, lambda: texts, "Use other `features`, or let another encoder read with `reader`.")
    targets, groups = read_rows(model, ids, config.table), lemma_groups(definitions)
    fitted = on_main_process(
        lambda: best_rows(features, names, candidates, widths, targets, groups=groups, device=model.device)
    )
    details = {
        "features": [name for name in fitted.features if name != OWN],
        "prompt": style,
        "ridge_strength": fitted.strength,
        "r_squared": fitted.r_squared,
        "texts_encoded": len(texts.input_ids),
        "tokens_encoded": texts.tokens,
    }
    return fitted, details | ({} if config.reader is None else {"reader": config.to_dict()["reader"]})


def _name(model: PreTrainedModel) -> str:
    return model.name_or_path or type(model).__name__


def probe_texts(
    words: Sequence[str], definitions: Sequence[Sequence[Definition]], tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[int, ...], ...]:
    """Definitions as running text for `LanguageModelProbe`, about 4,000 tokens, evenly spaced over the vocabulary.

    Args:
        words: The words that have definitions.
        definitions: The definitions of each word.
        tokenizer: The model's tokenizer.
    """
    step = max(1, len(words) // PROBE_TEXTS)
    texts = [f"{word}: {found[0].gloss}." for word, found in list(zip(words, definitions, strict=True))[::step]]
    encoded = tokenizer(texts[:PROBE_TEXTS], truncation=True, max_length=min(64, tokenizer.model_max_length))
    return tuple(tuple(ids) for ids in encoded["input_ids"] if len(ids) > 2)


def _check_readable(model: PreTrainedModel, config: DefinitionEMBConfig) -> None:
    """Raise on all processes if one of them holds only a part of the model, or of a constructor, in memory."""
    tables = [embedding_weight(model), embedding_weight(model, config.table)]
    weights, problem = list(model.parameters()) if config.reader is None else tables, None
    if any(isinstance(weight, DTensor) for weight in weights):
        problem = "sharded over processes (FSDP2 or tensor parallelism)"
    elif any(weight.is_meta and not awaits_main_process(weight) for weight in weights):
        problem = "offloaded, so it is not in memory"
    elif config.method == "learned" and any(is_sharded(weight) or weight.is_meta for weight in weights):
        problem = "sharded over processes, but `method='learned'` copies the whole model"
    if found := next(filter(None, gather_object([problem])), None):
        raise ValueError(
            f"Definitions cannot be read with this model: it is {found}. Build the embeddings from the whole model "
            "first, with `defemb build MODEL --output DIR`, and pass `embeddings=DIR`."
        )
