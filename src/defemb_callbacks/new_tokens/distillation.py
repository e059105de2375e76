"""Distil how a language model reads a term's sub-tokens into the row of its new token.

Definitions predict what a row should mean, not how the layers of the model compose sub-tokens. Token distillation
(Dobler, Elliott and de Melo, arXiv 2505.20133) trains a row until the model's states after the new token equal those
after the sub-tokens. The texts are the definitions, so no corpus is needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from defemb_callbacks.new_tokens.term_token import TermToken
from defemb_callbacks.new_tokens.token_plan import TokenPlan
from defemb_callbacks.progress import ProgressBar
from defemb_callbacks.reconstruction.backbone import backbone_of, evaluating, has_fast_bfloat16
from defemb_callbacks.weights.rows import embedding_layer, embedding_weight

TEMPLATES = ("The word {term} means {gloss}.", "A {term} is {gloss}.", "It was about {term}: {gloss}.")
DEFINITIONS = 2  # of each term
MAX_TOKENS = 64  # of a text

EPOCHS = 15
MIN_STEPS = EPOCHS * DEFINITIONS * len(TEMPLATES)  # few terms get as many updates as each of many
LEARNING_RATE = 0.3  # relative to the mean absolute element of the rows
_BATCH_SIZE = 16


@dataclass(frozen=True)
class Reading:
    """A text with a term, as sub-tokens and with the new token.

    Attributes:
        row: Position of the term in the plan.
        before: Ids with the sub-tokens.
        after: Ids with the new token.
        place: Position of the new token in `after`. The text after it has the same number of ids in both.
    """

    row: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    place: int


def readings_of(plan: TokenPlan) -> list[Reading]:
    """Return the definitions of each new token as texts in which the term occurs once.

    Args:
        plan: The new tokens. Terms that are read as one token, have no definition or are special have no texts.
    """
    found = []
    for row, token in enumerate(plan.tokens):
        if not token.is_new or token.term.special or len(token.pieces) < 2:
            continue
        for definition in token.term.definitions[:DEFINITIONS]:
            for template in TEMPLATES:
                reading = _reading(plan, row, token, template.format(term=token.term.text, gloss=definition.gloss))
                if reading is not None:
                    found.append(reading)
    return found


def _reading(plan: TokenPlan, row: int, token: TermToken, text: str) -> Reading | None:
    before, after = plan.before(text)["input_ids"], plan.after(text)["input_ids"]
    if after.count(token.word) != 1:
        return None
    place = after.index(token.word)
    expanded = [*after[:place], *token.pieces, *after[place + 1 :]]
    if expanded != before or place + 1 >= min(len(after), MAX_TOKENS):
        return None  # another new token occurs in the text, or nothing follows the term
    cut = max(0, len(after) - MAX_TOKENS)
    return Reading(row, tuple(before[: len(before) - cut]), tuple(after[: len(after) - cut]), place)


def distilled_rows(model: PreTrainedModel, plan: TokenPlan, rows: Tensor) -> Tensor:
    """Train rows of new tokens so that the model reads them as it reads the sub-tokens.

    The loss is the squared distance of the last hidden states, relative to their squared length, from the new token on.
    The model is left unchanged.

    Args:
        model: A causal language model, before its tables grow.
        plan: The new tokens.
        rows: (n, d) float32, on the CPU, the rows to start from, in the order of the plan's tokens.

    Returns:
        (n, d) float32, on the CPU; rows of terms without texts are unchanged.
    """
    readings = readings_of(plan)
    if not readings:
        return rows
    order = sorted(range(len(readings)), key=lambda index: len(readings[index].before))
    batches = [[readings[index] for index in order[i : i + _BATCH_SIZE]] for i in range(0, len(order), _BATCH_SIZE)]
    layer = embedding_layer(model)
    trained = rows.to(embedding_weight(model).device, copy=True).requires_grad_()
    optimizer = torch.optim.Adam([trained], lr=LEARNING_RATE * float(rows.abs().mean()))
    epochs = max(EPOCHS, MIN_STEPS // len(batches))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    generator = torch.Generator().manual_seed(0)
    progress = ProgressBar(epochs * len(batches), "Distilling new tokens", "batch")
    with evaluating(model), torch.enable_grad(), progress:
        with torch.no_grad():
            targets = [_target_states(model, batch) for batch in batches]
        for _ in range(epochs):
            for index in torch.randperm(len(batches), generator=generator).tolist():
                loss = _loss(model, layer, batches[index], trained, targets[index])
                # Not `backward`, which would add to the gradients of the model.
                (trained.grad,) = torch.autograd.grad(loss, [trained])
                optimizer.step()
                schedule.step()
                progress.update(1)
    return trained.detach().cpu()


def _target_states(model: PreTrainedModel, batch: Sequence[Reading]) -> list[Tensor]:
    """States from the last sub-token of the term on, of each text."""
    states = _states(model, [reading.before for reading in batch])
    shift = [len(reading.before) - len(reading.after) for reading in batch]
    return [
        found[reading.place + by : len(reading.before)].clone()
        for found, reading, by in zip(states, batch, shift, strict=True)
    ]


def _loss(
    model: PreTrainedModel, layer: nn.Module, batch: Sequence[Reading], rows: Tensor, targets: Sequence[Tensor]
) -> Tensor:
    owners = torch.tensor([reading.row for reading in batch], device=rows.device)
    places = torch.tensor([reading.place for reading in batch], device=rows.device)
    weight = embedding_weight(model).detach()
    # The new ids are not in the table yet; any id takes their place.
    texts = [(*reading.after[: reading.place], 0, *reading.after[reading.place + 1 :]) for reading in batch]

    def replaced(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        new = rows[owners] * _scale(weight, arguments[0], output)
        return output.index_put((torch.arange(len(batch), device=rows.device), places), new.to(output.dtype))

    with layer.register_forward_hook(replaced):
        states = _states(model, texts)
    losses = []
    for found, reading, target in zip(states, batch, targets, strict=True):
        distance = (found[reading.place : len(reading.after)] - target).square().sum(dim=1)
        losses.append((distance / target.square().sum(dim=1)).mean())
    return torch.stack(losses).mean()


def _scale(weight: Tensor, ids: Tensor, output: Tensor) -> Tensor:
    """The factor that an embedding layer multiplies rows by, as Gemma's does."""
    rows = weight[ids].float()
    return ((rows * output.float()).sum() / rows.square().sum()).detach()


def _states(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """Last hidden states, (batch, length, d) float32, of texts that are padded on the right."""
    longest = max(map(len, texts))
    device = model.device
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts], device=device)
    with _autocast(device.type):
        states: Tensor = backbone_of(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return states.float()


def _autocast(device: str) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(device, torch.bfloat16) if has_fast_bfloat16(device) else contextlib.nullcontext()
