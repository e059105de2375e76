"""From a model, its tokenizer and a dictionary to definition embeddings."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.cache import cache_root, cached, fingerprint, verify_manifest
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Lexicon, load_definitions
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.fingerprints import fingerprint_tokenizer, fingerprint_weights, learning_conditions
from defemb_callbacks.metrics.pairs import related_tokens
from defemb_callbacks.reconstruction import cross_fitted_rows, definition_texts, learned_rows, word_features
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens, single_words
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.adapters import adapters_off
from defemb_callbacks.weights.distributed import main_process_first, on_main_process, this_process
from defemb_callbacks.weights.rows import read_table, table_shape, transformers_model
from defemb_callbacks.weights.sharding import awaits_main_process, gathered, is_sharded

logger = logging.getLogger(__name__)

# Part of every cache key; to be raised when the same input comes to give other rows.
BUILD_VERSION = "5"


def build_definition_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    definitions: Any = "wordnet",
    config: DefinitionEMBConfig | None = None,
) -> DefinitionEmbeddings:
    """Reconstruct the embeddings of a model's tokens from their definitions.

    With `method="ridge"` the frozen model reads each definition once, and a linear map from what it reads to its
    pretrained embeddings is solved in closed form. Each token's vector comes from a map that has not seen that token's
    embedding. With `method="learned"` a copy of the model is trained to do this (see `learned_rows`). The model is not
    changed. The result is kept on disk, under a key made of weights, tokenizer, dictionary and settings.

    Under `accelerate launch` or `torchrun` every process calls this, and gets the same rows: definitions are read, or a
    constructor is trained, by all processes together, and the main one keeps the result.

    Args:
        model: any Hugging Face model; its task head and PEFT's adapters play no part. What ZeRO-3 has sharded is
            gathered while definitions are read.
        tokenizer: the model's own.
        definitions: all that `load_definitions` takes.
        config: settings of the build; those of the writing play no part.

    Returns:
        Vectors for the tokens that have definitions.

    Raises:
        FileNotFoundError: no WordNet, or no such dictionary file.
        ValueError: no token of the vocabulary is in the dictionary, tokenizer and model do not fit, or the model is
            sharded by FSDP2 already, or offloaded.
        TypeError: a model without a floating-point embedding table.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
        >>> words = "[UNK] cat dog a small large animal that purrs barks".split()
        >>> backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = BertModel(BertConfig(vocab_size=len(words), **sizes))
        >>> glossary = {"cat": "a small animal that purrs", "dog": "a large animal that barks"}
        >>> build_definition_embeddings(model, tokenizer, glossary)
        DefinitionEmbeddings(2 of 10 tokens, width 8)
    """
    config = config or DefinitionEMBConfig()
    outer = transformers_model(model)
    # PEFT's adapters play no part: the pretrained model is what knows the words.
    inner: PreTrainedModel = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
    lexicon = main_process_first(lambda: load_definitions(definitions))
    vocabulary = read_vocabulary(tokenizer, table_shape(inner, config.table)[0])
    with adapters_off(outer):
        return _kept_or_built(inner, tokenizer, lexicon, vocabulary, config)


def _kept_or_built(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lexicon: Lexicon,
    vocabulary: Vocabulary,
    config: DefinitionEMBConfig,
) -> DefinitionEmbeddings:
    process = this_process()
    learned = config.method == "learned"
    weights = gather_object([fingerprint_weights(model, config.table)])
    # Elsewhere they may not be there yet, or be others, until the main process shares its own out.
    readers = [number for number, found in enumerate(weights) if found == weights[0]]
    key = fingerprint(
        BUILD_VERSION,
        weights[0],
        vocabulary.fingerprint,
        fingerprint_tokenizer(tokenizer),
        lexicon.fingerprint,
        *lexicon.sources,
        config.build_fingerprint,
        *(learning_conditions(model, config, process.num_processes) if learned else []),
    )
    root = Path(config.cache_dir).expanduser() if config.cache_dir else cache_root()
    folder = root / "embeddings" / key
    training = root / "constructors" / key

    def build() -> DefinitionEmbeddings:
        return _build(model, tokenizer, lexicon, vocabulary, config, training, readers)

    def kept(build: Callable[[], DefinitionEmbeddings]) -> DefinitionEmbeddings:
        return cached(folder, build, DefinitionEmbeddings.save_pretrained, DefinitionEmbeddings.from_pretrained)

    save_to = config.constructor_config.save_to if learned else None
    saved = save_to is None or any(Path(save_to).glob("*.safetensors"))  # else what is kept is not all that is wanted
    if saved and process.num_processes == 1:
        embeddings = kept(build)
    else:
        # All processes build together, so none may wait at the cache's lock for another one.
        found = on_main_process(lambda: _kept_before(folder) if saved else None)
        embeddings = build() if found is None else found
        if found is None and process.is_main_process:
            kept(lambda: embeddings)
    if learned and process.is_local_main_process:
        # Checkpoints have served; whatever cannot be deleted costs nothing but space.
        shutil.rmtree(training, ignore_errors=True)
    return embeddings


def _kept_before(folder: Path) -> DefinitionEmbeddings | None:
    if verify_manifest(folder) is not None:
        return None
    try:
        return DefinitionEmbeddings.from_pretrained(folder)
    except ValueError:  # of another format; `cached` will say so
        return None


def _build(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lexicon: Lexicon,
    vocabulary: Vocabulary,
    config: DefinitionEMBConfig,
    folder: Path,
    readers: list[int],
) -> DefinitionEmbeddings:
    found = definitions_of_tokens(vocabulary, lexicon, config.definitions_per_token)
    if not found:
        raise ValueError(
            f"None of the {len(vocabulary):,} tokens has a definition in {lexicon.name} ({len(lexicon):,} words). "
            "Is it a dictionary of the tokenizer's language, with one word an entry?"
        )
    ids = torch.tensor(list(found))
    words = [vocabulary.words[index] or vocabulary.tokens[index] for index in found]
    max_length = min(config.max_length, tokenizer.model_max_length)
    _check_readable(model, config)
    feature_map = None
    if config.method == "learned":
        learned = learned_rows(
            model,
            tokenizer,
            ids,
            list(zip(words, found.values(), strict=True)),
            folder,
            more=lambda: single_words(lexicon, config.definitions_per_token),
            max_length=max_length,
            precision=config.precision,
            batch_size=config.batch_size,
            settings=config.constructor_config,
            table=config.table,
        )
        rows, details = learned.rows, {**learned.info, "constructor": config.constructor_config.to_dict()}
    else:
        texts = definition_texts(words, list(found.values()), tokenizer, max_length)
        logger.info("Encoding %d definitions of %d tokens.", len(texts.input_ids), len(words))
        with gathered(model):
            features = word_features(
                model,
                tokenizer,
                texts,
                config.features,
                batch_size=config.batch_size,
                precision=config.precision,
                readers=readers,
            )
        targets = read_table(model, config.table).cpu()[ids]
        fitted = on_main_process(lambda: cross_fitted_rows(features, targets))
        rows, feature_map = fitted.rows, fitted.weights
        details = {"features": config.features, "ridge_strength": fitted.strength, "r_squared": fitted.r_squared}
        details |= {"texts_encoded": len(texts.input_ids), "tokens_encoded": texts.tokens}
    info = {
        "model": model.name_or_path,
        "method": config.method,
        "table": config.table,
        "definitions": lexicon.name,
        "definitions_read": sum(map(len, found.values())),
        **details,
    }
    return DefinitionEmbeddings(ids, rows, vocabulary, related_tokens(vocabulary, lexicon), info, feature_map)


def _check_readable(model: PreTrainedModel, config: DefinitionEMBConfig) -> None:
    """Refuse, on all processes, to read definitions with a model whose parts they would have to exchange in step."""
    weights, where = list(model.parameters()), None
    if any(isinstance(weight, DTensor) for weight in weights):
        where = "sharded over processes (FSDP2 or tensor parallelism) already"
    elif any(weight.is_meta and not awaits_main_process(weight) for weight in weights):
        where = "offloaded, so that it is not in memory"
    elif config.method == "learned" and any(is_sharded(weight) or weight.is_meta for weight in weights):
        where = "sharded over processes, and a constructor is a copy of all of it"
    if found := next(filter(None, gather_object([where])), None):
        raise ValueError(
            f"Definitions cannot be read with this model: it is {found}. Build the embeddings from the whole model "
            "first, with `defemb build MODEL --output DIR`, and pass embeddings=DIR."
        )
