"""GPUs, also without float64, and models on two devices: results are those of the CPU (`other_devices.py`)."""

from __future__ import annotations

import json

import pytest

import other_devices
from launching import launch


def names(cases: tuple[object, ...]) -> list[str]:
    return [case.__name__ for case in cases]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return outcomes(tmp_path_factory)


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return outcomes(tmp_path_factory, "cuda:0")


def outcomes(tmp_path_factory: pytest.TempPathFactory, *device: str) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("devices")
    path, env = folder / "outcomes.json", {"DEFEMB_CACHE": str(folder / "cache")}
    launch(other_devices.__file__, str(path), *device, processes=1, env=env, timeout=600)
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", names((*other_devices.OF_THE_STAND_IN, *other_devices.CASES)))
def test_a_gpu_without_float64(stand_in: dict[str, str], case: str) -> None:
    assert not stand_in[case], stand_in[case]


@pytest.mark.gpu
@pytest.mark.parametrize("case", names(other_devices.CASES))
def test_a_gpu(gpu: dict[str, str], case: str) -> None:
    assert not gpu[case], gpu[case]
