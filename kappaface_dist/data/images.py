"""One image: encoded bytes -> pixels, and back.

Shapes: H W the image size in pixels; pixels are uint8, RGB, channels last.
"""

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

JPEG_START = b"\xff\xd8"
JPEG_END = b"\xff\xd9"


def decode_image(payload: bytes, image_size: int) -> np.ndarray:
    """Decode JPEG (or any format that Pillow knows) and resize to image_size x image_size.

    JPEGs are decoded at the smallest of libjpeg's own scales that is not below image_size; what
    remains of the way is resized with a box-filtered bilinear.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        ValueError: the bytes are not a readable image; the message says what the decoder said.
    """
    pixels_HW3 = decode_picture(payload, at_least=image_size)
    if pixels_HW3.shape[:2] != (image_size, image_size):
        resized = Image.fromarray(pixels_HW3).resize(
            (image_size, image_size), Image.Resampling.BILINEAR
        )
        pixels_HW3 = np.asarray(resized)
    return pixels_HW3


def decode_picture(payload: bytes, at_least: int = 0) -> np.ndarray:
    """Decode JPEG (or any format that Pillow knows) in the size it has.

    Args:
        at_least: a JPEG may come out smaller, at the smallest of libjpeg's own scales that is not
            below so many pixels; 0: in its own size.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        ValueError: the bytes are not a readable image; the message says what the decoder said.
    """
    try:
        if payload[:2] == JPEG_START:
            return simplejpeg.decode_jpeg(
                payload, colorspace="RGB", min_height=at_least, min_width=at_least
            )
        with Image.open(io.BytesIO(payload)) as image:
            return np.asarray(image.convert("RGB"))
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image ({_reason(error)})") from error


def check_jpeg(payload: bytes) -> None:
    """Raise ValueError if libjpeg-turbo finds fault with the file, as decode_image() does.

    All of its coded data is read, but only an eighth of the pixels is computed.
    """
    try:
        simplejpeg.decode_jpeg(payload, colorspace="GRAY", min_factor=8)
    except ValueError as error:
        raise ValueError(f"not a readable image ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    # Pillow's own text for this has the address of an object in it.
    unknown = isinstance(error, UnidentifiedImageError)
    return "of no known image format" if unknown else str(error)


def encode_jpeg(pixels_HW3: np.ndarray, quality: int = 95) -> bytes:
    """Encode uint8 RGB pixels [H, W, 3] as JPEG without chroma subsampling."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels_HW3), quality=quality, colorspace="RGB", colorsubsampling="444"
    )
