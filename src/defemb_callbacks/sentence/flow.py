"""BERT-flow: an invertible map from sentence embeddings to a standard normal distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from huggingface_hub import ModelCard, ModelHubMixin, constants, hf_hub_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from defemb_callbacks.sentence.flow_layers import FlowLevel, PrincipalAxes

CouplingName = Literal["additive", "affine"]
PresetName = Literal["principal", "paper", "code"]
_MODEL_CARD = Path(__file__).with_name("flow_card.md")


@dataclass(frozen=True)
class EmbeddingFlowConfig:
    """Architecture of an `EmbeddingFlow`.

    Attributes:
        dim: Width of the input vectors.
        levels: Number of levels; after each level but the last, half of the coordinates are factored out.
        depth: Number of steps per level.
        width: Width of the hidden layers of the coupling networks.
        coupling: `"additive"` shifts one half of the coordinates as a function of the other, `"affine"` also scales it.
        components: Number of principal components that the data are projected to first; `None` for no projection.
        seed: Seed of the permutations and of the initial weights.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> EmbeddingFlowConfig.preset("principal", dim=384).components
        128
        >>> EmbeddingFlowConfig(dim=4, levels=3)
        Traceback (most recent call last):
            ...
        ValueError: levels=3 requires at least 5 coordinates, got 4. Use fewer levels.
    """

    dim: int
    levels: int = 2
    depth: int = 3
    width: int = 32
    coupling: CouplingName = "additive"
    components: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("levels", "depth", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.coupling not in get_args(CouplingName):
            raise ValueError(f"`coupling` must be one of {', '.join(get_args(CouplingName))}, got {self.coupling!r}.")
        if self.components is not None and not 1 <= self.components <= self.dim:
            raise ValueError(f"`components` must be between 1 and dim={self.dim}, got {self.components}.")
        fewest = 2 ** (self.levels - 1) + 1
        if self.latent_dim < fewest:
            raise ValueError(
                f"levels={self.levels} requires at least {fewest} coordinates, got {self.latent_dim}. Use fewer levels."
            )

    @property
    def latent_dim(self) -> int:
        """Width of the latent vectors: `components`, or `dim`."""
        return self.dim if self.components is None else self.components

    @classmethod
    def preset(cls, name: PresetName, dim: int, **overrides: Any) -> EmbeddingFlowConfig:
        """Return a named architecture.

        Args:
            name: `"paper"` (2 levels of 3 steps, width 32), `"code"` (3 levels, the default of the authors' code), or
                `"principal"` (the paper's sizes on the first dim / 3 principal components, better than both on STS-B).
            dim: Width of the input vectors.
            **overrides: Fields to replace.

        Raises:
            ValueError: If `name` is unknown.
        """
        if name not in get_args(PresetName):
            raise ValueError(f"`name` must be one of {', '.join(get_args(PresetName))}, got {name!r}.")
        settings: dict[PresetName, dict[str, Any]] = {
            "principal": {"components": max(dim // 3, min(dim, 3))},
            "paper": {},
            "code": {"levels": 3},
        }
        return cls(dim, **settings[name] | overrides)


class EmbeddingFlow(
    nn.Module, ModelHubMixin, library_name="defemb_callbacks", tags=["sentence-similarity", "normalizing-flow"]
):
    """A Glow-like normalizing flow on vectors.

    `flow(u)` maps data u, (n, dim), to latent vectors z, (n, latent_dim), which are trained to be standard normal. This
    is f⁻¹ in the paper, and `inverse` is its generative direction f. With `components` equal to `None` or `dim`, the
    two are exact inverses. With fewer components, `inverse(flow(u))` is the projection of u onto the principal
    components, and `log_prob` is the density of that projection within their span.

    Source: Li et al., "On the Sentence Embeddings from Pre-trained Language Models", EMNLP 2020, arXiv 2011.05864;
    Kingma and Dhariwal, "Glow", NeurIPS 2018, arXiv 1807.03039.

    Args:
        config: The architecture.

    Attributes:
        config: The architecture.
        initialized: Scalar bool; whether the actnorm layers and principal axes were initialized from data.

    Example:
        >>> vectors = torch.randn(100, 6, generator=torch.Generator().manual_seed(0)) * 5 + 3
        >>> flow = EmbeddingFlow(EmbeddingFlowConfig(6)).initialize(vectors)
        >>> z = flow(vectors)
        >>> torch.allclose(z.std(dim=0, correction=0), torch.ones(6), atol=1e-5)
        True
        >>> torch.allclose(flow.inverse(z), vectors, atol=1e-5)
        True
    """

    initialized: Tensor

    def __init__(self, config: EmbeddingFlowConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [config.latent_dim]
        for _ in range(config.levels - 1):
            sizes.append(sizes[-1] - sizes[-1] // 2)
        self.part_sizes = [size // 2 for size in sizes[:-1]] + sizes[-1:]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            affine = config.coupling == "affine"
            levels = nn.ModuleList(FlowLevel(size, config.depth, config.width, affine) for size in sizes)
        self.levels = cast("Sequence[FlowLevel]", levels)
        self.axes = None if config.components is None else PrincipalAxes(config.dim, config.components)
        self.register_buffer("initialized", torch.tensor(False))

    @torch.no_grad()
    def initialize(self, vectors: Tensor) -> EmbeddingFlow:
        """Initialize axes, shifts and scales from data: the output of each actnorm has mean 0 and variance 1.

        In a distributed run, every process must pass the same vectors.

        Args:
            vectors: Shape (n, dim), any floating-point dtype, with n > `components` and n ≥ 2.

        Returns:
            The flow itself.

        Raises:
            TypeError: If `vectors` is not a floating-point tensor.
            ValueError: If `vectors` has another shape, contains NaN or infinity, has too few rows, or does not vary
                along enough directions.
        """
        check_vectors(vectors, self.config.dim)
        fewest = 1 + (self.config.components or 1)
        if len(vectors) < fewest:
            cure = "Pass more vectors." if self.config.components is None else "Use fewer components or more vectors."
            raise ValueError(f"`vectors` must have at least {fewest} rows for this flow, got {len(vectors)}. {cure}")
        vectors = vectors.to(self.initialized.device, self._dtype)
        if self.axes is not None:
            self.axes.initialize(vectors)
        self._encode(vectors, initialize=True)
        self.initialized.fill_(True)
        return self

    def forward(self, u: Tensor) -> Tensor:
        """Map data to latent vectors.

        Args:
            u: Shape (n, dim), any floating-point dtype; computed in the flow's dtype, also under autocast.

        Returns:
            Shape (n, latent_dim), in the flow's dtype: the parts factored out by the levels, in order.

        Raises:
            ValueError: If `u` has another shape.
            RuntimeError: If the flow is not initialized.
        """
        return self.forward_and_log_det(u)[0]

    def forward_and_log_det(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` and log |det ∂z/∂u|, (n,); with fewer components than `dim`, that of the map within their span."""
        return self._encode(self._checked(u, self.config.dim))

    def inverse(self, z: Tensor) -> Tensor:
        """Map latent vectors, (n, latent_dim), to data, (n, dim); raises the errors of `forward`."""
        z = self._checked(z, self.config.latent_dim)
        with torch.autocast(z.device.type, enabled=False):
            *parts, x = z.split(self.part_sizes, dim=1)
            for level in reversed(self.levels):
                x = level.inverse(x)
                if parts:
                    x = torch.cat([x, parts.pop()], dim=1)
            return x if self.axes is None else self.axes.inverse(x)

    def log_prob(self, u: Tensor) -> Tensor:
        """Log-density of `u` in nats, (n,): standard normal log-density of z, plus the log-determinant."""
        z, log_det = self.forward_and_log_det(u)
        return log_det - 0.5 * (z.square().sum(dim=1) + z.shape[1] * math.log(2 * math.pi))

    def _encode(self, x: Tensor, initialize: bool = False) -> tuple[Tensor, Tensor]:
        # Half precision would invalidate the inverse and the density.
        with torch.autocast(x.device.type, enabled=False):
            if self.axes is not None:
                x = self.axes(x)
            log_det = x.new_zeros(len(x))
            parts = []
            for level, part_size in zip(self.levels, self.part_sizes, strict=True):
                if initialize:
                    level.initialize(x)
                x, level_log_det = level(x)
                log_det = log_det + level_log_det
                x, part = x.split([x.shape[1] - part_size, part_size], dim=1)
                parts.append(part)
            return torch.cat(parts, dim=1), log_det

    def _checked(self, vectors: Tensor, width: int) -> Tensor:
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise ValueError(f"Vectors must have shape (n, {width}) for this flow, got {tuple(vectors.shape)}.")
        if not self.initialized:
            raise RuntimeError(
                "This flow is not initialized. Fit it with fit_flow, call initialize(vectors), or load a fitted flow."
            )
        return vectors.to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        # `nn.DataParallel` copies buffers, but not parameters, into its replicas.
        return next(buffer.dtype for buffer in self.buffers() if buffer.is_floating_point())

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Model card of a saved flow; `kwargs` are passed to the template."""
        return ModelCard.from_template(self._hub_mixin_info.model_card_data, template_path=str(_MODEL_CARD), **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, save_directory / constants.SAFETENSORS_SINGLE_FILE)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: dict[str, Any] | EmbeddingFlowConfig | None = None, **download: Any
    ) -> EmbeddingFlow:
        if config is None:
            raise FileNotFoundError(
                f"{model_id} contains no EmbeddingFlow: it has no {constants.CONFIG_NAME}. "
                "Pass the folder or id of a flow."
            )
        name = constants.SAFETENSORS_SINGLE_FILE
        path = Path(model_id) / name if Path(model_id).is_dir() else hf_hub_download(model_id, name, **download)
        flow = cls(config if isinstance(config, EmbeddingFlowConfig) else EmbeddingFlowConfig(**config))
        tensors = load_file(path)
        # Copied, not assigned: tensors of a file may be unaligned in memory, which changes the rounding of products.
        flow.to(next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()))
        flow.load_state_dict(tensors)
        return flow.eval()


def check_vectors(vectors: Tensor, width: int | None = None, first_row: int = 0) -> None:
    """Check that vectors are a matrix of finite floating-point numbers.

    Args:
        vectors: Expected to have shape (n, width).
        width: Expected width; `None` for any.
        first_row: Index of the first vector, for the error message.

    Raises:
        TypeError: If `vectors` is not a floating-point tensor.
        ValueError: If `vectors` has another shape, or contains NaN or infinity.
    """
    if not isinstance(vectors, Tensor) or not vectors.is_floating_point():
        raise TypeError(f"`vectors` must be a floating-point tensor, got {getattr(vectors, 'dtype', type(vectors))}.")
    if vectors.ndim != 2 or width not in (None, vectors.shape[1]):
        raise ValueError(f"`vectors` must have shape (n, {width or 'd'}), got {tuple(vectors.shape)}.")
    invalid = (~vectors.isfinite().all(dim=1)).nonzero()
    if len(invalid):
        raise ValueError(f"Row {first_row + int(invalid[0])} of `vectors` contains NaN or infinity. Remove such rows.")
