"""One person or not: photos, or folders with photos of one person each, compared by a model.

Shapes: A things that are compared, I images, D embedding size.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kappaface_dist.evaluation.sets.face_lists import images_below
from kappaface_dist.models.embedder import Embedder


@dataclass(frozen=True)
class Comparison:
    """Two of the things that were compared.

    Attributes:
        cosine: of their embeddings.
        same: whether the cosine reaches the threshold.
    """

    first: str
    second: str
    cosine: float
    same: bool

    def summary(self) -> dict[str, Any]:
        """Ready for JSON."""
        return vars(self)


def compare_all(
    embedder: Embedder,
    places: Sequence[Path],
    threshold: float,
    read: Callable[[Path], bytes | np.ndarray],
    *,
    batch_size: int = 64,
) -> tuple[list[Comparison], list[tuple[str, str]]]:
    """Compare each of the places with each other; a folder stands for one person.

    A folder's embedding is the direction of the sum of its images' unit embeddings.

    Args:
        threshold: a cosine: from it on two are the same.
        read: the face of a file, as bytes of a picture or as pixels.

    Returns:
        The comparisons, and (file, why) of the images in folders that are not readable.

    Raises:
        ValueError: a place that is a file is not readable, or no image of a folder is.
        OSError: there is no such file.
    """
    left_out: list[tuple[str, str]] = []
    embedding_AD = np.stack(
        [_embed_place(embedder, place, read, batch_size, left_out) for place in places]
    )
    cosine_AA = embedding_AD @ embedding_AD.T
    found = []
    for a, b in itertools.combinations(range(len(places)), 2):
        cosine = float(cosine_AA[a, b])
        found.append(Comparison(str(places[a]), str(places[b]), cosine, cosine >= threshold))
    return found, left_out


def _embed_place(
    embedder: Embedder,
    place: Path,
    read: Callable[[Path], bytes | np.ndarray],
    batch_size: int,
    left_out: list[tuple[str, str]],
) -> np.ndarray:
    if not place.is_dir():
        try:
            return embedder.embed(read(place)).astype(np.float64)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    sum_D = np.zeros(embedder.embedding_size)
    waiting: list[np.ndarray] = []

    def add() -> None:
        if waiting:
            sum_D[:] += embedder.embed(waiting, batch_size=batch_size).sum(axis=0)
            waiting.clear()

    paths = images_below(place)
    num_before = len(left_out)
    for path in paths:
        try:
            waiting.append(embedder.pixels(read(path)))
        except (ValueError, OSError) as error:
            left_out.append((str(path), str(error)))
        if len(waiting) == batch_size:
            add()
    add()
    if len(left_out) - num_before == len(paths):
        raise ValueError(f"{place}: none of its {len(paths)} images is usable: {left_out[-1][1]}")
    return sum_D / max(float(np.linalg.norm(sum_D)), 1e-12)
