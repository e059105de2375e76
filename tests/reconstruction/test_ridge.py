"""The closed form equals independent solvers, and no row is predicted by a map that has seen its target."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from defemb_callbacks.reconstruction.ridge import STRENGTHS, NormalEquations, cross_fitted_rows


def planted(n: int, f: int, d: int, *, noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of unequal scale, far from zero, and targets linear in them but for noise; both float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    x = torch.randn(n, f, **draw) * torch.logspace(-1, 1, f, dtype=torch.float64) + 3
    y = x @ torch.randn(f, d, **draw) + torch.randn(d, **draw)
    return x, y + noise * torch.randn(n, d, **draw)


def reference_map(x: Tensor, y: Tensor, strength: float) -> np.ndarray:
    """Ridge on standardised features, by the textbook: (F + 1, d), the intercept last."""
    features, targets = x.double().numpy(), y.double().numpy()
    mean, spread = features.mean(0), features.std(0)
    spread[spread < 1e-9] = np.inf  # a constant feature weighs nothing
    standard = (features - mean) / spread
    system = standard.T @ standard + strength * len(standard) * np.eye(standard.shape[1])
    weights = np.linalg.solve(system, standard.T @ (targets - targets.mean(0))) / spread[:, None]
    return np.vstack([weights, targets.mean(0) - mean @ weights])


def reference_rows(x: Tensor, y: Tensor, strength: float, folds: int) -> np.ndarray:
    """Refits without each fold, and predicts that fold."""
    rows = np.empty(y.shape)
    for fold in range(folds):
        held_out = np.arange(len(x)) % folds == fold
        solution = reference_map(x[~held_out], y[~held_out], strength)
        rows[held_out] = x.double().numpy()[held_out] @ solution[:-1] + solution[-1]
    return rows


def equations_of(x: Tensor, y: Tensor, folds: int, block: int = 10_000) -> NormalEquations:
    equations = NormalEquations(x.shape[1], y.shape[1], folds)
    fold_of_row = torch.arange(len(x)) % folds
    for start in range(0, len(x), block):
        part = slice(start, start + block)
        equations.update(x[part], y[part], fold_of_row[part])
    return equations


@pytest.mark.parametrize("strength", STRENGTHS)
def test_solve_equals_the_textbook(strength):
    x, y = planted(60, 7, 3, noise=1.0)
    equations = equations_of(x, y, folds=4)
    np.testing.assert_allclose(equations.solve(strength), reference_map(x, y, strength), rtol=0, atol=1e-8)
    kept = torch.arange(60) % 4 != 2
    expected = reference_map(x[kept], y[kept], strength)
    np.testing.assert_allclose(equations.solve(strength, without=2), expected, rtol=0, atol=1e-8)


def test_solve_equals_least_squares_on_stacked_rows():
    """Ridge is ordinary least squares with a row √(n · strength) for each standardised feature and target 0."""
    x, y = planted(50, 4, 2, noise=1.0)
    strength = 0.1
    mean, spread = x.mean(0), x.std(0, correction=0)
    extra = (50 * strength) ** 0.5 * torch.eye(4, dtype=torch.float64)
    stacked, *_ = scipy.linalg.lstsq(
        torch.cat([(x - mean) / spread, extra]), torch.cat([y - y.mean(0), torch.zeros(4, 2, dtype=torch.float64)])
    )
    np.testing.assert_allclose(equations_of(x, y, 5).solve(strength)[:-1] * spread[:, None], stacked, atol=1e-8)


def test_streaming_in_blocks_of_any_size_equals_one_batch():
    x, y = planted(53, 5, 3, noise=1.0)
    whole = equations_of(x, y, 4)
    for block in (1, 7, 52):
        streamed = equations_of(x, y, 4, block)
        torch.testing.assert_close(streamed.solve(0.1), whole.solve(0.1), rtol=0, atol=1e-10)
        torch.testing.assert_close(streamed.square, whole.square)
    assert whole.rows == streamed.rows == 53


def test_rows_may_come_in_any_order():
    x, y = planted(40, 5, 3, noise=1.0)
    fold_of_row, order = torch.arange(40) % 4, torch.randperm(40)
    shuffled = NormalEquations(5, 3, 4)
    shuffled.update(x[order], y[order], fold_of_row[order])
    torch.testing.assert_close(shuffled.solve(0.1, without=1), equations_of(x, y, 4).solve(0.1, without=1))


def test_squared_error_and_variation_equal_direct_sums():
    x, y = planted(41, 5, 3, noise=2.0)
    equations = equations_of(x, y, 4)
    solution = equations.solve(0.3, without=1)
    residual = (y - x @ solution[:-1] - solution[-1])[torch.arange(41) % 4 == 1]
    assert equations.squared_error(solution, 1) == pytest.approx(float(residual.square().sum()), rel=1e-9)
    assert equations.total_variation == pytest.approx(float((y - y.mean(0)).square().sum()), rel=1e-9)


@pytest.mark.parametrize("folds", [2, 5, 10])
def test_cross_fitted_rows_equal_refitting_without_each_fold(folds):
    x, y = planted(57, 6, 4, noise=1.0)
    fitted = cross_fitted_rows(x, y, folds=folds, strengths=(0.1,))
    assert fitted.rows.dtype == torch.float32
    np.testing.assert_allclose(fitted.rows, reference_rows(x, y, 0.1, folds), rtol=1e-6, atol=1e-5)


def test_the_block_size_does_not_change_the_rows():
    x, y = planted(57, 6, 4, noise=1.0)
    small, large = (cross_fitted_rows(x, y, block=block) for block in (5, 1000))
    assert small.strength == large.strength
    torch.testing.assert_close(small.rows, large.rows)


def test_a_row_does_not_depend_on_its_own_target():
    x, y = planted(60, 6, 4, noise=1.0)
    before = cross_fitted_rows(x, y, strengths=(0.1,)).rows
    for i in (0, 17, 59):
        changed = y.clone()
        changed[i] += 100
        after = cross_fitted_rows(x, changed, strengths=(0.1,)).rows
        moved = (after - before).abs().amax(dim=1)
        # Nor do those dealt to the same fold; all others do.
        same_fold = torch.arange(60) % 10 == i % 10
        # What is left in its fold is the rounding of `total - fold`.
        assert moved[same_fold].max() < 1e-4
        assert moved[~same_fold].min() > 1e-3


def test_the_map_of_the_other_folds_does_not_depend_on_a_folds_targets():
    x, y = planted(60, 6, 4, noise=1.0)
    changed = y.clone()
    changed[3] += 100
    before, after = (equations_of(x, targets, 10).solve(0.1, without=3) for targets in (y, changed))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)
    assert (equations_of(x, changed, 10).solve(0.1) - equations_of(x, y, 10).solve(0.1)).abs().max() > 1e-2


def test_a_linear_relation_is_found_whole_and_noise_not_at_all():
    x, y = planted(300, 5, 3)
    assert cross_fitted_rows(x, y, strengths=(1e-9,)).r_squared == pytest.approx(1, abs=1e-9)
    noise = torch.randn(300, 3, dtype=torch.float64)
    assert abs(cross_fitted_rows(x, noise).r_squared) < 0.05


def test_r_squared_is_the_share_explained_on_held_out_rows():
    x, y = planted(400, 5, 3, noise=5.0)
    fitted = cross_fitted_rows(x, y)
    share = 1 - (y - fitted.rows).square().sum() / (y - y.mean(0)).square().sum()
    assert fitted.r_squared == pytest.approx(float(share), abs=1e-5)
    explained = 1 - 25 / float(y.var(dim=0).mean())
    assert fitted.r_squared == pytest.approx(explained, abs=0.05)
    assert 0.3 < explained < 0.9


def test_the_strength_chosen_has_the_least_held_out_error():
    x, y = planted(60, 40, 3, noise=15.0)
    errors = {s: float((torch.from_numpy(reference_rows(x, y, s, 10)) - y).square().sum()) for s in STRENGTHS}
    assert cross_fitted_rows(x, y).strength == min(errors, key=errors.__getitem__)
    assert min(errors, key=errors.__getitem__) not in (STRENGTHS[0], STRENGTHS[-1])


def test_scale_and_shift_of_the_features_do_not_matter():
    x, y = planted(60, 6, 4, noise=1.0)
    scaled = x * torch.logspace(-2, 2, 6, dtype=torch.float64) - 5
    torch.testing.assert_close(cross_fitted_rows(scaled, y).rows, cross_fitted_rows(x, y).rows, rtol=1e-5, atol=1e-5)


def test_a_constant_feature_changes_nothing():
    x, y = planted(60, 5, 3, noise=1.0)
    for value in (0.0, 1.0, 1e6, 0.1):
        wider = torch.cat([x, torch.full((60, 1), value, dtype=torch.float64)], dim=1)
        torch.testing.assert_close(cross_fitted_rows(wider, y).rows, cross_fitted_rows(x, y).rows)


def test_rank_deficient_features_and_more_features_than_rows_are_solved():
    x, y = planted(60, 5, 3, noise=1.0)
    doubled = torch.cat([x, x, x.sum(dim=1, keepdim=True)], dim=1)
    np.testing.assert_allclose(
        cross_fitted_rows(doubled, y, strengths=(0.1,)).rows, reference_rows(doubled, y, 0.1, 10), rtol=1e-5, atol=1e-4
    )
    wide, y = planted(12, 40, 3, noise=1.0)
    np.testing.assert_allclose(
        cross_fitted_rows(wide, y, strengths=(0.1,)).rows, reference_rows(wide, y, 0.1, 10), rtol=1e-5, atol=1e-4
    )


def test_fewer_rows_than_folds_leave_one_out():
    x, y = planted(6, 3, 2, noise=1.0)
    fitted = cross_fitted_rows(x, y, folds=10, strengths=(0.1,))
    np.testing.assert_allclose(fitted.rows, reference_rows(x, y, 0.1, 6), rtol=1e-5, atol=1e-5)


def test_of_two_rows_each_is_predicted_by_the_other():
    x, y = planted(2, 3, 2)
    fitted = cross_fitted_rows(x, y)
    torch.testing.assert_close(fitted.rows, y.flip(0).float())


def test_equal_targets_are_predicted_exactly_and_leave_nothing_to_explain():
    x, _ = planted(30, 3, 2)
    fitted = cross_fitted_rows(x, torch.full((30, 2), 7.0))
    torch.testing.assert_close(fitted.rows, torch.full((30, 2), 7.0))
    assert fitted.r_squared == pytest.approx(0, abs=1e-6)


def test_float32_and_bfloat16_features_are_summed_in_float64():
    x, y = planted(60, 5, 3, noise=1.0)
    for dtype in (torch.float32, torch.bfloat16):
        low = x.to(dtype)
        torch.testing.assert_close(cross_fitted_rows(low, y).rows, cross_fitted_rows(low.double(), y).rows)


def test_the_same_input_gives_the_same_bits_and_touches_no_random_state():
    x, y = planted(60, 5, 3, noise=1.0)
    state = torch.get_rng_state()
    assert torch.equal(cross_fitted_rows(x, y).rows, cross_fitted_rows(x, y).rows)
    assert torch.equal(torch.get_rng_state(), state)


def test_refuses_features_and_targets_that_are_not_paired():
    with pytest.raises(ValueError, match="There are 3 rows of features, but 4 targets"):
        cross_fitted_rows(torch.ones(3, 2), torch.ones(4, 2))


@pytest.mark.parametrize("rows", [0, 1])
def test_refuses_fewer_than_two_rows(rows):
    with pytest.raises(ValueError, match=f"at least 2 tokens with definitions, got {rows}"):
        cross_fitted_rows(torch.ones(rows, 2), torch.ones(rows, 2))


def test_refuses_a_single_fold():
    with pytest.raises(ValueError, match="folds=1: cross-fitting needs at least 2"):
        cross_fitted_rows(torch.ones(4, 2), torch.ones(4, 2), folds=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_values_that_are_not_finite_and_names_the_row(value):
    x, y = planted(8, 3, 2)
    broken = y.clone()
    broken[5, 1] = value
    with pytest.raises(ValueError, match="1 rows of the targets hold NaN or infinity, the first one row 5"):
        cross_fitted_rows(x, broken)
    broken = x.clone()
    broken[2:4] = value
    with pytest.raises(ValueError, match="2 rows of the features hold NaN or infinity, the first one row 2"):
        cross_fitted_rows(broken, y)
