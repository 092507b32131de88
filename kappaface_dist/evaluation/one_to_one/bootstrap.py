"""Confidence intervals of 1:1 numbers, by resampling people rather than pairs.

Pairs that share a person rise and fall together, so resampling pairs makes intervals too narrow.
Here identities are drawn with replacement, w_i the times that identity i was drawn, and a pair
counts w_i times if it is of one person, w_i w_j times if it is of i and j: the vertex bootstrap
(Snijders & Borgatti 1999; for face verification Fogliato, Patil & Perona 2022, section 4).

Shapes: P pairs, I identities, T thresholds, R replicates, L links, X anything.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kappaface_dist.evaluation.folds import order_for_folds
from kappaface_dist.evaluation.protocol import (
    Roc,
    area_under,
    equal_error_rate,
    fold_accuracies,
    roc,
)
from kappaface_dist.evaluation.resampling import (
    BAND_POINTS,
    LEVEL,
    NUM_REPLICATES,
    Band,
    drawn_times,
    percentiles,
)


@dataclass(frozen=True)
class Intervals:
    """Percentile intervals (low, high); None where the number itself is missing.

    Attributes:
        num_identities: people, or what stands for them, that were resampled.
    """

    num_identities: int
    num_replicates: int
    accuracy: tuple[float, float] | None
    auc: tuple[float, float]
    eer: tuple[float, float]
    tar_at_far: dict[str, tuple[float, float] | None]
    band: Band

    def summary(self) -> dict[str, Any]:
        """The numbers without the arrays, ready for JSON."""
        return {
            "level": LEVEL,
            "resampled_identities": self.num_identities,
            "replicates": self.num_replicates,
            "accuracy": self.accuracy,
            "auc": self.auc,
            "eer": self.eer,
            "tar_at_far": self.tar_at_far,
        }


def pair_identities(payloads: list[bytes], same_P: np.ndarray) -> np.ndarray:
    """What a .bin says about who is who: identity_P2, a number for the person of each image.

    Images are of one person if their bytes are equal or a pair says so, directly or by way of
    others. A set does not say more: two of these identities may be one person in truth, and then
    the intervals are a little too narrow.
    """
    number_of = {payload: number for number, payload in enumerate(dict.fromkeys(payloads))}
    image_P2 = np.array([number_of[payload] for payload in payloads]).reshape(-1, 2)
    return joined(len(number_of), image_P2[same_P])[image_P2]


def joined(count: int, link_L2: np.ndarray) -> np.ndarray:
    """group_X: the number of each of `count` things' group, linked ones being in one group."""
    lowest_X = np.arange(count)
    first_L, second_L = link_L2[:, 0], link_L2[:, 1]
    while True:
        # Everything takes the lowest number among its neighbours, then that one's own.
        next_X = lowest_X.copy()
        np.minimum.at(next_X, first_L, lowest_X[second_L])
        np.minimum.at(next_X, second_L, lowest_X[first_L])
        next_X = next_X[next_X]
        if (next_X == lowest_X).all():
            return np.unique(lowest_X, return_inverse=True)[1]
        lowest_X = next_X


def bootstrap(
    distance_P: np.ndarray,
    same_P: np.ndarray,
    identity_P2: np.ndarray,
    rates: dict[str, float | None],
    *,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> Intervals | None:
    """Intervals for all numbers of `score_pairs`, the same for the same arguments.

    Args:
        identity_P2: the person of each image, numbered from 0 on.
        rates: tar_at_far of the set; intervals are made for those that are not None.

    Returns:
        None where the set has one kind of pairs only.
    """
    if same_P.all() or not same_P.any():
        return None
    num_identities = int(identity_P2.max()) + 1
    order_P, _ = order_for_folds(same_P)
    accuracies = []

    def curves() -> Iterator[Roc]:
        for times_I in drawn_times(num_identities, num_replicates, seed):
            weight_P = pair_weights(times_I, identity_P2)
            if not weight_P[same_P].any() or not weight_P[~same_P].any():
                continue  # so few people that only one kind was drawn: it has no curve
            if order_P is not None:
                folds = fold_accuracies(
                    distance_P[order_P], same_P[order_P], weight_P=weight_P[order_P]
                )
                accuracies.append(np.nanmean(folds))
            yield roc(distance_P, same_P, weight_P)

    found = curve_intervals(curves(), rates, int(np.sum(~same_P)), num_identities)
    if found is None or not accuracies:
        return found
    return replace(found, accuracy=_pair(accuracies))


def curve_intervals(
    curves: Iterable[Roc], rates: dict[str, float | None], num_different: int, num_identities: int
) -> Intervals | None:
    """Intervals of all that follows from a ROC, from the curves of the replicates; None for none.

    Args:
        rates: tar_at_far of the set; intervals are made for those that are not None.
        num_different: different pairs of the set, which say how far down its band goes.
    """
    decades = np.log10(num_different)
    band_far_T = np.geomspace(1 / num_different, 1, max(2, round(decades * BAND_POINTS) + 1))
    far_of = {name: float(name) for name, rate in rates.items() if rate is not None}
    far_X = np.array([*far_of.values(), *band_far_T])
    areas, equal_errors, tars = [], [], []
    for curve in curves:
        areas.append(area_under(curve))
        equal_errors.append(equal_error_rate(curve))
        tars.append(_tar_at(curve, far_X))
    if not areas:
        return None
    low, high = percentiles(np.array(tars))
    named: dict[str, tuple[float, float] | None] = dict.fromkeys(rates)
    named |= {name: (float(low[i]), float(high[i])) for i, name in enumerate(far_of)}
    return Intervals(
        num_identities=num_identities,
        num_replicates=len(areas),
        accuracy=None,
        auc=_pair(areas),
        eer=_pair(equal_errors),
        tar_at_far=named,
        band=Band(band_far_T, low[len(far_of) :], high[len(far_of) :]),
    )


def pair_weights(times_I: np.ndarray, identity_P2: np.ndarray) -> np.ndarray:
    """How often each pair counts when identity i was drawn times_I[i] times."""
    first_P, second_P = times_I[identity_P2[:, 0]], times_I[identity_P2[:, 1]]
    return np.where(identity_P2[:, 0] == identity_P2[:, 1], first_P, first_P * second_P)


def _tar_at(curve: Roc, far_X: np.ndarray) -> np.ndarray:
    """The true accept rate at the loosest threshold whose false accept rate is at most far."""
    last_X = np.searchsorted(curve.far_T, far_X * (1 + 1e-9), side="right") - 1
    return curve.tar_T[last_X]


def _pair(values_R: list[float]) -> tuple[float, float]:
    low, high = percentiles(np.array(values_R))
    return float(low), float(high)
