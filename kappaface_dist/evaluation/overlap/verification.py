"""1:1 verification with the people who are in the training set, too, and without them.

Shapes: P pairs.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from kappaface_dist.evaluation.embedding.store import StoredEmbeddings
from kappaface_dist.evaluation.one_to_one.pairs import score_pairs
from kappaface_dist.evaluation.overlap.people import People
from kappaface_dist.evaluation.reports.pair_set import SetReport, describe_set
from kappaface_dist.evaluation.sets.pair_file import PairFile
from kappaface_dist.evaluation.sets.pair_names import PairNames


def verify_with_and_without(
    path: Path,
    people: People,
    stored: StoredEmbeddings,
    overlapping: Collection[int],
    *,
    num_replicates: int,
) -> dict[str, SetReport]:
    """Reports "all people" and "without N people": pairs with one of those are left out.

    Only the first where no pair is left, or none is left out.

    Args:
        people: of a verification set; stored: all of its images.
        overlapping: positions in people.label_P.
        num_replicates: of the bootstrap; 0 for no intervals.

    Raises:
        ValueError: an embedding is not finite.
    """
    pairs, identity_P2 = people.pairs, people.identity_P2
    assert pairs is not None
    assert identity_P2 is not None
    place_of = {payload: place for place, payload in enumerate(dict.fromkeys(pairs.payloads))}
    image_P2 = np.array([place_of[payload] for payload in pairs.payloads]).reshape(-1, 2)
    row_ID = np.concatenate([rows for _, rows in stored.parts()]).astype(np.float64)
    length_I = np.linalg.norm(row_ID, axis=1)
    row_ID /= np.maximum(length_I, 1e-12)[:, None]
    difference_PD = row_ID[image_P2[:, 0]] - row_ID[image_P2[:, 1]]
    distance_P = np.square(difference_PD).sum(axis=1)
    length_P2 = length_I[image_P2]

    def report(kept_P: np.ndarray) -> SetReport:
        part = _part(pairs, identity_P2, kept_P)
        result = score_pairs(distance_P[kept_P], part.same_P, length_P2[kept_P])
        return describe_set(path, part, result, pixels=None, num_replicates=num_replicates)

    stranger_P2 = np.isin(identity_P2, list(overlapping), invert=True)
    kept_P = np.logical_and.reduce(stranger_P2, axis=1)
    reports = {"all people": report(np.ones(len(kept_P), dtype=bool))}
    if kept_P.any() and not kept_P.all():
        reports[f"without {len(set(overlapping))} people"] = report(kept_P)
    return reports


def _part(pairs: PairFile, identity_P2: np.ndarray, kept_P: np.ndarray) -> PairFile:
    """Some of the pairs, their people numbered anew."""
    numbers = np.flatnonzero(kept_P)
    payloads = [pairs.payloads[2 * i + side] for i in numbers.tolist() for side in (0, 1)]
    names = None
    if pairs.names is not None:
        used, identity_K2 = np.unique(identity_P2[kept_P], return_inverse=True)
        known = [pairs.names.names[identity] for identity in used.tolist()]
        names = PairNames(known, identity_K2.reshape(-1, 2))
    return PairFile(payloads, pairs.same_P[kept_P], names)
