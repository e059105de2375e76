"""Find the tokenizer of a run: the callback's own, the Trainer's, the model's or the data collator's."""

from __future__ import annotations

import logging
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from defemb_callbacks.weights.rows import table_shape
from defemb_callbacks.weights.unwrapping import transformers_model

logger = logging.getLogger(__name__)


def find_tokenizer(
    callback: Any, processing_class: Any, model: Any = None, dataloader: Any = None
) -> tuple[PreTrainedTokenizerBase | None, str]:
    """Look for a tokenizer where a run may have one.

    Args:
        callback: Callback with an attribute `tokenizer`, which comes first.
        processing_class: The Trainer's tokenizer, or a processor that contains it.
        model: The model, whose `name_or_path` may contain a tokenizer.
        dataloader: Data loader whose collator may contain a tokenizer.

    Returns:
        The tokenizer, or `None`, and where it was found if the user did not pass it as a tokenizer, otherwise `""`.
    """
    if callback.tokenizer is not None:
        return callback.tokenizer, ""
    if (found := _tokenizer_in(processing_class)) is not None:
        return found, ""
    if (found := _tokenizer_in(_collator(dataloader))) is not None:
        return found, "the data collator"
    name = "" if model is None else getattr(transformers_model(model), "name_or_path", "")
    return (_saved_with(name, table_shape(model)[0]), repr(name)) if name else (None, "")


def require_tokenizer(callback: Any, processing_class: Any, model: Any = None, dataloader: Any = None) -> Any:
    """Look for a tokenizer as `find_tokenizer` does.

    Args:
        callback: See `find_tokenizer`.
        processing_class: See `find_tokenizer`.
        model: See `find_tokenizer`.
        dataloader: See `find_tokenizer`.

    Raises:
        ValueError: If there is none.
    """
    found, _ = find_tokenizer(callback, processing_class, model, dataloader)
    if found is None:
        raise ValueError(
            f"{type(callback).__name__} needs a tokenizer. Pass processing_class=tokenizer to the Trainer, or "
            "tokenizer= to the callback."
        )
    return found


def _tokenizer_in(holder: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer that an object is, or contains as processors and data collators do."""
    candidates = [holder, *(getattr(holder, name, None) for name in ("tokenizer", "processing_class", "processor"))]
    candidates += [getattr(candidate, "tokenizer", None) for candidate in candidates]
    return next((found for found in candidates if isinstance(found, PreTrainedTokenizerBase)), None)


def _collator(dataloader: Any) -> Any:
    collator = getattr(dataloader, "collate_fn", None)
    return getattr(collator, "data_collator", collator)  # inside the Trainer's RemoveColumnsCollator


def _saved_with(name: str, rows: int) -> PreTrainedTokenizerBase | None:
    try:
        found = AutoTokenizer.from_pretrained(name)
    # transformers raises many kinds of errors for folders and repositories without a tokenizer.
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        logger.debug("%r has no tokenizer: %s", name, error)
        return None
    # From a folder without a vocabulary, transformers returns a tokenizer with the special tokens only.
    return found if rows / 2 < len(found) <= rows else None
