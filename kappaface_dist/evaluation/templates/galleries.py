"""1:N of a template benchmark: probes searched in each gallery, and in all as one.

Shapes: T templates, D embedding size, Q probes, N entries of a gallery.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kappaface_dist.evaluation.one_to_many.bootstrap import (
    IdentificationIntervals,
    intervals,
    mean_replicates,
    replicate,
)
from kappaface_dist.evaluation.one_to_many.identification import SearchOutcome, closed_set, open_set
from kappaface_dist.evaluation.one_to_many.search import Search, search
from kappaface_dist.evaluation.sets.template_lists import TemplateList

JOINED = "joined"


@dataclass(frozen=True)
class GalleryResult:
    """What came of the search in one gallery, whose entries are gallery.template_T."""

    gallery: TemplateList
    found: Search
    outcome: SearchOutcome
    intervals: IdentificationIntervals | None


def search_galleries(
    number_T: np.ndarray,
    embedding_TD: np.ndarray,
    galleries: dict[str, TemplateList],
    probes: TemplateList,
    *,
    device: torch.device | str,
    num_replicates: int,
) -> tuple[dict[str, GalleryResult], dict[str, Any]]:
    """The result of each gallery and of JOINED, and the numbers of these and of their average.

    Args:
        number_T: numbers of the templates, ascending.
        num_replicates: of the intervals over the probes' people; 0 for none.
    """
    identity_Q = np.unique(probes.subject_T, return_inverse=True)[1]
    num_identities = int(identity_Q.max()) + 1
    places = {
        **galleries,
        JOINED: TemplateList(
            np.concatenate([gallery.template_T for gallery in galleries.values()]),
            np.concatenate([gallery.subject_T for gallery in galleries.values()]),
        ),
    }

    def embeddings(templates: TemplateList) -> np.ndarray:
        return embedding_TD[np.searchsorted(number_T, templates.template_T)]

    query_QD = embeddings(probes)
    results, numbers, replicates = {}, {}, []
    for name, gallery in places.items():
        found = search(
            query_QD, probes.subject_T, embeddings(gallery), gallery.subject_T, device=device
        )
        outcome = (closed_set if name == JOINED else open_set)(found, identity_Q)
        resampled = replicate(outcome, num_identities, num_replicates=num_replicates)
        results[name] = GalleryResult(gallery, found, outcome, intervals(resampled))
        numbers[name] = outcome.numbers() | _summary(results[name].intervals)
        if name != JOINED:
            replicates.append(resampled)
    average = {
        key: {
            name: _mean([numbers[gallery][key][name] for gallery in galleries])
            for name in numbers[JOINED][key]
        }
        for key in ("rank", "tpir_at_fpir")
    }
    average |= _summary(intervals(mean_replicates(replicates)))
    joined = numbers.pop(JOINED)
    return results, {**numbers, "average": average, JOINED: joined}


def _summary(found: IdentificationIntervals | None) -> dict[str, Any]:
    return {"intervals": None if found is None else found.summary()}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
