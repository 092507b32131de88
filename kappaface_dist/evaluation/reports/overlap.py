"""The report on a search for overlapping people: report.html with pictures to look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kappaface_dist.evaluation.overlap.matches import Match, Overlap
from kappaface_dist.evaluation.overlap.people import People
from kappaface_dist.evaluation.reports.page import (
    PicturePair,
    read_picture,
    write_figures,
    write_page,
)
from kappaface_dist.evaluation.reports.pair_set import SetReport
from kappaface_dist.evaluation.reports.pair_tables import paper_table
from kappaface_dist.evaluation.reports.pairs import write_html_report
from kappaface_dist.evaluation.reports.plots import histogram_figure
from kappaface_dist.evaluation.reports.table_formats import Table
from kappaface_dist.text_files import shown

MOST_PICTURES = 96

# Of the first set: with 550 (made-up people) the claims hold; of 28 (ORL's) they did not.
FEWEST_PEOPLE = 550


def overlap_summary(first: People, second: People | None, found: Overlap) -> dict[str, int]:
    """How many people and images are concerned."""
    other = second or first
    first_people = {match.first for match in found.matches}
    second_people = {match.second for match in found.matches}
    if second is None:
        first_people = second_people = first_people | second_people
    return {
        "matches": len(found.matches),
        "first_people": len(first.label_P),
        "first_overlapping": len(first_people),
        "first_overlapping_images": int(first.num_images_P[sorted(first_people)].sum()),
        "second_people": len(other.label_P),
        "second_overlapping": len(second_people),
        "second_overlapping_images": int(other.num_images_P[sorted(second_people)].sum()),
    }


def overlap_sentence(counts: Mapping[str, int], alone: bool) -> str:
    """The result in one sentence, with what speaks against it."""
    doubt = ""
    if counts["matches"] and counts["first_people"] < FEWEST_PEOPLE:
        doubt = (
            f"; {counts['first_people']} classes are too few to know how near strangers come"
            f" ({FEWEST_PEOPLE} were tried): believe no claim whose pictures you have not seen"
        )
    if alone:
        return (
            f"{counts['first_overlapping']} of {counts['first_people']} classes are the same person"
            f" as another one ({counts['matches']} pairs of classes){doubt}"
        )
    if not counts["matches"]:
        people = counts["second_people"]
        return f"nobody of the test set's {people} people is found in the training set"
    share = counts["second_overlapping"] / counts["second_people"]
    return (
        f"{counts['second_overlapping']} of the test set's {counts['second_people']} people"
        f" ({share:.1%}) are in the training set, as {counts['first_overlapping']} of its"
        f" {counts['first_people']} classes{doubt}"
    )


def write_overlap_report(
    folder: Path,
    first: People,
    second: People | None,
    found: Overlap,
    reports: Mapping[str, SetReport],
    *,
    false_share: float,
    title: str,
    facts: Mapping[str, str],
    config: Mapping[str, Any] | None,
) -> Path:
    """Write report.html, and verification/report.html where there are reports; returns the page.

    Args:
        reports: of verify_with_and_without().
        false_share: as in find_overlap().
        facts: what was run: model, hash, sets; the versions are added.
        config: the run's configuration, where it is known.
    """
    counts = overlap_summary(first, second, found)
    sentence = overlap_sentence(counts, second is None)
    rows = [["first set" if second is None else "training set", *_cells(counts, "first")]]
    if second is not None:
        rows.append(["test set", *_cells(counts, "second")])
    header = ["", "people", "overlapping", "share, percent", "images of those"]
    claimed_Q = np.isin(found.searched_Q, [match.second for match in found.matches])
    scores = {"not claimed": found.best_Q[~claimed_Q], "claimed": found.best_Q[claimed_Q]}
    caption = "Cosine of each person's nearest"
    if reports:
        write_html_report(folder / "verification", reports, title=title, facts=facts, config=config)
    surest = list(reversed(found.matches))[:MOST_PICTURES]
    return write_page(
        folder,
        "overlap.html",
        title=title,
        facts=facts,
        config=config,
        tables={"": Table(header, rows)},
        comment="people of one set who are in the other",
        sentence=sentence[0].upper() + sentence[1:] + ".",
        false_share=false_share,
        found=found,
        drawn=write_figures(folder, {"nearest": (caption, histogram_figure(scores, caption))}),
        claimed=_pictures(surest, first, second or first),
        near=_pictures(found.near, first, second or first),
        verification={"": paper_table(reports)} if reports else {},
        has_intervals=any(report.intervals is not None for report in reports.values()),
    )


def _cells(counts: Mapping[str, int], side: str) -> list[str]:
    people, overlapping = counts[f"{side}_people"], counts[f"{side}_overlapping"]
    images = counts[f"{side}_overlapping_images"]
    return [str(people), str(overlapping), f"{100 * overlapping / people:.2f}", str(images)]


def _pictures(matches: Sequence[Match], first: People, second: People) -> list[PicturePair]:
    return [
        PicturePair(
            f"{shown(first.name(match.first))} – {shown(second.name(match.second))}\n"
            f"cosine {match.cosine:.3f}, chance {match.chance:.1e}, nearest for"
            f" {match.image_share:.0%} of the images",
            read_picture(
                first.where(match.first_image),
                lambda i=match.first_image: first.read(i),  # type: ignore[misc]
            ),
            read_picture(
                second.where(match.second_image),
                lambda i=match.second_image: second.read(i),  # type: ignore[misc]
            ),
        )
        for match in matches
    ]
