"""Find out which tokens of a tokenizer are words, for any kind of tokenizer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from defemb_callbacks.cache import fingerprint

# Reasons why a token is not a word, in the order of the report.
SPECIAL, UNUSED, PADDING = "special token", "unused entry", "row without a token"
PIECE, NUMBER, SYMBOL, LETTER = "word piece", "number", "symbol", "single letter"

# Tokens that no text contains; they have no frequency rank and belong to no frequency group.
OUTSIDE_TEXT = frozenset({SPECIAL, UNUSED, PADDING})

# BERT's [unused7], Gemma's <unused7>, RoBERTa's madeupword0001.
_UNUSED = re.compile(r"[\[<]unused[_ ]?\d+[\]>]|madeupword\d+")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of an embedding table, one per row.

    Attributes:
        tokens: The literal text of each token, by id; `""` for a row without a token.
        words: The word of each token, without the start-of-word mark; `None` if the token is not a word.
        reasons: The reason why a token is not a word; `None` if it is one.
        uncased: Whether the tokenizer lower-cases its input.
    """

    tokens: tuple[str, ...]
    words: tuple[str | None, ...]
    reasons: tuple[str | None, ...]
    uncased: bool

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def word_ids(self) -> Tensor:
        """(m,) int64, the ids of the tokens that are words."""
        return torch.tensor([index for index, word in enumerate(self.words) if word is not None], dtype=torch.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the tokens and their ids."""
        return fingerprint(json.dumps(self.tokens))  # tokens may contain any character, also line breaks


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int | None = None) -> Vocabulary:
    """Distinguish a tokenizer's words from its word pieces, numbers, symbols and special tokens.

    Only the vocabulary is used, so this works for all tokenizer classes. The start-of-word mark is the most common one
    among the tokens: `Ġ` (byte-level BPE), `▁` (SentencePiece, Unigram), or none if `##` marks continuations
    (WordPiece).

    Args:
        tokenizer: Any Hugging Face tokenizer.
        size: The number of rows of the embedding table; rows after the tokenizer's last token are padding.

    Raises:
        TypeError: If `tokenizer` is not a tokenizer.
        ValueError: If the tokenizer has ids beyond the table.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> entries = {"[UNK]": 0, "cat": 1, "##s": 2, "1990": 3, ",": 4}
        >>> backend = Tokenizer(models.WordPiece(entries, unk_token="[UNK]"))
        >>> vocabulary = read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"), size=6)
        >>> vocabulary.words
        (None, 'cat', None, None, None, None)
        >>> vocabulary.reasons
        ('special token', None, 'word piece', 'number', 'symbol', 'row without a token')
    """
    if not hasattr(tokenizer, "get_vocab"):
        raise TypeError(
            f"`tokenizer` must be a tokenizer with get_vocab(), got {type(tokenizer).__name__}. Pass a Hugging Face "
            "tokenizer."
        )
    ids = tokenizer.get_vocab()
    min_size = max(ids.values()) + 1
    size = min_size if size is None else size
    if min_size > size:
        raise ValueError(
            f"The tokenizer has ids up to {min_size - 1}, but the embedding table has only {size} rows. Pass the "
            "model's own tokenizer. After adding tokens, call model.resize_token_embeddings(len(tokenizer))."
        )
    tokens = [""] * size
    for token, index in ids.items():
        tokens[index] = token
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids) | {index for index, token in added.items() if token.special}
    return _vocabulary(tuple(tokens), frozenset(special), frozenset(added))


@lru_cache(maxsize=4)  # most features read the vocabulary, which takes about a second for 256,000 tokens
def _vocabulary(tokens: tuple[str, ...], special: frozenset[int], added: frozenset[int]) -> Vocabulary:
    """Classify the tokens; `special` and `added` are the ids of special tokens and of those added to the tokenizer."""
    mark = _start_mark(tokens)
    words: list[str | None] = []
    reasons: list[str | None] = []
    for index, token in enumerate(tokens):
        text, starts = (token.strip(), True) if index in added else _read(token, mark)
        reason = SPECIAL if index in special else _reason(token, text, starts)
        words.append(None if reason else text)
        reasons.append(reason)
    # Tokens added by users do not show whether the tokenizer is cased.
    original = (word for index, word in enumerate(words) if word and index not in added)
    uncased = not any(char.isupper() for word in original if not word.islower() for char in word)
    return Vocabulary(tokens, tuple(words), tuple(reasons), uncased)


def _start_mark(tokens: Sequence[str]) -> str:
    """The most common prefix of `Ġ`, `▁` and `##`; `""` stands for `##` and for no prefix at all."""
    counts = Counter(mark for token in tokens for mark in ("Ġ", "▁", "##") if token.startswith(mark))
    mark = counts.most_common(1)[0][0] if counts else ""
    return "" if mark == "##" else mark


def _read(token: str, mark: str) -> tuple[str, bool]:
    """The text of a token without its mark, and whether the token starts a word."""
    if not mark:
        return (token[2:], False) if token.startswith("##") else (token, True)
    starts = token.startswith(mark)
    text = token.removeprefix(mark)
    return (_from_bytes(text) if mark == "Ġ" else text), starts


def _reason(token: str, text: str, starts: bool) -> str | None:
    """The reason why a token is not a word, or `None` if it is one."""
    if not token:
        return PADDING
    if _UNUSED.fullmatch(token):
        return UNUSED
    if text.isascii() and text.isalpha():  # a shortcut for most tokens
        return _reason_of_letters(text, starts)
    if any(char.isnumeric() for char in text) and not _BYTE.fullmatch(token):
        return NUMBER
    if _BYTE.fullmatch(token) or not any(char.isalpha() for char in text):
        return SYMBOL
    return _reason_of_letters(text, starts)


def _reason_of_letters(text: str, starts: bool) -> str | None:
    if not starts:
        return PIECE
    return LETTER if len(text) == 1 else None


def _from_bytes(text: str) -> str:
    """Decode byte-level BPE's alphabet; incomplete characters become `""`."""
    alphabet = _byte_alphabet()
    if any(char not in alphabet for char in text):
        return text
    try:
        return bytes(alphabet[char] for char in text).decode()
    except UnicodeDecodeError:
        return ""


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet, from characters to bytes: printable bytes are themselves, others are characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
