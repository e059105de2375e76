"""Calibrations that are one matrix: whitening, standardising, removing directions."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from defemb_callbacks.hub import artifact_folder

FORMAT = 1
TENSORS, DESCRIPTION = "linear_calibration.safetensors", "linear_calibration.json"


@dataclass(frozen=True, eq=False)
class LinearCalibration:
    """Sentence embeddings less their mean, times one matrix: x' = (x − mean) · transform.

    Made by `fit_whitening` or a `WhiteningFitter`; used as a function.

    Attributes:
        mean: (d,) float32, of the vectors that it was fitted on.
        transform: (d, k) float32.
        info: how it was made; plain JSON.

    Raises:
        ValueError: another dtype, or shapes that do not fit.

    Example:
        >>> halve = LinearCalibration(torch.tensor([1.0, 0.0]), torch.eye(2) / 2)
        >>> halve(torch.tensor([[3.0, 4.0]]))
        tensor([[1., 2.]])
    """

    mean: Tensor
    transform: Tensor
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("mean", "transform"):
            tensor = getattr(self, name)
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name} must be float32, got {tensor.dtype}")
        if self.mean.ndim != 1 or self.transform.ndim != 2 or len(self.mean) != len(self.transform):
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.transform.shape)}"
            raise ValueError(f"mean and transform must be (d,) and (d, k), got {shapes}")

    def __call__(self, vectors: Tensor) -> Tensor:
        """Calibrate vectors of the encoder and pooling that this was fitted on.

        Args:
            vectors: (n, d) or (d,), any floating dtype, on the same device.

        Returns:
            (n, k) or (k,), float32 or the wider dtype of the vectors.

        Raises:
            ValueError: vectors of another width.
        """
        if vectors.shape[-1] != len(self.mean):
            raise ValueError(f"vectors must have width {len(self.mean)} for this calibration, got {vectors.shape[-1]}")
        dtype = torch.promote_types(vectors.dtype, torch.float32)
        result: Tensor = (vectors.to(dtype) - self.mean.to(dtype)) @ self.transform.to(dtype)
        return result

    def __repr__(self) -> str:
        size = " → ".join(map(str, self.transform.shape))
        return f"{type(self).__name__}({size}{''.join(f', {key}={value!r}' for key, value in self.info.items())})"

    def to(self, device: torch.device | str) -> LinearCalibration:
        """The same on another device."""
        return replace(self, mean=self.mean.to(device), transform=self.transform.to(device))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `linear_calibration.safetensors` and `linear_calibration.json` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"mean": self.mean, "transform": self.transform}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
        description = {"format": FORMAT, "info": self.info}
        (folder / DESCRIPTION).write_text(json.dumps(description, ensure_ascii=False, indent=2), encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, revision: str | None = None, token: str | None = None
    ) -> LinearCalibration:
        """Read a calibration from a folder, or from a model repository on the hub.

        Args:
            name_or_path: folder, or repository such as `"user/name"`.
            revision: branch, tag or commit on the hub.
            token: of a private repository.

        Raises:
            FileNotFoundError: the folder holds no such calibration.
            ValueError: the files are damaged, of a newer format, or do not fit each other.
        """
        files = (DESCRIPTION, TENSORS)
        folder = artifact_folder(name_or_path, files, "linear calibration", revision=revision, token=token)
        try:
            description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            if description["format"] > FORMAT:
                raise ValueError(f"format {description['format']} is newer than {FORMAT}; update defemb-callbacks")
            tensors = load_file(folder / TENSORS)
            return cls(tensors["mean"], tensors["transform"], description["info"])
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(f"The linear calibration in {name_or_path} cannot be used: {error}.") from error

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload to a model repository on the hub, made if need be; returns the address of the commit."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Linear calibration"))
