"""Verification numbers against scikit-learn and slow loops, on random and on tied scores."""

import numpy as np
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold

from kappaface_dist.evaluation.protocol import (
    area_under,
    best_accuracy,
    equal_error_rate,
    fold_accuracies,
    roc,
    tar_at_far,
)


def scores(seed, num_pairs=257, decimals=None):
    """Squared distances between 0 and 4 and a truth they half agree with; rounded, they tie."""
    generator = np.random.default_rng(seed)
    same_P = generator.random(num_pairs) < 0.4
    distance_P = np.clip(generator.normal(np.where(same_P, 1.4, 1.9), 0.4), 0, 4)
    return distance_P if decimals is None else distance_P.round(decimals), same_P


def fields_accuracies(distance_P, same_P):
    """The field's calculate_roc, in its steps: KFold, every threshold, argmax on the train part."""
    thresholds = np.arange(0, 4, 0.01)
    accuracies = []
    for train, test in KFold(n_splits=10, shuffle=False).split(distance_P):

        def accuracy(threshold, part):
            return np.mean((distance_P[part] < threshold) == same_P[part])

        best = np.argmax([accuracy(threshold, train) for threshold in thresholds])
        accuracies.append(accuracy(thresholds[best], test))
    return accuracies


@pytest.mark.parametrize("decimals", [None, 2, 1])
@pytest.mark.parametrize("num_pairs", [10, 57, 600])
@pytest.mark.parametrize("seed", range(3))
def test_ten_folds_are_the_fields(seed, num_pairs, decimals):
    distance_P, same_P = scores(seed, num_pairs, decimals)
    if decimals == 2:
        # Distances that lie exactly on the grid, as its own floating-point numbers.
        distance_P = np.arange(0, 4, 0.01)[np.clip(distance_P * 100, 0, 399).astype(int)]
    np.testing.assert_allclose(
        fold_accuracies(distance_P, same_P), fields_accuracies(distance_P, same_P), rtol=1e-12
    )


def test_the_threshold_comes_from_the_other_folds():
    # In fold 0 same and different have changed places: its own best threshold would be right.
    same_P = np.tile([True, False], 50)
    distance_P = np.where(same_P, 0.5, 1.5)
    distance_P[:10] = 2.0 - distance_P[:10]
    assert fold_accuracies(distance_P, same_P).tolist() == [0.0] + [1.0] * 9


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("seed", range(3))
def test_curve_and_area_are_scikit_learns(seed, decimals):
    distance_P, same_P = scores(seed, decimals=decimals)
    curve = roc(distance_P, same_P)
    far, tar, thresholds = roc_curve(same_P, -distance_P, drop_intermediate=False)
    np.testing.assert_allclose(curve.far_T, far, atol=1e-15)
    np.testing.assert_allclose(curve.tar_T, tar, atol=1e-15)
    np.testing.assert_array_equal(curve.threshold_T, -thresholds)
    assert area_under(curve) == pytest.approx(roc_auc_score(same_P, -distance_P), abs=1e-12)


@pytest.mark.parametrize("decimals", [None, 1])
def test_tar_at_far_by_trying_every_threshold(decimals):
    distance_P, same_P = scores(5, 3000, decimals)
    curve, num_different = roc(distance_P, same_P), int(np.sum(~same_P))
    for far in (0.5, 1e-1, 1e-2, 1e-3, 1 / num_different, 7 / num_different):
        best = max(
            np.mean(distance_P[same_P] <= threshold)
            for threshold in [-1, *np.unique(distance_P)]
            if np.sum(distance_P[~same_P] <= threshold) <= round(far * num_different, 6)
        )
        assert tar_at_far(curve, num_different, far) == pytest.approx(best, abs=1e-12)
    assert tar_at_far(curve, num_different, 1e-4) is None


def test_rate_that_the_set_just_holds():
    # 3 of 3000 different pairs are the closest of all; a rate of 1e-3 accepts all three.
    same_P = np.repeat([False, True, False], [3, 1000, 2997])
    curve = roc(np.arange(4000.0), same_P)
    assert tar_at_far(curve, 3000, 1e-3) == 1.0
    assert tar_at_far(curve, 3000, 9e-4) == 0.0


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("seed", range(3))
def test_best_accuracy_by_trying_every_threshold(seed, decimals):
    distance_P, same_P = scores(seed, 57, decimals)
    tried = [np.mean((distance_P <= t) == same_P) for t in [-1, *distance_P]]
    assert best_accuracy(distance_P, same_P) == pytest.approx(max(tried), abs=1e-15)


def test_best_accuracy_may_refuse_every_pair():
    assert best_accuracy(np.array([1.0, 2.0, 3.0]), np.array([False, False, True])) == 2 / 3


def test_curve_needs_both_kinds():
    with pytest.raises(ValueError, match="3 same and 0 different pairs"):
        roc(np.arange(3.0), np.ones(3, bool))


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("seed", range(3))
def test_equal_error_rate_is_where_the_fields_root_finder_puts_it(seed, decimals):
    distance_P, same_P = scores(seed, decimals=decimals)
    far, tar, _ = roc_curve(same_P, -distance_P, drop_intermediate=False)
    # On the straight lines of the curve, by their length: far alone is not a function at steps.
    along = np.arange(len(far), dtype=float)
    place = brentq(interp1d(along, far + tar - 1), 0, along[-1], xtol=1e-12)
    expected = float(interp1d(along, far)(place))
    assert equal_error_rate(roc(distance_P, same_P)) == pytest.approx(expected, abs=1e-9)


def test_equal_error_rate_of_the_extremes():
    same_P = np.tile([True, False], 20)
    assert equal_error_rate(roc(np.where(same_P, 0.1, 1.0), same_P)) == 0.0
    assert equal_error_rate(roc(np.where(same_P, 1.0, 0.1), same_P)) == 1.0
    assert equal_error_rate(roc(np.ones(40), same_P)) == 0.5


@pytest.mark.parametrize("decimals", [None, 1])
def test_weights_count_a_pair_so_many_times(decimals):
    distance_P, same_P = scores(3, 120, decimals)
    weight_P = np.random.default_rng(0).integers(0, 4, 120)
    curve = roc(distance_P, same_P, weight_P)
    repeated = roc(np.repeat(distance_P, weight_P), np.repeat(same_P, weight_P))
    assert area_under(curve) == pytest.approx(area_under(repeated), abs=1e-12)
    assert equal_error_rate(curve) == pytest.approx(equal_error_rate(repeated), abs=1e-12)
    # The folds stay those of the pairs as they lie in the file: by plain loops.
    grid, fold_P = np.arange(0, 4, 0.01), np.arange(120) // 12
    found = fold_accuracies(distance_P, same_P, weight_P=weight_P)
    for fold in range(10):
        right = [((distance_P < t) == same_P) * weight_P for t in grid]
        best = max(range(len(grid)), key=lambda t: (right[t][fold_P != fold].sum(), -t))
        expected = right[best][fold_P == fold].sum() / weight_P[fold_P == fold].sum()
        assert found[fold] == pytest.approx(expected, abs=1e-12)
