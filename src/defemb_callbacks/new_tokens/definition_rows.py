"""Rows for words outside the vocabulary, from their definitions: by the ridge map, or by a trained constructor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.cache import cache_root, fingerprint
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Lexicon
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.build import build_definition_embeddings
from defemb_callbacks.embeddings.fingerprints import fingerprint_tokenizer, fingerprint_weights, learning_conditions
from defemb_callbacks.new_tokens.terms import Term
from defemb_callbacks.reconstruction import (
    DefinitionReader,
    definition_texts,
    held_out_words,
    mapped,
    own_bag,
    read_definitions,
    resolve_settings,
    word_features,
)
from defemb_callbacks.weights.distributed import this_process


def build_keeping_constructor(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: Lexicon, config: DefinitionEMBConfig
) -> DefinitionEmbeddings:
    """Build definition embeddings as `build_definition_embeddings` does, and keep the constructor if one is trained.

    Args:
        model: The model.
        tokenizer: The model's tokenizer.
        dictionary: The dictionary to fit on.
        config: Settings.
    """
    if config.method == "learned":
        folder = constructor_folder(model, tokenizer, dictionary, config)
        constructor = {**config.constructor_config.to_dict(), "save_to": str(folder)}
        config = replace(config, constructor=constructor)
    return build_definition_embeddings(model, tokenizer, dictionary, config)


def constructor_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: Lexicon, config: DefinitionEMBConfig
) -> Path:
    """Return the folder of a trained constructor: in `constructor={"save_to": …}` if that is set, else in the cache.

    Its name is a fingerprint of all that the constructor depends on.

    Args:
        model: The model that was copied.
        tokenizer: The model's tokenizer.
        dictionary: The dictionary that the constructor was trained on.
        config: Settings.
    """
    config = resolve_settings(config, model)
    key = fingerprint(
        fingerprint_weights(model, config.table),
        fingerprint_tokenizer(tokenizer),
        dictionary.fingerprint,
        config.build_fingerprint,
        *learning_conditions(model, config, this_process().num_processes),
    )
    save_to = config.constructor_config.save_to
    if save_to is not None:
        return Path(save_to) / key
    root = Path(config.cache_dir).expanduser() if config.cache_dir else cache_root()
    return root / "constructors" / f"{key}-kept"


def rows_from_definitions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    terms: Sequence[Term],
    embeddings: DefinitionEmbeddings,
    config: DefinitionEMBConfig,
    dictionary: Lexicon,
) -> Tensor:
    """Predict the row of each term from its definitions, (n, d) float32; zeros for a term without definitions.

    Args:
        model: The model that the embeddings were built for, unchanged.
        tokenizer: The tokenizer without the terms.
        terms: The terms.
        embeddings: Embeddings of the table to predict, from `build_keeping_constructor`.
        config: The settings, including the table, that they were built with.
        dictionary: The dictionary that they were built from.

    Raises:
        ValueError: If the embeddings have no feature map.
        FileNotFoundError: If they are learned and their constructor was not kept.
    """
    rows = torch.zeros(len(terms), embeddings.rows.shape[1])
    config = resolve_settings(config, model)
    most = config.definitions_per_token or 0
    best = [[definition for definition in term.definitions if definition.rank <= most] for term in terms]
    defined = [position for position, found in enumerate(best) if found]
    if not defined:
        return rows
    words = [terms[position].text for position in defined]
    definitions = [best[position] for position in defined]
    max_length = min(config.max_length, tokenizer.model_max_length)
    batch_size = config.batch_size
    if embeddings.info.get("method") == "learned":
        folder = constructor_folder(model, tokenizer, dictionary, config)
        settings: dict[str, Any] = {"max_length": max_length, "batch_size": batch_size, "table": config.table}
        rows[defined] = read_definitions(model, tokenizer, folder, words, definitions, **settings)
        return rows
    if embeddings.feature_map is None:
        raise ValueError("These embeddings have no map for new words: an older version built them. Build them again.")
    # Earlier versions read all models with the prompt of the mask.
    style = embeddings.info.get("prompt", "mask")
    reader = DefinitionReader.chosen(config.reader, model, tokenizer)
    most_tokens = min(config.max_length, reader.tokenizer.model_max_length)
    texts = definition_texts(words, definitions, reader.tokenizer, most_tokens, style)
    names, precision = embeddings.info["features"], config.precision
    features = word_features(reader.model, reader.tokenizer, texts, names, batch_size=batch_size, precision=precision)
    if config.reader is not None:
        own = own_bag(model, tokenizer, words, definitions, config.max_length, batch_size=batch_size)
        features = torch.cat([features, own], dim=1)
    rows[defined] = mapped(features, embeddings.feature_map)
    return rows


def out_of_sample(embeddings: DefinitionEmbeddings, config: DefinitionEMBConfig) -> Tensor:
    """Mark the words whose rows were predicted without seeing their pretrained rows, as for new words: (n,) bool.

    These are all words for ridge, which is cross-fitted, and the held-out words for a learned constructor.

    Args:
        embeddings: The embeddings.
        config: The settings that they were built with.
    """
    if embeddings.info.get("method") == "learned":
        return held_out_words(len(embeddings.ids), config.constructor_config.held_out)
    return torch.ones(len(embeddings.ids), dtype=torch.bool)
