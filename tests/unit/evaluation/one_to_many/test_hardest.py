"""The hardest comparisons, by sorting all scores of the matrix."""

import numpy as np
import pytest

from kappaface_dist.evaluation.one_to_many.distractors import search_distractors
from kappaface_dist.evaluation.one_to_many.hardest import (
    NUM_HARDEST,
    hardest_pairs,
    lost_among_distractors,
    lost_mates,
    smallest,
    wrong_distractors,
    wrong_hits,
)
from kappaface_dist.evaluation.one_to_many.search import search
from tests.unit.evaluation.one_to_many.test_search import made

BLOCKS = {"query_rows": 5, "gallery_rows": 7}


def shown(hits):
    return [(h.query, h.entry, round(h.score, 4), h.rank) for h in hits]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_hits_of_a_search_are_those_of_the_matrix(seed, tied):
    query, query_identity, gallery, gallery_identity = made(seed, tied=tied)
    score = query.astype(np.float64) @ gallery.T.astype(np.float64)
    wrong, lost = [], []
    for q in range(len(query)):
        mates = np.flatnonzero(gallery_identity == query_identity[q])
        others = np.flatnonzero(gallery_identity != query_identity[q])
        other = others[score[q, others].argmax()]
        best = max(score[q, mates], default=-np.inf)
        if score[q, other] >= best:
            wrong.append((-score[q, other], q, other))
        if len(mates):
            rank = 1 + int(np.sum(score[q, others] >= best))
            lost.append((-rank, best, q, mates[score[q, mates].argmax()]))
    found = search(query, query_identity, gallery, gallery_identity, **BLOCKS)
    expected = [(q, e, round(-s, 4), 1) for s, q, e in sorted(wrong)[:NUM_HARDEST]]
    assert shown(wrong_hits(found)) == expected
    expected = [(q, e, round(s, 4), -r) for r, s, q, e in sorted(lost)[:NUM_HARDEST]]
    assert shown(lost_mates(found)) == expected


@pytest.mark.parametrize("tied", [False, True])
def test_hits_among_distractors_are_those_of_the_matrix(tied):
    probe, identity, distractor, _ = made(9, tied=tied)
    score = probe.astype(np.float64) @ distractor.T.astype(np.float64)
    wrong, lost = [], []
    for p in range(len(probe)):
        ranks = []
        for m in np.flatnonzero((identity == identity[p]) & (np.arange(len(probe)) != p)):
            mate = float(probe[p].astype(np.float64) @ probe[m].astype(np.float64))
            ranks.append(1 + int(np.sum(score[p] >= mate)))
            lost.append((-ranks[-1], mate, p, m))
        if any(rank > 1 for rank in ranks):
            wrong.append((-score[p].max(), p, score[p].argmax()))
    found = search_distractors(probe, identity, distractor, **BLOCKS)
    expected = [(p, d, round(-s, 4), 1) for s, p, d in sorted(wrong)[:NUM_HARDEST]]
    assert shown(wrong_distractors(found)) == expected
    unordered, expected = set(), []
    for rank, s, p, m in sorted(lost):
        if frozenset((p, m)) not in unordered:
            unordered.add(frozenset((p, m)))
            expected.append((p, m, round(s, 4), -rank))
    assert shown(lost_among_distractors(found)) == expected[:NUM_HARDEST]


@pytest.mark.parametrize("decimals", [6, 1])
def test_pairs_by_sorting_all(decimals):
    rng = np.random.default_rng(0)
    cosine_P, same_P = rng.uniform(-1, 1, 500).round(decimals), rng.random(500) < 0.3
    false_matches, false_non_matches = hardest_pairs(cosine_P, same_P)
    by_score = sorted(range(500), key=lambda p: (cosine_P[p], p))
    assert false_non_matches == [p for p in by_score if same_P[p]][:NUM_HARDEST]
    descending = sorted(range(500), key=lambda p: (-cosine_P[p], p))
    assert false_matches == [p for p in descending if not same_P[p]][:NUM_HARDEST]
    assert hardest_pairs(cosine_P[:0], same_P[:0]) == ([], [])
    assert smallest(np.array([3, 1, 2])).tolist() == [1, 2, 0]
