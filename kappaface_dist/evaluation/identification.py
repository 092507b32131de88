"""The numbers of 1:N identification, from the outcome of a search.

Shapes: Q queries, N gallery entries, D embedding size.
"""

from typing import Any

import numpy as np

from kappaface_dist.evaluation.search import Search

RANKS = (1, 5, 10, 20)
FALSE_ALARM_RATES = (1e-1, 1e-2, 1e-3)


def rank_rates(rank_Q: np.ndarray) -> dict[str, float | None]:
    """Rank-k: the share of mated queries (rank above 0) whose mate is among the first k."""
    mated = rank_Q[rank_Q > 0]
    return {str(k): float(np.mean(mated <= k)) if len(mated) else None for k in RANKS}


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


def open_set_numbers(found: Search) -> dict[str, Any]:
    """Rank-k and TPIR at FPIR of one gallery; false alarms come from queries without a mate."""
    return _numbers(found, found.other_Q[~found.mated_Q], "probes without a mate")


def closed_set_numbers(found: Search) -> dict[str, Any]:
    """The same where every query has a mate: false alarms are searches with the mate taken out."""
    return _numbers(found, found.other_Q, "all probes, their mate taken out")


def _numbers(found: Search, alarm_Q: np.ndarray, source: str) -> dict[str, Any]:
    mate_Q = found.mate_Q[found.mated_Q]
    rates = {f"{far:.0e}".replace("e-0", "e-"): far for far in FALSE_ALARM_RATES}
    return {
        "rank": rank_rates(found.rank_Q),
        "tpir_at_fpir": {name: tpir_at_fpir(mate_Q, alarm_Q, far) for name, far in rates.items()},
        "mated_probes": len(mate_Q),
        "false_alarm_searches": len(alarm_Q),
        "false_alarms_from": source,
    }
