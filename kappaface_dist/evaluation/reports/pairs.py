"""The report on sets of pairs: report.html, plots/*.png, table.md, table.tex."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kappaface_dist.evaluation.reports.group_section import (
    group_note,
    group_table,
    reject_figure,
)
from kappaface_dist.evaluation.reports.page import (
    Picture,
    PicturePair,
    read_picture,
    write_figures,
    write_page,
)
from kappaface_dist.evaluation.reports.pair_set import HardPair, SetReport
from kappaface_dist.evaluation.reports.pair_tables import paper_table, threshold_table
from kappaface_dist.evaluation.reports.plots import det_figure, histogram_figure, roc_figure
from kappaface_dist.text_files import shown

COMMENT = "percent"
COMMENT_ON_INTERVALS = "percent; brackets: 95 % bootstrap interval over identities"


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
    curves = {name: r.result.roc for name, r in reports.items() if r.result.roc is not None}
    bands = {name: r.intervals.band for name, r in reports.items() if r.intervals is not None}
    drawn = {
        "roc": ("ROC of all sets", roc_figure(curves, "ROC", bands)),
        "det": ("Error trade-off (DET) of all sets", det_figure(curves, "DET", bands)),
    }
    sets = {f"set {name}": f"{r.path}, SHA-256 {r.sha256}" for name, r in reports.items()}
    thresholds = threshold_table(reports)
    rejected = {name: r.rejects for name, r in reports.items() if r.rejects is not None}
    rejects = {}
    if rejected:
        caption = "Error against the share of rejected low-quality images"
        rejects = {"rejects": (caption, reject_figure(rejected))}
    return write_page(
        folder,
        "pairs.html",
        title=title,
        facts={**facts, **sets},
        config=config,
        tables={"": paper_table(reports)},
        comment=COMMENT_ON_INTERVALS if bands else COMMENT,
        reports=reports,
        curves=write_figures(folder, drawn) if curves else [],
        thresholds={} if thresholds is None else {"Thresholds": thresholds},
        groups={
            name: (group_table(r.groups), group_note(r.groups))
            for name, r in reports.items()
            if r.groups is not None
        },
        rejects=write_figures(folder, rejects),
        has_bands=bool(bands),
        scores={name: write_figures(folder, _histogram(name, r)) for name, r in reports.items()},
        false_matches={name: _pairs(r.false_matches) for name, r in reports.items()},
        false_non_matches={name: _pairs(r.false_non_matches) for name, r in reports.items()},
    )


def _histogram(name: str, report: SetReport) -> dict[str, tuple[str, Figure]]:
    cosine_P, same_P = 1 - report.result.distance_P / 2, report.same_P
    scores = {"different": cosine_P[~same_P], "same": cosine_P[same_P]}
    title = f"Scores of {name}"
    thresholds = {
        f"FAR {rate}": cosine
        for rate, cosine in report.result.threshold_at_far.items()
        if cosine is not None
    }
    return {f"scores_{name}": (title, histogram_figure(scores, title, thresholds))}


def _pairs(pairs: Sequence[HardPair]) -> list[PicturePair]:
    return [
        PicturePair(
            f"{_people(pair)}pair {pair.number}, cosine {1 - pair.distance / 2:.3f}",
            _picture(f"pair {pair.number}, first image", pair.first),
            _picture(f"pair {pair.number}, second image", pair.second),
        )
        for pair in pairs
    ]


def _people(pair: HardPair) -> str:
    if pair.names is None:
        return ""
    return " – ".join(map(shown, dict.fromkeys(pair.names))) + "\n"


def _picture(label: str, payload: bytes) -> Picture:
    return read_picture(label, lambda: payload)
