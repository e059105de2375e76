"""What makes rows of the definitions of words that are no tokens: the map of the closed form, or a trained model."""

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
from defemb_callbacks.reconstruction import definition_texts, held_out_words, mapped, read_definitions, word_features
from defemb_callbacks.weights.distributed import this_process


def build_keeping_constructor(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: Lexicon, config: DefinitionEMBConfig
) -> DefinitionEmbeddings:
    """`build_definition_embeddings`; a constructor that is trained for it is kept, to read other words too."""
    if config.method == "learned":
        where = constructor_folder(model, tokenizer, dictionary, config)
        constructor = {**config.constructor_config.to_dict(), "save_to": str(where)}
        config = replace(config, constructor=constructor)
    return build_definition_embeddings(model, tokenizer, dictionary, config)


def constructor_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: Lexicon, config: DefinitionEMBConfig
) -> Path:
    """Where a trained constructor is kept: below `constructor={"save_to": …}`, else in the cache.

    Its name is made of all that the constructor depends on, so that none is taken for another.
    """
    key = fingerprint(
        fingerprint_weights(model, config.table),
        fingerprint_tokenizer(tokenizer),
        dictionary.fingerprint,
        config.build_fingerprint,
        *learning_conditions(model, config, this_process().num_processes),
    )
    chosen = config.constructor_config.save_to
    if chosen is not None:
        return Path(chosen) / key
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
    """What the definitions of each term give, (n, d) float32; zeros for a term without any.

    Args:
        model: that the embeddings were built for, as it was then.
        tokenizer: without the terms.
        terms: any.
        embeddings: of the table in question, from `build_keeping_constructor`.
        config: with which they were built, the table included.
        dictionary: from which they were built.

    Raises:
        ValueError: the embeddings have neither a map nor a constructor that was kept.
    """
    rows = torch.zeros(len(terms), embeddings.rows.shape[1])
    defined = [position for position, term in enumerate(terms) if term.definitions]
    if not defined:
        return rows
    words = [terms[position].text for position in defined]
    definitions = [terms[position].definitions for position in defined]
    max_length = min(config.max_length, tokenizer.model_max_length)
    batch_size = config.batch_size
    if embeddings.info.get("method") == "learned":
        folder = constructor_folder(model, tokenizer, dictionary, config)
        settings: dict[str, Any] = {"max_length": max_length, "batch_size": batch_size, "table": config.table}
        rows[defined] = read_definitions(model, tokenizer, folder, words, definitions, **settings)
        return rows
    if embeddings.feature_map is None:
        raise ValueError("These embeddings have no map for new words: an earlier version built them. Build them anew.")
    texts = definition_texts(words, definitions, tokenizer, max_length)
    features = word_features(
        model, tokenizer, texts, embeddings.info["features"], batch_size=batch_size, precision=config.precision
    )
    rows[defined] = mapped(features, embeddings.feature_map)
    return rows


def comparable_words(embeddings: DefinitionEmbeddings, config: DefinitionEMBConfig) -> Tensor:
    """Which words' vectors were made without their own rows, as those of new words are: (n,) bool.

    All of the closed form's, as it is cross-fitted; of a constructor's those that were held out.
    """
    if embeddings.info.get("method") == "learned":
        return held_out_words(len(embeddings.ids), config.constructor_config.held_out)
    return torch.ones(len(embeddings.ids), dtype=torch.bool)
