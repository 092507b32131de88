"""Intervals of many pairs against a bootstrap that writes every pair out as often as it counts."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from kappaface_dist.evaluation.templates import bootstrap as module
from kappaface_dist.evaluation.templates.bootstrap import bootstrap_subjects

RATES = {"1e-1": 0.5, "1e-2": 0.3, "1e-3": None}


def population(seed, num_people=20, templates=3, decimals=None):
    """All pairs of some people's templates: cosine_P, same_P, identity_P2."""
    rng = np.random.default_rng(seed)
    person_T = np.repeat(np.arange(num_people), templates)
    first, second = np.triu_indices(len(person_T), k=1)
    same_P = person_T[first] == person_T[second]
    hardness_I = rng.normal(0, 0.2, num_people)
    cosine_P = np.where(same_P, 0.5, 0.0) + hardness_I[person_T[first]]
    cosine_P = (cosine_P + rng.normal(0, 0.3, len(same_P))).astype(np.float32)
    if decimals is not None:
        cosine_P = cosine_P.round(decimals)
    return cosine_P, same_P, np.stack([person_T[first], person_T[second]], axis=1)


def slow_bootstrap(cosine_P, same_P, identity_P2, num_replicates, seed):
    """Percentiles of AUC, EER and TAR at FAR 0.1 and 0.01, each pair repeated by its weight."""
    rng = np.random.default_rng(seed)
    num_people = identity_P2.max() + 1
    values = []
    for _ in range(num_replicates):
        drawn = rng.integers(num_people, size=num_people).tolist()
        times = [drawn.count(person) for person in range(num_people)]
        weight = [times[i] if i == j else times[i] * times[j] for i, j in identity_P2.tolist()]
        score, same = np.repeat(cosine_P, weight), np.repeat(same_P, weight)
        levels = np.unique(score)[::-1]
        far = np.array([0.0, *(np.mean(score[~same] >= level) for level in levels)])
        tar = np.array([0.0, *(np.mean(score[same] >= level) for level in levels)])
        after = np.argmax(far >= 1 - tar)
        before = after - 1
        part = (1 - tar[before] - far[before]) / (
            far[after] - far[before] + tar[after] - tar[before]
        )
        values.append(
            [
                roc_auc_score(same, score),
                far[before] + part * (far[after] - far[before]),
                tar[far <= 0.1 * (1 + 1e-9)].max(),
                tar[far <= 0.01 * (1 + 1e-9)].max(),
            ]
        )
    return np.quantile(values, [0.025, 0.975], axis=0).T


def found_bounds(pairs, num_replicates=60, seed=5):
    found = bootstrap_subjects(*pairs, RATES, num_replicates=num_replicates, seed=seed)
    assert found.tar_at_far["1e-3"] is None
    assert found.num_replicates == num_replicates
    return np.array([found.auc, found.eer, found.tar_at_far["1e-1"], found.tar_at_far["1e-2"]])


@pytest.mark.parametrize("decimals", [None, 1], ids=["random", "tied"])
def test_intervals_are_the_slow_ones(decimals, monkeypatch):
    pairs = population(0, decimals=decimals)
    expected = slow_bootstrap(*pairs, num_replicates=60, seed=5)
    # Bins of at most 1 / 128 of the pairs above them: 0.8 % of a false accept rate.
    np.testing.assert_allclose(found_bounds(pairs), expected, atol=0.02)
    np.testing.assert_allclose(found_bounds(pairs)[0], expected[0], atol=1e-3)
    # A bin for every score leaves float32's sums of small whole numbers: nothing.
    monkeypatch.setattr(module, "BIN_SHARE", 10**9)
    np.testing.assert_allclose(found_bounds(pairs), expected, atol=1e-9)


def test_how_the_work_is_cut_changes_nothing(monkeypatch):
    pairs = population(1)
    expected = found_bounds(pairs)
    monkeypatch.setattr(module, "PAIRS_AT_A_TIME", 7)
    monkeypatch.setattr(module, "REPLICATES_AT_A_TIME", 9)
    np.testing.assert_array_equal(found_bounds(pairs), expected)


def test_bins_end_with_their_ties_and_grow_slowly():
    score_N = np.sort(np.random.default_rng(0).normal(size=20_000).round(3))[::-1]
    end_T = module._bin_ends(score_N)
    assert end_T[-1] == len(score_N)
    assert (score_N[end_T[:-1] - 1] > score_N[end_T[:-1]]).all()
    ties = np.unique(score_N, return_counts=True)[1].max()
    assert (np.diff(end_T) <= np.maximum(1, end_T[:-1] / 128) + ties).all()


def test_perfect_separation_has_no_error():
    _, same_P, identity_P2 = population(2)
    found = bootstrap_subjects(
        np.where(same_P, 0.9, 0.1), same_P, identity_P2, RATES, num_replicates=20
    )
    assert (found.auc, found.eer, found.tar_at_far["1e-2"]) == ((1, 1), (0, 0), (1, 1))


def test_one_kind_of_pairs_has_no_interval():
    cosine_P, same_P, identity_P2 = population(3)
    for kind in (same_P, ~same_P):
        assert bootstrap_subjects(cosine_P[kind], same_P[kind], identity_P2[kind], RATES) is None
