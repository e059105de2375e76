"""Devices with and without float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from defemb_callbacks.embeddings.rows_to_write import mean_row
from defemb_callbacks.reconstruction import features
from defemb_callbacks.weights import precision
from defemb_callbacks.weights.precision import float64_device

CPU = torch.device("cpu")


@pytest.mark.parametrize("error", [TypeError, RuntimeError, NotImplementedError])
def test_a_device_without_float64_is_replaced(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def zeros(*size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        raise error("Required aspect fp64 is not supported on the device")

    monkeypatch.setattr(precision.torch, "zeros", zeros)
    assert float64_device(torch.device("xpu", 1)) == CPU
    assert float64_device(CPU) == CPU


def test_a_device_with_float64_is_kept() -> None:
    assert float64_device(torch.device("meta")) == torch.device("meta")


def test_means_are_computed_where_float64_is(monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.arange(6.0).view(3, 2)
    monkeypatch.setattr("defemb_callbacks.embeddings.rows_to_write.float64_device", lambda device: CPU)
    assert mean_row(table, torch.tensor([0, 2])).tolist() == [2.0, 3.0]


def test_features_of_several_processes_are_summed_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device of the processes has no float64, the sums are exchanged as objects."""
    own = torch.tensor([[1.0, 1e-12]], dtype=torch.float64)
    monkeypatch.setattr(features, "float64_device", lambda device: torch.device("meta"))
    monkeypatch.setattr(features, "gather_object", lambda values: [*values, *values])
    monkeypatch.setattr(features, "reduce", None)  # not called
    monkeypatch.setattr(features, "max", lambda values: 2, raising=False)
    assert torch.equal(features._sum_over_processes(own, 1), 2 * own)
