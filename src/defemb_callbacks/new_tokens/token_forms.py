"""How a term is written as a token, by the kind of the tokenizer's model."""

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

# How much likelier than its sub-tokens a new piece of a Unigram model is: any less is lost in rounding, and with any
# more it would be preferred within longer words, which are to be cut as before.
MARGIN = 0.01

# What stands before and behind words. Unigram models may have pieces of a word's end and a mark, such as T5's "4)".
OPENING, CLOSING = ("", "▁(", '▁"', "-"), ("", *".,;:!?)]}\"'-/%")


@dataclass(frozen=True)
class Form:
    """A token to be added: its text as the tokenizer has it, and where it stands."""

    text: str
    place: Literal["word", "bare"]
    single_word: bool = False
    score: float | None = None  # of a piece of a Unigram model


class Candidates:
    """The forms that a term may take, best first, by the kind of the tokenizer's model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> None:
        self.tokenizer = tokenizer
        self.kind = model_kind(tokenizer)
        self.words: list[str] = []
        self.scores: dict[str, float] = {}
        if self.kind == "BPE":
            own = (word for word in read_vocabulary(tokenizer).words if word is not None)
            self.words = sorted({*own, *words})
        if self.kind == "Unigram":
            self.scores = dict(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"])
            self.lowest = min(self.scores.values())

    def of(self, text: str) -> list[list[Form]]:
        """Alternatives, each a list of forms to be added together."""
        if self.kind == "Unigram":
            return self._pieces_of_unigram(text)
        if self.kind != "BPE":
            return [[Form(text, "word", single_word=True)]]
        spaced, bare = Form(f" {text}", "word"), Form(text, "bare", single_word=True)
        if known_id(self.tokenizer, text) is not None:  # a word piece, whose row is not the term's
            return [[spaced]]
        # The alphabet of byte-level BPE decodes letters like "ö" wrongly in added tokens, unless a space is with them.
        return [[bare], [spaced]] if self._begins_others(text) else [[spaced, bare], [spaced], [bare]]

    def pieces(self, text: str) -> tuple[int, ...]:
        """What the tokenizer cuts the term into at the start of a word, but for what it does not know."""
        ids = self.tokenizer(at_word_start(self.tokenizer, text), add_special_tokens=False)["input_ids"]
        return tuple(int(index) for index in ids if index != self.tokenizer.unk_token_id)

    def _begins_others(self, text: str) -> bool:
        for word in self.words[bisect_right(self.words, text) :]:
            if not word.startswith(text):
                return False
            if word[len(text)].isalnum():
                return True
        return False

    def _pieces_of_unigram(self, text: str) -> list[list[Form]]:
        backend = self.tokenizer.backend_tokenizer
        written = backend.normalizer.normalize_str(text) if backend.normalizer else text
        cut = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(written)] if backend.pre_tokenizer else []
        if len(cut) != 1:  # what is cut before the model sees it can be no piece of it
            return []
        bare = cut[0].removeprefix("▁")
        word = Form(cut[0], "word", score=self._score(cut[0], ("",)))
        if bare in self.scores:  # a piece already, which keeps its score
            return [[word]]
        return [[word, Form(bare, "bare", score=self._score(bare, OPENING))], [word]]

    def _score(self, piece: str, before: Sequence[str]) -> float:
        """The log-probability at which a piece is just preferred to what it is cut into, alone and beside marks."""
        gains = (
            self._likelihood(first + piece + last) - self._likelihood(first) - self._likelihood(last)
            for first in before
            for last in CLOSING
        )
        return max(gains) + MARGIN

    def _likelihood(self, text: str) -> float:
        found = self.tokenizer.backend_tokenizer.model.tokenize(text) if text else []
        # What is not known costs 10 more than the least likely piece; source: sentencepiece, kUnkPenalty.
        return sum(self.scores.get(part.value, self.lowest - 10) for part in found)


def model_kind(tokenizer: PreTrainedTokenizerBase) -> str:
    """ "WordPiece", "BPE", "Unigram" or "WordLevel"; "" for a tokenizer that is written in Python."""
    return type(tokenizer.backend_tokenizer.model).__name__ if tokenizer.is_fast else ""


def at_word_start(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text as it stands where a word begins."""
    # Elsewhere the tokenizer marks the start of a word by itself.
    return f" {text}" if model_kind(tokenizer) == "BPE" else text


def known_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The id of an entry of the vocabulary; `None` where it has none of that text."""
    index = tokenizer.convert_tokens_to_ids(text)
    assert not isinstance(index, list)
    return None if index == tokenizer.unk_token_id and text != tokenizer.unk_token else index


def id_of(tokenizer: PreTrainedTokenizerBase, form: Form) -> int:
    """The id of a form that was added."""
    index = known_id(tokenizer, form.text)
    if index is None:  # the vocabulary has it as it is normalized
        index = known_id(tokenizer, tokenizer.backend_tokenizer.normalizer.normalize_str(form.text))
    assert index is not None
    return index


def add_forms(tokenizer: PreTrainedTokenizerBase, forms: Sequence[Form]) -> None:
    """Add tokens to a tokenizer, in place: pieces to its Unigram model, all others as added tokens."""
    pieces = [(form.text, form.score) for form in forms if form.score is not None]
    if pieces:
        backend = tokenizer.backend_tokenizer
        state = json.loads(backend.to_str())["model"]
        vocabulary = [(piece, score) for piece, score in state["vocab"]]
        # A Unigram model counts its pieces: added tokens behind them become pieces, at their own ids, too.
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


PARTS = 10


def split_without_itself(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> list[list[int]]:
    """The sub-tokens of tokens that are whole words, as if these were missing from the vocabulary.

    A tenth of the words is taken out of a copy of the tokenizer's model at a time, for BPE the last merge that makes
    the word. The sub-tokens say how well such words are described by them, as if they had come new.

    Args:
        tokenizer: any; of one without a `tokenizers` model of a known kind nothing can be taken out.
        ids: (n,) int64, tokens of its vocabulary.

    Returns:
        n lists of token ids; empty where a word cannot be cut.

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
        pieces = _before_the_last_merge(state["merges"], tokens)
    elif state.get("type") in ("WordPiece", "Unigram"):
        pieces = [[] for _ in tokens]
        for part in range(min(PARTS, len(tokens))):
            model = _without(state, set(tokens[part::PARTS]))
            pieces[part::PARTS] = [[piece.value for piece in model.tokenize(token)] for token in tokens[part::PARTS]]
    else:
        pieces = [[] for _ in tokens]
    return [
        [known[piece] for piece in found] if all(piece in known and piece != unknown for piece in found) else []
        for found in pieces
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


def _before_the_last_merge(merges: Sequence[Any], tokens: Sequence[str]) -> list[list[str]]:
    wanted = set(tokens)
    halves: dict[str, list[str]] = {}
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left + right in wanted:
            halves.setdefault(left + right, [left, right])
    return [halves.get(token, []) for token in tokens]
