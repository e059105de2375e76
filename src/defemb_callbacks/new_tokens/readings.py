"""Readings: texts with a term, once with its sub-tokens and once with its new token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from defemb_callbacks.new_tokens.term_token import TermToken
from defemb_callbacks.new_tokens.token_forms import at_word_start, known_id, model_kind
from defemb_callbacks.new_tokens.token_plan import TokenPlan

TEMPLATES = ("The word {term} means {gloss}.", "A {term} is {gloss}.", "It was about {term}: {gloss}.")
DEFINITIONS = 2  # of each term
MAX_TOKENS = 64  # of a text

_SPACES = ("Ġ", "▁")


@dataclass(frozen=True)
class Reading:
    """A text with a term, as sub-tokens and with the new token.

    Attributes:
        row: Position of the term in the plan.
        before: Ids with the sub-tokens.
        after: Ids with the new token.
        place: Position of the new token in `after`. The text after it has the same number of ids in both.
    """

    row: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    place: int

    @property
    def shared(self) -> int:
        """Number of ids at the start that are the same in both."""
        pairs = zip(self.before, self.after, strict=False)
        return next(number for number, (one, other) in enumerate(pairs) if one != other)

    @property
    def last(self) -> int:
        """Position of the last sub-token in `before`."""
        return self.place + len(self.before) - len(self.after)


def definition_readings(plan: TokenPlan) -> list[Reading]:
    """Return the definitions of each new token as texts in which the term occurs once.

    Args:
        plan: The new tokens. Terms that are read as one token, have no definition or are special have no texts.
    """
    found = []
    for row, token in enumerate(plan.tokens):
        if not _is_read_as_several(token):
            continue
        for definition in token.term.definitions[:DEFINITIONS]:
            for template in TEMPLATES:
                text = template.format(term=token.term.text, gloss=definition.gloss)
                before, after = plan.before(text)["input_ids"], plan.after(text)["input_ids"]
                if after.count(token.word) != 1:
                    continue
                place = after.index(token.word)
                # Otherwise another new token occurs in the text.
                if [*after[:place], *token.pieces, *after[place + 1 :]] == before:
                    found += _cut(row, before, after, place)
    return found


def text_readings(plan: TokenPlan) -> list[Reading]:
    """Return the texts of each new token. Only the term's first occurrence is its new token.

    Args:
        plan: The new tokens. Terms that are read as one token, have no texts or are special have no readings, nor has a
            text in which the term is not found as a token, e.g. at its start in a cased tokenizer.
    """
    rows: list[int] = []
    texts: list[str] = []
    for row, token in enumerate(plan.tokens):
        if _is_read_as_several(token):
            rows += [row] * len(token.term.options.texts)
            texts += token.term.options.texts
    if not texts:
        return []
    before, after = (tokenizer(texts)["input_ids"] for tokenizer in (plan.before, plan.after))
    spellings, space = _spellings(plan), _space(plan)
    found = []
    for row, old, new in zip(rows, before, after, strict=True):
        replaced = _with_one_new_token(old, new, plan.tokens[row].word, spellings, space)
        if replaced is not None:
            found += _cut(row, old, *replaced)
    return found


def _is_read_as_several(token: TermToken) -> bool:
    return token.is_new and not token.term.special and len(token.pieces) > 1


def _cut(row: int, before: Sequence[int], after: Sequence[int], place: int) -> list[Reading]:
    """The reading of a text, without the end of a long text; none if nothing follows the term."""
    if place + 1 >= min(len(after), MAX_TOKENS):
        return []
    cut = max(0, len(after) - MAX_TOKENS)
    return [Reading(row, tuple(before[: len(before) - cut]), tuple(after[: len(after) - cut]), place)]


def _spellings(plan: TokenPlan) -> dict[int, tuple[tuple[int, ...], ...]]:
    """The sub-tokens of each new token, after a space and without one."""
    tokens = [token for token in plan.tokens if token.is_new]
    texts = [token.term.text for token in tokens]
    spaced = [at_word_start(plan.before, text) for text in texts]
    ids = plan.before(spaced, add_special_tokens=False)["input_ids"]
    both = zip(ids, _without_space(plan.before, texts), strict=True)
    return {index: tuple(map(tuple, each)) for token, each in zip(tokens, both, strict=True) for index in token.ids}


def _without_space(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    if model_kind(tokenizer) != "Unigram":
        return tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    backend = tokenizer.backend_tokenizer  # which puts a space before any text
    normalize = backend.normalizer.normalize_str if backend.normalizer else str
    return [[piece.id for piece in backend.model.tokenize(normalize(text))] for text in texts]


def _space(plan: TokenPlan) -> int | None:
    """The token of a single space."""
    return next((index for mark in _SPACES if (index := known_id(plan.before, mark)) is not None), None)


def _with_one_new_token(
    before: Sequence[int],
    after: Sequence[int],
    word: int,
    spellings: Mapping[int, tuple[tuple[int, ...], ...]],
    space: int | None,
) -> tuple[list[int], int] | None:
    """Replace all new tokens of a text but the first occurrence of one by their sub-tokens.

    Args:
        before: Ids of the text with the sub-tokens.
        after: Ids with the new tokens.
        word: The one to keep.
        spellings: Sub-tokens of each new token.
        space: The token of a single space, which may precede a new token, while sub-tokens include it.

    Returns:
        The ids and the position of the new token; `None` if it does not occur, or the texts differ otherwise.
    """
    ids: list[int] = []
    place, done, position = None, 0, 0
    while position < len(after):
        new = after[position]
        following = after[position + 1] if position + 1 < len(after) else None
        width = 2 if new == space and following in spellings and before[done : done + 1] != [space] else 1
        new = after[position + width - 1]
        pieces = next(
            (found for found in spellings.get(new, ((new,),)) if tuple(before[done : done + len(found)]) == found), None
        )
        if pieces is None:
            return None
        if new == word and place is None:
            ids += after[position : position + width]
            place = len(ids) - 1
        else:
            ids += pieces
        done, position = done + len(pieces), position + width
    return None if place is None or done < len(before) else (ids, place)
