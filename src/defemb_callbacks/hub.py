"""Save artifacts in folders, load them from folders or the Hugging Face Hub, and upload them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors import SafetensorError

ArtifactT = TypeVar("ArtifactT", bound="HubArtifact")


class HubArtifact(ModelHubMixin, ABC):
    """An artifact of a few files of its own, which may lie in the folder of a model.

    `ModelHubMixin` expects to own the folder: it records constructor arguments in a `config.json`, looks for that file
    when loading and deletes it when saving. Here only the files of the artifact are written and read. Subclasses
    implement `_save_pretrained(folder)` and `_read(folder)`.

    Attributes:
        kind: What error messages call the artifact.
        files: Names of the files, all of which must exist.
    """

    kind: ClassVar[str]
    files: ClassVar[tuple[str, ...]]

    def __new__(cls: type[ArtifactT], *args: Any, **kwargs: Any) -> ArtifactT:
        # Not the mixin's `__new__`, which records the arguments for a `config.json`.
        return object.__new__(cls)

    def save_pretrained(self, folder: str | Path, **hub_options: Any) -> str | None:  # type: ignore[override]
        """Write the files of the artifact into a folder.

        Args:
            folder: Folder to write to; created if it does not exist.
            **hub_options: Options of `ModelHubMixin.save_pretrained`. With any of them a model card is written as well.

        Raises:
            OSError: If the files cannot be written, e.g. because the disk is full.
        """
        if hub_options:  # `push_to_hub` saves with them into a temporary folder
            return super().save_pretrained(folder, **hub_options)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._save_pretrained(folder)
        return None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[ArtifactT],
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        **download: Any,
    ) -> ArtifactT:
        """Load the artifact from a folder, or from a model repository on the Hub.

        Args:
            name_or_path: Folder, or repository such as `"user/name"`.
            revision: Branch, tag or commit on the Hub.
            token: Access token for a private repository.
            **download: Further options of `huggingface_hub.snapshot_download`, e.g. `local_files_only=True`.

        Raises:
            FileNotFoundError: If there is no such folder, or it does not contain the files of the artifact.
            ValueError: If the files are damaged, have a newer format, or do not fit each other.
        """
        name = str(name_or_path)
        folder = Path(name)
        if not folder.is_dir():
            if folder.is_absolute() or name.startswith("."):
                raise FileNotFoundError(f"There is no folder {name!r}. Pass a folder or a repository on the hub.")
            options = {"revision": revision, "token": token, **download}
            folder = Path(snapshot_download(name, allow_patterns=list(cls.files), **options))
        if not all((folder / file).is_file() for file in cls.files):
            raise FileNotFoundError(
                f"{name!r} contains no {cls.kind} ({' and '.join(cls.files)}). Pass a folder or repository with both."
            )
        try:
            return cls._read(folder)
        except (KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
            raise ValueError(f"The {cls.kind} in {name!r} cannot be used: {error}") from error

    @classmethod
    @abstractmethod
    def _read(cls: type[ArtifactT], folder: Path) -> ArtifactT:
        """Read the files of a folder that contains all of them; they are not trusted."""
