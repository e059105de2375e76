"""Definitions as training rows of a constructor: which sub-token is masked, and where its vector is read."""

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

# With "random" masking: how many targets stay masked, and how many become any token; the others are shown.
MASKED, RANDOM = 0.5, 0.25


@dataclass(frozen=True)
class ReadingStyle:
    """How definitions are put before one model.

    - An encoder reads `mask, synonym: gloss`, and its state at the mask is the answer.
    - An encoder-decoder reads the same; its decoder is given the text from its start, and its state where the masked
      sub-token would come next is the answer.
    - A decoder reads `synonym: gloss`, and its state after the whole definition is the answer.

    A word of several sub-tokens has one mask for each. Those before the one that is asked for are shown: in place of
    their masks, to the decoder, or after the definition.

    Attributes:
        family: see `family_of`.
        mask: text in place of the word; "" leaves it out.
        slots: ids in place of its first, second, … sub-token, the last one also for all others; empty for a decoder.
        decoder_start: ids with which the decoder begins.
        special: ids of special tokens.
        pad: id to fill up rows with.
    """

    family: Family
    mask: str
    slots: tuple[int, ...]
    decoder_start: tuple[int, ...]
    special: frozenset[int]
    pad: int

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> ReadingStyle:
        """The style that suits a model, told from its configuration and tokenizer."""
        family = family_of(model)
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        special = frozenset(tokenizer.all_special_ids)
        if family == "decoder":
            return cls(family, "", (), (), special, pad)
        masks = slot_tokens(tokenizer)
        # A tokenizer without masks has at least a token for what it does not know.
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
    """One row for each masked sub-token of each definition, or with "random" masking for each definition.

    Args:
        style: of the model.
        tokenizer: the model's.
        words: as the vocabulary has them.
        sub_tokens: ids that each word consists of.
        definitions: of each word, at least one.
        max_length: longest text in tokens, special tokens included, and what is shown after it.
        masking: "autoregressive", or, for encoders, "random": all sub-tokens of a word at once.

    Returns:
        Columns `input_ids`; `decoder_input_ids` (empty but for encoder-decoders); `position`, int, where the first
        target is read, in the decoder's input if there is one; `labels`, the targets, at successive positions; `word`,
        int, the position in `words`; `weight`, float, of the definition in the mean of its word; `redrawn`, bool,
        whether masks are drawn anew each time.

    Raises:
        ValueError: "random" masking for a model that reads left to right.
    """
    if masking == "random" and style.family != "encoder":
        raise ValueError(f"masking='random' is for encoders, not for an {style.family}; use 'autoregressive'.")
    uses = [
        (number, definition_prompt(definition, word, style.mask), weight)
        for number, (word, found) in enumerate(zip(words, definitions, strict=True))
        for definition, weight in zip(found, sense_weights(found), strict=True)
    ]
    # What does not end in a special token (T5's, BERT's) may be cut anywhere.
    plain = {"return_attention_mask": False, "return_token_type_ids": False}
    longest = max((len(ids) for ids in sub_tokens), default=1)
    # One sub-token stands where the text has its mask; of the decoder the last one is only asked for.
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
    """`input_ids`, `decoder_input_ids`, `position` and `labels` of each row of one definition."""
    if style.family == "decoder":
        text = text or [style.pad]  # of a word that is defined by itself alone nothing may be left
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
    """Rows of `definition_rows` as what `DefinitionEMBMixin.forward` takes.

    In rows that are `redrawn` each target stays masked with probability 1/2, becomes any token with 1/4, and is shown
    with 1/4, anew each time.

    Attributes:
        pad: id to fill up rows with.
        vocabulary: number of tokens to draw from.
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
            if drawn >= MASKED:  # else the mask that stands there stays
                ids[begin + j] = int(torch.randint(self.vocabulary, ())) if drawn < MASKED + RANDOM else label
        return ids

    def _padded(self, rows: list[list[int]]) -> Tensor:
        longest = max(map(len, rows))
        return torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows])


def sub_tokens_of(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of each word as it stands within a sentence.

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
