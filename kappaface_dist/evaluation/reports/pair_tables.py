"""Verification results as tables."""

from collections.abc import Mapping

from kappaface_dist.evaluation.protocol import FALSE_ACCEPT_RATES, rate_name
from kappaface_dist.evaluation.reports.group_section import group_note, group_table
from kappaface_dist.evaluation.reports.names import one_line
from kappaface_dist.evaluation.reports.pair_set import SetReport
from kappaface_dist.evaluation.reports.table_formats import (
    MISSING,
    Table,
    as_text,
    with_interval,
)

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
    notes = [one_line(f"{n}: {r.result.note}") for n, r in reports.items() if r.result.note]
    thresholds = threshold_table(reports)
    if thresholds is not None:
        notes.append(as_text([thresholds.header, *thresholds.rows]))
    for name, report in reports.items():
        if report.groups is not None:
            table = group_table(report.groups)
            notes += [one_line(name), as_text([table.header, *table.rows])]
            notes.append(group_note(report.groups))
    return "\n".join([as_text(rows), *notes])


def threshold_table(reports: Mapping[str, SetReport]) -> Table | None:
    """The cosine from which on a pair is called the same, a row per set; None if no set has one."""
    rates = [
        rate
        for rate in map(rate_name, FALSE_ACCEPT_RATES)
        if any(r.result.threshold_at_far[rate] is not None for r in reports.values())
    ]
    if not rates:
        return None
    table = Table(["same from this cosine on", *(f"FAR {rate}" for rate in rates)], [])
    for name, report in reports.items():
        bounds = {} if report.intervals is None else report.intervals.threshold_at_far
        found = report.result.threshold_at_far
        table.rows.append([name, *(_cosine(found[rate], bounds.get(rate)) for rate in rates)])
    return table


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


def _cosine(cosine: float | None, interval: tuple[float, float] | None) -> str:
    if cosine is None:
        return MISSING
    bounds = "" if interval is None else f" [{interval[0]:.3f}–{interval[1]:.3f}]"
    return f"{cosine:.3f}{bounds}"


def _percent(share: float | None, unit: str) -> str:
    return "-" if share is None else f"{100 * share:.2f}{unit}"
