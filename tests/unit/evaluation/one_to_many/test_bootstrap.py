"""Intervals of 1:N numbers against searches written out as often as their people were drawn."""

import numpy as np
import pytest

from kappaface_dist.evaluation.one_to_many.bootstrap import intervals, mean_replicates, replicate
from kappaface_dist.evaluation.one_to_many.identification import (
    DEEPEST,
    FALSE_ALARM_RATES,
    SearchOutcome,
)

NUM_IDENTITIES = 15


def outcome(seed, *, tied=False, mates=60, alarms=45):
    rng = np.random.default_rng(seed)
    identity_E = rng.integers(0, NUM_IDENTITIES, mates)
    identity_A = rng.integers(0, NUM_IDENTITIES, alarms)
    hardness_I = rng.normal(0, 0.5, NUM_IDENTITIES)
    mate_E = 1 + hardness_I[identity_E] + rng.normal(0, 0.5, mates)
    alarm_A = hardness_I[identity_A] + rng.normal(0, 0.5, alarms)
    if tied:
        mate_E, alarm_A = mate_E.round(), alarm_A.round()
    rank_E = 1 + rng.geometric(0.2, mates) * (rng.random(mates) < 0.7)
    rank_E[:2] = DEEPEST + 50  # further down than any picture goes
    return SearchOutcome(rank_E, mate_E, identity_E, alarm_A, identity_A, "probes without a mate")


def slow_replicates(found, num_replicates, seed):
    """rank-1, rank-5 and rank-20, and TPIR at FPIR 0.1, by trying every threshold."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(num_replicates):
        drawn = rng.integers(NUM_IDENTITIES, size=NUM_IDENTITIES)
        times = np.bincount(drawn, minlength=NUM_IDENTITIES)
        rank = np.repeat(found.rank_E, times[found.identity_E])
        mate = np.repeat(found.mate_E, times[found.identity_E])
        alarm = np.repeat(found.alarm_A, times[found.identity_A])
        thresholds = [-np.inf, *np.unique(alarm)]
        tpir = max(np.mean(mate > t) for t in thresholds if np.mean(alarm > t) <= 0.1 + 1e-9)
        values.append([*(np.mean(rank <= k) for k in (1, 5, 20)), tpir])
    return np.array(values)


def named(found):
    return [*(found.rank[k] for k in ("1", "5", "20")), found.tpir_at_fpir["1e-1"]]


@pytest.mark.parametrize("tied", [False, True])
def test_intervals_are_the_slow_ones(tied):
    searches = outcome(0, tied=tied)
    found = intervals(replicate(searches, NUM_IDENTITIES, num_replicates=80, seed=3))
    slow = slow_replicates(searches, 80, 3)
    np.testing.assert_allclose(named(found), np.quantile(slow, [0.025, 0.975], axis=0).T, atol=1e-9)
    assert found.tpir_at_fpir.keys() == FALSE_ALARM_RATES.keys()
    assert found.tpir_at_fpir["1e-2"] is None  # 45 searches
    assert found.band.far_T[0] == pytest.approx(1 / 45)
    assert (found.band.low_T <= found.band.high_T).all()
    assert found.low_K[0] == found.rank["1"][0]
    assert found.high_K[19] == found.rank["20"][1]
    low, high = found.rank["5"]
    assert low < np.mean(searches.rank_E <= 5) < high


def test_the_average_of_galleries_draws_the_same_people_in_each():
    parts = [outcome(1), outcome(2, alarms=120)]
    found = intervals(
        mean_replicates([replicate(p, NUM_IDENTITIES, num_replicates=80, seed=3) for p in parts])
    )
    slow = np.mean([slow_replicates(p, 80, 3) for p in parts], axis=0)
    np.testing.assert_allclose(named(found), np.quantile(slow, [0.025, 0.975], axis=0).T, atol=1e-9)
    assert found.tpir_at_fpir["1e-2"] is None  # one of the two has it
    assert found.band is None


def test_what_cannot_be_resampled_has_no_interval():
    nobody = outcome(0, mates=2, alarms=10)
    nobody = SearchOutcome(*(x[:0] for x in (nobody.rank_E, nobody.mate_E, nobody.identity_E)),
                     nobody.alarm_A, nobody.identity_A, "")  # fmt: skip
    assert intervals(replicate(nobody, NUM_IDENTITIES, num_replicates=10)) is None
    quiet = outcome(0, alarms=0)
    found = intervals(replicate(quiet, NUM_IDENTITIES, num_replicates=10))
    assert set(found.tpir_at_fpir.values()) == {None}
    assert found.band is None
    assert found.rank["1"] is not None
    zeros = np.zeros(3, dtype=int)
    alone = SearchOutcome(zeros + 1, zeros, zeros, zeros, zeros, "")
    assert intervals(replicate(alone, 1, num_replicates=10)) is None
    assert intervals(replicate(quiet, NUM_IDENTITIES, num_replicates=0)) is None
