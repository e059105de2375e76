"""A pooling and a calibration as modules of a `SentenceTransformer`.

All but the flow are sentence-transformers' own modules: such a model is loaded and served without this package. Not
imported by `defemb_callbacks.sentence`, as sentence-transformers is an extra.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from defemb_callbacks.sentence.flow import EmbeddingFlow
from defemb_callbacks.sentence.linear import LinearCalibration
from defemb_callbacks.sentence.pooling import STATIC, check_layers, pooled_layers
from defemb_callbacks.weights.rows import embedding_weight

__all__ = ["FlowCalibration", "Pooling", "SentenceTransformer", "Transformer", "calibration_module", "pooling_modules"]


try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Dense,
        Module,
        Pooling,
        StaticEmbedding,
        Transformer,
        WeightedLayerPooling,
    )
except ImportError as error:
    raise ImportError(
        'These modules need sentence-transformers 6 or later: pip install "defemb-callbacks[sentence]".'
    ) from error


def pooling_modules(transformer: Transformer, pooling: str) -> list[Module]:
    """The first modules of a `SentenceTransformer`, from texts to one vector each.

    Args:
        transformer: the encoder. It is changed so that it gives the layers that are read, and stays part of the result;
            with "static" it only lends its table and tokenizer, and the result runs no Transformer at all.
        pooling: see `pooled_layers`. The rows of special tokens count, but for "static": `StaticEmbedding` leaves them
            out.

    Raises:
        ValueError: an unknown pooling, or a layer that is not there.

    Example:
        >>> modules = pooling_modules(Transformer("bert-base-uncased"), "first_last")  # doctest: +SKIP
        >>> SentenceTransformer(modules=modules).encode("A plane is taking off.").shape  # doctest: +SKIP
        (768,)
    """
    layers = pooled_layers(pooling)
    width = transformer.get_embedding_dimension()
    if pooling == STATIC:
        # Copies: StaticEmbedding trains its table, and changes the settings of its tokenizer.
        table = embedding_weight(transformer.model).detach().float().clone()
        tokenizer: Any = transformer.tokenizer
        return [StaticEmbedding(copy.deepcopy(tokenizer.backend_tokenizer), embedding_weights=table)]
    number = transformer.config.get_text_config().num_hidden_layers
    check_layers(pooling, number)
    mean = Pooling(width, "mean")
    # A copy: where a checkpoint says nothing, this is one dictionary for all of them.
    transformer.modality_config = copy.deepcopy(transformer.modality_config)
    read: Any = "last_hidden_state" if len(layers) > 1 or layers == (-1,) else ("hidden_states", layers[0])
    transformer.modality_config["text"]["method_output_name"] = read
    transformer.config.output_hidden_states = len(layers) > 1
    if len(layers) == 1:
        return [transformer, mean]
    weights = torch.zeros(number + 1)
    weights[list(layers)] = 1.0
    # It starts at layer 0: its weights are then those of the hidden states, one by one.
    mixed = WeightedLayerPooling(width, number, layer_start=0, layer_weights=nn.Parameter(weights, requires_grad=False))
    return [transformer, mixed, mean]


def calibration_module(calibration: LinearCalibration | EmbeddingFlow) -> Module:
    """The last module of a `SentenceTransformer`: x' = (x − mean) · transform as a `Dense`, or a `FlowCalibration`.

    Example:
        >>> dense = calibration_module(LinearCalibration(torch.tensor([1.0, 0.0]), torch.eye(2) / 2))
        >>> dense({"sentence_embedding": torch.tensor([[3.0, 4.0]])})["sentence_embedding"].tolist()
        [[1.0, 2.0]]
    """
    if isinstance(calibration, EmbeddingFlow):
        return FlowCalibration(calibration)
    weight = calibration.transform.T.contiguous()
    bias = -(calibration.mean.double() @ calibration.transform.double()).float()
    width, components = calibration.transform.shape
    return Dense(width, components, activation_function=None, init_weight=weight, init_bias=bias)


class FlowCalibration(Module):
    """An `EmbeddingFlow` at the end of a `SentenceTransformer`.

    sentence-transformers imports classes from other packages only where it is told to: load such a model with
    `SentenceTransformer(folder, trust_remote_code=True)`. Nothing is downloaded for that.

    Args:
        flow: a fitted one. It stays in float32 where the model is turned into half precision.
    """

    def __init__(self, flow: EmbeddingFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Replace `sentence_embedding`, (batch, d), by the flow's latent vectors, in the same dtype."""
        vectors: Tensor = features["sentence_embedding"]
        features["sentence_embedding"] = self.flow(vectors).to(vectors.dtype)
        return features

    def get_embedding_dimension(self) -> int:
        """Width of the latent vectors."""
        return self.flow.config.latent_dim

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the flow into a folder."""
        self.flow.save_pretrained(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> FlowCalibration:
        """Read what `save` wrote, from a folder or a repository on the hub."""
        folder = cls.load_dir_path(model_name_or_path, subfolder, token, cache_folder, revision, local_files_only)
        if folder is None:
            raise FileNotFoundError(f"{model_name_or_path} has no folder {subfolder!r}")
        return cls(EmbeddingFlow.from_pretrained(folder))

    def _apply(self, fn: Any, recurse: bool = True) -> FlowCalibration:
        # Of a model's .half() or .to("cuda") the flow follows the move only: half precision would undo it.
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)
        return self
