"""Distil how a model reads a term's sub-tokens into the row of its new token.

Definitions predict what a row should mean, not how the layers of the model compose sub-tokens. Token distillation
(Dobler, Elliott and de Melo, arXiv 2505.20133) trains a row until the model's states after the new token equal those
after the sub-tokens. The texts are the definitions, and texts that use the term. A bidirectional model also reads the
text before the term differently, so that all of its other states are compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from defemb_callbacks.new_tokens.readings import DEFINITIONS, TEMPLATES, Reading
from defemb_callbacks.progress import ProgressBar
from defemb_callbacks.reconstruction.backbone import backbone_of, evaluating, has_fast_bfloat16, last_states, reading_of
from defemb_callbacks.weights.rows import embedding_layer, embedding_weight

EPOCHS = 15
VISITS = EPOCHS * DEFINITIONS * len(TEMPLATES)  # readings of a term, with repetition
LEARNING_RATE = 0.3  # relative to the mean absolute element of the rows
MAX_READINGS = 2048  # whose states are held at once
_BATCH_SIZE = 16


@dataclass(frozen=True)
class Distilled:
    """Rows after token distillation.

    Attributes:
        rows: (n, d) float32, on the CPU.
        readings: Number of readings, definitions and texts, each of one term.
        distance_before: Mean squared distance of the states, relative to their squared length, before the training.
        distance_after: The same after it.
        texts: Number of texts of each term, by its position in the plan.
    """

    rows: Tensor
    readings: int = 0
    distance_before: float = 0.0
    distance_after: float = 0.0
    texts: dict[int, int] = field(default_factory=dict)


def check_distillation(model: PreTrainedModel) -> None:
    """Check that rows of a model can be distilled.

    Args:
        model: Any model.

    Raises:
        ValueError: If it does not read text alone, or has no states that depend on the other tokens.
    """
    reading = reading_of(model)
    problem = reading.problem or ("" if reading.per_token and reading.mixes else "its states are not those of tokens")
    if problem:
        raise ValueError(
            f"{type(model).__name__} cannot be trained on the `texts` of new tokens ({problem}). Leave them out."
        )


def distilled_rows(
    model: PreTrainedModel, readings: Sequence[Reading], rows: Tensor, epochs: int = EPOCHS
) -> Distilled:
    """Train rows of new tokens so that the model reads them as it reads the sub-tokens.

    The loss is the squared distance of the last hidden states, relative to their squared length: for a causal model
    from the new token on, for others of all positions but its own. The model is left unchanged.

    Args:
        model: Any model that passes `check_distillation`, before its tables grow.
        readings: Texts with one new token each.
        rows: (n, d) float32, on the CPU, the rows to start from, in the order of the plan's tokens.
        epochs: Number of times that each text is read; more with few texts, so that a few terms get as many updates as
            each of many.

    Returns:
        The rows; those of terms without readings are unchanged.
    """
    if not readings:
        return Distilled(rows)
    order = sorted(range(len(readings)), key=lambda index: len(readings[index].before))
    batches = [[readings[index] for index in order[i : i + _BATCH_SIZE]] for i in range(0, len(order), _BATCH_SIZE)]
    layer = embedding_layer(backbone_of(model))  # T5's encoder has one of its own, with the same weight
    trained = rows.to(embedding_weight(model).device, copy=True).requires_grad_()
    optimizer = torch.optim.Adam([trained], lr=LEARNING_RATE * float(rows.abs().mean()))
    epochs = max(epochs, VISITS // len(batches))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    generator = torch.Generator().manual_seed(0)
    progress = ProgressBar(epochs * len(batches), "Distilling new tokens", "batch")
    with evaluating(model), torch.enable_grad(), progress:
        with torch.no_grad():
            targets = [_target_states(model, batch) for batch in batches]
            before = _distance(model, layer, batches, trained, targets)
        for _ in range(epochs):
            for index in torch.randperm(len(batches), generator=generator).tolist():
                loss = _losses(model, layer, batches[index], trained, targets[index]).mean()
                # Not `backward`, which would add to the gradients of the model.
                (trained.grad,) = torch.autograd.grad(loss, [trained])
                optimizer.step()
                schedule.step()
                progress.update(1)
        with torch.no_grad():
            after = _distance(model, layer, batches, trained, targets)
    return Distilled(trained.detach().cpu(), len(readings), before, after)


def distilled_on_texts(model: PreTrainedModel, readings: Sequence[Reading], rows: Tensor) -> Distilled:
    """Train rows as `distilled_rows` does, a few hundred terms at a time, with about 90 readings of each term.

    Memory is bounded, and the time grows with the number of terms, not of texts.

    Args:
        model: See `distilled_rows`.
        readings: Texts with one new token each.
        rows: See `distilled_rows`.
    """
    found = [Distilled(rows)]
    for part in _parts(readings):
        terms = len({reading.row for reading in part})
        found.append(distilled_rows(model, part, found[-1].rows, epochs=-(-VISITS * terms // len(part))))
    total = max(len(readings), 1)
    before = sum(part.readings * part.distance_before for part in found) / total
    after = sum(part.readings * part.distance_after for part in found) / total
    return Distilled(found[-1].rows, len(readings), before, after)


def _parts(readings: Sequence[Reading]) -> Iterator[list[Reading]]:
    """Groups of readings, each with all those of its terms."""
    by_row: dict[int, list[Reading]] = {}
    for reading in readings:
        by_row.setdefault(reading.row, []).append(reading)
    part: list[Reading] = []
    for found in by_row.values():
        if part and len(part) + len(found) > MAX_READINGS:
            yield part
            part = []
        part += found
    if part:
        yield part


def _target_states(model: PreTrainedModel, batch: Sequence[Reading]) -> list[Tensor]:
    """States of each text with sub-tokens that are compared: see `_compared`."""
    states = _states(model, [reading.before for reading in batch])
    ahead = reading_of(model).ahead
    return [
        _compared(found, reading, reading.last, len(reading.before), ahead).clone()
        for found, reading in zip(states, batch, strict=True)
    ]


def _compared(states: Tensor, reading: Reading, place: int, length: int, ahead: bool) -> Tensor:
    """The states from the term's last token on; if the model reads ahead, those before and after the term."""
    if not ahead:
        return states[place:length]
    return torch.cat([states[: reading.shared], states[place + 1 : length]])


def _distance(
    model: PreTrainedModel,
    layer: nn.Module,
    batches: Sequence[Sequence[Reading]],
    rows: Tensor,
    targets: Sequence[Sequence[Tensor]],
) -> float:
    pairs = zip(batches, targets, strict=True)
    return float(torch.cat([_losses(model, layer, batch, rows, target) for batch, target in pairs]).mean())


def _losses(
    model: PreTrainedModel, layer: nn.Module, batch: Sequence[Reading], rows: Tensor, targets: Sequence[Tensor]
) -> Tensor:
    """The loss of each text, (batch,)."""
    owners = torch.tensor([reading.row for reading in batch], device=rows.device)
    places = torch.tensor([reading.place for reading in batch], device=rows.device)
    weight, ahead = embedding_weight(model).detach(), reading_of(model).ahead
    # The new ids are not in the table yet; another id takes their place, which is not that of padding: RoBERTa counts
    # positions without it.
    texts = [
        (
            *reading.after[: reading.place],
            reading.before[reading.last] if ahead else 0,
            *reading.after[reading.place + 1 :],
        )
        for reading in batch
    ]

    def replaced(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        new = rows[owners] * _scale(weight, arguments[0], output)
        return output.index_put((torch.arange(len(batch), device=rows.device), places), new.to(output.dtype))

    with layer.register_forward_hook(replaced):
        states = _states(model, texts)
    losses = []
    for found, reading, target in zip(states, batch, targets, strict=True):
        distance = (_compared(found, reading, reading.place, len(reading.after), ahead) - target).square().sum(dim=1)
        losses.append((distance / target.square().sum(dim=1)).mean())
    return torch.stack(losses)


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
        states = last_states(model, ids, mask)
    return states.float()


def _autocast(device: str) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(device, torch.bfloat16) if has_fast_bfloat16(device) else contextlib.nullcontext()
