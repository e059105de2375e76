"""A dictionary definition as text for a model to read."""

from __future__ import annotations

import re
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from defemb_callbacks.definitions import Definition


def mask_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands for the defined word: the tokenizer's mask token, or "" if it has none.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"[MASK]": 0}, unk_token="[MASK]"))
        >>> mask_text(PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]"))
        '[MASK]'
    """
    return tokenizer.mask_token or ""


def definition_prompt(definition: Definition, word: str, mask: str) -> str:
    """`MASK, synonym, synonym: gloss`, with the word itself masked wherever it stands.

    The synonyms are those of the sense; for an inflected form its lemma is among them. The word is masked so that
    nothing but its definition can tell which word it is.

    Args:
        definition: one definition of the word.
        word: the word as the tokenizer has it, which an inflected or lower-cased form makes different from the entry.
        mask: from `mask_text`.

    Example:
        >>> pet = Definition("cat", "a small feline; a cat purrs", synonyms=("true cat", "mouser"))
        >>> definition_prompt(pet, "cat", "[MASK]")
        '[MASK], true [MASK], mouser: a small feline; a [MASK] purrs'
        >>> definition_prompt(pet, "cats", "")
        'cat, true cat, mouser: a small feline; a cat purrs'
    """
    own = _pattern(word)
    others = [name for name in (definition.word, *definition.synonyms) if name.lower() != word.lower()]
    names = [mask, *dict.fromkeys(own.sub(mask, name).strip() for name in others)]
    head = ", ".join(name for name in names if name)
    gloss = own.sub(mask, definition.gloss)
    return f"{head}: {gloss}" if head else gloss


@lru_cache(maxsize=64)
def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
