"""torch's random states are restored on every kind of accelerator; the slow `test_other_devices.py` uses a stand-in."""

from __future__ import annotations

import pytest
import torch

from defemb_callbacks.weights.random_states import current_accelerator, same_random_states


@pytest.fixture
def two_xpus(monkeypatch) -> list[int]:
    """Seeds of two XPU devices, which this machine does not have."""
    seeds = [1, 2]
    index = lambda device: device if isinstance(device, int) else device.index  # noqa: E731
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: len(seeds))
    monkeypatch.setattr(torch.xpu, "get_rng_state", lambda device: seeds[index(device)])
    monkeypatch.setattr(torch.xpu, "set_rng_state", lambda state, device: seeds.__setitem__(index(device), state))
    return seeds


def test_the_states_of_all_devices_are_restored(two_xpus):
    before = torch.get_rng_state()
    with same_random_states():
        torch.rand(1)
        two_xpus[:] = [7, 7]
    assert two_xpus == [1, 2]
    assert torch.equal(torch.get_rng_state(), before)


def test_only_the_state_of_the_device_that_draws_is_restored(two_xpus):
    with same_random_states(torch.device("xpu", 1)):
        two_xpus[:] = [7, 7]
    assert two_xpus == [7, 2]


def test_the_states_of_the_accelerator_are_kept_while_the_cpu_draws(two_xpus):
    before = torch.get_rng_state()
    with same_random_states(torch.device("cpu")):
        torch.rand(1)
        two_xpus[:] = [7, 7]
    assert two_xpus == [7, 7]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_process_without_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    assert current_accelerator() == torch.device("cpu")
    before = torch.get_rng_state()
    with same_random_states():
        torch.rand(1)
    assert torch.equal(torch.get_rng_state(), before)
