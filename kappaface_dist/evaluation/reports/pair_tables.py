"""Verification results as tables."""

from collections.abc import Mapping

from kappaface_dist.evaluation.protocol import FALSE_ACCEPT_RATES, rate_name
from kappaface_dist.evaluation.reports.pair_set import SetReport
from kappaface_dist.evaluation.reports.table_formats import Table, as_text, with_interval

TEXT_RATES = ("1e-1", "1e-2", "1e-3", "1e-4")


def text_table(reports: Mapping[str, SetReport]) -> str:
    """A table for the terminal, with a line below it for each set that lacks a number."""
    rows = [["set", "pairs", "accuracy", "AUC", "EER", *(f"TAR@{r}" for r in TEXT_RATES), "pixels"]]
    for name, report in reports.items():
        result = report.result
        rows.append(
            [
                name,
                str(result.num_pairs),
                _spread(result.accuracy, result.accuracy_std, " %"),
                *(_percent(x, " %") for x in (result.auc, result.eer)),
                *(_percent(result.tar_at_far[rate], " %") for rate in TEXT_RATES),
                _percent(report.pixels, " %"),
            ]
        )
    notes = [f"{name}: {r.result.note}" for name, r in reports.items() if r.result.note]
    return "\n".join([as_text(rows), *notes])


def paper_table(reports: Mapping[str, SetReport]) -> Table:
    """A row per set, percent with intervals; rates that no set has pairs for are left out."""
    rates = [
        rate
        for rate in map(rate_name, FALSE_ACCEPT_RATES)
        if any(r.result.tar_at_far[rate] is not None for r in reports.values())
    ]
    header = ["set", "pairs", "accuracy", "AUC", "EER", *(f"TAR@{rate}" for rate in rates)]
    rows = []
    for name, report in reports.items():
        result, intervals = report.result, report.intervals
        cells = [_spread(result.accuracy, result.accuracy_std, "")]
        for key in ("auc", "eer"):
            interval = getattr(intervals, key) if intervals else None
            cells.append(with_interval(getattr(result, key), interval))
        for rate in rates:
            interval = intervals.tar_at_far[rate] if intervals else None
            cells.append(with_interval(result.tar_at_far[rate], interval))
        rows.append([name, str(result.num_pairs), *cells])
    return Table(header, rows)


def _spread(mean: float | None, std: float | None, unit: str) -> str:
    if mean is None or std is None:
        return "-"
    return f"{100 * mean:.2f} ± {100 * std:.2f}{unit}"


def _percent(share: float | None, unit: str) -> str:
    return "-" if share is None else f"{100 * share:.2f}{unit}"
