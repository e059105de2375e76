"""Crashes, full disks and corrupted files only cost time: never a wrong row, never a lock left behind.

`DEFEMB_FAULTS` multiplies the number of attempts. `benchmarks/faults.py` runs 20 kills of each kind and records the
results.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import launched
from defemb_callbacks import DefinitionEMBCallback, DefinitionEmbeddings, build_definition_embeddings
from defemb_callbacks.cache import MANIFEST, cached, verify_manifest
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.vocabulary.tokens import Vocabulary
from defemb_callbacks.weights.rows import read_table
from forking import forked, result_of
from runs import forward_calls
from tiny import tiny_bert, tiny_glossary, wordpiece_tokenizer

KILLS = 5 * int(os.environ.get("DEFEMB_FAULTS", "1"))

# A forked process has already imported everything, so a kill always hits the work itself.
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def build(folder: Path) -> DefinitionEmbeddings:
    tokenizer = wordpiece_tokenizer()
    config = DefinitionEMBConfig(cache_dir=str(folder), precision="float32")
    return build_definition_embeddings(tiny_bert(tokenizer), tokenizer, tiny_glossary(), config)


def large() -> DefinitionEmbeddings:
    """Embeddings of 24 MB: writing them takes long enough to be interrupted."""
    tokens = tuple(f"word{number}" for number in range(16_000))
    rows = torch.arange(16_000.0)[:, None] + torch.linspace(0, 1, 384)
    return DefinitionEmbeddings(torch.arange(16_000), rows, Vocabulary(tokens, tokens, (None,) * 16_000, True))


def keep_large(folder: Path) -> DefinitionEmbeddings:
    return cached(
        folder / "embeddings" / "large",
        large,
        DefinitionEmbeddings.save_pretrained,
        DefinitionEmbeddings.from_pretrained,
    )


@pytest.mark.slow
@pytest.mark.parametrize("work", [build, keep_large])
def test_after_a_kill_the_next_process_gets_the_right_rows(work, tmp_path, record_property) -> None:
    began = time.perf_counter()
    expected = work(tmp_path / "undisturbed")
    duration = time.perf_counter() - began
    moments, states = random.Random(0), {"nothing": 0, "half": 0, "whole": 0}
    for number in range(KILLS):
        folder = tmp_path / str(number)
        process = forked(work, folder)
        time.sleep(moments.uniform(0, 1.2 * duration))
        process.kill()
        process.join(10)
        names = [path.name for path in (folder / "embeddings").glob("*")] + [
            path.name for path in (folder / "embeddings").glob(".*tmp-*")
        ]
        whole = any(not name.startswith(".") for name in names)
        states["whole" if whole else "half" if any(".tmp-" in name for name in names) else "nothing"] += 1
        began = time.perf_counter()
        found = work(folder)
        assert time.perf_counter() - began < 5 * duration + 2  # no lock is left behind
        assert torch.equal(found.rows, expected.rows)
        [entry] = [path for path in (folder / "embeddings").iterdir() if not path.name.startswith(".")]
        assert verify_manifest(entry) is None
        assert not list((folder / "embeddings").glob(".*tmp-*"))
    record_property("kills", KILLS)
    record_property("found", states)
    assert sum(states.values()) == KILLS


def test_eight_processes_at_once_build_once(tmp_path, record_property) -> None:
    with forward_calls() as calls:
        build(tmp_path / "alone")
    with forward_calls() as tried:  # how the model reads, before its rows are found in the cache
        build(tmp_path / "alone")
    assert len(calls) > len(tried)

    def work(number: int) -> None:
        with forward_calls() as calls:
            build(tmp_path / "cache").save_pretrained(tmp_path / f"result-{number}")
        (tmp_path / f"calls-{number}").write_text(str(len(calls)))

    processes = [forked(work, number) for number in range(8)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    total = sum(int((tmp_path / f"calls-{number}").read_text()) for number in range(8))
    builds, rest = divmod(total - 8 * len(tried), len(calls) - len(tried))
    results = {DefinitionEmbeddings.from_pretrained(tmp_path / f"result-{number}").fingerprint for number in range(8)}
    record_property("builds", builds)
    record_property("different_results", len(results))
    assert (builds, rest, len(results)) == (1, 0, 1)


def test_every_flipped_bit_is_detected(tmp_path, record_property) -> None:
    expected = build(tmp_path)
    [entry] = [path for path in (tmp_path / "embeddings").iterdir() if path.is_dir()]
    moments, flips = random.Random(0), 0
    for path in sorted(entry.rglob("*")):
        original = path.read_bytes()
        for _ in range(20 * KILLS):
            changed = bytearray(original)
            changed[moments.randrange(len(changed))] ^= 1 << moments.randrange(8)
            path.write_bytes(bytes(changed))
            flips += 1
            # Only changes to the text of the manifest that do not matter, such as in whitespace, go undetected.
            if verify_manifest(entry) is None:
                assert path.name == MANIFEST
                assert torch.equal(DefinitionEmbeddings.from_pretrained(entry).rows, expected.rows)
        path.write_bytes(original)
    record_property("flips", flips)
    assert verify_manifest(entry) is None


def test_a_full_disk_disables_the_cache_but_not_the_run(tmp_path) -> None:
    """The kernel refuses to write more than 4 KB into a file."""
    expected = build(tmp_path / "elsewhere").rows

    def work() -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        return build(tmp_path / "full").rows.numpy()

    assert torch.equal(torch.from_numpy(result_of(work)), expected)
    assert not [path for path in (tmp_path / "full" / "embeddings").glob("*") if path.is_dir()]


def test_a_read_only_cache(tmp_path) -> None:
    expected = build(tmp_path / "cache").rows
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    (tmp_path / "empty").chmod(0o555)

    def work(folder: Path) -> Any:
        if os.geteuid() == 0:  # root may write anywhere
            os.setuid(65534)
        return build(folder).rows.numpy()

    for folder in (tmp_path / "cache", tmp_path / "empty"):
        found = result_of(lambda folder=folder: work(folder))
        assert not isinstance(found, str), found
        assert torch.equal(torch.from_numpy(found), expected)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: path.mkdir(), FileNotFoundError, "There is no file"),
        (lambda path: None, FileNotFoundError, "There is no file"),
        (lambda path: path.write_bytes(b"word\tdefinition\ncat\t\xff\xfe"), ValueError, "is not UTF-8 text"),
        (lambda path: path.write_bytes(b""), ValueError, "Required are 'word' or 'token'"),
    ],
)
def test_an_unreadable_dictionary_stops_the_run_before_anything_is_written(
    trainer, model, tmp_path, make, error, message
) -> None:
    make(tmp_path / "glossary.tsv")
    before = read_table(model)
    with pytest.raises(error, match=message):
        trainer(DefinitionEMBCallback(str(tmp_path / "glossary.tsv")), model=model)
    assert torch.equal(read_table(model), before)
    assert not hasattr(model.config, "definition_emb")


@pytest.mark.slow
def test_a_killed_process_stops_the_others(tmp_path, record_property) -> None:
    """Rank 1 is killed during a build, while rank 0 waits for its share of the results."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        env |= {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, launched.__file__, str(tmp_path), "dying"]
    processes = [
        subprocess.Popen(command, env=env | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    assert processes[1].wait(timeout=60) == -signal.SIGKILL
    began = time.time()
    _, errors = processes[0].communicate(timeout=60)
    record_property("seconds_until_the_other_stops", round(time.time() - began, 1))
    assert processes[0].returncode not in (0, None)
    assert (tmp_path / "died").exists()
    assert "Connection closed by peer" in errors or "Connection reset" in errors
