"""Finds a readable image for each that is asked for.

Shapes: B images on this rank.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from kappaface_dist.data.sources.catalog import Catalog

T = TypeVar("T")

# Unreadable images in a row: so many are no accident, and looking further would take for ever.
MAX_IN_A_ROW = 1000


class Readable(Generic[T]):
    """Loads images; for an unreadable one the next readable one of the catalog.

    Args:
        load: loads image number so and so; ValueError or OSError if it is unreadable.
    """

    def __init__(self, catalog: Catalog, load: Callable[[int], T]):
        self._catalog = catalog
        self._load = load
        self._unreadable: dict[int, str] = {}  # written by all threads, one entry at a time

    def first(self, index: int, unreadable: dict[int, str]) -> tuple[int, T]:
        """The number of the image taken for image index, and what load() made of it.

        Args:
            unreadable: gets the images that were passed over, and why.

        Raises:
            ValueError: many images in a row are unreadable.
        """
        num_images = self._catalog.num_images
        for step in range(min(MAX_IN_A_ROW, num_images)):
            candidate = (index + step) % num_images
            reason = self._unreadable.get(candidate)
            if reason is None:
                try:
                    return candidate, self._load(candidate)
                except (ValueError, OSError) as error:
                    reason = self._unreadable[candidate] = str(error)
            unreadable[candidate] = reason
        raise ValueError(
            f"{self._catalog.where(index)} and the {step} images after it are unreadable"
            f" ({unreadable[index]}): rebuild the dataset"
        )
