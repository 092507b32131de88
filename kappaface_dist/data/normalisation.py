"""Pixels as every network here takes them: (x - 127.5) / 127.5, float32, channels first.

Apart from images.py, since torch is more than the processes that only prepare data need to load.
Shapes: B images, H W the image size.
"""

import numpy as np
import torch

PIXEL_MEAN = 127.5
PIXEL_SCALE = 127.5


def normalise_image(pixels_HW3: np.ndarray, out_3HW: np.ndarray) -> None:
    """Write one image of uint8 pixels, normalised, into a float32 array."""
    # Two steps: the strided copy of bytes and the conversion of whole rows are fast ones.
    pixels_3HW = np.ascontiguousarray(pixels_HW3.transpose(2, 0, 1))
    np.subtract(pixels_3HW, np.float32(PIXEL_MEAN), out=out_3HW, dtype=np.float32)
    np.divide(out_3HW, np.float32(PIXEL_SCALE), out=out_3HW)


def normalise(
    pixels_BHW3: torch.Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> torch.Tensor:
    """image_B3HW of uint8 pixels, on their device.

    Args:
        memory_format: torch.preserve_format leaves the numbers in the order of the pixels.
    """
    pixels_B3HW = pixels_BHW3.permute(0, 3, 1, 2)
    image_B3HW = torch.empty_like(pixels_B3HW, dtype=torch.float32, memory_format=memory_format)
    return image_B3HW.copy_(pixels_B3HW).sub_(PIXEL_MEAN).div_(PIXEL_SCALE)
