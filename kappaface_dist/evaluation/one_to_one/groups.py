"""Error rates by group of people, or of images, at one shared threshold.

A pair counts for a group if both of its images are of it: false matches are those within a group,
where most of them happen. Pairs of two groups, or of an image without one, are counted and left
out. The threshold is the whole set's and stays as it is in the bootstrap over people.

Shapes: P pairs, I identities, R replicates, G groups (-1: none).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kappaface_dist.evaluation.one_to_one.bootstrap import pair_weights
from kappaface_dist.evaluation.protocol import as_cosine
from kappaface_dist.evaluation.resampling import (
    LEVEL,
    NUM_REPLICATES,
    drawn_times,
    percentiles,
)

MEASURES = ("accuracy", "fmr", "fnmr")
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class GroupErrors:
    """A group's numbers; None where it has no pair to measure with.

    Attributes:
        rates: accuracy, fmr (false matches among its different pairs) and fnmr (false non-matches
            among its same pairs).
        intervals: of those, over people.
    """

    name: str
    num_identities: int
    num_same: int
    num_different: int
    rates: dict[str, float | None]
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class GroupReport:
    """All groups at one threshold.

    Attributes:
        threshold: pairs are called the same from this cosine on.
        far: the false accept rate of the whole set that the threshold is for.
        spread: by measure, the largest rate of a group less the smallest, and its interval.
        num_mixed: pairs of two groups; num_ungrouped: pairs with an image of none.
        num_unused_keys: lines of the groups' file that are of nobody in the set.
    """

    threshold: float
    far: str
    groups: list[GroupErrors]
    spread: dict[str, tuple[float | None, Interval]]
    num_mixed: int
    num_ungrouped: int
    num_unused_keys: int = 0

    def summary(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "far": self.far,
            "threshold": self.threshold,
            "level": LEVEL,
            "groups": {
                group.name: {
                    "identities": group.num_identities,
                    "same_pairs": group.num_same,
                    "different_pairs": group.num_different,
                    **group.rates,
                    "intervals": group.intervals,
                }
                for group in self.groups
            },
            "spread": {
                name: {"difference": value, "interval": interval}
                for name, (value, interval) in self.spread.items()
            },
            "pairs_of_two_groups": self.num_mixed,
            "pairs_without_group": self.num_ungrouped,
            "keys_of_nobody": self.num_unused_keys,
        }


def group_errors(
    distance_P: np.ndarray,
    same_P: np.ndarray,
    identity_P2: np.ndarray,
    group_P2: np.ndarray,
    names: Sequence[str],
    *,
    threshold: float,
    far: str,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> GroupReport:
    """Accuracy, FMR and FNMR of each group at one threshold, with intervals over people.

    Args:
        identity_P2: the person of each image, numbered from 0 on.
        group_P2: the group of each image, a number of `names`; -1 for none.
        threshold: the cosine from which on a pair is called the same.
        far: what the threshold is for, to be handed on.
        num_replicates: 0 for no intervals.
    """
    inside_P = (group_P2[:, 0] == group_P2[:, 1]) & (group_P2[:, 0] >= 0)
    without_P = (group_P2 < 0).any(axis=1)
    group_P = np.where(inside_P, group_P2[:, 0], -1)
    accepted_P = as_cosine(distance_P) >= threshold
    rates_GM = _rates(accepted_P, same_P, group_P, np.ones(len(same_P)), len(names))
    replicates_RGM = np.array(
        [
            _rates(accepted_P, same_P, group_P, pair_weights(times_I, identity_P2), len(names))
            for times_I in drawn_times(int(identity_P2.max()) + 1, num_replicates, seed)
        ]
    )
    groups = []
    for number, name in enumerate(names):
        mask_P = group_P == number
        groups.append(
            GroupErrors(
                name=name,
                num_identities=len(np.unique(identity_P2[mask_P])),
                num_same=int(np.sum(mask_P & same_P)),
                num_different=int(np.sum(mask_P & ~same_P)),
                rates={m: _known(rates_GM[number, k]) for k, m in enumerate(MEASURES)},
                intervals={
                    m: _interval(replicates_RGM[:, number, k]) if num_replicates else None
                    for k, m in enumerate(MEASURES)
                },
            )
        )
    spread: dict[str, tuple[float | None, Interval]] = {}
    for k, name in enumerate(MEASURES):
        known_G = np.isfinite(rates_GM[:, k])
        if known_G.sum() < 2:
            spread[name] = (None, None)
            continue
        interval = None
        if num_replicates:
            interval = _interval(np.ptp(replicates_RGM[:, known_G, k], axis=1))
        spread[name] = (float(np.ptp(rates_GM[known_G, k])), interval)
    return GroupReport(
        threshold=threshold,
        far=far,
        groups=groups,
        spread=spread,
        num_mixed=int(np.sum(~inside_P & ~without_P)),
        num_ungrouped=int(without_P.sum()),
    )


def _rates(
    accepted_P: np.ndarray,
    same_P: np.ndarray,
    group_P: np.ndarray,
    weight_P: np.ndarray,
    num_groups: int,
) -> np.ndarray:
    """[G, 3]: accuracy, FMR and FNMR of each group; NaN without pairs."""

    def counts(mask_P: np.ndarray) -> np.ndarray:
        chosen_P = mask_P & (group_P >= 0)
        return np.bincount(group_P[chosen_P], weight_P[chosen_P], minlength=num_groups)

    same_G, different_G = counts(same_P), counts(~same_P)
    missed_G, false_G = counts(same_P & ~accepted_P), counts(~same_P & accepted_P)
    with np.errstate(invalid="ignore"):
        accuracy_G = 1 - (missed_G + false_G) / (same_G + different_G)
        return np.stack([accuracy_G, false_G / different_G, missed_G / same_G], axis=1)


def _known(rate: float) -> float | None:
    return float(rate) if np.isfinite(rate) else None


def _interval(values_R: np.ndarray) -> Interval:
    """Replicates in which nobody of the group was drawn say nothing."""
    finite_R = values_R[np.isfinite(values_R)]
    if not len(finite_R):
        return None
    low, high = percentiles(finite_R)
    return float(low), float(high)
