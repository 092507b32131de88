"""Which pairs of unseen people look like the small classes of the training data.

Unseen people have no training images, so their likeness decides: a network that is none of the
arms (trained without a margin, with a seed of its own) finds the training classes whose centres lie
closest to an image. An image stands among small classes if these have few images.
Shapes: I training images, C classes, M images of unseen people, P pairs, D embedding size.
"""

import numpy as np

NEAREST_CLASSES = 5
SMALL_SHARE = 1 / 3
BLOCK = 1024


def images_nearby(
    embedding_ID: np.ndarray, label_I: np.ndarray, count_C: np.ndarray, unseen_MD: np.ndarray
) -> np.ndarray:
    """Geometric mean of the number of images of the five training classes closest to an image."""
    used_C = np.flatnonzero(count_C)
    centre_CD = np.zeros((len(count_C), embedding_ID.shape[1]))
    np.add.at(centre_CD, label_I, embedding_ID)
    centre_CD = centre_CD[used_C]
    centre_CD /= np.maximum(np.linalg.norm(centre_CD, axis=1, keepdims=True), 1e-12)
    log_C = np.log(count_C[used_C])
    nearest = min(NEAREST_CLASSES, len(used_C))
    parts = []
    for first in range(0, len(unseen_MD), BLOCK):
        cosine_MC = unseen_MD[first : first + BLOCK] @ centre_CD.T
        closest = np.argpartition(-cosine_MC, nearest - 1, axis=1)[:, :nearest]
        parts.append(log_C[closest].mean(axis=1))
    return np.exp(np.concatenate(parts))


def small_pairs(nearby_M: np.ndarray, pair_P2: np.ndarray, same_P: np.ndarray) -> np.ndarray:
    """bool [P]: the third of the same pairs, and of the different ones, with the fewest nearby."""
    score_P = np.log(nearby_M)[pair_P2].mean(axis=1)
    small_P = np.zeros(len(same_P), dtype=bool)
    for kind_P in (same_P, ~same_P):
        members = np.flatnonzero(kind_P)
        order = members[np.argsort(score_P[members], kind="stable")]
        small_P[order[: round(len(members) * SMALL_SHARE)]] = True
    return small_P
