"""Where the files of an artifact are: in a folder, or on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download


def artifact_folder(
    name_or_path: str | Path, files: Sequence[str], what: str, *, revision: str | None, token: str | None
) -> Path:
    """The folder of an artifact; what is on the hub is downloaded, and nothing but its files.

    Args:
        name_or_path: folder, or repository such as `"user/name"`.
        files: that it consists of.
        what: it is called in errors.
        revision: branch, tag or commit on the hub.
        token: of a private repository.

    Raises:
        FileNotFoundError: no such folder, or one without the files.

    Example:
        >>> artifact_folder("./missing", ["rows.safetensors"], "rows", revision=None, token=None)
        Traceback (most recent call last):
            ...
        FileNotFoundError: There is no folder './missing'.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        if folder.is_absolute() or str(name_or_path).startswith("."):
            raise FileNotFoundError(f"There is no folder {str(name_or_path)!r}.")
        folder = Path(snapshot_download(str(name_or_path), revision=revision, token=token, allow_patterns=list(files)))
    if not all((folder / name).is_file() for name in files):
        raise FileNotFoundError(f"{name_or_path} holds no {what} ({' and '.join(files)}).")
    return folder
