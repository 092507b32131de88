"""The report on a template benchmark: report.html, plots/*.png, table.md, table.tex."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kappaface_dist.data.align import align_face
from kappaface_dist.data.images import decode_picture
from kappaface_dist.evaluation.one_to_many.hardest import Hit, hardest_pairs, lost_mates, wrong_hits
from kappaface_dist.evaluation.reports.page import (
    Picture,
    PicturePair,
    read_picture,
    write_figures,
    write_page,
)
from kappaface_dist.evaluation.reports.plots import det_figure, histogram_figure, roc_figure
from kappaface_dist.evaluation.reports.search_section import (
    Searched,
    missing_rates,
    rank_table,
    search_figures,
    searched_scores,
)
from kappaface_dist.evaluation.reports.table_formats import Table, with_interval
from kappaface_dist.evaluation.sets.template_lists import TemplateSet
from kappaface_dist.evaluation.templates.benchmark import TemplateResult
from kappaface_dist.evaluation.templates.galleries import JOINED

COMMENT = "percent; brackets: 95 % bootstrap interval over subjects"
PICTURE_SIZE = 112


def write_template_report(
    folder: Path,
    result: TemplateResult,
    templates: TemplateSet,
    *,
    title: str,
    facts: Mapping[str, str],
    config: Mapping[str, Any] | None,
) -> Path:
    """Write the report into folder; returns the page.

    Args:
        facts: what was run: model, hash, settings; the versions are added.
        config: the run's configuration, where it is known.
    """
    one_to_one = result.summary["1:1"]
    tables = {"1:1": _pair_table(templates.name, one_to_one)}
    if result.galleries:
        tables["1:N"] = rank_table("gallery", result.summary["1:N"])
    bounds = [result.intervals, *(each.intervals for each in result.galleries.values())]
    return write_page(
        folder,
        "templates.html",
        title=title,
        facts=facts,
        config=config,
        tables=tables,
        comment=COMMENT,
        result=result,
        has_intervals=any(bounds),
        pair_note=_sentence(one_to_one.get("note", "")),
        missing=missing_rates(result.summary.get("1:N", {})),
        **_pair_section(folder, result, templates),
        **_search_section(folder, result, templates),
    )


def _pair_table(name: str, numbers: Mapping[str, Any]) -> Table:
    if "auc" not in numbers:
        return Table(["set", "pairs", "same"], [[name, *_counts(numbers)]])
    rates = {rate: tar for rate, tar in numbers["tar_at_far"].items() if tar is not None}
    bounds = numbers["intervals"] or {"tar_at_far": {}}
    cells = [with_interval(numbers[key], bounds.get(key)) for key in ("auc", "eer")]
    cells += [with_interval(tar, bounds["tar_at_far"].get(rate)) for rate, tar in rates.items()]
    header = ["set", "pairs", "same", "AUC", "EER", *(f"TAR@{rate}" for rate in rates)]
    return Table(header, [[name, *_counts(numbers), *cells]])


def _counts(numbers: Mapping[str, Any]) -> list[str]:
    return [str(numbers["pairs"]), str(numbers["same_pairs"])]


def _pair_section(folder: Path, result: TemplateResult, templates: TemplateSet) -> dict[str, Any]:
    cosine_P, same_P = result.cosine_P, templates.same_P
    name, intervals = templates.name, result.intervals
    drawn = {}
    if result.curve is not None:
        curves = {name: result.curve}
        bands = {} if intervals is None else {name: intervals.band}
        drawn["roc"] = ("ROC of 1:1", roc_figure(curves, "ROC of 1:1", bands))
        drawn["det"] = ("Error trade-off of 1:1", det_figure(curves, "DET of 1:1", bands))
    scores = {"different": cosine_P[~same_P], "same": cosine_P[same_P]}
    drawn["scores"] = ("Scores of 1:1", histogram_figure(scores, "Scores of 1:1"))
    picture = _template_pictures(templates)

    def pairs(numbers: list[int]) -> list[PicturePair]:
        return [
            PicturePair(
                f"templates {first} and {second}\ncosine {cosine_P[number]:.3f}",
                picture(first),
                picture(second),
            )
            for number in numbers
            for first, second in [templates.pair_P2[number].tolist()]
        ]

    false_matches, false_non_matches = hardest_pairs(cosine_P, same_P)
    return {
        "pair_figures": write_figures(folder, drawn),
        "false_matches": pairs(false_matches),
        "false_non_matches": pairs(false_non_matches),
    }


def _search_section(folder: Path, result: TemplateResult, templates: TemplateSet) -> dict[str, Any]:
    if not result.galleries or templates.probes is None:
        return {"searched": {}}
    probe_Q = templates.probes.template_T
    searched = {
        name: Searched(each.outcome, each.intervals, len(each.gallery.template_T))
        for name, each in result.galleries.items()
    }
    everyone = result.galleries[JOINED]
    drawn = search_figures(searched)
    scores = searched_scores(everyone.outcome.mate_E, everyone.found.other_Q)
    drawn["identification_scores"] = (
        "Scores of 1:N, all galleries as one",
        histogram_figure(scores, "Scores of 1:N, all galleries as one"),
    )
    picture = _template_pictures(templates)

    def pairs(hits: list[Hit], *, ranked: bool) -> list[PicturePair]:
        return [
            PicturePair(
                f"probe {probe}, gallery {entry}\n"
                + (f"rank {hit.rank}, " if ranked else "")
                + f"cosine {hit.score:.3f}",
                picture(probe),
                picture(entry),
            )
            for hit in hits
            for probe, entry in [
                (int(probe_Q[hit.query]), int(everyone.gallery.template_T[hit.entry]))
            ]
        ]

    return {
        "searched": searched,
        "num_probes": len(probe_Q),
        "search_figures": write_figures(folder, drawn),
        "wrong": pairs(wrong_hits(everyone.found), ranked=False),
        "lost": pairs(lost_mates(everyone.found), ranked=True),
    }


def _template_pictures(templates: TemplateSet) -> Callable[[int], Picture]:
    """Makes a template's picture: of its images the one with the highest score of the detector."""

    def picture(template: int) -> Picture:
        images = np.flatnonzero(templates.template_I == template)
        best = int(images[templates.score_I[images].argmax()])
        name = templates.image_names[best]

        def read() -> np.ndarray:
            pixels_HW3 = decode_picture((templates.folder / name).read_bytes())
            return align_face(pixels_HW3, templates.points_I52[best], PICTURE_SIZE)

        return read_picture(f"template {template}, {name}, one of {len(images)}", read)

    return picture


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
