"""Features of words: the frozen model encodes each definition once, and the definitions of a word are averaged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object, reduce
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.definitions import Definition
from defemb_callbacks.progress import ProgressBar
from defemb_callbacks.reconstruction.backbone import (
    backbone_of,
    evaluating,
    has_fast_bfloat16,
    last_states,
    layer_states,
)
from defemb_callbacks.reconstruction.batching import equal_length_batches
from defemb_callbacks.reconstruction.prompts import DefinitionTexts, definition_texts, mask_text
from defemb_callbacks.reconstruction.reading import FORWARD_ERRORS
from defemb_callbacks.weights.distributed import this_process
from defemb_callbacks.weights.precision import float64_device
from defemb_callbacks.weights.rows import embedding_weight

logger = logging.getLogger(__name__)

# Minimum mean cosine of bfloat16 to float32 features, over about `TRIAL_TEXTS` texts, for `precision="auto"`.
AGREEMENT = 0.999
TRIAL_TEXTS = 32

# Features that need the hidden states of intermediate layers.
INTERMEDIATE = ("layers", "middle")


def word_features(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: DefinitionTexts,
    features: Sequence[str],
    *,
    batch_size: int = 128,
    precision: str = "auto",
    readers: Sequence[int] | None = None,
) -> Tensor:
    """Compute the features of each word: the weighted mean over its definitions.

    The model runs in eval mode, without gradients, and its mode is restored afterwards. Batches contain texts of equal
    length, so nothing is padded.

    Args:
        model: Any model; it is not changed.
        tokenizer: The model's tokenizer.
        texts: Texts from `definition_texts`.
        features: One or more of "mean" (mean of the last hidden states without special tokens), "layers" (the same
            mean of three layers: at one third, at two thirds and the last one; of all layers if there are fewer),
            "middle" (the same mean of the middle layer), "first" and "last" (last hidden state of the first token and
            of the last token that is not special), "mask" (last hidden state of the mask, or of the first token
            without a mask) and "bag" (mean of the input embeddings without special tokens and mask). "layers" and
            "middle" are read from the last layer if the model does not return the hidden states of its layers. If it
            has fewer or more states than tokens, means are taken over all states. With "bag" alone, the model is not
            run.
        batch_size: Number of texts per batch.
        precision: "float32", "bfloat16", or "auto": bfloat16 where it is fast and gives the same features.
        readers: Indices of the processes that share the encoding. All processes of the launch must then call this
            function, and each gets the features of all words. With `None`, this process encodes all texts.

    Returns:
        (words, width) float32 on the CPU, the features in the given order; the same for any number of processes. Each
        feature is as wide as the states, or embeddings, that it is computed from; "layers" is up to three times as
        wide.
    """
    words = int(texts.word.max()) + 1
    # Which words use a text: positions in `use_order`, text by text.
    use_order = torch.argsort(texts.text, stable=True)
    uses = torch.bincount(texts.text, minlength=len(texts.input_ids))
    first_use = uses.cumsum(0) - uses
    result: Tensor | None = None
    # Not inference_mode: tables that the model caches in its first forward pass are used in training later.
    with evaluating(model), torch.no_grad():
        batches = equal_length_batches([len(ids) for ids in texts.input_ids], batch_size)
        own = batches if readers is None else _share(batches, readers)
        reader = _TextReader(model, tokenizer, features, texts.input_ids[batches[0][0]]) if own else None
        weights = _lower_precision(reader, texts, batches, precision) if reader else None
        total = sum(len(texts.input_ids[index]) for batch in own for index in batch)
        with ProgressBar(total, "Encoding definitions", "token") as progress:
            for batch in own:
                assert reader is not None
                input_ids = torch.tensor([texts.input_ids[index] for index in batch], device=model.device)
                encoded = torch.cat(reader.parts(input_ids, weights), dim=1).cpu()
                if result is None:
                    # float64, so that the float32 result does not depend on the order or the number of processes.
                    result = torch.zeros(words, encoded.shape[1], dtype=torch.float64)
                number = uses[batch]
                starts = torch.repeat_interleave(first_use[batch] - (number.cumsum(0) - number), number)
                use = use_order[starts + torch.arange(len(starts))]
                source = torch.repeat_interleave(torch.arange(len(batch)), number)
                result.index_add_(0, texts.word[use], encoded[source].double() * texts.weight[use, None])
                progress.update(input_ids.numel())
    if readers is not None:
        result = _sum_over_processes(result, words)
    assert result is not None
    return result.float()


def _share(batches: list[list[int]], readers: Sequence[int]) -> list[list[int]]:
    """Batches of this process, dealt in turn, so that long texts are spread evenly; none if it is not a reader."""
    number = this_process().process_index
    return batches[list(readers).index(number) :: len(readers)] if number in readers else []


def _sum_over_processes(own: Tensor | None, words: int) -> Tensor:
    width = max(gather_object([0 if own is None else own.shape[1]]))
    own = torch.zeros(words, width, dtype=torch.float64) if own is None else own
    device = this_process().device
    if float64_device(device) != device:
        return torch.stack(gather_object([own])).sum(dim=0)
    return reduce(own.to(device), reduction="sum").cpu()


class _TextReader:
    """Computes the features of batches of texts without padding.

    Args:
        model: Any model.
        tokenizer: The model's tokenizer.
        features: See `word_features`.
        longest: Token ids of the longest text, which shows which layers' states the model returns.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, features: Sequence[str], longest: list[int]
    ) -> None:
        self.model, self.features = model, features
        self.special = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=torch.int64, device=model.device)
        mask = mask_text(tokenizer)
        self.mask_id = tokenizer.get_vocab()[mask] if mask else -1
        self.table = embedding_weight(model).detach()
        # Decided once, so that the features of all texts, on all processes, have the same width.
        self.needs_states = any(name != "bag" for name in features)
        needs_layers = any(name in INTERMEDIATE for name in features)
        self.layers = len(layer_states(model, torch.tensor([longest], device=model.device))) if needs_layers else 1

    def parts(self, input_ids: Tensor, weights: dict[str, Tensor] | None = None) -> list[Tensor]:
        """Compute each feature of a batch of texts, (batch, width) float32."""
        if not self.needs_states:
            layers = [self.table[input_ids]]
        elif self.layers > 1:
            layers = layer_states(self.model, input_ids, weights=weights)
        else:
            layers = [last_states(self.model, input_ids, weights=weights)]
        # If the model is distributed over several devices, the states are on the device of the layer.
        last = layers[-1].float().to(input_ids.device)
        text = torch.arange(len(input_ids), device=input_ids.device)
        is_mask = input_ids == self.mask_id
        content = ~torch.isin(input_ids, self.special)
        # A text that consists of special tokens only is averaged as a whole.
        content |= ~content.any(dim=1, keepdim=True)
        if last.shape[1] == input_ids.shape[1]:
            read_states, at_mask = content | is_mask, is_mask.int().argmax(dim=1)
            at_last = content.shape[1] - 1 - content.flip(1).int().argmax(dim=1)
        else:  # which states belong to which tokens is unknown
            read_states = torch.ones(last.shape[:2], dtype=torch.bool, device=last.device)
            at_mask, at_last = torch.zeros_like(text), torch.full_like(text, last.shape[1] - 1)

        def mean(layer: int) -> Tensor:
            states = last if layer == self.layers else layers[layer - 1].float().to(input_ids.device)
            return _mean(states, read_states)

        read = {
            "mean": lambda: mean(self.layers),
            "layers": lambda: torch.cat([mean(layer) for layer in _spread_layers(self.layers)], dim=1),
            "middle": lambda: mean((self.layers + 1) // 2),
            "first": lambda: last[:, 0],
            "last": lambda: last[text, at_last],
            "mask": lambda: last[text, at_mask],
            "bag": lambda: _mean(self.table[input_ids].float(), content),
        }
        return [read[name]() for name in self.features]


def own_bag(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[str],
    definitions: Sequence[Sequence[Definition]],
    max_length: int,
    **options: Any,
) -> Tensor:
    """Mean of a model's own token embeddings in the definitions of each word, for use beside a reader's features.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        words: Words, spelled as in the vocabulary.
        definitions: Definitions of each word, at least one.
        max_length: Maximum number of tokens of a definition.
        **options: Further arguments of `word_features`.
    """
    max_length = min(max_length, tokenizer.model_max_length)
    return word_features(
        model, tokenizer, definition_texts(words, definitions, tokenizer, max_length), ["bag"], **options
    )


def _spread_layers(number: int) -> list[int]:
    """Numbers of the layers at one third, two thirds and the end; all layers if there are fewer than three."""
    return list(range(1, number + 1)) if number < 3 else [round(number / 3), round(2 * number / 3), number]


def _mean(states: Tensor, kept: Tensor) -> Tensor:
    weights = kept.to(states.dtype)
    return torch.einsum("bld,bl->bd", states, weights) / weights.sum(dim=1, keepdim=True)


def _lower_precision(
    reader: _TextReader, texts: DefinitionTexts, batches: list[list[int]], precision: str
) -> dict[str, Tensor] | None:
    """The backbone's weights in bfloat16 if requested, or if that is fast here and gives the same features."""
    model = reader.model
    emulated = precision == "auto" and not has_fast_bfloat16(model.device.type)
    if precision == "float32" or emulated or not reader.needs_states:
        return None
    # autocast would make the same copies, and convert every activation besides.
    backbone = backbone_of(model)
    weights = {name: weight.detach() for name, weight in backbone.named_parameters() if weight.dtype == torch.float32}
    weights = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    if precision == "bfloat16":
        return weights
    cosines = []
    for batch in _trial_batches(batches):
        input_ids = torch.tensor([texts.input_ids[index] for index in batch], device=model.device)
        exact = reader.parts(input_ids)
        try:
            rounded = reader.parts(input_ids, weights)
        except torch.OutOfMemoryError:
            raise
        except FORWARD_ERRORS as error:  # only parameters are in bfloat16, not buffers and constants
            logger.info("The model cannot be read in bfloat16 (%s); float32 is used.", error)
            return None
        cosines.append(torch.stack([torch.cosine_similarity(a, b) for a, b in zip(exact, rounded, strict=True)]))
    # The minimum over features: the bag is the same in both precisions.
    agreement = float(torch.cat(cosines, dim=1).mean(dim=1).min())
    if agreement >= AGREEMENT:
        return weights
    logger.info("bfloat16 features agree with float32 to a cosine of %.4f only; float32 is used.", agreement)
    return None


def _trial_batches(batches: list[list[int]], lengths: int = 4) -> list[list[int]]:
    """About `TRIAL_TEXTS` texts of few different lengths: the first batch of a length is slow in bfloat16."""
    share = TRIAL_TEXTS // lengths
    full = [batch[:share] for batch in batches if len(batch) >= share]
    if len(full) >= lengths:
        step = len(full) // lengths
        return full[step // 2 :: step][:lengths]
    # A small dictionary: batches of few texts.
    chosen: list[list[int]] = []
    for batch in sorted(batches, key=len, reverse=True):
        if sum(map(len, chosen)) < TRIAL_TEXTS:
            chosen.append(batch)
    return chosen
