"""Intervals of 1:N numbers, by resampling the probes' people; the gallery stays as it is.

Searches of one person rise and fall together: a replicate draws people with replacement, and each
search counts as often as its person was drawn.

Shapes: E searches for a mate, A searches that ought to find nobody, I identities, R replicates, K
ranks, F false alarm rates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kappaface_dist.evaluation.one_to_many.identification import (
    DEEPEST,
    FALSE_ALARM_RATES,
    RANKS,
    SearchOutcome,
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
class Replicates:
    """The numbers of every replicate; NaN where it drew nobody who could be searched for.

    Attributes:
        share_RK: found among the first k, for k = 1 to DEEPEST.
        tpir_RF: at fpir_F, which begins with FALSE_ALARM_RATES.
        missing: names of the rates that the set is too small for.
    """

    num_identities: int
    share_RK: np.ndarray
    tpir_RF: np.ndarray
    fpir_F: np.ndarray
    missing: frozenset[str]


@dataclass(frozen=True)
class IdentificationIntervals:
    """Percentile intervals (low, high); None where the number itself is missing.

    Attributes:
        low_K, high_K: of the share found among the first k.
        band: of TPIR along FPIR; None without false alarms.
    """

    num_identities: int
    num_replicates: int
    rank: dict[str, tuple[float, float] | None]
    tpir_at_fpir: dict[str, tuple[float, float] | None]
    low_K: np.ndarray
    high_K: np.ndarray
    band: Band | None

    def summary(self) -> dict[str, Any]:
        """The numbers without the arrays, ready for JSON."""
        return {
            "level": LEVEL,
            "resampled_identities": self.num_identities,
            "replicates": self.num_replicates,
            "rank": self.rank,
            "tpir_at_fpir": self.tpir_at_fpir,
        }


def replicate(
    outcome: SearchOutcome,
    num_identities: int,
    *,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
) -> Replicates:
    """The numbers of resampled people; the r-th replicate of one seed is of the same people.

    Args:
        num_identities: of the probes, mated or not.
    """
    decades = np.log10(max(2, len(outcome.alarm_A)))
    grid = np.geomspace(10**-decades, 1, max(2, round(decades * BAND_POINTS) + 1))
    fpir_F = np.array([*FALSE_ALARM_RATES.values(), *grid])
    # float64: BLAS has no products of whole numbers.
    hits_IK = np.zeros((num_identities, DEEPEST + 1))
    np.add.at(hits_IK, (outcome.identity_E, np.minimum(outcome.rank_E, DEEPEST + 1) - 1), 1)
    alarm_A, identity_A = _descending(outcome.alarm_A, outcome.identity_A)
    mate_E, identity_E = _descending(outcome.mate_E, outcome.identity_E)
    share_RK = np.full((num_replicates, DEEPEST), np.nan)
    tpir_RF = np.full((num_replicates, len(fpir_F)), np.nan)
    for row, times_I in enumerate(drawn_times(num_identities, num_replicates, seed)):
        found_K = np.cumsum(times_I @ hits_IK)
        if not found_K[-1]:
            continue
        share_RK[row] = found_K[:-1] / found_K[-1]
        raised_A = np.cumsum(times_I[identity_A])
        if not len(raised_A) or not raised_A[-1]:
            continue
        # The first alarm that is one too many is the threshold, as in tpir_at_fpir().
        allowed_F = fpir_F * raised_A[-1] * (1 + 1e-9)
        first_F = np.searchsorted(raised_A, allowed_F, side="right")
        threshold_F = np.append(alarm_A, -np.inf)[first_F]
        accepted_F = np.searchsorted(-mate_E, -threshold_F, side="left")
        total_E = np.concatenate([[0], np.cumsum(times_I[identity_E])])
        tpir_RF[row] = total_E[accepted_F] / total_E[-1]
    missing = {
        name for name, far in FALSE_ALARM_RATES.items() if int(far * len(alarm_A) + 1e-9) == 0
    }
    return Replicates(num_identities, share_RK, tpir_RF, fpir_F, frozenset(missing))


def mean_replicates(parts: Sequence[Replicates]) -> Replicates:
    """Of the average over galleries that the same probes were searched in, with the same seed."""
    return Replicates(
        parts[0].num_identities,
        np.mean([part.share_RK for part in parts], axis=0),
        # The galleries' grids of rates differ: the average has the named rates alone.
        np.mean([part.tpir_RF[:, : len(FALSE_ALARM_RATES)] for part in parts], axis=0),
        parts[0].fpir_F[: len(FALSE_ALARM_RATES)],
        frozenset().union(*(part.missing for part in parts)),
    )


def intervals(replicates: Replicates) -> IdentificationIntervals | None:
    """The intervals; None where no replicate has a number, or all are of the same person."""
    share_RK = _known(replicates.share_RK)
    tpir_RF = _known(replicates.tpir_RF)
    if not len(share_RK) or replicates.num_identities < 2:
        return None
    low_K, high_K = percentiles(share_RK)
    tpir_at_fpir: dict[str, tuple[float, float] | None] = dict.fromkeys(FALSE_ALARM_RATES)
    band = None
    if len(tpir_RF):
        low_F, high_F = percentiles(tpir_RF)
        for column, name in enumerate(FALSE_ALARM_RATES):
            if name not in replicates.missing:
                tpir_at_fpir[name] = (float(low_F[column]), float(high_F[column]))
        named = len(FALSE_ALARM_RATES)
        if len(replicates.fpir_F) > named:
            band = Band(replicates.fpir_F[named:], low_F[named:], high_F[named:])
    return IdentificationIntervals(
        num_identities=replicates.num_identities,
        num_replicates=len(share_RK),
        rank={str(k): (float(low_K[k - 1]), float(high_K[k - 1])) for k in RANKS},
        tpir_at_fpir=tpir_at_fpir,
        low_K=low_K,
        high_K=high_K,
        band=band,
    )


def _descending(score_X: np.ndarray, identity_X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order_X = np.argsort(-score_X, kind="stable")
    return score_X[order_X], identity_X[order_X]


def _known(values_RX: np.ndarray) -> np.ndarray:
    return values_RX[np.isfinite(values_RX).all(axis=1)]
