"""Match the output rows of new tokens to the probability of the whole word, as the product of those of its sub-tokens.

In a context, a causal language model gives a word of several sub-tokens a probability `p`. The new token has the same
one if its logit is `log p + log Z - log(1 - p)`, where `Z` is the sum of the exponentials of all other logits. Rows are
changed as little as possible otherwise: the change is the ridge regression of these logits in the metric of the
covariance of states in running text, so that logits elsewhere hardly move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from defemb_callbacks.new_tokens.output_calibration import OutputStates
from defemb_callbacks.new_tokens.readings import Reading
from defemb_callbacks.reconstruction.backbone import causal_logits, evaluating
from defemb_callbacks.reconstruction.batching import equal_length_batches

RIDGE = 1.0  # noise of the logits, relative to what the mean state explains
MAX_PROBABILITY = 0.99  # of a word
_BATCH_SIZE = 16


@dataclass(frozen=True)
class WordContexts:
    """Contexts in which terms follow.

    Attributes:
        rows: (k,) int64, position of the term of each context.
        states: (k, d) float32, the last states before the term.
        logits: (k,) float32, at which its new token has the probability of the whole word.
    """

    rows: Tensor
    states: Tensor
    logits: Tensor

    def matched(self, rows: Tensor, output: OutputStates, bias: Tensor) -> Tensor:
        """Change output rows so that they have these logits, (n, d).

        Args:
            rows: (n, d) rows of new tokens.
            output: States of running text, whose logits should change little.
            bias: Output bias of new tokens, a scalar.

        Returns:
            (n, d) in the dtype of `rows`; rows without a context are unchanged.

        Example:
            >>> output = OutputStates.of(torch.eye(2).repeat(8, 1), torch.eye(2))
            >>> contexts = WordContexts(torch.tensor([0]), torch.tensor([[9.0, 0.0]]), torch.tensor([9.0]))
            >>> contexts.matched(torch.zeros(2, 2), output, torch.zeros(())).round(decimals=2)
            tensor([[0.9900, 0.0000],
                    [0.0000, 0.0000]])
        """
        inverse = output.inverse_moment()
        changed = rows.double()
        for row in self.rows.unique().tolist():
            own = self.rows == row
            states = self.states[own].double()
            missing = self.logits[own].double() - states @ changed[row] - bias.double()
            solved = inverse @ states.T / states.shape[1]
            kernel = states @ solved
            kernel.diagonal().add_(RIDGE)
            changed[row] += solved @ torch.linalg.solve(kernel, missing)
        return changed.to(rows.dtype)


@torch.no_grad()
def read_word_contexts(model: PreTrainedModel, readings: Sequence[Reading]) -> WordContexts:
    """Read the contexts of terms in texts.

    Args:
        model: A causal language model whose logits are the products of states and rows; see `read_output_states`.
        readings: Texts with one new token each. Those that start with it are left out, and those in which its
            sub-tokens include a space that the new token does not.
    """
    usable = [reading for reading in readings if 0 < reading.place == reading.shared]
    head: Any = model.get_output_embeddings()
    inputs: list[Tensor] = []
    rows, states, logits = [], [torch.zeros(0, head.weight.shape[1])], [torch.zeros(0)]
    hook = head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach()))
    try:
        with evaluating(model):
            for batch in equal_length_batches([len(reading.before) for reading in usable], _BATCH_SIZE):
                chosen = [usable[index] for index in batch]
                ids = torch.tensor([reading.before for reading in chosen], device=model.device)
                found = causal_logits(model, ids).float()
                read = inputs.pop()
                for reading, scores, state in zip(chosen, found, read, strict=True):
                    span = range(reading.place, reading.last + 1)
                    places = torch.tensor([place - 1 for place in span])
                    pieces = torch.tensor([reading.before[place] for place in span], device=scores.device)
                    log_sums = scores[places].logsumexp(dim=1)
                    word = (scores[places].gather(1, pieces[:, None])[:, 0] - log_sums).sum()
                    rows.append(reading.row)
                    states.append(state[reading.place - 1][None].float().cpu())
                    logits.append(
                        (word + log_sums[0] - torch.log1p(-word.exp().clamp(max=MAX_PROBABILITY)))[None].cpu()
                    )
    finally:
        hook.remove()
    return WordContexts(torch.tensor(rows, dtype=torch.int64), torch.cat(states), torch.cat(logits))
