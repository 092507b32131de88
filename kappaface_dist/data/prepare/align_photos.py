"""Aligned faces out of a folder of photos.

Shapes: H W image size; five points of x, y in pixels, as in align.py.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from kappaface_dist.data.align import align_face
from kappaface_dist.data.images import decode_picture, encode_jpeg
from kappaface_dist.data.prepare.landmarks import YuNetDetector, read_landmarks
from kappaface_dist.data.sources.base import IMAGE_SUFFIXES

Locate = Callable[[np.ndarray], np.ndarray | None]


def listed_photos(landmarks: Path) -> Iterator[tuple[str, Locate]]:
    """The photos of a file of landmarks, and how to find the face in each."""
    for name, points_52 in read_landmarks(landmarks):
        yield name, partial(_known, points_52)


def _known(points_52: np.ndarray, pixels_HW3: np.ndarray) -> np.ndarray:
    return points_52


def detected_photos(photos: Path, model: Path) -> Iterator[tuple[str, Locate]]:
    """All photos below a folder; the largest face of each is found by a YuNet model."""
    detector = YuNetDetector(model)
    for path in sorted(photos.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield str(path.relative_to(photos)), detector.largest_face


def align_photo(photo: Path, target: Path, locate: Locate, image_size: int) -> None:
    """Write the aligned face as JPEG.

    Raises:
        ValueError: the photo is unreadable, or no face was found.
        OSError: there is no such photo.
    """
    pixels_HW3 = decode_picture(photo.read_bytes())
    points_52 = locate(pixels_HW3)
    if points_52 is None:
        raise ValueError("no face was found")
    aligned_HW3 = align_face(pixels_HW3, points_52, image_size)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(encode_jpeg(aligned_HW3))
