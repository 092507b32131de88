"""Carries out the changes of augment.py with Pillow and libjpeg-turbo.

Shapes: B images on this rank, H W the image size; pixels are uint8, RGB, channels last.
"""

import numpy as np
import simplejpeg
from PIL import Image, ImageFilter

from kappaface_dist.data.loading.augment import WHOLE, Changes

RESAMPLING = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)
IDENTITY = np.eye(3, 4, dtype=np.float32)


def apply_changes(pixels_HW3: np.ndarray, changes: Changes, i: int) -> np.ndarray:
    """Image i of the batch with its changes; the given array where there are none but a mirror."""
    out_HW3 = pixels_HW3
    if changes.changed_B[i]:
        out_HW3 = _change(pixels_HW3, changes, i)
    return out_HW3[:, ::-1] if changes.flip_B[i] else out_HW3


def box_pixels(box: np.ndarray, size: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in whole pixels."""
    left, top, right, bottom = np.round(box * size).astype(int).tolist()
    return left, top, right, bottom


def _change(pixels_HW3: np.ndarray, changes: Changes, i: int) -> np.ndarray:
    size = pixels_HW3.shape[0]
    image = Image.fromarray(pixels_HW3)
    if tuple(changes.crop_B4[i]) != WHOLE:
        box = tuple((changes.crop_B4[i] * size).tolist())
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if not np.array_equal(changes.colour_B34[i], IDENTITY):
        image = image.convert("RGB", tuple(changes.colour_B34[i].ravel().tolist()))
    if tuple(changes.window_B4[i]) != WHOLE:
        window = box_pixels(changes.window_B4[i], size)
        black = Image.new("RGB", (size, size))
        black.paste(image.crop(window), window)
        image = black
    if changes.occlusion_B4[i, 2] > 0:
        colour = tuple(np.round(changes.occlusion_colour_B3[i]).astype(int).tolist())
        image.paste(colour, box_pixels(changes.occlusion_B4[i], size))
    if changes.sigma_B[i] > 0:
        image = image.filter(ImageFilter.GaussianBlur(float(changes.sigma_B[i]) * size))
    if changes.side_B[i] < 1:
        small = small_side(changes.side_B[i], size)
        image = image.resize((small, small), RESAMPLING[changes.down_B[i]])
        image = image.resize((size, size), RESAMPLING[changes.up_B[i]])
    if changes.quality_B[i] > 0:
        payload = simplejpeg.encode_jpeg(
            np.asarray(image), quality=int(changes.quality_B[i]), colorsubsampling="420"
        )
        return simplejpeg.decode_jpeg(payload)
    return np.asarray(image)


def small_side(side: float, size: int) -> int:
    """Pixels of the low resolution: at least 4, so that something is left."""
    return max(min(4, size), round(float(side) * size))
