"""Poolings and calibrations as modules of a `SentenceTransformer`.

Except for the flow, these are modules of sentence-transformers: models load and run without this package.
`defemb_callbacks.sentence` does not import this module, which requires the optional extra `sentence`.
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
        "Calibrated models require sentence-transformers 6 or later. Install it with: "
        'pip install "defemb-callbacks[sentence]".'
    ) from error


def pooling_modules(transformer: Transformer, pooling: str) -> list[Module]:
    """Modules of a `SentenceTransformer` that map texts to vectors.

    Args:
        transformer: The encoder. It becomes part of the result and is changed to return the layers of the pooling; with
            `"static"`, only its embedding table and tokenizer are copied, and the result contains no Transformer.
        pooling: See `pooled_layers`. Special tokens are included, except with `"static"`.

    Raises:
        ValueError: If the pooling is unknown or reads a layer that is out of range.

    Example:
        >>> modules = pooling_modules(Transformer("bert-base-uncased"), "first_last")  # doctest: +SKIP
        >>> SentenceTransformer(modules=modules).encode("A plane is taking off.").shape  # doctest: +SKIP
        (768,)
    """
    layers = pooled_layers(pooling)
    width = transformer.get_embedding_dimension()
    if pooling == STATIC:
        # Copies: StaticEmbedding trains its table and changes the settings of its tokenizer.
        table = embedding_weight(transformer.model).detach().to(torch.float32, copy=True)
        tokenizer: Any = transformer.tokenizer
        return [StaticEmbedding(copy.deepcopy(tokenizer.backend_tokenizer), embedding_weights=table)]
    depth = transformer.config.get_text_config().num_hidden_layers
    check_layers(pooling, depth)
    mean = Pooling(width, "mean")
    # A copy: the default is one dictionary that all models share.
    transformer.modality_config = copy.deepcopy(transformer.modality_config)
    read: Any = "last_hidden_state" if len(layers) > 1 or layers == (-1,) else ("hidden_states", layers[0])
    transformer.modality_config["text"]["method_output_name"] = read
    transformer.config.output_hidden_states = len(layers) > 1
    if len(layers) == 1:
        return [transformer, mean]
    weights = torch.zeros(depth + 1)
    weights[list(layers)] = 1.0
    # With layer_start=0, there is one weight per hidden state.
    mixed = WeightedLayerPooling(width, depth, layer_start=0, layer_weights=nn.Parameter(weights, requires_grad=False))
    return [transformer, mixed, mean]


def calibration_module(calibration: LinearCalibration | EmbeddingFlow) -> Module:
    """Last module of a `SentenceTransformer`: a `Dense` for a linear calibration, or a `FlowCalibration`.

    Example:
        >>> dense = calibration_module(LinearCalibration(torch.tensor([1.0, 0.0]), torch.eye(2) / 2))
        >>> dense({"sentence_embedding": torch.tensor([[3.0, 4.0]])})["sentence_embedding"].tolist()
        [[1.0, 2.0]]
    """
    if isinstance(calibration, EmbeddingFlow):
        return FlowCalibration(calibration)
    weight = calibration.transform.T.contiguous()
    bias = -(calibration.mean.cpu().double() @ calibration.transform.cpu().double()).float()
    width, components = calibration.transform.shape
    # The layer draws random weights first, which must not change the random numbers of a run.
    with torch.random.fork_rng(devices=[]):
        return Dense(width, components, activation_function=None, init_weight=weight, init_bias=bias)


class FlowCalibration(Module):
    """An `EmbeddingFlow` as the last module of a `SentenceTransformer`.

    sentence-transformers imports classes of other packages only with
    `SentenceTransformer(folder, trust_remote_code=True)`. No code is downloaded.

    Args:
        flow: A fitted flow. It stays in float32 when the model is cast to half precision.
    """

    def __init__(self, flow: EmbeddingFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Replace `sentence_embedding`, (batch, d), with latent vectors of the flow, in the same dtype."""
        vectors: Tensor = features["sentence_embedding"]
        features["sentence_embedding"] = self.flow(vectors).to(vectors.dtype)
        return features

    def get_embedding_dimension(self) -> int:
        """Width of the latent vectors."""
        return self.flow.config.latent_dim

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Save the flow to a folder."""
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
        """Load the flow from a folder or a repository on the hub."""
        folder = cls.load_dir_path(model_name_or_path, subfolder, token, cache_folder, revision, local_files_only)
        if folder is None:
            raise FileNotFoundError(
                f"{model_name_or_path} has no folder {subfolder!r}. Pass a model saved with a FlowCalibration."
            )
        return cls(EmbeddingFlow.from_pretrained(folder))

    def _apply(self, fn: Any, recurse: bool = True) -> FlowCalibration:
        # Follow a model's device, but not its dtype: half precision would invalidate the flow.
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)
        return self
