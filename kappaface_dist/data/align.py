"""Brings a face to the position in which the field trains and tests: by its five points.

Shapes: H W image size; five points of x, y in pixels, the centre of the first pixel being 0, 0, in
the order left eye, right eye, nose, left and right corner of the mouth (as seen in the picture).
"""

import numpy as np
from PIL import Image

# Where the points come to lie in 112 x 112 pixels: the template of ArcFace (Deng et al. 2019).
REFERENCE_52 = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
REFERENCE_SIZE = 112


def reference_points(image_size: int) -> np.ndarray:
    """Where the five points come to lie in image_size x image_size pixels, [5, 2]."""
    # From the centres of pixels at 112 to those at another size: half a pixel stays half a pixel.
    return (REFERENCE_52 + 0.5) * (image_size / REFERENCE_SIZE) - 0.5


def similarity(source_52: np.ndarray, target_52: np.ndarray) -> np.ndarray:
    """The rotation, scale and shift [2, 3] that bring source closest to target.

    Closest in the sum of squared distances: Umeyama, "Least-squares estimation of transformation
    parameters between two point patterns" (1991), equations 40 to 43.

    Raises:
        ValueError: the source points are all one point.
    """
    source_mean, target_mean = source_52.mean(axis=0), target_52.mean(axis=0)
    source, target = source_52 - source_mean, target_52 - target_mean
    variance = np.square(source).sum()
    if not variance > 0:
        raise ValueError(f"the five points are all at {source_mean.tolist()}: no face lies there")
    u, singular, vt = np.linalg.svd(target.T @ source)
    # No reflection: a mirrored fit would be another face.
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    scale = (singular * sign).sum() / variance
    shift = target_mean - scale * rotation @ source_mean
    return np.concatenate([scale * rotation, shift[:, None]], axis=1)


def warp(pixels_HW3: np.ndarray, matrix_23: np.ndarray, width: int, height: int) -> np.ndarray:
    """The image moved by matrix_23 (source point to target point); bilinear, black outside."""
    linear = np.linalg.inv(matrix_23[:, :2])
    shift = -linear @ matrix_23[:, 2]
    # Pillow counts from the corner of a pixel, the points from its centre.
    shift = shift + 0.5 - linear @ np.array([0.5, 0.5])
    coefficients = np.concatenate([linear, shift[:, None]], axis=1).ravel().tolist()
    moved = Image.fromarray(pixels_HW3).transform(
        (width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return np.asarray(moved)


def align_face(pixels_HW3: np.ndarray, points_52: np.ndarray, image_size: int) -> np.ndarray:
    """uint8 [image_size, image_size, 3] with the face's points where the field expects them.

    Raises:
        ValueError: the points are all one point.
    """
    matrix_23 = similarity(points_52.astype(np.float64), reference_points(image_size))
    return warp(pixels_HW3, matrix_23, image_size, image_size)
