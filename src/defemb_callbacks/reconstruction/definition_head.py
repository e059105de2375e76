"""The definition head on any Hugging Face model, and the loss of the paper's constructor (arXiv 2408.01308)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from defemb_callbacks.reconstruction.backbone import backbone_of, last_states, same_reading, width_of_states
from defemb_callbacks.weights.rows import INPUT, TableName, embedding_weight


class DefinitionEMBMixin:
    """Adds `definition_head`, a linear map d → d from the hidden state at a masked word to the word's embedding.

    `with_definition_head` puts it in front of a `PreTrainedModel`. Source: arXiv 2408.01308, the constructor `L(h)`.

    Attributes:
        definition_head: Linear map without bias from the hidden width to the width of the embeddings.
        definition_mask_id: Id of the mask token, at whose positions the head reads by default.
        definition_targets: (vocabulary, d), a fixed copy of the rows to reconstruct if they belong to another table or
            the input table is trained; otherwise `None`, for the rows of the input table.
    """

    definition_head: nn.Linear
    definition_mask_id: int | None
    definition_targets: Tensor | None
    # The Trainer passes the number of targets over all processes and accumulated batches to `forward`.
    accepts_loss_kwargs = True

    def reconstruct(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Predict the embeddings of the masked words of a batch.

        Args:
            batch: `input_ids`, (batch, length), and optionally `attention_mask`; `decoder_input_ids`, (batch, decoder
                length), to read an encoder-decoder's decoder; and `target_mask`, a bool mask of the positions to read
                in the shape of the ids that are read, by default those of the mask token.

        Returns:
            (n, d): one row per position, in reading order, in the dtype of the head's weight.

        Raises:
            ValueError: If there is no position to read.
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
                    "No target position was given. Pass `target_mask`, or wrap the model with "
                    "`with_definition_head(model, mask_token_id=tokenizer.mask_token_id)`."
                )
            targets = batch["input_ids"] == self.definition_mask_id
        if not targets.any():
            raise ValueError(
                f"The batch contains no masked word (mask token {self.definition_mask_id}). Mask at least one word."
            )
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
        """Compute the reconstruction loss if `labels` are given, and the model's own forward pass otherwise.

        The loss is the mean squared error × 100 / d (arXiv 2408.01308) to the detached pretrained rows of the labels,
        so the table that is rebuilt does not move towards its prediction.

        Args:
            input_ids: (batch, length) int64.
            attention_mask: (batch, length).
            labels: (n,) int64, the token of each masked position in reading order.
            target_mask: Positions to read; see `reconstruct`.
            num_items_in_batch: Number of targets that the loss is averaged over, if more than those of this batch.
            **kwargs: Arguments of the model's own forward pass. With `labels`, all but `decoder_input_ids` are ignored.

        Returns:
            `loss`, a scalar, and `logits`, the reconstructed rows, (n, d).

        Raises:
            ValueError: If the number of labels is not the number of masked positions.
        """
        if labels is None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)  # type: ignore[misc]
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "target_mask": target_mask}
        batch["decoder_input_ids"] = kwargs.get("decoder_input_ids")
        # A model without a head is its own backbone and must not be called recursively: accelerate wraps `forward` in
        # autocast, which is not left again if it is entered twice.
        is_backbone = backbone_of(self) is self  # type: ignore[arg-type, comparison-overlap]
        rows = self._reconstruct(batch, super().forward if is_backbone else None)  # type: ignore[arg-type, misc]
        if labels.shape != (len(rows),):
            raise ValueError(
                f"`labels` has shape {tuple(labels.shape)}, but the batch contains {len(rows)} masked words. "
                "Pass one label per masked word."
            )
        table = self.definition_targets
        table = embedding_weight(self).detach() if table is None else table  # type: ignore[arg-type]
        error = (rows.float() - table[labels].float()).square().mean(dim=1).sum()
        loss = error / (len(rows) if num_items_in_batch is None else num_items_in_batch) * 100 / rows.shape[1]
        return ModelOutput(loss=loss, logits=rows)


def with_definition_head(
    model: PreTrainedModel, *, mask_token_id: int | None = None, table: TableName = INPUT
) -> PreTrainedModel:
    """Return a model with a definition head, of class `DefinitionEMB<Class>(DefinitionEMBMixin, <Class>)`.

    It shares its weights with `model`, which is not changed. The head is initialized from N(0, 1/d).

    Args:
        model: Any model that reads text, with any task head.
        mask_token_id: The tokenizer's `mask_token_id`, which replaces the defined word. Without it, batches must
            contain `target_mask`.
        table: Table whose rows are reconstructed; see `embedding_weight`. Any table but the input table is copied,
            because it may be trained.

    Returns:
        The model with the head.

    Raises:
        ValueError: If the model has no such table.
        TypeError: If the model already has a definition head.

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
        raise TypeError(f"{original.__name__} already has a definition head. Pass the model without it.")
    wrapped_class: type[PreTrainedModel] = type(f"DefinitionEMB{original.__name__}", (DefinitionEMBMixin, original), {})
    wrapped = wrapped_class.__new__(wrapped_class)
    # Shallow copies of the dicts share the parameters, but the head is added to the wrapped model only.
    wrapped.__dict__ = {
        name: copy.copy(value) if isinstance(value, dict) else value for name, value in model.__dict__.items()
    }
    # Not shared: the set of non-persistent buffers, and the `forward` that accelerate leaves on a trained model.
    wrapped._non_persistent_buffers_set = set(model._non_persistent_buffers_set)
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        wrapped.__dict__.pop(name, None)
    wrapped.config = copy.deepcopy(model.config)  # `save_pretrained` writes the class name into it
    weight = embedding_weight(model, table)
    width, hidden = weight.shape[1], width_of_states(model)
    same_reading(wrapped, model)
    wrapped.definition_head = nn.Linear(hidden, width, bias=False, device=weight.device, dtype=weight.dtype)
    nn.init.normal_(wrapped.definition_head.weight, std=hidden**-0.5)
    targets = None if table == INPUT else weight.detach().clone()
    wrapped.register_buffer("definition_targets", targets, persistent=False)
    wrapped.__dict__["definition_mask_id"] = mask_token_id
    # Otherwise the Trainer counts the labels of a causal language model as shifted by one.
    wrapped.__dict__["loss_type"] = None
    return wrapped
