"""BERT-flow: an invertible map from sentence embeddings to a standard normal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from huggingface_hub import ModelHubMixin, constants, hf_hub_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from defemb_callbacks.sentence.flow_layers import FlowLevel, PrincipalAxes

CouplingName = Literal["additive", "affine"]
PresetName = Literal["principal", "paper", "code"]
_MODEL_CARD = """---
{{ card_data }}
---

# A normalising flow for sentence embeddings

Maps the sentence embeddings of the encoder that it was fitted on to a space where they are standard normal
(BERT-flow, arXiv 2011.05864).

```python
from defemb_callbacks.sentence import EmbeddingFlow

flow = EmbeddingFlow.from_pretrained("{{ repo_id | default("path or hub id") }}")
z = flow(embeddings)
```
"""


@dataclass(frozen=True)
class EmbeddingFlowConfig:
    """Sizes of an `EmbeddingFlow`.

    Attributes:
        dim: width of the vectors that the flow reads.
        levels: after each level but the last, half of the coordinates are done.
        depth: steps in a level.
        width: of the hidden layers of the coupling nets.
        coupling: "additive" shifts one half of the coordinates by what the other tells, "affine" scales it too.
        components: rotate to so many principal axes of the data first, and leave the rest out; `None` does not rotate.
        seed: of the permutations and of the first weights.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> EmbeddingFlowConfig.preset("principal", dim=384).components
        128
        >>> EmbeddingFlowConfig(dim=4, levels=3)
        Traceback (most recent call last):
            ...
        ValueError: levels=3 needs at least 5 coordinates, got 4
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
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.coupling not in get_args(CouplingName):
            raise ValueError(f"coupling must be one of {', '.join(get_args(CouplingName))}, got {self.coupling!r}")
        if self.components is not None and not 1 <= self.components <= self.dim:
            raise ValueError(f"components must be from 1 to dim={self.dim}, got {self.components}")
        fewest = 2 ** (self.levels - 1) + 1
        if self.latent_dim < fewest:
            raise ValueError(f"levels={self.levels} needs at least {fewest} coordinates, got {self.latent_dim}")

    @property
    def latent_dim(self) -> int:
        """Width of the vectors that the flow gives: `components`, or `dim`."""
        return self.dim if self.components is None else self.components

    @classmethod
    def preset(cls, name: PresetName, dim: int, **overrides: Any) -> EmbeddingFlowConfig:
        """Sizes that have a name.

        Args:
            name: "paper" (2 levels of 3 steps, width 32), "code" (3 levels, the default of the authors' code), or
                "principal" (the paper's sizes on the first dim / 3 principal axes, which on STS-B is better than both).
            dim: width of the vectors that the flow reads.
            **overrides: other fields.

        Raises:
            ValueError: any other name.
        """
        if name not in get_args(PresetName):
            raise ValueError(f"the presets are {', '.join(get_args(PresetName))}, not {name!r}")
        settings: dict[PresetName, dict[str, Any]] = {
            "principal": {"components": max(dim // 3, min(dim, 3))},
            "paper": {},
            "code": {"levels": 3},
        }
        return cls(dim, **settings[name] | overrides)


class EmbeddingFlow(
    nn.Module,
    ModelHubMixin,
    library_name="defemb_callbacks",
    tags=["sentence-similarity", "normalizing-flow"],
    model_card_template=_MODEL_CARD,
):
    """A Glow-like normalising flow on vectors.

    Called as a function it encodes: data u, (n, dim), become latent vectors z, (n, latent_dim), that are standard
    normal as far as it is trained. This is f⁻¹ of the paper, whose f generates; `inverse` is its f. With
    `components=None` or `dim` both are exact inverses of each other. With fewer components, `inverse(flow(u))` is the
    nearest point to u on the span of the axes, and `log_prob` is the density of that point within the span.

    Source: Li et al., "On the Sentence Embeddings from Pre-trained Language Models", EMNLP 2020, arXiv 2011.05864;
    Kingma and Dhariwal, "Glow", NeurIPS 2018, arXiv 1807.03039.

    Args:
        config: its sizes.

    Attributes:
        config: its sizes.
        initialized: () bool; whether actnorms and axes have been taken from data.

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
        """Take axes, shifts and scales from data, so that what leaves each actnorm has mean 0 and variance 1.

        Every process of a distributed run must give the same vectors.

        Args:
            vectors: (n, dim), any floating dtype, more than `components` of them, and at least 2.

        Returns:
            The flow itself.

        Raises:
            TypeError, ValueError: not such a tensor, NaN or infinity, too few vectors, or a direction in which they do
                not vary.
        """
        check_vectors(vectors, self.config.dim)
        fewest = 1 + (self.config.components or 1)
        if len(vectors) < fewest:
            cure = "" if self.config.components is None else "; choose fewer components, or components=None"
            raise ValueError(f"too few vectors: {len(vectors)}, and this flow needs at least {fewest}{cure}")
        vectors = vectors.to(self._dtype)
        if self.axes is not None:
            self.axes.initialize(vectors)
        self._encode(vectors, initialize=True)
        self.initialized.fill_(True)
        return self

    def forward(self, u: Tensor) -> Tensor:
        """Encode: from data to latent vectors.

        Args:
            u: (n, dim), any floating dtype; computed in the flow's own, also under autocast.

        Returns:
            (n, latent_dim), in the flow's dtype: the parts that the levels split off, in order.

        Raises:
            ValueError: `u` has another shape.
            RuntimeError: the flow is not initialised.
        """
        return self.forward_and_log_det(u)[0]

    def forward_and_log_det(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`, and log |det ∂z/∂u|, (n,); with fewer components than `dim`, that of the map within their span."""
        return self._encode(self._checked(u, self.config.dim))

    def inverse(self, z: Tensor) -> Tensor:
        """Decode: from latent vectors, (n, latent_dim), to data, (n, dim); raises as `forward`."""
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

    @classmethod
    def fit(cls, vectors: Tensor, config: EmbeddingFlowConfig | None = None, **options: Any) -> EmbeddingFlow:
        """`fit_flow` by another name."""
        from defemb_callbacks.sentence.fit import fit_flow

        return fit_flow(vectors, config, **options)

    def _encode(self, x: Tensor, initialize: bool = False) -> tuple[Tensor, Tensor]:
        # Half precision would undo what the flow is for: exact inverses and densities.
        with torch.autocast(x.device.type, enabled=False):
            if self.axes is not None:
                x = self.axes(x)
            log_det = x.new_zeros(len(x))
            parts = []
            for level, part_size in zip(self.levels, self.part_sizes, strict=True):
                if initialize:
                    level.initialize(x)
                x, of_level = level(x)
                log_det = log_det + of_level
                x, done = x.split([x.shape[1] - part_size, part_size], dim=1)
                parts.append(done)
            return torch.cat(parts, dim=1), log_det

    def _checked(self, vectors: Tensor, width: int) -> Tensor:
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise ValueError(f"vectors must be (n, {width}) for this flow, got {tuple(vectors.shape)}")
        if not self.initialized:
            raise RuntimeError(
                "This flow is not initialised: fit it with fit_flow, call initialize(vectors), or load a fitted one."
            )
        return vectors.to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, save_directory / constants.SAFETENSORS_SINGLE_FILE)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: dict[str, Any] | EmbeddingFlowConfig | None = None, **download: Any
    ) -> EmbeddingFlow:
        if config is None:
            raise FileNotFoundError(f"{model_id} has no {constants.CONFIG_NAME}, so it holds no EmbeddingFlow.")
        name = constants.SAFETENSORS_SINGLE_FILE
        path = Path(model_id) / name if Path(model_id).is_dir() else hf_hub_download(model_id, name, **download)
        flow = cls(config if isinstance(config, EmbeddingFlowConfig) else EmbeddingFlowConfig(**config))
        tensors = load_file(path)
        # Copied, not assigned: a file's tensors may lie unaligned in memory, where products round in another way.
        flow.to(next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()))
        flow.load_state_dict(tensors)
        return flow.eval()


def check_vectors(vectors: Tensor, width: int | None = None, first_row: int = 0) -> None:
    """Refuse what is not a matrix of finite floating-point numbers.

    Args:
        vectors: should be (n, width).
        width: any, if `None`.
        first_row: number of the first vector, for the message.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: another shape, NaN or infinity.
    """
    if not isinstance(vectors, Tensor) or not vectors.is_floating_point():
        raise TypeError(f"vectors must be a floating-point tensor, got {getattr(vectors, 'dtype', type(vectors))}")
    if vectors.ndim != 2 or width not in (None, vectors.shape[1]):
        raise ValueError(f"vectors must be (n, {width or 'd'}), got {tuple(vectors.shape)}")
    broken = (~vectors.isfinite().all(dim=1)).nonzero()
    if len(broken):
        raise ValueError(f"vector {first_row + int(broken[0])} has NaN or infinity; leave such vectors out")
