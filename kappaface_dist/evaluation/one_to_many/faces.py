"""Identification of single images as TinyFace and MegaFace do it, from lists to numbers.

Shapes: Q probes, N entries of the gallery and its distractors, D embedding size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kappaface_dist.evaluation.one_to_many.bootstrap import (
    IdentificationIntervals,
    intervals,
    replicate,
)
from kappaface_dist.evaluation.one_to_many.distractors import search_distractors
from kappaface_dist.evaluation.one_to_many.hardest import (
    Hit,
    lost_among_distractors,
    lost_mates,
    wrong_distractors,
    wrong_hits,
)
from kappaface_dist.evaluation.one_to_many.identification import SearchOutcome, closed_set
from kappaface_dist.evaluation.one_to_many.search import search
from kappaface_dist.evaluation.resampling import NUM_REPLICATES
from kappaface_dist.evaluation.sets.face_lists import FaceList


@dataclass(frozen=True)
class FaceHit:
    """A probe and what was found, as files and names; a distractor has no name."""

    probe: Path
    probe_name: str | None
    entry: Path
    entry_name: str | None
    hit: Hit


@dataclass(frozen=True)
class IdentificationResult:
    """What a test says about a model.

    Attributes:
        summary: the numbers, ready for JSON.
        other_Q: score of each probe's best entry of another person; -inf where it had none.
        num_entries: that a probe's mate was looked for among.
        wrong, lost: see hardest.py.
    """

    summary: dict[str, Any]
    outcome: SearchOutcome
    intervals: IdentificationIntervals | None
    other_Q: np.ndarray
    num_entries: int
    wrong: list[FaceHit]
    lost: list[FaceHit]


def identify_faces(
    lists: Mapping[str, FaceList],
    embedded: Mapping[str, np.ndarray],
    *,
    device: torch.device | str = "cpu",
    num_replicates: int = NUM_REPLICATES,
) -> IdentificationResult:
    """All numbers of the protocol that the lists make up.

    Args:
        lists: "probes", and "gallery" or "distractors" or both; without a gallery each pair of one
            person's probes is searched among the distractors (MegaFace).
        embedded: unit embeddings of each list.
        num_replicates: of the bootstrap over the probes' people; 0 for no intervals.
    """
    names = [name for faces in lists.values() for name in faces.names if name is not None]
    number_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
    identities = {
        kind: np.array([-1 if name is None else number_of[name] for name in faces.names])
        for kind, faces in lists.items()
    }
    probes = lists["probes"]
    identity_Q = np.unique(identities["probes"], return_inverse=True)[1]
    if "gallery" in lists:
        kinds = [kind for kind in ("gallery", "distractors") if kind in lists]
        entries = _together([lists[kind] for kind in kinds])
        found = search(
            embedded["probes"],
            identities["probes"],
            np.concatenate([embedded[kind] for kind in kinds]),
            np.concatenate([identities[kind] for kind in kinds]),
            device=device,
        )
        outcome, other_Q = closed_set(found, identity_Q), found.other_Q
        numbers = {"searches": len(found.rank_Q), **outcome.numbers()}
        protocol, num_entries = f"probes in {' and '.join(kinds)}", len(entries.paths)
        wrong = _face_hits(probes, entries, wrong_hits(found))
        lost = _face_hits(probes, entries, lost_mates(found))
    else:
        among = search_distractors(
            embedded["probes"], identities["probes"], embedded["distractors"], device=device
        )
        nobody = np.zeros(0, dtype=np.int64)
        outcome = SearchOutcome(
            among.rank_E, among.score_E, identity_Q[among.probe_E], np.zeros(0), nobody, "none"
        )
        other_Q = among.other_Q
        numbers = {"searches": len(among.rank_E), "rank": outcome.numbers()["rank"]}
        protocol = "each pair of one person's images among the distractors"
        num_entries = len(lists["distractors"].paths) + 1
        wrong = _face_hits(probes, lists["distractors"], wrong_distractors(among))
        lost = _face_hits(probes, probes, lost_among_distractors(among))
    resampled = replicate(outcome, int(identity_Q.max()) + 1, num_replicates=num_replicates)
    bounds = intervals(resampled)
    summary = {
        "protocol": protocol,
        **numbers,
        "intervals": None if bounds is None else bounds.summary(),
    }
    if "tpir_at_fpir" not in numbers and bounds is not None:
        del summary["intervals"]["tpir_at_fpir"]
    return IdentificationResult(summary, outcome, bounds, other_Q, num_entries, wrong, lost)


def _together(lists: list[FaceList]) -> FaceList:
    return FaceList(
        [path for faces in lists for path in faces.paths],
        [name for faces in lists for name in faces.names],
    )


def _face_hits(probes: FaceList, entries: FaceList, hits: list[Hit]) -> list[FaceHit]:
    return [
        FaceHit(
            probes.paths[hit.query],
            probes.names[hit.query],
            entries.paths[hit.entry],
            entries.names[hit.entry],
            hit,
        )
        for hit in hits
    ]
