"""Tables of results as text, Markdown and LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kappaface_dist.evaluation.reports.names import in_latex, in_markdown, one_line

INTERVAL = re.compile(r"\[[-\d.]+–[-\d.]+\]$")
MISSING = "not enough pairs"


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names a row, the others hold numbers."""

    header: list[str]
    rows: list[list[str]]


def with_interval(
    share: float | None, interval: tuple[float, float] | None, missing: str = MISSING
) -> str:
    """A share as percent, and its interval in brackets where there is one."""
    if share is None:
        return missing
    if interval is None:
        return f"{100 * share:.2f}"
    return f"{100 * share:.2f} [{100 * interval[0]:.2f}–{100 * interval[1]:.2f}]"


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, the first to the left, the others to the right."""
    rows = [[one_line(row[0]), *row[1:]] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def as_markdown(table: Table) -> str:
    """A Markdown table."""
    rule = [":--", *["--:"] * (len(table.header) - 1)]
    # The first cell of a row is a name, and a user's own.
    rows = [table.header, rule, *([in_markdown(row[0]), *row[1:]] for row in table.rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def as_latex(table: Table, comment: str) -> str:
    """A tabular with booktabs' rules, below a comment."""
    lines = [
        f"% {one_line(comment)}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        r"\toprule",
        " & ".join(table.header) + r" \\",
        r"\midrule",
        *(" & ".join([in_latex(row[0]), *map(_numbers, row[1:])]) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def split_interval(cell: str) -> tuple[str, str]:
    """A cell's number and its interval, which is empty where it has none."""
    found = INTERVAL.search(cell)
    return (cell[: found.start()], found[0]) if found else (cell, "")


def _numbers(cell: str) -> str:
    return cell.replace("±", r"$\pm$").replace("–", "--")
