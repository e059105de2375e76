"""Look up the definitions of a vocabulary's tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from defemb_callbacks.definitions import Definition, Lexicon
from defemb_callbacks.vocabulary.tokens import OUTSIDE_TEXT, Vocabulary


def single_words(lexicon: Lexicon, max_definitions: int) -> list[tuple[str, list[Definition]]]:
    """All single words of a dictionary, not phrases, with at most `max_definitions` definitions from each source."""
    return [
        (word, [found for found in lexicon.lookup(word) if found.rank <= max_definitions])
        for word in lexicon.words
        if not any(char.isspace() or char == "_" for char in word)
    ]


def definitions_of_tokens(
    vocabulary: Vocabulary, lexicon: Lexicon, max_definitions: int, ids: Iterable[int] | None = None
) -> dict[int, list[Definition]]:
    """Look up the best definitions of each token.

    Tokens that are words are looked up as words. All tokens, including word pieces, numbers and symbols, are also
    looked up literally in users' glossaries. Special and unused tokens are skipped.

    Args:
        vocabulary: The tokens, from `read_vocabulary`.
        lexicon: The dictionary.
        max_definitions: The maximum number of definitions per token and source.
        ids: The ids of the tokens to look up; `None` looks up all tokens.

    Returns:
        The definitions by token id, in ascending order; tokens without definitions are left out.
    """
    found: dict[int, list[Definition]] = {}
    for index in range(len(vocabulary)) if ids is None else sorted(ids):
        token, word = vocabulary.tokens[index], vocabulary.words[index]
        if vocabulary.reasons[index] in OUTSIDE_TEXT:
            continue
        definitions = [] if word is None else lexicon.lookup(word, ignore_case=vocabulary.uncased)
        literal = lexicon.lookup_token(token)
        if not definitions and not literal:
            continue
        # A glossary's definitions of a literal token are added to those of the word from other dictionaries. If token
        # and word are spelled differently ("ĠGHz", "GHz"), they replace the same glossary's definitions of the word.
        overriding = {definition.source for definition in literal} if token != word else set()
        definitions = [definition for definition in definitions if definition.source not in overriding]
        used = {definition.source for definition in definitions}
        definitions += [definition for definition in literal if definition.source not in used]
        definitions = [definition for definition in definitions if definition.rank <= max_definitions]
        if definitions:
            found[index] = definitions
    return found


def why_none_is_defined(vocabulary: Vocabulary, lexicon: Lexicon) -> str:
    """Explain why a dictionary defines no token of a vocabulary, and what to do.

    Args:
        vocabulary: The tokens, none of which is defined.
        lexicon: The dictionary.

    Example:
        >>> letters = Vocabulary(("a", "b"), (None, None), ("single letter", "single letter"), uncased=True)
        >>> pets = Lexicon.from_definitions([Definition("cat", "a feline")], name="pets")
        >>> print(why_none_is_defined(letters, pets))
        The vocabulary has no words: its 2 tokens are single characters, bytes or word pieces. Use a model whose ...
    """
    if not len(vocabulary.word_ids):
        return (
            f"The vocabulary has no words: its {len(vocabulary):,} tokens are single characters, bytes or word pieces. "
            "Use a model whose tokenizer has whole words, or pass a glossary whose entries are tokens as the tokenizer "
            "writes them."
        )
    return (
        f"None of the {len(vocabulary):,} tokens has a definition in {lexicon.name} ({len(lexicon):,} words). "
        "Pass a dictionary in the tokenizer's language, with one word per entry."
    )


def lemma_groups(definitions: Sequence[Sequence[Definition]]) -> Tensor:
    """Group tokens that share a dictionary entry, such as "cat", "Cat" and "cats".

    Two tokens are in the same group if any of their definitions have the same entry word, ignoring case, or if a chain
    of other tokens connects them. A map fitted without a token's group has not seen another form of the same word.

    Args:
        definitions: The definitions of each token.

    Returns:
        (n,) int64, the group of each token, numbered from 0 in order of first appearance.

    Example:
        >>> cat, leaf, leave = (Definition(word, "…") for word in ("cat", "leaf", "leave"))
        >>> lemma_groups([[cat], [leaf], [Definition("Cat", "…")], [leaf, leave], [leave], []])
        tensor([0, 1, 0, 1, 1, 2])
    """
    # Imported here because scipy is slow to import.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    words: dict[str, int] = {}
    pairs = [
        (token, words.setdefault(definition.word.casefold(), len(words)))
        for token, found in enumerate(definitions)
        for definition in found
    ]
    # 32 bits, because scipy 1.11 accepts no others here.
    tokens, entries = np.array(pairs, dtype=np.int32).reshape(-1, 2).T
    size = len(definitions) + len(words)
    links = coo_array((np.ones(len(pairs)), (tokens, len(definitions) + entries)), shape=(size, size))
    _, component = connected_components(links, directed=False)
    return torch.from_numpy(component[: len(definitions)].astype(np.int64))


def first_glosses(vocabulary: Vocabulary, lexicon: Lexicon | None, ids: Tensor) -> dict[int, str]:
    """The best definition of each of these tokens, by token id; empty without a dictionary."""
    if lexicon is None:
        return {}
    found = definitions_of_tokens(vocabulary, lexicon, max_definitions=1, ids=ids.tolist())
    return {index: definitions[0].gloss for index, definitions in found.items()}
