"""Confidence intervals of 1:1 numbers, by resampling people rather than pairs.

Pairs that share a person rise and fall together, so resampling pairs makes intervals too narrow.
Here identities are drawn with replacement, w_i the times that identity i was drawn, and a pair
counts w_i times if it is of one person, w_i w_j times if it is of i and j: the vertex bootstrap
(Snijders & Borgatti 1999; for face verification Fogliato, Patil & Perona 2022, section 4).

Shapes: P pairs, I identities, T thresholds, R replicates.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kappaface_dist.evaluation.protocol import (
    NUM_FOLDS,
    Roc,
    area_under,
    equal_error_rate,
    fold_accuracies,
    roc,
)

NUM_REPLICATES = 1000
LEVEL = 0.95
# Points of the band around the ROC, per decade of the false accept rate.
BAND_POINTS = 10


@dataclass(frozen=True)
class Intervals:
    """Percentile intervals (low, high); None where the number itself is missing.

    Attributes:
        num_identities: people, or what stands for them, that were resampled.
        band_far_T, band_low_T, band_high_T: the interval of the true accept rate along the ROC.
    """

    num_identities: int
    num_replicates: int
    accuracy: tuple[float, float] | None
    auc: tuple[float, float]
    eer: tuple[float, float]
    tar_at_far: dict[str, tuple[float, float] | None]
    band_far_T: np.ndarray
    band_low_T: np.ndarray
    band_high_T: np.ndarray

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
    parent = list(range(len(number_of)))

    def root(image: int) -> int:
        while parent[image] != image:
            parent[image] = parent[parent[image]]
            image = parent[image]
        return image

    for first, second in image_P2[same_P].tolist():
        parent[root(first)] = root(second)
    roots = np.array([root(image) for image in range(len(parent))])
    return np.unique(roots, return_inverse=True)[1][image_P2]


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
    rng = np.random.default_rng(seed)
    num_identities = int(identity_P2.max()) + 1
    num_different = int(np.sum(~same_P))
    decades = np.log10(num_different)
    band_far_T = np.geomspace(1 / num_different, 1, max(2, round(decades * BAND_POINTS) + 1))
    far_of = {name: float(name) for name, rate in rates.items() if rate is not None}
    accuracies, areas, equal_errors, tars = [], [], [], []
    for _ in range(num_replicates):
        drawn = rng.integers(num_identities, size=num_identities)
        times_I = np.bincount(drawn, minlength=num_identities)
        weight_P = pair_weights(times_I, identity_P2)
        if not weight_P[same_P].any() or not weight_P[~same_P].any():
            continue  # so few people that only one kind was drawn: it has no curve
        curve = roc(distance_P, same_P, weight_P)
        areas.append(area_under(curve))
        equal_errors.append(equal_error_rate(curve))
        tars.append(_tar_at(curve, np.array([*far_of.values(), *band_far_T])))
        if len(same_P) >= NUM_FOLDS:
            accuracies.append(np.nanmean(fold_accuracies(distance_P, same_P, weight_P=weight_P)))
    if not areas:
        return None
    low, high = _interval(np.array(tars))
    named: dict[str, tuple[float, float] | None] = dict.fromkeys(rates)
    named |= {name: (float(low[i]), float(high[i])) for i, name in enumerate(far_of)}
    return Intervals(
        num_identities=num_identities,
        num_replicates=len(areas),
        accuracy=_pair(accuracies) if accuracies else None,
        auc=_pair(areas),
        eer=_pair(equal_errors),
        tar_at_far=named,
        band_far_T=band_far_T,
        band_low_T=low[len(far_of) :],
        band_high_T=high[len(far_of) :],
    )


def pair_weights(times_I: np.ndarray, identity_P2: np.ndarray) -> np.ndarray:
    """How often each pair counts when identity i was drawn times_I[i] times."""
    first_P, second_P = times_I[identity_P2[:, 0]], times_I[identity_P2[:, 1]]
    return np.where(identity_P2[:, 0] == identity_P2[:, 1], first_P, first_P * second_P)


def _tar_at(curve: Roc, far_X: np.ndarray) -> np.ndarray:
    """The true accept rate at the loosest threshold whose false accept rate is at most far."""
    last_X = np.searchsorted(curve.far_T, far_X * (1 + 1e-9), side="right") - 1
    return curve.tar_T[last_X]


def _interval(values_RX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(values_RX, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def _pair(values_R: list[float]) -> tuple[float, float]:
    low, high = _interval(np.array(values_R))
    return float(low), float(high)
