"""Errors by group, counted pair by pair."""

import numpy as np
import pytest

from kappaface_dist.evaluation.one_to_one.groups import group_errors


def made_up(num_pairs=900, num_people=60, seed=0):
    """Three groups of people; the third is told apart worst. The last few have no group."""
    generator = np.random.default_rng(seed)
    group_I = np.arange(num_people) % 3
    group_I[-4:] = -1
    same_P = generator.random(num_pairs) < 0.5
    first_P = generator.integers(0, num_people, num_pairs)
    second_P = (first_P + generator.integers(1, num_people, num_pairs)) % num_people
    identity_P2 = np.stack([first_P, np.where(same_P, first_P, second_P)], axis=1)
    group_P2 = group_I[identity_P2]
    noise_P = np.where(group_P2[:, 0] == 2, 0.5, 0.2)
    distance_P = np.clip(generator.normal(np.where(same_P, 0.9, 1.8), noise_P), 0, 4)
    return distance_P, same_P, identity_P2, group_P2


def test_rates_are_counts():
    distance_P, same_P, identity_P2, group_P2 = made_up()
    report = group_errors(
        distance_P, same_P, identity_P2, group_P2, ["a", "b", "c"],
        threshold=0.3, far="1e-2", num_replicates=0,
    )  # fmt: skip
    mixed = without = 0
    counts = {name: {"tp": 0, "fn": 0, "fp": 0, "tn": 0} for name in "abc"}
    for distance, same, (first, second) in zip(distance_P, same_P, group_P2, strict=True):
        if min(first, second) < 0:
            without += 1
        elif first != second:
            mixed += 1
        else:
            called = 1 - distance / 2 >= 0.3
            kind = ("t" if called == same else "f") + ("p" if called else "n")
            counts["abc"[first]][kind] += 1
    assert (report.num_mixed, report.num_ungrouped) == (mixed, without)
    assert min(mixed, without) > 0
    fmr = []
    for group in report.groups:
        n = counts[group.name]
        assert group.rates["fmr"] == pytest.approx(n["fp"] / (n["fp"] + n["tn"]))
        assert group.rates["fnmr"] == pytest.approx(n["fn"] / (n["fn"] + n["tp"]))
        assert group.rates["accuracy"] == pytest.approx((n["tp"] + n["tn"]) / sum(n.values()))
        assert (group.num_same, group.num_different) == (n["tp"] + n["fn"], n["fp"] + n["tn"])
        fmr.append(group.rates["fmr"])
    assert report.spread["fmr"] == (pytest.approx(max(fmr) - min(fmr)), None)
    assert fmr[2] == max(fmr)


def test_intervals_are_those_of_drawing_people():
    distance_P, same_P, identity_P2, group_P2 = made_up()
    report = group_errors(
        distance_P, same_P, identity_P2, group_P2, ["a", "b", "c"],
        threshold=0.3, far="1e-2", num_replicates=60,
    )  # fmt: skip
    num_people = identity_P2.max() + 1
    generator = np.random.default_rng(0)
    missed, spread = [], []
    for _ in range(60):
        drawn = generator.integers(num_people, size=num_people).tolist()
        rates = []
        for group in range(3):
            found = []
            for number in np.flatnonzero(same_P & (group_P2 == group).all(axis=1)):
                times = drawn.count(identity_P2[number, 0])
                found += [1 - distance_P[number] / 2 < 0.3] * times
            rates.append(np.mean(found))
        missed.append(rates[1])
        spread.append(max(rates) - min(rates))
    expected = np.quantile(missed, [0.025, 0.975])
    assert report.groups[1].intervals["fnmr"] == pytest.approx(expected)
    assert report.spread["fnmr"][1] == pytest.approx(np.quantile(spread, [0.025, 0.975]))


def test_a_group_without_pairs_of_a_kind_has_no_rate():
    report = group_errors(
        np.array([0.1, 1.9]), np.array([True, False]), np.array([[0, 0], [1, 2]]),
        np.array([[0, 0], [1, 1]]), ["a", "b"], threshold=0.5, far="1e-1", num_replicates=20,
    )  # fmt: skip
    first, second = report.groups
    assert (first.rates["fmr"], first.rates["fnmr"]) == (None, 0.0)
    assert (second.rates["fmr"], second.rates["fnmr"]) == (0.0, None)
    assert second.intervals["fnmr"] is None
    assert report.spread["fmr"] == (None, None)
    assert report.summary()["groups"]["a"]["fmr"] is None
