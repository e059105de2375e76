"""The cache returns what was built, builds once, and never uses a damaged entry."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from defemb_callbacks import cache
from defemb_callbacks.cache import (
    MANIFEST,
    cache_root,
    cached,
    file_fingerprint,
    fingerprint,
    remembered_fingerprint,
    verify_manifest,
    write_manifest,
)


def save(value: str, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "value.txt").write_text(value)


def load(folder: Path) -> str:
    return (folder / "sub" / "value.txt").read_text()


def never() -> str:
    raise AssertionError("built although the cache entry is intact")


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    folder = tmp_path / "cache" / "entry"
    assert cached(folder, lambda: "first", save, load) == "first"
    return folder


def test_root_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEFEMB_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("DEFEMB_CACHE")
    monkeypatch.setattr("defemb_callbacks.cache.HF_HOME", str(tmp_path / "hf"))
    assert cache_root() == tmp_path / "hf" / "defemb"


def test_intact_entry_is_loaded_and_not_built(entry: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert cached(entry, never, save, load) == "first"
    assert not caplog.records


def test_reading_takes_no_lock_and_writes_nothing(entry: Path) -> None:
    for lock in entry.parent.glob("*.lock"):
        lock.unlink()
    before = sorted(entry.parent.rglob("*"))
    assert cached(entry, never, save, load) == "first"
    assert sorted(entry.parent.rglob("*")) == before


def truncate(folder: Path) -> None:
    (folder / "sub" / "value.txt").write_text("fir")


def flip_a_bit(folder: Path) -> None:
    path = folder / "sub" / "value.txt"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(bytes(data))


def delete_a_file(folder: Path) -> None:
    (folder / "sub" / "value.txt").unlink()


def delete_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def truncate_the_manifest(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text()[:20])


def write_a_foreign_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"files": ["value.txt"]}')


def add_a_file(folder: Path) -> None:
    (folder / "foreign.txt").write_text("not ours")


DAMAGES: dict[Callable[[Path], None], str] = {
    truncate: "sub/value.txt has 3 bytes instead of 5",
    flip_a_bit: "the checksum of sub/value.txt is wrong",
    delete_a_file: "sub/value.txt is missing",
    delete_the_manifest: "there is no manifest.json",
    truncate_the_manifest: "manifest.json is damaged",
    write_a_foreign_manifest: "manifest.json is damaged",
    add_a_file: "foreign.txt is not listed",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_entry_is_rebuilt_with_a_warning(
    entry: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    damage(entry)
    assert DAMAGES[damage] in (verify_manifest(entry) or "intact")
    assert cached(entry, lambda: "second", save, load) == "second"
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert DAMAGES[damage] in record.getMessage()
    assert verify_manifest(entry) is None
    assert cached(entry, never, save, load) == "second"


def test_file_in_place_of_the_folder_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "entry").write_text("not a folder")
    assert cached(tmp_path / "entry", lambda: "built", save, load) == "built"
    assert cached(tmp_path / "entry", never, save, load) == "built"
    assert "is damaged" in caplog.text


def test_intact_entry_in_another_format_is_rebuilt(entry: Path, caplog: pytest.LogCaptureFixture) -> None:
    def load_newer_format(folder: Path) -> str:
        content = json.loads(load(folder))
        assert isinstance(content, str)
        return content

    def save_newer_format(value: str, folder: Path) -> None:
        save(json.dumps(value), folder)

    assert cached(entry, lambda: "second", save_newer_format, load_newer_format) == "second"
    assert "cannot be read" in caplog.text
    assert cached(entry, never, save_newer_format, load_newer_format) == "second"


def test_unwritable_folder_warns_once_and_returns_the_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("a folder cannot be created below a file")
    assert cached(tmp_path / "file" / "entry", lambda: "built", save, load) == "built"
    [record] = caplog.records
    assert "cannot be written" in record.getMessage()


def test_full_disk_warns_once_and_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def save_to_full_disk(value: str, folder: Path) -> None:
        save(value, folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert cached(tmp_path / "entry", lambda: "built", save_to_full_disk, load) == "built"
    [record] = caplog.records
    assert "No space left" in record.getMessage()
    assert [path.name for path in tmp_path.iterdir()] == [".entry.lock"]


def test_errors_of_build_are_raised_and_release_the_lock(tmp_path: Path) -> None:
    def fail() -> str:
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        cached(tmp_path / "entry", fail, save, load)
    assert cached(tmp_path / "entry", lambda: "built", save, load) == "built"


def test_temporary_folders_of_killed_processes_are_deleted(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from defemb_callbacks.cache import cached
def save(value, folder):
    (folder / "half").write_text(value)
    os._exit(9)
cached(Path(sys.argv[1]), lambda: "x", save, None)
"""
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "entry")], env=environment())
    assert killed.returncode == 9
    (tmp_path / ".entry2.tmp-other").mkdir()  # another process may be building this entry
    assert len(list(tmp_path.glob(".entry.tmp-*"))) == 1
    assert cached(tmp_path / "entry", lambda: "built", save, load) == "built"
    assert not list(tmp_path.glob(".entry.tmp-*"))
    assert (tmp_path / ".entry2.tmp-other").exists()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_fingerprint_distinguishes_parts_types_and_file_contents(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    first = fingerprint(path)
    others = [fingerprint("ab", "c"), fingerprint("a", "bc"), fingerprint("abc"), fingerprint(b"abc"), fingerprint()]
    assert len({first, *others}) == 6
    path.write_text("two")
    assert fingerprint(path) != first


def test_file_fingerprint_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            (tmp_path / folder / name).write_text(name)
    one, two = (file_fingerprint((tmp_path / folder / name) for name in "ab") for folder in ("one", "two"))
    assert one == two == file_fingerprint([tmp_path / "one" / "b", tmp_path / "one" / "a"])
    (tmp_path / "two" / "b").rename(tmp_path / "two" / "c")
    assert file_fingerprint((tmp_path / "two" / name) for name in "ac") != one


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read for a fingerprint, with an own cache and without waiting times."""
    monkeypatch.setenv("DEFEMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "REMEMBERED_FROM", 1)
    monkeypatch.setattr(cache, "SETTLED_AFTER", 0)
    names, checksum = list[str](), cache._checksum

    def recorded(path: Path) -> str:
        names.append(path.name)
        return checksum(path)

    monkeypatch.setattr(cache, "_checksum", recorded)
    return names


def written(path: Path, text: str) -> Path:
    time.sleep(0.02)  # more than one tick of the clock that files are stamped with
    path.write_text(text)
    time.sleep(0.02)
    return path


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, reads: list[str]) -> None:
    path = written(tmp_path / "a.jsonl", "one")
    first = remembered_fingerprint(path)
    assert reads == ["a.jsonl"]
    assert remembered_fingerprint(path) == first
    assert reads == ["a.jsonl"]
    assert first == file_fingerprint([path])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no time of change")
@pytest.mark.parametrize("same_content", [True, False])
@pytest.mark.parametrize("change", ["touched", "replaced", "edited", "edited with the old time", "appended"])
def test_a_changed_file_is_read_again(change: str, same_content: bool, tmp_path: Path, reads: list[str]) -> None:
    path = written(tmp_path / "a.jsonl", "one")
    before, first = path.stat(), remembered_fingerprint(path)
    text = "one" if same_content or change == "touched" else "two"
    if change == "touched":
        time.sleep(0.02)
        os.utime(path)
    elif change == "replaced":
        other = written(tmp_path / "b.jsonl", text)
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(other, path)
    elif change == "appended":
        text = "one more"
        written(path, text)
    else:
        written(path, text)
    if change == "edited with the old time":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)
    assert (remembered_fingerprint(path) == first) == (text == "one")
    assert reads == ["a.jsonl", "a.jsonl"]


def test_a_file_written_a_moment_ago_and_a_small_one_are_not_remembered(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.jsonl", "one")
    monkeypatch.setattr(cache, "SETTLED_AFTER", 10**12)
    assert remembered_fingerprint(path) == remembered_fingerprint(path)
    monkeypatch.setattr(cache, "SETTLED_AFTER", 0)
    monkeypatch.setattr(cache, "REMEMBERED_FROM", 4)
    assert remembered_fingerprint(path) == remembered_fingerprint(path)
    assert len(reads) == 4
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"state": 1}', "null", "\xff"])
def test_a_damaged_index_is_ignored_and_written_again(damage: str, tmp_path: Path, reads: list[str]) -> None:
    path = written(tmp_path / "a.jsonl", "one")
    first = remembered_fingerprint(path)
    (index,) = (tmp_path / "cache" / "files").iterdir()
    index.write_bytes(damage.encode("latin-1"))
    assert remembered_fingerprint(path) == remembered_fingerprint(path) == first
    assert len(reads) == 2


def test_without_a_writable_cache_the_file_is_read_each_time(
    tmp_path: Path, reads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "a.jsonl", "one")
    (tmp_path / "cache").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        assert remembered_fingerprint(path) == remembered_fingerprint(path) == file_fingerprint([path])
    assert len(reads) == 3
    assert "is not cached" in caplog.text


def test_manifest_of_an_empty_folder_is_valid(tmp_path: Path) -> None:
    write_manifest(tmp_path)
    assert verify_manifest(tmp_path) is None
