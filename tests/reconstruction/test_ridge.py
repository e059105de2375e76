"""Left-out predictions equal refits, and no row is predicted by a map fitted on the targets of its group."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from defemb_callbacks.reconstruction import normal_equations
from defemb_callbacks.reconstruction import ridge as module
from defemb_callbacks.reconstruction.normal_equations import NormalEquations
from defemb_callbacks.reconstruction.ridge import STRENGTHS, RidgeRows, cross_fitted_rows, mapped
from defemb_callbacks.weights.precision import float64_device


def planted(n: int, f: int, d: int, *, noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of unequal scale, far from zero, and targets linear in them plus noise; both float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    x = torch.randn(n, f, **draw) * torch.logspace(-1, 1, f, dtype=torch.float64) + 3
    y = x @ torch.randn(f, d, **draw) + torch.randn(d, **draw)
    return x, y + noise * torch.randn(n, d, **draw)


def uneven_groups(n: int, seed: int = 0) -> Tensor:
    """Groups of one to about six rows, in any order, with arbitrary numbers."""
    return torch.randint(0, n // 2, (n,), generator=torch.Generator().manual_seed(seed)) * 7 - 20


def refit(x: Tensor, y: Tensor, strength: float, kept: Tensor) -> Ridge:
    """Scikit-learn's ridge on the kept rows of the features, divided by the standard deviation over all rows."""
    return Ridge(alpha=strength * len(x), solver="cholesky").fit(standardised(x)[kept], y.double().numpy()[kept])


def standardised(x: Tensor) -> np.ndarray:
    features = x.double().numpy()
    spread = features.std(0)
    spread[spread < 1e-9] = np.inf  # a constant feature gets no weight
    return (features - features.mean(0)) / spread


def reference_rows(x: Tensor, y: Tensor, strength: float, groups: Tensor | None = None) -> np.ndarray:
    """Refit without each group, and predict its rows."""
    groups = torch.arange(len(x)) if groups is None else groups
    rows = np.empty(y.shape)
    for group in groups.unique():
        left_out = groups == group
        rows[left_out] = refit(x, y, strength, ~left_out).predict(standardised(x)[left_out])
    return rows


def exact_rows(x: Tensor, y: Tensor, strength: float, groups: Tensor, block: int = 4096) -> Tensor:
    """The left-out predictions before they are rounded to float32."""
    fit = NormalEquations(x, y, block).fit(strength)
    rows = torch.empty_like(y)
    for part in module._parts(module._batches_of_groups(groups), block):
        rows[part.flatten()] = y[part.flatten()] - fit.left_out_errors(part)[0]
    return rows


def predictions(x: Tensor, y: Tensor, strength: float = 0.1, **settings: object) -> Tensor:
    return cross_fitted_rows(x, y, strengths=(strength,), **settings).rows


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("alone", [True, False])
def test_left_out_rows_equal_refits_without_each_group(strength: float, alone: bool) -> None:
    x, y = planted(60, 7, 3, noise=1.0)
    groups = torch.arange(60) if alone else uneven_groups(60)
    expected = reference_rows(x, y, strength, groups)
    np.testing.assert_allclose(exact_rows(x, y, strength, groups), expected, rtol=0, atol=1e-8)
    rows = predictions(x, y, strength, groups=groups)
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-5)


def test_each_row_is_left_out_alone_by_default() -> None:
    x, y = planted(30, 5, 3, noise=1.0)
    assert torch.equal(predictions(x, y), predictions(x, y, groups=torch.arange(30)))
    assert (predictions(x, y) - predictions(x, y, groups=torch.arange(30) // 2)).abs().max() > 1e-2


@pytest.mark.parametrize("strength", STRENGTHS)
def test_weights_equal_a_fit_on_all_rows(strength: float) -> None:
    x, y = planted(60, 7, 3, noise=1.0)
    fitted = cross_fitted_rows(x, y, strengths=(strength,))
    assert fitted.weights.shape == (8, 3)
    assert fitted.weights.dtype == torch.float32
    expected = refit(x, y, strength, torch.ones(60, dtype=torch.bool)).predict(standardised(x))
    np.testing.assert_allclose(mapped(x, fitted.weights), expected, rtol=1e-5, atol=1e-4)


def test_weights_equal_least_squares_on_stacked_rows() -> None:
    """Ridge is ordinary least squares with a row √(n · strength) for each standardised feature and target 0."""
    x, y = planted(50, 4, 2, noise=1.0)
    extra = (50 * 0.1) ** 0.5 * np.eye(4)
    features = np.vstack([standardised(x), extra])
    stacked, *_ = np.linalg.lstsq(features, np.vstack([y - y.mean(0), np.zeros((4, 2))]))
    weights = cross_fitted_rows(x, y, strengths=(0.1,)).weights
    np.testing.assert_allclose(weights[:-1] * x.std(0, correction=0)[:, None], stacked, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [1, 2, 7, 52])
def test_the_block_size_does_not_change_the_result(block: int) -> None:
    x, y = planted(57, 6, 4, noise=1.0)
    groups = uneven_groups(57)
    torch.testing.assert_close(exact_rows(x, y, 0.1, groups, block), exact_rows(x, y, 0.1, groups), rtol=0, atol=1e-10)
    small, large = (cross_fitted_rows(x, y, groups=groups, block=size) for size in (block, 1000))
    assert small.strength == large.strength
    assert small.r_squared == pytest.approx(large.r_squared, abs=1e-6)
    torch.testing.assert_close(small.rows, large.rows)


def test_the_gram_matrix_does_not_depend_on_the_blocks_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = planted(57, 10, 4, noise=1.0)
    expected = predictions(x, y)
    monkeypatch.setattr(normal_equations, "COLUMNS", 3)
    torch.testing.assert_close(predictions(x, y), expected)


def test_rows_and_group_numbers_may_come_in_any_order() -> None:
    x, y = planted(40, 5, 3, noise=1.0)
    groups, order = uneven_groups(40), torch.randperm(40, generator=torch.Generator().manual_seed(1))
    expected = cross_fitted_rows(x, y, groups=groups)
    shuffled = cross_fitted_rows(x[order], y[order], groups=1000 - groups[order])
    assert shuffled.strength == expected.strength
    torch.testing.assert_close(shuffled.rows, expected.rows[order])


def test_a_row_does_not_depend_on_the_targets_of_its_group() -> None:
    x, y = planted(60, 6, 4, noise=1.0)
    groups = uneven_groups(60)
    before = exact_rows(x, y, 0.1, groups)
    for i in (0, 17, 59):
        changed = y.clone()
        changed[i] += 100
        moved = (exact_rows(x, changed, 0.1, groups) - before).abs().amax(dim=1)
        assert moved[groups == groups[i]].max() < 1e-9
        assert moved[groups != groups[i]].min() > 1e-3


def test_a_linear_relation_is_found_exactly_and_noise_not_at_all() -> None:
    x, y = planted(300, 5, 3)
    assert cross_fitted_rows(x, y, strengths=(1e-9,)).r_squared == pytest.approx(1, abs=1e-9)
    noise = torch.randn(300, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert abs(cross_fitted_rows(x, noise).r_squared) < 0.05


def test_r_squared_is_the_share_explained_on_left_out_rows() -> None:
    x, y = planted(400, 5, 3, noise=5.0)
    fitted = cross_fitted_rows(x, y, groups=uneven_groups(400))
    share = 1 - (y - fitted.rows).square().sum() / (y - y.mean(0)).square().sum()
    assert fitted.r_squared == pytest.approx(float(share), abs=1e-5)
    explained = 1 - 25 / float(y.var(dim=0).mean())
    assert fitted.r_squared == pytest.approx(explained, abs=0.05)
    assert 0.3 < explained < 0.9


@pytest.mark.parametrize("noise", [0.1, 15.0, 1000.0])
def test_the_strength_chosen_has_the_least_left_out_error(noise: float) -> None:
    x, y = planted(60, 40, 3, noise=noise)
    groups = uneven_groups(60)
    rows = {strength: torch.from_numpy(reference_rows(x, y, strength, groups)) for strength in STRENGTHS}
    errors = {strength: float((rows[strength] - y).square().sum()) for strength in STRENGTHS}
    assert cross_fitted_rows(x, y, groups=groups).strength == min(errors, key=errors.__getitem__)


@pytest.mark.parametrize("best", range(6))
def test_the_search_follows_the_decreasing_error(best: int) -> None:
    tried = []

    def error(value: float) -> float:
        tried.append(value)
        return abs(value - best)

    assert module._smallest(error, [5, 0, 3, 1, 4, 2, 2]) == best
    assert len(tried) == len(set(tried))
    assert len(tried) <= abs(best - 2) + 3


def test_the_strength_is_chosen_on_a_sample_with_projected_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = planted(300, 40, 100, noise=15.0)
    groups = uneven_groups(300)
    monkeypatch.setattr(module, "SAMPLE_TARGETS", 1000)
    exact = cross_fitted_rows(x, y, groups=groups)
    monkeypatch.setattr(module, "SAMPLE_ROWS", 100)
    monkeypatch.setattr(module, "SAMPLE_TARGETS", 20)
    sampled = cross_fitted_rows(x, y, groups=groups)
    assert sampled.strength in (0.03, 0.1, 0.3)
    assert sampled.r_squared == pytest.approx(exact.r_squared, abs=1e-3)


def test_the_sample_takes_every_nth_group_of_any_size() -> None:
    groups = uneven_groups(2000)
    batches = module._batches_of_groups(groups)
    assert torch.equal(torch.cat([batch.flatten() for batch in batches]).sort().values, torch.arange(2000))
    for batch in batches:
        assert (groups[batch] == groups[batch[:, :1]]).all()
    sample = module._sample(batches, 3)
    assert sum(map(len, sample)) == (len(groups.unique()) + 2) // 3
    assert sum(batch.numel() for batch in sample) == pytest.approx(2000 / 3, rel=0.05)


def test_projections_preserve_squared_lengths() -> None:
    y = torch.randn(500, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert float((y @ module._sketch(300)).square().sum() / y.square().sum()) == pytest.approx(1, abs=0.05)
    assert torch.equal(module._sketch(5), torch.eye(5, dtype=torch.float64))


def test_scale_and_shift_of_the_features_do_not_matter() -> None:
    x, y = planted(60, 6, 4, noise=1.0)
    scaled = x * torch.logspace(-2, 2, 6, dtype=torch.float64) - 5
    torch.testing.assert_close(cross_fitted_rows(scaled, y).rows, cross_fitted_rows(x, y).rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e6, 0.1])
def test_a_constant_feature_changes_nothing(value: float) -> None:
    x, y = planted(60, 5, 3, noise=1.0)
    wider = torch.cat([x, torch.full((60, 1), value, dtype=torch.float64)], dim=1)
    fitted = cross_fitted_rows(wider, y)
    torch.testing.assert_close(fitted.rows, cross_fitted_rows(x, y).rows)
    assert (fitted.weights[5] == 0).all()


def test_constant_features_alone_predict_the_mean_of_the_other_rows() -> None:
    _, y = planted(20, 3, 2)
    rows = cross_fitted_rows(torch.ones(20, 3), y).rows
    torch.testing.assert_close(rows, ((y.sum(0) - y) / 19).float(), rtol=1e-5, atol=1e-5)


def test_collinear_features_and_more_features_than_rows_are_solved() -> None:
    x, y = planted(60, 5, 3, noise=1.0)
    doubled = torch.cat([x, x, x.sum(dim=1, keepdim=True)], dim=1)
    np.testing.assert_allclose(predictions(doubled, y), reference_rows(doubled, y, 0.1), rtol=1e-5, atol=1e-4)
    wide, y = planted(12, 40, 3, noise=1.0)
    groups = torch.arange(12) // 2
    np.testing.assert_allclose(
        predictions(wide, y, groups=groups), reference_rows(wide, y, 0.1, groups), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("strength", [0.0, 1e-300, 1e-12])
def test_a_tiny_strength_is_raised_so_that_left_out_rows_are_determined(strength: float) -> None:
    x, y = planted(12, 40, 3, noise=1.0)
    fitted = cross_fitted_rows(x, y, strengths=(strength,), groups=torch.arange(12) // 2)
    assert fitted.strength == pytest.approx(40e-8)
    expected = reference_rows(x, y, fitted.strength, torch.arange(12) // 2)
    np.testing.assert_allclose(fitted.rows, expected, rtol=1e-3, atol=1e-2)


def test_float32_is_used_only_if_it_agrees() -> None:
    x, y = planted(60, 6, 4, noise=1.0)
    rows = torch.arange(8).view(4, 2)
    assert NormalEquations(x, y, 100).fit(0.1).in_float32(rows).factor.dtype == torch.float32
    # The condition number of the normal equations is about 1e8.
    near = torch.cat([x, x + 1e-3 * planted(60, 6, 4, seed=1)[0]], dim=1)
    assert NormalEquations(near, y, 100).fit(1e-8).in_float32(rows).factor.dtype == torch.float64


def test_rows_with_a_leverage_near_one_are_computed_in_float64() -> None:
    x, y = planted(60, 6, 4, noise=1.0)
    x[41, 2] = 1e5
    expected = exact_rows(x, y, 1e-5, torch.arange(60))
    fitted = cross_fitted_rows(x, y, strengths=(1e-5,))
    torch.testing.assert_close(fitted.rows[41], expected[41].float(), rtol=1e-6, atol=1e-5)


def test_nearly_equal_rows_of_one_group_are_computed_in_float64() -> None:
    """Each has a leverage of about a half, together they determine a feature."""
    x, y = planted(60, 6, 4, noise=1.0)
    x[:, 2] = 0
    x[40:42, 2] = 1
    groups = torch.arange(60)
    groups[41] = 40
    expected = exact_rows(x, y, 1e-5, groups)
    rows = predictions(x, y, 1e-5, groups=groups)
    torch.testing.assert_close(rows, expected.float(), rtol=1e-5, atol=1e-5)


def test_all_rows_but_one_may_be_one_group() -> None:
    x, y = planted(30, 3, 2, noise=1.0)
    groups = (torch.arange(30) == 4).long()
    rows = predictions(x, y, groups=groups)
    np.testing.assert_allclose(rows, reference_rows(x, y, 0.1, groups), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows[:4], y[4].float().expand(4, 2), rtol=1e-4, atol=1e-4)


def test_of_two_rows_each_is_predicted_by_the_other() -> None:
    x, y = planted(2, 3, 2)
    torch.testing.assert_close(cross_fitted_rows(x, y).rows, y.flip(0).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [7.0, 0.1])
def test_equal_targets_are_predicted_exactly_with_no_variance_to_explain(value: float) -> None:
    x, _ = planted(30, 3, 2)
    fitted = cross_fitted_rows(x, torch.full((30, 2), value))
    torch.testing.assert_close(fitted.rows, torch.full((30, 2), value))
    assert fitted.r_squared == 0


def test_float32_and_bfloat16_features_are_summed_in_float64() -> None:
    x, y = planted(60, 5, 3, noise=1.0)
    for dtype in (torch.float32, torch.bfloat16):
        low = x.to(dtype)
        torch.testing.assert_close(cross_fitted_rows(low, y).rows, cross_fitted_rows(low.double(), y).rows)


def test_results_are_deterministic_and_input_and_random_state_unchanged() -> None:
    x, y = planted(60, 5, 100, noise=1.0)
    state, before = torch.get_rng_state(), (x.clone(), y.clone())
    first, second = (cross_fitted_rows(x, y.requires_grad_()) for _ in range(2))
    assert torch.equal(first.rows, second.rows)
    assert torch.equal(first.weights, second.weights)
    assert not first.rows.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_the_number_of_threads_does_not_change_the_result() -> None:
    x, y = planted(300, 50, 20, noise=5.0)
    threads, found = torch.get_num_threads(), list[RidgeRows]()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(cross_fitted_rows(x, y))
    finally:
        torch.set_num_threads(threads)
    assert found[0].strength == found[1].strength
    assert found[0].r_squared == pytest.approx(found[1].r_squared, abs=1e-6)
    assert float((found[0].rows - found[1].rows).norm() / found[0].rows.norm()) < 1e-6


def test_a_device_without_float64_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros, mps, cpu = torch.zeros, torch.device("mps"), torch.device("cpu")

    def without_float64(*size: int, device: torch.device = cpu, **settings: object) -> Tensor:
        if device.type == "mps":
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype.")
        return zeros(*size, device=device, **settings)

    monkeypatch.setattr(torch, "zeros", without_float64)
    assert float64_device(mps).type == "cpu"
    assert float64_device(cpu).type == "cpu"
    x, y = planted(60, 5, 4, noise=1.0)
    assert torch.equal(cross_fitted_rows(x, y, device=mps).rows, cross_fitted_rows(x, y).rows)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_result() -> None:
    x, y = planted(300, 50, 100, noise=5.0)
    groups = uneven_groups(300)
    expected = cross_fitted_rows(x, y, groups=groups)
    for features, device in ((x.to("cuda"), None), (x, torch.device("cuda"))):
        found = cross_fitted_rows(features, y, groups=groups, device=device)
        assert found.rows.device.type == found.weights.device.type == "cpu"
        assert found.strength == expected.strength
        torch.testing.assert_close(found.rows, expected.rows, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found.weights, expected.weights, rtol=1e-5, atol=1e-4)


def test_refuses_features_and_targets_that_are_not_paired() -> None:
    with pytest.raises(ValueError, match="There are 3 rows of features, but 4 targets"):
        cross_fitted_rows(torch.ones(3, 2), torch.ones(4, 2))


@pytest.mark.parametrize("rows", [0, 1])
def test_refuses_fewer_than_two_rows(rows: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 tokens with definitions, got {rows}"):
        cross_fitted_rows(torch.ones(rows, 2), torch.ones(rows, 2))


def test_refuses_a_single_group() -> None:
    with pytest.raises(ValueError, match="at least 2 tokens with definitions of different words, but all 4 rows"):
        cross_fitted_rows(torch.ones(4, 2), torch.ones(4, 2), groups=torch.full((4,), 3))


@pytest.mark.parametrize("groups", [torch.arange(3), torch.arange(4.0), torch.arange(4)[:, None]])
def test_refuses_groups_that_do_not_fit(groups: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`groups` must have shape \(4,\) and dtype int64, got"):
        cross_fitted_rows(torch.ones(4, 2), torch.ones(4, 2), groups=groups)


def test_refuses_no_strengths() -> None:
    with pytest.raises(ValueError, match="`strengths` must not be empty"):
        cross_fitted_rows(torch.ones(4, 2), torch.ones(4, 2), strengths=())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_values_that_are_not_finite_and_names_the_row(value: float) -> None:
    x, y = planted(8, 3, 2)
    broken = y.clone()
    broken[5, 1] = value
    with pytest.raises(ValueError, match="1 rows of the targets hold NaN or infinity, the first one row 5"):
        cross_fitted_rows(x, broken)
    broken = x.clone()
    broken[2:4] = value
    with pytest.raises(ValueError, match="2 rows of the features hold NaN or infinity, the first one row 2"):
        cross_fitted_rows(broken, y)
