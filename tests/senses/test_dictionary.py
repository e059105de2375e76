"""Sense dictionaries: selection of senses, saving and loading."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import tiny
from defemb_callbacks.senses import SenseDictionary, build_sense_dictionary
from defemb_callbacks.vocabulary.tokens import Vocabulary

TEXTS = tiny.random_texts(160)


@pytest.mark.parametrize("similarity", ["dot", "cosine", "euclidean"])
def test_lookup_matches_a_loop(dictionary: SenseDictionary, similarity: Any) -> None:
    chooser = SenseDictionary(
        dictionary.offsets, dictionary.vectors, dictionary.counts, dictionary.vocabulary, similarity=similarity
    )
    states = torch.randn(7, 30, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, len(dictionary.vocabulary), (7, 30), generator=torch.Generator().manual_seed(1))
    ids[:5] = torch.tensor([index for index, n in enumerate(dictionary.offsets.diff()) if n > 1][:30])
    found = chooser.lookup(states, ids)
    replaced = 0
    for where in itertools.product(range(7), range(30)):
        state, token = states[where], int(ids[where])
        senses = dictionary.vectors[dictionary.offsets[token] : dictionary.offsets[token + 1]]
        if not len(senses):
            assert torch.equal(found[where], state)
            continue
        scores = torch.stack([torch.dot(sense, state) for sense in senses])
        if similarity == "cosine":
            scores = scores / senses.norm(dim=1)
        if similarity == "euclidean":
            scores = -torch.stack([(sense - state).norm() for sense in senses])
        assert torch.equal(found[where], senses[scores.argmax()])
        replaced += 1
    assert replaced >= 150


@pytest.mark.parametrize("gathered", [1, 100, 1 << 22])
def test_devices_without_sparse_products_have_the_same_scores(
    dictionary: SenseDictionary, monkeypatch: pytest.MonkeyPatch, gathered: int
) -> None:
    states = torch.randn(40, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids = torch.arange(40) * (len(dictionary.vocabulary) // 40)
    expected = dictionary.scores(states, ids)
    (gradient,) = torch.autograd.grad(expected[expected.isfinite()].square().sum(), states)
    assert gradient.any()
    monkeypatch.setattr("defemb_callbacks.senses.dictionary._has_sampled_products", lambda device: False)
    monkeypatch.setattr("defemb_callbacks.senses.dictionary._GATHERED", gathered)
    found = dictionary.scores(states, ids)
    torch.testing.assert_close(found, expected)
    (again,) = torch.autograd.grad(found[found.isfinite()].square().sum(), states)
    torch.testing.assert_close(again, gradient)
    assert dictionary.scores(states[:0], ids[:0]).shape == (0, dictionary.most_senses)


def test_gradient_of_scores(dictionary: SenseDictionary) -> None:
    ids = torch.tensor([index for index, n in enumerate(dictionary.offsets.diff()) if n == 4][:9])
    states = torch.randn(len(ids), 32, requires_grad=True)
    weights = torch.randn(len(ids), 4)
    (dictionary.scores(states, ids) * weights).sum().backward()
    senses = dictionary.vectors[dictionary.offsets[ids][:, None] + torch.arange(4)]
    torch.testing.assert_close(states.grad, torch.einsum("nkd,nk->nd", senses, weights))


def test_lookup_keeps_dtype_and_is_straight_through(dictionary: SenseDictionary) -> None:
    ids = torch.full((3,), int(dictionary.offsets.diff().argmax()))
    states = torch.randn(3, 32, dtype=torch.bfloat16, requires_grad=True)
    senses = dictionary.lookup(states, ids)
    assert senses.dtype == torch.bfloat16
    senses.sum().backward()
    assert torch.equal(states.grad, torch.ones_like(states))


def test_empty_dictionary_returns_the_states(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    empty = build_sense_dictionary(teacher, tokenizer, TEXTS[:2], keep_rare=False)
    states, ids = torch.randn(2, 3, 32), torch.ones(2, 3, dtype=torch.int64)
    assert len(empty.vectors) == 0
    assert torch.equal(empty.lookup(states, ids), states)
    assert empty.choose(states[0], ids[0]).tolist() == [-1] * 3


@pytest.mark.parametrize("storage", ["float32", "float16", "product"])
def test_save_and_load(dictionary: SenseDictionary, tmp_path: Path, storage: Any) -> None:
    saved = dictionary.compressed(storage)
    saved.save_pretrained(tmp_path)
    loaded = SenseDictionary.from_pretrained(tmp_path)
    for name in ("offsets", "vectors", "counts"):
        assert torch.equal(getattr(loaded, name), getattr(saved, name)), name
    assert loaded.vocabulary == saved.vocabulary
    assert (loaded.similarity, loaded.storage, loaded.info) == ("dot", storage, dictionary.info)
    assert loaded.fingerprint == saved.fingerprint
    size = (tmp_path / "senses.safetensors").stat().st_size
    assert 0 <= size - sum(saved.stored_bytes.values()) < 1000
    assert torch.cosine_similarity(saved.vectors, dictionary.vectors).min() > 0.9


def test_dictionary_stays_in_float32(dictionary: SenseDictionary) -> None:
    copy = dictionary.compressed("float32").half()
    assert copy.vectors.dtype == torch.float32
    assert torch.equal(copy.vectors, dictionary.vectors)
    assert copy.offsets.dtype == torch.int64


def test_damaged_or_missing_files(dictionary: SenseDictionary, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="contains no sense dictionary"):
        SenseDictionary.from_pretrained(tmp_path)
    dictionary.save_pretrained(tmp_path)
    path = tmp_path / "senses.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"is invalid: The checksum of senses\.safetensors does not match"):
        SenseDictionary.from_pretrained(tmp_path)


def test_hub_upload(dictionary: SenseDictionary, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    def upload_folder(self: Any, *, folder_path: str, repo_id: str, **kwargs: Any) -> str:
        uploaded.update({path.name: path.stat().st_size for path in Path(folder_path).iterdir()})
        return f"commit of {repo_id}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi.upload_folder", upload_folder)
    monkeypatch.setattr(
        "huggingface_hub.hub_mixin.HfApi.create_repo", lambda self, repo_id, **_: type("Repo", (), {"repo_id": repo_id})
    )
    assert dictionary.push_to_hub("user/senses") == "commit of user/senses"
    assert uploaded.keys() == {"senses.safetensors", "vocabulary.json", "config.json", "README.md"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": torch.zeros(2, 3, dtype=torch.float16)}, r"`vectors` must be \(senses, d\) float32"),
        ({"offsets": torch.tensor([0, 2])}, r"`offsets` must be \(3,\) int64"),
        ({"offsets": torch.tensor([0, 1, 1])}, "`offsets` must increase from 0 to the number of senses, 2"),
        ({"counts": torch.ones(3, dtype=torch.int64)}, r"`counts` must be \(2,\) int64"),
        ({"vectors": torch.full((2, 3), torch.nan)}, "`vectors` contains NaN or infinity"),
    ],
)
def test_invalid_tensors(change: dict[str, Tensor], message: str) -> None:
    tensors = {"offsets": torch.tensor([0, 0, 2]), "vectors": torch.zeros(2, 3), "counts": torch.ones(2).long()}
    vocabulary = Vocabulary(("a", "b"), ("a", "b"), (None, None), uncased=True)
    with pytest.raises(ValueError, match=message):
        SenseDictionary(**tensors | change, vocabulary=vocabulary)  # type: ignore[arg-type]
