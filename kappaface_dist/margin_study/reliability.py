"""How much of a margin is knowledge: what two disjoint sets of a class's photos say of it.

Shapes: C classes, I images that are embedded, D embedding size, A centres of a class, k photos of a
set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from kappaface_dist.checkpoint.index import read_metadata
from kappaface_dist.checkpoint.stored import stored_pieces
from kappaface_dist.checkpoint.transplant import head_prefix
from kappaface_dist.evaluation.embedding.embed import embed_images
from kappaface_dist.head.margins.resultant import concentration, sampling_variance
from kappaface_dist.margin_study.margin_report import ClassMeasures, correlation, spearman
from kappaface_dist.models.saved_model import open_model

# Photos of a set; a class takes part where it has two such sets.
SET_SIZES = (2, 3, 5, 10, 20, 50)
FEWEST_CLASSES = 8
REPEATS = 10
BATCH = 64


@dataclass(frozen=True)
class Embedded:
    """Attributes:
    embedding_ID: unit embeddings of photos.
    label_I: class of each.
    length_I: of the embeddings before they were made 1; None: not known.
    target_cosine_I: to the centre of the class in the head; None: not known.
    index_I: the photos' numbers in the data; None: not known.
    """

    embedding_ID: np.ndarray
    label_I: np.ndarray
    length_I: np.ndarray | None = None
    target_cosine_I: np.ndarray | None = None
    index_I: np.ndarray | None = None

    def first(self, number: int) -> "Embedded":
        """The first ones of them."""
        all_of_them: dict[str, Any] = {own.name: getattr(self, own.name) for own in fields(self)}
        known = {name: value[:number] for name, value in all_of_them.items() if value is not None}
        return Embedded(**known)


def embed_classes(
    classes: ClassMeasures,
    num_images: int,
    others: Sequence[int] = (),
    progress: Callable[[int], object] | None = None,
) -> tuple[Embedded, int]:
    """Embed photos of the checkpoint's own data by the checkpoint's own network.

    Args:
        num_images: at most; classes of at least four photos are drawn at random, whole (but no more
            than two of the largest sets of each), until there are so many.
        others: classes whose photos come after those, where they were not drawn.

    Returns:
        The photos, and how many of them were drawn.

    Raises:
        ValueError: a photo is unreadable.
    """
    rng = np.random.default_rng(0)
    label_I = np.asarray(classes.catalog.label_I)
    order_I = np.argsort(label_I, kind="stable")
    first_C = np.concatenate([[0], np.cumsum(np.bincount(label_I, minlength=len(classes.count_C)))])

    def photos(c: int) -> list[int]:
        mine = rng.permutation(order_I[first_C[c] : first_C[c + 1]])[: 2 * SET_SIZES[-1]]
        return mine.tolist()

    chosen: list[int] = []
    for c in rng.permutation(np.flatnonzero(classes.count_C >= 2 * SET_SIZES[0])).tolist():
        mine = photos(c)
        if len(chosen) + len(mine) > num_images:
            break
        chosen += mine
    num_drawn, drawn = len(chosen), set(label_I[chosen].tolist())
    for c in others:
        chosen += photos(c) if c not in drawn else []
    if not chosen:
        return Embedded(np.zeros((0, 1)), np.zeros(0, np.int64)), 0
    model = open_model(classes.folder)
    embedding_ID, length_I = embed_images(
        model.network,
        [classes.catalog.read(index) for index in chosen],
        image_size=model.settings.image_size,
        batch_size=BATCH,
        device=torch.device("cpu"),
        describe=lambda number: classes.catalog.where(chosen[number]),
        progress=progress,
    )
    label_I = label_I[chosen]
    target_cosine_I = _target_cosines(classes, embedding_ID, label_I)
    embedded = Embedded(embedding_ID, label_I, length_I, target_cosine_I, np.array(chosen))
    return embedded, num_drawn


def _target_cosines(
    classes: ClassMeasures, embedding_ID: np.ndarray, label_I: np.ndarray
) -> np.ndarray:
    """With the head's centre of each image's class, or the nearest of its centres; the checkpoint
    is read piece by piece.
    """
    index, name = read_metadata(classes.folder), f"{head_prefix(classes.dataset)}weight"
    cosine_I = np.zeros(len(label_I))
    for chunk, piece_LX in stored_pieces(classes.folder, index, name):
        local_I = label_I - chunk.offsets[0]
        here_I = (local_I >= 0) & (local_I < len(piece_LX))
        centre_IX = piece_LX[torch.from_numpy(local_I[here_I])].double().numpy()
        centre_IAD = centre_IX.reshape(len(centre_IX), -1, embedding_ID.shape[1])
        product_IA = np.einsum("iad,id->ia", centre_IAD, embedding_ID[here_I])
        cosine_I[here_I] = (product_IA / np.linalg.norm(centre_IAD, axis=2)).max(axis=1)
    return cosine_I


def reliability(embedded: Embedded, estimator: str, max_resultant: float) -> list[dict[str, Any]]:
    """For each number k of photos: how κ of one set agrees with that of another of the same class.

    Args:
        estimator: "plugin", or the unbiased one for all others.

    Returns:
        images (k), classes; pearson and spearman, the correlation over classes, which is the share
        of the spread of κ that is no error; error, the standard deviation of κ between two sets of
        one class over √2; common, the covariance of the two; expected_error, what the error of
        independent draws would be; each the mean over random sets. Sizes of which fewer than
        FEWEST_CLASSES classes have two sets are left out.
    """
    classes = [np.flatnonzero(embedded.label_I == c) for c in np.unique(embedded.label_I)]
    rng = np.random.default_rng(0)
    rows = []
    for size in SET_SIZES:
        large = [index for index in classes if len(index) >= 2 * size]
        if len(large) < FEWEST_CLASSES:
            continue
        found = []
        for _ in range(REPEATS):
            drawn = [rng.permutation(index) for index in large]
            sets = [
                np.stack([embedded.embedding_ID[i[part * size : (part + 1) * size]] for i in drawn])
                for part in (0, 1)
            ]
            first, second = (kappa_of_sets(z, estimator, max_resultant) for z in sets)
            found.append(
                (
                    correlation(first, second) or 0.0,
                    spearman(first, second) or 0.0,
                    float(np.std(first - second) / np.sqrt(2)),
                    float(np.cov(first, second)[0, 1]),
                )
            )
        pearson, rank, error, common = np.mean(found, axis=0).tolist()
        whole = np.concatenate([embedded.embedding_ID[index] for index in large])
        label = np.repeat(np.arange(len(large)), [len(index) for index in large])
        rows.append(
            {
                "images": size,
                "classes": len(large),
                "pearson": pearson,
                "spearman": rank,
                "error": error,
                "common": common,
                "expected_error": expected_error(
                    typical_squared(whole, label), size, embedded.embedding_ID.shape[1]
                ),
            }
        )
    return rows


def kappa_of_sets(z_CkD: np.ndarray, estimator: str, max_resultant: float) -> np.ndarray:
    """κ of each class from k photos."""
    size = z_CkD.shape[1]
    squared_sum_C = np.square(z_CkD.sum(axis=1)).sum(axis=1)
    if estimator == "plugin":
        squared_C = squared_sum_C / size**2
    else:
        squared_C = (squared_sum_C - size) / (size * (size - 1))
    root_C = torch.from_numpy(squared_C.clip(0.0, max_resultant**2)).sqrt()
    return concentration(root_C, z_CkD.shape[2]).numpy()


def typical_squared(embedding_ID: np.ndarray, label_I: np.ndarray) -> float:
    """Mean over classes of ρ², without bias."""
    num = int(label_I.max()) + 1
    sums_CD = np.zeros((num, embedding_ID.shape[1]))
    np.add.at(sums_CD, label_I, embedding_ID)
    size_C = np.bincount(label_I, minlength=num)
    return float(((np.square(sums_CD).sum(axis=1) - size_C) / (size_C * (size_C - 1))).mean())


def expected_error(squared: float, size: int, embedding_size: int) -> float:
    """Standard deviation of κ from so many independent draws, by the slope of κ at ρ²."""
    at = torch.tensor([squared], dtype=torch.float64)
    variance = sampling_variance(at, torch.tensor([float(size)]), embedding_size)
    step = 1e-6
    up, down = (concentration((at + x).sqrt(), embedding_size) for x in (step, -step))
    return float(variance.sqrt() * (up - down) / (2 * step))


def error_of_sizes(rows: list[dict[str, Any]], size_C: np.ndarray) -> np.ndarray:
    """The measured error of κ for classes of other sizes: a line in log-log, beyond the largest as
    1 / √n.
    """
    sizes = np.array([row["images"] for row in rows], dtype=np.float64)
    errors = np.array([max(row["error"], 1e-12) for row in rows])
    error_C = np.exp(np.interp(np.log(size_C), np.log(sizes), np.log(errors)))
    return np.where(size_C > sizes[-1], errors[-1] * np.sqrt(sizes[-1] / size_C), error_C)


def noise_share(rows: list[dict[str, Any]], classes: ClassMeasures) -> float | None:
    """Share of the variance of κ over the measured classes that is sampling error: from the error
    of each one's number of photos, and what two sets of one class have in common. None where
    nothing is known of the error.
    """
    known_C = np.isfinite(classes.kappa_C)
    if not rows or not known_C.any():
        return None
    weight = np.array([row["classes"] / max(row["error"], 1e-12) ** 2 for row in rows])
    common = max(float(np.average([row["common"] for row in rows], weights=weight)), 0.0)
    chance = float(np.square(error_of_sizes(rows, classes.count_C[known_C])).mean())
    return chance / (chance + common)
