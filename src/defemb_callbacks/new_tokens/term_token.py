"""A term with its tokens, and the tokens that its row is made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from defemb_callbacks.new_tokens.terms import Term
from defemb_callbacks.new_tokens.token_forms import at_word_start, known_id, model_kind, word_pieces

# What undecodable bytes are decoded to
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class TermToken:
    """A term and its tokens.

    Attributes:
        term: The term with its definitions.
        word: Id of the token at the start of a word.
        bare: Id of the token without a leading space, at the start of a text or in brackets, if the tokenizer
            distinguishes the two; else `None`.
        is_new: Whether the tokens are added, rather than only their rows rebuilt.
        pieces: Ids of the term's sub-tokens before; the token itself if it is not new.
        row_pieces: Ids that are averaged in its row: the pieces that the user gave, or the sub-tokens without parts of
            characters, whose rows have no meaning of their own.
        like: Ids of the tokens that its row is like, with weights that sum to 1.
    """

    term: Term
    word: int
    bare: int | None
    is_new: bool
    pieces: tuple[int, ...]
    row_pieces: tuple[int, ...] | None = None
    like: tuple[tuple[int, float], ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the term's tokens, the one at the start of a word first."""
        return (self.word,) if self.bare is None else (self.word, self.bare)

    @property
    def averaged(self) -> tuple[int, ...]:
        """The ids that are averaged in its row.

        None for special tokens, whose sub-tokens are brackets and bars, and for rows that are like other rows only.
        """
        options = self.term.options
        is_only_like = options.like and not self.term.definitions
        if not options.pieces and (options.special or is_only_like or not self.is_new):
            return ()
        return self.pieces if self.row_pieces is None else self.row_pieces

    @property
    def like_share(self) -> float:
        """The share of the rows that it is like in its row: half of it if there are other sources."""
        return 0.0 if not self.like else 0.5 if self.term.definitions or self.averaged else 1.0

    @property
    def replaces_row(self) -> bool:
        """Whether its row does not depend on its old one: new tokens, untrained special ones, rows like others."""
        return self.is_new or self.term.special or bool(self.like or self.term.options.pieces)


def single_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """Return the single token of a text at the start of a word, or of this spelling; `None` if it has several.

    Args:
        tokenizer: The tokenizer.
        text: The text.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordPiece({"[UNK]": 0, "cat": 1, "##s": 2}, unk_token="[UNK]"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
        >>> single_token(tokenizer, "cat"), single_token(tokenizer, "cats"), single_token(tokenizer, "##s")
        (1, None, 2)
    """
    ids = tokenizer(at_word_start(tokenizer, text), add_special_tokens=False)["input_ids"]
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return int(ids[0])
    # For BPE and Unigram, a token without the start-of-word mark is a word piece.
    return None if model_kind(tokenizer) in ("BPE", "Unigram") else known_id(tokenizer, text)


def known_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Return the token of a word, or with this text; otherwise the word's sub-tokens, without unknown ones.

    Args:
        tokenizer: The tokenizer.
        text: A word, or the text of a token, such as `"##ing"`.
    """
    index = single_token(tokenizer, text)
    index = known_id(tokenizer, text) if index is None else index
    return word_pieces(tokenizer, text) if index is None else (index,)


def parts_of_characters(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> set[int]:
    """Return the tokens that are only some bytes of a character, as byte-level BPE and byte fallback have them.

    Args:
        tokenizer: The tokenizer.
        ids: Tokens to check.
    """
    if model_kind(tokenizer) not in ("BPE", "Unigram"):
        return set()
    distinct = sorted(set(ids))
    texts = tokenizer.batch_decode([[index] for index in distinct])
    return {index for index, text in zip(distinct, texts, strict=True) if REPLACEMENT in text}


def has_source(term: Term) -> bool:
    """Return whether a term has a source of its row besides its sub-tokens.

    Args:
        term: The term.
    """
    return bool(term.definitions or term.options.like or term.options.pieces)


def row_sources(
    tokenizer: PreTrainedTokenizerBase, term: Term, existing: Mapping[str, int | None]
) -> tuple[tuple[int, ...], tuple[tuple[int, float], ...]]:
    """Return the given pieces of a term, and the tokens that it is like with weights that sum to 1.

    Args:
        tokenizer: The tokenizer without the new tokens.
        term: The term.
        existing: All terms, with their tokens; `None` for new ones.

    Raises:
        ValueError: If it names a word that is new itself, or of which the tokenizer knows no part.
    """

    def found(option: str, name: str) -> tuple[int, ...]:
        if name in existing and existing[name] is None:
            raise ValueError(
                f"`{option}` of {term.text!r} names {name!r}, which is a new token itself. Add it in an earlier call, "
                "or name other words."
            )
        ids = known_tokens(tokenizer, name)
        if not ids:
            raise ValueError(
                f"`{option}` of {term.text!r} names {name!r}, of which the tokenizer knows no part. Name other words."
            )
        return ids

    pieces = tuple(index for name in term.options.pieces for index in found("pieces", name))
    like = [(found("like", name), weight) for name, weight in term.options.like]
    total = sum(weight for _, weight in like)
    return pieces, tuple((index, weight / total / len(ids)) for ids, weight in like for index in ids)
