"""Measure how new rows change a language model's predictions, and choose a blend that does not harm them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from defemb_callbacks.reconstruction.backbone import causal_logits, evaluating, last_states
from defemb_callbacks.reconstruction.batching import equal_length_batches
from defemb_callbacks.reconstruction.prompts import family_of
from defemb_callbacks.weights.distributed import on_main_process
from defemb_callbacks.weights.rows import INPUT, TableName, embedding_weight, output_weight, write_rows
from defemb_callbacks.weights.sharding import is_sharded
from defemb_callbacks.weights.unwrapping import transformers_model

logger = logging.getLogger(__name__)

# Maximum mean divergence from the pretrained model, in nats per token. The loss on held-out text rises by about a
# quarter of it (benchmarks/language_models.py).
MAX_DIVERGENCE = 0.0025

# Candidates from most to least change: the weight at rarity 1 as a share of the default, and the strength of
# `protect_outputs` for tables that serve as output.
OUTPUT_CANDIDATES = (
    *((1.0, strength) for strength in (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)),
    *((0.5, 0.001), (0.25, 0.001)),
)
INPUT_CANDIDATES = tuple((share, None) for share in (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08))

_REFERENCE_SIZE = 1 << 26  # stored log probabilities of the pretrained model: 256 MB
_BATCH_SIZE = 32
_MASKED = 7  # every 7th token is masked, about the 15 % of masked language modeling


@dataclass(frozen=True)
class Measurement:
    """The effect of new rows on a language model.

    Attributes:
        tokens: Number of predicted tokens.
        loss_before: Mean loss of the pretrained model, in nats per token.
        loss_after: Mean loss with the new rows.
        standard_error: Standard error of the difference, over texts.
        divergence: Mean Kullback-Leibler divergence of the new predictions from the pretrained ones, in nats per
            token.
    """

    tokens: int
    loss_before: float
    loss_after: float
    standard_error: float
    divergence: float

    @property
    def harmless(self) -> bool:
        """Whether neither the loss nor the predictions have changed noticeably."""
        return self.loss_after <= self.loss_before + self.standard_error and self.divergence <= MAX_DIVERGENCE

    def to_dict(self) -> dict[str, float]:
        """Return the measurement as plain JSON."""
        return asdict(self)


class LanguageModelProbe:
    """Measures the predictions of a language model with its own rows and with new rows.

    The loss is the model's own: next tokens (causal), masked tokens (masked), or the text given its masked copy
    (encoder-decoder). On the definitions that the rows were built from, this loss is too optimistic: they become more
    likely, while other text may become less likely. The divergence from the pretrained predictions is therefore
    measured as well.

    Attributes:
        second_moment: (d, d) float64, mean of `hhᵀ` over the states that the output table is multiplied with.

    Args:
        model: The model; it is not changed.
        texts: Token ids of each text.
        table: The table whose rows are replaced.
        mask_token_id: Id of the mask token, for masked language models and encoder-decoders.

    Raises:
        ValueError: If the predictions are not finite, or if a head does not call its output embeddings.
    """

    def __init__(
        self, model: nn.Module, texts: Sequence[Sequence[int]], table: TableName, mask_token_id: int | None
    ) -> None:
        self._model, self._table, self._mask = transformers_model(model), table, mask_token_id
        self._family = family_of(self._model)
        self._texts = [torch.tensor(text) for text in texts]
        width = embedding_weight(self._model, table).shape[1]
        self.second_moment = torch.zeros(width, width, dtype=torch.float64)
        self._states, self._stride = 0, 1
        head = self._model.get_output_embeddings()
        hook = head.register_forward_pre_hook(self._collect) if head is not None else None
        try:
            self._losses, self._reference = self._read(keep=True)
        finally:
            if hook is not None:
                hook.remove()
        self.second_moment /= max(self._states, 1)
        if not self._states and serves_as_output(model, table):
            raise ValueError(
                f"The states that {type(self._model).__name__} multiplies with its output table cannot be read: its "
                "head does not call its output embeddings. Set `blend` to a number to write rows regardless."
            )
        if not (torch.isfinite(self.second_moment).all() and torch.isfinite(torch.stack(self._losses)).all()):
            raise ValueError(
                f"{type(self._model).__name__} gives NaN or infinite predictions. Load it in another dtype, or repair "
                "its weights."
            )

    def measure(self, ids: Tensor, old: Tensor, new: Tensor) -> Measurement:
        """Measure the model with new rows, and restore the old ones.

        Args:
            ids: (n,) int64 tokens.
            old: (n, d) current rows of these tokens.
            new: (n, d) rows to try.
        """
        try:
            write_rows(self._model, ids, new, self._table)
            losses, divergence = self._read(keep=False)
        finally:
            write_rows(self._model, ids, old, self._table)
        before, after = (torch.stack(values).double() for values in (self._losses, losses))
        tokens = before[:, 1].sum()
        difference = after[:, 0] - before[:, 0]
        mean = difference.sum() / tokens
        error = (difference - mean * before[:, 1]).square().sum().sqrt() / tokens
        start = float(before[:, 0].sum() / tokens)
        return Measurement(
            int(tokens), start, start + float(mean), float(error), float(torch.cat(divergence).double().mean())
        )

    @torch.no_grad()
    def _read(self, keep: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Loss and number of targets of each text; log probabilities of sampled positions, or divergences from them."""
        losses, kept = [], []
        with evaluating(self._model):
            for number, (labels, logits) in enumerate(self._predictions()):
                if keep and not number:
                    positions = sum(map(len, self._texts))
                    self._stride = max(1, -(-positions * logits.shape[-1] // _REFERENCE_SIZE))
                valid = labels >= 0
                log_probabilities = logits.float().log_softmax(dim=-1)
                target = log_probabilities.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
                losses += list(torch.stack([-(target * valid).sum(dim=1), valid.sum(dim=1)], dim=1).cpu())
                sample = log_probabilities[valid][:: self._stride]
                if keep:
                    kept.append(sample)
                else:
                    reference = self._reference[number]
                    kept.append((reference.exp() * (reference - sample)).sum(dim=-1).cpu())
        return losses, kept

    def _predictions(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Labels, (batch, length), -100 where nothing is predicted, and logits, (batch, length, vocabulary)."""
        for batch in equal_length_batches([len(text) for text in self._texts], _BATCH_SIZE):
            ids = torch.stack([self._texts[index] for index in batch]).to(self._model.device)
            if self._family == "decoder":
                yield ids[:, 1:], self._causal_logits(ids)[:, :-1]
                continue
            hidden = torch.zeros_like(ids, dtype=torch.bool)
            hidden[:, 1::_MASKED] = True
            masked = ids.masked_fill(hidden, self._mask) if self._mask is not None else ids
            labels = ids.masked_fill(~hidden, -100) if self._family == "encoder" else ids
            more = {"labels": labels} if self._family == "encoder-decoder" else {}
            output = self._model(input_ids=masked, **more)
            yield labels, output.prediction_logits if "prediction_logits" in output else output.logits

    def _causal_logits(self, ids: Tensor) -> Tensor:
        if self._model.get_output_embeddings() is not None:
            return causal_logits(self._model, ids)
        # The model has another head, e.g. for classification; its language modeling head was tied to the input table.
        table = embedding_weight(self._model)
        return nn.functional.linear(last_states(self._model, ids).to(table.device), table)

    def _collect(self, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        states = arguments[0].detach().flatten(0, -2)
        if states.shape[-1] == len(self.second_moment):
            states = states.float()
            self.second_moment += (states.T @ states).cpu().double()
            self._states += len(states)


def is_measurable(model: nn.Module, table: TableName = INPUT) -> bool:
    """Whether a model has a language modeling head, or the input table that its head was tied to.

    Args:
        model: Any model.
        table: The table to rebuild.
    """
    inner = transformers_model(model)
    if inner.get_output_embeddings() is not None:
        return True
    return (
        table == INPUT
        and family_of(inner) == "decoder"
        and getattr(inner.config.get_text_config(), "tie_word_embeddings", False)
    )


def is_whole(model: nn.Module) -> bool:
    """Whether this process holds all weights, so that a forward pass works."""
    return not any(is_sharded(weight) or weight.is_meta for weight in transformers_model(model).parameters())


def serves_as_output(model: nn.Module, table: TableName) -> bool:
    """Whether the rows of a table are multiplied with states to give logits.

    Args:
        model: Any model.
        table: The table to rebuild.
    """
    if table == INPUT:
        return transformers_model(model).get_output_embeddings() is not None and output_weight(model) is None
    return table == "output"


@dataclass(frozen=True)
class Choice:
    """The candidate that was chosen for a language model.

    Attributes:
        share: Share of the default weights; 0 if no candidate was harmless.
        strength: Strength of `protect_outputs`; `None` for tables that only serve as input.
        measurement: Effect of the rows on the model; for share 0, the effect of the weakest candidate.
    """

    share: float
    strength: float | None
    measurement: Measurement


def choose_harmless(
    probe: LanguageModelProbe,
    candidates: Sequence[tuple[float, float | None]],
    rows: Callable[[float, float | None], tuple[Tensor, Tensor, Tensor]],
) -> Choice:
    """Find the first candidate, from most to least change, that does not harm the model, by bisection.

    Args:
        probe: The probe of the model.
        candidates: Shares of the default weights and strengths of the protection, from most to least change.
        rows: Function that returns ids, old rows and new rows of a candidate.
    """
    measured: dict[int, Measurement] = {}
    low, high = 0, len(candidates)  # the answer is in [low, high]; len(candidates) means none
    while low < high:
        middle = (low + high) // 2
        measured[middle] = probe.measure(*rows(*candidates[middle]))
        # All processes must take the same branch, even if their measurements differ by rounding.
        if on_main_process(lambda found=measured[middle]: found.harmless):  # type: ignore[misc]
            high = middle
        else:
            low = middle + 1
    if low == len(candidates):
        return Choice(0.0, None, measured[low - 1])
    return Choice(*candidates[low], measured[low])
