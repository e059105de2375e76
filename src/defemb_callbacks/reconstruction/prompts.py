"""Prompts: how a definition becomes text, depending on the model's architecture and its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.definitions import Definition
from defemb_callbacks.reconstruction.backbone import has_decoder, reading_of

Family = Literal["encoder", "encoder-decoder", "decoder"]
PromptStyle = Literal["mask", "synonyms"]

# The last words of the "synonyms" prompt, after which the defined word is the likeliest continuation.
ENDING = ", i.e."

# T5's sentinels for masked spans: it was trained with up to a hundred; DefinitionEMB uses these.
_SENTINELS = tuple(f"<extra_id_{number}>" for number in range(4))


def family_of(model: PreTrainedModel) -> Family:
    """Family of a model: bidirectional ("encoder"), left to right ("decoder"), or "encoder-decoder".

    It is what the model does, not what it is called: a model is bidirectional if a later token changes the state of an
    earlier one. Only where its weights are elsewhere (sharded, offloaded), transformers' registry is asked.

    Args:
        model: Any model.

    Example:
        >>> from transformers import BertConfig, BertModel, GPT2Config, GPT2Model
        >>> family_of(BertModel(BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)))
        'encoder'
        >>> family_of(GPT2Model(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1)))
        'decoder'
    """
    if has_decoder(model):
        return "encoder-decoder"
    return "encoder" if reading_of(model).ahead else "decoder"


def slot_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the tokens that replace the first, second, … sub-token of the defined word; `()` if there are none.

    This is the mask token; otherwise T5's sentinels, one per sub-token, the fourth for all further ones; otherwise an
    entry that is spelled like a mask token (Gemma has one that its tokenizer does not declare). A token that the
    tokenizer splits in text is not used.

    Args:
        tokenizer: The model's tokenizer.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"[MASK]": 0, "[UNK]": 1}, unk_token="[UNK]"))
        >>> slot_tokens(PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]"))
        ('[MASK]',)
    """
    known = tokenizer.get_vocab()
    own = () if tokenizer.mask_token is None else (tokenizer.mask_token,)
    for names, most in ((own, 1), (_SENTINELS, len(_SENTINELS)), (("<mask>", "[MASK]"), 1)):
        found = tuple(name for name in names if name in known and _is_read_whole(name, known[name], tokenizer))
        if found:
            return found[:most]
    return ()


def _is_read_whole(token: str, index: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer(f"{token}: a", return_attention_mask=False, return_token_type_ids=False)["input_ids"]
    return ids.count(index) == 1


def mask_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the token that replaces the defined word in a prompt: the first of `slot_tokens`, or `""`."""
    return next(iter(slot_tokens(tokenizer)), "")


def definition_prompt(definition: Definition, word: str, mask: str) -> str:
    """`MASK, synonym, synonym: gloss`, with every occurrence of the word itself masked.

    The synonyms are those of the sense, and the lemma of an inflected form. The word is masked so that it can be
    inferred from its definition only.

    Args:
        definition: One definition of the word.
        word: The word as the tokenizer spells it, which may differ from the entry (inflected or lower-cased).
        mask: From `mask_text`.

    Example:
        >>> pet = Definition("cat", "a small feline; a cat purrs", synonyms=("true cat", "mouser"))
        >>> definition_prompt(pet, "cat", "[MASK]")
        '[MASK], true [MASK], mouser: a small feline; a [MASK] purrs'
        >>> definition_prompt(pet, "cats", "")
        'cat, true cat, mouser: a small feline; a cat purrs'
    """
    own = _pattern(word)
    others = [name for name in (definition.word, *definition.synonyms) if name.lower() != word.lower()]
    names = [mask, *dict.fromkeys(own.sub(mask, name).strip() for name in others)]
    head = ", ".join(name for name in names if name)
    gloss = own.sub(mask, definition.gloss)
    return f"{head}: {gloss}" if head else gloss


def synonyms_prompt(definition: Definition, word: str) -> str:
    """`Synonyms of synonym, synonym: gloss, i.e.`, which a decoder would continue with the defined word.

    The word itself is removed from the synonyms and replaced with "it" in the gloss.

    Args:
        definition: One definition of the word.
        word: The word as the tokenizer spells it.

    Example:
        >>> pet = Definition("cat", "a small feline; a cat purrs", synonyms=("true cat", "mouser"))
        >>> synonyms_prompt(pet, "cat")
        'Synonyms of true, mouser: a small feline; a it purrs, i.e.'
        >>> synonyms_prompt(Definition("cat", "a small feline"), "cat")
        'a small feline, i.e.'
    """
    own = _pattern(word)
    others = [name for name in (definition.word, *definition.synonyms) if name.lower() != word.lower()]
    names = [name for name in dict.fromkeys(own.sub("", name).strip() for name in others) if name]
    head = f"Synonyms of {', '.join(names)}: " if names else ""
    return f"{head}{own.sub('it', definition.gloss)}{ENDING}"


def prompt_style(model: PreTrainedModel) -> PromptStyle:
    """Return the prompt for a model: "synonyms" (`synonyms_prompt`) for decoders, else "mask" (`definition_prompt`).

    Args:
        model: Any model.
    """
    return "synonyms" if family_of(model) == "decoder" else "mask"


@lru_cache(maxsize=64)
def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class DefinitionTexts:
    """Definitions of words as tokenized texts without duplicates.

    Attributes:
        input_ids: Token ids of each text.
        text: (m,) int64, for each pair of a word and its definition, the index of the text.
        word: (m,) int64, the index of the word.
        weight: (m,) float32, the weight of the text in the mean of the word; the weights of a word add up to 1.
    """

    input_ids: list[list[int]]
    text: Tensor
    word: Tensor
    weight: Tensor

    @property
    def tokens(self) -> int:
        """Number of tokens to encode."""
        return sum(map(len, self.input_ids))


def sense_weights(definitions: Sequence[Definition]) -> list[float]:
    """Return the weight of each definition in the mean of a word: proportional to 1/rank within a dictionary.

    Each dictionary has the same total weight. Flatter weights, 1/√rank, predict MiniLM's rows slightly better (held-out
    R² 0.208 instead of 0.206), but the rows blended from them gain less word similarity (0.039 instead of 0.041).

    Args:
        definitions: Definitions of one word.

    Example:
        >>> cat = [Definition("cat", "a feline", source="a"), Definition("cat", "a gossip", rank=2, source="a")]
        >>> [round(weight, 3) for weight in sense_weights([*cat, Definition("cat", "a pet", source="b")])]
        [0.333, 0.167, 0.5]
    """
    mass: dict[str, float] = {}
    for definition in definitions:
        mass[definition.source] = mass.get(definition.source, 0.0) + 1 / definition.rank
    return [1 / definition.rank / mass[definition.source] / len(mass) for definition in definitions]


def definition_texts(
    words: Sequence[str],
    definitions: Sequence[Sequence[Definition]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    style: PromptStyle = "mask",
) -> DefinitionTexts:
    """Format the definitions of each word as prompts, and tokenize them.

    Args:
        words: Words, spelled as in the vocabulary.
        definitions: Definitions of each word, at least one.
        tokenizer: The model's tokenizer.
        max_length: Maximum number of tokens of a text, special tokens included. Longer texts are truncated; a
            "synonyms" prompt keeps its ending.
        style: The style of the prompt, from `prompt_style`.
    """
    mask = mask_text(tokenizer)
    texts: dict[str, int] = {}
    uses: list[tuple[int, int, float]] = []
    for position, (word, found) in enumerate(zip(words, definitions, strict=True)):
        for definition, weight in zip(found, sense_weights(found), strict=True):
            synonyms = style == "synonyms"
            prompt = synonyms_prompt(definition, word) if synonyms else definition_prompt(definition, word, mask)
            uses.append((texts.setdefault(prompt, len(texts)), position, weight))
    kept = _ending_length(tokenizer) if style == "synonyms" else 0
    encoded = _tokenized(list(texts), tokenizer, max_length, kept)
    text, word_of_use, weights = zip(*uses, strict=True)
    return DefinitionTexts(encoded, torch.tensor(text), torch.tensor(word_of_use), torch.tensor(weights))


def _tokenized(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, ending: int) -> list[list[int]]:
    """Token ids of texts of at most `max_length` tokens, the last `ending` of which are kept if there is room."""
    plain = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    if not 0 < ending < max_length:
        return tokenizer(texts, truncation=True, max_length=max_length, **plain)["input_ids"]
    encoded = tokenizer(texts, truncation=False, **plain)["input_ids"]
    return [ids if len(ids) <= max_length else [*ids[: max_length - ending], *ids[-ending:]] for ids in encoded]


def _ending_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of tokens of `ENDING` and of the special tokens after it."""
    special = set(tokenizer.all_special_ids)
    ids = tokenizer(f"it{ENDING}")["input_ids"]
    closing = next((count for count, index in enumerate(reversed(ids)) if index not in special), 0)
    return closing + len(tokenizer(ENDING, add_special_tokens=False)["input_ids"])
