"""Paired differences against scikit-learn and NumPy on the same resampled people."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from kappaface_dist.evaluation.one_to_one.paired import paired_differences
from kappaface_dist.evaluation.one_to_one.pairs import score_pairs
from kappaface_dist.evaluation.resampling import drawn_times


@pytest.fixture(scope="module")
def made():
    """Distances by two models on pairs of 30 people; the second has noise added."""
    rng = np.random.default_rng(0)
    identity_P2 = np.concatenate([
        np.repeat(np.arange(30), 10)[:, None].repeat(2, axis=1),
        np.array([rng.choice(30, 2, replace=False) for _ in range(300)]),
    ])  # fmt: skip
    same_P = identity_P2[:, 0] == identity_P2[:, 1]
    hard_I = rng.normal(0, 0.3, 30)
    first_P = np.where(same_P, 0.8, 1.6) + hard_I[identity_P2].mean(axis=1)
    first_P = first_P + rng.normal(0, 0.35, 600)
    second_P = first_P + rng.normal(0, 0.2, 600)
    return first_P, second_P, same_P, identity_P2


def test_differences_and_intervals_of_the_auc(made):
    first_P, second_P, same_P, identity_P2 = made
    results = [score_pairs(distance_P, same_P) for distance_P in (first_P, second_P)]
    found = paired_differences(*results, same_P, identity_P2, num_replicates=60, seed=3)
    assert list(found) == ["accuracy", "AUC", "TAR@1e-1", "TAR@1e-2"]
    aucs = [roc_auc_score(same_P, -distance_P) for distance_P in (first_P, second_P)]
    assert (found["AUC"].first, found["AUC"].second) == pytest.approx(aucs)
    assert found["accuracy"].difference == results[1].accuracy - results[0].accuracy
    replicates = []
    for times_I in drawn_times(30, 60, 3):
        first, second = times_I[identity_P2].T
        weight_P = np.where(same_P, first, first * second)
        two = [roc_auc_score(same_P, -d, sample_weight=weight_P) for d in (first_P, second_P)]
        replicates.append(two[1] - two[0])
    assert found["AUC"].interval == pytest.approx(np.quantile(replicates, [0.025, 0.975]))
    # The interval of a TAR, with the threshold that a weighted quantile gives.
    replicates = []
    for times_I in drawn_times(30, 60, 3):
        first, second = times_I[identity_P2].T
        weight_P = np.where(same_P, first, first * second)
        two = []
        for distance_P in (first_P, second_P):
            order = np.argsort(distance_P)
            wrong = np.cumsum((weight_P * ~same_P)[order])
            right = np.cumsum((weight_P * same_P)[order])
            two.append(right[wrong <= 0.1 * wrong[-1]].max() / right[-1])
        replicates.append(two[1] - two[0])
    low, high = found["TAR@1e-1"].interval
    assert (low, high) == pytest.approx(tuple(np.quantile(replicates, [0.025, 0.975])), abs=1e-9)


def test_the_pairing_narrows_the_interval(made):
    first_P, second_P, same_P, identity_P2 = made
    results = [score_pairs(distance_P, same_P) for distance_P in (first_P, second_P)]
    interval = paired_differences(*results, same_P, identity_P2, num_replicates=60)["AUC"].interval
    alone = [
        roc_auc_score(same_P, -first_P, sample_weight=np.where(same_P, *w))
        for w in (
            (times_I[identity_P2[:, 0]], times_I[identity_P2].prod(axis=1))
            for times_I in drawn_times(30, 60, 0)
        )
    ]
    assert np.ptp(interval) < np.ptp(np.quantile(alone, [0.025, 0.975]))


def test_a_model_beside_itself_and_no_intervals(made):
    first_P, _, same_P, identity_P2 = made
    result = score_pairs(first_P, same_P)
    found = paired_differences(result, result, same_P, identity_P2, num_replicates=5)
    assert all(each.interval == (0, 0) and each.difference == 0 for each in found.values())
    found = paired_differences(result, result, same_P, identity_P2, num_replicates=0)
    assert all(each.interval is None for each in found.values())
