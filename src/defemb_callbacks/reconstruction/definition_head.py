"""A definition head on top of any Hugging Face model: the constructor of DefinitionEMB."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from defemb_callbacks.reconstruction.backbone import _width_of_states, backbone_of, last_states
from defemb_callbacks.weights.rows import INPUT, TableName, embedding_weight


class DefinitionEMBMixin:
    """Adds `definition_head`, a linear map d → d from the state at a masked word to that word's embedding.

    Mixed in before a `PreTrainedModel` by [`with_definition_head`]; source: arXiv 2408.01308, the constructor `L(h)`.

    Attributes:
        definition_head: linear map without bias from the hidden width to the width of the embeddings.
        definition_targets: (vocabulary, d), the rows to reconstruct, where they are another table's or that table is
            trained; `None` for those of the input table.
    """

    definition_head: nn.Linear
    definition_mask_id: int | None
    definition_targets: Tensor | None
    # The loss below divides by the Trainer's count of targets over all processes and accumulated batches.
    accepts_loss_kwargs = True

    def reconstruct(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Embeddings of the masked words of a batch.

        Args:
            batch: `input_ids`, (batch, length), and optionally `attention_mask`; for an encoder-decoder
                `decoder_input_ids`, (batch, decoder length), if its decoder is to be read; and `target_mask`, bool, of
                the shape of what is read: the positions to read, by default those of the mask token.

        Returns:
            (n, d): one row for each position, in reading order, in the type of the head's weight.

        Raises:
            ValueError: there is no position to read.
        """
        return self._reconstruct(batch, None)

    def _reconstruct(self, batch: Mapping[str, Tensor], forward: Callable[..., Any] | None) -> Tensor:
        targets = self._targets(batch)
        states = last_states(
            self,  # type: ignore[arg-type]
            batch["input_ids"],
            batch.get("attention_mask"),
            decoder_input_ids=batch.get("decoder_input_ids"),
            forward=forward,
        )
        return self.definition_head(states[targets].to(self.definition_head.weight.dtype))

    def _targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        targets = batch.get("target_mask")
        if targets is None:
            if self.definition_mask_id is None:
                raise ValueError(
                    "It is not known where to read: pass target_mask, or wrap with "
                    "with_definition_head(model, mask_token_id=tokenizer.mask_token_id)."
                )
            targets = batch["input_ids"] == self.definition_mask_id
        if not targets.any():
            raise ValueError(f"The batch holds no masked word to reconstruct (mask token {self.definition_mask_id}).")
        return targets

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        target_mask: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """With `labels`, the loss of reconstructing these tokens' pretrained rows; without, the model's own forward.

        The loss is the mean squared error × 100 / d (arXiv 2408.01308), against rows taken out of the graph: the
        table that is to be rebuilt does not move towards its prediction.

        Args:
            input_ids: (batch, length) int64.
            attention_mask: (batch, length).
            labels: int64, the token of each masked position in reading order, (n,).
            target_mask: as in [`reconstruct`].
            num_items_in_batch: targets over which the loss is averaged, where these are part of more; default n.
            **kwargs: for the model's own forward; with `labels` only `decoder_input_ids` plays a part.

        Returns:
            `loss`, a scalar, and `logits`, the reconstructed rows, (n, d).

        Raises:
            ValueError: the number of labels is not the number of masked positions.
        """
        if labels is None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)  # type: ignore[misc]
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "target_mask": target_mask}
        batch["decoder_input_ids"] = kwargs.get("decoder_input_ids")
        # A model without a head is its own backbone. It is being called already, and not to be called again within:
        # accelerate wraps the `forward` of a model in autocast, which stays on for good when it is entered twice.
        own = super().forward if backbone_of(self) is self else None  # type: ignore[arg-type, comparison-overlap]
        rows = self._reconstruct(batch, own)  # type: ignore[arg-type]
        if labels.shape != (len(rows),):
            raise ValueError(f"The batch holds {len(rows)} masked words, but labels has shape {tuple(labels.shape)}.")
        table = self.definition_targets
        table = embedding_weight(self).detach() if table is None else table  # type: ignore[arg-type]
        error = (rows.float() - table[labels].float()).square().mean(dim=1).sum()
        loss = error / (len(rows) if num_items_in_batch is None else num_items_in_batch) * 100 / rows.shape[1]
        return ModelOutput(loss=loss, logits=rows)


def with_definition_head(
    model: PreTrainedModel, *, mask_token_id: int | None = None, table: TableName = INPUT
) -> PreTrainedModel:
    """The same model with a definition head, as class `DefinitionEMB<Class>(DefinitionEMBMixin, <Class>)`.

    Its weights are those of `model`, not copies; `model` itself stays as it is. The head starts from N(0, 1/d).

    Args:
        model: any model that reads text, with any task head.
        mask_token_id: the tokenizer's `mask_token_id`, where definitions leave the word out; elsewhere batches say with
            `target_mask` what to read.
        table: whose rows are to be reconstructed, see `embedding_weight`; a copy of any other than the input table is
            kept, as it may be trained.

    Raises:
        ValueError: the model has no such table.
        TypeError: the model has a definition head already.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> model = with_definition_head(BertModel(config), mask_token_id=9)
        >>> type(model).__name__, model.reconstruct({"input_ids": torch.tensor([[1, 9, 2]])}).shape
        ('DefinitionEMBBertModel', torch.Size([1, 4]))
        >>> model(input_ids=torch.tensor([[1, 9, 2]]), labels=torch.tensor([5])).loss.ndim
        0
    """
    original = type(model)
    if isinstance(model, DefinitionEMBMixin):
        raise TypeError(f"{original.__name__} has a definition head already.")
    wrapped_class: type[PreTrainedModel] = type(f"DefinitionEMB{original.__name__}", (DefinitionEMBMixin, original), {})
    wrapped = wrapped_class.__new__(wrapped_class)
    # A shallow copy of each register shares the parameters, but lets the head be added to the wrapped model alone.
    wrapped.__dict__ = {
        name: copy.copy(value) if isinstance(value, dict) else value for name, value in model.__dict__.items()
    }
    # Nor does it share which buffers are saved, or what accelerate has put over a model that was trained: its forward.
    wrapped._non_persistent_buffers_set = set(model._non_persistent_buffers_set)
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        wrapped.__dict__.pop(name, None)
    wrapped.config = copy.deepcopy(model.config)  # saving writes the class name into it
    weight = embedding_weight(model, table)
    width, hidden = weight.shape[1], _width_of_states(model)
    wrapped.definition_head = nn.Linear(hidden, width, bias=False, device=weight.device, dtype=weight.dtype)
    nn.init.normal_(wrapped.definition_head.weight, std=hidden**-0.5)
    targets = None if table == INPUT else weight.detach().clone()
    wrapped.register_buffer("definition_targets", targets, persistent=False)
    wrapped.__dict__["definition_mask_id"] = mask_token_id
    # The Trainer counts labels as a causal language model would shift them, where it takes the loss for one.
    wrapped.__dict__["loss_type"] = None
    return wrapped
