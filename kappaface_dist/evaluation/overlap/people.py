"""The people of a set and their images, whatever kind of set it is, and their mean embeddings.

Shapes: I images that are looked at, P people, D embedding size, X images that are asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kappaface_dist.data.sources.catalog import open_catalog
from kappaface_dist.evaluation.embedding.files import unit_parts
from kappaface_dist.evaluation.embedding.store import StoredEmbeddings
from kappaface_dist.evaluation.one_to_one.bootstrap import pair_identities
from kappaface_dist.evaluation.sets.pair_file import PairFile, read_pairs


@dataclass(frozen=True)
class People:
    """The people of a set.

    Attributes:
        label_P: what the set calls each: the class of a dataset, the identity's number of a .bin.
        name_P: their names, where the set knows them.
        person_I: of each image that is looked at, as a position in label_P.
        read: the encoded bytes of image i; ValueError or OSError if they cannot be had.
        where: how a message names it.
        num_images_P: of each person in the whole set.
        pairs: the verification set, where it is one; its identities are guessed without names.
        identity_P2: the people of its pairs, as positions in label_P.
    """

    label_P: np.ndarray
    name_P: Sequence[str] | None
    person_I: np.ndarray
    read: Callable[[int], bytes]
    where: Callable[[int], str]
    num_images_P: np.ndarray
    pairs: PairFile | None = None
    identity_P2: np.ndarray | None = None

    def name(self, person: int) -> str:
        """A person's name, or what the set calls him."""
        if self.name_P is None:
            return f"{'identity' if self.pairs else 'class'} {self.label_P[person]}"
        return self.name_P[person]


def open_people(place: str | Path, images_each: int) -> People:
    """The people of a dataset, or of a verification set (.bin).

    Args:
        images_each: of each class of a dataset so many images are looked at, spread evenly over
            those that it has; of a verification set all are.

    Raises:
        ValueError: there is no such set, or it is damaged.
    """
    if Path(place).suffix == ".bin":
        return _of_pairs(Path(place))
    catalog = open_catalog(str(place))
    label_P, person_I = np.unique(catalog.label_I, return_inverse=True)
    chosen = spread_choice(person_I, images_each)
    names = catalog.class_names
    return People(
        label_P=label_P,
        name_P=None if names is None else [names[label] for label in label_P.tolist()],
        person_I=person_I[chosen],
        read=lambda i: catalog.read(int(chosen[i])),
        where=lambda i: catalog.where(int(chosen[i])),
        num_images_P=np.bincount(person_I),
    )


def spread_choice(person_I: np.ndarray, most: int) -> np.ndarray:
    """Numbers of at most so many images of each person, spread evenly over that person's images."""
    order_I = np.argsort(person_I, kind="stable")
    count_P = np.bincount(person_I)
    first_P = np.concatenate([[0], np.cumsum(count_P)[:-1]])
    place_I = np.arange(len(person_I)) - np.repeat(first_P, count_P)
    count_I = np.repeat(count_P, count_P)
    # Where place * most / count passes a whole number, `most` places of each person do.
    kept_I = (place_I * most // count_I != (place_I - 1) * most // count_I) | (count_I <= most)
    return np.sort(order_I[kept_I])


def _of_pairs(path: Path) -> People:
    pairs = read_pairs(path)
    number_of = {payload: number for number, payload in enumerate(dict.fromkeys(pairs.payloads))}
    payloads = list(number_of)
    identity_P2, names = pair_identities(pairs.payloads, pairs.same_P), None
    if pairs.names is not None:
        identity_P2, names = pairs.names.identity_P2, pairs.names.names
    person_I = np.empty(len(payloads), dtype=np.int64)
    for payload, identity in zip(pairs.payloads, identity_P2.ravel(), strict=True):
        person_I[number_of[payload]] = identity
    first_place = {payload: place for place, payload in reversed(list(enumerate(pairs.payloads)))}
    places = [first_place[payload] for payload in payloads]
    return People(
        label_P=np.arange(int(identity_P2.max()) + 1),
        name_P=names,
        person_I=person_I,
        read=lambda i: payloads[i],
        where=lambda i: f"{path}, image {places[i] % 2 + 1} of pair {places[i] // 2}",
        num_images_P=np.bincount(person_I),
        pairs=pairs,
        identity_P2=identity_P2,
    )


def mean_embeddings(
    stored: StoredEmbeddings, person_I: np.ndarray, num_people: int
) -> tuple[np.ndarray, np.ndarray]:
    """The direction of the sum of each person's unit embeddings, read part by part.

    Returns:
        mean_PD, float32 of unit length, and count_P, the images with an embedding. A person without
        one has a row of zeros.
    """
    sum_PD = np.zeros((num_people, 0), dtype=np.float32)
    count_P = np.zeros(num_people, dtype=np.int64)
    for first, rows_ID in unit_parts(stored):
        known = np.flatnonzero(np.isfinite(rows_ID).all(axis=1))
        if not rows_ID.shape[1] or not len(known):
            continue  # a part without a readable image has no width of its own
        if not sum_PD.shape[1]:
            sum_PD = np.zeros((num_people, rows_ID.shape[1]), dtype=np.float32)
        known = known[np.argsort(person_I[first + known], kind="stable")]
        people, begin, count = np.unique(
            person_I[first + known], return_index=True, return_counts=True
        )
        sum_PD[people] += np.add.reduceat(rows_ID[known], begin, axis=0)
        count_P[people] += count
    norm_P1 = np.linalg.norm(sum_PD, axis=1, keepdims=True)
    sum_PD /= np.where(norm_P1 > 0, norm_P1, 1)
    return sum_PD, count_P


def chosen_embeddings(stored: StoredEmbeddings, number_X: np.ndarray) -> np.ndarray:
    """Unit embeddings of these images [X, D], their numbers ascending; NaN where there is none."""
    rows = []
    for first, rows_ID in unit_parts(stored):
        low, high = np.searchsorted(number_X, (first, first + len(rows_ID)))
        rows.append(rows_ID[number_X[low:high] - first])
    return np.concatenate(rows)
