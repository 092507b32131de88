"""A quick look at a dataset: are its pictures the aligned faces that training takes?"""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from kappaface_dist.data.sources.catalog import Catalog

LOOKED_AT = 32
LARGEST = 224  # pixels, of what can be an aligned face; they are square, most are of 112


def odd_sizes(catalog: Catalog) -> str:
    """What is wrong with the size of some pictures, in a sentence; "" if nothing is.

    A few, spread over the dataset, are looked at.
    """
    asked = min(LOOKED_AT, catalog.num_images)
    places = np.linspace(0, catalog.num_images - 1, asked).astype(int)
    odd, example, unreadable = 0, (0, 0), 0
    for place in places.tolist():
        try:
            size = Image.open(io.BytesIO(catalog.read(place))).size
        except (OSError, ValueError, UnidentifiedImageError):
            unreadable += 1
            continue
        if size[0] != size[1] or size[0] > LARGEST:
            odd, example = odd + 1, size
    found = []
    if odd:
        found.append(
            f"{odd} of {asked} pictures looked at do not look like aligned faces, as 112x112 (one"
            f" is {example[0]}x{example[1]}): they will be resized as they are, so cut the faces"
            " out of photos first, kappaface align-faces"
        )
    if unreadable:
        found.append(
            f"{unreadable} of {asked} cannot be read: kappaface check-record names them all"
        )
    return "; ".join(found)
