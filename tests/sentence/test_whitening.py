"""Linear calibrations from streaming statistics."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from defemb_callbacks.sentence import LinearCalibration, WhiteningFitter, fit_whitening


def anisotropic(n: int = 600, d: int = 12, seed: int = 0) -> Tensor:
    """Correlated heavy-tailed vectors with a large mean and unequal variances, like those of an encoder."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q * torch.logspace(-1, 1, d)
    normal = torch.randn(n, d, generator=generator)
    return (normal * normal.abs().sqrt()) @ mixing + 10 * torch.randn(d, generator=generator)


def fitted(*parts: Tensor) -> WhiteningFitter:
    fitter = WhiteningFitter()
    for part in parts:
        fitter.update(part)
    return fitter


def every_calibration(fitter: WhiteningFitter) -> list[LinearCalibration]:
    return [
        fitter.whitening(shrinkage=0.0),
        fitter.whitening(components=5),
        fitter.whitening(components=3, shrinkage=0.3),
        fitter.standardization(),
        fitter.top_removal(2),
    ]


@pytest.mark.parametrize("components", [None, 12, 7, 1])
def test_whitened_vectors_have_mean_0_and_covariance_identity(components: int | None) -> None:
    vectors = anisotropic().double()
    before = vectors.T.cov()
    whitened = fit_whitening(vectors, components, shrinkage=0.0)(vectors)
    kept = components or 12
    assert whitened.shape == (600, kept)
    torch.testing.assert_close(whitened.mean(dim=0), torch.zeros(kept).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(whitened.T.cov().reshape(kept, kept), torch.eye(kept).double(), atol=1e-4, rtol=0)
    assert before.diagonal().max() / before.diagonal().min() > 5  # the input is not white


@pytest.mark.parametrize("components", [12, 4])
def test_whitening_matches_scikit_learn_up_to_signs(components: int) -> None:
    vectors = anisotropic()
    expected = PCA(components, whiten=True).fit_transform(vectors.double().numpy())
    ours = fit_whitening(vectors, components, shrinkage=0.0)(vectors).numpy()
    np.testing.assert_allclose(ours * np.sign((ours * expected).sum(axis=0)), expected, atol=1e-4)


def test_standardization_matches_scikit_learn() -> None:
    vectors = anisotropic()
    # scikit-learn divides by n, the fitter by n − 1.
    expected = StandardScaler().fit_transform(vectors.double().numpy()) * np.sqrt(599 / 600)
    np.testing.assert_allclose(fitted(vectors).standardization()(vectors).numpy(), expected, atol=1e-4)


def test_constant_coordinate_becomes_0() -> None:
    vectors = anisotropic()
    vectors[:, 3] = 7.0
    assert not fitted(vectors).standardization()(vectors)[:, 3].any()


@pytest.mark.parametrize("directions", [1, 3])
def test_principal_directions_are_removed(directions: int) -> None:
    vectors = anisotropic().double()
    centred = vectors - vectors.mean(dim=0)
    rotation = torch.linalg.svd(centred, full_matrices=False).Vh
    cleaned = fitted(vectors).top_removal(directions)(vectors)
    assert cleaned.shape == vectors.shape
    shares = (cleaned @ rotation.T).square().mean(dim=0) / (centred @ rotation.T).square().mean(dim=0)
    expected = torch.tensor([0.0] * directions + [1.0] * (12 - directions)).double()
    torch.testing.assert_close(shares, expected, atol=1e-4, rtol=0)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 599), max_size=8, unique=True), backwards=st.booleans())
def test_stream_matches_a_single_batch(cuts: list[int], backwards: bool) -> None:
    vectors = anisotropic()
    parts = list(vectors.tensor_split(sorted(cuts)))
    stream, batch = fitted(*(parts[::-1] if backwards else parts)), fitted(vectors)
    assert stream.count == batch.count == 600
    for one, other in zip(every_calibration(stream), every_calibration(batch), strict=True):
        torch.testing.assert_close(one.mean, other.mean, atol=0, rtol=1e-6)
        torch.testing.assert_close(one.transform, other.transform, atol=1e-6, rtol=1e-6)


def test_merged_fitters_match_a_single_batch() -> None:
    vectors = anisotropic()
    first, second, idle = fitted(vectors[:100], vectors[100:350]), fitted(vectors[350:]), WhiteningFitter()
    idle.merge(pickle.loads(pickle.dumps(first)))  # as sent by another process
    idle.merge(second)
    idle.merge(WhiteningFitter())
    for one, other in zip(every_calibration(idle), every_calibration(fitted(vectors)), strict=True):
        torch.testing.assert_close(one.transform, other.transform, atol=1e-6, rtol=1e-6)
    assert first.count == 350  # unchanged by merging


def test_statistics_are_accurate_with_a_large_offset() -> None:
    vectors = anisotropic().double() + 1e6
    fitter = fitted(*vectors.split(7))
    np.testing.assert_allclose(fitter.mean.numpy(), vectors.numpy().mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(fitter.covariance.numpy(), np.cov(vectors.numpy().T), rtol=1e-7)


def test_update_after_whitening() -> None:
    fitter = fitted(anisotropic(seed=0))
    before = fitter.whitening()
    fitter.update(anisotropic(seed=1) * 3)
    assert not torch.allclose(before.transform, fitter.whitening().transform)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_other_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    vectors = anisotropic()
    expected = fit_whitening(vectors, 4)
    ours = fit_whitening(vectors.to(dtype), 4)
    assert ours.transform.dtype == torch.float32
    torch.testing.assert_close(ours(vectors), expected(vectors), atol=4 * tolerance, rtol=tolerance)
    wider = torch.float64 if dtype == torch.float64 else torch.float32
    assert ours(vectors.to(dtype)).dtype == wider


@pytest.mark.parametrize("n", [20, 60, 400])
def test_shrinkage_matches_scikit_learn(n: int) -> None:
    vectors = anisotropic(n)
    info = fitted(*vectors.split(9)).whitening().info
    assert info["shrinkage"] == pytest.approx(LedoitWolf().fit(vectors.double().numpy()).shrinkage_, rel=1e-6)
    assert info == {"method": "whitening", "components": 12, "shrinkage": info["shrinkage"], "vectors": n}


def test_shrinkage_mixes_the_covariance_with_an_isotropic_one() -> None:
    vectors = anisotropic()
    covariance = vectors.double().T.cov()
    shrunk = 0.7 * covariance + 0.3 * covariance.trace() / 12 * torch.eye(12)
    transform = fit_whitening(vectors, shrinkage=0.3).transform.double()
    torch.testing.assert_close(transform.T @ shrunk @ transform, torch.eye(12).double(), atol=1e-5, rtol=0)


def test_full_shrinkage_preserves_angles() -> None:
    vectors = anisotropic()
    centred = vectors - vectors.mean(dim=0)
    turned = fit_whitening(vectors, shrinkage=1.0)(vectors)
    cosines = torch.nn.functional.normalize(turned) @ torch.nn.functional.normalize(turned).T
    expected = torch.nn.functional.normalize(centred) @ torch.nn.functional.normalize(centred).T
    torch.testing.assert_close(cosines, expected, atol=1e-5, rtol=0)


def test_signs_are_deterministic() -> None:
    transform = fit_whitening(anisotropic()).transform
    largest = transform.gather(0, transform.abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()


def test_shrinkage_improves_whitening_of_few_vectors() -> None:
    truth, sample = anisotropic(20_000, seed=1).double(), anisotropic(20_000, seed=1)[:16].double()

    def error(shrinkage: float | str) -> float:
        whitened = fit_whitening(sample, shrinkage=shrinkage)(truth)  # type: ignore[arg-type]
        return float((whitened.T.cov() - torch.eye(12)).square().mean())

    assert error("auto") < error(0.0) / 10


def layer_norm_output(n: int = 600, d: int = 12) -> Tensor:
    """Float32 vectors that span d − 1 directions, up to rounding."""
    return torch.nn.functional.layer_norm(anisotropic(n, d), (d,)) + 3


def test_direction_of_rounding_error_is_dropped() -> None:
    vectors = layer_norm_output()
    whitened = fit_whitening(vectors, shrinkage=0.0)(vectors)
    assert whitened.shape == (600, 11)
    torch.testing.assert_close(whitened.T.cov(), torch.eye(11), atol=1e-3, rtol=0)


def test_more_components_than_directions() -> None:
    with pytest.raises(
        ValueError, match=r"600 vectors vary along 11 directions, fewer than 12\. Use components=5 or fewer"
    ):
        fit_whitening(layer_norm_output(), components=12, shrinkage=0.0)


def test_fewer_vectors_than_directions() -> None:
    few = anisotropic(10)
    with pytest.raises(ValueError, match=r'10 vectors vary along 9 directions, fewer than 12.*shrinkage="auto"'):
        fit_whitening(few, shrinkage=0.0)
    assert fit_whitening(few, components=4, shrinkage=0.0)(few).shape == (10, 4)  # the remedies in the message
    assert fit_whitening(few)(few).isfinite().all()


def test_warning_for_few_vectors_without_shrinkage(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fit_whitening(anisotropic(20), shrinkage=0.0)
    assert "12 directions of 20 vectors without shrinkage amplifies noise" in caplog.text
    caplog.clear()
    fit_whitening(anisotropic(20), shrinkage=0.0, components=4)
    fit_whitening(anisotropic(20))
    assert not caplog.text


@pytest.mark.parametrize("shrinkage", ["auto", 0.0, 0.5])
def test_identical_vectors(shrinkage: float | str) -> None:
    with pytest.raises(ValueError, match="50 vectors vary along 0 directions"):
        fit_whitening(torch.ones(50, 4), shrinkage=shrinkage)  # type: ignore[arg-type]


@pytest.mark.parametrize("components", [0, -1, 13])
def test_components_out_of_range(components: int) -> None:
    with pytest.raises(ValueError, match=rf"`components` must be between 1 and the width 12, got {components}"):
        fit_whitening(anisotropic(), components)


@pytest.mark.parametrize("shrinkage", [-0.1, 1.1, float("nan")])
def test_shrinkage_out_of_range(shrinkage: float) -> None:
    with pytest.raises(ValueError, match='`shrinkage` must be "auto" or between 0 and 1, got'):
        fit_whitening(anisotropic(), shrinkage=shrinkage)


@pytest.mark.parametrize("directions", [0, 12])
def test_directions_out_of_range(directions: int) -> None:
    with pytest.raises(ValueError, match=rf"`directions` must be between 1 and 11 .*, got {directions}"):
        fitted(anisotropic()).top_removal(directions)


@pytest.mark.parametrize(
    "use", [WhiteningFitter.whitening, WhiteningFitter.standardization, lambda fitter: fitter.top_removal(1)]
)
@pytest.mark.parametrize("seen", [0, 1])
def test_too_few_vectors(use: Callable[[WhiteningFitter], LinearCalibration], seen: int) -> None:
    fitter = WhiteningFitter() if not seen else fitted(torch.ones(1, 4))
    with pytest.raises(ValueError, match=f"needs at least 2 vectors, got {seen}"):
        use(fitter)


def test_vectors_of_another_width() -> None:
    fitter = fitted(anisotropic())
    with pytest.raises(ValueError, match="`vectors` must have width 12 as before, got 5"):
        fitter.update(torch.randn(3, 5))
    with pytest.raises(ValueError, match="`vectors` must have width 12 as before, got 5"):
        fitter.merge(fitted(torch.randn(3, 5)))
    with pytest.raises(ValueError, match="`vectors` must have width 12, got 5"):
        fitter.whitening()(torch.randn(3, 5))


def test_vectors_with_nan() -> None:
    vectors = anisotropic()
    vectors[17, 2] = torch.nan
    with pytest.raises(ValueError, match="row 17 of vectors has a NaN"):
        fit_whitening(vectors)


def test_integer_vectors() -> None:
    with pytest.raises(TypeError, match=r"vectors must be a floating-point tensor, got torch\.int64"):
        fit_whitening(torch.ones(4, 4, dtype=torch.int64))


@pytest.mark.parametrize(("width", "directions"), [(12, 1), (100, 1), (101, 2)])
def test_default_number_of_directions(width: int, directions: int) -> None:
    fitter = fitted(anisotropic(300, width))
    assert torch.equal(fitter.top_removal().transform, fitter.top_removal(directions).transform)


def test_the_advice_does_not_repeat_what_was_given() -> None:
    with pytest.raises(ValueError, match=r'Use components=1 or fewer, shrinkage="auto", or more vectors\.$'):
        fit_whitening(torch.eye(3, 12), components=12, shrinkage=0.0)
    with pytest.raises(ValueError, match=r"vary along 0 directions, fewer than 1\. Use more vectors\.$"):
        fit_whitening(torch.ones(50, 4), components=1, shrinkage="auto")
