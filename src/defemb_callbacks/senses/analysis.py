"""Inspect sense dictionaries: name senses by definitions, and measure how well they fit hidden states."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.definitions import Definition, Lexicon
from defemb_callbacks.reconstruction.backbone import evaluating
from defemb_callbacks.reporting.tables import text_table
from defemb_callbacks.senses.dictionary import SenseDictionary
from defemb_callbacks.senses.model import check_model, check_tokenizer
from defemb_callbacks.senses.sampling import layer_states
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens
from defemb_callbacks.vocabulary.tokens import Vocabulary


@dataclass(frozen=True)
class NamedSense:
    """A sense of a token and its nearest definition.

    Attributes:
        sense: Index within the token.
        share: Share of the token's samples.
        definition: The nearest definition, or `None` if the token has none.
        cosine: Cosine of sense and definition, each centred over the token.
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
    """Find the nearest definition of each sense; the most frequent senses come first.

    The vector of a definition is the hidden state of the word in the prompt "gloss: word". Senses and definitions are
    compared by cosine after centring both over the token, because what all states of a token share is uninformative
    about its senses. The nearest definition may still be far away: check the cosine.

    Args:
        dictionary: Sense dictionary of the model.
        model: Any model, with or without a head.
        tokenizer: The tokenizer of the model.
        lexicon: Output of `load_definitions`.
        token_ids: Token ids; a token without senses gets an empty list.
        definitions_per_token: Maximum number of definitions per token from each dictionary.

    Raises:
        ValueError: If the dictionary belongs to another model or tokenizer.
    """
    check_tokenizer(dictionary, tokenizer)
    check_model(dictionary, model)
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
    """Token id of each word.

    Raises:
        ValueError: If a word is not a single token.

    Example:
        >>> tokens_of_words(Vocabulary(("the", "Ġbank"), ("the", "bank"), (None, None), uncased=True), ["bank"])
        [1]
    """
    ids = {word: index for index, word in reversed(list(enumerate(vocabulary.words))) if word is not None}
    known = {token: index for index, token in enumerate(vocabulary.tokens)} | ids
    if missing := next((word for word in words if word not in known), None):
        raise ValueError(f"{missing!r} is not a token of this model. Pass words that are single tokens.")
    return [known[word] for word in words]


def _definition_state(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    definition: Definition,
    word: str,
    token: int,
    layer: int,
) -> Tensor | None:
    """Hidden state of the word, (d,); `None` if the tokenizer splits the word differently in this context."""
    # The word comes last, so that a decoder has read the gloss before it.
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
    """Format named senses as lines of text: index, share of the samples, cosine, definition."""
    lines = []
    for token, senses in named.items():
        rows = []
        for sense in senses:
            gloss = "(no definition)" if sense.definition is None else sense.definition.gloss
            cosine = "" if sense.definition is None else f"{sense.cosine:.2f}"
            rows.append([str(sense.sense), f"{sense.share:.0%}", cosine, gloss])
        lines.append(f"{dictionary.vocabulary.tokens[token]}: {len(senses)} senses")
        lines.append(textwrap.indent(text_table(rows, align=">>><"), "  "))
    return "\n".join(lines)


# States per lookup.
_BLOCK = 8192


def measure_senses(
    dictionary: SenseDictionary, states: Tensor, token_ids: Tensor, groups: Mapping[str, Tensor]
) -> dict[str, float]:
    """Evaluate a dictionary on hidden states of its tokens.

    - `defemb/senses/<group>`: mean number of senses of the group's tokens that have any.
    - `defemb/sense_error/<group>`: sum of squared distances of states to their senses, divided by the sum of squared
      distances to the mean state of their token (fraction of variance unexplained). 0 is perfect, 1 is as good as one
      vector per token. Tokens with a single state are excluded.
    - `defemb/sense_entropy/<group>`: how evenly senses are used, from 0 to 1: the entropy of the selected senses of a
      token divided by its maximum, ln min(number of senses, number of states); mean over the states of tokens with
      several senses.

    A metric is omitted for a group without such tokens.

    Args:
        dictionary: The dictionary, on any device.
        states: Shape (n, d), float32.
        token_ids: Shape (n,), int64.
        groups: Token ids of each group, as `frequency_groups` returns them.

    Example:
        >>> from defemb_callbacks.vocabulary.tokens import Vocabulary
        >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> vocabulary = Vocabulary(("bank",), ("bank",), (None,), uncased=True)
        >>> dictionary = SenseDictionary(torch.tensor([0, 2]), vectors, torch.ones(2, dtype=torch.int64), vocabulary)
        >>> found = measure_senses(dictionary, vectors, torch.tensor([0, 0]), {"all": torch.tensor([0])})
        >>> found["defemb/senses/all"], found["defemb/sense_error/all"], round(found["defemb/sense_entropy/all"], 3)
        (2.0, 0.0, 1.0)
    """
    size = len(dictionary.vocabulary)
    seen = torch.bincount(token_ids, minlength=size)
    means = torch.zeros(size, states.shape[1]).index_add_(0, token_ids, states) / seen.clamp(min=1)[:, None]
    error, variance = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    numbers = dictionary.offsets.diff().cpu()
    used = torch.zeros(size, max(dictionary.most_senses, 1), dtype=torch.float64)
    device = dictionary.vectors.device
    for block, ids in zip(states.split(_BLOCK), token_ids.split(_BLOCK), strict=True):
        chosen = dictionary.choose(block.to(device), ids.to(device)).cpu()
        senses = dictionary.lookup(block.to(device), ids.to(device)).cpu()
        error.index_add_(0, ids, (block - senses).square().sum(dim=1).double())
        variance.index_add_(0, ids, (block - means[ids]).square().sum(dim=1).double())
        known = chosen >= 0
        used.index_put_((ids[known], chosen[known]), torch.ones(int(known.sum()), dtype=torch.float64), accumulate=True)
    shares = used / seen.clamp(min=1)[:, None]
    entropy = torch.special.entr(shares).sum(dim=1) / torch.minimum(numbers, seen).clamp(min=2).double().log()
    found = {}
    for name, ids in groups.items():
        with_senses = ids[numbers[ids] > 0]
        several, varied = ids[(numbers[ids] > 1) & (seen[ids] > 1)], ids[seen[ids] > 1]
        if len(with_senses):
            found[f"defemb/senses/{name}"] = float(numbers[with_senses].double().mean())
        if float(variance[varied].sum()) > 0:
            found[f"defemb/sense_error/{name}"] = float(error[varied].sum() / variance[varied].sum())
        if len(several):
            weight = seen[several].double()
            found[f"defemb/sense_entropy/{name}"] = float((entropy[several] * weight).sum() / weight.sum())
    return found
