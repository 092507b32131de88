"""How near strangers come to a person of so many images: seen by the classes of the set itself.

Shapes: N classes that have an embedding, R references, X their images, K nearest, D embedding size.
"""

import numpy as np
import torch

from kappaface_dist.evaluation.embedding.store import StoredEmbeddings
from kappaface_dist.evaluation.one_to_many.nearest import nearest_entries
from kappaface_dist.evaluation.overlap.claims import MOST_REFERENCES, NUM_NEAREST, Strangers
from kappaface_dist.evaluation.overlap.people import People, chosen_embeddings, spread_choice

FEWEST_REFERENCES = 200


def strangers_of(
    people: People,
    stored: StoredEmbeddings,
    mean_ND: np.ndarray,
    known_N: np.ndarray,
    wanted: int,
    device: torch.device | str,
) -> Strangers:
    """How near others come to means of so many images, seen by classes of the set itself.

    The mean of a class with more images has less noise, and others come nearer to it than to a
    mean of few: of each class only so many images are taken.
    """
    num_images_N = np.bincount(people.person_I, minlength=len(known_N))[known_N]
    chosen = known_N[_references(num_images_N, wanted)]
    of_these_X = np.flatnonzero(np.isin(people.person_I, chosen))
    number_X = of_these_X[spread_choice(people.person_I[of_these_X], wanted)]
    rows_XD = chosen_embeddings(stored, number_X)
    good_X = np.isfinite(rows_XD).all(axis=1)
    person_R, place_X = np.unique(people.person_I[number_X[good_X]], return_inverse=True)
    reference_RD = np.zeros((len(person_R), mean_ND.shape[1]), dtype=np.float32)
    np.add.at(reference_RD, place_X, rows_XD[good_X])
    length_R1 = np.linalg.norm(reference_RD, axis=1, keepdims=True)
    reference_RD /= np.where(length_R1 > 0, length_R1, 1)
    score_RK, at_RK = nearest_entries(reference_RD, mean_ND, NUM_NEAREST + 1, device=device)
    # The class itself is no stranger, wherever it is among the nearest.
    score_RK[at_RK == np.searchsorted(known_N, person_R)[:, None]] = -np.inf
    return Strangers(-np.sort(-score_RK, axis=1)[:, :NUM_NEAREST])


def _references(num_images_N: np.ndarray, wanted: int) -> np.ndarray:
    """Classes to see strangers by: with so many images, or those with the most of them."""
    enough = np.flatnonzero(num_images_N >= wanted)
    if len(enough) < FEWEST_REFERENCES:
        enough = np.argsort(-num_images_N, kind="stable")[:FEWEST_REFERENCES]
    most = min(len(enough), MOST_REFERENCES)
    return enough[((np.arange(most) + 0.5) * len(enough) / most).astype(int)]
