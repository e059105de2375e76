"""The definitions of a vocabulary's tokens."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from defemb_callbacks.definitions import Definition, Lexicon
from defemb_callbacks.vocabulary.tokens import OUTSIDE_TEXT, Vocabulary


def single_words(lexicon: Lexicon, most: int) -> list[tuple[str, list[Definition]]]:
    """Every word of a dictionary that is written without a space, and its best definitions from each source."""
    return [
        (word, [found for found in lexicon.lookup(word) if found.rank <= most])
        for word in lexicon.words
        if not any(char.isspace() or char == "_" for char in word)
    ]


def definitions_of_tokens(
    vocabulary: Vocabulary, lexicon: Lexicon, most: int, among: Iterable[int] | None = None
) -> dict[int, list[Definition]]:
    """The best definitions of each token that has any, by token id in growing order.

    Words are looked up as words. All tokens, also word pieces, numbers and symbols, are asked for literally in
    glossaries; special and unused ones not at all.

    Args:
        vocabulary: from `read_vocabulary`.
        lexicon: the dictionary.
        most: definitions of a token from each dictionary.
        among: ids of the tokens to look up; all if None.
    """
    found: dict[int, list[Definition]] = {}
    for index in range(len(vocabulary)) if among is None else sorted(among):
        token, word = vocabulary.tokens[index], vocabulary.words[index]
        if vocabulary.reasons[index] in OUTSIDE_TEXT:
            continue
        definitions = [] if word is None else lexicon.lookup(word, ignore_case=vocabulary.uncased)
        literal = lexicon.lookup_token(token)
        # What a glossary says of the literal token adds to what other dictionaries say of the word, and, where the two
        # are spelled differently ("ĠGHz", "GHz"), stands instead of what it says of the word.
        exact = {definition.source for definition in literal} if token != word else set()
        definitions = [definition for definition in definitions if definition.source not in exact]
        answered = {definition.source for definition in definitions}
        definitions += [definition for definition in literal if definition.source not in answered]
        definitions = [definition for definition in definitions if definition.rank <= most]
        if definitions:
            found[index] = definitions
    return found


def first_glosses(vocabulary: Vocabulary, lexicon: Lexicon | None, ids: Tensor) -> dict[int, str]:
    """The first definition of each of these tokens that has one, by id; none without a dictionary."""
    if lexicon is None:
        return {}
    found = definitions_of_tokens(vocabulary, lexicon, most=1, among=ids.tolist())
    return {index: definitions[0].gloss for index, definitions in found.items()}
