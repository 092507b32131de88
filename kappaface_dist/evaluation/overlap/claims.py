"""Which two people of two sets are one, at a rate of false claims that the data themselves tell.

Two means are one person's where they are nearer than strangers come. How near the nearest of N
strangers comes is seen within the set that is searched: the nearest other class of each of its
classes, or of a sample of them by the mean of as many images as who is looked for has
(`references.py`); those are left out that the set itself has twice. Below the tenth smallest of
these angles the rate is continued by a power: near somebody the number of strangers within an angle
x grows like x^d, where d, the embeddings' dimension there, follows from

    1 / d = mean of i log(x_(i+1) / x_i) over the ranks i >= BASE of each class's nearest

(Levina and Bickel, "Maximum Likelihood Estimation of Intrinsic Dimension", 2004). A class is twice
or more in its set where (x_i / x_(i+1))^(i d), the chance of such a gap among strangers, is below
SURE for an i < BASE.

What is claimed is chosen by Benjamini and Hochberg (1995): the expected share of false ones among
the claims is at most a given one, and where nobody is in both sets, it is the chance of any claim.

Shapes: Q people who are looked for, K nearest entries, X claims, R references.
"""

from dataclasses import dataclass

import numpy as np

BASE = 3
NUM_NEAREST = 10
# Fewer than this are no crowd of strangers.
FEWEST = 24
MOST_REFERENCES = 2048
SURE = 1e-3
# The rate is counted down to so many references, and continued below.
COUNTED = 10
SMALLEST_ANGLE = 1e-3  # radians: float32 cosines know no smaller one


@dataclass(frozen=True)
class Claims:
    """Pairs that are one person, the surest first.

    Attributes:
        query_X, entry_X: the two.
        score_X: their cosine.
        chance_X: that the nearest of strangers comes as near.
        largest_chance: up to which claims were made; 0 where there are none.
    """

    query_X: np.ndarray
    entry_X: np.ndarray
    score_X: np.ndarray
    chance_X: np.ndarray
    largest_chance: float


class Strangers:
    """How near the nearest of strangers comes."""

    def __init__(self, score_RK: np.ndarray):
        """score_RK: cosines of the nearest others of classes of one set, descending."""
        angle_RK = _angles(score_RK)
        rank_K = np.arange(BASE, angle_RK.shape[1])
        logs_RK = np.log(angle_RK[:, BASE:] / angle_RK[:, BASE - 1 : -1])
        self.dimension = 1 / max(float((rank_K * logs_RK).mean()), 1e-6)
        gap_RK = (angle_RK[:, : BASE - 1] / angle_RK[:, 1:BASE]) ** np.arange(1, BASE)
        twice_R = (gap_RK**self.dimension < SURE).any(axis=1)
        self.num_twice = int(twice_R.sum())
        self.angle_R = np.sort(angle_RK[~twice_R, 0] if not twice_R.all() else angle_RK[:, 0])

    def chances(self, score_X: np.ndarray) -> np.ndarray:
        """The chance that the nearest of strangers has such a cosine or a larger one."""
        angle_X = _angles(score_X)
        nearer_X = np.searchsorted(self.angle_R, angle_X, side="right")
        counted = min(COUNTED, len(self.angle_R))
        ratio_X = np.minimum(angle_X / self.angle_R[counted - 1], 1)
        # One is added to what is counted: nothing is rarer than was looked for.
        least = (1 + counted) / (1 + len(self.angle_R))
        counted_X = (1 + nearer_X) / (1 + len(self.angle_R))
        return np.where(nearer_X >= counted, counted_X, least * ratio_X**self.dimension)


def check_number(num_entries: int) -> None:
    """ValueError where there are too few entries to judge by."""
    if num_entries < FEWEST:
        raise ValueError(
            f"there are {num_entries} people to search among, and what is a false match is"
            f" estimated from them: name a set of {FEWEST} or more"
        )


def claim(
    score_QK: np.ndarray, at_QK: np.ndarray, strangers: Strangers, false_share: float
) -> Claims:
    """The pairs that are one person.

    Args:
        score_QK, at_QK: the nearest entries of each query (nearest_entries).
        strangers: of the set that was searched.
        false_share: at most so large is the expected share of false ones.
    """
    chance_QK = strangers.chances(score_QK.ravel()).reshape(score_QK.shape)
    largest = _largest_rejected(chance_QK[:, 0], false_share)
    claimed_QK = chance_QK <= largest
    # A second class of the same person must be sure: it is in nobody's expected share.
    claimed_QK[:, 1:] &= chance_QK[:, 1:] <= SURE
    query_X, rank_X = np.nonzero(claimed_QK)
    order_X = np.argsort(-score_QK[query_X, rank_X], kind="stable")
    query_X, rank_X = query_X[order_X], rank_X[order_X]
    return Claims(
        query_X,
        at_QK[query_X, rank_X],
        score_QK[query_X, rank_X],
        chance_QK[query_X, rank_X],
        max(largest, 0.0),
    )


def each_once(claims: Claims) -> Claims:
    """Of a set searched in itself: each pair is found from both sides, the surer one stays."""
    pairs = np.sort(np.stack([claims.query_X, claims.entry_X], axis=1), axis=1)
    return take(claims, np.sort(np.unique(pairs, axis=0, return_index=True)[1]))


def take(claims: Claims, kept: np.ndarray) -> Claims:
    """Those of the claims whose places are kept."""
    return Claims(
        claims.query_X[kept],
        claims.entry_X[kept],
        claims.score_X[kept],
        claims.chance_X[kept],
        claims.largest_chance,
    )


def false_shares(chance_X: np.ndarray, chance_Q: np.ndarray) -> np.ndarray:
    """The expected share of false ones among each claim and those surer (Benjamini and Hochberg).

    Args:
        chance_X: of the claims.
        chance_Q: of the nearest entry of everybody who was looked for.
    """
    sorted_Q = np.sort(chance_Q)
    share_Q = sorted_Q * len(sorted_Q) / np.arange(1, len(sorted_Q) + 1)
    share_Q = np.minimum.accumulate(share_Q[::-1])[::-1]
    return share_Q[(np.searchsorted(sorted_Q, chance_X, side="right") - 1).clip(min=0)]


def _angles(score: np.ndarray) -> np.ndarray:
    return np.maximum(np.arccos(np.clip(score.astype(np.float64), -1, 1)), SMALLEST_ANGLE)


def _largest_rejected(chance_Q: np.ndarray, false_share: float) -> float:
    """The largest chance that Benjamini and Hochberg reject; -1 where they reject none."""
    sorted_Q = np.sort(chance_Q)
    allowed_Q = false_share * np.arange(1, len(sorted_Q) + 1) / len(sorted_Q)
    passed = np.flatnonzero(sorted_Q <= allowed_Q)
    return float(sorted_Q[passed[-1]]) if len(passed) else -1.0
