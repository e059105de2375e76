"""Build definition embeddings from a model, its tokenizer and a dictionary, and keep them in the cache."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.cache import cache_root, cached, fingerprint, verify_manifest
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Lexicon, load_definitions
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.compute import compute_embeddings
from defemb_callbacks.embeddings.fingerprints import (
    fingerprint_tables,
    fingerprint_tokenizer,
    fingerprint_weights,
    learning_conditions,
    reading_conditions,
)
from defemb_callbacks.reconstruction import DefinitionReader, resolve_settings
from defemb_callbacks.reconstruction.backbone import reading_of
from defemb_callbacks.reconstruction.model_settings import feature_candidates
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.adapters import adapters_off
from defemb_callbacks.weights.distributed import main_process_first, on_main_process, this_process
from defemb_callbacks.weights.rows import table_shape
from defemb_callbacks.weights.sharding import gathered
from defemb_callbacks.weights.unwrapping import transformers_model

logger = logging.getLogger(__name__)

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
    given = config or DefinitionEMBConfig()
    with gathered(inner):
        config = resolve_settings(given, inner)
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
    candidates = _candidates(given, config, inner)
    with adapters_off(outer):
        return _load_or_build(inner, tokenizer, lexicon, vocabulary, config, candidates)


def _candidates(given: DefinitionEMBConfig, config: DefinitionEMBConfig, model: PreTrainedModel) -> list[list[str]]:
    """The sets of features to choose from: one if it is given, or for the learned constructor, which uses none."""
    if given.features is not None or config.method == "learned":
        return [config.features or []]
    if config.reader is None:
        return feature_candidates(model)
    return feature_candidates(config.reader.model, table_shape(model)[1])  # type: ignore[union-attr]


def _load_or_build(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lexicon: Lexicon,
    vocabulary: Vocabulary,
    config: DefinitionEMBConfig,
    candidates: list[list[str]],
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
        *(json.dumps(candidate) for candidate in candidates[1:]),  # the first is part of the settings
        *([] if reader.model is model else _fingerprints(reader)),
        *(learning_conditions(model, config, process.num_processes) if learned else [reading_conditions(model)]),
    )
    root = Path(config.cache_dir).expanduser() if config.cache_dir else cache_root()
    folder = root / "embeddings" / key
    training = root / "constructors" / key

    def build() -> DefinitionEmbeddings:
        return compute_embeddings(
            model,
            tokenizer,
            lexicon,
            vocabulary,
            config,
            training=training,
            readers=readers,
            candidates=candidates,
        )

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
