"""Plan which tokens terms become, and check that they match in running text and decode to the same text."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from defemb_callbacks.new_tokens.reserved import reserved_tokens
from defemb_callbacks.new_tokens.term_token import (
    TermToken,
    has_source,
    parts_of_characters,
    row_sources,
    single_token,
)
from defemb_callbacks.new_tokens.terms import Term
from defemb_callbacks.new_tokens.token_forms import (
    Form,
    FormCandidates,
    add_forms,
    id_of,
    inserts_spaces,
    known_id,
    model_kind,
    word_pieces,
)

logger = logging.getLogger(__name__)

# Each form is checked alone, in running text, before punctuation and in brackets.
CONTEXTS = ("{}", "the {} is", "of {}.", "({})")
# Tokenizers may insert a space between a special token and the text after it, as between their own.
SPECIAL_CONTEXTS, TIGHT = ("{}", "the {} is"), "the{}is"
NO_TOKEN = "split by the tokenizer, or decoded to another text"
INSERTS_SPACES = (
    f"{NO_TOKEN}, because this tokenizer inserts a space after every added token; load it with `legacy=False` to get "
    "`prepend_scheme='first'`"
)
NOT_DEFINED = "already a token, and without a definition"
NOTHING_KNOWN = "neither a definition nor known sub-tokens"


@dataclass(frozen=True)
class TokenPlan:
    """The tokens that terms become. It is computed on copies; only `extend` changes the tokenizer.

    Attributes:
        before: Copy of the tokenizer without the new tokens.
        after: Copy of the tokenizer with them.
        terms: All given terms.
        tokens: The terms that get a row, with their tokens.
        refused: The terms that get no row, by reason.
        forms: The forms of the new tokens.
        reserved: Reserved tokens that may be renamed into new ones.
    """

    before: PreTrainedTokenizerBase
    after: PreTrainedTokenizerBase
    terms: tuple[Term, ...]
    tokens: tuple[TermToken, ...]
    refused: dict[str, tuple[str, ...]]
    forms: tuple[Form, ...]
    reserved: tuple[str, ...] = ()

    @property
    def renamed(self) -> dict[str, str]:
        """The texts of the reserved tokens that are renamed, with their new texts."""
        before, after = self.before.get_vocab(), self.after
        gone = (token for token in self.reserved if after.convert_ids_to_tokens(before[token]) != token)
        return {token: str(after.convert_ids_to_tokens(before[token])) for token in gone}

    def extend(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add the new tokens to the tokenizer that was planned for.

        Args:
            tokenizer: The tokenizer to change.
        """
        add_forms(tokenizer, self.forms, self.reserved)


def plan_tokens(
    tokenizer: PreTrainedTokenizerBase,
    terms: Sequence[Term],
    words: Iterable[str] = (),
    *,
    reuse_reserved: bool = False,
) -> TokenPlan:
    """Plan which tokens terms become.

    WordPiece tokenizers, and others whose tokens contain no spaces, get added tokens that match whole words. BPE
    tokenizers, whose tokens include the leading space, get one token with the space and one without it; but only the
    one without if the term is the beginning of other known words, because an added token with a space also matches
    there. Unigram tokenizers get new pieces, just likely enough to be preferred to the sub-tokens: after added tokens
    they would insert spaces.

    Special terms become special tokens: they are never split, and may be skipped in decoding. One that exists is kept.

    Each form is tested: text with the term must contain it, and must decode to the text, or as it did before.

    Args:
        tokenizer: The tokenizer; not changed.
        terms: The terms; see `read_terms`.
        words: Known words besides those of the vocabulary.
        reuse_reserved: Whether to rename reserved tokens of a fast tokenizer, such as `<unused12>`, instead of adding
            tokens. New Unigram pieces are added all the same, as are further tokens when no reserved one is left.

    Returns:
        The plan.

    Raises:
        ValueError: If a term that is not special is a special token, a special one has a role such as padding, or two
            terms are the same token; if a term is like a word that is unknown or new; if `reuse_reserved` is set, but
            the tokenizer is slow or has no reserved token.

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
    reserved = _free_reserved_tokens(before) if reuse_reserved else ()
    existing = {
        term.text: known_id(before, term.text) if term.special else single_token(before, term.text) for term in terms
    }
    given = {term.text: row_sources(before, term, existing) for term in terms}
    pieces = {term.text: word_pieces(before, term.text) for term in terms}
    partial = parts_of_characters(before, (index for ids in pieces.values() for index in ids))
    candidates = FormCandidates(before, words)
    options: dict[str, list[list[Form]]] = {}
    reasons: dict[str, str] = {}
    for term in terms:
        if term.special:
            options[term.text] = [[Form(term.text, "word", special=True)]]
        elif existing[term.text] is None and (has_source(term) or set(pieces[term.text]) - partial):
            options[term.text] = candidates.alternatives(term.text)
        elif not has_source(term):
            reasons[term.text] = NOTHING_KNOWN if existing[term.text] is None else NOT_DEFINED
    chosen: dict[str, list[Form]] = {}
    after, added = copy.deepcopy(before), list[Form]()
    while trial := {text: ways[0] for text, ways in options.items() if text not in chosen and ways}:
        after, added = copy.deepcopy(before), [form for forms in trial.values() for form in forms]
        add_forms(after, added, reserved)
        passed = _round_trips(before, after, trial)
        chosen |= {text: forms for text, forms in trial.items() if text in passed}
        options = {text: ways[1:] for text, ways in options.items()}
    forms = [form for text in options for form in chosen.get(text, ())]
    if forms != added:  # the last trial contains others, or not all
        after = copy.deepcopy(before)
        add_forms(after, forms, reserved)
    _warn_of_inserted_spaces(after, forms)

    tokens = []
    bare_ids = _added_ids(before)
    for term in terms:
        index = existing[term.text]
        if term.text in reasons:
            continue
        if index is not None and not (term.special and term.text not in chosen):
            bare = None if term.special else _existing_bare(before, term.text, index, bare_ids)
            tokens.append(TermToken(term, index, bare, False, (index,), *given[term.text]))
        elif term.text in chosen:
            ids = {form.place: id_of(after, form) for form in chosen[term.text]}
            word, bare = (ids["word"], ids.get("bare")) if "word" in ids else (ids["bare"], None)
            own, (named, like) = pieces[term.text], given[term.text]
            averaged = named or tuple(piece for piece in own if piece not in partial)
            tokens.append(TermToken(term, word, bare, True, own, averaged, like))
        else:
            reasons[term.text] = INSERTS_SPACES if inserts_spaces(before) else NO_TOKEN
    refused = {
        reason: tuple(text for text, found in reasons.items() if found == reason)
        for reason in dict.fromkeys(reasons.values())
    }
    return TokenPlan(before, after, tuple(terms), tuple(tokens), refused, tuple(forms), reserved)


def _added_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return set(tokenizer.added_tokens_decoder)


def _existing_bare(tokenizer: PreTrainedTokenizerBase, text: str, word: int, added: set[int]) -> int | None:
    """The bare token of a term that was added earlier: its id follows the word's, or is that of an added token."""
    bare = known_id(tokenizer, text) if model_kind(tokenizer) in ("BPE", "Unigram") else None
    return bare if bare == word + 1 or (bare in added and bare != word) else None


def _round_trips(
    before: PreTrainedTokenizerBase, trial: PreTrainedTokenizerBase, forms: Mapping[str, Sequence[Form]]
) -> set[str]:
    """The terms of which a form matches in running text, and whose text is decoded as well as before."""
    texts, owners = [], []
    for name, its in forms.items():
        contexts = SPECIAL_CONTEXTS if its[0].special else CONTEXTS
        texts += [context.format(name) for context in contexts]
        owners += [name] * len(contexts)
    ids, ids_before = (tokenizer(texts, add_special_tokens=False)["input_ids"] for tokenizer in (trial, before))
    exact = model_kind(before) in ("BPE", "Unigram")
    wanted = {name: {id_of(trial, form) for form in its} for name, its in forms.items()}
    passed, found = set(forms), set[str]()
    decoded, decoded_before = trial.batch_decode(ids), before.batch_decode(ids_before)
    for place, (name, text) in enumerate(zip(owners, texts, strict=True)):
        if exact and decoded[place] not in (text, decoded_before[place]):
            passed.discard(name)
        if text == CONTEXTS[1].format(name) and wanted[name] & set(ids[place]):
            found.add(name)
    return passed & found


def _warn_of_inserted_spaces(tokenizer: PreTrainedTokenizerBase, forms: Sequence[Form]) -> None:
    text = next((TIGHT.format(form.text) for form in forms if form.special), None)
    if text is None or model_kind(tokenizer) not in ("BPE", "Unigram"):
        return
    decoded = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    if decoded != text:
        logger.warning(
            "This tokenizer inserts spaces after special tokens: %r is decoded as %r. To avoid it, set the "
            "pre-tokenizer's prepend_scheme to 'first', or write spaces around them.",
            text,
            decoded,
        )


def _free_reserved_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    kind = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ValueError(
            f"Tokens of the slow tokenizer {kind} cannot be renamed. Load the fast tokenizer (use_fast=True), or set "
            "reuse_reserved=False."
        )
    found = reserved_tokens(tokenizer)
    if not found:
        raise ValueError(f"{kind} has no free reserved token, such as <unused12>, to rename. Set reuse_reserved=False.")
    return found


def _check_not_special(tokenizer: PreTrainedTokenizerBase, terms: Sequence[Term]) -> None:
    added = tokenizer.added_tokens_decoder.values()
    special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    roles = {str(token): role for role, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    for term in terms:
        if term.special and term.text in roles:
            raise ValueError(
                f"{term.text!r} is the {roles[term.text]} of this tokenizer, whose row is trained. Give the term "
                "another name."
            )
        if term.text in special and not term.special:
            raise ValueError(
                f"{term.text!r} is a special token of this tokenizer. Give the term another name, or mark it with "
                '"special": True to write its row.'
            )


def _check_distinct(tokenizer: PreTrainedTokenizerBase, terms: Sequence[Term]) -> None:
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    seen: dict[str, str] = {}
    for term in terms:
        if term.special:  # not normalized
            continue
        first = seen.setdefault(normalizer.normalize_str(term.text) if normalizer else term.text, term.text)
        if first != term.text:
            raise ValueError(
                f"The terms {first!r} and {term.text!r} are the same token for this tokenizer. Give one of them, with "
                "all definitions in a list."
            )
