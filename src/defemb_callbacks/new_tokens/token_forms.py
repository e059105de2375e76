"""The forms of a term as a token of a WordPiece, BPE or Unigram tokenizer, and the split of a word into sub-tokens."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import models
from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerBase

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
    """

    text: str
    place: Literal["word", "bare"]
    single_word: bool = False
    score: float | None = None


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

    def pieces(self, text: str) -> tuple[int, ...]:
        """Return the sub-tokens of a term at the start of a word, without unknown tokens.

        Args:
            text: The term.
        """
        ids = self.tokenizer(at_word_start(self.tokenizer, text), add_special_tokens=False)["input_ids"]
        return tuple(int(index) for index in ids if index != self.tokenizer.unk_token_id)

    def _is_prefix(self, text: str) -> bool:
        """Whether a known word continues the term with a letter or digit."""
        for word in self.words[bisect_right(self.words, text) :]:
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


def add_forms(tokenizer: PreTrainedTokenizerBase, forms: Sequence[Form]) -> None:
    """Add tokens to a tokenizer in place: pieces to its Unigram model, all others as added tokens.

    Args:
        tokenizer: The tokenizer to change.
        forms: The tokens.
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
    uncased = bool(forms) and read_vocabulary(tokenizer).uncased
    normalized = uncased or model_kind(tokenizer) not in ("BPE", "Unigram")
    added = [
        AddedToken(form.text, single_word=form.single_word, normalized=normalized)
        for form in forms
        if form.score is None
    ]
    if added:
        tokenizer.add_tokens(added)


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
