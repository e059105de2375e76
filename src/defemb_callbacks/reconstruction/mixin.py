"""A definition head on top of any Hugging Face encoder: the model of DefinitionEMB."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from defemb_callbacks.rows import embedding_weight


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """What turns text into states: a model without its head; of an encoder-decoder the encoder, which sees all of it.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> type(backbone_of(BertForMaskedLM(config))).__name__
        'BertModel'
    """
    return model.get_encoder() if model.config.is_encoder_decoder else getattr(model, model.base_model_prefix, model)


def last_states(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Last hidden states, (batch, length, d), of a model's backbone, whatever head it carries.

    Args:
        model: any model.
        input_ids: (batch, length) int64.
        attention_mask: (batch, length); not needed where nothing is padded.
        weights: used in place of the backbone's own, by name, e.g. copies of lower precision.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> last_states(BertForMaskedLM(config), torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 4])
    """
    backbone = backbone_of(model)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "return_dict": True}
    output = backbone(**inputs) if weights is None else functional_call(backbone, dict(weights), (), inputs)
    return output.last_hidden_state


class DefinitionEMBMixin:
    """Adds `definition_head`, a linear map d → d from the state at a masked word to that word's embedding.

    Mixed in before a `PreTrainedModel` by [`with_definition_head`]; source: arXiv 2408.01308, the constructor `L(h)`.

    Attributes:
        definition_head: linear map without bias from the hidden width to the width of the embeddings.
    """

    definition_head: nn.Linear
    definition_mask_id: int | None

    def reconstruct(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Embeddings of the masked words of a batch.

        Args:
            batch: `input_ids`, (batch, length), and optionally `attention_mask`, and `target_mask`, (batch, length)
                bool: the positions to read, by default those of the mask token.

        Returns:
            (n, d): one row for each position, in reading order, in the type of the head's weight.

        Raises:
            ValueError: there is no position to read.
        """
        targets = self._targets(batch)
        states = last_states(self, batch["input_ids"], batch.get("attention_mask"))  # type: ignore[arg-type]
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
            **kwargs: for the model's own forward; with `labels` they play no part.

        Returns:
            `loss`, a scalar, and `logits`, the reconstructed rows, (n, d).

        Raises:
            ValueError: the number of labels is not the number of masked positions.
        """
        if labels is None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)  # type: ignore[misc]
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "target_mask": target_mask}
        rows = self.reconstruct(batch)  # type: ignore[arg-type]
        if labels.shape != (len(rows),):
            raise ValueError(f"The batch holds {len(rows)} masked words, but labels has shape {tuple(labels.shape)}.")
        pretrained = embedding_weight(self).detach()[labels].to(rows.dtype)  # type: ignore[arg-type]
        return ModelOutput(loss=nn.functional.mse_loss(rows, pretrained) * 100 / rows.shape[1], logits=rows)


def is_encoder(model: PreTrainedModel) -> bool:
    """Whether a model reads text in both directions, told from transformers' own registry of model types.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> is_encoder(BertModel(BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)))
        True
    """
    config = type(model.config)
    only_causal = config in MODEL_FOR_CAUSAL_LM_MAPPING and config not in MODEL_FOR_MASKED_LM_MAPPING
    return not (model.config.is_encoder_decoder or getattr(model.config, "is_decoder", False) or only_causal)


def with_definition_head(model: PreTrainedModel, *, mask_token_id: int | None = None) -> PreTrainedModel:
    """The same model with a definition head, as class `DefinitionEMB<Class>(DefinitionEMBMixin, <Class>)`.

    Its weights are those of `model`, not copies; `model` itself stays as it is. The head starts from N(0, 1/d).

    Args:
        model: an encoder with any task head.
        mask_token_id: the tokenizer's `mask_token_id`, where definitions leave the word out.

    Raises:
        TypeError: not an encoder (encoder-decoders and decoders have no masked word to read), or wrapped already.

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
    if not is_encoder(model):
        raise TypeError(f"{type(model).__name__} is not an encoder; the definition head reads a masked word's state.")
    original = type(model)
    if isinstance(model, DefinitionEMBMixin):
        raise TypeError(f"{original.__name__} has a definition head already.")
    wrapped_class: type[PreTrainedModel] = type(f"DefinitionEMB{original.__name__}", (DefinitionEMBMixin, original), {})
    wrapped = wrapped_class.__new__(wrapped_class)
    # A shallow copy of each register shares the parameters, but lets the head be added to the wrapped model alone.
    wrapped.__dict__ = {
        name: copy.copy(value) if isinstance(value, dict) else value for name, value in model.__dict__.items()
    }
    wrapped.config = copy.deepcopy(model.config)  # saving writes the class name into it
    weight = embedding_weight(model)
    width, hidden = weight.shape[1], model.config.get_text_config().hidden_size
    wrapped.definition_head = nn.Linear(hidden, width, bias=False, device=weight.device, dtype=weight.dtype)
    nn.init.normal_(wrapped.definition_head.weight, std=hidden**-0.5)
    wrapped.__dict__["definition_mask_id"] = mask_token_id
    return wrapped
