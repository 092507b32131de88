"""Which labels of a dataset are probably wrong, by the embeddings of its images.

Two kinds of fault are judged by a number that is low where something is wrong, and by two kinds of
numbers (`mixture.py`); where there is only one kind, or the low one is not where a fault would be,
nothing is found:

- an image sits in another class: the cosine with the mean of the other images of its class, less
  that with the nearest other class's;
- a class is two people: its images in two parts, as far apart as can be; the cosine of their means.

That two classes are one person is claimed as `overlap/claims.py` does: where their means are nearer
than strangers come.

Shapes: I images, C classes, D embedding size.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from kappaface_dist.evaluation.one_to_many.nearest import nearest_entries
from kappaface_dist.evaluation.one_to_many.search import search
from kappaface_dist.evaluation.overlap.claims import (
    FEWEST,
    NUM_NEAREST,
    Strangers,
    claim,
    each_once,
    false_shares,
)
from kappaface_dist.mixture import fit_mixture

PROBABLE = 0.5
FALSE_SHARE = 0.05  # the largest expected one among the pairs of classes that are one person
# A part of a class that is another person has so many images, and so large a share of them.
SMALLEST_PART, SMALLEST_SHARE = 2, 0.2
NUM_SPLITS = 10  # steps of the division into two parts, which ends much earlier


@dataclass(frozen=True)
class LabelNoise:
    """What is probably wrong.

    Attributes:
        wrong_I: probability that the image is not of its class; NaN where it cannot be judged.
        own_I, other_I, nearest_I: cosine with the mean of its class's other images, the largest
            with another class's mean, and which class that is.
        two_C: probability that the class is two people; NaN where it cannot be judged.
        second_I: for the images of a class, whether they belong to the second of its parts.
        one: (class, class, probability) of pairs that are probably one person.
        notes: what could not be judged, and how much of it.
    """

    wrong_I: np.ndarray
    own_I: np.ndarray
    other_I: np.ndarray
    nearest_I: np.ndarray
    two_C: np.ndarray
    second_I: np.ndarray
    one: list[tuple[int, int, float]]
    notes: list[str] = field(default_factory=list)


def find_label_noise(
    embedding_ID: np.ndarray, label_I: np.ndarray, device: torch.device | str = "cpu"
) -> LabelNoise:
    """Judge every image, every class, and every class with its nearest.

    Args:
        embedding_ID: unit embeddings, float32; rows of NaN for images that have none.
        label_I: classes, from 0 on.
        device: for the products of images and class means.
    """
    known_I = np.isfinite(embedding_ID).all(axis=1)
    notes = [f"{(~known_I).sum()} images have no embedding"] * bool((~known_I).any())
    wrong_I = np.zeros(len(label_I))
    # Once more with means that those who were found are not in.
    for _ in range(2):
        kept_I = known_I & ~(wrong_I >= PROBABLE)
        own_I, other_I, nearest_I = _cosines(embedding_ID, label_I, kept_I, known_I, device)
        wrong_I = _low_probability(own_I - other_I, below=0.0)
    alone = int((known_I & np.isnan(own_I)).sum())
    notes += [f"{alone} images have no other image of their class beside them"] * bool(alone)
    clean_I = known_I & ~(wrong_I >= PROBABLE)
    apart_C, second_I = _split_classes(embedding_ID, label_I, clean_I)
    small = int(np.isnan(apart_C).sum())
    notes += [f"{small} classes have too few images to be two people's"] * bool(small)
    mean_CD, has_C = _means(embedding_ID, label_I, clean_I)
    present_C = np.flatnonzero(has_C)
    unit_PD = mean_CD[present_C].astype(np.float32)
    one, close_P = _one_person(unit_PD, present_C, device)
    few = len(present_C) <= FEWEST
    notes += [f"{len(present_C)} classes are too few to tell which two are one person"] * few
    # Between what is usual for the parts of a person and for two people who look alike.
    parts_C = apart_C[np.isfinite(apart_C)]
    middle = (np.median(parts_C) + np.median(close_P)) / 2 if len(parts_C) and len(close_P) else 0.0
    two_C = _low_probability(apart_C, below=middle)
    return LabelNoise(wrong_I, own_I, other_I, nearest_I, two_C, second_I, one, notes)


def _one_person(
    unit_PD: np.ndarray, class_P: np.ndarray, device: torch.device | str
) -> tuple[list[tuple[int, int, float]], np.ndarray]:
    """(pairs of classes that are one person, the surest first; each class's cosine with its nearest
    other one).

    A pair's probability is 1 less the expected share of false ones among it and those surer.
    """
    if len(class_P) < 2:
        return [], np.zeros(0)
    num_nearest = min(NUM_NEAREST, len(class_P) - 1)
    score_PK, at_PK = nearest_entries(unit_PD, unit_PD, num_nearest, not_itself=True, device=device)
    if len(class_P) <= FEWEST:
        return [], score_PK[:, 0].astype(np.float64)
    strangers = Strangers(score_PK)
    claims = each_once(claim(score_PK, at_PK, strangers, FALSE_SHARE))
    pair_X2 = np.sort(class_P[np.stack([claims.query_X, claims.entry_X], axis=1)], axis=1)
    share_X = false_shares(claims.chance_X, strangers.chances(score_PK[:, 0]))
    one = [
        (int(first), int(second), 1 - float(share))
        for (first, second), share in zip(pair_X2, share_X, strict=True)
    ]
    return one, score_PK[:, 0].astype(np.float64)


def _low_probability(score_X: np.ndarray, below: float = np.inf) -> np.ndarray:
    """Of the low one of two kinds, whose mean must be below a bound; 0 for one kind alone."""
    mixture = fit_mixture(score_X)
    if mixture is None or mixture.mean[0] >= below:
        return np.where(np.isnan(score_X), np.nan, 0.0)
    return mixture.low_probability(score_X)


def _means(
    embedding_ID: np.ndarray, label_I: np.ndarray, used_I: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(unit means of the used images [C, D], whether a class has any [C])."""
    sum_CD = _sums(embedding_ID, label_I, used_I)
    length_C = np.linalg.norm(sum_CD, axis=1)
    return sum_CD / np.maximum(length_C, 1e-12)[:, None], length_C > 0


def _sums(embedding_ID: np.ndarray, label_I: np.ndarray, used_I: np.ndarray) -> np.ndarray:
    sum_CD = np.zeros((int(label_I.max()) + 1, embedding_ID.shape[1]))
    np.add.at(sum_CD, label_I[used_I], embedding_ID[used_I])
    return sum_CD


def _cosines(
    embedding_ID: np.ndarray,
    label_I: np.ndarray,
    used_I: np.ndarray,
    known_I: np.ndarray,
    device: torch.device | str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """own_I, other_I, nearest_I of `LabelNoise`, with means of the used images."""
    rest_ID = _sums(embedding_ID, label_I, used_I)[label_I]
    rest_ID[used_I] -= embedding_ID[used_I]
    length_I = np.linalg.norm(rest_ID, axis=1)
    own_I = np.full(len(label_I), np.nan)
    judged_I = known_I & (length_I > 1e-6)
    own_I[judged_I] = (rest_ID[judged_I] * embedding_ID[judged_I]).sum(axis=1) / length_I[judged_I]
    mean_CD, has_C = _means(embedding_ID, label_I, used_I)
    present_C = np.flatnonzero(has_C)
    found = search(
        embedding_ID[known_I],
        label_I[known_I].astype(np.int64),
        mean_CD[present_C].astype(np.float32),
        present_C,
        device=device,
    )
    other_I, nearest_I = np.full(len(label_I), np.nan), np.full(len(label_I), -1)
    other_I[known_I] = np.where(np.isfinite(found.other_Q), found.other_Q, np.nan)
    nearest_I[known_I] = np.where(found.other_at_Q < 0, -1, present_C[found.other_at_Q])
    return own_I, other_I, nearest_I


def _split_classes(
    embedding_ID: np.ndarray, label_I: np.ndarray, used_I: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(cosine of the means of a class's two parts [C], who is in the second part [I])."""
    apart_C = np.full(int(label_I.max()) + 1, np.nan)
    second_I = np.zeros(len(label_I), dtype=bool)
    order = np.flatnonzero(used_I)
    order = order[np.argsort(label_I[order], kind="stable")]
    starts = np.flatnonzero(np.diff(label_I[order], prepend=-1))
    for index_X in np.split(order, starts[1:]) if len(order) else []:
        if len(index_X) < 2 * SMALLEST_PART:
            continue
        second_X, cosine = _two_parts(embedding_ID[index_X].astype(np.float64))
        label = label_I[index_X[0]]
        smaller = min(second_X.sum(), (~second_X).sum())
        if smaller < max(SMALLEST_PART, SMALLEST_SHARE * len(index_X)):
            cosine = np.inf  # a stray image or two, not a person: nothing to compare
        apart_C[label], second_I[index_X] = cosine, second_X
    return apart_C, second_I


def _two_parts(embedding_XD: np.ndarray) -> tuple[np.ndarray, float]:
    """(who is in the second of two parts, cosine of the parts' means): 2-means on the sphere, from
    the direction of the largest spread.
    """
    centred_XD = embedding_XD - embedding_XD.mean(axis=0)
    direction_D = np.linalg.svd(centred_XD, full_matrices=False)[2][0]
    second_X = centred_XD @ direction_D > 0
    for _ in range(NUM_SPLITS):
        if second_X.all() or not second_X.any():
            return second_X, np.inf
        sum_2D = np.stack([embedding_XD[~second_X].sum(axis=0), embedding_XD[second_X].sum(axis=0)])
        unit_2D = sum_2D / np.maximum(np.linalg.norm(sum_2D, axis=1, keepdims=True), 1e-12)
        nearer_X = embedding_XD @ (unit_2D[1] - unit_2D[0]) > 0
        if (nearer_X == second_X).all():
            break
        second_X = nearer_X
    return second_X, float(unit_2D[0] @ unit_2D[1])
