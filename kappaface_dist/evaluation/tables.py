"""Verification results as tables: plain text for terminals, Markdown, LaTeX."""

from collections.abc import Mapping, Sequence

from kappaface_dist.evaluation.pairs import FALSE_ACCEPT_RATES, rate_name
from kappaface_dist.evaluation.set_report import SetReport

TEXT_RATES = ("1e-1", "1e-2", "1e-3", "1e-4")
MISSING = "not enough pairs"
LATEX_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}"}


def text_table(reports: Mapping[str, SetReport]) -> str:
    """A table for the terminal, with a line below it for each set that lacks a number."""
    rows = [["set", "pairs", "accuracy", "AUC", "EER", *(f"TAR@{r}" for r in TEXT_RATES), "pixels"]]
    for name, report in reports.items():
        result = report.result
        rows.append(
            [
                name,
                str(result.num_pairs),
                _spread(result.accuracy, result.accuracy_std, "±", " %"),
                *(_percent(x, " %") for x in (result.auc, result.eer)),
                *(_percent(result.tar_at_far[rate], " %") for rate in TEXT_RATES),
                _percent(report.pixels, " %"),
            ]
        )
    notes = [f"{name}: {r.result.note}" for name, r in reports.items() if r.result.note]
    return "\n".join([align(rows), *notes])


def markdown_table(reports: Mapping[str, SetReport]) -> str:
    """A row per set, percentages with their intervals."""
    header, rows = _paper_rows(reports, "±", "–")
    rule = [":--", *["--:"] * (len(header) - 1)]
    # A set's name is the user's, a bar in it would end the cell.
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, rule, *rows]]
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def latex_table(reports: Mapping[str, SetReport]) -> str:
    """The same as a tabular with booktabs' rules."""
    header, rows = _paper_rows(reports, r"$\pm$", "--")
    lines = [
        "% percent; brackets: 95 % bootstrap interval over identities",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join([_latex(row[0]), *row[1:]]) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _paper_rows(
    reports: Mapping[str, SetReport], plus_minus: str, dash: str
) -> tuple[list[str], list[list[str]]]:
    """Header and rows; rates that no set has pairs for are left out."""
    rates = [
        rate
        for rate in map(rate_name, FALSE_ACCEPT_RATES)
        if any(r.result.tar_at_far[rate] is not None for r in reports.values())
    ]
    header = ["set", "pairs", "accuracy", "AUC", "EER", *(f"TAR@{rate}" for rate in rates)]
    rows = []
    for name, report in reports.items():
        result, intervals = report.result, report.intervals
        cells = [_spread(result.accuracy, result.accuracy_std, plus_minus, "")]
        for key in ("auc", "eer"):
            interval = getattr(intervals, key) if intervals else None
            cells.append(_with_interval(getattr(result, key), interval, dash))
        for rate in rates:
            interval = intervals.tar_at_far[rate] if intervals else None
            cells.append(_with_interval(result.tar_at_far[rate], interval, dash))
        rows.append([name, str(result.num_pairs), *cells])
    return header, rows


def _with_interval(share: float | None, interval: tuple[float, float] | None, dash: str) -> str:
    if share is None:
        return MISSING
    if interval is None:
        return f"{100 * share:.2f}"
    return f"{100 * share:.2f} [{100 * interval[0]:.2f}{dash}{100 * interval[1]:.2f}]"


def _spread(mean: float | None, std: float | None, plus_minus: str, unit: str) -> str:
    if mean is None or std is None:
        return "-"
    return f"{100 * mean:.2f} {plus_minus} {100 * std:.2f}{unit}"


def _percent(share: float | None, unit: str) -> str:
    return "-" if share is None else f"{100 * share:.2f}{unit}"


def _latex(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)
