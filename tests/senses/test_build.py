"""Building sense dictionaries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import tiny
from defemb_callbacks.senses import SenseConfig, SenseDictionary, build_sense_dictionary
from defemb_callbacks.senses.build import cluster_states, most_senses
from launching import exit_together, launch
from runs import forward_calls

TEXTS = tiny.random_texts(160)


@pytest.mark.parametrize("rule", ["fixed", "markov", "silhouette"])
def test_number_of_senses_for_any_number_of_states(rule: Any) -> None:
    points = torch.randn(1, 60, 8, generator=torch.Generator().manual_seed(3))
    sizes = torch.tensor([40, 0, 3, 12, 5])
    offsets = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    config = SenseConfig(senses=6, rule=rule)
    new, vectors, counts = cluster_states(points[0], offsets, config)
    number = new.diff()
    assert number[1] == 0
    assert (number <= most_senses(sizes, config)).all()
    assert number[2:].tolist()[::2] == [3, 5]  # raw vectors
    torch.testing.assert_close(vectors[new[2] : new[3]], points[0, 40:43])
    assert torch.equal(torch.tensor([counts[new[i] : new[i + 1]].sum() for i in range(5)]), sizes)
    assert (counts > 0).all()
    if rule == "fixed":
        assert number[[0, 3]].tolist() == [6, 6]
    bare, _, _ = cluster_states(points[0], offsets, SenseConfig(senses=6, rule=rule, keep_rare=False))
    assert bare.diff()[[1, 2, 4]].tolist() == [0, 0, 0]
    assert most_senses(sizes, SenseConfig(senses=6, rule=rule, keep_rare=False))[[1, 2, 4]].tolist() == [0, 0, 0]
    assert torch.equal(bare.diff()[[0, 3]], number[[0, 3]])


def test_dictionary_is_independent_of_the_batch_size(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dictionary: SenseDictionary
) -> None:
    other = build_sense_dictionary(teacher, tokenizer, TEXTS, senses=4, samples=50, batch_size=3)
    assert torch.equal(other.offsets, dictionary.offsets)
    torch.testing.assert_close(other.vectors, dictionary.vectors, atol=1e-4, rtol=1e-4)


def test_memory_is_logged_before_building(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "defemb_callbacks"):
        small = build_sense_dictionary(teacher, tokenizer, TEXTS, senses=2, samples=3)
    assert small.info["states_kept"] <= 3 * len(tokenizer)
    # Below min_samples, nothing is clustered: there is one sense per state.
    kept = small.info["states_kept"]
    assert f"{kept} states of 42 distinct tokens are kept, for at most {kept} senses (0.00 GB)" in caplog.text
    assert small.counts.sum() == small.info["states_kept"]


def test_silhouette_without_scikit_learn(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with (
        forward_calls() as calls,
        pytest.raises(ImportError, match=r'requires scikit-learn.*pip install "defemb-callbacks\[senses\]"'),
    ):
        build_sense_dictionary(teacher, tokenizer, TEXTS, rule="silhouette")
    assert not calls


@pytest.mark.slow
def test_two_processes_build_the_dictionary_of_one(tmp_path: Path) -> None:
    launch(__file__, str(tmp_path))
    one, two = (SenseDictionary.from_pretrained(tmp_path / str(rank)) for rank in (0, 1))
    tokenizer = tiny.wordpiece_tokenizer()
    alone = build_sense_dictionary(tiny.tiny_bert(tokenizer), tokenizer, TEXTS, senses=4, samples=50)
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.offsets, alone.offsets)
    torch.testing.assert_close(one.vectors, alone.vectors, atol=1e-4, rtol=1e-4)


def worker(folder: Path) -> None:
    """Code of each process."""
    rank = PartialState(cpu=True).process_index
    tokenizer = tiny.wordpiece_tokenizer()
    built = build_sense_dictionary(tiny.tiny_bert(tokenizer), tokenizer, TEXTS, senses=4, samples=50)
    assert torch.distributed.get_world_size() == 2
    built.save_pretrained(folder / str(rank))
    exit_together(folder)


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
