"""Thresholds at false accept rates, against counting and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from kappaface_dist.evaluation.one_to_one.bootstrap import bootstrap
from kappaface_dist.evaluation.one_to_one.pairs import score_pairs
from kappaface_dist.evaluation.protocol import FALSE_ACCEPT_RATES, rate_name


def made_up(num_pairs, seed=0, digits=None):
    generator = np.random.default_rng(seed)
    same_P = generator.random(num_pairs) < 0.4
    distance_P = np.clip(generator.normal(np.where(same_P, 1.0, 1.7), 0.3), 0, 4)
    return (distance_P if digits is None else distance_P.round(digits)), same_P


@pytest.mark.parametrize("digits", [None, 1])
def test_a_threshold_keeps_its_rate_and_a_looser_one_does_not(digits):
    distance_P, same_P = made_up(4000, digits=digits)
    result = score_pairs(distance_P, same_P)
    cosine_P = 1 - distance_P / 2
    far_T, _, threshold_T = roc_curve(same_P, cosine_P, drop_intermediate=False)
    tried = 0
    for far in FALSE_ACCEPT_RATES:
        threshold = result.threshold_at_far[rate_name(far)]
        if (~same_P).sum() * far < 1:
            assert threshold is None
            continue
        inside_T = np.flatnonzero(far_T <= far)
        if threshold is None:
            assert not np.isfinite(threshold_T[inside_T[-1]])  # ties: nothing can be accepted
            continue
        tried += 1
        accepted_P = cosine_P >= threshold
        assert np.mean(accepted_P[~same_P]) <= far
        assert np.mean(accepted_P[same_P]) == result.tar_at_far[rate_name(far)]
        assert threshold == pytest.approx(threshold_T[inside_T[-1]], abs=1e-12)
        looser = cosine_P[cosine_P < threshold].max()
        assert np.mean(cosine_P[~same_P] >= looser) > far
    assert tried >= 2


def test_intervals_are_those_of_a_bootstrap_by_hand():
    generator = np.random.default_rng(1)
    distance_P, same_P = made_up(600, seed=1)
    identity_P2 = generator.integers(0, 40, (600, 2))
    identity_P2[same_P, 1] = identity_P2[same_P, 0]
    identity_P2[~same_P, 1] = (identity_P2[~same_P, 0] + 1 + identity_P2[~same_P, 1] % 39) % 40
    result = score_pairs(distance_P, same_P)
    found = bootstrap(distance_P, same_P, identity_P2, result.tar_at_far, num_replicates=80)
    draws = np.random.default_rng(0)
    cosine_P = 1 - distance_P / 2
    cosines = []
    for _ in range(80):
        times_I = np.bincount(draws.integers(40, size=40), minlength=40)
        first_P, second_P = times_I[identity_P2].T
        weight_P = np.where(same_P, first_P, first_P * second_P)
        # Each pair as often as it counts, one by one.
        cosine_N = np.sort(np.repeat(1 - distance_P[~same_P] / 2, weight_P[~same_P]))[::-1]
        allowed = int(0.1 * len(cosine_N) + 1e-9)
        # The lowest score of the set that is above the first false accept too many.
        cosines.append(cosine_P[cosine_P > cosine_N[allowed]].min())
    low, high = found.threshold_at_far["1e-1"]
    assert (low, high) == pytest.approx(np.quantile(cosines, [0.025, 0.975]), abs=1e-9)
    assert low < result.threshold_at_far["1e-1"] < high
    assert found.threshold_at_far["1e-6"] is None
    assert found.summary()["threshold_at_far"]["1e-1"] == (low, high)


def test_one_kind_of_pairs_has_no_threshold():
    result = score_pairs(np.linspace(0, 1, 20), np.ones(20, bool))
    assert set(result.threshold_at_far.values()) == {None}
    assert result.summary()["threshold_at_far"] == result.threshold_at_far
