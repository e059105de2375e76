"""TokenBatchSampler: every row once, within the budget, and the same rows for any number of processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from defemb_callbacks.reconstruction.batching import TokenBatchSampler

LENGTHS = st.lists(st.integers(1, 30), min_size=4, max_size=60)


def padded(batch: list[int], lengths: list[int]) -> int:
    return len(batch) * max(lengths[row] for row in batch)


def random_lengths(count: int, longest: int = 60) -> list[int]:
    return torch.randint(5, longest, (count,), generator=torch.Generator().manual_seed(1)).tolist()


def dealt(sampler: Any, processes: int = 2) -> list[list[list[int]]]:
    """The batches of each process, as accelerate distributes them."""
    shards = [BatchSamplerShard(sampler, processes, index, even_batches=False) for index in range(processes)]
    return [list(shard) for shard in shards]


# One process


@given(LENGTHS, st.integers(1, 100), st.integers(1, 4))
def test_every_row_comes_exactly_once_an_epoch(lengths, tokens, processes):
    sampler = TokenBatchSampler(lengths, tokens, processes=processes)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        assert len(batches) == len(sampler)
        assert all(batches)


@given(LENGTHS, st.integers(1, 100))
def test_a_batch_exceeds_the_budget_only_for_a_single_long_row(lengths, tokens):
    for batch in TokenBatchSampler(lengths, tokens):
        assert padded(batch, lengths) <= tokens or len(batch) == 1


@given(LENGTHS, st.integers(1, 100))
def test_no_batch_could_take_the_longest_row_of_a_shorter_one(lengths, tokens):
    batches = [(max(lengths[row] for row in batch), len(batch)) for batch in TokenBatchSampler(lengths, tokens)]
    # The last batch has the remaining, shortest rows.
    for longest, rows in sorted(batches, reverse=True)[:-1]:
        assert (rows + 1) * longest > tokens


def test_batches_of_random_rows_have_little_padding():
    lengths = random_lengths(5000)
    batches = list(TokenBatchSampler(lengths, 1024))
    spent = sum(padded(batch, lengths) for batch in batches)
    assert sum(lengths) / spent > 0.98
    assert len(batches) <= 1.06 * sum(lengths) / 1024
    # All but the last are nearly full.
    assert sorted(padded(batch, lengths) for batch in batches)[1] > 1024 - 60


def test_each_epoch_has_other_batches_in_another_order():
    sampler = TokenBatchSampler(random_lengths(400, longest=12), 100)
    epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    first, second, again = epochs
    assert first == again
    together = [{frozenset(batch) for batch in epoch} for epoch in (first, second)]
    assert len(together[0] & together[1]) < 0.1 * len(first)


def test_batches_are_not_ordered_by_length():
    lengths = random_lengths(2000)
    longest = torch.tensor([max(lengths[row] for row in batch) for batch in TokenBatchSampler(lengths, 300)])
    order = torch.corrcoef(torch.stack([longest.double(), torch.arange(len(longest)).double()]))[0, 1]
    assert abs(float(order)) < 0.3


def test_the_seed_determines_the_order():
    lengths = random_lengths(200)
    one, same, other = (list(TokenBatchSampler(lengths, 200, seed=seed)) for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_iterating_twice_gives_the_same_batches_and_keeps_the_random_state():
    sampler = TokenBatchSampler(random_lengths(200), 200)
    before = torch.get_rng_state()
    assert list(sampler) == list(sampler)
    assert torch.equal(torch.get_rng_state(), before)


# Several processes


@given(LENGTHS, st.integers(30, 100), st.integers(2, 4), st.integers(0, 3))
def test_the_batches_of_all_processes_form_one_batch_of_the_total_budget(lengths, tokens, processes, epoch):
    whole = TokenBatchSampler(lengths, tokens * processes)
    # One process may end with fewer rows than there would be processes.
    assume(all(len(batch) >= processes for batch in whole))
    parts = TokenBatchSampler(lengths, tokens, processes=processes)
    for sampler in (whole, parts):
        sampler.set_epoch(epoch)
    shares = list(parts)
    assert len(shares) == processes * len(whole)
    for number, batch in enumerate(whole):
        step = shares[processes * number : processes * (number + 1)]
        assert sorted(row for share in step for row in share) == sorted(batch)
        assert max(map(len, step)) - min(map(len, step)) <= 1


@given(LENGTHS, st.integers(1, 100))
def test_processes_get_rows_of_similar_lengths(lengths, tokens):
    shares = list(TokenBatchSampler(lengths, tokens, processes=2))
    for first, second in zip(shares[::2], shares[1::2], strict=True):
        longest = sorted((lengths[row] for row in first + second), reverse=True)
        assert sorted((max(lengths[row] for row in share) for share in (first, second)), reverse=True) == longest[:2]


@given(LENGTHS, st.integers(1, 100))
def test_every_process_gets_a_row(lengths, tokens):
    sampler = TokenBatchSampler(lengths, tokens, processes=4)
    shares = list(sampler)
    assert all(shares)
    assert len(shares) % 4 == 0


@given(LENGTHS, st.integers(30, 100))
def test_each_process_exceeds_its_budget_by_at_most_one_row(lengths, tokens):
    for share in TokenBatchSampler(lengths, tokens, processes=2):
        assert len(share) == 1 or padded(share[:-1], lengths) <= tokens


def test_fewer_rows_than_processes_raise():
    with pytest.raises(ValueError, match=r"3 definitions cannot be split over 4 processes. Use fewer"):
        TokenBatchSampler([5, 6, 7], 10, processes=4)
    assert list(TokenBatchSampler([5, 6, 7, 8], 1, processes=4)) != []


# With accelerate


@pytest.mark.parametrize("count", [4, 5, 101, 500])
@pytest.mark.parametrize("tokens", [1, 60, 300])
def test_accelerate_distributes_every_row_once_and_equal_numbers_of_batches(count, tokens):
    lengths = random_lengths(count)
    sampler = TokenBatchSampler(lengths, tokens, processes=2)
    first, second = dealt(sampler)
    assert len(first) == len(second) == len(sampler) // 2 > 0
    assert sorted(row for batch in first + second for row in batch) == list(range(count))
    assert [batch for step in zip(first, second, strict=True) for batch in step] == list(sampler)


def test_two_processes_take_the_same_steps_as_one_with_twice_the_batch():
    lengths = random_lengths(500)
    first, second = dealt(TokenBatchSampler(lengths, 200, processes=2))
    whole = list(TokenBatchSampler(lengths, 400))
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(batch) for batch in whole]


def test_an_epoch_set_on_accelerates_loader_reaches_the_sampler():
    lengths = random_lengths(200, longest=12)

    def loader(process: int) -> Any:
        sampler = TokenBatchSampler(lengths, 60, processes=2)
        plain = DataLoader(list(range(200)), batch_sampler=sampler, collate_fn=list)  # type: ignore[arg-type]
        return prepare_data_loader(
            plain, num_processes=2, process_index=process, put_on_device=False, rng_types=None, even_batches=False
        )

    loaders = [loader(process) for process in range(2)]
    epochs = []
    for epoch in (0, 1):
        expected = TokenBatchSampler(lengths, 60, processes=2)
        expected.set_epoch(epoch)
        steps = list(expected)
        for process, prepared in enumerate(loaders):
            prepared.set_epoch(epoch)
            assert list(prepared) == steps[process::2]
        epochs.append(steps)
    assert epochs[0] != epochs[1]
