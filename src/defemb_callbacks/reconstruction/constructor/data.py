"""The constructor's data: definitions as rows with masked sub-tokens, the collator, and the words' sub-tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.constructor_config import Masking
from defemb_callbacks.definitions import Definition
from defemb_callbacks.reconstruction.prompts import Family, definition_prompt, family_of, sense_weights, slot_tokens

FEATURES = Features(
    input_ids=List(Value("int32")),
    decoder_input_ids=List(Value("int32")),
    position=Value("int32"),
    labels=List(Value("int32")),
    word=Value("int32"),
    weight=Value("float32"),
    redrawn=Value("bool"),
)

DefinedWords = Sequence[tuple[str, Sequence[Definition]]]

# Longer words of a dictionary are mostly names of chemicals and the like.
MAX_SUB_TOKENS = 8

# With "random" masking: the shares of targets that stay masked and that are replaced by a random token.
MASKED, RANDOM = 0.5, 0.25


@dataclass(frozen=True)
class ReadingStyle:
    """How definitions are presented to a model.

    - An encoder reads `mask, synonym: gloss`; the row is predicted from the state at the mask.
    - An encoder-decoder reads the same; the decoder reads the text before the mask, and the row is predicted from the
      state where the masked sub-token comes next.
    - A decoder reads `synonym: gloss`; the row is predicted from the state after the definition.

    A word of several sub-tokens has one mask for each. The sub-tokens before the target are shown: in place of their
    masks, to the decoder, or after the definition.

    Attributes:
        family: Family of the model; see `family_of`.
        mask: Text in place of the word; `""` for no mask.
        slots: Ids in place of its first, second, … sub-token; the last one is repeated. Empty for a decoder.
        decoder_start: Ids that the decoder input starts with.
        special: Ids of the special tokens.
        pad: Id used for padding.
    """

    family: Family
    mask: str
    slots: tuple[int, ...]
    decoder_start: tuple[int, ...]
    special: frozenset[int]
    pad: int

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> ReadingStyle:
        """Return the style for a model.

        Args:
            model: The model, whose config is read.
            tokenizer: The model's tokenizer.
        """
        family = family_of(model)
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        special = frozenset(tokenizer.all_special_ids)
        if family == "decoder":
            return cls(family, "", (), (), special, pad)
        masks = slot_tokens(tokenizer)
        # Without a mask token, the unknown token takes its place.
        placeholder = pad if tokenizer.unk_token_id is None else tokenizer.unk_token_id
        known = tokenizer.get_vocab()
        slots = tuple(known[token] for token in masks) or (placeholder,)
        start = _decoder_start(model, tokenizer) if family == "encoder-decoder" else ()
        return cls(family, next(iter(masks), ""), slots, start, special, pad)


def _decoder_start(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    settings = (model.config, getattr(model, "generation_config", None), model.config.get_text_config(decoder=True))
    names = ("decoder_start_token_id", "bos_token_id")
    found = (getattr(one, name, None) for name in names for one in settings)
    return (next((i for i in (*found, tokenizer.bos_token_id, tokenizer.pad_token_id) if i is not None), 0),)


def definition_rows(
    style: ReadingStyle,
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[str],
    sub_tokens: Sequence[Sequence[int]],
    definitions: Sequence[Sequence[Definition]],
    *,
    max_length: int,
    masking: Masking = "autoregressive",
) -> Dataset:
    """Build one row per masked sub-token of each definition, or, with "random" masking, one per definition.

    Args:
        style: The style of the model.
        tokenizer: The model's tokenizer.
        words: The words, spelled as in the vocabulary.
        sub_tokens: Token ids of each word.
        definitions: Definitions of each word, at least one.
        max_length: Maximum number of tokens of a row, with special tokens and the sub-tokens shown after it.
        masking: "autoregressive", or, for encoders, "random": all sub-tokens of a word at once.

    Returns:
        Columns `input_ids`; `decoder_input_ids` (empty except for encoder-decoders); `position`, int, where the first
        target is read, in the decoder's input if there is one; `labels`, the targets, at consecutive positions;
        `word`, int, the index into `words`; `weight`, float, of the definition in the mean of its word; `redrawn`,
        bool, whether masks are drawn again in each batch.

    Raises:
        ValueError: If "random" masking is used with a model that reads left to right.
    """
    if masking == "random" and style.family != "encoder":
        raise ValueError(
            f"`masking='random'` requires an encoder, got a model of family {style.family!r}. "
            "Use `masking='autoregressive'`."
        )
    uses = [
        (number, definition_prompt(definition, word, style.mask), weight)
        for number, (word, found) in enumerate(zip(words, definitions, strict=True))
        for definition, weight in zip(found, sense_weights(found), strict=True)
    ]
    plain = {"return_attention_mask": False, "return_token_type_ids": False}
    longest = max((len(ids) for ids in sub_tokens), default=1)
    # One sub-token replaces the mask of the text; a decoder's last sub-token is predicted, not read.
    room = max(4, max_length - longest + (1 if style.mask or style.family == "decoder" else 0))
    prompts = [text for _, text, _ in uses]
    texts = tokenizer(prompts, truncation=True, max_length=room, **plain)["input_ids"] if prompts else []
    rows = [
        (*row, number, weight, masking == "random")
        for (number, _, weight), text in zip(uses, texts, strict=True)
        for row in _masked(style, text, list(sub_tokens[number]), masking)
    ]
    columns = zip(*rows, strict=True) if rows else [()] * len(FEATURES)
    return Dataset.from_dict(dict(zip(FEATURES, map(list, columns), strict=True)), features=FEATURES)


def _masked(
    style: ReadingStyle, text: list[int], word: list[int], masking: Masking
) -> list[tuple[list[int], list[int], int, list[int]]]:
    """Return `input_ids`, `decoder_input_ids`, `position` and `labels` of each row of one definition."""
    if style.family == "decoder":
        text = text or [style.pad]  # nothing is left of a definition that repeats only the word
        return [(text + word[:j], [], len(text) + j - 1, [target]) for j, target in enumerate(word)]
    slot = style.slots[0]
    begin = text.index(slot) if style.mask else next(i for i, id in enumerate([*text, -1]) if id not in style.special)
    before, after = text[:begin], text[begin + 1 :] if style.mask else text[begin:]
    slots = [style.slots[min(j, len(style.slots) - 1)] for j in range(len(word))]
    if masking == "random":
        return [(before + slots + after, [], begin, word)]
    if style.family == "encoder":
        shown = [word[:j] + slots[j:] for j in range(len(word))]
        return [(before + slots_and_shown + after, [], begin + j, [word[j]]) for j, slots_and_shown in enumerate(shown)]
    source, start = before + slots + after, list(style.decoder_start) + before
    return [(source, start + word[:j], len(start) + j - 1, [target]) for j, target in enumerate(word)]


@dataclass(frozen=True)
class DefinitionCollator:
    """Collate rows of `definition_rows` into inputs of `DefinitionEMBMixin.forward`.

    In `redrawn` rows, each target stays masked with probability 1/2, is replaced by a random token with 1/4, and is
    shown with 1/4; this is drawn again for each batch.

    Attributes:
        pad: Id used for padding.
        vocabulary: Number of tokens to draw random tokens from.
    """

    pad: int
    vocabulary: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        inputs = [self._drawn(row) for row in rows]
        batch = {"input_ids": self._padded(inputs)}
        lengths = torch.tensor([len(ids) for ids in inputs])
        if int(lengths.min()) < batch["input_ids"].shape[1]:  # attention is faster without a mask
            batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
        read = batch["input_ids"]
        if rows[0]["decoder_input_ids"]:
            read = batch["decoder_input_ids"] = self._padded([row["decoder_input_ids"] for row in rows])
        targets = torch.zeros(read.shape, dtype=torch.bool)
        for number, row in enumerate(rows):
            targets[number, row["position"] : row["position"] + len(row["labels"])] = True
        labels = torch.tensor([label for row in rows for label in row["labels"]])
        return {**batch, "target_mask": targets, "labels": labels}

    def _drawn(self, row: dict[str, Any]) -> list[int]:
        if not row["redrawn"]:
            return row["input_ids"]
        ids, begin = list(row["input_ids"]), row["position"]
        chance = torch.rand(len(row["labels"])).tolist()
        for j, (label, drawn) in enumerate(zip(row["labels"], chance, strict=True)):
            if drawn >= MASKED:  # otherwise the mask stays
                ids[begin + j] = int(torch.randint(self.vocabulary, ())) if drawn < MASKED + RANDOM else label
        return ids

    def _padded(self, rows: list[list[int]]) -> Tensor:
        longest = max(map(len, rows))
        return torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows])


def sub_tokens_of(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of each word within a sentence, i.e. after a space.

    Args:
        words: The words.
        tokenizer: The tokenizer.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "ca": 2, "##t": 3}, unk_token="[UNK]"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> sub_tokens_of(["cat"], PreTrainedTokenizerFast(tokenizer_object=backend))
        [[2, 3]]
    """
    if not words:
        return []
    plain = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    article = len(tokenizer("a", **plain)["input_ids"])
    return [ids[article:] for ids in tokenizer([f"a {word}" for word in words], **plain)["input_ids"]]


def split_words(
    defined: DefinedWords, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[tuple[str, Sequence[Definition]]], list[list[int]]]:
    """Return the words that consist of 2 to `MAX_SUB_TOKENS` sub-tokens, and their sub-tokens.

    Args:
        defined: Words with their definitions.
        tokenizer: The tokenizer.
    """
    pairs = zip(defined, sub_tokens_of([word for word, _ in defined], tokenizer), strict=True)
    several = [(entry, ids) for entry, ids in pairs if 1 < len(ids) <= MAX_SUB_TOKENS]
    return [entry for entry, _ in several], [ids for _, ids in several]
