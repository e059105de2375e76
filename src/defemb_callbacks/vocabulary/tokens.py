"""The tokens of any tokenizer, seen as words."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from defemb_callbacks.cache import fingerprint

# Why a token is no word. The order is that of the report.
SPECIAL, UNUSED, PADDING = "special token", "unused entry", "row without a token"
PIECE, NUMBER, SYMBOL, LETTER = "word piece", "number", "symbol", "single letter"

# Tokens that no text contains: they take no part in the order by frequency, nor in its groups.
OUTSIDE_TEXT = frozenset({SPECIAL, UNUSED, PADDING})

# BERT's [unused7], Gemma's <unused7>, RoBERTa's madeupword0001.
_UNUSED = re.compile(r"[\[<]unused[_ ]?\d+[\]>]|madeupword\d+")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """What each row of an embedding table stands for.

    Attributes:
        tokens: literal text of each token, by id; `""` for a row without a token.
        words: the word that each token is, without its start-of-word mark; `None` where it is none.
        reasons: why a token is no word (`None` where it is one).
        uncased: whether the tokenizer lower-cases its text.
    """

    tokens: tuple[str, ...]
    words: tuple[str | None, ...]
    reasons: tuple[str | None, ...]
    uncased: bool

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def word_ids(self) -> Tensor:
        """(m,) int64: the tokens that are words."""
        return torch.tensor([index for index, word in enumerate(self.words) if word is not None], dtype=torch.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Hex string of the tokens and their ids."""
        return fingerprint("\n".join(self.tokens), str(len(self.tokens)))


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int | None = None) -> Vocabulary:
    """Tell the words of a tokenizer from its word pieces, numbers, symbols and special tokens.

    Works on the vocabulary itself, so it needs no list of tokenizer classes. How a token shows that a word begins is
    told from what most tokens carry: `Ġ` (byte-level BPE), `▁` (SentencePiece, Unigram), or nothing where `##` marks
    what continues a word (WordPiece).

    Args:
        tokenizer: any Hugging Face tokenizer.
        size: rows of the embedding table; rows beyond the tokenizer's last token are there for padding.

    Raises:
        TypeError: not a tokenizer.
        ValueError: the tokenizer has ids beyond the table.

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
        raise TypeError(f"{type(tokenizer).__name__} is not a tokenizer: it has no get_vocab().")
    ids = tokenizer.get_vocab()
    longest = max(ids.values()) + 1
    size = longest if size is None else size
    if longest > size:
        raise ValueError(
            f"The tokenizer has ids up to {longest - 1}, the embedding table only {size} rows. Is this the model's own "
            "tokenizer? After adding tokens, call model.resize_token_embeddings(len(tokenizer))."
        )
    tokens = [""] * size
    for token, index in ids.items():
        tokens[index] = token
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids) | {index for index, token in added.items() if token.special}
    mark = _start_mark(tokens)
    words: list[str | None] = []
    reasons: list[str | None] = []
    for index, token in enumerate(tokens):
        text, starts = (token.strip(), True) if index in added else _read(token, mark)
        reason = SPECIAL if index in special else _why_no_word(token, text, starts)
        words.append(None if reason else text)
        reasons.append(reason)
    # Tokens that a user added do not tell of the tokenizer's own case.
    own = (word for index, word in enumerate(words) if word and index not in added)
    uncased = not any(char.isupper() for word in own if not word.islower() for char in word)
    return Vocabulary(tuple(tokens), tuple(words), tuple(reasons), uncased)


def _start_mark(tokens: list[str]) -> str:
    """`Ġ`, `▁`, or `""`: whichever of these and of `##` most tokens carry."""
    carried = Counter(mark for token in tokens for mark in ("Ġ", "▁", "##") if token.startswith(mark))
    mark = carried.most_common(1)[0][0] if carried else ""
    return "" if mark == "##" else mark


def _read(token: str, mark: str) -> tuple[str, bool]:
    """A token's text, and whether a word begins with it."""
    if not mark:
        return (token[2:], False) if token.startswith("##") else (token, True)
    starts = token.startswith(mark)
    text = token.removeprefix(mark)
    return (_from_bytes(text) if mark == "Ġ" else text), starts


def _why_no_word(token: str, text: str, starts: bool) -> str | None:
    if not token:
        return PADDING
    if _UNUSED.fullmatch(token):
        return UNUSED
    if text.isascii() and text.isalpha():  # most tokens: nothing else to ask, so that a vocabulary is read at once
        return _why_no_letters(text, starts)
    if any(char.isnumeric() for char in text) and not _BYTE.fullmatch(token):
        return NUMBER
    if _BYTE.fullmatch(token) or not any(char.isalpha() for char in text):
        return SYMBOL
    return _why_no_letters(text, starts)


def _why_no_letters(text: str, starts: bool) -> str | None:
    if not starts:
        return PIECE
    return LETTER if len(text) == 1 else None


def _from_bytes(text: str) -> str:
    """Undo byte-level BPE's alphabet; half a character, which is no text, becomes `""`."""
    alphabet = _byte_alphabet()
    if any(char not in alphabet for char in text):
        return text
    try:
        return bytes(alphabet[char] for char in text).decode()
    except UnicodeDecodeError:
        return ""


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in GPT-2's vocabulary: itself if printable, else one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
