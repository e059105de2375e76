"""Split words that are tokens as if they were missing from the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import models
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# A tenth of the words is removed from the vocabulary at a time.
PARTS = 10


def split_without_itself(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> list[list[int]]:
    """Split tokens that are whole words as if they were missing from the vocabulary.

    For WordPiece and Unigram the words are removed from a copy of the tokenizer's model, a tenth of them at a time; for
    BPE the last merge of the word is undone.

    Args:
        tokenizer: The tokenizer; not changed. Slow tokenizers and other kinds of models split nothing.
        ids: (n,) int64, tokens of its vocabulary.

    Returns:
        n lists of token ids; empty if a word cannot be split.

    Example:
        >>> import torch
        >>> from tokenizers import Tokenizer
        >>> from transformers import PreTrainedTokenizerFast
        >>> entries = {token: i for i, token in enumerate(["[UNK]", "cat", "cats", "##s", "dog"])}
        >>> backend = Tokenizer(models.WordPiece(entries, unk_token="[UNK]"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
        >>> split_without_itself(tokenizer, torch.tensor([2, 4]))
        [[1, 3], []]
    """
    tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"] if tokenizer.is_fast else {}
    known, unknown = tokenizer.get_vocab(), tokenizer.unk_token
    if state.get("type") == "BPE":
        pieces = _undo_last_merge(state["merges"], tokens)
    elif state.get("type") in ("WordPiece", "Unigram"):
        pieces = [[] for _ in tokens]
        for part in range(min(PARTS, len(tokens))):
            model = _without(state, set(tokens[part::PARTS]))
            pieces[part::PARTS] = [[piece.value for piece in model.tokenize(token)] for token in tokens[part::PARTS]]
    else:
        pieces = [[] for _ in tokens]
    return [
        [known[piece] for piece in split] if all(piece in known and piece != unknown for piece in split) else []
        for split in pieces
    ]


def _without(state: dict[str, Any], words: set[str]) -> Any:
    if state["type"] == "WordPiece":
        vocabulary = {token: index for token, index in state["vocab"].items() if token not in words}
        settings = {
            name: state[name] for name in ("unk_token", "max_input_chars_per_word", "continuing_subword_prefix")
        }
        return models.WordPiece(vocabulary, **settings)
    unknown = None if state["unk_id"] is None else state["vocab"][state["unk_id"]][0]
    kept = [(piece, score) for piece, score in state["vocab"] if piece == unknown or piece not in words]
    position = next((index for index, (piece, _) in enumerate(kept) if piece == unknown), None)
    return models.Unigram(kept, unk_id=position, byte_fallback=state.get("byte_fallback", False))


def _undo_last_merge(merges: Sequence[Any], tokens: Sequence[str]) -> list[list[str]]:
    wanted = set(tokens)
    halves: dict[str, list[str]] = {}
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left + right in wanted:
            halves.setdefault(left + right, [left, right])
    return [halves.get(token, []) for token in tokens]
