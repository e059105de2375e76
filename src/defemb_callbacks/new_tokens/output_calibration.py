"""Calibrate new rows of an output table, so that their tokens are not predicted where they do not occur.

A row of the output table gives its token the logit `row · h` in state `h`. Rows predicted from definitions have the
length of other rows, but their directions are uncertain, which makes them loud: tens of them take probability from
every other token. Here rows are shifted along one direction that moves their logit by the same amount in every state,
until the token's mean probability is what it should be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from defemb_callbacks.reconstruction.backbone import causal_logits, evaluating, reading_of
from defemb_callbacks.reconstruction.batching import equal_length_batches
from defemb_callbacks.reconstruction.prompts import family_of

# Share of the usual length. Longer rows are louder: in SmolLM2-135M they raise the loss of other text more than they
# lower that of the terms (see benchmarks/new_tokens_lm.py).
OUTPUT_LENGTH = 0.5

RIDGE = 0.1  # of the covariance of states, relative to its mean diagonal
STEPS = 30  # of the fixed-point iteration
MAX_STATES = 4096
_BATCH_SIZE = 16
_BLOCK = 512


@dataclass(frozen=True)
class OutputStates:
    """States of running text that a language model multiplies with its output table.

    Attributes:
        states: (n, d) float32.
        normalizers: (n,) float32, log of the summed exponentials of all logits.
        bias: (vocabulary,) float32, of the output layer; zeros if it has none.
    """

    states: Tensor
    normalizers: Tensor
    bias: Tensor

    @classmethod
    def of(cls, states: Tensor, weight: Tensor, bias: Tensor | None = None) -> OutputStates:
        """Compute the normalizers of states.

        Args:
            states: (n, d) float32.
            weight: (vocabulary, d), the output table.
            bias: (vocabulary,), of the output layer.
        """
        parts = [
            torch.nn.functional.linear(part.to(weight), weight, bias).float().logsumexp(dim=1).to(states.device)
            for part in states.split(_BLOCK)
        ]
        added = torch.zeros(len(weight)) if bias is None else bias.detach().float().cpu()
        return cls(states, torch.cat(parts), added)

    def shift_direction(self) -> Tensor:
        """Return `v`, (d,) float32, with `v · h` as close to 1 as possible in every state.

        Adding `b · v` to a row shifts its logit by `b`: `v` is `(Cov(h) + ridge)⁻¹ h̄`, scaled to `v · h̄ = 1`.

        Example:
            >>> states = torch.tensor([[1.0, 5.0], [-1.0, 5.0]])
            >>> OutputStates.of(states, torch.eye(2)).shift_direction()
            tensor([0.0000, 0.2000])
        """
        states = self.states.to(torch.float64)
        mean = states.mean(dim=0)
        covariance = (states - mean).T @ (states - mean) / len(states)
        covariance.diagonal().add_(max(RIDGE * float(covariance.diagonal().mean()), 1e-9))
        direction = torch.linalg.solve(covariance, mean)
        return (direction / (direction @ mean)).float()

    def inverse_moment(self) -> Tensor:
        """Return the inverse of the second moment of the states, with the same ridge, (d, d) float64."""
        states = self.states.to(torch.float64)
        moment = states.T @ states / len(states)
        moment.diagonal().add_(max(RIDGE * float(moment.diagonal().mean()), 1e-9))
        return torch.linalg.inv(moment)

    def log_probabilities(self, rows: Tensor, bias: Tensor, *, new: bool) -> Tensor:
        """Return the log of the mean probability of each row's token over all states, (m,) float32.

        Args:
            rows: (m, d) rows of the output table.
            bias: Their biases, (m,), or one for all.
            new: Whether the rows are not part of the table yet, so that each adds to the normalizers.
        """
        blocks = zip(rows.split(_BLOCK), bias.expand(len(rows)).split(_BLOCK), strict=True)
        found = [self._log_means(self.states @ part.T.float() + added, new=new) for part, added in blocks]
        return torch.cat([torch.zeros(0), *found])

    def calibrate(self, rows: Tensor, target: float, bias: Tensor) -> Tensor:
        """Shift new rows until their tokens have the given mean probability.

        Args:
            rows: (m, d) new rows.
            target: Log of the mean probability.
            bias: Output biases of the new tokens, (m,), or one for all.

        Returns:
            (m, d) in the dtype of `rows`.

        Example:
            >>> output = OutputStates.of(torch.tensor([[1.0, 5.0], [-1.0, 5.0]]), torch.eye(2))
            >>> rows = output.calibrate(torch.tensor([[3.0, 3.0]]), target=-6.0, bias=torch.zeros(1))
            >>> [round(value, 3) for value in output.log_probabilities(rows, torch.zeros(1), new=True).tolist()]
            [-6.0]
        """
        direction = self.shift_direction()
        shifts, calibrated = self.states @ direction, rows.float().clone()
        for part, added in zip(calibrated.split(_BLOCK), bias.expand(len(rows)).split(_BLOCK), strict=True):
            logits, total = self.states @ part.T + added, torch.zeros(len(part))
            for _ in range(STEPS):
                total += target - self._log_means(logits + shifts[:, None] * total, new=True)
            part += total[:, None] * direction
        return calibrated.to(rows.dtype)

    def _log_means(self, logits: Tensor, *, new: bool) -> Tensor:
        normalizers = self.normalizers[:, None]
        if new:
            normalizers = torch.logaddexp(normalizers, logits)
        return (logits - normalizers).logsumexp(dim=0) - math.log(len(logits))


def predicts_text(model: PreTrainedModel) -> bool:
    """Whether a model is a causal language model, with a head of its own, that reads text without any other input.

    Args:
        model: Any model.
    """
    head = model.get_output_embeddings()
    is_causal = isinstance(getattr(head, "weight", None), Tensor) and family_of(model) == "decoder"
    return is_causal and reading_of(model).reads


def without_terms(texts: Sequence[Sequence[int]], terms: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return the texts in which no term occurs.

    Args:
        texts: Token ids of each text.
        terms: Token ids of each term.

    Example:
        >>> without_terms([[1, 2, 3], [2, 1, 3], [1, 23]], [[2, 3], []])
        [[2, 1, 3], [1, 23]]
    """

    by_first: dict[int, set[tuple[int, ...]]] = {}
    for ids in terms:
        if ids:
            by_first.setdefault(ids[0], set()).add(tuple(ids))

    def has_term(text: Sequence[int]) -> bool:
        return any(
            tuple(text[place : place + len(term)]) == term
            for place, index in enumerate(text)
            for term in by_first.get(index, ())
        )

    return [text for text in texts if not has_term(text)]


@torch.no_grad()
def read_output_states(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> OutputStates | None:
    """Read the states that a causal language model multiplies with its output table.

    Args:
        model: The model; it is left as it was.
        texts: Token ids of each text.

    Returns:
        At most 4,096 states, on the CPU; `None` if logits are not the products of states and rows, e.g. because the
        model caps them.
    """
    head: Any = model.get_output_embeddings()
    inputs: list[Tensor] = []
    states: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach()))
    try:
        for _, logits in predictions(model, texts):
            read = inputs[0]
            if read.shape[-1] != head.weight.shape[1]:
                return None
            # With a `device_map`, accelerate moves the logits to the device of the ids.
            if not states and not torch.equal(head(read).to(logits.device), logits):
                return None
            inputs.clear()
            states.append(read.flatten(0, -2).float().cpu())
    finally:
        hook.remove()
    if not states:
        return None
    found = torch.cat(states)
    found = found[:: -(-len(found) // MAX_STATES)]
    return OutputStates.of(found, head.weight, getattr(head, "bias", None))


@torch.no_grad()
def text_loss(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> float:
    """Return a causal language model's mean loss on texts, in nats a token.

    Args:
        model: The model.
        texts: Token ids of each text.
    """
    total, tokens = 0.0, 0
    for ids, logits in predictions(model, texts):
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        total, tokens = total + float(loss) * ids[:, 1:].numel(), tokens + ids[:, 1:].numel()
    return total / max(tokens, 1)


def predictions(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield token ids, (batch, length), and logits, (batch, length, vocabulary), of batches of texts.

    Args:
        model: A causal language model; it predicts in eval mode.
        texts: Token ids of each text.
    """
    with evaluating(model):
        for batch in equal_length_batches([len(text) for text in texts], _BATCH_SIZE):
            ids = torch.tensor([texts[index] for index in batch], device=model.device)
            logits = causal_logits(model, ids)
            yield ids.to(logits.device), logits
