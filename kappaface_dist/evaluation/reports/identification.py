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
    figures,
    heading,
    paragraph,
    picture_pairs,
    read_picture,
    write_page,
    write_tables,
)
from kappaface_dist.evaluation.reports.plots import histogram_figure
from kappaface_dist.evaluation.reports.search_section import (
    Searched,
    missing_rates,
    rank_table,
    search_figures,
    searched_scores,
)

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
    outcome, bounds = result.outcome, result.intervals
    brackets, people = "Percent. ", ""
    if bounds is not None:
        brackets = "Percent; brackets are 95 % bootstrap intervals over the probes' identities. "
        people = (
            f" Shaded: 95 % intervals, {bounds.num_replicates} replicates over"
            f" {bounds.num_people} identities of probes; the gallery stays as it is."
        )
    parts = [
        paragraph(f"{brackets}Tables for papers: table.md, table.tex."),
        write_tables(folder, {"": rank_table("test", {name: result.summary})}, COMMENT),
        paragraph(missing_rates({name: result.summary}), note=True),
        heading("Searches"),
        paragraph(
            f"Protocol: {result.summary['protocol']}. {len(result.other_Q)} probes,"
            f" {len(outcome.rank_E)} searches for a mate, each among {result.num_entries}"
            f" entries.{people}"
        ),
    ]
    drawn = search_figures({name: Searched(outcome, bounds, result.num_entries)})
    scores = searched_scores(outcome.mate_E, result.other_Q)
    if any(map(len, scores.values())):
        drawn["scores"] = ("Scores", histogram_figure(scores, "Scores"))
    if not len(outcome.rank_E):
        parts.append(
            paragraph("No probe has a mate: there is no rank to measure, nor a curve.", note=True)
        )
    parts += [
        figures(folder, drawn) if drawn else "",
        picture_pairs(
            "Hardest wrong hits: another person or a distractor is most alike",
            [_pair(hit, ranked=False) for hit in result.wrong],
            "None: every probe's best entry is its mate." if len(outcome.rank_E) else "",
        ),
        picture_pairs(
            "Hardest mates: furthest down the list, then least alike",
            [_pair(hit, ranked=True) for hit in result.lost],
        ),
    ]
    return write_page(folder, parts, title=title, facts=facts, config=config)


def _pair(found: FaceHit, *, ranked: bool) -> PicturePair:
    names = [found.probe_name or "probe", found.entry_name or "distractor"]
    rank = f"rank {found.hit.rank}, " if ranked else ""
    return PicturePair(
        (names[0] if names[0] == names[1] else f"{names[0]} – {names[1]}")
        + f"\n{rank}cosine {found.hit.score:.3f}",
        _picture(found.probe),
        _picture(found.entry),
    )


def _picture(path: Path) -> Picture:
    return read_picture(str(path), lambda: decode_picture(path.read_bytes(), PICTURE_SIZE))
