"""Hostile artifacts are rejected, and nothing is written outside the cache and the output folder.

Ruff forbids pickle and `eval` (see `pyproject.toml`).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertForSequenceClassification, Trainer

from defemb_callbacks import DefinitionEMBCallback, DefinitionEmbeddings
from defemb_callbacks.cache import fingerprint
from defemb_callbacks.embeddings.artifact import DESCRIPTION, TENSORS
from defemb_callbacks.vocabulary.tokens import Vocabulary
from forking import result_of
from tiny import tiny_bert, tiny_dataset, tiny_glossary, training_args, wordpiece_tokenizer


def embeddings() -> DefinitionEmbeddings:
    vocabulary = Vocabulary(("the", "cat"), ("the", "cat"), (None, None), True)
    return DefinitionEmbeddings(torch.tensor([0, 1]), torch.ones(2, 4), vocabulary)


def other_tensors(**tensors: torch.Tensor) -> Any:
    def change(folder: Path) -> None:
        good = {"ids": torch.tensor([0, 1]), "rows": torch.ones(2, 4), "pairs": torch.zeros(0, 2, dtype=torch.int64)}
        save_file(good | tensors, folder / TENSORS)

    return change


def huge_header(folder: Path) -> None:
    (folder / TENSORS).write_bytes((1 << 62).to_bytes(8, "little") + b"{}")


def tensor_beyond_the_file(folder: Path) -> None:
    header = json.dumps({"rows": {"dtype": "F32", "shape": [1 << 40, 4], "data_offsets": [0, 1 << 44]}}).encode()
    (folder / TENSORS).write_bytes(len(header).to_bytes(8, "little") + header)


def a_pickle(folder: Path) -> None:
    torch.save({"rows": torch.ones(2, 4)}, folder / TENSORS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (huge_header, "cannot be used: .*[hH]eader"),
        (tensor_beyond_the_file, "cannot be used: .*"),
        (a_pickle, "cannot be used: .*[hH]eader"),
        (other_tensors(rows=torch.ones(2, 4, dtype=torch.float16)), r"`rows` must be \(n, d\) float32"),
        (other_tensors(rows=torch.full((2, 4), float("nan"))), "2 new rows contain NaN"),
        (other_tensors(ids=torch.tensor([0, 7])), "ids from 0 to 7 do not fit a table of 2 rows"),
        (other_tensors(ids=torch.tensor([-1, 0])), "ids from -1 to 0 do not fit"),
        (other_tensors(ids=torch.tensor([0.0, 1.0])), "must be a 1-D int64 tensor"),
        (other_tensors(pairs=torch.tensor([[0, -5]])), "`pairs` must contain ids from 0 to 1, got ids from -5"),
    ],
)
def test_a_hostile_artifact_is_rejected(change, message, tmp_path) -> None:
    """The checksum matches: an attacker would make sure of that."""
    embeddings().save_pretrained(tmp_path)
    change(tmp_path)
    description = json.loads((tmp_path / DESCRIPTION).read_text()) | {"tensors": fingerprint(tmp_path / TENSORS)}
    (tmp_path / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(ValueError, match=message):
        DefinitionEmbeddings.from_pretrained(tmp_path)


def test_names_that_look_like_paths_are_plain_strings(tmp_path) -> None:
    """Tokens, words, and entries of `info` are never used as paths."""
    names = ("../../etc/passwd", "/tmp/x")
    vocabulary = Vocabulary(names, names, (None, None), True)
    hostile = DefinitionEmbeddings(
        torch.tensor([0, 1]), torch.ones(2, 4), vocabulary, info={"model": "../../..", "definitions": "/etc/passwd"}
    )
    hostile.save_pretrained(tmp_path / "one")
    DefinitionEmbeddings.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        f"{folder}/{name}" for folder in ("one", "two") for name in sorted([DESCRIPTION, TENSORS])
    ]


def test_hub_revisions_can_be_pinned(tmp_path, monkeypatch) -> None:
    embeddings().save_pretrained(tmp_path)
    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **settings: Any) -> str:
        asked.append({"name": name, **settings})
        return str(tmp_path)

    monkeypatch.setattr("defemb_callbacks.hub.snapshot_download", snapshot_download)
    DefinitionEmbeddings.from_pretrained("user/embeddings", revision="a" * 40)
    assert asked[0]["name"] == "user/embeddings"
    assert asked[0]["revision"] == "a" * 40
    assert sorted(asked[0]["allow_patterns"]) == sorted([TENSORS, DESCRIPTION])  # nothing else is downloaded


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_nothing_is_written_outside_the_cache_and_the_output_folder(tmp_path, monkeypatch) -> None:
    """An audit hook sees every file opened for writing, and every file or folder created, renamed or removed."""
    monkeypatch.setenv("DEFEMB_CACHE", str(tmp_path / "cache"))
    tokenizer = wordpiece_tokenizer()

    def work() -> list[str]:
        written: list[str] = []

        def hook(event: str, arguments: Any) -> None:
            if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
                if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                    written.append(os.fsdecode(arguments[0]))
            elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.chmod"):
                written.extend(os.fsdecode(name) for name in arguments[: 2 if event == "os.rename" else 1])

        model = tiny_bert(tokenizer, BertForSequenceClassification)
        callback = DefinitionEMBCallback(tiny_glossary(), monitor_steps=1)
        args = training_args(tmp_path / "output", max_steps=2)
        sys.addaudithook(hook)  # cannot be removed, hence the forked process
        data = tiny_dataset(tokenizer, 16)
        trainer = Trainer(model, args, train_dataset=data, processing_class=tokenizer, callbacks=[callback])
        trainer.train()
        return written

    written = result_of(work)
    assert isinstance(written, list), written
    allowed = (str(tmp_path / "cache"), str(tmp_path / "output"), "/dev/null")
    # matplotlib has its own font cache; relative names are files in a folder that is already open.
    foreign = [name for name in written if os.path.isabs(name) and not name.startswith(allowed)]
    assert not [name for name in foreign if "matplotlib" not in name and "/proc/" not in name], foreign
    assert any(name.startswith(allowed[0]) for name in written)
    assert any(name.startswith(allowed[1]) for name in written)
