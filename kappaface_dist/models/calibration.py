"""Images to calibrate an export with, spread evenly over a dataset.

Shapes: I images, H W image size.
"""

import numpy as np
import torch

from kappaface_dist.data.images import decode_image
from kappaface_dist.data.normalisation import normalise
from kappaface_dist.evaluation.embedding.files import open_images


def calibration_images(
    place: str, most: int, image_size: int
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Normalised images, float32 [I, 3, H, W], and (image, why) of those that are not readable.

    Args:
        place: a dataset, or any folder with images in it or below.
        most: how many images are looked at.

    Raises:
        ValueError: there is no image, or none is readable.
    """
    images = open_images(place)
    numbers = np.unique(np.linspace(0, images.count - 1, min(most, images.count)).astype(int))
    pixels, unreadable = [], []
    for i in numbers.tolist():
        try:
            pixels.append(decode_image(images.read(i), image_size))
        except (ValueError, OSError) as error:
            unreadable.append((images.where(i), str(error)))
    if not pixels:
        raise ValueError(
            f"none of {len(numbers)} images of {place} is readable: {unreadable[0][0]}:"
            f" {unreadable[0][1]}"
        )
    image_I3HW = normalise(torch.from_numpy(np.stack(pixels)), torch.contiguous_format)
    return image_I3HW.numpy(), unreadable
