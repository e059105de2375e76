"""Reserved tokens, which tokenizers contain for later use: find the free ones, and rename them into new tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

# BERT's [unused5], Gemma's <unused12>, RoBERTa's madeupword0001, Qwen's <|extra_3|>, Llama's
# <|reserved_special_token_7|>, Phi's <|placeholder1|>, Mistral's [control_8] and <SPECIAL_20>, Falcon's >>UNUSED_1<<,
# DeepSeek's <｜place▁holder▁no▁12｜>; but not T5's sentinels <extra_id_0>, which are trained.
RESERVED = re.compile(
    r"[\[<]\|?(?:unused|extra|reserved|placeholder|control)(?:_special)?(?:_token)?[_ -]?\d+\|?[\]>]"
    r"|<SPECIAL_\d+>|madeupword\d+|>>UNUSED_\d+<<|<｜place▁holder▁no▁\d+｜>",
    re.IGNORECASE,
)


def reserved_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the reserved tokens of a tokenizer that nothing uses, in the order of their ids.

    A token is used if it has a role, such as the padding token, or occurs in the chat template or the post-processor.

    Args:
        tokenizer: The tokenizer.

    Example:
        >>> from tokenizers import models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[unused1]": 1, "[unused2]": 2}, unk_token="[UNK]"))
        >>> reserved_tokens(PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[unused1]"))
        ('[unused2]',)
    """
    found = {token: index for token, index in tokenizer.get_vocab().items() if RESERVED.fullmatch(token)}
    if not found:
        return ()
    roles = set(_strings(tokenizer.special_tokens_map))
    texts = [*_strings(tokenizer.chat_template)]
    if tokenizer.is_fast:
        texts.append(json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["post_processor"], ensure_ascii=False))
    free = (token for token in found if token not in roles and not any(token in text for text in texts))
    return tuple(sorted(free, key=found.__getitem__))


def rename_tokens(tokenizer: Any, names: Mapping[str, AddedToken]) -> None:
    """Rename tokens of a fast tokenizer in place. Their ids are kept.

    Args:
        tokenizer: The tokenizer to change.
        names: New token, by the text of the one whose id it gets.
    """
    if not names:
        return
    old = tokenizer.backend_tokenizer
    state = json.loads(old.to_str())
    renamed = {text: token.content for text, token in names.items()}
    vocabulary = state["model"]["vocab"]
    if isinstance(vocabulary, dict):
        state["model"]["vocab"] = {renamed.get(text, text): index for text, index in vocabulary.items()}
    else:  # Unigram: pairs of a piece and its score
        state["model"]["vocab"] = [[renamed.get(text, text), score] for text, score in vocabulary]
    for entry in state["added_tokens"]:
        if entry["content"] in names:
            # All settings: `tokenizers` does not add a token again whose text it has already.
            entry |= names[entry["content"]].__getstate__()
    new = Tokenizer.from_str(json.dumps(state))
    new.encode_special_tokens = old.encode_special_tokens  # not part of the file
    tokenizer._tokenizer = new
    # Otherwise transformers would add them again when the tokenizer is loaded.
    tokenizer.extra_special_tokens = [token for token in tokenizer.extra_special_tokens if str(token) not in names]


def _strings(value: object) -> Iterator[str]:
    """All strings in nested dicts and lists."""
    if isinstance(value, str | AddedToken):
        yield str(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
