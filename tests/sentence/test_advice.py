"""Uniformity and calibration advice, compared with gains on STS-B."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from defemb_callbacks.metrics import average_cosine
from defemb_callbacks.sentence import calibration_advice, encode_texts, fit_whitening, uniformity
from defemb_callbacks.sentence.advice import MIN_UNIFORMITY


def cone(offset: float, n: int = 300, d: int = 32) -> Tensor:
    """Isotropic vectors plus an offset: the larger the offset, the narrower the cone."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0)) + offset


@pytest.mark.parametrize("n", [2, 1024, 1025, 2500])
def test_uniformity_matches_its_formula(n: int) -> None:
    vectors = cone(0.3, n)
    unit = vectors.double().numpy() / np.linalg.norm(vectors.double().numpy(), axis=1, keepdims=True)
    expected = np.log(np.exp(-2 * pdist(unit, "sqeuclidean")).mean())
    assert uniformity(vectors) == pytest.approx(expected, rel=1e-10)


def test_uniformity_of_one_direction_is_0() -> None:
    assert uniformity(torch.arange(1.0, 6.0)[:, None] * torch.ones(8)) == pytest.approx(0, abs=1e-12)


def test_uniformity_of_isotropic_vectors_is_near_minus_4() -> None:
    assert uniformity(cone(0, 2000, 400)) == pytest.approx(-4 + 8 / 400, abs=0.01)


def test_uniformity_is_invariant_to_lengths_and_rotation() -> None:
    vectors = cone(0.3)
    rotation = torch.linalg.qr(torch.randn(32, 32)).Q
    assert uniformity(vectors * torch.rand(300, 1) @ rotation) == pytest.approx(uniformity(vectors), abs=1e-5)


def test_zero_vector_has_distance_1_to_all_others() -> None:
    assert uniformity(torch.tensor([[0.0, 0.0], [3.0, 0.0]])) == pytest.approx(-2)


def test_uniformity_of_one_vector() -> None:
    with pytest.raises(ValueError, match="`vectors` must have at least 2 rows, got 1"):
        uniformity(torch.ones(1, 4))


def ellipsoid(directions: int, n: int = 1000, d: int = 400) -> Tensor:
    """Vectors around the origin that vary along `directions` directions only."""
    vectors = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    vectors[:, directions:] *= 0.01
    return vectors


def test_calibration_helps_vectors_in_a_narrow_cone() -> None:
    advice = [calibration_advice(cone(offset)) for offset in (0, 0.3, 0.8, 1.2)]
    assert all(one.uniformity < other.uniformity for one, other in itertools.pairwise(advice))
    assert [one.uniformity >= MIN_UNIFORMITY for one in advice] == [False, False, True, True]
    assert [one.verdict for one in advice] == ["harms", "harms", "helps", "helps"]


@pytest.mark.parametrize(
    ("directions", "width", "verdict"),
    [
        (20, 400, "unclear"),
        (60, 400, "unclear"),
        (90, 400, "harms"),
        (400, 400, "harms"),
        (6, 40, "unclear"),
        (15, 40, "harms"),
    ],
)
def test_calibration_harms_vectors_spread_over_many_directions(directions: int, width: int, verdict: str) -> None:
    advice = calibration_advice(ellipsoid(directions, d=width))
    assert advice.uniformity < MIN_UNIFORMITY
    assert advice.verdict == verdict
    # The estimate from a finite sample is too low.
    assert 0.6 * directions < advice.directions <= directions


def test_directions_are_the_participation_ratio() -> None:
    vectors = cone(0.2)
    spectrum = np.linalg.eigvalsh(np.cov(vectors.double().numpy().T))
    assert calibration_advice(vectors).directions == pytest.approx(spectrum.sum() ** 2 / (spectrum**2).sum(), rel=1e-6)


@pytest.mark.parametrize(
    ("vectors", "words"),
    [(cone(0), "likely to harm"), (ellipsoid(20), "may be positive or negative"), (cone(1.0), "likely to help")],
)
def test_reason_states_the_measurements_and_the_verdict(vectors: Tensor, words: str) -> None:
    advice = calibration_advice(vectors)
    assert words in advice.reason
    assert f"uniformity {advice.uniformity:.2f}" in advice.reason
    assert f"average cosine {advice.average_cosine:.2f}" in advice.reason
    assert f"{advice.directions:.0f} of {vectors.shape[1]} effective directions" in advice.reason
    assert advice.uniformity == uniformity(vectors)
    assert advice.average_cosine == average_cosine(vectors)


def test_whitened_vectors_need_no_calibration() -> None:
    vectors = cone(1.0)
    assert calibration_advice(vectors).verdict == "helps"
    assert calibration_advice(fit_whitening(vectors)(vectors)).verdict == "harms"


def test_too_few_vectors() -> None:
    with pytest.raises(ValueError, match="`vectors` must have at least 100 rows, got 99"):
        calibration_advice(cone(0)[:99])


def test_vectors_with_infinity() -> None:
    vectors = cone(0)
    vectors[5, 5] = torch.inf
    with pytest.raises(ValueError, match="row 5 of vectors has a NaN or infinite entry"):
        calibration_advice(vectors)


VERDICTS = {"static": "helps", "layer:3": "helps", "layer:5": "helps", "first_last": "harms", "last": "harms"}


@pytest.fixture(scope="module")
def rated(minilm_dir: Path, data_dir: Path) -> tuple[dict[str, Tensor], list[float]]:
    """Vectors of STS-B's first and second sentences by pooling, and the ratings of the pairs."""
    model, tokenizer = AutoModel.from_pretrained(minilm_dir), AutoTokenizer.from_pretrained(minilm_dir)
    with open(data_dir / "stsb" / "validation.csv", encoding="utf-8", newline="") as file:
        left, right, scores = zip(*csv.reader(file), strict=True)
    vectors = encode_texts(model, tokenizer, [*left, *right], list(VERDICTS), max_length=64)
    return vectors, list(map(float, scores))


@pytest.mark.slow
@pytest.mark.parametrize(("pooling", "verdict"), VERDICTS.items())
def test_advice_agrees_with_human_ratings(
    rated: tuple[dict[str, Tensor], list[float]], pooling: str, verdict: str
) -> None:
    vectors, scores = rated[0][pooling], rated[1]

    def spearman(vectors: Tensor) -> float:
        cosines = torch.cosine_similarity(vectors[: len(scores)], vectors[len(scores) :])
        ranks = np.argsort(np.argsort(np.stack([cosines.numpy(), np.array(scores)])), axis=1)
        return float(np.corrcoef(ranks)[0, 1])

    gain = spearman(fit_whitening(vectors)(vectors)) - spearman(vectors)
    assert calibration_advice(vectors[::3]).verdict == verdict
    assert (gain > 0.02) == (verdict == "helps")
    assert (gain < -0.01) == (verdict == "harms")
