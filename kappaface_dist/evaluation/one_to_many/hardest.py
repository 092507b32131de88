"""The few comparisons that a model gets most wrong, of the many that it made.

Equal scores are taken in the order in which they stand.
Shapes: P pairs, X anything.
"""

from dataclasses import dataclass

import numpy as np

from kappaface_dist.evaluation.one_to_many.distractors import DistractorSearch
from kappaface_dist.evaluation.one_to_many.search import Search

NUM_HARDEST = 12


@dataclass(frozen=True)
class Hit:
    """A query and an entry of what was searched, by their numbers; the entry's score and rank."""

    query: int
    entry: int
    score: float
    rank: int


def hardest_pairs(cosine_P: np.ndarray, same_P: np.ndarray) -> tuple[list[int], list[int]]:
    """Numbers of the different pairs that are most alike, and of the same pairs that are least."""
    different, same = np.flatnonzero(~same_P), np.flatnonzero(same_P)
    return (
        different[smallest(-cosine_P[different])].tolist(),
        same[smallest(cosine_P[same])].tolist(),
    )


def wrong_hits(found: Search) -> list[Hit]:
    """Queries whose best entry is of another identity, the highest score first."""
    wrong = np.flatnonzero((found.other_at_Q >= 0) & (found.other_Q >= found.mate_Q))
    chosen = wrong[smallest(-found.other_Q[wrong])].tolist()
    return [Hit(q, int(found.other_at_Q[q]), float(found.other_Q[q]), 1) for q in chosen]


def lost_mates(found: Search) -> list[Hit]:
    """Queries whose best mate has the worst rank, of equal ranks the lowest score first."""
    mated = np.flatnonzero(found.mated_Q)
    order = np.lexsort((found.mate_Q[mated], -found.rank_Q[mated]))
    return [
        Hit(q, int(found.mate_at_Q[q]), float(found.mate_Q[q]), int(found.rank_Q[q]))
        for q in mated[order[:NUM_HARDEST]].tolist()
    ]


def wrong_distractors(found: DistractorSearch) -> list[Hit]:
    """Probes that a distractor resembles as much as a mate, the highest score first."""
    wrong = np.unique(found.probe_E[found.rank_E > 1])
    chosen = wrong[smallest(-found.other_Q[wrong])].tolist()
    return [Hit(q, int(found.other_at_Q[q]), float(found.other_Q[q]), 1) for q in chosen]


def lost_among_distractors(found: DistractorSearch) -> list[Hit]:
    """Searches whose mate has the worst rank, as lost_mates(); two images appear once together."""
    hits: dict[tuple[int, ...], Hit] = {}
    for e in np.lexsort((found.score_E, -found.rank_E)).tolist():
        probe, mate = int(found.probe_E[e]), int(found.mate_E[e])
        hit = Hit(probe, mate, float(found.score_E[e]), int(found.rank_E[e]))
        hits.setdefault(tuple(sorted((probe, mate))), hit)
        if len(hits) == NUM_HARDEST:
            break
    return list(hits.values())


def smallest(value_X: np.ndarray, count: int = NUM_HARDEST) -> np.ndarray:
    """Numbers of the smallest values, in order, without sorting all of them."""
    candidates = np.arange(len(value_X))
    if len(value_X) > count:
        candidates = np.flatnonzero(value_X <= np.partition(value_X, count - 1)[count - 1])
    return candidates[np.argsort(value_X[candidates], kind="stable")[:count]]
