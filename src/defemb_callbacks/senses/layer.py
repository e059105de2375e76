"""The part of a model that gives senses, and how a model without it is told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from defemb_callbacks.reconstruction.backbone import backbone_of

if TYPE_CHECKING:
    from defemb_callbacks.senses.dictionary import SenseDictionary


class SenseLayer(nn.Module):
    """What `with_senses` puts into a backbone.

    Attributes:
        dictionary: the senses.
        input_ids: the tokens that the backbone is reading.
        recorded: a list that takes token ids and unreplaced states of each forward pass, or `None`.
        hook: on a module within the backbone whose output is replaced; `None` where it is the backbone's own.
    """

    def __init__(self, dictionary: SenseDictionary) -> None:
        super().__init__()
        self.dictionary = dictionary
        self.input_ids: Tensor | None = None
        self.recorded: list[tuple[Tensor, Tensor]] | None = None
        self.hook: RemovableHandle | None = None

    def replace_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """A module's output, a tuple or a `ModelOutput`, with senses in the place of its states."""
        if self.input_ids is None:
            raise ValueError(
                "a model with senses was read without its backbone's own forward, as in the copies that "
                "nn.DataParallel makes: start one process for each device with torchrun or accelerate launch"
            )
        states = output[0]
        ids, self.input_ids = self.input_ids.to(states.device), None
        if self.recorded is not None:
            self.recorded.append((ids, states))
        # Of a model on several devices the last states need not be where its first weights are.
        if self.dictionary.vectors.device != states.device:
            self.dictionary.to(states.device)
        senses = self.dictionary.lookup(states, ids)
        if isinstance(output, tuple):
            return (senses, *output[1:])
        output.last_hidden_state = senses
        return output


def require_own_states(model: PreTrainedModel) -> None:
    """Refuse a model whose states are replaced by senses: `ValueError`."""
    if isinstance(getattr(backbone_of(model), "senses", None), SenseLayer):
        raise ValueError("the model gives senses already, its own states are needed: call without_senses(model) first")
