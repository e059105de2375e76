"""What is refused: tensors that are no dictionary, and models and tokenizers that are not the dictionary's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.embeddings.fingerprints import fingerprint_weights
from defemb_callbacks.senses.states import state_width
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.rows import embedding_weight

if TYPE_CHECKING:
    from defemb_callbacks.senses.dictionary import SenseDictionary

# Of a student's config: the dictionary that it has learned to choose from.
MARK = "sense_dictionary"


def check_tensors(offsets: Tensor, vectors: Tensor, counts: Tensor, vocabulary: Vocabulary) -> None:
    """Refuse tensors that are no dictionary: `ValueError`."""
    if vectors.ndim != 2 or vectors.dtype != torch.float32:
        raise ValueError(f"vectors must be (senses, d) float32, got {tuple(vectors.shape)} {vectors.dtype}")
    if offsets.shape != (len(vocabulary) + 1,) or offsets.dtype != torch.int64:
        raise ValueError(f"offsets must be ({len(vocabulary) + 1},) int64, got {tuple(offsets.shape)} {offsets.dtype}")
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(vectors) or bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets must grow from 0 to the number of senses, {len(vectors)}")
    if counts.shape != (len(vectors),) or counts.dtype != torch.int64:
        raise ValueError(f"counts must be ({len(vectors)},) int64, got {tuple(counts.shape)} {counts.dtype}")
    if not bool(vectors.isfinite().all()):
        raise ValueError("the senses hold NaN or infinity; does the model give such states?")


def check_model(dictionary: SenseDictionary, model: PreTrainedModel, *, force: bool = False) -> None:
    """Refuse a model whose states are not those that the senses were made of: `ValueError`."""
    size, width = len(embedding_weight(model)), state_width(model)
    if size != len(dictionary.vocabulary):
        raise ValueError(f"the dictionary has {len(dictionary.vocabulary)} tokens, the model {size}: another tokenizer")
    if width != dictionary.width:
        raise ValueError(f"the senses have width {dictionary.width}, the model's states {width}: another model")
    known = force or getattr(model.config, MARK, None) == dictionary.fingerprint
    if not known and fingerprint_weights(model) != dictionary.info.get("weights"):
        made_of = dictionary.info.get("model") or "a model without a name"
        raise ValueError(
            f"the senses were made of the states of other weights ({made_of}): build a dictionary of this model, "
            "or pass force=True"
        )


def check_tokenizer(vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with other tokens than these: `ValueError`."""
    other = read_vocabulary(tokenizer, max(len(vocabulary), max(tokenizer.get_vocab().values()) + 1))
    if other.fingerprint != vocabulary.fingerprint:
        pairs = zip(vocabulary.tokens, other.tokens, strict=False)
        first = next((f"token {i} is {a!r} there, {b!r} here" for i, (a, b) in enumerate(pairs) if a != b), "")
        sizes = f"{len(vocabulary)} entries there, {len(other)} here"
        raise ValueError(f"the dictionary was built with another tokenizer ({first or sizes})")
