"""The files of definition embeddings: tensors, and a description with their checksum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.vocabulary import Vocabulary

FORMAT = 1
TENSORS, DESCRIPTION = "definition_embeddings.safetensors", "definition_embeddings.json"


def write_embeddings(folder: Path, tensors: dict[str, Tensor], vocabulary: Vocabulary, info: dict[str, Any]) -> None:
    """Write embeddings into an existing folder.

    Args:
        folder: to write into.
        tensors: ids, rows, pairs, and the map if there is one.
        vocabulary: the tokens that the ids count.
        info: how they were made; plain JSON.

    Raises:
        OSError: they cannot be written, e.g. as the disk is full.
    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
    except SafetensorError as error:  # its word for a full disk too
        raise OSError(f"{folder / TENSORS} cannot be written: {error}") from error
    description = {
        "format": FORMAT,
        "tensors": fingerprint(folder / TENSORS),
        "info": info,
        "uncased": vocabulary.uncased,
        "tokens": vocabulary.tokens,
        "words": vocabulary.words,
        "reasons": vocabulary.reasons,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")


def read_embeddings(folder: Path) -> dict[str, Any]:
    """The arguments of the `DefinitionEmbeddings` that `write_embeddings` has written, by anybody.

    Raises:
        ValueError, TypeError, RecursionError, SafetensorError: damaged files, or of a newer format.
        KeyError: something that is missing.
    """
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    if description["format"] > FORMAT:
        raise ValueError(f"format {description['format']} is newer than {FORMAT}; update defemb-callbacks")
    if fingerprint(folder / TENSORS) != description["tensors"]:
        raise ValueError(f"the checksum of {TENSORS} is wrong")
    tensors = load_file(folder / TENSORS)
    vocabulary = _described_vocabulary(description)
    if not isinstance(description["info"], dict):
        raise ValueError(f"info is {description['info']!r}, no object")
    return {
        **{name: tensors[name] for name in ("ids", "rows", "pairs")},
        "vocabulary": vocabulary,
        "info": description["info"],
        "feature_map": tensors.get("feature_map"),
    }


def _described_vocabulary(description: dict[str, Any]) -> Vocabulary:
    """A vocabulary as JSON has it, which anybody may have written."""
    columns = [description[name] for name in ("tokens", "words", "reasons")]
    allowed = (str, type(None))
    if not all(isinstance(column, list) and all(isinstance(text, allowed) for text in column) for column in columns):
        raise ValueError("tokens, words and reasons must be lists of text")
    if None in columns[0] or len(set(map(len, columns))) > 1 or not isinstance(description["uncased"], bool):
        raise ValueError("tokens, words and reasons do not fit each other")
    tokens, words, reasons = map(tuple, columns)
    return Vocabulary(tokens, words, reasons, description["uncased"])
