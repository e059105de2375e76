"""Build definition embeddings from a model, its tokenizer and a dictionary, and keep them in the cache."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.cache import cache_root, cached, fingerprint, verify_manifest
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Definition, Lexicon, load_definitions
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.fingerprints import (
    fingerprint_tables,
    fingerprint_tokenizer,
    fingerprint_weights,
    learning_conditions,
    reading_conditions,
)
from defemb_callbacks.metrics.pairs import related_tokens
from defemb_callbacks.progress import show_status
from defemb_callbacks.reconstruction import (
    DefinitionReader,
    cross_fitted_rows,
    definition_texts,
    learned_rows,
    own_bag,
    prompt_style,
    resolve_settings,
    word_features,
)
from defemb_callbacks.reconstruction.backbone import reading_of
from defemb_callbacks.reconstruction.distinct import check_distinct
from defemb_callbacks.reconstruction.prompts import mask_text
from defemb_callbacks.reconstruction.ridge import RidgeRows
from defemb_callbacks.vocabulary.lookup import (
    definitions_of_tokens,
    lemma_groups,
    single_words,
    why_none_is_defined,
)
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.adapters import adapters_off
from defemb_callbacks.weights.distributed import main_process_first, on_main_process, this_process
from defemb_callbacks.weights.rows import embedding_layer, embedding_weight, read_rows, table_shape, transformers_model
from defemb_callbacks.weights.sharding import awaits_main_process, gathered, is_sharded

logger = logging.getLogger(__name__)

PROBE_TEXTS = 256  # definitions on which the predictions of a language model are measured

# Part of every cache key. Increase it when the same input gives other rows than before.
BUILD_VERSION = "8"


def build_definition_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    definitions: Any = "wordnet",
    config: DefinitionEMBConfig | None = None,
) -> DefinitionEmbeddings:
    """Reconstruct the embeddings of a model's tokens from their definitions.

    With `method="ridge"` the frozen model encodes each definition once, and ridge regression from these features to the
    model's embeddings is solved in closed form. The map is cross-fitted: each token's row is predicted by a map that
    was fitted without this token and the other forms of its word. With `method="learned"` a copy of the model is
    trained instead (see `learned_rows`). The model is not changed. The result is cached on disk, keyed by weights,
    tokenizer, dictionary and settings.

    Under `accelerate launch` or `torchrun` every process must call this function and gets the same rows: the processes
    share the encoding or the training, and the main process writes the cache.

    Args:
        model: Any Hugging Face model. Its task head and PEFT adapters are ignored. Parameters sharded by ZeRO-3 are
            gathered while definitions are encoded.
        tokenizer: The model's tokenizer.
        definitions: Any source that `load_definitions` accepts.
        config: Settings of the build; settings of `DefinitionEmbeddings.apply` are ignored. With `reader`, another
            encoder reads the definitions.

    Returns:
        Embeddings of the tokens that have definitions.

    Raises:
        FileNotFoundError: If WordNet or the dictionary file is not found.
        ValueError: If no token of the vocabulary is in the dictionary, the tokenizer does not fit the model, the model
            is offloaded or sharded by FSDP2, or the settings need hidden states of text that it does not have.
        TypeError: If the model has no floating-point embedding table.

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
    outer = transformers_model(model)
    # Without PEFT's adapters: definitions are encoded by the pretrained model.
    inner: PreTrainedModel = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
    with gathered(inner):
        config = resolve_settings(config or DefinitionEMBConfig(), inner)
    if config.reader is None and (problem := reading_of(inner).problem):
        logger.warning(
            "%s cannot read text by itself (%s). Definitions are represented by the mean of their token embeddings "
            "only, which predicts rows less well. Let another encoder read them with `reader`, e.g. "
            "'sentence-transformers/all-MiniLM-L6-v2'.",
            type(inner).__name__,
            problem,
        )
    lexicon = main_process_first(lambda: load_definitions(definitions))
    vocabulary = read_vocabulary(tokenizer, table_shape(inner, config.table)[0])
    with adapters_off(outer):
        return _load_or_build(inner, tokenizer, lexicon, vocabulary, config)


def _load_or_build(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lexicon: Lexicon,
    vocabulary: Vocabulary,
    config: DefinitionEMBConfig,
) -> DefinitionEmbeddings:
    process = this_process()
    learned = config.method == "learned"
    reader = DefinitionReader.chosen(config.reader, model, tokenizer)
    if reader.model is model:
        weights = gather_object([fingerprint_weights(model, config.table)])
    else:  # the model itself is not run
        weights = gather_object([fingerprint_tables(model, config.table)])
    # Other processes may still wait for the main process's weights, or hold different ones, until it broadcasts them.
    readers = [number for number, found in enumerate(weights) if found == weights[0]]
    key = fingerprint(
        BUILD_VERSION,
        weights[0],
        vocabulary.fingerprint,
        fingerprint_tokenizer(tokenizer),
        lexicon.fingerprint,
        *lexicon.sources,
        config.build_fingerprint,
        *([] if reader.model is model else _fingerprints(reader)),
        *(learning_conditions(model, config, process.num_processes) if learned else [reading_conditions(model)]),
    )
    root = Path(config.cache_dir).expanduser() if config.cache_dir else cache_root()
    folder = root / "embeddings" / key
    training = root / "constructors" / key

    def build() -> DefinitionEmbeddings:
        return _build(model, tokenizer, lexicon, vocabulary, config, training, readers)

    def from_cache(build: Callable[[], DefinitionEmbeddings]) -> DefinitionEmbeddings:
        return cached(folder, build, _save, DefinitionEmbeddings.from_pretrained)

    save_to = config.constructor_config.save_to if learned else None
    # Cached rows are not enough if a constructor that should be saved as well is missing.
    saved = save_to is None or any(Path(save_to).glob("*.safetensors"))
    if saved and process.num_processes == 1:
        embeddings = from_cache(build)
    else:
        # All processes build together, so none may hold the cache's lock while others wait for it.
        found = on_main_process(lambda: _load_cached(folder) if saved else None)
        embeddings = build() if found is None else found
        if found is None and process.is_main_process:
            from_cache(lambda: embeddings)
    if learned and process.is_local_main_process:
        # Checkpoints are no longer needed; files that cannot be deleted only take space.
        shutil.rmtree(training, ignore_errors=True)
    return embeddings


def _fingerprints(reader: DefinitionReader) -> list[str]:
    return [fingerprint_weights(reader.model), fingerprint_tokenizer(reader.tokenizer)]


def _load_cached(folder: Path) -> DefinitionEmbeddings | None:
    if verify_manifest(folder) is not None:
        return None
    try:
        return DefinitionEmbeddings.from_pretrained(folder)
    except (ValueError, OSError):  # another format, which `cached` reports
        return None


def _save(embeddings: DefinitionEmbeddings, folder: Path) -> None:
    embeddings.save_pretrained(folder)


def _build(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lexicon: Lexicon,
    vocabulary: Vocabulary,
    config: DefinitionEMBConfig,
    folder: Path,
    readers: list[int],
) -> DefinitionEmbeddings:
    assert config.features is not None
    assert config.definitions_per_token is not None
    most = config.definitions_per_token
    found = definitions_of_tokens(vocabulary, lexicon, most)
    if not found:
        raise ValueError(why_none_is_defined(vocabulary, lexicon))
    ids = torch.tensor(list(found))
    words = [vocabulary.words[index] or vocabulary.tokens[index] for index in found]
    max_length = min(config.max_length, tokenizer.model_max_length)
    _check_readable(model, config)
    feature_map = None
    if config.method == "learned":
        show_status(
            f"Training a constructor of token embeddings for {model.name_or_path or type(model).__name__} on the "
            f"definitions of {len(words):,} tokens in {lexicon.name}. The result is kept for the next run."
        )
        learned = learned_rows(
            model,
            tokenizer,
            ids,
            list(zip(words, found.values(), strict=True)),
            folder,
            more=lambda: single_words(lexicon, most),
            max_length=max_length,
            precision=config.precision,
            batch_size=config.batch_size,
            settings=config.constructor_config,
            table=config.table,
        )
        check_distinct(
            learned.rows,
            lambda: definition_texts(words, list(found.values()), tokenizer, max_length),
            "Use `method='ridge'`.",
        )
        rows, details = learned.rows, {**learned.info, "constructor": config.constructor_config.to_dict()}
    else:
        reader = DefinitionReader.chosen(config.reader, model, tokenizer)
        style = prompt_style(reader.model)
        most_tokens = min(config.max_length, reader.tokenizer.model_max_length)
        texts = definition_texts(words, list(found.values()), reader.tokenizer, most_tokens, style)
        show_status(
            f"Rebuilding the token embeddings of {model.name_or_path or type(model).__name__} from {lexicon.name}: "
            f"{len(texts.input_ids):,} definitions of {len(words):,} tokens are encoded. The result is kept for the "
            "next run."
        )
        options: dict[str, Any] = {"batch_size": config.batch_size, "readers": readers}
        with gathered(model if config.reader is None else embedding_layer(model)):
            features = word_features(
                reader.model, reader.tokenizer, texts, config.features, precision=config.precision, **options
            )
            if config.reader is not None:
                own = own_bag(model, tokenizer, words, list(found.values()), max_length, **options)
                features = torch.cat([features, own], dim=1)
        check_distinct(features, lambda: texts, "Use other `features`, or let another encoder read with `reader`.")
        targets = read_rows(model, ids, config.table)
        groups = lemma_groups(list(found.values()))
        fitted = on_main_process(lambda: _fitted(features, targets, groups, model.device))
        rows, feature_map = fitted.rows, fitted.weights
        details = {
            "features": config.features,
            "prompt": style,
            "ridge_strength": fitted.strength,
            "r_squared": fitted.r_squared,
        }
        details |= {"texts_encoded": len(texts.input_ids), "tokens_encoded": texts.tokens}
        details |= {} if config.reader is None else {"reader": config.to_dict()["reader"]}
    info = {
        "model": model.name_or_path,
        "method": config.method,
        "table": config.table,
        "definitions": lexicon.name,
        "definitions_per_token": most,
        "definitions_read": sum(map(len, found.values())),
        "mask_token_id": tokenizer.convert_tokens_to_ids(mask_text(tokenizer)) if mask_text(tokenizer) else None,
        **details,
    }
    pairs = related_tokens(vocabulary, lexicon)
    return DefinitionEmbeddings(
        ids, rows, vocabulary, pairs, info, feature_map, probe_texts(words, list(found.values()), tokenizer)
    )


def _fitted(features: Tensor, targets: Tensor, groups: Tensor, device: torch.device) -> RidgeRows:
    """The ridge regression on the model's device, or on the CPU if the model leaves too little memory there."""
    try:
        return cross_fitted_rows(features, targets, groups=groups, device=device)
    except torch.OutOfMemoryError:
        logger.info("The ridge regression does not fit into the memory of %s; it is computed on the CPU.", device)
    # After the exception is gone, which keeps tensors on the device.
    return cross_fitted_rows(features, targets, groups=groups, device=torch.device("cpu"))


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
