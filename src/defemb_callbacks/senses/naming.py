"""A dictionary of senses for people: each sense by the definition that is nearest to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.build import definitions_of_tokens
from defemb_callbacks.definitions import Definition, Lexicon
from defemb_callbacks.reconstruction.encode import evaluating
from defemb_callbacks.senses.dictionary import SenseDictionary
from defemb_callbacks.senses.states import layer_states
from defemb_callbacks.vocabulary import Vocabulary


@dataclass(frozen=True)
class NamedSense:
    """A sense of a token, and what it seems to mean.

    Attributes:
        sense: its number within the token.
        share: of the token's samples.
        definition: the nearest one, or `None` where the token has none.
        cosine: of sense and definition, each less the mean of its kind for this token.
    """

    sense: int
    share: float
    definition: Definition | None
    cosine: float


def name_senses(
    dictionary: SenseDictionary,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lexicon: Lexicon,
    token_ids: Iterable[int],
    *,
    definitions_per_token: int = 8,
) -> dict[int, list[NamedSense]]:
    """Name the senses of tokens, the most frequent sense first.

    The model reads each definition as "gloss: word"; its state at the word, which has read the gloss, is the
    definition's vector. Senses and definitions are compared by cosine, less their means over the token: what all
    states of a token share says nothing about its senses. A nearest definition is named however far it is; the cosine
    tells.

    Args:
        dictionary: of this model.
        model: with any head, or none.
        tokenizer: the model's.
        lexicon: from `load_definitions`.
        token_ids: of tokens; those without senses have an empty list.
        definitions_per_token: at most, from each dictionary.

    Raises:
        ValueError: a dictionary of another model or tokenizer.
    """
    dictionary.check_tokenizer(tokenizer)
    dictionary.check_model(model)
    layer = dictionary.info["config"]["layer"]
    named = {}
    for token in token_ids:
        found = definitions_of_tokens(dictionary.vocabulary, lexicon, definitions_per_token, [token]).get(token, [])
        word = dictionary.vocabulary.words[token] or dictionary.vocabulary.tokens[token]
        read = [
            (definition, _definition_state(model, tokenizer, definition, word, token, layer)) for definition in found
        ]
        known = [(definition, state) for definition, state in read if state is not None]
        named[token] = _named(dictionary, token, known)
    return named


def tokens_of_words(vocabulary: Vocabulary, words: Iterable[str]) -> list[int]:
    """The token of each word.

    Raises:
        ValueError: a word that is no token.

    Example:
        >>> tokens_of_words(Vocabulary(("the", "Ġbank"), ("the", "bank"), (None, None), uncased=True), ["bank"])
        [1]
    """
    ids = {word: index for index, word in reversed(list(enumerate(vocabulary.words))) if word is not None}
    known = {token: index for index, token in enumerate(vocabulary.tokens)} | ids
    if missing := next((word for word in words if word not in known), None):
        raise ValueError(f"{missing!r} is no token of this model; only tokens have senses")
    return [known[word] for word in words]


def _definition_state(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    definition: Definition,
    word: str,
    token: int,
    layer: int,
) -> Tensor | None:
    """(d,): the state at the word; `None` where the tokenizer cuts it into other tokens here."""
    # The word comes last, so that a decoder has read the gloss when it reads it.
    ids = tokenizer(f"{definition.gloss}: {word}", truncation=True, return_token_type_ids=False)["input_ids"]
    places = [place for place, index in enumerate(ids) if index == token]
    if not places:
        return None
    with evaluating(model), torch.no_grad():
        states = layer_states(model, torch.tensor([ids], device=model.device), layer)
    return states[0, places[-1]].float().cpu()


def _named(dictionary: SenseDictionary, token: int, read: list[tuple[Definition, Tensor]]) -> list[NamedSense]:
    senses = slice(*dictionary.offsets[token : token + 2].tolist())
    vectors, counts = dictionary.vectors[senses].cpu(), dictionary.counts[senses].cpu().float()
    shares = counts / counts.sum()
    order = shares.argsort(descending=True, stable=True).tolist()
    if not read:
        return [NamedSense(sense, float(shares[sense]), None, 0.0) for sense in order]
    definitions = torch.stack([state for _, state in read])
    vectors = vectors - shares @ vectors
    cosines = torch.cosine_similarity(vectors[:, None], (definitions - definitions.mean(dim=0))[None], dim=2)
    best = cosines.max(dim=1)
    return [
        NamedSense(sense, float(shares[sense]), read[int(best.indices[sense])][0], float(best.values[sense]))
        for sense in order
    ]


def sense_table(dictionary: SenseDictionary, named: dict[int, list[NamedSense]]) -> str:
    """Named senses as lines of text: share of the samples, cosine, definition."""
    lines = []
    for token, senses in named.items():
        lines.append(f"{dictionary.vocabulary.tokens[token]}: {len(senses)} senses")
        for sense in senses:
            gloss = "(no definition)" if sense.definition is None else sense.definition.gloss
            cosine = "     " if sense.definition is None else f"{sense.cosine:5.2f}"
            lines.append(f"  {sense.sense:>4} {sense.share:>5.0%} {cosine}  {gloss}")
    return "\n".join(lines)
