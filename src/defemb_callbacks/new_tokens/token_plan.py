"""Plan which tokens terms become, and check that they match in running text and decode to the same text."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from defemb_callbacks.new_tokens.terms import Term
from defemb_callbacks.new_tokens.token_forms import (
    Form,
    FormCandidates,
    add_forms,
    at_word_start,
    id_of,
    inserts_spaces,
    known_id,
    model_kind,
)

# Each form is checked alone, in running text, before punctuation and in brackets.
CONTEXTS = ("{}", "the {} is", "of {}.", "({})")
NO_TOKEN = "split by the tokenizer, or decoded to another text"
INSERTS_SPACES = (
    f"{NO_TOKEN}, because this tokenizer inserts a space after every added token; load it with `legacy=False` to get "
    "`prepend_scheme='first'`"
)
NOT_DEFINED = "already a token, and without a definition"
NOTHING_KNOWN = "neither a definition nor known sub-tokens"


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
    """

    term: Term
    word: int
    bare: int | None
    is_new: bool
    pieces: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the term's tokens, the one at the start of a word first."""
        return (self.word,) if self.bare is None else (self.word, self.bare)


@dataclass(frozen=True)
class TokenPlan:
    """The tokens that terms become. It is computed on copies; only `extend` changes the tokenizer.

    Attributes:
        before: Copy of the tokenizer without the new tokens.
        after: Copy of the tokenizer with them.
        terms: All given terms.
        tokens: The terms that get a row, with their tokens.
        refused: The terms that get no row, by reason.
        forms: The forms of the new tokens, in the order of their ids.
    """

    before: PreTrainedTokenizerBase
    after: PreTrainedTokenizerBase
    terms: tuple[Term, ...]
    tokens: tuple[TermToken, ...]
    refused: dict[str, tuple[str, ...]]
    forms: tuple[Form, ...]

    def extend(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add the new tokens to the tokenizer that was planned for.

        Args:
            tokenizer: The tokenizer to change.
        """
        add_forms(tokenizer, self.forms)


def plan_tokens(tokenizer: PreTrainedTokenizerBase, terms: Sequence[Term], words: Iterable[str] = ()) -> TokenPlan:
    """Plan which tokens terms become.

    WordPiece tokenizers, and others whose tokens contain no spaces, get added tokens that match whole words. BPE
    tokenizers, whose tokens include the leading space, get one token with the space and one without it; but only the
    one without if the term is the beginning of other known words, because an added token with a space also matches
    there. Unigram tokenizers get new pieces, just likely enough to be preferred to the sub-tokens: after added tokens
    they would insert spaces.

    Each form is tested: text with the term must contain it, and must decode to the text, or as it did before.

    Args:
        tokenizer: The tokenizer; not changed.
        terms: The terms; see `read_terms`.
        words: Known words besides those of the vocabulary.

    Returns:
        The plan.

    Raises:
        ValueError: If a term is a special token, or two terms are the same token.

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
    _check_not_special(before, terms)
    _check_distinct(before, terms)
    existing = {term.text: single_token(before, term.text) for term in terms}
    candidates = FormCandidates(before, words)
    options: dict[str, list[list[Form]]] = {}
    reasons: dict[str, str] = {}
    for term in terms:
        if existing[term.text] is None and (term.definitions or candidates.pieces(term.text)):
            options[term.text] = candidates.alternatives(term.text)
        elif not term.definitions:
            reasons[term.text] = NOTHING_KNOWN if existing[term.text] is None else NOT_DEFINED
    chosen: dict[str, list[Form]] = {}
    after, added = copy.deepcopy(before), list[Form]()
    while trial := {text: ways[0] for text, ways in options.items() if text not in chosen and ways}:
        after, added = copy.deepcopy(before), [form for forms in trial.values() for form in forms]
        add_forms(after, added)
        passed = _round_trips(before, after, trial)
        chosen |= {text: forms for text, forms in trial.items() if text in passed}
        options = {text: ways[1:] for text, ways in options.items()}
    forms = [form for text in options for form in chosen.get(text, ())]
    if forms != added:  # the last trial contains others, or not all
        after = copy.deepcopy(before)
        add_forms(after, forms)

    tokens = []
    for term in terms:
        index = existing[term.text]
        if term.text in reasons:
            continue
        if index is not None:
            tokens.append(TermToken(term, index, _existing_bare(before, term.text, index), False, (index,)))
        elif term.text in chosen:
            ids = {form.place: id_of(after, form) for form in chosen[term.text]}
            word, bare = (ids["word"], ids.get("bare")) if "word" in ids else (ids["bare"], None)
            tokens.append(TermToken(term, word, bare, True, candidates.pieces(term.text)))
        else:
            reasons[term.text] = INSERTS_SPACES if inserts_spaces(before) else NO_TOKEN
    refused = {
        reason: tuple(text for text, found in reasons.items() if found == reason)
        for reason in dict.fromkeys(reasons.values())
    }
    return TokenPlan(before, after, tuple(terms), tuple(tokens), refused, tuple(forms))


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


def _existing_bare(tokenizer: PreTrainedTokenizerBase, text: str, word: int) -> int | None:
    """The bare token of a term that was added earlier: its id follows the word's, unlike that of a word piece."""
    bare = known_id(tokenizer, text) if model_kind(tokenizer) in ("BPE", "Unigram") else None
    return bare if bare == word + 1 else None


def _round_trips(
    before: PreTrainedTokenizerBase, trial: PreTrainedTokenizerBase, forms: dict[str, list[Form]]
) -> set[str]:
    """The terms of which a form matches in running text, and whose text is decoded as well as before."""
    names = list(forms)
    texts = [context.format(name) for name in names for context in CONTEXTS]
    ids, ids_before = (tokenizer(texts, add_special_tokens=False)["input_ids"] for tokenizer in (trial, before))
    same = [
        decoded in (text, decoded_before) or model_kind(before) not in ("BPE", "Unigram")
        for text, decoded, decoded_before in zip(
            texts, trial.batch_decode(ids), before.batch_decode(ids_before), strict=True
        )
    ]
    passed = set()
    for position, name in enumerate(names):
        part = slice(position * len(CONTEXTS), (position + 1) * len(CONTEXTS))
        in_text = ids[part][1]
        if all(same[part]) and any(id_of(trial, form) in in_text for form in forms[name]):
            passed.add(name)
    return passed


def _check_not_special(tokenizer: PreTrainedTokenizerBase, terms: Sequence[Term]) -> None:
    added = tokenizer.added_tokens_decoder.values()
    special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    for term in terms:
        if term.text in special:
            raise ValueError(f"{term.text!r} is a special token of this tokenizer. Give the term another name.")


def _check_distinct(tokenizer: PreTrainedTokenizerBase, terms: Sequence[Term]) -> None:
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    seen: dict[str, str] = {}
    for term in terms:
        first = seen.setdefault(normalizer.normalize_str(term.text) if normalizer else term.text, term.text)
        if first != term.text:
            raise ValueError(
                f"The terms {first!r} and {term.text!r} are the same token for this tokenizer. Give one of them, with "
                "all definitions in a list."
            )
