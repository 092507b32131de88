"""The report on sets of pairs: report.html, plots/*.png, table.md, table.tex."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kappaface_dist.evaluation.reports.page import (
    Picture,
    PicturePair,
    figures,
    heading,
    paragraph,
    picture_pairs,
    read_picture,
    write_page,
    write_tables,
)
from kappaface_dist.evaluation.reports.pair_set import HardPair, SetReport
from kappaface_dist.evaluation.reports.pair_tables import paper_table
from kappaface_dist.evaluation.reports.plots import det_figure, histogram_figure, roc_figure

COMMENT = "percent; brackets: 95 % bootstrap interval over identities"


def write_html_report(
    folder: Path,
    reports: Mapping[str, SetReport],
    *,
    title: str,
    facts: Mapping[str, str],
    config: Mapping[str, Any] | None,
) -> Path:
    """Write report.html, table.md, table.tex and plots/*.png into folder; returns the page.

    Args:
        facts: what was run: model, hash, settings; sets and versions are added here.
        config: the run's configuration, where it is known.
    """
    parts = [
        paragraph(
            "Percent; accuracy is the mean and standard deviation over ten folds, brackets are 95 %"
            " bootstrap intervals over identities. Tables for papers: table.md, table.tex."
        ),
        write_tables(folder, {"": paper_table(reports)}, COMMENT),
        *(
            paragraph(f"{name}: {report.result.note}.", note=True)
            for name, report in reports.items()
            if report.result.note
        ),
    ]
    curves = {name: r.result.roc for name, r in reports.items() if r.result.roc is not None}
    bands = {name: r.intervals.band for name, r in reports.items() if r.intervals is not None}
    if curves:
        drawn = {
            "roc": ("ROC of all sets", roc_figure(curves, "ROC", bands)),
            "det": ("Error trade-off (DET) of all sets", det_figure(curves, "DET", bands)),
        }
        parts += [
            heading("Curves"),
            paragraph("Shaded: 95 % bootstrap intervals over identities." if bands else ""),
            figures(folder, drawn),
        ]
    for name, report in reports.items():
        parts += _set_section(folder, name, report)
    sets = {f"set {name}": f"{r.path}, SHA-256 {r.sha256}" for name, r in reports.items()}
    return write_page(folder, parts, title=title, facts={**facts, **sets}, config=config)


def _set_section(folder: Path, name: str, report: SetReport) -> list[str]:
    result, same_P = report.result, report.same_P
    cosine_P = 1 - result.distance_P / 2
    histogram = histogram_figure(
        {"different": cosine_P[~same_P], "same": cosine_P[same_P]}, f"Scores of {name}"
    )
    baseline = "" if report.pixels is None else f"; raw pixels alone reach {report.pixels:.2%}"
    people = ""
    if report.intervals is not None:
        people = (
            f" Intervals: {report.intervals.num_replicates} replicates over"
            f" {report.intervals.num_identities} identities, as far as the set tells them apart."
        )
    return [
        heading(name),
        paragraph(
            f"{result.num_pairs} pairs, {result.num_same} of them of one person{baseline}.{people}"
        ),
        figures(folder, {f"scores_{name}": (f"Scores of {name}", histogram)}),
        picture_pairs(
            "Hardest false matches: different people, most alike", _pairs(report.false_matches)
        ),
        picture_pairs(
            "Hardest false non-matches: one person, least alike", _pairs(report.false_non_matches)
        ),
    ]


def _pairs(pairs: Sequence[HardPair]) -> list[PicturePair]:
    return [
        PicturePair(
            f"pair {pair.number}, cosine {1 - pair.distance / 2:.3f}",
            _picture(f"pair {pair.number}, first image", pair.first),
            _picture(f"pair {pair.number}, second image", pair.second),
        )
        for pair in pairs
    ]


def _picture(label: str, payload: bytes) -> Picture:
    return read_picture(label, lambda: payload)
