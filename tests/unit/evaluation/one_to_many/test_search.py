"""Identification against slow numpy: random scores, tied scores, every size of block."""

import numpy as np
import pytest

from kappaface_dist.evaluation.one_to_many import score_blocks
from kappaface_dist.evaluation.one_to_many.distractors import search_distractors
from kappaface_dist.evaluation.one_to_many.identification import (
    closed_set,
    open_set,
    rank_rates,
    tpir_at_fpir,
)
from kappaface_dist.evaluation.one_to_many.search import search


def made(seed, num_queries=37, num_gallery=101, tied=False):
    """Queries and gallery of 12 identities and distractors (-1); some queries have no mate.

    tied: small whole numbers, whose products are exact however they are summed, and often equal.
    """
    rng = np.random.default_rng(seed)
    if tied:
        query = rng.integers(-1, 2, (num_queries, 6)).astype(np.float32)
        gallery = rng.integers(-1, 2, (num_gallery, 6)).astype(np.float32)
    else:
        query = rng.normal(size=(num_queries, 16)).astype(np.float32)
        gallery = rng.normal(size=(num_gallery, 16)).astype(np.float32)
        query /= np.linalg.norm(query, axis=1, keepdims=True)
        gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    return query, rng.integers(0, 14, num_queries), gallery, rng.integers(-1, 12, num_gallery)


@pytest.mark.parametrize("blocks", [(1024, 8192), (5, 7), (1, 1)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_search_is_the_slow_one(seed, tied, blocks):
    query, query_identity, gallery, gallery_identity = made(seed, tied=tied)
    found = search(
        query,
        query_identity,
        gallery,
        gallery_identity,
        query_rows=blocks[0],
        gallery_rows=blocks[1],
    )
    ties = 0
    for q in range(len(query)):
        scores = gallery.astype(np.float64) @ query[q].astype(np.float64)
        mates = gallery_identity == query_identity[q]
        assert found.other_Q[q] == pytest.approx(scores[~mates].max(), abs=1e-6)
        best_other = np.flatnonzero(~mates)[scores[~mates].argmax()]
        assert found.other_at_Q[q] == best_other
        if not mates.any():
            assert (found.mate_Q[q], found.rank_Q[q]) == (-np.inf, 0)
            assert found.mate_at_Q[q] == -1
            continue
        assert found.mate_Q[q] == pytest.approx(scores[mates].max(), abs=1e-6)
        assert found.rank_Q[q] == 1 + np.sum(scores[~mates] >= scores[mates].max())
        assert found.mate_at_Q[q] == np.flatnonzero(mates)[scores[mates].argmax()]
        ties += np.sum(scores[~mates] == scores[mates].max())
    assert found.mated_Q.sum() < len(query)
    assert not tied or ties > 20


def test_identities_with_many_mates_are_cut_into_blocks(monkeypatch):
    query, query_identity, gallery, gallery_identity = made(5, tied=True)
    expected = search(query, query_identity, gallery, gallery_identity)
    monkeypatch.setattr(score_blocks, "MAX_MATES", 10)
    found = search(query, query_identity, gallery, gallery_identity)
    for name in ("mate_Q", "rank_Q", "other_Q", "mate_at_Q", "other_at_Q"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("blocks", [(1024, 8192), (4, 9)])
@pytest.mark.parametrize("tied", [False, True])
def test_ranks_among_distractors_are_the_slow_ones(tied, blocks):
    probe, identity, distractor, _ = made(9, tied=tied)
    found = search_distractors(
        probe, identity, distractor, query_rows=blocks[0], gallery_rows=blocks[1]
    )
    expected, combinations = [], []
    for p in range(len(probe)):
        scores = distractor.astype(np.float64) @ probe[p].astype(np.float64)
        for m in range(len(probe)):
            if m != p and identity[m] == identity[p]:
                score = probe[p].astype(np.float64) @ probe[m].astype(np.float64)
                expected.append(1 + np.sum(scores >= score))
                combinations.append((p, m))
                assert found.score_E[len(expected) - 1] == pytest.approx(score, abs=1e-6)
                assert found.other_Q[p] == pytest.approx(scores.max(), abs=1e-6)
                assert found.other_at_Q[p] == scores.argmax()
    assert found.rank_E.tolist() == expected
    assert list(zip(found.probe_E, found.mate_E, strict=True)) == combinations
    assert len(expected) > 50


def test_nobody_to_find():
    probe = np.eye(3, dtype=np.float32)
    assert len(search_distractors(probe, np.arange(3), probe).rank_E) == 0
    found = search(probe, np.arange(3), probe, np.arange(3) + 10)
    assert found.rank_Q.tolist() == [0, 0, 0]
    numbers = open_set(found, np.arange(3)).numbers()
    assert set(numbers["rank"].values()) == set(numbers["tpir_at_fpir"].values()) == {None}


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("seed", range(3))
def test_tpir_by_trying_every_threshold(seed, decimals):
    rng = np.random.default_rng(seed)
    mate, alarm = rng.normal(1, 1, 211), rng.normal(0, 1, 1000)
    if decimals is not None:
        mate, alarm = mate.round(decimals), alarm.round(decimals)
    thresholds = [-np.inf, *np.unique(alarm)]
    for fpir in (1.0, 0.3, 0.1, 1e-2, 3e-3, 1e-3):
        best = max(np.mean(mate > t) for t in thresholds if np.mean(alarm > t) <= fpir * (1 + 1e-9))
        assert tpir_at_fpir(mate, alarm, fpir) == pytest.approx(best, abs=1e-12)
    assert tpir_at_fpir(mate, alarm, 5e-4) is None


def test_where_false_alarms_come_from():
    query, query_identity, gallery, gallery_identity = made(2, num_queries=200)
    found = search(query, query_identity, gallery, gallery_identity)
    scores = query.astype(np.float64) @ gallery.T
    mates = query_identity[:, None] == gallery_identity[None, :]
    mated = mates.any(axis=1)
    best_other = np.where(mates, -np.inf, scores).max(axis=1)
    best_mate = np.where(mates, scores, -np.inf).max(axis=1)[mated]
    for numbers, alarm in (
        (open_set(found, query_identity).numbers(), best_other[~mated]),
        (closed_set(found, query_identity).numbers(), best_other),
    ):
        assert numbers["false_alarm_searches"] == len(alarm)
        threshold = np.sort(alarm)[::-1][len(alarm) // 10]
        expected = np.mean(best_mate > threshold)
        assert numbers["tpir_at_fpir"]["1e-1"] == pytest.approx(expected)
        assert numbers["mated_probes"] == mated.sum()
    ranks = 1 + (np.where(mates, -np.inf, scores)[mated] >= best_mate[:, None]).sum(axis=1)
    assert rank_rates(found.rank_Q)["5"] == pytest.approx(np.mean(ranks <= 5))
