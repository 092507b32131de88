"""The numbers of 1:1 verification, from one score and one truth per pair.

Shapes: P pairs, T thresholds, F folds.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from kappaface_dist.evaluation.folds import NUM_FOLDS, fold_numbers

Number = TypeVar("Number", float, np.ndarray)

# The grid on which the field looks for its threshold: squared distances of unit vectors, 0 to 4.
FIELD_THRESHOLDS_T = np.arange(0, 4, 0.01)
FALSE_ACCEPT_RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class Roc:
    """Accept rates at every threshold that gives another answer, from "none" to "all".

    far_T[i] and tar_T[i] are the shares of different and of same pairs whose distance is at most
    threshold_T[i]; the first threshold is below every distance. num_pairs counts both kinds; 0
    where it is not known.
    """

    far_T: np.ndarray
    tar_T: np.ndarray
    threshold_T: np.ndarray
    num_pairs: int = 0


@dataclass(frozen=True)
class CurveNumbers:
    """What follows from a ROC; None stands for what the pairs cannot say.

    Attributes:
        curve: None where all pairs are of one kind.
        tar_at_far: with the keys "1e-1" to "1e-6", None where there are not enough different pairs.
        distance_at_far: the threshold of each of those: pairs at most so far apart are accepted.
            None also where the closest pairs, which are tied, are too many for the rate.
        note: why numbers are missing, empty when none is.
    """

    curve: Roc | None
    auc: float | None
    eer: float | None
    tar_at_far: dict[str, float | None]
    distance_at_far: dict[str, float | None]
    note: str


def curve_numbers(distance_P: np.ndarray, same_P: np.ndarray) -> CurveNumbers:
    """AUC, EER and TAR at FALSE_ACCEPT_RATES of pairs with these distances."""
    num_different = int(np.sum(~same_P))
    names = {rate_name(far): far for far in FALSE_ACCEPT_RATES}
    if num_different in (0, len(same_P)):
        kind = "different people" if num_different else "the same person"
        note = f"all {len(same_P)} pairs are of {kind}"
        return CurveNumbers(None, None, None, dict.fromkeys(names), dict.fromkeys(names), note)
    curve = roc(distance_P, same_P)
    rates = {name: tar_at_far(curve, num_different, far) for name, far in names.items()}
    thresholds = {n: distance_at_far(curve, num_different, far) for n, far in names.items()}
    missing = ", ".join(name for name, rate in rates.items() if rate is None)
    note = f"{num_different} different pairs are not enough for FAR {missing}" if missing else ""
    area, equal = area_under(curve), equal_error_rate(curve)
    return CurveNumbers(curve, area, equal, rates, thresholds, note)


def fold_accuracies(
    distance_P: np.ndarray,
    same_P: np.ndarray,
    num_folds: int = NUM_FOLDS,
    thresholds_T: np.ndarray = FIELD_THRESHOLDS_T,
    weight_P: np.ndarray | None = None,
) -> np.ndarray:
    """Accuracy on each fold, at the threshold that is best on the other folds.

    Exactly the field's protocol (LFW view 2, as InsightFace and facenet compute it): folds are
    consecutive blocks of pairs, the first P mod F of them one pair longer; a pair is called the
    same if its distance is below the threshold; of equally good thresholds the lowest is taken.
    Pairs in an order that leaves a fold with one kind only want order_for_folds() first.

    Args:
        distance_P: squared distances of unit embeddings.
        same_P: True where the pair shows one person.
        weight_P: how often each pair counts, int64; once each if not given.

    Returns:
        accuracy_F, shares from 0 to 1; NaN for a fold in which no pair counts.
    """
    num_pairs = len(distance_P)
    assert 2 <= num_folds <= num_pairs
    fold_P = fold_numbers(num_pairs, num_folds)
    if weight_P is None:
        weight_P = np.ones(num_pairs, dtype=np.int64)
    # The lowest threshold that calls the pair the same, one past the last if none does.
    lowest_P = np.searchsorted(thresholds_T, distance_P, side="right")
    # A pair that begins to be accepted adds a right answer if it is a same pair, else takes one.
    change_TF = np.zeros((len(thresholds_T) + 1, num_folds), dtype=np.int64)
    np.add.at(change_TF, (lowest_P, fold_P), np.where(same_P, weight_P, -weight_P))
    different_F = np.bincount(fold_P, weights=weight_P * ~same_P).astype(np.int64)
    total_F = np.bincount(fold_P, weights=weight_P).astype(np.int64)
    right_TF = different_F + np.cumsum(change_TF[:-1], axis=0)
    elsewhere_TF = right_TF.sum(axis=1, keepdims=True) - right_TF
    best_F = elsewhere_TF.argmax(axis=0)
    right_F = right_TF[best_F, np.arange(num_folds)]
    return np.divide(right_F, total_F, out=np.full(num_folds, np.nan), where=total_F > 0)


def best_accuracy(distance_P: np.ndarray, same_P: np.ndarray) -> float:
    """The largest share of pairs that any threshold on the distance calls right."""
    order = np.argsort(distance_P, kind="stable")
    ends_T = _ends_of_ties(distance_P[order])
    same_P = same_P[order]
    right_T = np.cumsum(same_P)[ends_T] + np.sum(~same_P) - np.cumsum(~same_P)[ends_T]
    return float(max(right_T.max(), np.sum(~same_P)) / len(same_P))


def roc(distance_P: np.ndarray, same_P: np.ndarray, weight_P: np.ndarray | None = None) -> Roc:
    """The receiver operating characteristic; tied distances are accepted together.

    Args:
        weight_P: how often each pair counts, int64; once each if not given.

    Raises:
        ValueError: not a pair of each kind.
    """
    if weight_P is None:
        weight_P = np.ones(len(same_P), dtype=np.int64)
    num_same, num_different = int(weight_P[same_P].sum()), int(weight_P[~same_P].sum())
    if not num_same or not num_different:
        raise ValueError(
            f"{num_same} same and {num_different} different pairs, a ROC needs both kinds"
        )
    order = np.argsort(distance_P, kind="stable")
    ends_T = _ends_of_ties(distance_P[order])
    weight_P = weight_P[order]
    accepted_T = np.cumsum(weight_P * same_P[order])[ends_T]
    false_T = np.cumsum(weight_P)[ends_T] - accepted_T
    return Roc(
        far_T=np.concatenate([[0.0], false_T / num_different]),
        tar_T=np.concatenate([[0.0], accepted_T / num_same]),
        threshold_T=np.concatenate([[-np.inf], distance_P[order][ends_T]]),
        num_pairs=num_same + num_different,
    )


def area_under(curve: Roc) -> float:
    """AUC: the chance that a same pair is closer than a different one, ties counting half."""
    return float(np.trapezoid(curve.tar_T, curve.far_T))


def equal_error_rate(curve: Roc) -> float:
    """EER: the error rate where as many same pairs are refused as different ones are accepted.

    Between two thresholds the curve is a straight line, as for the area under it.
    """
    excess_T = curve.far_T - (1 - curve.tar_T)
    after = int(np.argmax(excess_T >= 0))
    before = after - 1  # the curve begins with "none", whose excess is -1
    part = excess_T[before] / (excess_T[before] - excess_T[after])
    return float(curve.far_T[before] + part * (curve.far_T[after] - curve.far_T[before]))


def tar_at_far(curve: Roc, num_different: int, far: float) -> float | None:
    """The true accept rate at the loosest threshold whose false accept rate is at most far.

    Nothing is interpolated. None where there are not enough pairs: fewer than 1 / far different
    ones, so that the only rate under far is zero.
    """
    # 1e-9: a rate such as 3 / 3000 must not miss 1e-3 by its rounding.
    if far * num_different < 1 - 1e-9:
        return None
    return float(curve.tar_T[loosest_thresholds(curve, np.array([far]))[0]])


def distance_at_far(curve: Roc, num_different: int, far: float) -> float | None:
    """The loosest threshold whose false accept rate is at most far, tar_at_far's own.

    None where there are not enough pairs, or where no pair can be accepted at such a rate.
    """
    if far * num_different < 1 - 1e-9:
        return None
    threshold = float(curve.threshold_T[loosest_thresholds(curve, np.array([far]))[0]])
    return threshold if np.isfinite(threshold) else None


def loosest_thresholds(curve: Roc, far_X: np.ndarray) -> np.ndarray:
    """Positions in the curve of the loosest thresholds whose false accept rate is at most far."""
    return np.searchsorted(curve.far_T, far_X * (1 + 1e-9), side="right") - 1


def as_cosine(distance: Number) -> Number:
    """The cosine of two unit vectors at this squared distance; a number or an array of them."""
    return 1 - distance / 2


def rate_name(far: float) -> str:
    """1e-1 rather than 1e-01 or 0.1."""
    return f"1e-{round(-np.log10(far))}"


def _ends_of_ties(sorted_P: np.ndarray) -> np.ndarray:
    """Positions of the last of each run of equal values."""
    return np.append(np.flatnonzero(np.diff(sorted_P)), len(sorted_P) - 1)
