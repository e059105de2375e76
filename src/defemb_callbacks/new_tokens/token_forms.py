"""The forms of a term as a token of a WordPiece, BPE or Unigram tokenizer."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers import models
from transformers import AddedToken, PreTrainedTokenizerBase

from defemb_callbacks.new_tokens.reserved import rename_tokens
from defemb_callbacks.vocabulary.tokens import read_vocabulary

# How much more likely a new Unigram piece is than its sub-tokens. Less is lost in rounding; more would also change how
# longer words are split.
MARGIN = 0.01

# Text before and after words. Unigram models may have pieces that join a word's end and punctuation, such as T5's "4)".
OPENING, CLOSING = ("", "▁(", '▁"', "-"), ("", *".,;:!?)]}\"'-/%")


@dataclass(frozen=True)
class Form:
    """A token to add.

    Attributes:
        text: Its text in the vocabulary.
        place: "word" for the token at the start of a word, "bare" for the one without a leading space.
        single_word: Whether it matches only whole words; see `AddedToken`.
        score: Log-probability of a Unigram piece; `None` for an added token.
        special: Whether it is a special token: found in text before anything is normalized or split.
    """

    text: str
    place: Literal["word", "bare"]
    single_word: bool = False
    score: float | None = None
    special: bool = False


class FormCandidates:
    """The forms that a term may take in a tokenizer, in order of preference.

    Args:
        tokenizer: The tokenizer; not changed.
        words: Known words besides those of the vocabulary, whose beginning a BPE form must not match.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> None:
        self.tokenizer = tokenizer
        self.kind = model_kind(tokenizer)
        self.words: list[str] = []
        self.scores: dict[str, float] = {}
        if self.kind == "BPE":
            vocabulary = (word for word in read_vocabulary(tokenizer).words if word is not None)
            self.words = sorted({*vocabulary, *words})
        if self.kind == "Unigram":
            self.scores = dict(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"])
            self.lowest = min(self.scores.values())

    def alternatives(self, text: str) -> list[list[Form]]:
        """Return the alternatives for a term, best first; each is a list of forms to add together.

        Args:
            text: The term.
        """
        if self.kind == "Unigram":
            return self._unigram_alternatives(text)
        if self.kind != "BPE":
            return [[Form(text, "word", single_word=True)]]
        spaced, bare = Form(f" {text}", "word"), Form(text, "bare", single_word=True)
        if known_id(self.tokenizer, text) is not None:  # a word piece with the same spelling, which keeps its row
            return [[spaced]]
        # Byte-level BPE decodes added tokens with letters like "ö" wrongly unless they contain a space.
        return [[bare], [spaced]] if self._is_prefix(text) else [[spaced, bare], [spaced], [bare]]

    def _is_prefix(self, text: str) -> bool:
        """Whether a known word continues the term with a letter or digit."""
        for place in range(bisect_right(self.words, text), len(self.words)):
            word = self.words[place]
            if not word.startswith(text):
                return False
            if word[len(text)].isalnum():
                return True
        return False

    def _unigram_alternatives(self, text: str) -> list[list[Form]]:
        backend = self.tokenizer.backend_tokenizer
        normalized = backend.normalizer.normalize_str(text) if backend.normalizer else text
        parts = (
            [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)] if backend.pre_tokenizer else []
        )
        if len(parts) != 1:  # split by the pre-tokenizer, so it cannot be a piece of the model
            return []
        bare = parts[0].removeprefix("▁")
        word = Form(parts[0], "word", score=self._score(parts[0], ("",)))
        if bare in self.scores:  # already a piece, which keeps its score
            return [[word]]
        return [[word, Form(bare, "bare", score=self._score(bare, OPENING))], [word]]

    def _score(self, piece: str, before: Sequence[str]) -> float:
        """The log-probability at which a piece is just preferred to its sub-tokens, alone and next to punctuation."""
        gains = (
            self._likelihood(first + piece + last) - self._likelihood(first) - self._likelihood(last)
            for first in before
            for last in CLOSING
        )
        return max(gains) + MARGIN

    def _likelihood(self, text: str) -> float:
        parts = self.tokenizer.backend_tokenizer.model.tokenize(text) if text else []
        # The unknown token costs 10 more than the least likely piece; source: sentencepiece, kUnkPenalty.
        return sum(self.scores.get(part.value, self.lowest - 10) for part in parts)


def model_kind(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return "WordPiece", "BPE", "Unigram" or "WordLevel"; "" for a slow tokenizer.

    Args:
        tokenizer: The tokenizer.
    """
    return type(tokenizer.backend_tokenizer.model).__name__ if tokenizer.is_fast else ""


def inserts_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a BPE tokenizer puts a space in front of each stretch of text between added tokens.

    These are SentencePiece tokenizers with `legacy=True`.

    Args:
        tokenizer: The tokenizer.
    """
    if model_kind(tokenizer) != "BPE":
        return False
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = [state["normalizer"] or {}, state["pre_tokenizer"] or {}]
    steps += [step for outer in steps for name in ("normalizers", "pretokenizers") for step in outer.get(name, [])]
    return any(step.get("type") == "Prepend" or step.get("prepend_scheme") == "always" for step in steps)


def at_word_start(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a text with a leading space if the tokenizer needs one to recognize the start of a word.

    Args:
        tokenizer: The tokenizer.
        text: The text.
    """
    # Other kinds mark the start of a word themselves.
    return f" {text}" if model_kind(tokenizer) == "BPE" else text


def word_pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Return the tokens of a text at the start of a word, without unknown ones.

    Args:
        tokenizer: The tokenizer.
        text: The text.
    """
    ids = tokenizer(at_word_start(tokenizer, text), add_special_tokens=False)["input_ids"]
    return tuple(int(index) for index in ids if index != tokenizer.unk_token_id)


def known_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """Return the id of a token, or `None` if the vocabulary does not contain it.

    Args:
        tokenizer: The tokenizer.
        text: The token's text in the vocabulary.
    """
    index = tokenizer.convert_tokens_to_ids(text)
    assert not isinstance(index, list)
    return None if index == tokenizer.unk_token_id and text != tokenizer.unk_token else index


def id_of(tokenizer: PreTrainedTokenizerBase, form: Form) -> int:
    """Return the id of a form that was added to a tokenizer.

    Args:
        tokenizer: The tokenizer with the form.
        form: The form.
    """
    index = known_id(tokenizer, form.text)
    if index is None:  # the vocabulary contains its normalized text
        index = known_id(tokenizer, tokenizer.backend_tokenizer.normalizer.normalize_str(form.text))
    assert index is not None
    return index


def add_forms(tokenizer: PreTrainedTokenizerBase, forms: Sequence[Form], reserved: Sequence[str] = ()) -> None:
    """Add tokens to a tokenizer in place: pieces to its Unigram model, all others as added tokens, special ones last.

    Args:
        tokenizer: The tokenizer to change.
        forms: The tokens.
        reserved: Tokens to rename into the first added tokens, whose ids these get; see `reserved_tokens`.
    """
    pieces = [(form.text, form.score) for form in forms if form.score is not None]
    if pieces:
        backend = tokenizer.backend_tokenizer
        state = json.loads(backend.to_str())["model"]
        vocabulary = [(piece, score) for piece, score in state["vocab"]]
        # Ids of Unigram pieces are contiguous, so added tokens behind them become pieces too and keep their ids.
        behind = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= len(vocabulary))
        lowest = min(score for _, score in vocabulary)
        vocabulary += [(token, lowest) for _, token in behind]
        settings = {"unk_id": state["unk_id"], "byte_fallback": state.get("byte_fallback", False)}
        backend.model = models.Unigram([*vocabulary, *pieces], **settings)
    added = [form for form in forms if form.score is None]
    if not added:
        return
    normalized = model_kind(tokenizer) not in ("BPE", "Unigram") or read_vocabulary(tokenizer).uncased
    # Special tokens are found in the text as it is given.
    tokens = [
        AddedToken(form.text, normalized=False, special=True)
        if form.special
        else AddedToken(form.text, single_word=form.single_word, normalized=normalized)
        for form in added
    ]
    if reserved:
        known = tokenizer.get_vocab()
        new = [token for token in tokens if token.content not in known]
        rename_tokens(tokenizer, dict(zip(reserved, new, strict=False)))
    tokenizer.add_tokens([token for token in tokens if not token.special])
    special = [token for token in tokens if token.special]
    tokenizer.add_special_tokens({"extra_special_tokens": special}, replace_extra_special_tokens=False)
