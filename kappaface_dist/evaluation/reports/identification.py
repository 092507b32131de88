"""The report on an identification test: report.html, plots/*.png, table.md, table.tex."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kappaface_dist.data.images import decode_picture
from kappaface_dist.evaluation.one_to_many.faces import FaceHit, IdentificationResult
from kappaface_dist.evaluation.reports.page import (
    PICTURE_SIZE,
    Picture,
    PicturePair,
    read_picture,
    write_figures,
    write_page,
)
from kappaface_dist.evaluation.reports.plots import histogram_figure
from kappaface_dist.evaluation.reports.search_section import (
    Searched,
    missing_rates,
    rank_table,
    search_figures,
    searched_scores,
)
from kappaface_dist.text_files import shown

COMMENT = "percent; brackets: 95 % bootstrap interval over the probes' identities"


def write_identification_report(
    folder: Path,
    result: IdentificationResult,
    *,
    name: str,
    title: str,
    facts: Mapping[str, str],
    config: Mapping[str, Any] | None,
) -> Path:
    """Write the report into folder; returns the page.

    Args:
        name: of the row in the table.
        facts: what was run: model, hash, lists; the versions are added.
        config: the run's configuration, where it is known.
    """
    outcome = result.outcome
    drawn = search_figures({name: Searched(outcome, result.intervals, result.num_entries)})
    scores = searched_scores(outcome.mate_E, result.other_Q)
    if any(map(len, scores.values())):
        drawn["scores"] = ("Scores", histogram_figure(scores, "Scores"))
    return write_page(
        folder,
        "identification.html",
        title=title,
        facts=facts,
        config=config,
        tables={"": rank_table("test", {name: result.summary})},
        comment=COMMENT,
        result=result,
        missing=missing_rates({name: result.summary}),
        drawn=write_figures(folder, drawn),
        wrong=[_pair(hit, ranked=False) for hit in result.wrong],
        lost=[_pair(hit, ranked=True) for hit in result.lost],
    )


def _pair(found: FaceHit, *, ranked: bool) -> PicturePair:
    names = [shown(found.probe_name or "probe"), shown(found.entry_name or "distractor")]
    rank = f"rank {found.hit.rank}, " if ranked else ""
    return PicturePair(
        (names[0] if names[0] == names[1] else f"{names[0]} – {names[1]}")
        + f"\n{rank}cosine {found.hit.score:.3f}",
        _picture(found.probe),
        _picture(found.entry),
    )


def _picture(path: Path) -> Picture:
    return read_picture(str(path), lambda: decode_picture(path.read_bytes(), PICTURE_SIZE))
