"""Intervals over identities: who is who, what a pair weighs, and how wide the truth is."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from kappaface_dist.evaluation.one_to_one.bootstrap import bootstrap, pair_identities, pair_weights
from kappaface_dist.evaluation.one_to_one.pairs import score_pairs


def test_identities_follow_from_equal_images_and_same_pairs():
    payloads = [b"a", b"b", b"b", b"c", b"d", b"e", b"a", b"d", b"f", b"f"]
    same_P = np.array([True, True, False, False, False])
    # a = b = c by way of b; d, e and f stand alone.
    identity_P2 = pair_identities(payloads, same_P)
    names = {}
    for payload, identity in zip(payloads, identity_P2.ravel().tolist(), strict=True):
        names.setdefault(identity, set()).add(payload)
    assert sorted(map(sorted, names.values())) == [[b"a", b"b", b"c"], [b"d"], [b"e"], [b"f"]]


def test_a_pair_counts_as_often_as_its_people_were_drawn():
    identity_P2 = np.array([[0, 0], [0, 1], [1, 2], [2, 2], [1, 1]])
    assert pair_weights(np.array([2, 3, 0]), identity_P2).tolist() == [2, 6, 0, 0, 3]


def population(rng, num_people):
    """Pairs of eight images a person; each person's images have a closeness of their own."""
    person_I = np.repeat(np.arange(num_people), 8)
    hardness = rng.normal(0, 0.35, num_people)
    first, second = np.triu_indices(len(person_I), k=1)
    same_P = person_I[first] == person_I[second]
    keep = same_P | (rng.random(len(same_P)) < 0.03)
    first, second, same_P = first[keep], second[keep], same_P[keep]
    own = (hardness[person_I[first]] + hardness[person_I[second]]) / 2
    mean = np.where(same_P, 1.0 + own, 1.5 + own)
    distance_P = np.clip(rng.normal(mean, 0.15), 0, 4)
    return distance_P, same_P, np.stack([person_I[first], person_I[second]], axis=1)


def test_intervals_are_as_wide_as_other_people_make_them():
    # The truth: the spread of the AUC over fresh populations, which resampling pairs misses.
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(200):
        distance_P, same_P, _ = population(rng, 40)
        areas.append(roc_auc_score(same_P, -distance_P))
    truth = 2 * 1.96 * np.std(areas)
    widths, pair_widths = [], []
    for seed in range(6):
        distance_P, same_P, identity_P2 = population(np.random.default_rng(100 + seed), 40)
        rates = score_pairs(distance_P, same_P).tar_at_far
        people = bootstrap(distance_P, same_P, identity_P2, rates, num_replicates=200)
        widths.append(people.auc[1] - people.auc[0])
        # Every pair of other people: the same code then resamples pairs.
        alone = np.arange(len(same_P))[:, None].repeat(2, axis=1)
        pairs = bootstrap(distance_P, same_P, alone, rates, num_replicates=200)
        pair_widths.append(pairs.auc[1] - pairs.auc[0])
    # The bootstrap's own bias at 40 people stays within a third; that of pairs does not.
    assert np.mean(widths) == pytest.approx(truth, rel=0.33)
    assert np.mean(pair_widths) < 0.6 * truth


def test_intervals_hold_the_numbers_and_repeat_themselves():
    distance_P, same_P, identity_P2 = population(np.random.default_rng(1), 40)
    result = score_pairs(distance_P, same_P)
    found = bootstrap(distance_P, same_P, identity_P2, result.tar_at_far, num_replicates=300)
    for name in ("accuracy", "auc", "eer"):
        low, high = getattr(found, name)
        assert low < getattr(result, name) < high
    for name, rate in result.tar_at_far.items():
        if rate is None:
            assert found.tar_at_far[name] is None
        else:
            assert found.tar_at_far[name][0] <= rate <= found.tar_at_far[name][1]
    assert found.num_identities == 40
    assert (found.band.low_T <= found.band.high_T).all()
    again = bootstrap(distance_P, same_P, identity_P2, result.tar_at_far, num_replicates=300)
    assert again.summary() == found.summary()
    other = bootstrap(
        distance_P, same_P, identity_P2, result.tar_at_far, num_replicates=300, seed=1
    )
    assert other.auc != found.auc


def test_one_kind_of_pairs_has_no_interval():
    assert bootstrap(np.ones(3), np.ones(3, bool), np.zeros((3, 2), int), {}) is None
