"""Cache values in folders, safe against crashes, concurrent processes and damaged files."""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from huggingface_hub.constants import HF_HOME

from defemb_callbacks.attempt import Attempt

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
UNREADABLE = "it cannot be read"
REMEMBERED_FROM = 1 << 26  # bytes; smaller files are read in a moment
SETTLED_AFTER = 2 * 10**9  # nanoseconds; file systems record times at most this coarsely

T = TypeVar("T")


def cache_root() -> Path:
    """The folder of all caches: `$DEFEMB_CACHE`, by default `defemb` in the Hugging Face home.

    Example:
        >>> cache_root().is_absolute()
        True
    """
    chosen = os.environ.get("DEFEMB_CACHE") or Path(HF_HOME) / "defemb"
    return Path(chosen).expanduser().absolute()


def fingerprint(*parts: str | bytes | Path) -> str:
    """Hex digest (128 bits) of strings, bytes and the contents of files.

    Raises:
        OSError: If a file cannot be read.

    Example:
        >>> fingerprint("ab", "c") == fingerprint("a", "bc")
        False
    """
    digest = blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Path):
            # Use a digest of fixed length for the file, so that its content cannot imitate the next part.
            kind, data = b"p", bytes.fromhex(_checksum(part))
        else:
            kind, data = (b"s", part.encode()) if isinstance(part, str) else (b"b", part)
        digest.update(kind + len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def file_fingerprint(paths: Iterable[Path]) -> str:
    """Fingerprint of the names and contents of files, independent of their folder and order.

    Example:
        >>> len(file_fingerprint([]))
        32
    """
    ordered = sorted(paths, key=lambda path: path.name)
    return fingerprint(*(part for path in ordered for part in (path.name, path)))


def remembered_fingerprint(path: Path) -> str:
    """`file_fingerprint` of one file; a large file is not read again while it is unchanged.

    Its fingerprint is kept in the cache with the file's size, inode, and times of modification and change. The latter
    also reveals an edit after which the time of modification was set back.

    Raises:
        OSError: If the file cannot be read.

    Example:
        >>> remembered_fingerprint(Path(__file__)) == file_fingerprint([Path(__file__)])
        True
    """
    path = path.absolute()
    before = _state(path)
    # On Windows, `st_ctime_ns` is the time of creation.
    if before["size"] < REMEMBERED_FROM or os.name == "nt":
        return file_fingerprint([path])
    entry = cache_root() / "files" / f"{fingerprint(str(path))}.json"
    try:
        known = json.loads(entry.read_text(encoding="utf-8"))
        if known["state"] == before:
            return str(known["fingerprint"])
    except FileNotFoundError:
        logger.debug("No fingerprint of %s is remembered.", path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("The remembered fingerprint of %s is damaged (%s). The file is read again.", path, error)
    started = time.time_ns()
    found = file_fingerprint([path])
    # A file written a moment ago may be written again without a visible change of its times.
    settled = started - max(before["modified"], before["changed"]) > SETTLED_AFTER
    if settled and _state(path) == before:
        with Attempt(f"The fingerprint of {path} is not cached, so the file is read again next time"):
            entry.parent.mkdir(parents=True, exist_ok=True)
            partial = entry.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps({"file": str(path), "state": before, "fingerprint": found}), encoding="utf-8")
            os.replace(partial, entry)
    return found


def _state(path: Path) -> dict[str, int]:
    found = path.stat()
    return {
        "device": found.st_dev,
        "inode": found.st_ino,
        "size": found.st_size,
        "modified": found.st_mtime_ns,
        "changed": found.st_ctime_ns,
    }


def cached(folder: Path, build: Callable[[], T], save: Callable[[T, Path], None], load: Callable[[Path], T]) -> T:
    """Load the value cached in `folder`, or build it and cache it.

    Only one of several concurrent processes builds the value; the others wait for a lock file next to the folder. An
    entry is used only if its files are unchanged since they were written; otherwise it is deleted with a warning and
    built again. Reading takes no lock and needs no write access. Whatever fails in the cache, the value is built and
    returned with a warning.

    Args:
        folder: The folder of the value. Its name must include a fingerprint of everything that the value depends on.
        build: Builds the value. Its errors are not caught.
        save: Writes the value into an existing, empty folder.
        load: Reads the value from the folder.

    Example:
        >>> import tempfile
        >>> def save(value, folder): _ = (folder / "value").write_text(value)
        >>> def load(folder): return (folder / "value").read_text()
        >>> with tempfile.TemporaryDirectory() as root:
        ...     first = cached(Path(root, "entry"), lambda: "built", save, load)
        ...     second = cached(Path(root, "entry"), lambda: "built again", save, load)
        >>> first, second
        ('built', 'built')
    """
    found, problem = _read(folder, load)
    if found:
        return found[0]
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    not_cached = f"The cache entry {folder} cannot be written, so the value is not cached"
    with Attempt(not_cached) as locking:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    if locking.failed:
        return build()
    try:
        if problem != UNREADABLE:  # another process may have built it in the meantime
            found, problem = _read(folder, load)
        if found:
            return found[0]
        value = build()
        with Attempt(not_cached):
            _discard_damaged(folder, problem)
            _store(value, save, folder)
        return value
    finally:
        lock.release()


def _read(folder: Path, load: Callable[[Path], T]) -> tuple[list[T], str]:
    """The value, if the folder is intact and can be read, or an empty list and the problem."""
    with Attempt(f"The cache entry {folder} cannot be read, so the value is built again"):
        problem = verify_manifest(folder)
        return ([load(folder)], "") if problem is None else ([], problem)
    return [], UNREADABLE


def write_manifest(folder: Path) -> None:
    """Write the size and checksum of every file below `folder` to its `manifest.json`, and flush all files to disk.

    Call it after writing the last file: a folder with a valid manifest is complete.

    Raises:
        OSError: If a file cannot be read, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "rows.bin").write_bytes(b"1234")
        ...     write_manifest(Path(folder))
        ...     intact = verify_manifest(Path(folder))
        ...     _ = Path(folder, "rows.bin").write_bytes(b"12")
        ...     truncated = verify_manifest(Path(folder))
        >>> intact, truncated
        (None, 'rows.bin has 2 bytes instead of 4')
    """
    files = {}
    for name, path in _files(folder).items():
        _flush(path)
        files[name] = {"size": path.stat().st_size, "blake2b": _checksum(path)}
    partial = folder / f"{MANIFEST}.partial"
    partial.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    _flush(partial)
    os.replace(partial, folder / MANIFEST)
    _flush(folder)


def verify_manifest(folder: Path) -> str | None:
    """Compare a folder with its `manifest.json`.

    Returns:
        `None` if the folder is intact, otherwise a description of the problem.

    Example:
        >>> verify_manifest(Path("/no/such/folder"))
        'there is no manifest.json'
    """
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        present = _files(folder)
        for name in sorted(listed.keys() | present.keys()):
            if name not in present:
                return f"{name} is missing"
            if name not in listed:
                return f"{name} is not listed in {MANIFEST}"
            size, expected = present[name].stat().st_size, listed[name]["size"]
            if size != expected:
                return f"{name} has {size} bytes instead of {expected}"
            if _checksum(present[name]) != listed[name]["blake2b"]:
                return f"the checksum of {name} is wrong"
    except (FileNotFoundError, NotADirectoryError):
        return f"there is no {MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} is damaged ({error!r})"
    except OSError as error:
        return f"it cannot be read ({error})"
    return None


def _discard_damaged(folder: Path, problem: str) -> None:
    """Delete a damaged entry and the temporary folders of killed processes.

    The caller must hold the lock, so that no other process is writing.
    """
    for remains in folder.parent.glob(f"{glob.escape(_temporary_prefix(folder))}*"):
        shutil.rmtree(remains)
    if not os.path.lexists(folder):
        return
    logger.warning("The cache entry %s is damaged (%s). It is deleted and built again.", folder, problem)
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink()


def _store(value: T, save: Callable[[T, Path], None], folder: Path) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=_temporary_prefix(folder), dir=folder.parent))
    try:
        save(value, temporary)
        write_manifest(temporary)
        # mkdtemp creates private folders. A cache may be shared by a group, so copy the parent folder's permissions.
        temporary.chmod(folder.parent.stat().st_mode & 0o777)
        os.replace(temporary, folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_prefix(folder: Path) -> str:
    return f".{folder.name}.tmp-"


def _files(folder: Path) -> dict[str, Path]:
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in paths if path != folder / MANIFEST}


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders and need not flush them
        return
    # Windows flushes only files that are open for writing.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
