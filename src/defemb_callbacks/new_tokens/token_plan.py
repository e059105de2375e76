"""Terms as tokens of any tokenizer: found at the start of a word in running text, and decoded to the same text."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from defemb_callbacks.new_tokens.terms import Term
from defemb_callbacks.new_tokens.token_forms import (
    Candidates,
    Form,
    add_forms,
    at_word_start,
    id_of,
    known_id,
    model_kind,
)

# What a form must survive: alone, in running text, before punctuation and in brackets.
CONTEXTS = ("{}", "the {} is", "of {}.", "({})")
NO_TOKEN = "cut apart by this tokenizer, or decoded to another text"
NOT_DEFINED = "a token already, without a definition"
NOTHING_KNOWN = "neither a definition nor sub-tokens"


@dataclass(frozen=True)
class TermToken:
    """A term and the tokens that stand for it.

    Attributes:
        term: with its definitions.
        word: id of the token at the start of a word.
        bare: id of the token where no space comes before, at the start of a text or in brackets, for tokenizers that
            tell the two apart; `None` elsewhere.
        is_new: whether the tokens are, and not only their rows.
        pieces: ids of what the term was cut into; the token itself where it is not new.
    """

    term: Term
    word: int
    bare: int | None
    is_new: bool
    pieces: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens of the term, the one at the start of a word first."""
        return (self.word,) if self.bare is None else (self.word, self.bare)


@dataclass(frozen=True)
class TokenPlan:
    """Which tokens terms become, worked out on copies: nothing is changed before `extend`.

    Attributes:
        before: the tokenizer without the new tokens.
        after: the tokenizer with them.
        terms: all that were given.
        tokens: a token or two for each term that gets a row.
        refused: terms that get no row, by reason.
        forms: of the new tokens, in the order of their ids.
    """

    before: PreTrainedTokenizerBase
    after: PreTrainedTokenizerBase
    terms: tuple[Term, ...]
    tokens: tuple[TermToken, ...]
    refused: dict[str, tuple[str, ...]]
    forms: tuple[Form, ...]

    def extend(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add the new tokens to the tokenizer that the plan was made for."""
        add_forms(tokenizer, self.forms)


def plan_tokens(tokenizer: PreTrainedTokenizerBase, terms: Sequence[Term], words: Iterable[str] = ()) -> TokenPlan:
    """Work out which tokens terms become.

    WordPiece, and any tokenizer whose text shows no spaces, gets added tokens that match whole words. BPE, where the
    space is a part of the token, gets one with the space and one without it; where the term begins other words that are
    known, only the one without, as none with a space can be kept from matching the beginning of a longer word. Unigram
    models get pieces of their own, just likely enough to be preferred to the sub-tokens: added tokens would leave
    spaces before whatever follows them.

    Each form is tried out: text with the term must contain it, and decode to the same text as it did before, or better.

    Args:
        tokenizer: stays as it is.
        terms: see `read_terms`.
        words: known words besides those of the vocabulary.

    Raises:
        ValueError: a term that is a special token, or two that are the same token.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> from defemb_callbacks.definitions import Definition
        >>> backend = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1}, unk_token="[UNK]"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
        >>> lynx = Term("lynx", (Definition("lynx", "a wild cat"),))
        >>> cat = Term("cat", (Definition("cat", "a small feline"),))
        >>> plan = plan_tokens(tokenizer, [lynx, cat])
        >>> [(token.term.text, token.word, token.is_new) for token in plan.tokens]
        [('lynx', 2, True), ('cat', 1, False)]
        >>> plan.after.tokenize("a lynx"), tokenizer.tokenize("a lynx")
        (['[UNK]', 'lynx'], ['[UNK]', '[UNK]'])
    """
    before = copy.deepcopy(tokenizer)
    _refuse_special(before, terms)
    _refuse_doubles(before, terms)
    existing = {term.text: single_token(before, term.text) for term in terms}
    candidates = Candidates(before, words)
    options: dict[str, list[list[Form]]] = {}
    reasons: dict[str, str] = {}
    for term in terms:
        if existing[term.text] is None and (term.definitions or candidates.pieces(term.text)):
            options[term.text] = candidates.of(term.text)
        elif not term.definitions:
            reasons[term.text] = NOTHING_KNOWN if existing[term.text] is None else NOT_DEFINED
    chosen: dict[str, list[Form]] = {}
    after, added = copy.deepcopy(before), list[Form]()
    while waiting := {text: ways[0] for text, ways in options.items() if text not in chosen and ways}:
        after, added = copy.deepcopy(before), [form for forms in waiting.values() for form in forms]
        add_forms(after, added)
        good = _round_trips(before, after, waiting)
        chosen |= {text: forms for text, forms in waiting.items() if text in good}
        options = {text: ways[1:] for text, ways in options.items()}
    forms = [form for text in options for form in chosen.get(text, ())]
    if forms != added:  # some of the last ones tried are not, or not all that are wanted
        after = copy.deepcopy(before)
        add_forms(after, forms)

    tokens = []
    for term in terms:
        index = existing[term.text]
        if term.text in reasons:
            continue
        if index is not None:
            tokens.append(TermToken(term, index, _bare_beside(before, term.text, index), False, (index,)))
        elif term.text in chosen:
            ids = {form.place: id_of(after, form) for form in chosen[term.text]}
            word, bare = (ids["word"], ids.get("bare")) if "word" in ids else (ids["bare"], None)
            tokens.append(TermToken(term, word, bare, True, candidates.pieces(term.text)))
        else:
            reasons[term.text] = NO_TOKEN
    refused = {
        reason: tuple(text for text, found in reasons.items() if found == reason)
        for reason in dict.fromkeys(reasons.values())
    }
    return TokenPlan(before, after, tuple(terms), tuple(tokens), refused, tuple(forms))


def single_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The token that a text is at the start of a word, or literally; `None` where it takes several.

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
    # Without its mark a word of BPE or Unigram is but a word piece.
    return None if model_kind(tokenizer) in ("BPE", "Unigram") else known_id(tokenizer, text)


def _bare_beside(tokenizer: PreTrainedTokenizerBase, text: str, word: int) -> int | None:
    """The bare token of a term that was added earlier: such two have successive ids, and no word piece is meant."""
    bare = known_id(tokenizer, text) if model_kind(tokenizer) in ("BPE", "Unigram") else None
    return bare if bare == word + 1 else None


def _round_trips(
    before: PreTrainedTokenizerBase, trial: PreTrainedTokenizerBase, forms: dict[str, list[Form]]
) -> set[str]:
    """The terms that are found, in at least one form, in running text, and decoded no worse than before."""
    names = list(forms)
    texts = [context.format(name) for name in names for context in CONTEXTS]
    cut, was_cut = (tokenizer(texts, add_special_tokens=False)["input_ids"] for tokenizer in (trial, before))
    same = [
        made in (text, old) or model_kind(before) not in ("BPE", "Unigram")
        for text, made, old in zip(texts, trial.batch_decode(cut), before.batch_decode(was_cut), strict=True)
    ]
    good = set()
    for position, name in enumerate(names):
        part = slice(position * len(CONTEXTS), (position + 1) * len(CONTEXTS))
        in_text = cut[part][1]
        if all(same[part]) and any(id_of(trial, form) in in_text for form in forms[name]):
            good.add(name)
    return good


def _refuse_special(tokenizer: PreTrainedTokenizerBase, terms: Sequence[Term]) -> None:
    added = tokenizer.added_tokens_decoder.values()
    special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    for term in terms:
        if term.text in special:
            raise ValueError(f"{term.text!r} is a special token of this tokenizer; give the term another name.")


def _refuse_doubles(tokenizer: PreTrainedTokenizerBase, terms: Sequence[Term]) -> None:
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    seen: dict[str, str] = {}
    for term in terms:
        first = seen.setdefault(normalizer.normalize_str(term.text) if normalizer else term.text, term.text)
        if first != term.text:
            raise ValueError(
                f"The terms {first!r} and {term.text!r} are one token for this tokenizer; give one of them, with all "
                "definitions in a list."
            )
