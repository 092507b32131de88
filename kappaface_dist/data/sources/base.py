"""Kinds of dataset: each says where its images lie and what their labels are.

Shapes: I images of a source, C classes.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

logger = logging.getLogger(__name__)

MAX_CLASSES = 2**31  # labels are int32
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".pnm", ".gif")
)


class Source(Protocol):
    """One file or folder of images; class numbers are shared by all sources of a dataset."""

    label_I: np.ndarray  # int32

    @property
    def class_names(self) -> Sequence[str] | None:
        """The names of the identities, by class, where the source has names."""
        ...

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; ValueError or OSError if they cannot be had."""
        ...

    def where(self, index: int) -> str:
        """How messages name one image."""
        ...


def list_identities(folder: Path) -> list[str]:
    """The names of the sub-folders, sorted; hidden ones are not identities."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")


def list_images(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the image files in a folder, and of the files that are not images, sorted."""
    images: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file() and entry.name[0] != ".":
                is_image = Path(entry.name).suffix.lower() in IMAGE_SUFFIXES
                (images if is_image else others).append(entry.name)
    return sorted(images), sorted(others)
