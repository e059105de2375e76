"""Linear calibrations of sentence embeddings: whitening, standardization, removal of top directions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor

from defemb_callbacks.hub import HubArtifact

FORMAT = 1
TENSORS, DESCRIPTION = "linear_calibration.safetensors", "linear_calibration.json"
_MODEL_CARD = Path(__file__).with_name("linear_card.md")


@dataclass(frozen=True, eq=False)
class LinearCalibration(HubArtifact, library_name="defemb_callbacks", tags=["sentence-similarity", "whitening"]):
    """The map x' = (x − mean) · transform for sentence embeddings x.

    Created by `fit_whitening` or a `WhiteningFitter`; call it like a function.

    Attributes:
        mean: Shape (d,), float32; mean of the vectors that it was fitted on.
        transform: Shape (d, k), float32.
        info: How the calibration was fitted; plain JSON.

    Raises:
        ValueError: If a tensor is not float32, or the shapes do not match.

    Example:
        >>> halve = LinearCalibration(torch.tensor([1.0, 0.0]), torch.eye(2) / 2)
        >>> halve(torch.tensor([[3.0, 4.0]]))
        tensor([[1., 2.]])
    """

    mean: Tensor
    transform: Tensor
    info: dict[str, Any] = field(default_factory=dict)

    kind: ClassVar[str] = "linear calibration"
    files: ClassVar[tuple[str, ...]] = (DESCRIPTION, TENSORS)

    def __post_init__(self) -> None:
        for name in ("mean", "transform"):
            tensor = getattr(self, name)
            if tensor.dtype != torch.float32:
                raise ValueError(f"`{name}` must be float32, got {tensor.dtype}.")
        if self.mean.ndim != 1 or self.transform.ndim != 2 or len(self.mean) != len(self.transform):
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.transform.shape)}"
            raise ValueError(f"`mean` and `transform` must be (d,) and (d, k), got {shapes}.")

    def __call__(self, vectors: Tensor) -> Tensor:
        """Calibrate vectors of the encoder and pooling that the calibration was fitted on.

        Args:
            vectors: Shape (n, d) or (d,), any floating-point dtype, on the same device.

        Returns:
            Shape (n, k) or (k,), in float32 or the dtype of `vectors` if that is wider.

        Raises:
            ValueError: If the vectors have another width.
        """
        if vectors.shape[-1] != len(self.mean):
            raise ValueError(f"`vectors` must have width {len(self.mean)}, got {vectors.shape[-1]}.")
        dtype = torch.promote_types(vectors.dtype, torch.float32)
        result: Tensor = (vectors.to(dtype) - self.mean.to(dtype)) @ self.transform.to(dtype)
        return result

    def __repr__(self) -> str:
        size = " → ".join(map(str, self.transform.shape))
        return f"{type(self).__name__}({size}{''.join(f', {key}={value!r}' for key, value in self.info.items())})"

    def to(self, device: torch.device | str) -> LinearCalibration:
        """Copy to a device."""
        return replace(self, mean=self.mean.to(device), transform=self.transform.to(device))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Model card of a saved calibration; `kwargs` are passed to the template."""
        width, components = self.transform.shape
        return ModelCard.from_template(
            self._hub_mixin_info.model_card_data,
            template_path=str(_MODEL_CARD),
            width=width,
            components=components,
            method=self.info.get("method"),
            **kwargs,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {"mean": self.mean, "transform": self.transform}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, save_directory / TENSORS)
        description = {"format": FORMAT, "info": self.info}
        text = json.dumps(description, ensure_ascii=False, indent=2)
        (save_directory / DESCRIPTION).write_text(text, encoding="utf-8")

    @classmethod
    def _read(cls, folder: Path) -> LinearCalibration:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if description["format"] > FORMAT:
            raise ValueError(f"Format {description['format']} is newer than {FORMAT}. Upgrade defemb-callbacks.")
        tensors = load_file(folder / TENSORS)
        return cls(tensors["mean"], tensors["transform"], description["info"])
