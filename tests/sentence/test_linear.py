"""Linear calibrations as values: files, hub, devices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import hub_mixin
from torch import Tensor

from defemb_callbacks.sentence import LinearCalibration, fit_whitening
from defemb_callbacks.sentence.linear import DESCRIPTION, TENSORS


@pytest.fixture
def whitening() -> LinearCalibration:
    vectors = torch.randn(600, 12, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 12) + 10
    return fit_whitening(vectors, 5)


def test_single_vector(whitening: LinearCalibration) -> None:
    vectors = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(whitening(vectors[3]), whitening(vectors)[3])


def test_save_and_load(whitening: LinearCalibration, tmp_path: Path) -> None:
    whitening.save_pretrained(tmp_path)
    loaded = LinearCalibration.from_pretrained(tmp_path)
    assert torch.equal(loaded.mean, whitening.mean)
    assert torch.equal(loaded.transform, whitening.transform)
    assert loaded.info == whitening.info
    assert repr(loaded) == repr(whitening)


def test_to_another_device(whitening: LinearCalibration) -> None:
    moved = whitening.to("meta")
    assert (moved.mean.device.type, moved.transform.device.type) == ("meta", "meta")
    assert moved.info["components"] == 5


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        LinearCalibration.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="contains no linear calibration"):
        LinearCalibration.from_pretrained(tmp_path)


def test_damaged_files(whitening: LinearCalibration, tmp_path: Path) -> None:
    whitening.save_pretrained(tmp_path)
    whole = (tmp_path / TENSORS).read_bytes()
    (tmp_path / TENSORS).write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="cannot be used"):
        LinearCalibration.from_pretrained(tmp_path)


def test_newer_format(whitening: LinearCalibration, tmp_path: Path) -> None:
    whitening.save_pretrained(tmp_path)
    (tmp_path / DESCRIPTION).write_text(json.dumps({"format": 2, "info": {}}))
    with pytest.raises(ValueError, match=r"Format 2 is newer than 1\. Upgrade defemb-callbacks"):
        LinearCalibration.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("mean", "transform", "message"),
    [
        (torch.zeros(3), torch.eye(4), r"got \(3,\) and \(4, 4\)"),
        (torch.zeros(3).double(), torch.eye(3), "`mean` must be float32"),
        (torch.zeros(3), torch.eye(3).half(), "`transform` must be float32, got torch.float16"),
    ],
)
def test_invalid_tensors(mean: Tensor, transform: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearCalibration(mean, transform)


def test_saving_keeps_the_config_of_a_model(whitening: LinearCalibration, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    whitening.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["config.json", DESCRIPTION, TENSORS])


def test_hub_round_trip(whitening: LinearCalibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def __init__(self, token: str | None) -> None:
            assert token == "secret"

        def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> Api:
            assert private
            self.repo_id = f"user/{repo_id}"
            return self

        def upload_folder(self, repo_id: str, folder_path: Path, **options: Any) -> str:
            shutil.copytree(folder_path, tmp_path / repo_id)
            return f"https://hub/{repo_id}/commit/1"

    def snapshot_download(repo_id: str, *, allow_patterns: list[str], revision: str, token: str) -> str:
        assert (allow_patterns, revision, token) == ([DESCRIPTION, TENSORS], "v1", "secret")
        return str(tmp_path / repo_id)

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    monkeypatch.setattr("defemb_callbacks.hub.snapshot_download", snapshot_download)
    url = whitening.push_to_hub("whitening", private=True, token="secret")
    assert url == "https://hub/user/whitening/commit/1"
    uploaded = tmp_path / "user" / "whitening"
    assert sorted(path.name for path in uploaded.iterdir()) == sorted(["README.md", DESCRIPTION, TENSORS])
    card = (uploaded / "README.md").read_text(encoding="utf-8")
    assert "library_name: defemb_callbacks" in card
    assert "from width 12 to\n5 (method: whitening)" in card
    loaded = LinearCalibration.from_pretrained("user/whitening", revision="v1", token="secret")
    assert torch.equal(loaded.transform, whitening.transform)
