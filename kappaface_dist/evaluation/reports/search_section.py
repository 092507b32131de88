"""What reports on 1:N tests share: the table of ranks and rates, and their curves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kappaface_dist.evaluation.one_to_many.bootstrap import IdentificationIntervals
from kappaface_dist.evaluation.one_to_many.identification import (
    DEEPEST,
    SearchOutcome,
    match_characteristic,
)
from kappaface_dist.evaluation.reports.plots import cmc_figure, det_figure
from kappaface_dist.evaluation.reports.table_formats import Table, with_interval

LABELS = ("false positive identification rate", "false negative identification rate")


@dataclass(frozen=True)
class Searched:
    """The outcome of a search among so many entries."""

    outcome: SearchOutcome
    intervals: IdentificationIntervals | None
    num_entries: int


def rank_table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Rank-k, and TPIR at the FPIRs that any row has searches for, each with its interval.

    Args:
        rows: numbers by name: "rank", "tpir_at_fpir" where there is one, and "intervals".
    """
    ranks = list(next(iter(rows.values()))["rank"])
    rates = [
        rate
        for rate in next(iter(rows.values())).get("tpir_at_fpir", {})
        if any(numbers["tpir_at_fpir"][rate] is not None for numbers in rows.values())
    ]
    header = [title, *(f"rank-{k}" for k in ranks), *(f"TPIR@{rate}" for rate in rates)]
    table = Table(header, [])
    for name, numbers in rows.items():
        cells = [name]
        for key, wanted, missing in (
            ("rank", ranks, "no mates"),
            ("tpir_at_fpir", rates, "not enough searches"),
        ):
            bounds = (numbers["intervals"] or {}).get(key, {})
            cells += [with_interval(numbers[key][x], bounds.get(x), missing) for x in wanted]
        table.rows.append(cells)
    return table


def missing_rates(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A sentence on each row that lacks a rate for want of searches; empty if none does."""
    sentences = []
    for name, numbers in rows.items():
        missing = [rate for rate, tpir in numbers.get("tpir_at_fpir", {}).items() if tpir is None]
        if missing and "false_alarm_searches" in numbers:
            sentences.append(
                f"{name}: {numbers['false_alarm_searches']} searches that ought to find nobody are"
                f" not enough for FPIR {', '.join(missing)}."
            )
    return " ".join(sentences)


def search_figures(searched: Mapping[str, Searched]) -> dict[str, tuple[str, Figure]]:
    """CMC and identification DET, by file name, with captions; without what has no curve."""
    mated = {
        name: each
        for name, each in searched.items()
        if len(each.outcome.rank_E) and each.num_entries > 1
    }
    if not mated:
        return {}
    shares, bands = {}, {}
    for name, each in mated.items():
        # Beyond the last entry of a gallery everything is found.
        deepest = min(DEEPEST, each.num_entries)
        shares[name] = match_characteristic(each.outcome.rank_E, deepest)
        if each.intervals is not None:
            bands[name] = (each.intervals.low_K[:deepest], each.intervals.high_K[:deepest])
    drawn = {"cmc": ("Rank-k of mated searches", cmc_figure(shares, "CMC", bands))}
    curves = {name: curve for name, each in mated.items() if (curve := each.outcome.trade_off())}
    if curves:
        tpir = {
            name: each.intervals.band
            for name, each in mated.items()
            if each.intervals is not None and each.intervals.band is not None
        }
        figure = det_figure(curves, "Identification DET", tpir, labels=LABELS)
        drawn["identification_det"] = ("Missed mates over false alarms", figure)
    return drawn


def searched_scores(mate_E: np.ndarray, other_Q: np.ndarray) -> dict[str, np.ndarray]:
    """Scores for a histogram: each probe's best entry of other people, and the mates."""
    return {"best of other people": other_Q[np.isfinite(other_Q)], "mate": mate_E}
