"""One pass of the frozen model over the definitions of the vocabulary's words."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from accelerate.utils import gather_object, reduce
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.reconstruction.backbone import backbone_of, evaluating, has_fast_bfloat16, last_states
from defemb_callbacks.reconstruction.batching import equal_length_batches
from defemb_callbacks.reconstruction.prompts import DefinitionTexts, mask_text
from defemb_callbacks.weights.distributed import this_process
from defemb_callbacks.weights.rows import embedding_weight

logger = logging.getLogger(__name__)

# How far bfloat16 features may be from float32 ones: below the difference that rounding each layer once would make.
AGREEMENT = 0.999


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
    """Features of each word: the weighted mean over its definitions.

    The model is read in eval mode, without gradients, and left in the mode it was in. Texts of equal length are
    encoded together, so that nothing is spent on padding.

    Args:
        model: read as it is; nothing of it changes.
        tokenizer: the model's.
        texts: from `definition_texts`.
        features: any of "mean" (of the last states, special tokens left out), "first" (last state of the first token),
            "mask" (last state of the mask; of the first token where a tokenizer has no mask), "bag" (mean of the input
            embeddings, special tokens and mask left out).
        batch_size: texts encoded at once.
        precision: "float32", "bfloat16", or "auto".
        readers: the processes, by their number, that share the texts among themselves; every process of the launch
            must call this then, and gets the features of all words. If None this process reads all texts.

    Returns:
        (words, len(features) · d) float32, on the CPU; the same however many processes have read.
    """
    special = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=torch.int64, device=model.device)
    mask = mask_text(tokenizer)
    mask_id = tokenizer.get_vocab()[mask] if mask else -1
    table = embedding_weight(model).detach()
    words = int(texts.word.max()) + 1
    # Which words use a text: positions in `use_order`, text by text.
    use_order = torch.argsort(texts.text, stable=True)
    uses = torch.bincount(texts.text, minlength=len(texts.input_ids))
    first_use = uses.cumsum(0) - uses
    result: Tensor | None = None
    with evaluating(model), torch.inference_mode():
        batches = equal_length_batches([len(ids) for ids in texts.input_ids], batch_size)
        own = batches if readers is None else _share(batches, readers)
        weights = _lower_precision(model, texts, batches[len(batches) // 2], precision) if own else None
        total = sum(len(texts.input_ids[index]) for batch in own for index in batch)
        progress = tqdm(total=total, desc="Encoding definitions", unit="token", unit_scale=True, disable=None)
        with progress:
            for batch in own:
                input_ids = torch.tensor([texts.input_ids[index] for index in batch], device=model.device)
                encoded = _text_features(model, weights, input_ids, features, table, special, mask_id)
                if result is None:
                    # float64: in which order, and on which process, is not to be seen in the sum's float32.
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
    return result.float()  # also out of inference mode


def _share(batches: list[list[int]], readers: Sequence[int]) -> list[list[int]]:
    """In turn, so that each reader has as many long texts as the others; nothing for those that cannot read."""
    number = this_process().process_index
    return batches[list(readers).index(number) :: len(readers)] if number in readers else []


def _sum_over_processes(own: Tensor | None, words: int) -> Tensor:
    width = max(gather_object([0 if own is None else own.shape[1]]))
    own = torch.zeros(words, width, dtype=torch.float64) if own is None else own.clone()  # out of inference mode
    return reduce(own.to(this_process().device), reduction="sum").cpu()


def _text_features(
    model: PreTrainedModel,
    weights: dict[str, Tensor] | None,
    input_ids: Tensor,
    features: Sequence[str],
    table: Tensor,
    special: Tensor,
    mask_id: int,
) -> Tensor:
    """(batch, len(features) · d) float32 on the CPU."""
    states = last_states(model, input_ids, weights=weights).float()  # nothing is padded, so there is nothing to mask
    states = states.to(input_ids.device)  # of a model on several devices they are on the last one
    is_mask = input_ids == mask_id
    content = ~torch.isin(input_ids, special)
    # A definition of nothing but special tokens is read whole.
    content |= ~content.any(dim=1, keepdim=True)
    parts = {
        "mean": lambda: _mean(states, content | is_mask),
        "first": lambda: states[:, 0],
        "mask": lambda: states[torch.arange(len(states), device=states.device), is_mask.int().argmax(dim=1)],
        "bag": lambda: _mean(table[input_ids].float(), content),
    }
    return torch.cat([parts[name]() for name in features], dim=1).cpu()


def _mean(states: Tensor, kept: Tensor) -> Tensor:
    weights = kept.to(states.dtype)
    return torch.einsum("bld,bl->bd", states, weights) / weights.sum(dim=1, keepdim=True)


def _lower_precision(
    model: PreTrainedModel, texts: DefinitionTexts, batch: list[int], precision: str
) -> dict[str, Tensor] | None:
    """The backbone's weights in bfloat16, if that is asked for, or if it is fast here and gives the same states."""
    if precision == "float32" or (precision == "auto" and not has_fast_bfloat16(model.device.type)):
        return None
    # autocast would make the same copies, and convert every activation besides.
    backbone = backbone_of(model)
    weights = {name: weight.detach() for name, weight in backbone.named_parameters() if weight.dtype == torch.float32}
    weights = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    if precision == "bfloat16":
        return weights
    input_ids = torch.tensor([texts.input_ids[index] for index in batch[:16]], device=model.device)
    exact, rounded = last_states(model, input_ids).float(), last_states(model, input_ids, weights=weights).float()
    agreement = float(torch.cosine_similarity(exact, rounded, dim=-1).min())
    if agreement >= AGREEMENT:
        return weights
    logger.info("bfloat16 states agree with float32 to a cosine of %.4f only; float32 is used.", agreement)
    return None
