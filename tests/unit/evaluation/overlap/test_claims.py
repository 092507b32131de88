"""Chances and claims: on scores whose law is known, against scipy, and on planted people."""

import numpy as np
import pytest
from scipy import stats

from kappaface_dist.evaluation.one_to_many.nearest import nearest_entries
from kappaface_dist.evaluation.overlap.claims import (
    NUM_NEAREST,
    Strangers,
    check_number,
    claim,
)


def ball_scores(num_people, num_entries, dimension, radius=0.5):
    """Nearest cosines among strangers whose number within an angle x grows like x^dimension."""
    rng = np.random.default_rng(0)
    angle = radius * rng.random((num_people, num_entries)) ** (1 / dimension)
    return np.cos(np.sort(angle, axis=1)[:, :NUM_NEAREST])


@pytest.mark.parametrize("dimension", [5, 9, 40])
def test_chances_are_those_of_the_law(dimension):
    strangers = Strangers(ball_scores(2000, 400, dimension))
    assert strangers.dimension == pytest.approx(dimension, rel=0.05)
    for expected, factor in ((0.5, 1.1), (0.02, 1.5), (1e-4, 3), (1e-6, 4)):
        # The chance of the nearest of 400 within x is 1 - (1 - (2x)^dimension)^400.
        angle = 0.5 * (-np.expm1(np.log1p(-expected) / 400)) ** (1 / dimension)
        (found,) = strangers.chances(np.cos([angle]))
        assert expected / factor < found < expected * factor


def test_what_is_twice_in_the_set_is_no_stranger():
    score = ball_scores(1000, 400, 12)
    clean = Strangers(score)
    score[:300, 0] = 0.9999
    found = Strangers(score)
    assert found.num_twice >= 300
    at = np.cos([0.2, 0.28])
    np.testing.assert_allclose(found.chances(at), clean.chances(at), rtol=0.35)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_claims_are_those_of_benjamini_and_hochberg(share):
    score = ball_scores(300, 400, 12)
    score[:40, 0] = np.linspace(score[:40, 0], 1, 40).diagonal()
    strangers = Strangers(ball_scores(500, 400, 12))
    found = claim(score, np.tile(np.arange(score.shape[1]), (300, 1)), strangers, share)
    adjusted = stats.false_discovery_control(strangers.chances(score[:, 0]))
    assert set(found.query_X[found.entry_X == 0]) == set(np.flatnonzero(adjusted <= share))
    assert (np.diff(found.chance_X) >= 0).all()
    assert found.largest_chance == found.chance_X.max()


def planted(share, seed, num_people=600, num_tested=200, size=48):
    """Noisy means of people, of whom a share of the tested ones is in the gallery."""
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(num_people + num_tested, size))
    num_there = round(share * num_tested)
    tested = np.concatenate([
        rng.permutation(num_people)[:num_there], num_people + np.arange(num_tested - num_there)
    ])  # fmt: skip
    gallery = people[:num_people] + 0.4 * rng.normal(size=(num_people, size))
    query = people[tested] + 0.4 * rng.normal(size=(num_tested, size))
    gallery, query = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (gallery, query))
    return gallery.astype(np.float32), query.astype(np.float32), tested, tested < num_people


def claims_of(query, gallery):
    own, _ = nearest_entries(gallery, gallery, NUM_NEAREST, not_itself=True)
    return claim(*nearest_entries(query, gallery, NUM_NEAREST), Strangers(own), 0.05)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5, 1.0])
def test_planted_people_are_found_and_no_others(share):
    right = claimed = there = 0
    for seed in range(3):
        gallery, query, tested, known = planted(share, seed)
        found = claims_of(query, gallery)
        right += np.sum(found.entry_X == tested[found.query_X])
        claimed, there = claimed + len(found.query_X), there + known.sum()
    if not there:
        assert claimed == 0
    else:
        assert right >= 0.95 * there
        assert right >= 0.95 * claimed


def test_a_person_with_three_classes_is_found_in_each():
    gallery, query, tested, _ = planted(0.1, 5)
    rng = np.random.default_rng(1)
    more = np.repeat(query[:10], 2, axis=0) + 0.03 * rng.normal(size=(20, 48)).astype(np.float32)
    gallery = np.concatenate([gallery, more / np.linalg.norm(more, axis=1, keepdims=True)])
    found = claims_of(query, gallery)
    pairs = set(zip(found.query_X.tolist(), found.entry_X.tolist(), strict=True))
    expected = {(q, int(tested[q])) for q in range(20)}
    expected |= {(q, 600 + 2 * q + i) for q in range(10) for i in (0, 1)}
    assert expected <= pairs
    assert len(pairs - expected) <= 0.05 * len(pairs)


def test_too_few_to_judge_by():
    with pytest.raises(ValueError, match="there are 23 people to search among"):
        check_number(23)
    check_number(24)
