"""The numbers of 1:N identification, from the outcome of a search.

Shapes: Q queries, E searches for a mate, A searches that ought to find nobody, K ranks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kappaface_dist.evaluation.one_to_many.search import Search
from kappaface_dist.evaluation.protocol import Roc, roc

RANKS = (1, 5, 10, 20)
FALSE_ALARM_RATES = {"1e-1": 1e-1, "1e-2": 1e-2, "1e-3": 1e-3}
DEEPEST = 100  # rank in pictures


@dataclass(frozen=True)
class SearchOutcome:
    """What all numbers follow from.

    Attributes:
        rank_E, mate_E: rank and score of the mate in each search for one.
        identity_E: whom the search is for, numbered from 0 on.
        alarm_A: the best score of each search that ought to find nobody.
        identity_A: who searched there.
        alarms_from: what those searches are.
    """

    rank_E: np.ndarray
    mate_E: np.ndarray
    identity_E: np.ndarray
    alarm_A: np.ndarray
    identity_A: np.ndarray
    alarms_from: str

    def numbers(self) -> dict[str, Any]:
        """Rank-k and TPIR at FPIR, ready for JSON."""
        return {
            "rank": rank_rates(self.rank_E),
            "tpir_at_fpir": {
                name: tpir_at_fpir(self.mate_E, self.alarm_A, far)
                for name, far in FALSE_ALARM_RATES.items()
            },
            "mated_probes": len(self.mate_E),
            "false_alarm_searches": len(self.alarm_A),
            "false_alarms_from": self.alarms_from,
        }

    def trade_off(self) -> Roc | None:
        """TPIR (as tar_T) over FPIR (far_T) at every threshold; None without one of the two."""
        if not len(self.mate_E) or not len(self.alarm_A):
            return None
        same = np.repeat([True, False], [len(self.mate_E), len(self.alarm_A)])
        return roc(-np.concatenate([self.mate_E, self.alarm_A]), same)


def open_set(found: Search, identity_Q: np.ndarray) -> SearchOutcome:
    """Of one gallery; false alarms come from queries without a mate."""
    return _outcome(found, identity_Q, ~found.mated_Q, "probes without a mate")


def closed_set(found: Search, identity_Q: np.ndarray) -> SearchOutcome:
    """Where every query has a mate: false alarms are searches with the mate taken out."""
    # Where the gallery has nobody else there is no search that could raise an alarm.
    return _outcome(found, identity_Q, found.other_at_Q >= 0, "all probes, their mate taken out")


def rank_rates(rank_Q: np.ndarray) -> dict[str, float | None]:
    """Rank-k: the share of mated queries (rank above 0) whose mate is among the first k."""
    mated = rank_Q[rank_Q > 0]
    return {str(k): float(np.mean(mated <= k)) if len(mated) else None for k in RANKS}


def match_characteristic(rank_E: np.ndarray, deepest: int = DEEPEST) -> np.ndarray:
    """share_K for k = 1 to deepest, as rank_rates(), of one or more searches that have a mate."""
    counts = np.bincount(np.minimum(rank_E, deepest + 1), minlength=deepest + 2)
    return np.cumsum(counts)[1 : deepest + 1] / len(rank_E)


def tpir_at_fpir(mate_Q: np.ndarray, alarm_Q: np.ndarray, fpir: float) -> float | None:
    """The share of mated searches found above the loosest threshold that keeps the false alarms.

    A score is accepted if it is above the threshold, whatever its rank (as the field's IJB scripts
    count; NIST may add a limit on the rank).

    Args:
        mate_Q: the mate's score in each mated search.
        alarm_Q: the best score of each search that ought to find nobody.
        fpir: largest share of alarm_Q that may be accepted.

    Returns:
        None where there are fewer than 1 / fpir searches to measure false alarms with.
    """
    allowed = int(fpir * len(alarm_Q) + 1e-9)  # 3 / 3000 must not miss 1e-3 by its rounding
    if not allowed or not len(mate_Q):
        return None
    threshold = -np.inf
    if allowed < len(alarm_Q):
        threshold = np.sort(alarm_Q)[::-1][allowed]
    return float(np.mean(mate_Q > threshold))


def _outcome(
    found: Search, identity_Q: np.ndarray, alarms_Q: np.ndarray, source: str
) -> SearchOutcome:
    mated_Q = found.mated_Q
    return SearchOutcome(
        rank_E=found.rank_Q[mated_Q],
        mate_E=found.mate_Q[mated_Q],
        identity_E=identity_Q[mated_Q],
        alarm_A=found.other_Q[alarms_Q],
        identity_A=identity_Q[alarms_Q],
        alarms_from=source,
    )
