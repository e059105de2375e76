"""One pass of a frozen model over texts, and the states of it that are kept."""

from __future__ import annotations

from itertools import accumulate

import torch
from accelerate.utils import reduce
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from defemb_callbacks.reconstruction.backbone import backbone_of, evaluating, last_states
from defemb_callbacks.reconstruction.batching import equal_length_batches
from defemb_callbacks.senses.layer import require_own_states
from defemb_callbacks.senses.sampling import SamplePlan, TokenizedTexts
from defemb_callbacks.weights.distributed import this_process

# Rows that processes exchange at once.
_EXCHANGED = 1 << 16


def layer_states(model: PreTrainedModel, input_ids: Tensor, layer: int = -1) -> Tensor:
    """(batch, length, d) hidden states of a layer of a model's backbone; nothing is padded.

    Args:
        model: with any head, or none; of an encoder-decoder the encoder is read.
        input_ids: (batch, length) int64.
        layer: -1 is what the backbone gives, 0 what enters its first layer, n the output of the n-th.
    """
    if layer == -1:
        return last_states(model, input_ids)
    whole = torch.ones_like(input_ids)
    output = backbone_of(model)(input_ids, attention_mask=whole, output_hidden_states=True, return_dict=True)
    states: Tensor = output.hidden_states[layer]
    return states


def state_width(model: PreTrainedModel) -> int:
    """d, the width of the hidden states of a model's backbone."""
    width: int = backbone_of(model).config.get_text_config().hidden_size
    return width


def sampled_states(
    model: PreTrainedModel, texts: TokenizedTexts, plan: SamplePlan, *, layer: int = -1, batch_size: int = 32
) -> Tensor:
    """Read all texts once, and keep the states that a plan names.

    The model is read in eval mode, without gradients, on its own device, and left in the mode it was in. Texts of equal
    length are read together, so that nothing is padded. The processes of a launch share the texts, and each gets all
    rows.

    Args:
        model: see `layer_states`.
        texts: from `tokenize_texts`.
        plan: from `plan_samples` with the ids of these texts.
        layer: see `layer_states`.
        batch_size: texts read at once.

    Returns:
        (rows, d) float32, on the CPU.

    Raises:
        ValueError: a model that gives senses.
    """
    require_own_states(model)
    process = this_process()
    starts = [0, *accumulate(texts.lengths.tolist())]
    batches = equal_length_batches(texts.lengths.tolist(), batch_size)
    kept = torch.zeros(int(plan.offsets[-1]), state_width(model))
    progress = tqdm(total=len(texts.ids), desc="Reading texts", unit="token", unit_scale=True, disable=None)
    with evaluating(model), torch.no_grad(), progress:
        for batch in batches[process.process_index :: process.num_processes]:
            length = starts[batch[0] + 1] - starts[batch[0]]
            if length:
                positions = torch.tensor([starts[text] for text in batch])[:, None] + torch.arange(length)
                states = layer_states(model, texts.ids[positions].long().to(model.device), layer)
                rows = plan.rows[positions].flatten()
                wanted = (rows >= 0).nonzero().flatten()
                chosen = states.flatten(0, 1)[wanted.to(states.device)]
                kept[rows[wanted]] = chosen.float().cpu()
                progress.update(positions.numel())
    if process.num_processes > 1:
        # A row is filled on one process, and zero on the others.
        for block in kept.split(_EXCHANGED):
            block.copy_(reduce(block.to(process.device), reduction="sum").cpu())
    return kept
