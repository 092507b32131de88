"""The labels of a batch's images: one each, or of several that an image has all, or one drawn.

Which one is drawn is a function of (seed, epoch, image) alone: the same on any number of ranks and
after a resume, and over the epochs each of an image's labels as often as another.
Shapes: I images of the dataset, B of this rank, L labels of an image.
"""

import numpy as np

from kappaface_dist.counter_random import mix64, uniform
from kappaface_dist.data.loading.numbering import numbers_in_class
from kappaface_dist.data.sources.catalog import Catalog

DRAW_LABEL = 0x1ABE1  # among the purposes of a seed


class Labels:
    """Gives images their labels, and which of their classes' images they are.

    Args:
        how: "first", "draw" or "mean" (all), as data.labels has it; the last two take what
            `with_all_labels` has found.
        with_slots: number the images in their classes: four bytes for each label.
    """

    def __init__(self, catalog: Catalog, how: str, seed: int, *, with_slots: bool):
        self._label, self._how = catalog.label_I, how
        if how != "first":
            assert catalog.label_IL is not None, "data.labels of a dataset that was not asked"
            self._label = catalog.label_IL
        self._num_images = catalog.num_images
        self._seed = mix64(seed, DRAW_LABEL)
        self._slot = None
        if with_slots:
            self._slot = numbers_in_class(self._label.ravel()).reshape(self._label.shape)

    def of(self, image_B: np.ndarray, epoch_B: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(labels, int64 [B], or [B, L] of "mean"; the numbers in their classes, int32, or None).

        Args:
            image_B: numbers of images in the catalog.
            epoch_B: of the stream, in which each is seen.
        """
        place: tuple[np.ndarray, ...] = (image_B,)
        if self._how == "draw":
            chance_B = uniform(self._seed, DRAW_LABEL, epoch_B * self._num_images + image_B)
            place = image_B, (chance_B * self._label.shape[1]).astype(np.int64)
        slot = None if self._slot is None else self._slot[place]
        return self._label[place].astype(np.int64), slot
